"""Two writers of one key, every pair of changes, the second one at every step of the first (laws
L1, L2, L3).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from freshet.arrow import POSITION, VERSION, PlacedEvent
from freshet.event import json_row
from freshet.model import ModelChange, current_state, supersedes
from freshet.tables import Sale
from freshet.testing import MemoryObjects, sale_row
from lake.lake import Lake
from lake.steps import Step
from lake.testing import LakeSite, batch, placed, told, waiting

STEPS = tuple(step for step in Step if step not in (Step.QUARANTINED, Step.LOGGED, Step.RECORDED))
KINDS = ("row", "moved", "delete", "patch")
# Versions: what is there 1, the interrupted writer's 3, the intruder's older or newer.
BEFORE, OWN, OLDER, NEWER = 1, 3, 2, 4


@dataclass
class Intruder:
    """At its step, once, applies its batch through another writer."""

    writer: Lake
    step: Step | None = None
    events: tuple[PlacedEvent, ...] = ()
    came: bool = False

    def __call__(self, step: Step) -> None:
        if step is self.step:
            self.step, self.came = None, True
            self.writer.apply("sales", batch(Sale, self.events), {})


class Stream:
    """Numbers changes and remembers all of them for the model."""

    def __init__(self) -> None:
        self.events: list[PlacedEvent] = []

    def change(self, key: str, kind: str, version: int) -> PlacedEvent:
        """A patch moves the row too, to a third day."""
        days = {"moved": "2010-12-02T08:26:00Z", "patch": "2010-12-03T08:26:00Z"}
        sold_at = days.get(kind, "2010-12-01T08:26:00Z")
        is_row = kind in ("row", "moved")
        event = placed(
            Sale,
            len(self.events),
            version=version,
            key={"sale_id": key},
            after=sale_row(key, sold_at=sold_at, quantity=version) if is_row else None,
            patch={"sold_at": sold_at} if kind == "patch" else None,
        )
        self.events.append(event)
        return event

    def model(self) -> dict[Any, ModelChange]:
        return current_state(told(event, Sale) for event in self.events)


@dataclass(frozen=True)
class Race:
    """Two changes of a row, and the step of the first at which the second one comes."""

    own: str
    theirs: str
    their_version: int
    step: Step
    neighbour: bool = False  # the second one's batch changes another row too
    they_are_earlier: bool = False  # in the stream, which decides between equal versions


def races() -> Iterator[Race]:
    for own, theirs, step in itertools.product(KINDS, KINDS, STEPS):
        yield Race(own, theirs, OLDER, step)
        yield Race(own, theirs, NEWER, step)
        if theirs == "delete":
            yield Race(own, theirs, NEWER, step, neighbour=True)
        yield Race(own, theirs, OWN, step)
        yield Race(own, theirs, OWN, step, they_are_earlier=True)


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "before", [pytest.param("nothing", marks=LONG), pytest.param("row", marks=LONG), "delete"]
)
def test_every_pair_of_changes_at_every_step_converges(before: str, tmp_path: Path) -> None:
    site, stream = LakeSite(MemoryObjects(), tmp_path / "catalog.db"), Stream()
    intruder = Intruder(site.open())
    writer = site.open(on_step=intruder)
    plan = list(enumerate(races()))
    if before != "nothing":
        first = [stream.change(f"k-{number}", before, BEFORE) for number, _ in plan]
        writer.apply("sales", batch(Sale, first), {})
    reached = set()

    for number, race in plan:
        mine, theirs = changes_of(race, number, stream)
        intruder.step, intruder.events, intruder.came = race.step, theirs, False
        writer.apply("sales", batch(Sale, [mine]), {})
        if intruder.came:
            reached.add(race.step)
        else:
            intruder(race.step)

    assert reached == set(STEPS)
    check(site.open(), stream)


def changes_of(
    race: Race, number: int, stream: Stream
) -> tuple[PlacedEvent, tuple[PlacedEvent, ...]]:
    key = f"k-{number}"
    if race.they_are_earlier:
        theirs = stream.change(key, race.theirs, race.their_version)
        return stream.change(key, race.own, OWN), (theirs,)
    mine = stream.change(key, race.own, OWN)
    theirs = stream.change(key, race.theirs, race.their_version)
    others = (stream.change(f"n-{number}", "row", 1),) if race.neighbour else ()
    return mine, (theirs, *others)


def check(lake: Lake, stream: Stream) -> None:
    model = stream.model()
    rows = {(row["sale_id"],): row for row in lake.rows("sales").to_pylist()}
    assert lake.rows("sales").num_rows == len(rows)
    assert {
        key: (row[VERSION], row["sold_at"].day, row["quantity"]) for key, row in rows.items()
    } == {
        key: (change.version, change.after["sold_at"].day, change.after["quantity"])
        for key, change in model.items()
        if change.after is not None
    }
    table = lake.current("sales").tombstones
    tombstones = {(row["sale_id"],): row for row in table.read_all(table.view()).to_pylist()}
    assert all(
        tombstones[key][VERSION] == change.version
        for key, change in model.items()
        if change.after is None
    )
    assert not any(
        supersedes(ModelChange(key, row[VERSION], row[POSITION], None), model[key])
        for key, row in tombstones.items()
    )
    waits = {key: json_row(change.patch) for key, change in model.items() if change.patch}
    assert waiting(lake, Sale) == waits


def test_a_row_that_tied_with_two_deletes_stays_deleted_when_it_comes_again(
    tmp_path: Path,
) -> None:
    """A tombstone once kept the first delete's position, and the row between them came back."""
    site, stream = LakeSite(MemoryObjects(), tmp_path / "catalog.db"), Stream()
    lake = site.open()
    history = [stream.change("k", kind, OWN) for kind in ("delete", "row", "delete")]
    for event in history:
        lake.apply("sales", batch(Sale, [event]), {})
    before = site.pointer(lake, "sales")

    receipts = [lake.apply("sales", batch(Sale, [event]), {}).receipt for event in history]

    assert lake.rows("sales").num_rows == 0
    assert [(r.duplicate, r.stale) for r in receipts] == [(1, 0), (0, 1), (1, 0)]
    assert site.pointer(lake, "sales") == before
