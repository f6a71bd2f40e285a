"""Known answers, worked out by hand, and the answer against the catalogue the shop serves."""

from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from local.sample import ECB_RATES, RETAIL_MONTH
from local.sample.answer import compute
from local.sample.catalogue import Catalogue, DaySale, day_sales

# crc32 % 16 == 0: one of the codes that vanish when nobody buys them.
SLOW_SKU = "10120"


def sale(
    day: str,
    price: float = 2.5,
    *,
    sku: str = "22423",
    title: str | None = "CAKESTAND",
    quantity: int = 1,
    invoice: str = "1",
) -> dict[str, Any]:
    return {
        "invoice_no": invoice,
        "stock_code": sku,
        "description": title,
        "quantity": quantity,
        "invoice_date": datetime.fromisoformat(f"{day} 09:00"),
        "unit_price": price,
        "customer_id": 1,
        "country": "France",
    }


@pytest.fixture
def retail_file(tmp_path: Path) -> Any:
    def write(*lines: dict[str, Any]) -> Path:
        schema = pa.schema(
            [
                pa.field("invoice_no", pa.string()),
                pa.field("stock_code", pa.string()),
                pa.field("description", pa.string()),
                pa.field("quantity", pa.int32()),
                pa.field("invoice_date", pa.timestamp("ms")),
                pa.field("unit_price", pa.float64()),
                pa.field("customer_id", pa.int32()),
                pa.field("country", pa.string()),
            ]
        )
        pq.write_table(pa.Table.from_pylist(list(lines), schema=schema), tmp_path / "r.parquet")
        return tmp_path / "r.parquet"

    return write


def test_revenue_is_net_of_returns_and_changed_into_euro_at_the_last_published_rate(
    retail_file: Any,
) -> None:
    # 2010-12-12 is a Sunday: the rate of Friday 2010-12-10 counts.
    path = retail_file(
        sale("2010-12-10", 2.55, quantity=10),
        sale("2010-12-12", 1.001, quantity=3, invoice="2"),
        sale("2010-12-13", 2.55, quantity=-4, invoice="C3"),
    )

    answer = compute(path, ECB_RATES)

    assert answer.revenue_gbp == {
        date(2010, 12, 10): Decimal("15.3000"),
        date(2010, 12, 12): Decimal("3.0030"),
    }
    rate = _rate("2010-12-10")
    assert answer.revenue_eur == {
        date(2010, 12, 10): round(Decimal("15.3") / rate, 2),
        date(2010, 12, 12): round(Decimal("3.003") / rate, 2),
    }


def test_half_a_cent_is_rounded_away_from_zero(retail_file: Any, tmp_path: Path) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("Date,USD,GBP,\n2010-12-01,1.3,0.8,\n2010-12-02,1.3,N/A,\n")
    path = retail_file(
        sale("2010-12-01", 0.5, quantity=1),
        sale("2010-12-02", 0.5, quantity=-1, invoice="2", sku="9"),
        sale("2010-12-03", 0.1, quantity=1, invoice="3", sku="8"),
    )

    # 0.5 / 0.8 = 0.625 and 0.1 / 0.8 = 0.125: to even, both would lose half a cent.
    assert list(compute(path, rates).revenue_eur.values()) == [
        Decimal("0.63"),
        Decimal("-0.63"),
        Decimal("0.13"),
    ]


def test_most_returned_counts_matched_and_unmatched_units_and_orders_ties_by_code(
    retail_file: Any,
) -> None:
    path = retail_file(
        sale("2010-12-01", sku="B", quantity=5),
        sale("2010-12-02", sku="B", quantity=-3, invoice="C2"),
        sale("2010-12-02", sku="B", quantity=-1, invoice="C2", price=99.0),
        sale("2010-12-02", sku="A", quantity=-4, invoice="C3"),
        sale("2010-12-02", sku="C", quantity=-9, invoice="4", price=0.0),
    )

    answer = compute(path, ECB_RATES)

    assert answer.most_returned == [("A", 4), ("B", 4)]
    assert (answer.returns_matched, answer.returns_unmatched) == (1, 2)


def test_a_days_price_and_title_are_the_most_frequent_and_ties_go_to_the_first_seen(
    retail_file: Any,
) -> None:
    path = retail_file(
        sale("2010-12-01", 3.0, title=" B "),
        sale("2010-12-01", 2.0, title="A"),
        sale("2010-12-01", 2.0, title="B"),
        sale("2010-12-01", 3.0, title="A"),
        sale("2010-12-01", 9.0, title="damaged", invoice="C2", quantity=-5),
        sale("2010-12-01", 0.0, title="damaged", quantity=-5),
        sale("2010-12-02", 1.5, title=None),
        sale("2010-12-03", 1.5, title="", sku="untitled"),
    )

    assert list(day_sales(path)) == [
        DaySale(date(2010, 12, 1), "22423", "B", Decimal(3)),
        DaySale(date(2010, 12, 2), "22423", None, Decimal("1.5")),
        DaySale(date(2010, 12, 3), "untitled", None, Decimal("1.5")),
    ]
    answer = compute(path, ECB_RATES)
    assert answer.products == {
        "22423": ("B", Decimal("1.5")),
        "untitled": ("untitled", Decimal("1.5")),
    }
    assert answer.price_history["22423"] == [
        (date(2010, 12, 1), Decimal(3)),
        (date(2010, 12, 2), Decimal("1.5")),
    ]
    assert _listed(Catalogue.from_file(path), date(2010, 12, 3)) == answer.products


def test_a_slow_seller_vanishes_after_a_week_and_comes_back_as_a_new_row(retail_file: Any) -> None:
    path = retail_file(
        sale("2010-12-01", sku=SLOW_SKU),
        sale("2010-12-01", sku="22423"),
        sale("2010-12-20", sku=SLOW_SKU),
    )
    catalogue = Catalogue.from_file(path)

    ids = {
        day: {sku: row.id for sku, row in catalogue.on(date(2010, 12, day)).items()}
        for day in (1, 8, 9, 19, 20)
    }

    assert ids == {
        1: {SLOW_SKU: 1, "22423": 2},
        8: {SLOW_SKU: 1, "22423": 2},
        9: {"22423": 2},
        19: {"22423": 2},
        20: {"22423": 2, SLOW_SKU: 3},
    }
    back = catalogue.on(date(2010, 12, 20))[SLOW_SKU]
    assert back.created == back.updated == date(2010, 12, 20)


def test_the_answer_lets_a_slow_seller_vanish_after_the_last_sale_too(retail_file: Any) -> None:
    path = retail_file(sale("2010-12-01", sku=SLOW_SKU), sale("2010-12-01"))

    kept = compute(path, ECB_RATES, days_seen=[date(2010, 12, 8)])
    gone = compute(path, ECB_RATES, days_seen=[date(2010, 12, 8), date(2010, 12, 9)])

    assert set(kept.products) == {SLOW_SKU, "22423"}
    assert set(gone.products) == {"22423"}
    assert set(gone.price_history) == {SLOW_SKU, "22423"}


def test_updated_moves_with_a_value_and_not_with_a_sale(retail_file: Any) -> None:
    path = retail_file(sale("2010-12-01"), sale("2010-12-02"), sale("2010-12-03", title="STAND"))
    catalogue = Catalogue.from_file(path)

    updated = [catalogue.on(date(2010, 12, day))["22423"].updated.day for day in (1, 2, 3, 4)]

    assert updated == [1, 1, 3, 3]


def test_the_catalogue_of_a_day_does_not_depend_on_the_days_asked_before() -> None:
    forward, jumping = (Catalogue.from_file(RETAIL_MONTH) for _ in range(2))
    days = forward.days

    step_by_step = [dict(forward.on(day)) for day in days]

    assert dict(jumping.on(days[-1])) == step_by_step[-1]
    assert dict(jumping.on(days[3])) == step_by_step[3]
    assert jumping.on(date(2010, 11, 30)) == {}


@pytest.mark.parametrize("every", [1, 3])
def test_the_shipped_months_catalogue_and_price_history_agree_with_the_answer(every: int) -> None:
    catalogue = Catalogue.from_file(RETAIL_MONTH)
    days = catalogue.days[::every]
    history: dict[str, list[tuple[date, Decimal]]] = {}
    for day in days:
        for sku, row in catalogue.on(day).items():
            known = history.setdefault(sku, [])
            if not known or known[-1][1] != row.price:
                known.append((row.updated, row.price))

    answer = compute(RETAIL_MONTH, ECB_RATES, days_seen=None if every == 1 else days)

    assert _listed(catalogue, days[-1]) == answer.products
    assert history == answer.price_history


def test_the_shipped_month_has_new_changed_and_vanished_products_for_the_poller_to_find() -> None:
    catalogue = Catalogue.from_file(RETAIL_MONTH)
    seen = [dict(catalogue.on(day)) for day in catalogue.days]

    created = changed = vanished = 0
    for old, new in pairwise(seen):
        created += len(new.keys() - old.keys())
        vanished += len(old.keys() - new.keys())
        changed += sum(old[sku] != new[sku] for sku in old.keys() & new.keys())

    assert (len(seen[0]), created, changed, vanished, len(seen[-1])) == (
        1_340,
        1_483,
        7_656,
        86,
        2_737,
    )


def test_a_rate_file_that_starts_too_late_is_refused_with_the_day(
    retail_file: Any, tmp_path: Path
) -> None:
    rates = tmp_path / "rates.csv"
    rates.write_text("Date,GBP,\n2010-12-02,0.8,\n")

    with pytest.raises(ValueError, match="no GBP rate on or before 2010-12-01"):
        compute(retail_file(sale("2010-12-01")), rates)


def test_a_file_without_a_single_sold_line_has_an_answer(retail_file: Any) -> None:
    answer = compute(retail_file(sale("2010-12-01", 0.0)), ECB_RATES)

    assert (answer.products, answer.price_history) == ({}, {})
    assert answer.revenue_gbp == {date(2010, 12, 1): Decimal(0)}


def _listed(catalogue: Catalogue, day: date) -> dict[str, tuple[str, Decimal]]:
    return {sku: (row.title, row.price) for sku, row in catalogue.on(day).items()}


def _rate(day: str) -> Decimal:
    header, *lines = ECB_RATES.read_text().splitlines()
    row = next(line.split(",") for line in lines if line.startswith(day))
    return Decimal(row[header.split(",").index("GBP")])
