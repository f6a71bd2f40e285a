"""Law L7: a crash between any two steps, or at any object written, leaves old or new state;
redelivery ends it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from freshet.arrow import PlacedEvent, position_of
from freshet.errors import ConflictError, StorageError
from freshet.event import json_row
from freshet.model import EVERY, ModelChange, current_state, live_rows
from freshet.objects import StoredObject
from freshet.tables import Sale
from freshet.testing import MemoryObjects, sale_row
from lake.lake import Lake
from lake.steps import Step
from lake.testing import LakeSite, batch, placed, told, waiting

STEPS = tuple(step for step in Step if step not in (Step.QUARANTINED, Step.LOGGED, Step.RECORDED))
# Keys of a small table keep three rows a file: every scenario splits, moves or empties one.
FILE_ROWS_MAX = 3
WRITES_MAX = 60


class Crash(BaseException):
    """The process ends here."""


class Stream:
    """Changes at successive places of the stream."""

    def __init__(self) -> None:
        self.events: list[PlacedEvent] = []

    def row(self, key: int, version: int, *, day: int = 1, quantity: int = 1) -> PlacedEvent:
        row = sale_row(f"k-{key}", sold_at=f"2010-12-{day:02d}T08:00:00Z", quantity=quantity)
        return self._placed(key, version, row)

    def delete(self, key: int, version: int) -> PlacedEvent:
        return self._placed(key, version, None)

    def patch(self, key: int, version: int, **columns: Any) -> PlacedEvent:
        return self._placed(key, version, None, columns)

    def _placed(
        self,
        key: int,
        version: int,
        row: dict[str, Any] | None,
        patch: dict[str, Any] | None = None,
    ) -> PlacedEvent:
        identity, at = {"sale_id": f"k-{key}"}, len(self.events)
        event = placed(Sale, at, version=version, key=identity, after=row, patch=patch)
        self.events.append(event)
        return event


@dataclass(frozen=True)
class Scenario:
    """What is there, and the batch whose commit is interrupted."""

    before: list[PlacedEvent]
    interrupted: list[PlacedEvent]
    steps: tuple[Step, ...] = STEPS
    truncated_at: int = 0  # the interrupted batch is a truncation at this version

    def states(self) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """The rows before and after the batch, by the model."""
        return state_of(self.before), state_of([*self.before, *self.interrupted], self.truncated_at)

    def waiting(self) -> dict[Any, Any]:
        """What waits for rows after the batch, by the model."""
        model = model_of([*self.before, *self.interrupted], self.truncated_at)
        return {key: json_row(one.patch) for key, one in model.items() if one.patch is not None}

    def apply(self, writer: Lake) -> None:
        """Deliver the interrupted batch."""
        if self.truncated_at:
            writer.current("sales").truncate(self.truncated_at, END, {})
        else:
            writer.apply("sales", batch(Sale, self.interrupted), {})


# Later in the stream than any change of a scenario.
END = position_of("9" * 9, 0)


def model_of(events: list[PlacedEvent], truncated_at: int = 0) -> dict[Any, ModelChange]:
    ends = [ModelChange(EVERY, truncated_at, END, None)] if truncated_at else []
    return current_state([*(told(event, Sale) for event in events), *ends])


def state_of(events: list[PlacedEvent], truncated_at: int = 0) -> dict[Any, Any]:
    return {key[0]: row for key, row in live_rows(model_of(events, truncated_at)).items()}  # type: ignore[index]


def first_batch(stream: Stream) -> Scenario:
    return Scenario([], [stream.row(key, 1, day=1 + key % 2) for key in range(5)], ROWS_ONLY)


def inserts_and_updates(stream: Stream) -> Scenario:
    before = [stream.row(key, 1, day=1 + key % 2) for key in range(5)]
    changed = [stream.row(0, 2, quantity=9), stream.row(7, 1), stream.row(8, 1, day=3)]
    return Scenario(before, changed, ROWS_ONLY)


def moves_and_deletes(stream: Stream) -> Scenario:
    before = [stream.row(key, 1, day=1 + key % 2) for key in range(5)]
    changed = [stream.row(0, 2, day=4), stream.delete(1, 2), stream.delete(77, 1)]
    return Scenario(before, [*changed, stream.row(9, 1)])


def delete_of_a_key_without_a_row(stream: Stream) -> Scenario:
    return Scenario([stream.row(0, 1)], [stream.delete(5, 3)], TOMBSTONES_ONLY)


def emptying_a_partition(stream: Stream) -> Scenario:
    before = [stream.row(key, 1) for key in range(3)]
    return Scenario(before, [stream.delete(key, 2) for key in range(3)])


def patches_that_move_update_and_wait(stream: Stream) -> Scenario:
    before = [stream.row(key, 1, day=1 + key % 2) for key in range(5)]
    changed = [
        stream.patch(0, 2, quantity=9),
        stream.patch(1, 2, sold_at="2010-12-05T08:00:00Z"),
        stream.patch(2, 3, quantity=7, sku="22720"),
        stream.patch(3, 2, quantity=8),
        stream.delete(2, 2),
        stream.patch(77, 4, quantity=6),
    ]
    return Scenario(before, changed)


def rows_for_which_patches_wait(stream: Stream) -> Scenario:
    before = [stream.patch(key, 3, quantity=5 + key) for key in range(4)]
    before += [stream.row(5, 1), stream.patch(5, 4, sold_at="2010-12-05T08:00:00Z")]
    changed = [stream.row(0, 1), stream.row(1, 4), stream.row(2, 2, day=2), stream.row(5, 3)]
    return Scenario(before, changed, ROWS_ONLY)


def a_truncation(stream: Stream) -> Scenario:
    before = [stream.row(key, 1 + key, day=1 + key % 2) for key in range(5)]
    before += [stream.patch(0, 7, quantity=3), stream.delete(9, 1)]
    return Scenario(before, [], TRUNCATING, truncated_at=3)


TRUNCATING = (
    Step.VIEWED,
    Step.FILES_WRITTEN,
    Step.TOMBSTONES_WRITTEN,
    Step.TOMBSTONES_COMMITTED,
    Step.ROWS_COMMITTED,
)
ROWS_ONLY = tuple(
    step for step in STEPS if step not in (Step.TOMBSTONES_WRITTEN, Step.TOMBSTONES_COMMITTED)
)
TOMBSTONES_ONLY = tuple(step for step in STEPS if step is not Step.ROWS_COMMITTED)
SCENARIOS: list[Callable[[Stream], Scenario]] = [
    first_batch,
    inserts_and_updates,
    moves_and_deletes,
    delete_of_a_key_without_a_row,
    emptying_a_partition,
    patches_that_move_update_and_wait,
    rows_for_which_patches_wait,
    a_truncation,
]


@dataclass
class CrashAt:
    """Ends the process at one step."""

    step: Step
    crashed: bool = False

    def __call__(self, step: Step) -> None:
        if step is self.step:
            self.crashed = True
            raise Crash


@dataclass
class FailingObjects:
    """A store whose n-th write from now fails, before it is made or after (the answer was lost)."""

    store: MemoryObjects
    fault: Callable[[], BaseException]
    after_writing: bool
    writes_left: int = WRITES_MAX
    failed: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> StoredObject:
        return self.store.get(key)

    def put(self, key: str, data: bytes) -> str:
        with self.lock:  # files are written side by side
            self.writes_left -= 1
            fails = self.writes_left == 0
        if fails and not self.after_writing:
            self._fail()
        etag = self.store.put(key, data)
        if fails:
            self._fail()
        return etag

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        return self.store.put_if(key, data, etag=etag)

    def delete(self, key: str) -> None:
        self.store.delete(key)

    def list(self, prefix: str) -> Any:
        return self.store.list(prefix)

    def _fail(self) -> None:
        self.failed = True
        raise self.fault()


def rows_of(lake: Lake) -> dict[Any, Any]:
    rows = lake.rows("sales").to_pylist()
    state = {
        row["sale_id"]: {k: v for k, v in row.items() if not k.startswith("_")} for row in rows
    }
    assert len(state) == len(rows), "a key has two rows"
    return state


def prepared(scenario: Scenario, tmp_path: Path) -> LakeSite:
    site = LakeSite(MemoryObjects(), tmp_path / "catalog.db")
    lake = site.open(file_rows_max=FILE_ROWS_MAX)
    if scenario.before:
        lake.apply("sales", batch(Sale, scenario.before), {})
    lake.close()
    return site


def check_redelivery_completes(site: LakeSite, scenario: Scenario) -> None:
    """Old or new state now; the new one after redelivery, nothing after another; no stray file
    read.
    """
    old, new = scenario.states()
    reader = site.open(file_rows_max=FILE_ROWS_MAX)
    assert rows_of(reader) in (old, new)
    lake = site.open(file_rows_max=FILE_ROWS_MAX)
    scenario.apply(lake)
    assert rows_of(lake) == new
    assert waiting(lake, Sale) == scenario.waiting()
    before = site.pointer(lake, "sales")
    scenario.apply(lake)
    lake.apply("sales", batch(Sale, [*scenario.interrupted, *scenario.before]), {})
    assert site.pointer(lake, "sales") == before
    for opened in (reader, lake):
        opened.close()


@pytest.mark.parametrize("scene", SCENARIOS)
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_a_step_leaves_old_or_new_and_redelivery_completes(
    step: Step, scene: Callable[[Stream], Scenario], tmp_path: Path
) -> None:
    scenario = scene(Stream())
    site = prepared(scenario, tmp_path)
    crash = CrashAt(step)
    writer = site.open(on_step=crash, file_rows_max=FILE_ROWS_MAX)

    if step in scenario.steps:
        with pytest.raises(Crash):
            scenario.apply(writer)

    assert crash.crashed is (step in scenario.steps)
    check_redelivery_completes(site, scenario)


@pytest.mark.parametrize("scene", SCENARIOS)
@pytest.mark.parametrize("after_writing", [False, True], ids=["before", "after"])
def test_a_crash_at_any_object_written_leaves_old_or_new_and_redelivery_completes(
    scene: Callable[[Stream], Scenario], after_writing: bool, tmp_path: Path
) -> None:
    for nth in range(1, WRITES_MAX):
        scenario = scene(Stream())
        site = prepared(scenario, tmp_path / str(nth))
        objects = FailingObjects(site.objects, Crash, after_writing, nth)  # type: ignore[arg-type]
        writer = site.open(objects=objects, file_rows_max=FILE_ROWS_MAX)
        if not survives(writer, scenario):
            check_redelivery_completes(site, scenario)
        if not objects.failed:
            break

    assert 4 <= nth < WRITES_MAX


def writes_of(scene: Callable[[Stream], Scenario], folder: Path) -> int:
    """How many objects the scenario's batch writes when nothing fails."""
    scenario = scene(Stream())
    site = prepared(scenario, folder)
    objects = FailingObjects(site.objects, Crash, after_writing=False)  # type: ignore[arg-type]
    writer = site.open(objects=objects, file_rows_max=FILE_ROWS_MAX)
    scenario.apply(writer)
    return WRITES_MAX - objects.writes_left


def survives(writer: Lake, scenario: Scenario) -> bool:
    try:
        scenario.apply(writer)
    except Crash:
        return False
    return True


@pytest.mark.parametrize("scene", SCENARIOS)
def test_a_storage_fault_at_any_write_is_transient_and_the_same_writer_recovers(
    scene: Callable[[Stream], Scenario], tmp_path: Path
) -> None:
    def fault() -> BaseException:
        return StorageError("s3://bucket", "503 Slow Down")

    writes = writes_of(scene, tmp_path / "whole")
    assert writes >= 4
    for nth in range(1, writes + 1):
        scenario = scene(Stream())
        site = prepared(scenario, tmp_path / str(nth))
        objects = FailingObjects(site.objects, fault, after_writing=False, writes_left=nth)  # type: ignore[arg-type]
        writer = site.open(objects=objects, file_rows_max=FILE_ROWS_MAX)
        with pytest.raises(StorageError):
            scenario.apply(writer)
        assert rows_of(writer) in scenario.states()
        scenario.apply(writer)
        assert rows_of(writer) == scenario.states()[1]


def test_files_of_an_unfinished_commit_are_not_referenced(tmp_path: Path) -> None:
    scenario = moves_and_deletes(Stream())
    site = prepared(scenario, tmp_path)
    writer = site.open(on_step=CrashAt(Step.TOMBSTONES_COMMITTED), file_rows_max=FILE_ROWS_MAX)
    before = set(site.objects.list("freshet/sales/data/"))

    with pytest.raises(Crash):
        scenario.apply(writer)

    stray = set(site.objects.list("freshet/sales/data/")) - before
    current = site.open().current("sales").rows
    referenced = {file.file_path for file in current.view().files}
    assert stray
    assert not any(path.endswith(key) for path in referenced for key in stray)


def test_a_writer_that_always_loses_gives_up_as_transient(tmp_path: Path) -> None:
    stream = Stream()
    site = LakeSite(MemoryObjects(), tmp_path / "catalog.db")
    rival = site.open()
    versions = iter(range(1, 100))
    waits: list[float] = []

    def overtake(step: Step) -> None:
        if step is Step.FILES_WRITTEN:
            rival.apply("sales", batch(Sale, [stream.row(1, next(versions))]), {})

    loser = site.open(on_step=overtake, wait=waits.append)

    with pytest.raises(ConflictError, match="sales"):
        loser.apply("sales", batch(Sale, [stream.row(2, 1)]), {})

    assert len(waits) > 5
    assert all(0 <= wait <= 1 for wait in waits)
