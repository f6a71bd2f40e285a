"""The event source mapping with real threads over a stream in memory."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from freshet.errors import StorageError, StreamUnavailableError
from local.delivery import MappingSettings
from local.embedded import LocalRuntimeError
from local.invocation import LocalFunction
from local.mapping import (
    Checkpoint,
    DrainTimeoutError,
    EventSourceMapping,
    FileCheckpoints,
    Invocation,
    MappingFailedError,
    Outcome,
    exponential_backoff,
)
from local.shards import InMemoryShards, Page, Shard

DEADLINE_S = 20.0


class Function:
    """Records every batch it is handed; `respond` decides the answer."""

    def __init__(self, respond: Callable[[list[str]], Any] | None = None) -> None:
        self.batches: list[list[str]] = []
        self.respond = respond or (lambda _: None)
        self._lock = threading.Lock()

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        names = [base64.b64decode(r["kinesis"]["data"]).decode() for r in event["Records"]]
        with self._lock:
            self.batches.append(names)
        return self.respond(names)

    @property
    def delivered(self) -> list[str]:
        return [name for batch in self.batches for name in batch]


class Destination:
    """A failure destination that refuses the first `refusals` writes."""

    def __init__(self, refusals: int = 0) -> None:
        self.refusals = refusals
        self.written: dict[str, dict[str, Any]] = {}

    def put(self, key: str, body: bytes) -> None:
        if self.refusals:
            self.refusals -= 1
            raise StorageError(key, "refused")
        self.written[key] = json.loads(body)

    @property
    def records(self) -> list[str]:
        payloads = [json.loads(one["payload"]) for one in self.written.values()]
        return [
            base64.b64decode(r["kinesis"]["data"]).decode() for p in payloads for r in p["Records"]
        ]


@pytest.fixture
def checkpoints(tmp_path: Path) -> FileCheckpoints:
    return FileCheckpoints(tmp_path / "state" / "checkpoints.json")


def run(
    function: Function | LocalFunction,
    stream: Any,
    checkpoints: FileCheckpoints,
    **options: Any,
) -> EventSourceMapping:
    names = MappingSettings.__dataclass_fields__
    settings = MappingSettings(**{n: options.pop(n) for n in list(options) if n in names})
    return EventSourceMapping(
        function,
        stream,
        checkpoints,
        settings,
        backoff=lambda _: 0.0,
        poll_interval_s=0.02,
        **options,
    )


def put(stream: InMemoryShards, names: Sequence[str], key: str | None = None) -> None:
    for name in names:
        stream.put(key or name.split("-")[0], name.encode())


def test_everything_is_delivered_in_order_per_key_by_parallel_lanes_of_two_shards(
    checkpoints: FileCheckpoints,
) -> None:
    stream, function = InMemoryShards(2), Function()
    names = [f"k{number % 7}-{number:03d}" for number in range(300)]
    put(stream, names)

    parallel = LocalFunction(function, concurrency=8)
    with run(parallel, stream, checkpoints, batch_size=9, parallelization_factor=4) as mapping:
        mapping.drain(DEADLINE_S)

    assert sorted(function.delivered) == sorted(names)
    by_key = defaultdict(list)
    for name in function.delivered:
        by_key[name.split("-")[0]].append(name)
    assert all(found == sorted(found) for found in by_key.values())
    assert max(len(batch) for batch in function.batches) == 9


def test_a_partial_response_rewinds_to_the_lowest_failure_and_retries_only_the_rest(
    checkpoints: FileCheckpoints,
) -> None:
    stream = InMemoryShards()
    numbers = [stream.put("k", b"%d" % n)[1] for n in range(5)]
    answers = iter([{"batchItemFailures": [{"itemIdentifier": numbers[n]} for n in (4, 2)]}, None])
    function = Function(lambda _: next(answers))
    seen: list[Invocation] = []

    with run(
        function,
        stream,
        checkpoints,
        report_batch_item_failures=True,
        on_invocation=seen.append,
    ) as mapping:
        mapping.drain(DEADLINE_S)

    assert function.batches == [["0", "1", "2", "3", "4"], ["2", "3", "4"]]
    assert [one.outcome for one in seen] == [Outcome.PARTLY_FAILED, Outcome.SUCCEEDED]
    assert [(one.first_sequence_number, one.last_sequence_number) for one in seen] == [
        (numbers[0], numbers[4]),
        (numbers[2], numbers[4]),
    ]
    assert all(one.finished_at >= one.started_at > 0 for one in seen)


def test_a_window_gathers_records_and_a_full_batch_does_not_wait_for_it(
    checkpoints: FileCheckpoints,
) -> None:
    class OneByOne(InMemoryShards):
        def read(self, shard_id: str, after: str | None, limit: int) -> Page:
            return super().read(shard_id, after, limit=1)

    stream, function = OneByOne(), Function()
    put(stream, ["k-1", "k-2"])

    with run(function, stream, checkpoints, batch_size=3, window_s=0.5) as mapping:
        mapping.drain(DEADLINE_S)

    assert function.batches == [["k-1", "k-2"]]

    full = Function()
    put(stream, ["k-3", "k-4", "k-5"])
    with run(full, stream, checkpoints, batch_size=3, window_s=300) as mapping:
        mapping.drain(DEADLINE_S)
    assert full.batches == [["k-3", "k-4", "k-5"]]


def test_a_batch_ends_before_its_payload_grows_too_large(checkpoints: FileCheckpoints) -> None:
    stream, function = InMemoryShards(), Function()
    put(stream, ["k" * 600] * 4, key="k")

    with run(function, stream, checkpoints, payload_bytes_max=3_000, window_s=0.05) as mapping:
        mapping.drain(DEADLINE_S)

    assert [len(batch) for batch in function.batches] == [2, 2]


def test_a_poison_record_ends_alone_in_the_destination_and_its_neighbours_are_done(
    checkpoints: FileCheckpoints,
) -> None:
    stream, destination, done = InMemoryShards(), Destination(refusals=2), []

    def respond(names: list[str]) -> None:
        if "k-3" in names:
            raise ValueError("poison")
        done.extend(names)

    put(stream, [f"k-{n}" for n in range(6)])
    with run(
        Function(respond),
        stream,
        checkpoints,
        bisect_on_error=True,
        retry_attempts_max=2,
        failures=destination,
        mapping_id="map",
    ) as mapping:
        mapping.drain(DEADLINE_S)

    assert done == ["k-0", "k-1", "k-2", "k-4", "k-5"]
    assert destination.records == ["k-3"]
    ((key, record),) = destination.written.items()
    assert key.startswith("aws/lambda/map/shardId-000000000000/")
    assert record["requestContext"]["approximateInvokeCount"] == 3
    assert record["requestContext"]["functionArn"].endswith(":function:consumer")


def test_records_above_the_age_limit_go_to_the_destination_undelivered(
    checkpoints: FileCheckpoints,
) -> None:
    now = [1_000.0]
    stream, function = InMemoryShards(clock=lambda: now[0]), Function()
    destination = Destination()
    put(stream, ["k-old"])
    now[0] += 100
    put(stream, ["k-young"])

    with run(
        function,
        stream,
        checkpoints,
        record_age_s_max=60,
        failures=destination,
        clock=lambda: now[0],
    ) as mapping:
        mapping.drain(DEADLINE_S)

    assert (function.delivered, destination.records) == (["k-young"], ["k-old"])


def test_a_record_too_large_for_an_invocation_is_given_up_without_calling(
    checkpoints: FileCheckpoints,
) -> None:
    stream, function, destination = InMemoryShards(), Function(), Destination()
    put(stream, ["k-1", "k" * 2_000, "k-2"], key="k")

    with run(
        function,
        stream,
        checkpoints,
        payload_bytes_max=1_500,
        retry_attempts_max=0,
        failures=destination,
    ) as mapping:
        mapping.drain(DEADLINE_S)

    assert (function.delivered, destination.records) == (["k-1", "k-2"], ["k" * 2_000])


def test_parents_are_consumed_before_children_over_a_split_and_a_merge(
    checkpoints: FileCheckpoints,
) -> None:
    stream, function = InMemoryShards(), Function()
    keys = [f"k{number}" for number in range(8)]
    put(stream, [f"{key}-1" for key in keys])
    low, high = stream.split("shardId-000000000000")
    put(stream, [f"{key}-2" for key in keys])
    stream.merge(low, high)
    put(stream, [f"{key}-3" for key in keys])

    with run(function, stream, checkpoints, batch_size=3, parallelization_factor=2) as mapping:
        mapping.drain(DEADLINE_S)
        stream.split("shardId-000000000003")
        put(stream, [f"{key}-4" for key in keys])
        mapping.drain(DEADLINE_S)

    generations = [int(name.split("-")[1]) for name in function.delivered]
    assert generations == sorted(generations)
    assert len(generations) == 32
    saved = checkpoints.load()
    assert [saved[f"shardId-{n:012d}"].finished for n in range(6)] == [True] * 4 + [False] * 2


def test_a_restart_resumes_at_the_checkpoint_and_skips_nothing(
    checkpoints: FileCheckpoints,
) -> None:
    stream, first, second = InMemoryShards(), Function(), Function()
    put(stream, ["k-1", "k-2"])
    with run(first, stream, checkpoints) as mapping:
        mapping.drain(DEADLINE_S)
    put(stream, ["k-3"])

    with run(second, stream, FileCheckpoints(checkpoints._path)) as mapping:
        mapping.drain(DEADLINE_S)

    assert (first.delivered, second.delivered) == (["k-1", "k-2"], ["k-3"])


def test_stops_at_any_moment_repeat_records_but_never_lose_one(
    checkpoints: FileCheckpoints,
) -> None:
    chance, stream, done = random.Random(7), InMemoryShards(2), list[str]()
    names = [f"k{number % 5}-{number:03d}" for number in range(200)]
    put(stream, names)
    called = threading.Semaphore(0)

    def respond(batch: list[str]) -> None:
        called.release()
        if chance.random() < 0.3:
            raise RuntimeError("flaky")
        done.extend(batch)

    for _ in range(6):
        with run(
            Function(respond), stream, checkpoints, batch_size=7, parallelization_factor=3
        ) as mapping:
            for _ in range(5):
                called.acquire(timeout=1)
            mapping.stop()
    with run(Function(respond), stream, checkpoints, batch_size=7) as mapping:
        mapping.drain(DEADLINE_S)

    assert set(done) == set(names)


def test_a_stream_that_fails_for_a_while_is_read_again(checkpoints: FileCheckpoints) -> None:
    class Flaky(InMemoryShards):
        faults = 6

        def fail(self) -> None:
            if self.faults:
                self.faults -= 1
                raise StreamUnavailableError("memory", "throttled")

        def shards(self) -> list[Shard]:
            if self.faults > 3:
                self.fail()
            return super().shards()

        def read(self, shard_id: str, after: str | None, limit: int) -> Page:
            self.fail()
            return super().read(shard_id, after, limit)

    stream, function = Flaky(), Function()
    put(stream, ["k-1"])

    with run(function, stream, checkpoints) as mapping:
        mapping.drain(DEADLINE_S)

    assert (function.delivered, stream.faults) == (["k-1"], 0)


def test_a_bug_in_the_mapping_is_raised_to_whoever_waits_for_it(
    checkpoints: FileCheckpoints,
) -> None:
    def broken(_: Invocation) -> None:
        raise ZeroDivisionError

    stream = InMemoryShards()
    put(stream, ["k-1"])
    mapping = run(Function(), stream, checkpoints, on_invocation=broken)
    mapping.start()

    with pytest.raises(MappingFailedError, match="ZeroDivisionError"):
        mapping.drain(DEADLINE_S)

    with pytest.raises(MappingFailedError):
        mapping.stop()


def test_draining_gives_up_at_its_deadline_and_names_the_shard(
    checkpoints: FileCheckpoints,
) -> None:
    release = threading.Event()
    stream = InMemoryShards()
    put(stream, ["k-1"])
    with run(Function(lambda _: release.wait(10) and None), stream, checkpoints) as mapping:
        with pytest.raises(DrainTimeoutError, match="shardId-000000000000"):
            mapping.drain(0.1)
        release.set()
        mapping.drain(DEADLINE_S)


def test_an_endless_retry_stops_with_the_mapping_and_is_repeated_after_it(
    checkpoints: FileCheckpoints,
) -> None:
    stream, twice = InMemoryShards(), threading.Semaphore(0)
    put(stream, ["k-1"])

    def fail(_: list[str]) -> None:
        twice.release()
        raise RuntimeError("not yet")

    with run(Function(fail), stream, checkpoints):
        assert twice.acquire(timeout=5)
        assert twice.acquire(timeout=5)
    healthy = Function()
    with run(healthy, stream, checkpoints) as mapping:
        mapping.drain(DEADLINE_S)

    assert healthy.delivered == ["k-1"]


def test_a_bare_handler_runs_one_invocation_at_a_time(checkpoints: FileCheckpoints) -> None:
    running, most, lock = [0], [0], threading.Lock()

    def handler(event: dict[str, Any], context: Any) -> None:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.002)
        with lock:
            running[0] -= 1

    stream = InMemoryShards(4)
    put(stream, [f"k{n}-{n}" for n in range(60)])
    with EventSourceMapping(
        handler, stream, checkpoints, MappingSettings(batch_size=5, parallelization_factor=3)
    ) as mapping:
        mapping.drain(DEADLINE_S)

    assert most == [1]


def test_checkpoints_survive_and_a_foreign_file_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "checkpoints.json"
    FileCheckpoints(path).save("a", Checkpoint("5"))
    FileCheckpoints(path).save("b", Checkpoint(None, finished=True))

    assert FileCheckpoints(path).load() == {
        "a": Checkpoint("5"),
        "b": Checkpoint(None, finished=True),
    }
    path.write_text("[1]")
    with pytest.raises(LocalRuntimeError, match=r"checkpoints.json is not a checkpoint file"):
        FileCheckpoints(path).load()


def test_backoff_doubles_up_to_a_limit() -> None:
    assert [exponential_backoff(n) for n in (1, 2, 3)] == [0.2, 0.4, 0.8]
    assert exponential_backoff(1_000) == 10.0
