"""The past of a table: its history, what differs between two moments, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from freshet.arrow import PlacedEvent
from freshet.tables import Sale
from freshet.testing import MemoryObjects, StoppedClock, sale_row
from lake.current import Applied
from lake.erase import ErasureUnfinishedError
from lake.lake import Lake
from lake.log import RECEIPTS, LoggedEvent, Place
from lake.rebuild import rebuild
from lake.replay import Again
from lake.rollback import Rollback, RolledBack
from lake.table import KeyedTable
from lake.testing import LakeSite, batch, placed
from lake.travel import (
    Moment,
    NoSuchMomentError,
    Past,
    StateExpiredError,
    diff,
    history,
    moment_of,
    past,
)
from lake.verify import verify_table

# Later than any clock this runs under: a table is never older than its making, which no test moves.
AT = datetime(2126, 11, 21, 8, 30, tzinfo=UTC)


class Crash(BaseException):
    """The process ends here."""


@dataclass
class World:
    """A lake that is written to as the consumer does: the log first."""

    site: LakeSite
    clock: StoppedClock = field(default_factory=StoppedClock)
    at: Iterator[int] = field(default_factory=lambda: count(1))

    def __post_init__(self) -> None:
        self.lake = self.site.open()

    @property
    def rows(self) -> KeyedTable:
        return self.lake.current("sales").rows

    def land(self, *changes: dict[str, Any]) -> int:
        """Apply changes as one batch; the snapshot of the rows after it, 0 if there is none."""
        events = [placed(Sale, next(self.at), **change) for change in changes]
        self.again(events)
        return self.rows.view().snapshot_id or 0

    def again(self, events: list[PlacedEvent], lake: Lake | None = None) -> Applied:
        lake = lake or self.lake
        logged = [
            LoggedEvent(one.event, Place("shard-0", one.position, 0, one.position, AT))
            for one in events
        ]
        lake.keep(f"batch-{events[0].position}", logged, [])
        return lake.apply("sales", batch(Sale, events), {"freshet.batch": "of the stream"})

    def rollback(self, moment: Moment, **options: Any) -> RolledBack:
        self.clock.advance(1)
        return Rollback(self.lake, Sale, now=self.clock, by="tester", **options).run(moment)

    def killed(self, moment: Moment, step: str) -> None:
        """A rollback whose process ends at a step."""

        def crash(reached: str) -> None:
            if reached == step:
                raise Crash

        with pytest.raises(Crash):
            self.rollback(moment, on_step=crash)

    def rebuild(self) -> None:
        again = Again(self.lake, self.lake.tables, lambda _data, _at: (), self.clock, "tester")
        rebuild(again, Sale, wait=lambda _: None)

    def receipts(self, kind: str) -> list[dict[str, Any]]:
        lines = (line for part in self.lake.log(RECEIPTS) for line in part.to_pylist())
        return [line for line in lines if line["kind"] == kind]

    def shown(self, lake: Lake | None = None) -> dict[str, int]:
        rows = (lake or self.lake).rows("sales").to_pylist()
        return {row["sale_id"]: row["quantity"] for row in rows}

    def holds(self) -> None:
        findings = [f for check in verify_table(self.lake, Sale) for f in check.findings]
        assert findings == []


def row(key: str, quantity: int, *, version: int, day: int = 1, **more: Any) -> dict[str, Any]:
    after = sale_row(key, quantity=quantity, sold_at=f"2010-12-{day:02d}T08:00:00Z", **more)
    return {"after": after, "version": version}


def gone(key: str, *, version: int) -> dict[str, Any]:
    return {"key": {"sale_id": key}, "version": version}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(LakeSite(MemoryObjects(), tmp_path / "catalog.db"))
    yield world
    world.lake.close()


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Commits happen at a time that only the test moves."""
    now = [AT.timestamp()]
    monkeypatch.setattr("lake.snapshot.time.time", lambda: now[0])

    def advance(by: timedelta) -> None:
        now[0] += by.total_seconds()

    return advance


def changes(world: World, before: Moment, after: Moment) -> dict[str, tuple[str, dict[str, Any]]]:
    view = world.rows.view()
    found = diff(world.rows, view, past(view.table, before), past(view.table, after))
    return {one.key["sale_id"]: (one.kind.value, one.columns()) for one in found.changes()}


def test_history_tells_when_what_for_and_what_was_done(
    world: World, ticking: Callable[[timedelta], None]
) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    ticking(timedelta(hours=1))
    second = world.land(row("A", 2, version=2), gone("B", version=2))

    entries = history(world.rows.view().table)

    assert [entry.snapshot_id for entry in entries] == [first, second]
    assert [entry.committed_at for entry in entries] == [AT, AT + timedelta(hours=1)]
    assert [entry.rows for entry in entries] == [2, 1]
    assert [dict(entry.done) for entry in entries] == [
        {"received": 2, "inserted": 2},
        {"received": 2, "updated": 1, "deleted": 1},
    ]
    assert [entry.is_current for entry in entries] == [False, True]
    assert entries[1].to_json()["snapshot_id"] == str(second)
    assert entries[1].batch == "of the stream"


def test_a_difference_is_told_row_by_row_and_column_by_column(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1), row("C", 1, version=1))
    second = world.land(
        row("A", 2, version=2, country=None), gone("B", version=2), row("D", 4, version=1)
    )

    found = changes(world, first, second)
    back = changes(world, second, first)

    assert {key: kind for key, (kind, _) in found.items()} == {
        "A": "updated",
        "B": "deleted",
        "D": "inserted",
    }
    assert found["A"][1] == {"quantity": (1, 2), "country": ("United Kingdom", None)}
    assert found["D"][1]["quantity"] == (None, 4)
    assert back["A"][1] == {"quantity": (2, 1), "country": (None, "United Kingdom")}
    assert (back["B"][0], back["D"][0]) == ("inserted", "deleted")


def test_a_row_that_moved_to_another_partition_is_one_update(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    second = world.land(row("A", 1, version=2, day=5))

    assert list(changes(world, first, second)["A"][1]) == ["sold_at"]


def test_only_files_that_one_of_the_moments_has_are_read(world: World) -> None:
    first = world.land(*(row(f"S-{day}", 1, version=1, day=day) for day in range(1, 11)))
    second = world.land(row("S-3", 2, version=2, day=3))
    view = world.rows.view()

    found = diff(world.rows, view, past(view.table, first), past(view.table, second))

    assert found.files_read == 2
    assert found.counts() == {"inserted": 0, "updated": 1, "deleted": 0}


def test_rows_that_were_only_written_again_do_not_differ(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    second = world.land(row("A", 1, version=9))

    assert second != first
    assert changes(world, first, second) == {}


def test_a_moment_is_the_snapshot_that_was_current_then(
    world: World, ticking: Callable[[timedelta], None]
) -> None:
    first = world.land(row("A", 1, version=1))
    ticking(timedelta(hours=2))
    second = world.land(row("A", 2, version=2))
    table = world.rows.view().table

    def at(moment: Moment) -> int | None:
        found = past(table, moment).snapshot
        return None if found is None else found.snapshot_id

    assert at(AT - timedelta(seconds=1)) is None
    assert at(AT) == at(AT + timedelta(hours=1)) == first
    assert at(AT + timedelta(hours=2)) == at(AT + timedelta(days=9)) == second
    assert at(first) == first


def test_a_moment_beyond_history_is_refused_and_one_in_a_gap_is_told(
    world: World, ticking: Callable[[timedelta], None]
) -> None:
    ids = []
    for number in range(120):
        ids.append(world.land(row("A", number + 1, version=number + 1)))
        ticking(timedelta(minutes=1))
    table = world.rows.view().table

    with pytest.raises(NoSuchMomentError, match="freshet history sales"):
        past(table, AT)
    with pytest.raises(NoSuchMomentError, match=f"snapshot {ids[0]}"):
        past(table, ids[0])
    nine, later = AT.replace(hour=9, minute=0), AT.replace(hour=9, minute=20)
    now = AT + timedelta(hours=2)
    exact = [past(table, at, now=now).exact for at in (nine, later, AT.replace(hour=10, minute=20))]
    assert exact == [True, False, True]
    assert past(table, later).committed_at == nine


@pytest.mark.parametrize(
    "text", ["2126-11-21T08:30:00Z", "2126-11-21T08:30:00", "2126-11-21 08:30"]
)
def test_a_time_without_a_zone_is_utc(text: str) -> None:
    assert moment_of(text) == AT


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_utc_has_no_year_for_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="no year"):
        moment_of(text)


def test_ids_and_dates_are_told_apart() -> None:
    assert moment_of("1234567890123456789") == 1234567890123456789
    assert moment_of("20261121") == moment_of("2026-11-21")
    for text in ("yesterday", "", str(1 << 63), "-5"):
        with pytest.raises(ValueError, match=r"Invalid isoformat|no snapshot's id"):
            moment_of(text)


# Rollback


def test_a_rollback_shows_the_rows_of_then_in_one_snapshot(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1), row("C", 1, version=1))
    before = world.shown()
    last = world.land(row("A", 2, version=2), gone("B", version=2), row("D", 4, version=1))

    done = world.rollback(first)

    assert world.shown() == before
    assert (done.came_back, done.restored, done.removed) == (1, 1, 1)
    assert done.snapshot_id == world.rows.view().snapshot_id
    entries = history(world.rows.view().table)
    assert [entry.snapshot_id for entry in entries[-2:]] == [last, done.snapshot_id]
    assert entries[-1].reason == f"rollback to {first}"
    world.holds()


def test_a_rollback_leaves_a_receipt_and_its_changes_in_the_log(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    world.land(row("A", 2, version=2))

    done = world.rollback(first)

    [receipt] = world.receipts("rollback")
    assert (receipt["table_name"], receipt["updated"], receipt["received"]) == ("sales", 1, 1)
    assert receipt["snapshot_id"] == done.snapshot_id
    assert str(first) in receipt["note"]
    assert "tester" in receipt["note"]


def test_what_was_undone_stays_undone_when_it_is_delivered_again(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    undone = [
        placed(Sale, next(world.at), **change)
        for change in (row("A", 2, version=2), gone("B", version=2), row("D", 4, version=7))
    ]
    world.again(undone)
    world.rollback(first)
    pointer = world.site.pointer(world.lake, "sales")

    receipt = world.again(undone).receipt

    assert world.shown() == {"A": 1, "B": 1}
    assert world.site.pointer(world.lake, "sales") == pointer
    assert receipt.stale == 3
    world.holds()


def test_what_the_source_changes_afterwards_lands_as_ever(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    world.land(row("A", 2, version=2), gone("B", version=2), row("D", 4, version=7))
    world.rollback(first)

    # A counter's next version is the very one that the rollback took: the source is newer.
    world.land(row("A", 3, version=3), row("B", 3, version=3), row("D", 5, version=8))

    assert world.shown() == {"A": 3, "B": 3, "D": 5}
    world.holds()


def test_a_rollback_is_undone_by_another_and_any_order_of_replay_agrees(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    second = world.land(row("A", 2, version=2), gone("B", version=2), row("D", 4, version=1))
    world.rollback(first)
    world.rollback(second)
    third = world.shown()
    world.rollback(first)
    world.rollback(second)

    assert world.shown() == third == {"A": 2, "D": 4}
    world.holds()


def test_a_rollback_to_what_is_shown_commits_nothing(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    pointer = world.site.pointer(world.lake, "sales")

    done = world.rollback(first)

    assert (done.snapshot_id, done.came_back, done.restored, done.removed) == (None, 0, 0, 0)
    assert world.site.pointer(world.lake, "sales") == pointer


def test_patches_and_truncations_are_undone_too(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    world.land(
        {"key": {"sale_id": "A"}, "patch": {"quantity": 9}, "version": 50},
        {"key": {"sale_id": "B"}, "patch": {"quantity": 8}, "version": 60},
    )
    world.rollback(first)
    assert world.shown() == {"A": 1, "B": 1}
    world.holds()
    world.lake.truncate("sales", 500, "t", {})
    assert world.shown() == {}

    world.rollback(first)

    assert world.shown() == {"A": 1, "B": 1}


def test_a_rollback_to_before_the_first_commit_empties_the_table(
    world: World, ticking: Callable[[timedelta], None]
) -> None:
    ticking(timedelta(hours=1))
    world.land(row("A", 1, version=1))

    done = world.rollback(AT)

    assert (done.removed, world.shown()) == (1, {})
    world.holds()


@pytest.mark.parametrize("step", ["logged", "applied", "recorded"])
def test_a_rollback_that_was_killed_is_done_by_the_next(world: World, step: str) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    world.land(row("A", 2, version=2), gone("B", version=2))
    world.killed(first, step)

    world.rollback(first)

    assert world.shown() == {"A": 1, "B": 1}
    assert len({line["batch"] for line in world.receipts("rollback")}) == 1
    world.holds()


def test_a_rollback_to_another_state_completes_the_one_that_was_killed(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1), row("C", 1, version=1))
    second = world.land(row("A", 2, version=2), gone("B", version=2), row("D", 4, version=1))
    world.land(row("A", 3, version=3), row("B", 3, version=3), gone("C", version=3))
    world.killed(first, "logged")

    seen = Rollback(world.lake, Sale, now=world.clock, by="tester").look(second)
    done = world.rollback(second)

    assert seen.completed == done.completed == 1
    assert world.shown() == {"A": 2, "C": 1, "D": 4}
    world.holds()
    world.rebuild()
    assert world.shown() == {"A": 2, "C": 1, "D": 4}
    world.holds()
    batches = [line["batch"] for line in world.receipts("rollback")]
    assert len(set(batches)) == len(batches) == 2
    assert world.rollback(second).completed == 0


@pytest.mark.parametrize("step", ["logged", "applied"])
def test_a_rollback_that_was_killed_is_cancelled_by_one_to_what_was_shown(
    world: World, step: str
) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    second = world.land(row("A", 2, version=2), gone("B", version=2))
    world.killed(first, step)

    world.rollback(second)

    assert world.shown() == {"A": 2}
    world.rebuild()
    assert world.shown() == {"A": 2}
    world.holds()


def test_completing_a_rollback_may_be_killed_too(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    second = world.land(row("A", 2, version=2))
    world.land(row("A", 3, version=3))
    world.killed(first, "logged")
    world.killed(second, "completed")
    world.clock.advance(timedelta(days=3).total_seconds())

    assert world.rollback(second).completed == 0
    assert world.shown() == {"A": 2}
    world.rebuild()
    assert world.shown() == {"A": 2}


def test_a_rollback_that_was_killed_days_ago_is_completed(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    second = world.land(row("A", 2, version=2))
    world.killed(first, "logged")
    world.clock.advance(timedelta(days=40).total_seconds())

    assert world.rollback(second).completed == 1
    assert world.shown() == {"A": 2}
    world.rebuild()
    assert world.shown() == {"A": 2}


def test_the_state_that_is_gone_back_to_may_expire_while_another_is_completed(
    world: World, ticking: Callable[[timedelta], None]
) -> None:
    ids = []
    for number in range(120):
        ids.append(world.land(row("A", number + 1, version=number + 1)))
        ticking(timedelta(seconds=1))
    world.killed(ids[-2], "logged")
    oldest = history(world.rows.view().table)[0].snapshot_id

    world.rollback(oldest)

    assert world.shown() == {"A": ids.index(oldest) + 1}
    assert oldest not in [one.snapshot_id for one in history(world.rows.view().table)]


def test_a_rollback_to_a_state_that_expired_is_refused_and_names_what_is_kept(
    world: World, ticking: Callable[[timedelta], None]
) -> None:
    ids = []
    for number in range(120):
        ids.append(world.land(row("A", number + 1, version=number + 1)))
        ticking(timedelta(minutes=1))
    table = world.rows.view().table
    expired = AT.replace(hour=9, minute=20)
    pointer = world.site.pointer(world.lake, "sales")

    seen = Rollback(world.lake, Sale, now=world.clock, by="tester").look(expired)
    with pytest.raises(StateExpiredError) as refused:
        world.rollback(expired)

    before, after = refused.value.before, refused.value.after
    assert world.site.pointer(world.lake, "sales") == pointer
    assert str(before.snapshot_id) in str(refused.value)
    assert str(after.snapshot_id) in str(refused.value)
    assert past(table, expired).snapshot == before
    assert seen.to_json()["exact"] is False
    assert str(seen.expired) == str(refused.value)
    world.rollback(before.snapshot_id)
    assert world.shown() == {"A": ids.index(before.snapshot_id) + 1}


def test_a_change_that_comes_while_a_rollback_runs_is_newer(world: World) -> None:
    first = world.land(row("A", 1, version=1), row("B", 1, version=1))
    world.land(row("A", 2, version=2), row("B", 2, version=2))
    other = world.site.open()

    def meanwhile(step: str) -> None:
        if step == "logged":
            world.again([placed(Sale, next(world.at), **row("A", 7, version=7))], other)

    world.rollback(first, on_step=meanwhile)
    other.close()

    assert world.shown() == {"A": 7, "B": 1}
    world.holds()


def test_a_rollback_that_is_only_looked_at_changes_nothing(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    world.land(row("A", 2, version=2))
    pointer = world.site.pointer(world.lake, "sales")

    found = Rollback(world.lake, Sale, now=world.clock, by="tester").look(first)

    assert (found.restored, found.snapshot_id) == (1, None)
    assert world.site.pointer(world.lake, "sales") == pointer


def test_what_an_erasure_is_about_to_remove_does_not_come_back(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    world.land(gone("A", version=2))
    world.site.objects.put("erasures/sales-0123.json", b"[]")

    with pytest.raises(ErasureUnfinishedError):
        world.rollback(first)

    assert world.shown() == {}


def test_the_state_of_then_is_read_in_the_columns_of_then(world: World) -> None:
    first = world.land(row("A", 1, version=1))
    table = world.rows.view().table

    then = past(table, first)

    assert isinstance(then, Past)
    assert then.schema.column_names == table.schema().column_names
    assert [file.record_count for file in then.files] == [1]
