"""Vacuum's decision over any history of files, commits and looks (law L6)."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from itertools import accumulate, chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freshet.testing import EPOCH
from lake.vacuum import COMMIT_MAX, GRACE_MIN, Look, Mark, plan

GRACE = GRACE_MIN // timedelta(minutes=1)
COMMITS = COMMIT_MAX // timedelta(minutes=1)
NEVER = 10**9
RUNS_MAX = 5
# Later than every history.
END = 10_000


def at(minute: int) -> datetime:
    return EPOCH + timedelta(minutes=minute)


@dataclass(frozen=True)
class File:
    """A file's life in minutes: written, referenced from its commit on, until it was replaced."""

    name: str
    written: int
    committed: int
    replaced: int

    def is_referenced(self, minute: int) -> bool:
        return self.committed <= minute < self.replaced

    @property
    def needed_until(self) -> int:
        """The last minute in which someone might begin to need it."""
        return self.written if self.committed == NEVER else self.replaced


@dataclass(frozen=True)
class Run:
    """When a run began, listed, read references and ended."""

    began: int
    listed: int
    read: int
    ended: int


@st.composite
def runs(draw: st.DrawFn) -> list[Run]:
    """Runs one after another; some take longer than the grace."""
    pause = st.sampled_from((1, COMMITS - 1, GRACE, GRACE + COMMITS))
    takes = st.sampled_from((0, 0, 0, COMMITS))
    gaps = draw(st.lists(st.tuples(pause, takes, takes, takes), min_size=3, max_size=RUNS_MAX))
    moments = list(accumulate(chain.from_iterable(gaps)))
    return [Run(*moments[at : at + 4]) for at in range(0, len(moments), 4)]


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[File], list[Run]]:
    """Runs, and files whose lives turn just before or after one of their moments."""
    schedule = draw(runs())
    moments = sorted({moment for run in schedule for moment in astuple(run)})
    near = st.sampled_from(moments).flatmap(lambda moment: st.integers(moment, moment + 1))
    lives = []
    for number in range(draw(st.integers(1, 6))):
        written, replaced = sorted((draw(near), draw(near)))
        committed = written + draw(st.sampled_from((0, COMMITS // 2, COMMITS)))
        fate = draw(st.sampled_from(("stays", "is replaced", "was never committed")))
        if fate == "was never committed" or (fate == "is replaced" and replaced <= committed):
            committed = NEVER
        until = replaced if fate == "is replaced" and committed != NEVER else NEVER
        lives.append(File(f"data/{number}", written, committed, until))
    return lives, schedule


# After how many deletions a run is killed, if it is.
KILLS = st.sampled_from((NEVER, NEVER, 0, 1))


class Store:
    """Files that come and go, and the marks between runs."""

    def __init__(self, files: list[File]) -> None:
        self.files, self.deleted_at = files, dict[str, int]()
        self.marks: dict[str, Mark] = {}

    def vacuum(self, run: Run, *, killed_after: int = NEVER) -> None:
        there = [f for f in self.files if f.written <= run.listed and f.name not in self.deleted_at]
        look = Look(
            listed=frozenset(f.name for f in there),
            referenced=frozenset(f.name for f in self.files if f.is_referenced(run.read)),
            began=at(run.began),
            ended=at(run.ended),
        )
        due, self.marks = plan(look, self.marks, timedelta(minutes=GRACE))
        self.deleted_at |= dict.fromkeys(due[:killed_after], run.ended)


@settings(max_examples=1500)
@given(histories(), st.lists(KILLS, min_size=RUNS_MAX, max_size=RUNS_MAX))
def test_nothing_is_deleted_that_someone_may_still_need(
    history: tuple[list[File], list[Run]], kills: list[int]
) -> None:
    files, schedule = history
    store = Store(files)

    for run, killed_after in zip(schedule, kills, strict=False):
        store.vacuum(run, killed_after=killed_after)

    deleted = [file for file in files if file.name in store.deleted_at]
    assert all(store.deleted_at[f.name] >= f.needed_until + GRACE for f in deleted)


@pytest.mark.parametrize(
    ("file", "schedule"),
    [
        (File("quick", 0, COMMITS, 200), [Run(0, 0, 0, 0), Run(1, 1, 1, 1)]),
        (File("slow to end", 0, COMMITS, 200), [Run(0, 0, 0, 0), Run(1, 1, 1, 99)]),
        (File("slow to list", 60, 60 + COMMITS, 200), [Run(0, 60, 60, 60), Run(61, 61, 61, 61)]),
    ],
    ids=lambda value: value.name.replace(" ", "_") if isinstance(value, File) else "",
)
def test_what_two_looks_found_under_way_and_the_third_found_replaced_is_kept(
    file: File, schedule: list[Run]
) -> None:
    """It was unreferenced at every look of a grace, and read a minute before the last."""
    store = Store([file])

    for run in (*schedule, Run(201, 201, 201, 201)):
        store.vacuum(run)

    assert not store.deleted_at


@given(histories())
def test_what_nobody_needs_is_gone_two_looks_after_it_was_seen(
    history: tuple[list[File], list[Run]],
) -> None:
    files, schedule = history
    store = Store(files)

    for run in (*schedule, *final_runs()):
        store.vacuum(run)

    check_only_the_needed_stay(store)


@given(histories())
def test_a_clock_that_was_wrong_does_not_keep_a_file_for_ever(
    history: tuple[list[File], list[Run]],
) -> None:
    """Marks made while the clock was a year ahead count from when it was put right."""
    files, schedule = history
    store = Store(files)
    year = 365 * 24 * 60
    for run in schedule:
        store.vacuum(Run(run.began, run.listed, run.read, run.ended + year))

    for run in final_runs():
        store.vacuum(run)

    check_only_the_needed_stay(store)


def final_runs() -> list[Run]:
    """One that sees, one that settles, one that deletes."""
    moments = (END, END + COMMITS, END + COMMITS + GRACE)
    return [Run(moment, moment, moment, moment) for moment in moments]


def check_only_the_needed_stay(store: Store) -> None:
    stay = {file.name for file in store.files if file.is_referenced(END)}
    assert {file.name for file in store.files} - store.deleted_at.keys() == stay
