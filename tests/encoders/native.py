"""Encodes a source's changes as Freshet's own wire format v1, as an application would send them.

There is no truncation on this wire: an application deletes row by row. A changed key is a delete
and a create.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

import zstandard
from tests.encoders.history import Kind, Row, SourceChange


@dataclass(frozen=True)
class NativeChoice:
    """How an application sends: the packing, how many events share a record, and whether an update
    carries only what it set. It knows our `names` of the source's columns, and the `constants`.
    """

    packing: Literal["plain", "packed", "zstd"] = "plain"
    events_per_record: int = 1
    patches: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)


def encode(changes: Iterable[SourceChange], choice: NativeChoice) -> list[bytes]:
    """The records' data."""
    lines = [
        json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()
        for change in changes
        for event in _events(change, choice)
    ]
    size = choice.events_per_record
    return [_record(lines[at : at + size], choice) for at in range(0, len(lines), size)]


def _record(lines: list[bytes], choice: NativeChoice) -> bytes:
    body = b"\n".join(lines)
    if choice.packing == "plain":
        return body
    if choice.packing == "packed":
        return b"FRSH\x01\x00" + body
    return b"FRSH\x01\x01" + zstandard.compress(body)


def _events(change: SourceChange, choice: NativeChoice) -> Iterator[dict[str, Any]]:
    match change.kind:
        case Kind.INSERT:
            yield _event(change, choice, "c", change.after, after=change.after)
        case Kind.UPDATE if choice.patches:
            assert change.after is not None
            patch = {name: change.after[name] for name in sorted(change.touched)}
            yield _event(change, choice, "u", change.after, patch=patch)
        case Kind.UPDATE:
            yield _event(change, choice, "u", change.after, after=change.after)
        case Kind.DELETE:
            yield _event(change, choice, "d", change.before)
        case Kind.REKEY:
            yield _event(change, choice, "d", change.before)
            yield _event(change, choice, "c", change.after, after=change.after)
        case Kind.TRUNCATE:
            for row in change.removed:
                yield _event(change, choice, "d", row)


def _event(
    change: SourceChange,
    choice: NativeChoice,
    op: str,
    row: Row | None,
    **rows: Row | None,
) -> dict[str, Any]:
    assert row is not None
    at = instant(change.committed_at)
    return {
        "table": change.table.name,
        "op": op,
        "key": _shown(change.table.key_of(row), choice),
        "version": change.lsn,
        **{
            name: _shown(part, choice) | ({} if name == "patch" else dict(choice.constants))
            for name, part in rows.items()
            if part is not None
        },
        "event_id": "-".join(
            ("app", str(change.lsn), op, *map(str, change.table.key_of(row).values()))
        ),
        "source": "app",
        "occurred_at": at,
        "accepted_at": at,
    }


def _shown(row: Row, choice: NativeChoice) -> Row:
    return {choice.names.get(name, name): shown(value) for name, value in row.items()}


def shown(value: Any) -> Any:
    """A value as our events write it."""
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, date):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value


def instant(moment: datetime) -> str:
    """UTC text with microseconds and a Z."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
