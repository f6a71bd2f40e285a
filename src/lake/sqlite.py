"""The laptop's catalog, pyiceberg's on SQLite. Apart because it alone needs SQLAlchemy."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError, NoSuchTableError
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update import TableRequirement, TableUpdate
from sqlalchemy import URL, create_engine
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.pool import NullPool

from lake.catalog import LakeCatalog, typed_faults
from lake.io import ObjectsFileIO

# SQLite makes a writer wait for the other; a commit holds the lock for milliseconds.
_WAIT_S = 30
# Two tables for each contract of a dozen.
_PARSED_MAX = 24


class _Sql(LakeCatalog, SqlCatalog):
    place = "SQLite catalog"
    faults = (DBAPIError,)
    _parsed: dict[str, TableMetadata]

    def _init_catalog(self) -> None:
        # Opening SQLite costs a fraction of a millisecond; a pooled connection would stay open in
        # every thread that ever asked, and outlive a lake nobody closed.
        self.engine = create_engine(self.engine.url, poolclass=NullPool)
        self._parsed = {}
        super()._init_catalog()

    def _convert_orm_to_iceberg(self, orm_table: IcebergTables) -> Table:
        """As pyiceberg's, which reads metadata past `_load_file_io`."""
        location = orm_table.metadata_location
        if location is None:
            raise NoSuchTableError(f"{orm_table.table_name} has no metadata location")
        return Table(
            identifier=(orm_table.table_namespace, orm_table.table_name),
            metadata=self._metadata(location),
            metadata_location=location,
            io=self.files,
            catalog=self,
        )

    def _metadata(self, location: str) -> TableMetadata:
        """Metadata files never change: what was parsed once is kept while it is likely current."""
        metadata = self._parsed.get(location)
        if metadata is None:
            metadata = FromInputFile.table_metadata(self.files.new_input(location))
            self._keep(location, metadata)
        return metadata

    def _keep(self, location: str, metadata: TableMetadata) -> None:
        self._parsed[location] = metadata
        for old in list(self._parsed)[:-_PARSED_MAX]:
            self._parsed.pop(old, None)

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],
        updates: tuple[TableUpdate, ...],
    ) -> CommitTableResponse:
        """See `LakeCatalog`; what was written is kept parsed."""
        done = super().commit_table(table, requirements, updates)
        self._keep(done.metadata_location, done.metadata)
        return done


def sql_catalog(path: Path, files: ObjectsFileIO, *, warehouse: str, database: str) -> Catalog:
    """The laptop's catalog, one SQLite file. A swap is an `UPDATE … WHERE` on the old pointer.

    Any number of processes may open the same file at once. Raises `StorageError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with typed_faults(f"{_Sql.place} {path}", _Sql.faults):
        try:
            catalog = _connect(path, warehouse)
        except OperationalError:
            catalog = _connect(path, warehouse)  # another process created the tables meanwhile
        catalog.files = files
        with suppress(NamespaceAlreadyExistsError, IntegrityError):  # every start but the first
            catalog.create_namespace(database)
    return catalog


def _connect(path: Path, warehouse: str) -> _Sql:
    url = URL.create("sqlite", database=str(path), query={"timeout": str(_WAIT_S)})
    uri = url.render_as_string(hide_password=False)
    return _Sql("freshet", uri=uri, warehouse=warehouse, init_catalog_tables="true")
