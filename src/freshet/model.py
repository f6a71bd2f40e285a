"""The oracle: the laws in plain dictionaries. Slow, obvious, and what the lake must equal."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The key of a truncation, which deletes every row at once; `key_text` never writes it.
EVERY = "*"


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A change as the model sees it: a full row (`after`), some of its columns (`patch`), or, with
    neither, a delete.
    """

    key: Hashable
    version: int
    position: str
    after: Mapping[str, Any] | None
    patch: Mapping[str, Any] | None = None


def supersedes(change: ModelChange, current: ModelChange | None) -> bool:
    """The one ordering rule: greater version wins; at a tie the later in the stream, if it
    differs.
    """
    if current is None or change.version != current.version:
        return current is None or change.version > current.version
    return change.after != current.after and change.position > current.position


def ends_again(
    change: ModelChange, base: ModelChange | None, patched: Iterable[tuple[int, str]]
) -> bool:
    """True for a delete that repeats the delete before it, and ends patches that came in between
    (at these versions and positions). With none to end, it is a duplicate.
    """
    if base is None or (change.version, change.after, base.after) != (base.version, None, None):
        return False
    return any(place < (change.version, change.position) for place in patched)


def _place(one: ModelChange) -> tuple[int, str]:
    return one.version, one.position


def current_state(changes: Iterable[ModelChange]) -> dict[Hashable, ModelChange]:
    """What every key comes to, deletes (tombstones) included, each at its winner's version.

    `after` is the row as a reader sees it: the winning full change under the newer patches. Where
    there is no row, `patch` holds what waits for one. A key of which only patches came has
    version 0.
    """
    by_key: dict[Hashable, list[ModelChange]] = {}
    truncations = []
    for change in changes:
        if change.key == EVERY:
            truncations.append(change)
        else:
            by_key.setdefault(change.key, []).append(change)
    return {key: _state(key, [*truncations, *own]) for key, own in by_key.items()}


def _state(key: Hashable, changes: Sequence[ModelChange]) -> ModelChange:
    base, columns = ModelChange(key, 0, "", None), dict[str, ModelChange]()
    # In stream order: a truncation lies somewhere between the key's own changes.
    for change in sorted(changes, key=lambda one: one.position):
        if change.patch is None:
            if supersedes(change, base) or ends_again(change, base, map(_place, columns.values())):
                base = change
            columns = {name: one for name, one in columns.items() if _place(one) > _place(base)}
        elif _place(change) > _place(base):
            for name, value in change.patch.items():
                one = ModelChange(key, change.version, change.position, {name: value})
                if supersedes(one, columns.get(name)):
                    columns[name] = one
    newer = {name: (one.after or {})[name] for name, one in columns.items()}
    if base.after is None:
        return ModelChange(key, base.version, base.position, None, newer or None)
    return ModelChange(key, base.version, base.position, {**base.after, **newer})


def live_rows(winners: Mapping[Hashable, ModelChange]) -> dict[Hashable, Mapping[str, Any]]:
    """What a reader sees: the rows of winners that are not deletes."""
    return {key: change.after for key, change in winners.items() if change.after is not None}
