"""Whatever happens between the polls and within them, one healthy poll makes the stream right.

The model is the smallest that can be wrong: what a consumer ends up with is, by key, the event of
the greatest version; it has to equal what the source lists.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api_poller.changes import Listing, plan_changes
from api_poller.http import SourceUnavailableError
from api_poller.poll import Poller
from api_poller.state import PollState, StateStore
from freshet.contract import Contract, Row
from freshet.errors import FreshetError
from freshet.event import ChangeEvent, Op, json_row, key_text, lane_of
from freshet.objects import DirectoryObjects
from freshet.stream import LANES, PublishReport
from freshet.tables import Product
from freshet.testing import MemoryStream, StoppedClock

Table = dict[str, int]


class CrashError(Exception):
    """The process ends here."""


def product(key: str, price: int) -> Row:
    return Product.parse({"product_id": key, "title": "Mug", "price": price, "currency": "USD"})


def listing(table: Table, *, whole: bool = True) -> Listing:
    rows = {key: product(key, price) for key, price in table.items()}
    return Listing(rows, whole_table=whole, backfill=False, watermark=None)


def replayed(events: Sequence[ChangeEvent]) -> Table:
    """What a consumer holds after these events: greatest version wins, a delete holds nothing."""
    winners: dict[str, ChangeEvent] = {}
    for event in events:
        key = key_text(Product, event.key)
        if key not in winners or event.version >= winners[key].version:
            winners[key] = event
    return {
        key: int(event.after["price"]) for key, event in winners.items() if event.after is not None
    }


@dataclass
class World:
    """A shop, a stream, a clock and a folder of state; each poll of it may meet a fault."""

    folder: Path
    table: Table = field(default_factory=dict)
    clock: StoppedClock = field(default_factory=StoppedClock)
    stream: MemoryStream = field(default_factory=MemoryStream)

    def poll(self, fault: str = "none", meanwhile: Callable[[], None] = lambda: None) -> None:
        source = ShakySource(self, down=fault == "down", meanwhile=_at(fault, "listed", meanwhile))
        stream = ShakyStream(self, fault, meanwhile)
        objects = ShakyObjects(self.folder, fault)
        poller = Poller(stream, StateStore(objects), self.clock, delete_share_max=1.0)
        poller.poll(source)


def _at(fault: str, place: str, meanwhile: Callable[[], None]) -> Callable[[], None]:
    return meanwhile if fault == f"meanwhile {place}" else lambda: None


@dataclass(frozen=True)
class ShakySource:
    world: World
    down: bool
    meanwhile: Callable[[], None]
    name: str = "platzi"
    contract: type[Contract] = Product

    def listings(self, state: PollState, now: datetime) -> Iterator[Listing]:
        if self.down:
            raise SourceUnavailableError("platzi", "http://shop", "is down", advice="wait")
        listed = listing(self.world.table)
        self.meanwhile()
        yield listed

    def occurred_at(self, row: Row) -> datetime | None:
        return None


@dataclass
class ShakyStream:
    world: World
    fault: str
    meanwhile: Callable[[], None]

    def publish(self, events: Sequence[ChangeEvent]) -> PublishReport:
        _at(self.fault, "before publishing", self.meanwhile)()
        if self.fault == "crash before publishing":
            raise CrashError
        if self.fault == "throttled":
            odd = {lane_of(e.table, key_text(Product, e.key), LANES) for e in events[::2]}
            self.world.stream.throttled_lanes = odd
        report = self.world.stream.publish(events)
        self.world.stream.throttled_lanes = set()
        _at(self.fault, "after publishing", self.meanwhile)()
        if self.fault == "crash after publishing":
            raise CrashError
        return report


class ShakyObjects(DirectoryObjects):
    def __init__(self, folder: Path, fault: str) -> None:
        super().__init__(folder)
        self._crash_at = {"crash after intent": 1, "crash after advancing": 2}.get(fault, 0)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        written = super().put_if(key, data, etag=etag)
        self._crash_at -= 1
        if self._crash_at == 0:
            raise CrashError
        return written


FAULTS = (
    "none",
    "down",
    "throttled",
    "crash before publishing",
    "crash after publishing",
    "crash after intent",
    "crash after advancing",
    "meanwhile listed",
    "meanwhile before publishing",
    "meanwhile after publishing",
)
keys = st.sampled_from("abcd")
tables = st.dictionaries(keys, st.integers(0, 2))
# The shop's next state, the clock's move in seconds, the fault of a poll; and, for overlapping
# polls, what the shop becomes meanwhile and the fault of the poll that runs within the poll.
steps = st.tuples(
    tables,
    st.integers(-3, 3),
    st.sampled_from(FAULTS),
    st.tuples(tables, st.sampled_from(FAULTS[:7])),
)


def run(world: World, history: Sequence[tuple[Table, int, str, tuple[Table, str]]]) -> None:
    for table, seconds, fault, (table_meanwhile, fault_meanwhile) in history:
        world.table = table
        world.clock.advance(seconds)

        def meanwhile(then: Table = table_meanwhile, fault: str = fault_meanwhile) -> None:
            world.table = then
            with suppress(CrashError, FreshetError):
                world.poll(fault)

        with suppress(CrashError, FreshetError):
            world.poll(fault, meanwhile)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=6), tables)
def test_after_any_history_one_healthy_poll_makes_the_replay_equal_the_listing(
    history: list[tuple[Table, int, str, tuple[Table, str]]], last: Table
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder))
        run(world, history)

        world.table = last
        world.poll()
        told = len(world.stream.events())
        world.poll()

    events = world.stream.events()
    assert replayed(events) == last
    assert len(events) == told, "a second poll of an unchanged shop says nothing"
    versions = [(key_text(Product, event.key), event.version) for event in events]
    assert len(set(versions)) == len(versions), "no two changes of a row share a version"


@given(tables, st.sets(keys), tables, st.floats(0, 1))
def test_a_plan_turns_what_was_known_into_what_is_listed(
    before: Table, pending: set[str], after: Table, share: float
) -> None:
    previous = {key: json_row(product(key, price)) for key, price in before.items()}

    plan = plan_changes(previous, pending, listing(after), delete_share_max=share)

    deletes = {change.key for change in plan.changes if change.op is Op.DELETE}
    gone = (before.keys() | pending) - after.keys()
    assert deletes == (set() if plan.guarded else gone)
    assert len(deletes) <= share * len(before.keys() | pending)
    told = {key: Decimal(str(row["price"])) for key, row in plan.rows.items()}
    expected = after if not plan.guarded else {k: v for k, v in before.items() if k in gone} | after
    assert told == expected
    upserts = {change.key: change.after for change in plan.changes if change.after is not None}
    changed = {key for key in after if key in pending or before.get(key) != after[key]}
    assert upserts == {key: product(key, after[key]) for key in changed}


@given(tables, tables)
def test_absence_from_a_window_never_deletes(before: Table, after: Table) -> None:
    previous = {key: json_row(product(key, price)) for key, price in before.items()}

    plan = plan_changes(previous, set(), listing(after, whole=False), delete_share_max=1.0)

    assert all(change.op is not Op.DELETE for change in plan.changes)
    assert plan.rows.keys() == before.keys() | after.keys()
