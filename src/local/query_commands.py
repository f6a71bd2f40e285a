"""`freshet query`: SQL over the lake as it is or as it was, here or in Athena."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from local.clouds import Cloud
from local.options import DEFAULT_HOME, HomeOption, JsonOption, cloud_of
from local.output import Format, print_rows, say
from local.time_commands import moment

if TYPE_CHECKING:
    from local.athena import Scan

Rows = tuple[Sequence[str], Sequence[Sequence[Any]]]


class Engine(StrEnum):
    """What answers."""

    DUCKDB = "duckdb"
    ATHENA = "athena"


def query(
    context: typer.Context,
    *,
    sql: Annotated[str, typer.Argument(help="SQL; `-` reads it from standard input.")],
    output: Annotated[
        Format, typer.Option("--format", "-f", help="How to print rows.")
    ] = Format.TABLE,
    as_json: JsonOption = False,
    as_of: Annotated[
        str | None,
        typer.Option(metavar="TIME|SNAPSHOT", help="Show the tables as they were then."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="duckdb reads the lake from here; athena needs --aws account.")
    ] = Engine.DUCKDB,
    scan_mb: Annotated[
        int | None,
        typer.Option(min=1, help="Athena: stop a query that scans more megabytes than this."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Ask the current state, the tombstones, the logs, the receipts and the gold views in SQL.

    `freshet query "SHOW TABLES"` names what there is, `"DESCRIBE sales"` a table's columns.
    """
    text = sys.stdin.read() if sql == "-" else sql
    if not text.strip():
        raise typer.BadParameter("there is no SQL to run")
    if engine is Engine.ATHENA and as_of is not None:
        raise typer.BadParameter("in Athena write FROM sales FOR TIMESTAMP AS OF … in the SQL")
    if engine is Engine.DUCKDB and scan_mb is not None:
        raise typer.BadParameter("--scan-mb is for --engine athena: DuckDB costs nothing")
    place = cloud_of(context, home)
    if engine is Engine.ATHENA:
        columns, rows = _in_athena(place, text, scan_mb)
    else:
        columns, rows = _here(place, text, as_of)
    if columns:  # a statement such as COPY answers nothing
        print_rows(columns, rows, Format.JSON if as_json else output)


def _here(place: Cloud, sql: str, as_of: str | None) -> Rows:
    from local.sql import ask, connect

    with place.lake() as (lake, access):
        if as_of is None:
            return ask(connect(lake, access), sql)
        from local.past import connect_at

        shown = connect_at(lake, access, moment(as_of))
        for note in shown.notes:
            say(note)
        return ask(shown.connection, sql)


def _in_athena(place: Cloud, sql: str, scan_mb: int | None) -> Rows:
    from local.account import Account, Stack
    from local.athena import Database, ask

    if not isinstance(place, Account):
        raise typer.BadParameter("Athena is in AWS: freshet --aws account --stack NAME query …")
    stack = Stack.read(place.session, place.stack)
    database = Database(place.session, stack["DatabaseName"], stack["WorkGroupName"])
    bytes_max = None if scan_mb is None else scan_mb * 1_000_000
    answer = ask(database, sql, wait=time.sleep, progress=_tell, bytes_max=bytes_max)
    return answer.columns, answer.rows


def _tell(scan: Scan) -> None:
    say(str(scan))
