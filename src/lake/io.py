"""pyiceberg's file access over the object store port, with a cache for what never changes.

Metadata, manifest lists and manifests are immutable: a commit would read them several times over,
so they are kept by location. 12 store calls instead of 78 for a two-partition commit. Data files
are not kept.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict

from pyiceberg.io import FileIO, InputFile, InputStream, OutputFile, OutputStream

from freshet.objects import ObjectMissingError, Objects

# Enough for the metadata of dozens of tables; a warm Lambda keeps it between batches.
_CACHE_BYTES_MAX = 64 * 1024 * 1024


class MetadataCache:
    """Bytes of immutable files by location, least recently used dropped first. Safe for threads."""

    def __init__(self, bytes_max: int = _CACHE_BYTES_MAX) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._entries: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, location: str) -> bytes | None:
        """The bytes, if kept."""
        with self._lock:
            data = self._entries.get(location)
            if data is not None:
                self._entries.move_to_end(location)
            return data

    def put(self, location: str, data: bytes) -> None:
        """Keep the bytes, dropping others if need be."""
        with self._lock:
            self._bytes += len(data) - len(self._entries.pop(location, b""))
            self._entries[location] = data
            while self._bytes > self._bytes_max and self._entries:
                self._bytes -= len(self._entries.popitem(last=False)[1])


class ObjectsFileIO(FileIO):
    """Files below one root (`s3://bucket/prefix` or `file:///folder`) as objects of a store."""

    def __init__(self, objects: Objects, root: str) -> None:
        super().__init__()
        self._objects, self._root, self._cache = objects, root.rstrip("/") + "/", MetadataCache()

    def key(self, location: str) -> str:
        """The object key of a file's location."""
        if not location.startswith(self._root):
            raise ValueError(f"{location} is not below {self._root}")
        return location[len(self._root) :]

    def read(self, location: str) -> bytes:
        """A file's bytes; metadata (Avro, JSON) comes from the cache when it is there."""
        data = self._cache.get(location)
        if data is None:
            data = self._objects.get(self.key(location)).data
            if not location.endswith(".parquet"):
                self._cache.put(location, data)
        return data

    def write(self, location: str, data: bytes) -> None:
        """Write a new file in one call."""
        self._objects.put(self.key(location), data)
        if not location.endswith(".parquet"):
            self._cache.put(location, data)

    def new_input(self, location: str) -> InputFile:
        """See pyiceberg."""
        return _Input(location, self)

    def new_output(self, location: str) -> OutputFile:
        """See pyiceberg."""
        return _Output(location, self)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """See pyiceberg."""
        name = location if isinstance(location, str) else location.location
        self._objects.delete(self.key(name))


class _Input(InputFile):
    def __init__(self, location: str, files: ObjectsFileIO) -> None:
        super().__init__(location)
        self._files = files

    def __len__(self) -> int:
        return len(self._files.read(self.location))

    def exists(self) -> bool:
        try:
            self._files.read(self.location)
        except ObjectMissingError:
            return False
        return True

    def open(self, seekable: bool = True) -> InputStream:  # noqa: ARG002, FBT001, FBT002 - pyiceberg's signature
        try:
            return io.BytesIO(self._files.read(self.location))
        except ObjectMissingError as error:
            raise FileNotFoundError(self.location) from error


class _Output(OutputFile):
    def __init__(self, location: str, files: ObjectsFileIO) -> None:
        super().__init__(location)
        self._files = files

    def __len__(self) -> int:
        return len(self._files.read(self.location))

    def exists(self) -> bool:
        return _Input(self.location, self._files).exists()

    def to_input_file(self) -> InputFile:
        return _Input(self.location, self._files)

    def create(self, overwrite: bool = False) -> OutputStream:  # noqa: ARG002, FBT001, FBT002 - pyiceberg's signature
        return _Buffer(self.location, self._files)


class _Buffer(io.BytesIO):
    """Collects a file and writes it whole on close: an object appears complete or not at all."""

    def __init__(self, location: str, files: ObjectsFileIO) -> None:
        super().__init__()
        self._location, self._files = location, files

    def __exit__(self, error_type: type[BaseException] | None, *rest: object) -> None:
        """Write on success; a file whose writing failed half-way must not appear."""
        if error_type is None:
            self.close()
        else:
            super().close()

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()  # first: a write that fails must not be tried again by the destructor
            self._files.write(self._location, content)
