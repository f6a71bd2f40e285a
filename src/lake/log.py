"""The append-only logs: every decoded event (change log) and every rejected record (quarantine).

Plain Parquet under Hive-style folders, so that partition projection finds it without a catalog. An
object's name derives from shard, sequence range and count: a batch redelivered as it was finds its
own object and writes nothing. One that was cut anew on the way is written under its own name too:
readers keep one row of each shard and position, as the views of `freshet query` do.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.contract import Registry
from freshet.event import ChangeEvent, json_row, key_text
from freshet.objects import Objects, PreconditionError

CHANGE_LOG, QUARANTINE = "change_log", "quarantine"
UNKNOWN_TABLE = "unknown"

_TIME = pa.timestamp("us", tz="UTC")
_PLACE = [
    pa.field("shard_id", pa.string()),
    pa.field("sequence_number", pa.string()),
    pa.field("record_index", pa.int32()),
    pa.field("position", pa.string()),
    pa.field("arrived_at", _TIME),
    pa.field("contract_version", pa.int32()),
]
CHANGE_LOG_SCHEMA = pa.schema(
    [
        pa.field("op", pa.string()),
        pa.field("key", pa.string()),
        pa.field("version", pa.int64()),
        pa.field("event_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("occurred_at", _TIME),
        pa.field("accepted_at", _TIME),
        pa.field("before", pa.string()),
        pa.field("after", pa.string()),
        *_PLACE,
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string()),
        pa.field("field", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("data", pa.binary()),
        *_PLACE,
    ]
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the stream a line was: shard, sequence number, line in its record, and arrival
    time.
    """

    shard_id: str
    sequence_number: str
    index: int
    position: str
    arrived_at: datetime

    def columns(self, contract_version: int | None) -> dict[str, Any]:
        """The place as log columns."""
        return {
            "shard_id": self.shard_id,
            "sequence_number": self.sequence_number,
            "record_index": self.index,
            "position": self.position,
            "arrived_at": self.arrived_at,
            "contract_version": contract_version,
        }


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    """A decoded event and its place."""

    event: ChangeEvent
    place: Place


@dataclass(frozen=True, slots=True)
class QuarantinedLine:
    """A rejected line: why, its original bytes, its place, and its table where that much was
    readable.
    """

    reason: str
    field: str | None
    detail: str
    data: bytes
    place: Place
    table: str | None


class StreamLogs:
    """Writes both logs below one prefix of the object store."""

    def __init__(self, objects: Objects, tables: Registry) -> None:
        self._objects, self._tables = objects, tables

    def append_events(self, batch: str, events: Sequence[LoggedEvent]) -> None:
        """Log decoded events of one batch (`batch` names shard and sequence range)."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for item in events:
            groups[item.event.table, _date(item.place)].append(self._event_row(item))
        self._write(CHANGE_LOG, batch, CHANGE_LOG_SCHEMA, groups)

    def quarantine(self, batch: str, lines: Sequence[QuarantinedLine]) -> None:
        """Keep rejected lines of one batch."""
        groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for line in lines:
            groups[line.table or UNKNOWN_TABLE, _date(line.place)].append(self._line_row(line))
        self._write(QUARANTINE, batch, QUARANTINE_SCHEMA, groups)

    def _event_row(self, item: LoggedEvent) -> dict[str, Any]:
        event, contract = item.event, self._tables[item.event.table]
        return {
            "op": event.op.value,
            "key": key_text(contract, event.key),
            "version": event.version,
            "event_id": event.event_id,
            "source": event.source,
            "occurred_at": event.occurred_at,
            "accepted_at": event.accepted_at,
            "before": _json(event.before),
            "after": _json(event.after),
            **item.place.columns(contract.contract_version),
        }

    def _line_row(self, line: QuarantinedLine) -> dict[str, Any]:
        version = self._tables[line.table].contract_version if line.table else None
        return {
            "reason": line.reason,
            "field": line.field,
            "detail": line.detail,
            "data": line.data,
            **line.place.columns(version),
        }

    def _write(
        self,
        log: str,
        batch: str,
        schema: pa.Schema,
        groups: dict[tuple[str, str], list[dict[str, Any]]],
    ) -> None:
        for (table, day), rows in groups.items():
            key = f"{log}/table_name={table}/ingest_date={day}/{batch}-{len(rows)}.parquet"
            sink = pa.BufferOutputStream()
            pq.write_table(
                pa.Table.from_pylist(rows, schema=schema),
                sink,
                compression="zstd",
                data_page_version="1.0",
            )
            self._put_once(key, sink.getvalue().to_pybytes())

    def _put_once(self, key: str, data: bytes) -> None:
        try:
            self._objects.put_if(key, data, etag=None)
        except PreconditionError:
            return  # the same batch was logged before it was redelivered

    def read(self, log: str, table: str | None = None) -> Iterable[pa.Table]:
        """Every object of a log, one table each, without its folder columns."""
        prefix = f"{log}/" if table is None else f"{log}/table_name={table}/"
        for key in self._objects.list(prefix):
            yield pq.ParquetFile(pa.BufferReader(self._objects.get(key).data)).read(
                use_threads=False
            )


def _date(place: Place) -> str:
    return place.arrived_at.date().isoformat()


def _json(row: Any) -> str | None:
    return None if row is None else json.dumps(json_row(row), ensure_ascii=False, default=str)
