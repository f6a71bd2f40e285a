"""What the poller remembers of a source between polls: one object per source, swapped atomically.

The object is written twice by a poll that publishes. First, before anything is published, it names
the keys about to be published and the versions reserved for them; then, after the stream accepted
everything, the new rows and watermark. A crash in between leaves those keys `pending`, and the next
poll publishes their then current state anew. The first write also decides between overlapping
polls: both name the ETag they read, so one of them loses before it has published anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

from api_poller.changes import JsonRow
from freshet.errors import TerminalError, TransientError
from freshet.objects import ObjectMissingError, Objects, PreconditionError

FORMAT = 1
# Level 3 is zstd's own default; 4,000 products shrink to about a tenth.
_LEVEL = 3
# 100,000 products with long texts; beyond it a source wants a cursor, not a listing.
STATE_BYTES_MAX = 256 * 1024 * 1024


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
class PollState:
    """Where a source stands: `rows` is what the stream was told, but for the keys in `pending`.

    `version` is the greatest ever given out. `listed` says that a first complete poll is done.
    """

    watermark: str | None = None
    version: int = 0
    listed: bool = False
    pending: frozenset[str] = frozenset()
    rows: Mapping[str, JsonRow] = field(default_factory=dict)


class StateStore:
    """Poll states as objects `pollers/<source>/state.json.zst`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def load(self, source: str) -> tuple[PollState, str | None]:
        """The state and its ETag; a fresh state and None before the first poll.

        Raises `StateCorruptError`, `StorageError`.
        """
        key = state_key(source)
        try:
            stored = self._objects.get(key)
        except ObjectMissingError:
            return PollState(), None
        return _decoded(source, key, stored.data), stored.etag

    def save(self, source: str, state: PollState, *, etag: str | None) -> str:
        """Write over the state with this ETag (None: over none); returns the new ETag.

        Raises `StateConflictError` when another poll wrote it since, `StorageError`.
        """
        key = state_key(source)
        try:
            return self._objects.put_if(key, _encoded(source, state), etag=etag)
        except PreconditionError as error:
            raise StateConflictError(source, key) from error


def state_key(source: str) -> str:
    """The key of a source's state object."""
    return f"pollers/{source}/state.json.zst"


def _encoded(source: str, state: PollState) -> bytes:
    body = {
        "format": FORMAT,
        "source": source,
        "watermark": state.watermark,
        "version": state.version,
        "listed": state.listed,
        "pending": sorted(state.pending),
        "rows": dict(state.rows),
    }
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(text.encode())


def _decoded(source: str, key: str, data: bytes) -> PollState:
    try:
        reader = zstandard.ZstdDecompressor().stream_reader(data)
        text: bytes = reader.read(STATE_BYTES_MAX + 1)
        body = json.loads(text)
    except (zstandard.ZstdError, ValueError, RecursionError) as error:
        raise StateCorruptError(source, key, f"cannot be read ({error})") from error
    if len(text) > STATE_BYTES_MAX:
        raise StateCorruptError(source, key, f"unpacks to more than {STATE_BYTES_MAX} bytes")
    if not _is_state(body, source):
        raise StateCorruptError(source, key, f"is no state of format {FORMAT} of this source")
    return PollState(
        watermark=body["watermark"],
        version=body["version"],
        listed=body["listed"],
        pending=frozenset(body["pending"]),
        rows=body["rows"],
    )


_MEMBERS: Mapping[str, type | tuple[type, ...]] = {
    "watermark": (str, type(None)),
    "version": int,
    "listed": bool,
    "pending": list,
    "rows": dict,
}


def _is_state(body: Any, source: str) -> bool:
    return (
        isinstance(body, dict)
        and (body.get("format"), body.get("source")) == (FORMAT, source)
        and all(isinstance(body.get(name, ...), kind) for name, kind in _MEMBERS.items())
        and all(isinstance(key, str) for key in body["pending"])
        and all(isinstance(row, dict) for row in body["rows"].values())
    )
