"""Contracts and change events as Arrow: the bridge from the light language to the lake's columns.

A row in the lake has the contract's columns and three of the lake's own: `_version` and `_position`
of the change it came from, which decide which of two changes wins, and `_patches`, null unless some
of its columns are newer than that change (`freshet.patch`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.contract import Contract, Day, Flag, Integer, Money, Real, Text, Timestamp
from freshet.event import ChangeEvent, json_value
from freshet.wire import PART_STRIDE

VERSION = "_version"
POSITION = "_position"
PATCHES = "_patches"
DELETED = "_deleted"

LAKE_COLUMNS = (
    pa.field(VERSION, pa.int64(), nullable=False),
    pa.field(POSITION, pa.string(), nullable=False),
    pa.field(PATCHES, pa.string()),
)


@dataclass(frozen=True, slots=True)
class PlacedEvent:
    """A decoded event and its place in the stream, which decides between equal versions."""

    event: ChangeEvent
    position: str


def position_of(sequence_number: str, index: int) -> str:
    """A place in the stream as text that sorts as the stream does.

    Kinesis sequence numbers are decimals of up to 128 digits, ordered by value: the length in front
    makes text order the same. `index` is the event's part of its record: a second part of a line
    comes right after it.
    """
    second, line = divmod(index, PART_STRIDE)
    suffix = f".{second}" if second else ""
    return f"{len(sequence_number):03d}{sequence_number}.{line:05d}{suffix}"


_PLAIN: dict[type, pa.DataType] = {
    Text: pa.string(),
    Timestamp: pa.timestamp("us", tz="UTC"),
    Day: pa.date32(),
    Flag: pa.bool_(),
}


def arrow_type(column_type: object) -> pa.DataType:
    """The Arrow type of a contract's column type; TypeError for anything else."""
    match column_type:
        case Integer(bits=bits):
            return pa.int32() if bits == 32 else pa.int64()
        case Real(bits=bits):
            return pa.float32() if bits == 32 else pa.float64()
        case Money(precision=precision, scale=scale):
            return pa.decimal128(precision, scale)
    if type(column_type) not in _PLAIN:
        raise TypeError(f"no Arrow type for {column_type!r}")
    return _PLAIN[type(column_type)]


def contract_schema(contract: type[Contract]) -> pa.Schema:
    """The contract's columns as Arrow, as declared, with the lake's own columns last.

    Its metadata remembers former names of columns (`former_names`).
    """
    fields = [
        pa.field(column.name, arrow_type(column.type), nullable=column.nullable)
        for column in contract.columns
    ]
    return with_former_names(pa.schema([*fields, *LAKE_COLUMNS]), contract)


_FORMER = b"freshet.former-names"


def with_former_names(schema: pa.Schema, contract: type[Contract]) -> pa.Schema:
    """The schema, in its metadata what columns of the contract were called before."""
    return (
        schema.with_metadata({_FORMER: json.dumps(contract.former)}) if contract.former else schema
    )


def former_names(schema: pa.Schema) -> dict[str, str]:
    """Former names of columns and the names they have now, as `with_former_names` noted them."""
    noted = (schema.metadata or {}).get(_FORMER)
    return {} if noted is None else dict(json.loads(noted))


def renamed(row: dict[str, Any], former: Mapping[str, str]) -> dict[str, Any]:
    """A row, or some of its columns, under the columns' names of today (`former_names`)."""
    if former.keys().isdisjoint(row):
        return row
    return {former.get(name, name): value for name, value in row.items()}


def changes_schema(row_schema: pa.Schema, key: Sequence[str]) -> pa.Schema:
    """The schema of changes to rows of `row_schema`: every column but the key may be null
    (deletes).
    """
    fields = [
        field.with_nullable(field.name not in key) if not field.name.startswith("_") else field
        for field in row_schema
    ]
    return pa.schema([*fields, pa.field(DELETED, pa.bool_(), nullable=False)])


def changes_table(contract: type[Contract], placed: Sequence[PlacedEvent]) -> pa.Table:
    """Events of one contract as a table of changes (`changes_schema`), in the order given.

    A patch is a delete at version 0, older than anything, with its columns in `_patches`.
    """
    schema = changes_schema(contract_schema(contract), contract.key)
    events = [item.event for item in placed]
    rows = [event.key if event.after is None else event.after for event in events]
    patched = [event.patch is not None for event in events]
    columns = [
        pa.array([row.get(column.name) for row in rows], type=arrow_type(column.type))
        for column in contract.columns
    ]
    versions = [0 if no else event.version for event, no in zip(events, patched, strict=True)]
    positions = ["" if no else item.position for item, no in zip(placed, patched, strict=True)]
    columns.append(pa.array(versions, type=pa.int64()))
    columns.append(pa.array(positions, type=pa.string()))
    columns.append(pa.array([_patches(item) for item in placed], type=pa.string()))
    columns.append(pa.array([event.after is None for event in events], type=pa.bool_()))
    return pa.Table.from_arrays(columns, schema=schema)


def _patches(item: PlacedEvent) -> str | None:
    version, position = item.event.version, item.position
    patch = (item.event.patch or {}).items()
    return patches_text({column: (version, position, json_value(v)) for column, v in patch})


def patches_text(columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The text of `_patches`: of each column the version, position and a JSON value; None for
    none.
    """
    if not columns:
        return None
    return json.dumps(columns, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def key_column(table: pa.Table, key: Sequence[str]) -> pa.ChunkedArray:
    """One array that identifies each row: the key column itself, or the parts of a composite key
    joined.

    Parts are joined by U+001F; a part that holds one (or the escape) is escaped, so keys never run
    together.
    """
    if len(key) == 1:
        return table.column(key[0])
    return pc.binary_join_element_wise(*(_key_part(table.column(name)) for name in key), "\x1f")


def _key_part(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not pa.types.is_string(column.type):
        return column.cast(pa.string())
    escaped = pc.replace_substring(column, pattern="\\", replacement="\\\\")
    return pc.replace_substring(escaped, pattern="\x1f", replacement="\\u")
