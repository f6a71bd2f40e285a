"""What a contract says of its own past and of measured numbers: aliases, deprecation, reals."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from tests.evolving import ID, Declared, contract

from freshet.contract import Contract, Integer, PartitionField, Real, Registry, Text
from freshet.errors import RejectedError
from freshet.event import parse_event
from freshet.mapping import TableMapping, columns_of
from freshet.wire import Decoded, decode_record

NOTE = Declared(Text(50), optional=True)
RENAMED = contract(
    {
        "id": ID.but(aliases=("key_id",)),
        "remark": NOTE.but(aliases=("note", "notice")),
        "old": NOTE.but(deprecated="take remark"),
    }
)


@pytest.mark.parametrize("name", ["remark", "note", "notice"])
def test_rows_keys_and_patches_under_a_former_name_are_understood(name: str) -> None:
    assert RENAMED.parse({"key_id": "1", name: "x"}) == {"id": "1", "remark": "x", "old": None}
    assert RENAMED.parse_key({"key_id": "1"}) == {"id": "1"}
    assert RENAMED.parse_patch({name: "x"}) == {"remark": "x"}


def test_an_event_under_former_names_is_the_event_of_today() -> None:
    body = {"table": "evolving", "op": "u", "version": 1, "event_id": "1", "source": "t"}
    body |= {"accepted_at": "2026-11-21T08:30:00Z"}
    tables = Registry((RENAMED,))

    old = parse_event(
        {**body, "key": {"key_id": "1"}, "after": {"key_id": "1", "note": "x"}}, tables
    )
    new = parse_event({**body, "key": {"id": "1"}, "after": {"id": "1", "remark": "x"}}, tables)

    assert old == new
    assert old.to_json()["after"] == {"id": "1", "remark": "x", "old": None}


@pytest.mark.parametrize("row", [{"remark": "a", "note": "b"}, {"note": "a", "notice": "b"}])
def test_a_column_under_two_names_at_once_is_refused(row: dict[str, str]) -> None:
    for parse in (RENAMED.parse_patch, lambda row: RENAMED.parse({"id": "1", **row})):
        with pytest.raises(RejectedError, match="twice") as raised:
            parse(row)
        assert (raised.value.reason, raised.value.field) == ("unknown_column", list(row)[1])


def test_a_key_under_a_former_name_is_still_no_part_of_a_patch() -> None:
    with pytest.raises(RejectedError, match="key_in_patch"):
        RENAMED.parse_patch({"key_id": "1"})


def test_a_source_column_of_a_former_name_fills_the_column_of_today() -> None:
    columns = columns_of(RENAMED)

    found = TableMapping(table="evolving").find("note", columns)
    ignored = TableMapping(table="evolving", ignore=("note",)).find("note", columns)

    assert found is not None
    assert found.column == "remark"
    assert ignored is None


@pytest.mark.parametrize("name", ["remark", "note"])
def test_a_line_of_the_stream_or_the_quarantine_is_decoded_under_any_name(name: str) -> None:
    line = {"table": "evolving", "op": "u", "version": 1, "event_id": "1", "source": "t"}
    line |= {"accepted_at": "2026-11-21T08:30:00Z", "after": {"key_id": "1", name: "x"}}
    flat = {
        "id": "1",
        name: "x",
        "__op": "u",
        "__lsn": 7,
        "__table": "evolving",
        "__deleted": "false",
    }
    flat |= {"__ts_ms": 1, "__source_ts_ms": 1, "__db": "shop", "__schema": "public"}
    for document in (line, {**flat, "__name": "shop", "__connector": "postgresql"}):
        data = json.dumps(document).encode()
        arrived = datetime(2026, 11, 21, tzinfo=UTC)
        [part] = decode_record(data, Registry((RENAMED,)), arrived_at=arrived)
        assert isinstance(part, Decoded), part
        assert part.event.after == {"id": "1", "remark": "x", "old": None}


def test_a_deprecated_column_says_so_and_may_be_left_out() -> None:
    assert '"deprecated": true' in json.dumps(RENAMED.model_json_schema()["properties"]["old"])
    assert RENAMED.column("old").words == "Deprecated: take remark"
    assert RENAMED.parse({"id": "1", "remark": None}) == {"id": "1", "remark": None, "old": None}


IMPOSSIBLE: dict[str, tuple[dict[str, Declared], dict[str, Any], str]] = {
    "a former name that is a column": ({"id": ID, "a": NOTE.but(aliases=("id",))}, {}, "id"),
    "a former name of two": (
        {"id": ID, "a": NOTE.but(aliases=("x",)), "b": NOTE.but(aliases=("x",))},
        {},
        "'b'",
    ),
    "two names but for case": ({"id": ID, "a": NOTE, "A": NOTE}, {}, "'A': Glue and .* 'a'"),
    "a former name that is a column but for case": (
        {"id": ID, "a": NOTE, "b": NOTE.but(aliases=("A",))},
        {},
        "'b': its former name 'A'",
    ),
    "a former name that is its own but for case": (
        {"id": ID, "a": NOTE.but(aliases=("A",))},
        {},
        "'a': its former name 'A'",
    ),
    "a former name of two but for case": (
        {"id": ID, "a": NOTE.but(aliases=("x",)), "b": NOTE.but(aliases=("X",))},
        {},
        "'b': its former name 'X'",
    ),
    "a former name of the lake's": ({"id": ID, "a": NOTE.but(aliases=("_v",))}, {}, "_v"),
    "a required column deprecated": (
        {"id": ID, "a": Declared(Integer(), deprecated="no")},
        {},
        "optional",
    ),
    "a key deprecated": ({"id": ID.but(deprecated="no")}, {}, "optional"),
    "a real key": ({"id": Declared(Real())}, {}, "exact"),
    "a real partition": (
        {"id": ID, "a": Declared(Real())},
        {"partition": (PartitionField("identity", "a"),)},
        "exact",
    ),
    "a description longer than Glue's": ({"id": ID.but(description="x" * 256)}, {}, "255"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_declaration_that_cannot_be_kept_is_refused_at_once(case: str) -> None:
    columns, keywords, words = IMPOSSIBLE[case]

    with pytest.raises(TypeError, match=words):
        contract(columns, **keywords)


REALS: type[Contract] = contract(
    {"id": ID, "half": Declared(Real(32), optional=True), "full": Declared(Real(), optional=True)}
)


@pytest.mark.parametrize("value", [0, 1, -2.5, 0.1, Decimal("0.1"), 2**53, Decimal("1e300")])
def test_a_real_is_the_nearest_that_64_bits_hold(value: Any) -> None:
    parsed = REALS.parse_value("full", value)

    assert type(parsed) is float
    assert parsed == float(value)


def test_a_real_of_32_bits_is_what_a_reader_of_the_lake_gets() -> None:
    parsed = REALS.parse_value("half", Decimal("0.1"))

    assert parsed == 0.10000000149011612
    assert REALS.parse_value("half", parsed) == parsed


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("full", math.nan, "wrong_type"),
        ("full", math.inf, "wrong_type"),
        ("full", Decimal("NaN"), "wrong_type"),
        ("full", Decimal("sNaN"), "wrong_type"),
        ("full", "1.5", "wrong_type"),
        ("full", True, "wrong_type"),
        ("full", 2**53 + 1, "out_of_range"),
        ("full", 10**400, "out_of_range"),
        ("full", Decimal("1e400"), "out_of_range"),
        ("full", Decimal("1e-400"), "out_of_range"),
        ("half", 1e39, "out_of_range"),
        ("half", 1e-60, "out_of_range"),
        ("half", 2**24 + 1, "out_of_range"),
    ],
)
def test_a_real_that_would_be_another_number_is_refused(
    column: str, value: Any, reason: str
) -> None:
    with pytest.raises(RejectedError) as raised:
        REALS.parse_value(column, value)

    assert (raised.value.reason, raised.value.field) == (reason, column)
