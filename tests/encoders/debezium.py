"""Encodes a source's changes as Debezium's PostgreSQL connector does (reference of Debezium 3.x).

Every choice is a documented setting of the connector, the JSON converter, the table's replica
identity or the `ExtractNewRecordState` transformation.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from tests.encoders.history import STARTED, Kind, Row, SourceChange, SourceTable, left_by
from tests.encoders.native import instant

EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
# unavailable.value.placeholder, by default.
PLACEHOLDER = "__debezium_unavailable_value"
# The schema of decimal.handling.mode=precise.
_PRECISE = {"name": "org.apache.kafka.connect.data.Decimal", "version": 1}


@dataclass(frozen=True)
class DebeziumChoice:
    """One configuration. `snapshot` changes precede the connector's start: what they left is read
    as `r`. `flattened` is `ExtractNewRecordState` with `delete.tombstone.handling.mode=rewrite`.
    """

    wrapper: bool = True
    flattened: bool = False
    tombstones: bool = True
    full_identity: bool = False
    toast: bool = False
    decimals: Literal["precise", "string", "double"] = "precise"
    times: Literal["adaptive", "connect", "isostring"] = "adaptive"
    heartbeats: bool = False
    transactions: bool = False
    snapshot: int = 0
    server: str = "shop"
    schema: str = "public"


def encode(changes: Iterable[SourceChange], choice: DebeziumChoice) -> list[bytes]:
    """The records' data as Debezium Server's Kinesis sink puts it; a null value is empty."""
    changes = list(changes)
    read, streamed = changes[: choice.snapshot], changes[choice.snapshot :]
    values = [*_snapshot(read, choice), *_stream(streamed, choice)]
    return [b"" if value is None else _json(value) for value in values]


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _snapshot(changes: list[SourceChange], choice: DebeziumChoice) -> Iterator[Any]:
    """The rows that were there when the connector started, all at the log's place of that time."""
    rows = left_by(changes)
    for at, (table, row) in enumerate(rows):
        mark = "last" if at == len(rows) - 1 else "first" if at == 0 else "true"
        read = replace(changes[-1], table=table)
        yield _change("r", None, row, read, choice, snapshot=mark)


def _stream(changes: list[SourceChange], choice: DebeziumChoice) -> Iterator[Any]:
    transaction = None
    for change in changes:
        if choice.heartbeats:
            yield _wrapped(_HEARTBEAT, {"ts_ms": _millis(change.committed_at)}, choice)
        if choice.transactions and change.transaction != transaction:
            transaction = change.transaction
            yield _wrapped(_TRANSACTION, _mark("BEGIN", change), choice)
        yield from _values(change, choice)
        if choice.transactions:
            yield _wrapped(_TRANSACTION, _mark("END", change), choice)


def _values(change: SourceChange, choice: DebeziumChoice) -> Iterator[Any]:
    gone = [None] if choice.tombstones else []
    match change.kind:
        case Kind.INSERT:
            yield _change("c", None, change.after, change, choice)
        case Kind.UPDATE:
            yield _change("u", change.before, change.after, change, choice)
        case Kind.DELETE:
            yield _change("d", change.before, None, change, choice)
            yield from gone
        case Kind.REKEY:
            yield _change("d", change.before, None, change, choice)
            yield from gone
            yield _change("c", None, change.after, change, choice)
        case Kind.TRUNCATE if choice.flattened:
            # The transformation drops truncations: such a source deletes row by row.
            for row in change.removed:
                yield _change("d", row, None, change, choice)
        case Kind.TRUNCATE:
            payload = {"source": _source(change, choice), "op": "t", **_handled(change)}
            yield _wrapped(_envelope(change.table, choice), payload, choice)


def _change(
    op: str,
    before: Row | None,
    after: Row | None,
    change: SourceChange,
    choice: DebeziumChoice,
    *,
    snapshot: str = "false",
) -> Any:
    if choice.flattened:
        return _flat(op, before, after, change, choice)
    payload = {
        "before": _before(op, before, change, choice),
        "after": _after(op, after, change, choice),
        "source": _source(change, choice, snapshot),
        "transaction": None,
        "op": op,
        **_handled(change),
    }
    return _wrapped(_envelope(change.table, choice), payload, choice)


def _flat(
    op: str, before: Row | None, after: Row | None, change: SourceChange, choice: DebeziumChoice
) -> Any:
    """add.fields=op,table,lsn,source.ts_us,name,connector,schema"""
    row = _after(op, after, change, choice) if after else _before("d", before, change, choice)
    fields = {
        "__deleted": "false" if after else "true",
        "__op": op,
        "__table": change.table.name,
        "__lsn": change.lsn,
        "__source_ts_us": _micros(change.committed_at),
        "__source_ts_ms": _millis(change.committed_at),
        "__name": choice.server,
        "__connector": "postgresql",
        "__schema": choice.schema,
    }
    assert row is not None
    added = [
        {"type": "int64" if isinstance(value, int) else "string", "optional": True, "field": name}
        for name, value in fields.items()
    ]
    schema = {
        "type": "struct",
        "fields": [*_columns(change.table, choice), *added],
        "optional": False,
        "name": f"{choice.server}.{choice.schema}.{change.table.name}.Value",
    }
    return _wrapped(schema, row | fields, choice)


def _before(op: str, row: Row | None, change: SourceChange, choice: DebeziumChoice) -> Row | None:
    """REPLICA IDENTITY DEFAULT: only a delete has one, of the key; what it leaves out is null."""
    if row is None:
        return None
    if choice.full_identity:
        return _shown(row, choice)
    key = _shown(change.table.key_of(row), choice)
    return dict.fromkeys(change.table.columns) | key if op == "d" else None


def _after(op: str, row: Row | None, change: SourceChange, choice: DebeziumChoice) -> Row | None:
    if row is None:
        return None
    shown = _shown(row, choice)
    aside = change.table.toasted
    if choice.toast and not choice.full_identity and op == "u" and aside is not None:
        kept = aside not in change.touched and row[aside] is not None
        shown |= {aside: PLACEHOLDER} if kept else {}
    return shown


def _shown(row: Row, choice: DebeziumChoice) -> Row:
    return {name: _value(value, choice) for name, value in row.items()}


def _value(value: Any, choice: DebeziumChoice) -> Any:
    if isinstance(value, datetime):
        return instant(value) if choice.times == "isostring" else _micros(value)
    if isinstance(value, date):
        iso = choice.times == "isostring"
        return f"{value.isoformat()}Z" if iso else (value - EPOCH.date()).days
    if isinstance(value, Decimal):
        return _decimal(value, choice)
    return value


def _decimal(value: Decimal, choice: DebeziumChoice) -> Any:
    if choice.decimals == "string":
        return format(value, "f")
    if choice.decimals == "double":
        return float(value)
    digits = value.as_tuple().digits
    unscaled = int("".join(map(str, digits))) * (-1 if value < 0 else 1)
    size = (unscaled + (unscaled < 0)).bit_length() // 8 + 1
    return base64.b64encode(unscaled.to_bytes(size, "big", signed=True)).decode()


def _columns(table: SourceTable, choice: DebeziumChoice) -> list[dict[str, Any]]:
    return [
        {**_type(kind, choice), "optional": name not in table.key, "field": name}
        for name, kind in table.columns.items()
    ]


def _type(kind: str, choice: DebeziumChoice) -> dict[str, Any]:
    """The literal and semantic type that the reference's tables give for a PostgreSQL type."""
    if kind.startswith("numeric"):
        scale = {"parameters": {"scale": kind[len("numeric(") : -1]}}
        literal = {"precise": "bytes", "string": "string", "double": "double"}[choice.decimals]
        return {"type": literal} | (_PRECISE | scale if choice.decimals == "precise" else {})
    if kind == "date":
        literal, name = {
            "adaptive": ("int32", "io.debezium.time.Date"),
            "connect": ("int32", "org.apache.kafka.connect.data.Date"),
            "isostring": ("string", "io.debezium.time.IsoDate"),
        }[choice.times]
        return {"type": literal, "name": name, "version": 1}
    if kind == "timestamp":
        iso = choice.times == "isostring"
        name = "io.debezium.time.IsoTimestamp" if iso else "io.debezium.time.MicroTimestamp"
        return {"type": "string" if iso else "int64", "name": name, "version": 1}
    literals = {"text": "string", "integer": "int32", "bigint": "int64", "boolean": "boolean"}
    return {"type": literals[kind]}


def _envelope(table: SourceTable, choice: DebeziumChoice) -> dict[str, Any]:
    name = f"{choice.server}.{choice.schema}.{table.name}"
    rows = [
        {
            "type": "struct",
            "fields": _columns(table, choice),
            "optional": True,
            "name": f"{name}.Value",
            "field": member,
        }
        for member in ("before", "after")
    ]
    return {
        "type": "struct",
        "fields": [*rows, _SOURCE, {"type": "string", "optional": False, "field": "op"}],
        "optional": False,
        "name": f"{name}.Envelope",
        "version": 2,
    }


_SOURCE = {
    "type": "struct",
    "fields": [
        {"type": "string", "optional": False, "field": "connector"},
        {"type": "int64", "optional": True, "field": "lsn"},
    ],
    "optional": False,
    "name": "io.debezium.connector.postgresql.Source",
    "field": "source",
}
_HEARTBEAT = {
    "type": "struct",
    "fields": [{"type": "int64", "optional": False, "field": "ts_ms"}],
    "optional": False,
    "name": "io.debezium.connector.common.Heartbeat",
}
_TRANSACTION = {
    "type": "struct",
    "fields": [{"type": "string", "optional": False, "field": "status"}],
    "optional": False,
    "name": "io.debezium.connector.common.TransactionMetadataValue",
}


def _wrapped(schema: Any, payload: Any, choice: DebeziumChoice) -> Any:
    return {"schema": schema, "payload": payload} if choice.wrapper else payload


def _source(change: SourceChange, choice: DebeziumChoice, snapshot: str = "false") -> Row:
    micros = _micros(change.committed_at)
    return {
        "version": "3.2.0.Final",
        "connector": "postgresql",
        "name": choice.server,
        "ts_ms": micros // 1000,
        "snapshot": snapshot,
        "db": "shop",
        "sequence": json.dumps([str(change.lsn - 8), str(change.lsn)]),
        "ts_us": micros,
        "ts_ns": micros * 1000,
        "schema": choice.schema,
        "table": change.table.name,
        "txId": change.transaction,
        "lsn": change.lsn,
        "xmin": None,
    }


def _mark(status: str, change: SourceChange) -> Row:
    ended = status == "END"
    return {
        "status": status,
        "id": f"{change.transaction}:{change.lsn}",
        "ts_ms": _millis(change.committed_at),
        "event_count": change.order if ended else None,
        "data_collections": [
            {"data_collection": f"public.{change.table.name}", "event_count": change.order}
        ]
        if ended
        else None,
    }


def _handled(change: SourceChange) -> Row:
    micros = _micros(change.committed_at) + 98_000
    return {"ts_ms": micros // 1000, "ts_us": micros, "ts_ns": micros * 1000}


def _micros(moment: datetime) -> int:
    return (moment - EPOCH) // (STARTED.resolution)


def _millis(moment: datetime) -> int:
    return _micros(moment) // 1000
