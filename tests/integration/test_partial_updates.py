"""Patches and truncations on the whole lake: rows, what waits for them, and the receipts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.schema import Schema

from freshet.arrow import PlacedEvent, position_of
from freshet.event import json_row
from freshet.model import EVERY, ModelChange, current_state, live_rows
from freshet.receipt import Receipt
from freshet.tables import Sale
from freshet.testing import MemoryObjects, sale_row
from lake.current import Applied
from lake.lake import Lake
from lake.spec import TableSpec, rows_spec
from lake.steps import Step
from lake.testing import LakeSite, batch, placed, told, waiting


@dataclass
class Stream:
    """Changes at successive places of the stream, and what the model makes of them."""

    events: list[PlacedEvent] = field(default_factory=list)
    truncations: list[ModelChange] = field(default_factory=list)
    at: int = 0

    def row(self, key: str, version: int, *, day: int = 1, quantity: int = 1) -> PlacedEvent:
        row = sale_row(key, sold_at=f"2010-12-{day:02d}T08:00:00Z", quantity=quantity)
        return self._place(key, version, after=row)

    def delete(self, key: str, version: int) -> PlacedEvent:
        return self._place(key, version)

    def patch(self, key: str, version: int, **columns: Any) -> PlacedEvent:
        return self._place(key, version, patch=columns)

    def truncation(self, version: int) -> tuple[int, str]:
        self.at += 1
        place = version, position_of(str(self.at), 0)
        self.truncations.append(ModelChange(EVERY, *place, None))
        return place

    def _place(self, key: str, version: int, **image: Any) -> PlacedEvent:
        self.at += 1
        self.events.append(placed(Sale, self.at, version=version, key={"sale_id": key}, **image))
        return self.events[-1]

    def check(self, lake: Lake) -> None:
        """The lake's rows, and what waits, are the model's."""
        model = current_state([*(told(event, Sale) for event in self.events), *self.truncations])
        rows = {(row["sale_id"],): row for row in lake.rows("sales").to_pylist()}
        seen = {
            key: {name: value for name, value in row.items() if not name.startswith("_")}
            for key, row in rows.items()
        }
        assert lake.rows("sales").num_rows == len(rows)
        assert seen == live_rows(model)
        waits = {key: json_row(one.patch) for key, one in model.items() if one.patch is not None}
        assert waiting(lake, Sale) == waits


@pytest.fixture
def site(tmp_path: Path) -> LakeSite:
    return LakeSite(MemoryObjects(), tmp_path / "catalog.db")


@pytest.fixture
def lake(site: LakeSite) -> Iterator[Lake]:
    opened = site.open(file_rows_max=3)
    yield opened
    opened.close()


@pytest.fixture
def stream() -> Stream:
    return Stream()


def apply(lake: Lake, *events: PlacedEvent) -> Receipt:
    return lake.apply("sales", batch(Sale, events), {}).receipt


def test_a_patch_changes_its_columns_and_keeps_the_rest(lake: Lake, stream: Stream) -> None:
    apply(lake, stream.row("a", 1, quantity=1), stream.row("b", 1))

    receipt = apply(lake, stream.patch("a", 2, quantity=7))

    assert receipt == Receipt(received=1, updated=1)
    stream.check(lake)


def test_patches_of_one_row_in_one_batch_each_have_an_outcome(lake: Lake, stream: Stream) -> None:
    apply(lake, stream.row("a", 5, quantity=1))

    receipt = apply(
        lake,
        stream.patch("a", 7, quantity=7),
        stream.patch("a", 6, quantity=6),
        stream.patch("a", 8, sku="22720"),
        stream.patch("a", 9, country="France", quantity=7),
        stream.patch("a", 4, customer_id="c"),
    )

    assert receipt == Receipt(received=5, updated=2, stale=3)
    stream.check(lake)


def test_a_patch_of_the_partition_column_moves_the_row(lake: Lake, stream: Stream) -> None:
    apply(lake, stream.row("a", 1, day=1), stream.row("b", 1, day=1))

    receipt = apply(lake, stream.patch("a", 2, sold_at="2010-12-05T08:00:00Z"))

    assert receipt == Receipt(received=1, updated=1)
    files = lake.current("sales").rows.view().files
    assert len({tuple(file.partition[at] for at in range(1)) for file in files}) == 2
    stream.check(lake)


def test_a_full_row_older_than_a_patch_keeps_the_patched_partition(
    lake: Lake, stream: Stream
) -> None:
    apply(lake, stream.row("a", 1, day=1))
    apply(lake, stream.patch("a", 5, sold_at="2010-12-05T08:00:00Z"))

    late = apply(lake, stream.row("a", 3, day=2, quantity=3))
    newest = apply(lake, stream.row("a", 6, day=2, quantity=6))

    assert (late, newest) == (Receipt(received=1, updated=1), Receipt(received=1, updated=1))
    stream.check(lake)
    [row] = lake.rows("sales").to_pylist()
    assert row["_patches"] is None


def test_a_patch_without_a_row_waits_and_lands_with_it(lake: Lake, stream: Stream) -> None:
    patch = stream.patch("a", 5, quantity=9)
    waits, again = apply(lake, patch), apply(lake, patch)
    stream.check(lake)

    lands = apply(lake, stream.row("a", 1))

    assert waits == Receipt(received=1, waiting=1)
    assert again == Receipt(received=1, duplicate=1)
    assert lands == Receipt(received=1, inserted=1)
    assert apply(lake, patch) == Receipt(received=1, duplicate=1)
    stream.check(lake)


def test_a_delete_kills_older_patches_and_newer_ones_wait(lake: Lake, stream: Stream) -> None:
    apply(lake, stream.row("a", 1), stream.patch("a", 5, quantity=5, sku="22720"))
    apply(lake, stream.patch("a", 8, quantity=8))

    receipt = apply(lake, stream.delete("a", 6), stream.row("b", 1))
    stream.check(lake)
    returned = apply(lake, stream.row("a", 7))

    assert receipt == Receipt(received=2, deleted=1, inserted=1)
    assert returned == Receipt(received=1, inserted=1)
    stream.check(lake)


def test_a_patch_older_than_the_delete_is_stale_and_nothing_waits(
    lake: Lake, stream: Stream, site: LakeSite
) -> None:
    apply(lake, stream.row("a", 1), stream.delete("a", 6))
    before = site.pointer(lake, "sales")

    receipt = apply(lake, stream.patch("a", 5, quantity=5))

    assert receipt == Receipt(received=1, stale=1)
    assert site.pointer(lake, "sales") == before
    stream.check(lake)


def test_a_row_and_its_patch_in_one_batch_are_an_insert_and_an_update(
    lake: Lake, stream: Stream
) -> None:
    receipt = apply(lake, stream.patch("a", 2, quantity=2), stream.row("a", 1))

    assert receipt == Receipt(received=2, inserted=1, updated=1)
    stream.check(lake)


def test_a_patch_that_sets_what_is_there_is_remembered_as_unchanged(
    lake: Lake, stream: Stream
) -> None:
    apply(lake, stream.row("a", 1, quantity=4))

    receipt = apply(lake, stream.patch("a", 5, quantity=4))
    apply(lake, stream.row("a", 3, quantity=9))

    assert receipt == Receipt(received=1, unchanged=1)
    stream.check(lake)


def test_rows_of_a_file_with_patches_are_merged_as_ever(lake: Lake, stream: Stream) -> None:
    apply(lake, *(stream.row(key, 1) for key in "abc"))
    apply(lake, stream.patch("a", 5, quantity=5))

    receipt = apply(lake, stream.row("b", 2, quantity=2), stream.delete("c", 2))
    moved = apply(lake, stream.row("b", 3, day=2))
    stale = apply(lake, stream.row("b", 2, day=3))

    assert receipt == Receipt(received=2, updated=1, deleted=1)
    assert (moved.updated, stale.stale) == (1, 1)
    stream.check(lake)


def test_a_lake_from_before_partial_updates_takes_them(
    site: LakeSite, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = [stream.row("a", 1), stream.row("b", 1, day=2)]
    old = site.open()
    with monkeypatch.context() as earlier:
        earlier.setattr(
            "lake.lake.rows_spec", lambda contract: without_patches(rows_spec(contract))
        )
        earlier.setattr("lake.table.may_hold_patches", lambda _view, _file: False)
        old.apply("sales", batch(Sale, written), {})
    assert "_patches" not in schema_of(old).column_names
    old.close()

    new = site.open()
    receipt = apply(new, stream.patch("a", 2, quantity=2), stream.row("b", 2, day=3))

    assert receipt == Receipt(received=2, updated=2)
    assert "_patches" in schema_of(new).column_names
    stream.check(new)


def schema_of(lake: Lake) -> Schema:
    return lake.current("sales").rows.view().table.schema()


def without_patches(spec: TableSpec) -> TableSpec:
    schema = spec.schema.remove(spec.schema.get_field_index("_patches"))
    return TableSpec(spec.name, schema, spec.key, spec.partition, spec.descriptions)


def test_a_truncation_ends_older_rows_and_overrules_late_ones(
    lake: Lake, stream: Stream, site: LakeSite
) -> None:
    apply(lake, *(stream.row(f"k-{n}", n, day=1 + n % 3) for n in range(1, 8)))
    place = stream.truncation(4)

    done = lake.current("sales").truncate(*place, {"freshet.batch": "b"})
    late = apply(lake, stream.row("k-1", 3), stream.row("new", 2), stream.patch("k-2", 3, line=2))
    newer = apply(lake, stream.row("k-3", 9))

    assert done.receipt == Receipt(received=1, unchanged=1, retracted=4)
    assert (late, newer) == (Receipt(received=3, stale=3), Receipt(received=1, inserted=1))
    stream.check(lake)
    before = site.pointer(lake, "sales")
    assert lake.current("sales").truncate(*place, {}) == Applied(
        Receipt(received=1, unchanged=1), None
    )
    assert site.pointer(lake, "sales") == before


def test_a_truncation_leaves_newer_patches_of_the_rows_it_ends_to_wait(
    lake: Lake, stream: Stream
) -> None:
    apply(lake, stream.row("a", 1), stream.patch("a", 9, quantity=9), stream.patch("b", 2, line=3))

    lake.current("sales").truncate(*stream.truncation(5), {})
    stream.check(lake)
    apply(lake, stream.row("a", 6), stream.row("b", 6))

    stream.check(lake)


def test_an_older_truncation_changes_nothing_after_a_newer_one(
    lake: Lake, stream: Stream, site: LakeSite
) -> None:
    older, newer = stream.truncation(4), stream.truncation(6)
    apply(lake, stream.row("a", 5), stream.row("b", 7))
    lake.current("sales").truncate(*newer, {})
    before = site.pointer(lake, "sales")

    lake.current("sales").truncate(*older, {})

    assert site.pointer(lake, "sales") == before
    stream.check(lake)


@pytest.mark.parametrize("ends", ["dd", "td", "dt", "tt"])
@pytest.mark.parametrize("size", [1, 3])
def test_an_end_of_the_same_version_ends_what_came_between_it_and_the_one_before(
    lake: Lake, stream: Stream, site: LakeSite, ends: str, size: int
) -> None:
    """Whether they come alone or in one batch, in which truncations go first."""
    items = [end(stream, ends[0]), stream.patch("a", 3, quantity=5), end(stream, ends[1])]

    for at in range(0, len(items), size):
        land(lake, items[at : at + size])

    assert waiting(lake, Sale) == {}
    stream.check(lake)
    before = site.pointer(lake, "sales")
    land(lake, items)
    assert site.pointer(lake, "sales") == before
    for again in (items[:2], items[2:]):
        land(lake, again)
    stream.check(lake)
    apply(lake, stream.patch("a", 3, quantity=6))
    assert waiting(lake, Sale) == {("a",): {"quantity": 6}}
    stream.check(lake)


def end(stream: Stream, kind: str) -> PlacedEvent | tuple[int, str]:
    return stream.delete("a", 3) if kind == "d" else stream.truncation(3)


def land(lake: Lake, items: list[PlacedEvent | tuple[int, str]]) -> None:
    """As the consumer does: truncations first."""
    for one in items:
        if not isinstance(one, PlacedEvent):
            lake.current("sales").truncate(*one, {})
    events = [one for one in items if isinstance(one, PlacedEvent)]
    if events:
        apply(lake, *events)


def test_a_delete_that_ends_a_patch_between_it_and_its_like_is_unchanged_then_duplicate(
    lake: Lake, stream: Stream
) -> None:
    apply(lake, stream.delete("a", 3))
    apply(lake, stream.patch("a", 3, quantity=5))
    again = stream.delete("a", 3)

    assert apply(lake, again) == Receipt(received=1, unchanged=1)
    assert apply(lake, again) == Receipt(received=1, duplicate=1)


@pytest.mark.parametrize("between", ["row", "patch"])
def test_a_truncation_again_ends_a_row_or_patch_of_its_version_that_came_between(
    lake: Lake, stream: Stream, between: str
) -> None:
    land(lake, [stream.truncation(3)])
    said = stream.row("a", 3) if between == "row" else stream.patch("a", 3, quantity=5)
    apply(lake, said)

    land(lake, [stream.truncation(3)])

    assert (lake.rows("sales").num_rows, waiting(lake, Sale)) == (0, {})
    stream.check(lake)


def test_a_file_older_than_the_truncation_is_dropped_unread(
    lake: Lake, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(lake, stream.row("a", 1, day=1), stream.row("b", 2, day=2), stream.row("c", 9, day=3))
    current = lake.current("sales")

    def no_read(*_: Any) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr("lake.table.read_rows", no_read)
    done = current.truncate(*stream.truncation(5), {})
    monkeypatch.undo()

    assert done.receipt.retracted == 2
    stream.check(lake)


@dataclass
class Intruder:
    """At its step, once, does something through another writer."""

    step: Step | None = None
    what: Any = None
    came: bool = False

    def __call__(self, step: Step) -> None:
        if step is self.step:
            self.step, self.came = None, True
            self.what()


RACED = (
    Step.VIEWED,
    Step.FILES_WRITTEN,
    Step.TOMBSTONES_WRITTEN,
    Step.TOMBSTONES_COMMITTED,
    Step.ROWS_COMMITTED,
)


@pytest.mark.parametrize("step", RACED)
def test_changes_that_come_while_a_table_is_truncated_converge(step: Step, site: LakeSite) -> None:
    stream, intruder = Stream(), Intruder()
    lake, rival = site.open(on_step=intruder, file_rows_max=3), site.open(file_rows_max=3)
    apply(rival, *(stream.row(f"k-{n}", n) for n in range(1, 7)), stream.patch("k-1", 9, line=2))
    others = [
        stream.row("k-1", 3, day=2),
        stream.patch("k-2", 8, quantity=8),
        stream.row("late", 2),
        stream.row("new", 7),
        stream.delete("k-6", 8),
    ]
    intruder.step, intruder.what = step, lambda: apply(rival, *others)

    lake.current("sales").truncate(*stream.truncation(5), {})

    assert intruder.came
    stream.check(site.open())


@pytest.mark.parametrize("step", [*RACED, Step.PLANNED, Step.VALIDATED])
def test_a_truncation_that_comes_while_changes_land_converges(step: Step, site: LakeSite) -> None:
    stream, intruder = Stream(), Intruder()
    lake, rival = site.open(on_step=intruder, file_rows_max=3), site.open(file_rows_max=3)
    apply(rival, *(stream.row(f"k-{n}", n) for n in range(1, 7)), stream.patch("k-1", 9, line=2))
    place = stream.truncation(5)
    intruder.step = step
    intruder.what = lambda: rival.current("sales").truncate(*place, {})

    apply(
        lake,
        stream.row("k-1", 3, day=2),
        stream.patch("k-2", 8, quantity=8),
        stream.row("late", 2),
        stream.row("new", 7),
        stream.delete("k-6", 8),
    )

    assert intruder.came
    stream.check(site.open())


def test_a_patch_that_waited_in_the_same_instant_is_folded_into_the_committed_row(
    site: LakeSite, stream: Stream
) -> None:
    intruder = Intruder(Step.FILES_WRITTEN)
    lake, rival = site.open(on_step=intruder), site.open()
    patch = stream.patch("a", 5, quantity=9)
    intruder.what = lambda: apply(rival, patch)

    receipt = apply(lake, stream.row("a", 1))

    assert receipt == Receipt(received=1, inserted=1)
    stream.check(site.open())
