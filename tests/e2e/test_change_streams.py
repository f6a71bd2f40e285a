"""The retail sample as a database that Debezium or AWS DMS reads: the same tables as our own events
make.

The shipped month is replayed into a source database (sales with their returns, the shop's articles
day by day, the ECB's rates) whose log is then written as each of the two does. What the consumer
makes of it must equal, row for row, what it makes of the register's and the poller's own events.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.encoders import debezium, dms
from tests.encoders.history import Kind, Log, Row, SourceTable
from tests.encoders.native import instant, shown

from consumer.app import build
from freshet.mapping import load_streams
from freshet.tables import TABLES
from freshet.testing import MemoryObjects
from lake.testing import LakeSite
from local.sample import ECB_RATES, RETAIL_MONTH
from local.sample.catalogue import Catalogue, Product
from local.sample.ecb import read_rates
from local.sample.retail import RegisterChange, register_changes

STREAMS = load_streams(Path(__file__).parent / "streams", TABLES)
ARRIVED = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
FIRST_SEQUENCE_NUMBER = 49590338271490256608559692538361571095921575989136588898
# As the mapping's batches: a wrapped Debezium record is 3 KB, an invocation's payload 6 MB.
BATCH_RECORDS = 1_500
# Records overtake one another by up to an hour's worth, as the demo's do; one in fifty comes twice.
WINDOW_RECORDS, DUPLICATE_SHARE = 2_000, 0.02
# The connector starts on the first afternoon: what was there is read, what follows is streamed.
SNAPSHOT_CHANGES = 2_500

SALES = SourceTable(
    "sales",
    {
        "sale_id": "text",
        "invoice_no": "text",
        "line": "integer",
        "sku": "text",
        "description": "text",
        "quantity": "integer",
        "returned_quantity": "integer",
        "unit_price": "numeric(4)",
        "customer": "integer",
        "country": "text",
        "sold_at": "timestamp",
    },
    ("sale_id",),
)
ARTICLES = SourceTable(
    "articles",
    {
        "id": "bigint",
        "sku": "text",
        "title": "text",
        "price": "numeric(4)",
        "clerk": "text",
        "listed": "timestamp",
        "changed": "timestamp",
    },
    ("id",),
)
RATES = SourceTable(
    "exchange_rates",
    {"currency": "text", "rate_date": "date", "rate": "numeric(6)"},
    ("currency", "rate_date"),
)


@dataclass(frozen=True)
class Happening:
    """One change of the shop: in the source's terms, and as our own event."""

    at: datetime
    together: str
    table: SourceTable
    before: Row | None
    after: Row | None
    event: dict[str, Any]


@dataclass
class Shop:
    """Everything that happened from the first day until `until`, sales until `sales_until`."""

    until: date
    sales_until: date
    happenings: list[Happening] = field(default_factory=list)

    def __post_init__(self) -> None:
        found = [*self.sales(), *self.articles(), *self.rates()]
        self.happenings = sorted(found, key=lambda happening: happening.at)

    def sales(self) -> Iterator[Happening]:
        """The register's lines and returns."""
        rows: dict[str, Row] = {}
        for change in register_changes(RETAIL_MONTH):
            at = datetime.fromisoformat(change["occurred_at"])
            if at.date() < self.sales_until:
                key, row = change["after"]["sale_id"], sale_of(change)
                event = {**change, "table": "sales", "source": "register"}
                yield Happening(at, row["invoice_no"], SALES, rows.get(key), row, event)
                rows[key] = row

    def articles(self) -> Iterator[Happening]:
        """The catalogue, day by day: new rows, new prices, vanished rows."""
        catalogue, held = Catalogue.from_file(RETAIL_MONTH), dict[int, Row]()
        for day in (day for day in catalogue.days if day < self.until):
            at = datetime.combine(day, time(8), UTC)
            rows = {product.id: article_of(product) for product in catalogue.on(day).values()}
            for key in sorted(held.keys() | rows.keys()):
                before, after = held.get(key), rows.get(key)
                if before != after:
                    event = article_event(key, after, at)
                    yield Happening(at, f"prices of {day}", ARTICLES, before, after, event)
            held = rows

    def rates(self) -> Iterator[Happening]:
        """The rates that were published, in the afternoon."""
        for currency, published in read_rates(ECB_RATES).items():
            for day, rate in published.items():
                if day < self.until.isoformat() and rate != "N/A":
                    rate_date = date.fromisoformat(day)
                    exact = Decimal(rate).quantize(Decimal("0.000001"))
                    row: Row = {"currency": currency, "rate_date": rate_date, "rate": exact}
                    at = datetime.combine(rate_date, time(15), UTC)
                    event = native_event("exchange_rates", at, after=json_of(row))
                    yield Happening(at, f"rates of {day}", RATES, None, row, event)

    def log(self) -> Log:
        """The database's log: an invoice, a morning's prices, a day's rates are one transaction."""
        log, together = Log(), ""
        for happening in self.happenings:
            if happening.together != together:
                together = happening.together
                log.commit(happening.at)
            table, before, after = happening.table, happening.before, happening.after
            kind = Kind.DELETE if after is None else Kind.UPDATE if before else Kind.INSERT
            log.add(table, kind, before, after, touched=table.columns)
        return log

    def events(self) -> list[bytes]:
        """Our own events, as register and poller send them."""
        stamp = {"accepted_at": instant(ARRIVED)}
        return [json.dumps(item.event | stamp).encode() for item in self.happenings]


def sale_of(change: RegisterChange) -> Row:
    """The register's row as its database holds it."""
    row = dict(change["after"])
    customer = row.pop("customer_id")
    del row["currency"]
    return {
        **row,
        "unit_price": Decimal(row["unit_price"]),
        "customer": customer if customer is None else int(customer),
        "sold_at": datetime.fromisoformat(row["sold_at"]),
    }


def article_of(product: Product) -> Row:
    """The catalogue's row as the shop's database holds it."""
    return {
        "id": product.id,
        "sku": product.sku,
        "title": product.title,
        "price": product.price.quantize(Decimal("0.0001")),
        "clerk": "anne",
        "listed": datetime.combine(product.created, time(8), UTC),
        "changed": datetime.combine(product.updated, time(8), UTC),
    }


def article_event(key: int, row: Row | None, at: datetime) -> dict[str, Any]:
    """What the poller would publish of an article."""
    if row is None:
        return native_event("products", at, op="d", key={"product_id": str(key)})
    after = json_of(row)
    names = {"listed": "created_at", "changed": "updated_at"}
    renamed = {names.get(name, name): value for name, value in after.items()}
    del renamed["id"], renamed["clerk"]
    return native_event(
        "products", at, after={**renamed, "product_id": str(key), "currency": "GBP"}
    )


def native_event(table: str, at: datetime, op: str = "u", **members: Any) -> dict[str, Any]:
    """One of our own events; its version is its time."""
    version = (at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    stamps = {"event_id": f"{table}-{version}", "source": "poller", "occurred_at": instant(at)}
    return {"table": table, "op": op, "version": version, **stamps, **members}


def json_of(row: Row) -> dict[str, Any]:
    return {name: shown(value) for name, value in row.items()}


def disordered(records: list[bytes], seed: int) -> list[bytes]:
    """Records late, early and twice."""
    random = Random(seed)
    twice = [
        (at + random.random() * WINDOW_RECORDS, data)
        for at, data in enumerate(records)
        for _ in range(2 if random.random() < DUPLICATE_SHARE else 1)
    ]
    return [data for _, data in sorted(twice, key=lambda item: item[0])]


def batches(records: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Lambda's events."""
    numbered = [
        {
            "kinesis": {
                "sequenceNumber": str(FIRST_SEQUENCE_NUMBER + at),
                "data": base64.b64encode(data).decode(),
                "approximateArrivalTimestamp": ARRIVED.timestamp(),
            },
            "eventID": f"shardId-000000000000:{FIRST_SEQUENCE_NUMBER + at}",
        }
        for at, data in enumerate(records)
    ]
    for at in range(0, len(numbered), BATCH_RECORDS):
        yield {"Records": numbered[at : at + BATCH_RECORDS]}


Tables = dict[str, dict[tuple[Any, ...], Row]]


def landed(records: list[bytes], catalog: Path) -> Tables:
    """The tables after the consumer took every record."""
    lake = LakeSite(MemoryObjects(), catalog).open()
    handle = build(lake, tables=TABLES, now=lambda: ARRIVED, streams=STREAMS)
    for event in batches(records):
        assert handle(event, None) == {"batchItemFailures": []}
    assert [row for part in lake.log("quarantine") for row in part.to_pylist()] == []
    tables = {name: rows_of(lake, name) for name in ("sales", "products", "exchange_rates")}
    lake.close()
    return tables


def rows_of(lake: Any, name: str) -> dict[tuple[Any, ...], Row]:
    """A table's rows by key, without the lake's own columns."""
    rows = lake.rows(name).to_pylist()
    keyed = {tuple(row[column] for column in TABLES[name].key): row for row in rows}
    assert len(keyed) == len(rows)
    return {
        key: {column: value for column, value in row.items() if not column.startswith("_")}
        for key, row in keyed.items()
    }


def check_all_three(shop: Shop, folder: Path, *, sales_min: int) -> None:
    changes = shop.log().changes
    as_debezium = debezium.DebeziumChoice(server="register", snapshot=SNAPSHOT_CHANGES)
    as_dms = dms.DmsChoice(loaded=SNAPSHOT_CHANGES)
    streams = {
        "native": shop.events(),
        "debezium": debezium.encode(changes, as_debezium),
        "dms": dms.encode(changes, as_dms),
    }
    tables = {
        name: landed(disordered(records, seed), folder / f"{name}.db")
        for seed, (name, records) in enumerate(streams.items())
    }
    for name, rows in tables["native"].items():
        for other in ("debezium", "dms"):
            assert differences(rows, tables[other][name]) == [], (name, other)
    assert len(tables["native"]["sales"]) >= sales_min
    assert any(row["returned_quantity"] for row in tables["native"]["sales"].values())
    assert any(b'"op":"d"' in data for data in streams["debezium"])
    assert any(b'"operation": "delete"' in data for data in streams["dms"])


def differences(wanted: dict[Any, Row], found: dict[Any, Row]) -> list[Any]:
    """The first few keys whose rows differ, with both rows."""
    keys = [key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)]
    return [(key, wanted.get(key), found.get(key)) for key in sorted(keys, key=str)[:3]]


def test_days_of_the_retail_month_are_the_same_tables_in_all_formats(tmp_path: Path) -> None:
    """Three days of sales hold returns; ten days of the catalogue the first articles to vanish."""
    shop = Shop(until=date(2010, 12, 11), sales_until=date(2010, 12, 4))
    check_all_three(shop, tmp_path, sales_min=6_000)


@pytest.mark.long
def test_the_whole_retail_month_is_the_same_tables_in_all_formats(tmp_path: Path) -> None:
    shop = Shop(until=date(2011, 1, 1), sales_until=date(2011, 1, 1))
    check_all_three(shop, tmp_path, sales_min=40_000)
