"""The lake: what the consumer calls. Opens tables on demand and applies batches to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog

from freshet.clock import Now
from freshet.contract import Contract, Registry
from freshet.objects import Objects
from freshet.receipt import Receipt
from lake.current import CurrentState
from lake.io import ObjectsFileIO
from lake.keys import KeyIndex
from lake.log import LoggedEvent, QuarantinedLine, StreamLogs
from lake.spec import rows_spec, tombstones_spec
from lake.steps import OnConflict, OnStep, Step, no_conflict, no_step
from lake.table import FILE_ROWS_MAX, KeyedTable
from lake.vacuum import GRACE, Vacuum

# Partitions in flight at once: hides store latency (40 ms a call) without holding more than eight
# in memory.
IO_THREADS = 8
# Tombstone files are small and rewritten by every batch with a delete: keep each cheap.
TOMBSTONE_ROWS_MAX = 65_536


class Lake:
    """Current-state tables, tombstones and logs of the declared tables.

    `objects` holds everything below `root` (`s3://bucket/prefix` or `file:///folder`);
    `open_catalog` makes the catalog over our file access. `on_conflict` is told a table's name each
    time a commit to it comes second and must be planned again.
    """

    def __init__(
        self,
        objects: Objects,
        root: str,
        open_catalog: Callable[[ObjectsFileIO], Catalog],
        *,
        tables: Registry,
        database: str = "freshet",
        wait: Callable[[float], object] = time.sleep,
        on_step: OnStep = no_step,
        on_conflict: OnConflict = no_conflict,
        io_threads: int = IO_THREADS,
        file_rows_max: int = FILE_ROWS_MAX,
    ) -> None:
        self._tables, self._database, self._wait, self._step = tables, database, wait, on_step
        self._on_conflict = on_conflict
        self._objects, self._files = objects, ObjectsFileIO(objects, root)
        self._catalog = open_catalog(self._files)
        self._pool = ThreadPoolExecutor(io_threads, thread_name_prefix="lake")
        self._file_rows_max = file_rows_max
        # One for all tables: locations are unique, and the memory of a warm consumer is bounded.
        self._index = KeyIndex()
        self._open: dict[str, CurrentState] = {}
        self._logs = StreamLogs(objects, tables)

    def keep(
        self, batch: str, events: Sequence[LoggedEvent], rejected: Sequence[QuarantinedLine]
    ) -> None:
        """Write a batch's rejected lines to the quarantine and its events to the change log.

        A batch that comes again as it was writes nothing.

        Raises `StorageError` (transient).
        """
        self._logs.quarantine(batch, rejected)
        self._step(Step.QUARANTINED)
        self._logs.append_events(batch, events)
        self._step(Step.LOGGED)

    def log(self, name: str, table: str | None = None) -> Iterable[pa.Table]:
        """The objects of `change_log` or `quarantine` as tables, of one table or of all."""
        return self._logs.read(name, table)

    def apply(self, table: str, changes: pa.Table, note: Mapping[str, str]) -> Receipt:
        """Apply changes (`freshet.arrow.changes_table`) to a table; one snapshot, or none if
        nothing changed.

        Raises `ConflictError`, `StorageError` (transient), `UnknownTableError`,
        `SchemaChangeError`.
        """
        return self.current(table).apply(changes, note)

    def current(self, table: str) -> CurrentState:
        """A table's current state, opened on first use."""
        if table not in self._open:
            self._open.setdefault(table, self._open_table(self._tables[table]))
        return self._open[table]

    def rows(self, table: str) -> pa.Table:
        """All current rows of a table. For verification, tests and small tables."""
        keyed = self.current(table).rows
        return keyed.read_all(keyed.view())

    def vacuum(self, *, now: Now, grace: timedelta = GRACE) -> Vacuum:
        """What deletes files that nothing retained needs, once the grace is over."""
        return Vacuum(
            self._objects,
            self._files,
            self._catalog,
            self._database,
            pool=self._pool,
            now=now,
            grace=grace,
        )

    def close(self) -> None:
        """Stop the threads and let go of the catalog."""
        self._pool.shutdown()
        self._catalog.close()

    def _open_table(self, contract: type[Contract]) -> CurrentState:
        shared: dict[str, Any] = {
            "catalog": self._catalog,
            "database": self._database,
            "files": self._files,
            "pool": self._pool,
            "index": self._index,
        }
        dead = tombstones_spec(contract)
        return CurrentState(
            KeyedTable(rows_spec(contract), **shared, file_rows_max=self._file_rows_max),
            KeyedTable(
                dead, **shared, file_rows_max=TOMBSTONE_ROWS_MAX, keep_columns=dead.schema.names
            ),
            wait=self._wait,
            on_step=self._step,
            on_conflict=self._on_conflict,
        )
