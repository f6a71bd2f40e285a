"""One contract for both shard readers, and a mapping that outlives the stream it reads."""

from __future__ import annotations

import base64
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from freshet.errors import StreamUnavailableError
from freshet.kinesis import RetainedStream
from local.delivery import MappingSettings
from local.embedded import EmbeddedAws
from local.mapping import EventSourceMapping, FileCheckpoints, S3FailureDestination
from local.shards import HASH_KEY_MAX, InMemoryShards, KinesisShards, Page, ShardReader

FIRST = "shardId-000000000000"


class Stream(NamedTuple):
    """A reader and the way to put a record (partition key, data) into its stream."""

    reader: ShardReader
    put: Callable[[str, bytes], str]


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(tmp_path / "aws") as running:
        yield running


def kinesis_stream(aws: EmbeddedAws, shards: int) -> Stream:
    arn = aws.ensure_stream("changes", shards)

    def put(key: str, data: bytes) -> str:
        client = aws.client("kinesis")
        return client.put_record(StreamARN=arn, PartitionKey=key, Data=data)["SequenceNumber"]

    return Stream(KinesisShards(aws.client("kinesis"), arn), put)


@pytest.fixture(params=["memory", "kinesis"])
def stream(request: pytest.FixtureRequest) -> Stream:
    if request.param == "kinesis":
        return kinesis_stream(request.getfixturevalue("aws"), 2)
    memory = InMemoryShards(2)
    return Stream(memory, lambda key, data: memory.put(key, data)[1])


def read_on(reader: ShardReader, shard_id: str, after: str | None = None) -> list[bytes]:
    found: list[bytes] = []
    while records := reader.read(shard_id, after, 2).records:
        assert len(records) <= 2
        found += [record.data for record in records]
        after = records[-1].sequence_number
    return found


def test_shards_are_listed_in_order_and_have_no_parents_at_first(stream: Stream) -> None:
    shards = stream.reader.shards()

    assert [shard.shard_id for shard in shards] == [FIRST, "shardId-000000000001"]
    assert [shard.parent_ids for shard in shards] == [(), ()]


def test_an_open_shard_reads_page_by_page_in_order_to_its_tip(stream: Stream) -> None:
    sent = [b"%d" % number for number in range(5)]
    for data in sent:
        stream.put("key", data)

    found = [read_on(stream.reader, shard.shard_id) for shard in stream.reader.shards()]

    assert sorted(found) == [[], sent]
    assert not stream.reader.read(FIRST, None, 10).ended


def test_reading_after_a_record_starts_with_the_next_even_when_repeated(stream: Stream) -> None:
    numbers = [stream.put("key", b"%d" % number) for number in range(4)]
    (shard_id,) = (
        shard.shard_id
        for shard in stream.reader.shards()
        if stream.reader.read(shard.shard_id, None, 1).records
    )

    for _ in range(2):
        assert read_on(stream.reader, shard_id, numbers[1]) == [b"2", b"3"]
    assert read_on(stream.reader, shard_id, numbers[3]) == []


def test_both_streams_route_a_key_to_the_same_shard(aws: EmbeddedAws) -> None:
    memory, kinesis = InMemoryShards(4), kinesis_stream(aws, 4)
    for number in range(40):
        memory.put(f"key-{number}", b"%d" % number)
        kinesis.put(f"key-{number}", b"%d" % number)

    for shard in memory.shards():
        assert read_on(kinesis.reader, shard.shard_id) == read_on(memory, shard.shard_id)


def sent_to(stream: Stream, keys: int, data: bytes) -> None:
    for number in range(keys):
        stream.put(f"key-{number}", data)


def test_a_split_and_a_merge_keep_what_nobody_has_read_also_over_a_kill(aws: EmbeddedAws) -> None:
    """The parents are closed and read to their end; the children hold what came afterwards."""
    stream, client = kinesis_stream(aws, 2), aws.client("kinesis")
    sent_to(stream, 20, b"before")
    client.split_shard(
        StreamName="changes", ShardToSplit=FIRST, NewStartingHashKey=str(HASH_KEY_MAX // 4)
    )
    sent_to(stream, 20, b"split")
    client.merge_shards(
        StreamName="changes",
        ShardToMerge="shardId-000000000003",
        AdjacentShardToMerge="shardId-000000000001",
    )
    sent_to(stream, 20, b"merged")
    assert aws.pid is not None
    port = int(aws.endpoint_url.rpartition(":")[2])
    os.kill(aws.pid, signal.SIGKILL)
    aws.stop()

    with EmbeddedAws(aws._folder, port):
        shards = stream.reader.shards()
        pages = {one.shard_id[-1]: stream.reader.read(one.shard_id, None, 100) for one in shards}

    assert [tuple(name[-1] for name in shard.parent_ids) for shard in shards] == [
        (),
        (),
        ("0",),
        ("0",),
        ("3", "1"),
    ]
    found = {name: Counter(record.data for record in page.records) for name, page in pages.items()}
    assert sum(found.values(), Counter()) == {b"before": 20, b"split": 20, b"merged": 20}
    assert {name: set(counts) for name, counts in found.items()} == {
        "0": {b"before"},
        "1": {b"before", b"split"},
        "2": {b"split", b"merged"},
        "3": {b"split"},
        "4": {b"merged"},
    }
    assert {name for name, page in pages.items() if page.ended} == {"0", "1", "3"}
    numbers = {record.sequence_number for page in pages.values() for record in page.records}
    assert len(numbers) == 60


def test_a_closed_shard_ends_after_its_last_record_page_by_page(aws: EmbeddedAws) -> None:
    stream = kinesis_stream(aws, 1)
    numbers = [stream.put("key", b"%d" % number) for number in range(3)]
    aws.client("kinesis").split_shard(
        StreamName="changes", ShardToSplit=FIRST, NewStartingHashKey="7"
    )

    first = stream.reader.read(FIRST, None, 2)
    second = stream.reader.read(FIRST, numbers[1], 2)

    assert ([record.data for record in first.records], first.ended) == ([b"0", b"1"], False)
    assert ([record.data for record in second.records], second.ended) == ([b"2"], True)
    assert stream.reader.read(FIRST, numbers[2], 2) == Page((), ended=True)
    retained = RetainedStream(aws.client("kinesis"), "changes")
    assert [record.data for record in retained] == [b"0", b"1", b"2"]


def test_an_iterator_that_expired_is_replaced(aws: EmbeddedAws) -> None:
    stream = kinesis_stream(aws, 1)
    first = stream.put("key", b"1")
    stream.reader.read(FIRST, None, 10)
    assert aws.pid is not None
    port = int(aws.endpoint_url.rpartition(":")[2])
    os.kill(aws.pid, signal.SIGKILL)
    aws.stop()
    with EmbeddedAws(aws._folder, port) as again:
        again.client("kinesis").put_record(StreamName="changes", PartitionKey="k", Data=b"2")

        page = stream.reader.read(FIRST, first, 10)

    assert [record.data for record in page.records] == [b"2"]


def test_a_stream_that_does_not_answer_is_a_transient_error(aws: EmbeddedAws) -> None:
    stream = kinesis_stream(aws, 1)
    aws.stop()

    with pytest.raises(StreamUnavailableError, match="changes"):
        stream.reader.read(FIRST, None, 10)
    with pytest.raises(StreamUnavailableError, match="changes"):
        stream.reader.shards()


def test_nothing_acknowledged_is_lost_although_stream_and_mapping_are_killed_in_turn(
    aws: EmbeddedAws, tmp_path: Path
) -> None:
    arn = aws.ensure_stream("changes", 2)
    aws.ensure_bucket("failures")
    port = int(aws.endpoint_url.rpartition(":")[2])
    acknowledged, delivered, lock = list[str](), list[str](), threading.Lock()

    def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
        names = [base64.b64decode(r["kinesis"]["data"]).decode() for r in event["Records"]]
        with lock:
            delivered.extend(names)
        return {"batchItemFailures": []}

    def mapping() -> EventSourceMapping:
        return EventSourceMapping(
            handler,
            KinesisShards(aws.client("kinesis"), arn),
            FileCheckpoints(tmp_path / "checkpoints.json"),
            MappingSettings(batch_size=50, report_batch_item_failures=True),
            failures=S3FailureDestination(aws.client("s3"), "failures"),
        )

    def write(turn: int, writer: int) -> None:
        names = [f"{turn}-{writer}-{number}" for number in range(50)]
        aws.client("kinesis").put_records(
            StreamARN=arn,
            Records=[{"Data": name.encode(), "PartitionKey": name} for name in names],
        )
        with lock:
            acknowledged.extend(names)

    for turn in range(3):
        with mapping(), ThreadPoolExecutor(8) as writers:
            for done in [writers.submit(write, turn, writer) for writer in range(8)]:
                done.result(20)
        assert aws.pid is not None
        os.kill(aws.pid, signal.SIGKILL)
        aws.stop()
        aws = EmbeddedAws(tmp_path / "aws", port)
        aws.start()
    try:
        with mapping() as last:
            last.drain(20)
    finally:
        aws.stop()

    assert len(acknowledged) == 1_200
    assert set(acknowledged) - set(delivered) == set()


def test_what_cannot_be_delivered_is_in_the_bucket_under_lambdas_key(
    aws: EmbeddedAws, tmp_path: Path
) -> None:
    stream = kinesis_stream(aws, 1)
    stream.put("key", b"poison")
    bucket = aws.ensure_bucket("failures")

    def handler(event: dict[str, Any], context: Any) -> None:
        raise ValueError("cannot")

    with EventSourceMapping(
        handler,
        stream.reader,
        FileCheckpoints(tmp_path / "checkpoints.json"),
        MappingSettings(retry_attempts_max=0),
        failures=S3FailureDestination(aws.client("s3"), bucket),
        mapping_id="map",
    ) as mapping:
        mapping.drain(20)

    (found,) = aws.client("s3").list_objects_v2(Bucket=bucket)["Contents"]
    assert found["Key"].startswith(f"aws/lambda/map/{FIRST}/")
