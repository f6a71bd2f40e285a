"""The object store port: whole objects with atomic, conditional writes.

Poller state, idempotency keys, the lake's files and its logs all need exactly these five verbs.
`DirectoryObjects` keeps objects as files (tests, benchmarks, a lake on a disk); `freshet.s3` is the
real one. One contract suite runs over both.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from freshet.errors import TerminalError


class ObjectMissingError(TerminalError):
    """No object has this key."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"no object {key!r}")


class PreconditionError(TerminalError):
    """The object is not in the state a conditional write named: someone else wrote it."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"object {key!r} was written by someone else")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes and the token (ETag) a conditional overwrite names."""

    data: bytes
    etag: str


class Objects(Protocol):
    """Whole objects under text keys. Writes are atomic; a read after a write sees it."""

    def get(self, key: str) -> StoredObject:
        """The object. Raises `ObjectMissingError`, `StorageError`."""
        ...

    def put(self, key: str, data: bytes) -> str:
        """Write, replacing what was there; returns the ETag. Raises `StorageError`."""
        ...

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        """Write only if the object has this ETag (None: only if there is no object); returns the
        new ETag.

        Raises `PreconditionError` when it has not, `StorageError`.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove; an absent object is fine. Raises `StorageError`."""
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """Keys that begin with `prefix`, in order. Raises `StorageError`."""
        ...


class DirectoryObjects:
    """Objects as files below one folder; atomic by rename, conditional under a lock file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> StoredObject:
        """See `Objects.get`."""
        try:
            with self._path(key).open("rb") as file:
                return StoredObject(file.read(), _etag(file.fileno()))
        except FileNotFoundError:
            raise ObjectMissingError(key) from None

    def put(self, key: str, data: bytes) -> str:
        """See `Objects.put`."""
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            etag = _etag(file.fileno())
        Path(name).replace(path)
        return etag

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        """See `Objects.put_if`."""
        with self._locked():
            try:
                current: str | None = self.get(key).etag
            except ObjectMissingError:
                current = None
            if current != etag:
                raise PreconditionError(key)
            return self.put(key, data)

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        self._path(key).unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Objects.list`."""
        keys = (
            path.relative_to(self._folder).as_posix()
            for path in self._folder.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        yield from sorted(key for key in keys if key.startswith(prefix))

    def _path(self, key: str) -> Path:
        return self._folder / key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _etag(file: int) -> str:
    """Which writing of an object this is: each is a new file, the clock tells a reused inode."""
    status = os.fstat(file)
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"
