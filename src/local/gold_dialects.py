"""Gold views as Athena and Redshift get them: transpiled from the DuckDB SQL they are written in.

sqlglot passes on what it does not know, so only what all three engines have under the same meaning
may be in a view: the functions listed here, and none of the constructs refused here.
"""

# ruff: noqa: S608 - SQL is made of our own names

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from typing import NamedTuple

import duckdb
import sqlglot
from sqlglot import ErrorLevel, exp

from local.gold import GoldError, Heavy, View, load_views
from local.sql import empty_lake

SOURCE, ENGINES = "duckdb", ("athena", "redshift")
LAKE_SCHEMA, GOLD_SCHEMA = "lake", "gold"  # in Redshift
# How far back the scheduled renewal in Athena looks; `freshet gold apply` looks at every day.
RENEWED_DAYS = 7
TEXT_MAX = 64  # of a number, a rank or a day as text
PORTABLE = (
    *(exp.Cast, exp.TryCast, exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Greatest),
    *(exp.Count, exp.Sum, exp.Min, exp.Max, exp.RowNumber, exp.Lag, exp.Lead),
    *(exp.Substring, exp.Pad, exp.JSONExtractScalar, exp.CurrentDate, exp.And, exp.Or),
)
_WITHOUT_FRAME = (exp.RowNumber, exp.Lag, exp.Lead)
_REFUSED: dict[type[exp.Expr], str] = {
    exp.Qualify: "QUALIFY: Athena has none; number rows in a query of its own",
    exp.Filter: "FILTER: Redshift has none; use CASE",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM: Redshift has none; use coalesce",
    exp.NullSafeNEQ: "IS DISTINCT FROM: Redshift has none; use coalesce",
    exp.Lateral: "LATERAL: use a join",
    exp.Array: "a list: use rows",
    exp.Struct: "a struct: use columns",
}
_ATHENA_TYPES = {"VARCHAR": "string", "INTEGER": "int"}


class Column(NamedTuple):
    """A column of a view: its name and DuckDB's type."""

    name: str
    type: str


def columns_of(connection: duckdb.DuckDBPyConnection, view: View) -> tuple[Column, ...]:
    """The columns of a view that the connection has."""
    rows = connection.execute(f'DESCRIBE "{view.name}"').fetchall()
    return tuple(Column(str(name), str(kind)) for name, kind, *_ in rows)


def faults(views: Iterable[View]) -> Iterator[tuple[str, str]]:
    """Names of views that do not hold, and why: DuckDB refuses one, or it is not portable."""
    connection = empty_lake(gold=False)
    for view in views:
        try:
            connection.execute(f'CREATE VIEW "{view.name}" AS {view.sql}')
            connection.execute(f'EXPLAIN FROM "{view.name}"')
        except duckdb.Error as error:
            yield view.name, f"duckdb: {' '.join(str(error).split())}"
        for problem in problems(view):
            yield view.name, problem
    connection.close()


def problems(view: View) -> Iterator[str]:
    """What keeps a view from being the same in every engine, in one line each."""
    try:
        tree = sqlglot.parse_one(view.sql, dialect=SOURCE)
    except sqlglot.errors.ParseError as error:
        yield " ".join(str(error).split())
        return
    yield from _unportable(tree)
    for engine in ENGINES:
        try:
            there = transpiled(view, engine)
            sqlglot.parse_one(there, dialect=engine)
        except sqlglot.errors.SqlglotError as error:
            yield f"{engine}: {' '.join(str(error).split())}"


def _unportable(tree: exp.Expr) -> Iterator[str]:
    for node in tree.walk():
        if type(node) in _REFUSED:
            yield _REFUSED[type(node)]
        elif isinstance(node, exp.Func) and not isinstance(node, PORTABLE):
            yield f"{node.sql(SOURCE)}: not a function that all engines are known to have"
        elif isinstance(node, exp.Window):
            yield from _unframed(node)


def _unframed(window: exp.Window) -> Iterator[str]:
    spec = window.args.get("spec")
    rows = spec is not None and spec.args.get("kind") == "ROWS"
    if window.args.get("order") and not rows and not isinstance(window.this, _WITHOUT_FRAME):
        yield f"{window.sql(SOURCE)}: needs ROWS BETWEEN: Redshift has no default, others RANGE"


def transpiled(view: View, engine: str) -> str:
    """The view's query for an engine; for Redshift with the schemas that it is spread over."""
    tree = sqlglot.parse_one(view.sql, dialect=SOURCE)
    if engine == "redshift":
        tree = _placed(tree, view).transform(_as_redshift_has_it)
    return tree.sql(dialect=engine, pretty=True, unsupported_level=ErrorLevel.RAISE)


def _placed(tree: exp.Expr, view: View) -> exp.Expr:
    inside = {cte.alias for cte in tree.find_all(exp.CTE)}
    for table in tree.find_all(exp.Table):
        if table.name not in inside:
            schema = GOLD_SCHEMA if table.name in view.uses else LAKE_SCHEMA
            table.set("db", exp.to_identifier(schema))
    return tree


def _as_redshift_has_it(node: exp.Expr) -> exp.Expr:
    """SUBSTRING with commas as documented, for FROM and FOR; short texts, for VARCHAR(MAX)."""
    if isinstance(node, exp.Substring):
        parts = [node.this, node.args.get("start"), node.args.get("length")]
        return exp.Anonymous(this="SUBSTRING", expressions=[part for part in parts if part])
    if isinstance(node, exp.DataType) and node.is_type("varchar", "text"):
        return exp.DataType.build(f"varchar({TEXT_MAX})", dialect="redshift")
    return node


def athena_view(view: View) -> str:
    """The statement that makes a light view in Athena."""
    return f"CREATE OR REPLACE VIEW {view.name} AS\n{transpiled(view, 'athena')}"


def athena_table(view: View, columns: Sequence[Column], location: str) -> str:
    """The statement that makes the Iceberg table of a heavy view in Athena, if there is none."""
    lines = ",\n".join(f"    `{name}` {athena_type(kind)}" for name, kind in columns)
    by = _heavy(view).by
    parted = f"PARTITIONED BY (month(`{by}`))\n" if by else ""
    return (
        f"CREATE TABLE IF NOT EXISTS {view.name} (\n{lines}\n)\n{parted}"
        f"LOCATION '{location}'\n"
        "TBLPROPERTIES ('table_type' = 'ICEBERG', 'format' = 'parquet')"
    )


def athena_type(kind: str) -> str:
    """Athena's name, in a table's declaration, of one of DuckDB's types."""
    return _ATHENA_TYPES.get(kind, kind.lower().replace(" ", ""))


def athena_changed(view: View) -> str:
    """The query for the dates on which a heavy view's table has not as many lines as it should."""
    by = _heavy(view).by
    return f"""WITH wanted AS (
    SELECT {by}, count(*) AS row_count FROM (
{transpiled(view, "athena")}
    ) AS made GROUP BY {by}
), held AS (
    SELECT {by}, count(*) AS row_count FROM {view.name} GROUP BY {by}
)
SELECT coalesce(wanted.{by}, held.{by}) AS changed
FROM wanted
FULL JOIN held ON held.{by} = wanted.{by}
WHERE coalesce(wanted.row_count, 0) <> coalesce(held.row_count, 0)
ORDER BY 1"""


def athena_merge(view: View, columns: Sequence[Column], dates: Sequence[date] | None = None) -> str:
    """The statement that makes a heavy view's table what the view says, in one commit.

    Only rows that differ are written. A view that is renewed by date is looked at on `dates`, or on
    those of the last days.
    """
    heavy = _heavy(view)
    names = ", ".join(name for name, _ in columns)
    values = ", ".join(f"fresh.{name}" for name, _ in columns)
    told = ", ".join(_told(column) for column in columns)
    when = _when(heavy, dates)
    kept = ", ".join(f"kept.{name}" for name, _ in columns)
    sets = ", ".join(f"{name} = fresh.{name}" for name, _ in columns if name not in heavy.key)
    return f"""MERGE INTO {view.name} AS held
USING (
    WITH wanted AS (
        SELECT {told} FROM (
{transpiled(view, "athena")}
        ) AS made WHERE {when}
    ), kept AS (
        SELECT {names} FROM {view.name} WHERE {when}
    )
    SELECT changed.*, FALSE AS is_gone
    FROM (SELECT {names} FROM wanted EXCEPT SELECT {names} FROM kept) AS changed
    UNION ALL
    SELECT {kept}, TRUE AS is_gone
    FROM kept LEFT JOIN wanted ON {_same(heavy, "wanted", "kept")}
    WHERE wanted.{heavy.key[0]} IS NULL
) AS fresh
ON {_same(heavy, "held", "fresh")}
WHEN MATCHED AND fresh.is_gone THEN DELETE
WHEN MATCHED THEN UPDATE SET {sets}
WHEN NOT MATCHED THEN INSERT ({names})
    VALUES ({values})"""


def _told(column: Column) -> str:
    # Iceberg knows microseconds only; Athena's own timestamps have milliseconds.
    name = column.name
    return f"CAST({name} AS timestamp(6)) AS {name}" if column.type == "TIMESTAMP" else name


def _when(heavy: Heavy, dates: Sequence[date] | None) -> str:
    if heavy.by is None:
        return "TRUE"
    if dates is None:
        return f"{heavy.by} >= current_date - INTERVAL '{RENEWED_DAYS}' DAY"
    days = ", ".join(f"DATE '{one}'" for one in dates)
    return f"{heavy.by} IN ({days})"


def _same(heavy: Heavy, left: str, right: str) -> str:
    return " AND ".join(f"{left}.{name} = {right}.{name}" for name in heavy.key)


def _heavy(view: View) -> Heavy:
    if view.heavy is None:
        raise GoldError(view.name, "is not declared heavy")
    return view.heavy


def redshift_view(view: View, columns: Sequence[Column]) -> str | None:
    """The statement that makes the view in Redshift; None where it cannot be there.

    A heavy one shows the table that Athena materialised. WITH NO SCHEMA BINDING is what Redshift
    asks of a view over external tables.
    """
    if view.not_in_redshift:
        return None
    query = transpiled(view, "redshift")
    if view.heavy:
        names = ",\n  ".join(name for name, _ in columns)
        query = f"SELECT\n  {names}\nFROM {LAKE_SCHEMA}.{view.name}"
    return f"CREATE OR REPLACE VIEW {GOLD_SCHEMA}.{view.name} AS\n{query}\nWITH NO SCHEMA BINDING"


def golden_files() -> dict[str, str]:
    """What `sql/athena` and `sql/redshift` must hold: path below `sql` -> text."""
    files = dict[str, str]()
    connection = empty_lake()
    for view in load_views():
        columns = columns_of(connection, view)
        head = f"-- Made from sql/gold/{view.name}.sql by `freshet gold check --write`.\n"
        if view.heavy:
            note = (
                "-- Once, with the table's place for LOCATION; then, on the schedule, the merge.\n"
            )
            table = athena_table(view, columns, "${location}")
            text = f"{head}{note}{table};\n\n{athena_merge(view, columns)};\n"
        else:
            text = f"{head}{athena_view(view)};\n"
        files[f"athena/{view.name}.sql"] = text
        there = redshift_view(view, columns)
        if there is not None:
            files[f"redshift/{view.name}.sql"] = f"{head}{there};\n"
    connection.close()
    return files
