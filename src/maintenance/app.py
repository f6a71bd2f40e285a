"""Composition root of maintenance: what EventBridge Scheduler invokes to keep the lake small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import boto3
from botocore.config import Config

from freshet.clock import utc_now
from freshet.contract import Contract, Registry
from freshet.errors import TerminalError
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, Metric, count, logger, tracer
from lake.maintain import Maintained, Maintenance
from lake.opening import open_lake
from lake.vacuum import Outcome
from maintenance.settings import Settings

Handler = Callable[[Mapping[str, Any], Any], dict[str, Any]]

# A night's work can wait for S3, but a call under way must end before Lambda does.
_CLIENT_CONFIG = Config(
    connect_timeout=2, read_timeout=8, retries={"total_max_attempts": 3, "mode": "standard"}
)
# Three tries of such a call, and the report.
MARGIN_S = 30.0


class InputError(TerminalError):
    """The schedule's input is not what maintenance takes."""

    def __init__(self, member: str, value: object) -> None:
        self.member, self.value = member, value
        super().__init__(
            f"{member} cannot be {value!r}: correct the input of the schedule to {{}} or to "
            '{"dry_run": true, "tables": ["<name>"]}'
        )


class TablesRefusedError(TerminalError):
    """Tables whose files were left alone because that was not known to be safe."""

    def __init__(self, refused: Mapping[str, str]) -> None:
        self.refused = dict(refused)
        told = "; ".join(f"{table}: {detail}" for table, detail in refused.items())
        super().__init__(f"nothing more was deleted of {len(refused)} table(s): {told}")


@tracer.capture_lambda_handler(capture_response=False)  # type: ignore[untyped-decorator,unused-ignore]
def handler(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Lambda entry: settings and clients are made at the first call and kept."""
    return _from_environment()(event, context)


@cache
def _from_environment() -> Handler:
    settings = Settings.from_env()
    client = partial(boto3.client, config=_CLIENT_CONFIG)
    lake = open_lake(settings.lake, TABLES, client)
    maintenance = Maintenance(lake, now=utc_now, grace=settings.grace, horizon=settings.prune_after)
    return build(maintenance, tables=TABLES)


def build(maintenance: Maintenance, *, tables: Registry) -> Handler:
    """The handler over a lake's maintenance: `{"dry_run": bool, "tables": [name, …]}` in, both
    optional; a report out.

    Raises `InputError`, `UnknownTableError`, and `TablesRefusedError` after all tables had their
    turn: an invocation that failed is seen by whoever watches the function.
    """

    def handle(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
        dry_run = event.get("dry_run", False)
        if not isinstance(dry_run, bool):
            raise InputError("dry_run", dry_run)
        done = maintenance.run(
            _chosen(event.get("tables"), tables),
            left_s=lambda: context.get_remaining_time_in_millis() / 1000 - MARGIN_S,
            dry_run=dry_run,
        )
        refused = {one.table: one.detail for one in done if one.outcome is Outcome.REFUSED}
        _report(done, refused)
        if refused:
            raise TablesRefusedError(refused)
        return {"dry_run": dry_run, "tables": [one.to_json() for one in done]}

    return handle


def _chosen(names: object, tables: Registry) -> Sequence[type[Contract]]:
    if names is None:
        return list(tables)
    if not isinstance(names, list) or not names:
        raise InputError("tables", names)
    return [tables[name] for name in names]


def _report(done: Sequence[Maintained], refused: Mapping[str, str]) -> None:
    for one in done:
        if one.table in refused:
            logger.error(LogEvent.TABLE_REFUSED, extra=one.to_json())
        else:
            logger.info(LogEvent.TABLE_VACUUMED, extra=one.to_json())
        count(
            {
                Metric.FILES_DELETED: one.vacuumed.deleted,
                Metric.FILES_WAITING: one.vacuumed.waiting,
                Metric.QUARANTINED: one.tidied.quarantined,
            },
            table=one.table,
        )
    unfinished = sum(one.outcome is Outcome.UNFINISHED for one in done)
    count(
        {Metric.TABLES_REFUSED: len(refused), Metric.TABLES_UNFINISHED: unfinished},
        function="maintenance",
    )
