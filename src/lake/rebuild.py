"""A table's current state made anew from its change log, and swapped in beside live traffic.

The state is built in shadow tables by the same merge as ever, then written into the live tables'
own folders and swapped in by one snapshot each, tombstones first. Why nothing is lost or half:

- The log is written before the tables. So what the live tables show when they are viewed is in the
  log that is listed afterwards, and the rebuilt state is a join of at least that.
- Both swaps are committed on exactly the snapshots that were viewed. Whoever commits in between
  makes them fail; then what came is fetched from the log, and they are tried again.
- A writer that has only a tombstone to add does not move the rows. So after the rows were swapped
  the tombstones are looked at again, as every writer does; what moved is caught up with.
- Tombstones that the log does not explain are kept: an erasure leaves such, and a row that it
  removed must not come back from what the stream still holds.

A run that is killed leaves the live tables as they were or as they should be; the next run drops
what it left and begins anew.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile

from freshet.arrow import (
    DELETED,
    POSITION,
    VERSION,
    PlacedEvent,
    changes_schema,
    changes_table,
    key_column,
)
from freshet.contract import Contract
from freshet.errors import ConflictError, TerminalError
from freshet.event import json_row
from freshet.receipt import Receipt
from lake.current import CurrentState
from lake.erase import refuse_unfinished
from lake.keys import KeyIndex
from lake.lake import TOMBSTONE_ROWS_MAX
from lake.ledger import ContextPool, metered
from lake.log import Kind, LoggedTruncation
from lake.replay import Again, Landed, Progress, change_log_keys, change_log_object, logged, record
from lake.snapshot import CommitConflictError
from lake.spec import TableSpec, rows_spec, tombstones_spec
from lake.steps import no_conflict, no_step
from lake.table import FILE_ROWS_MAX, KeyedTable, Rewrite, View
from lake.tombstones import floor_of
from lake.vacuum import COMMIT_MAX

# Each lost attempt costs what came meanwhile, not the table: as patient as any writer.
ATTEMPTS_MAX = 40
_PAUSE_S, _PAUSE_S_MAX = 0.02, 2.0
# Larger than a replay's: a shadow has no readers, and each chunk rewrites files all over it.
CHUNK_EVENTS = 50_000
# Files held in memory at once while they are copied into the live tables' folders.
_THREADS = 2
# Vacuum expects a file to be committed this soon after it was written; half of it keeps well away.
_COPY_AGE_MAX = COMMIT_MAX / 2
KEYS_NAMED = 5


class RebuildStep(StrEnum):
    """A point reached. Tests kill the run at each; another run must end as if none had been."""

    SHADOW_MADE = "shadow_made"
    CHUNK_MERGED = "chunk_merged"
    VIEWED = "viewed"
    CAUGHT_UP = "caught_up"
    COPIED = "copied"
    TOMBSTONES_SWAPPED = "tombstones_swapped"
    ROWS_SWAPPED = "rows_swapped"
    SETTLED = "settled"
    RECORDED = "recorded"
    DROPPED = "dropped"


class NotInLogError(TerminalError):
    """Live rows that the change log does not explain: a rebuild would lose them."""

    def __init__(self, table: str, rows: int, some: tuple[str, ...]) -> None:
        self.table, self.rows, self.some = table, rows, some
        super().__init__(
            f"table {table!r}: {rows:,} rows are not in the change log ({'; '.join(some)}), "
            "perhaps because it has expired; --force rebuilds without them"
        )


class ShadowTakenError(TerminalError):
    """Another run rebuilds the same table."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(f"table {table!r}: another run rebuilds it; let that end, or run again")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild came to: changes read from the log, rows before and after, attempts."""

    table: str
    changes: int
    rows_before: int
    rows_after: int
    tombstones: int
    kept_tombstones: int
    attempts: int
    snapshot_id: int | None


def rebuild(
    again: Again,
    contract: type[Contract],
    *,
    force: bool = False,
    on_step: Callable[[RebuildStep], None] = lambda _: None,
    wait: Callable[[float], object] = time.sleep,
    progress: Progress = lambda _: None,
    file_rows_max: int = FILE_ROWS_MAX,
) -> Rebuilt:
    """Make the table anew from its change log and swap it in.

    Raises `NotInLogError` unless `force`, `UnreadableEventError`, `ShadowTakenError`,
    `ErasureUnfinishedError`, `ConflictError` (transient), and what `Lake.apply` raises. Then the
    table is as it was.
    """
    began = again.now()
    with metered() as meter, _Shadow(again, contract, file_rows_max) as shadow:
        # After the shadow was made: an erasure that begins now finds it, and refuses.
        refuse_unfinished(again.lake.objects, contract.table)
        run = _Run(again, contract, shadow, on_step, progress)
        on_step(RebuildStep.SHADOW_MADE)
        done = run.settle(force=force, wait=wait)
        on_step(RebuildStep.SETTLED)
        name = f"rebuild-{contract.table}-{done.snapshot_id}"
        landed = {
            contract.table: Landed(_grown(done.rows_after - done.rows_before), done.snapshot_id)
        }
        record(again, name, Kind.REBUILD, landed, began=began, meter=meter)
        on_step(RebuildStep.RECORDED)
    on_step(RebuildStep.DROPPED)
    return done


def _grown(rows: int) -> Receipt:
    """Rows that came back or went, as the books want them."""
    came = max(rows, 0)
    return Receipt(received=came, inserted=came, retracted=max(-rows, 0))


class _Shadow:
    """Tables of another name that hold the rebuilt state; dropped at the end, with their files."""

    def __init__(self, again: Again, contract: type[Contract], file_rows_max: int) -> None:
        live = again.lake.current(contract.table).rows.view().table
        self.catalog, self._database = live.catalog, live.name()[0]
        self._pool = ContextPool(_THREADS, thread_name_prefix="rebuild")
        self._store, self.files = again.lake.objects, again.lake.files
        self._contract, self._index = contract, KeyIndex()
        self._specs = [
            replace(spec(contract), name=f"{contract.table}__rebuild{end}")
            for spec, end in ((rows_spec, ""), (tombstones_spec, "_tombstones"))
        ]
        self._file_rows_max = file_rows_max
        self._uuids: list[str] = []

    def __enter__(self) -> Self:
        for spec in self._specs:
            self._drop(spec.name)
        rows, dead = self._specs
        kept = [*rows.key, VERSION, POSITION]
        self.rows = self._table(rows, self._file_rows_max, kept)
        self.tombstones = self._table(dead, TOMBSTONE_ROWS_MAX, dead.schema.names)
        self._uuids = [_uuid(table.view()) for table in (self.rows, self.tombstones)]
        self.state = CurrentState(
            self.rows,
            self.tombstones,
            wait=lambda _: None,
            on_step=no_step,
            on_conflict=no_conflict,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self._pool.shutdown()
        # A fault that may pass, or a bug, leaves what it left to the next run.
        if kind is None or issubclass(kind, TerminalError):
            for spec, made in zip(self._specs, self._uuids, strict=True):
                self._drop(spec.name, made)

    def views(self) -> tuple[View, View]:
        """Rows and tombstones as rebuilt so far. Raises `ShadowTakenError`."""
        views = self.rows.view(), self.tombstones.view()
        if [_uuid(view) for view in views] != self._uuids:
            raise ShadowTakenError(self._contract.table)
        return views

    def map(self, one: Callable[[DataFile], DataFile], files: Iterable[DataFile]) -> list[DataFile]:
        """Do something with each file, a few at a time."""
        return list(self._pool.map(one, files))

    def _table(self, spec: TableSpec, file_rows_max: int, kept: list[str]) -> KeyedTable:
        return KeyedTable(
            spec,
            catalog=self.catalog,
            database=self._database,
            files=self.files,
            pool=self._pool,
            index=self._index,
            file_rows_max=file_rows_max,
            keep_columns=kept,
        )

    def _drop(self, name: str, made: str | None = None) -> None:
        """Drop a table and delete its files; only the one that was made, where that is said."""
        with suppress(NoSuchTableError):
            table = self.catalog.load_table((self._database, name))
            if made is not None and str(table.metadata.table_uuid) != made:
                return  # another run's by now
            place = self.files.key(f"{table.location()}/")
            with suppress(NoSuchTableError):
                self.catalog.drop_table((self._database, name))
            for key in list(self._store.list(place)):
                self._store.delete(key)


def _uuid(view: View) -> str:
    return str(view.table.metadata.table_uuid)


class _Run:
    """One rebuild: what it has read of the log, and what it has copied."""

    def __init__(
        self,
        again: Again,
        contract: type[Contract],
        shadow: _Shadow,
        on_step: Callable[[RebuildStep], None],
        progress: Progress,
    ) -> None:
        self._again, self._contract, self._shadow = again, contract, shadow
        self._step, self._progress = on_step, progress
        self._live = again.lake.current(contract.table)
        self._read: set[str] = set()
        self._changes = self._kept = self._rows = self._tombstones = 0
        self._snapshot_id: int | None = None
        # Copies in the live tables' folders by their shadow file; all ever written, and committed.
        self._copies: dict[str, DataFile] = {}
        self._oldest: datetime | None = None
        self._written: set[str] = set()
        self._used: set[str] = set()

    def settle(self, *, force: bool, wait: Callable[[float], object]) -> Rebuilt:
        """Catch up and swap until no writer came in between."""
        self._catch_up()
        before = None
        for attempt in range(ATTEMPTS_MAX):
            rows_view, tombstones_view = self._live.rows.view(), self._live.tombstones.view()
            before = _records(rows_view.files) if before is None else before
            self._step(RebuildStep.VIEWED)
            # The log after the views: it holds what they show.
            self._catch_up()
            self._keep_tombstones(tombstones_view)
            if attempt == 0 and not force:
                self._require_logged(rows_view)
            self._step(RebuildStep.CAUGHT_UP)
            if self._swapped(rows_view, tombstones_view):
                self._discard_copies()
                return self._rebuilt(before, attempt + 1)
            self._progress(f"{self._contract.table}: others committed meanwhile; catching up")
            pause = min(_PAUSE_S_MAX, _PAUSE_S * 2**attempt)
            wait(random.uniform(0, pause))  # noqa: S311 - jitter, not secrecy
        raise ConflictError(self._contract.table, ATTEMPTS_MAX)

    def _swapped(self, rows_view: View, tombstones_view: View) -> bool:
        try:
            return self._swap(rows_view, tombstones_view)
        except CommitConflictError:
            return False

    def _rebuilt(self, rows_before: int, attempts: int) -> Rebuilt:
        return Rebuilt(
            self._contract.table,
            self._changes,
            rows_before,
            self._rows,
            self._tombstones,
            self._kept,
            attempts,
            self._snapshot_id,
        )

    def _catch_up(self) -> None:
        """Merge the log objects that have come since the last time into the shadow."""
        table, events = self._contract.table, list[PlacedEvent]()
        ends: list[LoggedTruncation] = []
        for key in change_log_keys(self._again.lake, table):
            if key in self._read:
                continue
            parts = logged(self._again, self._contract, change_log_object(self._again.lake, key))
            events += [PlacedEvent(one.event, one.place.position) for one in parts.events]
            ends += parts.truncations
            self._read.add(key)
            if len(events) >= CHUNK_EVENTS:
                self._merge(events, ends)
                events, ends = [], []
                self._progress(f"{table}: {self._changes:,} logged changes merged")
        self._merge(events, ends)

    def _merge(self, events: list[PlacedEvent], ends: list[LoggedTruncation]) -> None:
        note = {"freshet.rebuild-of": self._contract.table}
        for end in ends:
            # Of the live table, too: its floor is not in its files. There already, as a rule.
            for state in (self._live, self._shadow.state):
                state.truncate(end.version, end.place.position, note)
        if events:
            self._shadow.state.apply(changes_table(self._contract, events), note)
        self._changes += len(events) + len(ends)
        if events or ends:
            self._step(RebuildStep.CHUNK_MERGED)

    def _keep_tombstones(self, view: View) -> None:
        """Take over live tombstones that nothing in the log explains."""
        schema = self._shadow.rows.spec.schema
        wanted = changes_schema(schema, self._contract.key)
        for _, rows in self._live.tombstones.read_files(view):
            strange = rows.filter(pa.array(self._unexplained(rows), pa.bool_()))
            # Version 0 stands for no delete at all: patches wait there, and those are in the log.
            strange = strange.filter(pc.greater(strange.column(VERSION), 0))
            if not strange.num_rows:
                continue
            deletes = pa.table(
                [_delete_column(strange, column, self._contract.key) for column in wanted],
                schema=wanted,
            )
            self._shadow.state.apply(deletes, {"freshet.rebuild-of": self._contract.table})
            self._kept += strange.num_rows

    def _require_logged(self, view: View) -> None:
        """Raise `NotInLogError` for live rows that the rebuilt state knows nothing as new of."""
        lost, some = 0, list[str]()
        for _, rows in self._live.rows.read_files(view):
            strange = rows.filter(pa.array(self._unexplained(rows), pa.bool_()))
            lost += strange.num_rows
            for row in strange.slice(0, KEYS_NAMED - len(some)).to_pylist():
                key = json_row({column: row[column] for column in self._contract.key})
                some.append(f"{','.join(map(str, key.values()))} at version {row[VERSION]}")
        if lost:
            raise NotInLogError(self._contract.table, lost, tuple(some))

    def _unexplained(self, rows: pa.Table) -> list[bool]:
        """Of each live row or tombstone: whether the shadow knows nothing as new of its key."""
        keys = key_column(rows, self._contract.key).combine_chunks()
        versions = rows.column(VERSION).to_pylist()
        rows_view, tombstones_view = self._shadow.views()
        # What a truncation has ended is explained, too.
        known = [floor_of(tombstones_view)[0]] * len(keys)
        for table, view in (
            (self._shadow.rows, rows_view),
            (self._shadow.tombstones, tombstones_view),
        ):
            located = table.locate(view, keys)
            found = located.rows.column(VERSION).to_pylist() if located.key_at else []
            for at, version in zip(located.key_at, found, strict=True):
                known[at] = max(known[at], version)
        return [version > newest for version, newest in zip(versions, known, strict=True)]

    def _swap(self, rows_view: View, tombstones_view: View) -> bool:
        """Tombstones, then rows, then a look at what others did meanwhile: False, if anything."""
        live = self._live
        shadow_rows, shadow_tombstones = self._shadow.views()
        dead = self._copied(tombstones_view, self._shadow.tombstones, shadow_tombstones)
        rows = self._copied(rows_view, self._shadow.rows, shadow_rows)
        self._step(RebuildStep.COPIED)
        note = {"freshet.tombstones-of": live.rows.spec.name, "freshet.rebuilt": "true"}
        seen = self._swap_one(live.tombstones, tombstones_view, dead, note)
        self._step(RebuildStep.TOMBSTONES_SWAPPED)
        grown = _grown(_records(rows) - _records(rows_view.files)).to_dict()
        receipt = {f"freshet.{name}": str(count) for name, count in grown.items()}
        note = receipt | {"freshet.rebuilt": "true"}
        self._snapshot_id = self._swap_one(live.rows, rows_view, rows, note)
        self._step(RebuildStep.ROWS_SWAPPED)
        self._rows, self._tombstones = _records(rows), _records(dead)
        return live.tombstones.view().snapshot_id == seen

    def _swap_one(
        self, table: KeyedTable, view: View, files: list[DataFile], note: dict[str, str]
    ) -> int | None:
        """Let the table hold exactly these files, on exactly this view; the snapshot that does."""
        before = {file.file_path for file in view.files}
        after = {file.file_path for file in files}
        if before == after:  # of an attempt before this one
            if table.view().snapshot_id != view.snapshot_id:
                raise CommitConflictError(table.spec.name)
            return view.snapshot_id
        added = tuple(file for file in files if file.file_path not in before)
        snapshot_id = table.commit(view, [Rewrite(tuple(before - after), added, ())], note)
        self._used |= after
        return snapshot_id

    def _copied(self, live: View, shadow: KeyedTable, view: View) -> list[DataFile]:
        """The shadow's files, written into the live table's folder: once, while that is fresh."""
        if self._oldest is None or self._again.now() - self._oldest > _COPY_AGE_MAX:
            self._copies, self._oldest = {}, self._again.now()
        present = {file.file_path for file in live.files}

        def fit(file: DataFile) -> bool:
            """Written, and not yet committed and replaced again."""
            copy = self._copies.get(file.file_path)
            return copy is not None and (
                copy.file_path in present or copy.file_path not in self._used
            )

        def copied(file: DataFile) -> DataFile:
            [(partition, rows)] = shadow.read_files(View(view.table, [file], view.spec))
            copy, content = live.writer.encode(partition, rows, str(uuid.uuid4()))
            self._shadow.files.write(copy.file_path, content)
            return copy

        todo = [file for file in view.files if not fit(file)]
        for file, copy in zip(todo, self._shadow.map(copied, todo), strict=True):
            self._copies[file.file_path] = copy
            self._written.add(copy.file_path)
        return [self._copies[file.file_path] for file in view.files]

    def _discard_copies(self) -> None:
        """Delete copies that no commit has taken: they could hold what was erased meanwhile."""
        for path in sorted(self._written - self._used):
            self._shadow.files.delete(path)


def _records(files: Iterable[DataFile]) -> int:
    return sum(file.record_count for file in files)


def _delete_column(tombstones: pa.Table, column: pa.Field, key: tuple[str, ...]) -> pa.Array:
    """A column of the deletes that tombstones stand for."""
    if column.name in (*key, VERSION, POSITION):
        return tombstones.column(column.name)
    if column.name == DELETED:
        return pa.repeat(pa.scalar(True), len(tombstones))
    return pa.nulls(len(tombstones), column.type)
