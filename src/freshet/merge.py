"""The merge: which change wins, and what rows become. Pure functions over Arrow tables.

One rule decides everything (laws L1 and L2): of two changes of a key the one with the greater
`_version` wins; at equal versions the later `_position` wins, unless both say the same. Deletes
obey the same rule. Keys with partial updates are few, and go by `freshet.patch`. `freshet.model`
says the same in plain Python and is the oracle of the property tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet import patch
from freshet.arrow import DELETED, PATCHES, POSITION, VERSION, key_column


class Outcome(IntEnum):
    """What one change did to the rows it met."""

    INSERTED = 0
    UPDATED = 1
    DELETED = 2
    UNCHANGED = 3  # won, and says what the row said already
    DUPLICATE = 4  # the very change that is there
    STALE = 5  # lost to a newer one
    ABSENT = 6  # a delete that met no row


@dataclass(frozen=True, slots=True)
class Collapsed:
    """The winning change of each key of a batch, the patches above it included, and how many lost
    inside the batch.
    """

    winners: pa.Table
    duplicate: int
    stale: int


@dataclass(frozen=True, slots=True)
class Merged:
    """Rows after a merge (None: nothing to write) and each change's `Outcome`, in the changes'
    order.
    """

    rows: pa.Table | None
    outcomes: pa.Array


def collapse(changes: pa.Table, key: Sequence[str]) -> Collapsed:
    """Keep the winning change of every key; patches of a key become one change with it."""
    if changes.column(PATCHES).null_count == changes.num_rows:
        return _collapse_whole(changes, key)
    keys = key_column(changes, key)
    patched_keys = keys.filter(pc.is_valid(changes.column(PATCHES))).combine_chunks()
    patched = pc.is_in(keys, value_set=patched_keys)
    whole = _collapse_whole(changes.filter(pc.invert(patched)), key)
    parts = _collapse_patched(changes.filter(patched), key)
    return Collapsed(
        pa.concat_tables([whole.winners, parts.winners]),
        whole.duplicate + parts.duplicate,
        whole.stale + parts.stale,
    )


def _collapse_patched(changes: pa.Table, key: Sequence[str]) -> Collapsed:
    """Keys with patches, each joined in plain Python."""
    shape = patch.Shape.of(changes.schema)
    by_key: dict[tuple[Any, ...], list[patch.State]] = {}
    for record in changes.to_pylist():
        by_key.setdefault(tuple(record[name] for name in key), []).append(shape.read(record))
    records, duplicate, stale = [], 0, 0
    for values, states in by_key.items():
        one = patch.collapse(states)
        records.append(shape.write(one.state, dict(zip(key, values, strict=True))))
        duplicate, stale = duplicate + one.duplicate, stale + one.stale
    return Collapsed(pa.Table.from_pylist(records, schema=changes.schema), duplicate, stale)


def _collapse_whole(changes: pa.Table, key: Sequence[str]) -> Collapsed:
    """Keys without patches, all at once by the column."""
    keys = key_column(changes, key)
    counts = pc.value_counts(keys)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if len(repeated) == 0:
        return Collapsed(changes, duplicate=0, stale=0)
    # Few keys come twice in a batch; only those are sorted.
    contested = pc.is_in(keys, value_set=repeated)
    once, settled = changes.filter(pc.invert(contested)), _settle(changes.filter(contested), key)
    return Collapsed(pa.concat_tables([once, settled.winners]), settled.duplicate, settled.stale)


def _settle(changes: pa.Table, key: Sequence[str]) -> Collapsed:
    keys = key_column(changes, key)
    plain = pa.table(
        {"key": keys, "version": changes.column(VERSION), "position": changes.column(POSITION)}
    )
    order = pc.sort_indices(
        plain,
        sort_keys=[("key", "ascending"), ("version", "descending"), ("position", "descending")],
    )
    ordered, sorted_keys = changes.take(order), keys.take(order).combine_chunks()
    first = _starts_run(sorted_keys)
    duplicate = _duplicates_in_runs(ordered, first)
    winners = ordered.filter(first)
    return Collapsed(winners, duplicate, changes.num_rows - winners.num_rows - duplicate)


def _starts_run(keys: pa.Array) -> pa.Array:
    """True where a sorted key differs from the one before it."""
    differs = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    return pa.concat_arrays([pa.array([True]), differs])


def _duplicates_in_runs(ordered: pa.Table, first: pa.Array) -> int:
    """Losers that say exactly what their key's winner says, at the same version."""
    starts = pc.indices_nonzero(first)
    run = pc.cast(pc.subtract(pc.cumulative_sum(pc.cast(first, pa.int64())), 1), pa.int64())
    winner_of = starts.take(run)
    losers = pc.indices_nonzero(pc.invert(first))
    same = _says_the_same(ordered.take(losers), ordered.take(winner_of.take(losers)))
    version = pc.equal(
        ordered.column(VERSION).take(losers), ordered.column(VERSION).take(winner_of.take(losers))
    )
    return pc.sum(pc.and_(same, version)).as_py() or 0


def merge(
    rows: pa.Table, changes: pa.Table, key: Sequence[str], *, content: Sequence[str] | None = None
) -> Merged:
    """Apply collapsed changes (one per key) to rows (one per key), neither with patches: what
    holds some is joined before (`freshet.patch`), and arrives here only where its key has no row.

    `rows` has a lake schema, `changes` the matching `changes_schema`. A change that meets no row is
    inserted; a delete that meets none is ABSENT. Rows keep their order, new ones follow. Merging
    again changes nothing. `content` names the columns that tell a duplicate from a tie (the
    contract's by default).
    """
    met = pc.index_in(key_column(rows, key), value_set=key_column(changes, key).combine_chunks())
    met = _flat(met)
    is_met = pc.is_valid(met)
    row_at = pc.indices_nonzero(is_met)
    change_at = met.take(row_at)
    says = content or [name for name in rows.schema.names if not name.startswith("_")]
    verdicts = _verdicts(rows.take(row_at), changes.take(change_at), says)
    outcomes = _outcomes(changes, change_at, verdicts)
    loses = pc.greater(verdicts, int(Outcome.UNCHANGED))
    stays = pc.replace_with_mask(pa.repeat(pa.scalar(True), rows.num_rows), is_met, loses)
    arrive = _arriving(changes, outcomes)
    if stays.false_count == 0 and arrive.num_rows == 0:
        return Merged(None, outcomes)
    stay = rows.filter(stays) if stays.false_count else rows
    return Merged(
        pa.concat_tables([stay, arrive.select(rows.schema.names).cast(rows.schema)]), outcomes
    )


def _verdicts(rows: pa.Table, changes: pa.Table, content: Sequence[str]) -> pa.Array:
    """The outcome of each change against the row it met (both in the same order)."""
    version, position = _flat(changes.column(VERSION)), _flat(changes.column(POSITION))
    newer = pc.greater(version, _flat(rows.column(VERSION)))
    tie = pc.equal(version, _flat(rows.column(VERSION)))
    later = pc.greater(position, _flat(rows.column(POSITION)))
    delete = _flat(changes.column(DELETED))
    same = pc.and_(_equal_columns(rows, changes, content), pc.invert(delete))
    wins = pc.or_(newer, pc.and_(tie, pc.and_(later, pc.invert(same))))
    verdict = pc.case_when(
        pc.make_struct(pc.and_(tie, same), pc.invert(wins), delete, same),
        *(int(o) for o in (Outcome.DUPLICATE, Outcome.STALE, Outcome.DELETED, Outcome.UNCHANGED)),
        int(Outcome.UPDATED),
    )
    return verdict.cast(pa.int8())


def _outcomes(changes: pa.Table, change_at: pa.Array, verdicts: pa.Array) -> pa.Array:
    """Outcomes in the changes' own order: verdicts where a row was met, INSERTED or ABSENT
    elsewhere.
    """
    deleted = _flat(changes.column(DELETED))
    alone = pc.if_else(deleted, int(Outcome.ABSENT), int(Outcome.INSERTED)).cast(pa.int8())
    if len(change_at) == 0:
        return alone
    met_by = pc.index_in(_range(changes.num_rows), value_set=change_at.cast(pa.uint64()))
    return pc.coalesce(verdicts.take(met_by), alone)


def _arriving(changes: pa.Table, outcomes: pa.Array) -> pa.Table:
    arriving = pc.is_in(
        outcomes,
        value_set=pa.array([Outcome.INSERTED, Outcome.UPDATED, Outcome.UNCHANGED], pa.int8()),
    )
    return changes.filter(arriving)


def _range(count: int) -> pa.Array:
    """0 … count-1 without a Python loop (numpy is not in the Lambda layer)."""
    ones = pa.repeat(pa.scalar(1, pa.uint64()), count)
    return pc.subtract(pc.cumulative_sum(ones), pa.scalar(1, pa.uint64()))


def _says_the_same(left: pa.Table, right: pa.Table) -> pa.Array:
    columns = [name for name in left.schema.names if not name.startswith("_")]
    both_delete = pc.equal(left.column(DELETED), right.column(DELETED))
    return pc.and_(_equal_columns(left, right, columns), _flat(both_delete))


def _equal_columns(left: pa.Table, right: pa.Table, columns: Sequence[str]) -> pa.Array:
    """True where all columns are equal, null being equal to null."""
    equal = pa.repeat(pa.scalar(True), left.num_rows)
    # What changes tends to be declared after what identifies: the last columns settle it soonest.
    for name in reversed(columns):
        if equal.true_count == 0:
            break
        a, b = _flat(left.column(name)), _flat(right.column(name))
        same = pc.equal(a, b)
        if a.null_count or b.null_count:
            same = pc.and_(pc.fill_null(same, True), pc.equal(pc.is_null(a), pc.is_null(b)))
        equal = pc.and_(equal, same)
    return equal


def _flat(array: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(array, pa.ChunkedArray):
        return array
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
