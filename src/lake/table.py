"""One keyed table in the lake: plan which data files a batch touches, rewrite them side by side.

The unit of rewriting is the data file. A changed row is rewritten in the file that holds it; a new
row goes to the open file of its partition, and a full file is never opened for inserts again: a
small batch does not rewrite a huge partition. Planning is done anew for every commit attempt, but a
file rewritten for an earlier attempt is reused when neither it nor its changes differ: a lost race
re-merges only what the winner changed.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from freshet.arrow import DELETED, POSITION, VERSION, key_column
from freshet.errors import ConflictError
from freshet.merge import Merged, Outcome, merge
from lake.evolution import evolve
from lake.io import ObjectsFileIO
from lake.keys import KeyIndex, Located, locate
from lake.parquet import FileWriter, read_rows
from lake.snapshot import ManifestReader, commit_swap, live_files
from lake.spec import PartitionValues, TableSpec, partition_values

# A file is closed to inserts beyond this: some 10 MB of Parquet, a quarter of a second to rewrite
# on one core, and eight of them at once stay below 512 MB.
FILE_ROWS_MAX = 250_000
# Writers that start together on a new contract each try; one wins a round and the rest find it
# done.
EVOLVE_ROUNDS_MAX = 10

TABLE_PROPERTIES = {
    "format-version": "2",
    "write.parquet.compression-codec": "zstd",
    "write.metadata.delete-after-commit.enabled": "true",
    # Enough for a reader that resolved the pointer and reads the metadata a minute later.
    "write.metadata.previous-versions-max": "20",
    "commit.retry.num-retries": "1",  # our own loop plans again instead
}


class Role(IntEnum):
    """Why a change is in a file's task; decides how its outcome is counted."""

    CHANGE = 0
    RETRACT = 1  # removes a row under a newer tombstone
    MOVE_OUT = 2  # removes the old home of a row whose partition changed
    MOVE_IN = 3  # inserts it in the new one


@dataclass(frozen=True)
class View:
    """A table as one snapshot shows it."""

    table: Table
    files: list[DataFile]
    spec: TableSpec

    @cached_property
    def writer(self) -> FileWriter:
        """Makes the files that this view's commit adds."""
        return FileWriter(self.table, self.spec.schema, self.spec.key)

    @property
    def snapshot_id(self) -> int | None:
        """The snapshot, None for a table that has none yet."""
        return self.table.metadata.current_snapshot_id


@dataclass(frozen=True)
class FileTask:
    """Rewrite one file (None: begin a new one) of one partition with these changes."""

    file: DataFile | None
    partition: PartitionValues
    changes: pa.Table
    roles: tuple[int, ...]
    key: tuple[str, ...]

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What makes two tasks the same work: the input file and the changes."""
        path = None if self.file is None else self.file.file_path
        keys = (tuple(self.changes.column(name).to_pylist()) for name in self.key)
        places = (tuple(self.changes.column(name).to_pylist()) for name in (VERSION, POSITION))
        return (path, self.partition, *keys, *places, self.roles)


@dataclass(frozen=True)
class Rewrite:
    """What a task came to: files out, files in, and each change's outcome in the task's order."""

    removed: tuple[str, ...]
    added: tuple[DataFile, ...]
    outcomes: tuple[int, ...]


@dataclass
class RewriteMemo:
    """Rewrites already done for a batch, by task identity: a lost commit reuses them."""

    done: dict[tuple[Any, ...], Rewrite] = field(default_factory=dict)


class KeyedTable:
    """Reads and rewrites one Iceberg table by key. Not a port: the lake's own."""

    def __init__(
        self,
        spec: TableSpec,
        *,
        catalog: Catalog,
        database: str,
        files: ObjectsFileIO,
        pool: Executor,
        index: KeyIndex,
        file_rows_max: int = FILE_ROWS_MAX,
        keep_columns: Sequence[str] | None = None,
    ) -> None:
        self.spec = spec
        self._catalog, self._identifier, self._files, self._pool = (
            catalog,
            (database, spec.name),
            files,
            pool,
        )
        self._file_rows_max = file_rows_max
        self._keep = tuple(keep_columns or spec.key)
        self._reader, self._index = ManifestReader(), index
        self._lock = threading.Lock()
        self._schema_id: int | None = None
        # Store calls wait side by side; decoding and merging take a core each, and more threads
        # than cores would only pass the interpreter's lock about and hold more rows in memory.
        self._cores = threading.BoundedSemaphore(os.cpu_count() or 1)

    def view(self) -> View:
        """The table as the catalog shows it now; first created, or evolved to its contract."""
        table = self._load()
        return View(table, live_files(table, self._reader), self.spec)

    def _load(self) -> Table:
        with self._lock:
            is_open = self._schema_id is not None
            table = (
                self._catalog.load_table(self._identifier) if is_open else self._open_or_create()
            )
            if table.metadata.current_schema_id != self._schema_id:
                # A newer release added columns this one would write away: it must refuse, by name.
                table = self._evolved(table)
                self._schema_id = table.metadata.current_schema_id
            return table

    def _evolved(self, table: Table) -> Table:
        for _ in range(EVOLVE_ROUNDS_MAX):
            try:
                return evolve(table, self.spec)
            except CommitFailedException:
                table = self._catalog.load_table(self._identifier)  # another writer was first
        raise ConflictError(self.spec.name, EVOLVE_ROUNDS_MAX)

    def _open_or_create(self) -> Table:
        try:
            return self._catalog.load_table(self._identifier)
        except NoSuchTableError:
            return self._create()

    def _create(self) -> Table:
        # As a transaction: `create_table` of pyiceberg's SQL catalog writes past our file access.
        try:
            return self._catalog.create_table_transaction(
                self._identifier,
                self.spec.iceberg_schema(),
                partition_spec=self.spec.iceberg_partition_spec(),
                properties=TABLE_PROPERTIES,
            ).commit_transaction()
        except (TableAlreadyExistsError, CommitFailedException):
            return self._catalog.load_table(self._identifier)  # another writer was first

    def locate(self, view: View, keys: pa.Array) -> Located:
        """Where the keys' rows are in this view."""
        return locate(
            keys,
            view.files,
            load=lambda file: self._read(file, self._keep),
            index=self._index,
            key=self.spec.key,
            schema=view.table.schema(),
            pool=self._pool,
        )

    def _read(self, file: DataFile, columns: Sequence[str]) -> pa.Table:
        return read_rows(self._files.read(file.file_path), columns, self.spec.schema)

    def read_all(self, view: View) -> pa.Table:
        """Every row of the view. For verification and tests: memory grows with the table."""
        parts = [self._read(file, self.spec.schema.names) for file in view.files]
        return pa.concat_tables([self.spec.schema.empty_table(), *parts])

    def read_files(self, view: View) -> Iterator[tuple[PartitionValues, pa.Table]]:
        """Each data file's partition and rows, one file at a time."""
        for file in view.files:
            yield _partition_of(file), self._read(file, self.spec.schema.names)

    def plan(self, view: View, changes: pa.Table, retracts: pa.Table) -> list[FileTask]:
        """Tasks for collapsed changes (one per key), and for keys whose rows lie under a newer
        tombstone.

        `retracts` are deletes at their tombstones' versions, of keys that are not among the
        changes' winners.
        """
        # One chunk: the planner takes rows from it, which a chunked table makes slow.
        planner = _Planner(self, view, pa.concat_tables([changes, retracts]).combine_chunks())
        planner.assign(retract_from=changes.num_rows)
        return planner.tasks()

    def current_rows(self, file: DataFile, changes: pa.Table) -> pa.Table:
        """The rows of a file that the changes meet."""
        rows = self._read(file, self.spec.schema.names)
        wanted = key_column(changes, self.spec.key).combine_chunks()
        return rows.filter(pc.is_in(key_column(rows, self.spec.key), value_set=wanted))

    def rewrite(self, view: View, tasks: Sequence[FileTask], memo: RewriteMemo) -> list[Rewrite]:
        """Do the tasks side by side; those done for an earlier attempt are not done again."""
        todo = [task for task in tasks if task.identity not in memo.done]
        for task, done in zip(
            todo, self._pool.map(lambda t: self._rewrite(view, t), todo), strict=True
        ):
            memo.done[task.identity] = done
        return [memo.done[task.identity] for task in tasks]

    def _rewrite(self, view: View, task: FileTask) -> Rewrite:
        content = None if task.file is None else self._files.read(task.file.file_path)
        with self._cores:
            merged = self._merged(task, content)
            parts = [] if merged.rows is None else self._parts(merged.rows)
            made = [self._encode(view, task.partition, part) for part in parts]
        for file, encoded in made:
            self._files.write(file.file_path, encoded)
        replaced = merged.rows is not None and task.file is not None
        removed = (task.file.file_path,) if replaced and task.file is not None else ()
        outcomes = tuple(merged.outcomes.to_pylist())
        return Rewrite(removed, tuple(file for file, _ in made), outcomes)

    def _merged(self, task: FileTask, content: bytes | None) -> Merged:
        schema = self.spec.schema
        rows = schema.empty_table() if content is None else read_rows(content, schema.names, schema)
        return merge(rows, task.changes, self.spec.key, content=self.spec.content)

    def _parts(self, rows: pa.Table) -> list[pa.Table]:
        """Rows as one file's, or as several of equal size where one would pass the limit."""
        parts = -(-rows.num_rows // self._file_rows_max)
        size = -(-rows.num_rows // parts) if parts else 0
        return [rows.slice(part * size, size) for part in range(parts)]

    def _encode(
        self, view: View, partition: PartitionValues, rows: pa.Table
    ) -> tuple[DataFile, bytes]:
        """A new data file's entry and bytes; its keys are indexed while they are at hand."""
        file, content = view.writer.encode(partition, rows, str(uuid.uuid4()))
        keys = rows.select(list(self._keep)).combine_chunks()
        self._index.put(file.file_path, pa.concat_tables([keys]))
        return file, content

    def commit(self, view: View, rewrites: Sequence[Rewrite], summary: Mapping[str, str]) -> int:
        """Swap the files in one snapshot on exactly this view; its id. Raises
        `CommitConflictError`.
        """
        removed = {path for rewrite in rewrites for path in rewrite.removed}
        snapshot_id = commit_swap(
            self._catalog,
            view.table,
            self._reader,
            added=[file for rewrite in rewrites for file in rewrite.added],
            removed=removed,
            summary=summary,
        )
        self._index.forget(removed)
        return snapshot_id


class _Planner:
    """Assigns each change to the file that holds its row, or to its partition's open file."""

    def __init__(self, table: KeyedTable, view: View, changes: pa.Table) -> None:
        self._table, self._view, self._changes = table, view, changes
        located = table.locate(view, key_column(changes, table.spec.key).combine_chunks())
        self._files, self._home_file = located.files, located.file_of_key()
        self._partition = partition_values(changes, table.spec.partition)
        self._deleted = changes.column(DELETED).to_pylist()
        self._by_file: dict[str, list[tuple[int, Role]]] = {}
        self._by_partition: dict[PartitionValues, list[tuple[int, Role]]] = {}
        self._file_named = {file.file_path: file for file in view.files}
        self._files_in: dict[PartitionValues, list[DataFile]] = {}
        for file in view.files:
            self._files_in.setdefault(_partition_of(file), []).append(file)
        self._partition_at = [_partition_of(file) for file in self._files]
        self._movers: dict[str, list[int]] = {}

    def assign(self, *, retract_from: int) -> None:
        """Put each change where it belongs. A delete of a key that has no row needs no file."""
        paths = [file.file_path for file in self._files]
        for row, (deleted, partition) in enumerate(
            zip(self._deleted, self._partition, strict=True)
        ):
            at = self._home_file.get(row)
            if at is not None and (deleted or partition == self._partition_at[at]):
                role = Role.CHANGE if row < retract_from else Role.RETRACT
                self._by_file.setdefault(paths[at], []).append((row, role))
            elif at is not None:
                self._movers.setdefault(paths[at], []).append(row)
            elif not deleted:
                self._by_partition.setdefault(partition, []).append((row, Role.CHANGE))

    def tasks(self) -> list[FileTask]:
        """All tasks, the movers' decided and the inserts' files chosen."""
        for path, rows in self._movers.items():
            self._move(path, rows)
        for partition, members in self._by_partition.items():
            self._place_inserts(partition, members)
        work: list[tuple[DataFile | None, PartitionValues, list[tuple[int, Role]]]] = [
            (self._file_named[path], _partition_of(self._file_named[path]), members)
            for path, members in self._by_file.items()
        ]
        new = self._by_partition.items()
        work += [(None, partition, members) for partition, members in new if members]
        # All changes taken at once, in task order; each task's are then a slice.
        rows = [row for _, _, members in work for row, _ in members]
        ordered = self._changes.take(pa.array(rows, pa.int64()))
        starts = accumulate((len(members) for _, _, members in work), initial=0)
        return [
            self._task(file, partition, members, ordered.slice(start, len(members)))
            for start, (file, partition, members) in zip(starts, work, strict=False)
        ]

    def _move(self, path: str, rows: list[int]) -> None:
        """A row whose partition changed leaves one file and enters another, if its change wins."""
        changes = self._changes.take(rows)
        current = self._table.current_rows(self._file_named[path], changes)
        outcomes = merge(current, changes, self._table.spec.key).outcomes.to_pylist()
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome in (Outcome.UPDATED, Outcome.UNCHANGED):
                self._by_file.setdefault(path, []).append((row, Role.MOVE_OUT))
                self._by_partition.setdefault(self._partition[row], []).append((row, Role.MOVE_IN))
            else:  # stale: let the file's own merge say so
                self._by_file.setdefault(path, []).append((row, Role.CHANGE))

    def _place_inserts(self, partition: PartitionValues, members: list[tuple[int, Role]]) -> None:
        """Into the partition's smallest file while that has room, preferring one that is rewritten
        anyway.
        """
        open_files = [
            file
            for file in self._files_in.get(partition, ())
            if file.record_count < self._table._file_rows_max  # noqa: SLF001
        ]
        if not open_files:
            return
        chosen = min(open_files, key=lambda f: (f.file_path not in self._by_file, f.record_count))
        self._by_file.setdefault(chosen.file_path, []).extend(members)
        members.clear()

    def _task(
        self,
        file: DataFile | None,
        partition: PartitionValues,
        members: list[tuple[int, Role]],
        changes: pa.Table,
    ) -> FileTask:
        out = [role is Role.MOVE_OUT for _, role in members]
        if any(out):
            deleted = pc.or_(changes.column(DELETED), pa.array(out))
            changes = changes.set_column(
                changes.schema.get_field_index(DELETED), changes.schema.field(DELETED), deleted
            )
        roles = tuple(int(role) for _, role in members)
        return FileTask(file, partition, changes, roles, self._table.spec.key)


def _partition_of(file: DataFile) -> PartitionValues:
    return tuple(file.partition[position] for position in range(len(file.partition)))
