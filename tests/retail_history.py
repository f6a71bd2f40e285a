"""A retail file as a change log that has seen everything: late, doubled, corrected, taken back.

The gold views have to tell the true history of such a log. The answers here are worked out change
by change in plain Python and added up by pandas, in another way than the SQL does it.
"""

from __future__ import annotations

import csv
import json
import random
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from freshet.arrow import contract_schema, position_of
from freshet.clock import micros
from freshet.tables import ExchangeRate, Product, Sale
from lake.log import (
    CHANGE_LOG,
    CHANGE_LOG_SCHEMA,
    RESOLUTIONS,
    RESOLUTIONS_SCHEMA,
    TRUNCATE_OP,
)
from local.sample.catalogue import Catalogue
from local.sample.retail import register_changes

Json = dict[str, Any]
RATES = Path(__file__).parents[1] / "src/local/sample/data/ecb_eurofxref_2010_11_2011_12.csv"
CONTRACTS = {contract.table: contract for contract in (Sale, Product, ExchangeRate)}
SHARDS = 2
OPENING = time(8, tzinfo=UTC)
FILE_ROWS = 5_000
NEVER = datetime.min.replace(tzinfo=UTC)
# Shares of changes that come late, twice, in two objects, or by way of the quarantine.
LATE, TWICE, RECUT, QUARANTINED = 0.03, 0.02, 0.01, 0.002
# Shares of sales that are put right afterwards, moved to another day, or struck out.
PATCHED, MOVED, STRUCK = 0.004, 0.001, 0.002
# Share of prices that are set for a day gone by.
RETROACTIVE = 0.01


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the change log; `learned_at` is later than `arrived_at` if it was quarantined."""

    table: str
    op: str
    key: str
    version: int
    occurred_at: datetime | None
    accepted_at: datetime
    after: Json | None = None
    patch: Json | None = None
    arrived_at: datetime = NEVER
    learned_at: datetime = NEVER
    shard_id: str = ""
    sequence: str = ""
    copies: int = 1

    @property
    def position(self) -> str:
        """Its place in the stream as sortable text."""
        return position_of(self.sequence, 0)

    @property
    def source_time(self) -> datetime:
        """When it was true at the source, as well as that is known."""
        return self.occurred_at or self.accepted_at


def change_log(retail: Path, *, seed: int = 6) -> list[Line]:
    """The lines of sales and products in the order of the stream; equal seeds give equal logs."""
    rng = random.Random(seed)
    changes = [*sales_changes(retail, rng), *product_changes(retail, rng)]
    sent = sorted((item for one in changes for item in _sent(one, rng)), key=_arrival)
    return [
        replace(
            line,
            shard_id=f"shardId-{zlib.crc32(line.key.encode()) % SHARDS:012d}",
            sequence=str(10**20 + at),
            copies=1 + (rng.random() < RECUT),
        )
        for at, line in enumerate(sent)
    ]


def _arrival(line: Line) -> datetime:
    return line.arrived_at


def _sent(line: Line, rng: random.Random) -> Iterator[Line]:
    delay = timedelta(seconds=rng.random() * 20)
    if rng.random() < LATE:
        delay += timedelta(days=rng.random() * 10)
    for copy in range(1 + (rng.random() < TWICE)):
        arrived = line.accepted_at + delay + copy * timedelta(minutes=rng.random() * 30)
        learned = arrived
        if rng.random() < QUARANTINED:
            learned += timedelta(days=1 + rng.random() * 5)
        yield replace(line, arrived_at=arrived, learned_at=learned)


def sales_changes(retail: Path, rng: random.Random) -> Iterator[Line]:
    """The register's own changes, and what an auditor did to some of them days later."""
    for change in register_changes(retail):
        at, row = datetime.fromisoformat(change["occurred_at"]), change["after"]
        key, version = row["sale_id"], change["version"]
        yield Line("sales", change["op"], key, version, at, at, after=row)
        if rng.random() < PATCHED:
            later = at + timedelta(days=rng.random() * 20)
            price = Decimal(row["unit_price"]) + Decimal("0.5000")
            patch = rng.choice([{"unit_price": str(price)}, {"quantity": row["quantity"] + 1}])
            yield Line("sales", "u", key, micros(later), later, later, patch=patch)
        if rng.random() < MOVED:
            later, day = at + timedelta(days=2), at + timedelta(days=1)
            moved = row | {"sold_at": day.strftime("%Y-%m-%dT%H:%M:%S.000000Z")}
            yield Line("sales", "u", key, micros(later), later, later, after=moved)
        if rng.random() < STRUCK:
            later = at + timedelta(days=rng.random() * 30)
            yield Line("sales", "d", key, micros(later), later, later)


def product_changes(retail: Path, rng: random.Random) -> Iterator[Line]:
    """What a poller of the shop sees each morning, and prices set for a day gone by."""
    catalogue, known = Catalogue.from_file(retail), dict[str, Any]()
    for day in catalogue.days:
        seen = {str(one.id): one for one in catalogue.on(day).values()}
        morning = datetime.combine(day, OPENING)
        observed = morning + timedelta(minutes=5)
        for at, key in enumerate(sorted(known.keys() - seen.keys())):
            yield Line("products", "d", key, micros(observed) + at, None, observed)
        for key, one in seen.items():
            if known.get(key) == one:
                continue
            row = _product(key, one.sku, one.title, one.price)
            op = "u" if key in known else "c"
            yield Line("products", op, key, micros(observed), morning, observed, after=row)
            if rng.random() < RETROACTIVE:
                later, back = observed + timedelta(days=3), morning - timedelta(days=1.5)
                row = _product(key, one.sku, one.title, one.price + 1)
                yield Line("products", "u", key, micros(later), back, later, after=row)
            if rng.random() < PATCHED * 5:
                later = observed + timedelta(days=1.25)
                patch = {"price": f"{one.price + 2:.4f}"}
                yield Line("products", "u", key, micros(later), later, later, patch=patch)
        known = seen


def _product(key: str, sku: str, title: str, price: Decimal) -> Json:
    return {
        "product_id": key,
        "sku": sku,
        "title": title,
        "price": f"{price:.4f}",
        "currency": "GBP",
    }


Folders = dict[tuple[str, str, date], list[Json]]


def _laid_out(lines: Iterable[Line]) -> Folders:
    """Rows by log, table and day of arrival."""
    folders: Folders = defaultdict(list)
    for line in lines:
        place, row = (line.table, line.arrived_at.date()), _log_row(line)
        folders[CHANGE_LOG, *place].extend([row] * line.copies)
        if line.learned_at > line.arrived_at:
            own = {name: row[name] for name in RESOLUTIONS_SCHEMA.names if name in row}
            told = {"resolution": "replayed", "resolved_at": line.learned_at, "resolved_by": "test"}
            folders[RESOLUTIONS, *place].append(own | told)
    return folders


SCHEMAS = {CHANGE_LOG: CHANGE_LOG_SCHEMA, RESOLUTIONS: RESOLUTIONS_SCHEMA}


def log_tables(lines: Iterable[Line]) -> dict[str, pa.Table]:
    """The log and the quarantine's resolutions as tables, with their folders as columns."""
    rows: dict[str, list[Json]] = {log: [] for log in SCHEMAS}
    for (log, table, day), found in _laid_out(lines).items():
        rows[log] += [row | {"table_name": table, "ingest_date": day} for row in found]
    folders = [pa.field("table_name", pa.string()), pa.field("ingest_date", pa.date32())]
    return {
        log: pa.Table.from_pylist(rows[log], schema=pa.schema([*schema, *folders]))
        for log, schema in SCHEMAS.items()
    }


def write_log(lines: Iterable[Line], root: Path) -> None:
    """The same as files below `root`, as the lake lays them out."""
    for (log, table, day), rows in _laid_out(lines).items():
        folder = root / log / f"table_name={table}" / f"ingest_date={day}"
        folder.mkdir(parents=True, exist_ok=True)
        for start in range(0, len(rows), FILE_ROWS):
            part = pa.Table.from_pylist(rows[start : start + FILE_ROWS], schema=SCHEMAS[log])
            pq.write_table(part, folder / f"{start:08d}.parquet", compression="zstd")


def _log_row(line: Line) -> Json:
    return {
        "op": line.op,
        "key": line.key,
        "version": line.version,
        "event_id": f"{line.key}-{line.version}",
        "source": "register",
        "occurred_at": line.occurred_at,
        "accepted_at": line.accepted_at,
        "after": None if line.after is None else json.dumps(line.after),
        "patch": None if line.patch is None else json.dumps(line.patch),
        "shard_id": line.shard_id,
        "sequence_number": line.sequence,
        "record_index": 0,
        "position": line.position,
        "arrived_at": line.arrived_at,
        "contract_version": 1,
    }


def fold(lines: Iterable[Line]) -> Json | None:
    """The row that some changes of one key leave, in whatever order they came; None: no row."""
    row: Json | None = None
    for line in sorted(lines, key=lambda one: (one.version, one.position)):
        if line.patch is None:
            row = line.after
        elif row is not None:
            row = row | line.patch
    return row


def by_key(lines: Iterable[Line], table: str) -> dict[str, list[Line]]:
    """The lines of one table by key; the end of all rows is one of every key."""
    own = [line for line in lines if line.table == table]
    ends = [line for line in own if line.op == TRUNCATE_OP]
    found: dict[str, list[Line]] = defaultdict(lambda: list(ends))
    for line in own:
        if line.op != TRUNCATE_OP:
            found[line.key].append(line)
    return found


def current_rows(lines: Iterable[Line], table: str) -> pa.Table:
    """The current state of a table as the lake holds it."""
    contract, own = CONTRACTS[table], {"_version": 1, "_position": "1"}
    states = (fold(found) for found in by_key(lines, table).values())
    rows = [contract.parse(row) | own for row in states if row is not None]
    return pa.Table.from_pylist(rows, schema=contract_schema(contract))


def rates() -> pa.Table:
    """The reference rates of the sample's year."""
    with RATES.open(newline="") as file:
        rows = [
            {"currency": currency, "rate_date": line["Date"], "rate": line[currency]}
            for line in csv.DictReader(file)
            for currency in ("GBP", "USD")
            if line[currency] not in ("", "N/A")
        ]
    own = {"_version": 1, "_position": "1"}
    parsed = [ExchangeRate.parse(row) | own for row in rows]
    return pa.Table.from_pylist(parsed, schema=contract_schema(ExchangeRate))


Cell = tuple[str, str]  # day and currency


def revenue_changes(lines: Iterable[Line]) -> pd.DataFrame:
    """Every change of a day's net revenue in the order it was learned.

    One row for each cell (day and currency) and change: `net_from` and `net_to` are the sale's,
    `day_net_to` the cell's afterwards.
    """
    rows = list[tuple[Any, ...]]()
    known: dict[str, list[Line]] = defaultdict(list)
    standing: dict[str, tuple[Cell, Decimal] | None] = {}
    told = [(line, key) for key, found in by_key(lines, "sales").items() for line in found]
    for line, key in sorted(told, key=lambda one: (one[0].learned_at, one[0].position, one[1])):
        known[key].append(line)
        before, now = standing.get(key), _revenue(fold(known[key]))
        standing[key] = now
        for cell in {one[0]: None for one in (before, now) if one is not None}:
            was = before[1] if before and before[0] == cell else Decimal(0)
            then = now[1] if now and now[0] == cell else Decimal(0)
            if was != then:
                place = (line.learned_at, line.position, key)
                rows.append((*cell, *place, was, then, then - was))
    names = ["day", "currency", "learned_at", "position", "key", "net_from", "net_to", "net_change"]
    frame = pd.DataFrame(rows, columns=names).astype({"net_change": object})
    # Ten-thousandths as integers: pandas adds these up exactly, and fast.
    frame["units"] = [int(one.scaleb(4)) for one in frame["net_change"]]
    frame["day_net_to"] = frame.groupby(["day", "currency"])["units"].cumsum()
    return frame


def _revenue(row: Json | None) -> tuple[Cell, Decimal] | None:
    if row is None:
        return None
    count = row["quantity"] - row.get("returned_quantity", 0)
    return (row["sold_at"][:10], row["currency"]), count * Decimal(row["unit_price"])


def restatements(changes: pd.DataFrame) -> pd.DataFrame:
    """The changes that came after the cell's first report: later than its day and than the day on
    which anything was learned of it.
    """
    learned_on = changes["learned_at"].dt.date
    first = learned_on.groupby([changes["day"], changes["currency"]]).transform("min")
    day = changes["day"].map(date.fromisoformat)
    found: pd.DataFrame = changes[learned_on > first.where(first > day, day)]
    return found


def as_reported(changes: pd.DataFrame, on: date) -> dict[Cell, int]:
    """The net revenue of every cell, in ten-thousandths, as known at the end of a day."""
    known = changes[changes["learned_at"].dt.date <= on]
    cells: dict[Cell, int] = known.groupby(["day", "currency"])["units"].sum().to_dict()
    return cells


Interval = tuple[str, str, Decimal, datetime, datetime | None]


def price_history(lines: Iterable[Line]) -> list[Interval]:
    """Product, currency, price, from, to: what was true at each moment by all that is known now."""
    found = list[Interval]()
    for key, changes in by_key(lines, "products").items():
        moments = sorted({line.source_time for line in changes})
        told = list[tuple[datetime, tuple[str, Decimal] | None]]()
        for moment in moments:
            row = fold(line for line in changes if line.source_time <= moment)
            state = None if row is None else (row["currency"], Decimal(row["price"]))
            if not told or told[-1][1] != state:
                told.append((moment, state))
        ends = [moment for moment, _ in told[1:]] + [None]
        found += [
            (key, *state, moment, end)
            for (moment, state), end in zip(told, ends, strict=True)
            if state is not None
        ]
    return found
