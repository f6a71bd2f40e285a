"""The append-only logs: every decoded event (change log), every rejected record (quarantine), what
became of every batch (receipts) and of every rejected record later on (quarantine resolutions).

Plain Parquet under Hive-style folders, so that partition projection finds it without a catalog. An
object of the first two is named by shard, sequence range and count: a batch redelivered as it was
finds its own object and writes nothing. One that was cut anew on the way is written under its own
name too: readers keep one row of each shard and position, as the views of `freshet query` do. For
the same reason a batch has a receipt of each time it was delivered: the first that landed says what
it changed, a later one says `duplicate`, and one of an overlapping range counts its records again.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.contract import Registry
from freshet.event import ChangeEvent, json_row, key_text
from freshet.objects import Objects, PreconditionError
from freshet.receipt import Receipt

CHANGE_LOG, QUARANTINE = "change_log", "quarantine"
RECEIPTS, RESOLUTIONS = "receipts", "quarantine_resolutions"
UNKNOWN_TABLE = "unknown"
# How the change log tells the end of all rows of a table: an op and a key that no event has.
TRUNCATE_OP, EVERY_KEY = "t", "*"

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
        pa.field("patch", pa.string()),
        *_PLACE,
    ]
)
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("reason", pa.string()),
        pa.field("field", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("data", pa.binary()),
        pa.field("decoder", pa.string()),
        *_PLACE,
    ]
)
_LAG_FIELDS = [
    pa.field(f"{lag}_lag_ms_p{p}", pa.int64()) for lag in ("event", "accept") for p in (50, 95, 99)
]
RECEIPTS_SCHEMA = pa.schema(
    [
        pa.field("batch", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("shard_id", pa.string()),
        pa.field("first_sequence_number", pa.string()),
        pa.field("last_sequence_number", pa.string()),
        pa.field("records", pa.int64()),
        pa.field("table_name", pa.string()),
        pa.field("contract_version", pa.int32()),
        *(pa.field(count.name, pa.int64()) for count in fields(Receipt)),
        pa.field("snapshot_id", pa.int64()),
        pa.field("started_at", _TIME),
        pa.field("committed_at", _TIME),
        pa.field("duration_ms", pa.int64()),
        pa.field("bytes_read", pa.int64()),
        pa.field("bytes_written", pa.int64()),
        pa.field("requests", pa.int64()),
        *_LAG_FIELDS,
        pa.field("note", pa.string()),
    ]
)
RESOLUTIONS_SCHEMA = pa.schema(
    [
        pa.field("resolution", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("resolved_at", _TIME),
        pa.field("resolved_by", pa.string()),
        *(field for field in _PLACE if field.name != "contract_version"),
    ]
)


class LogShape(NamedTuple):
    """What a log's objects hold, and the folders (Hive-style) that are columns besides."""

    schema: pa.Schema
    folders: tuple[str, ...]


_BY_TABLE = ("table_name", "ingest_date")
# Receipts lie by the day of their commit alone: a batch is one object, and most touch few tables.
LOGS = {
    CHANGE_LOG: LogShape(CHANGE_LOG_SCHEMA, _BY_TABLE),
    QUARANTINE: LogShape(QUARANTINE_SCHEMA, _BY_TABLE),
    RECEIPTS: LogShape(RECEIPTS_SCHEMA, ("ingest_date",)),
    RESOLUTIONS: LogShape(RESOLUTIONS_SCHEMA, _BY_TABLE),
}


class Kind(StrEnum):
    """Why a batch came to the lake."""

    STREAM = "stream"
    REPLAY = "replay"
    FAILURE = "failure"
    REBUILD = "rebuild"
    ROLLBACK = "rollback"
    TRUNCATE = "truncate"
    ERASE = "erase"


class Verdict(StrEnum):
    """What became of a quarantined line, or of a logged one that was erased."""

    REPLAYED = "replayed"
    DISCARDED = "discarded"
    ERASED = "erased"


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
    decoder: str = "native"


@dataclass(frozen=True, slots=True)
class LoggedTruncation:
    """The end of all rows of a table that are older than `version`, and its place."""

    table: str
    version: int
    event_id: str
    source: str
    occurred_at: datetime | None
    accepted_at: datetime
    place: Place


@dataclass(frozen=True, slots=True)
class Resolution:
    """What became of the line at `place`, why (no row values), when, and by whose hand.

    A line without one is open. `table` is the line's own; None where the line names none.
    """

    place: Place
    table: str | None
    resolution: Verdict
    reason: str
    at: datetime
    by: str


class Lags(NamedTuple):
    """Percentiles of a delay in milliseconds."""

    p50: int
    p95: int
    p99: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptRow:
    """One line of the ledger: what a batch did to one table, or, where `table_name` is None, to the
    logs.

    Counts, bytes and requests of a batch's lines add up to the batch's own: `records` is told on
    the line without table only. Bytes are those of the object store, requests the calls to it, both
    without the receipt's own write. Lags run from the source's time (event) and from acceptance
    (accept) to `committed_at`.
    """

    batch: str
    kind: Kind
    receipt: Receipt
    started_at: datetime
    committed_at: datetime
    shard_id: str | None = None
    first_sequence_number: str | None = None
    last_sequence_number: str | None = None
    records: int = 0
    table_name: str | None = None
    contract_version: int | None = None
    snapshot_id: int | None = None
    bytes_read: int = 0
    bytes_written: int = 0
    requests: int = 0
    event_lag: Lags | None = None
    accept_lag: Lags | None = None
    note: str | None = None

    def columns(self) -> dict[str, Any]:
        """The line as log columns (`RECEIPTS_SCHEMA`)."""
        row = {name: getattr(self, name) for name in _RECEIPT_COLUMNS}
        duration = self.committed_at - self.started_at
        lags = {"event": self.event_lag, "accept": self.accept_lag}
        return {
            **row,
            **self.receipt.to_dict(),
            "kind": self.kind.value,
            "duration_ms": round(duration.total_seconds() * 1000),
            **{
                f"{name}_lag_ms_{p}": value
                for name, lag in lags.items()
                if lag is not None
                for p, value in lag._asdict().items()
            },
        }


_RECEIPT_COLUMNS = [
    field.name for field in fields(ReceiptRow) if field.name in RECEIPTS_SCHEMA.names
]


class StreamLogs:
    """Writes and reads the logs below one prefix of the object store."""

    def __init__(self, objects: Objects, tables: Registry) -> None:
        self._objects, self._tables = objects, tables

    def append_events(
        self,
        batch: str,
        events: Sequence[LoggedEvent],
        truncations: Sequence[LoggedTruncation] = (),
    ) -> None:
        """Log decoded events and truncations of one batch (`batch` names shard and sequence
        range).
        """
        groups: _Groups = defaultdict(list)
        for item in events:
            groups[_by_table(item.event.table, item.place)].append(self._event_row(item))
        for end in truncations:
            groups[_by_table(end.table, end.place)].append(self._truncation_row(end))
        self._write(CHANGE_LOG, batch, groups)

    def quarantine(self, batch: str, lines: Sequence[QuarantinedLine]) -> None:
        """Keep rejected lines of one batch."""
        groups: _Groups = defaultdict(list)
        for line in lines:
            groups[_by_table(line.table, line.place)].append(self._line_row(line))
        self._write(QUARANTINE, batch, groups)

    def resolve(self, resolutions: Sequence[Resolution]) -> None:
        """Say what became of lines. The same lines with the same resolutions, in one call, are the
        same object: a retry overwrites itself.
        """
        groups: dict[str, list[Resolution]] = defaultdict(list)
        for one in resolutions:
            groups[_by_table(one.table, one.place)].append(one)
        for folder, members in groups.items():
            key = f"{RESOLUTIONS}/{folder}/{_digest(members)}-{len(members)}.parquet"
            rows = [_resolution_row(one) for one in members]
            self._objects.put(key, _parquet(rows, RESOLUTIONS_SCHEMA))

    def record(self, rows: Sequence[ReceiptRow]) -> None:
        """Write the receipt of one batch, a line for each table and one for the logs; one object.

        A batch delivered again has another receipt: its commit time is in the object's name.
        """
        done = max(row.committed_at for row in rows)
        day, instant = done.astimezone(UTC).strftime("%Y-%m-%d %H%M%S%f").split()
        key = f"{RECEIPTS}/ingest_date={day}/{rows[0].batch}-{instant}.parquet"
        self._objects.put(key, _parquet([row.columns() for row in rows], RECEIPTS_SCHEMA))

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
            "patch": _json(event.patch),
            **item.place.columns(contract.contract_version),
        }

    def _truncation_row(self, end: LoggedTruncation) -> dict[str, Any]:
        return {
            "op": TRUNCATE_OP,
            "key": EVERY_KEY,
            "version": end.version,
            "event_id": end.event_id,
            "source": end.source,
            "occurred_at": end.occurred_at,
            "accepted_at": end.accepted_at,
            **end.place.columns(self._tables[end.table].contract_version),
        }

    def _line_row(self, line: QuarantinedLine) -> dict[str, Any]:
        version = self._tables[line.table].contract_version if line.table else None
        return {
            "reason": line.reason,
            "field": line.field,
            "detail": line.detail,
            "data": line.data,
            "decoder": line.decoder,
            **line.place.columns(version),
        }

    def _write(self, log: str, batch: str, groups: _Groups) -> None:
        for folder, rows in groups.items():
            key = f"{log}/{folder}/{batch}-{len(rows)}.parquet"
            self._put_once(key, _parquet(rows, LOGS[log].schema))

    def _put_once(self, key: str, data: bytes) -> None:
        try:
            self._objects.put_if(key, data, etag=None)
        except PreconditionError:
            return  # the same batch was logged before it was redelivered

    def read(
        self, log: str, table: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """Every object of a log, one table each, without its folder columns; all columns or some.

        Objects written before a column was there show it as null. `table` is for logs that lie by
        table (`LOGS`): receipts do not.
        """
        for _, rows in self.named(log, table, columns):
            yield rows

    def named(
        self, log: str, table: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[str, pa.Table]]:
        """As `read`, each object with its key."""
        schema = LOGS[log].schema
        names = list(schema.names if columns is None else columns)
        prefix = f"{log}/" if table is None else f"{log}/table_name={table}/"
        for key in self._objects.list(prefix):
            file = pq.ParquetFile(pa.BufferReader(self._objects.get(key).data))
            present = [name for name in names if name in file.schema_arrow.names]
            yield key, _shaped(file.read(present, use_threads=False), schema, names)


# Rows of one object each, by the folder it lies in.
_Groups = dict[str, list[dict[str, Any]]]


def _by_table(table: str | None, place: Place) -> str:
    day = place.arrived_at.date().isoformat()
    return f"table_name={table or UNKNOWN_TABLE}/ingest_date={day}"


def _parquet(rows: list[dict[str, Any]], schema: pa.Schema) -> bytes:
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, sink, compression="zstd", data_page_version="1.0")
    return bytes(sink.getvalue().to_pybytes())


def _shaped(rows: pa.Table, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """The rows with exactly these columns: null where their object is older than a column."""
    columns = [
        rows.column(name)
        if name in rows.column_names
        else pa.nulls(rows.num_rows, schema.field(name).type)
        for name in names
    ]
    return pa.table(columns, schema=pa.schema([schema.field(name) for name in names]))


def _resolution_row(one: Resolution) -> dict[str, Any]:
    place = one.place.columns(None)
    del place["contract_version"]
    return {
        "resolution": one.resolution.value,
        "reason": one.reason,
        "resolved_at": one.at,
        "resolved_by": one.by,
        **place,
    }


def _digest(resolutions: Sequence[Resolution]) -> str:
    """Names an object by which lines it resolves and how; not by when, which a retry changes."""
    lines = sorted((one.place.shard_id, one.place.position, one.resolution) for one in resolutions)
    return hashlib.blake2b(json.dumps(lines).encode(), digest_size=16).hexdigest()


def _json(row: Any) -> str | None:
    return None if row is None else json.dumps(json_row(row), ensure_ascii=False, default=str)
