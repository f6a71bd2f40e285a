"""`freshet verify`: the laws, and that nothing was lost, checked on the lake itself."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freshet.tables import TABLES
from local.options import DEFAULT_HOME, Failed, HomeOption, JsonOption, cloud_of, contract_named
from local.output import Format, print_json, print_rows, say
from local.way_back import WayBack, way_back

if TYPE_CHECKING:
    from lake.conservation import FailedBatch
    from lake.verify import Check


def verify(
    context: typer.Context,
    *,
    table: Annotated[
        list[str] | None,
        typer.Argument(help="Tables; default: all, and the ledger of the whole pipeline."),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Check the laws on the lake itself: keys, tombstones, receipts, and the log replayed.

    Without a table also that nothing was lost: every record that the stream still retains, every
    part of it, and every line of the logs is held against the receipts.
    """
    from lake.verify import verify_table

    contracts = [contract_named(name) for name in table] if table else list(TABLES)
    # What is in flight is in the log and not yet in a table: no verdict on a moving lake.
    cloud_of(context, home).be_at_rest()
    with way_back(context, home, writes=False) as way:
        lake = way.again.lake
        checks = [
            check for contract in contracts for check in verify_table(lake, contract, progress=say)
        ]
        checks += [] if table else _ledger(way)
    _tell(checks, as_json=as_json)
    if not all(check.holds for check in checks):
        raise Failed("the lake breaks a law; `freshet why TABLE KEY` tells a key's story")


def _ledger(way: WayBack) -> list[Check]:
    from lake.conservation import verify_ledger

    return verify_ledger(
        way.again.lake,
        decode=way.again.decode,
        records=way.retained,
        failures=_failed(way),
        progress=say,
    )


def _failed(way: WayBack) -> Iterator[FailedBatch]:
    """What the mapping gave up on: still waiting, or given up for good."""
    from lake.conservation import FailedBatch

    for discarded in (False, True):
        for one in way.failures.discarded() if discarded else way.failures.pending():
            span = (one.shard_id, one.first_sequence_number, one.last_sequence_number)
            yield FailedBatch(one.key, *span, one.records, discarded)


def _tell(checks: Sequence[Check], *, as_json: bool) -> None:
    if as_json:
        print_json([_as_json(check) for check in checks])
        return
    rows = [(c.table, c.law, c.checked, "holds" if c.holds else "BROKEN") for c in checks]
    print_rows(("table", "law", "checked", "verdict"), rows, Format.TABLE)
    for check in checks:
        for told in (*check.findings, *check.notes):
            say(f"{check.table}: {told}")


def _as_json(check: Check) -> dict[str, Any]:
    return {
        "table": check.table,
        "law": check.law,
        "checked": check.checked,
        "holds": check.holds,
        "findings": list(check.findings),
        "notes": list(check.notes),
    }
