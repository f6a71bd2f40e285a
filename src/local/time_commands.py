"""`freshet history`, `diff` and `rollback`: what a table was, what changed, and the way back."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freshet.clock import utc_now
from freshet.contract import Contract
from freshet.event import json_value, key_text
from freshet.tables import TABLES
from local.options import (
    DEFAULT_HOME,
    Failed,
    HomeOption,
    JsonOption,
    cloud_of,
    contract_named,
)
from local.output import Format, print_json, print_rows, say

if TYPE_CHECKING:
    from lake.rollback import RolledBack
    from lake.travel import Change, Moment

# Merged into the commands of `freshet` itself: added without a name.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)

# More than a person reads; `--limit` shows others.
ROWS_SHOWN = 100
TableArgument = Annotated[str, typer.Argument(help=f"Table name: {', '.join(TABLES.names)}.")]
_MOMENT = "a snapshot's id, or a time (UTC unless it says otherwise)"


def moment(text: str) -> Moment:
    """A moment of the command line."""
    from lake.travel import moment_of

    try:
        return moment_of(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r}: write a snapshot's id, or a time as 2026-11-21T08:30:00Z"
        ) from None


@app.command(
    epilog="Example: freshet history sales", short_help="List the moments a table remembers."
)
def history(
    context: typer.Context,
    *,
    table: TableArgument,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List the snapshots of a table, newest first: when, what for, what it did, what it held.

    Kept are the last 50, the one current at each full hour of two days, and at each midnight (UTC)
    of 30 days.
    """
    from lake.travel import history as entries

    contract = contract_named(table)
    with cloud_of(context, home).lake() as (lake, _):
        found = entries(lake.current(contract.table).rows.view().table)
    told = [entry.to_json() for entry in reversed(found)]
    if as_json:
        print_json(told)
        return
    columns = ("snapshot_id", "committed_at", "operation", "rows", "files", "done", "why")
    rows = [
        (
            *(one[name] for name in columns[:5]),
            ", ".join(f"{name} {count}" for name, count in one["done"].items()),
            one["reason"] or one["batch"],
        )
        for one in told
    ]
    print_rows(columns, rows, Format.TABLE)


@app.command(
    epilog="Example: freshet diff sales 2026-11-20 2026-11-21",
    short_help="Tell what changed between two moments.",
)
def diff(
    context: typer.Context,
    *,
    table: TableArgument,
    before: Annotated[str, typer.Argument(help=f"From: {_MOMENT}.")],
    after: Annotated[str, typer.Argument(help=f"To: {_MOMENT}.")],
    limit: Annotated[
        int, typer.Option(help="Show as many rows; all are counted.", min=0)
    ] = ROWS_SHOWN,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Tell which rows were inserted, updated (column by column) and deleted between two moments.

    Reads only files that one of the two has and the other has not.
    """
    from lake.travel import diff as differing
    from lake.travel import past

    contract, moments = contract_named(table), (moment(before), moment(after))
    with cloud_of(context, home).lake() as (lake, _):
        keyed = lake.current(contract.table).rows
        view = keyed.view()
        then = [past(view.table, one, now=utc_now()) for one in moments]
        found = differing(keyed, view, *then)
    changes = list(islice(found.changes(), limit))
    counts = found.counts()
    if as_json:
        rows = [_to_json(contract, change) for change in changes]
        print_json(counts | {"files_read": found.files_read, "rows": rows})
    else:
        told = [line for change in changes for line in _lines(contract, change)]
        print_rows(("key", "change", "column", "before", "after"), told, Format.TABLE)
    total = sum(counts.values())
    shown = f", {len(changes):,} of them shown" if len(changes) < total else ""
    say(", ".join(f"{count:,} {kind}" for kind, count in counts.items()) + shown)
    for one, text in zip(then, (before, after), strict=True):
        if not one.exact:
            say(f"{text}: the state then has expired; the one before it is compared")


def _to_json(contract: type[Contract], change: Change) -> dict[str, Any]:
    return {
        "key": key_text(contract, change.key),
        "change": change.kind.value,
        "columns": {
            name: {"before": json_value(was), "after": json_value(now)}
            for name, (was, now) in change.columns().items()
        },
    }


def _lines(contract: type[Contract], change: Change) -> list[tuple[Any, ...]]:
    """One line for each column that was updated; one for a row that came or went."""
    key, kind = key_text(contract, change.key), change.kind.value
    if change.before is None or change.after is None:
        return [(key, kind, None, None, None)]
    return [(key, kind, name, was, now) for name, (was, now) in change.columns().items()]


@app.command(
    epilog="Example: freshet rollback sales 2026-11-20T18:00:00Z --dry-run",
    short_help="Take a table back to what it showed.",
)
def rollback(
    context: typer.Context,
    *,
    table: TableArgument,
    to: Annotated[
        str, typer.Argument(metavar="SNAPSHOT", help=f"{_MOMENT[0].upper()}{_MOMENT[1:]}.")
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Let a table show again what it showed then, in one new snapshot.

    Each row that differs gets a change above all that is known of it, which is logged like any
    other: what is undone stays undone when it is delivered or replayed again, and what the source
    changes from now on lands as ever. Undone by another rollback. `freshet history` lists moments.
    A time whose state has expired is refused: give a snapshot's id.
    """
    from lake.rollback import Rollback
    from local.way_back import way_back

    contract, target = contract_named(table), moment(to)
    with way_back(context, home, writes=not dry_run) as way:
        again = way.again
        work = Rollback(again.lake, contract, now=again.now, by=again.by)
        if dry_run or not yes:
            found = work.look(target)
            if dry_run:
                _tell(found, as_json=as_json)
                if found.expired is not None:
                    say(f"{found.expired}; told is the way to the first")
                if found.completed:
                    say(_completes(found))
                return
            if found.expired is not None:
                raise found.expired
            if found.completed:
                say(_completes(found))
            say(_sentence(found))
            if not typer.confirm("Roll back?", err=True):
                raise Failed("nothing was rolled back")
        done = work.run(target)
    _tell(done, as_json=as_json)
    if done.snapshot_id is None:
        say("nothing was to be done: the table shows that state")
    if done.completed:
        say(f"{done.completed} rollback(s) that had been killed were completed first")


def _completes(found: RolledBack) -> str:
    return (
        f"{found.table}: {found.completed} rollback(s) that were killed are completed first; rows "
        "are counted without"
    )


def _sentence(found: RolledBack) -> str:
    return (
        f"{found.table}: {found.came_back:,} rows come back, {found.restored:,} get their old "
        f"values, {found.removed:,} go"
    )


def _tell(done: RolledBack, *, as_json: bool) -> None:
    told = done.to_json()
    if as_json:
        print_json(told)
    else:
        print_rows(tuple(told), [tuple(told.values())], Format.TABLE)
