"""The change event: what is one, what is none, and that bad input always ends in a reason."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from freshet.errors import QUOTED_MAX, RejectedError
from freshet.event import (
    BEFORE_DEPTH_MAX,
    TEXT_MAX,
    VERSION_MAX,
    Op,
    key_text,
    parse_event,
    parse_key_text,
)
from freshet.tables import TABLES
from freshet.testing import EPOCH, change, rate_row, sale_row
from freshet.wire import encode_event


def body(**members: Any) -> dict[str, Any]:
    return {
        "table": "sales",
        "op": "u",
        "version": 7,
        "event_id": "till-7-000123",
        "source": "till-7",
        "accepted_at": "2026-11-21T08:30:00Z",
        "after": sale_row(),
        **members,
    }


def rejection(event: object) -> tuple[str, str | None]:
    with pytest.raises(RejectedError) as raised:
        parse_event(event, TABLES)
    str(raised.value).encode()
    return raised.value.reason, raised.value.field


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def test_a_full_event_becomes_python_values() -> None:
    event = parse_event(
        body(occurred_at="2010-12-01T09:26:00.5+01:00", before={"quantity": 5}), TABLES
    )

    assert event.op is Op.UPDATE
    assert event.key == {"sale_id": "536365-1"}
    assert event.after is not None
    assert event.after["unit_price"] == Decimal("2.5500")
    assert event.after["sold_at"] == datetime(2010, 12, 1, 8, 26, tzinfo=UTC)
    assert event.occurred_at == datetime(2010, 12, 1, 8, 26, 0, 500_000, tzinfo=UTC)
    assert event.before == {"quantity": 5}
    assert event.accepted_at == EPOCH


def test_an_event_reads_back_from_its_json_exactly() -> None:
    event = parse_event(body(occurred_at="2010-12-01T08:26:00Z"), TABLES)

    assert parse_event(event.to_json(), TABLES) == event


def test_defaults_fill_only_what_is_absent_or_null() -> None:
    defaults = {"event_id": "stamped", "version": 99, "source": "http"}

    event = parse_event(body(event_id=None, version=7), TABLES, defaults=defaults)

    assert (event.event_id, event.version, event.source) == ("stamped", 7, "till-7")


def test_a_delete_needs_the_key_and_carries_no_row() -> None:
    event = parse_event(body(op="d", after=None, key={"sale_id": "536365-1"}), TABLES)

    assert (event.op, event.after, event.key) == (Op.DELETE, None, {"sale_id": "536365-1"})


@pytest.mark.parametrize(
    ("event", "reason", "field"),
    [
        ([], "wrong_type", None),
        ("text", "wrong_type", None),
        (None, "wrong_type", None),
        (body(tabel="sales"), "unknown_member", "tabel"),
        (body(**{"\ud800": 1}), "unknown_member", "\\ud800"),
        (body(table=None), "missing_member", "table"),
        (body(table="orders"), "unknown_table", "table"),
        (body(table=["sales"]), "wrong_type", "table"),
        (body(table=nested(5_000)), "wrong_type", "table"),
        (body(op=nested(5_000)), "invalid_value", "op"),
        (body(table="x" * 100_000), "unknown_table", "table"),
        (body(op=None), "missing_member", "op"),
        (body(op="x"), "invalid_value", "op"),
        (body(op={"a": 1}), "invalid_value", "op"),
        (body(after=None), "missing_member", "after"),
        (body(after=[1]), "missing_member", "after"),
        (body(op="d"), "invalid_value", "after"),
        (body(op="d", after=None), "missing_member", "key"),
        (body(op="d", after=None, key={}), "missing_member", "key"),
        (body(op="d", after=None, key="536365-1"), "missing_key", "key"),
        (body(op="d", after=None, key={"sale_id": None}), "missing_key", "key.sale_id"),
        (body(op="d", after=None, key={"sale_id": 5}), "wrong_type", "key.sale_id"),
        (body(op="d", after=None, key={"sale_id": "\ud800"}), "invalid_text", "key.sale_id"),
        (body(key={"sale_id": "536365-1", "line": 1}), "unknown_column", "key.line"),
        (body(key={"sale_id": "536365-2"}), "key_mismatch", "key"),
        (body(version=None), "missing_member", "version"),
        (body(version="7"), "wrong_type", "version"),
        (body(version=True), "wrong_type", "version"),
        (body(version=Decimal("7.0")), "wrong_type", "version"),
        (body(version=0), "out_of_range", "version"),
        (body(version=-1), "out_of_range", "version"),
        (body(version=VERSION_MAX + 1), "out_of_range", "version"),
        (body(version=10**4000), "out_of_range", "version"),
        (body(event_id=None), "missing_member", "event_id"),
        (body(event_id=5), "wrong_type", "event_id"),
        (body(event_id=""), "too_long", "event_id"),
        (body(event_id="x" * (TEXT_MAX + 1)), "too_long", "event_id"),
        (body(event_id="a\nb"), "invalid_text", "event_id"),
        (body(source="\ud800"), "invalid_text", "source"),
        (body(occurred_at="yesterday"), "invalid_value", "occurred_at"),
        (body(occurred_at="2010-12-01T08:26:00"), "invalid_value", "occurred_at"),
        (body(occurred_at=1291191960), "wrong_type", "occurred_at"),
        (body(occurred_at="0001-01-01T00:00:00+23:59"), "out_of_range", "occurred_at"),
        (body(accepted_at=None), "missing_member", "accepted_at"),
        (body(before=[1]), "wrong_type", "before"),
        (body(before={"a": "\udfff"}), "invalid_text", "before"),
        (body(before={"\ud800": 1}), "invalid_text", "before"),
        (body(before={"a": Decimal("1E+999999999")}), "out_of_range", "before"),
        (body(before={"a": [Decimal("NaN")]}), "out_of_range", "before"),
        (body(before=nested(BEFORE_DEPTH_MAX + 1)), "too_deep", "before"),
        (body(before=nested(5_000)), "too_deep", "before"),
        (body(after=sale_row(colour="red")), "unknown_column", "after.colour"),
        (body(after={}), "missing_column", "after.sale_id"),
        (body(after={**sale_row(), "\ud800": 1}), "invalid_text", "after"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_what_is_no_event_is_rejected_with_reason_and_field(
    event: object, reason: str, field: str | None
) -> None:
    assert rejection(event) == (reason, field)


def test_what_a_rejection_quotes_is_short_and_valid_text() -> None:
    with pytest.raises(RejectedError) as raised:
        parse_event(body(**{"\ud800" + "x" * 10_000: 1}), TABLES)

    assert raised.value.field is not None
    assert len(raised.value.field) <= QUOTED_MAX + 1
    raised.value.field.encode()


def test_the_longest_exponent_that_before_may_hold_stays_small_on_the_wire() -> None:
    event = parse_event(body(before={"a": Decimal("1E+400")}), TABLES)

    assert len(encode_event(event)) < 1_000


def test_a_composite_key_is_one_text_with_its_parts_in_order_of_declaration() -> None:
    contract = TABLES["exchange_rates"]
    key = change("exchange_rates", rate_row()).key

    assert key_text(contract, key) == "USD,2026-11-20"
    assert parse_key_text(contract, "USD,2026-11-20") == key


@pytest.mark.parametrize("sale_id", ["a,b", "50%", "a/b", "München 7", "100%25", "a?b#c", "-", " "])
def test_a_key_text_escapes_what_would_be_read_otherwise(sale_id: str) -> None:
    contract = TABLES["sales"]

    text = key_text(contract, {"sale_id": sale_id})

    assert "," not in text
    assert "/" not in text
    assert parse_key_text(contract, text) == {"sale_id": sale_id}


@pytest.mark.parametrize(
    ("table", "text", "reason"),
    [
        ("sales", "a,b", "missing_key"),
        ("sales", "", "too_short"),
        ("sales", "x" * 65, "too_long"),
        ("exchange_rates", "USD", "missing_key"),
        ("exchange_rates", "USD,yesterday", "invalid_value"),
        ("exchange_rates", "USD,2026-02-30", "out_of_range"),
    ],
)
def test_a_key_text_that_names_no_row_is_rejected(table: str, text: str, reason: str) -> None:
    with pytest.raises(RejectedError) as raised:
        parse_key_text(TABLES[table], text)

    assert raised.value.reason == reason
