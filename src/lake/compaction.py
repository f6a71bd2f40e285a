"""Compaction: small files of idle partitions become one, fat files are split, manifests few. Rows
stay as they are.

Commits keep a partition's files few by themselves; what they leave behind are files that deletes
and moves have emptied, and those of a limit that was higher once. A partition that was written to
lately is left alone: its writers would only be made to plan again, and it may settle by itself.

A commit is a compare-and-swap like any writer's. Where another came first, what it did not touch is
tried again; a run that keeps losing gives way, and vacuum takes what it wrote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pyiceberg.manifest import DataFile, ManifestEntry
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation

from freshet.clock import micros
from lake.snapshot import CommitConflictError, ManifestReader, manifests_of, stamps
from lake.table import KeyedTable, Rewrite, View
from lake.travel import MAINTAINED

# Writers that come once an hour are no reason to wait longer; those that come each minute are one.
IDLE = timedelta(hours=1)
# Iceberg's own suggestion for a data file is 512 MB, for engines with more memory than a Lambda.
FILE_BYTES_MAX = 128 * 1024 * 1024
# Bins of one commit: each is one file of normal size at most, written in some 0.3 s.
BINS_AT_ONCE = 32
ROUNDS_MAX = 5


class Placed(NamedTuple):
    """A live data file, its partition, and when it was added at the latest (ms since 1970)."""

    file: DataFile
    partition: tuple[Any, ...]
    added_ms: int


class Bin(NamedTuple):
    """Files of one partition that become `parts` files."""

    files: tuple[DataFile, ...]
    parts: int

    @property
    def rows(self) -> int:
        """Rows in all of them."""
        return sum(file.record_count for file in self.files)


@dataclass(frozen=True, slots=True)
class Compacted:
    """Files that were merged or split, and what they became; `left` bins found no time, or lost to
    other writers (`gave_way`).
    """

    files: int = 0
    made: int = 0
    left: int = 0
    gave_way: bool = False


def plan(placed: Sequence[Placed], idle_since_ms: int, rows_max: int) -> list[Bin]:
    """What to rewrite: of partitions without a file younger than that. Pure.

    Merged are files less than half full, as many as make one; split are those beyond the limits.
    """
    by_partition: dict[tuple[Any, ...], list[Placed]] = defaultdict(list)
    for one in placed:
        by_partition[one.partition].append(one)
    bins: list[Bin] = []
    for members in by_partition.values():
        if max(one.added_ms for one in members) < idle_since_ms:
            bins += _bins([one.file for one in members], rows_max)
    return bins


def _bins(files: list[DataFile], rows_max: int) -> Iterator[Bin]:
    small = []
    for file in files:
        parts = max(_parts(file.record_count, rows_max), _parts(_size(file), FILE_BYTES_MAX))
        if 1 < parts <= file.record_count:
            yield Bin((file,), parts)
        elif 2 * file.record_count < rows_max and 2 * _size(file) < FILE_BYTES_MAX:
            small.append(file)
    small.sort(key=lambda file: (file.record_count, file.file_path))
    some: list[DataFile] = []
    for file in small:
        rows, size = (sum(map(of, [*some, file])) for of in (_records, _size))
        if rows > rows_max or size > FILE_BYTES_MAX:
            yield from _one(some)
            some = []
        some.append(file)
    yield from _one(some)


def _one(files: list[DataFile]) -> Iterator[Bin]:
    if len(files) > 1:
        yield Bin(tuple(files), 1)


def _parts(amount: int, limit: int) -> int:
    return -(-amount // limit)


def _records(file: DataFile) -> int:
    return int(file.record_count)


def _size(file: DataFile) -> int:
    return int(file.file_size_in_bytes)


class Compaction:
    """Compacts one table."""

    def __init__(self, keyed: KeyedTable) -> None:
        self._keyed, self._reader = keyed, ManifestReader()

    def look(self, now: datetime) -> list[Bin]:
        """What there is to do."""
        return self._plan(self._keyed.view(), now)

    def run(self, now: datetime, left_s: Callable[[], float]) -> Compacted:
        """Do it while there is time, some bins in each commit."""
        view = self._keyed.view()
        bins = self._plan(view, now)
        done, made = 0, 0
        while bins and left_s() > 0:
            some = bins[:BINS_AT_ONCE]
            rewrites = list(self._rewrites(view, some, left_s))
            committed = self._commit(view, rewrites)
            if committed is None:
                return Compacted(done, made, len(bins), gave_way=True)
            done += sum(len(rewrite.removed) for rewrite in committed)
            made += sum(len(rewrite.added) for rewrite in committed)
            bins, view = bins[len(rewrites) :], self._keyed.view()
            live = {file.file_path for file in view.files}
            bins = [one for one in bins if all(file.file_path in live for file in one.files)]
        return Compacted(done, made, len(bins))

    def _plan(self, view: View, now: datetime) -> list[Bin]:
        idle_since = micros(now - IDLE) // 1000
        return plan(_placed(view.table, self._reader), idle_since, self._keyed.file_rows_max)

    def _rewrites(
        self, view: View, bins: Sequence[Bin], left_s: Callable[[], float]
    ) -> Iterator[Rewrite]:
        for one in bins:
            if left_s() <= 0:
                return
            rewrite = self._keyed.remake(view, one.files, lambda rows: rows, one.parts)
            rows = sum(file.record_count for file in rewrite.added)
            assert rows == one.rows, f"{one.rows} rows became {rows}: nothing was committed"
            yield rewrite

    def _commit(self, view: View, rewrites: list[Rewrite]) -> list[Rewrite] | None:
        """Commit those that nobody else has touched; which. None: others won every round."""
        for _ in range(ROUNDS_MAX):
            live = {file.file_path for file in view.files}
            rewrites = [one for one in rewrites if live.issuperset(one.removed)]
            if not rewrites:
                return []
            try:
                summary = {MAINTAINED: "compaction"}
                self._keyed.commit(view, rewrites, summary, operation=Operation.REPLACE)
            except CommitConflictError:
                view = self._keyed.view()
            else:
                return rewrites
        return None


def _placed(table: Table, reader: ManifestReader) -> list[Placed]:
    history = {s.sequence_number or 0: s.timestamp_ms for s in table.metadata.snapshots}
    numbers = sorted(history)

    def added_ms(entry: ManifestEntry) -> int:
        """Of a file whose snapshot has expired: when the next one that is retained was made."""
        number = entry.sequence_number or 0
        return next((history[one] for one in numbers if one >= number), 0)

    return [
        Placed(entry.data_file, _partition(entry.data_file), added_ms(entry))
        for manifest in manifests_of(table)
        for entry in reader.live_entries(manifest, table.io)
    ]


def _partition(file: DataFile) -> tuple[Any, ...]:
    return tuple(file.partition[position] for position in range(len(file.partition)))


def is_idle(table: Table, now: datetime) -> bool:
    """Whether nobody has committed lately."""
    history = stamps(table)
    return bool(history) and history[-1].at_ms < micros(now - IDLE) // 1000
