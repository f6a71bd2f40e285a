"""`freshet replay` and `freshet rebuild`: the change log, or the stream, merged once more."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from freshet.tables import TABLES
from local.options import DEFAULT_HOME, HomeOption, JsonOption, contract_named
from local.output import Format, print_json, print_rows, say
from local.quarantine_commands import instant, tell_replayed
from local.way_back import way_back

# Merged into the commands of `freshet` itself: added without a name.
app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    epilog="Example: freshet replay --from 2026-11-20 --to 2026-11-21 --table sales",
    short_help="Merge logged changes once more.",
)
def replay(
    context: typer.Context,
    *,
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="Arrived at or after.")],
    until: Annotated[str, typer.Option("--to", metavar="TIME", help="Arrived before.")],
    table: Annotated[str | None, typer.Option(help="Only this table.")] = None,
    from_stream: Annotated[
        bool,
        typer.Option("--from-stream", help="What the stream still holds, not the change log."),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Merge the changes that arrived in a range once more, and say what that changed.

    Normally nothing: what a table has is not applied twice. Times without a zone are UTC. Safe to
    repeat, and beside a running pipeline.
    """
    from lake.replay import Wanted, replay_log
    from local.failures import replay_stream

    contracts = [contract_named(table)] if table else list(TABLES)
    first, last = instant(since), instant(until)
    assert first is not None and last is not None, "both are required"  # noqa: PT018 - one fact
    if first >= last:
        raise typer.BadParameter(f"--from {since} is not before --to {until}")
    with way_back(context, home) as way:
        if from_stream:
            wanted = Wanted(table=table, since=first, until=last)
            done = replay_stream(way.again, way.source, way.retained, wanted, progress=say)
        else:
            done = replay_log(way.again, contracts, first, last, progress=say)
    tell_replayed([("stream" if from_stream else "change log", done)], as_json=as_json)
    if not done.changed:
        say("nothing changed: the tables had it all")


@app.command(
    epilog="Example: freshet rebuild sales", short_help="Make a table anew from its change log."
)
def rebuild(
    context: typer.Context,
    *,
    table: Annotated[str, typer.Argument(help=f"Table name: {', '.join(TABLES.names)}.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also if rows are not in the log: they are lost.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Make a table's current state anew from its change log, and swap it in.

    Readers see the old state or the new one, and writers go on meanwhile. Refuses where rows of the
    table are not in the log, because it has expired. Safe to repeat.
    """
    from lake.rebuild import rebuild as rebuilt

    contract = contract_named(table)
    with way_back(context, home) as way:
        done = asdict(rebuilt(way.again, contract, force=force, progress=say))
    if as_json:
        print_json(done)
    else:
        shown = ("table", "changes", "rows_before", "rows_after", "tombstones", "attempts")
        print_rows(shown, [[done[name] for name in shown]], Format.TABLE)
