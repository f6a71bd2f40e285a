"""What the command line prints: data on stdout as a table, CSV or JSON; talk on stderr."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.table import Table

from freshet.event import json_value

# Wider than any row that a person would read.
_UNFOLDED = 2000

talk = Console(stderr=True, highlight=False)


class Format(StrEnum):
    """How rows are printed."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


def say(text: str, *, style: str | None = None) -> None:
    """Say one line to the user, on stderr; it is never folded, so it can be copied."""
    talk.print(text, style=style, markup=False, soft_wrap=True)


def print_rows(columns: Sequence[str], rows: Iterable[Sequence[Any]], output: Format) -> None:
    """Print rows to stdout.

    JSON is one array of objects; numbers that must stay exact are strings.
    """
    if output is Format.JSON:
        print_json([dict(zip(columns, map(plain, row), strict=True)) for row in rows])
    elif output is Format.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([plain(value) for value in row] for row in rows)
    else:
        print_table(columns, rows)


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=plain) + "\n")


def plain(value: Any) -> Any:
    """A cell as JSON or CSV shows it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, list | dict):
        return json.loads(json.dumps(value, default=plain))
    if isinstance(value, datetime | date | Decimal):
        return json_value(value)
    return value if isinstance(value, str | int | float | None) else str(value)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "") -> None:
    """Print rows to stdout as an aligned table, numbers to the right."""
    # The title is printed apart: rich would fold it to the width of the table.
    if title:
        print_line(title, style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    body = [[plain(value) for value in row] for row in rows]
    for position, column in enumerate(columns):
        numeric = body and all(_is_number(row[position]) for row in body)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in body:
        table.add_row(*("" if value is None else str(value) for value in row))
    _stdout().print(table, soft_wrap=not sys.stdout.isatty())


def print_line(text: str = "", *, style: str | None = None) -> None:
    """Print one line to stdout, never folded."""
    _stdout().print(text, style=style, markup=False, soft_wrap=True)


def _stdout() -> Console:
    """Stdout as rich sees it; into a pipe or file nothing is folded to a screen's width."""
    width = None if sys.stdout.isatty() else _UNFOLDED
    return Console(highlight=False, markup=False, width=width)


def _is_number(value: Any) -> bool:
    """Whether a cell reads as a number; an empty one does not speak against it."""
    if isinstance(value, str):
        return value.lstrip("-").replace(".", "", 1).isdigit()
    return value is None or isinstance(value, int | float)
