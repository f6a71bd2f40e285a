"""The key index: what it keeps within its budget, and which files it need not read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.conversions import to_bytes
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.typedef import Record
from pyiceberg.types import DateType, LongType, NestedField, PrimitiveType, StringType

from lake.keys import KeyIndex, Located, locate


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def keys_table(*keys: Any, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"id": pa.array(keys, kind or pa.string())})


def file_of(path: str, kind: PrimitiveType, low: Any, high: Any) -> DataFile:
    bounded = low is not None
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=1,
        file_size_in_bytes=1,
        lower_bounds={1: to_bytes(kind, low)} if bounded else None,
        upper_bounds={1: to_bytes(kind, high)} if bounded else None,
    )


class Store:
    """Files by path, and which of them were read."""

    def __init__(self, tables: dict[str, pa.Table]) -> None:
        self.tables, self.read = tables, list[str]()

    def load(self, file: DataFile) -> pa.Table:
        self.read.append(file.file_path)
        return self.tables[file.file_path]


def located(
    wanted: pa.Array,
    files: Sequence[DataFile],
    store: Store,
    index: KeyIndex,
    pool: ThreadPoolExecutor,
    kind: PrimitiveType,
) -> Located:
    schema = Schema(NestedField(1, "id", kind, required=True))
    return locate(
        wanted, files, load=store.load, index=index, key=("id",), schema=schema, pool=pool
    )


def test_the_index_drops_the_least_recently_used_files_beyond_its_budget() -> None:
    table = keys_table(*(f"key-{n}" for n in range(100)))
    index = KeyIndex(bytes_max=3 * table.nbytes)
    for path in ("a", "b", "c"):
        index.put(path, table)
    assert index.get("a") is table

    index.put("d", table)

    assert index.get("b") is None
    assert all(index.get(path) is table for path in ("a", "c", "d"))


def test_putting_a_file_again_does_not_count_it_twice() -> None:
    table = keys_table(*(f"key-{n}" for n in range(100)))
    index = KeyIndex(bytes_max=2 * table.nbytes)

    for _ in range(5):
        index.put("a", table)
    index.put("b", table)

    assert index.get("a") is table


def test_files_whose_bounds_exclude_every_key_are_not_read(pool: ThreadPoolExecutor) -> None:
    store = Store({"low": keys_table("a", "b"), "high": keys_table("x"), "any": keys_table("m")})
    files = [
        file_of("low", StringType(), "a", "b"),
        file_of("high", StringType(), "x", "x"),
        file_of("any", StringType(), None, None),
    ]

    found = located(pa.array(["b", "zz", "m"]), files, store, KeyIndex(), pool, StringType())

    assert sorted(store.read) == ["any", "low"]
    homes = {key: found.files[at].file_path for key, at in found.file_of_key().items()}
    assert homes == {0: "low", 2: "any"}


@pytest.mark.parametrize(
    ("kind", "arrow", "low", "high", "inside", "outside"),
    [
        (LongType(), pa.int64(), 5, 9, 7, 10),
        (DateType(), pa.date32(), 20_000, 20_001, date(2024, 10, 4), date(2024, 10, 6)),
    ],
)
def test_bounds_prune_keys_of_other_types(
    kind: PrimitiveType,
    arrow: pa.DataType,
    low: int,
    high: int,
    inside: object,
    outside: object,
    pool: ThreadPoolExecutor,
) -> None:
    for key, read in ((inside, ["f"]), (outside, [])):
        store = Store({"f": keys_table(inside, kind=arrow)})
        files = [file_of("f", kind, low, high)]
        located(pa.array([key], arrow), files, store, KeyIndex(), pool, kind)
        assert store.read == read


def test_a_file_read_once_is_not_read_again(pool: ThreadPoolExecutor) -> None:
    store, index = Store({"f": keys_table("a", "b")}), KeyIndex()
    files = [file_of("f", StringType(), "a", "b")]

    for _ in range(2):
        found = located(pa.array(["b"]), files, store, index, pool, StringType())
        assert found.file_of_key() == {0: 0}

    assert store.read == ["f"]


def test_an_index_without_room_finds_the_keys_all_the_same(pool: ThreadPoolExecutor) -> None:
    tables = {f"f{n}": keys_table(f"k{n}", f"j{n}") for n in range(6)}
    files = [file_of(path, StringType(), None, None) for path in tables]

    found = located(
        pa.array(["j4", "k0", "none"]), files, Store(tables), KeyIndex(1), pool, StringType()
    )

    homes = {key: found.files[at].file_path for key, at in found.file_of_key().items()}
    assert homes == {0: "f4", 1: "f0"}


def test_keys_that_no_file_holds_are_nowhere(pool: ThreadPoolExecutor) -> None:
    """pyarrow crashed the process here when every file had been read and none matched."""
    tables = {"one": keys_table("a"), "two": keys_table("b")}
    files = [file_of(path, StringType(), None, None) for path in tables]

    for _ in range(20):
        found = located(pa.array(["c"]), files, Store(tables), KeyIndex(), pool, StringType())
        assert found.file_of_key() == {}


def test_a_key_in_two_files_is_reported_as_a_broken_law(pool: ThreadPoolExecutor) -> None:
    tables = {"one": keys_table("a"), "two": keys_table("a")}
    files = [file_of(path, StringType(), None, None) for path in tables]

    found = located(pa.array(["a"]), files, Store(tables), KeyIndex(), pool, StringType())

    with pytest.raises(AssertionError, match="L8"):
        found.file_of_key()
