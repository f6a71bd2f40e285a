"""Logs, metrics and traces: made once, with the names of every event and metric in one place.

Logs are events with fields, one per decision, never a row's values. They go to stderr: stdout
belongs to data, and Lambda collects both. Metrics are CloudWatch EMF lines on stdout, which is how
Lambda takes them; anything that owns its stdout (the CLI, the local runtime) sets
`POWERTOOLS_METRICS_DISABLED=true` first; their namespace is `POWERTOOLS_METRICS_NAMESPACE`. Traces
exist only in Lambda: elsewhere the tracer is disabled. Lines carry the function's name from
`POWERTOOLS_SERVICE_NAME`.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit
from aws_lambda_powertools.tracing import Tracer

from freshet.settings import metrics_namespace

if TYPE_CHECKING:
    from typing import TextIO

SERVICE = (
    "freshet"  # POWERTOOLS_SERVICE_NAME, set for each function by the template, takes its place
)


class LogEvent(StrEnum):
    """Names of log events: past tense, one per decision."""

    CHANGES_ACCEPTED = "changes_accepted"
    CHANGES_REFUSED = "changes_refused"
    REQUEST_FAILED = "request_failed"
    POLL_COMPLETED = "poll_completed"
    BATCH_COMMITTED = "batch_committed"
    BATCH_FAILED = "batch_failed"
    TABLE_VACUUMED = "table_vacuumed"
    TABLE_REFUSED = "table_refused"


class Metric(StrEnum):
    """Names of metrics; each is counted by table, source or function (see `count`)."""

    ACCEPTED = "ChangesAccepted"
    REJECTED = "ChangesRejected"
    THROTTLED = "ChangesThrottled"
    RECEIVED = "ChangesReceived"
    INSERTED = "RowsInserted"
    UPDATED = "RowsUpdated"
    DELETED = "RowsDeleted"
    UNCHANGED = "RowsUnchanged"
    DUPLICATE = "ChangesDuplicate"
    STALE = "ChangesStale"
    WAITING = "ChangesWaiting"
    IGNORED = "RecordsIgnored"
    RETRACTED = "RowsRetracted"
    QUARANTINED = "RecordsQuarantined"
    LAG_MS = "IngestLagMilliseconds"
    EVENT_LAG_P50_MS = "EventLagP50Milliseconds"
    EVENT_LAG_P95_MS = "EventLagP95Milliseconds"
    EVENT_LAG_P99_MS = "EventLagP99Milliseconds"
    ROWS_READ = "SourceRowsRead"
    REFUSED_POLLS = "PollsRefused"
    BATCHES_FAILED = "BatchesFailed"
    CONFLICTS = "CommitConflicts"
    FILES_DELETED = "FilesDeleted"
    FILES_WAITING = "FilesWaiting"
    TABLES_REFUSED = "TablesRefused"
    TABLES_UNFINISHED = "TablesUnfinished"


class _Stderr(logging.StreamHandler["TextIO"]):
    """Writes to whatever stderr is at that moment, so that a redirected stderr is honoured."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


logger = Logger(logger_handler=_Stderr())
# Only AWS calls are worth a segment; patching every library found would cost start-up time.
tracer = Tracer(patch_modules=["botocore"])


def count(
    values: Mapping[Metric, float],
    *,
    unit: MetricUnit = MetricUnit.Count,
    **dimensions: str,
) -> None:
    """Put `values` out as one EMF line with `dimensions` (table="sales"); zero values are left out.

    A line per call, with state of its own: safe from several threads.
    """
    present: dict[Metric, Any] = {name: value for name, value in values.items() if value}
    if not present:
        return
    # No service: powertools would add it as one more dimension, and alarms would watch nothing.
    metrics = EphemeralMetrics(namespace=metrics_namespace(), service="")
    for name, value in dimensions.items():
        metrics.add_dimension(name, value)
    for metric, value in present.items():
        metrics.add_metric(metric.value, unit, value)
    metrics.flush_metrics()
