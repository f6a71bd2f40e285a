"""Which snapshots a table keeps: enough to say what was reported last Monday, few enough to be read
with every commit.

Kept are the newest ones, and of the past the one that was current at each full hour of two days and
at each midnight (UTC) of a month. Asked at such an instant, history answers exactly, however often
or seldom the table was written to. Decided anew with every commit, and by maintenance for tables
that nobody writes to; what was decided before never matters, for an instant that will be wanted
was wanted all along.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


class Stamp(NamedTuple):
    """A snapshot's place in history: committed at this time, in milliseconds since 1970."""

    at_ms: int
    snapshot_id: int


@dataclass(frozen=True, slots=True)
class Retention:
    """How many of the newest snapshots are kept, and for how long there is one for each hour and
    for each day.

    At most `newest + hours + days` snapshots, some 1.5 KB each in a table's metadata file, which
    every commit writes and every cold reader reads: 0.2 MB.
    """

    newest: int = 50
    hours: int = 48
    days: int = 30

    def expired(self, history: Sequence[Stamp], now_ms: int) -> list[int]:
        """Ids of the snapshots to expire, oldest first; `history` is in order of commit. Pure."""
        kept = {stamp.snapshot_id for stamp in history[max(0, len(history) - self.newest) :]}
        times = [stamp.at_ms for stamp in history]
        for instant in self._instants(now_ms):
            before = bisect_right(times, instant)
            if before:
                kept.add(history[before - 1].snapshot_id)
        if history:
            kept.add(history[-1].snapshot_id)
        return [stamp.snapshot_id for stamp in history if stamp.snapshot_id not in kept]

    def promises(self, instant_ms: int, now_ms: int) -> bool:
        """Whether the state of that instant is kept, whatever came after it."""
        return instant_ms in self._instants(now_ms)

    def _instants(self, now_ms: int) -> list[int]:
        """The full hours and midnights whose state is kept."""
        hour, midnight = now_ms // _HOUR_MS, now_ms // _DAY_MS
        hours = [(hour - back) * _HOUR_MS for back in range(self.hours)]
        return hours + [(midnight - back) * _DAY_MS for back in range(self.days)]


RETENTION = Retention()
