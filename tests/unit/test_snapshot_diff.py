"""Change detection as a table of cases: what was known, what is listed, what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from api_poller.changes import (
    Change,
    ChangePlan,
    JsonRow,
    Listing,
    Skipped,
    content_hash,
    events_of,
    plan_changes,
)
from freshet.contract import Row
from freshet.event import Op, json_row, parse_event
from freshet.tables import TABLES, Product

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


def product(product_id: str, price: str = "9.9000") -> Row:
    return Product.parse(
        {"product_id": product_id, "title": "Mug", "price": price, "currency": "USD"}
    )


def listing(*rows: Row, backfill: bool = False, whole: bool = True, **options: object) -> Listing:
    by_key = {str(row["product_id"]): row for row in rows}
    made = Listing(by_key, whole_table=whole, backfill=backfill, watermark=None)
    return replace(made, **options)  # type: ignore[arg-type]


def known(*rows: Row) -> dict[str, JsonRow]:
    return {str(row["product_id"]): json_row(row) for row in rows}


def plan(
    previous: Mapping[str, JsonRow],
    listed: Listing,
    *,
    pending: frozenset[str] = frozenset(),
    share: float = 1.0,
) -> ChangePlan:
    return plan_changes(previous, pending, listed, delete_share_max=share)


def test_rows_listed_for_the_first_time_are_reads() -> None:
    made = plan({}, listing(product("1"), backfill=True))

    assert made.changes == (Change(Op.READ, "1", product("1"), None),)
    assert made.rows == known(product("1"))


def test_a_new_row_is_a_create() -> None:
    made = plan(known(product("1")), listing(product("1"), product("2")))

    assert made.changes == (Change(Op.CREATE, "2", product("2"), None),)
    assert made.unchanged == 1


def test_an_unchanged_listing_plans_nothing() -> None:
    made = plan(known(product("1"), product("2")), listing(product("1"), product("2")))

    assert made.changes == ()
    assert made.unchanged == 2


def test_a_price_that_differs_is_an_update_that_knows_the_row_before() -> None:
    made = plan(known(product("1", "9.90")), listing(product("1", "8.50")))

    before = json_row(product("1", "9.90"))
    assert made.changes == (Change(Op.UPDATE, "1", product("1", "8.50"), before),)
    assert made.rows == known(product("1", "8.50"))


def test_the_same_price_written_otherwise_is_no_change() -> None:
    made = plan(known(product("1", "9.9")), listing(product("1", "9.9000")))

    assert made.changes == ()


def test_a_row_that_vanished_is_a_delete_that_knows_the_row_before() -> None:
    made = plan(known(product("1"), product("2")), listing(product("1")))

    assert made.changes == (Change(Op.DELETE, "2", None, json_row(product("2"))),)
    assert made.rows == known(product("1"))


def test_absence_from_part_of_a_table_is_no_delete() -> None:
    made = plan(known(product("1"), product("2")), listing(product("1"), whole=False))

    assert made.changes == ()
    assert made.rows == known(product("1"), product("2"))


def test_a_row_that_does_not_fit_the_contract_is_not_treated_as_deleted() -> None:
    broken = Skipped("2", "out_of_range", "price")

    made = plan(known(product("1"), product("2")), listing(product("1"), skipped=[broken]))

    assert made.changes == ()
    assert made.rows == known(product("1"), product("2"))


def test_while_any_row_cannot_be_identified_nothing_is_deleted() -> None:
    nameless = Skipped(None, "missing_key", "product_id")
    listed = listing(product("1", "1"), skipped=[nameless])

    made = plan(known(product("1"), product("2")), listed)

    assert [change.op for change in made.changes] == [Op.UPDATE]
    assert not listed.complete


def test_too_many_vanished_rows_are_kept_while_other_changes_go_out() -> None:
    previous = known(*(product(str(number)) for number in range(10)))
    listed = listing(*(product(str(number), "1") for number in range(7)), product("new"))

    made = plan(previous, listed, share=0.2)

    assert made.guarded == 3
    assert made.counts == {Op.CREATE: 1, Op.UPDATE: 7, Op.DELETE: 0, Op.READ: 0}
    assert {"7", "8", "9"} <= made.rows.keys()


def test_the_guard_lets_exactly_its_share_go() -> None:
    previous = known(*(product(str(number)) for number in range(10)))
    listed = listing(*(product(str(number)) for number in range(8)))

    assert plan(previous, listed, share=0.2).counts[Op.DELETE] == 2
    assert plan(previous, listed, share=0.19).guarded == 2


def test_an_empty_listing_does_not_empty_a_table() -> None:
    made = plan(known(product("1"), product("2")), listing(), share=0.99)

    assert made.changes == ()
    assert made.guarded == 2


def test_a_guarded_row_comes_up_again_until_the_guard_is_lifted() -> None:
    guarded = plan(known(product("1"), product("2")), listing(product("1")), share=0.2)

    assert plan(guarded.rows, listing(product("1")), share=1.0).counts[Op.DELETE] == 1


def test_a_pending_key_is_published_anew_although_nothing_differs() -> None:
    made = plan(known(product("1")), listing(product("1")), pending=frozenset({"1"}))

    assert made.changes == (Change(Op.UPDATE, "1", product("1"), None),)
    assert made.pending == frozenset()


def test_a_pending_key_that_is_gone_is_deleted_although_it_was_never_confirmed() -> None:
    made = plan({}, listing(), pending=frozenset({"1"}))

    assert made.changes == (Change(Op.DELETE, "1", None, None),)


def test_a_pending_key_that_cannot_be_judged_stays_pending() -> None:
    broken = Skipped("1", "out_of_range", "price")

    made = plan({}, listing(skipped=[broken]), pending=frozenset({"1"}))

    assert made.changes == ()
    assert made.pending == {"1"}


def test_rows_before_the_window_are_forgotten_but_not_deleted() -> None:
    old = Product.parse(dict(product("1"), updated_at="2026-01-01T00:00:00Z"))
    new = Product.parse(dict(product("2"), updated_at="2026-02-01T00:00:00Z"))
    since = ("updated_at", "2026-01-15")

    made = plan(known(old), listing(new, whole=False, since=since))

    assert made.counts[Op.DELETE] == 0
    assert made.rows == known(new)


def test_events_read_back_as_the_changes_they_were_made_of() -> None:
    made = plan(known(product("1"), product("2")), listing(product("1", "1"), product("3")))
    events = events_of(
        made.changes,
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
        changes = plan({}, listing(product("1", price))).changes
        return [
            event.event_id
            for event in events_of(
                changes,
                Product,
                source=source,
                first_version=version,
                accepted_at=NOW,
                occurred_at=lambda _: None,
            )
        ]

    assert ids("1", 7) == ids("1", 7)
    assert len({*ids("1", 7), *ids("2", 7), *ids("1", 8), *ids("1", 7, "ecb")}) == 4


def test_the_content_hash_minds_values_and_not_the_order_of_columns() -> None:
    assert content_hash({"a": "1", "b": None}) == content_hash({"b": None, "a": "1"})
    assert content_hash({"a": "1"}) != content_hash({"a": 1})


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_an_unchanged_table_never_trips_the_guard(share: float) -> None:
    made = plan(known(product("1")), listing(product("1")), share=share)

    assert made.guarded == 0


def test_money_survives_the_row_before_exactly() -> None:
    rows = known(product("1", "0.1000"))

    assert Decimal(rows["1"]["price"]) == Decimal("0.1")
