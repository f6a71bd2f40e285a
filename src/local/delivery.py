"""The rules by which Lambda delivers a shard to a function, as pure functions on values.

What makes a batch, what a response means, what is tried again and what is given up: every decision
of an event source mapping is here, without threads, clocks or I/O, so that each can be proved with
generated cases. Sources: AWS's guide to Kinesis event source mappings and its published test events
(`docs/adr/0003-embedded-aws.md`).
"""

from __future__ import annotations

import base64
import json
import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

from freshet.errors import SettingsError
from local.invocation import PAYLOAD_BYTES_MAX
from local.shards import Shard, StreamRecord

ENDLESS = -1
ENVELOPE_BYTES = len('{"Records":[]}')
INVOKE_IDENTITY = "arn:aws:iam::000000000000:role/lambda-role"
# Ranges of the Lambda API for Kinesis mappings: (smallest, greatest).
LIMITS = {
    "batch_size": (1, 10_000),
    "window_s": (0, 300),
    "payload_bytes_max": (1, PAYLOAD_BYTES_MAX),
    "parallelization_factor": (1, 10),
    "retry_attempts_max": (ENDLESS, 10_000),
    "record_age_s_max": (ENDLESS, 604_800),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingSettings:
    """Settings of an event source mapping, with Lambda's names and defaults; it starts at
    TRIM_HORIZON.

    Raises SettingsError for a value outside the range Lambda accepts.
    """

    batch_size: int = 100
    window_s: float = 0
    payload_bytes_max: int = PAYLOAD_BYTES_MAX
    parallelization_factor: int = 1
    bisect_on_error: bool = False
    retry_attempts_max: int = ENDLESS
    record_age_s_max: float = ENDLESS
    report_batch_item_failures: bool = False

    def __post_init__(self) -> None:
        for name, (smallest, greatest) in LIMITS.items():
            value = getattr(self, name)
            if not smallest <= value <= greatest:
                raise SettingsError(name, f"{value} is outside {smallest} to {greatest}")


@dataclass(frozen=True, slots=True)
class Item:
    """A record on its way to the function and the bytes it will take in the JSON event."""

    record: StreamRecord
    payload_bytes: int


class Condition(StrEnum):
    """Why records went to the failure destination."""

    EXHAUSTED = "RetryAttemptsExhausted"
    TOO_OLD = "RecordAgeExceeded"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a response says: nothing failed (`failed_from` None), or all from that index on."""

    failed_from: int | None
    unhandled: bool = False  # the function raised, rather than reported

    @property
    def succeeded(self) -> bool:
        """Whether the whole batch is done."""
        return self.failed_from is None


SUCCESS = Verdict(None)
WHOLE_BATCH_FAILED = Verdict(0)
UNHANDLED_ERROR = Verdict(0, unhandled=True)


@dataclass(frozen=True, slots=True)
class Piece:
    """Records delivered together, in order, and how many attempts at them have failed so far."""

    items: tuple[Item, ...]
    attempts: int = 0

    @property
    def records(self) -> tuple[StreamRecord, ...]:
        """The records themselves."""
        return tuple(item.record for item in self.items)


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """What follows a failure: pieces to try in this order, and a piece to give up."""

    retry: tuple[Piece, ...] = ()
    discard: Piece | None = None
    after_wait: bool = False


def record_event(record: StreamRecord, shard_id: str, stream_arn: str) -> dict[str, Any]:
    """One element of `Records`, exactly as Lambda sends it."""
    return {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": record.partition_key,
            "sequenceNumber": record.sequence_number,
            "data": base64.b64encode(record.data).decode("ascii"),
            "approximateArrivalTimestamp": round(record.arrived_at, 3),
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"{shard_id}:{record.sequence_number}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": INVOKE_IDENTITY,
        "awsRegion": stream_arn.split(":")[3],
        "eventSourceARN": stream_arn,
    }


def batch_event(piece: Piece, shard_id: str, stream_arn: str) -> dict[str, Any]:
    """The event of one invocation."""
    return {"Records": [record_event(record, shard_id, stream_arn) for record in piece.records]}


def item_of(record: StreamRecord, shard_id: str, stream_arn: str) -> Item:
    """Measure a record as it will stand in the JSON event, without encoding its data."""
    bare = StreamRecord(record.sequence_number, record.partition_key, b"", record.arrived_at)
    bare_bytes = len(json.dumps(record_event(bare, shard_id, stream_arn), separators=(",", ":")))
    return Item(record, bare_bytes + 4 * math.ceil(len(record.data) / 3))


def payload_bytes(items: Iterable[Item]) -> int:
    """Bytes of the JSON event that carries `items` (an upper bound by one comma)."""
    return ENVELOPE_BYTES + sum(item.payload_bytes + 1 for item in items)


def cut(pending: Collection[Item], settings: MappingSettings, *, window_over: bool) -> int:
    """How many of the pending records make the next batch; 0 to wait for more.

    A batch is ready when it is full, when another record would exceed the payload, or when the
    window is over. One record too large for any payload is a batch of its own, which Lambda then
    refuses.
    """
    size, count = ENVELOPE_BYTES, 0
    for item in islice(pending, settings.batch_size):
        size += item.payload_bytes + 1
        if count and size > settings.payload_bytes_max:
            break
        count += 1
    full = count == settings.batch_size or count < len(pending)
    return count if full or window_over else 0


def interpret(response: Any, records: Sequence[StreamRecord], *, report: bool) -> Verdict:
    """What a function's response means for its batch.

    Without ReportBatchItemFailures every response is success. With it, the lowest reported sequence
    number is where delivery resumes; an identifier that is empty or not in the batch fails the
    whole batch.
    """
    if not report or not isinstance(response, dict) or response.get("batchItemFailures") is None:
        return SUCCESS
    failures = response["batchItemFailures"]
    if not isinstance(failures, list):
        return WHOLE_BATCH_FAILED
    indexes = {record.sequence_number: index for index, record in enumerate(records)}
    reported = [
        indexes.get(_identifier(failure)) if isinstance(failure, dict) else None
        for failure in failures
    ]
    known = [index for index in reported if index is not None]
    if len(known) < len(reported):
        return WHOLE_BATCH_FAILED
    return Verdict(min(known)) if known else SUCCESS


def _identifier(failure: dict[str, Any]) -> str:
    identifier = failure.get("itemIdentifier")
    return identifier if isinstance(identifier, str) else ""


def after_failure(piece: Piece, verdict: Verdict, settings: MappingSettings) -> RetryPlan:
    """What to do with a piece whose delivery failed from `verdict.failed_from` on.

    Splits (at the reported record, or else in halves) consume no attempt; a retry does, and waits
    first. A piece that is out of attempts is given up whole.
    """
    assert verdict.failed_from is not None, "nothing failed"
    rest = piece.items[verdict.failed_from :]
    if settings.bisect_on_error and verdict.failed_from > 0:
        return RetryPlan((Piece(rest, piece.attempts),))
    if settings.bisect_on_error and len(rest) > 1:
        middle = len(rest) // 2
        halves = Piece(rest[:middle], piece.attempts), Piece(rest[middle:], piece.attempts)
        return RetryPlan(halves)
    tried = Piece(rest, piece.attempts + 1)
    if settings.retry_attempts_max != ENDLESS and tried.attempts > settings.retry_attempts_max:
        return RetryPlan(discard=tried)
    return RetryPlan((tried,), after_wait=True)


def expire(
    piece: Piece, settings: MappingSettings, *, now: float
) -> tuple[Piece | None, Piece | None]:
    """Part a piece into the records that are too old to be delivered and the rest."""
    if settings.record_age_s_max == ENDLESS:
        return None, piece
    oldest = now - settings.record_age_s_max
    old = tuple(item for item in piece.items if item.record.arrived_at < oldest)
    young = tuple(item for item in piece.items if item.record.arrived_at >= oldest)
    return (
        Piece(old, piece.attempts) if old else None,
        Piece(young, piece.attempts) if young else None,
    )


def deliver(
    batch: tuple[Item, ...],
    settings: MappingSettings,
    *,
    invoke: Callable[[Piece], Verdict],
    discard: Callable[[Piece, Condition, Verdict], None],
    now: Callable[[], float],
    wait: Callable[[int], None],
) -> None:
    """Return when every record of a batch was either delivered with success or discarded, in order.

    `wait` gets the number of failures in a row and sleeps; it (or `invoke`) may raise to abandon
    the batch, which then has to be delivered again as a whole.
    """
    work, failures = deque([Piece(batch)]), 0
    while work:
        expired, piece = expire(work.popleft(), settings, now=now())
        if expired:
            discard(expired, Condition.TOO_OLD, UNHANDLED_ERROR)
        if piece is None:
            continue
        verdict = invoke(piece)
        if verdict.succeeded:
            failures = 0
            continue
        plan = after_failure(piece, verdict, settings)
        if plan.discard:
            discard(plan.discard, Condition.EXHAUSTED, verdict)
        work.extendleft(reversed(plan.retry))
        if plan.after_wait:
            failures += 1
            wait(failures)


def failure_key(mapping_id: str, shard_id: str, *, at: datetime, unique: str) -> str:
    """Object key of a failure record in S3, with Lambda's layout."""
    utc = at.astimezone(UTC)
    return f"aws/lambda/{mapping_id}/{shard_id}/{utc:%Y/%m/%d}/{utc:%Y-%m-%dT%H.%M.%S}-{unique}"


def failure_record(
    piece: Piece,
    condition: Condition,
    verdict: Verdict,
    *,
    shard_id: str,
    stream_arn: str,
    function_arn: str,
    request_id: str,
    at: datetime,
) -> dict[str, Any]:
    """What Lambda writes to an S3 destination: metadata and, as a string, the event."""
    record: dict[str, Any] = {
        "requestContext": {
            "requestId": request_id,
            "functionArn": function_arn,
            "condition": condition.value,
            "approximateInvokeCount": piece.attempts,
        },
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled" if verdict.unhandled else None,
        },
        "version": "1.0",
        "timestamp": _iso(at),
        "KinesisBatchInfo": _batch_info(piece, shard_id, stream_arn),
        "payload": json.dumps(batch_event(piece, shard_id, stream_arn), separators=(",", ":")),
    }
    if condition is Condition.TOO_OLD:
        del record["responseContext"]
    return record


def _batch_info(piece: Piece, shard_id: str, stream_arn: str) -> dict[str, Any]:
    first, last = piece.records[0], piece.records[-1]
    return {
        "shardId": shard_id,
        "startSequenceNumber": first.sequence_number,
        "endSequenceNumber": last.sequence_number,
        "approximateArrivalOfFirstRecord": _iso(datetime.fromtimestamp(first.arrived_at, UTC)),
        "approximateArrivalOfLastRecord": _iso(datetime.fromtimestamp(last.arrived_at, UTC)),
        "batchSize": len(piece.items),
        "streamArn": stream_arn,
    }


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def startable(
    shards: Iterable[Shard], *, finished: Collection[str], started: Collection[str]
) -> list[Shard]:
    """Shards to begin now: not begun, and every parent that still exists is consumed to its end."""
    shards = list(shards)
    unfinished = {shard.shard_id for shard in shards} - set(finished)
    return [
        shard
        for shard in shards
        if shard.shard_id in unfinished
        and shard.shard_id not in started
        and not unfinished.intersection(shard.parent_ids)
    ]


class Progress:
    """How far a shard is done when its batches finish out of order.

    The checkpoint is the last record below which nothing is outstanding, so a restart repeats
    records but never skips one.
    """

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint
        self.taken = self.completed = 0
        self._outstanding: deque[str] = deque()
        self._done: set[str] = set()

    def take(self, sequence_number: str) -> None:
        """A record has been read; call in shard order."""
        self._outstanding.append(sequence_number)
        self.taken += 1

    def finish(self, sequence_numbers: Iterable[str]) -> None:
        """These records need no more delivery; advances the checkpoint as far as it goes."""
        self._done.update(sequence_numbers)
        while self._outstanding and self._outstanding[0] in self._done:
            self.checkpoint = self._outstanding.popleft()
            self._done.remove(self.checkpoint)
            self.completed += 1
