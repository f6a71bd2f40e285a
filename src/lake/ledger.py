"""What a batch costs and how late it was: the figures of a receipt beside its counts.

A store that counts its calls tells one batch's from another's by the context they are made in, not
by the thread: the lake's threads work for every batch, and a laptop consumes two shards at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from datetime import datetime
from functools import partial
from typing import ParamSpec, TypeVar

from freshet.objects import Objects, StoredObject
from lake.log import Lags

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Meter:
    """Calls to the object store and bytes that went either way. Safe for threads."""

    def __init__(self) -> None:
        self.requests = self.bytes_read = self.bytes_written = 0
        self._lock = threading.Lock()

    def add(self, *, read: int = 0, written: int = 0) -> None:
        """Count one call and its bytes."""
        with self._lock:
            self.requests += 1
            self.bytes_read += read
            self.bytes_written += written


_METER: ContextVar[Meter | None] = ContextVar("freshet_meter", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """Count what this context, and the lake's threads on its behalf, ask of the store meanwhile."""
    meter = Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)


class MeteredObjects:
    """`freshet.objects.Objects` that tells the meter of the context, if there is one.

    `store` is what it passes calls on to.
    """

    def __init__(self, objects: Objects) -> None:
        self.store = objects

    def get(self, key: str) -> StoredObject:
        """See `Objects.get`."""
        stored = self.store.get(key)
        _count(read=len(stored.data))
        return stored

    def put(self, key: str, data: bytes) -> str:
        """See `Objects.put`."""
        etag = self.store.put(key, data)
        _count(written=len(data))
        return etag

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        """See `Objects.put_if`. A refused write was a call, too, but wrote nothing."""
        written = 0
        try:
            done = self.store.put_if(key, data, etag=etag)
            written = len(data)
        finally:
            _count(written=written)
        return done

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        self.store.delete(key)
        _count()

    def list(self, prefix: str) -> Iterator[str]:
        """See `Objects.list`: one call, however many pages it takes."""
        _count()
        return self.store.list(prefix)


def _count(*, read: int = 0, written: int = 0) -> None:
    meter = _METER.get()
    if meter is not None:
        meter.add(read=read, written=written)


class ContextPool(ThreadPoolExecutor):
    """Threads that work in the context of whoever gave them the work."""

    def submit(
        self,
        fn: Callable[_Arguments, _Result],
        /,
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> Future[_Result]:
        """See `Executor.submit`."""
        return super().submit(partial(copy_context().run, fn, *args, **kwargs))


def lags(instants: Iterable[datetime | None], until: datetime) -> Lags | None:
    """Percentiles of the delay from each known instant `until` then; None where none is known."""
    delays = sorted(
        round((until - instant).total_seconds() * 1000)
        for instant in instants
        if instant is not None
    )
    if not delays:
        return None
    return Lags(*(delays[min(len(delays) - 1, len(delays) * p // 100)] for p in (50, 95, 99)))
