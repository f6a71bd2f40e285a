"""Table specs: what a contract means to Iceberg. Schemas, partition specs and tombstone tables
derive here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.partitioning import PartitionField as IcebergPartitionField
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import (
    BucketTransform,
    DayTransform,
    IdentityTransform,
    MonthTransform,
    Transform,
)
from pyiceberg.types import (
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestamptzType,
)

from freshet.arrow import LAKE_COLUMNS, POSITION, contract_schema, with_former_names
from freshet.contract import TABLE_WORDS_MAX, Contract, PartitionField

# Iceberg numbers partition fields from 1000 (spec, "Partition Specs").
_PARTITION_FIELD_ID = 1000
PartitionValues = tuple[Any, ...]


@dataclass(frozen=True)
class TableSpec:
    """One lake table: its name, row schema (Arrow), key columns, partition fields and column texts.

    `content` names the columns that tell two changes of one version apart; None: the contract's.
    `words` say what the table is.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    partition: tuple[PartitionField, ...]
    descriptions: dict[str, str]
    content: tuple[str, ...] | None = None
    words: str = ""

    @property
    def properties(self) -> dict[str, str]:
        """The table's comment, under the names that Spark and Trino, and Glue, look for."""
        return {"comment": self.words, "Description": self.words} if self.words else {}

    def iceberg_schema(self) -> Schema:
        """The Iceberg schema of a new table: field ids count from 1 in column order."""
        return Schema(
            *(
                NestedField(
                    field_id=number,
                    name=field.name,
                    field_type=iceberg_type(field.type),
                    required=not field.nullable,
                    doc=self.descriptions.get(field.name),
                )
                for number, field in enumerate(self.schema, start=1)
            ),
            identifier_field_ids=[self.schema.get_field_index(name) + 1 for name in self.key],
        )

    def iceberg_partition_spec(self) -> PartitionSpec:
        """The partition spec of a new table."""
        return PartitionSpec(
            *(
                IcebergPartitionField(
                    source_id=self.schema.get_field_index(field.column) + 1,
                    field_id=_PARTITION_FIELD_ID + number,
                    transform=_transform(field),
                    name=_partition_name(field),
                )
                for number, field in enumerate(self.partition)
            )
        )


def rows_spec(contract: type[Contract]) -> TableSpec:
    """The current-state table of a contract."""
    own = {
        "_version": "Version of the change this row came from; greater is newer",
        "_position": "Place of that change in the stream; decides between equal versions",
        "_patches": "Columns newer than that change, as JSON with their versions; mostly null",
    }
    texts = {column.name: column.words for column in contract.columns}
    return TableSpec(
        contract.table,
        contract_schema(contract),
        contract.key,
        contract.partition,
        texts | own,
        words=table_words(contract),
    )


def table_words(contract: type[Contract]) -> str:
    """What the contract says its table is, on one line: the first paragraph of its docstring."""
    first = (contract.__doc__ or "").strip().partition("\n\n")[0]
    return " ".join(first.split())[:TABLE_WORDS_MAX]


def tombstones_spec(contract: type[Contract]) -> TableSpec:
    """The tombstones of a contract's table: key, version and position of each delete that won, and
    the patches that wait for a row. Version 0 means that only such came of the key so far.

    Not partitioned: a tombstone must be found from the key alone, also for a key never seen (ADR
    0004).
    """
    rows = contract_schema(contract)
    fields = [pa.field(name, rows.field(name).type, nullable=False) for name in contract.key]
    return TableSpec(
        f"{contract.table}_tombstones",
        with_former_names(pa.schema([*fields, *LAKE_COLUMNS]), contract),
        contract.key,
        (),
        {},
        # All a tombstone says is its place: of two at one version the later one stands.
        content=(POSITION,),
        words=f"Freshet's own: deletes that won in {contract.table}, and patches without a row",
    )


def iceberg_type(arrow: pa.DataType) -> IcebergType:
    """The Iceberg type of a lake column's Arrow type."""
    if pa.types.is_decimal(arrow):
        return DecimalType(arrow.precision, arrow.scale)
    if pa.types.is_timestamp(arrow):
        return TimestamptzType()
    simple: dict[pa.DataType, IcebergType] = {
        pa.string(): StringType(),
        pa.int32(): IntegerType(),
        pa.int64(): LongType(),
        pa.float32(): FloatType(),
        pa.float64(): DoubleType(),
        pa.date32(): DateType(),
        pa.bool_(): BooleanType(),
    }
    return simple[arrow]


def _transform(field: PartitionField) -> Transform[Any, Any]:
    match field.transform:
        case "day":
            return DayTransform()
        case "month":
            return MonthTransform()
        case "bucket":
            return BucketTransform(field.buckets)
        case "identity":
            return IdentityTransform()


def _partition_name(field: PartitionField) -> str:
    return field.column if field.transform == "identity" else f"{field.column}_{field.transform}"


def partition_values(table: pa.Table, partition: Sequence[PartitionField]) -> list[PartitionValues]:
    """Each row's partition, as Iceberg stores it: days or months since 1970, bucket number, or the
    value.
    """
    if not partition:
        return [()] * table.num_rows
    columns = [_transformed(table.column(field.column), field) for field in partition]
    return list(zip(*columns, strict=True))


def _transformed(column: pa.ChunkedArray, field: PartitionField) -> list[Any]:
    if field.transform == "day":
        return column.cast(pa.date32()).cast(pa.int32()).to_pylist()  # type: ignore[no-any-return]
    if field.transform == "month":
        months = pc.add(
            pc.multiply(pc.subtract(pc.year(column), 1970), 12), pc.subtract(pc.month(column), 1)
        )
        return months.to_pylist()  # type: ignore[no-any-return]
    values = stored_values(column)
    if field.transform == "bucket":
        bucket = BucketTransform(field.buckets).transform(iceberg_type(column.type))
        known = {value: bucket(value) for value in set(values)}
        return [known[value] for value in values]
    return values


def stored_values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """A column's values as Iceberg stores them: dates as days and instants as microseconds since
    1970.
    """
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    elif pa.types.is_date(column.type):
        column = column.cast(pa.int32())
    return column.to_pylist()  # type: ignore[no-any-return]
