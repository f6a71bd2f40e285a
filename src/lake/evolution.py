"""Schema evolution: a contract's additions and widenings are applied, anything else is refused by
name.
"""

from __future__ import annotations

from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import DecimalType, IcebergType, IntegerType, LongType, NestedField

from freshet.errors import SchemaChangeError
from lake.spec import TableSpec


def evolve(table: Table, spec: TableSpec) -> Table:
    """The table with its schema brought to its spec; unchanged where they agree.

    Adds optional columns, widens types and makes columns optional. Raises `SchemaChangeError` for a
    removed or renamed column, a type that does not widen, a required addition, or another partition
    spec.
    """
    current, wanted = table.schema(), spec.iceberg_schema()
    additions, widenings, relaxed = _differences(spec.name, current, wanted)
    _check_partition(table, spec)
    if additions or widenings or relaxed:
        with table.update_schema() as update:
            for field in additions:
                update.add_column(field.name, field.field_type, doc=field.doc)
            for field in widenings:
                update.update_column(field.name, field_type=field.field_type)
            for field in relaxed:
                update.make_column_optional(field.name)
    return table


def _differences(
    name: str, current: Schema, wanted: Schema
) -> tuple[list[NestedField], list[NestedField], list[NestedField]]:
    have = {field.name: field for field in current.fields}
    want = {field.name: field for field in wanted.fields}
    for column in have.keys() - want.keys():
        raise SchemaChangeError(
            name, column, "is in the lake but no longer in the contract; keep it, optional"
        )
    additions, widenings, relaxed = [], [], []
    for column, field in want.items():
        if column not in have:
            if field.required:
                raise SchemaChangeError(
                    name, column, "is new and required; declare it optional (`| None`)"
                )
            additions.append(field)
        elif have[column].field_type != field.field_type:
            if not _widens(have[column].field_type, field.field_type):
                detail = f"cannot change from {have[column].field_type} to {field.field_type}"
                raise SchemaChangeError(name, column, detail)
            widenings.append(field)
        if column in have and field.required and not have[column].required:
            raise SchemaChangeError(
                name, column, "is optional in the lake and cannot become required"
            )
        if column in have and have[column].required and not field.required:
            relaxed.append(field)
    return additions, widenings, relaxed


def _widens(old: IcebergType, new: IcebergType) -> bool:
    """Iceberg's own promotions (spec, "Schema Evolution") among the types contracts have."""
    if isinstance(old, IntegerType) and isinstance(new, LongType):
        return True
    if isinstance(old, DecimalType) and isinstance(new, DecimalType):
        return old.scale == new.scale and new.precision >= old.precision
    return False


def _check_partition(table: Table, spec: TableSpec) -> None:
    wanted = spec.iceberg_partition_spec()
    same = [
        (a.name, a.transform) == (b.name, b.transform)
        for a, b in zip(table.spec().fields, wanted.fields, strict=False)
    ]
    if len(table.spec().fields) != len(wanted.fields) or not all(same):
        raise SchemaChangeError(
            spec.name,
            str(wanted),
            f"the lake is partitioned by {table.spec()}; that cannot change in place",
        )
