"""Readers that know nothing of Freshet must answer alike, for every table and every moment that it
remembers, and always whole, whatever is done to the tables meanwhile.
"""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, Self

import pytest
from pyiceberg.table import StaticTable
from tests.readers import READERS, Place, Readers, iceberg, readers, scan, shown

from freshet.contract import Contract
from freshet.objects import DirectoryObjects
from freshet.tables import TABLES, ExchangeRate, Product, Sale
from freshet.testing import product_row, rate_row, sale_row
from lake.maintain import Maintenance
from lake.rollback import Rollback
from lake.table import View
from lake.testing import LakeSite, batch, placed
from lake.travel import history
from lake.vacuum import GRACE_MIN


@dataclass
class World:
    """A lake in a folder, which any reader may open, and what is done to it."""

    folder: Path
    random: random.Random
    at: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.site = LakeSite(
            DirectoryObjects(self.folder / "lake"),
            self.folder / "catalog.db",
            root=f"file://{self.folder / 'lake'}",
        )
        self.lake = self.site.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.lake.close()

    def land(self, contract: type[Contract], *changes: dict[str, Any]) -> None:
        events = [placed(contract, next(self.at), **change) for change in changes]
        self.lake.apply(contract.table, batch(contract, events), {})

    def pointers(self) -> dict[str, str]:
        """Each table's metadata file, as the catalog's own database has it."""
        with sqlite3.connect(self.folder / "catalog.db") as catalog:
            rows = catalog.execute("SELECT table_name, metadata_location FROM iceberg_tables")
            return dict(rows.fetchall())


@pytest.fixture
def read() -> Iterator[Readers]:
    with readers() as read:
        yield read


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, random.Random(20101201)) as world:
        yield world


def sale(key: int, world: World) -> dict[str, Any]:
    day, price = world.random.randint(1, 9), world.random.randint(100, 99999)
    return sale_row(
        f"S-{key}",
        quantity=world.random.randint(1, 99),
        sold_at=f"2010-12-{day:02d}T08:00:00Z",
        unit_price=f"{Decimal(price) / 10000:.4f}",
        country=world.random.choice(["France", None, "Ünïted"]),
    )


def chaos(world: World, rounds: int) -> None:
    """Changes of every kind to several tables, out of order."""
    for version in world.random.sample(range(1, rounds + 1), rounds):
        keys = world.random.sample(range(30), 6)
        world.land(
            Sale,
            *({"after": sale(key, world), "version": version} for key in keys[:3]),
            {"key": {"sale_id": f"S-{keys[3]}"}, "version": version},
            {"key": {"sale_id": f"S-{keys[4]}"}, "patch": {"quantity": 7}, "version": version},
        )
        product = product_row(str(keys[0]), price=f"{version}.5000")
        world.land(Product, {"after": product, "version": version})
        rate = rate_row("USD", f"2010-{1 + version % 9:02d}-03", rate=f"1.{version:06d}")
        world.land(ExchangeRate, {"after": rate, "version": version})


def test_every_reader_sees_the_same_in_every_table_at_every_moment(
    world: World, read: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    chaos(world, 12)
    sales = world.lake.current("sales").rows
    first = history(sales.view().table)[2].snapshot_id
    Rollback(world.lake, Sale, now=lambda: datetime.now(UTC), by="test").run(first)
    monkeypatch.setattr("lake.compaction.IDLE", timedelta(seconds=-9))
    Maintenance(world.lake, now=lambda: datetime.now(UTC)).run(TABLES)

    compared = 0
    for name, location in world.pointers().items():
        contract = TABLES[name.removesuffix("_tombstones")]
        place = Place(location)
        current = world.lake.current(contract.table)
        keyed = current.tombstones if name.endswith("_tombstones") else current.rows
        ours = shown(keyed.read_all(keyed.view()), contract.key)
        moments = [None, *(one.snapshot_id for one in history(keyed.view().table)[::4])]
        for moment in moments:
            seen = read(place, moment, contract.key)
            expected = ours if moment is None else seen["pyiceberg"]
            assert seen == dict.fromkeys(READERS, expected), f"{name} at {moment}"
            compared += 1
    assert compared >= 15


# A reader that loops while everything happens

KEYS = 24
EACH = 100


@dataclass
class Torn:
    """What a reader saw that it must not."""

    seen: list[str] = field(default_factory=list)
    reads: int = 0


@dataclass(frozen=True)
class Accounts:
    """Rows of a table, by number, between which amounts are moved: their sum never changes."""

    contract: type[Contract]
    column: str
    row: Callable[[int, int], dict[str, Any]]
    number: Callable[[dict[str, Any]], int]


# Each spreads over partitions, of whatever kind.
ACCOUNTS = (
    Accounts(
        Sale,
        "quantity",
        lambda n, amount: sale_row(
            f"S-{n}", quantity=amount, sold_at=f"2010-12-{1 + n % 4:02d}T08:00:00Z"
        ),
        lambda row: int(row["sale_id"][2:]),
    ),
    Accounts(
        Product,
        "price",
        lambda n, amount: product_row(str(n), price=f"{amount}.0000"),
        lambda row: int(row["product_id"]),
    ),
    Accounts(
        ExchangeRate,
        "rate",
        lambda n, amount: rate_row(
            "USD", f"2010-{1 + n % 4:02d}-{1 + n // 4:02d}", rate=str(amount)
        ),
        lambda row: row["rate_date"].month - 1 + 4 * (row["rate_date"].day - 1),
    ),
)
AMOUNTS = {one.contract.table: one.column for one in ACCOUNTS}


def open_accounts(world: World) -> None:
    """Of every table all rows, in files so small that there is something to merge."""
    small = world.site.open(file_rows_max=2)
    for one in ACCOUNTS:
        rows = [one.row(number, EACH) for number in range(KEYS)]
        events = [placed(one.contract, next(world.at), version=1, after=row) for row in rows]
        small.apply(one.contract.table, batch(one.contract, events), {})
    small.close()


def transfers(world: World, commits: int) -> None:
    """Each moves an amount from one row of a table to another in one batch; now and then a table
    is rolled back.
    """
    held = [dict.fromkeys(range(KEYS), EACH) for _ in ACCOUNTS]
    for version in range(2, commits + 2):
        at = version % len(ACCOUNTS)
        one, amounts = ACCOUNTS[at], held[at]
        giver, taker = world.random.sample(range(KEYS), 2)
        amount = world.random.randint(1, 9)
        amounts[giver], amounts[taker] = amounts[giver] - amount, amounts[taker] + amount
        both = [
            {"after": one.row(number, amounts[number]), "version": version}
            for number in (giver, taker)
        ]
        world.land(one.contract, *both)
        if version % 40 == 0:
            held[at] = rolled_back(world, one, version)


def rolled_back(world: World, one: Accounts, version: int) -> dict[int, int]:
    """The amounts after a rollback by two commits."""
    table = one.contract.table
    back = history(world.lake.current(table).rows.view().table)[-3].snapshot_id
    Rollback(world.lake, one.contract, now=lambda: datetime.now(UTC), by="test").run(back)
    rows = world.lake.rows(table).to_pylist()
    # What comes next must be newer than the rollback took.
    assert max(row["_version"] for row in rows) <= version + 1
    return {one.number(row): int(row[one.column]) for row in rows}


@dataclass
class FastClock:
    """A clock on which an hour takes some seconds: maintenance sees days go by."""

    hour_s: float

    def __post_init__(self) -> None:
        self.began, self.origin = time.monotonic(), datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.origin + timedelta(hours=1) * ((time.monotonic() - self.began) / self.hour_s)


def maintaining(site: LakeSite, ended: threading.Event, hour_s: float) -> dict[str, int]:
    """Maintain over and over, as a process of its own would; what it did."""
    lake, done = site.open(), {"merged": 0, "deleted": 0, "refused": 0, "runs": 0}
    maintenance = Maintenance(lake, now=FastClock(hour_s), grace=GRACE_MIN)
    while not ended.wait(0.05):
        for one in maintenance.run([one.contract for one in ACCOUNTS]):
            done["merged"] += one.tidied.merged
            done["deleted"] += one.vacuumed.deleted
            done["refused"] += one.outcome == "refused"
        done["runs"] += 1
    lake.close()
    return done


def looping(world: World, ended: threading.Event) -> Torn:
    """Count and sum all tables without a pause through pyiceberg and DuckDB, each from the
    catalog's pointer.
    """
    torn = Torn()
    with iceberg() as connection:
        while not ended.is_set():
            for name, location in world.pointers().items():
                # Nothing is ever deleted: tables of tombstones stay empty.
                column, whole = AMOUNTS.get(name, "_version"), KEYS * (name in AMOUNTS)
                total = f"count(*), coalesce(sum({column}), 0)"
                duck = connection.sql(scan(location, columns=total)).fetchone()
                rows = StaticTable.from_metadata(location).scan(selected_fields=(column,))
                amounts = rows.to_arrow().column(column).to_pylist()
                for by, seen in (("duckdb", duck), ("pyiceberg", (len(amounts), sum(amounts)))):
                    if seen != (whole, whole * EACH):
                        torn.seen.append(f"{by}: {seen} in {location}")
            torn.reads += 1
    return torn


def run_beside(world: World, commits: int, hour_s: float) -> tuple[Torn, dict[str, int]]:
    """Write while a reader and maintenance run; what they saw and did. Their faults are ours."""
    open_accounts(world)
    ended = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(looping, world, ended)
        keeper = pool.submit(maintaining, world.site, ended, hour_s)
        try:
            transfers(world, commits)
        finally:
            ended.set()
        return reader.result(), keeper.result()


def test_a_looping_reader_sees_whole_states_beside_commits_maintenance_and_rollbacks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.compaction.IDLE", timedelta(seconds=-9))

    # An hour of eight seconds: no commit takes as long, and nothing is deleted in so short a time.
    torn, done = run_beside(world, 90, hour_s=8.0)

    assert torn.seen == []
    assert torn.reads > 2
    assert (done["refused"], done["runs"] > 2, done["merged"] > 0) == (0, True, True)


@pytest.mark.long
def test_a_looping_reader_sees_whole_states_for_a_thousand_commits_while_files_go(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.compaction.IDLE", timedelta(seconds=-9))

    torn, done = run_beside(world, 1000, hour_s=8.0)

    assert torn.seen == []
    assert torn.reads > 50
    assert (done["refused"], done["merged"] > 0) == (0, True)
    assert done["deleted"] > 100


# A thousand small batches


@dataclass
class SmallBatches:
    """Batches of five changes each, over 600 sales of nine days, landed one after the other."""

    world: World
    commit_s: list[float] = field(default_factory=list)

    def land(self) -> None:
        version = len(self.commit_s) + 1
        *changed, deleted = self.world.random.sample(range(600), 5)
        events = [
            placed(Sale, next(self.world.at), after=sale(key, self.world), version=version)
            for key in changed
        ]
        key = {"sale_id": f"S-{deleted}"}
        events.append(placed(Sale, next(self.world.at), key=key, version=version))
        changes = batch(Sale, events)
        # CPU, not the clock on the wall: what others do on this machine is no concern.
        began = time.process_time()
        self.world.lake.apply("sales", changes, {})
        self.commit_s.append(time.process_time() - began)

    def tables(self) -> Iterator[View]:
        current = self.world.lake.current("sales")
        yield from (keyed.view() for keyed in (current.rows, current.tombstones))

    def files_max(self) -> int:
        """Live files of the partition that has most."""
        folders = [file.file_path.rpartition("/")[0] for v in self.tables() for file in v.files]
        return max(Counter(folders).values())

    def metadata_bytes(self) -> int:
        return max(needed_bytes(view.table) for view in self.tables())


def needed_bytes(table: Any) -> int:
    """Bytes of the metadata that a reader of the current state, or a commit, needs."""
    snapshot = table.current_snapshot()
    manifests = snapshot.manifests(table.io)
    paths = [table.metadata_location, snapshot.manifest_list]
    paths += [one.manifest_path for one in manifests]
    return sum(len(table.io.new_input(path)) for path in paths)


def test_small_batches_leave_few_files_and_little_metadata(world: World) -> None:
    batches = SmallBatches(world)
    for _ in range(120):
        batches.land()

    assert batches.files_max() <= 2
    assert batches.metadata_bytes() < 256 * 1024


@pytest.mark.long
def test_a_thousand_small_batches_cost_the_last_what_the_first_cost(
    world: World, tmp_path: Path
) -> None:
    """The last hundred of a lake take turns with the first hundred of another: a machine that is
    slower for a while is so for both.
    """
    old = SmallBatches(world)
    for _ in range(900):
        old.land()
    with World(tmp_path / "new", random.Random(20101201)) as empty:
        new = SmallBatches(empty)
        for _ in range(100):
            old.land()
            new.land()

    first, last = median(new.commit_s), median(old.commit_s[-100:])
    print(f"\ncommit CPU, median: first 100 {first:.4f} s, last 100 {last:.4f} s")
    print(f"metadata {old.metadata_bytes():,} bytes, files {old.files_max()}")
    assert old.files_max() <= 2
    assert old.metadata_bytes() < 2 * 1024 * 1024
    assert last <= 1.3 * first
