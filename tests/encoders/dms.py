"""Encodes a source's changes as AWS DMS puts them into Kinesis (user guide, and a recorded stream).

A truncation reaches a Kinesis target as no record of its own: such a source deletes row by row.
Without a before image a changed key cannot be told from an update, so every choice has one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal

from tests.encoders.history import Kind, Row, SourceChange, SourceTable, left_by
from tests.encoders.native import instant

LOAD_TIME = timedelta(hours=1)


@dataclass(frozen=True)
class DmsChoice:
    """One task. `loaded` changes precede its start: what they left is loaded. `partial` updates
    carry the key and what was set (sources without full images); else `nulls` says whether null
    columns are written or left out.
    """

    loaded: int = 0
    before_image: Literal["pk-only", "all"] = "pk-only"
    before_member: str = "before-image"
    nulls: bool = False
    partial: bool = False
    controls: bool = True
    pretty: bool = False
    full_deletes: bool = False
    schema: str = "public"


def encode(changes: Iterable[SourceChange], choice: DmsChoice) -> list[bytes]:
    """The records' data."""
    changes = list(changes)
    records = [*_load(changes[: choice.loaded], choice), *_stream(changes[choice.loaded :], choice)]
    if choice.controls and changes:
        table = changes[0].table
        records[:0] = [_control(op, table, choice) for op in ("create-table", "add-column")]
    indent = "\t" if choice.pretty else None
    return [json.dumps(record, ensure_ascii=False, indent=indent).encode() for record in records]


def _load(changes: list[SourceChange], choice: DmsChoice) -> Iterator[Any]:
    """A load takes its time: it writes rows long after changes to them were committed, which it
    holds back until it is done.
    """
    for table, row in left_by(changes):
        metadata = _metadata("load", changes[-1].committed_at + LOAD_TIME, table, choice)
        metadata["partition-key-type"] = "primary-key"
        yield {"data": _data(row, choice), "metadata": metadata}


def _stream(changes: list[SourceChange], choice: DmsChoice) -> Iterator[Any]:
    for change in changes:
        match change.kind:
            case Kind.INSERT:
                yield _record("insert", change, choice, _data(change.after, choice))
            case Kind.UPDATE | Kind.REKEY:
                yield _update(change, choice)
            case Kind.DELETE:
                yield _record(
                    "delete", change, choice, _deleted(change.table, change.before, choice)
                )
            case Kind.TRUNCATE:
                for at, row in enumerate(change.removed):
                    yield _record("delete", change, choice, _deleted(change.table, row, choice), at)


def _update(change: SourceChange, choice: DmsChoice) -> Any:
    assert change.before is not None
    assert change.after is not None
    data = _data(change.after, choice)
    if choice.partial and change.kind is Kind.UPDATE:
        carried = change.touched | set(change.table.key)
        data = {name: _value(value) for name, value in change.after.items() if name in carried}
    before: Row = {}
    if change.kind is Kind.REKEY:
        before = {name: _value(v) for name, v in change.table.key_of(change.before).items()}
    if choice.before_image == "all":
        before = {name: _value(value) for name, value in change.before.items() if value is not None}
    return {choice.before_member: before, **_record("update", change, choice, data)}


def _record(op: str, change: SourceChange, choice: DmsChoice, data: Row, extra: int = 0) -> Row:
    written_at = change.committed_at + timedelta(microseconds=9_330)
    metadata = _metadata(op, written_at, change.table, choice)
    place = f"00000002/{change.lsn:08X}"
    metadata |= {
        "transaction-id": change.transaction,
        # A truncation's deletes share its place in the log; DMS counts each.
        "transaction-record-id": change.order * 50 + extra,
        "commit-timestamp": instant(change.committed_at),
        "stream-position": f"{place}.2.{place}",
    }
    return {"data": data, "metadata": metadata}


def _metadata(op: str, at: datetime, table: SourceTable, choice: DmsChoice) -> Row:
    return {
        "timestamp": instant(at),
        "record-type": "data",
        "operation": op,
        "partition-key-type": "schema-table",
        "schema-name": choice.schema,
        "table-name": table.name,
    }


def _control(op: str, table: SourceTable, choice: DmsChoice) -> Row:
    columns = {
        name: {"type": "STRING", "nullable": name not in table.key} for name in table.columns
    }
    metadata = _metadata(op, datetime.fromisoformat("2026-11-20T07:59:00Z"), table, choice)
    return {
        "control": {"table-def": {"columns": columns, "primary-key": list(table.key)}},
        "metadata": metadata | {"record-type": "control", "partition-key-type": "task-id"},
    }


def _data(row: Row | None, choice: DmsChoice) -> Row:
    assert row is not None
    written = choice.nulls or choice.partial
    return {name: _value(value) for name, value in row.items() if written or value is not None}


def _deleted(table: SourceTable, row: Row | None, choice: DmsChoice) -> Row:
    """PostgreSQL gives the key and nulls, MySQL the row."""
    assert row is not None
    if choice.full_deletes:
        return _data(row, choice)
    nulls = dict.fromkeys(table.columns) if choice.nulls else {}
    return nulls | {name: _value(value) for name, value in table.key_of(row).items()}


def _value(value: Any) -> Any:
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, date):
        return value.isoformat()
    return float(value) if isinstance(value, Decimal) else value
