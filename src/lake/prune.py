"""Pruning tombstones: those that no late change can need any more go (ADR 0014).

A tombstone keeps late changes from bringing a row back. Late can be what the stream still holds and
what a person replays: beyond that horizon it only costs. How old one is says the tombstone table's
own history: what the newest snapshot that is retained of a horizon ago or before had, exactly so,
was committed before then, unless it went and came again since. Only pruning lets one go that can
come again, so a snapshot from before the last prune says nothing: a table is pruned once in a
horizon at most, and later by up to a day where history keeps no more than midnights. Where it does
not reach that far, nothing is pruned.

What waits for a row that never came is nobody's garbage: it goes to the quarantine first, at its
place in the stream, with the reason `no_row`, and can be replayed from there. A run that was killed
after that leaves the line for the next, which looks what is there already.

Files are looked at one by one, those that came since some at a time: memory does not grow with the
table, but with what waits in vain.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.manifest import DataFile

from freshet.arrow import (
    PATCHES,
    POSITION,
    VERSION,
    PlacedEvent,
    changes_table,
    key_column,
    renamed,
)
from freshet.clock import micros
from freshet.contract import Contract
from freshet.event import ChangeEvent, Op, key_text, parse_key_text
from freshet.patch import Patch, deleted, join, patches_of, value_of_json
from freshet.wire import encode_event
from lake.compaction import ROUNDS_MAX
from lake.lake import Lake
from lake.log import (
    CHANGE_LOG,
    QUARANTINE,
    RESOLUTIONS,
    LoggedEvent,
    Place,
    QuarantinedLine,
    Verdict,
)
from lake.retention import RETENTION
from lake.snapshot import CommitConflictError
from lake.table import Rewrite, View, may_hold_patches
from lake.tombstones import floor_of
from lake.travel import MAINTAINED, NoSuchMomentError, Past, past, rows_at

# Unless told otherwise: Kinesis keeps a day, or a week where it is asked for it, and a quarantine
# that is looked at each week is replayed within another.
STREAM_RETENTION, REPLAY = timedelta(days=7), timedelta(days=7)
HORIZON = STREAM_RETENTION + REPLAY
# History answers for each midnight of so many days, the first of them perhaps not whole.
HORIZON_MAX = timedelta(days=RETENTION.days - 1)
# Properties of the tombstone table: the sequence number of the commit that pruned it last (a time
# would not do: others commit between the look at the clock and the swap), and of what age.
PRUNED_IN, PRUNED_BEFORE = "freshet.pruned-in", "freshet.pruned-before"
# Files that came since are compared with each that went: as many at once, some 200 MB.
FILES_AT_ONCE = 8
_UNHURRIED_S = 86_400.0
NO_ROW = "no_row"
_SEPARATOR = "\x1e"
# Whose line the log does not hold any more.
_NO_SHARD = "expired"


@dataclass(frozen=True, slots=True)
class Pruned:
    """Tombstones that went (or would), and lines that went to the quarantine with them.

    `unfinished`: the time was over before every file was looked at. What is left is as safe as it
    was, and goes a horizon later.
    """

    tombstones: int = 0
    quarantined: int = 0
    gave_way: bool = False
    unfinished: bool = False


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
        if old is None:
            return Pruned()
        count, waits = 0, list[_Waits]()
        for file, rows in self._aged(view, old):
            count += _count(file, rows)
            waits += self._waiting(view, rows)
        replayed = self._replayed({one.position for one in waits})
        return Pruned(count, len(self._unkept(waits, replayed)))

    def run(self, now: datetime, left_s: Callable[[], float] = lambda: _UNHURRIED_S) -> Pruned:
        """Do it, the quarantine first, with the files there is time for. Raises `StorageError`
        (transient).
        """
        parts: dict[str, _Part] = {}
        quarantined = 0
        for _ in range(ROUNDS_MAX):
            view = self._tombstones.view()
            old = self._old(view, now)
            if old is None:
                return Pruned(0, quarantined)
            self._look_at(view, old, parts, left_s)
            known = [parts[file.file_path] for file in view.files if file.file_path in parts]
            unfinished = len(known) < len(view.files)
            count = sum(part.count for part in known)
            if not count:
                return Pruned(0, quarantined, unfinished=unfinished)
            quarantined += self._quarantine([one for part in known for one in part.waits], old)
            try:
                self._commit(view, known, now)
            except CommitConflictError:
                continue
            return Pruned(count, quarantined, unfinished=unfinished)
        return Pruned(0, quarantined, gave_way=True)

    def _old(self, view: View, now: datetime) -> Past | None:
        """The tombstones of a horizon ago; None where nothing can be said or done."""
        try:
            old = past(view.table, now - self._horizon)
        except NoSuchMomentError:
            return None
        pruned_in = int(view.table.metadata.properties.get(PRUNED_IN, 0))
        if old.snapshot is None or (old.snapshot.sequence_number or 0) < pruned_in:
            return None
        return old

    def _look_at(
        self, view: View, old: Past, parts: dict[str, _Part], left_s: Callable[[], float]
    ) -> None:
        """What comes of each live file, while there is time. Files never change: those looked at
        before another writer was first are not looked at again.
        """
        for file, rows in self._aged(view, old, parts):
            count, waits = _count(file, rows), self._waiting(view, rows)
            rewrite = self._without(view, file, rows) if count else None
            parts[file.file_path] = _Part(count, waits, rewrite)
            if left_s() <= 0:
                return

    def _aged(
        self, view: View, old: Past, known: Collection[str] = ()
    ) -> Iterator[tuple[DataFile, pa.Table | None]]:
        """Each live file but those known, with its rows that were there a horizon ago. None: all
        of them, none of which waits, and which nobody has to read.
        """
        were = {file.file_path for file in old.files}
        live = {file.file_path for file in view.files}
        replaced = [file for file in old.files if file.file_path not in live]
        todo = [file for file in view.files if file.file_path not in known]
        for file in todo:
            if file.file_path in were:
                is_plain = not may_hold_patches(view, file)
                yield file, None if is_plain else rows_at(self._tombstones, view, [file])
        came = [file for file in todo if file.file_path not in were]
        for start in range(0, len(came), FILES_AT_ONCE):
            yield from self._still(view, came[start : start + FILES_AT_ONCE], replaced)

    def _still(
        self, view: View, came: Sequence[DataFile], replaced: Sequence[DataFile]
    ) -> Iterator[tuple[DataFile, pa.Table]]:
        """Files that came since, each with the rows that files had which they replaced."""
        if not replaced:
            yield from ((file, self._tombstones.spec.schema.empty_table()) for file in came)
            return
        held = [rows_at(self._tombstones, view, [file]) for file in came]
        texts = [_identity(rows, self._contract.key) for rows in held]
        were = [pa.repeat(pa.scalar(False), len(text)) for text in texts]
        for file in replaced:
            there = _identity(rows_at(self._tombstones, view, [file]), self._contract.key)
            were = [
                pc.or_(was, pc.is_in(text, value_set=there))
                for was, text in zip(were, texts, strict=True)
            ]
        yield from (
            (file, rows.filter(was)) for file, rows, was in zip(came, held, were, strict=True)
        )

    def _commit(self, view: View, parts: Sequence[_Part], now: datetime) -> None:
        rewrites = [part.rewrite for part in parts if part.rewrite is not None]
        properties = {
            PRUNED_IN: str(view.table.metadata.next_sequence_number()),
            PRUNED_BEFORE: str(micros(now - self._horizon) // 1000),
        }
        count = sum(part.count for part in parts)
        summary = {MAINTAINED: f"pruned {count}", "freshet.tombstones-of": self._contract.table}
        self._tombstones.commit(view, rewrites, summary, properties=properties)

    def _without(self, view: View, file: DataFile, rows: pa.Table | None) -> Rewrite:
        if rows is None or rows.num_rows == file.record_count:
            return Rewrite((file.file_path,), (), ())
        gone = _identity(rows, self._contract.key)

        def keep(all_rows: pa.Table) -> pa.Table:
            is_gone = pc.is_in(_identity(all_rows, self._contract.key), value_set=gone)
            return all_rows.filter(pc.invert(is_gone))

        return self._tombstones.remake(view, [file], keep, 1)

    def _waiting(self, view: View, gone: pa.Table | None) -> list[_Waits]:
        """Patches among these tombstones that still wait, by the event that brought them."""
        if gone is None:
            return []
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

    def _quarantine(self, waits: Sequence[_Waits], old: Past) -> int:
        """Write what waits to the quarantine; how many lines were not there before."""
        replayed = self._replayed({one.position for one in waits})
        waits = self._unkept(waits, replayed)
        if not waits:
            return 0
        assert old.committed_at is not None, "it has a snapshot"
        logged = self._logged({one.position for one in waits})
        again: dict[str, datetime] = {}
        for (_, position, _), at in sorted(replayed.items(), key=itemgetter(1)):
            again[position] = at + self._horizon
        lines = [
            self._line(one, logged.get(one.position), again.get(one.position), old.committed_at)
            for one in waits
        ]
        self._lake.keep(_batch(self._contract.table, lines), [], lines)
        return len(lines)

    def _replayed(self, positions: set[str]) -> dict[tuple[str, str, date], datetime]:
        """When lines at some positions were replayed, by shard, position and day of arrival."""
        found: dict[tuple[str, str, date], datetime] = {}
        for part in self._of_log(RESOLUTIONS, _REPLAYED, "resolution", Verdict.REPLAYED, positions):
            found |= {_named(row): row["resolved_at"] for row in part}
        return found

    def _unkept(
        self, waits: Sequence[_Waits], replayed: Collection[tuple[str, str, date]]
    ) -> list[_Waits]:
        """Those of which the quarantine has no line yet. What waits although its line was replayed
        has none: that line is closed.
        """
        positions = {one.position for one in waits}
        kept = set[tuple[str, str]]()
        for part in self._of_log(QUARANTINE, _KEPT, "reason", NO_ROW, positions):
            for line in part:
                if _named(line) not in replayed:
                    key = renamed(json.loads(line["data"])["key"], self._contract.former)
                    kept.add((key_text(self._contract, key), line["position"]))
        return [
            one for one in waits if (key_text(self._contract, one.key), one.position) not in kept
        ]

    def _of_log(
        self, log: str, columns: Sequence[str], name: str, value: str, positions: set[str]
    ) -> Iterator[list[dict[str, Any]]]:
        """Lines of a log at some positions, where a column has a value. Reads all of a table's, if
        there are any.
        """
        wanted = pa.array(sorted(positions), pa.string())
        for part in self._lake.log(log, self._contract.table, columns) if positions else ():
            there = pc.is_in(part.column("position"), value_set=wanted)
            yield part.filter(pc.and_(there, pc.equal(part.column(name), value))).to_pylist()

    def _logged(self, positions: set[str]) -> dict[str, dict[str, Any]]:
        """The lines of the change log at some places. Reads all of a table's log, for the rare."""
        if not positions:
            return {}
        wanted, found = pa.array(sorted(positions), pa.string()), dict[str, dict[str, Any]]()
        for part in self._lake.log(CHANGE_LOG, self._contract.table, _COLUMNS):
            there = pc.is_in(part.column("position"), value_set=wanted)
            found |= {row["position"]: row for row in part.filter(there).to_pylist()}
            if len(found) == len(positions):
                break
        return found

    def _line(
        self,
        waits: _Waits,
        logged: dict[str, Any] | None,
        again: datetime | None,
        committed_at: datetime,
    ) -> QuarantinedLine:
        types = {field.name: field.type for field in self._rows.spec.schema}
        # The log may have expired: then what waits is all that is known, and that it arrived before
        # it was committed.
        nobody: dict[str, Any] = dict.fromkeys(_COLUMNS) | {
            "event_id": f"{NO_ROW}-{waits.position}",
            "source": "freshet/prune",
            "shard_id": _NO_SHARD,
            "sequence_number": "0",
            "record_index": 0,
            "position": waits.position,
            "arrived_at": committed_at,
            "accepted_at": committed_at,
        }
        # One that was replayed and waited again is another line to readers: another day's.
        told = (logged or nobody) | ({"arrived_at": again} if again else {})
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
            accepted_at=told["accepted_at"],
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What comes of one live file: rows that go, what waits among them, the file without them."""

    count: int
    waits: Sequence[_Waits]
    rewrite: Rewrite | None


def _count(file: DataFile, rows: pa.Table | None) -> int:
    return int(file.record_count) if rows is None else rows.num_rows


def _named(line: Mapping[str, Any]) -> tuple[str, str, date]:
    """What tells a line from others, to readers of the quarantine and of resolutions."""
    return line["shard_id"], line["position"], line["arrived_at"].date()


_PLACE = ("shard_id", "sequence_number", "record_index", "position", "arrived_at")
_COLUMNS = (*_PLACE, "event_id", "source", "occurred_at", "accepted_at")
_KEPT = ("shard_id", "position", "arrived_at", "reason", "data")
_REPLAYED = ("shard_id", "position", "arrived_at", "resolution", "resolved_at")


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
