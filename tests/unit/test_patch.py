"""States of one key: joins in any order, the records that hold them, and what receipts call it."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.arrow import DELETED, changes_schema, changes_table, contract_schema
from freshet.merge import collapse as collapse_table
from freshet.model import ModelChange, current_state
from freshet.patch import (
    Patch,
    Shape,
    State,
    base_outcome,
    collapse,
    deleted,
    join,
    patch_outcomes,
    value_of_json,
)
from freshet.tables import Sale
from freshet.testing import sale_row
from lake.testing import batch, placed

SHAPE = Shape.of(changes_schema(contract_schema(Sale), Sale.key))
KEY = {"sale_id": "A-1"}


def row(version: int, at: int = 0, **columns: Any) -> State:
    """A full row at a place of the stream."""
    return State(version, f"p{at}", {"q": None, "r": None, **columns}, {})


def patch(version: int, at: int = 0, **columns: Any) -> State:
    """Some columns, at a place of the stream."""
    return deleted(0, "", {name: Patch(version, f"p{at}", v) for name, v in columns.items()})


def outcomes(change: State, found: State, *, own: bool = False) -> dict[str, int]:
    return dict(patch_outcomes(change, found, join(found, change), is_own=lambda _: own))


VALUES = st.sampled_from([None, 1, 2])
DRAWN: st.SearchStrategy[tuple[int, Any]] = st.tuples(
    st.integers(1, 5),
    st.fixed_dictionaries({"q": VALUES, "r": VALUES})
    | st.none()
    | st.dictionaries(st.sampled_from(["q", "r"]), VALUES, min_size=1).map(
        lambda columns: ("patch", columns)
    ),
)


@st.composite
def histories(draw: st.DrawFn) -> list[ModelChange]:
    """Changes of one key in stream order, no two contents of one version resent (ADR 0006)."""
    changes: dict[str, ModelChange] = {}
    for at, (version, drawn) in enumerate(draw(st.lists(DRAWN, max_size=9))):
        is_patch = isinstance(drawn, tuple)
        after, columns = (None, drawn[1]) if is_patch else (drawn, None)
        change = ModelChange("k", version, f"p{at}", after, columns)
        said = [f"{version} {one}" for one in (drawn[1].items() if is_patch else [after])]
        if not any(one in changes for one in said):
            changes |= dict.fromkeys(said, change)
    return list({change.position: change for change in changes.values()}.values())


def state_of(change: ModelChange) -> State:
    at = int(change.position[1:])
    if change.patch is not None:
        return patch(change.version, at, **change.patch)
    return State(change.version, change.position, change.after, {})


@given(histories(), st.randoms())
def test_any_order_and_any_duplication_join_to_the_models_state(
    history: list[ModelChange], random: Any
) -> None:
    delivered = random.sample(history * 2, len(history) * 2)

    joined = reduce(join, map(state_of, delivered), deleted(0, ""))

    expected = current_state(history).get("k", ModelChange("k", 0, "", None))
    waiting = {name: one.value for name, one in joined.patches.items()}
    assert (joined.version, joined.row()) == (expected.version, expected.after)
    assert joined.after is not None or waiting == (expected.patch or {})


@given(histories(), st.integers(0, 9))
def test_joining_two_halves_is_joining_all(history: list[ModelChange], cut: int) -> None:
    states = [deleted(0, ""), *map(state_of, history)]

    whole = reduce(join, states)
    halves = [reduce(join, part, deleted(0, "")) for part in (states[:cut], states[cut:])]

    assert join(*halves) == whole
    assert join(whole, halves[0]) == join(whole, halves[1]) == whole


@given(histories(), st.randoms())
def test_a_batch_of_one_key_collapses_with_an_outcome_for_each_change(
    history: list[ModelChange], random: Any
) -> None:
    delivered = [*history, *random.sample(history, len(history) // 2)]
    if not delivered:
        return

    collapsed = collapse([state_of(change) for change in delivered])

    parts = (collapsed.state.version > 0) + len(
        {one.place for one in collapsed.state.patches.values()}
    )
    assert len(delivered) == parts + collapsed.duplicate + collapsed.stale
    again = sum(change.position == collapsed.state.position for change in delivered) - 1
    assert collapsed.duplicate >= again


def test_a_patch_below_the_row_says_nothing_and_one_above_keeps_the_rows_own_value() -> None:
    state = reduce(join, [row(5, q=1, r=1), patch(4, q=7), patch(6, r=8)])

    assert state.row() == {"q": 1, "r": 8}
    assert join(state, row(5, q=1, r=1)) == state
    assert join(state, row(6, at=1, q=2, r=2)).row() == {"q": 2, "r": 2}


def test_a_record_of_a_patched_row_shows_the_patch_and_keeps_the_rows_own_value() -> None:
    own = {name: sale_row("A-1").get(name) for name in SHAPE.content}
    own |= {"sold_at": datetime.fromisoformat("2010-12-01T08:26:00+00:00")}
    own |= {"unit_price": Decimal("2.5500")}
    newer = {
        "unit_price": Patch(7, "p1", "3.0000"),
        "sold_at": Patch(7, "p1", "2010-12-24T00:00:00.000000Z"),
        "customer_id": Patch(9, "p2", None),
    }
    state = State(5, "p0", own, newer)

    record = SHAPE.write(state, KEY)

    assert record["unit_price"] == Decimal("3.0000")
    assert record["sold_at"].day == 24
    assert '"unit_price":[7,"p1","2.5500"]' in record["_patches"]
    assert SHAPE.read(record) == state


def test_a_record_without_a_row_holds_the_patches_own_values() -> None:
    state = deleted(5, "p0", {"quantity": Patch(7, "p1", 3)})

    record = SHAPE.write(state, KEY)

    assert record[DELETED]
    assert record["quantity"] is None
    assert record["_patches"] == '{"quantity":[7,"p1",3]}'
    assert SHAPE.read(record) == state


@pytest.mark.parametrize(
    ("text", "column_type", "value"),
    [
        ("12.50", pa.decimal128(9, 2), Decimal("12.50")),
        ("2026-09-30", pa.date32(), date(2026, 9, 30)),
        (None, pa.date32(), None),
        (7, pa.int32(), 7),
        (True, pa.bool_(), True),
    ],
)
def test_a_value_in_its_json_form_becomes_the_columns_value(
    text: Any, column_type: pa.DataType, value: Any
) -> None:
    assert value_of_json(text, column_type) == value


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        (patch(6, q=2), row(5, q=1), {"updated": 1}),
        (patch(6, q=1), row(5, q=1), {"unchanged": 1}),
        (patch(4, q=2), row(5, q=1), {"stale": 1}),
        (patch(6, q=2), join(row(5, q=1), patch(6, q=2)), {"duplicate": 1}),
        (patch(6, at=3, q=2), join(row(5, q=1), patch(6, q=2)), {"duplicate": 1}),
        (patch(6, q=2, r=1), join(row(5, q=1), patch(7, q=3)), {"updated": 1}),
        (patch(6, q=2), join(row(5, q=1), patch(7, q=3)), {"stale": 1}),
        (patch(6, q=2), deleted(5, "p0"), {"waiting": 1}),
        (patch(6, q=2), deleted(7, "p0"), {"stale": 1}),
        (patch(6, q=2), patch(6, q=2), {"duplicate": 1}),
        (join(patch(6, q=2), patch(7, r=2)), row(5), {"updated": 2}),
    ],
)
def test_each_patch_has_one_outcome(change: State, found: State, expected: dict[str, int]) -> None:
    assert outcomes(change, found) == expected


def test_a_patch_that_this_batch_has_left_waiting_is_no_duplicate() -> None:
    assert outcomes(patch(6, q=2), patch(6, q=2), own=True) == {"waiting": 1}


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        (row(6, q=2), None, "inserted"),
        (row(6, q=2), row(5, q=1), "updated"),
        (row(6, q=2), join(row(5, q=1), patch(7, q=2)), "unchanged"),
        (row(5, q=1), join(row(5, q=1), patch(7, q=2)), "duplicate"),
        (row(4, q=1), row(5, q=1), "stale"),
        (deleted(6, "p0"), join(row(5, q=1), patch(7, q=2)), "deleted"),
        (deleted(4, "p0"), row(5, q=1), "stale"),
        (deleted(4, "p0"), None, None),
    ],
)
def test_the_base_of_a_change_has_an_outcome_of_its_own(
    change: State, found: State | None, expected: str | None
) -> None:
    after = change if found is None else join(found, change)

    assert base_outcome(change, found, after) == expected


def test_a_patch_becomes_a_delete_older_than_anything_in_the_table_of_changes() -> None:
    event = placed(Sale, 3, version=9, key=KEY, patch={"unit_price": "2.5", "customer_id": None})

    [record] = changes_table(Sale, [event]).to_pylist()

    assert (record["_version"], record["_position"], record[DELETED]) == (0, "", True)
    assert {name for name, value in record.items() if value is not None} == {
        *("sale_id", "_version", "_position", "_deleted", "_patches")
    }
    assert SHAPE.read(record).patches == {
        "unit_price": Patch(9, event.position, "2.5000"),
        "customer_id": Patch(9, event.position, None),
    }


def test_a_batch_with_patches_of_some_keys_collapses_the_others_as_ever() -> None:
    events = [
        placed(Sale, 0, version=5, after=sale_row("A-1")),
        placed(Sale, 1, version=6, key=KEY, patch={"quantity": 9}),
        placed(Sale, 2, version=4, key=KEY, patch={"quantity": 8}),
        placed(Sale, 3, version=5, after=sale_row("B-1")),
        placed(Sale, 4, version=6, after=sale_row("B-1", quantity=2)),
        placed(Sale, 5, version=6, after=sale_row("B-1", quantity=2)),
    ]

    collapsed = collapse_table(batch(Sale, events), Sale.key)

    found = {one["sale_id"]: one for one in collapsed.winners.to_pylist()}
    assert {key: (one["_version"], one["quantity"]) for key, one in found.items()} == {
        "A-1": (5, 9),
        "B-1": (6, 2),
    }
    assert (collapsed.duplicate, collapsed.stale) == (1, 2)
