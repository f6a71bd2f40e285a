"""Change detection as a table of cases: what was told, what is listed, what follows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from api_poller.changes import Change, Cursor, Differences, applied, events_of, guarded
from api_poller.snapshot import Entry, Snapshot, content_of, digest_of
from freshet.contract import Row
from freshet.errors import RejectedError
from freshet.event import Op, json_row, parse_event
from freshet.tables import TABLES, ExchangeRate, Product, Sale

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


def product(product_id: str, price: str = "9.9000") -> Row:
    return Product.parse(
        {"product_id": product_id, "title": "Mug", "price": price, "currency": "USD"}
    )


def known(*rows: Row) -> Snapshot:
    contents = {str(row["product_id"]): content_of(json_row(row)) for row in rows}
    return Snapshot.of({key: Entry(digest_of(text), "", text) for key, text in contents.items()})


def listed(told: Snapshot, *rows: Row, pending: frozenset[str] = frozenset()) -> Differences:
    found = Differences(told, pending)
    for row in rows:
        found.list_row(str(row["product_id"]), row)
    return found


def ops(found: Differences) -> dict[str, Op]:
    return {key: change.op for key, change in found.changes.items()}


def test_rows_listed_for_the_first_time_are_reads() -> None:
    found = Differences(known(), backfill=True)

    assert found.list_row("1", product("1"))
    assert ops(found) == {"1": Op.READ}


def test_a_new_row_is_a_create() -> None:
    assert ops(listed(known(product("1")), product("1"), product("2"))) == {"2": Op.CREATE}


def test_an_unchanged_row_is_no_change() -> None:
    found = Differences(known(product("1")))

    assert not found.list_row("1", product("1"))
    assert not found.changes


def test_a_price_that_differs_is_an_update_that_knows_the_row_before() -> None:
    found = listed(known(product("1", "9.90")), product("1", "8.50"))

    (change,) = found.with_before(found.changes.values(), Product)
    assert (change.op, change.after) == (Op.UPDATE, product("1", "8.50"))
    assert change.before == json_row(product("1", "9.90"))


def test_the_same_price_written_otherwise_is_no_change() -> None:
    assert not listed(known(product("1", "9.9")), product("1", "9.9000")).changes


def test_a_column_the_contract_gained_changes_no_row_that_has_no_value_for_it() -> None:
    row = json_row(product("1"))

    assert content_of(row | {"gained": None}) == content_of(row)
    assert content_of(row | {"gained": "x"}) != content_of(row)


def test_a_content_minds_values_and_not_the_order_of_columns() -> None:
    assert content_of({"a": "1", "b": "2"}) == content_of({"b": "2", "a": "1"})
    assert content_of({"a": "1"}) != content_of({"a": 1})
    assert content_of({"a": "1", "b": None}) != content_of({"a": None, "b": "1"})


def test_a_row_listed_twice_is_told_as_it_was_shown_last() -> None:
    found = listed(known(product("1", "1")), product("1", "2"), product("1", "3"))

    assert ops(found) == {"1": Op.UPDATE}
    assert found.changes["1"].after == product("1", "3")


def test_a_row_that_goes_back_while_it_is_listed_is_no_change() -> None:
    assert not listed(known(product("1", "1")), product("1", "2"), product("1", "1")).changes


def test_a_row_that_was_not_shown_is_gone() -> None:
    found = listed(known(product("1"), product("2"), product("3")), product("1"))

    assert found.gone({"1"}) == ["2", "3"]


def test_a_row_marked_as_deleted_is_deleted_once_and_only_if_it_was_told() -> None:
    found = Differences(known(product("1")))
    found.list_deleted("1")
    found.list_deleted("2")

    assert ops(found) == {"1": Op.DELETE}
    after = applied(found.snapshot, found.changes.values(), keep_rows=True)
    again = Differences(after)
    again.list_deleted("1")
    assert not again.changes


def test_a_windowed_snapshot_tells_deletes_of_rows_it_has_forgotten_once() -> None:
    cursor = Cursor(Product, "updated_at")
    found = Differences(known(), windowed=True)
    found.list_deleted("long ago")

    assert ops(found) == {"long ago": Op.DELETE}
    after = applied(
        found.snapshot, found.changes.values(), keep_rows=True, cursor=cursor, deleted_at="2026"
    )
    again = Differences(after, windowed=True)
    again.list_deleted("long ago")
    assert not again.changes
    again.list_row("long ago", product("long ago"))
    assert ops(again) == {"long ago": Op.CREATE}, "it came back"


def test_a_delete_knows_the_row_before() -> None:
    found = Differences(known(product("1")))
    found.list_deleted("1")

    (change,) = found.with_before(found.changes.values(), Product)
    assert change == Change(Op.DELETE, "1", before=json_row(product("1")))


def test_a_pending_key_is_published_anew_although_nothing_differs() -> None:
    found = listed(known(product("1")), product("1"), pending=frozenset({"1"}))

    (change,) = found.with_before(found.changes.values(), Product)
    assert (change.op, change.before) == (Op.UPDATE, None), "what was before is not certain"


def test_a_pending_key_that_is_gone_is_deleted_although_it_was_never_confirmed() -> None:
    found = Differences(known(), frozenset({"1", "2"}))

    assert found.gone({"2"}) == ["1"]
    found.list_deleted("1")
    assert ops(found) == {"1": Op.DELETE}


@pytest.mark.parametrize(
    ("gone", "known_rows", "share", "held"),
    [
        (2, 10, 0.2, False),
        (2, 10, 0.19, True),
        (3, 10, 0.2, True),
        (10, 10, 1.0, False),
        (2, 2, 0.99, True),
        (0, 0, 0.0, False),
        (0, 10, 0.0, False),
        (1, 10, 0.0, True),
    ],
)
def test_the_guard_lets_exactly_its_share_go(
    gone: int, known_rows: int, share: float, *, held: bool
) -> None:
    assert guarded(gone, known_rows, share) is held


def test_what_was_applied_is_no_difference_any_more() -> None:
    found = listed(known(product("1"), product("2")), product("1", "1"), product("3"))
    found.list_deleted("2")

    after = applied(found.snapshot, found.changes.values(), keep_rows=True)

    assert set(after) == {"1", "3"}
    assert not listed(after, product("1", "1"), product("3")).changes
    assert after.row_of("1") == {k: v for k, v in json_row(product("1", "1")).items() if v}


def test_events_read_back_as_the_changes_they_were_made_of() -> None:
    found = listed(known(product("1"), product("2")), product("1", "1"), product("3"))
    found.list_deleted("2")
    events = events_of(
        found.with_before(found.changes.values(), Product),
        Product,
        source="platzi",
        first_version=100,
        accepted_at=NOW,
        occurred_at=lambda row: NOW if row["product_id"] == "3" else None,
    )

    assert [parse_event(event.to_json(), TABLES) for event in events] == events
    assert [(event.op, event.key["product_id"], event.version) for event in events] == [
        (Op.UPDATE, "1", 100),
        (Op.CREATE, "3", 101),
        (Op.DELETE, "2", 102),
    ]
    assert [event.occurred_at for event in events] == [None, NOW, None]
    assert {event.source for event in events} == {"platzi"}


def test_event_ids_are_the_same_for_the_same_observation_and_differ_otherwise() -> None:
    def ids(price: str, version: int, source: str = "platzi") -> list[str]:
        return [
            event.event_id
            for event in events_of(
                list(listed(known(), product("1", price)).changes.values()),
                Product,
                source=source,
                first_version=version,
                accepted_at=NOW,
                occurred_at=lambda _: None,
            )
        ]

    assert ids("1", 7) == ids("1", 7)
    assert len({*ids("1", 7), *ids("2", 7), *ids("1", 8), *ids("1", 7, "ecb")}) == 4


def test_money_survives_the_row_before_exactly() -> None:
    row = known(product("1", "0.1000")).row_of("1")

    assert row is not None
    assert Decimal(row["price"]) == Decimal("0.1")


# --- cursors --------------------------------------------------------------------------------------

TIME, DAY, NUMBER = (
    Cursor(Product, "updated_at"),
    Cursor(ExchangeRate, "rate_date"),
    Cursor(Sale, "line"),
)


def test_cursors_are_compared_as_what_they_are() -> None:
    assert NUMBER.greatest("9", "10", None) == "10"
    assert DAY.greatest("2026-09-30", "2026-10-01") == "2026-10-01"
    assert TIME.greatest(None, None) is None


def test_a_time_reads_again_from_the_lookback_and_a_number_from_the_watermark() -> None:
    two_days = timedelta(days=2)

    assert DAY.least_again("2026-11-20", two_days, NOW) == "2026-11-18"
    assert TIME.least_again("2026-11-20T00:00:00.000000Z", two_days, NOW) == (
        "2026-11-18T00:00:00.000000Z"
    )
    assert NUMBER.least_again("41", two_days, NOW) == "41"


def test_a_row_dated_ahead_does_not_move_the_lookback_beyond_now() -> None:
    assert DAY.least_again("2099-01-01", timedelta(days=2), NOW) == "2026-11-19"


def test_what_a_person_writes_is_the_cursor_as_the_poller_writes_it() -> None:
    assert TIME.canonical("2026-11-20T01:00:00+01:00") == "2026-11-20T00:00:00.000000Z"
    assert NUMBER.canonical("41") == "41"
    with pytest.raises(RejectedError):
        DAY.canonical("yesterday")


def test_rows_before_the_window_are_found_by_their_cursor() -> None:
    digest = digest_of(b"x")
    remembered = Snapshot.of(
        {"a": Entry(digest, "9"), "b": Entry(digest, "10"), "c": Entry(digest)}
    )

    assert remembered.older_than(NUMBER.order("10"), NUMBER.order) == ["a"]
