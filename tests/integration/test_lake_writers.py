"""Eight writers on one table at once: nothing lost, nothing twice, and readers never see half a
batch.
"""

from __future__ import annotations

import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from freshet.arrow import PATCHES, POSITION, VERSION, PlacedEvent
from freshet.errors import StorageError, TransientError
from freshet.model import ModelChange, current_state, supersedes
from freshet.objects import DirectoryObjects, Objects
from freshet.receipt import Receipt
from freshet.tables import Sale
from freshet.testing import MemoryObjects, sale_row
from lake.lake import Lake
from lake.testing import LakeSite, batch, placed

WRITERS = 8
BATCHES = 4
PROCESSES = 4  # each pays for starting an interpreter
# A batch that loses a round waits milliseconds; this bounds a hang, not a slow machine.
WITHIN_S = 120

Batches = list[list[PlacedEvent]]


class Stream:
    """Changes at successive places, over few keys so that writers meet."""

    def __init__(self, seed: int) -> None:
        self._random, self._at = random.Random(seed), count()
        self.events: list[PlacedEvent] = []

    def upsert(self, key: str, version: int, *, day: int, quantity: int = 1) -> PlacedEvent:
        row = sale_row(key, sold_at=f"2010-12-{day:02d}T08:00:00Z", quantity=quantity)
        return self._placed(key, version, row)

    def delete(self, key: str, version: int) -> PlacedEvent:
        return self._placed(key, version, None)

    def _placed(self, key: str, version: int, row: dict[str, Any] | None) -> PlacedEvent:
        at = next(self._at)
        event = placed(Sale, at, version=version, key={"sale_id": key}, after=row)
        self.events.append(event)
        return event

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)


def same_partitions(stream: Stream) -> list[Batches]:
    """Each writer its own rows, all in one partition."""
    return [
        [[stream.upsert(f"w{w}-{b}-{n}", 1, day=1) for n in range(10)] for b in range(BATCHES)]
        for w in range(WRITERS)
    ]


def different_partitions(stream: Stream) -> list[Batches]:
    """Each writer its own partition."""
    return [
        [[stream.upsert(f"w{w}-{b}-{n}", 1, day=1 + w) for n in range(10)] for b in range(BATCHES)]
        for w in range(WRITERS)
    ]


def moving_keys(stream: Stream) -> list[Batches]:
    """The same twenty rows, every writer moving them between partitions."""
    versions = iter(random.Random(7).sample(range(1, 10_000), WRITERS * BATCHES * 6))
    return [
        [
            [
                stream.upsert(f"k-{stream.number(1, 20)}", next(versions), day=stream.number(1, 5))
                for _ in range(6)
            ]
            for _ in range(BATCHES)
        ]
        for _ in range(WRITERS)
    ]


def inserts_against_deletes(stream: Stream) -> list[Batches]:
    """Half the writers insert what the others delete, in no order."""
    versions = iter(random.Random(11).sample(range(1, 10_000), WRITERS * BATCHES * 6))
    return [
        [
            [
                stream.delete(f"k-{stream.number(1, 30)}", next(versions))
                if writer % 2
                else stream.upsert(f"k-{stream.number(1, 30)}", next(versions), day=1)
                for _ in range(6)
            ]
            for _ in range(BATCHES)
        ]
        for writer in range(WRITERS)
    ]


@pytest.fixture(params=["memory", "directory"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> LakeSite:
    memory = request.param == "memory"
    objects: Objects = MemoryObjects() if memory else DirectoryObjects(tmp_path / "objects")
    return LakeSite(objects, tmp_path / "catalog.db")


@pytest.mark.parametrize(
    "load", [same_partitions, different_partitions, moving_keys, inserts_against_deletes]
)
def test_eight_writers_lose_nothing_and_write_nothing_twice(
    load: Callable[[Stream], list[Batches]], site: LakeSite
) -> None:
    stream = Stream(seed=3)
    work = load(stream)
    start = threading.Barrier(WRITERS)

    def write(batches: Batches) -> list[Receipt]:
        lake = site.open(wait=time.sleep, file_rows_max=25)
        start.wait(WITHIN_S)
        receipts = [apply(lake, events) for events in batches]
        lake.close()
        return receipts

    with ThreadPoolExecutor(WRITERS) as threads:
        receipts = list(threads.map(write, work, timeout=WITHIN_S))

    check_against_model(site, stream.events)
    check_books(site, sum((one for own in receipts for one in own), Receipt()))


def apply(lake: Lake, events: list[PlacedEvent]) -> Receipt:
    """As the stream does: a transient fault brings the batch again."""
    deadline = time.monotonic() + WITHIN_S
    while True:
        try:
            return lake.apply("sales", batch(Sale, events), {}).receipt
        except TransientError:
            assert time.monotonic() < deadline


def check_against_model(site: LakeSite, events: list[PlacedEvent]) -> None:
    model = current_state(
        ModelChange(e.event.key["sale_id"], e.event.version, e.position, e.event.after)
        for e in events
    )
    lake = site.open()
    rows = lake.rows("sales").to_pylist()
    table = lake.current("sales").tombstones
    tombstones = {row["sale_id"]: row for row in table.read_all(table.view()).to_pylist()}
    lake.close()
    found = {row["sale_id"]: row for row in rows}
    assert len(found) == len(rows), "a key has two rows"
    for row in rows:
        version = row.pop(VERSION)
        row.pop(POSITION)
        row.pop(PATCHES)
        assert (version, row) == (model[row["sale_id"]].version, model[row["sale_id"]].after)
    assert found.keys() == {key for key, change in model.items() if change.after is not None}
    for key, change in model.items():
        if change.after is None:
            assert tombstones[key][VERSION] == change.version
    for key, row in tombstones.items():
        buried = ModelChange(key, row[VERSION], row[POSITION], None)
        assert not supersedes(buried, model[key])


def check_books(site: LakeSite, returned: Receipt) -> None:
    lake = site.open()
    metadata = lake.current("sales").rows.view().table.metadata
    rows = lake.rows("sales").num_rows
    lake.close()
    assert rows == returned.inserted - returned.deleted - returned.retracted
    summaries = [snapshot.summary for snapshot in metadata.snapshots]
    for name in ("inserted", "updated", "deleted", "retracted"):
        kept = sum(int(summary[f"freshet.{name}"] or 0) for summary in summaries if summary)
        assert kept == getattr(returned, name)


def test_readers_never_fail_and_never_see_half_a_batch(site: LakeSite) -> None:
    """Each batch gives every row of its writer one quantity, and moves them all to another day."""
    stream = Stream(seed=5)
    keys, rounds = range(5), 12
    work = [
        [
            [stream.upsert(f"w{w}-{key}", n, day=1 + (w + n + key) % 6, quantity=n) for key in keys]
            for n in range(1, rounds + 1)
        ]
        for w in range(3)
    ]
    done = threading.Event()

    def write(batches: Batches) -> None:
        lake = site.open(wait=time.sleep)
        for events in batches:
            apply(lake, events)
        lake.close()

    def read() -> int:
        lake, reads = site.open(), 0
        while not done.is_set() or not reads:
            check_whole_batches(lake.rows("sales").to_pylist(), len(keys))
            reads += 1
        lake.close()
        return reads

    with ThreadPoolExecutor(5) as threads:
        readers = [threads.submit(read) for _ in range(2)]
        try:
            list(threads.map(write, work, timeout=WITHIN_S))
        finally:
            done.set()
        assert all(reader.result(WITHIN_S) > 0 for reader in readers)
    check_against_model(site, stream.events)


def check_whole_batches(rows: list[dict[str, Any]], size: int) -> None:
    quantities: dict[str, list[int]] = {}
    for row in rows:
        quantities.setdefault(row["sale_id"].split("-")[0], []).append(row["quantity"])
    for own in quantities.values():
        assert len(own) == size
        assert len(set(own)) == 1


def write_in_process(folder: str, work: list[list[tuple[int, str, int, int | None]]]) -> list[Any]:
    """One process's writer: changes as plain values, as processes share nothing else."""
    root = Path(folder)
    site = LakeSite(DirectoryObjects(root / "objects"), root / "catalog.db")
    lake = site.open(wait=time.sleep, file_rows_max=25)
    receipts = [apply(lake, [event_of(*change) for change in changes]) for changes in work]
    lake.close()
    return [receipt.to_dict() for receipt in receipts]


def event_of(at: int, key: str, version: int, day: int | None) -> PlacedEvent:
    row = None if day is None else sale_row(key, sold_at=f"2010-12-{day:02d}T08:00:00Z")
    return placed(Sale, at, version=version, key={"sale_id": key}, after=row)


def plain_changes(seed: int) -> Iterator[tuple[int, str, int, int | None]]:
    rng = random.Random(seed)
    for at, version in enumerate(rng.sample(range(1, 10_000), WRITERS * BATCHES * 5)):
        yield at, f"k-{rng.randint(1, 25)}", version, rng.choice([None, 1, 2, 3])


def test_four_processes_that_start_together_on_an_empty_folder(tmp_path: Path) -> None:
    changes = list(plain_changes(seed=13))
    size = len(changes) // PROCESSES
    shares = [changes[at * size : (at + 1) * size] for at in range(PROCESSES)]
    work = [[share[at : at + 5] for at in range(0, size, 5)] for share in shares]
    spawn = multiprocessing.get_context("spawn")

    with ProcessPoolExecutor(PROCESSES, mp_context=spawn) as processes:
        folders = [str(tmp_path)] * PROCESSES
        results = list(processes.map(write_in_process, folders, work, timeout=WITHIN_S))

    site = LakeSite(DirectoryObjects(tmp_path / "objects"), tmp_path / "catalog.db")
    check_against_model(site, [event_of(*change) for change in changes])
    check_books(site, sum((Receipt(**one) for own in results for one in own), Receipt()))


def test_threads_that_share_one_lake_take_turns(site: LakeSite) -> None:
    stream = Stream(seed=17)
    work = moving_keys(stream)
    lake = site.open(wait=time.sleep)

    with ThreadPoolExecutor(WRITERS) as threads:
        batches = [events for own in work for events in own]
        receipts = list(threads.map(lambda events: apply(lake, events), batches, timeout=WITHIN_S))

    lake.close()
    check_against_model(site, stream.events)
    check_books(site, sum(receipts, Receipt()))


def test_a_locked_catalog_is_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.sqlite._WAIT_S", 0)
    site = LakeSite(MemoryObjects(), tmp_path / "catalog.db")
    lake, stream = site.open(), Stream(seed=1)
    lake.apply("sales", batch(Sale, [stream.upsert("k-1", 1, day=1)]), {})
    engine = create_engine(f"sqlite:///{tmp_path}/catalog.db")

    with engine.connect() as holder:
        holder.execute(text("BEGIN EXCLUSIVE"))
        with pytest.raises(StorageError, match="locked"):
            lake.apply("sales", batch(Sale, [stream.upsert("k-2", 1, day=1)]), {})
    engine.dispose()

    lake.apply("sales", batch(Sale, stream.events), {})
    check_against_model(site, stream.events)
