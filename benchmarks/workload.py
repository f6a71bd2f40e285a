"""The benchmark's sales: a table of a year's days and the batches that change it, from one seed.

Every contender gets the same rows and the same batches as Parquet files, so that none of them
pays for making them. What a table must hold afterwards is decided by `freshet.model`, the
plain-dict oracle.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from freshet.arrow import DELETED, PATCHES, POSITION, VERSION, contract_schema, position_of
from freshet.contract import (
    Contract,
    Day,
    Integer,
    Money,
    PartitionField,
    Registry,
    Text,
    Timestamp,
)
from freshet.model import ModelChange, current_state

FIRST_DAY = date(2025, 1, 1)
# Issue 2's batch: 80 % inserts in the newest days, 1 % of them updated again in the same batch;
# 15 % updates and 5 % deletes spread over the last days.
INSERT_DAYS, CHANGE_DAYS = 2, 60
_UPDATES, _DELETES, _AGAIN = 0.15, 0.05, 0.01
# Real Kinesis sequence numbers have 56 digits; a position column is as wide as they are.
_FIRST_SEQUENCE_NUMBER = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
_RECORD_LINES = 500
_DAY_US = 86_400_000_000
KEY = "sale_id"
PARTITION = "sold_date"
# Of every contender that can be told: the lake's own level.
ZSTD_LEVEL = 1


class BenchSale(
    Contract, table="bench_sales", key=(KEY,), partition=(PartitionField("day", "sold_at"),)
):
    """A sale of the benchmark: twelve columns, a UUID for a key."""

    sale_id: Annotated[str, Text(36, 36)] = Field(description="UUID")
    product_id: Annotated[str, Text(12)] = Field(description="One of 10,000 products")
    customer_id: Annotated[int, Integer(64)] = Field(description="One of 200,000 customers")
    quantity: Annotated[int, Integer(32)] = Field(description="Units")
    unit_price: Annotated[Decimal, Money(18, 2)] = Field(description="Price of a unit")
    currency: Annotated[str, Text(3, 3)] = Field(description="One of three")
    status: Annotated[str, Text(12)] = Field(description="One of four")
    source: Annotated[str, Text(12)] = Field(description="One of three")
    country: Annotated[str, Text(2, 2)] = Field(description="One of six")
    sold_at: Annotated[datetime, Timestamp()] = Field(description="When; decides the partition")
    updated_at: Annotated[datetime, Timestamp()] = Field(description="Last change at the source")
    sold_date: Annotated[date, Day()] = Field(
        description="Day of sold_at: the partition of contenders without hidden partitions"
    )


TABLES = Registry((BenchSale,))
ROWS = contract_schema(BenchSale)
# A batch as a file: full rows (also of deletes: some contenders need their partition) and the
# delete flag.
BATCH = pa.schema([*ROWS, pa.field(DELETED, pa.bool_(), nullable=False)])


@dataclass(frozen=True)
class Workload:
    """The files of one run below one folder."""

    folder: Path

    @property
    def base(self) -> Path:
        """The table before any batch."""
        return self.folder / "base.parquet"

    def batch(self, number: int) -> Path:
        """One batch, counted from 0."""
        return self.folder / f"batch-{number:03d}.parquet"

    def read_base(self) -> pa.Table:
        """All rows of the base table."""
        return _read(self.base, ROWS)

    def read_batch(self, number: int) -> pa.Table:
        """The changes of one batch (`BATCH`), in stream order."""
        return _read(self.batch(number), BATCH)

    def make(self, *, rows: int, days: int, sizes: Sequence[int], seed: int) -> None:
        """Write the base table, `rows` over `days`, and a batch of each of `sizes` changes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        source = _Source(random.Random(seed), days)
        base = source.inserts([row * days // rows for row in range(rows)])
        pq.write_table(base, self.base, compression="zstd", compression_level=1)
        source.remember(base)
        for number, size in enumerate(sizes):
            pq.write_table(source.batch(size), self.batch(number), compression="zstd")


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    return pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).cast(schema)


class _Source:
    """The system of record: makes rows, remembers the live ones of the last days, changes them."""

    def __init__(self, rng: random.Random, days: int) -> None:
        self._rng, self._days, self._made, self._version = rng, days, 0, 0
        self._live: dict[str, dict[str, Any]] = {}

    def inserts(self, days: Sequence[int]) -> pa.Table:
        """New sales, one on each of `days` (counted from the first), as changes of one version."""
        count, rng = len(days), self._rng
        self._version += 1
        sold = [day * _DAY_US + rng.randrange(_DAY_US) for day in days]
        start = int(datetime.combine(FIRST_DAY, datetime.min.time(), UTC).timestamp()) * 1_000_000
        sold_at = pa.array([start + value for value in sold], pa.int64()).cast(
            pa.timestamp("us", tz="UTC")
        )
        columns = {
            KEY: _uuids(rng, count),
            "product_id": [f"P{rng.randrange(10_000):05d}" for _ in range(count)],
            "customer_id": [rng.randrange(200_000) for _ in range(count)],
            "quantity": pa.array([rng.randrange(1, 20) for _ in range(count)], pa.int32()),
            "unit_price": _prices(rng, count),
            "currency": rng.choices(("GBP", "EUR", "USD"), k=count),
            "status": rng.choices(("paid", "shipped", "delivered", "open"), k=count),
            "source": rng.choices(("web", "app", "shop"), k=count),
            "country": rng.choices(("GB", "DE", "FR", "IE", "NL", "US"), k=count),
            "sold_at": sold_at,
            "updated_at": sold_at,
            PARTITION: sold_at.cast(pa.date32()),
            VERSION: pa.repeat(pa.scalar(self._version, pa.int64()), count),
            POSITION: self._positions(count),
            PATCHES: pa.nulls(count, pa.string()),
        }
        return pa.table(columns, schema=ROWS)

    def remember(self, rows: pa.Table) -> None:
        """Keep the rows of the days that later batches change."""
        newest = FIRST_DAY + timedelta(days=self._days - CHANGE_DAYS)
        recent = rows.filter(pc.greater_equal(rows.column(PARTITION), pa.scalar(newest)))
        self._live.update((row[KEY], row) for row in recent.to_pylist())

    def batch(self, size: int) -> pa.Table:
        """One batch of `size` changes in stream order."""
        updates, deletes = int(size * _UPDATES), int(size * _DELETES)
        inserts = size - updates - deletes
        again = int(inserts * _AGAIN)
        newest = self._days - 1
        days = [newest - self._rng.randrange(INSERT_DAYS) for _ in range(inserts - again)]
        old = self._rng.sample(sorted(self._live), updates + deletes)
        new = self.inserts(days)
        repeated = [self._updated(row) for row in new.slice(0, again).to_pylist()]
        changed = [self._updated(self._live[key]) for key in old[:updates]]
        gone = [self._updated(self._live.pop(key)) for key in old[updates:]]
        self.remember(new)
        self._live.update((row[KEY], row) for row in repeated + changed)
        flags = [False] * (size - deletes) + [True] * deletes
        later = pa.Table.from_pylist(repeated + changed + gone, schema=ROWS)
        batch = pa.concat_tables([new, later]).append_column(BATCH.field(DELETED), pa.array(flags))
        # Shuffled as lanes of a stream are; the second change of a key has the greater version.
        shuffled = batch.take(self._rng.sample(range(size), size))
        at = BATCH.get_field_index(POSITION)
        return shuffled.set_column(at, BATCH.field(POSITION), [self._positions(size)])

    def _updated(self, row: dict[str, Any]) -> dict[str, Any]:
        rng = self._rng
        moment = row["updated_at"] + timedelta(seconds=rng.randrange(1, 3600))
        return row | {
            "quantity": rng.randrange(1, 20),
            "status": "returned",
            "updated_at": moment,
            VERSION: row[VERSION] + 1_000_000,
        }

    def _positions(self, count: int) -> pa.Array:
        """The next places in the stream, five hundred lines to a record."""
        lines = range(self._made, self._made + count)
        self._made += count
        return pa.array(
            [
                position_of(str(_FIRST_SEQUENCE_NUMBER + at // _RECORD_LINES), at % _RECORD_LINES)
                for at in lines
            ]
        )


def _uuids(rng: random.Random, count: int) -> list[str]:
    text = rng.randbytes(16 * count).hex()
    return [
        f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}"
        for h in (text[at : at + 32] for at in range(0, 32 * count, 32))
    ]


def _prices(rng: random.Random, count: int) -> pa.Array:
    cents = [rng.randrange(99, 20_000) for _ in range(count)]
    return pa.array([Decimal(value).scaleb(-2) for value in cents], pa.decimal128(18, 2))


def expected_rows(base: pa.Table, batches: Sequence[pa.Table]) -> pa.Table:
    """What the table must hold after the batches, by the plain-dict model; sorted by key.

    The model decides which change of a key wins; a change's `after` is its place among all rows,
    so that whole rows can be compared as Arrow.
    """
    every = pa.concat_tables([base, *(batch.select(ROWS.names) for batch in batches)])
    winners = current_state(_model_changes(base, batches))
    live = [change.after["row"] for change in winners.values() if change.after is not None]
    return sorted_by_key(every.take(pa.array(live, pa.int64())))


def _model_changes(base: pa.Table, batches: Sequence[pa.Table]) -> Iterator[ModelChange]:
    row = 0
    for table in (base, *batches):
        deleted = (
            table.column(DELETED).to_pylist()
            if DELETED in table.schema.names
            else [False] * len(table)
        )
        keys, versions = table.column(KEY).to_pylist(), table.column(VERSION).to_pylist()
        positions = table.column(POSITION).to_pylist()
        for key, version, position, gone in zip(keys, versions, positions, deleted, strict=True):
            yield ModelChange(key, version, position, None if gone else {"row": row})
            row += 1


def sorted_by_key(rows: pa.Table) -> pa.Table:
    """Rows of any contender in the one order and schema that can be compared."""
    return rows.select(ROWS.names).cast(ROWS).sort_by(KEY).combine_chunks()


def difference(rows: pa.Table, expected: pa.Table) -> str | None:
    """How a table differs from the model, all columns of all rows compared; None if it does not."""
    got = sorted_by_key(rows)
    if got.num_rows != expected.num_rows:
        return f"{got.num_rows} rows, expected {expected.num_rows}"
    wrong = [name for name in ROWS.names if not got.column(name).equals(expected.column(name))]
    return f"columns differ: {', '.join(wrong)}" if wrong else None


if __name__ == "__main__":
    _folder, _rows, _days, _seed, *_sizes = sys.argv[1:]
    Workload(Path(_folder)).make(
        rows=int(_rows), days=int(_days), sizes=[int(s) for s in _sizes], seed=int(_seed)
    )
