"""Batches that delivery gave up on come back whole, with their payload or from the stream."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.integration.test_quarantine_replay import (
    AFTER,
    HISTORY,
    NOW,
    SHARD,
    Crash,
    CrashingObjects,
    again,
    copied,
    deliver,
    never_refused,
    site_of,
    state,
)

from freshet.arrow import position_of
from freshet.kinesis import RecordsGoneError, RetainedRecord
from freshet.mapping import Streams
from freshet.testing import EPOCH, MemoryObjects
from lake.lake import Lake
from lake.log import CHANGE_LOG, RECEIPTS, Kind, Place, Resolution, Verdict
from lake.replay import Wanted
from local.delivery import (
    WHOLE_BATCH_FAILED,
    Condition,
    Item,
    Piece,
    failure_key,
    failure_record,
)
from local.failures import (
    Failures,
    Source,
    UnreadableFailureError,
    discard_failures,
    read_failure,
    replay_failures,
    replay_stream,
)
from local.shards import StreamRecord

ARN = "arn:aws:kinesis:eu-west-1:123456789012:stream/changes"


@dataclass
class KeptRecords:
    """What a stream retains: a `RetainedStream` over a list."""

    kept: list[RetainedRecord] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)

    def shards(self) -> list[str]:
        return sorted({one.shard_id for one in self.kept})

    def records(
        self, shard_id: str, *, first: str | None = None, last: str | None = None
    ) -> Iterator[RetainedRecord]:
        self.asked.append(first)
        of_shard = [one for one in self.kept if one.shard_id == shard_id]
        if first is not None and first not in [one.sequence_number for one in of_shard]:
            raise RecordsGoneError("changes", shard_id, first, "it is no longer there")
        for one in of_shard:
            number = int(one.sequence_number)
            if int(first or 0) <= number <= int(last or number):
                yield one


def source(kept: KeptRecords | None = None) -> Source:
    return Source(Streams(()), lambda _: kept or KeptRecords())


def given_up(objects: MemoryObjects, records: list[RetainedRecord], *, payload: bool = True) -> str:
    """A failure object of these records as the event source mapping writes it; its key."""
    items = tuple(
        Item(StreamRecord(one.sequence_number, "lane", one.data, one.arrived_at.timestamp()), 0)
        for one in records
    )
    body = failure_record(
        Piece(items, 3),
        Condition.EXHAUSTED,
        WHOLE_BATCH_FAILED,
        shard_id=SHARD,
        stream_arn=ARN,
        function_arn="arn:aws:lambda:eu-west-1:123456789012:function:consumer",
        request_id="r-1",
        at=EPOCH,
    )
    if not payload:
        del body["payload"]
    key = failure_key("mapping-1", SHARD, at=EPOCH, unique=records[0].sequence_number)
    objects.put(key, json.dumps(body).encode())
    return key


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def bucket() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def lake(objects: MemoryObjects, tmp_path: Path) -> Iterator[Lake]:
    lake = site_of(tmp_path, AFTER, objects).open()
    yield lake
    lake.close()


@pytest.mark.parametrize("payload", [True, False], ids=["payload", "range only"])
def test_a_batch_that_was_given_up_lands_as_if_it_had_been_delivered(
    payload: bool, lake: Lake, bucket: MemoryObjects, tmp_path: Path
) -> None:
    deliver(lake, AFTER, [*HISTORY[:1], *HISTORY[5:]])
    key = given_up(bucket, HISTORY[1:5], payload=payload)

    done = replay_failures(
        again(lake, AFTER), Failures(bucket), source(KeptRecords(HISTORY)), Wanted()
    )

    assert state(lake) == never_refused(tmp_path)
    assert done.lines == done.landed == 4
    assert list(bucket.list("")) == [f"replayed/{key}"]
    receipts = [row for part in lake.log(RECEIPTS) for row in part.to_pylist()]
    back = [row for row in receipts if row["kind"] == Kind.FAILURE and not row["table_name"]]
    assert [(row["first_sequence_number"], row["last_sequence_number"]) for row in back] == [
        ("101", "104")
    ]


@pytest.mark.parametrize("payload", [True, False], ids=["payload", "range only"])
def test_a_replay_of_failures_killed_at_any_write_and_run_again_ends_the_same(
    payload: bool, bucket: MemoryObjects, tmp_path: Path
) -> None:
    expected = never_refused(tmp_path)
    before = MemoryObjects()
    deliver(site_of(tmp_path, AFTER, before).open(), AFTER, HISTORY[:5])
    for nth in range(1, 60):
        objects = copied(before, tmp_path, tmp_path / str(nth))
        site = site_of(tmp_path / str(nth), AFTER, objects)
        given_up(bucket, HISTORY[5:], payload=payload)
        crashing, crashing_bucket = CrashingObjects(objects, nth), CrashingObjects(bucket, 60)
        kept = source(KeptRecords(HISTORY))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crashing_bucket, "_counted", crashing._counted)
            try:
                failures = Failures(crashing_bucket)
                lake = site.open(objects=crashing)
                replay_failures(again(lake, AFTER), failures, kept, Wanted())
                break
            except Crash:
                pass
        lake = site.open()

        replay_failures(again(lake, AFTER), Failures(bucket), kept, Wanted())

        assert state(lake) == expected
        assert list(bucket.list("aws/")) == []
    assert 5 < nth < 60


def test_records_that_the_stream_has_let_go_are_named_and_the_rest_lands(
    lake: Lake, bucket: MemoryObjects
) -> None:
    key = given_up(bucket, HISTORY[1:5], payload=False)
    other = given_up(bucket, HISTORY[5:], payload=True)
    kept = source(KeptRecords(HISTORY[3:]))

    done = replay_failures(again(lake, AFTER), Failures(bucket), kept, Wanted())

    [error] = done.errors
    assert isinstance(error, RecordsGoneError)
    assert re.search(r"101.*4 records up to 104 it holds 2, from 103 to 104", str(error))
    assert {row["item_id"] for row in lake.rows("items").to_pylist()} == {"a", "b", "d"}
    assert list(bucket.list("")) == [key, f"replayed/{other}"]


def test_records_of_a_shard_that_is_gone_are_named(lake: Lake, bucket: MemoryObjects) -> None:
    given_up(bucket, HISTORY[1:5], payload=False)

    done = replay_failures(again(lake, AFTER), Failures(bucket), source(), Wanted())

    assert "none of them" in str(done.errors[0])
    assert done.lines == 0


def test_an_object_that_is_no_failure_holds_up_no_other(lake: Lake, bucket: MemoryObjects) -> None:
    bucket.put("aws/lambda/a-first", b"{}")
    key = given_up(bucket, HISTORY[:1])

    done = replay_failures(again(lake, AFTER), Failures(bucket), source(), Wanted())

    assert "aws/lambda/a-first" in str(done.errors[0])
    assert list(bucket.list("")) == ["aws/lambda/a-first", f"replayed/{key}"]


def test_a_dry_run_lands_and_moves_nothing(
    lake: Lake, objects: MemoryObjects, bucket: MemoryObjects
) -> None:
    key = given_up(bucket, HISTORY[1:5])
    before = list(objects.list(""))

    done = replay_failures(again(lake, AFTER), Failures(bucket), source(), Wanted(), dry_run=True)

    assert done.lines == 4
    assert (list(objects.list("")), list(bucket.list(""))) == (before, [key])


def test_only_failures_that_every_filter_means_are_pending(bucket: MemoryObjects) -> None:
    given_up(bucket, HISTORY[:2])
    given_up(bucket, HISTORY[6:])
    failures = Failures(bucket)

    def batches(wanted: Wanted) -> int:
        return len(list(failures.pending(wanted)))

    assert batches(Wanted()) == 2
    assert batches(Wanted(reason="batch_failed", shard=SHARD)) == 2
    assert batches(Wanted(reason="RetryAttemptsExhausted")) == 2
    assert batches(Wanted(since=EPOCH + timedelta(days=1))) == 1
    assert batches(Wanted(until=EPOCH + timedelta(days=1))) == 1
    assert batches(Wanted(reason="unknown_column")) == 0
    assert batches(Wanted(table="items")) == 0
    assert batches(Wanted(shard="shardId-000000000007")) == 0


def test_discarded_failures_move_aside_and_stay(bucket: MemoryObjects) -> None:
    key = given_up(bucket, HISTORY[:3])

    assert discard_failures(Failures(bucket), Wanted()) == 3
    assert list(bucket.list("")) == [f"discarded/{key}"]
    assert discard_failures(Failures(bucket), Wanted()) == 0


def test_a_failure_of_a_record_too_old_has_no_response(bucket: MemoryObjects) -> None:
    key = given_up(bucket, HISTORY[:3])
    body = json.loads(bucket.get(key).data)
    body["requestContext"]["condition"] = "RecordAgeExceeded"
    del body["responseContext"]

    failure = read_failure(key, json.dumps(body).encode())

    assert (failure.condition, failure.attempts, failure.records) == ("RecordAgeExceeded", 3, 3)
    assert (failure.stream, failure.failed_at) == ("changes", EPOCH)
    assert failure.name == f"{SHARD}-100-102"


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"requestContext": 3}', b"\xff", b"[" * 100_000, b'{"payload": "{"}'],
)
def test_an_object_that_is_no_failure_is_named(data: bytes) -> None:
    with pytest.raises(UnreadableFailureError, match="aws/lambda/m/s/x"):
        read_failure("aws/lambda/m/s/x", data)


def test_a_replay_of_the_stream_merges_what_a_table_lacks(lake: Lake, tmp_path: Path) -> None:
    deliver(lake, AFTER, [one for at, one in enumerate(HISTORY) if at not in (1, 5)])
    whole = Wanted(since=EPOCH, until=datetime(2027, 1, 1, tzinfo=UTC))
    kept = KeptRecords(HISTORY)

    first = replay_stream(again(lake, AFTER), source(), kept, whole)  # type: ignore[arg-type]
    second = replay_stream(again(lake, AFTER), source(), kept, whole)  # type: ignore[arg-type]

    assert state(lake) == never_refused(tmp_path)
    assert (first.lines, second.lines) == (11, 11)
    assert first.changed > 0
    assert second.changed == 0


def test_a_replay_of_the_stream_logs_nothing_again_that_was_erased(lake: Lake) -> None:
    deliver(lake, AFTER, HISTORY[:1])
    [place] = [
        Place(SHARD, "101", at, position_of("101", at), EPOCH)
        for at, line in enumerate(HISTORY[1].data.split(b"\n"))
        if b'"a"' in line
    ]
    lake.resolve([Resolution(place, "items", Verdict.ERASED, "a request", EPOCH, "a test")])
    whole = Wanted(since=EPOCH, until=datetime(2027, 1, 1, tzinfo=UTC))

    replay_stream(again(lake, AFTER), source(), KeptRecords(HISTORY[:2]), whole)  # type: ignore[arg-type]

    logged = {row["position"] for part in lake.log(CHANGE_LOG) for row in part.to_pylist()}
    assert place.position not in logged
    assert position_of("101", 1) in logged


def test_what_lambda_documents_is_read() -> None:
    """The example of AWS's guide, with a payload as S3 gets it."""
    data = base64.b64encode(b"{}").decode()
    event: dict[str, Any] = {
        "Records": [{"kinesis": {"sequenceNumber": "4960", "data": data}, "eventID": "s:4960"}]
    }
    body = {
        "requestContext": {
            "requestId": "c9b8fa9f-5a7f-4e2b-af9c-0c604cde93a5",
            "functionArn": "arn:aws:lambda:us-east-2:123456789012:function:myfunction",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 2,
        },
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled",
        },
        "version": "1.0",
        "timestamp": "2019-11-14T00:38:06.021Z",
        "KinesisBatchInfo": {
            "shardId": "shardId-000000000001",
            "startSequenceNumber": "49601189658422359378836298521827638475320189012309704722",
            "endSequenceNumber": "49601189658422359378836298522902373528957594348623495186",
            "approximateArrivalOfFirstRecord": "2019-11-14T00:38:04.835Z",
            "approximateArrivalOfLastRecord": "2019-11-14T00:38:05.580Z",
            "batchSize": 500,
            "streamArn": "arn:aws:kinesis:us-east-2:123456789012:stream/mystream",
        },
        "payload": json.dumps(event),
    }

    failure = read_failure("aws/lambda/x", json.dumps(body).encode())

    assert (failure.stream, failure.records, failure.attempts) == ("mystream", 500, 2)
    assert failure.payload == event
    assert failure.last_arrival == datetime(2019, 11, 14, 0, 38, 5, 580_000, tzinfo=UTC)
    assert NOW() > failure.failed_at
