"""One suite for every change stream: what a publisher may rely on, whoever takes the records.

moto runs single-threaded here and only as the taker of well-formed calls. Throttling, partial
failures and lost connections come from a scripted client, because moto never throttles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)
from moto import mock_aws

from freshet.errors import RejectedError, SettingsError, StreamUnavailableError
from freshet.event import ChangeEvent, key_text, lane_of
from freshet.kinesis import (
    PUBLISH_S_MAX,
    PUT_BYTES_MAX,
    PUT_RECORDS_MAX,
    ROUNDS_MAX,
    KinesisStream,
    explicit_hash_key,
    partition_key,
)
from freshet.stream import LANES, RECORD_BYTES_MAX, ChangeStream, PackedRecord
from freshet.tables import TABLES
from freshet.testing import MemoryStream, change, sale_row
from freshet.wire import Decoded, decode_record


class FakeTime:
    """Seconds that pass only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


Script = Callable[[int, list[Any]], list[str | None]]


@dataclass
class ScriptedKinesis:
    """A Kinesis client whose answers follow a script: for each record an error code or None."""

    script: Script = lambda _call, records: [None] * len(records)
    calls: list[list[Any]] = field(default_factory=list)
    stored: list[tuple[int, bytes]] = field(default_factory=list)

    def put_records(self, *, StreamName: str, Records: list[Any]) -> dict[str, Any]:  # noqa: N803
        self.calls.append(Records)
        codes = self.script(len(self.calls), Records)
        results: list[dict[str, str]] = []
        for record, code in zip(Records, codes, strict=True):
            if code is None:
                lane = int(record["PartitionKey"].removeprefix("lane-"))
                self.stored.append((lane, record["Data"]))
                results.append({"SequenceNumber": str(len(self.stored)), "ShardId": "shardId-0"})
            else:
                results.append({"ErrorCode": code, "ErrorMessage": "slow down"})
        return {"FailedRecordCount": len(Records) - codes.count(None), "Records": results}


class MotoKinesis:
    """moto's Kinesis with a throttle in front."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.throttled: set[str] = set()

    def put_records(self, *, StreamName: str, Records: list[Any]) -> dict[str, Any]:  # noqa: N803
        taken = [one for one in Records if one["PartitionKey"] not in self.throttled]
        answer = self._client.put_records(StreamName=StreamName, Records=taken) if taken else {}
        results = iter(answer.get("Records", ()))
        refusal = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "slow"}
        return {
            "Records": [
                refusal if one["PartitionKey"] in self.throttled else next(results)
                for one in Records
            ]
        }

    def stored(self) -> list[tuple[int, bytes]]:
        records: list[tuple[int, bytes]] = []
        for shard in self._client.list_shards(StreamName="changes")["Shards"]:
            iterator = self._client.get_shard_iterator(
                StreamName="changes", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            for record in self._client.get_records(ShardIterator=iterator)["Records"]:
                lane = int(record["PartitionKey"].removeprefix("lane-"))
                records.append((lane, record["Data"]))
        return records


@dataclass
class Subject:
    """A stream under test, what it holds, and how to make it refuse lanes."""

    stream: ChangeStream
    stored: Callable[[], list[tuple[int, bytes]]]
    refuse: Callable[[set[int]], None]

    def events(self) -> list[ChangeEvent]:
        return [
            part.event
            for _, data in self.stored()
            for part in decode_record(data, TABLES)
            if isinstance(part, Decoded)
        ]


def memory() -> Iterator[Subject]:
    stream = MemoryStream()
    yield Subject(
        stream,
        lambda: [(record.lane, record.data) for record in stream.records],
        lambda lanes: setattr(stream, "throttled_lanes", lanes),
    )


def kinesis_on_moto() -> Iterator[Subject]:
    with mock_aws():
        client = boto3.client(
            "kinesis",
            region_name="eu-west-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )
        client.create_stream(StreamName="changes", ShardCount=4)
        throttle = MotoKinesis(client)
        time = FakeTime()
        yield Subject(
            kinesis(throttle, time),
            throttle.stored,
            lambda lanes: setattr(throttle, "throttled", {partition_key(one) for one in lanes}),
        )


def kinesis_on_script() -> Iterator[Subject]:
    client = ScriptedKinesis()
    refused: set[int] = set()
    throttled = {partition_key(lane): lane for lane in range(LANES)}

    def script(_call: int, records: list[Any]) -> list[str | None]:
        return [
            "InternalFailure" if throttled[one["PartitionKey"]] in refused else None
            for one in records
        ]

    client.script = script
    yield Subject(kinesis(client, FakeTime()), lambda: client.stored, refused.update)


def kinesis(client: Any, time: FakeTime, *, lanes: int = LANES) -> KinesisStream:
    return KinesisStream(
        client,
        "changes",
        TABLES,
        lanes=lanes,
        wait=time.wait,
        monotonic=time.monotonic,
        jitter=lambda: 0.5,
    )


@pytest.fixture(params=[memory, kinesis_on_moto, kinesis_on_script], ids=lambda one: one.__name__)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    yield from request.param()


def sales(count: int, *, first_version: int = 1) -> list[ChangeEvent]:
    return [
        change("sales", sale_row(f"{536365 + at}-1"), version=first_version + at)
        for at in range(count)
    ]


def lane(event: ChangeEvent) -> int:
    return lane_of(event.table, key_text(TABLES[event.table], event.key), LANES)


# --- every stream -------------------------------------------------------------------------------


def test_everything_accepted_is_in_the_stream_once_and_unchanged(subject: Subject) -> None:
    events = sales(300)

    report = subject.stream.publish(events)

    assert report.complete
    assert report.accepted == tuple(range(300))
    assert sorted(subject.events(), key=lambda event: event.version) == events


def test_changes_of_one_row_keep_their_order_on_one_lane(subject: Subject) -> None:
    row = [change("sales", sale_row(quantity=at), version=100 - at) for at in range(50)]
    others = sales(50, first_version=1000)

    subject.stream.publish([event for pair in zip(row, others, strict=True) for event in pair])

    mine = [event for event in subject.events() if event.key == row[0].key and event.version < 1000]
    assert mine == row
    assert {at for at, data in subject.stored() if b"536365-1" in data} <= {lane(row[0])}


def test_an_empty_publish_is_complete_and_stores_nothing(subject: Subject) -> None:
    report = subject.stream.publish([])

    assert report.complete
    assert (report.accepted, report.throttled, subject.stored()) == ((), (), [])


def test_what_a_full_lane_refuses_is_reported_by_position_and_the_rest_is_stored(
    subject: Subject,
) -> None:
    events = sales(200)
    full = lane(events[7])
    subject.refuse({full})

    report = subject.stream.publish(events)

    refused = tuple(at for at, event in enumerate(events) if lane(event) == full)
    assert 7 in refused
    assert report.throttled == refused
    assert set(report.accepted) == set(range(200)) - set(refused)
    assert report.detail
    assert {event.version for event in subject.events()} == {
        events[at].version for at in report.accepted
    }


def test_an_event_that_no_record_can_hold_is_refused_before_anything_is_sent(
    subject: Subject,
) -> None:
    huge = change("sales", sale_row(), before={"note": "x" * RECORD_BYTES_MAX})

    with pytest.raises(RejectedError, match="too_large"):
        subject.stream.publish([*sales(3), huge])

    assert subject.stored() == []


# --- Kinesis ------------------------------------------------------------------------------------


def throttle_first(calls: int) -> Script:
    code = "ProvisionedThroughputExceededException"
    return lambda call, records: [code if call <= calls else None] * len(records)


def test_only_the_refused_records_are_sent_again() -> None:
    client, time = ScriptedKinesis(), FakeTime()
    client.script = lambda call, records: [
        "InternalFailure" if call == 1 and at % 2 else None for at in range(len(records))
    ]

    report = kinesis(client, time).publish(sales(200))

    first, second = client.calls
    assert report.complete
    assert second == [record for at, record in enumerate(first) if at % 2]
    assert len(client.stored) == len(first)
    assert len(time.waits) == 1


def test_a_throttled_whole_call_is_sent_again() -> None:
    client, time = ScriptedKinesis(), FakeTime()

    def script(call: int, records: list[Any]) -> list[str | None]:
        if call < 3:
            raise client_error("ThrottlingException", 400)
        return [None] * len(records)

    client.script = script

    assert kinesis(client, time).publish(sales(10)).complete
    assert len(client.calls) == 3


def test_the_next_record_of_a_lane_waits_until_its_predecessor_is_accepted() -> None:
    client, time = ScriptedKinesis(throttle_first(2)), FakeTime()
    events = [change("sales", sale_row(quantity=at), version=at + 1) for at in range(1200)]

    report = kinesis(client, time, lanes=1).publish(events)

    assert report.complete
    assert all(len(call) == 1 for call in client.calls)
    assert [
        part.event.version
        for _, data in client.stored
        for part in decode_record(data, TABLES)
        if isinstance(part, Decoded)
    ] == list(range(1, 1201))


def test_endless_throttling_ends_within_the_bounds_and_names_every_event() -> None:
    client, time = ScriptedKinesis(throttle_first(10**6)), FakeTime()

    report = kinesis(client, time).publish(sales(20))

    assert report.accepted == ()
    assert report.throttled == tuple(range(20))
    assert "ProvisionedThroughputExceededException" in report.detail
    assert len(client.calls) <= ROUNDS_MAX
    assert 1 < time.now <= PUBLISH_S_MAX
    assert time.waits == sorted(time.waits)


@pytest.mark.parametrize(
    "error", [EndpointConnectionError, ReadTimeoutError, ConnectionClosedError], ids=str
)
def test_a_stream_that_never_answers_is_unavailable_not_throttled(error: Any) -> None:
    client, time = ScriptedKinesis(), FakeTime()

    def unreachable(_call: int, _records: list[Any]) -> list[str | None]:
        raise error(endpoint_url="http://127.0.0.1:1")

    client.script = unreachable

    with pytest.raises(StreamUnavailableError, match=error.__name__):
        kinesis(client, time).publish(sales(5))

    assert len(client.calls) == ROUNDS_MAX


def test_a_stream_that_goes_away_midway_reports_what_it_did_not_take() -> None:
    client, time = ScriptedKinesis(), FakeTime()

    def script(call: int, records: list[Any]) -> list[str | None]:
        if call > 1:
            raise client_error("InternalFailure", 500)
        return [None] * len(records)

    client.script = script
    events = [change("sales", sale_row(quantity=at), version=at + 1) for at in range(1200)]

    report = kinesis(client, time, lanes=1).publish(events)

    assert report.accepted == tuple(range(500))
    assert report.throttled == tuple(range(500, 1200))


@pytest.mark.parametrize(
    ("error", "setting", "advice"),
    [
        ("ResourceNotFoundException", "STREAM_NAME", "'changes' does not exist"),
        ("AccessDeniedException", "STREAM_NAME", "grant it kinesis:PutRecords"),
        ("ValidationException", "STREAM_NAME", "answers ValidationException"),
        (NoCredentialsError(), "AWS_PROFILE", "no AWS credentials"),
    ],
)
def test_an_error_that_no_retry_helps_says_which_setting_to_correct(
    error: str | Exception, setting: str, advice: str
) -> None:
    client, time = ScriptedKinesis(), FakeTime()

    def refuse(_call: int, _records: list[Any]) -> list[str | None]:
        raise client_error(error, 400) if isinstance(error, str) else error

    client.script = refuse

    with pytest.raises(SettingsError, match=advice) as raised:
        kinesis(client, time).publish(sales(5))

    assert raised.value.name == setting
    assert len(client.calls) == 1


def test_calls_stay_within_the_limits_of_put_records() -> None:
    client, time = ScriptedKinesis(), FakeTime()
    noise = [f"{at * 2654435761 % 2**32:08x}" for at in range(6_000)]
    events = [
        change(
            "products",
            {
                "product_id": str(at),
                "title": "t",
                "price": "1",
                "currency": "GBP",
                "description": "".join(noise[at : at + 400]),
            },
            version=at + 1,
        )
        for at in range(5_000)
    ]

    report = kinesis(client, time, lanes=1024).publish(events)

    sizes = [sum(len(r["Data"]) + len(r["PartitionKey"]) for r in call) for call in client.calls]
    assert report.complete
    assert max(len(call) for call in client.calls) == PUT_RECORDS_MAX
    assert max(sizes) <= PUT_BYTES_MAX
    assert len(client.stored) > PUT_RECORDS_MAX


def test_a_call_over_five_megabytes_is_split() -> None:
    client, time = ScriptedKinesis(), FakeTime()
    stream = kinesis(client, time)
    records = [_packed(lane, 250_000) for lane in range(LANES)]

    stream._send(records)

    sizes = [sum(len(one["Data"]) for one in call) for call in client.calls]
    assert sum(sizes) == LANES * 250_000
    assert 2_500_000 < max(sizes) <= PUT_BYTES_MAX


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16, 64])
def test_lanes_spread_evenly_over_shards(shards: int) -> None:
    width = 2**128 // shards

    load = [int(explicit_hash_key(lane, LANES)) // width for lane in range(LANES)]

    assert [load.count(shard) for shard in range(shards)] == [LANES // shards] * shards


def test_partition_keys_are_named_after_the_lane() -> None:
    assert (partition_key(7), partition_key(63)) == ("lane-07", "lane-63")


def client_error(code: str, status: int) -> ClientError:
    return ClientError(
        {
            "Error": {"Code": code, "Message": "message"},
            "ResponseMetadata": {
                "HTTPStatusCode": status,
                "RequestId": "r",
                "HostId": "h",
                "HTTPHeaders": {},
                "RetryAttempts": 0,
            },
        },
        "PutRecords",
    )


def _packed(lane: int, size: int) -> PackedRecord:
    return PackedRecord(lane, b"x" * size, (lane,))
