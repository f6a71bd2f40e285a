"""What the commands that bring changes back open: the lake to write to, the failure objects, the
stream, and decoding as the consumer does it. Here or in an account; the functions' own settings say
where everything is.
"""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from freshet.clock import utc_now
from freshet.tables import TABLES
from local.clouds import Cloud
from local.options import cloud_of
from local.runtime import FAILURES_BUCKET, STREAM

if TYPE_CHECKING:
    from pathlib import Path

    from freshet.kinesis import RetainedStream
    from lake.replay import Again
    from local.account import Account
    from local.failures import Failures, Source


@dataclass(frozen=True)
class WayBack:
    """See the module. `retained` reads the pipeline's own stream, `blinded` is `Protector`'s."""

    again: Again
    failures: Failures
    source: Source
    retained: RetainedStream
    blinded: Callable[[str, str], str]


@contextmanager
def way_back(context: typer.Context, home: Path, *, writes: bool = True) -> Iterator[WayBack]:
    """Open all that it takes to bring changes back, in the place that the command line names.

    Without `writes` the lake is opened for reading only.
    """
    place = cloud_of(context, home)
    account = _account(place)
    with place.lake(read_only=not writes) as (lake, _):
        if account is None:
            import boto3

            yield _opened(lake, boto3.client, FAILURES_BUCKET, STREAM, os.environ)
            return
        stack, environment = _deployed(account)
        bucket, stream, client = (
            stack["LakeBucketName"],
            stack["StreamName"],
            account.session.client,
        )
        if not writes:
            yield _opened(lake, client, bucket, stream, environment)
            return
        from lake.opening import open_lake
        from lake.settings import LakeSettings

        writing = open_lake(LakeSettings.from_env(environment), TABLES, client)
        try:
            yield _opened(writing, client, bucket, stream, environment)
        finally:
            writing.close()


def _account(place: Cloud) -> Account | None:
    from local.clouds import Laptop

    if isinstance(place, Laptop):
        return None
    from local.account import Account

    assert isinstance(place, Account), "a cloud is a laptop or an account"
    return place


def _deployed(account: Account) -> tuple[Any, Mapping[str, str]]:
    """The stack's outputs, and the consumer's own settings."""
    from local.account import Stack, _told

    stack = Stack.read(account.session, account.stack)
    function = stack["ConsumerFunctionName"]
    with _told(f"lambda:GetFunctionConfiguration of {function}"):
        client = account.session.client("lambda")
        answer = client.get_function_configuration(FunctionName=function)
    return stack, answer.get("Environment", {}).get("Variables", {})


def _opened(
    lake: Any,
    client: Callable[..., Any],
    bucket: str,
    stream_name: str,
    environment: Mapping[str, str],
) -> WayBack:
    from consumer.settings import Settings
    from freshet.kinesis import CLIENT_CONFIG, RetainedStream
    from freshet.mapping import load_streams
    from freshet.s3 import S3Objects
    from freshet.secret import open_protector
    from freshet.wire import decode_record
    from lake.replay import Again
    from local.failures import Failures, Source

    kinesis = client("kinesis", config=CLIENT_CONFIG)
    # Streams are declared in this checkout, also where a deployed function has them elsewhere.
    here = {"STREAMS_FOLDER": os.environ.get("STREAMS_FOLDER", "")}
    settings = Settings.from_env({**environment, **here})
    streams = load_streams(settings.streams_folder, TABLES)
    protector = open_protector(settings.pii_secret_arn, TABLES, lambda: client("secretsmanager"))

    def decode(data: bytes, arrived_at: Any) -> Any:
        return decode_record(data, TABLES, arrived_at=arrived_at, streams=streams)

    return WayBack(
        Again(lake, TABLES, decode, utc_now, who(), protector.event),
        Failures(S3Objects(client("s3"), bucket)),
        Source(streams, lambda name: RetainedStream(kinesis, name or stream_name)),
        RetainedStream(kinesis, stream_name),
        protector.blinded,
    )


def who() -> str:
    """Who gives the command, for receipts and resolutions."""
    with suppress(OSError, KeyError, ImportError):
        return getpass.getuser()
    return "unknown"
