"""The change stream port and the packing of events into records.

Publishing is at least once and answers per event: what was accepted, what was not. Events of one
lane are packed in order into records, so a shard's 1,000 records/s carry far more than 1,000
changes/s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from freshet.contract import Registry
from freshet.errors import RejectedError
from freshet.event import ChangeEvent, key_text, lane_of
from freshet.wire import encode_event, encode_record

# One record's events: far below Kinesis's 1 MiB default record also when nothing compresses, and
# small enough that a poison record or a retry costs little.
RECORD_BYTES_MAX = 256 * 1024
RECORD_EVENTS_MAX = 500
# Lanes spread evenly over the hash key space: up to this many shards share the load evenly.
LANES = 64


@dataclass(frozen=True, slots=True)
class PackedRecord:
    """The data of one Kinesis record, its lane, and which events (by position in the publish) it
    holds.
    """

    lane: int
    data: bytes
    events: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PublishReport:
    """What became of each event of one publish: positions accepted and not, with the stream's
    reason.
    """

    accepted: tuple[int, ...]
    throttled: tuple[int, ...]
    detail: str = ""

    @property
    def complete(self) -> bool:
        """True when the stream accepted everything."""
        return not self.throttled


class ChangeStream(Protocol):
    """Where change events are published."""

    def publish(self, events: Sequence[ChangeEvent]) -> PublishReport:
        """Publish in order per row; retries within its own bounds and reports what was not
        accepted.

        Raises `RejectedError` (too_large) for an event that no record can hold, before anything is
        sent; `StreamUnavailableError` when the stream did not answer and nothing was accepted.
        """
        ...


def pack(
    events: Sequence[ChangeEvent], tables: Registry, *, lanes: int = LANES, compress: bool = True
) -> list[PackedRecord]:
    """Events as records: one lane each, in the order given, within the limits above."""
    by_lane: dict[int, list[tuple[int, bytes]]] = {}
    for position, event in enumerate(events):
        lane = lane_of(event.table, key_text(tables[event.table], event.key), lanes)
        by_lane.setdefault(lane, []).append((position, _line(event, position)))
    return [
        PackedRecord(
            lane,
            encode_record((line for _, line in part), compress=compress),
            tuple(position for position, _ in part),
        )
        for lane, lines in by_lane.items()
        for part in _parts(lines)
    ]


def _line(event: ChangeEvent, position: int) -> bytes:
    line = encode_event(event)
    if len(line) > RECORD_BYTES_MAX:
        raise RejectedError(
            "too_large", f"event {position} has {len(line)} bytes; {RECORD_BYTES_MAX} are allowed"
        )
    return line


def _parts(lines: Iterable[tuple[int, bytes]]) -> Iterable[list[tuple[int, bytes]]]:
    part: list[tuple[int, bytes]] = []
    size = 0
    for position, line in lines:
        if part and (size + len(line) >= RECORD_BYTES_MAX or len(part) >= RECORD_EVENTS_MAX):
            yield part
            part, size = [], 0
        part.append((position, line))
        size += len(line) + 1
    if part:
        yield part
