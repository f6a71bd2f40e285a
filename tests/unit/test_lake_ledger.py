"""The ledger's figures and objects: what a batch cost, how late it was, and what a retry leaves."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from freshet.arrow import position_of
from freshet.event import Op
from freshet.objects import ObjectMissingError, PreconditionError
from freshet.receipt import Receipt
from freshet.tables import TABLES
from freshet.testing import EPOCH, MemoryObjects, change
from lake.ledger import ContextPool, Meter, MeteredObjects, lags, metered
from lake.log import (
    CHANGE_LOG,
    LOGS,
    QUARANTINE,
    RECEIPTS,
    RECEIPTS_SCHEMA,
    RESOLUTIONS,
    Kind,
    Lags,
    LoggedEvent,
    LoggedTruncation,
    Place,
    QuarantinedLine,
    ReceiptRow,
    Resolution,
    StreamLogs,
    Verdict,
)


def place(at: int, index: int = 0) -> Place:
    return Place("shard", str(at), index, position_of(str(at), index), EPOCH)


def figures(meter: Meter) -> tuple[int, int, int]:
    return meter.requests, meter.bytes_read, meter.bytes_written


def test_every_call_and_both_ways_of_bytes_are_counted() -> None:
    objects = MeteredObjects(MemoryObjects())

    with metered() as meter:
        objects.put("a", b"12345")
        etag = objects.put_if("b", b"123", etag=None)
        objects.put_if("b", b"1234", etag=etag)
        objects.get("a")
        assert list(objects.list("")) == ["a", "b"]
        objects.delete("a")

    assert figures(meter) == (6, 5, 12)


def test_a_refused_write_is_a_call_that_wrote_nothing() -> None:
    objects = MeteredObjects(MemoryObjects())
    objects.put("a", b"1")

    with metered() as meter, pytest.raises(PreconditionError):
        objects.put_if("a", b"2", etag=None)

    assert figures(meter) == (1, 0, 0)


def test_nothing_is_counted_where_nobody_asked() -> None:
    objects = MeteredObjects(MemoryObjects())

    with metered() as meter:
        pass
    objects.put("a", b"1")

    assert figures(meter) == (0, 0, 0)
    with pytest.raises(ObjectMissingError):
        objects.get("missing")


def test_two_batches_at_once_on_the_same_threads_are_counted_apart() -> None:
    """A laptop consumes two shards at once; Lambda never does."""
    objects = MeteredObjects(MemoryObjects())
    together = threading.Barrier(2, timeout=10)

    def batch(pool: ContextPool, size: int) -> tuple[int, int, int]:
        with metered() as meter:
            together.wait()
            keys = [f"{size}-{at}" for at in range(50)]
            list(pool.map(lambda key: objects.put(key, b"x" * size), keys))
            together.wait()
        return figures(meter)

    with ContextPool(3) as pool, ThreadPoolExecutor(2) as callers:
        found = list(callers.map(lambda size: batch(pool, size), (1, 100)))

    assert found == [(50, 0, 50), (50, 0, 5000)]


def test_lags_are_percentiles_of_what_is_known() -> None:
    instants = [EPOCH - timedelta(milliseconds=ms) for ms in range(1, 101)]

    assert lags([*instants, None], EPOCH) == Lags(51, 96, 100)
    assert lags([None], EPOCH) is None
    assert lags([], EPOCH) is None


def receipt_row(**members: Any) -> ReceiptRow:
    return ReceiptRow(
        **{
            "batch": "shard-1-9",
            "kind": Kind.STREAM,
            "receipt": Receipt(received=3, inserted=2, stale=1),
            "started_at": EPOCH,
            "committed_at": EPOCH + timedelta(milliseconds=250),
            **members,
        }
    )


def read(logs: StreamLogs, log: str, *names: str) -> list[dict[str, Any]]:
    """Rows of a log, only the named columns."""
    return [row for part in logs.read(log, columns=names or None) for row in part.to_pylist()]


def test_a_receipt_has_every_column_of_its_log() -> None:
    logs = StreamLogs(MemoryObjects(), TABLES)
    row = receipt_row(table_name="sales", event_lag=Lags(1, 2, 3), requests=4, note="why")

    logs.record([row])

    [found] = read(logs, RECEIPTS)
    assert list(found) == RECEIPTS_SCHEMA.names
    assert {name for name, value in found.items() if value is None} == {
        "shard_id",
        "first_sequence_number",
        "last_sequence_number",
        "contract_version",
        "snapshot_id",
        "accept_lag_ms_p50",
        "accept_lag_ms_p95",
        "accept_lag_ms_p99",
    }
    assert (found["inserted"], found["duration_ms"], found["event_lag_ms_p95"]) == (2, 250, 2)


def test_a_batch_delivered_again_has_a_receipt_of_each_time() -> None:
    objects = MemoryObjects()
    logs = StreamLogs(objects, TABLES)

    for seconds in (0, 0, 5):
        logs.record([receipt_row(committed_at=EPOCH + timedelta(seconds=seconds))])

    assert list(objects.list("receipts/")) == [
        "receipts/ingest_date=2026-11-21/shard-1-9-083000000000.parquet",
        "receipts/ingest_date=2026-11-21/shard-1-9-083005000000.parquet",
    ]


def resolution(at: int, verdict: Verdict = Verdict.REPLAYED, *, seconds: int = 0) -> Resolution:
    later = EPOCH + timedelta(days=3, seconds=seconds)
    return Resolution(place(at), "sales", verdict, "contract mended", later, "ann")


@pytest.mark.parametrize("again", [[1, 2], [2, 1]])
def test_a_resolution_written_again_overwrites_itself(again: Sequence[int]) -> None:
    objects = MemoryObjects()
    logs = StreamLogs(objects, TABLES)
    logs.resolve([resolution(1), resolution(2)])
    before = list(objects.list(""))

    logs.resolve([resolution(at, seconds=9) for at in again])

    assert list(objects.list("")) == before
    # Beside the line it speaks of, whenever it was made.
    assert before[0].startswith(f"{RESOLUTIONS}/table_name=sales/ingest_date=2026-11-21/")
    assert len(read(logs, RESOLUTIONS)) == 2


def test_another_resolution_of_a_line_is_another_object() -> None:
    objects = MemoryObjects()
    logs = StreamLogs(objects, TABLES)

    logs.resolve([resolution(1)])
    logs.resolve([resolution(1, Verdict.DISCARDED)])

    assert len(list(objects.list(""))) == 2


def test_patches_and_truncations_are_lines_of_the_change_log() -> None:
    logs = StreamLogs(MemoryObjects(), TABLES)
    key, patch = {"sale_id": "A-1"}, {"quantity": 7}
    event = change("sales", version=4, op=Op.UPDATE, key=key, patch=patch)
    end = LoggedTruncation("sales", 9, "id", "debezium/shop", None, EPOCH, place(2))

    logs.append_events("shard-1-2", [LoggedEvent(event, place(1))], [end])

    found = read(logs, CHANGE_LOG, "op", "key", "version", "after", "patch", "position")
    assert found == [
        {
            "op": "u",
            "key": "A-1",
            "version": 4,
            "after": None,
            "patch": '{"quantity": 7}',
            "position": place(1).position,
        },
        {
            "op": "t",
            "key": "*",
            "version": 9,
            "after": None,
            "patch": None,
            "position": place(2).position,
        },
    ]


def test_a_quarantined_line_names_its_decoder() -> None:
    logs = StreamLogs(MemoryObjects(), TABLES)

    logs.quarantine("b", [QuarantinedLine("r", None, "d", b"x", place(1), None, "debezium")])

    assert read(logs, QUARANTINE, "reason", "decoder") == [{"reason": "r", "decoder": "debezium"}]


@pytest.mark.parametrize("log", LOGS)
def test_an_object_of_an_older_release_is_read_with_nulls(log: str) -> None:
    """`patch` and `decoder` came later; so may others."""
    objects = MemoryObjects()
    logs, schema = StreamLogs(objects, TABLES), LOGS[log].schema
    gone = schema.names[2]
    old = schema.remove(2).empty_table()
    row = pa.table([pa.nulls(1, field.type) for field in old.schema], schema=old.schema)
    sink = pa.BufferOutputStream()
    pq.write_table(row, sink)
    objects.put(
        f"{log}/table_name=sales/ingest_date=2026-11-20/b-1.parquet", sink.getvalue().to_pybytes()
    )

    [part] = logs.read(log)
    [narrow] = logs.read(log, columns=[gone])

    assert part.schema.equals(schema)
    assert narrow.to_pylist() == [{gone: None}]
