"""`freshet quarantine …`: what was refused or given up, why, and its way back into the tables."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

import typer

from freshet.event import key_text
from freshet.tables import TABLES
from local.options import DEFAULT_HOME, Failed, HomeOption, JsonOption
from local.output import Format, plain, print_json, print_line, print_rows, say
from local.way_back import WayBack, way_back

if TYPE_CHECKING:
    from lake.replay import Kept, Replayed, Wanted

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="List, look at, replay and discard what was refused or given up.",
    short_help="Deal with what was refused.",
    epilog="Example: freshet quarantine list",
)
# Of a line's bytes, what fits a terminal; --json has all.
_SHOWN_CHARACTERS = 2_000
_LINES_SHOWN = 20

ReasonOption = Annotated[
    str | None, typer.Option(help="Refused for this reason; batch_failed: given up in delivery.")
]
TableOption = Annotated[
    str | None, typer.Option(help="Of this table; unknown: of lines that name none.")
]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="Arrived at or after (UTC).")
]
ToOption = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Arrived before (UTC).")]
DecoderOption = Annotated[
    str | None, typer.Option(help="Read by this decoder: native, debezium or dms.")
]
ShardOption = Annotated[str | None, typer.Option(help="Of this shard.")]
AllOption = Annotated[bool, typer.Option("--all", help="Also what is replayed or discarded.")]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what there is to do, and do nothing.")
]


def instant(text: str | None) -> datetime | None:
    """A time of the command line; without a zone it is UTC."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r}: write a time as 2026-11-21T08:30:00Z") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _wanted(
    reason: str | None,
    table: str | None,
    ends: tuple[str | None, str | None],
    decoder: str | None,
    shard: str | None,
) -> Wanted:
    from lake.log import UNKNOWN_TABLE
    from lake.replay import Wanted

    if table is not None and table not in (*TABLES.names, UNKNOWN_TABLE):
        names = ", ".join((*TABLES.names, UNKNOWN_TABLE))
        raise typer.BadParameter(f"{table!r} is not a table; tables: {names}")
    since, until = (instant(end) for end in ends)
    return Wanted(reason, table, since, until, decoder, shard)


@app.command("list", epilog="Example: freshet quarantine list", short_help="List what was refused.")
def list_lines(
    context: typer.Context,
    *,
    reason: ReasonOption = None,
    table: TableOption = None,
    since: FromOption = None,
    until: ToOption = None,
    decoder: DecoderOption = None,
    shard: ShardOption = None,
    everything: AllOption = False,
    lines: Annotated[bool, typer.Option("--lines", help="One line each, not groups.")] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List what was refused and is still open, by reason and table.

    Batches that delivery gave up on are listed as `batch_failed`, with the condition.
    """
    from lake.replay import quarantined

    wanted = _wanted(reason, table, (since, until), decoder, shard)
    shown = Format.JSON if as_json else Format.TABLE
    with way_back(context, home, writes=False) as way:
        kept = quarantined(way.again.lake, wanted, resolved=everything)
        failures = way.failures.pending(wanted)
        if lines:
            rows = [*(_line_row(one) for one in kept), *(_failure_row(one) for one in failures)]
            print_rows(_LINE_COLUMNS, rows, shown)
        else:
            print_rows(_GROUP_COLUMNS, _groups(kept, failures), shown)
    for error in way.failures.unreadable:
        raise error


_GROUP_COLUMNS = ("reason", "table", "state", "lines", "oldest", "newest")
_LINE_COLUMNS = ("place", "reason", "table", "field", "decoder", "arrived_at", "state", "detail")


def _groups(kept: Iterable[Kept], failures: Iterable[Any]) -> list[tuple[Any, ...]]:
    from local.failures import BATCH_FAILED

    groups: dict[tuple[str, str, str], list[Any]] = {}

    def add(group: tuple[str, str, str], lines: int, oldest: datetime, newest: datetime) -> None:
        before = groups.setdefault(group, [0, oldest, newest])
        before[0] += lines
        before[1], before[2] = min(before[1], oldest), max(before[2], newest)

    for one in kept:
        at = one.line.place.arrived_at
        add((one.line.reason, one.line.table or "unknown", _state(one)), 1, at, at)
    for failure in failures:
        name = f"{BATCH_FAILED}: {failure.condition}"
        add((name, "unknown", "open"), failure.records, failure.first_arrival, failure.last_arrival)
    return [(*group, *counts) for group, counts in sorted(groups.items())]


def _state(kept: Kept) -> str:
    return "open" if kept.resolved is None else kept.resolved.resolution


def _line_row(kept: Kept) -> tuple[Any, ...]:
    from lake.replay import place_text

    line = kept.line
    return (
        place_text(line.place),
        line.reason,
        line.table or "unknown",
        line.field,
        line.decoder,
        line.place.arrived_at,
        _state(kept),
        line.detail,
    )


def _failure_row(failure: Any) -> tuple[Any, ...]:
    from local.failures import BATCH_FAILED

    detail = (
        f"{failure.condition} after {failure.attempts} attempts: {failure.records} records of "
        f"{failure.shard_id}, {failure.first_sequence_number} to {failure.last_sequence_number}"
    )
    place, at = failure.key, failure.first_arrival
    return (place, BATCH_FAILED, "unknown", None, None, at, "open", detail)


@app.command(
    epilog="Example: freshet quarantine show --reason unknown_column",
    short_help="Show refused lines whole.",
)
def show(
    context: typer.Context,
    *,
    place: Annotated[
        str | None, typer.Argument(help="A line's place, as `list --lines` names it.")
    ] = None,
    reason: ReasonOption = None,
    table: TableOption = None,
    since: FromOption = None,
    until: ToOption = None,
    decoder: DecoderOption = None,
    shard: ShardOption = None,
    everything: AllOption = False,
    limit: Annotated[int, typer.Option(help="Lines to show.", min=1)] = _LINES_SHOWN,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show refused lines whole: original bytes, why, and what the contracts say of them now.

    The bytes may hold personal data: they are what was sent.
    """
    from dataclasses import replace

    from lake.replay import quarantined

    wanted = replace(_wanted(reason, table, (since, until), decoder, shard), place=place)
    with way_back(context, home, writes=False) as way:
        kept = quarantined(way.again.lake, wanted, resolved=everything)
        found = [_shown(way, one) for one in islice(kept, limit)]
    if as_json:
        print_json(found)
    for one in found if not as_json else ():
        _tell_line(one)
    if not found:
        raise Failed("no line of the quarantine is meant by that; --all shows resolved ones, too")


def _shown(way: WayBack, kept: Kept) -> dict[str, Any]:
    columns = dict(zip(_LINE_COLUMNS, _line_row(kept), strict=True))
    resolved = kept.resolved
    return {
        **{name: plain(value) for name, value in columns.items()},
        "contract_version": kept.contract_version,
        "resolved": None
        if resolved is None
        else {"why": resolved.reason, "at": plain(resolved.at), "by": resolved.by},
        "now": _now(way, kept),
        "data": _safe(kept.line.data),
        "data_base64": base64.b64encode(kept.line.data).decode("ascii"),
    }


def _now(way: WayBack, kept: Kept) -> str:
    """What today's contracts say of the line."""
    from lake.replay import decoded

    parts = decoded(way.again, kept.line)
    says = [f"still refused: {error}" for error in parts.rejected]
    for item in parts.events[:_LINES_SHOWN]:
        event = item.event
        key = key_text(TABLES[event.table], event.key)
        says.append(f"would land: {event.op.value} of {event.table} {key}, version {event.version}")
    says += [f"would land: truncation of {end.table}" for end in parts.truncations]
    says += [f"is no change: {kind}" for kind in parts.ignored]
    return "; ".join(says)


def _safe(data: bytes) -> str:
    """Bytes as text that a terminal takes for nothing else."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(
        one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode()
        for one in text
    )


def _tell_line(shown: dict[str, Any]) -> None:
    for name in ("place", "reason", "field", "detail", "table", "decoder", "contract_version"):
        if shown[name] is not None:
            print_line(f"{name}: {shown[name]}")
    print_line(f"arrived: {shown['arrived_at']}")
    resolved = shown["resolved"]
    told = "open" if resolved is None else f"{shown['state']} {resolved['at']} by {resolved['by']}"
    print_line(f"state: {told}{'' if resolved is None else ': ' + resolved['why']}")
    print_line(f"now: {shown['now']}")
    data = shown["data"]
    more = len(data) - _SHOWN_CHARACTERS
    print_line(data[:_SHOWN_CHARACTERS])
    if more > 0:
        say(f"and {more:,} characters more; --json has them all")
    print_line()


@app.command(
    epilog="Example: freshet quarantine replay --reason unknown_column --table products",
    short_help="Bring back what is good by now.",
)
def replay(
    context: typer.Context,
    *,
    place: Annotated[
        str | None, typer.Argument(help="A line's place, as `list --lines` names it.")
    ] = None,
    reason: ReasonOption = None,
    table: TableOption = None,
    since: FromOption = None,
    until: ToOption = None,
    decoder: DecoderOption = None,
    shard: ShardOption = None,
    dry_run: DryRunOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Decode the original bytes again with today's contracts, and land what is good by now.

    Lines keep their places in the stream: the tables end as if nothing had been refused. Batches
    that delivery gave up on are landed first. What is still bad stays open. Safe to repeat, and
    beside a running pipeline.
    """
    from dataclasses import replace

    from lake.replay import replay_quarantine
    from local.failures import replay_failures

    wanted = replace(_wanted(reason, table, (since, until), decoder, shard), place=place)
    with way_back(context, home, writes=not dry_run) as way:
        failed = replay_failures(
            way.again, way.failures, way.source, wanted, dry_run=dry_run, progress=say
        )
        lines = replay_quarantine(way.again, wanted, dry_run=dry_run, progress=say)
    tell_replayed([("failed batches", failed), ("refused lines", lines)], as_json=as_json)
    for why, count in lines.reasons.most_common():
        say(f"{count:,} lines are still refused: {why}")
    if dry_run:
        say("nothing was written")
    for error in failed.errors:
        raise error


def tell_replayed(parts: list[tuple[str, Replayed]], *, as_json: bool) -> None:
    """Print what a replay came to."""
    columns = ("what", "lines", "landed", "ignored", "still_bad", "changed")
    rows = [
        (what, done.lines, done.landed, done.ignored, done.still_bad, done.changed)
        for what, done in parts
    ]
    if as_json:
        receipts = {
            what: {table or "quarantine": one.to_dict() for table, one in done.receipts.items()}
            for what, done in parts
        }
        print_json(
            [dict(zip(columns, row, strict=True)) | {"receipts": receipts[row[0]]} for row in rows]
        )
        return
    print_rows(columns, rows, Format.TABLE)
    for _, done in parts:
        for table, one in sorted(done.receipts.items()):
            counts = ", ".join(
                f"{count:,} {name}" for name, count in one.to_dict().items() if count
            )
            say(f"{table or 'quarantine'}: {counts}")


@app.command(
    epilog='Example: freshet quarantine discard --reason malformed_json --because "a load test"',
    short_help="Give up refused lines for good.",
)
def discard(
    context: typer.Context,
    *,
    place: Annotated[
        str | None, typer.Argument(help="A line's place, as `list --lines` names it.")
    ] = None,
    because: Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with each line.")],
    reason: ReasonOption = None,
    table: TableOption = None,
    since: FromOption = None,
    until: ToOption = None,
    decoder: DecoderOption = None,
    shard: ShardOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Discard all of it, unnarrowed.")] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Mark refused lines as discarded, with who and why. Nothing is deleted.

    Needs --reason, --table or a place, or --yes. Batches that delivery gave up on move aside only
    when --reason batch_failed names them.
    """
    from dataclasses import replace

    from lake.replay import discard as discarded
    from local.failures import BATCH_FAILED, discard_failures

    wanted = replace(_wanted(reason, table, (since, until), decoder, shard), place=place)
    if reason is None and table is None and place is None and not yes:
        raise typer.BadParameter("name --reason, --table or a place, or say --yes to discard all")
    if not because.strip():
        raise typer.BadParameter("--because must say why")
    with way_back(context, home) as way:
        records = discard_failures(way.failures, wanted) if reason == BATCH_FAILED else 0
        lines = discarded(way.again, wanted, because.strip(), progress=say)
    rows = [(lines, records)]
    print_rows(("lines", "failed_records"), rows, Format.JSON if as_json else Format.TABLE)
