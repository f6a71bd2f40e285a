"""The gold views' files: what they declare, that they are portable, and what Athena is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import sqlglot
from sqlglot import exp

from local.gold import GOLD, GoldError, Heavy, View, load_views
from local.gold_athena import Applied, apply
from local.gold_dialects import (
    ENGINES,
    Column,
    athena_merge,
    columns_of,
    faults,
    golden_files,
    problems,
    transpiled,
)
from local.sql import empty_lake

SQL = GOLD.parent
VIEWS = {view.name: view for view in load_views()}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=lambda view: view.name)
HEADER = "-- What it is.\n--\n-- materialise: daily, key: a, b, incremental by: on_day\n"


def written(folder: Path, **texts: str) -> tuple[View, ...]:
    for name, text in texts.items():
        (folder / f"{name}.sql").write_text(text)
    return load_views(folder)


def test_a_view_comes_after_those_that_it_uses() -> None:
    made = set[str]()
    for view in VIEWS.values():
        assert view.uses <= made, view.name
        made.add(view.name)

    assert VIEWS["restatements"].uses == {"revenue_changes"}
    assert VIEWS["revenue_changes"].uses == {"sale_changes"}


def test_a_file_says_what_its_view_is_and_how_it_is_materialised(tmp_path: Path) -> None:
    [view] = written(tmp_path, one=f"{HEADER}SELECT 1 AS a -- not that\n")

    assert view.description == "What it is."
    assert view.heavy == Heavy("daily", ("a", "b"), "on_day")
    assert str(view.heavy) == "daily, by month of on_day"
    assert view.sql == "SELECT 1 AS a"


@pytest.mark.parametrize("line", ["materialise daily", "materialise: daily", "materialise: key: a"])
def test_a_header_that_cannot_be_read_is_refused_with_its_form(tmp_path: Path, line: str) -> None:
    with pytest.raises(GoldError, match=r"gold view one: its header must say `materialise: daily"):
        written(tmp_path, one=f"-- It.\n--\n-- {line}\nSELECT 1 AS a\n")


def test_views_that_use_one_another_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GoldError, match="uses views that use it again"):
        written(tmp_path, one="SELECT a FROM two", two="SELECT a FROM one")


def test_what_was_made_from_another_query_is_known_by_its_digest(tmp_path: Path) -> None:
    _, before = written(tmp_path, one="SELECT 1 AS a", two="SELECT a FROM one")
    _, after = written(tmp_path, one="SELECT 2 AS a")

    assert before.name == after.name == "two"
    assert before.digest != after.digest


@every_view
def test_a_view_says_what_it_is_and_reads_no_column_by_star(view: View) -> None:
    assert view.description.endswith(".")
    assert len(view.description.split()) > 8
    tree = sqlglot.parse_one(view.sql, dialect="duckdb")
    assert isinstance(tree, exp.Query)
    assert "*" not in tree.named_selects


def test_every_view_holds_in_every_engine() -> None:
    assert list(faults(VIEWS.values())) == []


@every_view
@pytest.mark.parametrize("engine", ENGINES)
def test_what_an_engine_is_given_reads_back_as_what_was_meant(view: View, engine: str) -> None:
    """DuckDB binds what sqlglot makes of the other engine's text: same columns, same types."""
    there = transpiled(view, engine)
    tree = sqlglot.parse_one(there, dialect=engine)
    for table in tree.find_all(exp.Table):
        table.set("db", None)
    connection = empty_lake()
    wanted = columns_of(connection, view)

    connection.execute(f'CREATE OR REPLACE VIEW "{view.name}" AS {tree.sql(dialect="duckdb")}')

    assert columns_of(connection, view) == wanted
    connection.close()


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SELECT a FROM t QUALIFY row_number() OVER (ORDER BY a) = 1", "QUALIFY"),
        ("SELECT count(*) FILTER (WHERE a > 1) AS n FROM t", "FILTER"),
        ("SELECT a FROM t WHERE a IS DISTINCT FROM b", "IS DISTINCT FROM"),
        ("SELECT sum(a) OVER (PARTITION BY b ORDER BY c) AS s FROM t", "ROWS BETWEEN"),
        ("SELECT quantile_cont(a, 0.5) AS p50 FROM t", "not a function that all engines"),
        ("SELECT no_such_function(a) AS b FROM t", "not a function that all engines"),
        ("SELECT [a, b] AS c FROM t", "a list"),
        ("SELECT FROM WHERE", "Expect"),
    ],
)
def test_sql_that_another_engine_lacks_is_named(sql: str, names: str) -> None:
    found = list(problems(View("one", sql, "It.", None, None)))

    assert any(names in problem for problem in found), found


def test_a_view_that_duckdb_refuses_is_named() -> None:
    broken = View("one", "SELECT no_such_column FROM sales", "It.", None, None)

    [(name, detail)] = faults([*VIEWS.values(), broken])

    assert name == "one"
    assert "no_such_column" in detail


def test_the_statements_for_athena_and_redshift_are_those_of_the_views() -> None:
    """`freshet gold check --write sql` writes them anew."""
    made = golden_files()
    for name, text in made.items():
        assert (SQL / name).read_text() == text, f"{name} is stale"
    held = {f"athena/{path.name}" for path in (SQL / "athena").glob("*.sql")}
    held |= {f"redshift/{path.name}" for path in (SQL / "redshift").glob("*.sql")}

    assert held == made.keys() | {"redshift/external_schema.sql"}


@pytest.mark.parametrize("name", golden_files().keys())
def test_a_committed_statement_parses_in_its_engine(name: str) -> None:
    text = "\n".join(
        line for line in (SQL / name).read_text().splitlines() if not line.startswith("--")
    ).replace("WITH NO SCHEMA BINDING", "")

    for statement in text.strip().rstrip(";").split(";\n"):
        assert sqlglot.parse_one(statement, dialect=name.partition("/")[0]).find(exp.Table)


def test_redshift_reads_heavy_views_as_tables_and_has_no_log() -> None:
    """Partition projection, by which the logs are found, is Athena's alone."""
    for name, text in golden_files().items():
        if name.startswith("redshift/"):
            assert not {"change_log", "receipts", "quarantine_resolutions"} & set(
                text.replace(".", " ").split()
            ), name


class DuckAthena:
    """Athena's statements run by DuckDB: what they do, not where."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection, self.did = connection, list[str]()

    def run(self, statement: str, what: str) -> None:
        self.did.append(f"{statement.split(maxsplit=1)[0]} {what}")
        tree = sqlglot.parse_one(statement, dialect="athena")
        if isinstance(tree, exp.Create):
            tree.set("properties", None)
        self.connection.execute(tree.sql(dialect="duckdb"))

    def rows(self, query: str, what: str) -> list[tuple[Any, ...]]:
        [there] = sqlglot.transpile(query, read="athena", write="duckdb")
        found = self.connection.execute(there).fetchall()
        if "information_schema" in query:  # types as Athena names them
            return [(name, kind.lower().replace("(18,", "(18, ")) for name, kind in found]
        return found


PAID = View(
    "paid",
    "SELECT place, on_day, amount FROM paid_log WHERE on_day IS NOT NULL",
    "It.",
    Heavy("daily", ("place",), "on_day"),
    None,
)
PAID_COLUMNS = (Column("place", "BIGINT"), Column("on_day", "DATE"), Column("amount", "BIGINT"))
MONDAY, TUESDAY = date(2026, 11, 16), date(2026, 11, 17)


@pytest.fixture
def athena() -> Iterator[DuckAthena]:
    connection = duckdb.connect()
    connection.execute("CREATE TABLE paid_log (place bigint, on_day date, amount bigint)")
    connection.executemany(
        "INSERT INTO paid_log VALUES (?, ?, ?)", [(1, MONDAY, 5), (2, MONDAY, 7), (3, TUESDAY, 9)]
    )
    yield DuckAthena(connection)
    connection.close()


def applied(athena: DuckAthena, view: View = PAID) -> list[Applied]:
    views = [(view, PAID_COLUMNS)]
    return list(apply(athena, views, database="main", root="s3://lake/lake"))


def held(athena: DuckAthena) -> list[tuple[Any, ...]]:
    return athena.connection.execute("FROM paid ORDER BY place").fetchall()


def test_a_heavy_view_becomes_a_table_that_follows_it(athena: DuckAthena) -> None:
    assert applied(athena) == [Applied("paid", "table", 2)]
    assert held(athena) == [(1, MONDAY, 5), (2, MONDAY, 7), (3, TUESDAY, 9)]

    assert applied(athena) == [Applied("paid", "unchanged", 0)]

    athena.connection.execute("INSERT INTO paid_log VALUES (4, DATE '2026-11-17', 1)")
    athena.connection.execute("DELETE FROM paid_log WHERE on_day = DATE '2026-11-16' AND place = 2")
    assert applied(athena) == [Applied("paid", "renewed", 2)]
    assert held(athena) == [(1, MONDAY, 5), (3, TUESDAY, 9), (4, TUESDAY, 1)]


def test_a_view_without_dates_is_compared_whole_and_only_differences_are_written(
    athena: DuckAthena,
) -> None:
    view = View(PAID.name, PAID.sql, "It.", Heavy("daily", ("place",), None), None)
    applied(athena, view)
    athena.connection.execute("UPDATE paid_log SET amount = 8 WHERE place = 2")
    athena.connection.execute("DELETE FROM paid_log WHERE place = 3")

    assert applied(athena, view) == [Applied("paid", "renewed")]

    assert held(athena) == [(1, MONDAY, 5), (2, MONDAY, 8)]


def test_a_table_of_other_columns_is_made_anew(athena: DuckAthena) -> None:
    athena.connection.execute("CREATE TABLE paid (place bigint, on_day date)")

    assert applied(athena) == [Applied("paid", "table", 2)]

    assert athena.did[0] == "DROP table paid"
    assert len(held(athena)) == 3


def test_a_merge_touches_no_day_that_it_does_not_name(athena: DuckAthena) -> None:
    applied(athena)
    athena.connection.execute("UPDATE paid_log SET amount = 100")

    athena.run(athena_merge(PAID, PAID_COLUMNS, [TUESDAY]), "merge")

    assert held(athena) == [(1, MONDAY, 5), (2, MONDAY, 7), (3, TUESDAY, 100)]


def test_every_heavy_view_runs_through_the_statements_that_athena_is_given() -> None:
    """Over one line of each log: declared types fit, and a second time nothing is to be done."""
    connection = empty_lake()
    views = [(view, columns_of(connection, view)) for view in VIEWS.values()]
    for view, _ in reversed(views):
        connection.execute(f'DROP VIEW "{view.name}"')
    _log_one_line(connection)
    athena = DuckAthena(connection)

    first = {one.view: one for one in apply(athena, views, database="main", root="s3://l/l")}
    again = {one.view: one.did for one in apply(athena, views, database="main", root="s3://l/l")}

    assert first["sale_changes"] == Applied("sale_changes", "table", 1)
    assert again["sale_changes"] == "unchanged"
    found = connection.execute("SELECT sale_id, learned_on, net_change FROM revenue_changes")
    assert found.fetchall() == [("1-1", MONDAY, Decimal("5.1000"))]
    assert connection.execute("SELECT count(*) FROM revenue_changes").fetchall() == [(1,)]
    connection.close()


def _log_one_line(connection: duckdb.DuckDBPyConnection) -> None:
    row = (
        '{"sold_at": "2026-11-15T23:00:00.000000Z", "quantity": 2, "returned_quantity": 0, '
        '"unit_price": "2.5500", "currency": "GBP"}'
    )
    connection.execute("CREATE TABLE logged AS FROM change_log")
    connection.execute(
        "INSERT INTO logged BY NAME SELECT 'c' AS op, '1-1' AS key, 1 AS version, 's' AS shard_id, "
        "'p' AS position, TIMESTAMPTZ '2026-11-16 08:00:00Z' AS arrived_at, "
        "DATE '2026-11-16' AS ingest_date, 'sales' AS table_name, ? AS after",
        [row],
    )
    connection.execute("CREATE OR REPLACE VIEW change_log AS FROM logged")
