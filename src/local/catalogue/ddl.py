"""Statements for Athena and Redshift that the contracts imply, kept in `sql/` and held to them."""

# ruff: noqa: S608 - SQL is made of our own names

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import duckdb
import pyarrow as pa
import yaml

from freshet.contract import Contract, PartitionField
from lake.log import CHANGE_LOG, LOGS, QUARANTINE, UNKNOWN_TABLE
from lake.spec import rows_spec

ROOT = "${root}"  # of a statement that is to be run somewhere: s3://bucket/prefix
_SIMPLE = {
    pa.string(): "string",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.float32(): "float",
    pa.float64(): "double",
    pa.date32(): "date",
    pa.bool_(): "boolean",
    pa.binary(): "binary",
}
# As in template.yaml: no line is older, and a clock ahead of Athena's must not hide rows.
_DAYS = "2026-01-01,NOW+1DAY"


class Query(NamedTuple):
    """A query to begin with: what it answers, and its SQL, the same in DuckDB and Athena."""

    asks: str
    sql: str


class LogWords(NamedTuple):
    """What is said of a log and of its columns."""

    description: str
    columns: Mapping[str, str]


@cache
def log_words() -> Mapping[str, LogWords]:
    """What is said of each log."""
    body = yaml.safe_load((Path(__file__).parent / "logs.yaml").read_text(encoding="utf-8"))
    return {name: LogWords(one["description"], one["columns"]) for name, one in body.items()}


def athena_type(kind: pa.DataType) -> str:
    """Athena's and Glue's name of an Arrow type in a table's declaration."""
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    return "timestamp" if pa.types.is_timestamp(kind) else _SIMPLE[kind]


def log_statement(log: str, tables: Iterable[str]) -> str:
    """The statement that lets Athena find a log below `${root}` by partition projection."""
    shape, words = LOGS[log], log_words()[log]
    own = [field for field in shape.schema if field.name not in shape.folders]
    columns = [(field.name, athena_type(field.type), words.columns[field.name]) for field in own]
    folders = [(name, "string", words.columns[name]) for name in shape.folders]
    place = "/".join(f"{name}=${{{name}}}" for name in shape.folders)
    properties = {"classification": "parquet", "projection.enabled": "true"}
    if "table_name" in shape.folders:
        names = [*tables] if log == CHANGE_LOG else [*tables, UNKNOWN_TABLE]
        properties["projection.table_name.type"] = "enum"
        properties["projection.table_name.values"] = ",".join(names)
    properties |= {
        "projection.ingest_date.type": "date",
        "projection.ingest_date.format": "yyyy-MM-dd",
        "projection.ingest_date.range": _DAYS,
        "storage.location.template": f"{ROOT}/{log}/{place}/",
    }
    told = ",\n".join(f"    '{name}' = '{value}'" for name, value in properties.items())
    return (
        f"CREATE EXTERNAL TABLE IF NOT EXISTS {log} (\n{_lines(columns)}\n)\n"
        f"COMMENT '{_quotable(words.description)}'\n"
        f"PARTITIONED BY (\n{_lines(folders)}\n)\n"
        f"STORED AS PARQUET\nLOCATION '{ROOT}/{log}/'\nTBLPROPERTIES (\n{told}\n)"
    )


def table_statement(contract: type[Contract]) -> str:
    """The statement that would make a contract's table in Athena, as the lake makes it itself."""
    spec = rows_spec(contract)
    columns = [
        (field.name, athena_type(field.type), spec.descriptions.get(field.name, ""))
        for field in spec.schema
    ]
    by = ", ".join(_transform(field) for field in contract.partition)
    return (
        f"CREATE TABLE IF NOT EXISTS {contract.table} (\n{_lines(columns)}\n)\n"
        f"COMMENT '{_quotable(spec.words)}'\n"
        + (f"PARTITIONED BY ({by})\n" if by else "")
        + f"LOCATION '{ROOT}/{contract.table}/'\n"
        "TBLPROPERTIES (\n    'table_type' = 'ICEBERG',\n    'format' = 'parquet'\n)"
    )


def _lines(columns: Iterable[tuple[str, str, str]]) -> str:
    return ",\n".join(
        f"    `{name}` {kind}" + (f" COMMENT '{_quotable(words)}'" if words else "")
        for name, kind, words in columns
    )


def _quotable(words: str) -> str:
    """Words for a literal: Hive and Presto escape an apostrophe differently, so none is left."""
    return words.replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")


def _transform(field: PartitionField) -> str:
    if field.transform == "identity":
        return f"`{field.column}`"
    count = f"{field.buckets}, " if field.transform == "bucket" else ""
    return f"{field.transform}({count}`{field.column}`)"


def sample_queries(contract: type[Contract]) -> tuple[Query, ...]:
    """Queries of a table to begin with."""
    table = contract.table
    shown = [*contract.key, *(c.name for c in contract.columns if c.name not in contract.key)]
    names = ", ".join([*map(_named, shown[:6]), "_version"])
    return (
        Query(
            "The rows that changed last",
            f"SELECT {names}\nFROM {table}\nORDER BY _version DESC\nLIMIT 10",
        ),
        *_by_time(contract),
        Query(
            "The life of one row: whatever happened to it, as it was told",
            f"SELECT version, op, source, occurred_at, after, patch\nFROM {CHANGE_LOG}\n"
            f"WHERE table_name = '{table}'\n"
            f"    AND key = (SELECT max(key) FROM {CHANGE_LOG} WHERE table_name = '{table}')\n"
            "ORDER BY version",
        ),
        Query(
            "What was refused, and why",
            f"SELECT reason, field, count(*) AS line_count, max(arrived_at) AS last_seen\n"
            f"FROM {QUARANTINE}\nWHERE table_name = '{table}'\n"
            "GROUP BY reason, field\nORDER BY line_count DESC",
        ),
    )


def _by_time(contract: type[Contract]) -> Iterator[Query]:
    for field in contract.partition:
        if field.transform in ("day", "month"):
            name = _named(field.column)
            yield Query(
                f"Rows by day, pruned to what is asked for: the table lies by `{field}`",
                f"SELECT CAST({name} AS date) AS day, count(*) AS row_count\n"
                f"FROM {contract.table}\nWHERE {name} >= DATE '2010-12-01'\n"
                f"GROUP BY CAST({name} AS date)\nORDER BY day DESC\nLIMIT 31",
            )


def _named(column: str) -> str:
    """A column in a query: quoted where SQL has the word for itself."""
    return f'"{column}"' if column in _reserved() else column


@cache
def _reserved() -> frozenset[str]:
    words = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category <> 'unreserved'"
    with duckdb.connect() as connection:
        return frozenset(word for (word,) in connection.execute(words).fetchall())


def statements(tables: Iterable[type[Contract]]) -> dict[str, str]:
    """What `sql/athena/tables` and `sql/athena/queries` must hold: path below `sql` -> text."""
    contracts = list(tables)
    head = "-- Made from the contracts by `freshet docs build --sql`.\n"
    root = f"-- {ROOT} is the lake's root, s3://bucket/lake.\n"
    made = dict[str, str]()
    for log in LOGS:
        note = "-- A deployed stack has this table already (template.yaml).\n"
        text = log_statement(log, [contract.table for contract in contracts])
        made[f"athena/tables/{log}.sql"] = f"{head}{note}{root}{text};\n"
    for contract in contracts:
        note = "-- The consumer makes this table with its first commit: here to be read.\n"
        text = table_statement(contract)
        made[f"athena/tables/{contract.table}.sql"] = f"{head}{note}{root}{text};\n"
        queries = [f"-- {query.asks}.\n{query.sql};\n" for query in sample_queries(contract)]
        made[f"athena/queries/{contract.table}.sql"] = "\n".join([head, *queries])
    return made
