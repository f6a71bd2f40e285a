"""`verify` believes nothing: a lake broken in each way is found out, by law and by key."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.evolving import ID, Declared
from tests.evolving import contract as declare

from freshet.arrow import PlacedEvent, position_of
from freshet.contract import Contract, Integer, Registry, Text
from freshet.event import parse_event
from freshet.receipt import Receipt
from freshet.tables import TABLES, Sale
from freshet.testing import EPOCH, MemoryObjects, product_row, rate_row, sale_row
from lake.lake import Lake
from lake.log import LoggedEvent, LoggedTruncation, Place
from lake.spec import PartitionValues
from lake.table import FileTask, KeyedTable, Rewrite, RewriteMemo, View
from lake.testing import LakeSite, batch, placed
from lake.verify import FINDINGS_MAX, Check, verify_table

ONE_HOME = "L8 one row and one partition per key"
BURIED = "L1 no row under a newer tombstone"
RECEIPTS = "L5 receipts add up"
REPLAYED = "L1 the log replayed equals the table"
DAY = (date(2010, 12, 1).toordinal() - date(1970, 1, 1).toordinal(),)
OTHER_DAY = (DAY[0] + 1,)


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def lake(objects: MemoryObjects, tmp_path: Path) -> Iterator[Lake]:
    """Two live sales and a deleted one, logged and applied as the consumer does."""
    lake = LakeSite(objects, tmp_path / "catalog.db").open()
    land(lake, 1, [upsert(1, "A-1"), upsert(1, "A-2"), upsert(1, "A-3")])
    land(lake, 2, [upsert(2, "A-2", returned_quantity=1), delete(2, "A-3")])
    yield lake
    lake.close()


def upsert(version: int, sale_id: str, **columns: Any) -> dict[str, Any]:
    return {"op": "u", "version": version, "after": sale_row(sale_id, **columns)}


def delete(version: int, sale_id: str) -> dict[str, Any]:
    return {"op": "d", "version": version, "key": {"sale_id": sale_id}}


def land(lake: Lake, at: int, bodies: list[dict[str, Any]], table: str = "sales") -> Receipt:
    """A batch at the `at`-th place of the stream, logged and applied."""
    events = log(lake, at, bodies, table)
    return lake.apply(table, batch(TABLES[table], events), {}).receipt


def log(
    lake: Lake, at: int, bodies: list[dict[str, Any]], table: str = "sales"
) -> list[PlacedEvent]:
    logged = [_logged(at, index, body, table) for index, body in enumerate(bodies)]
    lake.keep(f"shard-{at}", logged, [])
    return [PlacedEvent(item.event, item.place.position) for item in logged]


def _logged(at: int, index: int, body: dict[str, Any], table: str) -> LoggedEvent:
    stamps = {"event_id": f"{at}-{index}", "source": "test", "accepted_at": EPOCH}
    event = parse_event({"table": table, **stamps, **body}, TABLES)
    return LoggedEvent(event, Place("shard", str(at), index, position_of(str(at), index), EPOCH))


def changes(*bodies: dict[str, Any], at: int = 9) -> pa.Table:
    """Changes that no log knows of."""
    items = [_logged(at, index, body, "sales") for index, body in enumerate(bodies)]
    return batch(Sale, [PlacedEvent(item.event, item.place.position) for item in items])


def smuggle(
    table: KeyedTable,
    added: Iterable[tuple[PartitionValues, pa.Table]] = (),
    removed: Iterable[str] = (),
    counts: Mapping[str, int] | None = None,
) -> None:
    """Commit files past the rules, with a receipt that explains the rows unless told otherwise."""
    view = table.view()
    tasks = [
        FileTask(None, partition, rows, (0,) * rows.num_rows, table.spec.key)
        for partition, rows in added
    ]
    rewrites = table.rewrite(view, tasks, RewriteMemo())
    rewrites.append(Rewrite(tuple(removed), (), ()))
    table.commit(view, rewrites, summary(counts or explained(view, tasks, removed)))


def explained(view: View, tasks: list[FileTask], removed: Iterable[str]) -> dict[str, int]:
    gone = set(removed)
    lost = sum(file.record_count for file in view.files if file.file_path in gone)
    made = sum(task.changes.num_rows for task in tasks)
    return {"received": made + lost, "inserted": made, "deleted": lost}


def summary(counts: Mapping[str, int]) -> dict[str, str]:
    return {f"freshet.{name}": str(count) for name, count in counts.items()}


def files(table: KeyedTable) -> list[str]:
    return [file.file_path for file in table.view().files]


def checks(lake: Lake, contract: type[Contract] = Sale) -> dict[str, Check]:
    return {check.law: check for check in verify_table(lake, contract)}


def broken(lake: Lake, contract: type[Contract] = Sale) -> dict[str, tuple[str, ...]]:
    found = checks(lake, contract).items()
    return {law: check.findings for law, check in found if not check.holds}


def test_a_sound_table_holds_every_law_and_says_how_much_was_looked_at(lake: Lake) -> None:
    assert {law: (check.holds, check.checked) for law, check in checks(lake).items()} == {
        ONE_HOME: (True, 2),
        BURIED: (True, 1),
        RECEIPTS: (True, 2),
        REPLAYED: (True, 3),
    }


def test_tables_of_other_shapes_and_empty_ones_hold_too(lake: Lake) -> None:
    assert all(check.holds for check in checks(lake, TABLES["products"]).values())
    land(lake, 5, [{"op": "r", "version": 1, "after": rate_row()}], "exchange_rates")
    land(lake, 6, [{"op": "r", "version": 1, "after": product_row()}], "products")

    for name in ("products", "exchange_rates"):
        found = checks(lake, TABLES[name])
        assert all(check.holds for check in found.values())
        assert found[REPLAYED].checked == 1


def test_stale_duplicate_and_tied_changes_in_the_log_are_no_findings(lake: Lake) -> None:
    land(lake, 3, [upsert(1, "A-2"), upsert(2, "A-2", returned_quantity=1), upsert(1, "A-3")])
    land(lake, 4, [upsert(2, "A-2", returned_quantity=5)])

    assert broken(lake) == {}


def test_expired_snapshots_leave_receipts_that_can_still_be_checked(lake: Lake) -> None:
    """The oldest one kept has lost its parent: what it added cannot be told any more."""
    for at in range(3, 70):
        land(lake, at, [upsert(1, f"E-{at}")])

    found = checks(lake)

    assert found[RECEIPTS].holds
    assert 1 < found[RECEIPTS].checked < 69  # some have expired, or this test proves nothing


def test_a_key_in_two_rows_is_found(lake: Lake) -> None:
    table = lake.current("sales").rows
    smuggle(table, [(DAY, changes(upsert(1, "A-1")))])

    assert broken(lake)[ONE_HOME] == ("A-1 is in more than one row",)


def test_a_row_in_the_wrong_partition_is_found(lake: Lake) -> None:
    events = log(lake, 3, [upsert(1, "A-9")])
    smuggle(lake.current("sales").rows, [(OTHER_DAY, batch(Sale, events))])

    assert broken(lake) == {
        ONE_HOME: (f"A-9 is in partition {OTHER_DAY}, belongs to {DAY}",),
    }


def test_a_row_under_a_newer_tombstone_is_found(lake: Lake) -> None:
    land(lake, 3, [delete(7, "A-1")])
    smuggle(lake.current("sales").rows, [(DAY, changes(upsert(1, "A-1")))])

    assert broken(lake) == {
        BURIED: ("A-1 lives at version 1 under a tombstone of version 7",),
        REPLAYED: ("A-1 was deleted at version 7 but has a row",),
    }


def test_a_receipt_that_does_not_balance_is_found(lake: Lake) -> None:
    events = log(lake, 3, [upsert(1, "A-9")])
    counts = {"received": 2, "inserted": 1}
    smuggle(lake.current("sales").rows, [(DAY, batch(Sale, events))], counts=counts)

    [finding] = broken(lake)[RECEIPTS]
    assert "receipt does not add up" in finding


def test_rows_that_no_receipt_explains_are_found(lake: Lake) -> None:
    events = log(lake, 3, [upsert(1, "A-9")])
    counts = {"received": 1, "unchanged": 1}
    smuggle(lake.current("sales").rows, [(DAY, batch(Sale, events))], counts=counts)

    [finding] = broken(lake)[RECEIPTS]
    assert "rows grew by 1, its receipt says 0" in finding


def test_a_row_that_no_event_made_is_found(lake: Lake) -> None:
    smuggle(lake.current("sales").rows, [(DAY, changes(upsert(1, "X-1")))])

    assert broken(lake) == {REPLAYED: ("X-1 is in the table but not in the log",)}


def test_a_lost_row_is_found(lake: Lake) -> None:
    table = lake.current("sales").rows
    smuggle(table, removed=files(table))

    assert broken(lake) == {
        REPLAYED: (
            "A-1 is missing: version 1 is in the log",
            "A-2 is missing: version 2 is in the log",
        )
    }


def test_an_older_version_than_the_logs_is_found(lake: Lake) -> None:
    log(lake, 3, [upsert(5, "A-1", quantity=7)])

    assert broken(lake) == {REPLAYED: ("A-1 shows version 1, the log says 5",)}


def test_a_column_that_differs_from_the_log_is_found(lake: Lake) -> None:
    """The right key and version, another quantity."""
    table = lake.current("sales").rows
    rows = changes(upsert(1, "A-1", quantity=99), upsert(2, "A-2", returned_quantity=1))
    smuggle(table, [(DAY, rows)], removed=files(table))

    assert broken(lake) == {REPLAYED: ("A-1 differs from the log at version 1 in quantity",)}


def test_a_row_that_should_be_deleted_is_found(lake: Lake) -> None:
    log(lake, 3, [delete(9, "A-1")])

    assert broken(lake) == {REPLAYED: ("A-1 was deleted at version 9 but has a row",)}


def test_a_lost_tombstone_is_found(lake: Lake) -> None:
    tombstones = lake.current("sales").tombstones
    smuggle(tombstones, removed=files(tombstones))

    assert broken(lake) == {REPLAYED: ("A-3 was deleted at version 2: no tombstone",)}


def test_a_lost_log_is_found(lake: Lake, objects: MemoryObjects) -> None:
    for key in list(objects.list("change_log/")):
        objects.delete(key)

    assert set(broken(lake)) == {REPLAYED}


def test_a_column_that_came_later_is_no_finding(objects: MemoryObjects, tmp_path: Path) -> None:
    """Old events say nothing of it; the table shows it as null."""
    lake = LakeSite(objects, tmp_path / "catalog.db").open()
    land(lake, 1, [upsert(1, "A-1", customer_id=None)])
    for key in list(objects.list("change_log/")):
        drop_from_log(objects, key, "customer_id")

    assert broken(lake) == {}
    lake.close()


def drop_from_log(objects: MemoryObjects, key: str, column: str) -> None:
    """Rewrite a log object as a contract without the column would have written it."""
    table = pq.read_table(pa.BufferReader(objects.get(key).data), use_threads=False)
    rows = table.to_pylist()
    for row in rows:
        after = json.loads(row["after"])
        del after[column]
        row["after"] = json.dumps(after)
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), sink)
    objects.put(key, sink.getvalue().to_pybytes())


def test_findings_are_bounded_and_progress_is_told(lake: Lake) -> None:
    log(lake, 3, [upsert(5, f"M-{at}") for at in range(FINDINGS_MAX + 5)])
    said: list[str] = []

    found = verify_table(lake, Sale, progress=said.append)

    assert len(found[-1].findings) == FINDINGS_MAX
    assert [text.split(":")[0] for text in said] == ["sales", "sales"]


def patch(version: int, sale_id: str, **columns: Any) -> dict[str, Any]:
    return {"op": "u", "version": version, "key": {"sale_id": sale_id}, "patch": columns}


def truncate(lake: Lake, at: int, version: int) -> None:
    """A truncation at the `at`-th place of the stream, logged and applied."""
    place = Place("shard", str(at), 0, position_of(str(at), 0), EPOCH)
    end = LoggedTruncation("sales", version, f"t-{at}", "test", None, EPOCH, place)
    lake.keep(f"shard-{at}", [], [], [end])
    lake.truncate("sales", version, place.position, {})


def test_patches_that_landed_or_wait_and_truncations_are_no_findings(lake: Lake) -> None:
    land(lake, 3, [patch(5, "A-1", quantity=7), patch(1, "A-2", quantity=8)])  # the second is late
    land(lake, 4, [patch(9, "A-8", quantity=1, description=None), patch(3, "A-3", quantity=2)])
    truncate(lake, 5, 4)
    land(lake, 6, [upsert(3, "A-7"), upsert(6, "A-1"), patch(3, "A-1", quantity=9)])

    found = checks(lake)

    assert {law: check.findings for law, check in found.items() if not check.holds} == {}
    assert found[REPLAYED].checked == 5


def test_a_patch_that_never_reached_its_row_is_found(lake: Lake) -> None:
    log(lake, 3, [patch(5, "A-1", quantity=7, country="France")])

    assert broken(lake) == {
        REPLAYED: ("A-1 differs from the log at version 1 in country, quantity",),
    }


def test_a_patch_that_does_not_wait_as_it_should_is_found(lake: Lake) -> None:
    land(lake, 3, [patch(5, "A-8", quantity=7)])
    log(lake, 4, [patch(6, "A-8", quantity=8, country=None)])

    [finding] = broken(lake)[REPLAYED]
    assert finding == "A-8 waits for its row with other patches than the log's: country, quantity"


def test_a_row_that_only_patches_speak_of_is_found(lake: Lake) -> None:
    log(lake, 3, [patch(5, "A-8", quantity=7)])
    smuggle(lake.current("sales").rows, [(DAY, changes(upsert(1, "A-8")))])

    assert broken(lake) == {REPLAYED: ("A-8 only had patches but has a row",)}


def test_a_row_that_a_truncation_should_have_ended_is_found(lake: Lake) -> None:
    truncate(lake, 3, 4)
    smuggle(lake.current("sales").rows, [(DAY, changes(upsert(1, "A-1")))])

    assert broken(lake) == {
        BURIED: ("A-1 lives at version 1 under the truncation of version 4",),
        REPLAYED: ("A-1 was deleted at version 4 but has a row",),
    }


def test_a_truncation_that_was_logged_and_not_applied_is_found(lake: Lake) -> None:
    place = Place("shard", "3", 0, position_of("3", 0), EPOCH)
    lake.keep("shard-3", [], [], [LoggedTruncation("sales", 4, "t", "test", None, EPOCH, place)])

    assert broken(lake)[REPLAYED] == (
        "A-1 was deleted at version 4 but has a row",
        "A-2 was deleted at version 4 but has a row",
        "A-3 was deleted at version 4: no tombstone",
    )


PLACE = Declared(Text(20), optional=True, description="Where")
COUNT = Declared(Integer(32), description="How many")
TOWNS = {"id": ID, "town": PLACE.but(aliases=("place",)), "count": COUNT}


def test_what_was_logged_before_a_column_was_renamed_is_no_finding(
    objects: MemoryObjects, tmp_path: Path
) -> None:
    """Rows, patches of rows, and patches that wait, none of them written again since."""
    old, new = declare({"id": ID, "place": PLACE, "count": COUNT}), declare(TOWNS)
    first = LakeSite(objects, tmp_path / "catalog.db", tables=Registry((old,))).open()
    evolving(first, old, 1, after={"id": "a", "place": "Ulm", "count": 1})
    evolving(first, old, 2, after={"id": "b", "place": "Bonn", "count": 1})
    evolving(first, old, 3, key={"id": "b"}, patch={"place": "Jena"})
    evolving(first, old, 4, key={"id": "c"}, patch={"place": "Köln"})
    assert broken(first, old) == {}
    first.close()

    lake = LakeSite(objects, tmp_path / "catalog.db", tables=Registry((new,))).open()
    evolving(lake, new, 5, after={"id": "d", "town": "Hof", "count": 1})

    assert broken(lake, new) == {}
    log_evolving(lake, new, 6, key={"id": "c"}, patch={"town": "Trier"})
    assert broken(lake, new) == {
        REPLAYED: ("c waits for its row with other patches than the log's: town",)
    }
    lake.close()


def evolving(lake: Lake, declared: type[Contract], at: int, **said: Any) -> None:
    event = log_evolving(lake, declared, at, **said)
    lake.apply("evolving", batch(declared, [event]), {})


def log_evolving(lake: Lake, declared: type[Contract], at: int, **said: Any) -> PlacedEvent:
    event = placed(declared, at, version=at, **said)
    lake.keep(f"shard-{at}", [LoggedEvent(event.event, at_place(at, event.position))], [])
    return event


def at_place(at: int, position: str) -> Place:
    return Place("shard", str(at), 0, position, EPOCH)


def test_patches_and_rows_between_ends_of_one_version_are_no_findings(lake: Lake) -> None:
    """The later in the stream wins, also where it says what was said before."""
    truncate(lake, 3, 4)
    land(lake, 4, [patch(4, "A-8", quantity=7), upsert(4, "A-7")])
    truncate(lake, 5, 4)
    land(lake, 6, [delete(5, "A-9"), patch(5, "A-9", quantity=7), delete(5, "A-9")])

    assert broken(lake) == {}
