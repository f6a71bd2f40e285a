"""Rollback: a table shows again what a snapshot of it showed, and stays so (ADR 0014).

Not the old files: a row of then is older than what it is to overrule, and the next redelivery, or a
rebuild from the change log, would undo the rollback row by row. So it is made of changes like any
other: for each row that differs, an event above everything known of its key says what it was, or
that it was not. They are logged, then merged in one snapshot, so that tombstones, replays, rebuilds
and `freshet verify` know nothing of rollbacks and are right. What is newer still wins.

What a killed run has logged is a promise: a rebuild keeps it. So the next run merges that first,
whatever state it goes to itself, and compares with what the table shows then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.arrow import PATCHES, VERSION, PlacedEvent, changes_table, key_column, position_of
from freshet.clock import Now, micros
from freshet.contract import Contract
from freshet.event import VERSION_MAX, ChangeEvent, Op, key_text
from freshet.objects import Objects
from freshet.receipt import Receipt
from lake.current import Applied
from lake.erase import refuse_unfinished
from lake.lake import Lake
from lake.ledger import Meter, metered
from lake.log import CHANGE_LOG, RECEIPTS, LoggedEvent, Place, ReceiptRow
from lake.log import Kind as BatchKind
from lake.prune import pruned_before
from lake.replay import Again, Landed, change_log_object, logged, merge_again, record
from lake.table import View
from lake.tombstones import floor_of
from lake.travel import ROLLBACK_TO, Diff, Kind, Moment, Past, StateExpiredError, diff, past

# Who says so, in the log: a shard that no stream has, and the source of its events.
ROLLBACK_SHARD, ROLLBACK_BY = "rollback", "freshet/rollback"
# Sorts before every place of a stream: a change of the source that has the very version that an
# event of ours takes (a counter's next) is newer than it, and wins.
_FIRST = "!"
# What another machine's clock may differ by, and more, for objects that lie by day.
_A_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did (or, asked only, would do), in rows of the table.

    `completed` are earlier ones that were killed, and are completed first: what they logged is not
    in the counts of one that is only asked for. `expired` tells why one to that moment would be
    refused.
    """

    table: str
    to_snapshot_id: int | None
    snapshot_id: int | None
    came_back: int
    restored: int
    removed: int
    receipt: Receipt
    completed: int = 0
    expired: StateExpiredError | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; ids are texts, for they do not fit a double."""
        return {
            "table": self.table,
            "to_snapshot_id": None if self.to_snapshot_id is None else str(self.to_snapshot_id),
            "snapshot_id": None if self.snapshot_id is None else str(self.snapshot_id),
            "came_back": self.came_back,
            "restored": self.restored,
            "removed": self.removed,
            "completed": self.completed,
            "exact": self.expired is None,
        }


class Rollback:
    """Takes one table back to a moment. `by` is who asked."""

    def __init__(
        self,
        lake: Lake,
        contract: type[Contract],
        *,
        now: Now,
        by: str,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._lake, self._contract, self._now, self._by = lake, contract, now, by
        self._step, self._table = on_step, contract.table
        self._current = lake.current(contract.table)
        self._objects: Objects = lake.objects
        # What comes again is in the log, decoded long ago.
        self._again = Again(lake, lake.tables, lambda _data, _at: (), now, by)

    def look(self, moment: Moment) -> RolledBack:
        """What there is to do. Changes nothing. Raises `NoSuchMomentError`."""
        to, expired = self._target(moment)
        done = Applied(Receipt(), None)
        return self._told(to, self._differing(to), done, len(self._pending()), expired)

    def run(self, moment: Moment) -> RolledBack:
        """Do it; nothing, where the table shows that state already.

        Killed before it has ended, it is completed by the next run, to whatever moment, or by a
        replay or rebuild of what was logged. Memory grows with the rows that differ. Raises
        `NoSuchMomentError`, `StateExpiredError`, `ErasureUnfinishedError`, `UnreadableEventError`,
        and as `Lake.apply`.
        """
        refuse_unfinished(self._objects, self._table)
        # Before anything is merged: that may be what lets the wanted snapshot expire.
        to, expired = self._target(moment)
        if expired is not None:
            raise expired
        pending = self._pending()
        for batch, key in pending.items():
            self._complete(batch, key)
        found, applied = self._go(to)
        # One that began meanwhile has ended history, and may have missed what was logged since.
        refuse_unfinished(self._objects, self._table)
        return self._told(to, found, applied, len(pending))

    def _go(self, to: Past) -> tuple[Diff, Applied]:
        began = self._now()
        with metered() as meter:
            found = self._differing(to)
            events = self._events(found, self._known(found), self._now())
            if not events:
                return found, Applied(Receipt(), None)
            batch = f"{self._begins}{micros(events[0].place.arrived_at)}us"
            self._lake.keep(batch, events, [])
            self._step("logged")
            applied = self._apply(batch, events, to)
            self._step("applied")
        self._record(batch, applied, to, began, meter)
        return found, applied

    def _target(self, moment: Moment) -> tuple[Past, StateExpiredError | None]:
        """The state to go back to, or the one before it and why that is not what was asked for."""
        to = past(self._current.rows.view().table, moment, now=self._now())
        if isinstance(moment, int) or to.snapshot is None or to.after is None:
            return to, None
        return to, StateExpiredError(self._table, moment, to.snapshot, to.after)

    def _differing(self, to: Past) -> Diff:
        """What differs now from the state to go back to."""
        rows = self._current.rows
        view = rows.view()
        now = Past(view.table.current_snapshot(), view.files, view.table.schema())
        return diff(rows, view, now, to)

    @property
    def _begins(self) -> str:
        """How the names of this table's rollbacks begin, as batches."""
        return f"rollback-{self._table}-"

    def _pending(self) -> dict[str, str]:
        """Rollbacks that were logged and have no receipt, oldest first: batch and log object.

        Names only: one request for each day of the log, in parallel, another where it has any.
        """
        folder = f"{CHANGE_LOG}/table_name={self._table}/"
        oldest = next(iter(self._objects.list(folder)), None)
        if oldest is None:
            return {}
        found = self._named(folder, _day_of(oldest))
        if not found:
            return {}
        done = self._named(f"{RECEIPTS}/", min(map(_day_of, found.values())) - _A_DAY)
        return {batch: key for batch, key in found.items() if batch not in done}

    def _named(self, folder: str, since: date) -> dict[str, str]:
        """The objects of rollbacks in a folder that lies by day, by the batch they are of."""
        until = self._now().astimezone(UTC).date() + _A_DAY
        days = [since + n * _A_DAY for n in range((until - since).days + 1)]

        def of_day(day: date) -> Sequence[str]:
            return list(self._objects.list(f"{folder}ingest_date={day}/{self._begins}"))

        keys = (key for part in self._lake.pool.map(of_day, days) for key in part)
        return {key.rpartition("/")[2].rpartition("-")[0]: key for key in keys}

    def _complete(self, batch: str, key: str) -> None:
        """Merge what a run logged that was killed then, and give it its receipt."""
        began = self._now()
        with metered() as meter:
            parts = logged(self._again, self._contract, change_log_object(self._lake, key))
            landed = merge_again(self._again, parts.events, (), {"freshet.batch": batch})
        # Of one whose lines were all erased, too: it is not looked at again.
        landed = landed or {self._table: Landed(Receipt(), None)}
        record(self._again, batch, BatchKind.ROLLBACK, landed, began=began, meter=meter)
        self._step("completed")

    def _known(self, found: Diff) -> dict[str, int]:
        """The newest version known of each key that differs: of its row, now and then, of patches,
        of its tombstone, pruned or not, and of the table's truncation.
        """
        view = self._current.tombstones.view()
        keys = pa.concat_arrays([self._keys(part) for part in (found.inserted, found.new)])
        keys = pa.concat_arrays([keys, self._keys(found.deleted)])
        located = self._current.tombstones.locate(view, keys)
        graves = located.rows if located.key_at else found.inserted.slice(0, 0)
        known: dict[str, int] = {}
        for part in (found.inserted, found.old, found.new, found.deleted, graves):
            for text, version in zip(self._texts(part), _versions(part), strict=True):
                known[text] = max(known.get(text, floor_of(view)[0]), version)
        for text, version in self._logged_of(found.inserted, view):
            known[text] = max(known[text], version)
        return known

    def _logged_of(self, rows: pa.Table, tombstones: View) -> Iterator[tuple[str, int]]:
        """The newest version that the log has of each of these rows, where their tombstones may
        have been pruned: a replay lays those again. Reads the table's log then.
        """
        if pruned_before(tombstones) is None or not rows.num_rows:
            return
        names = rows.select(self._contract.key).to_pylist()
        texts = {
            key_text(self._contract, name): text
            for name, text in zip(names, self._texts(rows), strict=True)
        }
        wanted = pa.array(sorted(texts), pa.string())
        for part in self._lake.log(CHANGE_LOG, self._table, ["key", "version"]):
            of_these = part.filter(pc.is_in(part.column("key"), value_set=wanted))
            columns = (of_these.column(name).to_pylist() for name in ("key", "version"))
            for key, version in zip(*columns, strict=True):
                yield texts[key], version

    def _keys(self, rows: pa.Table) -> pa.Array:
        keys = key_column(rows, self._contract.key)
        return pa.concat_arrays(keys.chunks) if keys.num_chunks else pa.array([], keys.type)

    def _texts(self, rows: pa.Table) -> list[str]:
        return [str(value) for value in key_column(rows, self._contract.key).to_pylist()]

    def _events(self, found: Diff, known: Mapping[str, int], at: datetime) -> list[LoggedEvent]:
        # Rows to insert are those that only the wanted state has.
        texts = [
            *self._texts(found.inserted),
            *self._texts(found.new),
            *self._texts(found.deleted),
        ]
        return [
            self._event(change.key, None if change.kind is Kind.DELETED else change.after, v, n, at)
            for n, (change, v) in enumerate(
                zip(found.changes(), (known[text] for text in texts), strict=True)
            )
        ]

    def _event(
        self,
        key: Mapping[str, Any],
        after: Mapping[str, Any] | None,
        known: int,
        index: int,
        at: datetime,
    ) -> LoggedEvent:
        names = [column.name for column in self._contract.columns]
        number = str(micros(at))
        event = ChangeEvent(
            table=self._table,
            op=Op.DELETE if after is None else Op.UPDATE,
            key=dict(key),
            version=min(known + 1, VERSION_MAX),
            after=None if after is None else {name: after[name] for name in names},
            before=None,
            event_id=f"rollback-{number}-{index}",
            source=ROLLBACK_BY,
            occurred_at=None,
            accepted_at=at,
        )
        position = _FIRST + position_of(number, index)
        return LoggedEvent(event, Place(ROLLBACK_SHARD, number, index, position, at))

    def _apply(self, batch: str, logged: Iterable[LoggedEvent], to: Past) -> Applied:
        placed = [PlacedEvent(one.event, one.place.position) for one in logged]
        told = "nothing" if to.snapshot is None else str(to.snapshot.snapshot_id)
        note = {"freshet.batch": batch, ROLLBACK_TO: told}
        return self._lake.apply(self._table, changes_table(self._contract, placed), note)

    def _record(
        self, batch: str, applied: Applied, to: Past, began: datetime, meter: Meter
    ) -> None:
        told = {
            "by": self._by,
            "to_snapshot_id": None if to.snapshot is None else str(to.snapshot.snapshot_id),
        }
        row = ReceiptRow(
            batch=batch,
            kind=BatchKind.ROLLBACK,
            receipt=applied.receipt,
            started_at=began,
            committed_at=self._now(),
            table_name=self._table,
            contract_version=self._contract.contract_version,
            snapshot_id=applied.snapshot_id,
            bytes_read=meter.bytes_read,
            bytes_written=meter.bytes_written,
            requests=meter.requests,
            note=json.dumps(told),
        )
        self._lake.record([row])
        self._step("recorded")

    def _told(
        self,
        to: Past,
        found: Diff,
        applied: Applied,
        completed: int,
        expired: StateExpiredError | None = None,
    ) -> RolledBack:
        counts = found.counts()
        return RolledBack(
            self._table,
            None if to.snapshot is None else to.snapshot.snapshot_id,
            applied.snapshot_id,
            came_back=counts[Kind.INSERTED],
            restored=counts[Kind.UPDATED],
            removed=counts[Kind.DELETED],
            receipt=applied.receipt,
            completed=completed,
            expired=expired,
        )


def _day_of(key: str) -> date:
    """The day in whose folder an object of a log lies."""
    return date.fromisoformat(key.partition("ingest_date=")[2].partition("/")[0])


def _versions(rows: pa.Table) -> list[int]:
    """The newest version in each row, patches included."""
    versions: list[int] = rows.column(VERSION).to_pylist() if rows.num_rows else []
    patched = pc.indices_nonzero(pc.is_valid(rows.column(PATCHES).combine_chunks())).to_pylist()
    for at in patched:
        entries = json.loads(rows.column(PATCHES)[at].as_py())
        versions[at] = max([versions[at], *(entry[0] for entry in entries.values())])
    return versions
