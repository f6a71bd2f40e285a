"""Pruning tombstones: those that no late change can need any more go (ADR 0014).

A tombstone keeps late changes from bringing a row back. Late can be what the stream still holds and
what a person replays: beyond that horizon it only costs. How old one is says the tombstone table's
own history: what the snapshot that was current a horizon ago had, exactly so, was committed before
then. A table is pruned once in a horizon at most, so that a tombstone that went and came again is
not taken for an old one. Where history does not reach that far, nothing is pruned.

What waits for a row that never came is nobody's garbage: it goes to the quarantine first, at its
place in the stream, with the reason `no_row`, and can be replayed from there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile

from freshet.arrow import PATCHES, POSITION, VERSION, PlacedEvent, changes_table, key_column
from freshet.clock import micros
from freshet.contract import Contract
from freshet.event import ChangeEvent, Op, key_text, parse_key_text
from freshet.patch import Patch, deleted, join, patches_of, value_of_json
from freshet.wire import encode_event
from lake.compaction import ROUNDS_MAX
from lake.lake import Lake
from lake.log import CHANGE_LOG, LoggedEvent, Place, QuarantinedLine
from lake.retention import RETENTION
from lake.snapshot import CommitConflictError
from lake.table import Rewrite, View
from lake.tombstones import floor_of
from lake.travel import MAINTAINED, NoSuchMomentError, Past, past, rows_at

# Unless told otherwise: Kinesis keeps a day, or a week where it is asked for it, and a quarantine
# that is looked at each week is replayed within another.
STREAM_RETENTION, REPLAY = timedelta(days=7), timedelta(days=7)
HORIZON = STREAM_RETENTION + REPLAY
# History answers for each midnight of so many days, the first of them perhaps not whole.
HORIZON_MAX = timedelta(days=RETENTION.days - 1)
# Properties of the tombstone table: when it was pruned, and of what age.
PRUNED_AT, PRUNED_BEFORE = "freshet.pruned-at", "freshet.pruned-before"
NO_ROW = "no_row"
_SEPARATOR = "\x1e"
# Whose line the log does not hold any more.
_NO_SHARD = "expired"


@dataclass(frozen=True, slots=True)
class Pruned:
    """Tombstones that went (or would), and lines that went to the quarantine with them."""

    tombstones: int = 0
    quarantined: int = 0
    gave_way: bool = False


def pruned_before(view: View) -> datetime | None:
    """Deletes that arrived before this may have no tombstone; None where nothing was pruned.

    A replay of changes of that time must take `forgotten` deletes along.
    """
    text = view.table.metadata.properties.get(PRUNED_BEFORE)
    return None if text is None else datetime.fromtimestamp(int(text) / 1000, UTC)


def forgotten(
    lake: Lake, contract: type[Contract], events: Sequence[LoggedEvent]
) -> list[PlacedEvent]:
    """Logged deletes of the keys of these events, if a tombstone of that time may have been pruned.

    Reads the table's log, where any event is that old.
    """
    before = pruned_before(lake.current(contract.table).tombstones.view())
    if before is None or all(one.place.arrived_at >= before for one in events):
        return []
    keys = pa.array(sorted({key_text(contract, one.event.key) for one in events}), pa.string())
    found = []
    for part in lake.log(CHANGE_LOG, contract.table, [*_COLUMNS, "op", "key", "version"]):
        is_delete = pc.equal(part.column("op"), Op.DELETE.value)
        wanted = pc.and_(is_delete, pc.is_in(part.column("key"), value_set=keys))
        found += [_delete(contract, row) for row in part.filter(wanted).to_pylist()]
    return found


def bury_again(lake: Lake, events: Sequence[LoggedEvent]) -> None:
    """Lay the tombstones of these events' keys once more where they may have been pruned: merged
    after that, old events bring no row back that is gone.
    """
    for table in sorted({one.event.table for one in events}):
        contract = lake.tables[table]
        deletes = forgotten(lake, contract, [one for one in events if one.event.table == table])
        if deletes:
            lake.apply(table, changes_table(contract, deletes), {"freshet.buried-again": table})


def _delete(contract: type[Contract], row: Mapping[str, Any]) -> PlacedEvent:
    event = ChangeEvent(
        table=contract.table,
        op=Op.DELETE,
        key=parse_key_text(contract, row["key"]),
        version=row["version"],
        after=None,
        before=None,
        event_id=row["event_id"],
        source=row["source"],
        occurred_at=row["occurred_at"],
        accepted_at=row["accepted_at"],
    )
    return PlacedEvent(event, row["position"])


class Prune:
    """Prunes the tombstones of one contract."""

    def __init__(self, lake: Lake, contract: type[Contract], horizon: timedelta) -> None:
        assert timedelta() < horizon <= HORIZON_MAX, "settings check it"
        self._lake, self._contract, self._horizon = lake, contract, horizon
        current = lake.current(contract.table)
        self._rows, self._tombstones = current.rows, current.tombstones

    def look(self, now: datetime) -> Pruned:
        """What there is to do."""
        view = self._tombstones.view()
        old = self._old(view, now)
        gone = self._gone(view, old)
        return Pruned(gone.num_rows, len(self._waiting(view, gone)))

    def run(self, now: datetime) -> Pruned:
        """Do it: the quarantine first. Raises `StorageError` (transient)."""
        for _ in range(ROUNDS_MAX):
            view = self._tombstones.view()
            old = self._old(view, now)
            gone = self._gone(view, old)
            if not gone.num_rows:
                return Pruned()
            lines = self._lines(self._waiting(view, gone), now)
            if lines:
                self._lake.keep(_batch(self._contract.table, lines), [], lines)
            try:
                self._commit(view, old, gone.num_rows, now)
            except CommitConflictError:
                continue
            return Pruned(gone.num_rows, len(lines))
        return Pruned(gave_way=True)

    def _old(self, view: View, now: datetime) -> Past | None:
        """The tombstones of a horizon ago; None where nothing can be said or done."""
        at = view.table.metadata.properties.get(PRUNED_AT)
        if at is not None and micros(now - self._horizon) // 1000 < int(at):
            return None
        try:
            old = past(view.table, now - self._horizon)
        except NoSuchMomentError:
            return None
        return old if old.snapshot is not None else None

    def _gone(self, view: View, old: Past | None) -> pa.Table:
        parts = [] if old is None else [rows for _, rows in self._aged(view, old)]
        return pa.concat_tables([self._tombstones.spec.schema.empty_table(), *parts])

    def _aged(self, view: View, old: Past) -> list[tuple[DataFile, pa.Table]]:
        """Of each live file, the rows that were there a horizon ago."""
        paths = {file.file_path for file in old.files}
        live = {file.file_path for file in view.files}
        replaced = [file for file in old.files if file.file_path not in live]
        known = _identity(rows_at(self._tombstones, view, replaced), self._contract.key)
        aged = []
        for file in view.files:
            rows = rows_at(self._tombstones, view, [file])
            if file.file_path not in paths:
                rows = rows.filter(pc.is_in(_identity(rows, self._contract.key), value_set=known))
            aged.append((file, rows))
        return aged

    def _commit(self, view: View, old: Past | None, count: int, now: datetime) -> None:
        assert old is not None, "something is old"
        rewrites = [
            self._without(view, file, rows) for file, rows in self._aged(view, old) if rows.num_rows
        ]
        cutoff = now - self._horizon
        properties = {
            PRUNED_AT: str(micros(now) // 1000),
            PRUNED_BEFORE: str(micros(cutoff) // 1000),
        }
        summary = {MAINTAINED: f"pruned {count}", "freshet.tombstones-of": self._contract.table}
        self._tombstones.commit(view, rewrites, summary, properties=properties)

    def _without(self, view: View, file: DataFile, rows: pa.Table) -> Rewrite:
        if rows.num_rows == file.record_count:
            return Rewrite((file.file_path,), (), ())
        gone = _identity(rows, self._contract.key)

        def keep(all_rows: pa.Table) -> pa.Table:
            is_gone = pc.is_in(_identity(all_rows, self._contract.key), value_set=gone)
            return all_rows.filter(pc.invert(is_gone))

        return self._tombstones.remake(view, [file], keep, 1)

    def _waiting(self, view: View, gone: pa.Table) -> list[_Waits]:
        """Patches among these tombstones that still wait, by the event that brought them."""
        patched = gone.filter(pc.is_valid(gone.column(PATCHES)))
        if not patched.num_rows:
            return []
        located = self._rows.locate(
            self._rows.view(), key_column(patched, self._contract.key).combine_chunks()
        )
        # With a row, they were joined into it.
        has_row, floor = set(located.key_at), floor_of(view)
        waits = []
        for at, record in enumerate(patched.to_pylist()):
            state = deleted(record[VERSION], record[POSITION], patches_of(record[PATCHES]))
            left = {} if at in has_row else join(state, deleted(*floor)).patches
            events: dict[tuple[int, str], dict[str, Patch]] = {}
            for column, patch in left.items():
                events.setdefault(patch.place, {})[column] = patch
            key = {name: record[name] for name in self._contract.key}
            waits += [_Waits(key, *place, patches) for place, patches in sorted(events.items())]
        return waits

    def _lines(self, waits: Sequence[_Waits], now: datetime) -> list[QuarantinedLine]:
        logged = self._logged({one.position for one in waits})
        return [self._line(one, logged.get(one.position), now) for one in waits]

    def _logged(self, positions: set[str]) -> dict[str, dict[str, Any]]:
        """The lines of the change log at some places. Reads all of a table's log, for the rare."""
        if not positions:
            return {}
        wanted, found = pa.array(sorted(positions), pa.string()), dict[str, dict[str, Any]]()
        for part in self._lake.log(CHANGE_LOG, self._contract.table, _COLUMNS):
            there = pc.is_in(part.column("position"), value_set=wanted)
            found |= {row["position"]: row for row in part.filter(there).to_pylist()}
        return found

    def _line(
        self, waits: _Waits, logged: Mapping[str, Any] | None, now: datetime
    ) -> QuarantinedLine:
        types = {field.name: field.type for field in self._rows.spec.schema}
        # The log may have expired: then what waits is all that is known.
        nobody: dict[str, Any] = dict.fromkeys(_COLUMNS) | {
            "event_id": f"{NO_ROW}-{waits.position}",
            "source": "freshet/prune",
            "shard_id": _NO_SHARD,
            "sequence_number": "0",
            "record_index": 0,
            "position": waits.position,
            "arrived_at": now,
        }
        told = logged or nobody
        event = ChangeEvent(
            table=self._contract.table,
            op=Op.UPDATE,
            key=waits.key,
            version=waits.version,
            after=None,
            before=None,
            event_id=told["event_id"],
            source=told["source"],
            occurred_at=told["occurred_at"],
            accepted_at=told["accepted_at"] or now,
            patch={c: value_of_json(p.value, types[c]) for c, p in waits.patches.items()},
        )
        return QuarantinedLine(
            NO_ROW,
            None,
            f"no row came in {self._horizon.days} days: replay it once the row is there",
            encode_event(event),
            Place(*(told[name] for name in _PLACE)),
            self._contract.table,
        )


@dataclass(frozen=True, slots=True)
class _Waits:
    """The columns that one event changes of a row that is not there."""

    key: dict[str, Any]
    version: int
    position: str
    patches: Mapping[str, Patch]


_PLACE = ("shard_id", "sequence_number", "record_index", "position", "arrived_at")
_COLUMNS = (*_PLACE, "event_id", "source", "occurred_at", "accepted_at")


def _batch(table: str, lines: Sequence[QuarantinedLine]) -> str:
    """Content-made: the same lines again are the same object."""
    places = json.dumps(sorted((one.place.shard_id, one.place.position) for one in lines))
    return f"{NO_ROW}-{table}-{hashlib.blake2b(places.encode(), digest_size=12).hexdigest()}x"


def _identity(rows: pa.Table, key: Sequence[str]) -> pa.Array:
    """A tombstone with all it says, as one text."""
    keys = key_column(rows, key)
    parts = [rows.column(name).cast(pa.string()) for name in (VERSION, POSITION)]
    patches = pc.fill_null(rows.column(PATCHES), "")
    texts = pc.binary_join_element_wise(
        keys.cast(pa.string()), *parts, patches.cast(pa.string()), _SEPARATOR
    )
    return texts.combine_chunks()
