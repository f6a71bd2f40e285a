"""Schema evolution: what a contract may change of a table is applied with the next commit, anything
else is refused by name. `freshet.lock` says the same before a deployment.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyiceberg.schema import Schema
from pyiceberg.table import Table, Transaction
from pyiceberg.types import (
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
)

from freshet.arrow import former_names
from freshet.errors import SchemaChangeError
from lake.spec import TableSpec


@dataclass
class _Changes:
    """What is to be done to a table; updates are by the name that the lake has now."""

    renamings: dict[str, str] = field(default_factory=dict)
    additions: list[NestedField] = field(default_factory=list)
    updates: dict[str, dict[str, Any]] = field(default_factory=dict)
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def of_schema(self) -> bool:
        return bool(self.renamings or self.additions or self.updates)

    def update(self, column: NestedField, **made: Any) -> None:
        self.updates.setdefault(column.name, {}).update(made)


def evolve(table: Table, spec: TableSpec, *, words: bool = True) -> Table:
    """The table with its schema brought to its spec, in one commit; unchanged where they agree.

    Renames columns that the spec knows by former names (field ids stay, so files and snapshots are
    read as before), adds optional columns, widens types, makes columns optional and, with `words`,
    tells the descriptions. Raises `SchemaChangeError` for a removed column, a type that does not
    widen, a required addition, or another partition spec.
    """
    changes = _differences(spec, table.schema())
    _check_partition(table, spec)
    if words:
        _describe(table, spec, changes)
    if changes.of_schema or changes.properties:
        _apply(table, changes)
    return table


def evolved_in_memory(table: Table, spec: TableSpec) -> Table:
    """The table as `evolve` would make it, for readers: nothing is committed. Raises as `evolve`.

    The table itself where only words differ.
    """
    changes = _differences(spec, table.schema())
    _check_partition(table, spec)
    if not changes.of_schema:
        return table
    transaction = table.transaction()
    _stage(transaction, changes)
    seen = transaction.table_metadata
    return Table(table.name(), seen, table.metadata_location, table.io, table.catalog)


def _apply(table: Table, changes: _Changes) -> None:
    with table.transaction() as transaction:
        _stage(transaction, changes)


def _stage(transaction: Transaction, changes: _Changes) -> None:
    if changes.of_schema:
        with transaction.update_schema() as update:
            for path, made in changes.updates.items():
                update.update_column(path, **made)
            for was, now in changes.renamings.items():
                update.rename_column(was, now)
            for added in changes.additions:
                update.add_column(added.name, added.field_type, doc=added.doc)
    if changes.properties:
        transaction.set_properties(changes.properties)


def _differences(spec: TableSpec, schema: Schema) -> _Changes:
    changes, name = _Changes(), spec.name
    have = {one.name: one for one in schema.fields}
    want = {one.name: one for one in spec.iceberg_schema().fields}
    for was, now in former_names(spec.schema).items():
        if was in have and now in want and now not in have:
            have[now] = have.pop(was)
            changes.renamings[was] = now
    for column in have.keys() - want.keys():
        raise SchemaChangeError(
            name,
            column,
            "is in the lake but no longer in the contract; keep it, optional, or name it among the "
            "aliases of what it is called now",
        )
    for column, wanted in want.items():
        if column in have:
            _compare(name, have[column], wanted, changes)
        elif wanted.required:
            detail = "is new and required; declare it optional (`| None`)"
            raise SchemaChangeError(name, column, detail)
        else:
            changes.additions.append(wanted)
    return changes


def _compare(table: str, have: NestedField, want: NestedField, changes: _Changes) -> None:
    if have.field_type != want.field_type:
        if not widens(have.field_type, want.field_type):
            detail = f"cannot change from {have.field_type} to {want.field_type}"
            raise SchemaChangeError(table, want.name, detail)
        changes.update(have, field_type=want.field_type)
    if want.required and not have.required:
        detail = "is optional in the lake and cannot become required"
        raise SchemaChangeError(table, want.name, detail)
    if have.required and not want.required:
        changes.update(have, required=False)


def _describe(table: Table, spec: TableSpec, changes: _Changes) -> None:
    """What is said of columns and table, where that is not what the lake says."""
    have = {one.name: one for one in table.schema().fields}
    was = {now: was for was, now in changes.renamings.items()}
    for column, words in spec.descriptions.items():
        known = have.get(was.get(column, column))
        if known is not None and (known.doc or "") != words:
            changes.update(known, doc=words)
    held = table.properties
    changes.properties |= {
        name: words for name, words in spec.properties.items() if held.get(name) != words
    }


def widens(old: IcebergType, new: IcebergType) -> bool:
    """Iceberg's own promotions (spec, "Schema Evolution") among the types contracts have."""
    if isinstance(old, DecimalType) and isinstance(new, DecimalType):
        return old.scale == new.scale and new.precision >= old.precision
    return (type(old), type(new)) in ((IntegerType, LongType), (FloatType, DoubleType))


def _check_partition(table: Table, spec: TableSpec) -> None:
    """The same columns by the same transforms. A partition field keeps its name when its column is
    renamed.
    """
    wanted = spec.iceberg_partition_spec()
    former = former_names(spec.schema)
    columns = {one.field_id: former.get(one.name, one.name) for one in table.schema().fields}
    own = [(columns[one.source_id], one.transform) for one in table.spec().fields]
    names = [one.column for one in spec.partition]
    if own != list(zip(names, (one.transform for one in wanted.fields), strict=True)):
        raise SchemaChangeError(
            spec.name,
            str(wanted),
            f"the lake is partitioned by {table.spec()}; that cannot change in place",
        )
