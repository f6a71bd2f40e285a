"""The merge against its oracle: the columnar functions and the plain-dict model say the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from freshet.arrow import (
    POSITION,
    VERSION,
    changes_schema,
    contract_schema,
    key_column,
    position_of,
)
from freshet.contract import Contract, Integer, Text
from freshet.merge import Merged, Outcome, collapse, merge
from freshet.model import ModelChange, current_state, supersedes


class Reading(Contract, table="readings", key=("site", "number")):
    """A composite key whose text part may hold anything, and nullable columns."""

    site: Annotated[str, Text(8)] = Field(description="Part of the key")
    number: Annotated[int, Integer(32)] = Field(description="Part of the key")
    note: Annotated[str, Text(8)] | None = Field(None, description="Content")
    value: Annotated[int, Integer(64)] | None = Field(None, description="Content")


KEY = Reading.key
ROWS = contract_schema(Reading)
CHANGES = changes_schema(ROWS, KEY)

KEYS = st.tuples(st.sampled_from(["a", "", "a\x1f1", "\\", "\x1f", "é"]), st.integers(-1, 1))
CONTENTS = st.none() | st.fixed_dictionaries(
    {"note": st.sampled_from([None, "", "x"]), "value": st.sampled_from([None, 0, 1])}
)


@st.composite
def histories(draw: st.DrawFn, *, ties: bool = True, first: int = 0) -> list[ModelChange]:
    """Changes in stream order, from its `first` place on. Without ties no two of a key share a
    version.
    """
    drawn = draw(st.lists(st.tuples(KEYS, st.integers(1, 4), CONTENTS), max_size=12))
    if not ties:
        drawn = list(
            {(key, version): (key, version, after) for key, version, after in drawn}.values()
        )
    return [
        ModelChange(key, version, position_of(str(at), 0), after)
        for at, (key, version, after) in enumerate(drawn, first)
    ]


def table_of(changes: Sequence[ModelChange]) -> pa.Table:
    rows = [
        {
            "site": change.key[0],  # type: ignore[index]
            "number": change.key[1],  # type: ignore[index]
            **(change.after or {}),
            VERSION: change.version,
            POSITION: change.position,
            "_deleted": change.after is None,
        }
        for change in changes
    ]
    return pa.Table.from_pylist(rows, schema=CHANGES)


def merged(rows: pa.Table, changes: Sequence[ModelChange]) -> Merged:
    return merge(rows, collapse(table_of(changes), KEY).winners, KEY)


def stands_against(change: ModelChange, tombstone: ModelChange | None) -> bool:
    """A delete may have to remove a row that came between it and the tombstone it repeats."""
    repeats = tombstone is not None and (change.after, change.version) == (None, tombstone.version)
    return repeats or supersedes(change, tombstone)


def in_batches(changes: Sequence[ModelChange], cuts: Sequence[int]) -> dict[Any, Any]:
    """Rows after the batches, with a dictionary for what the lake's tombstones remember."""
    rows, tombstones, rest = ROWS.empty_table(), dict[Any, ModelChange](), list(changes)
    for size in (*cuts, len(rest)):
        part, rest = rest[:size], rest[size:]
        # As in the lake: batches are collapsed first, and a delete stands against its like.
        winners = current_state(part)
        stands = {key for key, c in winners.items() if stands_against(c, tombstones.get(key))}
        standing = [c for c in part if c.key in stands]
        tombstones |= {
            key: change
            for key, change in current_state(standing).items()
            if change.after is None and supersedes(change, tombstones.get(key))
        }
        after = merged(rows, standing).rows
        rows = rows if after is None else after
    return state_of(rows)


def state_of(rows: pa.Table) -> dict[Any, Any]:
    state = {
        (row["site"], row["number"]): (row[VERSION], {"note": row["note"], "value": row["value"]})
        for row in rows.to_pylist()
    }
    assert len(state) == rows.num_rows, "a key has two rows"
    return state


def expected(changes: Sequence[ModelChange]) -> dict[Any, Any]:
    return {
        key: (change.version, change.after)
        for key, change in current_state(changes).items()
        if change.after is not None
    }


@settings(deadline=None)
@given(histories())
def test_collapse_keeps_the_models_winner_of_each_key(history: list[ModelChange]) -> None:
    collapsed = collapse(table_of(history), KEY)

    winners = {
        (row["site"], row["number"]): (
            row[VERSION],
            None if row["_deleted"] else {"note": row["note"], "value": row["value"]},
        )
        for row in collapsed.winners.to_pylist()
    }
    assert winners == {key: (c.version, c.after) for key, c in current_state(history).items()}
    assert len(history) == collapsed.winners.num_rows + collapsed.duplicate + collapsed.stale


@settings(deadline=None)
@given(histories())
def test_collapse_calls_losers_that_say_what_the_winner_says_duplicates(
    history: list[ModelChange],
) -> None:
    collapsed = collapse(table_of(history), KEY)

    model, alike = current_state(history), Counter[Any]()
    for change in history:
        winner = model[change.key]
        alike[change.key] += (change.version, change.after) == (winner.version, winner.after)
    assert collapsed.duplicate == sum(count - 1 for count in alike.values())


def tied(*contents: dict[str, Any] | None) -> list[ModelChange]:
    """Changes of one key that all claim one version."""
    return [
        ModelChange(("a", 1), 1, position_of(str(at), 0), after)
        for at, after in enumerate(contents)
    ]


@settings(deadline=None)
@given(histories(), st.lists(st.integers(0, 5), max_size=4))
@example(tied(None, {"note": None, "value": None}, None), [1])
@example(tied(None, {"note": None, "value": None}, None), [1, 1])
def test_any_cut_into_batches_in_stream_order_reaches_the_models_rows(
    history: list[ModelChange], cuts: list[int]
) -> None:
    assert in_batches(history, cuts) == expected(history)


@settings(deadline=None)
@given(histories(ties=False), st.lists(st.integers(0, 5), max_size=4), st.randoms())
def test_without_ties_any_order_and_any_duplication_reach_the_models_rows(
    history: list[ModelChange], cuts: list[int], random: Any
) -> None:
    delivered = random.sample(history * 2, len(history) * 2)

    assert in_batches(delivered, cuts) == expected(history)


@settings(deadline=None)
@given(histories(), histories())
def test_merging_again_changes_nothing(
    earlier: list[ModelChange], later: list[ModelChange]
) -> None:
    rows = merged(ROWS.empty_table(), earlier).rows or ROWS.empty_table()
    once = merged(rows, later)
    rows = rows if once.rows is None else once.rows

    again = merged(rows, later)

    assert again.rows is None
    assert set(again.outcomes.to_pylist()) <= {
        Outcome.DUPLICATE,
        Outcome.STALE,
        Outcome.ABSENT,
    }


@settings(deadline=None)
@given(histories(), histories(first=100))
def test_each_outcome_is_what_the_model_would_call_it(
    earlier: list[ModelChange], later: list[ModelChange]
) -> None:
    before = {k: c for k, c in current_state(earlier).items() if c.after is not None}
    winners = collapse(table_of(later), KEY).winners
    rows = merged(ROWS.empty_table(), earlier).rows or ROWS.empty_table()

    outcomes = merge(rows, winners, KEY).outcomes.to_pylist()

    for row, outcome in zip(winners.to_pylist(), outcomes, strict=True):
        key = (row["site"], row["number"])
        after = None if row["_deleted"] else {"note": row["note"], "value": row["value"]}
        change = ModelChange(key, row[VERSION], row[POSITION], after)
        assert outcome == outcome_by_model(change, before.get(key))


def outcome_by_model(change: ModelChange, row: ModelChange | None) -> Outcome:
    if row is None:
        return Outcome.ABSENT if change.after is None else Outcome.INSERTED
    if (change.version, change.after) == (row.version, row.after):
        return Outcome.DUPLICATE
    if not supersedes(change, row):
        return Outcome.STALE
    if change.after is None:
        return Outcome.DELETED
    return Outcome.UNCHANGED if change.after == row.after else Outcome.UPDATED


@settings(deadline=None)
@given(histories(), st.integers(0, 12))
def test_chunks_of_rows_and_changes_make_no_difference(
    history: list[ModelChange], cut: int
) -> None:
    earlier, later = history[:cut], history[cut:]
    rows = merged(ROWS.empty_table(), earlier).rows or ROWS.empty_table()
    changes = table_of(later)
    chunked = pa.concat_tables([changes.slice(0, 1), changes.slice(1), changes.slice(0, 0)])
    halves = pa.concat_tables([rows.slice(0, 1), rows.slice(1)])

    whole = merge(rows, collapse(changes, KEY).winners, KEY)
    pieces = merge(halves, collapse(chunked, KEY).winners, KEY)

    assert pieces.outcomes == whole.outcomes
    assert rows_of(pieces) == rows_of(whole)


def rows_of(merged: Merged) -> list[Mapping[str, Any]] | None:
    return None if merged.rows is None else merged.rows.to_pylist()


@settings(deadline=None)
@given(st.lists(KEYS, unique=True))
def test_different_composite_keys_never_run_together(keys: list[tuple[str, int]]) -> None:
    table = table_of([ModelChange(key, 1, "p", None) for key in keys])

    assert len(set(key_column(table, KEY).to_pylist())) == len(keys)


@pytest.mark.parametrize(
    ("earlier", "later"), [("9", "10"), ("99", "100"), ("1" * 56, "2" * 56), ("5", "5")]
)
def test_positions_sort_as_sequence_numbers_do(earlier: str, later: str) -> None:
    assert position_of(earlier, 9) < position_of(later, 10)
