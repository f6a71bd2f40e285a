"""One query in Athena as `freshet query --engine athena` asks it: what it scans and costs is shown
while it runs, and one that scans too much, or that nobody waits for any more, is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from freshet.errors import TerminalError
from local.gold_athena import AthenaError

# AWS, "Amazon Athena pricing", SQL queries per data scanned: the price in most regions, and what a
# query costs at the least. Statements that only declare cost nothing.
PRICE_USD_PER_TB = 5.0
BILLED_BYTES_MIN = 10_000_000
_TB = 1 << 40
# Between two looks at a query: most of ours are done in a few seconds.
_PAUSE_S, _PAUSE_S_MAX = 0.25, 2.0
# Athena stops a query itself after 30 minutes (service quota, DML timeout); it may queue before.
LOOKS_MAX = 3600


class ScanLimitError(TerminalError):
    """A query read more than it may and was stopped."""

    def __init__(self, scanned_bytes: int, bytes_max: int) -> None:
        self.scanned_bytes, self.bytes_max = scanned_bytes, bytes_max
        super().__init__(
            f"Athena: the query had scanned {size_text(scanned_bytes)} and may scan "
            f"{size_text(bytes_max)}, so it was stopped: ask for fewer columns or partitions, or "
            "raise the limit"
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """Where a query stands: Athena's state, bytes read so far and milliseconds since it began."""

    state: str
    scanned_bytes: int
    elapsed_ms: int
    is_free: bool = False

    @property
    def cost_usd(self) -> float:
        """What it has cost so far, at `PRICE_USD_PER_TB`."""
        if self.is_free:
            return 0.0
        return max(self.scanned_bytes, BILLED_BYTES_MIN) / _TB * PRICE_USD_PER_TB

    def __str__(self) -> str:
        """As it is shown to the one who waits."""
        scanned = size_text(self.scanned_bytes)
        return (
            f"{self.state.lower()}: {scanned} scanned, {self.elapsed_ms / 1000:.1f} s, "
            f"${self.cost_usd:.4f}"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """A query's rows as a pandas DataFrame, and what they took."""

    frame: Any
    scan: Scan

    @property
    def columns(self) -> list[str]:
        """The columns' names."""
        return [str(name) for name in self.frame.columns]

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as Python values; None for what is not there."""
        plain = self.frame.astype(object)
        return list(plain.where(self.frame.notna(), None).itertuples(index=False, name=None))


@dataclass(frozen=True)
class Database:
    """Where queries are asked: clients of one account, a Glue database and a workgroup.

    The workgroup says where results go, and has a limit on bytes of its own.
    """

    session: Any
    name: str
    workgroup: str

    def frame(self, query_id: str) -> Any:
        """The rows of a query that succeeded, typed as Athena says, by awswrangler."""
        import awswrangler as wr  # noqa: PLC0415 - it brings pandas

        with _told("results"):
            return wr.athena.get_query_results(query_id, boto3_session=self.session)


def ask(
    database: Database,
    sql: str,
    *,
    wait: Callable[[float], object],
    progress: Callable[[Scan], object] = lambda _scan: None,
    bytes_max: int | None = None,
    client: Any = None,
) -> Answer:
    """The answer to one query; `progress` is told at every look at it.

    It is stopped once it has scanned more than `bytes_max`, as Athena tells every few seconds, and
    when this is interrupted. Raises `AthenaError`, `ScanLimitError`.
    """
    athena = client or database.session.client("athena")
    with _told("StartQueryExecution"):
        query_id = athena.start_query_execution(
            QueryString=sql,
            QueryExecutionContext={"Database": database.name},
            WorkGroup=database.workgroup,
        )["QueryExecutionId"]
    with _stopped_unless_done(athena, query_id):
        scan = _followed(athena, query_id, wait, progress, bytes_max)
    return Answer(database.frame(query_id), scan)


def _followed(
    athena: Any,
    query_id: str,
    wait: Callable[[float], object],
    progress: Callable[[Scan], object],
    bytes_max: int | None,
) -> Scan:
    pause = _PAUSE_S
    for _ in range(LOOKS_MAX):
        with _told("GetQueryExecution"):
            execution = athena.get_query_execution(QueryExecutionId=query_id)["QueryExecution"]
        scan = _scan_of(execution)
        progress(scan)
        if scan.state in ("FAILED", "CANCELLED"):
            why = execution["Status"].get("StateChangeReason", "it gives no reason")
            raise AthenaError(f"query {query_id}", f"{scan.state.lower()}: {why}")
        if bytes_max is not None and scan.scanned_bytes > bytes_max:
            raise ScanLimitError(scan.scanned_bytes, bytes_max)
        if scan.state == "SUCCEEDED":
            return scan
        wait(pause)
        pause = min(2 * pause, _PAUSE_S_MAX)
    raise AthenaError(f"query {query_id}", "it was neither done nor refused for too long")


def _scan_of(execution: dict[str, Any]) -> Scan:
    told = execution.get("Statistics", {})
    return Scan(
        execution["Status"]["State"],
        told.get("DataScannedInBytes", 0),
        told.get("TotalExecutionTimeInMillis", 0),
        execution.get("StatementType") not in (None, "DML"),
    )


@contextmanager
def _stopped_unless_done(athena: Any, query_id: str) -> Iterator[None]:
    """A query that nobody waits for costs on: stop it, whatever ended the waiting."""
    try:
        yield
    except BaseException:
        with suppress(ClientError, BotoCoreError):  # what ended the waiting says more
            athena.stop_query_execution(QueryExecutionId=query_id)
        raise


@contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError) as error:
        raise AthenaError(what, str(error)) from error


def size_text(size_bytes: int) -> str:
    """Bytes as people say them, in the units that Athena bills: `12.3 MB`, `1.2 GB`."""
    if size_bytes < 1_000_000_000:
        return f"{size_bytes / 1e6:,.1f} MB"
    return f"{size_bytes / 1e9:,.1f} GB"
