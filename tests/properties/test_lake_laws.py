"""The laws, on the whole lake: random schedules of everything that can go wrong, against the
plain-dict model.

A schedule is a history of changes (full rows, deletes, patches, truncations) with their places in
the stream, the order and the batches in which they are delivered (some more than once), and what
happens at each step of each commit: nothing, another writer's whole batch, or a crash whose batch
is delivered again later. Races are exact, hence reproducible: the other writer runs inside the
first one's step.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from freshet.arrow import PATCHES, POSITION, VERSION, PlacedEvent, position_of
from freshet.contract import Contract, Integer, PartitionField, Registry, Text
from freshet.event import json_row
from freshet.model import EVERY, ModelChange, current_state, supersedes
from freshet.receipt import Receipt
from freshet.tables import Sale
from freshet.testing import MemoryObjects, sale_row
from lake.lake import Lake
from lake.spec import partition_values
from lake.steps import Step
from lake.testing import LakeSite, batch, placed, told, waiting
from lake.tombstones import floor_of

SCHEDULES, SCHEDULES_LONG = 120, 1500
WRITERS = 3


class Stock(
    Contract,
    table="stock",
    key=("warehouse", "sku"),
    partition=(PartitionField("identity", "shelf"),),
):
    """A composite key of two types, and a partition column that may be null."""

    warehouse: Annotated[int, Integer(32)] = Field(description="Part of the key")
    sku: Annotated[str, Text(8, 1)] = Field(description="Part of the key")
    shelf: Annotated[str, Text(8)] | None = Field(None, description="Partition")
    pieces: Annotated[int, Integer(64)] | None = Field(None, description="Content")


TABLES = Registry((Sale, Stock))


class Event(IntEnum):
    """What happens at a step of a commit."""

    NOTHING = 0
    RACE = 1
    CRASH = 2


class Crash(BaseException):
    """The process ends here."""


@dataclass(frozen=True)
class Truncation:
    """Ends every row that is older."""

    version: int
    position: str


Item = PlacedEvent | Truncation
# Key, version, content, and is there a `before`.
Drawn = tuple[int, int, Any, bool]


@dataclass(frozen=True)
class Schedule:
    """One run: the history by stream order, deliveries as indices into it, batch sizes, step
    events.
    """

    contract: type[Contract]
    history: tuple[Item, ...]
    deliveries: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    steps: tuple[Event, ...]
    file_rows_max: int

    def batches(self) -> list[list[Item]]:
        events = iter([self.history[index] for index in self.deliveries])
        cut = [list(islice(events, size)) for size in (*self.batch_sizes, len(self.deliveries))]
        return [part for part in cut if part]


# Contents 0 to 3 are full rows; a patch is a column's name and one of three values.
PATCHABLE = {
    Sale: ("quantity", "customer_id", "sold_at"),
    Stock: ("shelf", "pieces"),
}
DELETE, TRUNCATE = 6, 7


def event_of(contract: type[Contract], at: int, drawn: Drawn) -> Item:
    key, version, content, with_before = drawn
    if content == TRUNCATE:
        return Truncation(version, position_of(str(at), 0))
    identity = identity_of(contract, key)
    if isinstance(content, tuple):
        patch = patch_of(contract, key, content)
        return placed(contract, at, version=version, key=identity, patch=patch)
    after = None if content == DELETE else row_of(contract, identity, content)
    before = row_of(contract, identity, content) if with_before else None
    return placed(contract, at, version=version, key=identity, after=after, before=before)


def identity_of(contract: type[Contract], key: int) -> dict[str, Any]:
    if contract is Sale:
        return {"sale_id": f"s-{key}"}
    return {"warehouse": key % 2, "sku": f"k{key // 2}"}


def patch_of(contract: type[Contract], key: int, content: Any) -> dict[str, Any]:
    columns = [PATCHABLE[contract][one % len(PATCHABLE[contract])] for one in content[0]]
    row = row_of(contract, identity_of(contract, key), content[1])
    return json_row({column: row[column] for column in columns})


def row_of(contract: type[Contract], identity: dict[str, Any], content: int) -> dict[str, Any]:
    if contract is Stock:
        shelf = [None, "a", "b/c"][content % 3]
        return identity | {"shelf": shelf, "pieces": content or None}
    return sale_row(
        identity["sale_id"],
        quantity=content,
        customer_id=None if content % 2 else "c",
        sold_at=f"2010-12-{1 + content % 3:02d}T08:26:00Z",
    )


def convergent(contract: type[Contract], history: Sequence[Drawn]) -> list[Drawn]:
    """The history without resends of a content that ties with another one (ADR 0006).

    A truncation is a delete of every key.
    """
    contents: dict[tuple[int, int], set[Any]] = {}
    for one in history:
        for place, content in contents_of(contract, one):
            contents.setdefault(place, set()).add(content)
    seen: set[tuple[tuple[int, int], Any]] = set()
    kept = []
    for one in history:
        said = contents_of(contract, one)
        if not any(len(contents[place]) > 1 and (place, what) in seen for place, what in said):
            kept.append(one)
        seen.update(said)
    return kept


def contents_of(contract: type[Contract], drawn: Drawn) -> list[tuple[tuple[int, int], Any]]:
    key, version, content, _ = drawn
    if content == TRUNCATE:
        return [((every, version), DELETE) for every in KEYS]
    if isinstance(content, tuple):  # each column's value is a content of its own
        return [((key, version), told) for told in patch_of(contract, key, content).items()]
    return [((key, version), content)]


KEYS = range(3)
DRAWN_PATCH = st.tuples(
    st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True).map(tuple), st.integers(0, 2)
)
CONTENT = st.sampled_from([0, 1, 2, 3, DELETE, DELETE, DELETE]) | DRAWN_PATCH
DRAWN_CHANGE = st.tuples(
    st.sampled_from(KEYS),
    st.integers(1, 5),
    CONTENT | DRAWN_PATCH | st.sampled_from([0, 1, 2, TRUNCATE]),
    st.booleans(),
)
STEP_EVENT = st.sampled_from([Event.NOTHING] * 5 + [Event.RACE] * 6 + [Event.CRASH])


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    contracts: list[type[Contract]] = [Sale, Stock]
    contract = draw(st.sampled_from(contracts))
    drawn = convergent(contract, draw(st.lists(DRAWN_CHANGE, min_size=5, max_size=12)))
    history = tuple(event_of(contract, at, change) for at, change in enumerate(drawn))
    order = draw(st.permutations(range(len(history))))
    again = draw(st.lists(st.integers(0, len(history) - 1), max_size=3))
    return Schedule(
        contract,
        history,
        (*again, *order),
        tuple(draw(st.lists(st.sampled_from([1, 1, 2, 3]), min_size=4, max_size=9))),
        tuple(draw(st.lists(STEP_EVENT, min_size=12, max_size=30))),
        draw(st.sampled_from([2, 3, 1000])),
    )


@dataclass
class Run:
    """A schedule being carried out by writers that share one store and catalog."""

    schedule: Schedule
    site: LakeSite
    queue: deque[list[Item]] = field(default_factory=deque)
    receipts: list[Receipt] = field(default_factory=list)
    crashed: int = 0

    def __post_init__(self) -> None:
        self.queue.extend(self.schedule.batches())
        self.steps = deque(self.schedule.steps)
        self.idle: list[Lake] = []
        self.writers: list[Lake] = []

    def to_the_end(self) -> None:
        while self.queue:
            self.deliver_next()
        self.steps.clear()

    def deliver_next(self) -> None:
        events, writer = self.queue.popleft(), self.idle.pop() if self.idle else self.open_writer()
        try:
            self.receipts.append(apply(writer, self.schedule.contract, events))
        except Crash:
            self.crashed += 1
            self.queue.append(events)
        finally:
            self.idle.append(writer)

    def at_step(self, _step: Step) -> None:
        event = self.steps.popleft() if self.steps else Event.NOTHING
        if event is Event.CRASH:
            raise Crash
        if event is Event.RACE and self.queue and (self.idle or len(self.writers) < WRITERS):
            self.deliver_next()

    def open_writer(self) -> Lake:
        rows_max = self.schedule.file_rows_max
        self.writers.append(self.site.open(on_step=self.at_step, file_rows_max=rows_max))
        return self.writers[-1]

    def close(self) -> None:
        for writer in self.writers:
            writer.close()


def apply(lake: Lake, contract: type[Contract], items: list[Item]) -> Receipt:
    """As the consumer does: the batch's truncations, then its changes at once."""
    current, receipt = lake.current(contract.table), Receipt()
    for item in items:
        if isinstance(item, Truncation):
            receipt += current.truncate(item.version, item.position, {}).receipt
    events = [item for item in items if isinstance(item, PlacedEvent)]
    if events:
        receipt += current.apply(batch(contract, events), {}).receipt
    assert receipt.received == len(items)
    return receipt


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laws") / "catalog.db"


UNHURRIED = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(UNHURRIED, max_examples=SCHEDULES)
@given(schedule=schedules())
def test_every_schedule_reaches_the_models_table(
    schedule: Schedule, catalog: Path, counter: Counter[str]
) -> None:
    assert_converges(schedule, catalog, counter)


@pytest.mark.long
@settings(UNHURRIED, max_examples=SCHEDULES_LONG)
@given(schedule=schedules())
def test_many_schedules_reach_the_models_table(
    schedule: Schedule, catalog: Path, counter: Counter[str]
) -> None:
    assert_converges(schedule, catalog, counter)


def assert_converges(schedule: Schedule, catalog: Path, counter: Counter[str]) -> None:
    counter["run"] += 1
    site = LakeSite(MemoryObjects(), catalog, tables=TABLES, database=f"run{counter['run']}")
    run = Run(schedule, site)

    run.to_the_end()

    reader = site.open(file_rows_max=schedule.file_rows_max)
    check_table_is_the_models(reader, schedule)
    check_tombstones_are_the_models(reader, schedule)
    check_books_balance(reader, run)
    check_replay_changes_nothing(reader, run)
    reader.close()
    run.close()


@pytest.fixture(scope="module")
def counter() -> Counter[str]:
    return Counter()


def model_of(schedule: Schedule) -> dict[Any, ModelChange]:
    return current_state(
        ModelChange(EVERY, item.version, item.position, None)
        if isinstance(item, Truncation)
        else told(item, schedule.contract)
        for item in schedule.history
    )


def check_table_is_the_models(lake: Lake, schedule: Schedule) -> None:
    """L1, L2, L8: the winner's row and nothing else, each key in exactly one file, its own
    partition's.
    """
    contract, model = schedule.contract, model_of(schedule)
    table = lake.current(contract.table).rows
    for partition, part in table.read_files(table.view()):
        assert set(partition_values(part, contract.partition)) == {partition}
    rows = lake.rows(contract.table).to_pylist()
    keys = [tuple(row[name] for name in contract.key) for row in rows]
    assert len(set(keys)) == len(keys)
    state = {}
    for key, row in zip(keys, rows, strict=True):
        version, _, _ = row.pop(VERSION), row.pop(POSITION), row.pop(PATCHES)
        state[key] = (version, row)
    assert state == {
        key: (change.version, change.after)
        for key, change in model.items()
        if change.after is not None
    }


def check_tombstones_are_the_models(lake: Lake, schedule: Schedule) -> None:
    """Each delete that won is remembered at its version, and what waits; no tombstone says more
    than the model.
    """
    contract, model = schedule.contract, model_of(schedule)
    table = lake.current(contract.table).tombstones
    view = table.view()
    floor, _ = floor_of(view)
    found = {
        tuple(row[name] for name in contract.key): row for row in table.read_all(view).to_pylist()
    }
    for key, change in model.items():
        if change.after is None and change.version:
            own = found[key][VERSION] if key in found else 0
            assert max(own, floor) == change.version
    assert waiting(lake, contract) == {
        key: json_row(change.patch) for key, change in model.items() if change.patch is not None
    }
    for key, row in found.items():
        tombstone = ModelChange(key, row[VERSION], row[POSITION], None)
        assert not supersedes(tombstone, model[key])


def check_books_balance(lake: Lake, run: Run) -> None:
    """L5: what the snapshots say went in and out is what is there, and what each one says is what
    it did.
    """
    rows = lake.current(run.schedule.contract.table).rows
    before, total = 0, Receipt()
    for snapshot in rows.view().table.metadata.snapshots:
        assert snapshot.summary is not None
        kept = snapshot.summary.additional_properties
        receipt = Receipt(**{name: int(kept[f"freshet.{name}"]) for name in Receipt().to_dict()})
        after = int(kept["total-records"])
        assert after - before == receipt.inserted - receipt.deleted - receipt.retracted
        before, total = after, total + receipt
    assert before == rows.read_all(rows.view()).num_rows
    if not run.crashed:
        returned = sum(run.receipts, Receipt())
        assert (returned.inserted, returned.deleted, returned.retracted) == (
            total.inserted,
            total.deleted,
            total.retracted,
        )


def check_replay_changes_nothing(lake: Lake, run: Run) -> None:
    """L3: everything again, in one batch and in the same batches, commits nothing and writes
    nothing.
    """
    contract, batches = run.schedule.contract, run.schedule.batches()
    before = run.site.pointer(lake, contract.table)
    history = list(run.schedule.history)
    receipts = [apply(lake, contract, history)]
    receipts += [apply(run.writers[0], contract, events) for events in batches]
    assert run.site.pointer(lake, contract.table) == before
    truncations = [[isinstance(item, Truncation) for item in part] for part in [history, *batches]]
    for receipt, ends in zip(receipts, truncations, strict=True):
        assert receipt.received == receipt.duplicate + receipt.stale + sum(ends)
        assert receipt.unchanged == sum(ends)
