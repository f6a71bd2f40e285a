"""Vacuum over the real lake: what nothing needs goes, what anyone may read stays (law L6)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from freshet.errors import StorageError
from freshet.objects import DirectoryObjects, ObjectMissingError, Objects, StoredObject
from freshet.tables import TABLES, Sale
from freshet.testing import MemoryObjects, StoppedClock, sale_row
from lake.lake import Lake
from lake.parquet import read_rows
from lake.retention import Retention
from lake.snapshot import ManifestReader, commit_swap
from lake.steps import Step
from lake.testing import LakeSite, batch, placed
from lake.vacuum import COMMIT_MAX, GRACE, GRACE_MIN, Outcome, Vacuumed
from lake.verify import verify_table

PRODUCT = TABLES["products"]
MARKS = "maintenance/freshet/sales.json"
# Snapshots a table keeps here: enough to read an older one, few enough to expire many.
KEPT = 6
# A run over a small table makes fewer calls.
CALLS_MAX = 200
STEPS = tuple(step for step in Step if step not in (Step.QUARANTINED, Step.LOGGED))


class Crash(BaseException):
    """The process ends here."""


@dataclass
class WatchedObjects:
    """A store that calls `on_call` before each call."""

    store: Objects
    on_call: Callable[[str, str], None]

    def get(self, key: str) -> StoredObject:
        self.on_call("get", key)
        return self.store.get(key)

    def put(self, key: str, data: bytes) -> str:
        self.on_call("put", key)
        return self.store.put(key, data)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        self.on_call("put_if", key)
        return self.store.put_if(key, data, etag=etag)

    def delete(self, key: str) -> None:
        self.on_call("delete", key)
        self.store.delete(key)

    def list(self, prefix: str) -> Iterator[str]:
        self.on_call("list", prefix)
        return self.store.list(prefix)


@dataclass
class World:
    """A lake, its writer, and a clock that only tests move."""

    site: LakeSite
    clock: StoppedClock = field(default_factory=StoppedClock)
    at: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.writer = self.site.open()

    def upsert(self, key: str, *, day: int = 1, writer: Lake | None = None) -> None:
        at = next(self.at)
        row = sale_row(key, sold_at=f"2010-12-{day:02d}T08:00:00Z", quantity=1 + at % 1000)
        event = placed(Sale, at, version=at + 1, after=row)
        (writer or self.writer).apply("sales", batch(Sale, [event]), {})

    def delete(self, key: str) -> None:
        at = next(self.at)
        event = placed(Sale, at, version=at + 1, key={"sale_id": key})
        self.writer.apply("sales", batch(Sale, [event]), {})

    def vacuum(
        self,
        *,
        objects: Any = None,
        grace: timedelta = GRACE,
        left_s: Callable[[], float] = lambda: 900.0,
        dry_run: bool = False,
    ) -> list[Vacuumed]:
        """A run of a process of its own over `sales`: rows, then tombstones."""
        lake = self.site.open(objects=objects)
        try:
            vacuum = lake.vacuum(now=self.clock, grace=grace)
            return vacuum.run([Sale], left_s=left_s, dry_run=dry_run)
        finally:
            lake.close()

    def settle(self, grace: timedelta = GRACE) -> None:
        """Two looks, and the grace goes by: what is unreferenced now is due."""
        for pause in (COMMIT_MAX, grace):
            assert {one.outcome for one in self.vacuum()} == {Outcome.DONE}
            self.clock.advance(pause.total_seconds())

    def files(self, table: str = "sales") -> set[str]:
        return set(self.site.objects.list(f"freshet/{table}/"))

    def table(self, name: str = "sales") -> Table:
        return self.site.open().catalog.load_table(("freshet", name))


def read_snapshots(world: World) -> dict[int, list[dict[str, Any]]]:
    """The rows of every retained snapshot, read anew from the store, as any engine would."""
    lake = world.site.open()
    table = lake.catalog.load_table(("freshet", "sales"))
    spec = lake.current("sales").rows.spec
    found = {}
    for snapshot in table.metadata.snapshots:
        rows = []
        for manifest in snapshot.manifests(lake.files):
            lake.files.read(manifest.manifest_path)  # pyiceberg may have kept it
            for entry in manifest.fetch_manifest_entry(lake.files):
                data = lake.files.read(entry.data_file.file_path)
                rows += read_rows(data, spec.schema.names, spec.schema).to_pylist()
        lake.files.read(snapshot.manifest_list)
        found[snapshot.snapshot_id] = sorted(rows, key=lambda row: str(row["sale_id"]))
    for logged in table.metadata.metadata_log:
        lake.files.read(logged.metadata_file)
    lake.close()
    return found


@pytest.fixture(autouse=True)
def few_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lake.snapshot.RETENTION", Retention(KEPT, hours=0, days=0))


@pytest.fixture(params=["memory", "directory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    memory = request.param == "memory"
    objects: Objects = MemoryObjects() if memory else DirectoryObjects(tmp_path / "objects")
    world = World(LakeSite(objects, tmp_path / "catalog.db"))
    yield world
    world.writer.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[World]:
    """A world in memory with a few replaced files, and a dead commit's."""
    world = World(LakeSite(MemoryObjects(), tmp_path / "catalog.db"))
    for number in range(26):
        world.upsert(f"k-{number % 3}", day=1 + number % 2)
    world.delete("k-0")
    yield world
    world.writer.close()


def test_after_the_grace_every_retained_snapshot_is_whole_and_the_rest_is_gone(
    world: World,
) -> None:
    for number in range(40):
        world.upsert(f"k-{number % 7}", day=1 + number % 3)
        if number % 5 == 4:
            world.delete(f"k-{number % 7}")
    before, there = read_snapshots(world), world.files()
    world.settle()
    world.clock.advance(-1)
    early = world.vacuum()
    assert (world.files(), sum(one.deleted for one in early)) == (there, 0)

    world.clock.advance(1)
    rows, tombstones = world.vacuum()

    assert (rows.outcome, rows.waiting, rows.left) == (Outcome.DONE, 0, 0)
    assert rows.deleted == len(there - world.files()) > 20
    assert len(world.files()) == rows.referenced == rows.listed - rows.deleted
    assert len(before) == KEPT
    assert read_snapshots(world) == before
    assert tombstones.outcome is Outcome.DONE
    assert all(check.holds for check in laws(world))
    again = world.vacuum()
    assert [(one.waiting, one.deleted) for one in again] == [(0, 0), (0, 0)]


def laws(world: World) -> list[Any]:
    """What the lake itself says, but for the log, which these tests do not write."""
    lake = world.site.open()
    return [check for check in verify_table(lake, Sale) if "replayed" not in check.law]


def test_an_old_file_replaced_a_moment_ago_stays_for_whoever_reads_it(small: World) -> None:
    """Its age says nothing: a reader of the snapshot before may have opened it just now."""
    small.settle()
    small.vacuum()
    lake = small.site.open()
    reading = lake.current("sales").rows
    view = reading.view()
    expected = reading.read_all(view).to_pylist()

    for number in range(KEPT + 1):  # what it reads is replaced, and its snapshot expires
        small.upsert(f"k-{number % 3}", day=1 + number % 2)
    small.settle(grace=GRACE - COMMIT_MAX)
    small.vacuum()

    fresh = small.site.open().current("sales").rows
    assert view.snapshot_id not in read_snapshots(small)
    assert fresh.read_all(view).to_pylist() == expected
    small.clock.advance(COMMIT_MAX.total_seconds())
    small.vacuum()
    with pytest.raises(ObjectMissingError):
        small.site.open().current("sales").rows.read_all(view)


def test_files_of_a_dead_commit_go(small: World) -> None:
    def crash(step: Step) -> None:
        if step is Step.FILES_WRITTEN:
            raise Crash

    dying = small.site.open(on_step=crash)
    there = small.files()
    with pytest.raises(Crash):
        small.upsert("k-1", writer=dying)
    stray = small.files() - there
    before = read_snapshots(small)

    small.settle()
    small.vacuum()

    assert stray
    assert not stray & small.files()
    assert read_snapshots(small) == before


@pytest.mark.parametrize("grace", [GRACE_MIN, GRACE])
def test_a_commit_under_way_loses_nothing_however_often_one_looks(
    small: World, grace: timedelta
) -> None:
    looks = []

    def look(step: Step) -> None:
        looks.append(step)
        small.clock.advance(COMMIT_MAX.total_seconds() / (len(STEPS) + 1))
        small.vacuum(grace=grace)

    writer = small.site.open(on_step=look)
    small.upsert("k-1", writer=writer)
    small.clock.advance(2 * grace.total_seconds())
    small.vacuum(grace=grace)

    assert len(looks) > 3
    assert len(read_snapshots(small)) == KEPT
    assert all(check.holds for check in laws(small))


def test_a_commit_between_any_two_calls_of_a_run_loses_nothing(tmp_path: Path) -> None:
    world = World(LakeSite(MemoryObjects(), tmp_path / "catalog.db"))
    for nth in (*range(1, 14), *range(14, CALLS_MAX, 11)):
        for number in range(KEPT + 2):
            world.upsert(f"k-{number % 2}")
        world.settle()
        calls = commits_before_call(world, nth)
        assert len(read_snapshots(world)) == KEPT
        if calls < nth:
            break

    assert 30 < nth < CALLS_MAX - 11
    assert all(check.holds for check in laws(world))
    world.writer.close()


def test_what_is_committed_while_one_lists_is_not_taken_for_unneeded(tmp_path: Path) -> None:
    world = World(LakeSite(MemoryObjects(), tmp_path / "catalog.db"))
    world.upsert("k-1", day=1)

    def commit(verb: str, key: str) -> None:
        if (verb, key) == ("list", "freshet/sales/data/"):
            world.upsert("k-2", day=2)

    rows = world.vacuum(objects=WatchedObjects(world.site.objects, commit))[0]

    assert len(read_snapshots(world)) == 2
    assert (rows.outcome, rows.waiting) == (Outcome.DONE, 0)


def commits_before_call(world: World, nth: int) -> int:
    """Run once; three commits come before the nth call. How many calls there were."""
    calls, lock = count(1), threading.Lock()
    seen = []

    def intrude(_verb: str, _key: str) -> None:
        with lock:
            seen.append(next(calls))
            if seen[-1] == nth:
                for number in range(3):
                    world.upsert(f"k-{number % 2}")

    done = world.vacuum(objects=WatchedObjects(world.site.objects, intrude))
    assert Outcome.REFUSED not in {one.outcome for one in done}, done
    return len(seen)


def test_a_run_killed_at_any_call_does_no_harm_and_the_next_one_ends_it(small: World) -> None:
    before = read_snapshots(small)
    small.settle()
    killed, lock = 0, threading.Lock()

    def kill_at(nth: int) -> Callable[[str, str], None]:
        calls = count(1)

        def on_call(verb: str, key: str) -> None:
            with lock:
                if next(calls) == nth:
                    raise Crash

        return on_call

    for nth in (*range(1, 40), *range(40, 400, 23)):
        try:
            small.vacuum(objects=WatchedObjects(small.site.objects, kill_at(nth)))
        except Crash:
            killed += 1
        assert read_snapshots(small) == before

    small.clock.advance(GRACE.total_seconds())
    rows, tombstones = small.vacuum()
    assert killed > 15
    assert len(small.files()) == rows.referenced
    assert len(small.files("sales_tombstones")) == tombstones.referenced


def test_of_two_runs_at_once_one_gives_way(small: World) -> None:
    small.settle()
    inner: list[Vacuumed] = []

    def overtake(verb: str, key: str) -> None:
        if (verb, key) == ("put_if", MARKS) and not inner:
            inner.append(small.vacuum()[0])

    small.upsert("k-1")  # something new to mark
    outer = small.vacuum(objects=WatchedObjects(small.site.objects, overtake))[0]

    assert (inner[0].outcome, outer.outcome) == (Outcome.DONE, Outcome.GAVE_WAY)
    assert inner[0].deleted > 0
    assert outer.deleted == 0


def test_a_dry_run_tells_what_is_due_and_touches_nothing(small: World) -> None:
    small.settle()
    before = stored(small)

    dry = small.vacuum(dry_run=True)

    assert stored(small) == before
    done = small.vacuum()
    assert [one.left for one in dry] == [one.deleted for one in done]
    assert dry[0].left > 0


def stored(world: World) -> dict[str, bytes]:
    objects = world.site.objects
    return {key: objects.get(key).data for key in objects.list("")}


def test_a_run_out_of_time_stops_and_the_next_ones_end_it(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.vacuum._DELETED_AT_ONCE", 3)
    before = read_snapshots(small)
    small.settle()
    results = []
    for budget in count(2, 4):
        left = iter(range(budget, 0, -1))
        rows = small.vacuum(left_s=lambda left=left: next(left, 0))[0]  # type: ignore[misc]
        results.append(rows)
        assert read_snapshots(small) == before
        if rows.outcome is Outcome.DONE:
            break

    assert results[0].outcome is Outcome.UNFINISHED
    assert any(one.deleted and one.left for one in results)
    assert len(small.files()) == results[-1].referenced


def test_a_table_with_much_to_do_leaves_time_to_those_after_it(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.vacuum._DELETED_AT_ONCE", 1)
    small.site.objects.put("freshet/sales_tombstones/data/stray.parquet", b"of a dead commit")
    small.settle()
    left = [40.0]

    def spend(verb: str, _key: str) -> None:
        left[0] -= verb == "delete"

    slow = WatchedObjects(small.site.objects, spend)
    rows, tombstones = small.vacuum(objects=slow, left_s=lambda: left[0])

    assert (rows.outcome, rows.deleted) == (Outcome.UNFINISHED, 20)
    assert (tombstones.outcome, tombstones.deleted) == (Outcome.DONE, 1)


def test_a_lake_nobody_wrote_to_is_left_as_it_is(tmp_path: Path) -> None:
    world = World(LakeSite(MemoryObjects(), tmp_path / "catalog.db"))

    done = world.vacuum()

    assert [one.outcome for one in done] == [Outcome.ABSENT, Outcome.ABSENT]
    assert not stored(world)
    assert not world.writer.catalog.list_tables("freshet")


def test_what_lies_beside_icebergs_folders_or_in_another_table_is_not_touched(
    small: World,
) -> None:
    foreign = {
        "freshet/sales/notes.txt",
        "freshet/sales_backup/data/a.parquet",
        "freshet/sales/datasets/b",
    }
    for key in foreign:
        small.site.objects.put(key, b"mine")

    small.settle()
    small.vacuum()

    assert foreign <= set(small.site.objects.list(""))


def only_rows_refused(world: World, says: str) -> None:
    """The rows' table keeps every file and says why; the tombstones have their turn."""
    there = world.files()
    rows, tombstones = world.vacuum()
    assert (rows.outcome, rows.deleted) == (Outcome.REFUSED, 0)
    assert says in rows.detail
    assert world.files() == there
    assert tombstones.outcome is Outcome.DONE


@pytest.mark.parametrize("kind", [".parquet", "-m0.avro", ".avro"])
def test_a_table_whose_snapshots_are_not_whole_keeps_every_file(small: World, kind: str) -> None:
    small.settle()
    lake = small.site.open()
    view = lake.current("sales").rows.view()
    snapshot = view.table.current_snapshot()
    assert snapshot is not None
    needed = {
        ".parquet": view.files[0].file_path,
        "-m0.avro": snapshot.manifests(lake.files)[0].manifest_path,
        ".avro": snapshot.manifest_list,
    }[kind]
    small.site.objects.delete(lake.files.key(needed))

    only_rows_refused(small, "a retained snapshot")


def test_a_table_without_its_metadata_keeps_every_file(small: World) -> None:
    small.settle()
    lake = small.site.open()
    small.site.objects.delete(lake.files.key(small.table().metadata_location))

    only_rows_refused(small, "SQLite catalog: FileNotFoundError")


@pytest.mark.parametrize("kind", [".json", "-m0.avro", ".avro"])
def test_a_table_whose_metadata_is_broken_keeps_every_file(small: World, kind: str) -> None:
    small.settle()
    lake, table = small.site.open(), small.table()
    snapshot = table.current_snapshot()
    assert snapshot is not None
    broken = {
        ".json": table.metadata_location,
        "-m0.avro": snapshot.manifests(lake.files)[0].manifest_path,
        ".avro": snapshot.manifest_list,
    }[kind]
    small.site.objects.put(lake.files.key(broken), b"\x00 no metadata")

    only_rows_refused(small, "its metadata cannot be read")


def test_a_table_the_catalog_lost_keeps_every_file(small: World) -> None:
    small.settle()
    small.writer.catalog.drop_table(("freshet", "sales"))

    only_rows_refused(small, "the catalog has lost it: restore its entry")


def test_a_table_made_anew_at_the_same_place_begins_a_new_grace(small: World) -> None:
    small.settle()
    small.writer.catalog.drop_table(("freshet", "sales"))
    small.site.open().rows("sales")
    there = small.files()

    rows = small.vacuum()[0]

    assert (rows.outcome, rows.deleted, rows.marked) == (Outcome.DONE, 0, rows.waiting)
    assert rows.waiting > 20
    assert small.files() == there


def test_a_table_that_needs_a_file_elsewhere_keeps_every_file(small: World) -> None:
    small.settle()
    lake = small.site.open()
    view = lake.current("sales").rows.view()
    [first, *_] = view.files
    elsewhere = DataFile.from_args(
        content=first.content,
        file_path="s3a://other/place.parquet",
        file_format=first.file_format,
        partition=first.partition,
        record_count=first.record_count,
        file_size_in_bytes=first.file_size_in_bytes,
        spec_id=first.spec_id,
    )
    commit_swap(
        lake.catalog, view.table, ManifestReader(), added=[elsewhere], removed=[], summary={}
    )

    only_rows_refused(small, "needs 's3a://other/place.parquet', which is not below")


def test_marks_that_cannot_be_read_keep_every_file(small: World) -> None:
    small.settle()
    small.site.objects.put(MARKS, b'{"format": "of another age"}')

    only_rows_refused(small, f"its marks '{MARKS}' cannot be read; delete that object")


def test_a_store_that_does_not_answer_is_told_and_the_other_tables_have_their_turn(
    small: World,
) -> None:
    small.settle()

    def fail(verb: str, key: str) -> None:
        if verb == "list" and key.startswith("freshet/sales/"):
            raise StorageError(key, "503 Slow Down")

    rows, tombstones = small.vacuum(objects=WatchedObjects(small.site.objects, fail))

    assert (rows.outcome, "503 Slow Down" in rows.detail) == (Outcome.REFUSED, True)
    assert tombstones.outcome is Outcome.DONE


def test_a_grace_shorter_than_a_commit_is_refused(small: World) -> None:
    with pytest.raises(ValueError, match="shorter than commits may take"):
        small.vacuum(grace=GRACE_MIN - timedelta(seconds=1))


def test_a_commit_that_comes_second_is_told_by_table(small: World) -> None:
    told: list[str] = []

    def overtake(step: Step) -> None:
        if step is Step.FILES_WRITTEN and not told:
            small.upsert("k-1")

    site = small.site
    lake = Lake(
        site.objects,
        site.root,
        lambda files: small.writer.catalog,
        tables=site.tables,
        database=site.database,
        wait=lambda _seconds: None,
        on_step=overtake,
        on_conflict=told.append,
    )
    small.upsert("k-2", writer=lake)

    assert told == ["sales"]
