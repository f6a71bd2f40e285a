"""Versions for sources that have none: a strictly increasing clock in microseconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime

Now = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, aware UTC; the edges pass it in so that the core never reads a clock."""
    return datetime.now(UTC)


def micros(instant: datetime) -> int:
    """Microseconds since 1970 of an aware instant, exactly."""
    delta = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


class VersionClock:
    """Hands out versions that strictly increase, also when the wall clock stands still or steps
    back.
    """

    def __init__(self, now: Now, *, last: int = 0) -> None:
        self._now, self._last, self._lock = now, last, threading.Lock()

    def take(self, count: int = 1) -> int:
        """The first of `count` consecutive fresh versions."""
        with self._lock:
            first = max(micros(self._now()), self._last + 1)
            self._last = first + count - 1
            return first
