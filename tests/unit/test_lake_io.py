"""File access for pyiceberg: what is cached, what is whole, what happens when a write fails."""

from __future__ import annotations

import gc

import pytest

from freshet.errors import StorageError
from freshet.objects import ObjectMissingError
from freshet.testing import MemoryObjects
from lake.io import MetadataCache, ObjectsFileIO

ROOT = "s3://bucket/lake/"


class Refusing(MemoryObjects):
    """A store whose writes fail; counts them."""

    writes = 0

    def put(self, key: str, data: bytes) -> str:
        self.writes += 1
        raise StorageError("s3://bucket", "503")


def test_the_cache_drops_the_least_recently_used_beyond_its_budget() -> None:
    cache = MetadataCache(bytes_max=10)
    cache.put("a", b"12345")
    cache.put("b", b"12345")
    cache.get("a")

    cache.put("c", b"12345")

    assert cache.get("b") is None
    assert (cache.get("a"), cache.get("c")) == (b"12345", b"12345")


def test_metadata_is_read_from_the_store_once_and_data_files_each_time() -> None:
    objects = MemoryObjects()
    for name in ("m.avro", "d.parquet"):
        objects.put(name, b"old")
    files = ObjectsFileIO(objects, ROOT)
    for name in ("m.avro", "d.parquet"):
        assert files.read(ROOT + name) == b"old"
        objects.put(name, b"new")

    assert files.read(ROOT + "m.avro") == b"old"
    assert files.read(ROOT + "d.parquet") == b"new"


def test_a_file_appears_whole_when_it_is_closed() -> None:
    objects = MemoryObjects()
    files = ObjectsFileIO(objects, ROOT)

    with files.new_output(ROOT + "m.avro").create() as stream:
        stream.write(b"half")
        assert list(objects.list("")) == []
        stream.write(b", whole")

    assert objects.get("m.avro").data == b"half, whole"
    assert len(files.new_input(ROOT + "m.avro")) == len(b"half, whole")


def test_a_file_whose_writing_fails_half_way_does_not_appear() -> None:
    objects = MemoryObjects()
    output = ObjectsFileIO(objects, ROOT).new_output(ROOT + "m.avro")

    def fail_half_way() -> None:
        with output.create() as stream:
            stream.write(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()

    assert list(objects.list("")) == []


def test_a_refused_write_is_reported_once_and_not_tried_again_by_the_destructor() -> None:
    objects = Refusing()
    output = ObjectsFileIO(objects, ROOT).new_output(ROOT + "m.avro")

    with pytest.raises(StorageError), output.create() as stream:
        stream.write(b"whole")
    del stream
    gc.collect()

    assert objects.writes == 1


def test_a_location_outside_the_root_is_refused() -> None:
    files = ObjectsFileIO(MemoryObjects(), ROOT)

    with pytest.raises(ValueError, match="not below"):
        files.read("s3://bucket/lakeside/m.avro")


def test_a_missing_file_is_missing_by_every_way_of_asking() -> None:
    files = ObjectsFileIO(MemoryObjects(), ROOT)
    location = ROOT + "m.avro"

    assert not files.new_input(location).exists()
    assert not files.new_output(location).exists()
    with pytest.raises(FileNotFoundError):
        files.new_input(location).open()
    with pytest.raises(ObjectMissingError):
        files.read(location)


def test_a_deleted_file_is_gone_from_the_store() -> None:
    objects = MemoryObjects()
    files = ObjectsFileIO(objects, ROOT)
    files.write(ROOT + "d.parquet", b"data")

    files.delete(ROOT + "d.parquet")

    assert list(objects.list("")) == []
