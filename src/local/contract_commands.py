"""`freshet contracts …`: the declared tables held to what was locked, before they are deployed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from freshet.lock import ContractChange, changes, lock_text, locked, read_lock
from freshet.tables import TABLES
from local.options import Failed, JsonOption
from local.output import Format, print_rows, say

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Hold the contracts to what the lake can take.",
    short_help="Hold the contracts to what the lake can take.",
    epilog="Example: freshet contracts check",
)
LOCK = Path("contracts.lock")
LockOption = Annotated[
    Path,
    typer.Option(
        "--lock", metavar="FILE", dir_okay=False, help="The lock file, committed with the code."
    ),
]
COLUMNS = ("table", "column", "change", "allowed", "do")


@app.command(
    epilog="Example: freshet contracts check", short_help="Refuse what cannot be deployed."
)
def check(*, lock: LockOption = LOCK, as_json: JsonOption = False) -> None:
    """Compare the contracts with the lock; name what the lake or senders could not take.

    Exits with 1 where a change is refused or not locked yet. Needs no pipeline.
    """
    found = _changes(lock)
    _print(found, as_json=as_json)
    refused = [change for change in found if not change.is_allowed]
    if refused:
        raise Failed(f"{len(refused)} changes are refused; the lines above say what to do instead")
    if not _is_current(lock):
        raise Failed(f"{lock} is not what the contracts say: run `freshet contracts lock`")
    say(f"{len(TABLES.names)} contracts are as {lock} says")


@app.command(
    epilog="Example: freshet contracts diff", short_help="Show what changed since the lock."
)
def diff(*, lock: LockOption = LOCK, as_json: JsonOption = False) -> None:
    """Show how the contracts differ from the lock, allowed or not. Needs no pipeline."""
    _print(_changes(lock), as_json=as_json)


@app.command("lock", epilog="Example: freshet contracts lock", short_help="Lock the contracts.")
def write(
    *,
    lock: LockOption = LOCK,
    force: Annotated[
        bool,
        typer.Option("--force", help="Lock what is refused too: the lake was seen to by hand."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write the contracts to the lock, for review. Refuses, and keeps the lock, where one cannot be
    deployed.
    """
    found = _changes(lock)
    _print(found, as_json=as_json)
    refused = [change for change in found if not change.is_allowed]
    if refused and not force:
        raise Failed(f"{len(refused)} changes are refused, and {lock} is as it was")
    lock.write_text(lock_text(locked(TABLES)))
    say(f"{lock}: {len(TABLES.names)} contracts")


def _changes(lock: Path) -> tuple[ContractChange, ...]:
    before = read_lock(lock.read_text(), str(lock)) if lock.exists() else {}
    return changes(before, locked(TABLES))


def _is_current(lock: Path) -> bool:
    return lock.exists() and lock.read_text() == lock_text(locked(TABLES))


def _print(found: Sequence[ContractChange], *, as_json: bool) -> None:
    rows = [(one.table, one.column, one.what, one.is_allowed, one.advice) for one in found]
    if rows or as_json:
        print_rows(COLUMNS, rows, Format.JSON if as_json else Format.TABLE)
