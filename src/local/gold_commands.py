"""`freshet gold …`: the gold views made where they are queried, listed, and kept portable."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from local.clouds import Laptop
from local.gold import load_views
from local.options import DEFAULT_HOME, Failed, HomeOption, JsonOption, cloud_of
from local.output import Format, print_rows, say

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make, list and check the gold views.",
    short_help="Make, list and check the gold views.",
    epilog="Example: freshet gold list",
)
LISTED = ("view", "heavy", "materialised", "columns", "description")
# A renewal of the years that a laptop holds takes seconds; one that hangs must not keep Ctrl-C.
STOP_DEADLINE_S = 30.0
OpenLake = Callable[[], AbstractContextManager[tuple[Any, Any]]]
Wait = Callable[[float], bool]
T = TypeVar("T")
APPLIED = ("view", "did", "parts_written", "parts_kept", "rows")


@app.command(epilog="Example: freshet gold apply", short_help="Make the views; renew heavy ones.")
def apply(
    context: typer.Context, *, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """Make the views, and renew what is materialised of the heavy ones.

    On this machine a light view needs nothing; a heavy one becomes Parquet beside the lake, by
    month, and only months that changed are written. With --aws account views and Iceberg tables are
    made in Athena. Safe to repeat and to interrupt: readers see the old or the new. What a heavy
    view and those over it tell stays as it was then, until this is run again.
    """
    place = cloud_of(context, home)
    rows = renewed(place.lake) if isinstance(place, Laptop) else _applied_in_athena(place)
    print_rows(APPLIED, rows, Format.JSON if as_json else Format.TABLE)


def renewed(open_lake: OpenLake) -> list[Sequence[Any]]:
    """Renew the files of every heavy view of a lake on this machine; a row of `APPLIED` for each
    view. Raises `ConflictError` when another process renewed one meanwhile, `StorageError`.
    """
    from freshet.clock import utc_now
    from local.gold_files import materialise
    from local.sql import connect

    rows = list[Sequence[Any]]()
    with ExitStack() as stack:
        lake, access = stack.enter_context(open_lake())
        connection = stack.enter_context(closing(connect(lake, access)))
        objects = _objects(access)
        for view in load_views():
            if view.heavy is None:
                rows.append((view.name, "view", None, None, None))
                continue
            done = materialise(connection, objects, view, root=access.root, now=utc_now())
            did = "renewed" if done.written else "unchanged"
            rows.append((view.name, did, done.written, done.kept, done.rows))
    return rows


def renewed_at(open_lake: OpenLake) -> datetime | None:
    """When the heavy view that was renewed longest ago was; None where none ever was."""
    from local.gold_files import materialised
    from local.sql import connect

    with open_lake() as (lake, access), closing(connect(lake, access)) as connection:
        held = materialised(connection, access.root)
    names = {view.name for view in load_views() if view.heavy}
    return min((one.at for name, one in held.items() if name in names), default=None)


@contextmanager
def renewing(open_lake: OpenLake, every: timedelta, wait: Wait | None = None) -> Iterator[None]:
    """Meanwhile, renew the heavy views each time that `every` has passed since the last renewal,
    or since now where there was none.

    What goes wrong is told and ends nothing. `wait(seconds)` waits at most that long and returns
    True when it is over. A renewal under way at the end is waited for, a bounded time; one that is
    cut short leaves the views as they were.
    """
    stop = threading.Event()
    waiting = wait or stop.wait
    thread = threading.Thread(
        target=_renew, args=(open_lake, every, waiting), name="gold", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(STOP_DEADLINE_S)


def _renew(open_lake: OpenLake, every: timedelta, wait: Wait) -> None:
    from freshet.clock import utc_now

    last = _told(lambda: renewed_at(open_lake)) or utc_now()
    while not wait(max(0.0, (last + every - utc_now()).total_seconds())):
        last = utc_now()
        rows = _told(lambda: renewed(open_lake)) or ()
        if names := [view for view, did, *_ in rows if did == "renewed"]:
            say(f"renewed gold views: {', '.join(names)}")


def _told(work: Callable[[], T]) -> T | None:
    """What the work returns; None where it fails, which is told."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - the pipeline goes on, whatever it is
        say(f"renewal of gold views failed: {error}", style="red")
        return None


def _applied_in_athena(place: Any) -> list[Sequence[Any]]:
    from local.account import Stack
    from local.gold_athena import WranglerAthena
    from local.gold_athena import apply as applied
    from local.gold_dialects import columns_of
    from local.runtime import LAKE_PREFIX
    from local.sql import empty_lake

    stack = Stack.read(place.session, place.stack)
    database, root = stack["DatabaseName"], f"s3://{stack['LakeBucketName']}/{LAKE_PREFIX}"
    athena = WranglerAthena(place.session, database, stack["WorkGroupName"])
    shapes = empty_lake()
    views = [(view, columns_of(shapes, view)) for view in load_views()]
    rows = list[Sequence[Any]]()
    for one in applied(athena, views, database=database, root=root):
        say(f"{one.view}: {one.did}")
        rows.append((one.view, one.did, one.days, None, None))
    return rows


def _objects(access: Any) -> Any:
    """The objects below the lake's root, for writing."""
    import boto3

    from freshet.s3 import S3Objects

    bucket, _, prefix = access.root.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=access.endpoint_url,
        region_name=access.region,
        aws_access_key_id=access.key_id,
        aws_secret_access_key=access.secret,
        aws_session_token=access.token,
    )
    return S3Objects(client, bucket, prefix)


@app.command("list", epilog="Example: freshet gold list", short_help="List the views.")
def list_views(
    context: typer.Context, *, home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False
) -> None:
    """List the views: what each is, its columns, and when a heavy one was materialised last.

    A heavy view that was never materialised answers too, from the change log itself.
    """
    from local.gold_dialects import columns_of

    with _shown(cloud_of(context, home)) as (connection, times):
        rows = [
            (
                view.name,
                None if view.heavy is None else str(view.heavy),
                times.get(view.name),
                ", ".join(column.name for column in columns_of(connection, view)),
                view.description if as_json else view.description.partition(". ")[0],
            )
            for view in load_views()
        ]
    print_rows(LISTED, rows, Format.JSON if as_json else Format.TABLE)


@contextmanager
def _shown(place: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    """A connection that has the views, and when each was materialised last, where that is known."""
    from local.embedded import LocalRuntimeError
    from local.gold_files import materialised
    from local.sql import connect, empty_lake

    if not isinstance(place, Laptop):
        yield empty_lake(), _times_in_glue(place)
        return
    with ExitStack() as stack:
        try:
            lake, access = stack.enter_context(place.lake())
        except LocalRuntimeError:  # nothing has run here yet: the views are there all the same
            yield empty_lake(), {}
            return
        connection = connect(lake, access)
        held = materialised(connection, access.root)
        views = [view for view in load_views() if view.name in held]
        yield (
            connection,
            {one.name: held[one.name].at for one in views if held[one.name].answers(one)},
        )


def _times_in_glue(place: Any) -> dict[str, Any]:
    """When the tables of the heavy views changed last."""
    from botocore.exceptions import BotoCoreError, ClientError

    from local.account import Stack
    from local.gold_athena import AthenaError

    stack = Stack.read(place.session, place.stack)
    heavy = {view.name for view in load_views() if view.heavy}
    try:
        pages = place.session.client("glue").get_paginator("get_tables")
        tables = pages.paginate(DatabaseName=stack["DatabaseName"]).search("TableList[]")
        return {one["Name"]: one.get("UpdateTime") for one in tables if one["Name"] in heavy}
    except (BotoCoreError, ClientError) as error:
        raise AthenaError("glue:GetTables", str(error)) from error


@app.command(epilog="Example: freshet gold check", short_help="Hold the views to be portable.")
def check(
    *,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Write the statements for Athena and Redshift below it (sql).",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Explain every view in DuckDB, transpile it for Athena and Redshift, and name what fails.

    Exits with 1 where a view fails. Needs no pipeline.
    """
    from local.gold_dialects import faults, golden_files

    views = load_views()
    found = list(faults(views))
    rows = [(view.name, view.name not in dict(found)) for view in views]
    print_rows(("view", "holds"), rows, Format.JSON if as_json else Format.TABLE)
    for name, detail in found:
        say(f"{name}: {detail}")
    if found:
        raise Failed(f"{len(dict(found))} gold views do not hold; the lines above say why")
    for name, text in golden_files().items() if write else ():
        path = Path(write or ".") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
