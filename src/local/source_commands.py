"""`freshet source …`: what is declared, whether it works, and a first declaration of a new API."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from local.embedded import LocalRuntimeError
from local.options import DEFAULT_HOME, Failed, HomeOption, JsonOption, cloud_of
from local.output import Format, print_json, print_line, print_rows, say
from local.runtime import SOURCES, SOURCES_FOLDER

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="List, try out and discover the APIs that are polled.",
    short_help="List, try out and discover sources.",
    epilog="Example: freshet source list",
)
NameArgument = Annotated[str, typer.Argument(help="A source: the stem of its file.")]


@app.command("list", epilog="Example: freshet source list", short_help="List the sources.")
def list_sources(
    context: typer.Context, *, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """List the sources: table, mode, log-in, schedule, and where each one stands.

    `rows` is how many rows are remembered, `changed` when a change was published last.
    """
    from api_poller.declaration import load_sources
    from local.sources import LISTED, listed

    declared = load_sources(SOURCES_FOLDER)
    place = cloud_of(context, home)
    try:
        with place.states() as states:
            rows = list(listed(declared, states))
    except LocalRuntimeError:  # nothing has run here yet, so there is nothing to remember
        rows = list(listed(declared, None))
    print_rows(LISTED, rows, Format.JSON if as_json else Format.TABLE)


@app.command(epilog="Example: freshet source check ecb", short_help="Try a source out.")
def check(
    context: typer.Context,
    *,
    name: NameArgument,
    url: Annotated[
        str | None, typer.Option(help="Where the source is, if not at its usual place.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Try a source out: log-in, one page, mapping, permissions. Publishes and writes nothing.

    Exits with 1 where a step fails, and says how to mend it. Three rows are shown, without columns
    that are personal by name.
    """
    from api_poller.app import compose_here
    from local.runtime import beside
    from local.sources import check as tried

    _known(name)
    folder = cloud_of(context, home).home("source check")
    with beside(folder, {f"{name.upper()}_URL": url} if url else {}):
        composition = compose_here()
        found = tried(composition, name, lambda: _stream_reached(composition.settings.stream_name))
    if as_json:
        print_json(found.to_json())
    else:
        _tell_check(found)
    if not found.holds:
        raise Failed(f"source {name} does not work yet; the lines above say why")


def _tell_check(found: Any) -> None:
    steps = [(step.name, step.verdict.value, step.detail) for step in found.steps]
    print_rows(("step", "verdict", "what"), steps, Format.TABLE)
    if found.rows:
        print_line()
        print_rows(found.columns, found.rows, Format.TABLE)
    if found.rows and found.hidden:
        say(f"not shown, personal by name: {', '.join(found.hidden)}")


def _stream_reached(name: str) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    from freshet.errors import StreamUnavailableError
    from freshet.kinesis import CLIENT_CONFIG

    client = boto3.client("kinesis", config=CLIENT_CONFIG)
    try:
        summary = client.describe_stream_summary(StreamName=name)
    except (BotoCoreError, ClientError) as error:
        raise StreamUnavailableError(name, " ".join(str(error).split())) from error
    return f"{name} has {summary['StreamDescriptionSummary']['OpenShardCount']} shards"


@app.command(
    epilog="Example: freshet source discover https://dummyjson.com/products",
    short_help="Propose a declaration for an API.",
)
def discover(
    *,
    url: Annotated[str, typer.Argument(help="Address that lists records, parameters included.")],
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Header to ask with; may be repeated."),
    ] = None,
    save: Annotated[
        str | None, typer.Option(metavar="NAME", help="Write it into the folder of sources.")
    ] = None,
    table: Annotated[str | None, typer.Option(help="Table that the rows belong to.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Propose a declaration from sample answers: records, key, types, pagination, limits.

    Asks a handful of questions of that host and no other. What looks like a credential is not
    repeated: the declaration names where to put it.
    """
    from local.discover import discover as asked
    from local.discover import login_of

    if save is not None and not re.fullmatch(r"[a-z][a-z0-9_]{0,62}", save):
        raise typer.BadParameter(f"{save!r}: a name is small letters, digits and _")
    try:
        address, login = login_of(url, header or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    proposal = asked(address, login, name=save, table=table, progress=say)
    if as_json:
        print_json(
            {
                "name": proposal.name,
                "table": proposal.table,
                "declaration": proposal.yaml,
                "contract": proposal.contract,
                "doubts": list(proposal.doubts),
            }
        )
    else:
        print_line(proposal.yaml.rstrip("\n"))
        _tell_proposal(proposal)
    if save is not None:
        _save(save, proposal)


def _tell_proposal(proposal: Any) -> None:
    for doubt in proposal.doubts:
        say(f"look at this: {doubt}")
    if proposal.contract is not None:
        say(f"no table fits; add this to src/freshet/tables.py, and to TABLES ({proposal.table}):")
        say("")
        say(proposal.contract)


def _save(name: str, proposal: Any) -> None:
    from local.sources import save as written

    loads = proposal.contract is None
    path = written(SOURCES_FOLDER, name, proposal.yaml, loads=loads)
    after = f"try it out: freshet source check {name}"
    if not loads:
        after = f"once table {proposal.table} is declared, rename it to {name}.yaml"
    say(f"written to {path}; {after}")


@app.command(
    epilog="Example: freshet source reset ecb --yes", short_help="Forget where a source stands."
)
def reset(
    context: typer.Context,
    *,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Forget what was told of a source, so that its next poll is a first poll.

    That poll publishes every row it finds. Rows that vanished since the last poll can no longer be
    missed: they stay in the table until `freshet reconcile`.
    """
    _known(name)
    with cloud_of(context, home).states() as states:
        state, etag = _remembered(states, name)
        if etag is None and state is not None:
            say(f"nothing is remembered of {name}")
            return
        rows = "what cannot be read" if state is None else f"{len(state.snapshot):,} rows"
        say(
            f"{name}: forgets {rows}. The next poll publishes every row it finds; rows that "
            "vanish until then stay in the table"
        )
        if not yes and not typer.confirm("Forget?", err=True):
            raise Failed("nothing was forgotten")
        states.reset(name)
    say(f"forgotten; now: freshet poll {name}")


def _remembered(states: Any, name: str) -> tuple[Any, str | None]:
    from api_poller.state import StateCorruptError

    try:
        found: tuple[Any, str | None] = states.load(name)
    except StateCorruptError as error:
        say(str(error))
        return None, None
    return found


def _known(name: str) -> None:
    if name not in SOURCES:
        raise typer.BadParameter(f"{name!r} is not a source; sources: {', '.join(SOURCES)}")
