"""The oracle: the laws in plain dictionaries. Slow, obvious, and what the lake must equal."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A change as the model sees it; `after` is None for a delete."""

    key: Hashable
    version: int
    position: str
    after: Mapping[str, Any] | None


def supersedes(change: ModelChange, current: ModelChange | None) -> bool:
    """The one ordering rule: greater version wins; at a tie the later in the stream, if it
    differs.
    """
    if current is None or change.version != current.version:
        return current is None or change.version > current.version
    return change.after != current.after and change.position > current.position


def current_state(changes: Iterable[ModelChange]) -> dict[Hashable, ModelChange]:
    """The winning change of every key, deletes (tombstones) included."""
    winners: dict[Hashable, ModelChange] = {}
    for change in changes:
        if supersedes(change, winners.get(change.key)):
            winners[change.key] = change
    return winners


def live_rows(winners: Mapping[Hashable, ModelChange]) -> dict[Hashable, Mapping[str, Any]]:
    """What a reader sees: the rows of winners that are not deletes."""
    return {key: change.after for key, change in winners.items() if change.after is not None}
