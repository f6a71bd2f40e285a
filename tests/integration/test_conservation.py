"""Nothing is lost, or it is named: each way a record can go astray is found out, with the way back.

Batches go through the consumer's own handler; then something is broken behind its back.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from consumer.app import Handler, build
from consumer.decode import decode_batch
from consumer.landing import land
from freshet.arrow import position_of
from freshet.event import ChangeEvent, Op
from freshet.mapping import Streams, parse_stream
from freshet.tables import TABLES, Sale
from freshet.testing import EPOCH, MemoryObjects, StoppedClock, change, product_row, sale_row
from freshet.wire import Part, decode_record, encode_event, encode_record
from lake.conservation import FailedBatch, verify_ledger
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE, Kind, LoggedEvent, Place, Resolution, Verdict
from lake.steps import Step
from lake.testing import LakeSite
from lake.verify import FINDINGS_MAX, Check, verify_table

SHARD = "shardId-000000000000"
ACCOUNTED = "L5 every record of the stream is accounted for"
BALANCED = "L5 receipts agree with the logs"
RESOLVED = "L4 quarantined lines are open or resolved"
RECEIPTED = "L5 what is logged has a receipt"
BAD = b'{"table": "sales", "op": "c"'
HEARTBEAT = b'{"ts_ms": 1795249808000}'


def decode(data: bytes, arrived_at: datetime) -> Iterator[Part]:
    return decode_record(data, TABLES, arrived_at=arrived_at)


def sale(at: int, version: int = 1) -> ChangeEvent:
    return change(after=sale_row(f"A-{at}"), version=version)


def data(at: int, version: int = 1) -> bytes:
    return encode_event(sale(at, version))


class Pipe:
    """A stream of one shard, and the consumer behind it. Sequence numbers leave gaps, as
    Kinesis's.
    """

    def __init__(self, lake: Lake, shard: str = SHARD) -> None:
        self.lake, self.shard, self.now = lake, shard, StoppedClock()
        self.handle: Handler = build(lake, tables=TABLES, now=self.now)
        self.data: list[bytes] = []

    def put(self, *data: bytes) -> None:
        self.data += data

    def number(self, at: int) -> str:
        return str(1000 + 7 * at)

    def arrived_at(self, at: int) -> datetime:
        return EPOCH - timedelta(minutes=10) + timedelta(seconds=at)

    def event(self, first: int, last: int) -> dict[str, Any]:
        return {"Records": [self._record(at) for at in range(first, last + 1)]}

    def _record(self, at: int) -> dict[str, Any]:
        return {
            "kinesis": {
                "sequenceNumber": self.number(at),
                "data": base64.b64encode(self.data[at]).decode(),
                "approximateArrivalTimestamp": self.arrived_at(at).timestamp(),
            },
            "eventID": f"{self.shard}:{self.number(at)}",
        }

    def deliver(self, first: int, last: int) -> None:
        assert self.handle(self.event(first, last), None) == {"batchItemFailures": []}
        self.now.advance(1)

    def retained(self, *, since: int = 0) -> list[tuple[str, str, bytes, datetime]]:
        return [
            (self.shard, self.number(at), self.data[at], self.arrived_at(at))
            for at in range(since, len(self.data))
        ]

    def failed(self, first: int, last: int) -> FailedBatch:
        ends = self.number(first), self.number(last)
        return FailedBatch(f"aws/lambda/{first}", self.shard, *ends, last - first + 1)


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def lake(objects: MemoryObjects, tmp_path: Path) -> Iterator[Lake]:
    lake = LakeSite(objects, tmp_path / "catalog.db", tables=TABLES).open()
    yield lake
    lake.close()


@pytest.fixture
def pipe(lake: Lake) -> Pipe:
    """Six records, of which two are poison and one is a heartbeat, delivered in two batches."""
    pipe = Pipe(lake)
    packed = encode_record([data(2), b"{}", data(3)])
    pipe.put(data(0), data(1), packed, BAD, HEARTBEAT, data(4))
    pipe.deliver(0, 2)
    pipe.deliver(3, 5)
    return pipe


def checks(pipe: Pipe, **options: Any) -> dict[str, Check]:
    options = {"records": pipe.retained(), "decode": decode, **options}
    return {check.law: check for check in verify_ledger(pipe.lake, **options)}


def findings(pipe: Pipe, **options: Any) -> dict[str, tuple[str, ...]]:
    return {law: one.findings for law, one in checks(pipe, **options).items() if not one.holds}


def rewrite(objects: MemoryObjects, log: str, keep: Any) -> None:
    """Rewrite each object of a log with the rows that `keep` (of the table) selects."""
    for key in list(objects.list(f"{log}/")):
        table = pq.read_table(pa.BufferReader(objects.get(key).data), use_threads=False)
        sink = pa.BufferOutputStream()
        pq.write_table(table.filter(keep(table)), sink)
        objects.put(key, sink.getvalue().to_pybytes())


def without(name: str, value: Any) -> Any:
    return lambda table: pc.not_equal(table.column(name), value)


def delete(objects: MemoryObjects, prefix: str, part: str = "") -> None:
    for key in list(objects.list(prefix)):
        if part in key:
            objects.delete(key)


def test_a_sound_ledger_says_how_much_it_looked_at_and_what_waits(pipe: Pipe) -> None:
    found = checks(pipe)

    assert {law: (one.holds, one.checked) for law, one in found.items()} == {
        ACCOUNTED: (True, 6),
        BALANCED: (True, 4),
        RESOLVED: (True, 2),
        RECEIPTED: (True, 2),
    }
    assert found[RESOLVED].notes == ("2 line(s) wait: `freshet quarantine list` tells why",)


def test_without_a_stream_the_rest_is_still_checked(pipe: Pipe, objects: MemoryObjects) -> None:
    """Retention is over, or the account's stream is not ours to read."""
    delete(objects, "quarantine/")

    assert set(findings(pipe, records=())) == {BALANCED}


def test_records_newer_than_the_last_receipt_are_not_consumed_yet(pipe: Pipe) -> None:
    pipe.put(data(5), data(6))

    found = checks(pipe)[ACCOUNTED]

    assert found.holds
    assert found.notes == (f"{SHARD}: 2 record(s) from 1042 to 1049 are not consumed yet",)


def test_a_shard_nobody_consumed_yet_is_no_finding(pipe: Pipe) -> None:
    other = Pipe(pipe.lake, "shardId-000000000001")
    other.put(data(8))

    found = checks(pipe, records=[*pipe.retained(), *other.retained()])[ACCOUNTED]

    assert found.holds
    assert "shardId-000000000001: 1 record(s)" in found.notes[0]


def test_records_that_were_passed_over_are_named_with_their_range(pipe: Pipe) -> None:
    """As after a checkpoint set by hand. A heartbeat among them is as lost as a change."""
    pipe.put(data(5), HEARTBEAT, data(6), data(7))
    pipe.deliver(9, 9)

    [finding] = findings(pipe)[ACCOUNTED]

    assert finding == (
        f"{SHARD}: 3 record(s) from 1042 to 1056 are in no receipt and no failure object: "
        "`freshet replay --from-stream --from 2026-11-21T08:20:06.000Z "
        "--to 2026-11-21T08:20:08.001Z` brings them back"
    )


def test_a_part_of_a_record_that_no_log_has_is_found(pipe: Pipe, objects: MemoryObjects) -> None:
    """One of three events of a packed record, and the object's own name gives it away, too."""
    rewrite(objects, CHANGE_LOG, without("key", "A-3"))

    found = findings(pipe)

    assert "1 record(s) from 1014 to 1014 have parts in neither" in found[ACCOUNTED][0]
    assert "holds 3 of its 4 lines, and no erasure says why" in found[BALANCED][0]


def test_a_lost_quarantine_object_is_found(pipe: Pipe, objects: MemoryObjects) -> None:
    delete(objects, "quarantine/table_name=unknown")

    found = findings(pipe)

    assert "2 record(s) from 1014 to 1021 have parts in neither" in found[ACCOUNTED][0]
    assert all("counts 1 line(s), the quarantine holds 0" in one for one in found[BALANCED])


def test_a_quarantine_that_the_buckets_lifecycle_expired_is_told_and_no_finding(
    pipe: Pipe, objects: MemoryObjects
) -> None:
    delete(objects, "quarantine/")

    since = EPOCH + timedelta(seconds=1)  # between the two batches
    found = checks(pipe, records=(), quarantine_since=since)[BALANCED]

    assert found.notes == (f"1 line(s) were rejected before {since}: expired",)
    assert [finding.split(",")[0] for finding in found.findings] == [
        f"receipt of {SHARD}-1021-1035"
    ]


def test_a_lost_log_object_contradicts_its_receipt(pipe: Pipe, objects: MemoryObjects) -> None:
    delete(objects, "change_log/", "1021")

    [finding] = findings(pipe, records=())[BALANCED]

    batch = f"{SHARD}-1021-1035"
    assert finding == (
        f"receipt of {batch}, sales: counts 1 line(s), the change_log holds 0 of that batch"
    )


def test_a_lost_receipt_is_found_although_the_stream_has_forgotten(
    pipe: Pipe, objects: MemoryObjects
) -> None:
    pipe.put(data(5))
    pipe.deliver(6, 6)
    delete(objects, "receipts/", "1021")

    found = findings(pipe, records=())

    assert list(found) == [RECEIPTED]
    assert found[RECEIPTED][0].startswith(f"{SHARD}-1021-1035: 1 record(s) are in the change log")
    assert ACCOUNTED in findings(pipe)


def test_a_receipt_that_does_not_add_up_is_found(pipe: Pipe, objects: MemoryObjects) -> None:
    key = next(iter(objects.list("receipts/")))
    table = pq.read_table(pa.BufferReader(objects.get(key).data), use_threads=False)
    rows = [{**row, "stale": row["stale"] + 1} for row in table.to_pylist()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
    objects.put(key, sink.getvalue().to_pybytes())

    assert all("receipt does not add up" in one for one in findings(pipe)[BALANCED])


def test_a_batch_given_up_waits_at_the_failure_destination(pipe: Pipe) -> None:
    pipe.put(data(5), data(6), data(7))
    pipe.deliver(8, 8)

    found = checks(pipe, failures=[pipe.failed(6, 7)])

    assert all(one.holds for one in found.values())
    [note] = found[ACCOUNTED].notes
    assert note == (
        f"aws/lambda/6: 2 record(s) of {SHARD} from 1042 to 1049 wait at the failure destination: "
        "`freshet quarantine replay` brings them back"
    )


def test_a_batch_given_up_for_good_is_accounted_for_and_waits_no_more(pipe: Pipe) -> None:
    pipe.put(data(5), data(6), data(7))
    pipe.deliver(8, 8)

    found = checks(pipe, failures=[pipe.failed(6, 7)._replace(discarded=True)])

    assert all(one.holds for one in found.values())
    assert found[ACCOUNTED].notes == ()


def test_a_gap_is_closed_by_a_replay_of_the_stream(pipe: Pipe) -> None:
    """Also of what is no change: the replay's receipt has its range. Of one table, it leaves the
    others' changes as lost as they were.
    """
    pipe.put(data(5), HEARTBEAT, encode_event(change("products", product_row())))
    pipe.put(data(7))
    pipe.deliver(9, 9)
    assert list(findings(pipe)) == [ACCOUNTED]
    batch = decode_batch(pipe.event(6, 8), TABLES)
    of_sales = [item for item in batch.events if item.event.table == "sales"]

    land(replace(batch, events=of_sales), pipe.lake, TABLES, now=pipe.now, kind=Kind.REPLAY)

    assert "1 record(s) from 1056 to 1056 have parts" in findings(pipe)[ACCOUNTED][0]
    land(batch, pipe.lake, TABLES, now=pipe.now, kind=Kind.REPLAY)
    assert findings(pipe) == {}


def test_a_batch_given_up_is_no_gap_when_it_was_the_last(pipe: Pipe) -> None:
    pipe.put(data(5), data(6))

    found = checks(pipe, failures=[pipe.failed(6, 6)])[ACCOUNTED]

    assert found.holds
    assert [note.split()[1] for note in found.notes] == ["1", "1"]
    assert "1049 to 1049 are not consumed yet" in found.notes[1]


def test_a_failure_object_brought_back_waits_no_more(pipe: Pipe) -> None:
    pipe.put(data(5), data(6), data(7))
    pipe.deliver(8, 8)
    batch = decode_batch(pipe.event(6, 7), TABLES)

    landed = land(batch, pipe.lake, TABLES, now=pipe.now, kind=Kind.FAILURE, note="by ann")

    assert [row.note for row in landed.rows] == ["by ann", "by ann"]
    found = checks(pipe, failures=[pipe.failed(6, 7)])
    assert all(one.holds for one in found.values())
    assert found[ACCOUNTED].notes == ()


def test_a_batch_cut_anew_when_it_came_again_is_no_finding(pipe: Pipe) -> None:
    """Logged under two names, receipted twice: each record once for the reader."""
    pipe.deliver(0, 1)
    pipe.deliver(2, 4)
    pipe.deliver(0, 5)

    assert findings(pipe) == {}


def quarantined_places(lake: Lake) -> list[Place]:
    return [
        Place(
            row["shard_id"],
            row["sequence_number"],
            row["record_index"],
            row["position"],
            row["arrived_at"],
        )
        for part in lake.log(QUARANTINE)
        for row in part.to_pylist()
    ]


def resolve(lake: Lake, places: Iterable[Place], verdict: Verdict) -> None:
    lake.resolve([Resolution(one, None, verdict, "why", EPOCH, "ann") for one in places])


def test_discarded_lines_wait_no_more(pipe: Pipe) -> None:
    resolve(pipe.lake, quarantined_places(pipe.lake), Verdict.DISCARDED)

    found = checks(pipe)

    assert all(one.holds for one in found.values())
    assert found[RESOLVED].notes == ()


def test_a_line_said_to_be_replayed_that_is_in_no_log_is_found(pipe: Pipe) -> None:
    """Its neighbours in the record are; that does not count."""
    [place, _] = quarantined_places(pipe.lake)
    resolve(pipe.lake, [place], Verdict.REPLAYED)

    [finding] = findings(pipe)[RESOLVED]

    assert finding.startswith(f"{SHARD} {place.position} was replayed, but 1 change(s) of it are")


def test_a_replayed_line_is_looked_for_in_all_its_parts(pipe: Pipe) -> None:
    """The poison of its own record turns out to have been two changes."""
    [_, place] = quarantined_places(pipe.lake)
    resolve(pipe.lake, [place], Verdict.REPLAYED)
    parts = [LoggedEvent(sale(90 + at), moved(place, at)) for at in range(2)]

    def reads_more(data: bytes, arrived_at: datetime) -> Iterator[Part]:
        return decode(encode_record([encode_event(item.event) for item in parts]), arrived_at)

    pipe.lake.keep("replay-1", parts[:1], [])
    assert list(findings(pipe, records=(), decode=reads_more)) == [RESOLVED]
    pipe.lake.keep("replay-2", parts[1:], [])

    assert findings(pipe, records=(), decode=reads_more) == {}


def moved(place: Place, by: int) -> Place:
    index = place.index + by
    position = position_of(place.sequence_number, index)
    return Place(place.shard_id, place.sequence_number, index, position, place.arrived_at)


def test_a_record_rejected_whole_and_read_in_parts_later_is_accounted_for(lake: Lake) -> None:
    """Three lines that an older release could not read at all: all of it lies in one line."""
    pipe = Pipe(lake)
    pipe.put(b"later format", data(1))
    pipe.deliver(0, 1)

    def reads_more(data: bytes, arrived_at: datetime) -> Iterator[Part]:
        known = encode_record([BAD, BAD, BAD]) if data == b"later format" else data
        return decode(known, arrived_at)

    assert findings(pipe, decode=reads_more) == {}


def test_erased_lines_are_no_finding_and_others_are(pipe: Pipe, objects: MemoryObjects) -> None:
    """An erasure leaves its places, and nothing else."""
    [place] = [
        Place(row["shard_id"], row["sequence_number"], 0, row["position"], row["arrived_at"])
        for part in pipe.lake.log(CHANGE_LOG)
        for row in part.to_pylist()
        if row["key"] == "A-1"
    ]
    erased = Resolution(place, "sales", Verdict.ERASED, "request", EPOCH, "ann")
    rewrite(objects, CHANGE_LOG, without("key", "A-1"))
    assert set(findings(pipe)) == {ACCOUNTED, BALANCED}

    pipe.lake.resolve([erased])

    assert findings(pipe) == {}
    rewrite(objects, CHANGE_LOG, without("key", "A-0"))
    assert set(findings(pipe)) == {ACCOUNTED, BALANCED}


def test_a_place_in_the_logs_of_two_tables_is_found(pipe: Pipe, objects: MemoryObjects) -> None:
    """As when a mapping was changed between two deliveries of a batch."""
    [key, _] = objects.list("change_log/table_name=sales/")
    objects.put(key.replace("=sales/", "=products/"), objects.get(key).data)

    assert all("sales" in one and "products" in one for one in findings(pipe)[ACCOUNTED])


def test_what_was_consumed_before_there_was_a_ledger_is_answered_for_by_the_logs(
    pipe: Pipe, objects: MemoryObjects
) -> None:
    """The first receipt of an upgraded deployment is not the first record of its stream."""
    delete(objects, "receipts/", "1000-1014")

    assert findings(pipe) == {}
    rewrite(objects, CHANGE_LOG, without("key", "A-0"))
    assert ACCOUNTED in findings(pipe)


def test_findings_are_bounded_and_progress_is_told(lake: Lake, objects: MemoryObjects) -> None:
    pipe = Pipe(lake)
    pipe.put(*(data(at) for at in range(2 * FINDINGS_MAX + 8)))
    for at in range(len(pipe.data)):
        pipe.deliver(at, at)
    for at in range(0, len(pipe.data), 2):
        delete(objects, "change_log/", f"{pipe.number(at)}-{pipe.number(at)}")
    said: list[str] = []

    found = findings(pipe, progress=said.append)

    assert {law: len(told) for law, told in found.items()} == {
        ACCOUNTED: FINDINGS_MAX,
        BALANCED: FINDINGS_MAX,
    }
    assert [text.split(":")[0] for text in said] == ["ledger"] * 3


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("step", Step)
def test_a_kill_at_any_step_leaves_nothing_unaccounted_once_it_is_delivered_again(
    objects: MemoryObjects, tmp_path: Path, step: Step
) -> None:
    site = LakeSite(objects, tmp_path / "catalog.db", tables=TABLES)
    events = [change(after=sale_row("A-1")), change(key={"sale_id": "A-1"}, version=2)]
    reached: list[Step] = []

    def kill(at: Step) -> None:
        if at is step and not reached:
            reached.append(at)
            raise Killed

    lake = site.open()
    first = Pipe(lake)
    first.put(encode_event(events[0]), BAD, encode_event(events[1]), HEARTBEAT)
    first.deliver(0, 1)
    doomed = site.open(on_step=kill)
    handle = build(doomed, tables=TABLES, now=first.now)
    with pytest.raises(Killed):
        handle(first.event(2, 3), None)
    doomed.close()
    assert findings(first) == {}  # it is to come

    first.deliver(2, 3)

    assert all(check.holds for check in verify_table(lake, Sale))
    found = checks(first)
    assert all(one.holds for one in found.values())
    assert found[ACCOUNTED].notes == ()
    lake.close()


def test_patches_and_truncations_are_accounted_for_like_rows(lake: Lake) -> None:
    pipe = Pipe(lake)
    patch = change(op=Op.UPDATE, key={"sale_id": "A-1"}, patch={"quantity": 9}, version=3)
    truncate = {
        "op": "t",
        "ts_ms": 1795249808500,
        "source": {
            "connector": "postgresql",
            "name": "shop",
            "ts_ms": 1795249808000,
            "schema": "public",
            "table": "sales",
            "lsn": 5,
        },
    }
    waiting = change(op=Op.UPDATE, key={"sale_id": "W-1"}, patch={"quantity": 2}, version=9)
    pipe.put(data(1, 2), data(2, 7), encode_event(patch))
    pipe.put(json.dumps(truncate).encode(), encode_event(waiting))
    pipe.deliver(0, 1)
    pipe.deliver(2, 4)

    rows = lake.rows("sales").to_pylist()
    assert [row["sale_id"] for row in rows] == ["A-2"]
    assert findings(pipe) == {}
    assert [check.findings for check in verify_table(lake, Sale)] == [()] * 4


MAPPED = parse_stream(
    "format: debezium\nmatch: shop\ntables:\n  public.products:\n    table: products\n"
    "    columns: {id: product_id, name: title}\n",
    "shop",
    TABLES,
)
CAPTURED = {
    "before": None,
    "after": {"id": "4", "name": "White heart", "price": "2.55", "currency": "GBP"},
    "source": {
        "connector": "postgresql",
        "name": "shop",
        "db": "shop",
        "schema": "public",
        "table": "products",
        "lsn": 24023128,
        "ts_ms": 1559033904863,
    },
    "op": "c",
    "ts_ms": 1559033904961,
}


@pytest.mark.parametrize("with_a_neighbour", [True, False])
def test_a_line_refused_before_a_kill_and_landed_after_a_fix_is_no_finding(
    lake: Lake, with_a_neighbour: bool
) -> None:
    """Its batch is logged twice: refused by the old mapping, and read by the new one."""
    lines = [data(1)] if with_a_neighbour else []
    records = [
        ("shardId-1", str(at), line, EPOCH)
        for at, line in enumerate([*lines, json.dumps(CAPTURED).encode()], 1)
    ]
    event = {
        "Records": [
            {
                "eventID": f"{shard}:{number}",
                "kinesis": {
                    "sequenceNumber": number,
                    "data": base64.b64encode(line).decode(),
                    "approximateArrivalTimestamp": at.timestamp(),
                },
            }
            for shard, number, line, at in records
        ]
    }
    before = decode_batch(event, TABLES)
    lake.keep(before.name, before.events, before.rejected, before.truncations)
    streams = Streams((MAPPED,))

    land(decode_batch(event, TABLES, streams=streams), lake, TABLES, now=StoppedClock())

    checks = verify_ledger(
        lake,
        decode=lambda line, at: decode_record(line, TABLES, arrived_at=at, streams=streams),
        records=records,
    )
    assert [check.findings for check in checks] == [()] * 4
