"""Catalogs: where a table's current metadata is named. Both commit by compare-and-swap on that
pointer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from pyiceberg.catalog import Catalog
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError
from pyiceberg.io import FileIO
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.update import TableRequirement, TableUpdate
from pyiceberg.typedef import Identifier

from freshet.errors import StorageError
from lake.io import ObjectsFileIO

_PLACE = "Glue catalog"
# A metadata file that is gone: the pointer was read too long ago.
_FAULTS = (BotoCoreError, ClientError, FileNotFoundError)


@contextmanager
def typed_faults(place: str, faults: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a catalog's faults into `StorageError`: the batch may come again."""
    try:
        yield
    except faults as error:
        detail = f"{type(error).__name__}: {error}"
        raise StorageError(place, detail) from error


class _Glue(GlueCatalog):
    """Glue over our file access, its faults typed."""

    files: ObjectsFileIO

    def _load_file_io(self, *_place: Any, **_named: Any) -> FileIO:
        return self.files

    def load_table(self, identifier: str | Identifier) -> Table:
        with typed_faults(_PLACE, _FAULTS):
            return super().load_table(identifier)

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        with typed_faults(_PLACE, _FAULTS):
            return super().commit_table(table, requirements, updates)


def sql_catalog(path: Path, files: ObjectsFileIO, *, warehouse: str, database: str) -> Catalog:
    """The laptop's catalog, one SQLite file. A swap is an `UPDATE … WHERE` on the old pointer."""
    from lake.sqlite import open_sqlite  # noqa: PLC0415 - SQLAlchemy is not in the Lambda layer

    return open_sqlite(path, files, warehouse=warehouse, database=database)


def glue_catalog(client: Any, files: ObjectsFileIO, *, warehouse: str, database: str) -> Catalog:
    """The AWS Glue Data Catalog. A swap names the table's `VersionId` (optimistic locking)."""
    catalog = _Glue("freshet", client=client, warehouse=warehouse)
    catalog.files = files
    # The database is there at every start but the first.
    with typed_faults(_PLACE, _FAULTS), suppress(NamespaceAlreadyExistsError):
        catalog.create_namespace(database)
    return catalog
