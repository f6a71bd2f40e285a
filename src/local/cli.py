"""The `freshet` command: the pipeline on a laptop, or the one that is deployed, from a terminal.

Results go to stdout, talk to stderr. Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted.
Every command is safe to repeat; what `send` repeats is the same change only if it carries its own
version.
"""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from freshet.contract import Contract
from freshet.errors import FreshetError, RejectedError
from freshet.event import key_text, parse_key_text
from freshet.tables import TABLES
from local import (
    contract_commands,
    docs_commands,
    erase_commands,
    gold_commands,
    maintain_commands,
    quarantine_commands,
    query_commands,
    redshift_commands,
    replay_commands,
    source_commands,
    time_commands,
    verify_commands,
)
from local.clouds import Where
from local.options import DEFAULT_HOME, Failed, HomeOption, JsonOption, contract_named
from local.options import cloud_of as _cloud
from local.output import Format, plain, print_json, print_rows, say, talk
from local.runtime import SOURCES, Pipeline, open_lake_here

REFUSALS_SHOWN = 20
# Into a file or pipe, progress is told every so many pages: some ten thousand rows.
PAGES_TOLD = 25
DIFFERENCES_SHOWN = 20
# How often `up` looks whether all is well.
WATCH_S = 1.0
INTERRUPTED = 130  # what a shell makes of SIGINT

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog="Begin with: freshet demo",
)

app.add_typer(source_commands.app, name="source")
app.add_typer(quarantine_commands.app, name="quarantine")
app.add_typer(gold_commands.app, name="gold")
app.add_typer(replay_commands.app)
app.add_typer(time_commands.app)
app.add_typer(contract_commands.app, name="contracts")
app.add_typer(docs_commands.app, name="docs")
app.add_typer(redshift_commands.app, name="redshift")
TABLE_NAMES = ", ".join(TABLES.names)


@app.callback()
def where(
    context: typer.Context,
    *,
    aws: Annotated[
        Where,
        typer.Option(
            envvar="FRESHET_AWS",
            help="Where AWS is: on this machine, in LocalStack (`make local-aws`), or a deployed "
            "stack in the account that the environment points to.",
        ),
    ] = Where.EMBEDDED,
    stack: Annotated[
        str, typer.Option(envvar="FRESHET_STACK", help="With --aws account: the stack's name.")
    ] = "freshet",
) -> None:
    """Keep lake tables fresh from a stream of changes, on a laptop or deployed."""
    context.obj = (aws, stack)


@app.command(epilog="Example: freshet demo", short_help="Run a real month; compare with pandas.")
def demo(
    context: typer.Context,
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            help="An Online Retail parquet file; default: the shipped month.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Run a real month of sales, returns and price changes, and compare it with pandas."""
    from local.demo import run
    from local.report import print_report, to_json

    landed, comparisons, shown = run(_cloud(context, home).demo_home(), data)
    if as_json:
        print_json(to_json(landed, comparisons, shown))
    else:
        print_report(landed, comparisons, shown)
    if any(comparison.differences for comparison in comparisons):
        raise Failed("the lake differs from the independent answer")
    aws = context.obj[0]
    _say_next(
        "" if aws is Where.EMBEDDED else f" --aws {aws}",
        "" if home == DEFAULT_HOME else f" --home {home}",
    )


def _say_next(aws: str, home: str) -> None:
    is_here = Path(sys.argv[0]).is_file() and not shutil.which("freshet")
    freshet = (os.path.relpath(sys.argv[0]) if is_here else "freshet") + aws
    say("Next, look around in what the demo left behind:")
    say(f'  {freshet} query "FROM sales WHERE returned_quantity > 0 LIMIT 5"{home}')
    say(f"  {freshet} why sales 536374-1{home}")
    say(f"  {freshet} verify{home}")


@app.command(
    epilog="Example: freshet up --port 8080 --poll ecb=3600",
    short_help="Run the pipeline until Ctrl-C.",
)
def up(
    context: typer.Context,
    *,
    port: Annotated[
        int, typer.Option(help="Port of the HTTP gateway; 0 takes a free one.", min=0, max=65535)
    ] = 8080,
    poll: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=SECONDS", help="Poll a source at this rate; may be repeated."),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(metavar="SOURCE=URL", help="Where a source is, if not at its usual place."),
    ] = None,
    gold: Annotated[
        int,
        typer.Option(
            metavar="HOURS", help="Renew the heavy gold views this often; 0 never.", min=0, max=8760
        ),
    ] = 24,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run the pipeline until Ctrl-C: HTTP in, tables out."""
    rates = dict(_rate(text) for text in poll or [])
    sources = dict(_place(text) for text in url or [])
    stop = _stopped()
    folder = _cloud(context, home).home("up")
    with Pipeline(
        folder, port=port, sources=sources, rates_s=rates, on_firing=_tell_firing
    ) as pipeline:
        places = [
            ("gateway", pipeline.gateway.url),
            ("API", f"{pipeline.gateway.url}/openapi.json"),
            ("AWS endpoint", pipeline.aws.endpoint_url),
            ("state", str(folder.folder)),
        ]
        print_rows(("what", "where"), places, Format.TABLE)
        sys.stdout.flush()
        say("running; stop with Ctrl-C")
        every = timedelta(hours=gold)
        with gold_commands.renewing(open_lake_here, every) if gold else nullcontext():
            _watch(pipeline, stop)
            say("stopping")


def _watch(pipeline: Pipeline, stop: threading.Event) -> None:
    """Wait for the end; tell what goes wrong, and when it is over."""
    told: str | None = None
    while not stop.wait(WATCH_S):
        trouble = pipeline.watch()
        if trouble != told:
            say(trouble or "the consumer gets on again", style="red" if trouble else None)
            told = trouble


def _rate(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    if name not in SOURCES or not seconds.isdecimal() or int(seconds) == 0:
        raise typer.BadParameter(
            f"{text!r}: write SOURCE=SECONDS with a source of {', '.join(SOURCES)}"
        )
    return name, float(seconds)


def _place(text: str) -> tuple[str, str]:
    name, _, url = text.partition("=")
    if name not in SOURCES or not url:
        raise typer.BadParameter(
            f"{text!r}: write SOURCE=URL with a source of {', '.join(SOURCES)}"
        )
    return f"{name.upper()}_URL", url


def _tell_firing(firing: Any) -> None:
    if firing.error is None:
        say(f"polled {firing.schedule}: {firing.response['published']} changes")
    else:
        say(f"poll of {firing.schedule} failed: {firing.error}", style="red")


@app.command(
    epilog="Example: freshet local-deploy --port 0",
    short_help="Deploy the template to this machine until Ctrl-C.",
)
def local_deploy(
    *,
    port: Annotated[
        int, typer.Option(help="Port of embedded AWS; 0 takes a free one.", min=0, max=65535)
    ] = 4566,
    stack: Annotated[str, typer.Option(help="Name of the stack.")] = "freshet-local",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Build the template, deploy it to AWS embedded in this process, and keep it until Ctrl-C.

    The SAM CLI does both, as for an account; functions run as local processes. The stack's data
    is in memory and ends with it.
    """
    from local.stack import StackAws, deploy_here

    with StackAws(home / "stack" / "aws", port) as aws:
        deployed = deploy_here(home / "stack", aws, stack, say)
        say(f"deployed {deployed.resources} resources")
        print_rows(("output", "value"), sorted(deployed.outputs.items()), Format.TABLE)
        sys.stdout.flush()
        for line in deployed.commands(aws.endpoint_url):
            say(line)
        stop = _stopped()
        say("running; stop with Ctrl-C")
        while not stop.wait(WATCH_S):
            aws.refuse_death()
        say("stopping")


def _stopped() -> threading.Event:
    """An event that Ctrl-C and SIGTERM set from now on."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


@app.command(
    epilog="Example: freshet send events.ndjson --table sales",
    short_help="Post change events over HTTP.",
)
def send(
    context: typer.Context,
    *,
    file: Annotated[
        str,
        typer.Argument(
            help="Change events as JSON lines or one JSON array; `-` is standard input."
        ),
    ],
    table: Annotated[str, typer.Option(help=f"Table the events are for: {TABLE_NAMES}.")],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Post change events through the HTTP producer, in batches, and say what became of each.

    Beside a running `freshet up` it returns when the stream has accepted them; alone it starts the
    pipeline and returns when they are queryable.
    """
    from local.sending import Sent, batches, event_lines

    contract_named(table)  # a typo should not start a pipeline
    total, index = Sent(), 0
    with _content(file) as content, _cloud(context, home).sender() as sender:
        for batch in batches(event_lines(content)):
            total.add(sender.send(table, batch, first_index=index))
            index += len(batch)
            if talk.is_terminal:
                talk.print(f"sent {index:,} events", end="\r")
    _tell_sent(total, as_json=as_json)
    if total.rejected:
        raise Failed(f"{total.rejected} of {index} events were refused")


def _tell_sent(total: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {"accepted": total.accepted, "rejected": total.rejected, "refused": total.refused}
        )
        return
    print_rows(("accepted", "rejected"), [(total.accepted, total.rejected)], Format.TABLE)
    for refusal in total.refused[:REFUSALS_SHOWN]:
        parts = (refusal.get("field"), refusal.get("reason"), refusal.get("detail"))
        say(": ".join((f"event {refusal['index']}", *(part for part in parts if part))))
    if total.rejected > REFUSALS_SHOWN:
        say(f"and {total.rejected - REFUSALS_SHOWN:,} more; --json names them all")


@contextmanager
def _content(file: str) -> Iterator[Iterator[bytes]]:
    if file == "-":
        yield iter(sys.stdin.buffer)
        return
    try:
        opened = Path(file).open("rb")  # noqa: SIM115 - closed below; only opening may be misuse
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file!r} ({error.strerror})") from None
    with opened:
        yield iter(opened)


@app.command("poll", epilog="Example: freshet poll ecb", short_help="Poll a source once.")
def poll_source(
    context: typer.Context,
    *,
    source: Annotated[str, typer.Argument(help=f"One of: {', '.join(SOURCES)}.")],
    full: Annotated[
        bool, typer.Option("--full", help="Read from the beginning, whatever is remembered.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be published, and publish nothing.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(metavar="VALUE", help="Of an incremental source: read from this on."),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Where the source is, if not at its usual place.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Poll a source once: what changed since the last poll goes into the stream.

    A listing too long for one poll is put down and taken up by the next: repeat until it is done.
    """
    if source not in SOURCES:
        raise typer.BadParameter(f"{source!r} is not a source; sources: {', '.join(SOURCES)}")
    places = dict([_place(f"{source}={url}")]) if url else {}
    event = {"source": source, "full": full, "dry_run": dry_run, "since": since}
    asked = {name: value for name, value in event.items() if value}
    report = _cloud(context, home).poll(asked, places, _tell_progress)
    if as_json:
        print_json(report)
        return
    shown = ("listed", "created", "updated", "deleted", "unchanged", "skipped", "guarded")
    print_rows(("source", *shown), [(source, *(report[name] for name in shown))], Format.TABLE)
    for problem in report["problems"]:
        say(problem)
    if report["dry_run"]:
        say("nothing was published or remembered: these are the changes a poll would find")
    elif report["unfinished"]:
        say(f"not finished: time or requests ran out; go on with: freshet poll {source}")


def _tell_progress(pages: int, rows: int, changes: int) -> None:
    if talk.is_terminal:
        talk.print(f"{pages:,} pages, {rows:,} rows, {changes:,} changes", end="\r")
    elif pages % PAGES_TOLD == 0:
        say(f"{pages:,} pages, {rows:,} rows, {changes:,} changes")


@app.command(
    epilog="Example: freshet reconcile ecb",
    short_help="Compare the lake with all that a source lists.",
)
def reconcile(
    context: typer.Context,
    *,
    source: Annotated[str, typer.Argument(help=f"One of: {', '.join(SOURCES)}.")],
    heal: Annotated[
        bool, typer.Option("--heal", help="Send corrections through the stream.")
    ] = False,
    url: Annotated[
        str | None, typer.Option(help="Where the source is, if not at its usual place.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare the lake with a fresh listing of a source: missing, extra and different rows.

    Exits with 1 if they differ. With --heal it sends what makes them equal, and waits until that is
    queryable; it refuses to delete more than the source's `delete_share_max` at once.
    """
    if source not in SOURCES:
        raise typer.BadParameter(f"{source!r} is not a source; sources: {', '.join(SOURCES)}")
    from local.reconcile import reconcile as compared

    places = dict([_place(f"{source}={url}")]) if url else {}
    found = compared(_cloud(context, home).home("reconcile"), source, places, heal=heal)
    if as_json:
        print_json(found.to_json())
    else:
        _tell_reconciled(found)
    if found.differs:
        again = " even after healing" if heal else "; --heal mends that"
        raise Failed(f"{found.left:,} rows of {found.table} are not as {source} lists{again}")


def _tell_reconciled(found: Any) -> None:
    from local.reconcile import changed

    shown, partitions = ("partition", "missing", "extra", "different"), found.partitions()
    in_all = [sum(counts[at] for counts in partitions) for at in (1, 2, 3)]
    print_rows(shown, [*partitions, ("all", *in_all)], Format.TABLE)
    for row in found.rows[:DIFFERENCES_SHOWN]:
        values = [
            f"{name} is {plain(lake)}, not {plain(told)}" for name, lake, told in changed(row)
        ]
        say(": ".join(filter(None, (f"{row.key} is {row.kind}", "; ".join(values)))))
    if len(found.rows) > DIFFERENCES_SHOWN:
        say(f"and {len(found.rows) - DIFFERENCES_SHOWN:,} more; --json names them all")
    if found.unreadable:
        say(f"{found.unreadable:,} listed rows do not fit the contract; they were not compared")
    if not found.absence_counts:
        say("the source is read by periods: rows that it does not show are not taken for gone")
    healed = f"; {found.healed:,} corrections are queryable" if found.healed else ""
    say(f"{found.listed:,} rows listed, {found.stored:,} in {found.table}{healed}")


app.command(
    epilog='Example: freshet query "SELECT count(*) AS sales FROM sales"',
    short_help="Ask the lake in SQL, as it is or was.",
)(query_commands.query)


@app.command(
    epilog="Example: freshet tables",
    short_help="List tables: keys, partitions, rows, files.",
)
def tables(
    context: typer.Context, *, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """List the tables: keys, partitions, rows, files and the last commit."""
    with _cloud(context, home).lake() as (lake, _):
        rows = [_table_row(lake, contract) for contract in TABLES]
    columns = ("table", "key", "partition", "rows", "files", "snapshot", "committed")
    print_rows(columns, rows, Format.JSON if as_json else Format.TABLE)


def _table_row(lake: Any, contract: type[Contract]) -> tuple[Any, ...]:
    view = lake.current(contract.table).rows.view()
    snapshot = view.table.current_snapshot()
    return (
        contract.table,
        ", ".join(contract.key),
        ", ".join(str(field) for field in contract.partition),
        sum(file.record_count for file in view.files),
        len(view.files),
        None if snapshot is None else str(snapshot.snapshot_id),
        None if snapshot is None else _utc(snapshot.timestamp_ms),
    )


def _utc(timestamp_ms: int) -> str:
    return datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@app.command(epilog="Example: freshet why sales 536365-1", short_help="Tell the story of one row.")
def why(
    context: typer.Context,
    *,
    table: Annotated[str, typer.Argument(help=f"Table name: {TABLE_NAMES}.")],
    key: Annotated[
        str, typer.Argument(help="Key text; parts of a composite key joined by commas.")
    ],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Tell the story of one row: every event of its key, which one won, and why.

    A key of several columns is written as in `freshet why exchange_rates USD,2010-12-01`.
    """
    from lake.history import why as story

    contract = contract_named(table)
    canonical = _key(contract, key)
    with _cloud(context, home).lake() as (lake, _):
        chapters = story(lake, table, canonical)
    if as_json:
        print_json(
            [{**_plain(c.event), "verdict": c.verdict, "because": c.because} for c in chapters]
        )
    elif chapters:
        _tell_story(chapters)
    if not chapters:
        raise Failed(f"no event of {table} {canonical} is in the change log")


def _tell_story(chapters: Sequence[Any]) -> None:
    told = ("op", "version", "source", "accepted_at", "after")
    rows = [(c.verdict, c.because, *(_told(c.event[name]) for name in told)) for c in chapters]
    print_rows(("verdict", "because", *told), rows, Format.TABLE)


def _told(value: Any) -> str:
    return "" if value is None else str(plain(value))


def _plain(event: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in event.items()}


app.command(
    epilog="Example: freshet verify sales", short_help="Check the laws on the lake itself."
)(verify_commands.verify)
app.command(
    epilog="Example: freshet erase sales 536365-1 --dry-run",
    short_help="Erase what is held of a person.",
)(erase_commands.erase)


app.command(
    epilog="Example: freshet maintain sales --dry-run",
    short_help="Keep tables small; free what nothing needs.",
)(maintain_commands.maintain)


def _key(contract: type[Contract], text: str) -> str:
    """A key written on the command line in its canonical form."""
    try:
        return key_text(contract, parse_key_text(contract, text))
    except RejectedError as error:
        raise typer.BadParameter(f"key {text!r}: {error.detail}") from None


def main() -> None:
    """Entry point: errors of ours become one line and an exit code."""
    _run(app)


def _run(command: Callable[..., Any]) -> None:
    try:
        command(standalone_mode=True)
    except Failed as failure:
        _fail(str(failure), 1)
    except FreshetError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        # The reader left (`| head`). What is still buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    say(f"Error: {message}", style="red")
    raise SystemExit(code)
