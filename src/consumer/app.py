"""Composition root of the consumer: a Kinesis batch becomes a snapshot per table and a receipt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import boto3
from aws_lambda_powertools.metrics import MetricUnit

from consumer.decode import DecodedBatch, Protect, decode_batch, span_of, unprotected
from consumer.landing import Landed, land
from consumer.settings import Settings
from freshet.clock import Now, utc_now
from freshet.contract import Registry
from freshet.errors import TransientError
from freshet.mapping import DEFAULT_STREAMS, Streams, load_streams
from freshet.receipt import Receipt
from freshet.secret import open_protector
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, Metric, count, logger, tracer
from lake.lake import Lake
from lake.ledger import lags
from lake.log import Lags
from lake.opening import open_lake

Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]


@tracer.capture_lambda_handler(capture_response=False)  # type: ignore[untyped-decorator,unused-ignore]
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Lambda entry: settings and clients are made at the first call and kept."""
    return _from_environment()(event, context)


_opening = threading.Lock()


def _from_environment() -> Handler:
    with _opening:  # Lambda calls one at a time; a local runtime consumes two shards at once
        return _opened()


@cache
def _opened() -> Handler:
    settings = Settings.from_env()
    streams = load_streams(settings.streams_folder, TABLES)
    protect = open_protector(settings.pii_secret_arn, TABLES)
    lake = open_lake(settings.lake, TABLES, boto3.client, on_conflict=_count_conflict)
    return build(lake, tables=TABLES, now=utc_now, streams=streams, protect=protect)


def _count_conflict(table: str) -> None:
    count({Metric.CONFLICTS: 1}, table=table)
    # An alarm watches one metric, not one for each table.
    count({Metric.CONFLICTS: 1}, function="consumer")


def build(
    lake: Lake,
    *,
    tables: Registry,
    now: Now,
    streams: Streams = DEFAULT_STREAMS,
    protect: Protect = unprotected,
) -> Handler:
    """The handler over an open lake and a clock.

    `streams` declare the sources of other formats than ours, `protect` hides personal data. The
    answer is our own and not powertools' `BatchProcessor`: that calls a handler for each record,
    and here a batch is one commit (ADR 0012).
    """

    def handle(event: Mapping[str, Any], _context: Any) -> dict[str, Any]:
        try:
            batch = decode_batch(event, tables, streams=streams, protect=protect)
            landed = land(batch, lake, tables, now=now)
        except TransientError as error:
            failed = span_of(event)
            logger.warning(LogEvent.BATCH_FAILED, extra={"batch": failed.name, "error": str(error)})
            # Lambda counts no error where a function answers: an alarm watches this instead.
            count({Metric.BATCHES_FAILED: 1}, function="consumer")
            # The lowest sequence number of the batch: Lambda redelivers all of it (law L4).
            return {"batchItemFailures": [{"itemIdentifier": failed.first_sequence_number}]}
        report(batch, landed, now())
        return {"batchItemFailures": []}

    return handle


def report(batch: DecodedBatch, landed: Landed, committed_at: datetime) -> None:
    """Log the receipt and the time from acceptance to commit, and count both."""
    receipt = landed.receipt
    lag = lags((item.event.accepted_at for item in batch.events), committed_at)
    told = {} if lag is None else {f"lag_ms_{name}": ms for name, ms in lag._asdict().items()}
    logger.info(LogEvent.BATCH_COMMITTED, extra={"batch": batch.name, **receipt.to_dict(), **told})
    if lag is not None:
        count({Metric.LAG_MS: lag.p95}, unit=MetricUnit.Milliseconds, function="consumer")
    count(
        {Metric.QUARANTINED: receipt.rejected, Metric.IGNORED: receipt.ignored},
        function="consumer",
    )
    for row in landed.rows:
        if row.table_name is not None:
            _count(row.table_name, row.receipt)
            _count_freshness(row.table_name, row.event_lag)


def _count(table: str, receipt: Receipt) -> None:
    names = {
        Metric.RECEIVED: receipt.received,
        Metric.INSERTED: receipt.inserted,
        Metric.UPDATED: receipt.updated,
        Metric.DELETED: receipt.deleted,
        Metric.UNCHANGED: receipt.unchanged,
        Metric.DUPLICATE: receipt.duplicate,
        Metric.STALE: receipt.stale,
        Metric.WAITING: receipt.waiting,
        Metric.RETRACTED: receipt.retracted,
    }
    count(names, table=table)


def _count_freshness(table: str, lag: Lags | None) -> None:
    """From the source's time of a change to its commit; nothing where no event said its time."""
    if lag is None:
        return
    freshness: dict[Metric, float] = {
        Metric.EVENT_LAG_P50_MS: lag.p50,
        Metric.EVENT_LAG_P95_MS: lag.p95,
        Metric.EVENT_LAG_P99_MS: lag.p99,
    }
    count(freshness, unit=MetricUnit.Milliseconds, table=table)


__all__ = ["build", "handler", "land", "report"]
