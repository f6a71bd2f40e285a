"""A contract changes and the next commit changes the table: on real lakes, read by others too."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import boto3
import duckdb
import polars as pl
import pytest
from moto import mock_aws
from tests.evolving import ID, Declared, contract, stock

from freshet.arrow import PATCHES
from freshet.contract import Contract, Integer, Money, PartitionField, Real, Registry, Text
from freshet.errors import SchemaChangeError
from freshet.objects import DirectoryObjects
from freshet.s3 import S3Objects
from freshet.testing import MemoryObjects
from lake.erase import Eraser
from lake.glue import glue_catalog
from lake.history import why
from lake.lake import Lake
from lake.log import LoggedEvent, Place
from lake.sqlite import sql_catalog
from lake.subject import Request
from lake.table import ReadOnlyError
from lake.testing import LakeSite, batch, placed
from local.sql import _table_view

PLACE = Declared(Text(20), optional=True, description="Where")
COUNT = Declared(Integer(32), description="How many")
LANDED = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
FIRST = {"id": ID, "place": PLACE, "count": COUNT}
RENAMED = {
    "id": ID,
    "town": PLACE.but(aliases=("place",), description="Which town"),
    "count": COUNT,
}
BY_PLACE = (PartitionField("identity", "place"),)
BY_TOWN = (PartitionField("identity", "town"),)


@dataclass
class Site:
    """A lake on a folder, whose table is declared again and again."""

    folder: Path
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1000)))

    def open(self, *declared: type[Contract]) -> Lake:
        objects = DirectoryObjects(self.folder / "lake")
        tables = Registry(declared)
        root = f"file://{self.folder}/lake"
        return LakeSite(objects, self.folder / "catalog.db", root=root, tables=tables).open()

    def read(self, *declared: type[Contract]) -> Lake:
        """As whoever only asks opens it."""
        root = f"file://{self.folder}/lake"
        return Lake(
            DirectoryObjects(self.folder / "lake"),
            root,
            lambda files: sql_catalog(
                self.folder / "catalog.db", files, warehouse=root, database="freshet"
            ),
            tables=Registry(declared),
            read_only=True,
        )

    def held(self) -> dict[str, bytes]:
        """Every file, the catalog's among them."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in found}

    def write(self, lake: Lake, declared: type[Contract], **said: Any) -> Any:
        at = next(self.numbers)
        event = placed(declared, at, version=said.pop("version", at), **said)
        return lake.apply(declared.table, batch(declared, [event]), {}).receipt


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def rows(lake: Lake, *columns: str) -> list[tuple[Any, ...]]:
    table = lake.rows("evolving").sort_by("id").select(columns)
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def test_a_renamed_column_keeps_its_values_its_id_and_its_past(site: Site) -> None:
    old, new = contract(FIRST, partition=BY_PLACE), contract(RENAMED, partition=BY_TOWN)
    first = site.open(old)
    site.write(first, old, after={"id": "a", "place": "Ulm", "count": 1})
    site.write(first, old, after={"id": "b", "place": "Bonn", "count": 2})
    before = stock(first)
    then = before.metadata.current_snapshot_id

    lake = site.open(new)
    site.write(lake, new, after={"id": "b", "town": "Ulm", "count": 3})  # moves home
    site.write(lake, new, after={"id": "c", "place": "Jena", "count": 4})  # under the former name

    assert rows(lake, "id", "town", "count") == [("a", "Ulm", 1), ("b", "Ulm", 3), ("c", "Jena", 4)]
    table = stock(lake)
    was, now = before.schema().find_field("place"), table.schema().find_field("town")
    assert (was.field_id, was.field_type, now.doc) == (now.field_id, now.field_type, "Which town")
    past = table.scan(snapshot_id=then).to_arrow().sort_by("id").to_pydict()
    assert (past["place"], "town" in past) == (["Ulm", "Bonn"], False)


def test_other_readers_see_files_older_than_a_change_beside_newer_ones(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")
    by_id = (PartitionField("identity", "id"),)
    old = contract(FIRST, partition=by_id)
    site.write(site.open(old), old, after={"id": "a", "place": "Ulm", "count": 1})
    new = contract({**RENAMED, "count": COUNT.but(type=Integer(64))}, partition=by_id)
    lake = site.open(new)
    site.write(lake, new, after={"id": "b", "town": "Bonn", "count": 1 << 40})

    wanted = [("a", "Ulm", 1), ("b", "Bonn", 1 << 40)]
    keyed, table = lake.current("evolving").rows, stock(lake)
    assert len(keyed.view().files) == 2
    assert rows(lake, "id", "town", "count") == wanted
    read = table.scan().to_arrow().sort_by("id").select(["id", "town", "count"])
    assert list(zip(*read.to_pydict().values(), strict=True)) == wanted
    frame = pl.scan_iceberg(table.metadata_location).select("id", "town", "count")
    assert frame.sort("id").collect().rows() == wanted
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA freshet_shapes")
        _table_view(connection, keyed)
        asked = connection.execute("SELECT id, town, count FROM evolving ORDER BY id").fetchall()
    assert asked == wanted


def test_a_read_under_a_newer_contract_changes_nothing_and_shows_its_columns(site: Site) -> None:
    old = contract(FIRST, partition=BY_PLACE)
    writer = site.open(old)
    site.write(writer, old, after={"id": "a", "place": "Ulm", "count": 1})
    site.write(writer, old, key={"id": "a"}, version=9, patch={"place": "Bonn"})
    note = Declared(Text(9), optional=True)
    new = contract(
        {**RENAMED, "count": COUNT.but(type=Integer(64)), "note": note}, partition=BY_TOWN
    )
    held = site.held()

    lake = site.read(new)
    seen = rows(lake, "id", "town", "count", "note")
    told = json.loads(lake.rows("evolving")[PATCHES][0].as_py())
    names = stock(lake).schema().column_names
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA freshet_shapes")
        _table_view(connection, lake.current("evolving").rows)
        asked = connection.execute("SELECT id, town, count, note FROM evolving").fetchall()
    scan = lake.current("evolving").rows.view().table.scan().to_arrow().to_pydict()

    assert seen == asked == [("a", "Bonn", 1, None)]
    assert list(told) == ["town"]
    assert (scan["town"], scan["note"]) == (["Bonn"], [None])
    assert ("place" in names, "town" in names, "note" in names) == (True, False, False)
    assert site.held() == held
    # The release that is deployed goes on.
    assert site.write(writer, old, after={"id": "b", "place": "Jena", "count": 2}).inserted == 1
    assert rows(lake, "id", "town", "note") == [("a", "Bonn", None), ("b", "Jena", None)]
    # And the next commit evolves the table, as ever.
    site.write(site.open(new), new, after={"id": "c", "town": "Rom", "count": 3, "note": "n"})
    assert "note" in stock(lake).schema().column_names
    assert rows(lake, "id", "note") == [("a", None), ("b", None), ("c", "n")]
    with pytest.raises(SchemaChangeError, match=r"'(note|town)'"):
        site.write(writer, old, after={"id": "b", "place": "Rom", "count": 2})


def test_a_read_of_an_empty_home_makes_no_table(site: Site) -> None:
    declared = contract(FIRST, partition=BY_PLACE)
    site.open(declared).close()  # the catalog itself
    held = site.held()

    lake = site.read(declared)
    view = lake.current("evolving").rows.view()

    assert (lake.rows("evolving").num_rows, view.files, view.snapshot_id) == (0, [], None)
    assert lake.current("evolving").rows.view().table.metadata.table_uuid == (
        view.table.metadata.table_uuid
    )
    assert list(lake.catalog.list_tables("freshet")) == []
    assert site.held() == held
    writer = site.open(declared)
    site.write(writer, declared, after={"id": "a", "place": "Ulm", "count": 1})
    assert rows(lake, "id", "place") == [("a", "Ulm")]


def test_a_change_that_the_lake_cannot_take_is_refused_when_it_is_read_too(site: Site) -> None:
    old = contract(FIRST)
    site.write(site.open(old), old, after={"id": "a", "place": "Ulm", "count": 1})
    held = site.held()

    with pytest.raises(SchemaChangeError, match="'count'"):
        site.read(contract({"id": ID, "place": PLACE})).rows("evolving")

    assert site.held() == held


@pytest.mark.parametrize("made", ["opened", "derived"])
def test_a_lake_that_is_read_only_refuses_every_write(site: Site, made: str) -> None:
    old, new = contract(FIRST), contract(RENAMED)
    site.write(site.open(old), old, after={"id": "a", "place": "Ulm", "count": 1})
    held = site.held()
    lake = site.read(new) if made == "opened" else site.open(new).reader()
    said = {"id": "a", "town": "Bonn", "count": 2}
    [line] = [
        LoggedEvent(placed(new, 7, version=7, after=said).event, Place("s", "7", 0, "7", LANDED))
    ]
    keyed = lake.current("evolving").rows

    for writes in (
        lambda: site.write(lake, new, after=said),
        lambda: site.write(lake, new, key={"id": "a"}),
        lambda: lake.truncate("evolving", 9, "9", {}),
        lambda: lake.keep("batch", [line], []),
        lambda: keyed.commit(keyed.view(), [], {}),
        lambda: lake.objects.put("key", b""),
        lambda: lake.objects.put_if("key", b"", etag=None),
        lambda: lake.objects.delete("key"),
    ):
        with pytest.raises(ReadOnlyError, match="open for reading only"):
            writes()

    assert site.held() == held


def test_a_renamed_key_finds_its_rows_and_its_tombstones(site: Site) -> None:
    old = contract({"id": ID, "count": COUNT})
    new = contract({"code": ID.but(aliases=("id",)), "count": COUNT}, key=("code",))
    first = site.open(old)
    for name in "ab":
        site.write(first, old, version=5, after={"id": name, "count": 1})
    site.write(first, old, version=6, key={"id": "a"})

    lake = site.open(new)
    late = site.write(lake, new, version=4, after={"code": "a", "count": 9})
    update = site.write(lake, new, version=7, key={"id": "b"}, patch={"count": 2})

    assert (late.stale, update.updated) == (1, 1)
    table = lake.rows("evolving")
    assert (table["code"].to_pylist(), table["count"].to_pylist()) == (["b"], [2])


def test_patches_in_the_lake_follow_a_renaming(site: Site) -> None:
    old, new = contract(FIRST), contract(RENAMED)
    first = site.open(old)
    site.write(first, old, version=1, after={"id": "a", "place": "Ulm", "count": 1})
    site.write(first, old, version=9, key={"id": "a"}, patch={"place": "Bonn"})
    site.write(first, old, version=9, key={"id": "b"}, patch={"place": "Jena"})  # waits

    lake = site.open(new)
    stale = site.write(lake, new, version=8, key={"id": "a"}, patch={"town": "Köln"})
    site.write(lake, new, version=5, after={"id": "a", "town": "Rom", "count": 5})
    site.write(lake, new, version=5, after={"id": "b", "town": "Rom", "count": 5})

    assert stale.stale == 1
    assert rows(lake, "id", "town", "count") == [("a", "Bonn", 5), ("b", "Jena", 5)]
    assert [set(json.loads(one)) for (one,) in rows(lake, "_patches")] == [{"town"}, {"town"}]


def test_a_writer_from_before_a_renaming_refuses_by_name(site: Site) -> None:
    old, new = contract(FIRST), contract(RENAMED)
    first = site.open(old)
    site.write(first, old, after={"id": "a", "place": "Ulm", "count": 1})
    site.open(new).rows("evolving")

    for lake in (first, site.open(old)):
        with pytest.raises(SchemaChangeError, match="'town'"):
            site.write(lake, old, after={"id": "a", "place": "Rom", "count": 2})


def test_a_column_that_is_there_already_is_not_another_ones_new_name(site: Site) -> None:
    site.open(contract({**FIRST, "town": PLACE})).rows("evolving")

    with pytest.raises(SchemaChangeError, match="'place'"):
        site.open(contract(RENAMED)).rows("evolving")


def test_reals_widen_and_decimals_grow_and_statistics_of_old_files_still_count(site: Site) -> None:
    numbers = {
        "id": Declared(Integer(32)),
        "weight": Declared(Real(32)),
        "price": Declared(Money(9, 2)),
    }
    old = contract(numbers)
    site.write(site.open(old), old, after={"id": 1, "weight": 0.5, "price": "1.50"})
    wide = {
        "id": Declared(Integer(64)),
        "weight": Declared(Real(64)),
        "price": Declared(Money(38, 2)),
    }
    new = contract(wide)
    lake = site.open(new)
    large = Decimal("123456789012345678901234567890.25")

    receipt = site.write(lake, new, after={"id": 1, "weight": 0.1, "price": large})
    site.write(lake, new, key={"id": 1}, patch={"weight": 1e300})

    assert receipt.updated == 1
    assert rows(lake, "id", "weight", "price") == [(1, 1e300, large)]
    assert stock(lake).scan().to_arrow()["weight"].to_pylist() == [1e300]


def test_a_deprecated_column_stays_and_new_events_may_leave_it_out(site: Site) -> None:
    old = contract(FIRST)
    site.write(site.open(old), old, after={"id": "a", "place": "Ulm", "count": 1})
    gone = COUNT.but(optional=True, deprecated="no longer counted")
    new = contract({**FIRST, "count": gone})
    lake = site.open(new)
    site.write(lake, new, after={"id": "b", "place": "Bonn"})

    assert rows(lake, "id", "count") == [("a", 1), ("b", None)]
    column = stock(lake).schema().find_field("count")
    assert (column.doc, column.required) == ("How many. Deprecated: no longer counted", False)


def test_words_alone_are_told_once_and_two_releases_side_by_side_do_not_quarrel(
    site: Site,
) -> None:
    old = contract(FIRST, words="Old words.")
    new = contract({**FIRST, "place": PLACE.but(description="Anew")}, words="New words.")
    first = site.open(old)
    site.write(first, old, after={"id": "a", "place": "Ulm", "count": 1})
    second = site.open(new)
    row = {"id": "b", "place": "Ulm", "count": 1}

    site.write(second, new, after=row)
    told = stock(second)
    for version, (lake, declared) in enumerate([(first, old), (second, new)] * 3, start=100):
        site.write(lake, declared, version=version, after={**row, "count": version})

    assert (told.properties["comment"], told.schema().find_field("place").doc) == (
        "New words.",
        "Anew",
    )
    assert stock(first).schema() == told.schema()
    assert stock(first).properties["comment"] == "New words."


def landed(site: Site, lake: Lake, declared: type[Contract], **said: Any) -> None:
    """A change as the consumer lands it: in the log first, then in the table."""
    at = next(site.numbers)
    change = placed(declared, at, version=said.pop("version", at), **said)
    place = Place("shard", str(at), 0, change.position, LANDED)
    lake.keep(f"shard-{at}-{at}", [LoggedEvent(change.event, place)], [])
    lake.apply(declared.table, batch(declared, [change]), {})


def test_a_rows_story_goes_on_across_a_renaming(site: Site) -> None:
    old, new = contract(FIRST), contract(RENAMED)
    first = site.open(old)
    landed(site, first, old, version=1, after={"id": "a", "place": "Ulm", "count": 1})
    landed(site, first, old, version=9, key={"id": "a"}, patch={"place": "Bonn"})
    lake = site.open(new)
    landed(site, lake, new, version=8, key={"id": "a"}, patch={"town": "Rom"})
    landed(site, lake, new, version=1, after={"id": "a", "town": "Ulm", "count": 1})

    story = why(lake, "evolving", "a")

    assert rows(lake, "town", "count") == [("Bonn", 1)]
    assert [one.verdict for one in story] == ["current", "current", "stale", "duplicate"]
    assert json.loads(story[1].event["patch"]) == {"town": "Bonn"}


def test_erasing_by_a_value_finds_it_under_a_former_name_too(site: Site) -> None:
    old, new = contract(FIRST), contract(RENAMED)
    first = site.open(old)
    landed(site, first, old, version=1, after={"id": "a", "place": "Ulm", "count": 1})
    landed(site, first, old, version=2, after={"id": "b", "place": "Ulm", "count": 1})
    lake = site.open(new)
    landed(site, lake, new, version=3, after={"id": "b", "town": "Rom", "count": 2})
    request = Request(new, frozenset(), {"town": frozenset(("Ulm",))})

    Eraser(
        lake,
        request,
        decode=lambda data, at: (),
        now=lambda: LANDED,
        by="tester",
        failures=MemoryObjects(),
        on_step=lambda _: None,
    ).erase()

    assert rows(lake, "id", "town") == [("b", "Rom")]
    told = [str(line) for part in lake.log("change_log") for line in part.to_pylist()]
    assert any("Rom" in line for line in told)
    assert not any("Ulm" in line for line in told)


@mock_aws
def test_glue_shows_the_words_of_the_contract_on_table_and_columns() -> None:
    s3 = boto3.client("s3", region_name="us-east-1")
    s3.create_bucket(Bucket="lake")
    glue = boto3.client("glue", region_name="us-east-1")

    def open_lake(declared: type[Contract]) -> Lake:
        return Lake(
            S3Objects(s3, "lake", "freshet"),
            "s3://lake/freshet",
            lambda files: glue_catalog(
                glue, files, warehouse="s3://lake/freshet", database="freshet"
            ),
            tables=Registry((declared,)),
        )

    def told(lake: Lake) -> tuple[str, Mapping[str, str]]:
        lake.rows("evolving")
        lake.close()
        table = glue.get_table(DatabaseName="freshet", Name="evolving")["Table"]
        columns = table["StorageDescriptor"]["Columns"]
        current = [c for c in columns if c["Parameters"]["iceberg.field.current"] == "true"]
        return table["Description"], {one["Name"]: one.get("Comment", "") for one in current}

    description, columns = told(open_lake(contract(FIRST, words="Places.\n\nMore of it.")))
    assert description == "Places."
    assert {name: columns[name] for name in FIRST} == {
        "id": "Key",
        "place": "Where",
        "count": "How many",
    }

    renamed = {**RENAMED, "count": COUNT.but(optional=True, deprecated="count them")}
    description, columns = told(open_lake(contract(renamed, words="Towns.")))
    assert (description, columns["town"]) == ("Towns.", "Which town")
    assert columns["count"] == "How many. Deprecated: count them"
    assert columns["_version"]
