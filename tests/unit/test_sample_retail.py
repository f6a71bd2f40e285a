"""The register's stream and the independent answer must agree, on real data and on small cases."""

from collections.abc import Iterable
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.errors import RejectedError, TerminalError
from freshet.event import parse_event
from freshet.tables import TABLES
from freshet.wire import Rejected, decode_record, parse_json
from local.sample import ECB_RATES, RETAIL_MONTH
from local.sample.answer import Answer, compute
from local.sample.catalogue import Catalogue
from local.sample.disorder import Broken, Door, broken_records, disorder
from local.sample.retail import (
    RegisterChange,
    SampleDataError,
    micros,
    register_changes,
    utc_from_uk,
)

SCHEMA = pa.schema(
    {
        "invoice_no": pa.string(),
        "stock_code": pa.string(),
        "description": pa.string(),
        "quantity": pa.int32(),
        "invoice_date": pa.timestamp("ms"),
        "unit_price": pa.float64(),
        "customer_id": pa.int32(),
        "country": pa.string(),
    }
)


def line(
    invoice_no: str,
    quantity: int,
    *,
    at: str = "2010-12-01 09:00",
    sku: str = "22423",
    price: float = 2.5,
    customer: int | None = 17850,
    description: str | None = " CAKESTAND ",
) -> dict[str, Any]:
    return {
        "invoice_no": invoice_no,
        "stock_code": sku,
        "description": description,
        "quantity": quantity,
        "invoice_date": datetime.fromisoformat(at),
        "unit_price": price,
        "customer_id": customer,
        "country": "United Kingdom",
    }


@pytest.fixture
def retail_file(tmp_path: Path) -> Any:
    def write(*lines: dict[str, Any]) -> Path:
        path = tmp_path / "retail.parquet"
        pq.write_table(pa.Table.from_pylist(list(lines), schema=SCHEMA), path)
        return path

    return write


def final_rows(changes: Iterable[RegisterChange | Broken]) -> dict[str, dict[str, Any]]:
    """The oracle of L1 in four lines: the greatest version of each key wins."""
    newest: dict[str, RegisterChange] = {}
    for change in changes:
        if isinstance(change, Broken):
            continue
        held = newest.get(change["after"]["sale_id"])
        if held is None or change["version"] > held["version"]:
            newest[change["after"]["sale_id"]] = change
    return {key: change["after"] for key, change in newest.items()}


def rows_of(answer: Answer) -> dict[str, dict[str, Any]]:
    """The answer's sales in the form of the register's rows."""
    rows: dict[str, dict[str, Any]] = {}
    for sale_id, row in zip(answer.sales.index, answer.sales.to_dict("records"), strict=True):
        shown: dict[str, Any] = {"sale_id": sale_id, "currency": "GBP"}
        shown.update((str(name), value) for name, value in row.items())
        shown["unit_price"] = str(shown["unit_price"])
        shown["sold_at"] = shown["sold_at"].strftime("%Y-%m-%dT%H:%M:%SZ")
        rows[str(sale_id)] = shown
    return rows


def returned(path: Path) -> dict[str, tuple[int, int]]:
    """sale_id -> (quantity, returned) where the register and the answer agree."""
    rows = final_rows(register_changes(path))
    assert rows == rows_of(compute(path, ECB_RATES))
    return {key: (row["quantity"], row["returned_quantity"]) for key, row in rows.items()}


def test_the_shipped_month_ends_in_the_independently_computed_sales() -> None:
    answer = compute(RETAIL_MONTH, ECB_RATES)

    rows = final_rows(disorder(register_changes(RETAIL_MONTH), seed=7))

    assert rows == rows_of(answer)
    assert (len(rows), answer.returns_matched, answer.returns_unmatched) == (42_192, 289, 439)


def test_the_shipped_month_is_whole_and_unaltered() -> None:
    table = pq.read_table(RETAIL_MONTH, use_threads=False)

    units = sum(table["quantity"].to_pylist())
    tenths = sum(
        q * round(p * 1000)
        for q, p in zip(*(table[c].to_pylist() for c in ("quantity", "unit_price")), strict=True)
    )

    assert (table.num_rows, units, tenths) == (42_481, 342_228, 748_957_020)


def test_revenue_of_the_answer_is_what_the_registers_rows_add_up_to() -> None:
    answer = compute(RETAIL_MONTH, ECB_RATES)

    revenue: dict[date, Decimal] = {}
    for row in final_rows(register_changes(RETAIL_MONTH)).values():
        day = date.fromisoformat(row["sold_at"][:10])
        kept = row["quantity"] - row["returned_quantity"]
        revenue[day] = revenue.get(day, Decimal(0)) + kept * Decimal(row["unit_price"])

    assert revenue == answer.revenue_gbp
    assert sum(revenue.values()) == Decimal("748957.02")


def test_a_partial_return_raises_the_returned_quantity_of_its_sale(retail_file: Any) -> None:
    path = retail_file(line("1", 6), line("C2", -2, at="2010-12-02 09:00"))

    assert returned(path) == {"1-1": (6, 2)}


def test_two_returns_of_one_line_add_up_and_a_third_that_is_too_big_stands_alone(
    retail_file: Any,
) -> None:
    path = retail_file(
        line("1", 6),
        line("C2", -2, at="2010-12-02 09:00"),
        line("C3", -3, at="2010-12-03 09:00"),
        line("C4", -2, at="2010-12-04 09:00"),
    )

    assert returned(path) == {"1-1": (6, 5), "C4-1": (-2, 0)}


def test_the_latest_sale_with_enough_left_takes_the_return(retail_file: Any) -> None:
    path = retail_file(
        line("1", 6),
        line("2", 6),
        line("3", 1),
        line("C4", -4),
        line("C5", -4),
    )

    assert returned(path) == {"1-1": (6, 4), "2-1": (6, 4), "3-1": (1, 0)}


@pytest.mark.parametrize(
    "differing",
    [
        {"customer": 1},
        {"price": 2.51},
        {"sku": "22423a"},
        {"quantity": 1},
        {"at": "2010-12-03 09:00"},
    ],
    ids=["other customer", "other price", "code differs in case", "too few", "sold later"],
)
def test_a_cancellation_that_matches_nothing_is_a_negative_sale(
    retail_file: Any, differing: dict[str, Any]
) -> None:
    usual: dict[str, Any] = {"quantity": 6, "sku": "22423A"}
    sale = line("1", **(usual | differing))
    path = retail_file(sale, line("C2", -2, at="2010-12-02 09:00", sku="22423A"))

    assert returned(path) == {"1-1": (sale["quantity"], 0), "C2-1": (-2, 0)}


LINES = st.lists(
    st.builds(
        line,
        st.sampled_from(["1", "2", "C3", "C4", "A5"]),
        st.integers(-4, 4).filter(bool),
        at=st.sampled_from(["2010-12-01 09:00", "2010-12-01 09:01", "2011-07-04 09:00"]),
        sku=st.sampled_from(["85123A", "85123a"]),
        price=st.sampled_from([0.0, 2.55, 1.001]),
        customer=st.sampled_from([None, 1, 2]),
        description=st.sampled_from([None, "", " A ", "B"]),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_register_catalogue_and_answer_agree_on_any_lines(lines: list[dict[str, Any]]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "retail.parquet"
        pq.write_table(pa.Table.from_pylist(lines, schema=SCHEMA), path)
        rows = final_rows(disorder(register_changes(path), seed=1))
        catalogue = Catalogue.from_file(path)
        answer = compute(path, ECB_RATES)

    last = catalogue.days[-1] if catalogue.days else date(2010, 12, 1)
    shown = {sku: (row.title, row.price) for sku, row in catalogue.on(last).items()}
    assert rows == rows_of(answer)
    assert shown == answer.products


def test_a_cancellation_written_before_its_sale_does_not_match_it(retail_file: Any) -> None:
    path = retail_file(line("C1", -2), line("2", 6))

    assert returned(path) == {"C1-1": (-2, 0), "2-1": (6, 0)}


def test_a_cancellation_without_a_customer_matches_nothing(retail_file: Any) -> None:
    path = retail_file(line("1", 6, customer=None), line("C2", -2, customer=None))

    assert returned(path) == {"1-1": (6, 0), "C2-1": (-2, 0)}


def test_a_cancellation_in_the_minute_of_its_sale_matches(retail_file: Any) -> None:
    path = retail_file(line("1", 6), line("C2", -6))

    assert returned(path) == {"1-1": (6, 6)}


def test_write_offs_and_adjustments_are_plain_rows(retail_file: Any) -> None:
    path = retail_file(
        line("1", -30, price=0.0, description=None),
        line("A2", 1, sku="B", price=-11062.06, customer=None),
        line("C3", -30, price=0.0),
    )

    assert returned(path) == {"1-1": (-30, 0), "A2-1": (1, 0), "C3-1": (-30, 0)}


def test_lines_are_numbered_within_their_invoice_also_when_scattered_and_spread_over_two_minutes(
    retail_file: Any,
) -> None:
    path = retail_file(
        line("1", 1),
        line("2", 5),
        line("1", 1),
        line("1", 3, at="2010-12-01 09:01"),
        line("2", 7, sku="85123A"),
        line("2", 7, sku="85123a"),
        line("C3", -7, sku="85123a"),
        line("C3", -3, at="2010-12-01 09:01"),
    )

    assert returned(path) == {
        "1-1": (1, 0),
        "1-2": (1, 0),
        "1-3": (3, 3),
        "2-1": (5, 0),
        "2-2": (7, 0),
        "2-3": (7, 7),
    }


def test_a_sale_and_its_return_are_a_create_and_an_update_of_one_key(retail_file: Any) -> None:
    path = retail_file(line("1", 6), line("C2", -2, at="2010-12-02 09:00"))

    sale, update = register_changes(path)

    sold_at = micros(datetime(2010, 12, 1, 9, tzinfo=UTC))
    assert sale == {
        "op": "c",
        "event_id": f"register-1-1-{sold_at}",
        "version": sold_at,
        "occurred_at": "2010-12-01T09:00:00Z",
        "after": {
            "sale_id": "1-1",
            "invoice_no": "1",
            "line": 1,
            "sku": "22423",
            "description": "CAKESTAND",
            "quantity": 6,
            "returned_quantity": 0,
            "unit_price": "2.5000",
            "currency": "GBP",
            "customer_id": "17850",
            "country": "United Kingdom",
            "sold_at": "2010-12-01T09:00:00Z",
        },
    }
    assert update["op"] == "u"
    assert update["version"] == micros(datetime(2010, 12, 2, 9, tzinfo=UTC)) + 1
    assert update["after"] == sale["after"] | {"returned_quantity": 2}


def test_versions_of_one_key_strictly_increase_also_when_the_clock_is_set_back(
    retail_file: Any,
) -> None:
    path = retail_file(
        line("1", 6),
        line("C2", -1),
        line("C3", -1, at="2010-12-05 09:00"),
        line("C4", -1, at="2010-12-02 09:00"),
    )

    versions = [change["version"] for change in register_changes(path)]

    assert len(versions) == 4
    assert all(older < newer for older, newer in pairwise(versions))


def test_about_half_of_the_updates_carry_the_row_they_replace() -> None:
    newest: dict[str, dict[str, Any]] = {}
    with_before = updates = 0
    for change in register_changes(RETAIL_MONTH):
        key = change["after"]["sale_id"]
        updates += change["op"] == "u"
        if "before" in change:
            assert change["before"] == newest[key]
            with_before += 1
        newest[key] = change["after"]

    assert updates == 289
    assert 0.4 < with_before / updates < 0.6


@pytest.mark.parametrize(
    ("local", "utc"),
    [("2011-03-27 00:59", 0), ("2011-03-27 02:01", 1), ("2011-10-30 03:00", 3)],
)
def test_uk_wall_clock_becomes_utc_on_both_sides_of_summer_time(local: str, utc: int) -> None:
    assert utc_from_uk(datetime.fromisoformat(local)).hour == utc


def test_a_summer_sale_is_an_hour_earlier_in_utc_for_both_computations(retail_file: Any) -> None:
    path = retail_file(line("1", 6, at="2011-07-01 09:00"))

    rows = final_rows(register_changes(path))

    assert rows["1-1"]["sold_at"] == "2011-07-01T08:00:00Z"
    assert rows == rows_of(compute(path, ECB_RATES))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pa.table({"a": [1]}), "column 'invoice_no' is missing"),
        (
            pa.Table.from_pylist([line("1", 1)]).cast(
                SCHEMA.set(3, pa.field("quantity", pa.string()))
            ),
            "column 'quantity' is text, not integer",
        ),
    ],
)
def test_a_file_of_another_shape_is_refused_in_one_line(
    tmp_path: Path, table: Any, problem: str
) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(table, path)

    with pytest.raises(SampleDataError) as refused:
        next(register_changes(path))

    assert isinstance(refused.value, TerminalError)
    assert problem in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"InvoiceNo,StockCode\n"])
def test_a_file_that_is_missing_or_no_parquet_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "retail.csv"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(SampleDataError) as refused:
        next(register_changes(path))

    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("price", [float("nan"), 0.00001, 1e400, None])
def test_a_price_that_is_no_exact_price_is_refused_with_its_row(
    retail_file: Any, price: Any
) -> None:
    path = retail_file(line("1", 1), line("2", 1, price=price))

    with pytest.raises(SampleDataError, match="row 1: unit_price"):
        list(register_changes(path))


def test_disorder_is_the_same_for_a_seed_and_different_for_another() -> None:
    def run(seed: int) -> list[Any]:
        return list(islice(disorder(register_changes(RETAIL_MONTH), seed), 5_000))

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_disorder_loses_nothing_repeats_two_percent_and_moves_nothing_too_far() -> None:
    orderly = list(register_changes(RETAIL_MONTH))
    place = {change["event_id"]: number for number, change in enumerate(orderly)}

    sent = [change for change in disorder(orderly, seed=3) if not isinstance(change, Broken)]

    ids = [change["event_id"] for change in sent]
    moved = [place[event_id] - number for number, event_id in enumerate(ids)]
    repeats = len(sent) - len(orderly)
    assert set(ids) == set(place)
    assert all(change == orderly[place[change["event_id"]]] for change in sent)
    assert 0.018 < repeats / len(orderly) < 0.022
    assert max(map(abs, moved)) < 2_000 + repeats
    assert sum(earlier > later for earlier, later in pairwise(moved)) > 10_000


def test_some_returns_overtake_their_sale() -> None:
    seen: set[str] = set()
    early = 0
    for change in disorder(register_changes(RETAIL_MONTH), seed=3):
        if not isinstance(change, Broken):
            seen |= {change["after"]["sale_id"]} if change["op"] == "c" else set()
            early += change["after"]["sale_id"] not in seen

    assert early > 10


@pytest.mark.parametrize("length", [0, 10, 42_481])
def test_every_broken_record_is_sent_exactly_once_however_short_the_stream(length: int) -> None:
    orderly = list(register_changes(RETAIL_MONTH))[:length]

    sent = [record for record in disorder(orderly, seed=1) if isinstance(record, Broken)]

    assert sent == list(broken_records())
    assert len({record.kind for record in sent}) == len(sent) == 19


def test_broken_records_come_through_both_doors_and_are_broken() -> None:
    by_door = {door: [b for b in broken_records() if b.door is door] for door in Door}

    assert {door: len(found) for door, found in by_door.items()} == {
        Door.HTTP: 12,
        Door.STREAM: 7,
    }
    assert all(b"\n" not in record.body for record in by_door[Door.HTTP])


def test_every_change_of_the_register_is_a_valid_event() -> None:
    stamps = {"table": "sales", "source": "register", "accepted_at": "2011-01-01T00:00:00Z"}

    for change in register_changes(RETAIL_MONTH):
        event = parse_event(change, TABLES, defaults=stamps)
        assert (event.key, event.version) == (
            {"sale_id": change["after"]["sale_id"]},
            change["version"],
        )


@pytest.mark.parametrize("record", broken_records(), ids=lambda record: record.kind)
def test_every_broken_record_is_refused_once_for_what_is_wrong_with_it(record: Broken) -> None:
    if record.door is Door.STREAM:
        outcomes = list(decode_record(record.body, TABLES))
        assert [type(outcome) for outcome in outcomes] == [Rejected]
        return

    stamps = {"table": "sales", "source": "register", "accepted_at": "2011-01-01T00:00:00Z"}
    with pytest.raises(RejectedError):
        parse_event(parse_json(record.body), TABLES, defaults=stamps)
