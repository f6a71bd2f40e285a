"""A table made anew from its log: beside writers, killed anywhere, and never half."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.exceptions import NoSuchTableError

from freshet.arrow import PlacedEvent
from freshet.event import parse_event
from freshet.tables import TABLES, Sale
from freshet.testing import EPOCH, MemoryObjects, StoppedClock, sale_row
from freshet.wire import Part, decode_record
from lake.erase import ErasureUnfinishedError
from lake.lake import Lake
from lake.log import RECEIPTS, Kind, LoggedEvent, LoggedTruncation, Place
from lake.rebuild import NotInLogError, RebuildStep, ShadowTakenError, rebuild
from lake.replay import Again, UnreadableEventError
from lake.table import Rewrite
from lake.testing import LakeSite, batch
from lake.tombstones import floor_of
from lake.verify import verify_table

NOW = StoppedClock(EPOCH + timedelta(days=1))
SHARD = "shardId-000000000000"
FILE_ROWS_MAX = 4
Hook = Callable[[RebuildStep], None]


class Crash(BaseException):
    """The process ends here."""


class Writer:
    """Writes as the consumer does: the log first, then the table."""

    def __init__(self, lake: Lake, first: int = 0) -> None:
        self.lake, self._at = lake, first

    def placed(self, key: int, version: int, **members: Any) -> LoggedEvent:
        self._at += 1
        body = {
            "table": "sales",
            "op": "u" if members else "d",
            "key": {"sale_id": f"k-{key}"},
            "version": version,
            "event_id": f"e-{self._at}",
            "source": "test",
            "accepted_at": "2026-11-21T08:30:00Z",
            **members,
        }
        return LoggedEvent(parse_event(body, TABLES), self.place())

    def place(self) -> Place:
        return Place(SHARD, str(self._at), 0, f"003{self._at:03d}.00000", EPOCH)

    def row(self, key: int, version: int, *, day: int = 1, **columns: Any) -> LoggedEvent:
        after = sale_row(f"k-{key}", sold_at=f"2010-12-{day:02d}T08:00:00Z", **columns)
        return self.placed(key, version, after=after)

    def patch(self, key: int, version: int, **columns: Any) -> LoggedEvent:
        return self.placed(key, version, patch=columns)

    def write(self, *events: LoggedEvent) -> None:
        self.log(*events)
        changes = [PlacedEvent(one.event, one.place.position) for one in events]
        self.lake.apply("sales", batch(Sale, changes), {})

    def log(self, *events: LoggedEvent) -> None:
        name = f"batch-{events[0].place.position}"
        self.lake.keep(name, events, ())

    def truncate(self, version: int) -> None:
        self._at += 1
        end = LoggedTruncation("sales", version, "t", "test", None, EPOCH, self.place())
        self.lake.keep(f"batch-{end.place.position}", (), (), [end])
        self.lake.truncate("sales", version, end.place.position, {})


def history(writer: Writer) -> None:
    """Rows, moves, deletes, late changes, patches that landed and that wait, a truncation."""
    writer.write(writer.row(90, 1), writer.row(91, 1, day=2), writer.placed(92, 1))
    writer.truncate(2)
    writer.write(*(writer.row(key, 5, day=1 + key % 3) for key in range(9)))
    writer.write(writer.row(0, 6, day=4), writer.placed(1, 6), writer.row(1, 5), writer.row(2, 4))
    writer.write(writer.patch(3, 7, country="France"), writer.patch(77, 7, country="Spain"))
    writer.write(writer.placed(50, 9), writer.row(50, 8), writer.row(4, 6, quantity=11))


def state(lake: Lake) -> tuple[Any, ...]:
    """Rows, and the tombstones that say anything beside rows and truncations, with places and what
    waits. Which others there are depends on what came in one batch.
    """
    current = lake.current("sales")
    view = current.tombstones.view()
    rows = {row["sale_id"]: row for row in lake.rows("sales").to_pylist()}
    tombstones = {
        row["sale_id"]: row
        for row in current.tombstones.read_all(view).to_pylist()
        if row["sale_id"] not in rows
        and ((row["_version"], row["_position"]) > floor_of(view) or row["_patches"])
    }
    return rows, tombstones


def again(lake: Lake) -> Again:
    def decode(data: bytes, arrived_at: Any) -> Iterator[Part]:
        return iter(list(decode_record(data, TABLES, arrived_at=arrived_at)))

    return Again(lake, TABLES, decode, NOW, "a test")


def rebuilt(lake: Lake, *, force: bool = False, on_step: Hook = lambda _: None) -> Any:
    return rebuild(
        again(lake),
        Sale,
        force=force,
        on_step=on_step,
        wait=lambda _: None,
        file_rows_max=FILE_ROWS_MAX,
    )


def drop_files(lake: Lake, count: int = 2) -> None:
    """Corrupt the table: some of its files are gone from it."""
    rows = lake.current("sales").rows
    view = rows.view()
    removed = tuple(file.file_path for file in view.files[:count])
    rows.commit(view, [Rewrite(removed, (), ())], {})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> LakeSite:
    """A lake with a history, to be copied."""
    written = LakeSite(MemoryObjects(), tmp_path_factory.mktemp("written") / "catalog.db")
    history(Writer(written.open(file_rows_max=FILE_ROWS_MAX)))
    return written


def copied(written: LakeSite, folder: Path) -> LakeSite:
    """A lake of its own with what was written."""
    folder.mkdir(exist_ok=True)
    shutil.copy(written._catalog, folder / "catalog.db")
    objects = MemoryObjects()
    for key in written.objects.list(""):
        objects.put(key, written.objects.get(key).data)
    return LakeSite(objects, folder / "catalog.db")


@pytest.fixture
def site(tmp_path: Path) -> LakeSite:
    """A lake in which nothing was written."""
    return LakeSite(MemoryObjects(), tmp_path / "catalog.db")


@pytest.fixture
def full(written: LakeSite, tmp_path: Path) -> LakeSite:
    """A lake with a history."""
    return copied(written, tmp_path)


@pytest.fixture
def lake(site: LakeSite) -> Iterator[Lake]:
    lake = site.open(file_rows_max=FILE_ROWS_MAX)
    yield lake
    lake.close()


@pytest.fixture
def filled(full: LakeSite) -> Iterator[Lake]:
    lake = full.open(file_rows_max=FILE_ROWS_MAX)
    yield lake
    lake.close()


def shadow_is_gone(lake: Lake, site: LakeSite) -> bool:
    view = lake.current("sales").rows.view()
    for end in ("", "_tombstones"):
        with suppress(NoSuchTableError):
            view.table.catalog.load_table((site.database, f"sales__rebuild{end}"))
            return False
    return not [key for key in site.objects.list("") if "__rebuild" in key]


def test_a_table_that_lost_rows_is_as_before_after_a_rebuild(filled: Lake, full: LakeSite) -> None:
    expected = state(filled)
    drop_files(filled)
    assert state(filled) != expected

    done = rebuilt(filled)

    assert state(filled) == expected
    assert done.rows_after == len(expected[0]) > done.rows_before
    assert done.attempts == 1
    assert shadow_is_gone(filled, full)


def test_a_rebuild_of_a_whole_table_changes_nothing_and_may_be_repeated(filled: Lake) -> None:
    expected = state(filled)

    for _ in range(2):
        rebuilt(filled)
        assert state(filled) == expected

    receipts = [row for part in filled.log(RECEIPTS) for row in part.to_pylist()]
    assert [row["kind"] for row in receipts] == [Kind.REBUILD, Kind.REBUILD]


def test_the_laws_hold_of_a_rebuilt_table(lake: Lake) -> None:
    writer = Writer(lake)
    writer.write(*(writer.row(key, 5, day=1 + key % 3) for key in range(9)), writer.placed(50, 9))
    writer.write(writer.row(0, 6, day=4), writer.placed(1, 6))

    rebuilt(lake)

    findings = [found for check in verify_table(lake, Sale) for found in check.findings]
    assert findings == []


def test_writers_go_on_with_a_rebuilt_table(filled: Lake, full: LakeSite) -> None:
    writer = Writer(filled, 100)
    rebuilt(filled)
    other = full.open(file_rows_max=FILE_ROWS_MAX)

    writer.write(writer.row(0, 5, day=9), writer.row(60, 1), writer.row(60, 3), writer.placed(2, 9))
    Writer(other, 500).write(Writer(other, 500).row(61, 3))
    rows = {row["sale_id"]: row["_version"] for row in filled.rows("sales").to_pylist()}

    assert (rows["k-0"], rows["k-60"], rows["k-61"]) == (6, 3, 3)
    assert "k-2" not in rows
    other.close()


@pytest.mark.parametrize("step", list(RebuildStep))
def test_a_rebuild_that_is_killed_at_a_step_and_run_again_ends_the_same(
    step: RebuildStep, filled: Lake, full: LakeSite
) -> None:
    expected = state(filled)
    drop_files(filled)
    broken = state(filled)

    def crash(reached: RebuildStep) -> None:
        if reached is step:
            raise Crash

    with pytest.raises(Crash):
        rebuilt(filled, on_step=crash)

    assert state(filled)[0] in (broken[0], expected[0])
    rebuilt(filled)
    assert state(filled) == expected
    assert shadow_is_gone(filled, full)


@pytest.mark.parametrize(
    ("what", "step"),
    [
        ("row", RebuildStep.VIEWED),
        ("row", RebuildStep.COPIED),
        ("delete", RebuildStep.TOMBSTONES_SWAPPED),
        ("delete_of_a_lost_row", RebuildStep.VIEWED),
        ("delete_of_a_lost_row", RebuildStep.CAUGHT_UP),
        ("delete_of_a_lost_row", RebuildStep.TOMBSTONES_SWAPPED),
        ("delete_of_a_lost_row", RebuildStep.ROWS_SWAPPED),
        ("patch", RebuildStep.CAUGHT_UP),
        ("patch", RebuildStep.TOMBSTONES_SWAPPED),
        ("truncate", RebuildStep.COPIED),
        ("truncate", RebuildStep.TOMBSTONES_SWAPPED),
    ],
)
def test_what_another_writer_commits_at_a_step_is_in_the_rebuilt_table(
    what: str, step: RebuildStep, filled: Lake, full: LakeSite, written: LakeSite, tmp_path: Path
) -> None:
    """`delete_of_a_lost_row` moves the tombstones alone: the rebuilt rows hold what it ends."""
    drop_files(filled, 1)
    lost = lost_key(filled)
    rival = Writer(full.open(file_rows_max=FILE_ROWS_MAX), 400)
    writes: dict[str, Callable[[], None]] = {
        "row": lambda: rival.write(rival.row(4, 50, day=7), rival.row(70, 3)),
        "delete": lambda: rival.write(rival.placed(4, 50)),
        "delete_of_a_lost_row": lambda: rival.write(rival.placed(lost, 50)),
        "patch": lambda: rival.write(rival.patch(5, 50, quantity=99), rival.patch(88, 3, line=4)),
        "truncate": lambda: rival.truncate(60),
    }
    pending = [writes[what]]

    def meanwhile(reached: RebuildStep) -> None:
        if reached is step and pending:
            pending.pop()()

    rebuilt(filled, on_step=meanwhile)

    assert not pending
    reference = copied(written, tmp_path / "reference").open(file_rows_max=FILE_ROWS_MAX)
    rival.lake = reference
    rival._at = 400
    writes[what]()
    assert state(filled) == state(reference)


def lost_key(lake: Lake) -> int:
    there = {row["sale_id"] for row in lake.rows("sales").to_pylist()}
    return next(key for key in (0, 2, 3, 4, 5, 6, 7, 8) if f"k-{key}" not in there)


def test_a_rebuild_beside_writers_in_threads_loses_nothing(filled: Lake, full: LakeSite) -> None:
    drop_files(filled)
    errors: list[BaseException] = []

    def events(writer: Writer, rng: random.Random) -> list[LoggedEvent]:
        key, version = rng.randrange(12), rng.randrange(3, 40)
        made = [
            writer.row(key, version, day=1 + rng.randrange(5)),
            writer.placed(key, version),
            writer.patch(key, version, quantity=version),
        ]
        return [rng.choice(made)]

    def work(number: int) -> None:
        rng = random.Random(number)
        writer = Writer(full.open(file_rows_max=FILE_ROWS_MAX), number)
        try:
            for _ in range(15):
                writer.write(*events(writer, rng))
        except BaseException as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in (300, 600)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        rebuilt(filled)
    for thread in threads:
        thread.join(60)

    assert errors == []
    live = state(filled)
    rebuilt(filled)
    assert state(filled) == live


def test_rows_that_are_not_in_the_log_refuse_a_rebuild_unless_it_is_forced(
    lake: Lake, site: LakeSite
) -> None:
    writer = Writer(lake)
    writer.write(writer.row(1, 1), writer.row(2, 1))
    [old] = site.objects.list("change_log/")
    writer.write(writer.row(3, 1), writer.row(2, 2))
    site.objects.delete(old)
    expected = state(lake)

    with pytest.raises(NotInLogError, match=r"1 rows .*k-1 at version 1.*--force"):
        rebuilt(lake)

    assert state(lake) == expected
    assert shadow_is_gone(lake, site)
    rebuilt(lake, force=True)
    assert set(state(lake)[0]) == {"k-2", "k-3"}


def test_a_tombstone_that_the_log_does_not_explain_is_kept(lake: Lake) -> None:
    writer = Writer(lake)
    writer.write(writer.row(1, 1), writer.row(2, 1))
    erased = writer.placed(1, 9)
    lake.apply("sales", batch(Sale, [PlacedEvent(erased.event, erased.place.position)]), {})

    done = rebuilt(lake)

    assert done.kept_tombstones == 1
    assert [row["sale_id"] for row in lake.rows("sales").to_pylist()] == ["k-2"]
    writer.write(writer.row(1, 3))
    assert [row["sale_id"] for row in lake.rows("sales").to_pylist()] == ["k-2"]


def test_a_logged_event_that_the_contract_refuses_by_now_ends_a_rebuild_by_name(
    lake: Lake, site: LakeSite
) -> None:
    writer = Writer(lake)
    broken = writer.row(1, 1)
    after = dict(broken.event.after or {}) | {"currency": "POUNDS"}
    writer.log(replace(broken, event=replace(broken.event, after=after)))

    with pytest.raises(UnreadableEventError, match=r"'sales'.*currency"):
        rebuilt(lake)

    assert shadow_is_gone(lake, site)


def test_what_an_erasure_is_about_to_remove_is_not_rebuilt(filled: Lake, full: LakeSite) -> None:
    expected, table = state(filled), Sale.table
    full.objects.put(f"erasures/{table}-0123.json", b"[]")

    with pytest.raises(ErasureUnfinishedError):
        rebuilt(filled)

    assert state(filled) == expected
    assert shadow_is_gone(filled, full)
    full.objects.delete(f"erasures/{table}-0123.json")
    rebuilt(filled)


def test_a_second_rebuild_of_a_table_ends_the_first(filled: Lake, full: LakeSite) -> None:
    expected = state(filled)
    other = full.open(file_rows_max=FILE_ROWS_MAX)
    pending = [True]

    def taken(reached: RebuildStep) -> None:
        if reached is RebuildStep.VIEWED and pending:
            pending.pop()
            with suppress(Crash):
                rebuilt(other, on_step=crash_when_viewed)

    def crash_when_viewed(reached: RebuildStep) -> None:
        if reached is RebuildStep.VIEWED:
            raise Crash

    with pytest.raises(ShadowTakenError):
        rebuilt(filled, on_step=taken)

    assert state(filled) == expected
    rebuilt(filled)
    assert state(filled) == expected
    assert shadow_is_gone(filled, full)
