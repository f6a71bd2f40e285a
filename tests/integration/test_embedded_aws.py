"""What an acknowledged write is worth: it survives a kill, and races have one winner."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from local.embedded import EmbeddedAws, LocalRuntimeError

SRC = Path(__file__).parents[2] / "src"


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux /proc")


@pytest.fixture
def aws(tmp_path: Path) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(tmp_path / "aws") as running:
        yield running


def kill(aws: EmbeddedAws) -> None:
    """Kill the child as the kernel would, with no chance to save anything."""
    assert aws.pid is not None
    os.kill(aws.pid, signal.SIGKILL)
    aws.stop()


def read_stream(aws: EmbeddedAws, stream: str) -> dict[str, list[tuple[str, bytes]]]:
    """Every shard's records as (sequence number, data), read page by page from the start."""
    kinesis, found = aws.client("kinesis"), {}
    for shard in kinesis.list_shards(StreamName=stream)["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName=stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        records: list[tuple[str, bytes]] = []
        while page := kinesis.get_records(ShardIterator=iterator):
            records += [(record["SequenceNumber"], record["Data"]) for record in page["Records"]]
            iterator = page["NextShardIterator"]
            if not page["Records"]:
                break
        found[shard["ShardId"]] = records
    return found


def test_every_record_acknowledged_to_eight_writers_survives_a_kill_in_mid_write(
    aws: EmbeddedAws,
) -> None:
    aws.ensure_stream("changes", shards=2)
    kinesis, acknowledged, lock = aws.client("kinesis"), set[str](), threading.Lock()
    enough = threading.Event()

    def write(writer: int) -> None:
        for batch in range(10_000):
            names = [f"{writer}-{batch}-{n}" for n in range(20)]
            try:
                kinesis.put_records(
                    StreamName="changes",
                    Records=[{"Data": name.encode(), "PartitionKey": name} for name in names],
                )
            except (BotoCoreError, ClientError):
                return
            with lock:
                acknowledged.update(names)
                if len(acknowledged) > 4_000:
                    enough.set()

    with ThreadPoolExecutor(8) as writers:
        for writer in range(8):
            writers.submit(write, writer)
        assert enough.wait(30)
        kill(aws)
    aws.start()

    shards = read_stream(aws, "changes")

    stored = [data.decode() for records in shards.values() for _, data in records]
    assert acknowledged - set(stored) == set()
    for records in shards.values():
        numbers = [int(number) for number, _ in records]
        assert numbers == sorted(set(numbers))


def test_sequence_numbers_keep_growing_over_a_restart(aws: EmbeddedAws) -> None:
    aws.ensure_stream("changes")

    def put(data: bytes) -> int:
        kinesis = aws.client("kinesis")
        answer = kinesis.put_record(StreamName="changes", Data=data, PartitionKey="k")
        return int(answer["SequenceNumber"])

    before = put(b"1")
    kill(aws)
    aws.start()

    after = put(b"2")

    assert after > before
    assert [data for _, data in read_stream(aws, "changes")["shardId-000000000000"]] == [b"1", b"2"]


def test_sequence_numbers_keep_growing_although_the_clock_was_set_back_in_between(
    aws: EmbeddedAws, tmp_path: Path
) -> None:
    aws.ensure_stream("changes")
    kinesis = aws.client("kinesis")
    number = kinesis.put_record(StreamName="changes", Data=b"", PartitionKey="k")["SequenceNumber"]
    kill(aws)
    later = f"{int(number) + 3_600_000 * 10**10:030d}"  # as if an hour ahead when it was given
    (segment,) = (tmp_path / "aws" / "kinesis").glob("*.jsonl")
    segment.write_text(segment.read_text().replace(number, later))
    aws.start()

    answer = aws.client("kinesis").put_record(StreamName="changes", Data=b"", PartitionKey="k")

    assert int(answer["SequenceNumber"]) > int(later)


def test_records_of_a_deleted_stream_do_not_come_back_in_its_successor(aws: EmbeddedAws) -> None:
    aws.ensure_stream("changes")
    aws.client("kinesis").put_record(StreamName="changes", Data=b"old", PartitionKey="k")
    aws.client("kinesis").delete_stream(StreamName="changes")
    aws.ensure_stream("changes")
    kill(aws)
    aws.start()

    assert read_stream(aws, "changes") == {"shardId-000000000000": []}


def test_objects_buckets_versioning_and_secrets_survive_a_kill(aws: EmbeddedAws) -> None:
    s3, secrets = aws.client("s3"), aws.client("secretsmanager")
    aws.ensure_bucket("lake")
    aws.ensure_bucket("empty")
    s3.put_bucket_versioning(Bucket="lake", VersioningConfiguration={"Status": "Enabled"})
    etag = s3.put_object(Bucket="lake", Key="a/b.json", Body=b"{}")["ETag"]
    secrets.create_secret(Name="api", SecretString="token")
    kill(aws)
    aws.start()
    s3, secrets = aws.client("s3"), aws.client("secretsmanager")

    found = s3.get_object(Bucket="lake", Key="a/b.json")

    assert (found["Body"].read(), found["ETag"]) == (b"{}", etag)
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["empty", "lake"]
    assert s3.get_bucket_versioning(Bucket="lake")["Status"] == "Enabled"
    assert secrets.get_secret_value(SecretId="api")["SecretString"] == "token"


def race(attempt: Callable[[int], object]) -> list[int]:
    """Run `attempt` in 16 threads at once and return the numbers of those that got through."""
    barrier = threading.Barrier(16)

    def contend(number: int) -> bool:
        barrier.wait(10)
        try:
            attempt(number)
        except ClientError as error:
            if error.response["Error"]["Code"] != "PreconditionFailed":
                raise
            return False
        return True

    with ThreadPoolExecutor(16) as threads:
        return [number for number, won in enumerate(threads.map(contend, range(16))) if won]


def test_sixteen_conditional_writes_have_one_winner(aws: EmbeddedAws) -> None:
    s3 = aws.client("s3")
    aws.ensure_bucket("lake")
    for turn in range(5):
        key = f"pointer-{turn}"

        def create(number: int, key: str = key) -> None:
            s3.put_object(Bucket="lake", Key=key, Body=str(number).encode(), IfNoneMatch="*")

        assert len(race(create)) == 1
        etag = s3.head_object(Bucket="lake", Key=key)["ETag"]

        def swap(number: int, key: str = key, etag: str = etag) -> None:
            s3.put_object(Bucket="lake", Key=key, Body=b"x%d" % number, IfMatch=etag)

        (winner,) = race(swap)
        assert s3.get_object(Bucket="lake", Key=key)["Body"].read() == b"x%d" % winner


def test_one_read_answers_ten_megabytes_at_most_and_loses_nothing(aws: EmbeddedAws) -> None:
    aws.ensure_stream("changes")
    kinesis, blob = aws.client("kinesis"), os.urandom(900_000)
    for number in range(14):
        kinesis.put_record(StreamName="changes", Data=blob + b"%d" % number, PartitionKey="k")
    iterator = kinesis.get_shard_iterator(
        StreamName="changes", ShardId="shardId-000000000000", ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]

    first = kinesis.get_records(ShardIterator=iterator)
    second = kinesis.get_records(ShardIterator=first["NextShardIterator"])

    assert (len(first["Records"]), len(second["Records"])) == (11, 3)


def test_a_new_count_of_shards_is_refused_because_it_would_lose_records(aws: EmbeddedAws) -> None:
    aws.ensure_stream("changes")

    with pytest.raises(ClientError, match="split and merge"):
        aws.client("kinesis").update_shard_count(
            StreamName="changes", TargetShardCount=2, ScalingType="UNIFORM_SCALING"
        )


def test_a_closed_shard_is_neither_split_nor_merged_again(aws: EmbeddedAws) -> None:
    aws.ensure_stream("changes", 4)
    kinesis, first = aws.client("kinesis"), "shardId-000000000000"
    kinesis.split_shard(StreamName="changes", ShardToSplit=first, NewStartingHashKey="7")

    with pytest.raises(ClientError, match="closed"):
        kinesis.split_shard(StreamName="changes", ShardToSplit=first, NewStartingHashKey="9")
    with pytest.raises(ClientError, match="not adjacent"):
        kinesis.merge_shards(
            StreamName="changes",
            ShardToMerge="shardId-000000000001",
            AdjacentShardToMerge="shardId-000000000003",
        )


@needs_proc
def test_it_listens_on_the_loopback_only(aws: EmbeddedAws) -> None:
    descriptors = Path(f"/proc/{aws.pid}/fd").iterdir()
    sockets = {str(one.readlink()) for one in descriptors}
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{aws.pid}/net/{table}").read_text().splitlines()[1:]
    ]

    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]

    port = int(aws.endpoint_url.rpartition(":")[2])
    assert listening == [f"0100007F:{port:04X}"]  # 127.0.0.1, little-endian


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(LocalRuntimeError, match=rf"127.0.0.1:{port} .*choose another"):
            EmbeddedAws(tmp_path, port).start()


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(LocalRuntimeError, match=r"cannot write to .*choose another folder"):
        EmbeddedAws(tmp_path / "file" / "aws").start()


def test_a_second_instance_in_one_folder_is_refused(
    aws: EmbeddedAws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.embedded.LOCK_DEADLINE_S", 0.1)

    with pytest.raises(LocalRuntimeError, match="in use by another embedded AWS"):
        EmbeddedAws(tmp_path / "aws").start()


@needs_proc
def test_the_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from local.embedded import EmbeddedAws\n"
        "aws = EmbeddedAws(Path(sys.argv[1])); aws.start()\n"
        "print(aws.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(SRC)},
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    parent.kill()
    parent.wait(10)

    give_up_at = time.monotonic() + 10
    while _alive(child) and time.monotonic() < give_up_at:
        time.sleep(0.02)

    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
