"""Composition root of the poller: what EventBridge Scheduler invokes, one schedule per source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache, partial
from typing import Any

import boto3
from botocore.config import Config

from api_poller.credentials import ReadHeaders, no_headers, read_headers
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
# One small answer a poll: three tries of 5 s are plenty.
_SECRETS_CONFIG = Config(
    connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"}
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
    platzi_headers: ReadHeaders = no_headers,
) -> Handler:
    """The handler over these adapters: an event `{"source": name, …}` in, a poll's report out.

    `platzi_headers` is asked at every poll of the shop. Raises the errors of `Poller.poll`, of
    `read_headers` and `UnknownSourceError`: Lambda repeats or reports the invocation, and Scheduler
    comes again either way.
    """
    poller = Poller(stream, StateStore(objects), now, settings.delete_share_max)
    sources = _sources(settings, http, platzi_headers)

    def handle(event: Mapping[str, Any], context: Any) -> dict[str, Any]:  # noqa: ARG001 - Lambda's
        name = event.get("source")
        if not isinstance(name, str) or name not in sources:
            raise UnknownSourceError(name, tuple(sources))
        return _polled(poller, name, sources[name]).to_json()

    return handle


def _sources(
    settings: Settings, http: Fetcher, platzi_headers: ReadHeaders
) -> dict[str, Callable[[], Source]]:
    """How each source is made for one poll, with the credentials that hold now."""

    def platzi() -> Source:
        carrying = http.carrying(platzi_headers(), to=settings.platzi_url)
        return PlatziCatalogue(
            carrying, settings.platzi_url, settings.product_currency, settings.page_rows
        )

    def ecb() -> Source:
        overlap = timedelta(days=settings.ecb_overlap_days)
        return EcbRates(http, settings.ecb_url, settings.ecb_start, overlap)

    return {"platzi": platzi, "ecb": ecb}


def _polled(poller: Poller, name: str, source: Callable[[], Source]) -> PollReport:
    try:
        report = poller.poll(source())
    except FreshetError:
        count({Metric.REFUSED_POLLS: 1}, source=name)
        raise
    count(
        {
            Metric.ROWS_READ: report.listed,
            Metric.ACCEPTED: report.published,
            Metric.REJECTED: report.skipped,
        },
        source=name,
    )
    log = logger.warning if report.guarded or report.skipped else logger.info
    log(LogEvent.POLL_COMPLETED.value, extra={"report": report.to_json()})
    return report


def _platzi_headers(secret_id: str | None) -> ReadHeaders:
    """The shop's credentials, through a client made at the first poll that wants them."""
    if secret_id is None:
        return no_headers
    # Its debug log holds answers whole, and Lambda's log level may be set to DEBUG for all loggers.
    logging.getLogger("botocore.parsers").setLevel(logging.INFO)
    client = cache(partial(boto3.client, "secretsmanager", config=_SECRETS_CONFIG))
    return lambda: read_headers(client(), secret_id, setting="PLATZI_SECRET_ID")


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
        platzi_headers=_platzi_headers(settings.platzi_secret_id),
    )


@tracer.capture_lambda_handler(capture_response=False)
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Poll the source that the schedule's input names."""
    return _handler()(event, context)
