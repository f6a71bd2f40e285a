"""Partial updates: the state of one key as a join, for the few keys whose columns differ in
version.

A state is a base (the winning full row or delete) and, above it, the winning patch of each column.
States join column by column, in any order and any number of times to the same one, so laws L1 to
L3 hold for patches as they do for rows. Keys without patches never come here: `freshet.merge`
settles them by the column.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import reduce
from typing import Any, NamedTuple

import pyarrow as pa

from freshet.arrow import DELETED, PATCHES, POSITION, VERSION, patches_text
from freshet.event import json_value

Record = dict[str, Any]
Place = tuple[int, str]


class Patch(NamedTuple):
    """One column's value, in its JSON form, and the version and position that set it."""

    version: int
    position: str
    value: Any

    @property
    def place(self) -> Place:
        """What orders patches of one column."""
        return self.version, self.position


@dataclass(frozen=True, slots=True)
class State:
    """Of one key: its base (`after` None: deleted, at version 0: never seen) and newer patches."""

    version: int
    position: str
    after: Mapping[str, Any] | None
    patches: Mapping[str, Patch]

    @property
    def place(self) -> Place:
        """The base's version and position."""
        return self.version, self.position

    def shown(self, column: str) -> Any:
        """The JSON value a reader sees in a column; None where there is no row."""
        if self.after is None:
            return None
        patch = self.patches.get(column)
        return json_value(self.after[column]) if patch is None else patch.value

    def row(self) -> dict[str, Any] | None:
        """The row a reader sees, as JSON values."""
        return None if self.after is None else {name: self.shown(name) for name in self.after}


def deleted(version: int, position: str, patches: Mapping[str, Patch] | None = None) -> State:
    """The state of a deleted key, and what waits for its return."""
    return State(version, position, None, patches or {})


def join(one: State, other: State) -> State:
    """The newest of both: the winning base, and each column's winning patch above it."""
    base = other if supersedes(other, one) else one
    patches = dict(one.patches)
    for column, patch in other.patches.items():
        if column not in patches or _is_later(patch, patches[column]):
            patches[column] = patch
    newer = {column: patch for column, patch in patches.items() if patch.place > base.place}
    return State(base.version, base.position, base.after, newer)


def supersedes(change: State, current: State) -> bool:
    """The ordering rule, of bases (ADR 0006). Of two deletes at one version the later stands."""
    if change.version != current.version:
        return change.version > current.version
    differs = change.after is None or change.after != current.after
    return differs and change.position > current.position


def _is_later(patch: Patch, current: Patch) -> bool:
    if patch.version != current.version:
        return patch.version > current.version
    return patch.value != current.value and patch.position > current.position


def patches_of(text: str | None) -> dict[str, Patch]:
    """What `patches_text` wrote."""
    return {} if text is None else {name: Patch(*one) for name, one in json.loads(text).items()}


@dataclass(frozen=True, slots=True)
class Shape:
    """How a table's records hold states: `content` names the columns that are a base's content.

    `_patches` is JSON, `{column: [version, position, value]}`. A record with a row shows the
    patched value in the column itself, and keeps the base's there, so that nothing is lost when a
    newer base comes late. Elsewhere the value is the patch's own.
    """

    types: Mapping[str, pa.DataType]
    content: tuple[str, ...]

    @classmethod
    def of(cls, schema: pa.Schema, content: tuple[str, ...] | None = None) -> Shape:
        """The shape of a lake schema; its content is the contract's columns unless named."""
        own = tuple(name for name in schema.names if not name.startswith("_"))
        return cls({field.name: field.type for field in schema}, content or own)

    def read(self, record: Record) -> State:
        """The state that a row, or a change, holds."""
        patches = patches_of(record[PATCHES])
        if record.get(DELETED):
            return deleted(record[VERSION], record[POSITION], patches)
        after = {name: record[name] for name in self.content}
        for column, patch in patches.items():
            if column in after:
                patches[column] = patch._replace(value=json_value(after[column]))
                after[column] = value_of_json(patch.value, self.types[column])
        return State(record[VERSION], record[POSITION], after, patches)

    def write(self, state: State, key: Record) -> Record:
        """The record of a state; `key` holds just its key columns."""
        record = key | {VERSION: state.version, POSITION: state.position}
        record[DELETED] = state.after is None
        if state.after is None:
            own = dict.fromkeys(name for name in self.content if name not in key)
            return record | own | {PATCHES: patches_text(state.patches)}
        kept: dict[str, list[Any]] = {}
        row = dict(state.after)
        for column, patch in state.patches.items():
            kept[column] = list(patch)
            if column in row:
                kept[column][2] = json_value(row[column])
                row[column] = value_of_json(patch.value, self.types[column])
        return record | row | {PATCHES: patches_text(kept)}


def value_of_json(value: Any, column_type: pa.DataType) -> Any:
    """The Python value of a column that `json_value` wrote."""
    if value is None:
        return None
    if pa.types.is_decimal(column_type):
        return Decimal(value)
    if pa.types.is_timestamp(column_type):
        return datetime.fromisoformat(value)
    if pa.types.is_date(column_type):
        return date.fromisoformat(value)
    return value


class Collapsed(NamedTuple):
    """The changes of one key as one, and how many of them are part of it no more."""

    state: State
    duplicate: int
    stale: int


def collapse(changes: list[State]) -> Collapsed:
    """Join the changes of one key; those of which nothing is left are duplicate or stale."""
    ordered = sorted(changes, key=_last_place)
    joined = reduce(join, ordered)
    lost: Counter[str] = Counter()
    told: set[tuple[bool, Place]] = set()
    for change in ordered:
        identity = (change.version > 0, _last_place(change))
        is_part = _is_part(change, joined)
        if is_part and identity in told:
            lost["duplicate"] += 1
        elif not is_part:
            lost["duplicate" if _is_said(change, joined) else "stale"] += 1
        told.add(identity)
    return Collapsed(joined, lost["duplicate"], lost["stale"])


def _last_place(change: State) -> Place:
    """An event's place: its own as a base, or that of its patches."""
    return max([change.place, *(patch.place for patch in change.patches.values())])


def _is_part(change: State, joined: State) -> bool:
    if change.version:
        return change.place == joined.place
    return any(joined.patches.get(name) == patch for name, patch in change.patches.items())


def _is_said(change: State, joined: State) -> bool:
    if change.version:
        return change.version == joined.version and change.after == joined.after
    return all(_says(joined, name, patch) for name, patch in change.patches.items())


def _says(state: State, column: str, patch: Patch) -> bool:
    own = state.patches.get(column)
    return own is not None and (own.version, own.value) == (patch.version, patch.value)


def base_outcome(change: State, row: State | None, after: State) -> str | None:
    """What the base of a change did to the row it met, as receipts call it; None: it met none."""
    if row is None or row.after is None:
        return None if change.after is None else "inserted"
    if (change.version, change.after) == (row.version, row.after):
        return "duplicate"
    if not supersedes(change, row):
        return "stale"
    if change.after is None:
        return "deleted"
    return "unchanged" if row.row() == after.row() else "updated"


def patch_outcomes(
    change: State, found: State, after: State, *, is_own: Callable[[Place], bool]
) -> Counter[str]:
    """What each event among a change's patches did, as receipts call it.

    `found` is the row, or what waits for one, before the change and `after` is what it came to;
    `is_own` tells patches that are found because this very batch has left them there.
    """
    events: dict[Place, list[str]] = {}
    for column, patch in change.patches.items():
        events.setdefault(patch.place, []).append(column)
    return Counter(
        _patch_outcome({name: change.patches[name] for name in columns}, found, after, is_own)
        for columns in events.values()
    )


def _patch_outcome(
    patches: Mapping[str, Patch], found: State, after: State, is_own: Callable[[Place], bool]
) -> str:
    kept = {name: one for name, one in patches.items() if after.patches.get(name) == one}
    if not kept:
        said = all(_says(after, name, patch) for name, patch in patches.items())
        return "duplicate" if said else "stale"
    is_known = all(found.patches.get(name) == patch for name, patch in kept.items())
    if after.after is None:
        mine = any(is_own(patch.place) for patch in kept.values())
        return "duplicate" if is_known and not mine else "waiting"
    if is_known:
        return "duplicate"
    same = found.after is not None and all(found.shown(n) == p.value for n, p in kept.items())
    return "unchanged" if same else "updated"
