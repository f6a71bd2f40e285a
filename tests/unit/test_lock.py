"""The lock of contracts: what may change, what is refused and what to do instead, its file and its
commands.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.evolving import ID, Declared, contract
from typer.testing import CliRunner

from freshet.contract import Integer, Money, PartitionField, Real, Registry, Text, Timestamp
from freshet.lock import (
    ContractChange,
    LockError,
    changes,
    lock_text,
    locked,
    read_lock,
)
from freshet.tables import TABLES
from local import contract_commands
from local.contract_commands import app
from local.options import Failed

ROOT = Path(__file__).parents[2]
AMOUNT = Declared(Integer(32), description="Content")
NOTE = Declared(Text(50), optional=True, description="Content")
PRICE = Declared(Money(9, 2), description="Content")
AT = Declared(Timestamp(), description="When")
COLUMNS = {"id": ID, "amount": AMOUNT, "note": NOTE, "price": PRICE, "at": AT}
BY_DAY = (PartitionField("day", "at"),)


def found(
    columns: Mapping[str, Declared], old: Mapping[str, Declared] = COLUMNS, **keywords: Any
) -> tuple[ContractChange, ...]:
    was = locked([contract(old, partition=BY_DAY)])
    return changes(was, locked([contract(columns, **{"partition": BY_DAY, **keywords})]))


def without(name: str, **added: Declared) -> dict[str, Declared]:
    return {column: one for column, one in COLUMNS.items() if column != name} | added


ALLOWED: dict[str, tuple[dict[str, Declared], str, str]] = {
    "added": ({**COLUMNS, "more": NOTE}, "more", "is a new column"),
    "wider whole": ({**COLUMNS, "amount": AMOUNT.but(type=Integer(64))}, "amount", "integer(64)"),
    "wider decimal": ({**COLUMNS, "price": PRICE.but(type=Money(20, 2))}, "price", "money(20,2)"),
    "wider text": ({**COLUMNS, "note": NOTE.but(type=Text(60))}, "note", "text(60)"),
    "made optional": (
        {**COLUMNS, "amount": AMOUNT.but(optional=True)},
        "amount",
        "is optional and was required",
    ),
    "renamed": (without("note", remark=NOTE.but(aliases=("note",))), "remark", "was called 'note'"),
    "renamed part of the partition": (
        without("at", happened_at=AT.but(aliases=("at",))),
        "happened_at",
        "was called 'at'",
    ),
    "deprecated": ({**COLUMNS, "note": NOTE.but(deprecated="none")}, "note", "is deprecated: none"),
    "described": ({**COLUMNS, "note": NOTE.but(description="More")}, "note", "otherwise"),
    "protected": ({**COLUMNS, "note": NOTE.but(pii="hash")}, "note", "handled hash"),
}
REFUSED: dict[str, tuple[dict[str, Declared], str, str]] = {
    "removed": (without("note"), "note", "keep it"),
    "renamed without saying so": (without("note", remark=NOTE), "note", 'Aliases("note")'),
    "narrower whole": (
        {**COLUMNS, "price": PRICE.but(type=Money(8, 2))},
        "price",
        "values that fit money(9,2)",
    ),
    "other scale": ({**COLUMNS, "price": PRICE.but(type=Money(9, 3))}, "price", "keep it or widen"),
    "shorter": ({**COLUMNS, "note": NOTE.but(type=Text(40))}, "note", "keep it or widen it"),
    "no longer empty": ({**COLUMNS, "note": NOTE.but(type=Text(50, 1))}, "note", "keep it"),
    "retyped": ({**COLUMNS, "amount": AMOUNT.but(type=Real())}, "amount", "declare a new optional"),
    "new and required": ({**COLUMNS, "more": AMOUNT}, "more", "declare it `| None"),
    "new and required, with a default": (
        {**COLUMNS, "more": AMOUNT.but(default=0)},
        "more",
        "None",
    ),
    "required": ({**COLUMNS, "note": NOTE.but(optional=False)}, "note", "keep it `| None`"),
    "patterned, required": ({**COLUMNS, "id": ID.but(pattern="^x")}, "id", "keep the pattern"),
    "patterned": ({**COLUMNS, "note": NOTE.but(pattern="^x")}, "note", "keep the pattern"),
}


@pytest.mark.parametrize("change", ALLOWED)
def test_what_the_lake_can_take_is_allowed_and_told(change: str) -> None:
    columns, name, words = ALLOWED[change]
    by = next((column for column in columns if column.endswith("at")), "at")

    told = found(columns, partition=(PartitionField("day", by),))

    assert {one.column for one in told} == {name}
    assert all(one.is_allowed for one in told)
    assert words in told[0].what


@pytest.mark.parametrize("change", REFUSED)
def test_what_it_cannot_is_refused_by_name_with_a_way_out(change: str) -> None:
    columns, name, advice = REFUSED[change]

    refused = [one for one in found(columns) if not one.is_allowed]

    assert {(one.table, one.column) for one in refused} == {("evolving", name)}
    assert any(advice in str(one.advice) for one in refused)
    assert f"evolving.{name}: " in str(refused[0])


def test_key_partition_and_versions_stay() -> None:
    told = found(COLUMNS, key=("id", "amount"), partition=(), contract_version=0)

    assert [(one.column, one.is_allowed) for one in told] == [(None, False)] * 3
    for words, one in zip(("merge key", "partitioned", "contract_version"), told, strict=True):
        assert words in one.what


def test_the_order_of_a_key_is_part_of_it_and_a_renamed_part_is_the_same() -> None:
    columns = {"a": ID, "b": ID}
    was = locked([contract(columns, key=("a", "b"))])

    turned = changes(was, locked([contract(columns, key=("b", "a"))]))
    renamed = changes(
        was, locked([contract({"c": ID.but(aliases=("a",)), "b": ID}, key=("c", "b"))])
    )

    assert [one.is_allowed for one in turned] == [False]
    assert [one.is_allowed for one in renamed] == [True]


def test_personal_data_is_handled_as_strictly_as_before() -> None:
    hashed = {**COLUMNS, "note": NOTE.but(pii="hash")}
    dropped = {**COLUMNS, "note": NOTE.but(pii="drop")}

    assert [one.is_allowed for one in found(dropped, hashed)] == [True]
    [loosened] = found(hashed, dropped)
    [bare] = found(COLUMNS, hashed)
    [key] = found({**COLUMNS, "id": ID.but(pii="hash")})
    assert not loosened.is_allowed
    assert 'Pii("hash")' in str(bare.advice)
    assert "key" in str(key.advice)


def test_a_former_name_is_never_forgotten() -> None:
    renamed = without("note", remark=NOTE.but(aliases=("note",)))
    again = without("note", text=NOTE.but(aliases=("remark", "note")))
    forgetful = without("note", text=NOTE.but(aliases=("remark",)))

    assert all(one.is_allowed for one in found(again, renamed))
    [refused] = [one for one in found(forgetful, renamed) if not one.is_allowed]
    assert (refused.column, "'note'" in refused.what) == ("text", True)


def test_a_pattern_may_go() -> None:
    [gone] = found(COLUMNS, {**COLUMNS, "id": ID.but(pattern="^x")})

    assert (gone.column, gone.what, gone.is_allowed) == ("id", "its pattern is None, was ^x", True)


def test_a_default_that_senders_rely_on_stays() -> None:
    had = {**COLUMNS, "amount": AMOUNT.but(default=0)}

    [refused] = found(COLUMNS, had)

    assert not refused.is_allowed
    assert "senders may leave it out" in str(refused.advice)
    assert all(one.is_allowed for one in found({**COLUMNS, "amount": AMOUNT.but(default=1)}, had))


def test_a_table_may_come_and_may_not_go() -> None:
    one, other = (contract({"id": ID}, table=name) for name in ("one", "other"))

    [added] = changes(locked([one]), locked([one, other]))
    [gone] = changes(locked([one, other]), locked([other]))

    assert (added.table, added.is_allowed) == ("other", True)
    assert (gone.table, gone.is_allowed) == ("one", False)


@pytest.mark.parametrize(
    ("before", "now", "allowed"),
    [
        (("*",), ("debezium/*",), False),
        (("debezium/*", "http"), ("debezium/*",), False),
        (("debezium/shop",), ("debezium/*",), True),
        (("debezium/*",), ("*",), True),
        (("http",), ("http", "poller/*"), True),
    ],
)
def test_a_source_that_was_trusted_stays_trusted(
    before: tuple[str, ...], now: tuple[str, ...], allowed: bool
) -> None:
    old, new = (contract(COLUMNS, trusts=one) for one in (before, now))

    [found] = changes(locked([old]), locked([new]))

    assert found.is_allowed is allowed
    assert f"trusts {', '.join(now)}" in found.what


def test_a_lock_is_read_back_as_it_was_written() -> None:
    rich = contract(
        {
            **COLUMNS,
            "odd": NOTE.but(description="It's: {odd}, # and “quoted”", default="", pattern="^é|$"),
            "real": Declared(Real(32), optional=True, aliases=("was",), deprecated="no more"),
            "secret": NOTE.but(pii="drop", description="1.0"),
        },
        partition=BY_DAY,
        trusts=("debezium/*",),
    )
    tables = locked([rich, *TABLES])

    assert read_lock(lock_text(tables)) == tables
    assert changes(tables, tables) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "# nothing\n",
        "a: [",
        "a: 1",
        "a: {version: 1}",
        "- a",
        lock_text(locked(TABLES)).replace("text(", "t("),
    ],
)
def test_what_is_no_lock_is_refused_in_words(text: str) -> None:
    with pytest.raises(LockError, match="version control"):
        read_lock(text)


def test_the_committed_lock_is_what_the_contracts_say() -> None:
    assert (ROOT / "contracts.lock").read_text() == lock_text(locked(TABLES)), (
        "run `freshet contracts lock`"
    )


@pytest.fixture
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "contracts.lock"
    declare(monkeypatch, COLUMNS)
    assert run("lock", path) == (0, [change(None, "is a new table")])
    return path


def declare(monkeypatch: pytest.MonkeyPatch, columns: Mapping[str, Declared]) -> None:
    tables = Registry((contract(columns, partition=BY_DAY),))
    monkeypatch.setattr(contract_commands, "TABLES", tables)


def change(column: str | None, what: str) -> dict[str, Any]:
    return {"table": "evolving", "column": column, "change": what, "allowed": True, "do": None}


def run(command: str, lock: Path, *options: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, [command, "--lock", str(lock), "--json", *options])
    assert done.exception is None or isinstance(done.exception, Failed | SystemExit)
    return done.exit_code, json.loads(done.stdout)


def test_check_holds_while_lock_and_contracts_agree(lock: Path) -> None:
    assert run("check", lock) == (0, [])


def test_check_asks_for_what_is_allowed_to_be_locked(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declare(monkeypatch, {**COLUMNS, "more": NOTE})

    assert run("check", lock) == (1, [change("more", "is a new column")])
    assert run("diff", lock)[0] == 0
    assert run("lock", lock)[0] == 0
    assert run("check", lock) == (0, [])


def test_what_is_refused_is_locked_by_force_alone(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = lock.read_text()
    declare(monkeypatch, without("note"))

    code, [told] = run("check", lock)
    assert (code, told["column"], told["allowed"]) == (1, "note", False)
    assert run("lock", lock)[0] == 1
    assert lock.read_text() == before
    assert run("lock", lock, "--force")[0] == 0
    assert run("check", lock) == (0, [])


def test_without_a_lock_check_says_how_to_make_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", "--lock", str(tmp_path / "none")])

    assert done.exit_code == 1
    assert "freshet contracts lock" in str(done.exception)


def test_a_folder_is_no_lock(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", "--lock", str(tmp_path)])

    assert done.exit_code == 2
    assert "is a directory" in done.output


def test_a_lock_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "other.lock").write_text("sales: [")

    done = CliRunner().invoke(app, ["check", "--lock", str(tmp_path / "other.lock")])

    assert isinstance(done.exception, LockError)
    assert str(done.exception).startswith(f"{tmp_path / 'other.lock'}: is no lock")
