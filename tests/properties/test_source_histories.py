"""Whatever a source went through and whatever befell its polls, one healthy poll makes it right.

Each step of a history changes the source and polls it with a fault: a page that fails, a time limit
or a spent budget in the middle of a listing, a stream that takes a part, a crash before or after
any write of the state or any publish, a token the source has forgotten, another poll in between.
What the stream then says, merged by the model, must equal what the last complete listing showed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from tests.listed import DAY_0, ListedChanges, ListedTable, Outcome, merged, there

from api_poller.http import BudgetSpentError, SourceAnswerError, SourceUnavailableError
from api_poller.poll import Poller, PollReport
from api_poller.state import StateStore
from freshet.errors import FreshetError
from freshet.event import ChangeEvent, key_text, lane_of
from freshet.stream import LANES, PublishReport
from freshet.tables import Product
from freshet.testing import MemoryObjects, MemoryStream, StoppedClock


class CrashError(Exception):
    """The process ends here."""


Fault = tuple[str, int]
NO_FAULT: Fault = ("none", 0)
NO_STEP: tuple[dict[str, Any], Fault] = ({}, NO_FAULT)
PLACES = ("page", "write", "written", "publish", "published")
faults = st.one_of(
    st.just(NO_FAULT),
    st.tuples(st.sampled_from(["crash", "meanwhile"]), st.integers(0, 24)),
    st.tuples(
        st.sampled_from(["down", "later", "time", "throttled", "incomplete", "refused"]),
        st.integers(1, 4),
    ),
)


@dataclass
class Befalling:
    """What befalls one poll: the places it passes are counted, and its fault strikes at one."""

    fault: Fault = NO_FAULT
    meanwhile: Callable[[], None] = lambda: None
    passed: dict[str, int] = field(default_factory=dict)

    def at(self, place: str) -> None:
        self.passed[place] = count = self.passed.get(place, 0) + 1
        kind, number = self.fault
        struck = (PLACES[number % len(PLACES)], number // len(PLACES) + 1) == (place, count)
        if kind == "crash" and struck:
            raise CrashError
        if kind == "meanwhile" and struck:
            self.meanwhile()
        if place == "page" and number == count:
            if kind == "down":
                raise SourceUnavailableError("shop", "http://shop", "is down", advice="wait")
            if kind == "later":
                raise BudgetSpentError("shop", "http://shop", "answers 429", advice="wait")

    def remaining_s(self) -> float:
        kind, number = self.fault
        return 0.0 if kind == "time" and self.passed.get("page", 0) >= number else 1_000.0


@dataclass
class ShakyStream:
    stream: MemoryStream
    befalling: Befalling

    def publish(self, events: Sequence[ChangeEvent]) -> PublishReport:
        self.befalling.at("publish")
        kind, number = self.befalling.fault
        if kind == "throttled" and self.befalling.passed["publish"] == number:
            odd = {lane_of(e.table, key_text(Product, e.key), LANES) for e in events[::2]}
            self.stream.throttled_lanes = odd
        report = self.stream.publish(events)
        self.stream.throttled_lanes = set()
        self.befalling.at("published")
        return report


class ShakyObjects(MemoryObjects):
    befalling = Befalling()

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        befalling = self.befalling
        befalling.at("write")
        written = super().put_if(key, data, etag=etag)
        befalling.at("written")
        return written


@dataclass
class World:
    """A source, a stream, a clock and a state; each poll of it may meet a fault."""

    source: Any
    clock: StoppedClock = field(default_factory=StoppedClock)
    stream: MemoryStream = field(default_factory=MemoryStream)
    objects: ShakyObjects = field(default_factory=ShakyObjects)

    def poll(self, befalling: Befalling | None = None, **options: Any) -> PollReport:
        around = befalling or Befalling()
        source = self.source
        before = self.objects.befalling, source.between, source.outcome, source.hidden
        source.between = lambda number: self._page(around, number)
        self.objects.befalling = around
        incomplete = around.fault[0] == "incomplete"
        source.outcome = Outcome(not incomplete, "a page is missing")
        source.hidden = {"abcdefg"[around.fault[1]]} if incomplete else set()
        poller = Poller(
            ShakyStream(self.stream, around),
            StateStore(self.objects),
            self.clock,
            publish_events_max=2,
        )
        try:
            return poller.poll(source, remaining_s=around.remaining_s, **options)
        finally:
            self.objects.befalling, source.between, source.outcome, source.hidden = before

    def _page(self, befalling: Befalling, number: int) -> None:
        befalling.at("page")
        asked = self.source.asked[-1]
        resumed = asked[1] if isinstance(asked, tuple) else asked
        if befalling.fault[0] == "refused" and resumed is not None and number == 1:
            raise SourceAnswerError("shop", "http://shop", "unknown cursor", advice="start over")

    def suffer(
        self, fault: Fault, meanwhile: Callable[[], None] = lambda: None, **options: Any
    ) -> None:
        with suppress(CrashError, FreshetError):
            self.poll(Befalling(fault, meanwhile), **options)


keys = st.sampled_from("abcdefg")
tables = st.dictionaries(keys, st.one_of(st.none(), st.integers(0, 2)))
options = st.sampled_from([{}, {}, {}, {}, {"full": True}, {"dry_run": True}])
# The shop's next state, hours that pass, the fault of a poll and its options; and what the shop
# becomes meanwhile, with the fault of a poll within the poll.
steps = st.tuples(tables, st.integers(-2, 30), faults, options, st.tuples(tables, faults))
QUIET = [HealthCheck.too_slow]


@settings(max_examples=600, deadline=None, suppress_health_check=QUIET)
@given(st.lists(steps, max_size=6), tables)
def test_after_any_history_of_a_listed_table_one_healthy_poll_makes_the_stream_right(
    history: list[Any], last: dict[str, int | None]
) -> None:
    world = World(ListedTable())
    for table, hours, fault, choice, (table_meanwhile, fault_meanwhile) in history:
        world.source.table = dict(table)
        world.clock.advance(hours * 3600)

        def meanwhile(
            then: dict[str, int | None] = table_meanwhile, fault: Fault = fault_meanwhile
        ) -> None:
            world.source.table = dict(then)
            if fault[0] != "meanwhile":
                world.suffer(fault)

        world.suffer(fault, meanwhile, **choice)

    world.source.table = dict(last)
    report = world.poll()
    event(f"resumed: {report.resumed_rows > 0}")

    assert not report.unfinished
    assert merged(world.stream.events()) == there(world.source.shown)
    if not report.resumed_rows:
        assert world.source.shown == last

    world.poll()
    told = len(world.stream.events())
    assert merged(world.stream.events()) == there(last)

    assert world.poll().published == 0
    assert len(world.stream.events()) == told, "an unchanged source is not told again"
    versions = [(key_text(Product, e.key), e.version) for e in world.stream.events()]
    assert len(set(versions)) == len(versions), "no two changes of a row share a version"


@settings(max_examples=200, deadline=None, suppress_health_check=QUIET)
@given(st.lists(tables, min_size=1, max_size=6), st.integers(1, 3), st.integers(1, 3))
def test_healthy_polls_tell_every_difference_once_and_nothing_else(
    history: list[dict[str, int | None]], page_rows: int, pages_a_poll: int
) -> None:
    """Also when every poll has time for some pages only."""
    world = World(ListedTable(page_rows=page_rows))
    told: dict[str, int] = {}
    for table in history:
        world.source.table = dict(table)
        before, unfinished = len(world.stream.events()), True
        while unfinished:
            unfinished = world.poll(Befalling(("time", pages_a_poll))).unfinished
            world.clock.advance(60)
        now = there(table)
        differing = {key for key in told.keys() | now.keys() if told.get(key) != now.get(key)}
        new = [key_text(Product, e.key) for e in world.stream.events()[before:]]

        assert sorted(new) == sorted(differing)
        told = now


days = st.integers(0, 3)
changes = st.dictionaries(keys, st.tuples(st.one_of(st.none(), st.integers(0, 2)), days))
# What changes, each some days late; days that pass; fault; options; the same for meanwhile.
cursor_steps = st.tuples(changes, st.integers(0, 3), faults, options, st.tuples(changes, faults))


# A row that came late, before the place where a listing went on a day later.
LATE_BEFORE_RESUMED: list[Any] = [
    ({"a": (None, 0), "b": (None, 0), "c": (None, 3)}, 2, NO_FAULT, {"dry_run": True}, NO_STEP),
    ({}, 0, ("meanwhile", 0), {}, ({"a": (None, 3), "b": (None, 3)}, ("down", 4))),
    ({"a": (0, 3)}, 0, ("crash", 0), {}, NO_STEP),
    ({}, 1, NO_FAULT, {"dry_run": True}, NO_STEP),
]


@settings(max_examples=600, deadline=None, suppress_health_check=QUIET)
@given(st.lists(cursor_steps, max_size=6), changes, st.sampled_from([1, 2, 1_000]))
@example(LATE_BEFORE_RESUMED, {"b": (0, 0)}, 1)
def test_after_any_history_of_changes_by_cursor_one_healthy_poll_makes_the_stream_right(
    history: list[Any], last: dict[str, tuple[int | None, int]], window_days: int
) -> None:
    """Rows come up to three days late, which is how far every poll looks back."""
    today = 3
    clock = StoppedClock(DAY_0 + timedelta(days=today))  # the source's own
    world = World(ListedChanges(lookback=3, window_days=window_days), clock)
    for changed, days_passed, fault, choice, (changed_meanwhile, fault_meanwhile) in history:
        today += days_passed
        world.clock.advance(days_passed * 86_400)
        _change(world, changed, today)

        def meanwhile(
            then: dict[str, tuple[int | None, int]] = changed_meanwhile,
            fault: Fault = fault_meanwhile,
            today: int = today,
        ) -> None:
            _change(world, then, today)
            if fault[0] != "meanwhile":
                world.suffer(fault)

        world.suffer(fault, meanwhile, **choice)

    _change(world, last, today)
    report = world.poll()
    if report.resumed_rows:  # late rows before the place where it went on come with the next
        report = world.poll()
    told = len(world.stream.events())

    expected = {k: price for k, (price, _) in world.source.table.items() if price is not None}
    assert not report.unfinished
    assert merged(world.stream.events()) == expected
    assert world.poll().published == 0
    assert len(world.stream.events()) == told, "an unchanged source is not told again"


def _change(world: World, changed: dict[str, tuple[int | None, int]], today: int) -> None:
    world.source.table |= {key: (price, today - late) for key, (price, late) in changed.items()}
