"""The change stream on Amazon Kinesis: the one place that puts change events into a stream, and
reads back what it retains.

Kinesis answers a PutRecords call record by record and promises no order between the records of a
call. So at most one record of a lane is in flight: its successor waits until the stream has taken
it. What the stream refuses is sent again, alone, after a jittered pause; what it still refuses when
time is up is reported by position, so that the caller can send exactly that again.

The function that consumes the stream needs no reader: Lambda hands it its records. Those who ask
whether all of them arrived, or bring back what was given up, read here.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError

from freshet.contract import Registry
from freshet.errors import SettingsError, StreamUnavailableError, TerminalError
from freshet.event import ChangeEvent
from freshet.stream import LANES, PackedRecord, PublishReport, pack

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import (
        GetRecordsOutputTypeDef,
        PutRecordsRequestEntryTypeDef,
    )

# Kinesis refuses a PutRecords call of more than 500 records ...
PUT_RECORDS_MAX = 500
# ... or of more than 5 MB, partition keys included (10 MiB where the 2025 limits have arrived).
PUT_BYTES_MAX = 5_000_000
# API Gateway gives up after 30 s: past 10 s of trouble a 503 serves a caller better than waiting.
PUBLISH_S_MAX = 10.0
# Doubling pauses of 50 ms fill those 10 s in eight rounds; a shard's budget renews every second.
ROUNDS_MAX = 10
PAUSE_S_FIRST = 0.05
PAUSE_S_MAX = 2.0
# GetRecords gives at most 10,000 records or 10 MB, and five calls a second to a shard, which the
# consumer shares: a refused reader waits its second out, and thirty of them are an outage.
GET_RECORDS_MAX = 10_000
READ_PAUSE_S = 1.0
READ_ATTEMPTS_MAX = 30

# Retries happen here, where time is bounded and lanes keep their order: botocore must not add any.
CLIENT_CONFIG = Config(
    connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1, "mode": "standard"}
)

_HASH_KEYS = 1 << 128  # Kinesis's hash key space
# Whole-call answers that a later call may not get; 5xx answers count as such whatever their code.
_LIMIT_CODES = frozenset(
    (
        "ProvisionedThroughputExceededException",
        "LimitExceededException",
        "ThrottlingException",
        "Throttling",
        "RequestLimitExceeded",
        "KMSThrottlingException",
    )
)
_TRANSIENT_CODES = _LIMIT_CODES | {"InternalFailure", "ServiceUnavailable", "RequestTimeout"}


@dataclass(slots=True)
class _Round:
    """What one pass over the lanes' first waiting records brought."""

    accepted: list[PackedRecord] = field(default_factory=list)
    refused: dict[str, int] = field(default_factory=dict)  # reason -> records

    def refuse(self, reason: str, records: int = 1) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + records

    @property
    def silent(self) -> bool:
        """True when the stream failed without a word about its limits."""
        return bool(self.refused) and not self.accepted and not self.refused.keys() & _LIMIT_CODES


class KinesisStream:
    """`freshet.stream.ChangeStream` on the Kinesis stream `stream_name`.

    `client` should be built with `CLIENT_CONFIG`. `wait` and `monotonic` take and give seconds;
    `jitter` gives 0 ≤ x < 1. A publish ends after `rounds_max` fruitless rounds or `publish_s_max`
    seconds, plus at most one round's own time-outs.
    """

    def __init__(
        self,
        client: KinesisClient,
        stream_name: str,
        tables: Registry,
        *,
        lanes: int = LANES,
        rounds_max: int = ROUNDS_MAX,
        publish_s_max: float = PUBLISH_S_MAX,
        wait: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._client, self._stream, self._tables, self._lanes = client, stream_name, tables, lanes
        self._rounds_max, self._publish_s_max = rounds_max, publish_s_max
        self._wait, self._monotonic, self._jitter = wait, monotonic, jitter

    def publish(self, events: Sequence[ChangeEvent]) -> PublishReport:
        """See `ChangeStream.publish`.

        Raises `SettingsError` when the stream does not exist or refuses this caller.
        """
        queues: dict[int, deque[PackedRecord]] = {}
        for record in pack(events, self._tables, lanes=self._lanes):
            queues.setdefault(record.lane, deque()).append(record)
        last = self._drain(queues)
        throttled = {at for queue in queues.values() for record in queue for at in record.events}
        accepted = tuple(at for at in range(len(events)) if at not in throttled)
        detail = ", ".join(f"{reason} x {count}" for reason, count in last.refused.items())
        if last.silent and not accepted:
            raise StreamUnavailableError(self._stream, f"did not answer ({detail})")
        return PublishReport(accepted, tuple(sorted(throttled)), detail if throttled else "")

    def _drain(self, queues: dict[int, deque[PackedRecord]]) -> _Round:
        """Send until nothing waits or a bound is reached; returns the last round."""
        deadline = self._monotonic() + self._publish_s_max
        fruitless, outcome = 0, _Round()
        while queues:
            outcome = self._send([queue[0] for queue in queues.values()])
            for record in outcome.accepted:
                queues[record.lane].popleft()
                if not queues[record.lane]:
                    del queues[record.lane]
            if not outcome.refused:
                continue
            fruitless = 0 if outcome.accepted else fruitless + 1
            pause = self._pause_s(fruitless)
            if fruitless >= self._rounds_max or self._monotonic() + pause >= deadline:
                break
            self._wait(pause)
        return outcome

    def _pause_s(self, fruitless: int) -> float:
        """Half of a doubling bound and a random part of the rest, so callers get out of step."""
        bound = min(PAUSE_S_MAX, PAUSE_S_FIRST * 2.0**fruitless)
        return bound * (0.5 + self._jitter() / 2)

    def _send(self, records: Sequence[PackedRecord]) -> _Round:
        outcome = _Round()
        for call in _calls(records):
            self._put(call, outcome)
        return outcome

    def _put(self, call: Sequence[PackedRecord], outcome: _Round) -> None:
        try:
            answer = self._client.put_records(
                StreamName=self._stream, Records=[self._entry(record) for record in call]
            )
        except ClientError as error:
            outcome.refuse(_transient_code(error, self._stream), len(call))
        except (NoConnectionError, HTTPClientError) as error:  # none, timed out, or lost
            outcome.refuse(type(error).__name__, len(call))
        except BotoCoreError as error:
            raise _unusable(error) from error
        else:
            for record, result in zip(call, answer["Records"], strict=True):
                code = result.get("ErrorCode")
                if code:
                    outcome.refuse(code)
                else:
                    outcome.accepted.append(record)

    def _entry(self, record: PackedRecord) -> PutRecordsRequestEntryTypeDef:
        return {
            "Data": record.data,
            "PartitionKey": partition_key(record.lane),
            "ExplicitHashKey": explicit_hash_key(record.lane, self._lanes),
        }


class RetainedRecord(NamedTuple):
    """A record that the stream still holds."""

    shard_id: str
    sequence_number: str
    data: bytes
    arrived_at: datetime


class RecordsGoneError(TerminalError):
    """Records that the stream no longer holds."""

    def __init__(self, stream: str, shard_id: str, sequence_number: str, detail: str) -> None:
        self.stream, self.shard_id, self.sequence_number = stream, shard_id, sequence_number
        super().__init__(
            f"stream {stream!r}: {shard_id} cannot be read from {sequence_number} on ({detail}): "
            "its retention is over, or it is another stream; send those changes again at the source"
        )


class RetainedStream:
    """What the Kinesis stream `stream_name` retains, shard by shard, to the tip as it is then.

    Iterating gives every record of every shard, closed ones included, oldest first in each; once
    more begins anew. `wait` takes seconds. Raises `StreamUnavailableError` when the stream does not
    answer within the retries, `SettingsError` when it does not exist or refuses this caller.
    """

    def __init__(
        self,
        client: KinesisClient,
        stream_name: str,
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._stream, self._wait = client, stream_name, wait

    def __iter__(self) -> Iterator[RetainedRecord]:
        for shard_id in self.shards():
            yield from self.records(shard_id)

    def shards(self) -> list[str]:
        """The ids of all shards that hold or may get records, in order."""
        found: list[str] = []
        request: Any = {"StreamName": self._stream}
        while request:
            answer = self._patiently(partial(self._client.list_shards, **request))
            found.extend(shard["ShardId"] for shard in answer["Shards"])
            following = answer.get("NextToken")
            request = {"NextToken": following} if following else {}
        return sorted(found)

    def records(
        self, shard_id: str, *, first: str | None = None, last: str | None = None
    ) -> Iterator[RetainedRecord]:
        """A shard's records from sequence number `first` (None: the oldest retained) up to and with
        `last` (None: the tip).

        Raises `RecordsGoneError` where `first` is no longer there, besides.
        """
        at = {"ShardIteratorType": "TRIM_HORIZON"} if first is None else _from(first)
        missing = first
        iterator: str | None = self._iterator(shard_id, at)
        while iterator is not None:
            answer = self._page(iterator)
            if answer is None:  # the iterator expired: it lives for five minutes
                iterator = self._iterator(shard_id, at)
                continue
            for record in answer["Records"]:
                number = record["SequenceNumber"]
                if missing not in (None, number):
                    break
                missing = None
                if last is not None and int(number) > int(last):
                    return
                arrived = record["ApproximateArrivalTimestamp"].astimezone(UTC)
                yield RetainedRecord(shard_id, number, record["Data"], arrived)
                at = _from(number, after=True)
            iterator = answer.get("NextShardIterator") if answer["MillisBehindLatest"] else None
            if missing is not None and (answer["Records"] or iterator is None):
                detail = "it is no longer there"
                raise RecordsGoneError(self._stream, shard_id, missing, detail)

    def _iterator(self, shard_id: str, at: dict[str, Any]) -> str:
        def ask() -> Any:
            return self._client.get_shard_iterator(StreamName=self._stream, ShardId=shard_id, **at)[
                "ShardIterator"
            ]

        try:
            return str(self._patiently(ask))
        except self._client.exceptions.InvalidArgumentException as error:
            number = at.get("StartingSequenceNumber", "the oldest")
            raise RecordsGoneError(self._stream, shard_id, number, str(_message(error))) from error

    def _page(self, iterator: str) -> GetRecordsOutputTypeDef | None:
        def ask() -> GetRecordsOutputTypeDef | None:
            try:
                return self._client.get_records(ShardIterator=iterator, Limit=GET_RECORDS_MAX)
            except self._client.exceptions.ExpiredIteratorException:
                return None

        page: GetRecordsOutputTypeDef | None = self._patiently(ask)
        return page

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """The answer, asked for again while the stream is busy."""
        reason = ""
        for attempt in range(READ_ATTEMPTS_MAX):
            if attempt:
                self._wait(READ_PAUSE_S)
            try:
                return ask()
            except self._client.exceptions.InvalidArgumentException:
                raise
            except ClientError as error:
                reason = _transient_code(error, self._stream)
            except (NoConnectionError, HTTPClientError) as error:
                reason = type(error).__name__
            except BotoCoreError as error:
                raise _unusable(error) from error
        raise StreamUnavailableError(self._stream, f"cannot be read ({reason})")


def _from(sequence_number: str, *, after: bool = False) -> dict[str, str]:
    place = "AFTER_SEQUENCE_NUMBER" if after else "AT_SEQUENCE_NUMBER"
    return {"ShardIteratorType": place, "StartingSequenceNumber": sequence_number}


def partition_key(lane: int) -> str:
    """The Kinesis partition key of a lane, `lane-07`: Lambda keeps order per partition key."""
    return f"lane-{lane:02d}"


def explicit_hash_key(lane: int, lanes: int) -> str:
    """The middle of the lane's equal share of the hash key space: equal shards get equal lanes.

    Left to hash 64 partition keys, Kinesis would give some shards twice the lanes of others.
    """
    return str((2 * lane + 1) * _HASH_KEYS // (2 * lanes))


def _calls(records: Sequence[PackedRecord]) -> Iterator[list[PackedRecord]]:
    """Records cut into PutRecords calls within both limits."""
    call: list[PackedRecord] = []
    size = 0
    for record in records:
        record_bytes = len(record.data) + len(partition_key(record.lane))
        if call and (len(call) >= PUT_RECORDS_MAX or size + record_bytes > PUT_BYTES_MAX):
            yield call
            call, size = [], 0
        call.append(record)
        size += record_bytes
    if call:
        yield call


def _transient_code(error: ClientError, stream: str) -> str:
    """The code of an error that may pass; raises `SettingsError` for any other."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _TRANSIENT_CODES or status >= 500:
        return code or f"HTTP {status}"
    advice: dict[str, str] = {
        "ResourceNotFoundException": "does not exist in this account and region: correct the name",
        "AccessDeniedException": "refuses this caller: grant it "
        f"kinesis:{error.operation_name} on the stream",
    }
    raise SettingsError(
        "STREAM_NAME", f"stream {stream!r} {advice.get(code, f'answers {code}: {_message(error)}')}"
    ) from error


def _message(error: ClientError) -> Any:
    return error.response.get("Error", {}).get("Message", "no message")


def _unusable(error: BotoCoreError) -> SettingsError:
    if isinstance(error, NoCredentialsError):
        return SettingsError(
            "AWS_PROFILE", "no AWS credentials found: set a profile, keys or a role"
        )
    return SettingsError("AWS_ENDPOINT_URL", f"the Kinesis client cannot be used: {error}")
