"""Contracts and change events as Arrow: the bridge from the light language to the lake's columns.

A row in the lake has the contract's columns and two of the lake's own: `_version` and `_position`
of the change it came from. Nothing else is needed to decide which of two changes wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from freshet.contract import Contract, Day, Flag, Integer, Money, Text, Timestamp
from freshet.event import ChangeEvent

VERSION = "_version"
POSITION = "_position"
DELETED = "_deleted"

LAKE_COLUMNS = (
    pa.field(VERSION, pa.int64(), nullable=False),
    pa.field(POSITION, pa.string(), nullable=False),
)


@dataclass(frozen=True, slots=True)
class PlacedEvent:
    """A decoded event and its place in the stream, which decides between equal versions."""

    event: ChangeEvent
    position: str


def position_of(sequence_number: str, index: int) -> str:
    """A place in the stream as text that sorts as the stream does.

    Kinesis sequence numbers are decimals of up to 128 digits, ordered by value: the length in front
    makes text order the same. `index` is the event's line in its record.
    """
    return f"{len(sequence_number):03d}{sequence_number}.{index:05d}"


def arrow_type(column_type: object) -> pa.DataType:
    """The Arrow type of a contract's column type; TypeError for anything else."""
    match column_type:
        case Text():
            return pa.string()
        case Integer(bits=bits):
            return pa.int32() if bits == 32 else pa.int64()
        case Money(precision=precision, scale=scale):
            return pa.decimal128(precision, scale)
        case Timestamp():
            return pa.timestamp("us", tz="UTC")
        case Day():
            return pa.date32()
        case Flag():
            return pa.bool_()
    raise TypeError(f"no Arrow type for {column_type!r}")


def contract_schema(contract: type[Contract]) -> pa.Schema:
    """The contract's columns as Arrow, as declared, with the lake's own columns last."""
    fields = [
        pa.field(column.name, arrow_type(column.type), nullable=column.nullable)
        for column in contract.columns
    ]
    return pa.schema([*fields, *LAKE_COLUMNS])


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
    """Events of one contract as a table of changes (`changes_schema`), in the order given."""
    schema = changes_schema(contract_schema(contract), contract.key)
    rows = [item.event.after if item.event.after is not None else item.event.key for item in placed]
    columns = [
        pa.array([row.get(column.name) for row in rows], type=arrow_type(column.type))
        for column in contract.columns
    ]
    columns.append(pa.array([item.event.version for item in placed], type=pa.int64()))
    columns.append(pa.array([item.position for item in placed], type=pa.string()))
    columns.append(pa.array([item.event.after is None for item in placed], type=pa.bool_()))
    return pa.Table.from_arrays(columns, schema=schema)


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
