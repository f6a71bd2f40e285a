"""SQL on a laptop: DuckDB over the lake's own files, no copy made.

Tables are views over exactly the data files of the current snapshot, so a query sees one consistent
state. Logs are views over their folders, gold views what their files say. Names and columns are
what Athena shows.
"""

# ruff: noqa: S608 - SQL is made of our own names and quoted locations

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import pyarrow as pa

from freshet.errors import TerminalError
from freshet.tables import TABLES
from lake.lake import Lake
from lake.log import CHANGE_LOG, CHANGE_LOG_SCHEMA, QUARANTINE, QUARANTINE_SCHEMA
from local.runtime import LakeAccess

LOG_SCHEMAS = {CHANGE_LOG: CHANGE_LOG_SCHEMA, QUARANTINE: QUARANTINE_SCHEMA}
_SHAPES = "freshet_shapes"  # a schema of its own keeps them out of SHOW TABLES
LOG_FOLDERS = {"table_name": pa.string(), "ingest_date": pa.date32()}
# Portable SQL, one view a file, named as its file: `sql/gold` of a checkout, `gold` in the wheel.
_CHECKOUT, _PACKAGED = Path(__file__).parents[2] / "sql" / "gold", Path(__file__).parent / "gold"
GOLD = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGED


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
    connection.execute(f"CREATE SCHEMA {_SHAPES}")
    for contract in TABLES:
        current = lake.current(contract.table)
        for table in (current.rows, current.tombstones):
            _table_view(connection, table)
    for log, schema in LOG_SCHEMAS.items():
        _log_view(connection, f"{access.root}/{log}", log, schema)
    create_gold_views(connection)
    return connection


def create_gold_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Make a view of every file of `GOLD`, over the tables that the connection has."""
    for path in sorted(GOLD.glob("*.sql")):
        connection.execute(f'CREATE VIEW "{path.stem}" AS {path.read_text()}')


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
_ONCE = "QUALIFY row_number() OVER (PARTITION BY shard_id, position) = 1"


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
    files = [_quoted(file.file_path) for file in table.view().files]
    source = f"[{', '.join(files)}], union_by_name = true, hive_partitioning = false"
    _view(connection, table.spec.name, table.spec.schema, source if files else None)


def _log_view(connection: duckdb.DuckDBPyConnection, root: str, log: str, schema: Any) -> None:
    """A view over a log's folders, whose names are columns too."""
    for folder, kind in LOG_FOLDERS.items():
        schema = schema.append(pa.field(folder, kind))
    pattern = _quoted(f"{root}/**/*.parquet")
    found = connection.execute(f"SELECT count(*) FROM glob({pattern})").fetchone()
    source = f"{pattern}, hive_partitioning = true" if found and found[0] else None
    _view(connection, log, schema, source, keep=_ONCE)


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
