"""`freshet maintain`: the tables kept small, and what nothing needs any more freed."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any

import typer

from freshet.clock import utc_now
from freshet.tables import TABLES
from local.options import DEFAULT_HOME, Failed, HomeOption, JsonOption, cloud_of, contract_named
from local.output import Format, print_json, print_rows, say

SHOWN = {
    "table": "table",
    "outcome": "outcome",
    "snapshots_expired": "expired",
    "tombstones_pruned": "pruned",
    "merged": "merged",
    "made": "into",
    "listed": "files",
    "referenced": "needed",
    "waiting": "waiting",
    "deleted": "deleted",
}


def maintain(
    context: typer.Context,
    *,
    table: Annotated[list[str] | None, typer.Argument(help="Tables; default: all.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")
    ] = False,
    grace_hours: Annotated[
        int,
        typer.Option(help="How long a file stays once nothing needs it.", min=1, max=8784),
    ] = 24,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Expire snapshots, prune old tombstones, merge small files, and delete what nothing needs.

    One run sees a file, a run an hour later knows that nothing will need it again, and one after
    the grace deletes it. Safe beside a running `freshet up`, and for whoever reads meanwhile.
    """
    from lake.maintain import Maintenance
    from lake.vacuum import Outcome

    contracts = [contract_named(name) for name in table] if table else list(TABLES)
    place = cloud_of(context, home)
    place.home("maintain")  # a deployed lake has a function for that
    with place.lake(read_only=dry_run) as (lake, _):
        maintenance = Maintenance(lake, now=utc_now, grace=timedelta(hours=grace_hours))
        done = maintenance.run(contracts, dry_run=dry_run, progress=say)
    _tell([one.to_json() for one in done], as_json=as_json)
    refused = [one.table for one in done if one.outcome is Outcome.REFUSED]
    if refused:
        raise Failed(f"refused to delete files of {', '.join(refused)}: the lines above say why")


def _tell(done: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print_json(done)
        return
    rows = [[one[name] for name in SHOWN] for one in done]
    print_rows(list(SHOWN.values()), rows, Format.TABLE)
    for one in done:
        if one["detail"]:
            say(f"{one['table']}: {one['detail']}")
