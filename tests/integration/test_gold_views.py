"""The gold views on DuckDB, with the day pinned, and what other engines would be given."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.arrow import contract_schema
from freshet.tables import ExchangeRate, Product, Sale
from freshet.testing import product_row, rate_row, sale_row
from lake.log import RECEIPTS, RECEIPTS_SCHEMA
from local.gold import GOLD

PRODUCTS_EUR = (GOLD / "products_eur.sql").read_text()
FRIDAY, SATURDAY, SUNDAY, MONDAY = (date(2026, 11, day) for day in (20, 21, 22, 23))
Json = dict[str, Any]


def lake(products: list[Json], rates: list[Json]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for contract, rows in ((Product, products), (ExchangeRate, rates)):
        own = {"_version": 1, "_position": "1"}
        parsed = [contract.parse(row) | own for row in rows]
        connection.register(
            contract.table, pa.Table.from_pylist(parsed, schema=contract_schema(contract))
        )
    return connection


def show(connection: duckdb.DuckDBPyConnection, *names: str) -> None:
    for name in names:
        connection.execute(f"CREATE VIEW {name} AS {(GOLD / f'{name}.sql').read_text()}")


def on(day: date, products: list[Json], rates: list[Json], sql: str = PRODUCTS_EUR) -> Any:
    """The view's rows by product, as it would be on that day."""
    assert sql.lower().count("current_date") == 1
    at = sql.lower().index("current_date")
    pinned = f"{sql[:at]}DATE '{day}'{sql[at + len('current_date') :]}"
    found = lake(products, rates).execute(pinned).to_arrow_table().to_pylist()
    rows = {row["product_id"]: row for row in found}
    assert len(rows) == len(found) == len(products)
    return rows


def price_eur(price: str, rate: str) -> Decimal | None:
    rows = on(FRIDAY, [product_row(price=price, currency="USD")], [rate_row(rate=rate)])
    found: Decimal | None = rows["4"]["price_eur"]
    return found


def half_up(price: Decimal, rate: Decimal) -> Decimal:
    units = math.floor(Fraction(price) / Fraction(rate) * 10_000 + Fraction(1, 2))
    return Decimal(units).scaleb(-4)


RATES = [
    rate_row("USD", "2026-11-18", rate="2"),
    rate_row("USD", "2026-11-20", rate="1.25"),
    rate_row("USD", "2026-11-23", rate="1.6"),
    rate_row("GBP", "2026-11-19", rate="0.8"),
]


@pytest.mark.parametrize(
    ("day", "rate_date", "eur"),
    [
        (FRIDAY, FRIDAY, "8.0000"),
        (SATURDAY, FRIDAY, "8.0000"),
        (SUNDAY, FRIDAY, "8.0000"),
        (MONDAY, MONDAY, "6.2500"),
        (date(2026, 11, 19), date(2026, 11, 18), "5.0000"),
        (date(2027, 1, 1), MONDAY, "6.2500"),
    ],
)
def test_the_rate_is_the_last_published_on_or_before_the_day(
    day: date, rate_date: date, eur: str
) -> None:
    """Weekends and holidays have none of their own; Thursday's was not published for dollars."""
    row = on(day, [product_row(price="10", currency="USD")], RATES)["4"]

    assert (row["rate_date"], row["price_eur"]) == (rate_date, Decimal(eur))


def test_each_currency_has_its_own_last_day() -> None:
    rows = on(
        FRIDAY,
        [
            product_row("1", price="10", currency="USD"),
            product_row("2", price="10", currency="GBP"),
        ],
        RATES,
    )

    assert rows["1"]["rate_date"] == FRIDAY
    assert (rows["2"]["rate_date"], rows["2"]["rate"]) == (date(2026, 11, 19), Decimal("0.8"))
    assert rows["2"]["price_eur"] == Decimal("12.5")


def test_a_price_in_euros_needs_no_rate() -> None:
    row = on(FRIDAY, [product_row(price="9.9900", currency="EUR")], RATES)["4"]

    assert (row["price"], row["price_eur"]) == (Decimal("9.99"), Decimal("9.99"))
    assert (row["rate"], row["rate_date"]) == (None, None)


def test_an_euro_rate_that_somebody_sent_does_not_change_euros() -> None:
    row = on(FRIDAY, [product_row(price="9.99", currency="EUR")], [rate_row("EUR", rate="2")])["4"]

    assert (row["price_eur"], row["rate"]) == (Decimal("9.99"), None)


@pytest.mark.parametrize(
    "rates",
    [
        [],
        [rate_row("GBP")],
        [rate_row("USD", "2026-11-21")],
        [rate_row("USD", "2026-11-20", rate="0")],
    ],
    ids=["none at all", "of another currency", "of tomorrow", "zero"],
)
def test_without_a_rate_the_row_is_there_and_its_euros_are_null(rates: list[Json]) -> None:
    row = on(FRIDAY, [product_row(price="10", currency="USD")], rates)["4"]

    assert row["price"] == Decimal(10)
    assert (row["price_eur"], row["rate"], row["rate_date"]) == (None, None, None)


@pytest.mark.parametrize(
    ("price", "rate", "eur"),
    [
        ("0.01", "1.6", "0.0063"),  # 0.00625: a tie, which a double puts down
        ("0.0001", "0.8", "0.0001"),  # 0.000125
        ("39", "1.1596", "33.6323"),
        ("0.0001", "99999", "0.0000"),
        ("0.0003", "2", "0.0002"),  # 0.00015: another tie
        ("299999999999.9999", "1", "299999999999.9999"),
        ("99999999999.9999", "0.333333", "300000300000.2997"),
        ("65780938402.4969", "1.895853", "34697277902.0825"),  # a double is one too low here ...
        ("77537698508.6915", "0.358667", "216182973367.1944"),  # ... and one too high here
    ],
)
def test_euros_are_exact_to_four_decimals_half_up(price: str, rate: str, eur: str) -> None:
    assert price_eur(price, rate) == Decimal(eur) == half_up(Decimal(price), Decimal(rate))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.decimals("0", "99999999", places=4), st.decimals("0.000400", "99999", places=6)
        ),
        min_size=20,
        max_size=40,
    )
)
def test_any_price_at_any_rate_is_divided_exactly(pairs: list[tuple[Decimal, Decimal]]) -> None:
    """A currency for each pair: Q00, Q01, … as letters."""
    names = [f"Q{chr(65 + at // 26)}{chr(65 + at % 26)}" for at in range(len(pairs))]
    named = list(zip(names, pairs, strict=True))

    rows = on(
        FRIDAY,
        [product_row(name, price=str(price), currency=name) for name, (price, _) in named],
        [rate_row(name, rate=str(rate)) for name, (_, rate) in named],
    )

    assert {name: row["price_eur"] for name, row in rows.items()} == {
        name: half_up(price, rate) for name, (price, rate) in named
    }


def test_a_price_without_room_spoils_no_other() -> None:
    rows = on(
        FRIDAY,
        [
            product_row("1", price="99999999999999.9999", currency="USD"),
            product_row("2", price="10", currency="GBP"),
        ],
        [rate_row("USD", rate="0.000001"), rate_row("GBP", rate="0.8")],
    )

    assert rows["1"]["price_eur"] is None
    assert rows["2"]["price_eur"] == Decimal("12.5")


def test_columns_have_stated_scales() -> None:
    connection = lake([product_row()], RATES)
    show(connection, "products_eur")

    types = {row[0]: row[1] for row in connection.execute("DESCRIBE products_eur").fetchall()}
    assert (types["price"], types["price_eur"]) == ("DECIMAL(18,4)", "DECIMAL(19,4)")
    assert (types["rate"], types["rate_date"]) == ("DECIMAL(18,6)", "DATE")
    assert not [name for name in types if name.startswith("_")]


def test_the_shoes_of_the_catalogue_with_both_prices() -> None:
    shoe = {"title": "Futuristic Holographic Soccer Cleats", "category": "Shoes"}
    connection = lake(
        [
            product_row("35", price="39", currency="USD", **shoe),
            product_row("1", currency="USD", category="Clothes"),
        ],
        [rate_row("USD", "2020-01-02", rate="1.1596")],
    )
    show(connection, "products_eur")

    assert connection.execute(
        "SELECT title, price, currency, price_eur, rate_date "
        "FROM products_eur WHERE category = 'Shoes'"
    ).fetchall() == [
        (shoe["title"], Decimal("39.0000"), "USD", Decimal("33.6323"), date(2020, 1, 2))
    ]


@pytest.mark.parametrize("dialect", ["trino", "redshift"])
def test_what_another_engine_is_given_says_the_same(dialect: str) -> None:
    products = [
        product_row("1", price="0.01", currency="USD"),
        product_row("2", price="10", currency="GBP"),
        product_row("3", price="10", currency="EUR"),
        product_row("4", price="10", currency="CHF"),
    ]
    [there] = sqlglot.transpile(PRODUCTS_EUR, read="duckdb", write=dialect)
    [back] = sqlglot.transpile(there, read=dialect, write="duckdb")

    assert on(MONDAY, products, RATES, back) == on(MONDAY, products, RATES)


def sold(
    sales: list[Json], rates: list[Json], view: str, order: str = "1, 2"
) -> list[dict[str, Any]]:
    """The rows of a view over some sales."""
    connection = lake([], rates)
    connection.execute("SET TimeZone = 'UTC'")
    own = {"_version": 1, "_position": "1"}
    rows = [Sale.parse(row) | own for row in sales]
    connection.register("sales", pa.Table.from_pylist(rows, schema=contract_schema(Sale)))
    show(connection, "rate_periods", view)
    found: list[dict[str, Any]] = (
        connection.execute(f"FROM {view} ORDER BY {order}").to_arrow_table().to_pylist()
    )
    connection.close()
    return found


WEDNESDAY, THURSDAY = "2010-12-01T23:59:59.999999Z", "2010-12-02T00:00:00Z"
OLD_RATES = [
    rate_row("GBP", "2010-11-30", rate="0.800000"),
    rate_row("GBP", "2010-12-02", rate="0.500000"),
    rate_row("USD", "2010-11-30", rate="1.600000"),
]


def test_a_days_sales_are_gross_returned_and_net_in_every_money() -> None:
    sales = [
        sale_row("1-1", unit_price="10", quantity=3, returned_quantity=1, sold_at=WEDNESDAY),
        sale_row("C1-2", unit_price="5", quantity=-1, sold_at=WEDNESDAY),
        sale_row("2-1", unit_price="8", quantity=1, sold_at=THURSDAY),
        sale_row("3-1", unit_price="16", quantity=1, currency="USD", sold_at=WEDNESDAY),
    ]

    first, dollars, second = sold(sales, OLD_RATES, "sales_by_day")

    assert (first["day"], first["currency"], first["sale_lines"]) == (date(2010, 12, 1), "GBP", 2)
    assert (first["gross"], first["returned"], first["net"]) == (30, 15, 15)
    assert (first["gross_gbp"], first["returned_gbp"], first["net_gbp"]) == (30, 15, 15)
    euros = (first["gross_eur"], first["returned_eur"], first["net_eur"])
    assert euros == (Decimal("37.5"), Decimal("18.75"), Decimal("18.75"))
    assert (first["rate"], first["rate_date"]) == (Decimal("0.8"), date(2010, 11, 30))
    assert (dollars["net"], dollars["net_eur"], dollars["net_gbp"]) == (16, 10, 8)
    assert (second["net"], second["net_eur"], second["rate_date"]) == (8, 16, date(2010, 12, 2))


def test_sales_before_the_first_rate_have_their_own_money_only() -> None:
    [row] = sold([sale_row("1-1", unit_price="10", quantity=3)], [], "sales_by_day")

    assert (row["net"], row["net_gbp"], row["net_eur"], row["rate"]) == (30, 30, None, None)


def test_sales_in_euros_need_no_rate_to_be_euros() -> None:
    sales = [sale_row("1-1", unit_price="10", quantity=3, currency="EUR", sold_at=WEDNESDAY)]

    [row] = sold(sales, OLD_RATES[:1], "sales_by_day")

    assert (row["net"], row["net_eur"], row["net_gbp"], row["rate"]) == (30, 30, 24, 1)


amounts = st.decimals("-99999999", "99999999", places=4)


@settings(max_examples=25, deadline=None)
@given(amounts, st.decimals("0.000400", "99999", places=6))
def test_a_days_euros_are_exact_half_up_whatever_the_sign(amount: Decimal, rate: Decimal) -> None:
    sales = [sale_row("1-1", unit_price=str(amount), quantity=1, currency="USD", sold_at=THURSDAY)]

    [row] = sold(sales, [rate_row("USD", "2010-12-01", rate=str(rate))], "sales_by_day")

    assert row["net_eur"] == half_up(amount, rate)


def test_returns_of_a_product_are_units_a_share_and_money() -> None:
    sales = [
        sale_row("1-1", unit_price="2", quantity=10, returned_quantity=4, sold_at=WEDNESDAY),
        sale_row("C2-1", unit_price="3", quantity=-1, description="NEWER NAME", sold_at=THURSDAY),
        sale_row("3-1", sku="KEPT", quantity=5),
        sale_row("4-1", sku="DAMAGED", unit_price="0", quantity=-50),
    ]

    [row] = sold(sales, [], "returns_by_product")

    assert (row["sku"], row["description"]) == ("85123A", "NEWER NAME")
    assert (row["units_sold"], row["units_returned"], row["value_returned"]) == (10, 5, 11)
    assert row["share_returned"] == 0.5


def test_a_customers_value_is_in_euros_of_each_day() -> None:
    sales = [
        sale_row("1-1", unit_price="8", quantity=2, returned_quantity=1, sold_at=WEDNESDAY),
        sale_row("1-2", unit_price="8", quantity=1, sold_at=WEDNESDAY),
        sale_row("2-1", unit_price="8", quantity=1, sold_at=THURSDAY),
        sale_row("C3-1", unit_price="4", quantity=-1, sold_at=THURSDAY),
        sale_row("4-1", customer_id="2", currency="CHF", sold_at=THURSDAY),
        sale_row("4-2", customer_id="2", unit_price="8", quantity=1, sold_at=THURSDAY),
        sale_row("5-1", customer_id=None, sold_at=THURSDAY),
    ]

    known, unknown_money = sold(sales, OLD_RATES, "customer_value", "customer_id")

    assert known == {
        "customer_id": "17850",
        "first_day": date(2010, 12, 1),
        "last_day": date(2010, 12, 2),
        "invoices": 2,
        "units": 2,
        "units_returned": 2,
        "net_eur": Decimal("28.0000"),  # 16 pounds at 0.8, and 4 at 0.5
    }
    assert (unknown_money["invoices"], unknown_money["net_eur"]) == (1, None)


def receipt(changes: int, *lags: int | None, **columns: Any) -> Json:
    names = [f"{lag}_lag_ms_p{p}" for lag in ("event", "accept") for p in (50, 95, 99)]
    counts = {"inserted": 0, "updated": changes, "deleted": 0}
    when = {"committed_at": datetime(2026, 11, 20, 12, tzinfo=UTC)}
    place = {"kind": "stream", "table_name": "sales"}
    return counts | when | place | dict(zip(names, lags, strict=True)) | columns


def test_freshness_is_at_worst_one_percentile_too_low() -> None:
    """What is later than a batch's p99 is not in its receipt: 9 of 950 here."""
    batches = [[1] * 941 + [1000] * 9, [2000] * 50]
    told = [[sorted(lags)[len(lags) * p // 100] for p in (50, 95, 99)] for lags in batches]
    rows = [receipt(len(lags), *three, *three) for lags, three in zip(batches, told, strict=True)]
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register(RECEIPTS, pa.Table.from_pylist(rows, schema=RECEIPTS_SCHEMA))
    show(connection, "freshness")

    [day] = connection.execute(
        "SELECT event_p50_ms, event_p95_ms, event_p99_ms FROM freshness"
    ).fetchall()

    lags = sorted(batches[0] + batches[1])
    for shown, percentile in zip(day, (50, 95, 99), strict=True):
        assert shown >= lags[len(lags) * (percentile - 1) // 100 - 1]
    assert day[1] < lags[len(lags) * 95 // 100 - 1]  # or the header says less than it could


def test_freshness_weighs_batches_by_what_they_changed() -> None:
    rows = [
        receipt(98, 100, 200, 300, 10, 20, 30),
        receipt(2, 9_000, 9_500, 9_900, 90, 95, 99),
        receipt(0, 99_000, 99_000, 99_000, 99_000, 99_000, 99_000),  # only duplicates
        receipt(50, 77_000, 77_000, 77_000, 7, 7, 7, kind="replay"),
        receipt(1, None, None, None, 5, 6, 7, table_name="products"),
    ]
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register(RECEIPTS, pa.Table.from_pylist(rows, schema=RECEIPTS_SCHEMA))
    show(connection, "freshness")

    products, sales = connection.execute("FROM freshness ORDER BY table_name").fetchall()

    assert products == ("products", date(2026, 11, 20), 1, 1, None, None, None, 5, 6, 7)
    assert sales == ("sales", date(2026, 11, 20), 2, 100, 200, 300, 9_000, 20, 30, 90)
