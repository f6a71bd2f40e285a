"""From a Kinesis batch to placed events, truncations, rejected lines and counts of what is no
change. Pure: no clock, no AWS, nothing is lost.

Every part of every record ends in exactly one of them (laws L4 and L5).
"""

from __future__ import annotations

import base64
import binascii
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from freshet.arrow import PlacedEvent, position_of
from freshet.contract import Registry
from freshet.errors import RejectedError
from freshet.event import ChangeEvent
from freshet.mapping import DEFAULT_STREAMS, Streams
from freshet.wire import Decoded, Ignored, Part, Rejected, Truncation, decode_record
from lake.log import LoggedEvent, LoggedTruncation, Place, QuarantinedLine

# Makes an event's personal data unreadable (`freshet.pii`); an event that was is left as it is.
Protect = Callable[[ChangeEvent], ChangeEvent]

# Bad lines a batch may hold one by one; beyond it a record is rejected whole, so that a batch of
# bombs, each within a record's own limits, costs no more memory than a batch of events.
REJECTED_MAX = 20_000
# Kinds of ignored parts a batch tells apart: a control record names its own kind, and could name
# any number of them.
IGNORED_KINDS_MAX = 50
OTHER_KIND = "other"


def unprotected(event: ChangeEvent) -> ChangeEvent:
    """The event as it is: for tables without personal data."""
    return event


class Span(NamedTuple):
    """A batch's records: which, and how many. `name` is shard and sequence range: the same batch,
    the same name.
    """

    shard_id: str
    first_sequence_number: str
    last_sequence_number: str
    records: int

    @property
    def name(self) -> str:
        """The batch's name in logs, receipts and snapshots."""
        return f"{self.shard_id}-{self.first_sequence_number}-{self.last_sequence_number}"


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """What one invocation's records hold. `ignored` counts by kind what is no change of a row."""

    span: Span
    events: list[LoggedEvent] = field(default_factory=list)
    rejected: list[QuarantinedLine] = field(default_factory=list)
    truncations: list[LoggedTruncation] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        """The batch's name in logs, receipts and snapshots."""
        return self.span.name

    @property
    def records(self) -> int:
        """How many records it holds."""
        return self.span.records

    def by_table(self) -> dict[str, list[PlacedEvent]]:
        """The events as each table's changes, in stream order; a table that was only truncated has
        none.
        """
        tables: dict[str, list[PlacedEvent]] = defaultdict(list)
        for end in self.truncations:
            tables[end.table] = []
        for item in self.events:
            tables[item.event.table].append(PlacedEvent(item.event, item.place.position))
        return dict(tables)

    def truncations_of(self, table: str) -> list[LoggedTruncation]:
        """The truncations of a table, oldest version first."""
        ends = [end for end in self.truncations if end.table == table]
        return sorted(ends, key=lambda end: (end.version, end.place.position))


def decode_batch(
    event: Mapping[str, Any],
    tables: Registry,
    *,
    streams: Streams = DEFAULT_STREAMS,
    protect: Protect = unprotected,
) -> DecodedBatch:
    """Decode a Lambda Kinesis event (`{"Records": [...]}`, at least one record, one shard).

    `streams` declare what comes in other formats than ours.
    """
    batch = DecodedBatch(span_of(event))
    for record in event["Records"]:
        room = REJECTED_MAX - len(batch.rejected)
        for part in _parts(record, tables, streams, room=room):
            _sort_in(batch, part, _place(record, part.index), protect)
    return batch


def span_of(event: Mapping[str, Any]) -> Span:
    """Which records a Lambda Kinesis event holds."""
    records = event["Records"]
    first, last = (records[at]["kinesis"]["sequenceNumber"] for at in (0, -1))
    return Span(_shard(records[0]), first, last, len(records))


def _sort_in(batch: DecodedBatch, part: Part, place: Place, protect: Protect) -> None:
    match part:
        case Decoded():
            batch.events.append(LoggedEvent(protect(part.event), place))
        case Truncation():
            batch.truncations.append(_truncation(part, place))
        case Ignored():
            known = part.kind in batch.ignored or len(batch.ignored) < IGNORED_KINDS_MAX
            batch.ignored[part.kind if known else OTHER_KIND] += 1
        case Rejected():
            batch.rejected.append(_quarantined(part, place))


def _parts(
    record: Mapping[str, Any], tables: Registry, streams: Streams, *, room: int
) -> list[Part]:
    """A record's parts; rejected whole where its bad lines pass `room`."""
    data = record["kinesis"]["data"]
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return [Rejected(0, data.encode(), RejectedError("unknown_format", "data is not base64"))]
    parts = list(decode_record(raw, tables, arrived_at=_arrived_at(record), streams=streams))
    bad = sum(isinstance(part, Rejected) for part in parts)
    if bad > max(room, 1):
        error = RejectedError("too_large", f"its batch holds more than {REJECTED_MAX} bad lines")
        return [Rejected(0, raw, error)]
    return parts


def _place(record: Mapping[str, Any], index: int) -> Place:
    kinesis = record["kinesis"]
    number = kinesis["sequenceNumber"]
    position = position_of(number, index)
    return Place(_shard(record), number, index, position, _arrived_at(record))


def _arrived_at(record: Mapping[str, Any]) -> datetime:
    return datetime.fromtimestamp(float(record["kinesis"]["approximateArrivalTimestamp"]), UTC)


def _shard(record: Mapping[str, Any]) -> str:
    """The shard of a record: `eventID` is `shardId-000000000006:<sequence number>`."""
    return str(record["eventID"]).partition(":")[0]


def _truncation(part: Truncation, place: Place) -> LoggedTruncation:
    return LoggedTruncation(
        table=part.table,
        version=part.version,
        event_id=part.event_id,
        source=part.source,
        occurred_at=part.occurred_at,
        accepted_at=part.accepted_at,
        place=place,
    )


def _quarantined(part: Rejected, place: Place) -> QuarantinedLine:
    error = part.error
    return QuarantinedLine(
        error.reason, error.field, error.detail, part.data, place, part.table, part.decoder
    )
