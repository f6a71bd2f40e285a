"""The pieces that make the embedded services durable, each against the fault it exists for."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from local import embedded_server
from local.embedded_server import (
    DurableKinesis,
    RecordJournal,
    SequenceNumbers,
    repair_torn_objects,
)

ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/changes"


def shards(*numbers: str) -> dict[str, list[dict[str, Any]]]:
    return {"shardId-000000000000": [{"SequenceNumber": number} for number in numbers]}


def test_a_torn_last_line_is_cut_off_and_writing_goes_on_after_it(tmp_path: Path) -> None:
    with closing(RecordJournal(tmp_path)) as journal:
        journal.append(ARN, shards("1"))
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"stream":"arn:aws')

    with closing(RecordJournal(tmp_path)) as journal:
        journal.append(ARN, shards("2"))

    assert list(journal.replay()) == [(ARN, shards("1")), (ARN, shards("2"))]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with closing(RecordJournal(tmp_path)) as journal:
        journal.append(ARN, shards("1"))
        whole, journal._file = journal._file, ShortFile(journal._file)
        with pytest.raises(OSError, match="only 5 of"):
            journal.append(ARN, shards("2"))
        journal._file = whole

        journal.append(ARN, shards("3"))

    assert list(journal.replay()) == [(ARN, shards("1")), (ARN, shards("3"))]


class ShortFile:
    """A file on a disk with room for five more bytes."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, line: bytes) -> int:
        return int(self._file.write(line[:5]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_expired_segments_are_dropped_and_the_one_being_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_server, "SEGMENT_BYTES_MAX", 10)
    with closing(RecordJournal(tmp_path)) as journal:
        started = [journal.append(ARN, shards(number)) for number in "123"]
        for segment in tmp_path.glob("*.jsonl"):
            os.utime(segment, (1_000, 1_000))

        journal.drop_before(2_000)

        assert started == [True, True, True]
        assert list(journal.replay()) == [(ARN, shards("3"))]


def test_sequence_numbers_grow_although_the_clock_steps_back() -> None:
    ticks = iter([10.0, 9.0, 8.0])
    numbers = SequenceNumbers(lambda: next(ticks))
    first, second = numbers.next(), numbers.next()

    restarted = SequenceNumbers(lambda: 1.0)
    restarted.start_after(second)

    assert first < second < restarted.next()


def test_an_overwrite_cut_between_data_and_sidecar_gets_its_own_etag(tmp_path: Path) -> None:
    data, sidecar = tmp_path / "key", tmp_path / "key.meta.json"
    sidecar.write_text(json.dumps({"key": "key", "etag": '"old"', "size": 1}))
    data.write_bytes(b"new content")
    os.utime(sidecar, (1_000, 1_000))

    repair_torn_objects(tmp_path)

    meta = json.loads(sidecar.read_text())
    assert meta["size"] == 11
    assert meta["etag"] == '"96c15c2bb2921193bf290df8cd85e2ba"'


def test_an_object_whose_sidecar_is_newer_is_left_alone(tmp_path: Path) -> None:
    data, sidecar = tmp_path / "key", tmp_path / "key.meta.json"
    data.write_bytes(b"content")
    sidecar.write_text(json.dumps({"key": "key", "etag": '"kept"', "size": 7}))
    os.utime(data, (1_000, 1_000))

    repair_torn_objects(tmp_path)

    assert json.loads(sidecar.read_text())["etag"] == '"kept"'


def test_a_closed_shard_leaves_the_stream_when_retention_has_passed_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.embedded_server.time.time", lambda: 100_000.0)
    ended = {"long ago": 13_000, "of late": 14_000, "with records": 13_000}
    shards: dict[str, Any] = {
        name: {"records": [], "ending_sequence_number": f"{at * 1000:020d}0000000001"}
        for name, at in ended.items()
    }
    shards["with records"]["records"].append({"ApproximateArrivalTimestamp": 99_000.0})
    shards["open"] = {"records": []}
    stream = {"StreamName": "changes", "RetentionPeriodHours": 24, "shards": shards}
    module = SimpleNamespace(_expire_iterators=None, _shard_iterators={})

    with closing(RecordJournal(tmp_path)) as journal:
        DurableKinesis(module, journal)._expire(stream)

    assert list(shards) == ["of late", "with records", "open"]


def test_records_past_retention_leave_memory_and_iterators_keep_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.embedded_server.time.time", lambda: 100_000.0)
    iterators = {
        name: {"stream": "changes", "shard_id": shard_id, "position": position}
        for name, shard_id, position in [("old", "a", 1), ("new", "a", 3), ("other", "b", 1)]
    }
    arrivals = {"a": [10_000.0, 13_000.0, 14_000.0, 99_000.0], "b": [99_000.0]}
    stream = {
        "StreamName": "changes",
        "RetentionPeriodHours": 24,
        "shards": {
            name: {"records": [{"ApproximateArrivalTimestamp": at} for at in times]}
            for name, times in arrivals.items()
        },
    }
    module = SimpleNamespace(_expire_iterators=None, _shard_iterators=iterators)

    with closing(RecordJournal(tmp_path)) as journal:
        DurableKinesis(module, journal)._expire(stream)

    kept = {
        name: [record["ApproximateArrivalTimestamp"] for record in shard["records"]]
        for name, shard in stream["shards"].items()  # type: ignore[attr-defined]
    }
    assert kept == {"a": [14_000.0, 99_000.0], "b": [99_000.0]}
    assert {name: one["position"] for name, one in iterators.items()} == {
        "old": 0,
        "new": 1,
        "other": 1,
    }
