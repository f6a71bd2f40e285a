"""Composition root of the poller: what EventBridge Scheduler invokes, one schedule per source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import boto3
from botocore.config import Config

from api_poller.ecb import EcbRates
from api_poller.http import Fetcher
from api_poller.platzi import PlatziCatalogue
from api_poller.poll import Poller, PollReport, Source
from api_poller.settings import Settings
from api_poller.state import StateStore
from freshet.clock import Now, utc_now
from freshet.errors import FreshetError, TerminalError
from freshet.kinesis import CLIENT_CONFIG, KinesisStream
from freshet.objects import Objects
from freshet.s3 import S3Objects
from freshet.stream import ChangeStream
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, Metric, count, logger, tracer

Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]

# A poll has minutes, so the SDK may repeat what S3 throttles.
_S3_CONFIG = Config(
    connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 5, "mode": "standard"}
)


class UnknownSourceError(TerminalError):
    """The schedule's input names no source of this poller."""

    def __init__(self, source: object, known: tuple[str, ...]) -> None:
        self.source, self.known = source, known
        super().__init__(
            f'no source {source!r}: correct the input of the schedule to {{"source": "<name>"}} '
            f"with one of {', '.join(known)}"
        )


def build(
    settings: Settings,
    *,
    stream: ChangeStream,
    objects: Objects,
    http: Fetcher,
    now: Now,
) -> Handler:
    """The handler over these adapters: an event `{"source": name, …}` in, a poll's report out.

    Raises the errors of `Poller.poll` and `UnknownSourceError`: Lambda repeats or reports the
    invocation, and Scheduler comes again either way.
    """
    poller = Poller(stream, StateStore(objects), now, settings.delete_share_max)
    sources = {source.name: source for source in _sources(settings, http)}

    def handle(event: Mapping[str, Any], context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's
        name = event.get("source")
        if not isinstance(name, str) or name not in sources:
            raise UnknownSourceError(name, tuple(sources))
        return _polled(poller, sources[name]).to_json()

    return handle


def _sources(settings: Settings, http: Fetcher) -> tuple[Source, ...]:
    return (
        PlatziCatalogue(http, settings.platzi_url, settings.product_currency, settings.page_rows),
        EcbRates(
            http,
            settings.ecb_url,
            settings.ecb_start,
            timedelta(days=settings.ecb_overlap_days),
        ),
    )


def _polled(poller: Poller, source: Source) -> PollReport:
    try:
        report = poller.poll(source)
    except FreshetError:
        count({Metric.REFUSED_POLLS: 1}, source=source.name)
        raise
    count(
        {
            Metric.ROWS_READ: report.listed,
            Metric.ACCEPTED: report.published,
            Metric.REJECTED: report.skipped,
        },
        source=source.name,
    )
    log = logger.warning if report.guarded or report.skipped else logger.info
    log(LogEvent.POLL_COMPLETED.value, extra={"report": report.to_json()})
    return report


@cache
def _handler() -> Handler:
    """The deployed handler, made at the first invocation so that importing needs no AWS."""
    settings = Settings.from_env()
    return build(
        settings,
        stream=KinesisStream(
            boto3.client("kinesis", config=CLIENT_CONFIG), settings.stream_name, TABLES
        ),
        objects=S3Objects(
            boto3.client("s3", config=_S3_CONFIG), settings.state_bucket, settings.state_prefix
        ),
        http=Fetcher(),
        now=utc_now,
    )


@tracer.capture_lambda_handler
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Poll the source that the schedule's input names."""
    return _handler()(event, context)
