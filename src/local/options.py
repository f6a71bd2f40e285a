"""What every command of `freshet` shares: its home, its format, and how it says no."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from freshet.contract import Contract
from freshet.errors import UnknownTableError
from freshet.tables import TABLES
from local.clouds import Cloud, cloud

DEFAULT_HOME = Path(".freshet")

HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="FRESHET_HOME", help="Folder that holds the pipeline's state."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


class Failed(Exception):  # noqa: N818 - a verdict, not an error
    """The command did its work and the answer is no."""


def contract_named(table: str) -> type[Contract]:
    """The contract of a table named on the command line. Raises `typer.BadParameter`."""
    try:
        return TABLES[table]
    except UnknownTableError as error:
        raise typer.BadParameter(str(error)) from None


def cloud_of(context: typer.Context, home: Path) -> Cloud:
    """Where AWS is, as the options before the command say."""
    aws, stack = context.obj
    return cloud(aws, home, stack)
