"""One history, three formats, one table: whatever a source did, and however its connector is set
up, the lake holds in the end what the source holds.

The source plays random statements; each format writes them down with settings drawn at random; the
records then reach the consumer as Kinesis may deliver them, shuffled, doubled and cut anywhere
(law L2).
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import islice
from pathlib import Path
from random import Random
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field
from tests.encoders import debezium, dms, native
from tests.encoders.history import COLUMNS, KEY, Row, Source, SourceChange, item, value_of

from consumer.app import build
from freshet.contract import (
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    PartitionField,
    Registry,
    Text,
    Timestamp,
)
from freshet.mapping import load_streams
from freshet.testing import MemoryObjects
from lake.lake import Lake
from lake.testing import LakeSite

HISTORIES = 30
STREAMS_FOLDER = Path(__file__).parents[1] / "encoders" / "streams"
ARRIVED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
FIRST_SEQUENCE_NUMBER = 49590338271490256608559692538361571095921575989136588898


class Item(
    Contract, table="items", key=("item_id",), partition=(PartitionField("bucket", "item_id", 2),)
):
    """The source's table as our contract: `price` is `cost` here, and there is a currency."""

    item_id: Annotated[str, Text(64, 1)] = Field(description="Key")
    title: Annotated[str, Text(200)] = Field(description="Never null")
    body: Annotated[str, Text(4000)] | None = Field(None, description="Long text")
    cost: Annotated[Decimal, Money(18, 4)] | None = Field(None, description="Exact")
    currency: Annotated[str, Text(3, 3)] = Field(description="Constant")
    stock: Annotated[int, Integer(64)] | None = Field(None, description="Whole number")
    listed: Annotated[bool, Flag()] | None = Field(None, description="Flag")
    listed_on: Annotated[date, Day()] | None = Field(None, description="Day")
    changed_at: Annotated[datetime, Timestamp()] | None = Field(None, description="Instant")


TABLES = Registry((Item,))
STREAMS = load_streams(STREAMS_FOLDER, TABLES)
OUR_NAMES = {"price": "cost"}
CONSTANTS = {"currency": "GBP"}

KEYS = ("a", "b", "ç☃", "d e", "f")
SET_COLUMNS = st.sets(st.sampled_from([name for name in COLUMNS if name != KEY]), min_size=1)
STATEMENTS = st.tuples(
    st.sampled_from(["insert", "update", "update", "update", "delete", "rekey", "commit"]),
    st.integers(0, 4),
    st.integers(0, 40),
    SET_COLUMNS,
)


@st.composite
def sources(draw: st.DrawFn) -> Source:
    """A database with rows that ran some statements, and often was truncated among them."""
    source = Source()
    for at, key in enumerate(KEYS[: draw(st.integers(1, 4))]):
        source.insert(item(key, at + draw(st.integers(0, 9))))
    statements: list[Any] = draw(st.lists(STATEMENTS, min_size=6, max_size=14))
    truncated_at = draw(st.integers(0, 4 * len(statements)))
    for at, (name, which, content, columns) in enumerate(statements):
        run(source, name, which, content, columns)
        if at == truncated_at:
            source.truncate()
    return source


def run(source: Source, name: str, which: int, content: int, columns: set[str]) -> None:
    """One statement on a row that is there, or on a key that is free: none goes to waste."""
    there, free = sorted(source.rows), [key for key in KEYS if key not in source.rows]
    if name == "commit":
        source.commit()
    elif free and (name == "insert" or not there):
        source.insert(item(free[which % len(free)], content))
    elif name == "delete":
        source.delete(there[which % len(there)])
    elif name == "rekey" and free:
        source.rekey(there[which % len(there)], free[content % len(free)])
    else:
        values = {column: value_of(column, content) for column in sorted(columns)}
        source.update(there[which % len(there)], values)


NATIVE = st.builds(
    native.NativeChoice,
    packing=st.sampled_from(["plain", "packed", "zstd"]),
    events_per_record=st.integers(1, 4),
    patches=st.booleans(),
    names=st.just(OUR_NAMES),
    constants=st.just(CONSTANTS),
)


def declared(choice: debezium.DebeziumChoice) -> debezium.DebeziumChoice:
    """The choice, under the name of the declared stream that fits how it writes numbers."""
    return replace(choice, server="shop" if choice.decimals == "precise" else "digits")


DEBEZIUM = st.builds(
    debezium.DebeziumChoice,
    wrapper=st.booleans(),
    flattened=st.booleans(),
    tombstones=st.booleans(),
    full_identity=st.booleans(),
    toast=st.booleans(),
    decimals=st.sampled_from(["precise", "string", "double"]),
    times=st.sampled_from(["adaptive", "connect", "isostring"]),
    heartbeats=st.booleans(),
    transactions=st.booleans(),
    snapshot=st.integers(0, 4),
).map(declared)
DMS = st.builds(
    dms.DmsChoice,
    loaded=st.integers(0, 4),
    before_image=st.sampled_from(["pk-only", "all"]),
    nulls=st.booleans(),
    controls=st.booleans(),
    pretty=st.booleans(),
    full_deletes=st.booleans(),
)
PARTIAL = st.builds(
    dms.DmsChoice,
    loaded=st.integers(0, 4),
    before_image=st.sampled_from(["pk-only", "all"]),
    before_member=st.just("BI"),
    partial=st.just(True),
    schema=st.just("partial"),
)


@dataclass(frozen=True)
class Delivery:
    """How Kinesis delivers: a seed for the order and repeats, the sizes of batches, and whether it
    keeps the order of the source after all.
    """

    seed: int
    sizes: tuple[int, ...]
    in_order: bool

    def batches(self, records: list[bytes]) -> Iterator[dict[str, Any]]:
        """Lambda's events, some of them twice."""
        random = Random(self.seed)
        sent = [*records, *random.choices(records, k=min(2, len(records)))]
        if not self.in_order:
            random.shuffle(sent)
        numbered = iter([record(data, FIRST_SEQUENCE_NUMBER + at) for at, data in enumerate(sent)])
        cut = [list(islice(numbered, size)) for size in (*self.sizes, len(sent))]
        batches = [{"Records": part} for part in cut if part]
        yield from batches
        yield from random.sample(batches, k=1)


DELIVERIES = st.builds(
    Delivery,
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 8), max_size=2).map(tuple),
    in_order=st.sampled_from([False, False, True]),
)


def record(data: bytes, number: int) -> dict[str, Any]:
    """One Kinesis record as Lambda hands it over."""
    return {
        "kinesis": {
            "sequenceNumber": str(number),
            "data": base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": ARRIVED.timestamp(),
        },
        "eventID": f"shardId-000000000000:{number}",
    }


def wanted(source: Source) -> dict[str, Row]:
    """What the source holds, in our names."""
    return {
        key: {OUR_NAMES.get(name, name): value for name, value in row.items()} | CONSTANTS
        for key, row in source.rows.items()
    }


def found(lake: Lake) -> dict[str, Row]:
    """What the lake holds; a key that is there twice fails the test."""
    rows = lake.rows("items").to_pylist()
    assert len({row[KEY] for row in rows}) == len(rows)
    return {
        row[KEY]: {name: value for name, value in row.items() if not name.startswith("_")}
        for row in rows
    }


@dataclass
class Site:
    """Makes a lake for each run, in one catalog."""

    catalog: Path
    runs: int = 0

    def land(self, records: list[bytes], delivery: Delivery) -> dict[str, Row]:
        """The rows after everything was delivered to a consumer with an empty lake."""
        self.runs += 1
        database = f"run{self.runs}"
        site = LakeSite(MemoryObjects(), self.catalog, tables=TABLES, database=database)
        lake = site.open(io_threads=1)
        handle = build(lake, tables=TABLES, now=lambda: ARRIVED, streams=STREAMS)
        for event in delivery.batches(records):
            assert handle(event, None) == {"batchItemFailures": []}
        rejected = [part.to_pylist() for part in lake.log("quarantine")]
        assert not rejected, rejected
        rows = found(lake)
        lake.close()
        return rows


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("formats") / "catalog.db")


@settings(
    max_examples=HISTORIES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    source=sources(),
    as_native=NATIVE,
    as_debezium=DEBEZIUM,
    as_dms=DMS | PARTIAL,
    delivery=DELIVERIES,
)
def test_any_history_in_three_formats_is_one_and_the_same_table(
    source: Source,
    as_native: native.NativeChoice,
    as_debezium: debezium.DebeziumChoice,
    as_dms: dms.DmsChoice,
    delivery: Delivery,
    site: Site,
) -> None:
    state = wanted(source)
    encodings = {
        "native": native.encode(source.changes, as_native),
        "debezium": debezium.encode(source.changes, as_debezium),
        "dms": dms.encode(source.changes, as_dms),
    }
    for name, records in encodings.items():
        if records:
            assert site.land(records, delivery) == state, name


def test_the_encoders_write_every_shape_they_are_there_for() -> None:
    """The property would prove little of shapes that no example holds."""
    source = Source()
    for at, key in enumerate("abc"):
        source.insert(item(key, at))
    source.commit()
    source.update("a", {"stock": 5})
    source.rekey("b", "d")
    source.delete("c")
    source.truncate()
    shapes = Counter(shape for change in (source.changes,) for shape in shapes_of(change))
    for shape in ("r", "c", "u", "d", "t", "tombstone", "placeholder", "load", "before-image"):
        assert shapes[shape], shape


def shapes_of(changes: list[SourceChange]) -> Iterator[str]:
    choice = debezium.DebeziumChoice(wrapper=False, toast=True, snapshot=1)
    for data in debezium.encode(changes, choice):
        yield "tombstone" if not data else data.partition(b'"op":"')[2][:1].decode()
        if debezium.PLACEHOLDER.encode() in data:
            yield "placeholder"
    for data in dms.encode(changes, dms.DmsChoice(loaded=1)):
        yield from (shape for shape in ("load", "before-image") if f'"{shape}"'.encode() in data)
