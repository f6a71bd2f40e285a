"""The floor with the lake's own parallelism: as many files in flight, on all cores."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.contenders import floor

# As many as the lake has in flight (`lake.lake.IO_THREADS`; a test compares the two).
THREADS = 8


class Contender(floor.Contender):
    """Rewrites files side by side."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pool = ThreadPoolExecutor(THREADS)

    def apply(self, prepared: Sequence[str]) -> None:
        """Rewrite the named files."""
        for _ in self._pool.map(self.rewrite, prepared):
            pass
