"""The story of one key, told from the change log: every event, which won, and why the others did
not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.model import ModelChange, supersedes
from lake.lake import Lake
from lake.log import CHANGE_LOG


@dataclass(frozen=True, slots=True)
class Chapter:
    """One logged event of a key, in stream order, and what the merge made of it."""

    event: dict[str, Any]
    verdict: str
    because: str


def why(lake: Lake, table: str, key: str) -> list[Chapter]:
    """Every event of a key (`freshet.event.key_text`) in stream order, redeliveries told once."""
    parts = [part.filter(pc.equal(part.column("key"), key)) for part in lake.log(CHANGE_LOG, table)]
    rows = pa.concat_tables(parts).to_pylist() if parts else []
    return explain(rows)


def explain(events: list[dict[str, Any]]) -> list[Chapter]:
    """Judge logged events of one key as the merge did: pure."""
    once = {event["position"]: event for event in events}
    ordered = [once[position] for position in sorted(once)]
    winner: ModelChange | None = None
    verdicts: list[tuple[str, str]] = []
    for event in ordered:
        change = as_model(event)
        verdicts.append(_verdict(change, winner))
        if supersedes(change, winner):
            winner = change
    return [
        Chapter(event, *_final(event, winner, verdict))
        for event, verdict in zip(ordered, verdicts, strict=True)
    ]


def as_model(event: dict[str, Any]) -> ModelChange:
    """A logged event as the model sees it."""
    after = None if event["after"] is None else json.loads(event["after"])
    return ModelChange(event["key"], event["version"], event["position"], after)


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
        return "applied", "same version, later in the stream"
    return "stale", "same version, earlier in the stream"


def _final(
    event: dict[str, Any], winner: ModelChange | None, verdict: tuple[str, str]
) -> tuple[str, str]:
    """The event that stands now is the winner; one that stood before is superseded."""
    if verdict[0] != "applied" or winner is None:
        return verdict
    if event["position"] == winner.position:
        return "current", verdict[1]
    return "superseded", f"{verdict[1]}, until version {winner.version}"
