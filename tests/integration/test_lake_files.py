"""What readers find on the store: Parquet and Iceberg metadata that any engine reads, and that stay
small.
"""

from __future__ import annotations

import io
import time
import types
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import Field
from pyiceberg.conversions import from_bytes
from pyiceberg.table import StaticTable, Table
from pyiceberg.types import DecimalType, IntegerType, StringType, TimestamptzType

from freshet.arrow import PlacedEvent
from freshet.contract import (
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    PartitionField,
    Registry,
    Text,
    Timestamp,
)
from freshet.errors import SchemaChangeError
from freshet.objects import DirectoryObjects
from freshet.tables import TABLES, ExchangeRate, Product, Sale
from freshet.testing import MemoryObjects, product_row, rate_row, sale_row
from lake.lake import Lake
from lake.retention import RETENTION
from lake.snapshot import MANIFESTS_MAX, manifests_of
from lake.testing import LakeSite, batch, placed

ROWS_OF: dict[type[Contract], list[dict[str, Any]]] = {
    Sale: [
        sale_row(
            f"{100 + n}-1",
            quantity=n,
            description=None if n % 3 else "A long text, longer than the sixteen of a bound",
            unit_price=f"{n}.{n:04d}",
            sold_at=f"2010-12-{1 + n % 3:02d}T08:{n:02d}:00.000123Z",
        )
        for n in range(20)
    ],
    Product: [product_row(str(n), price=f"{n}.5", title=f"Title {n}") for n in range(20)],
    ExchangeRate: [
        rate_row(currency, f"2026-{month:02d}-15", rate=f"{month}.125")
        for month in range(1, 5)
        for currency in ("USD", "GBP")
    ],
}


def events(contract: type[Contract], rows: Sequence[dict[str, Any]]) -> list[PlacedEvent]:
    return [placed(contract, at, version=1, after=row) for at, row in enumerate(rows)]


@pytest.fixture
def site(tmp_path: Path) -> LakeSite:
    """A lake on a folder, so that readers that know nothing of ours can open its files."""
    folder = tmp_path / "lake"
    return LakeSite(DirectoryObjects(folder), tmp_path / "catalog.db", root=f"file://{folder}")


def filled(site: LakeSite, *contracts: type[Contract]) -> Lake:
    lake = site.open()
    for contract in contracts:
        lake.apply(contract.table, batch(contract, events(contract, ROWS_OF[contract])), {})
    return lake


def data_files(lake: Lake, table: str) -> list[pq.ParquetFile]:
    keyed = lake.current(table).rows
    return [
        pq.ParquetFile(io.BytesIO(Path(file.file_path.removeprefix("file://")).read_bytes()))
        for file in keyed.view().files
    ]


def stock_reader(lake: Lake, table: str) -> Table:
    """The table as stock pyiceberg opens it: from its metadata file alone, with its own file
    access.
    """
    location = lake.current(table).rows.view().table.metadata_location
    return StaticTable.from_metadata(location)


@pytest.mark.parametrize("contract", [Sale, Product, ExchangeRate])
def test_data_files_hold_only_what_every_engine_reads(
    contract: type[Contract], site: LakeSite
) -> None:
    lake = filled(site, contract)

    for file in data_files(lake, contract.table):
        footer = file.metadata
        assert footer.format_version == "2.6"
        for group in range(footer.num_row_groups):
            columns = [footer.row_group(group).column(at) for at in range(footer.num_columns)]
            for column in columns:
                assert set(column.encodings) <= {"PLAIN", "RLE_DICTIONARY", "RLE"}
                assert column.compression == "ZSTD"
                assert column.is_stats_set
                assert column.statistics.has_null_count


def test_data_pages_are_of_version_one(site: LakeSite) -> None:
    lake = filled(site, Sale)
    file = lake.current("sales").rows.view().files[0]
    content = Path(file.file_path.removeprefix("file://")).read_bytes()
    column = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0).column(0)

    page_type = thrift_page_type(content[column.data_page_offset :])

    assert page_type == 0  # DATA_PAGE; DATA_PAGE_V2 is 3


def thrift_page_type(header: bytes) -> int:
    """The first field of a page header in Thrift's compact protocol: an i32 as zigzag varint."""
    assert header[0] == 0x15, "field 1 of type i32"
    return (header[1] >> 1) ^ -(header[1] & 1)


def test_decimals_are_integers_and_times_are_utc_microseconds(site: LakeSite) -> None:
    lake = filled(site, Sale, ExchangeRate)

    schema = data_files(lake, "sales")[0].schema
    columns = {schema.column(at).name: schema.column(at) for at in range(len(schema.names))}
    price, sold_at = columns["unit_price"], columns["sold_at"]

    assert (price.physical_type, price.logical_type.type) == ("INT64", "DECIMAL")
    assert sold_at.physical_type == "INT64"
    assert "timeUnit=microseconds" in str(sold_at.logical_type)
    assert "isAdjustedToUTC=true" in str(sold_at.logical_type)


@pytest.mark.parametrize("contract", [Sale, Product, ExchangeRate])
def test_field_ids_are_icebergs(contract: type[Contract], site: LakeSite) -> None:
    lake = filled(site, contract)
    iceberg = {f.name: f.field_id for f in stock_reader(lake, contract.table).schema().fields}

    for file in data_files(lake, contract.table):
        arrow = file.schema_arrow
        ids = {field.name: int(field.metadata[b"PARQUET:field_id"]) for field in arrow}
        assert ids == iceberg


@pytest.mark.parametrize("contract", [Sale, Product, ExchangeRate])
def test_stock_pyiceberg_reads_the_rows_the_lake_reads(
    contract: type[Contract], site: LakeSite
) -> None:
    lake = filled(site, contract)
    order = [(name, "ascending") for name in contract.key]

    read = stock_reader(lake, contract.table).scan().to_arrow().sort_by(order)

    rows = lake.rows(contract.table).sort_by(order)
    assert read.to_pylist() == rows.to_pylist()
    assert rows.num_rows == len(ROWS_OF[contract])


def test_a_filter_on_the_partition_column_reads_only_that_days_files(site: LakeSite) -> None:
    lake = filled(site, Sale)
    day = "sold_at >= '2010-12-02T00:00:00+00:00' and sold_at < '2010-12-03T00:00:00+00:00'"

    scan = stock_reader(lake, "sales").scan(row_filter=day)

    assert len(list(scan.plan_files())) == 1
    expected = {row["sale_id"] for row in ROWS_OF[Sale] if row["sold_at"].startswith("2010-12-02")}
    assert set(scan.to_arrow().column("sale_id").to_pylist()) == expected


def test_each_files_partition_counts_and_bounds_are_its_rows(site: LakeSite) -> None:
    lake = filled(site, Sale)
    keyed = lake.current("sales").rows
    view = keyed.view()

    for file in view.files:
        rows = pq.ParquetFile(file.file_path.removeprefix("file://")).read(use_threads=False)
        days = {(at - datetime(1970, 1, 1, tzinfo=UTC)).days for at in column(rows, "sold_at")}
        assert days == {file.partition[0]}
        assert file.record_count == rows.num_rows
        check_bounds(view.table, file, rows)


def check_bounds(table: Table, file: Any, rows: pa.Table) -> None:
    kinds = {
        "quantity": IntegerType(),
        "unit_price": DecimalType(18, 4),
        "sold_at": TimestamptzType(),
        "sale_id": StringType(),
    }
    for name, kind in kinds.items():
        field_id = table.schema().find_field(name).field_id
        low, high = min(column(rows, name)), max(column(rows, name))
        if name == "sold_at":
            low, high = (int(at.timestamp()) * 1_000_000 + at.microsecond for at in (low, high))
        assert from_bytes(kind, file.lower_bounds[field_id]) == low
        assert from_bytes(kind, file.upper_bounds[field_id]) == high
        assert file.null_value_counts[field_id] == 0
    description = table.schema().find_field("description").field_id
    assert file.null_value_counts[description] == rows.column("description").null_count


def column(rows: pa.Table, name: str) -> list[Any]:
    return rows.column(name).to_pylist()  # type: ignore[no-any-return]


def test_instants_before_1970_are_in_the_day_and_month_iceberg_says(site: LakeSite) -> None:
    lake = site.open()
    old = sale_row("1-1", sold_at="1969-12-31T23:59:59.999999Z")
    lake.apply("sales", batch(Sale, events(Sale, [old])), {})
    lake.apply(
        "exchange_rates",
        batch(ExchangeRate, events(ExchangeRate, [rate_row("USD", "1969-12-31")])),
        {},
    )

    for table, filter_at, value in (
        ("sales", "sold_at", "1970-01-01T00:00:00+00:00"),
        ("exchange_rates", "rate_date", "1970-01-01"),
    ):
        (file,) = lake.current(table).rows.view().files
        assert file.partition[0] == -1
        before = stock_reader(lake, table).scan(row_filter=f"{filter_at} < '{value}'")
        assert before.to_arrow().num_rows == 1


class Everything(
    Contract,
    table="everything",
    key=("id",),
    partition=(
        PartitionField("identity", "day"),
        PartitionField("identity", "flag"),
        PartitionField("identity", "price"),
        PartitionField("bucket", "at", 3),
        PartitionField("month", "at"),
    ),
):
    """Every column type as a partition column; an integer key."""

    id: Annotated[int, Integer(64)] = Field(description="Key")
    day: Annotated[Any, Day()] = Field(description="Partition")
    flag: Annotated[bool, Flag()] | None = Field(None, description="Partition")
    price: Annotated[Decimal, Money(9, 2)] = Field(description="Partition")
    at: Annotated[datetime, Timestamp()] = Field(description="Partition")


class Dated(Contract, table="dated", key=("day",), partition=()):
    """A key that is a date alone, in a table without partitions."""

    day: Annotated[Any, Day()] = Field(description="Key")
    text: Annotated[str, Text(10)] = Field(description="Content")


class Timed(Contract, table="timed", key=("at",), partition=(PartitionField("day", "at"),)):
    """A key that is an instant alone."""

    at: Annotated[datetime, Timestamp()] = Field(description="Key")
    text: Annotated[str, Text(10)] = Field(description="Content")


class Priced(
    Contract, table="priced", key=("price",), partition=(PartitionField("bucket", "price", 2),)
):
    """A key that is a decimal alone."""

    price: Annotated[Decimal, Money(9, 2)] = Field(description="Key")
    text: Annotated[str, Text(10)] = Field(description="Content")


KINDS: list[tuple[type[Contract], dict[str, Any], dict[str, Any]]] = [
    (
        Everything,
        {"id": 5, "day": "2026-01-02", "flag": None, "price": "1.50", "at": "2026-01-02T00:00:00Z"},
        {"id": 5, "day": "2026-01-03", "flag": True, "price": "-1.5", "at": "1969-01-02T00:00:00Z"},
    ),
    (Dated, {"day": "2026-01-02", "text": "a"}, {"day": "2026-01-02", "text": "b"}),
    (
        Timed,
        {"at": "2026-01-02T00:00:00Z", "text": "a"},
        {"at": "2026-01-02T00:00:00Z", "text": "b"},
    ),
    (Priced, {"price": "1.5", "text": "a"}, {"price": "1.5", "text": "b"}),
]


@pytest.mark.parametrize(("contract", "old", "new"), KINDS)
def test_every_column_type_serves_as_key_and_as_partition(
    contract: type[Contract], old: dict[str, Any], new: dict[str, Any], tmp_path: Path
) -> None:
    """Each batch by a writer that has read nothing yet, so that files are found by their bounds."""
    folder = tmp_path / "lake"
    site = LakeSite(
        DirectoryObjects(folder),
        tmp_path / "catalog.db",
        root=f"file://{folder}",
        tables=Registry((contract,)),
    )
    key = {name: old[name] for name in contract.key}
    history = [
        placed(contract, 1, version=1, after=old),
        placed(contract, 2, version=2, after=new),
        placed(contract, 3, version=2, after=new),
        placed(contract, 4, version=4, key=key),
        placed(contract, 5, version=3, after=old),
        placed(contract, 6, version=6, after=old),
    ]

    outcomes = []
    for event in history:
        lake = site.open()
        receipt = lake.apply(contract.table, batch(contract, [event]), {}).receipt.to_dict()
        outcomes.append(next(n for n, c in receipt.items() if c and n != "received"))

    assert outcomes == ["inserted", "updated", "duplicate", "deleted", "stale", "inserted"]
    assert stock_reader(lake, contract.table).scan().to_arrow().num_rows == 1
    if contract is Everything:
        files = lake.current("everything").rows.view().files
        lake.apply("everything", batch(contract, [placed(contract, 7, version=7, after=old)]), {})
        assert len(lake.current("everything").rows.view().files) == len(files)


def test_metadata_stays_flat_over_many_commits(tmp_path: Path) -> None:
    site = LakeSite(MemoryObjects(), tmp_path / "catalog.db")
    lake = site.open()
    elapsed, sizes = [], []

    for n in range(120):
        rows = [sale_row("0-1", quantity=n), sale_row(f"{n}-2", sold_at=day_of(n % 28))]
        changes = batch(
            Sale,
            [placed(Sale, 2 * n + at, version=n + 1, after=row) for at, row in enumerate(rows)],
        )
        start = time.process_time()
        lake.apply("sales", changes, {})
        elapsed.append(time.process_time() - start)
        view = lake.current("sales").rows.view()
        assert len(manifests_of(view.table)) <= MANIFESTS_MAX + 1
        sizes.append(
            len(site.objects.get(view.table.metadata_location.removeprefix("file:///lake/")).data)
        )

    # One more where an hour has ended meanwhile.
    assert len(view.table.metadata.snapshots) <= RETENTION.newest + 1
    assert max(sizes[60:]) <= 1.1 * sizes[59]
    assert max(sizes) < 128 * 1024
    early, late = sorted(elapsed[20:40]), sorted(elapsed[-20:])
    # By then the table keeps its full fifty snapshots, whose parsing is the growth there is.
    assert late[10] <= 2 * early[10]


def day_of(n: int) -> str:
    return f"2010-12-{1 + n:02d}T08:00:00Z"


def test_a_small_batch_rewrites_one_file_of_a_large_partition(tmp_path: Path) -> None:
    site = LakeSite(MemoryObjects(), tmp_path / "catalog.db")
    lake = site.open(file_rows_max=10)
    first = [sale_row(f"{n}-1") for n in range(95)]
    lake.apply("sales", batch(Sale, events(Sale, first)), {})
    before = files_of(lake)
    assert len(before) == 10
    assert all(rows <= 10 for rows in before.values())

    lake.apply("sales", batch(Sale, [placed(Sale, 100, version=1, after=sale_row("x-1"))]), {})

    after = files_of(lake)
    assert len(before.keys() - after.keys()) == 1
    assert len(after.keys() - before.keys()) == 1
    assert sum(after.values()) == 96


def test_inserts_beyond_the_limit_split_and_full_files_are_left_alone(tmp_path: Path) -> None:
    site = LakeSite(MemoryObjects(), tmp_path / "catalog.db")
    lake = site.open(file_rows_max=10)
    for n in range(60):
        row = sale_row(f"{n}-1")
        lake.apply("sales", batch(Sale, [placed(Sale, n, version=1, after=row)]), {})

    files = files_of(lake)
    assert sum(files.values()) == 60
    assert max(files.values()) <= 10
    assert len(files) <= 12


def files_of(lake: Lake) -> dict[str, int]:
    files = lake.current("sales").rows.view().files
    return {file.file_path: file.record_count for file in files}


class First(Contract, table="evolving", key=("id",), partition=()):
    """The table as first declared."""

    id: Annotated[int, Integer(32)] = Field(description="Key")
    amount: Annotated[int, Integer(32)] = Field(description="Content")
    price: Annotated[Decimal, Money(9, 2)] = Field(description="Content")


class Second(Contract, table="evolving", key=("id",), partition=()):
    """A column more, and wider types; the key's too."""

    id: Annotated[int, Integer(64)] = Field(description="Key")
    note: Annotated[str, Text(10)] | None = Field(None, description="New")
    amount: Annotated[int, Integer(64)] = Field(description="Content")
    price: Annotated[Decimal, Money(20, 2)] = Field(description="Content")


def test_added_and_widened_columns_apply_and_old_rows_stay_readable(tmp_path: Path) -> None:
    folder = tmp_path / "lake"
    place = (DirectoryObjects(folder), tmp_path / "catalog.db")
    root = f"file://{folder}"
    old = LakeSite(*place, root=root, tables=Registry((First,))).open(file_rows_max=2)
    small = [{"id": n, "amount": n, "price": "1.50"} for n in range(4)]
    old.apply("evolving", batch(First, events(First, small)), {})
    large = {"id": 1 << 40, "note": "n", "amount": 1 << 40, "price": "123456789012345678.25"}

    new = LakeSite(*place, root=root, tables=Registry((Second,))).open(file_rows_max=2)
    changed = [large, {**small[0], "note": "new"}]
    changes = [placed(Second, 10 + at, version=2, after=row) for at, row in enumerate(changed)]
    receipt = new.apply("evolving", batch(Second, changes), {}).receipt

    assert (receipt.inserted, receipt.updated) == (1, 1)
    columns = ["id", "note", "amount", "price"]
    rows = new.rows("evolving").select(columns).sort_by("id")
    assert rows.to_pylist() == [
        {"id": 0, "note": "new", "amount": 0, "price": Decimal("1.50")},
        *({"id": n, "note": None, "amount": n, "price": Decimal("1.50")} for n in (1, 2, 3)),
        {**large, "price": Decimal("123456789012345678.25")},
    ]
    read = stock_reader(new, "evolving").scan().to_arrow().select(columns).sort_by("id")
    assert read.to_pylist() == rows.to_pylist()


def test_a_writer_of_the_older_contract_refuses_instead_of_losing_the_new_column(
    tmp_path: Path,
) -> None:
    place = (MemoryObjects(), tmp_path / "catalog.db")
    old = LakeSite(*place, tables=Registry((First,))).open()
    row = {"id": 1, "amount": 1, "price": "1.50"}
    old.apply("evolving", batch(First, [placed(First, 1, version=1, after=row)]), {})
    new = LakeSite(*place, tables=Registry((Second,))).open()
    noted = placed(Second, 2, version=2, after={**row, "note": "kept"})
    new.apply("evolving", batch(Second, [noted]), {})

    with pytest.raises(SchemaChangeError) as raised:
        old.apply("evolving", batch(First, [placed(First, 3, version=3, after=row)]), {})

    assert raised.value.column == "note"
    assert new.rows("evolving").column("note").to_pylist() == ["kept"]


def declared(columns: dict[str, Any], **keywords: Any) -> type[Contract]:
    body: dict[str, Any] = {
        "__annotations__": columns,
        "__doc__": "A change.",
        "__module__": __name__,
    }
    optional = {name: None for name, kind in columns.items() if "None" in str(kind)}
    options: dict[str, Any] = {"table": "evolving", "key": ("id",), "partition": (), **keywords}
    return types.new_class("Changed", (Contract,), options, lambda own: own.update(body | optional))


COLUMNS: dict[str, Any] = {
    "id": Annotated[int, Integer(32)],
    "amount": Annotated[int, Integer(32)],
    "price": Annotated[Decimal, Money(9, 2)],
}
REFUSED = {
    "removed": (
        {k: v for k, v in COLUMNS.items() if k != "amount"},
        {},
        "amount",
    ),
    "new and required": ({**COLUMNS, "extra": Annotated[str, Text(5)]}, {}, "extra"),
    "other type": ({**COLUMNS, "amount": Annotated[str, Text(5)]}, {}, "amount"),
    "other scale": ({**COLUMNS, "price": Annotated[Decimal, Money(9, 3)]}, {}, "price"),
    "narrower": ({**COLUMNS, "price": Annotated[Decimal, Money(8, 2)]}, {}, "price"),
    "other partition": (COLUMNS, {"partition": (PartitionField("bucket", "id", 4),)}, "bucket"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_refused_schema_change_names_the_column(change: str, tmp_path: Path) -> None:
    columns, keywords, culprit = REFUSED[change]
    place = (MemoryObjects(), tmp_path / "catalog.db")
    old = LakeSite(*place, tables=Registry((First,))).open()
    row = {"id": 1, "amount": 1, "price": "1.50"}
    old.apply("evolving", batch(First, [placed(First, 1, version=1, after=row)]), {})
    changed = LakeSite(*place, tables=Registry((declared(columns, **keywords),))).open()

    with pytest.raises(SchemaChangeError) as raised:
        changed.rows("evolving")

    assert culprit in raised.value.column
    assert "evolving" in str(raised.value)
    assert old.rows("evolving").num_rows == 1


def test_an_optional_column_made_required_is_refused(tmp_path: Path) -> None:
    place = (MemoryObjects(), tmp_path / "catalog.db")
    optional = {**COLUMNS, "note": Annotated[str, Text(5)] | None}
    required = {**COLUMNS, "note": Annotated[str, Text(5)]}
    LakeSite(*place, tables=Registry((declared(optional),))).open().rows("evolving")
    changed = LakeSite(*place, tables=Registry((declared(required),))).open()

    with pytest.raises(SchemaChangeError, match="note"):
        changed.rows("evolving")


def test_every_declared_table_opens_with_its_documented_columns(tmp_path: Path) -> None:
    lake = LakeSite(MemoryObjects(), tmp_path / "catalog.db").open()

    for contract in TABLES:
        schema = lake.current(contract.table).rows.view().table.schema()
        assert all(field.doc for field in schema.fields)
        identifiers = {schema.find_column_name(at) for at in schema.identifier_field_ids}
        assert identifiers == set(contract.key)


def test_a_required_column_made_optional_is_applied(tmp_path: Path) -> None:
    """Its nulls used to be written into a column that the table's metadata called required."""
    place = (MemoryObjects(), tmp_path / "catalog.db")
    required = {**COLUMNS, "note": Annotated[str, Text(5)]}
    optional = {**COLUMNS, "note": Annotated[str, Text(5)] | None}
    LakeSite(*place, tables=Registry((declared(required),))).open().rows("evolving")

    relaxed = LakeSite(*place, tables=Registry((declared(optional),))).open()

    schema = relaxed.current("evolving").rows.view().table.schema()
    assert not schema.find_field("note").required


def test_metadata_files_are_capped(tmp_path: Path) -> None:
    """pyiceberg deletes old ones only after its own commits."""
    objects = MemoryObjects()
    lake = LakeSite(objects, tmp_path / "catalog.db", tables=Registry((First,))).open()

    for at in range(30):
        row = {"id": at, "amount": at, "price": "1.50"}
        lake.apply("evolving", batch(First, [placed(First, at, version=1, after=row)]), {})

    names = [key for key in objects.list("") if "evolving/" in key]
    kept = [name for name in names if name.endswith(".metadata.json")]
    assert len(kept) <= 22
