"""Where a key lives: an in-memory index of the keys of each data file.

Law L8 needs to know whether a key is anywhere in a table, not only in the partition its change
names. Data files are immutable, so what is kept of one is never wrong; files not kept are read only
if their column bounds may hold a wanted key.
"""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.types import PrimitiveType

from freshet.arrow import key_column
from lake.spec import stored_values

# Keys probed by one thread at a time: a table of a million rows is probed by four, side by side.
_PROBE_ROWS = 250_000
# About three million keys of twenty characters; beyond it, files are pruned by bounds and read
# again.
INDEX_BYTES_MAX = 96 * 1024 * 1024


class KeyIndex:
    """Key columns of data files by location, within a byte budget. Safe for threads."""

    def __init__(self, bytes_max: int = INDEX_BYTES_MAX) -> None:
        self._bytes_max, self._bytes = bytes_max, 0
        self._files: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, location: str) -> pa.Table | None:
        """The kept columns of a file."""
        with self._lock:
            table = self._files.get(location)
            if table is not None:
                self._files.move_to_end(location)
            return table

    def put(self, location: str, table: pa.Table) -> None:
        """Keep a file's columns (copied out of larger buffers), dropping others if need be."""
        with self._lock:
            self._drop(location)
            self._files[location] = table
            self._bytes += table.nbytes
            while self._bytes > self._bytes_max and len(self._files) > 1:
                self._drop(next(iter(self._files)))

    def forget(self, locations: Iterable[str]) -> None:
        """Let go of files that are no longer part of the table."""
        with self._lock:
            for location in locations:
                self._drop(location)

    def _drop(self, location: str) -> None:
        table = self._files.pop(location, None)
        if table is not None:
            self._bytes -= table.nbytes


class Located:
    """Rows found for a batch's keys: which file and row, and the kept columns of those rows."""

    def __init__(
        self, files: list[DataFile], key_at: list[int], file_at: list[int], rows: pa.Table
    ) -> None:
        self.files, self.key_at, self.file_at, self.rows = files, key_at, file_at, rows

    def file_of_key(self) -> dict[int, int]:
        """A key's position in the batch -> index into `files`. Law L8: at most one per key."""
        found = dict(zip(self.key_at, self.file_at, strict=True))
        assert len(found) == len(self.key_at), (
            "a key is in two places: law L8 is broken, run `freshet verify`"
        )
        return found


def locate(
    keys: pa.Array,
    files: Sequence[DataFile],
    *,
    load: Callable[[DataFile], pa.Table],
    index: KeyIndex,
    key: Sequence[str],
    schema: Schema,
    pool: Executor,
) -> Located:
    """Find each key's row among the files. `load` reads a file's key columns (and what else is
    kept).
    """
    kept = {file.file_path: index.get(file.file_path) for file in files}
    bounds = _Bounds(keys, key, schema)
    unread = [file for file in files if kept[file.file_path] is None and bounds.may_hold_any(file)]

    def scan(file: DataFile) -> pa.Table:
        table = load(file)
        index.put(file.file_path, table)
        # What the index has no room for must not stay either: a cold start reads every file.
        return table.filter(pc.is_in(key_column(table, key), value_set=keys))

    for file, table in zip(unread, pool.map(scan, unread), strict=True):
        kept[file.file_path] = table
    candidates = [file for file in files if kept[file.file_path] is not None]
    return _match(keys, candidates, [kept[file.file_path] for file in candidates], key, pool)


def _match(
    keys: pa.Array, files: list[DataFile], tables: list[Any], key: Sequence[str], pool: Executor
) -> Located:
    if not files:
        return Located([], [], [], pa.table({}))
    together = pa.concat_tables(tables)
    met = _places(key_column(together, key), keys, pool)
    # One array: pyarrow 25 crashes on the non-zero indices of chunks that are all empty.
    is_met = pc.is_valid(met).combine_chunks()
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + table.num_rows)
    file_at = [
        bisect.bisect_right(starts, row) - 1 for row in pc.indices_nonzero(is_met).to_pylist()
    ]
    return Located(files, met.drop_null().to_pylist(), file_at, together.filter(is_met))


def _places(column: pa.ChunkedArray, keys: pa.Array, pool: Executor) -> pa.ChunkedArray:
    """Each value's position in `keys`, null where it has none; slices side by side."""
    slices = [column.slice(start, _PROBE_ROWS) for start in range(0, len(column), _PROBE_ROWS)]
    probed = pool.map(lambda part: pc.index_in(part, value_set=keys), slices)
    return pa.chunked_array([chunk for part in probed for chunk in part.chunks], pa.int32())


class _Bounds:
    """Prunes files by the bounds of the first key column (single-column keys only)."""

    def __init__(self, keys: pa.Array, key: Sequence[str], schema: Schema) -> None:
        field = schema.find_field(key[0])
        assert isinstance(field.field_type, PrimitiveType), "keys are scalars"
        self._id, self._type = field.field_id, field.field_type
        self._keys = keys if len(key) == 1 else None

    @cached_property
    def _sorted(self) -> list[Any] | None:
        # Made only when a file is unread: a warm writer has the keys of all.
        return None if self._keys is None else sorted(stored_values(self._keys))

    def may_hold_any(self, file: DataFile) -> bool:
        """False only if no wanted key can be in the file."""
        low, high = (
            (bounds or {}).get(self._id) for bounds in (file.lower_bounds, file.upper_bounds)
        )
        if self._sorted is None or low is None or high is None:
            return True
        first = bisect.bisect_left(self._sorted, from_bytes(self._type, low))
        if first == len(self._sorted):
            return False
        return bool(self._sorted[first] <= from_bytes(self._type, high))
