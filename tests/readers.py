"""Readers that know nothing of Freshet: pyiceberg, DuckDB's Iceberg extension, Polars, DataFusion.

They are given a metadata file, and where its bucket is, and nothing else. They read in a process of
their own: each brings threads and an allocator that outlive a test.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from urllib.parse import urlsplit

import datafusion
import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.table import StaticTable

from local.runtime import LakeAccess
from local.sql import _extension, _secret

# Polars plans a table without deletes by itself only where its files are local.
_PLANNER = ("POLARS_ICEBERG_PLANNER", "pyiceberg")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a table's files are: on this disk, or in the bucket that `access` opens."""

    metadata_location: str
    access: LakeAccess | None = None

    def table(self) -> StaticTable:
        """The table by its metadata file alone."""
        return StaticTable.from_metadata(self.metadata_location, self._told("s3.{}"))

    def storage_options(self) -> dict[str, str]:
        """The same as Rust's object_store wants it."""
        if self.access is None:
            return {}
        names = {"endpoint": "endpoint_url", "region": "region"}
        told = {"aws_" + names.get(one, one.replace("-", "_")): value
                for one, value in self._told("{}").items()}  # fmt: skip
        return told | {"aws_allow_http": "true"}

    def filesystem(self) -> fs.FileSystem:
        """The same as Arrow wants it."""
        if self.access is None:
            return fs.LocalFileSystem()
        endpoint = urlsplit(self.access.endpoint_url)
        return fs.S3FileSystem(
            access_key=self.access.key_id,
            secret_key=self.access.secret,
            endpoint_override=endpoint.netloc,
            scheme=endpoint.scheme,
            region=self.access.region,
        )

    def _told(self, form: str) -> dict[str, str]:
        if self.access is None:
            return {}
        told = {
            "endpoint": self.access.endpoint_url,
            "region": self.access.region,
            "access-key-id": self.access.key_id,
            "secret-access-key": self.access.secret,
        }
        return {form.format(name): value for name, value in told.items()}


Rows = list[dict[str, Any]]
Reader = Callable[[Place, int | None], pa.Table]
Readers = Callable[[Place, int | None, tuple[str, ...]], dict[str, Rows]]


def by_pyiceberg(place: Place, snapshot_id: int | None) -> pa.Table:
    return place.table().scan(snapshot_id=snapshot_id).to_arrow()


def by_duckdb(place: Place, snapshot_id: int | None) -> pa.Table:
    with iceberg(place.access) as connection:
        return connection.sql(scan(place.metadata_location, snapshot_id)).to_arrow_table()


def by_polars(place: Place, snapshot_id: int | None) -> pa.Table:
    options = place.storage_options() or None
    frame = pl.scan_iceberg(place.table(), snapshot_id=snapshot_id, storage_options=options)
    return frame.collect().to_arrow()


def by_datafusion(place: Place, snapshot_id: int | None) -> pa.Table:
    """It has no Iceberg of its own without a compiled companion: the files are what it reads."""
    planned = place.table().scan(snapshot_id=snapshot_id)
    paths = [task.file.file_path.partition("://")[2] for task in planned.plan_files()]
    schema = schema_to_pyarrow(planned.projection(), include_field_ids=False)
    files = ds.dataset(paths, schema=schema, format="parquet", filesystem=place.filesystem())
    context = datafusion.SessionContext()
    context.register_dataset("rows", files)
    return context.sql("SELECT * FROM rows").to_arrow_table() if paths else pa.table({})


READERS: dict[str, Reader] = {
    "pyiceberg": by_pyiceberg,
    "duckdb": by_duckdb,
    "polars": by_polars,
    "datafusion": by_datafusion,
}


@contextmanager
def readers() -> Iterator[Readers]:
    """What all of them see of a table at a moment, in order of its key, by their names."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:
        yield lambda place, moment, key: apart.submit(_read, place, moment, key).result()


def _read(place: Place, snapshot_id: int | None, key: tuple[str, ...]) -> dict[str, Rows]:
    os.environ.setdefault(*_PLANNER)
    return {by: shown(read(place, snapshot_id), key) for by, read in READERS.items()}


def iceberg(access: LakeAccess | None = None) -> duckdb.DuckDBPyConnection:
    """DuckDB with its Iceberg extension."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    for name in ("avro", "httpfs", "iceberg"):
        connection.execute(f"LOAD '{_extension(name)}'")
    if access is not None:
        connection.execute(_secret(access))
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def scan(metadata_location: str, snapshot_id: int | None = None, columns: str = "*") -> str:
    """The statement that reads a table by its metadata file."""
    at = "" if snapshot_id is None else f", snapshot_from_id = {snapshot_id}::UBIGINT"
    path = metadata_location.removeprefix("file://")
    return f"SELECT {columns} FROM iceberg_scan('{path}'{at})"


def shown(rows: pa.Table, key: Sequence[str]) -> Rows:
    """Rows in order of their key, without nulls: a column added since is there or not."""
    told = ({name: one for name, one in row.items() if one is not None} for row in rows.to_pylist())
    return sorted(told, key=lambda row: [str(row[name]) for name in key])
