"""Maintenance beyond the vacuum: compaction, pruning, expiry. Rows stay as they are."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyiceberg.manifest import DataFile
from tests.integration.test_travel import Crash, World, gone, row

from freshet.arrow import PlacedEvent
from freshet.clock import micros
from freshet.tables import TABLES, Sale
from freshet.testing import MemoryObjects
from freshet.wire import Decoded, decode_record
from lake.compaction import FILE_BYTES_MAX, IDLE, Bin, Compaction, Placed, plan
from lake.lake import Lake
from lake.log import QUARANTINE, LoggedEvent, Place
from lake.maintain import MANIFESTS_IDLE_MAX, Maintained, Maintenance
from lake.prune import HORIZON, PRUNED_BEFORE, Prune, bury_again, forgotten, pruned_before
from lake.rebuild import rebuild
from lake.replay import Again, Wanted, replay_quarantine
from lake.replay import quarantined as open_lines
from lake.retention import Retention
from lake.rollback import Rollback
from lake.snapshot import CommitConflictError, manifests_of
from lake.steps import Step
from lake.table import KeyedTable, View
from lake.testing import LakeSite, batch, placed, waiting
from lake.travel import history, rows_at
from lake.vacuum import Outcome
from lake.verify import verify_table

# Later than any clock this runs under: a table is never older than its making, which no test moves.
NOW = datetime(2126, 11, 21, 8, 30, tzinfo=UTC)
DAY = timedelta(days=1)
ROWS_MAX = 10


class Clock:
    """The time of commits and of maintenance alike."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("lake.snapshot.time.time", lambda: clock().timestamp())
    return clock


@pytest.fixture
def site(tmp_path: Path) -> LakeSite:
    return LakeSite(MemoryObjects(), tmp_path / "catalog.db")


@pytest.fixture
def world(site: LakeSite) -> Iterator[World]:
    """Whose files are full at ten rows."""
    world = World(site)
    world.lake.close()
    world.lake = site.open(file_rows_max=ROWS_MAX)
    yield world
    world.lake.close()


def everything(world: World, keyed: KeyedTable | None = None) -> list[dict[str, Any]]:
    """All rows with the lake's own columns, ordered by key."""
    keyed = keyed or world.rows
    rows = keyed.read_all(keyed.view())
    return list(rows.sort_by("sale_id").to_pylist())


def files(world: World) -> list[int]:
    return sorted(file.record_count for file in world.rows.view().files)


def maintained(world: World, clock: Clock, **options: Any) -> dict[str, Maintained]:
    run = {name: options.pop(name) for name in ("dry_run", "left_s") if name in options}
    done = Maintenance(world.lake, now=clock, **options).run([Sale], **run)
    return {one.table: one for one in done}


def fragments(world: World) -> None:
    """A day in three files of which deletes have left little, and two patched rows."""
    world.land(*(row(f"S-{n:02d}", n, version=1) for n in range(30)))
    world.land(*(gone(f"S-{n:02d}", version=2) for n in range(30) if n % 10 > 1))
    world.land({"key": {"sale_id": "S-00"}, "patch": {"quantity": 77}, "version": 3})


def test_small_files_of_an_idle_partition_become_one_and_rows_stay_as_they_are(
    world: World, clock: Clock
) -> None:
    fragments(world)
    before, shown = everything(world), files(world)
    clock.advance(IDLE + timedelta(seconds=1))

    done = maintained(world, clock)["sales"]

    assert shown == [2, 2, 2]
    assert files(world) == [6]
    assert (done.outcome, done.tidied.merged, done.tidied.made) == (Outcome.DONE, 3, 1)
    assert everything(world) == before
    assert any(one["_patches"] for one in before)
    last = history(world.rows.view().table)[-1]
    assert (last.operation, last.reason, last.rows) == ("replace", "compaction", 6)
    world.holds()


def test_a_second_run_finds_nothing_to_do(world: World, clock: Clock) -> None:
    fragments(world)
    clock.advance(2 * IDLE)
    maintained(world, clock)
    pointer = world.rows.view().table.metadata_location
    clock.advance(2 * IDLE)

    done = maintained(world, clock)["sales"]

    assert (done.tidied.merged, done.tidied.left) == (0, 0)
    assert world.rows.view().table.metadata_location == pointer


def test_a_partition_that_was_written_to_lately_is_left_alone(world: World, clock: Clock) -> None:
    fragments(world)
    clock.advance(IDLE / 2)

    assert maintained(world, clock)["sales"].tidied.merged == 0
    assert files(world) == [2, 2, 2]


def test_a_fat_file_is_split(site: LakeSite, world: World, clock: Clock) -> None:
    wide = site.open(file_rows_max=100)
    world.lake, narrow = wide, world.lake
    world.land(*(row(f"S-{n:02d}", n, version=1) for n in range(35)))
    before = everything(world)
    wide.close()
    world.lake = narrow
    clock.advance(2 * IDLE)

    done = maintained(world, clock)["sales"].tidied

    assert files(world) == [8, 9, 9, 9]
    assert (done.merged, done.made) == (1, 4)
    assert everything(world) == before


def test_compaction_tries_again_what_another_writer_did_not_touch(
    site: LakeSite, world: World, clock: Clock
) -> None:
    for day in (1, 2):
        world.land(*(row(f"{day}-{n:02d}", n, version=1, day=day) for n in range(30)))
        world.land(*(gone(f"{day}-{n:02d}", version=2) for n in range(30) if n % 10 > 1))
    clock.advance(2 * IDLE)
    writer, mine = site.open(file_rows_max=ROWS_MAX), world.lake
    compaction = Compaction(world.rows)
    view, bins = world.rows.view(), compaction.look(clock.now)
    rewrites = list(compaction._rewrites(view, bins, lambda: 9.0))
    world.lake = writer
    world.land(row("1-00", 55, version=9))
    world.lake = mine

    done = compaction._commit(view, rewrites)

    assert (len(bins), len(done or [])) == (2, 1)
    assert files(world) == [2, 2, 2, 6]
    assert world.shown()["1-00"] == 55
    writer.close()
    world.holds()


def test_compaction_that_keeps_losing_gives_way(
    site: LakeSite, world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fragments(world)
    clock.advance(2 * IDLE)
    before = everything(world)

    def lost(*_args: Any, **_options: Any) -> int:
        raise CommitConflictError("another was first")

    monkeypatch.setattr(KeyedTable, "commit", lost)

    done = maintained(world, clock)["sales"]

    assert done.outcome is Outcome.GAVE_WAY
    assert "other writers" in done.detail
    assert everything(world) == before


def test_a_run_out_of_time_leaves_the_rest_to_the_next(world: World, clock: Clock) -> None:
    for day in range(1, 5):
        world.land(*(row(f"{day}-{n:02d}", n, version=1, day=day) for n in range(20)))
        world.land(*(gone(f"{day}-{n:02d}", version=2) for n in range(20) if n % 10 > 1))
    before = everything(world)
    clock.advance(2 * IDLE)
    looks = iter([9.0] * 3)

    done = Compaction(world.rows).run(clock.now, lambda: next(looks, 0.0))
    some = len(files(world))
    rest = Compaction(world.rows).run(clock.now, lambda: 9.0)

    assert (done.files, done.left) == (4, 2)
    assert some == 6
    assert (rest.files, rest.left, len(files(world))) == (4, 0, 4)
    assert everything(world) == before


def test_a_dry_run_says_what_there_is_and_does_nothing(world: World, clock: Clock) -> None:
    fragments(world)
    clock.advance(HORIZON + DAY)
    pointer = world.site.pointer(world.lake, "sales")

    done = maintained(world, clock, dry_run=True)

    assert (done["sales"].tidied.merged, done["sales"].tidied.made) == (3, 1)
    assert done["sales_tombstones"].tidied.tombstones_pruned == 24
    assert world.site.pointer(world.lake, "sales") == pointer


def test_a_table_nobody_has_written_to_is_not_made(world: World, clock: Clock) -> None:
    done = maintained(world, clock)

    assert {one.outcome for one in done.values()} == {Outcome.ABSENT}
    assert list(world.site.objects.list("")) == []


def test_an_idle_table_lets_go_of_snapshots(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        world.land(row("A", number, version=number + 1))
    retention = Retention(newest=2, hours=0, days=0)
    for module in ("lake.maintain", "lake.snapshot"):
        monkeypatch.setattr(f"{module}.RETENTION", retention)

    done = maintained(world, clock)["sales"]

    assert done.tidied.snapshots_expired == 3
    assert len(history(world.rows.view().table)) == 2
    assert world.shown() == {"A": 4}


def test_a_writer_beside_whom_snapshots_were_expired_plans_again(
    site: LakeSite, world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expiry alone moves no snapshot: what the writer would expire is not there any more."""
    for number in range(5):
        world.land(row("A", number, version=number + 1))
    keyed = site.open().current("sales").rows
    view = keyed.view()
    for module in ("lake.maintain", "lake.snapshot"):
        monkeypatch.setattr(f"{module}.RETENTION", Retention(newest=2, hours=0, days=0))
    maintained(world, clock)

    with pytest.raises(CommitConflictError, match="does not exist"):
        keyed.commit(view, [], {})

    world.land(row("A", 9, version=9))
    assert world.shown() == {"A": 9}


def test_manifests_of_an_idle_table_become_one_and_history_stays(
    world: World, clock: Clock
) -> None:
    for day in range(1, 9):
        world.land(row(f"S-{day}", 1, version=1, day=day))
    many = len(manifests_of(world.rows.view().table))
    before, known = everything(world), len(history(world.rows.view().table))
    clock.advance(2 * IDLE)

    done = maintained(world, clock)["sales"]

    table = world.rows.view().table
    assert many > MANIFESTS_IDLE_MAX
    assert (done.tidied.manifests, len(manifests_of(table))) == (many, 1)
    assert everything(world) == before
    assert len(history(table)) == known + 1
    world.holds()


def graves(world: World) -> set[str]:
    return {one["sale_id"] for one in everything(world, world.lake.current("sales").tombstones)}


def test_only_tombstones_as_old_as_the_horizon_are_pruned(world: World, clock: Clock) -> None:
    world.land(row("A", 1, version=1), row("B", 1, version=1), row("C", 1, version=1))
    world.land(gone("A", version=2))
    clock.advance(2 * DAY)
    world.land(gone("B", version=2))
    clock.advance(HORIZON - DAY)

    done = maintained(world, clock)["sales_tombstones"]

    assert done.tidied.tombstones_pruned == 1
    assert graves(world) == {"B"}
    assert pruned_before(world.lake.current("sales").tombstones.view()) == clock.now - HORIZON
    world.holds()


def test_a_tombstone_that_was_raised_lately_is_young(world: World, clock: Clock) -> None:
    world.land(gone("A", version=2))
    clock.advance(HORIZON)
    world.land(gone("A", version=3))
    clock.advance(DAY)

    assert maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned == 0


def test_what_was_pruned_and_came_again_is_not_taken_for_old(world: World, clock: Clock) -> None:
    world.land(gone("A", version=2), gone("B", version=2))
    clock.advance(HORIZON + DAY)
    maintained(world, clock)
    world.land(gone("A", version=2))
    clock.advance(HORIZON - DAY)

    soon = maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned
    clock.advance(2 * DAY)
    later = maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned

    assert (soon, later) == (0, 1)


def test_what_came_again_is_young_also_where_history_keeps_midnights_only(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest snapshot that is retained of a horizon ago is from before it went."""
    monkeypatch.setattr("lake.snapshot.RETENTION", Retention(newest=1, hours=0))
    hour = timedelta(hours=1)
    world.land(gone("A", version=2))
    clock.advance(HORIZON + hour)
    assert maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned == 1
    clock.advance(5 * hour)
    old = placed(Sale, 1, **row("A", 1, version=1))
    bury_again(world.lake, [logged(old, NOW - DAY)])
    clock.advance(hour)
    world.land(gone("B", version=2))
    retained = history(world.lake.current("sales").tombstones.view().table)

    clock.advance(HORIZON - 3 * hour)
    soon = maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned
    world.land(row("A", 1, version=1))
    clock.advance(DAY)
    later = maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned

    assert [one.committed_at - NOW for one in retained] == [timedelta(), HORIZON + 7 * hour]
    assert (soon, later) == (0, 2)
    assert world.shown() == {}
    world.holds()


def test_a_prune_that_others_came_before_counts_from_its_own_commit(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the clock and the swap there is time for a snapshot."""
    world.land(gone("A", version=2))
    clock.advance(HORIZON + DAY)
    began = clock.now
    look_at = Prune._look_at

    def slow(self: Prune, *args: Any) -> None:
        if clock.now == began:
            clock.advance(2 * timedelta(hours=1))
            world.land(gone("B", version=2))
            clock.advance(2 * timedelta(hours=1))
        look_at(self, *args)

    monkeypatch.setattr(Prune, "_look_at", slow)
    first = Prune(world.lake, Sale, HORIZON).run(began)
    old = placed(Sale, 1, **row("A", 1, version=1))
    bury_again(world.lake, [logged(old, NOW - DAY)])
    clock.now = began + HORIZON + timedelta(hours=3)

    assert first.tombstones == 1
    assert Prune(world.lake, Sale, HORIZON).run(clock.now).tombstones == 0


def test_nothing_is_pruned_where_history_does_not_reach(
    world: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lake.snapshot.RETENTION", Retention(newest=1, hours=0, days=0))
    world.land(gone("A", version=2))
    clock.advance(HORIZON + DAY)
    world.land(gone("B", version=2))

    assert maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned == 0
    assert graves(world) == {"A", "B"}


def test_pruning_can_be_off(world: World, clock: Clock) -> None:
    world.land(gone("A", version=2))
    clock.advance(2 * HORIZON)

    maintained(world, clock, horizon=None)

    assert graves(world) == {"A"}


def patch(key: str, quantity: int, *, version: int) -> dict[str, Any]:
    return {"key": {"sale_id": key}, "patch": {"quantity": quantity}, "version": version}


def quarantined(lake: Lake) -> list[dict[str, Any]]:
    return [line for part in lake.log(QUARANTINE) for line in part.to_pylist()]


def test_what_waited_for_a_row_in_vain_goes_to_the_quarantine_first(
    world: World, clock: Clock
) -> None:
    world.land(patch("A", 5, version=3), patch("B", 6, version=4))
    world.land(row("B", 1, version=1))
    clock.advance(HORIZON + DAY)
    seen = maintained(world, clock, dry_run=True)["sales_tombstones"].tidied

    done = maintained(world, clock)["sales_tombstones"].tidied

    assert (seen.quarantined, done.quarantined) == (1, 1)
    assert waiting(world.lake, Sale) == {}
    [line] = quarantined(world.lake)
    assert (line["reason"], line["shard_id"]) == ("no_row", "shard-0")
    [part] = decode_record(line["data"], TABLES, arrived_at=line["arrived_at"])
    assert isinstance(part, Decoded)
    assert (part.event.key, part.event.patch) == ({"sale_id": "A"}, {"quantity": 5})
    assert (part.event.version, part.event.source) == (3, "test")
    # B had its row: what waited is in it.
    assert world.shown() == {"B": 6}
    world.holds()


def test_what_went_to_the_quarantine_lands_when_its_row_is_there(
    world: World, clock: Clock
) -> None:
    world.land(patch("A", 5, version=3))
    clock.advance(HORIZON + DAY)
    maintained(world, clock)
    world.land(row("A", 1, version=1))
    [line] = quarantined(world.lake)
    [part] = decode_record(line["data"], TABLES, arrived_at=line["arrived_at"])
    assert isinstance(part, Decoded)

    event = PlacedEvent(part.event, line["position"])
    world.lake.apply("sales", batch(Sale, [event]), {})

    assert world.shown() == {"A": 5}
    world.holds()


def dies_between_quarantine_and_commit(world: World, clock: Clock) -> None:
    def crash(step: Step) -> None:
        if step is Step.QUARANTINED:
            raise Crash

    dying = world.site.open(on_step=crash)
    with pytest.raises(Crash):
        Prune(dying, Sale, HORIZON).run(clock.now)
    dying.close()


def test_a_run_killed_between_quarantine_and_commit_is_finished_by_the_next(
    world: World, clock: Clock
) -> None:
    world.land(patch("A", 5, version=3))
    clock.advance(HORIZON + DAY)
    dies_between_quarantine_and_commit(world, clock)
    waited = dict(waiting(world.lake, Sale))

    maintained(world, clock)

    assert waited == {("A",): {"quantity": 5}}
    assert waiting(world.lake, Sale) == {}
    assert len(quarantined(world.lake)) == 1


@pytest.mark.parametrize("is_logged", [True, False])
def test_a_killed_run_is_finished_by_one_that_finds_more_with_every_line_once(
    world: World, clock: Clock, is_logged: bool
) -> None:
    """Also where the log has expired and cannot say any more when they arrived."""
    for at, key in enumerate("AB", start=1):
        event = placed(Sale, at, **patch(key, at, version=3))
        if is_logged:
            world.again([event])
        else:
            world.lake.apply("sales", batch(Sale, [event]), {})
        clock.advance(DAY)
    clock.advance(HORIZON - 1.5 * DAY)
    dies_between_quarantine_and_commit(world, clock)
    kept = [line["position"] for line in quarantined(world.lake)]
    clock.advance(DAY)

    done = maintained(world, clock)["sales_tombstones"].tidied

    lines = quarantined(world.lake)
    places = [line["position"] for line in lines]
    assert (len(kept), len(places), len(set(places))) == (1, 2, 2)
    assert (done.tombstones_pruned, done.quarantined) == (2, 1)
    assert waiting(world.lake, Sale) == {}
    assert all(line["arrived_at"] <= clock.now - HORIZON for line in lines)


@pytest.mark.parametrize("is_logged", [True, False])
def test_what_was_replayed_and_waited_in_vain_again_is_open_again(
    world: World, clock: Clock, is_logged: bool
) -> None:
    event = placed(Sale, 1, **patch("A", 5, version=3))
    if is_logged:
        world.again([event])
    else:
        world.lake.apply("sales", batch(Sale, [event]), {})
    again = Again(
        world.lake, TABLES, lambda data, at: decode_record(data, TABLES, arrived_at=at), clock, "me"
    )

    opened = []
    for _ in range(3):
        clock.advance(HORIZON + DAY)
        dies_between_quarantine_and_commit(world, clock)
        maintained(world, clock)
        opened.append([one.line.place.position for one in open_lines(world.lake, Wanted())])
        clock.advance(timedelta(hours=1))
        replay_quarantine(again, Wanted())

    assert opened == [[event.position]] * 3
    assert len(quarantined(world.lake)) == 3
    assert waiting(world.lake, Sale) == {("A",): {"quantity": 5}}


@pytest.fixture
def graveyard(site: LakeSite, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Thirty tombstones in three files."""
    world.lake.close()
    monkeypatch.setattr("lake.lake.TOMBSTONE_ROWS_MAX", ROWS_MAX)
    world.lake = site.open(file_rows_max=ROWS_MAX)
    for start in range(0, 30, 10):
        world.land(*(gone(f"S-{n:02d}", version=2) for n in range(start, start + 10)))
    return world


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many files were read, each time that pruning reads some."""
    read: list[int] = []

    def rows_at_watched(keyed: KeyedTable, view: View, files: Sequence[DataFile]) -> pa.Table:
        read.append(len(files))
        return rows_at(keyed, view, files)

    monkeypatch.setattr("lake.prune.rows_at", rows_at_watched)
    return read


def test_files_that_nothing_waits_in_go_unread_if_they_are_as_old(
    graveyard: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = watched(monkeypatch)
    clock.advance(HORIZON + DAY)

    done = Prune(graveyard.lake, Sale, HORIZON).run(clock.now)

    assert (done.tombstones, graves(graveyard), read) == (30, set(), [])


@pytest.mark.parametrize("at_once", [1, 2, 8])
def test_files_that_came_since_are_told_apart_row_by_row_some_at_a_time(
    graveyard: World, clock: Clock, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr("lake.prune.FILES_AT_ONCE", at_once)
    clock.advance(HORIZON)
    graveyard.land(*(gone(f"S-{n}5", version=3) for n in range(3)))
    read = watched(monkeypatch)
    clock.advance(DAY)

    done = Prune(graveyard.lake, Sale, HORIZON).run(clock.now)

    assert (done.tombstones, graves(graveyard)) == (27, {"S-05", "S-15", "S-25"})
    groups = -(-3 // at_once)
    assert read == [1] * (3 + groups * 3)


def test_pruning_out_of_time_lets_go_of_what_it_looked_at(graveyard: World, clock: Clock) -> None:
    clock.advance(HORIZON + DAY)
    looks = iter([9.0])

    done = Prune(graveyard.lake, Sale, HORIZON).run(clock.now, lambda: next(looks, 0.0))
    left = graves(graveyard)
    soon = Prune(graveyard.lake, Sale, HORIZON).run(clock.now + DAY)
    clock.advance(HORIZON)
    later = Prune(graveyard.lake, Sale, HORIZON).run(clock.now)

    assert (done.tombstones, done.unfinished, len(left)) == (20, True, 10)
    assert (soon.tombstones, later.tombstones, later.unfinished) == (0, 10, False)
    graveyard.holds()


def test_pruning_that_lost_a_race_looks_only_at_what_the_other_touched(
    site: LakeSite, graveyard: World, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock.advance(HORIZON + DAY)
    writer, mine, waiting_of = site.open(), graveyard.lake, Prune._waiting
    looked: list[int] = []

    def beside(self: Prune, view: View, rows: pa.Table | None) -> Any:
        looked.append(view.snapshot_id or 0)
        if len(looked) == 1:
            graveyard.lake = writer
            graveyard.land(gone("S-05", version=3))
            graveyard.lake = mine
        return waiting_of(self, view, rows)

    monkeypatch.setattr(Prune, "_waiting", beside)

    done = Prune(mine, Sale, HORIZON).run(clock.now)
    writer.close()

    assert [looked.count(one) for one in dict.fromkeys(looked)] == [3, 1]
    assert (done.tombstones, graves(graveyard)) == (29, {"S-05"})


def test_a_replay_of_what_is_older_takes_the_forgotten_deletes_along(
    world: World, clock: Clock
) -> None:
    """Else it would bring back a row whose tombstone was pruned."""
    old = placed(Sale, 1, **row("A", 1, version=1))
    world.land(row("A", 1, version=1), row("B", 1, version=1))
    world.land(gone("A", version=2))
    never_pruned = forgotten(world.lake, Sale, [logged(old, NOW)])
    clock.advance(HORIZON + DAY)
    maintained(world, clock)
    assert graves(world) == set()

    dead = forgotten(world.lake, Sale, [logged(old, NOW - DAY)])
    world.lake.apply("sales", batch(Sale, [old, *dead]), {})

    assert never_pruned == []
    assert [(one.event.key, one.event.version) for one in dead] == [({"sale_id": "A"}, 2)]
    # A change of these days has its tombstone still, if there is one.
    assert forgotten(world.lake, Sale, [logged(old, clock.now)]) == []
    assert world.shown() == {"B": 1}
    world.holds()


def logged(event: PlacedEvent, arrived_at: datetime) -> LoggedEvent:
    return LoggedEvent(event.event, Place("shard-0", "1", 0, event.position, arrived_at))


def test_verify_still_tells_a_lost_tombstone_from_a_pruned_one(world: World, clock: Clock) -> None:
    """A delete that arrived after what was pruned must have its tombstone."""
    world.land(gone("A", version=2))
    tombstones = world.lake.current("sales").tombstones
    view = tombstones.view()
    rewrite = tombstones.remake(view, view.files, lambda rows: rows.slice(0, 0), 1)
    tombstones.commit(view, [rewrite], {}, properties={PRUNED_BEFORE: "1000"})

    findings = [finding for check in verify_table(world.lake, Sale) for finding in check.findings]

    assert findings == ["A was deleted at version 2: no tombstone"]


# The plan, which is pure


def sized(number: int, rows: int, size: int = 1000) -> DataFile:
    return DataFile.from_args(
        file_path=f"file-{number:04d}", record_count=rows, file_size_in_bytes=size
    )


IDLE_SINCE = micros(NOW - IDLE) // 1000


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 45), st.booleans()), max_size=40))
def test_a_plan_touches_each_file_once_keeps_to_partitions_and_makes_files_fewer_or_fit(
    drawn: list[tuple[int, int, bool]],
) -> None:
    placed = [
        Placed(sized(n, rows), (partition,), IDLE_SINCE + (1 if busy else -1))
        for n, (partition, rows, busy) in enumerate(drawn)
    ]
    home = {one.file.file_path: one.partition for one in placed}
    busy = {one.partition for one in placed if one.added_ms > IDLE_SINCE}

    bins = plan(placed, IDLE_SINCE, ROWS_MAX)

    touched = [file.file_path for one in bins for file in one.files]
    assert len(touched) == len(set(touched))
    for one in bins:
        [partition] = {home[file.file_path] for file in one.files}
        assert partition not in busy
        assert one.parts < len(one.files) or one.rows > ROWS_MAX
        assert -(-one.rows // one.parts) <= ROWS_MAX
    small = [
        one
        for one in placed
        if 2 * one.file.record_count < ROWS_MAX and one.file.file_path not in touched
    ]
    left = [one.partition for one in small if one.partition not in busy]
    # What is left alone over is one file of a partition that found no company.
    assert len(left) == len(set(left))


def test_a_file_of_few_wide_rows_is_split_by_its_bytes() -> None:
    wide = sized(1, 4, 3 * FILE_BYTES_MAX)

    assert plan([Placed(wide, (), 0)], IDLE_SINCE, ROWS_MAX) == [Bin((wide,), 3)]


def test_one_row_that_is_too_wide_stays() -> None:
    assert plan([Placed(sized(1, 1, 3 * FILE_BYTES_MAX), (), 0)], IDLE_SINCE, ROWS_MAX) == []


def test_the_report_is_json(world: World, clock: Clock) -> None:
    fragments(world)

    told = [one.to_json() for one in maintained(world, clock).values()]

    assert json.loads(json.dumps(told)) == told
    assert told[0]["table"] == "sales"
    assert {"merged", "made", "deleted", "left", "bins_left", "quarantined"} <= told[0].keys()


def test_a_rollback_over_a_pruned_delete_stands_when_the_log_is_replayed_or_the_table_rebuilt(
    world: World, clock: Clock
) -> None:
    before = world.land(row("A", 1, version=1), row("B", 1, version=1))
    clock.advance(timedelta(days=1))
    world.land(gone("A", version=9))
    clock.advance(HORIZON + timedelta(days=1))
    assert maintained(world, clock)["sales_tombstones"].tidied.tombstones_pruned == 1

    Rollback(world.lake, Sale, now=clock, by="tester").run(before)

    [back] = [one for one in everything(world) if one["sale_id"] == "A"]
    assert back["_version"] == 10
    assert [one.findings for one in verify_table(world.lake, Sale) if not one.holds] == []
    again = Again(world.lake, TABLES, lambda _data, _at: (), clock, "tester")
    rebuild(again, Sale, wait=lambda _: None)
    assert world.shown() == {"A": 1, "B": 1}
