"""Catalogs: where a table's current metadata is named. Each commits by compare-and-swap on that
pointer; what they share is here, an adapter each in `lake.glue` and `lake.sqlite`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from pyiceberg.catalog import MetastoreCatalog
from pyiceberg.io import FileIO
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import Identifier

from freshet.errors import StorageError
from lake.io import ObjectsFileIO


@contextmanager
def typed_faults(place: str, faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a catalog's faults into `StorageError`: the batch may come again."""
    try:
        yield
    except faults as error:
        detail = f"{type(error).__name__}: {error}"
        raise StorageError(place, detail) from error


class LakeCatalog(MetastoreCatalog):
    """A pyiceberg catalog over our file access, its faults typed. Mixed in before pyiceberg's own.

    `faults` are the adapter's errors; a metadata file that is gone is one of each: the pointer was
    read too long ago.
    """

    place: ClassVar[str]
    faults: ClassVar[tuple[type[Exception], ...]]
    files: ObjectsFileIO

    def _load_file_io(self, *_place: Any, **_named: Any) -> FileIO:
        return self.files

    def load_table(self, identifier: str | Identifier) -> Table:
        """See pyiceberg. Raises `StorageError`."""
        with typed_faults(self.place, (*self.faults, FileNotFoundError)):
            return super().load_table(identifier)  # type: ignore[safe-super]

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        """See pyiceberg. Raises `StorageError`."""
        with typed_faults(self.place, (*self.faults, FileNotFoundError)):
            return super().commit_table(table, requirements, updates)  # type: ignore[safe-super]
