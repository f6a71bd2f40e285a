"""The way back of refused lines: a table ends as if nothing had ever been refused."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from consumer.app import build
from freshet.contract import Contract, Integer, Money, PartitionField, Registry, Text
from freshet.event import ChangeEvent
from freshet.kinesis import RetainedRecord
from freshet.model import ModelChange, current_state, live_rows
from freshet.testing import EPOCH, MemoryObjects, StoppedClock
from freshet.wire import Decoded, Part, decode_record
from lake.conservation import verify_ledger
from lake.lake import Lake
from lake.log import CHANGE_LOG, RECEIPTS, Kind
from lake.replay import (
    Again,
    Wanted,
    discard,
    place_text,
    quarantined,
    replay_log,
    replay_quarantine,
)
from lake.testing import LakeSite
from lake.verify import verify_table
from local.failures import event_of

SHARD = "shardId-000000000000"
NOW = StoppedClock(EPOCH + timedelta(days=1))
WRITES_MAX = 60


class Narrow(
    Contract, table="items", key=("item_id",), partition=(PartitionField("bucket", "item_id", 2),)
):
    """Items as the contract had them first."""

    item_id: Annotated[str, Text(20, 1)] = Field(description="Id")
    price: Annotated[Decimal, Money(18, 4)] = Field(description="Price")


class Wide(
    Contract,
    table="items",
    key=("item_id",),
    partition=(PartitionField("bucket", "item_id", 2),),
    contract_version=2,
):
    """Items once the contract was mended."""

    item_id: Annotated[str, Text(20, 1)] = Field(description="Id")
    price: Annotated[Decimal, Money(18, 4)] = Field(description="Price")
    stock: Annotated[int, Integer(32)] | None = Field(None, description="In stock")


BEFORE, AFTER = Registry((Narrow,)), Registry((Wide,))


class Crash(BaseException):
    """The process ends here."""


@dataclass
class CrashingObjects:
    """A store after whose n-th write from now the process ends."""

    store: MemoryObjects
    writes_left: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def crashed(self) -> bool:
        return self.writes_left <= 0

    def get(self, key: str) -> Any:
        return self.store.get(key)

    def put(self, key: str, data: bytes) -> str:
        return self._counted(self.store.put(key, data))

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        return self._counted(self.store.put_if(key, data, etag=etag))

    def delete(self, key: str) -> None:
        self.store.delete(key)
        self._counted("")

    def list(self, prefix: str) -> Iterator[str]:
        return self.store.list(prefix)

    def _counted(self, etag: str) -> str:
        with self.lock:
            self.writes_left -= 1
            if self.writes_left <= 0:
                raise Crash
        return etag


def line(item: str, version: int, **columns: Any) -> bytes:
    """An event as a tool writes it: an update to these columns, or without any a delete."""
    body: dict[str, Any] = {
        "table": "items",
        "op": "u" if columns else "d",
        "key": {"item_id": item},
        "version": version,
        "event_id": f"{item}-{version}",
        "source": "test",
        "accepted_at": "2026-11-21T08:30:00Z",
    }
    if columns:
        body["after"] = {"item_id": item, "price": "1.0000"} | columns
    return json.dumps(body).encode()


def record(at: int, *lines: bytes, arrived_at: datetime = EPOCH) -> RetainedRecord:
    return RetainedRecord(SHARD, str(100 + at), b"\n".join(lines), arrived_at)


# Lines with `stock` are refused until the contract knows it. Two share a version: the later wins.
HISTORY = [
    record(0, line("a", 1, price="1.0000"), line("b", 1, stock=4)),
    record(1, line("a", 3, stock=7), line("c", 1, price="2.0000")),
    record(2, line("c", 2, stock=1), b"no event at all"),
    record(3, line("c", 3)),
    record(4, line("a", 2, price="9.0000"), line("b", 1, stock=5)),
    record(5, line("d", 5, price="3.0000"), line("d", 5, stock=3)),
    record(6, line("d", 5, price="4.0000"), arrived_at=EPOCH + timedelta(days=2)),
]


def site_of(folder: Path, tables: Registry, objects: MemoryObjects | None = None) -> LakeSite:
    folder.mkdir(exist_ok=True, parents=True)
    return LakeSite(objects or MemoryObjects(), folder / "catalog.db", tables=tables)


def copied(objects: MemoryObjects, folder: Path, to: Path) -> MemoryObjects:
    """A lake as it is, to do something else with each time."""
    to.mkdir()
    shutil.copy(folder / "catalog.db", to / "catalog.db")
    copy = MemoryObjects()
    for key in objects.list(""):
        copy.put(key, objects.get(key).data)
    return copy


def deliver(lake: Lake, tables: Registry, records: list[RetainedRecord]) -> None:
    """Each record as a batch of its own, as the consumer gets it."""
    handle = build(lake, tables=tables, now=NOW)
    for one in records:
        assert handle(event_of([one]), None) == {"batchItemFailures": []}


def again(lake: Lake, tables: Registry) -> Again:
    def decode(data: bytes, arrived_at: datetime) -> Iterator[Part]:
        return iter(list(decode_record(data, tables, arrived_at=arrived_at)))

    return Again(lake, tables, decode, NOW, "a test")


def state(lake: Lake) -> tuple[list[Any], list[Any]]:
    """Rows and tombstones, places included."""
    current = lake.current("items")
    tombstones = current.tombstones.read_all(current.tombstones.view())
    return tuple(  # type: ignore[return-value]
        sorted(table.to_pylist(), key=str) for table in (lake.rows("items"), tombstones)
    )


def never_refused(folder: Path) -> tuple[list[Any], list[Any]]:
    """The state of a lake whose contract was right from the first."""
    lake = site_of(folder / "right", AFTER).open()
    deliver(lake, AFTER, HISTORY)
    reached = state(lake)
    lake.close()
    return reached


@pytest.mark.parametrize("fixed_after", [0, 2, 4, len(HISTORY)])
def test_after_a_replay_the_table_is_as_if_nothing_had_been_refused(
    fixed_after: int, tmp_path: Path
) -> None:
    objects = MemoryObjects()
    faulty = site_of(tmp_path, BEFORE, objects).open()
    deliver(faulty, BEFORE, HISTORY)
    lake = site_of(tmp_path, AFTER, objects).open()
    deliver(lake, AFTER, HISTORY[fixed_after:])

    done = replay_quarantine(again(lake, AFTER), Wanted())

    assert state(lake) == never_refused(tmp_path)
    assert (done.lines, done.landed, done.still_bad) == (6, 5, 1)
    assert done.reasons.total() == 1


def test_the_replayed_table_is_what_the_model_says(tmp_path: Path) -> None:
    objects = MemoryObjects()
    faulty = site_of(tmp_path, BEFORE, objects).open()
    deliver(faulty, BEFORE, HISTORY)
    lake = site_of(tmp_path, AFTER, objects).open()

    replay_quarantine(again(lake, AFTER), Wanted())

    changes = [
        ModelChange(
            part.event.key["item_id"],
            part.event.version,
            f"{one.sequence_number}-{part.index}",
            part.event.after,
        )
        for one in HISTORY
        for part in decode_record(one.data, AFTER)
        if isinstance(part, Decoded)
    ]
    expected = live_rows(current_state(changes))
    rows = {row["item_id"]: row for row in lake.rows("items").to_pylist()}
    assert {key: {name: row[name] for name in expected[key]} for key, row in rows.items()} == (
        expected
    )


def test_a_replay_that_is_killed_at_any_write_and_run_again_ends_the_same(tmp_path: Path) -> None:
    expected = never_refused(tmp_path)
    faulty = MemoryObjects()
    deliver(site_of(tmp_path, BEFORE, faulty).open(), BEFORE, HISTORY)
    for nth in range(1, WRITES_MAX):
        objects = copied(faulty, tmp_path, tmp_path / str(nth))
        crashing = CrashingObjects(objects, nth)
        site = site_of(tmp_path / str(nth), AFTER, objects)
        with suppress(Crash):
            replay_quarantine(again(site.open(objects=crashing), AFTER), Wanted())
        lake = site.open()

        replay_quarantine(again(lake, AFTER), Wanted())

        assert state(lake) == expected
        assert [kept.line.data for kept in quarantined(lake, Wanted())] == [b"no event at all"]
        if not crashing.crashed:
            break
    assert 4 < nth < WRITES_MAX, "it was never killed, or never got through"


def test_a_replay_with_nothing_to_land_writes_nothing(tmp_path: Path) -> None:
    objects = MemoryObjects()
    deliver(site_of(tmp_path, BEFORE, objects).open(), BEFORE, HISTORY)
    lake = site_of(tmp_path, AFTER, objects).open()
    replay_quarantine(again(lake, AFTER), Wanted())
    before = list(objects.list(""))

    done = replay_quarantine(again(lake, AFTER), Wanted())

    assert (done.lines, done.landed, done.still_bad) == (1, 0, 1)
    assert list(objects.list("")) == before


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    objects = MemoryObjects()
    deliver(site_of(tmp_path, BEFORE, objects).open(), BEFORE, HISTORY)
    lake = site_of(tmp_path, AFTER, objects).open()
    lake.rows("items")  # a new column is applied when a table is opened
    before = list(objects.list(""))

    done = replay_quarantine(again(lake, AFTER), Wanted(), dry_run=True)

    assert (done.lines, done.landed, done.still_bad) == (6, 5, 1)
    assert list(objects.list("")) == before


def test_a_replay_leaves_receipts_and_log_lines_at_the_original_places(tmp_path: Path) -> None:
    objects = MemoryObjects()
    faulty = site_of(tmp_path, BEFORE, objects).open()
    deliver(faulty, BEFORE, HISTORY)
    refused = {kept.line.place.position for kept in quarantined(faulty, Wanted(table="items"))}
    lake = site_of(tmp_path, AFTER, objects).open()

    replay_quarantine(again(lake, AFTER), Wanted())

    logged = {row["position"] for part in lake.log(CHANGE_LOG) for row in part.to_pylist()}
    receipts = [row for part in lake.log(RECEIPTS) for row in part.to_pylist()]
    [receipt] = [row for row in receipts if row["kind"] == Kind.REPLAY]
    assert refused <= logged
    assert (receipt["received"], receipt["shard_id"]) == (5, None)


def test_only_lines_that_every_filter_means_are_replayed(tmp_path: Path) -> None:
    objects = MemoryObjects()
    deliver(site_of(tmp_path, BEFORE, objects).open(), BEFORE, HISTORY)
    lake = site_of(tmp_path, AFTER, objects).open()
    [first, *rest] = [k.line for k in quarantined(lake, Wanted(reason="unknown_column"))]

    done = replay_quarantine(again(lake, AFTER), Wanted(place=place_text(first.place)))

    assert done.lines == done.landed == 1
    left = [k.line for k in quarantined(lake, Wanted(reason="unknown_column"))]
    assert left == rest
    late = Wanted(since=EPOCH + timedelta(seconds=1))
    assert list(quarantined(lake, late)) == []
    assert list(quarantined(lake, Wanted(shard="shardId-000000000009"))) == []
    assert list(quarantined(lake, Wanted(decoder="dms"))) == []
    assert len(list(quarantined(lake, Wanted(until=EPOCH + timedelta(seconds=1))))) == 5


def test_discarded_lines_are_resolved_with_who_and_why_and_nothing_is_deleted(
    tmp_path: Path,
) -> None:
    objects = MemoryObjects()
    lake = site_of(tmp_path, BEFORE, objects).open()
    deliver(lake, BEFORE, HISTORY)
    before = set(objects.list(""))

    assert discard(again(lake, BEFORE), Wanted(table="unknown"), "a load test") == 1

    assert before < set(objects.list(""))
    assert list(quarantined(lake, Wanted(table="unknown"))) == []
    [kept] = quarantined(lake, Wanted(table="unknown"), resolved=True)
    assert kept.resolved is not None
    assert (kept.resolved.resolution, kept.resolved.reason, kept.resolved.by) == (
        "discarded",
        "a load test",
        "a test",
    )


def test_a_batch_that_was_cut_anew_shows_each_line_once(tmp_path: Path) -> None:
    lake = site_of(tmp_path, BEFORE).open()
    deliver(lake, BEFORE, HISTORY[:2])
    handle = build(lake, tables=BEFORE, now=NOW)
    handle(event_of(HISTORY[:2]), None)

    assert len(list(quarantined(lake, Wanted()))) == 2


def test_a_record_that_was_refused_whole_lands_its_good_parts_and_stays_open_while_one_is_bad(
    tmp_path: Path,
) -> None:
    lake = site_of(tmp_path, AFTER).open()
    whole = record(0, line("a", 1), line("b", 1, price="2.0000"), line("c", 1, nonsense=1))
    deliver(lake, AFTER, [record(0, b"\xf3\x89\x9a\xc2" + whole.data)])
    fixes = {"bad": whole.data, "good": whole.data.replace(b"nonsense", b"stock")}

    def back(name: str) -> Any:
        def decode(_: bytes, arrived_at: datetime) -> Iterator[Part]:
            return iter(list(decode_record(fixes[name], AFTER, arrived_at=arrived_at)))

        return replay_quarantine(Again(lake, AFTER, decode, NOW, "a test"), Wanted())

    some, all_of_it, nothing = back("bad"), back("good"), back("good")

    assert (some.landed, some.still_bad) == (0, 1)
    assert (all_of_it.landed, all_of_it.still_bad) == (1, 0)
    assert nothing.lines == 0
    assert {row["item_id"] for row in lake.rows("items").to_pylist()} == {"b", "c"}
    positions = [row["_position"] for row in lake.rows("items").to_pylist()]
    assert len(set(positions)) == 2


def test_a_replay_of_the_log_changes_nothing(tmp_path: Path) -> None:
    lake = site_of(tmp_path, AFTER).open()
    deliver(lake, AFTER, HISTORY)
    before = state(lake)

    done = replay_log(again(lake, AFTER), [Wide], EPOCH, EPOCH + timedelta(days=3))

    assert done.changed == 0
    assert done.receipts["items"].received == done.lines == 11
    assert state(lake) == before


def test_a_replay_of_the_log_brings_back_what_the_table_lost_of_that_range(tmp_path: Path) -> None:
    objects = MemoryObjects()
    lake = site_of(tmp_path, AFTER, objects).open()
    deliver(lake, AFTER, HISTORY)
    expected = state(lake)
    gone = site_of(tmp_path / "other", AFTER, objects).open()  # a catalog without the tables

    early = replay_log(again(gone, AFTER), [Wide], EPOCH, EPOCH + timedelta(days=1))
    late = replay_log(
        again(gone, AFTER), [Wide], EPOCH + timedelta(days=1), datetime(2027, 1, 1, tzinfo=UTC)
    )

    assert (early.lines, late.lines) == (10, 1)
    assert state(gone) == expected


def test_the_ledger_balances_after_refusals_a_replay_and_a_discard(tmp_path: Path) -> None:
    objects = MemoryObjects()
    deliver(site_of(tmp_path, BEFORE, objects).open(), BEFORE, HISTORY)
    lake = site_of(tmp_path, AFTER, objects).open()
    back = again(lake, AFTER)
    replay_quarantine(back, Wanted())
    discard(back, Wanted(), "a test")

    checks = verify_ledger(lake, decode=back.decode, records=HISTORY)

    assert [found for check in checks for found in check.findings] == []
    assert [found for check in verify_table(lake, Wide) for found in check.findings] == []


def test_what_comes_again_is_protected_as_what_comes_first(tmp_path: Path) -> None:
    objects = MemoryObjects()
    deliver(site_of(tmp_path, BEFORE, objects).open(), BEFORE, HISTORY[:1])
    lake = site_of(tmp_path, AFTER, objects).open()

    def hide(event: ChangeEvent) -> ChangeEvent:
        return replace(event, after=None if event.after is None else event.after | {"stock": -1})

    hiding = replace(again(lake, AFTER), protect=hide)

    replay_quarantine(hiding, Wanted())

    stocks = {row["item_id"]: row["stock"] for row in lake.rows("items").to_pylist()}
    logged = [row["after"] for part in lake.log(CHANGE_LOG) for row in part.to_pylist()]
    assert stocks == {"a": None, "b": -1}
    assert not [after for after in logged if '"stock": 4' in after]
