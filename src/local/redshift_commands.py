"""`freshet redshift apply`: a deployed lake's external schema and views, made in Redshift."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from local.options import DEFAULT_HOME, cloud_of
from local.output import say

if TYPE_CHECKING:
    from local.redshift import Step

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Show the lake to Amazon Redshift.",
    short_help="Show the lake to Amazon Redshift.",
    epilog="Example: freshet --aws account --stack freshet redshift apply",
)


@app.callback()
def redshift() -> None:
    """Show the lake to Amazon Redshift."""


@app.command(
    epilog="Example: freshet --aws account --stack freshet redshift apply --readers analysts",
    short_help="Make schema and views.",
)
def apply(
    context: typer.Context,
    *,
    database: Annotated[str, typer.Option(help="Database in Redshift.")] = "dev",
    workgroup: Annotated[
        str | None, typer.Option(help="Serverless workgroup; default: the stack's own.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="A provisioned cluster instead.")] = None,
    user: Annotated[str | None, typer.Option(help="Database user of the cluster.")] = None,
    secret_arn: Annotated[
        str | None, typer.Option(help="Secret with the database user's password.")
    ] = None,
    readers: Annotated[
        str | None, typer.Option(help="Role in Redshift that may read the views; it must exist.")
    ] = None,
) -> None:
    """Make external schema, late-binding views and the example of a materialised view.

    One statement after the other through the Data API; each may be run again, so a run that was cut
    short is completed by the next.
    """
    from local.account import Account, Stack
    from local.gold import load_views
    from local.redshift import Target, load_statements, variables_of
    from local.redshift import apply as applied

    place = cloud_of(context, DEFAULT_HOME)
    if not isinstance(place, Account):
        raise typer.BadParameter("Redshift is in AWS: freshet --aws account --stack NAME …")
    stack = Stack.read(place.session, place.stack)
    variables = variables_of(stack["RedshiftExternalSchema"])
    if readers is not None:
        variables["readers"] = readers
    serverless = None if cluster else workgroup or f"{place.stack}-lake"
    target = Target(database, serverless, cluster, user, secret_arn)
    client = place.session.client("redshift-data")
    statements = load_statements(variables, [view.name for view in load_views()])
    done = applied(
        client, statements, target, wait=time.sleep, clock=time.monotonic, progress=_tell
    )
    say(f"{len(done)} statements done")


def _tell(step: Step) -> None:
    one = step.statement
    say(f"{step.number}/{step.total} {one.file}: {one.what} {step.state} {step.elapsed_s:.1f} s")
