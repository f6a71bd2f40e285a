"""Reading a stream shard by shard: the port an event source mapping needs, and its two adapters.

`KinesisShards` reads any Kinesis endpoint through boto3. `InMemoryShards` is a stream without one;
one contract suite holds both to the same promises.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from freshet.errors import StreamUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import GetRecordsOutputTypeDef

# Partition keys map to shards by MD5 as a 128-bit number, as Kinesis documents.
HASH_KEY_MAX = 2**128 - 1


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A record of a shard. Sequence numbers order records within their shard only, as integers."""

    sequence_number: str
    partition_key: str
    data: bytes
    arrived_at: float  # epoch seconds


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard and the shards it came from by split (one parent) or merge (two)."""

    shard_id: str
    parent_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """Records in shard order; `ended` means that the shard is closed and nothing follows them."""

    records: tuple[StreamRecord, ...]
    ended: bool = False


class ShardReader(Protocol):
    """What a mapping reads. Methods may raise a TransientError; the same call may then succeed."""

    @property
    def stream_arn(self) -> str:
        """ARN of the stream."""

    def shards(self) -> Sequence[Shard]:
        """All shards that hold or may get records, closed ones included, in shard id order."""

    def read(self, shard_id: str, after: str | None, limit: int) -> Page:
        """Up to `limit` records after the sequence number `after` (None: the oldest there is).

        An empty page that has not ended was read at the tip of the shard.
        """


class KinesisShards:
    """Shards of a Kinesis stream. Keeps each shard's iterator: reading on costs one call."""

    def __init__(self, client: KinesisClient, stream_arn: str) -> None:
        self._client, self._arn = client, stream_arn
        self._iterators: dict[tuple[str, str | None], str] = {}

    @property
    def stream_arn(self) -> str:
        """ARN of the stream."""
        return self._arn

    def shards(self) -> list[Shard]:
        """All shards of the stream, page by page."""
        found: list[Shard] = []
        request: dict[str, str] = {"StreamARN": self._arn}
        while request:
            try:
                answer = self._client.list_shards(**request)  # type: ignore[arg-type]
            except (ClientError, BotoCoreError) as error:
                raise StreamUnavailableError(self._arn, str(error)) from error
            for shard in answer["Shards"]:
                parents = (shard.get("ParentShardId"), shard.get("AdjacentParentShardId"))
                found.append(Shard(shard["ShardId"], tuple(filter(None, parents))))
            request = {"NextToken": answer["NextToken"]} if answer.get("NextToken") else {}
        return sorted(found, key=lambda shard: shard.shard_id)

    def read(self, shard_id: str, after: str | None, limit: int) -> Page:
        """One GetRecords call, or more while it answers nothing although it is behind the tip."""
        iterator = self._iterators.pop((shard_id, after), None)
        try:
            while True:
                if iterator is None:
                    iterator = self._iterator_after(shard_id, after)
                answer = self._get_records(iterator, limit)
                iterator = answer.get("NextShardIterator") if answer else None
                if answer and (
                    answer["Records"] or not iterator or not answer["MillisBehindLatest"]
                ):
                    return self._page(shard_id, after, answer)
        except (ClientError, BotoCoreError) as error:
            raise StreamUnavailableError(self._arn, str(error)) from error

    def _iterator_after(self, shard_id: str, after: str | None) -> str:
        if after is None:
            answer = self._client.get_shard_iterator(
                StreamARN=self._arn, ShardId=shard_id, ShardIteratorType="TRIM_HORIZON"
            )
        else:
            answer = self._client.get_shard_iterator(
                StreamARN=self._arn,
                ShardId=shard_id,
                ShardIteratorType="AFTER_SEQUENCE_NUMBER",
                StartingSequenceNumber=after,
            )
        return answer["ShardIterator"]

    def _get_records(self, iterator: str, limit: int) -> GetRecordsOutputTypeDef | None:
        """None for an expired iterator: it lives five minutes, and not across a restart."""
        try:
            return self._client.get_records(ShardIterator=iterator, Limit=limit)
        except self._client.exceptions.ExpiredIteratorException:
            return None

    def _page(self, shard_id: str, after: str | None, answer: GetRecordsOutputTypeDef) -> Page:
        records = tuple(
            StreamRecord(
                record["SequenceNumber"],
                record["PartitionKey"],
                record["Data"],
                record["ApproximateArrivalTimestamp"].timestamp(),
            )
            for record in answer["Records"]
        )
        position = records[-1].sequence_number if records else after
        following = answer.get("NextShardIterator")
        if following:
            self._iterators[shard_id, position] = following
        return Page(records, ended=not following)


@dataclass(slots=True)
class _MemoryShard:
    shard: Shard
    hash_keys: range
    closed: bool = False
    records: list[StreamRecord] = field(default_factory=list)


class InMemoryShards:
    """A stream in memory that splits and merges as Kinesis does; for tests and dry runs."""

    def __init__(
        self,
        shards: int = 1,
        *,
        stream_name: str = "memory",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.stream_arn = f"arn:aws:kinesis:us-east-1:000000000000:stream/{stream_name}"
        self._clock, self._lock = clock, threading.Lock()
        self._shards: dict[str, _MemoryShard] = {}
        self._sequence = 0
        size = (HASH_KEY_MAX + 1) // shards
        for number in range(shards):
            end = HASH_KEY_MAX + 1 if number == shards - 1 else (number + 1) * size
            self._add(range(number * size, end))

    def put(self, partition_key: str, data: bytes) -> tuple[str, str]:
        """Append a record to the open shard of its key; returns shard id and sequence number."""
        hash_key = int.from_bytes(
            hashlib.md5(partition_key.encode(), usedforsecurity=False).digest(), "big"
        )
        with self._lock:
            target = next(
                shard
                for shard in self._shards.values()
                if not shard.closed and hash_key in shard.hash_keys
            )
            self._sequence += 1
            number = f"{self._sequence:056d}"
            target.records.append(StreamRecord(number, partition_key, data, self._clock()))
            return target.shard.shard_id, number

    def split(self, shard_id: str) -> tuple[str, str]:
        """Close a shard and open two children over the halves of its hash keys."""
        with self._lock:
            parent = self._shards[shard_id]
            parent.closed = True
            middle = (parent.hash_keys.start + parent.hash_keys.stop) // 2
            halves = range(parent.hash_keys.start, middle), range(middle, parent.hash_keys.stop)
            low, high = (self._add(half, shard_id) for half in halves)
            return low, high

    def merge(self, shard_id: str, adjacent_id: str) -> str:
        """Close two shards with adjoining hash keys and open one child over both ranges."""
        with self._lock:
            parents = self._shards[shard_id], self._shards[adjacent_id]
            for parent in parents:
                parent.closed = True
            low, high = sorted(
                (parent.hash_keys for parent in parents), key=lambda keys: keys.start
            )
            return self._add(range(low.start, high.stop), shard_id, adjacent_id)

    def shards(self) -> list[Shard]:
        """All shards, closed ones included."""
        with self._lock:
            return [shard.shard for shard in self._shards.values()]

    def read(self, shard_id: str, after: str | None, limit: int) -> Page:
        """Records after `after`; `ended` with the last records of a closed shard."""
        with self._lock:
            shard = self._shards[shard_id]
            start = -1 if after is None else int(after)
            rest = [record for record in shard.records if int(record.sequence_number) > start]
            return Page(tuple(rest[:limit]), ended=shard.closed and len(rest) <= limit)

    def _add(self, hash_keys: range, *parent_ids: str) -> str:
        shard_id = f"shardId-{len(self._shards):012d}"
        self._shards[shard_id] = _MemoryShard(Shard(shard_id, parent_ids), hash_keys)
        return shard_id
