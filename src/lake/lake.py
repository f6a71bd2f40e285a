"""The lake: what the consumer calls. Opens tables on demand and applies batches to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from datetime import timedelta
from typing import Any, Never

import pyarrow as pa
from pyiceberg.catalog import Catalog

from freshet.clock import Now
from freshet.contract import Contract, Registry
from freshet.objects import Objects, StoredObject
from lake.current import Applied, CurrentState
from lake.io import ObjectsFileIO
from lake.keys import KeyIndex
from lake.ledger import ContextPool, MeteredObjects
from lake.log import (
    LoggedEvent,
    LoggedTruncation,
    QuarantinedLine,
    ReceiptRow,
    Resolution,
    StreamLogs,
)
from lake.spec import rows_spec, tombstones_spec
from lake.steps import OnConflict, OnStep, Step, no_conflict, no_step
from lake.table import FILE_ROWS_MAX, KeyedTable, ReadOnlyError
from lake.vacuum import GRACE, Vacuum

# Partitions in flight at once: hides store latency (40 ms a call) without holding more than eight
# in memory.
IO_THREADS = 8
# Tombstone files are small and rewritten by every batch with a delete: keep each cheap.
TOMBSTONE_ROWS_MAX = 65_536


class _ReadOnlyObjects:
    """`freshet.objects.Objects` that only reads: no commit gets by it, for each writes first."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def get(self, key: str) -> StoredObject:
        """See `Objects.get`."""
        return self._objects.get(key)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Objects.list`."""
        return self._objects.list(prefix)

    def put(self, key: str, data: bytes) -> Never:  # noqa: ARG002 - it is refused
        """Raises `ReadOnlyError`."""
        raise ReadOnlyError(key)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> Never:  # noqa: ARG002 - as above
        """Raises `ReadOnlyError`."""
        raise ReadOnlyError(key)

    def delete(self, key: str) -> Never:
        """Raises `ReadOnlyError`."""
        raise ReadOnlyError(key)


class Lake:
    """Current-state tables, tombstones and logs of the declared tables.

    `objects` holds everything below `root` (`s3://bucket/prefix` or `file:///folder`);
    `open_catalog` makes the catalog over our file access. `on_conflict` is told a table's name each
    time a commit to it comes second and must be planned again.

    A `read_only` lake shows tables as their contracts declare them and leaves them as they are:
    none is created or evolved, and every write raises `ReadOnlyError`.
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
        read_only: bool = False,
    ) -> None:
        self.read_only = read_only
        self.tables, self.database, self._wait, self._step = tables, database, wait, on_step
        self._on_conflict = on_conflict
        self.objects = MeteredObjects(_ReadOnlyObjects(objects) if read_only else objects)
        self.files = ObjectsFileIO(self.objects, root)
        self.catalog = open_catalog(self.files)
        self.pool = ContextPool(io_threads, thread_name_prefix="lake")
        self._file_rows_max = file_rows_max
        # One for all tables: locations are unique, and the memory of a warm consumer is bounded.
        self._index = KeyIndex()
        self._open: dict[str, CurrentState] = {}
        self._logs = StreamLogs(self.objects, tables)

    def keep(
        self,
        batch: str,
        events: Sequence[LoggedEvent],
        rejected: Sequence[QuarantinedLine],
        truncations: Sequence[LoggedTruncation] = (),
    ) -> None:
        """Write a batch's rejected lines to the quarantine, and its events and truncations to the
        change log.

        A batch that comes again as it was writes nothing.

        Raises `StorageError` (transient).
        """
        self._logs.quarantine(batch, rejected)
        self._step(Step.QUARANTINED)
        self._logs.append_events(batch, events, truncations)
        self._step(Step.LOGGED)

    def record(self, rows: Sequence[ReceiptRow]) -> None:
        """Write the receipt of one batch: at least one line, in one object.

        Raises `StorageError` (transient).
        """
        self._logs.record(rows)
        self._step(Step.RECORDED)

    def resolve(self, resolutions: Sequence[Resolution]) -> None:
        """Say what became of quarantined lines. The same call made again changes nothing.

        Raises `StorageError` (transient).
        """
        self._logs.resolve(resolutions)

    def log(
        self, name: str, table: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterable[pa.Table]:
        """The objects of a log (`lake.log.LOGS`) as tables: of one table or all, all columns or
        some.
        """
        return self._logs.read(name, table, columns)

    def log_objects(
        self, name: str, table: str | None = None, columns: Sequence[str] | None = None
    ) -> Iterable[tuple[str, pa.Table]]:
        """As `log`, each object with its key below the lake's root."""
        return self._logs.named(name, table, columns)

    def apply(self, table: str, changes: pa.Table, note: Mapping[str, str]) -> Applied:
        """Apply changes (`freshet.arrow.changes_table`) to a table; one snapshot, or none if
        nothing changed.

        Raises `ConflictError`, `StorageError` (transient), `UnknownTableError`,
        `SchemaChangeError`.
        """
        return self.current(table).apply(changes, note)

    def truncate(self, table: str, version: int, position: str, note: Mapping[str, str]) -> Applied:
        """End every row of a table that is older than `version`, come earlier or later.

        Raises as `apply`.
        """
        return self.current(table).truncate(version, position, note)

    def current(self, table: str) -> CurrentState:
        """A table's current state, opened on first use."""
        if table not in self._open:
            self._open.setdefault(table, self._open_table(self.tables[table]))
        return self._open[table]

    def rows(self, table: str) -> pa.Table:
        """All current rows of a table. For verification, tests and small tables."""
        keyed = self.current(table).rows
        return keyed.read_all(keyed.view())

    def vacuum(self, *, now: Now, grace: timedelta = GRACE) -> Vacuum:
        """What deletes files that nothing retained needs, once the grace is over."""
        return Vacuum(
            self.objects,
            self.files,
            self.catalog,
            self.database,
            pool=self.pool,
            now=now,
            grace=grace,
        )

    def reader(self) -> Lake:
        """This lake, read only: the same threads, store and catalog, which only this one closes."""
        other = copy(self)
        other.read_only = True
        other._open = {}  # noqa: SLF001 - of this very class, and below
        other.objects = MeteredObjects(_ReadOnlyObjects(self.objects.store))
        other._logs = StreamLogs(other.objects, self.tables)  # noqa: SLF001
        return other

    def close(self) -> None:
        """Stop the threads and let go of the catalog."""
        self.pool.shutdown()
        self.catalog.close()

    def _open_table(self, contract: type[Contract]) -> CurrentState:
        shared: dict[str, Any] = {
            "catalog": self.catalog,
            "database": self.database,
            "files": self.files,
            "pool": self.pool,
            "index": self._index,
            "read_only": self.read_only,
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
