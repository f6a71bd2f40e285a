"""SQL on a laptop: DuckDB over the lake's own files, no copy made.

Tables are views over exactly the data files of the current snapshot, so a query sees one consistent
state. Logs are views over their folders, gold views what their files say. Names and columns are
what Athena shows.
"""

# ruff: noqa: S608 - SQL is made of our own names and quoted locations

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa
from pyiceberg.schema import Schema

from freshet.arrow import former_names
from freshet.errors import TerminalError
from freshet.tables import TABLES
from lake.lake import Lake
from lake.log import CHANGE_LOG, LOGS, QUARANTINE, LogShape
from lake.spec import rows_spec
from local.gold import load_views
from local.gold_files import Materialised, materialised
from local.runtime import LakeAccess

_SHAPES = "freshet_shapes"  # a schema of its own keeps them out of SHOW TABLES
LOG_FOLDERS = {"table_name": pa.string(), "ingest_date": pa.date32()}


class QueryError(TerminalError):
    """SQL that DuckDB refuses."""

    def __init__(self, error: duckdb.Error) -> None:
        # DuckDB adds the statement with a caret after an empty line: its first lines say it all.
        super().__init__(" ".join(str(error).partition("\n\n")[0].split()))


def connect(lake: Lake, access: LakeAccess) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection in which the lake's tables, tombstones, logs and gold views are views."""
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    connection.execute(f"LOAD '{_extension('httpfs')}'")
    connection.execute(_secret(access))
    connection.execute("SET TimeZone = 'UTC'")
    # Every view over a log reads the footers of its files: once a connection is enough.
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute(f"CREATE SCHEMA {_SHAPES}")
    for contract in TABLES:
        current = lake.current(contract.table)
        for table in (current.rows, current.tombstones):
            _table_view(connection, table)
    create_log_views(connection, access.root)
    create_gold_views(connection, materialised(connection, access.root))
    return connection


def empty_lake(*, gold: bool = True) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection in which everything is there as in `connect`, and nothing in it."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"CREATE SCHEMA {_SHAPES}")
    for contract in TABLES:
        _view(connection, contract.table, rows_spec(contract).schema, None)
    for log, shape in LOGS.items():
        _view(connection, log, _with_folders(shape), None)
    if gold:
        create_gold_views(connection)
    return connection


def create_log_views(connection: duckdb.DuckDBPyConnection, root: str) -> None:
    """Make a view of every log below `root`."""
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_SHAPES}")
    for log, shape in LOGS.items():
        _log_view(connection, f"{root}/{log}", log, shape)


def create_gold_views(
    connection: duckdb.DuckDBPyConnection, files: Mapping[str, Materialised] | None = None
) -> None:
    """Make every gold view, over the tables that the connection has, or over its own files where it
    is heavy and was materialised from the same query.
    """
    for view in load_views():
        held = (files or {}).get(view.name)
        if held is not None and held.answers(view):
            held.show(connection, view)
        else:
            connection.execute(f'CREATE VIEW "{view.name}" AS {view.sql}')


def _secret(access: LakeAccess) -> str:
    """The statement that gives DuckDB its credentials and endpoint."""
    endpoint = urlsplit(access.endpoint_url)
    told = {
        "KEY_ID": access.key_id,
        "SECRET": access.secret,
        "REGION": access.region,
        "ENDPOINT": endpoint.netloc,
        # Every S3 takes it; the other style needs a name for each bucket, which stand-ins lack.
        "URL_STYLE": "path",
    }
    if access.token:
        told["SESSION_TOKEN"] = access.token
    values = ", ".join(f"{name} {_quoted(value)}" for name, value in told.items())
    ssl = "true" if endpoint.scheme == "https" else "false"
    return f"CREATE SECRET (TYPE s3, {values}, USE_SSL {ssl})"


# A batch cut differently when it was redelivered is logged under another name: a line counts once.
# Its table and day do not change, and let a question for one of these read no other.
_ONCE = "QUALIFY row_number() OVER (PARTITION BY table_name, ingest_date, shard_id, position) = 1"
_KEEP = {CHANGE_LOG: _ONCE, QUARANTINE: _ONCE}


def ask(
    connection: duckdb.DuckDBPyConnection, query: str
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of one query. Raises `QueryError`."""
    try:
        answer = connection.sql(query)
        if answer is None:  # a statement without rows, or no statement at all
            return [], []
        table = answer.to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(error) from error
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, list(zip(*columns, strict=True))


def _extension(name: str) -> Path:
    """The extension file inside its package: DuckDB's own installer would need the internet."""
    spec = find_spec(f"duckdb_extension_{name}")
    assert spec is not None, f"duckdb-extension-{name} is not installed; run `make setup`"
    assert spec.origin is not None, "the extension package has no files"
    folder = Path(spec.origin).parent / "extensions"
    return next(folder.rglob(f"{name}.duckdb_extension"))


def _table_view(connection: duckdb.DuckDBPyConnection, table: Any) -> None:
    """A view over the files of a table's current snapshot."""
    view = table.view()
    files = [_quoted(file.file_path) for file in view.files]
    by = "union_by_name = true"
    if former_names(table.spec.schema):
        by = _by_field_id(connection, view.table.schema(), table.spec.schema)
    source = f"[{', '.join(files)}], {by}, hive_partitioning = false"
    _view(connection, table.spec.name, table.spec.schema, source if files else None)


def _by_field_id(connection: duckdb.DuckDBPyConnection, table: Schema, schema: pa.Schema) -> str:
    """Columns found by field id: files older than a renaming have them under a former name."""
    shape = connection.from_arrow(schema.empty_table())
    columns = ", ".join(
        f"{table.find_field(name).field_id}: "
        f"{{name: {_quoted(name)}, type: {_quoted(str(kind))}, default_value: NULL}}"
        for name, kind in zip(shape.columns, shape.types, strict=True)
    )
    return f"schema = MAP {{{columns}}}"


def _log_view(connection: duckdb.DuckDBPyConnection, root: str, log: str, shape: LogShape) -> None:
    """A view over a log's folders, whose names are columns too."""
    pattern = _quoted(f"{root}/**/*.parquet")
    found = connection.execute(f"SELECT count(*) FROM glob({pattern})").fetchone()
    # Objects written before a column was added have it not.
    options = "hive_partitioning = true, union_by_name = true"
    source = f"{pattern}, {options}" if found and found[0] else None
    _view(connection, log, _with_folders(shape), source, keep=_KEEP.get(log, ""))


def _with_folders(shape: LogShape) -> pa.Schema:
    schema = shape.schema
    for folder in shape.folders:
        # A log's line may name its table itself.
        if folder not in schema.names:
            schema = schema.append(pa.field(folder, LOG_FOLDERS[folder]))
    return schema


def _view(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    schema: Any,
    source: str | None,
    *,
    keep: str = "",
) -> None:
    """A view of exactly the schema's columns, also where there is no file or none has a column."""
    connection.register("empty", schema.empty_table())
    connection.execute(f'CREATE TABLE {_SHAPES}."{name}" AS FROM empty')
    connection.unregister("empty")
    files = f"UNION ALL BY NAME FROM read_parquet({source})" if source else ""
    connection.execute(f'CREATE VIEW "{name}" AS FROM {_SHAPES}."{name}" {files} {keep}')


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
