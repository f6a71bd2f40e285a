"""Composition root of the consumer: a Kinesis batch becomes a snapshot per table and a receipt."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import boto3
from aws_lambda_powertools.metrics import MetricUnit

from consumer.decode import DecodedBatch, decode_batch
from freshet.arrow import changes_table
from freshet.clock import Now, utc_now
from freshet.contract import Registry
from freshet.errors import TransientError
from freshet.receipt import Receipt
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, Metric, count, logger, tracer
from lake.lake import Lake
from lake.opening import open_lake
from lake.settings import LakeSettings

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
    settings = LakeSettings.from_env()
    lake = open_lake(settings, TABLES, boto3.client, on_conflict=_count_conflict)
    return build(lake, tables=TABLES, now=utc_now)


def _count_conflict(table: str) -> None:
    count({Metric.CONFLICTS: 1}, table=table)
    # An alarm watches one metric, not one for each table.
    count({Metric.CONFLICTS: 1}, function="consumer")


def build(lake: Lake, *, tables: Registry, now: Now) -> Handler:
    """The handler over an open lake and a clock."""

    def handle(event: Mapping[str, Any], _context: Any) -> dict[str, Any]:
        batch = decode_batch(event, tables)
        try:
            receipt = land(batch, lake, tables)
        except TransientError as error:
            logger.warning(LogEvent.BATCH_FAILED, extra={"batch": batch.name, "error": str(error)})
            # Lambda counts no error where a function answers: an alarm watches this instead.
            count({Metric.BATCHES_FAILED: 1}, function="consumer")
            # The lowest sequence number of the batch: Lambda redelivers all of it (law L4).
            return {"batchItemFailures": [{"itemIdentifier": batch.first_sequence_number}]}
        report(batch, receipt, now())
        return {"batchItemFailures": []}

    return handle


def land(batch: DecodedBatch, lake: Lake, tables: Registry) -> Receipt:
    """Quarantine, log, then merge: what is in a table is always in the log as well."""
    lake.keep(batch.name, batch.events, batch.rejected)
    receipt = Receipt(received=len(batch.rejected), rejected=len(batch.rejected))
    for table, placed in batch.by_table().items():
        note = {
            "freshet.batch": batch.name,
            "freshet.contract-version": str(tables[table].contract_version),
        }
        part = lake.apply(table, changes_table(tables[table], placed), note)
        _count(table, part)
        receipt += part
    return receipt


def report(batch: DecodedBatch, receipt: Receipt, committed_at: datetime) -> None:
    """Log the receipt and the time from acceptance to commit."""
    lags = sorted(
        (committed_at - item.event.accepted_at).total_seconds() * 1000 for item in batch.events
    )
    lag = (
        {
            f"lag_ms_p{p}": round(lags[min(len(lags) - 1, len(lags) * p // 100)])
            for p in (50, 95, 99)
        }
        if lags
        else {}
    )
    logger.info(LogEvent.BATCH_COMMITTED, extra={"batch": batch.name, **receipt.to_dict(), **lag})
    if lag:
        count({Metric.LAG_MS: lag["lag_ms_p95"]}, unit=MetricUnit.Milliseconds, function="consumer")
    count({Metric.QUARANTINED: receipt.rejected}, function="consumer")


def _count(table: str, receipt: Receipt) -> None:
    names = {
        Metric.RECEIVED: receipt.received,
        Metric.INSERTED: receipt.inserted,
        Metric.UPDATED: receipt.updated,
        Metric.DELETED: receipt.deleted,
        Metric.UNCHANGED: receipt.unchanged,
        Metric.DUPLICATE: receipt.duplicate,
        Metric.STALE: receipt.stale,
    }
    count(names, table=table)
