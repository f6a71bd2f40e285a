"""`freshet erase` as a user runs it: asked first, told what went and what remains, and gone."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from tests.e2e.conftest import Run

from freshet.tables import Sale
from freshet.testing import sale_row
from lake.subject import Request

pytestmark = pytest.mark.long  # each command starts a pipeline; what it does is tested below

CUSTOMER, OTHER = "customer-4711", "customer-0815"
SENT = [
    {"after": sale_row("E-1", customer_id=CUSTOMER), "version": 1},
    {"after": sale_row("E-2", customer_id=CUSTOMER), "version": 1},
    {"after": sale_row("E-3", customer_id=OTHER), "version": 1},
    {"after": sale_row("E-4", customer_id=OTHER), "version": 1},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, freshet: Run) -> Path:
    home = tmp_path_factory.mktemp("erase") / "home"
    lines = "".join(json.dumps(event) + "\n" for event in SENT)
    assert freshet(home, "send", "-", "--table", "sales", stdin=lines).code == 0
    return home


def keys_left(freshet: Run, home: Path) -> list[str]:
    done = freshet(home, "query", "SELECT sale_id FROM sales ORDER BY ALL", "--json")
    return [row["sale_id"] for row in done.json]


def test_a_dry_run_makes_no_table(freshet: Run, home: Path) -> None:
    before = (home / "catalog.db").read_bytes()

    done = freshet(home, "erase", "artists", "nobody", "--dry-run", "--json")

    assert (done.code, done.json["rows"]) == (0, 0)
    assert (home / "catalog.db").read_bytes() == before


def test_a_customer_is_erased_and_the_lake_is_still_whole(freshet: Run, home: Path) -> None:
    dry = freshet(
        home, "erase", "sales", "E-3", "--where", f"customer_id={CUSTOMER}", "--dry-run", "--json"
    )
    assert dry.code == 0, dry.err
    assert (dry.json["rows"], dry.json["log_lines"]) == (3, 3)
    refused = freshet(home, "erase", "sales", "E-3", stdin="n\n")
    assert refused.code == 1
    assert "nothing was erased" in refused.err
    assert len(keys_left(freshet, home)) == 4

    where = ("--where", f"customer_id={CUSTOMER}", "--yes", "--json", "--purge-versions")
    done = freshet(home, "erase", "sales", "E-3", *where)

    assert done.code == 0, done.err
    assert (done.json["rows"], done.json["log_lines"]) == (3, 3)
    assert "What remains:" in done.err
    assert keys_left(freshet, home) == ["E-4"]
    logged = "SELECT op, key, after FROM change_log WHERE key <> 'E-4' ORDER BY key"
    lines = freshet(home, "query", logged, "--json").json
    assert lines == [{"op": "d", "key": f"E-{at}", "after": None} for at in (1, 2, 3)]
    assert freshet(home, "verify", "sales").code == 0
    why = freshet(home, "why", "sales", "E-1", "--json")
    assert [(one["op"], one["version"], one["after"]) for one in why.json] == [("d", 2, None)]


def test_a_receipt_does_not_let_a_request_be_guessed(freshet: Run, home: Path) -> None:
    guess = hashlib.sha256(Request.of(Sale, ["E-4"], []).named().encode()).hexdigest()

    assert freshet(home, "erase", "sales", "E-4", "--yes").code == 0

    told = "SELECT batch, note FROM receipts WHERE kind = 'erase' AND note LIKE '%\"keys\": 1%'"
    [row] = freshet(home, "query", told, "--json").json
    assert row["batch"].startswith("erase-")
    assert guess[:10] not in str(row)


def test_what_nobody_holds_ends_no_history(freshet: Run, home: Path) -> None:
    before = freshet(home, "history", "sales", "--json").json

    done = freshet(home, "erase", "sales", "E-99", "--yes")

    assert done.code == 1
    assert "nothing is held of that" in done.err
    assert freshet(home, "history", "sales", "--json").json == before


def test_earlier_versions_can_go_after_an_erasure_that_was_cut_short(
    freshet: Run, home: Path
) -> None:
    again = freshet(home, "erase", "sales", "E-99", "--yes", "--purge-versions")

    assert again.code == 0, again.err
    assert "deleting earlier versions" in again.err


def test_gold_views_that_were_materialised_hold_nothing_of_what_is_erased(
    freshet: Run, home: Path, tmp_path: Path
) -> None:
    line = json.dumps({"after": sale_row("E-7"), "version": 1}) + "\n"
    assert freshet(home, "send", "-", "--table", "sales", stdin=line).code == 0
    assert freshet(home, "gold", "apply").code == 0
    kept = "SELECT count(*) AS n FROM sale_changes WHERE key = 'E-7' AND op <> 'd'"
    assert freshet(home, "query", kept, "--json").json == [{"n": 1}]

    assert freshet(home, "erase", "sales", "E-7", "--yes").code == 0

    assert freshet(home, "query", kept, "--json").json == [{"n": 0}]
    assert not list(home.rglob("gold/*.parquet"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((), "name a KEY"),
        (("--where", "colour=red"), "colour"),
        (("--where", "customer_id"), "COLUMN=VALUE"),
        (("a,b",), "1 part"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    freshet: Run, home: Path, asked: tuple[str, ...], told: str
) -> None:
    done = freshet(home, "erase", "sales", *asked, "--yes")

    assert done.code == 2
    assert told in done.err
