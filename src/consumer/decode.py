"""From a Kinesis batch to placed events and rejected lines. Pure: no clock, no AWS, nothing is
lost.

Every line of every record ends in exactly one of the two lists (laws L4 and L5).
"""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from freshet.arrow import PlacedEvent, position_of
from freshet.contract import Registry
from freshet.errors import RejectedError
from freshet.wire import Decoded, Rejected, decode_record
from lake.log import LoggedEvent, Place, QuarantinedLine

# Bad lines a batch may hold one by one; beyond it a record is rejected whole, so that a batch of
# bombs, each within a record's own limits, costs no more memory than a batch of events.
REJECTED_MAX = 20_000


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """What one invocation's records hold. `name` is shard and sequence range: the same batch, the
    same name.
    """

    name: str
    first_sequence_number: str
    events: list[LoggedEvent]
    rejected: list[QuarantinedLine]

    def by_table(self) -> dict[str, list[PlacedEvent]]:
        """The events as each table's changes, in stream order."""
        tables: dict[str, list[PlacedEvent]] = defaultdict(list)
        for item in self.events:
            tables[item.event.table].append(PlacedEvent(item.event, item.place.position))
        return dict(tables)


def decode_batch(event: Mapping[str, Any], tables: Registry) -> DecodedBatch:
    """Decode a Lambda Kinesis event (`{"Records": [...]}`, at least one record, one shard)."""
    events: list[LoggedEvent] = []
    rejected: list[QuarantinedLine] = []
    records = event["Records"]
    for record in records:
        for part in _parts(record, tables, room=REJECTED_MAX - len(rejected)):
            place = _place(record, part.index)
            if isinstance(part, Decoded):
                events.append(LoggedEvent(part.event, place))
            else:
                rejected.append(_quarantined(part, place))
    first, last = (records[at]["kinesis"]["sequenceNumber"] for at in (0, -1))
    return DecodedBatch(f"{_shard(records[0])}-{first}-{last}", first, events, rejected)


def _parts(record: Mapping[str, Any], tables: Registry, *, room: int) -> list[Decoded | Rejected]:
    """A record's events and rejected lines; rejected whole where its bad lines pass `room`."""
    data = record["kinesis"]["data"]
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return [Rejected(0, data.encode(), RejectedError("unknown_format", "data is not base64"))]
    parts = list(decode_record(raw, tables, arrived_at=_arrived_at(record)))
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


def _quarantined(part: Rejected, place: Place) -> QuarantinedLine:
    error = part.error
    return QuarantinedLine(error.reason, error.field, error.detail, part.data, place, part.table)
