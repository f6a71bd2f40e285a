"""Batches that the event source mapping gave up on, and how they come back.

Lambda writes each to the failure destination as an object with shard, sequence range and, on S3,
the whole event; where only the range is told (SQS, SNS), the records are read from the stream
again while it retains them. Either way they land as the consumer lands them: same decoding, same
places in the stream, a receipt of their range. Afterwards the object moves below `replayed/`: a run
that is killed before that lands the same again, which changes nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import Any

from consumer.decode import DecodedBatch, decode_batch
from consumer.landing import land
from freshet.errors import TerminalError
from freshet.kinesis import RecordsGoneError, RetainedRecord, RetainedStream
from freshet.mapping import Streams
from freshet.objects import Objects
from freshet.receipt import Receipt
from lake.log import Kind, Place
from lake.prune import bury_again
from lake.replay import Again, Progress, Replayed, Wanted, erased_places

# Where Lambda writes below a failure destination; the place is Lambda's, not ours.
PREFIX = "aws/lambda/"
REPLAYED, DISCARDED = "replayed/", "discarded/"
# The reason under which they are listed beside rejected lines.
BATCH_FAILED = "batch_failed"
# Read again as the mapping would deliver them.
_BATCH_RECORDS = 1_000


class UnreadableFailureError(TerminalError):
    """A failure object that is not what Lambda writes."""

    def __init__(self, key: str, detail: str) -> None:
        self.key = key
        super().__init__(
            f"failure object {key!r} cannot be read ({detail}): mend it, or move it away from "
            f"{PREFIX} by hand"
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A batch that was given up: why, after how many attempts, and which records.

    `payload` is the event as Lambda would deliver it; None where only the range was told.
    """

    key: str
    condition: str
    attempts: int
    failed_at: datetime
    shard_id: str
    first_sequence_number: str
    last_sequence_number: str
    records: int
    first_arrival: datetime
    last_arrival: datetime
    stream: str
    payload: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The batch's name, as a receipt has it."""
        return f"{self.shard_id}-{self.first_sequence_number}-{self.last_sequence_number}"

    def is_wanted(self, wanted: Wanted) -> bool:
        """Whether a filter of lines means this batch: nobody knows its tables or decoders yet."""
        reasons = (None, BATCH_FAILED, self.condition)
        named = wanted.table or wanted.decoder
        own = wanted.shard in (None, self.shard_id) and wanted.place in (None, self.key)
        early = wanted.until is not None and self.first_arrival >= wanted.until
        late = wanted.since is not None and self.last_arrival < wanted.since
        return wanted.reason in reasons and not named and own and not early and not late


def read_failure(key: str, data: bytes) -> Failure:
    """The failure that an object describes. Raises `UnreadableFailureError`."""
    try:
        body = json.loads(data)
        request, batch = body["requestContext"], body["KinesisBatchInfo"]
        payload = json.loads(body["payload"]) if body.get("payload") else None
        assert payload is None or payload["Records"], "its payload holds no record"
        return Failure(
            key,
            str(request["condition"]),
            int(request["approximateInvokeCount"]),
            datetime.fromisoformat(body["timestamp"]),
            str(batch["shardId"]),
            str(int(batch["startSequenceNumber"])),
            str(int(batch["endSequenceNumber"])),
            int(batch["batchSize"]),
            datetime.fromisoformat(batch["approximateArrivalOfFirstRecord"]),
            datetime.fromisoformat(batch["approximateArrivalOfLastRecord"]),
            str(batch["streamArn"]).rpartition("/")[2],
            payload,
        )
    except (ValueError, LookupError, TypeError, AssertionError, RecursionError) as error:
        raise UnreadableFailureError(key, f"{type(error).__name__}: {error}") from error


class Failures:
    """The failure objects of a bucket."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.unreadable: list[UnreadableFailureError] = []
        """Objects that the last look could not read."""

    def pending(self, wanted: Wanted = Wanted()) -> Iterator[Failure]:  # noqa: B008 - frozen
        """Those that nobody has dealt with, oldest first within a shard; see `unreadable`."""
        yield from self._below(PREFIX, wanted)

    def discarded(self) -> Iterator[Failure]:
        """Those that somebody gave up for good."""
        yield from self._below(DISCARDED, Wanted())

    def _below(self, prefix: str, wanted: Wanted) -> Iterator[Failure]:
        self.unreadable = []
        for key in list(self.objects.list(prefix)):
            try:
                failure = read_failure(key, self.objects.get(key).data)
            except UnreadableFailureError as error:
                self.unreadable.append(error)
                continue
            if failure.is_wanted(wanted):
                yield failure

    def close(self, failure: Failure, folder: str) -> None:
        """Move a failure below `folder`. Killed half-way, it is in both places and may be moved
        again.
        """
        self.objects.put(folder + failure.key, self.objects.get(failure.key).data)
        self.objects.delete(failure.key)


@dataclass(frozen=True)
class Source:
    """What failures are read with: the declarations of other formats, and a reader of the stream.

    `stream` opens what a stream retains by its name.
    """

    streams: Streams
    stream: Any


def replay_failures(
    again: Again,
    failures: Failures,
    source: Source,
    wanted: Wanted,
    *,
    dry_run: bool = False,
    progress: Progress = lambda _: None,
) -> Replayed:
    """Land what was given up. Its bad lines are quarantined as ever, its good ones are in tables.

    Where records must be read again and the stream has let go of some, those that are left land,
    the object stays, and a `RecordsGoneError` is among the errors.
    """
    done = Replayed()
    for failure in failures.pending(wanted):
        try:
            for batch in _batches(again, failure, source):
                done.lines += batch.records
                done.landed += batch.records
                if not dry_run:
                    _land(again, batch, failure, done)
        except RecordsGoneError as error:
            done.errors.append(error)
            continue
        told = "would land" if dry_run else "landed"
        progress(f"{failure.key}: {failure.records:,} records {told}")
        if not dry_run:
            failures.close(failure, REPLAYED)
    done.errors += failures.unreadable
    return done


def _land(again: Again, batch: DecodedBatch, failure: Failure, done: Replayed) -> None:
    bury_again(again.lake, batch.events)
    note = f"by {again.by}: {failure.condition}"
    landed = land(batch, again.lake, again.tables, now=again.now, kind=Kind.FAILURE, note=note)
    _count(done, landed.rows)


def _count(done: Replayed, rows: Iterable[Any]) -> None:
    for row in rows:
        if row.table_name is not None:
            done.add(row.table_name, row.receipt)
        elif row.receipt.rejected:
            done.add("", Receipt(received=row.receipt.rejected, rejected=row.receipt.rejected))


def discard_failures(failures: Failures, wanted: Wanted) -> int:
    """Give up for good what is meant: the objects move below `discarded/`; how many records."""
    records = 0
    for failure in failures.pending(wanted):
        failures.close(failure, DISCARDED)
        records += failure.records
    return records


def _batches(again: Again, failure: Failure, source: Source) -> Iterator[DecodedBatch]:
    if failure.payload is not None:
        yield _decoded(again, source, failure.payload)
        return
    records, numbers = _left(source.stream(failure.stream), failure), list[int]()
    while some := list(islice(records, _BATCH_RECORDS)):
        numbers += [int(record.sequence_number) for record in some]
        yield _decoded(again, source, event_of(some))
    _require_all(failure, numbers)


def _decoded(again: Again, source: Source, event: Mapping[str, Any]) -> DecodedBatch:
    return decode_batch(event, again.tables, streams=source.streams, protect=again.protect)


def _left(stream: RetainedStream, failure: Failure) -> Iterator[RetainedRecord]:
    """Those of the failure's records that the stream still holds."""
    shard_id, first = failure.shard_id, failure.first_sequence_number
    if shard_id not in stream.shards():
        return
    try:
        yield from stream.records(shard_id, first=first, last=failure.last_sequence_number)
    except RecordsGoneError:  # the first is gone: what came after it may still be there
        for record in stream.records(shard_id, last=failure.last_sequence_number):
            if int(record.sequence_number) >= int(first):
                yield record


def _require_all(failure: Failure, numbers: list[int]) -> None:
    """Raise `RecordsGoneError`, naming the range, where records are missing."""
    first, last = int(failure.first_sequence_number), int(failure.last_sequence_number)
    if {first, last} <= set(numbers) and len(numbers) >= failure.records:
        return
    there = f"from {numbers[0]} to {numbers[-1]}, which landed" if numbers else "none of them"
    raise RecordsGoneError(
        failure.stream,
        failure.shard_id,
        failure.first_sequence_number,
        f"of {failure.records:,} records up to {last} it holds {len(numbers):,}, {there}",
    )


def event_of(records: Iterable[RetainedRecord]) -> dict[str, Any]:
    """Records as Lambda would deliver them: what the decoding of a batch reads of them."""
    return {
        "Records": [
            {
                "eventID": f"{record.shard_id}:{record.sequence_number}",
                "kinesis": {
                    "sequenceNumber": record.sequence_number,
                    "data": base64.b64encode(record.data).decode("ascii"),
                    # Lambda gives milliseconds; a place must not depend on who read the record.
                    "approximateArrivalTimestamp": round(record.arrived_at.timestamp(), 3),
                },
            }
            for record in records
        ]
    }


def replay_stream(
    again: Again,
    source: Source,
    stream: RetainedStream,
    wanted: Wanted,
    *,
    progress: Progress = lambda _: None,
) -> Replayed:
    """Land what the stream retains of a range of arrivals once more, of one table or of all.

    Normally nothing changes: what was consumed is there, and rejected lines are in the quarantine.
    """
    done, erased = Replayed(), erased_places(again.lake)
    for shard_id in stream.shards():
        if wanted.shard not in (None, shard_id):
            continue
        records = (one for one in stream.records(shard_id) if wanted.holds(one.arrived_at))
        while some := list(islice(records, _BATCH_RECORDS)):
            batch = _kept(_decoded(again, source, event_of(some)), wanted.table, erased)
            landed = land(batch, again.lake, again.tables, now=again.now, kind=Kind.REPLAY)
            done.lines += len(batch.events) + len(batch.truncations)
            _count(done, landed.rows)
            progress(f"{shard_id}: {done.lines:,} changes of the stream merged again")
    return done


def _kept(batch: DecodedBatch, table: str | None, erased: set[tuple[str, str]]) -> DecodedBatch:
    """What of a batch is of the table, and was not erased: that must not be logged again."""

    def stays(one: str | None, place: Place) -> bool:
        return table in (None, one) and (place.shard_id, place.position) not in erased

    return replace(
        batch,
        events=[item for item in batch.events if stays(item.event.table, item.place)],
        rejected=[line for line in batch.rejected if stays(line.table, line.place)],
        truncations=[end for end in batch.truncations if stays(end.table, end.place)],
    )
