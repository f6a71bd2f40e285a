"""What the poller remembers of a source between polls: one object per source, swapped atomically.

The object is written twice around everything a poll publishes. First, before it is published, it
names the keys about to be published and the versions reserved for them; then, after the stream
accepted everything, the new snapshot. A crash in between leaves those keys `pending`, and the next
poll publishes their then current state anew. The first write also decides between overlapping
polls: both name the ETag they read, so one of them loses before it has published anything.

A listing that did not end in one poll leaves its `progress` in the same object, so that snapshot
and progress never speak of different moments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api_poller.snapshot import (
    EMPTY,
    Entry,
    JsonRow,
    Snapshot,
    SnapshotCorruptError,
    content_of,
    cut,
    digest_of,
    packed,
    unpacked,
)
from freshet.errors import TerminalError, TransientError
from freshet.event import json_value
from freshet.objects import ObjectMissingError, Objects, PreconditionError

FORMAT = 2
# The first format: all rows in one JSON text. Read still, never written.
_FORMAT_JSON = 1
# A zstd frame that decoders skip (RFC 8878, 3.1.2), holding the length of the head.
_LENGTH_BYTES = 8
_SKIPPABLE = bytes.fromhex("502a4d18") + _LENGTH_BYTES.to_bytes(4, "little")
# What reading JSON of another shape raises.
_WRONG_SHAPE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
_BIT_TEXT = bytes.maketrans(b"\x00\x01", b"01")


class StateConflictError(TransientError):
    """Another poll of the source wrote its state meanwhile; this one gives way."""

    def __init__(self, source: str, key: str) -> None:
        self.source, self.key = source, key
        super().__init__(
            f"source {source!r}: another poll of it wrote {key!r} meanwhile; this one gives way "
            "and the next poll goes on from there: nothing to do, unless polls always overlap; "
            "then poll less often"
        )


class StateCorruptError(TerminalError):
    """The state object is not one this version of the poller wrote."""

    def __init__(self, source: str, key: str, detail: str) -> None:
        self.source, self.key, self.detail = source, key, detail
        super().__init__(
            f"source {source!r}: state object {key!r} {detail}; restore an earlier version of it, "
            "or delete it: the next poll then publishes every row it finds as op r, but rows that "
            "vanished from the source since the last poll stay in the table"
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an unfinished listing goes on, and what it has shown so far.

    `resume` is the source's token after the last page whose changes the stream has accepted.
    `watermark` is where the listing started from, `greatest` the greatest cursor of its unfinished
    window. `seen` are the listed keys that matter for deletes, `unreadable` those of rows that do
    not fit the contract, `certain` is False once a row could not be identified. `kept` counts the
    shown keys that were known before; `rows` and `published` what it has brought so far.
    """

    resume: str
    started: datetime
    watermark: str | None = None
    greatest: str | None = None
    certain: bool = True
    kept: int = 0
    rows: int = 0
    published: int = 0
    seen: AbstractSet[str] = frozenset()
    unreadable: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PollState:
    """Where a source stands: `snapshot` is what the stream was told, but for the keys in `pending`.

    `version` is the greatest ever given out. `listed` says that a listing has come to its end once.
    """

    watermark: str | None = None
    version: int = 0
    listed: bool = False
    pending: frozenset[str] = frozenset()
    snapshot: Snapshot = EMPTY
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class StateStore:
    """Poll states as objects `pollers/<source>/state.json.zst`."""

    objects: Objects

    def load(self, source: str, *, cursor: str | None = None) -> tuple[PollState, str | None]:
        """The state and its ETag; a fresh state and None before the first poll.

        `cursor` is the cursor column of an incremental source, which a state of the first format
        does not name. Raises `StateCorruptError`, `StorageError`.
        """
        key = state_key(source)
        try:
            stored = self.objects.get(key)
        except ObjectMissingError:
            return PollState(), None
        try:
            return _decoded(source, stored.data, cursor), stored.etag
        except SnapshotCorruptError as error:
            raise StateCorruptError(source, key, error.detail) from error
        except _WRONG_SHAPE as error:
            raise StateCorruptError(source, key, f"cannot be read ({error})") from error

    def save(self, source: str, state: PollState, *, etag: str | None) -> str:
        """Write over the state with this ETag (None: over none); returns the new ETag.

        Raises `StateConflictError` when another poll wrote it since, `StorageError`.
        """
        key = state_key(source)
        try:
            return self.objects.put_if(key, _encoded(source, state), etag=etag)
        except PreconditionError as error:
            raise StateConflictError(source, key) from error

    def reset(self, source: str) -> None:
        """Forget what the stream was told of `source`: its next poll is a first poll.

        That poll publishes every row it finds as op `r`, which the lake takes as no change where it
        has them. But rows that vanished since the last poll can no longer be missed and stay in the
        table, until they are compared. Versions go on from where they were, or the events after a
        reset could lose against those before; only a state that cannot be read is deleted whole.
        Raises `StateConflictError`, `StorageError`.
        """
        try:
            state, etag = self.load(source)
        except StateCorruptError:
            self.objects.delete(state_key(source))
            return
        if etag is not None:
            self.save(source, PollState(version=state.version), etag=etag)


def state_key(source: str) -> str:
    """The key of a source's state object."""
    return f"pollers/{source}/state.json.zst"


def _encoded(source: str, state: PollState) -> bytes:
    """Format 2: a file of zstd frames, so `zstd -dc` shows its head as one line of JSON.

    First a skippable frame with the length of the head, then the head, the snapshot's sections and,
    in the middle of a listing, which rows of the snapshot it has shown.
    """
    sections = state.snapshot.sections()
    if state.progress is not None:
        sections.append(packed(_bitmap(state.snapshot, state.progress.seen)))
    body = {
        "format": FORMAT,
        "source": source,
        "watermark": state.watermark,
        "version": state.version,
        "listed": state.listed,
        "pending": sorted(state.pending),
        "rows": len(state.snapshot),
        "sections": [len(section) for section in sections],
        "progress": None if state.progress is None else _progress_json(state.progress),
    }
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    head = packed(f"{text}\n".encode())
    return b"".join((_SKIPPABLE, len(head).to_bytes(_LENGTH_BYTES), head, *sections))


def _decoded(source: str, data: bytes, cursor: str | None) -> PollState:
    """A state of either format. Raises `SnapshotCorruptError`, or what a wrong shape raises."""
    head, rest = data, b""
    if data.startswith(_SKIPPABLE):
        begin = len(_SKIPPABLE) + _LENGTH_BYTES
        end = begin + int.from_bytes(data[len(_SKIPPABLE) : begin])
        head, rest = data[begin:end], data[end:]
    body = json.loads(unpacked(head))
    if (body["format"], body["source"]) == (_FORMAT_JSON, source):
        return _state(body, _snapshot_of_rows(body["rows"], cursor), None)
    if (body["format"], body["source"]) != (FORMAT, source):
        raise SnapshotCorruptError(f"is no state of format {FORMAT} of this source")
    sections = cut(rest, body["sections"])
    seen = None if body["progress"] is None else unpacked(sections.pop())
    return _state(body, Snapshot.from_sections(body["rows"], sections), seen)


def _state(body: Mapping[str, Any], snapshot: Snapshot, seen: bytes | None) -> PollState:
    for name, kind in _MEMBERS.items():
        if not isinstance(body.get(name, ...), kind):
            raise SnapshotCorruptError(f"has no {name}")
    if not all(isinstance(key, str) for key in body["pending"]):
        raise SnapshotCorruptError("has a pending key that is no text")
    return PollState(
        watermark=body["watermark"],
        version=body["version"],
        listed=body["listed"],
        pending=frozenset(body["pending"]),
        snapshot=snapshot,
        progress=None if seen is None else _progress(body["progress"], snapshot, seen),
    )


_MEMBERS: Mapping[str, type | tuple[type, ...]] = {
    "watermark": (str, type(None)),
    "version": int,
    "listed": bool,
    "pending": list,
}


def _snapshot_of_rows(rows: Mapping[str, JsonRow], cursor: str | None) -> Snapshot:
    """The rows of a state of the first format."""
    entries = dict[str, Entry]()
    for key, row in rows.items():
        content = content_of(row)
        text = "" if cursor is None else str(row.get(cursor) or "")
        entries[key] = Entry(digest_of(content), text, content)
    return Snapshot.of(entries)


def _progress_json(progress: Progress) -> dict[str, Any]:
    return {
        "resume": progress.resume,
        "started": json_value(progress.started),
        "watermark": progress.watermark,
        "greatest": progress.greatest,
        "certain": progress.certain,
        "kept": progress.kept,
        "rows": progress.rows,
        "published": progress.published,
        "unreadable": sorted(progress.unreadable),
    }


def _progress(body: Mapping[str, Any], snapshot: Snapshot, bitmap: bytes) -> Progress:
    unreadable = frozenset(body["unreadable"])
    started = datetime.fromisoformat(body["started"])
    members = dict(body, started=started, unreadable=unreadable)
    return Progress(**members, seen=_marked(snapshot, bitmap) | unreadable)


def _bitmap(snapshot: Snapshot, seen: AbstractSet[str]) -> bytes:
    """A bit for each row of the snapshot, in its order: was it seen?"""
    marks = bytes(key in seen for key in snapshot)
    bits = int(marks.translate(_BIT_TEXT) or b"0", 2)
    return bits.to_bytes(-(-len(marks) // 8))


def _marked(snapshot: Snapshot, bitmap: bytes) -> AbstractSet[str]:
    if len(bitmap) != -(-len(snapshot) // 8):
        raise SnapshotCorruptError("has marks for another number of rows")
    marks = format(int.from_bytes(bitmap), f"0{len(snapshot)}b") if len(snapshot) else ""
    return {key for key, mark in zip(snapshot, marks, strict=True) if mark == "1"}
