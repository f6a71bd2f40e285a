"""Builders for tests of schema evolution: one table, declared again and again."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field
from pyiceberg.table import StaticTable

from freshet.contract import (
    Aliases,
    Contract,
    Deprecated,
    Integer,
    Money,
    PartitionField,
    Pii,
    Real,
    Text,
    Timestamp,
)
from lake.lake import Lake

PYTHON: dict[type, type] = {
    Text: str,
    Integer: int,
    Real: float,
    Money: Decimal,
    Timestamp: datetime,
}


@dataclass(frozen=True)
class Declared:
    """A column to be declared; `default` is left out of one that every event must carry."""

    type: Any
    optional: bool = False
    aliases: tuple[str, ...] = ()
    deprecated: str | None = None
    pii: Any = None
    description: str = ""
    default: Any = ...
    pattern: str | None = None

    def but(self, **changed: Any) -> Declared:
        return replace(self, **changed)

    @property
    def annotation(self) -> Any:
        markers = [self.type]
        if self.aliases:
            markers.append(Aliases(*self.aliases))
        if self.deprecated is not None:
            markers.append(Deprecated(self.deprecated))
        if self.pii:
            markers.append(Pii(self.pii))
        made: Any = Annotated[(PYTHON[type(self.type)], *markers)]
        return made | None if self.optional else made

    @property
    def field(self) -> Any:
        default = None if self.optional and self.default is ... else self.default
        return Field(default, description=self.description, pattern=self.pattern)


ID = Declared(Text(64, 1), description="Key")


def contract(
    columns: Mapping[str, Declared],
    *,
    table: str = "evolving",
    key: Sequence[str] = ("id",),
    partition: Sequence[PartitionField] = (),
    words: str = "A table that evolves.",
    **keywords: Any,
) -> type[Contract]:
    body = {
        "__annotations__": {name: column.annotation for name, column in columns.items()},
        "__doc__": words,
        "__module__": __name__,
        **{name: column.field for name, column in columns.items()},
    }
    options = {"table": table, "key": tuple(key), "partition": tuple(partition), **keywords}
    return types.new_class("Evolving", (Contract,), options, lambda own: own.update(body))


def stock(lake: Lake, table: str = "evolving") -> StaticTable:
    """The table as pyiceberg alone reads it from its metadata file."""
    return StaticTable.from_metadata(lake.current(table).rows.view().table.metadata_location)
