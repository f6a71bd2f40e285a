"""`freshet erase`: everything that the lake holds of a person goes, and stays gone."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freshet.contract import Contract
from freshet.errors import RejectedError
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
    from lake.erase import Erased, Eraser
    from lake.subject import Request
    from local.way_back import WayBack

# What is left, and what a person has to do about it. No command can know when it is done.
REMAINS = (
    (
        "the stream holds its records until its retention ends: they bring no row back that was "
        "known, but one that is delivered again may be logged again; run this once more when "
        "retention is over"
    ),
    (
        "the poller's memory of a source holds the row until the source itself has dropped it: "
        "delete it there first, or its next poll brings it back as a new one"
    ),
    (
        "gold tables that Athena materialised hold it until `freshet gold apply` has renewed them "
        "and VACUUM has expired their snapshots"
    ),
    (
        "the bucket keeps earlier versions of objects for a week where versioning is on "
        "(--purge-versions deletes them now), Athena its results, the producer its answers"
    ),
    (
        "each key and its last version stay in a tombstone and one line of the change log, so that "
        "no late record brings the row back: declare a key that is personal as Pii('hash')"
    ),
)


def erase(
    context: typer.Context,
    *,
    table: Annotated[str, typer.Argument(help=f"Table name: {', '.join(TABLES.names)}.")],
    key: Annotated[
        list[str] | None,
        typer.Argument(help="Key texts; parts of a composite key joined by commas."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE",
            help="Every row that holds this value, raw or hashed; may be repeated: rows that any "
            "of them names.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to erase, and erase nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    purge_versions: Annotated[
        bool,
        typer.Option(
            "--purge-versions",
            help="Delete earlier versions of this table's objects too, whoever's they are.",
        ),
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Erase a person: rows, log lines, quarantined lines, failure objects and the table's history.

    Ends the table's history at once: no earlier snapshot is left to go back to, and a query that
    reads one at this moment fails and must be repeated. A row that only once held the value is
    somebody else's now and stays; what was before goes. Killed anywhere, run it again.

    A receipt tells how much went from where and not whose it was (`receipts`, kind erase).
    """
    contract, pairs = contract_named(table), [_pair(text) for text in where or ()]
    if not key and not pairs:
        raise typer.BadParameter("name a KEY, or rows by --where COLUMN=VALUE")
    asked = (key or [], pairs)
    with _opened(context, home, contract, asked, writes=not dry_run) as (back, eraser):
        found = eraser.look()
        if dry_run:
            _tell(found, as_json=as_json)
            return
        # Asked for once more, earlier versions can go although nothing else is left.
        if not (found.is_anything or eraser.is_begun or purge_versions):
            raise Failed(f"nothing is held of that in {table!r}: nothing was erased")
        if not yes:
            _require_consent(contract.table, found)
        # First: killed after the erasure, a second run finds nothing and would leave the views.
        _forget_gold(context, home, back)
        done = eraser.erase()
        purged = _purge(back, contract) if purge_versions else 0
    _tell(done, as_json=as_json)
    _tell_rest(done, purged)


def _require_consent(table: str, found: Erased) -> None:
    _tell_found(table, found)
    if not typer.confirm("Erase?", err=True):
        raise Failed("nothing was erased")


@contextmanager
def _opened(
    context: typer.Context,
    home: Path,
    contract: type[Contract],
    asked: tuple[list[str], list[tuple[str, str]]],
    *,
    writes: bool,
) -> Iterator[tuple[WayBack, Eraser]]:
    from lake.erase import Eraser
    from lake.subject import Request
    from local.way_back import way_back

    with way_back(context, home, writes=writes) as back:
        again = back.again
        request = _request(Request.of, contract, asked, again.protect)
        yield (
            back,
            Eraser(
                again.lake,
                request,
                decode=_protected(again.decode, again.protect),
                now=again.now,
                by=again.by,
                failures=back.failures.objects,
                digest=lambda data: _named(back, contract.table, data),
                progress=say,
            ),
        )


def _request(
    made: Callable[..., Request],
    contract: type[Contract],
    asked: tuple[list[str], list[tuple[str, str]]],
    protect: Any,
) -> Request:
    try:
        return made(contract, *asked, protect)
    except RejectedError as error:
        named = ": ".join(part for part in (error.field, error.detail) if part)
        raise typer.BadParameter(named) from None


def _named(back: WayBack, table: str, request: bytes) -> str:
    """What log and receipts call a request: a plain digest would tell whoever tries some names."""
    digest = back.blinded(table, hashlib.sha256(request).hexdigest())
    return digest.rpartition(":")[2]


def _protected(decode: Any, protect: Any) -> Any:
    """Decoding as the consumer does it: what is to be hashed is."""
    from dataclasses import replace

    from freshet.wire import Decoded

    def decoded(data: bytes, arrived_at: Any) -> Iterator[Any]:
        for part in decode(data, arrived_at):
            is_event = isinstance(part, Decoded)
            yield replace(part, event=protect(part.event)) if is_event else part

    return decoded


def _pair(text: str) -> tuple[str, str]:
    column, _, value = text.partition("=")
    if not column or not value:
        raise typer.BadParameter(f"{text!r}: write COLUMN=VALUE")
    return column, value


def _tell_found(table: str, found: Erased) -> None:
    say(
        f"{table}: {found.keys:,} keys with {found.rows:,} rows, {found.lines:,} lines of logs, "
        f"quarantine and failure objects; {found.redacted:,} lines of others' rows lose a value; "
        f"ends {found.snapshots:,} snapshots and deletes {found.files:,} data files for ever"
    )


def _tell(erased: Erased, *, as_json: bool) -> None:
    counts = erased.to_json()
    if as_json:
        print_json(counts)
    else:
        print_rows(("place", "count"), list(counts.items()), Format.TABLE)


def _tell_rest(done: Erased, purged: int) -> None:
    if not done.is_anything:
        say("nothing of it was found; history is ended all the same")
    if purged:
        say(f"{purged:,} earlier versions of objects are deleted")
    say("What remains:")
    for line in REMAINS:
        say(f"- {line}")


def _forget_gold(context: typer.Context, home: Path, back: WayBack) -> None:
    """Delete what gold views were materialised as here: they hold what the log held then."""
    from local.clouds import Laptop
    from local.gold_files import forget

    if isinstance(cloud_of(context, home), Laptop) and forget(back.again.lake.objects):
        say("gold views answer from the log again; `freshet gold apply` materialises them anew")


def _purge(back: WayBack, contract: type[Contract]) -> int:
    """Delete earlier versions of what an erasure of this table may have touched; how many."""
    from lake.erase import FAILURE_PREFIXES, NOTES
    from lake.log import CHANGE_LOG, QUARANTINE, UNKNOWN_TABLE

    lake = back.again.lake
    rows = lake.current(contract.table).rows.view().table.location()
    place = lake.files.key(rows)
    logs = [f"{log}/table_name={contract.table}/" for log in (CHANGE_LOG, QUARANTINE)]
    own = [f"{place}/", f"{place}_tombstones/", f"{NOTES}/{contract.table}-", *logs]
    say(f"{contract.table}: deleting earlier versions of objects")
    stores: list[tuple[Any, list[str]]] = [  # S3, wherever this runs
        (lake.objects.store, [*own, f"{QUARANTINE}/table_name={UNKNOWN_TABLE}/"]),
        (back.failures.objects, [*FAILURE_PREFIXES]),
    ]
    return sum(store.forget_versions(prefix) for store, ones in stores for prefix in ones)
