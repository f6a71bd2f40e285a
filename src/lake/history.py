"""The story of one key, told from the change log: every event, which won, and why the others did
not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.arrow import former_names, renamed
from freshet.model import ModelChange, ends_again
from freshet.patch import Patch, State, deleted, join
from lake.lake import Lake
from lake.log import CHANGE_LOG, TRUNCATE_OP

_LATER = ("applied", "same version, later in the stream")


@dataclass(frozen=True, slots=True)
class Chapter:
    """One logged event of a key, in stream order, and what the merge made of it."""

    event: dict[str, Any]
    verdict: str
    because: str


def why(lake: Lake, table: str, key: str) -> list[Chapter]:
    """Every event of a key (`freshet.event.key_text`) as they came, redeliveries told once; and
    the truncations of its table, which are deletes of every key.
    """
    parts = [part.filter(_concerns(part, key)) for part in lake.log(CHANGE_LOG, table)]
    rows = pa.concat_tables(parts).to_pylist() if parts else []
    former = former_names(lake.current(table).rows.spec.schema)
    return explain([_renamed(row, former) for row in rows] if former else rows)


def _renamed(event: dict[str, Any], former: Mapping[str, str]) -> dict[str, Any]:
    """A logged event under the columns' names of today."""
    for image in ("before", "after", "patch"):
        row = _json(event.get(image))
        if isinstance(row, dict) and (named := renamed(row, former)) is not row:
            event = {**event, image: json.dumps(named, ensure_ascii=False)}
    return event


def _concerns(part: pa.Table, key: str) -> Any:
    return pc.or_(pc.equal(part.column("key"), key), pc.equal(part.column("op"), TRUNCATE_OP))


def explain(events: list[dict[str, Any]]) -> list[Chapter]:
    """Judge logged events of one key as the merge did: pure. Truncations alone make no story."""
    once = {event["position"]: event for event in events}
    # As they came: the place of a rollback's event, made to lose ties, says nothing of when.
    ordered = sorted(once.values(), key=lambda event: (event["arrived_at"], event["position"]))
    if all(_is_truncation(event) for event in ordered):
        return []
    story = _Story()
    verdicts = [story.tell(event) for event in ordered]
    return [
        Chapter(event, *story.end(event, verdict))
        for event, verdict in zip(ordered, verdicts, strict=True)
    ]


def as_model(event: dict[str, Any]) -> ModelChange:
    """A logged event as the model sees it."""
    after, patch = (_json(event.get(image)) for image in ("after", "patch"))
    return ModelChange(event["key"], event["version"], event["position"], after, patch)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _is_truncation(event: dict[str, Any]) -> bool:
    return event.get("op") == TRUNCATE_OP


class _Story:
    """A key as its events make it, in stream order: the winning full change, and its patches."""

    def __init__(self) -> None:
        self._winner: ModelChange | None = None
        self._patches: dict[str, Patch] = {}

    @property
    def _state(self) -> State:
        base = self._winner
        if base is None:
            return deleted(0, "", self._patches)
        return State(base.version, base.position, base.after, self._patches)

    def tell(self, event: dict[str, Any]) -> tuple[str, str]:
        """The verdict on an event as it came."""
        change = as_model(event)
        if change.patch is not None:
            return self._tell_patch(change)
        verdict, because = _verdict(change, self._winner)
        if ends_again(change, self._winner, [patch.place for patch in self._patches.values()]):
            verdict, because = _LATER
        if verdict == "applied":
            self._winner = change
            self._patches = dict(join(self._state, deleted(0, "")).patches)
        return verdict, f"truncation, {because}" if _is_truncation(event) else because

    def _tell_patch(self, change: ModelChange) -> tuple[str, str]:
        before, own = self._state, _patches(change)
        after = join(before, deleted(0, "", own))
        self._patches = dict(after.patches)
        if any(after.patches.get(column) == patch for column, patch in own.items()):
            return "applied", ""
        there = [after.patches.get(column) for column in own]
        if all(
            one is not None and (one.version, one.value) == (patch.version, patch.value)
            for one, patch in zip(there, own.values(), strict=True)
        ):
            return "duplicate", "says what this version said already"
        newest = max(after.version, *(0 if one is None else one.version for one in there))
        return "stale", f"version {newest} was there already"

    def end(self, event: dict[str, Any], verdict: tuple[str, str]) -> tuple[str, str]:
        """The verdict on an event now that all have come."""
        change = as_model(event)
        if verdict[0] != "applied":
            return verdict
        if change.patch is not None:
            return self._end_patch(_patches(change))
        if self._winner is None or event["position"] == self._winner.position:
            return "current", verdict[1]
        return "superseded", f"{verdict[1]}, until version {self._winner.version}"

    def _end_patch(self, own: dict[str, Patch]) -> tuple[str, str]:
        """Which of a patch's columns stand, and which were overtaken since."""
        state = self._state
        stand = [column for column, patch in own.items() if state.patches.get(column) == patch]
        overtaken = ", ".join(sorted(own.keys() - set(stand)))
        columns = ", ".join(sorted(stand))
        if not stand:
            return "superseded", f"changed {overtaken}, newer since"
        rest = f"; {overtaken}: newer since" if overtaken else ""
        if state.after is None:
            return "waiting", f"changes {columns} once there is a row{rest}"
        return "current", f"changes {columns}{rest}"


def _patches(change: ModelChange) -> dict[str, Patch]:
    columns = (change.patch or {}).items()
    return {column: Patch(change.version, change.position, value) for column, value in columns}


def _verdict(change: ModelChange, current: ModelChange | None) -> tuple[str, str]:
    if current is None:
        return "applied", "first change of this key"
    if change.version > current.version:
        return "applied", f"newer than version {current.version}"
    if change.version < current.version:
        return "stale", f"version {current.version} was there already"
    if change.after == current.after:
        return "duplicate", "says what this version said already"
    if change.position > current.position:
        return _LATER
    return "stale", "same version, earlier in the stream"
