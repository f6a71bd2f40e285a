"""One keyed table in the lake: plan which data files a batch touches, rewrite them side by side.

The unit of rewriting is the data file. A changed row is rewritten in the file that holds it; a new
row goes to the open file of its partition, and a full file is never opened for inserts again: a
small batch does not rewrite a huge partition. Planning is done anew for every commit attempt, but a
file rewritten for an earlier attempt is reused when neither it nor its changes differ: a lost race
re-merges only what the winner changed.

Keys with partial updates are joined by the planner, which reads their rows first: which partition a
row belongs to is known only when its columns are. Statistics tell which files hold any.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.catalog import Catalog
from pyiceberg.conversions import from_bytes
from pyiceberg.exceptions import (
    CommitFailedException,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import CreateTableTransaction, Table
from pyiceberg.table.snapshots import Operation
from pyiceberg.types import PrimitiveType

from freshet.arrow import DELETED, PATCHES, POSITION, VERSION, key_column
from freshet.errors import ConflictError, TerminalError
from freshet.merge import Merged, Outcome, merge
from freshet.patch import Place, Record, Shape, State, deleted, join
from lake.evolution import evolve, evolved_in_memory
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


class ReadOnlyError(TerminalError):
    """A write to a lake, or to a table of one, that was opened for reading."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"the lake is open for reading only, and {what!r} was to be written or deleted; "
            "whoever writes opens it for writing"
        )


RowsKept = Callable[[pa.Table], pa.Table]


class Role(IntEnum):
    """Why a change is in a file's task; decides how its outcome is counted."""

    CHANGE = 0
    RETRACT = 1  # removes a row under a newer tombstone
    MOVE_OUT = 2  # removes the old home of a row whose partition changed
    MOVE_IN = 3  # inserts it in the new one
    SET = 4  # puts a joined row in its place
    DROP = 5  # removes a row that a join has ended
    KEEP = 6  # joined, and nothing came of it
    ENTER = 7  # inserts a row with patches, or one that a join has moved


# Roles of keys whose row leaves the file, whatever its version: the planner has decided.
_LEAVES = (Role.MOVE_OUT, Role.SET, Role.DROP)
# What the merge is not told of, and what became of it.
_SETTLED = {
    Role.MOVE_OUT: Outcome.DELETED,
    Role.DROP: Outcome.DELETED,
    Role.KEEP: Outcome.DUPLICATE,
}


@dataclass(frozen=True, slots=True)
class Joined:
    """How the state of a key with patches came to be; `is_retract`: the change is a tombstone's."""

    key: Record
    change: State
    before: State
    after: State
    is_retract: bool


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

    @cached_property
    def own_fields(self) -> tuple[int, int]:
        """Field ids of `_patches` and `_version`."""
        schema = self.table.schema()
        return schema.find_field(PATCHES).field_id, schema.find_field(VERSION).field_id

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
    joined: Mapping[int, Joined] = field(default_factory=dict)

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What makes two tasks the same work: the input file and the changes."""
        path = None if self.file is None else self.file.file_path
        keys = (tuple(self.changes.column(name).to_pylist()) for name in self.key)
        own = (VERSION, POSITION, PATCHES)
        places = (tuple(self.changes.column(name).to_pylist()) for name in own)
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


@dataclass(frozen=True)
class Sweep:
    """A file without the rows a truncation ends: how many, and (key, what waits) of those with
    newer patches.
    """

    rewrite: Rewrite
    ended: int
    waiting: tuple[tuple[Record, State], ...]


class KeyedTable:
    """Reads and rewrites one Iceberg table by key. Not a port: the lake's own.

    With `read_only` what a writer would change of the table as it opens it, a reader only sees.
    """

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
        read_only: bool = False,
    ) -> None:
        self.spec, self._read_only = spec, read_only
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
        self._absent: Table | None = None
        # Store calls wait side by side; decoding and merging take a core each, and more threads
        # than cores would only pass the interpreter's lock about and hold more rows in memory.
        self._cores = threading.BoundedSemaphore(os.cpu_count() or 1)

    def view(self) -> View:
        """The table as the catalog shows it now; first created, or evolved to its contract: to be
        read only, in memory alone.
        """
        table = self._seen() if self._read_only else self._load()
        return View(table, live_files(table, self._reader), self.spec)

    def _seen(self) -> Table:
        with self._lock:
            try:
                table = self._catalog.load_table(self._identifier)
            except NoSuchTableError:
                return self._empty()
            if table.metadata.current_schema_id == self._schema_id:
                return table
            seen = evolved_in_memory(table, self.spec)
            if seen is table:
                self._schema_id = table.metadata.current_schema_id
            return seen

    def _empty(self) -> Table:
        """The table that a writer would create; it has no metadata file. One for all views."""
        if self._absent is None:
            metadata = self._creation().table_metadata
            self._absent = Table(self._identifier, metadata, "", self._files, self._catalog)
        return self._absent

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
                # Words are told by those who open a table: two releases side by side, each with its
                # own, would otherwise answer one another for ever.
                return evolve(table, self.spec, words=self._schema_id is None)
            except CommitFailedException:
                table = self._catalog.load_table(self._identifier)  # another writer was first
        raise ConflictError(self.spec.name, EVOLVE_ROUNDS_MAX)

    def _open_or_create(self) -> Table:
        try:
            return self._catalog.load_table(self._identifier)
        except NoSuchTableError:
            return self._create()

    def _create(self) -> Table:
        try:
            return self._creation().commit_transaction()
        except (TableAlreadyExistsError, CommitFailedException):
            return self._catalog.load_table(self._identifier)  # another writer was first

    def _creation(self) -> CreateTableTransaction:
        # As a transaction: `create_table` of pyiceberg's SQL catalog writes past our file access.
        return self._catalog.create_table_transaction(
            self._identifier,
            self.spec.iceberg_schema(),
            partition_spec=self.spec.iceberg_partition_spec(),
            properties=TABLE_PROPERTIES | self.spec.properties,
        )

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
        together = pa.concat_tables([changes, retracts]).combine_chunks()
        planner = _Planner(self, view, together, changes.num_rows)
        planner.assign()
        return planner.tasks()

    def current_rows(self, file: DataFile, changes: pa.Table) -> pa.Table:
        """The rows of a file that the changes meet."""
        content = self._files.read(file.file_path)
        with self._cores:
            rows = read_rows(content, self.spec.schema.names, self.spec.schema)
            wanted = key_column(changes, self.spec.key).combine_chunks()
            return rows.filter(pc.is_in(key_column(rows, self.spec.key), value_set=wanted))

    def met_rows(self, met: Sequence[tuple[DataFile, pa.Table]]) -> list[pa.Table]:
        """`current_rows` of several files, side by side."""
        return list(self._pool.map(lambda one: self.current_rows(*one), met))

    def rewrite(self, view: View, tasks: Sequence[FileTask], memo: RewriteMemo) -> list[Rewrite]:
        """Do the tasks side by side; those done for an earlier attempt are not done again."""
        todo = [task for task in tasks if task.identity not in memo.done]
        for task, done in zip(
            todo, self._pool.map(lambda t: self._rewrite(view, t), todo), strict=True
        ):
            memo.done[task.identity] = done
        return [memo.done[task.identity] for task in tasks]

    def _rewrite(self, view: View, task: FileTask) -> Rewrite:
        if all(role == Role.KEEP for role in task.roles):
            return Rewrite((), (), tuple(_SETTLED[Role.KEEP] for _ in task.roles))
        content = None if task.file is None else self._files.read(task.file.file_path)
        with self._cores:
            merged = self._merged(task, content)
            made = self._encoded(view, task.partition, merged.rows)
        self._write(made)
        replaced = merged.rows is not None and task.file is not None
        removed = (task.file.file_path,) if replaced and task.file is not None else ()
        outcomes = tuple(merged.outcomes.to_pylist())
        return Rewrite(removed, tuple(file for file, _ in made), outcomes)

    def _encoded(
        self, view: View, partition: PartitionValues, rows: pa.Table | None
    ) -> list[tuple[DataFile, bytes]]:
        parts = [] if rows is None else self._parts(rows)
        return [self._encode(view, partition, part) for part in parts]

    def _require_writing(self) -> None:
        if self._read_only:
            raise ReadOnlyError(self.spec.name)

    def _write(self, made: Sequence[tuple[DataFile, bytes]]) -> None:
        self._require_writing()
        for file, encoded in made:
            self._files.write(file.file_path, encoded)

    def _merged(self, task: FileTask, content: bytes | None) -> Merged:
        schema, key = self.spec.schema, self.spec.key
        rows = schema.empty_table() if content is None else read_rows(content, schema.names, schema)
        if not any(role in _LEAVES or role in _SETTLED for role in task.roles):
            return merge(rows, task.changes, key, content=self.spec.content)
        told = [at for at, role in enumerate(task.roles) if role not in _SETTLED]
        stay = _without(rows, task, key)
        merged = merge(
            stay, task.changes.take(pa.array(told, pa.int64())), key, content=self.spec.content
        )
        outcomes = [int(_SETTLED.get(Role(role), Outcome.ABSENT)) for role in task.roles]
        for at, outcome in zip(told, merged.outcomes.to_pylist(), strict=True):
            outcomes[at] = outcome
        after = stay if merged.rows is None and stay.num_rows < rows.num_rows else merged.rows
        return Merged(after, pa.array(outcomes, pa.int8()))

    def sweep(self, view: View, floor: Place, memo: dict[str, Sweep | None]) -> list[Sweep]:
        """Files without the rows that a truncation at this version and position ends.

        One file at a time on each thread, and none that cannot hold such a row; `memo` keeps what
        was swept for an earlier attempt.
        """
        todo = [file for file in view.files if file.file_path not in memo]
        swept = self._pool.map(lambda file: self._swept(view, file, floor), todo)
        memo |= {file.file_path: sweep for file, sweep in zip(todo, swept, strict=True)}
        sweeps = (memo[file.file_path] for file in view.files)
        return [sweep for sweep in sweeps if sweep is not None]

    def _swept(self, view: View, file: DataFile, floor: Place) -> Sweep | None:
        oldest, newest = version_bounds(view.table.schema(), file)
        if oldest is not None and oldest > floor[0]:
            return None
        path = file.file_path
        if newest is not None and newest < floor[0] and not may_hold_patches(view, file):
            return Sweep(Rewrite((path,), (), ()), file.record_count, ())
        content = self._files.read(path)
        with self._cores:
            rows = read_rows(content, self.spec.schema.names, self.spec.schema)
            ends = _is_older(rows, floor)
            ended = pc.sum(ends).as_py() or 0
            if not ended:
                return None
            made = self._encoded(view, _partition_of(file), rows.filter(pc.invert(ends)))
        self._write(made)
        rewrite = Rewrite((path,), tuple(file for file, _ in made), ())
        return Sweep(rewrite, ended, self._surviving(rows.filter(ends), floor))

    def _surviving(self, ended: pa.Table, floor: Place) -> tuple[tuple[Record, State], ...]:
        """Patches newer than the truncation that ended their row: they wait from now on."""
        shape = Shape.of(self.spec.schema, self.spec.content)
        patched = ended.filter(pc.is_valid(ended.column(PATCHES))).to_pylist()
        states = [
            (
                {name: record[name] for name in self.spec.key},
                join(shape.read(record), deleted(*floor)),
            )
            for record in patched
        ]
        return tuple((key, state) for key, state in states if state.patches)

    def remake(self, view: View, files: Sequence[DataFile], keep: RowsKept, parts: int) -> Rewrite:
        """Rows of files of one partition, as they are, in `parts` new files of equal size (fewer,
        where there are fewer rows). `keep` leaves some out.
        """
        contents = [self._files.read(file.file_path) for file in files]
        with self._cores:
            schema = self.spec.schema
            read = [read_rows(content, schema.names, schema) for content in contents]
            rows = keep(pa.concat_tables(read))
            size = -(-rows.num_rows // parts)
            home = _partition_of(files[0])
            made = [
                self._encode(view, home, rows.slice(start, size))
                for start in range(0, rows.num_rows, max(1, size))
            ]
        self._write(made)
        removed = tuple(file.file_path for file in files)
        return Rewrite(removed, tuple(file for file, _ in made), ())

    @property
    def file_rows_max(self) -> int:
        """A file with as many rows takes no inserts any more."""
        return self._file_rows_max

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

    def commit(
        self,
        view: View,
        rewrites: Sequence[Rewrite],
        summary: Mapping[str, str],
        *,
        properties: Mapping[str, str] | None = None,
        operation: Operation = Operation.OVERWRITE,
    ) -> int:
        """Swap the files in one snapshot on exactly this view, and set properties with it; its id.
        Raises `CommitConflictError`, `ReadOnlyError`.
        """
        self._require_writing()
        removed = {path for rewrite in rewrites for path in rewrite.removed}
        snapshot_id = commit_swap(
            self._catalog,
            view.table,
            self._reader,
            added=[file for rewrite in rewrites for file in rewrite.added],
            removed=removed,
            summary=summary,
            properties=properties,
            operation=operation,
        )
        self._index.forget(removed)
        return snapshot_id


class _Planner:
    """Assigns each change to the file that holds its row, or to its partition's open file."""

    def __init__(self, table: KeyedTable, view: View, changes: pa.Table, retract_from: int) -> None:
        self._table, self._view, self._changes = table, view, changes
        self._retract_from = retract_from
        located = table.locate(view, key_column(changes, table.spec.key).combine_chunks())
        self._files, self._home_file = located.files, located.file_of_key()
        self._partition = partition_values(changes, table.spec.partition)
        self._deleted = changes.column(DELETED).to_pylist()
        self._patched = pc.is_valid(changes.column(PATCHES)).to_pylist()
        self._by_file: dict[str, list[tuple[int, Role]]] = {}
        self._by_partition: dict[PartitionValues, list[tuple[int, Role]]] = {}
        self._file_named = {file.file_path: file for file in view.files}
        self._files_in: dict[PartitionValues, list[DataFile]] = {}
        for file in view.files:
            self._files_in.setdefault(_partition_of(file), []).append(file)
        self._readings: dict[str, list[int]] = {}
        self._shape = Shape.of(changes.schema, table.spec.content)
        self._joined_rows: list[tuple[str, int, Record]] = []
        self._joined: dict[int, Joined] = {}

    def assign(self) -> None:
        """Put each change where it belongs. A delete of a key that has no row needs no file."""
        homes = [
            (file.file_path, _partition_of(file), may_hold_patches(self._view, file))
            for file in self._files
        ]
        for row, (is_delete, partition) in enumerate(
            zip(self._deleted, self._partition, strict=True)
        ):
            at = self._home_file.get(row)
            if at is None:
                if not is_delete:
                    role = Role.ENTER if self._patched[row] else Role.CHANGE
                    self._by_partition.setdefault(partition, []).append((row, role))
                continue
            path, home, may_be_patched = homes[at]
            stays = is_delete or partition == home
            if stays and not may_be_patched and not self._patched[row]:
                self._by_file.setdefault(path, []).append((row, self._role(row)))
            else:
                self._readings.setdefault(path, []).append(row)

    def _role(self, row: int) -> Role:
        return Role.CHANGE if row < self._retract_from else Role.RETRACT

    def tasks(self) -> list[FileTask]:
        """All tasks, those that need their rows decided and the inserts' files chosen."""
        self._decide_readings()
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

    def _decide_readings(self) -> None:
        """Changes that can be placed only with their rows at hand."""
        parts = [self._changes.take(rows) for rows in self._readings.values()]
        files = [self._file_named[path] for path in self._readings]
        met = self._table.met_rows(list(zip(files, parts, strict=True)))
        for (path, rows), changes, current in zip(self._readings.items(), parts, met, strict=True):
            self._decide(path, rows, changes, current)
        if self._joined_rows:
            self._place_joined()

    def _decide(self, path: str, rows: list[int], changes: pa.Table, current: pa.Table) -> None:
        patched = current.filter(pc.is_valid(current.column(PATCHES)))
        joins = {row for row in rows if self._patched[row]}
        if patched.num_rows or joins:
            keys = self._keys(changes)
            of_patched = set(self._keys(patched))
            joins |= {row for row, key in zip(rows, keys, strict=True) if key in of_patched}
            records = dict(zip(self._keys(current), current.to_pylist(), strict=True))
            for row, key, change in zip(rows, keys, changes.to_pylist(), strict=True):
                if row in joins:
                    self._join(path, row, change, records[key])
        home = _partition_of(self._file_named[path])
        for row in rows:
            if row not in joins and (self._deleted[row] or self._partition[row] == home):
                self._by_file.setdefault(path, []).append((row, self._role(row)))
                joins.add(row)
        self._move(path, [row for row in rows if row not in joins], current)

    def _keys(self, table: pa.Table) -> list[tuple[Any, ...]]:
        columns = (table.column(name).to_pylist() for name in self._table.spec.key)
        return list(zip(*columns, strict=True))

    def _join(self, path: str, row: int, change: Record, record: Record) -> None:
        """A key with patches: what its row comes to, and so where it belongs."""
        state, before = self._shape.read(change), self._shape.read(record)
        after = join(before, state)
        key = {name: record[name] for name in self._table.spec.key}
        joined = Joined(key, state, before, after, self._role(row) is Role.RETRACT)
        if after == before or after.after is None:
            role = Role.KEEP if after == before else Role.DROP
            self._by_file.setdefault(path, []).append((row, role))
            self._joined[row] = joined
            return
        self._joined_rows.append((path, row, self._shape.write(after, key)))
        self._joined[self._changes.num_rows + len(self._joined_rows) - 1] = joined

    def _place_joined(self) -> None:
        """Joined rows stay in their files, or move where their columns say now."""
        first = self._changes.num_rows
        records = [record for _, _, record in self._joined_rows]
        made = pa.Table.from_pylist(records, schema=self._changes.schema)
        partitions = partition_values(made, self._table.spec.partition)
        for number, ((path, row, _), home) in enumerate(
            zip(self._joined_rows, partitions, strict=True), start=first
        ):
            members = self._by_file.setdefault(path, [])
            if home == _partition_of(self._file_named[path]):
                members.append((number, Role.SET))
            else:
                members.append((row, Role.MOVE_OUT))
                self._by_partition.setdefault(home, []).append((number, Role.ENTER))
        self._changes = pa.concat_tables([self._changes, made]).combine_chunks()

    def _move(self, path: str, rows: list[int], current: pa.Table) -> None:
        """A row whose partition changed leaves one file and enters another, if its change wins."""
        outcomes = merge(
            current, self._changes.take(pa.array(rows, pa.int64())), self._table.spec.key
        ).outcomes
        for row, outcome in zip(rows, outcomes.to_pylist(), strict=True):
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
            if file.record_count < self._table.file_rows_max
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
        roles = tuple(int(role) for _, role in members)
        joined = {
            at: self._joined[row] for at, (row, _) in enumerate(members) if row in self._joined
        }
        return FileTask(file, partition, changes, roles, self._table.spec.key, joined)


def _partition_of(file: DataFile) -> PartitionValues:
    return tuple(file.partition[position] for position in range(len(file.partition)))


def _without(rows: pa.Table, task: FileTask, key: Sequence[str]) -> pa.Table:
    """A task's rows but for those that leave its file."""
    leave = [at for at, role in enumerate(task.roles) if role in _LEAVES]
    if not leave:
        return rows
    keys = key_column(task.changes.take(leave), key).combine_chunks()
    return rows.filter(pc.invert(pc.is_in(key_column(rows, key), value_set=keys)))


def _is_older(rows: pa.Table, floor: Place) -> pa.ChunkedArray:
    """True for rows that a delete at this version and position ends."""
    version, position = floor
    older = pc.less(rows.column(VERSION), version)
    tie = pc.equal(rows.column(VERSION), version)
    return pc.or_(older, pc.and_(tie, pc.less_equal(rows.column(POSITION), position)))


def version_bounds(schema: Schema, file: DataFile) -> tuple[int | None, int | None]:
    """The least and greatest version in a file by its statistics, None where they are missing."""
    field = schema.find_field(VERSION)
    assert isinstance(field.field_type, PrimitiveType), "versions are longs"
    low, high = (
        None if bound is None else int(from_bytes(field.field_type, bound))
        for bounds in (file.lower_bounds, file.upper_bounds)
        for bound in [(bounds or {}).get(field.field_id)]
    )
    return low, high


def may_hold_patches(view: View, file: DataFile) -> bool:
    """False only if no row of a file has patches, by its statistics.

    A file that counts its versions but not its patches is older than that column.
    """
    patches, versions = view.own_fields
    values, nulls = file.value_counts or {}, file.null_value_counts or {}
    if patches in values and patches in nulls:
        return bool(values[patches] != nulls[patches])
    return versions not in values
