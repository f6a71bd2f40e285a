"""The views that tell history equal what a person would work out moment by moment.

Any few changes of two sales or products, partial updates, deletes and ends of all rows among them,
at any source times, arriving in any order, twice, logged twice, or by way of the quarantine.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.retail_history import (
    Line,
    as_reported,
    log_tables,
    price_history,
    restatements,
    revenue_changes,
)

from local.gold import load_views

VIEWS = [
    view
    for view in load_views()
    if view.name in {"product_price_history", "sales_by_day_as_reported", "restatements"}
    or view.name.endswith("_changes")
]
MONDAY = datetime(2026, 11, 16, tzinfo=UTC)
times = st.integers(0, 6).map(lambda steps: MONDAY + timedelta(hours=10 * steps))
prices = st.sampled_from(["1.0000", "2.5000", "10.0000"])
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def views_over(lines: list[Line]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for name, table in log_tables(lines).items():
        connection.register(name, table)
    for view in VIEWS:
        connection.execute(f'CREATE VIEW "{view.name}" AS {view.sql}')
    return connection


def product(price: str, currency: str) -> dict[str, Any]:
    return {"sku": "s", "title": "t", "price": price, "currency": currency}


def sale(price: str, currency: str, day: int, quantity: int) -> dict[str, Any]:
    sold_at = f"2026-11-{16 + day}T09:00:00.000000Z"
    row = {"quantity": quantity, "returned_quantity": 1, "unit_price": price}
    return row | {"currency": currency, "sold_at": sold_at}


currencies = st.sampled_from(["GBP", "EUR"])
products = st.builds(product, prices, currencies)
sales = st.builds(sale, prices, currencies, st.integers(0, 1), st.integers(1, 3))


@st.composite
def histories(draw: st.DrawFn, table: str, rows: st.SearchStrategy[dict[str, Any]]) -> list[Line]:
    """Lines of one table, in the order of the stream."""
    lines = []
    for at in range(draw(st.integers(1, 8))):
        kind = draw(st.sampled_from(["row", "row", "row", "patch", "delete", "end"]))
        row, arrived = draw(rows), draw(times)
        some = draw(st.sets(st.sampled_from(sorted(row.keys() - {"sku", "title"})), min_size=1))
        waited = draw(st.sampled_from([0, 0, 0, 30]))
        line = Line(
            table,
            {"row": "u", "patch": "u", "delete": "d", "end": "t"}[kind],
            "*" if kind == "end" else draw(st.sampled_from("ab")),
            draw(st.integers(1, 6)),
            draw(times),
            arrived,
            after=row if kind == "row" else None,
            patch={name: row[name] for name in some} if kind == "patch" else None,
            arrived_at=arrived,
            learned_at=arrived + timedelta(hours=waited),
            shard_id="shard",
            sequence=str(100 + at),
            copies=draw(st.sampled_from([1, 1, 2])),
        )
        lines.append(line)
    return lines


def bare(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.replace(tzinfo=None)


def at(hours: int, version: int, price: str, **members: Any) -> Line:
    """A price of product a, true from `hours` on."""
    moment = MONDAY + timedelta(hours=hours)
    line = Line("products", "u", "a", version, moment, moment, after=product(price, "GBP"))
    place = {"arrived_at": moment, "learned_at": moment, "shard_id": "shard"}
    return replace(line, **{"sequence": str(100 + version), **place, **members})


@few
@given(histories("products", products))
@example([at(0, 1, "1.0000"), at(20, 3, "2.5000"), at(10, 2, "10.0000", sequence="999")])
@example([at(0, 1, "1.0000"), at(20, 2, "2.5000"), at(10, 3, "10.0000")])
def test_a_price_holds_for_exactly_the_time_that_it_was_true(lines: list[Line]) -> None:
    """A late change splits the interval it falls into; one that an older time and a greater version
    have overrules what came after it.
    """
    wanted = {(*row[:3], bare(row[3]), bare(row[4])) for row in price_history(lines)}

    found = (
        views_over(lines)
        .execute(
            "SELECT product_id, currency, price, valid_from, valid_to FROM product_price_history"
        )
        .fetchall()
    )

    assert set(found) == wanted
    assert len(found) == len(wanted)


@few
@given(histories("sales", sales))
def test_revenue_changes_when_we_learn_and_by_what_we_learn(lines: list[Line]) -> None:
    changes, connection = revenue_changes(lines), views_over(lines)

    names = "day, currency, learned_at, position, sale_id, sale_net_from, sale_net_to, day_net_to"
    found = connection.execute(f"SELECT {names} FROM revenue_changes").fetchall()
    told = [(str(row[0]), *row[1:7], int(row[7].scaleb(4))) for row in found]
    wanted = [
        (*row[:2], bare(row[2].to_pydatetime()), *row[3:7], row[9])
        for row in changes.itertuples(index=False, name=None)
    ]
    assert sorted(told) == sorted(wanted)
    assert connection.execute("SELECT count(*) FROM restatements").fetchall() == [
        (len(restatements(changes)) if len(changes) else 0,)
    ]


def sold(key: str, currency: str) -> Line:
    """A sale of the first day, told on it."""
    line = Line("sales", "c", key, 1, MONDAY, MONDAY, after=sale("1.0000", currency, 0, 3))
    line = replace(line, arrived_at=MONDAY, learned_at=MONDAY)
    return replace(line, shard_id="shard", sequence=str(100 + ord(key)))


@few
@given(histories("sales", sales), st.integers(0, 5))
@example([sold("a", "GBP"), sold("b", "EUR")], 0)
def test_what_was_reported_on_a_day_is_what_was_known_at_its_end(
    lines: list[Line], days: int
) -> None:
    on = date(2026, 11, 16) + timedelta(days=days)
    changes = revenue_changes(lines)
    wanted = as_reported(changes, on) if len(changes) else {}

    found = (
        views_over(lines)
        .execute(
            "SELECT day, currency, net FROM sales_by_day_as_reported WHERE reported_on <= $1 "
            "AND (superseded_on IS NULL OR superseded_on > $1)",
            [on],
        )
        .fetchall()
    )

    assert {(str(day), money): int(net.scaleb(4)) for day, money, net in found} == wanted
