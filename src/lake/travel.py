"""A table's past: its snapshots, the one that was current at a moment, its rows, and what changed
between two.

Snapshots share data files, and a file never changes: what differs between two moments is in the
files that only one of them has, and no other is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from freshet.arrow import key_column
from freshet.clock import micros
from freshet.errors import TerminalError
from freshet.receipt import Receipt
from lake.retention import RETENTION
from lake.snapshot import ManifestReader
from lake.table import KeyedTable, View

Moment = int | datetime
"""A snapshot's id, or an aware instant."""

_READER = ManifestReader()
_LARGEST_ID = (1 << 63) - 1  # Iceberg: a long


class NoSuchMomentError(TerminalError):
    """A moment that a table's history does not reach, or a snapshot that it does not have."""

    def __init__(self, table: str, moment: Moment, oldest: datetime | None) -> None:
        self.table, self.moment, self.oldest = table, moment, oldest
        super().__init__(self._message())

    def _message(self) -> str:
        table, moment, oldest = self.table, self.moment, self.oldest
        asked = f"snapshot {moment}" if isinstance(moment, int) else f"state of {_told(moment)}"
        since = "it has no history" if oldest is None else f"its history begins {_told(oldest)}"
        return f"table {table!r}: there is no {asked}; {since}: `freshet history {table}` lists it"


class NoSuchSnapshotError(NoSuchMomentError):
    """A snapshot that no table has."""

    def __init__(self, snapshot_id: int) -> None:
        super().__init__("*", snapshot_id, None)

    def _message(self) -> str:
        return f"no table has snapshot {self.moment}: `freshet history TABLE` lists a table's"


class StateExpiredError(TerminalError):
    """A state that history may have forgotten: snapshots around that instant have expired.

    `before` and `after` are the nearest that are kept.
    """

    def __init__(self, table: str, moment: datetime, before: Snapshot, after: Snapshot) -> None:
        self.table, self.moment, self.before, self.after = table, moment, before, after
        kept = " or ".join(f"{one.snapshot_id} of {_told(_time(one))}" for one in (before, after))
        super().__init__(
            f"table {table!r}: its state of {_told(moment)} may have expired; nearest are the "
            f"snapshots {kept}: give the id of the one that is meant"
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One snapshot of a table's history.

    `done` are the counts of its receipt that are not zero; `reason` says what made it, where that
    was no batch of the stream. `rows` and `files` are what the table held then.
    """

    snapshot_id: int
    committed_at: datetime
    operation: str
    rows: int
    files: int
    added_files: int
    deleted_files: int
    done: Mapping[str, int]
    batch: str | None
    reason: str | None
    is_current: bool

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; the id is a text, for it does not fit a double."""
        return {
            "snapshot_id": str(self.snapshot_id),
            "committed_at": _told(self.committed_at),
            "operation": self.operation,
            "rows": self.rows,
            "files": self.files,
            "added_files": self.added_files,
            "deleted_files": self.deleted_files,
            "done": dict(self.done),
            "batch": self.batch,
            "reason": self.reason,
            "is_current": self.is_current,
        }


# Marks in a snapshot's summary that say what made it, and how that is told.
ROLLBACK_TO, MAINTAINED = "freshet.rollback-to", "freshet.maintained"
_REASONS = {
    ROLLBACK_TO: "rollback to {}",
    MAINTAINED: "{}",
    "freshet.rebuilt": "rebuild",
    "freshet.tombstones-of": "tombstones",
}


def history(table: Table) -> list[Entry]:
    """Every retained snapshot, oldest first."""
    current = table.metadata.current_snapshot_id
    return [_entry(snapshot, current) for snapshot in _ordered(table)]


def _entry(snapshot: Snapshot, current: int | None) -> Entry:
    summary = snapshot.summary
    told = {} if summary is None else summary.additional_properties
    counts = {name: int(told.get(f"freshet.{name}", 0)) for name in Receipt().to_dict()}
    reasons = [text.format(told[mark]) for mark, text in _REASONS.items() if mark in told]
    return Entry(
        snapshot_id=snapshot.snapshot_id,
        committed_at=_time(snapshot),
        operation="overwrite" if summary is None else summary.operation.value,
        rows=int(told.get("total-records", 0)),
        files=int(told.get("total-data-files", 0)),
        added_files=int(told.get("added-data-files", 0)),
        deleted_files=int(told.get("deleted-data-files", 0)),
        done={name: count for name, count in counts.items() if count},
        batch=told.get("freshet.batch"),
        reason=reasons[0] if reasons else None,
        is_current=snapshot.snapshot_id == current,
    )


@dataclass(frozen=True)
class Past:
    """A table as it was: the snapshot (None: before there was any), its files, its schema.

    `exact` is False where snapshots between this one and the moment asked for have expired; `after`
    is then the next one that is kept.
    """

    snapshot: Snapshot | None
    files: Sequence[DataFile]
    schema: Schema
    exact: bool = True
    after: Snapshot | None = None

    @property
    def committed_at(self) -> datetime | None:
        """When this state began."""
        return None if self.snapshot is None else _time(self.snapshot)


def past(table: Table, moment: Moment, *, now: datetime | None = None) -> Past:
    """The table as it was at a moment. Raises `NoSuchMomentError`.

    With `now`, an instant whose state retention keeps is known to be exact.
    """
    ordered = _ordered(table)
    oldest = _time(ordered[0]) if ordered else None
    if isinstance(moment, int):
        chosen = next((one for one in ordered if one.snapshot_id == moment), None)
        if chosen is None:
            raise NoSuchMomentError(table.name()[-1], moment, oldest)
        return _past(table, chosen)
    before = [one for one in ordered if _time(one) <= moment]
    if not before:
        if ordered and ordered[0].sequence_number != 1:
            raise NoSuchMomentError(table.name()[-1], moment, oldest)
        return Past(None, (), table.schema())
    # Sequence numbers count snapshots: a gap is what has expired.
    after = ordered[len(before)] if len(before) < len(ordered) else None
    is_next = after is None or _number(after) == _number(before[-1]) + 1
    kept = now is not None and RETENTION.promises(_millis(moment), _millis(now))
    return _past(table, before[-1], after=None if is_next or kept else after)


def _past(table: Table, snapshot: Snapshot, *, after: Snapshot | None = None) -> Past:
    schemas = table.schemas()
    schema = schemas.get(snapshot.schema_id or 0, table.schema())
    return Past(snapshot, files_of(table, snapshot), schema, exact=after is None, after=after)


def files_of(table: Table, snapshot: Snapshot) -> list[DataFile]:
    """The data files of one of a table's snapshots."""
    return [
        entry.data_file
        for manifest in snapshot.manifests(table.io)
        for entry in _READER.live_entries(manifest, table.io)
    ]


def rows_at(keyed: KeyedTable, view: View, files: Sequence[DataFile]) -> pa.Table:
    """Rows of data files, whichever snapshot had them, in the columns of today."""
    return keyed.read_all(View(view.table, list(files), view.spec))


class Kind(StrEnum):
    """What became of a row between two moments."""

    INSERTED = "inserted"
    UPDATED = "updated"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One row that differs: `before` and `after` are whole rows (None: there was none)."""

    kind: Kind
    key: Mapping[str, Any]
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None

    def columns(self) -> dict[str, tuple[Any, Any]]:
        """The columns that differ, each with what it was and what it is then."""
        before, after = self.before or {}, self.after or {}
        return {
            name: (before.get(name), after.get(name))
            for name in {**before, **after}
            if not name.startswith("_") and before.get(name) != after.get(name)
        }


@dataclass(frozen=True)
class Diff:
    """Rows that differ between two moments, whole, as tables; of an updated row the `old` and the
    `new` one have the same index.
    """

    key: tuple[str, ...]
    inserted: pa.Table
    deleted: pa.Table
    old: pa.Table
    new: pa.Table
    files_read: int

    def counts(self) -> dict[str, int]:
        """Rows by what became of them."""
        sizes = (self.inserted.num_rows, self.new.num_rows, self.deleted.num_rows)
        return dict(zip((kind.value for kind in Kind), sizes, strict=True))

    def changes(self) -> Iterator[Change]:
        """Row by row: inserted, updated, deleted."""
        for row in _rows(self.inserted):
            yield Change(Kind.INSERTED, self._key(row), None, row)
        for was, row in zip(_rows(self.old), _rows(self.new), strict=True):
            yield Change(Kind.UPDATED, self._key(row), was, row)
        for row in _rows(self.deleted):
            yield Change(Kind.DELETED, self._key(row), row, None)

    def _key(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: row[name] for name in self.key}


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for part in table.to_batches(max_chunksize=10_000):
        yield from part.to_pylist()


def diff(keyed: KeyedTable, view: View, before: Past, after: Past) -> Diff:
    """What differs between two moments, in the columns of today; a row that was only written again
    does not. Memory grows with the files that only one of them has.
    """
    paths = [{file.file_path for file in one.files} for one in (before, after)]
    parts = [
        [file for file in one.files if file.file_path not in other]
        for one, other in ((before, paths[1]), (after, paths[0]))
    ]
    old, new = (rows_at(keyed, view, files).combine_chunks() for files in parts)
    key = keyed.spec.key
    old_keys, new_keys = (key_column(rows, key).combine_chunks() for rows in (old, new))
    # Chunks have been combined, but a column of no rows at all may still be none.
    place = pc.index_in(new_keys, value_set=old_keys)
    is_there = pc.is_valid(place)
    was, now = old.take(place.drop_null()), new.filter(is_there)
    changed = _differ(was, now, [name for name in new.column_names if not name.startswith("_")])
    return Diff(
        key,
        new.filter(pc.invert(is_there)),
        old.filter(pc.invert(pc.is_in(old_keys, value_set=new_keys))),
        was.filter(changed),
        now.filter(changed),
        len(parts[0]) + len(parts[1]),
    )


def _differ(one: pa.Table, other: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    """Row by row: whether any of the columns differs. Null is a value like another."""
    mask = pa.repeat(pa.scalar(False), one.num_rows)
    for name in columns:
        left, right = one.column(name), other.column(name)
        unequal = pc.fill_null(pc.not_equal(left, right), False)
        nulls = pc.xor(pc.is_null(left), pc.is_null(right))
        mask = pc.or_(mask, pc.or_(unequal, nulls))
    return mask


def _ordered(table: Table) -> list[Snapshot]:
    """Retained snapshots in order of commit."""
    ordered = sorted(table.metadata.snapshots, key=_number)
    assert all(a.timestamp_ms <= b.timestamp_ms for a, b in pairwise(ordered)), "time went back"
    return ordered


def _number(snapshot: Snapshot) -> int:
    return snapshot.sequence_number or 0


def _millis(instant: datetime) -> int:
    return micros(instant) // 1000


def _time(snapshot: Snapshot) -> datetime:
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)


def _told(instant: datetime) -> str:
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def moment_of(text: str) -> Moment:
    """A moment as it is written: a snapshot's id, or an ISO 8601 date or time (UTC unless it says
    otherwise), which becomes one in UTC. Raises `ValueError`.
    """
    if text.isascii() and text.isdecimal() and len(text) != len("20101201"):
        number = int(text)
        if number > _LARGEST_ID:
            raise ValueError(f"{text} is no snapshot's id")
        return number
    instant = datetime.fromisoformat(text)
    try:
        return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{text} is in no year of UTC's calendar") from None
