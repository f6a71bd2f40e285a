"""Composition root of the poller: what EventBridge Scheduler invokes, one schedule per source."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import boto3
from botocore.config import Config

from api_poller.composition import Composition, Secrets, UnknownSourceError
from api_poller.http import UrllibTransport
from api_poller.listing import DeclaredSource
from api_poller.poll import PollReport, ReportProgress
from api_poller.settings import Settings
from api_poller.transport import Transport
from freshet.clock import Now, utc_now
from freshet.contract import Registry
from freshet.errors import FreshetError
from freshet.kinesis import CLIENT_CONFIG, KinesisStream
from freshet.objects import Objects
from freshet.pii import ProtectedStream, Protector, hashing_tables
from freshet.s3 import S3Objects
from freshet.secret import open_protector, secrets_client
from freshet.stream import ChangeStream
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, Metric, count, logger, tracer

__all__ = [
    "UnknownSourceError",
    "build",
    "compose",
    "compose_here",
    "handler",
    "open_source",
    "poll",
]

Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]

# A poll has minutes, so the SDK may repeat what S3 throttles.
_S3_CONFIG = Config(
    connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 5, "mode": "standard"}
)


def _silent(pages: int, rows: int, changes: int) -> None:
    """Nobody watches a deployed poll."""


def _no_secrets() -> Any:
    raise AssertionError("composed without Secrets Manager, and a secret is named")


def compose(
    settings: Settings,
    *,
    stream: ChangeStream,
    objects: Objects,
    now: Now,
    transport: Transport | None = None,
    secrets: Secrets = _no_secrets,
    protector: Protector | None = None,
    sleep: Callable[[float], None] = time.sleep,
    tables: Registry = TABLES,
) -> Composition:
    """The sources that `settings` name over these adapters.

    `secrets` makes the Secrets Manager client at the first source whose secret is named.
    `protector` hashes personal data; unless it is given, with the key that the settings name.
    Without one, sources of tables that hash are refused and the others are polled.
    """
    if protector is None and settings.pii_secret_arn:
        protector = open_protector(settings.pii_secret_arn, tables, secrets)
    guard = protector or Protector.none(one for one in tables if not hashing_tables([one]))
    return Composition(
        settings,
        ProtectedStream(stream, guard),
        objects,
        now,
        secrets,
        transport or UrllibTransport(),
        tables,
        sleep,
        protector,
    )


def build(settings: Settings, **adapters: Any) -> Handler:
    """The handler over these adapters (as `compose`): an event `{"source": name, …}` in, a poll's
    report out.

    `full`, `dry_run` and `since` may stand in the event too. Raises the errors of `Poller.poll`, of
    `Composition.source` and `UnknownSourceError`: Lambda repeats or reports the invocation, and
    Scheduler comes again either way.
    """
    composition = compose(settings, **adapters)
    return lambda event, context: _polled(composition, event, context, _silent)


def _polled(
    composition: Composition, event: Mapping[str, Any], context: Any, progress: ReportProgress
) -> dict[str, Any]:
    name = event.get("source")
    remaining_s = _remaining_s(context)
    try:
        report = composition.poller().poll(
            composition.source(name, remaining_s),
            full=bool(event.get("full", False)),
            dry_run=bool(event.get("dry_run", False)),
            since=event.get("since"),
            remaining_s=remaining_s,
            progress=progress,
        )
    except UnknownSourceError:
        raise
    except FreshetError:
        count({Metric.REFUSED_POLLS: 1}, source=str(name))
        raise
    _tell(report)
    return report.to_json()


def _remaining_s(context: Any) -> Callable[[], float] | None:
    """Seconds until the function is stopped; None for a call that nothing stops."""
    if not hasattr(context, "get_remaining_time_in_millis"):
        return None
    return lambda: context.get_remaining_time_in_millis() / 1000


def _tell(report: PollReport) -> None:
    count(
        {
            Metric.ROWS_READ: report.listed,
            Metric.ACCEPTED: report.published,
            Metric.REJECTED: report.skipped,
        },
        source=report.source,
    )
    log = logger.warning if report.guarded or report.skipped else logger.info
    log(LogEvent.POLL_COMPLETED.value, extra={"report": report.to_json()})


_secrets = cache(secrets_client)


def compose_here() -> Composition:
    """The sources that the environment names, over the AWS that it leads to.

    Raises `SettingsError` naming the variable to correct.
    """
    settings = Settings.from_env()
    client = partial(boto3.client, "s3", config=_S3_CONFIG)
    return compose(
        settings,
        stream=KinesisStream(
            boto3.client("kinesis", config=CLIENT_CONFIG), settings.stream_name, TABLES
        ),
        objects=S3Objects(client(), settings.state_bucket, settings.state_prefix),
        now=utc_now,
        secrets=_secrets,
    )


@cache
def _deployed() -> Composition:
    """Made at the first invocation, so that importing needs no AWS."""
    return compose_here()


def open_source(name: str, seconds_max: float = math.inf) -> DeclaredSource:
    """A source as the environment declares it, for whoever lists it beside the poller.

    Raises as `Composition.source`.
    """
    ends_at = time.monotonic() + seconds_max
    remaining_s = None if seconds_max == math.inf else lambda: ends_at - time.monotonic()
    return compose_here().source(name, remaining_s)


def poll(
    event: Mapping[str, Any], context: Any, progress: ReportProgress = _silent
) -> dict[str, Any]:
    """As `handler` with the environment of now, telling `progress` pages, rows and changes so far
    after every page.
    """
    return _polled(compose_here(), event, context, progress)


@tracer.capture_lambda_handler(capture_response=False)
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Poll the source that the schedule's input names."""
    return _polled(_deployed(), event, context, _silent)
