"""Erasure: what the lake holds of a person goes, everywhere, and stays gone (ADR 0013).

Everything is done in an order that a kill anywhere leaves repeatable: first it is noted which keys
are meant, for what names them is about to vanish; then a delete newer than anything known of each
key is logged and applied, so that no retained record of the stream brings a row back; then log,
quarantine and failure objects are rewritten without them; last, history is ended. The note goes
when all is done.

A key whose row holds a wanted value now (or that has none) is erased whole. Of a key whose row
once held it and does not any more, the row is somebody else's: it stays, and what was before goes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial, reduce
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from freshet.arrow import (
    PATCHES,
    POSITION,
    VERSION,
    PlacedEvent,
    changes_table,
    key_column,
    patches_text,
    position_of,
)
from freshet.clock import Now, micros
from freshet.contract import Row, Text
from freshet.errors import ConflictError, TerminalError
from freshet.event import VERSION_MAX, ChangeEvent, Op, json_row, key_text, parse_key_text
from freshet.objects import ObjectMissingError, Objects, PreconditionError
from freshet.receipt import Receipt
from freshet.wire import Decoded, Part, Rejected
from lake.expire import Expired, History
from lake.lake import Lake
from lake.log import (
    CHANGE_LOG,
    QUARANTINE,
    UNKNOWN_TABLE,
    Kind,
    LoggedEvent,
    Place,
    ReceiptRow,
    Resolution,
    Verdict,
)
from lake.parquet import read_rows
from lake.snapshot import CommitConflictError
from lake.subject import Request, Subject, redacted, value_of
from lake.table import KeyedTable, Rewrite

# Who says so, in the log: a shard that no stream has, and the source of its deletes.
ERASED_SHARD, ERASED_BY = "erase", "freshet/erase"
# What was asked of an erasure, as long as it is not finished.
NOTES = "erasures"
# Where the event source mapping puts records that it gave up on, and where `freshet quarantine`
# moves those that were dealt with.
FAILURE_PREFIXES = ("aws/lambda/", "replayed/", "discarded/")
# Sorts after every place of a stream: an erasure wins against what has its very version.
_LAST = "~"
_ROWS_OF_JSON = ("after", "patch", "before")
# New lines may arrive while old ones go; a person who is that busy is still a customer.
ROUNDS_MAX = 10
COMMIT_ROUNDS_MAX = 40

Decode = Callable[[bytes, datetime], Iterable[Part]]


class EraseStep(StrEnum):
    """A point reached. Tests kill the process at each; another run must complete the erasure."""

    NOTED = "noted"
    LOGGED = "logged"
    BURIED = "buried"
    REDACTED = "redacted"
    RESOLVED = "resolved"
    REWRITTEN = "rewritten"
    EXPIRED = "expired"
    DELETED = "deleted"
    RECORDED = "recorded"


class RebuildUnfinishedError(TerminalError):
    """A rebuild of the table is under way, or was killed and left its files."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"table {table!r}: a rebuild of it runs or was killed, and its files hold what is to "
            f"be erased: let `freshet rebuild {table}` end, then erase"
        )


class ErasureUnfinishedError(TerminalError):
    """An erasure of the table runs, or was killed: what it removes must not come back."""

    def __init__(self, table: str) -> None:
        self.table = table
        super().__init__(
            f"table {table!r}: an erasure of it is not finished: run that `freshet erase` again, "
            "then this (a rollback: to a snapshot that is still there)"
        )


def refuse_unfinished(objects: Objects, table: str) -> None:
    """Raises `ErasureUnfinishedError` while an erasure of the table runs or was left half-way."""
    if any(True for _ in objects.list(f"{NOTES}/{table}-")):
        raise ErasureUnfinishedError(table)


@dataclass(frozen=True, slots=True)
class Erased:
    """What was found of a person (and, unless only asked for, is gone), by place.

    `rows` and `waiting` (partial updates without a row) are of the current state, lines of the
    logs, `failure_records` of failure objects. `redacted` rows and lines stay without the value.
    `snapshots` and `files` are history's, whoever's rows they held.
    """

    keys: int = 0
    rows: int = 0
    waiting: int = 0
    log_lines: int = 0
    quarantine_lines: int = 0
    failure_records: int = 0
    redacted: int = 0
    snapshots: int = 0
    files: int = 0

    def __add__(self, other: Erased) -> Erased:
        """Both together."""
        return Erased(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    @property
    def is_anything(self) -> bool:
        """Whether anything of the person was found, wherever."""
        return bool(self.rows + self.waiting + self.redacted + self.lines)

    @property
    def lines(self) -> int:
        """Lines and records of the logs together."""
        return self.log_lines + self.quarantine_lines + self.failure_records

    def to_json(self) -> dict[str, int]:
        """As a JSON object."""
        return asdict(self)


@dataclass
class _Known:
    """What is known of one key that goes: its row, what waits, and the newest of anything."""

    key: Row
    row: Mapping[str, Any] | None = None
    waits: bool = False
    version: int = 0
    tombstone: tuple[int, str] = (0, "")
    marker: tuple[int, str] = (0, "")

    def see(self, version: int) -> None:
        """Something of this version is known."""
        self.version = max(self.version, version)


@dataclass(frozen=True, slots=True)
class _Stays:
    """The row of a key that stays, as JSON, its place, and whether patches are part of it."""

    row: Row
    place: tuple[int, str]
    is_patched: bool


@dataclass
class _Found:
    """Everything found in one look."""

    subject: Subject
    going: dict[str, _Known]
    staying: dict[str, _Stays]
    log: dict[str, int] = field(default_factory=dict)
    """Lines that go, or lose a value, by the log object that holds them."""
    quarantine: dict[str, set[str]] = field(default_factory=dict)
    """Positions of lines that go, by object."""
    failures: dict[str, dict[int, set[int]]] = field(default_factory=dict)
    """Parts that go, by object and record."""
    redacted: int = 0
    unsorted: frozenset[str] = frozenset()
    """Keys of events that hold a wanted value, and that were not looked for."""

    def count(self) -> Erased:
        """What was found, by place."""
        return Erased(
            keys=sum(bool(known.version) for known in self.going.values()),
            rows=sum(known.row is not None for known in self.going.values()),
            waiting=sum(known.waits for known in self.going.values()),
            log_lines=sum(self.log.values()) - self.redacted,
            quarantine_lines=sum(map(len, self.quarantine.values())),
            failure_records=sum(map(len, self.failures.values())),
            redacted=self.redacted,
        )


class Eraser:
    """Erases what one request names from one lake.

    `decode` reads a record's data, or one line of it, as the consumer does (columns that are hashed
    are hashed). `failures` holds the failure objects, if there are any. `digest` makes a name of
    the request that does not tell it. `by` is who asked.
    """

    def __init__(
        self,
        lake: Lake,
        request: Request,
        *,
        decode: Decode,
        now: Now,
        by: str,
        failures: Objects | None = None,
        digest: Callable[[bytes], str] = lambda data: hashlib.sha256(data).hexdigest(),
        on_step: Callable[[EraseStep], None] = lambda _: None,
        progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._lake, self._request, self._decode = lake, request, decode
        self._now, self._by, self._failures = now, by, failures
        self._step, self._say = on_step, progress
        self._contract, self._table = request.contract, request.contract.table
        self._current = lake.current(self._table)
        self._objects: Objects = lake.objects
        self._files, self._catalog, self._pool = lake.files, lake.catalog, lake.pool
        self._tables = lake.tables
        self._name = digest(request.named().encode())[:40]
        self._note_key = f"{NOTES}/{self._table}-{self._name}.json"

    def look(self) -> Erased:
        """What there is to erase, as things are now. Changes nothing."""
        past = Expired()
        for history in self._histories().values():
            past += history.past()
        found = self._look().count()
        return found + Erased(snapshots=past.snapshots, files=past.files)

    def erase(self) -> Erased:
        """Erase it; what went, by place. Killed anywhere and run again, it completes.

        Raises `ConflictError`, `StorageError` (transient).
        """
        started = self._now()
        self._refuse_rebuild()
        done = self._remove_all() + self._end_history()
        self._record(done, started)
        self._objects.delete(self._note_key)
        return done

    @property
    def is_begun(self) -> bool:
        """Whether an earlier run of this very erasure did not come to its end."""
        return any(True for _ in self._objects.list(self._note_key))

    def _refuse_rebuild(self) -> None:
        """The tables that a rebuild builds hold what this one removes, where it does not look."""
        place = self._files.key(self._current.rows.view().table.location())
        if any(True for _ in self._objects.list(f"{place}__rebuild")):
            raise RebuildUnfinishedError(self._table)

    def _remove_all(self) -> Erased:
        """Look and remove until a look finds nothing: lines may arrive meanwhile."""
        done = Erased()
        for _ in range(ROUNDS_MAX):
            found = self._look()
            some = found.count()
            # A run before this one may have got as far as the logs: then its deletes are there.
            self._remove(found)
            done += some
            if not some.is_anything:
                return done
        raise ConflictError(self._table, ROUNDS_MAX)

    # What is there

    def _look(self) -> _Found:
        """Everything there is of the person now."""
        self._say(f"{self._table}: looking for what is meant")
        keys = self._request.keys | self._noted()
        if self._request.where:
            keys |= self._keys_in_tables() | self._keys_in_log()
        found = self._look_for(keys)
        # Of a key that only records tell which never got into the tables, nothing was looked up.
        return self._look_for(keys | found.unsorted) if found.unsorted else found

    def _look_for(self, keys: frozenset[str]) -> _Found:
        found = self._sorted_out(keys)
        rows_too = _ROWS_OF_JSON if found.staying else ()
        for log_key, rows in self._log("key", "version", "shard_id", "position", *rows_too):
            self._look_at_log(found, log_key, rows)
        self._look_at_quarantine(found)
        self._look_at_failures(found)
        return found

    def _noted(self) -> frozenset[str]:
        """Keys that a run before this one meant and may not have finished with."""
        try:
            return frozenset(json.loads(self._objects.get(self._note_key).data))
        except ObjectMissingError:
            return frozenset()

    def _keys_in_tables(self) -> frozenset[str]:
        """Keys whose row, or what waits for it, holds a wanted value, patched over or not."""
        subject, keys = Subject(self._request), set[str]()
        for keyed in (self._current.rows, self._current.tombstones):
            for _, rows in keyed.read_files(keyed.view()):
                for row in rows.filter(self._may_hold(rows)).to_pylist():
                    if subject.columns_in(row) or subject.columns_in(_patched(row)):
                        keys.add(key_text(self._contract, row))
        return frozenset(keys)

    def _may_hold(self, rows: pa.Table) -> pa.Array:
        """Of rows of a table: which hold a wanted value in its column, or any patch at all."""
        masks = [pc.is_valid(rows.column(PATCHES))] if PATCHES in rows.column_names else []
        for column, texts in self._request.where.items():
            if column in rows.column_names:
                values = [value_of(self._contract, column, text) for text in texts]
                wanted = pa.array(values, rows.schema.field(column).type)
                masks.append(pc.is_in(rows.column(column), value_set=wanted))
        return _any(masks, rows.num_rows)

    def _may_tell(self, lines: pa.Table) -> pa.Array:
        """Of lines of the change log: which may hold a wanted value. Texts are looked for."""
        columns = [self._contract.column(name) for name in self._request.where]
        if not all(isinstance(column.type, Text) for column in columns):
            return pa.repeat(pa.scalar(True), lines.num_rows)
        texts = {text for texts in self._request.where.values() for text in texts}
        masks = [
            pc.fill_null(pc.match_substring(lines.column(name), _quoted(text)), False)
            for name in _ROWS_OF_JSON
            for text in texts
        ]
        return _any(masks, lines.num_rows)

    def _keys_in_log(self) -> frozenset[str]:
        subject, keys = Subject(self._request), set[str]()
        for _, rows in self._log("key", "shard_id", *_ROWS_OF_JSON):
            for line in rows.filter(self._may_tell(rows)).to_pylist():
                if any(subject.columns_in(row) for row in _rows_in(line).values()):
                    keys.add(line["key"])
        return frozenset(keys)

    def _log(self, *columns: str) -> Iterator[tuple[str, pa.Table]]:
        return iter(self._lake.log_objects(CHANGE_LOG, self._table, columns))

    def _sorted_out(self, keys: Iterable[str]) -> _Found:
        """Which keys go, and which stay because the row they have now is not the person's."""
        rows, tombstones = self._rows_of(keys), self._tombstones_of(keys)
        asked, going, staying = Subject(self._request), dict[str, _Known](), dict[str, _Stays]()
        for text in keys:
            row, tombstone = rows.get(text), tombstones.get(text)
            if text not in self._request.keys and row is not None and not asked.columns_in(row):
                waits = tombstone is not None and tombstone.get(PATCHES)
                patched = bool(row.get(PATCHES) or waits)
                staying[text] = _Stays(json_row(row), (row[VERSION], row[POSITION]), patched)
                continue
            known = _Known(parse_key_text(self._contract, text), row)
            if row is not None:
                known.see(max([row[VERSION], *_patch_versions(row)]))
            if tombstone is not None:
                known.tombstone = (tombstone[VERSION], tombstone[POSITION])
                known.waits = bool(tombstone.get(PATCHES))
                known.see(max([0, *_patch_versions(tombstone)]))
            going[text] = known
        others = frozenset(self._tables.names) - {self._table}
        return _Found(Subject(self._request, going, others=others), going, staying)

    def _rows_of(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The current rows of keys."""
        return self._in_table(self._current.rows, keys)

    def _tombstones_of(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        return self._in_table(self._current.tombstones, keys)

    def _in_table(self, keyed: KeyedTable, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        wanted = self._as_keys(keys)
        if not wanted.num_rows:
            return {}
        located = keyed.locate(keyed.view(), _one_column(wanted, self._contract.key))
        met = [located.files[at] for at in sorted(set(located.file_at))]
        found = [row for file in met for row in keyed.current_rows(file, wanted).to_pylist()]
        return {key_text(self._contract, row): row for row in found}

    def _as_keys(self, keys: Iterable[str]) -> pa.Table:
        """Keys as deletes of no version: what plans and looks rows up."""
        events = [self._delete(text, (0, "")) for text in sorted(keys)]
        return changes_table(self._contract, [PlacedEvent(event, "") for event in events])

    def _look_at_log(self, found: _Found, log_key: str, rows: pa.Table) -> None:
        """Versions of lines that go, our own deletes, and lines that stay without a value."""
        keys = pa.array([*found.going, *found.staying], pa.string())
        for line in rows.filter(pc.is_in(rows.column("key"), value_set=keys)).to_pylist():
            known = found.going.get(line["key"])
            if known is None:
                left = self._line_without(found, line)
                if left != line:
                    found.log[log_key] = found.log.get(log_key, 0) + 1
                    found.redacted += left is not None
            elif line["shard_id"] == ERASED_SHARD:
                known.marker = max(known.marker, (line["version"], line["position"]))
            else:
                known.see(line["version"])
                found.log[log_key] = found.log.get(log_key, 0) + 1

    @staticmethod
    def _columns_to_redact(subject: Subject, line: Mapping[str, Any]) -> dict[str, list[str]]:
        """Of a line that stays: the columns that hold a wanted value, by `after`, `patch`, …"""
        holding = {name: subject.columns_in(row) for name, row in _rows_in(line).items()}
        return {name: columns for name, columns in holding.items() if columns}

    def _look_at_quarantine(self, found: _Found) -> None:
        for table in (self._table, UNKNOWN_TABLE):
            columns = ("data", "arrived_at", "position")
            for key, lines in self._lake.log_objects(QUARANTINE, table, columns):
                for line in lines.to_pylist():
                    if self._parts_that_go(found, line["data"] or b"", line["arrived_at"]):
                        found.quarantine.setdefault(key, set()).add(line["position"])

    def _parts_that_go(self, found: _Found, data: bytes, arrived_at: datetime) -> set[int]:
        """Which parts of a record's data, or of a line's, are the person's."""
        parts = set()
        for part in self._decode(data, arrived_at):
            if isinstance(part, Decoded) and found.subject.is_in_event(part.event):
                self._see(found, part.event)
                parts.add(part.index)
            elif isinstance(part, Rejected) and found.subject.is_in_bytes(part.data):
                parts.add(part.index)
        return parts

    def _see(self, found: _Found, event: ChangeEvent) -> None:
        """An event of the person's that is in no table yet: its version counts."""
        text = key_text(self._contract, event.key)
        known = found.going.get(text)
        if known is not None:
            known.see(event.version)
        elif text not in found.staying:
            found.unsorted |= {text}

    def _look_at_failures(self, found: _Found) -> None:
        for key in self._failure_keys():
            for at, record in enumerate(_records(self._failure(key)[0])):
                data, arrived_at = _data(record)
                parts = self._parts_that_go(found, data, arrived_at)
                if parts:
                    found.failures.setdefault(key, {})[at] = parts

    def _failure_keys(self) -> list[str]:
        objects = self._failures
        if objects is None:
            return []
        return [key for prefix in FAILURE_PREFIXES for key in objects.list(prefix)]

    def _failure(self, key: str) -> tuple[dict[str, Any], str]:
        assert self._failures is not None, "who lists failure objects can read them"
        stored = self._failures.get(key)
        try:
            body = json.loads(stored.data)
        except ValueError:
            body = {}
        return (body if isinstance(body, dict) else {}), stored.etag

    # What goes

    def _remove(self, found: _Found) -> None:
        """Take everything found out of tables and logs."""
        keys = sorted({*found.going, *found.staying})
        self._objects.put(self._note_key, json.dumps(keys, ensure_ascii=False).encode())
        self._step(EraseStep.NOTED)
        self._bury(found)
        self._redact_tables(found)
        self._step(EraseStep.REDACTED)
        self._say(f"{self._table}: rewriting logs")
        for key, positions in found.quarantine.items():
            self._rewrite(QUARANTINE, key, partial(_without, positions=positions))
        for key, parts in found.failures.items():
            self._rewrite_failure(found, key, parts)
        for key in found.log:
            self._rewrite(CHANGE_LOG, key, partial(self._log_without, found))

    def _bury(self, found: _Found) -> None:
        """A delete above everything known of each key: into the log, then into the tables."""
        at, deletes, new = self._now(), list[PlacedEvent](), list[LoggedEvent]()
        for text, known in found.going.items():
            if not known.version and known.tombstone == known.marker == (0, ""):
                continue  # nothing is known of it: there is nothing to bury
            place = _burial(known, at, len(new))
            event = self._delete(text, place)
            deletes.append(PlacedEvent(event, place[1]))
            if place != known.marker:
                where = Place(ERASED_SHARD, str(micros(at)), len(new), place[1], at)
                new.append(LoggedEvent(event, where))
        if new:
            self._lake.keep(f"erase-{self._name}-{micros(at)}", new, [])
        self._step(EraseStep.LOGGED)
        if deletes:
            note = {"freshet.batch": f"erase-{self._name}"}
            self._lake.apply(self._table, changes_table(self._contract, deletes), note)
        self._step(EraseStep.BURIED)

    def _delete(self, text: str, place: tuple[int, str]) -> ChangeEvent:
        return ChangeEvent(
            table=self._table,
            op=Op.DELETE,
            key=parse_key_text(self._contract, text),
            version=place[0],
            after=None,
            before=None,
            event_id=f"erase-{self._name}",
            source=ERASED_BY,
            occurred_at=None,
            accepted_at=self._now(),
        )

    def _redact_tables(self, found: _Found) -> None:
        """Values that a partial update covered, of rows that stay."""
        for keyed in (self._current.rows, self._current.tombstones):
            if found.staying:
                self._edit(keyed, found.staying, partial(self._repatched, found))

    def _edit(
        self,
        keyed: KeyedTable,
        keys: Iterable[str],
        edited: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        """Rewrite the rows of some keys in place, in one snapshot, or none if all stay the same."""
        schema, wanted = keyed.spec.schema, self._as_keys(keys)
        for _ in range(COMMIT_ROUNDS_MAX):
            view, rewrites = keyed.view(), list[Rewrite]()
            located = keyed.locate(view, _one_column(wanted, self._contract.key))
            for at in sorted(set(located.file_at)):
                file = located.files[at]
                data = self._files.read(file.file_path)
                rows = read_rows(data, schema.names, schema).to_pylist()
                new = [edited(row) for row in rows]
                if new != rows:
                    table = pa.Table.from_pylist(new, schema=schema)
                    partition = tuple(file.partition[n] for n in range(len(file.partition)))
                    name = f"{self._name}-{micros(self._now())}-{at}-{len(rewrites)}"
                    made, content = view.writer.encode(partition, table, name)
                    self._files.write(made.file_path, content)
                    rewrites.append(Rewrite((file.file_path,), (made,), ()))
            try:
                if rewrites:
                    keyed.commit(view, rewrites, {"freshet.batch": f"erase-{self._name}"})
            except CommitConflictError:
                continue
            return
        raise ConflictError(keyed.spec.name, COMMIT_ROUNDS_MAX)

    def _repatched(self, found: _Found, row: dict[str, Any]) -> dict[str, Any]:
        """A row of a key that stays, without wanted values among its patches."""
        stays = found.staying.get(key_text(self._contract, row))
        columns = found.subject.columns_in(_patched(row)) if stays is not None else []
        if stays is None or not columns:
            return row
        patches, instead = _entries(row), self._instead(stays.row)
        for column in columns:
            patches[column][2] = instead.get(column)
        return {**row, PATCHES: patches_text(patches)}

    def _instead(self, row: Row) -> Row:
        """What stands where a value was: nothing, or what the row says now where it must say
        something.
        """
        return {
            name: row.get(column.name)
            for column in self._contract.columns
            if not column.nullable
            for name in (column.name, *column.aliases)
        }

    def _log_without(self, found: _Found, lines: pa.Table) -> pa.Table:
        """Lines of the change log without those that go; of those that stay, without values."""
        goes = [
            key in found.going and shard != ERASED_SHARD
            for key, shard in zip(
                lines.column("key").to_pylist(), lines.column("shard_id").to_pylist(), strict=True
            )
        ]
        rest = lines.filter(pa.array([not gone for gone in goes], pa.bool_()))
        if not found.staying:
            return rest
        edited = (self._line_without(found, line) for line in rest.to_pylist())
        left = [line for line in edited if line is not None]
        return pa.Table.from_pylist(left, schema=lines.schema)

    def _line_without(self, found: _Found, line: dict[str, Any]) -> dict[str, Any] | None:
        """A line of a key that stays, without what it says of the person; None: it goes.

        What is older than a row that no patch is part of, no state needs. What the row, or a patch
        of it, came from stays without the value, and without the hint of what was before.
        """
        stays = found.staying.get(line["key"])
        holding = {} if stays is None else self._columns_to_redact(found.subject, line)
        if stays is None or not holding:
            return line
        is_past = (line["version"], line["position"]) < stays.place
        if holding.keys() != {"before"} and is_past and not stays.is_patched:
            return None
        rows, instead = _rows_in(line), self._instead(stays.row)
        for name, columns in holding.items():
            row = redacted(rows[name], columns, instead)
            told = None if name == "before" else json.dumps(row, ensure_ascii=False)
            line = {**line, name: told}
        return line

    def _rewrite(self, log: str, key: str, without: Callable[[pa.Table], pa.Table]) -> None:
        """Write a log's object again with less in it, upon what was read; what goes is told first.

        An object that becomes empty stays: a batch that is delivered again must find its name.
        """
        while True:
            stored = self._objects.get(key)
            lines = pq.ParquetFile(pa.BufferReader(stored.data)).read(use_threads=False)
            rest = without(lines)
            if rest.equals(lines):
                return
            self._resolve(log, key, lines, rest)
            sink = pa.BufferOutputStream()
            pq.write_table(rest, sink, compression="zstd", data_page_version="1.0")
            try:
                self._objects.put_if(key, sink.getvalue().to_pybytes(), etag=stored.etag)
            except PreconditionError:
                continue  # another erasure was here
            self._step(EraseStep.REWRITTEN)
            return

    def _resolve(self, log: str, key: str, lines: pa.Table, rest: pa.Table) -> None:
        """Leave word that these lines were erased; nothing of what they said."""
        kept = set(rest.column("position").to_pylist())
        table = key.partition("table_name=")[2].partition("/")[0]
        places = lines.select([name for name in _PLACE_COLUMNS if name in lines.column_names])
        gone = [line for line in places.to_pylist() if line["position"] not in kept]
        self._resolved([_place(line) for line in gone], table, f"erased from {log}")

    def _resolved(self, places: Sequence[Place], table: str, reason: str) -> None:
        name = None if table == UNKNOWN_TABLE else table
        at = self._now()
        self._lake.resolve(
            [Resolution(place, name, Verdict.ERASED, reason, at, self._by) for place in places]
        )
        self._step(EraseStep.RESOLVED)

    def _rewrite_failure(self, found: _Found, key: str, parts: Mapping[int, set[int]]) -> None:
        """A failure object without what goes: it keeps its range and every record's place."""
        assert self._failures is not None, "it was found there"
        body, etag = self._failure(key)
        payload = json.loads(body["payload"])
        places = []
        for at, gone in parts.items():
            record = payload["Records"][at]
            data, arrived_at = _data(record)
            number, shard = record["kinesis"]["sequenceNumber"], _shard(record)
            left = found.subject.blanked(data, gone, partial(self._count, arrived_at))
            record["kinesis"]["data"] = base64.b64encode(left).decode()
            places += [
                Place(shard, number, index, position_of(number, index), arrived_at)
                for index in sorted(gone)
            ]
        self._resolved(places, self._table, "erased from failure objects")
        body["payload"] = json.dumps(payload, separators=(",", ":"))
        with suppress(PreconditionError):  # another erasure was here; the next look tells
            self._failures.put_if(key, json.dumps(body).encode(), etag=etag)
        self._step(EraseStep.REWRITTEN)

    def _count(self, arrived_at: datetime, line: bytes) -> int:
        return sum(1 for _ in self._decode(line, arrived_at))

    def _histories(self) -> dict[KeyedTable, History]:
        shared: Any = (self._catalog, self._files, self._objects)
        keyed = (self._current.rows, self._current.tombstones)
        return {one: History(one, *shared, pool=self._pool) for one in keyed}

    def _end_history(self) -> Erased:
        self._say(f"{self._table}: ending history")
        found, ended = self._sorted_out(self._request.keys | self._noted()), Expired()

        wanted = self._as_keys([*found.going, *found.staying])

        def holds_personal(rows: pa.Table) -> bool:
            keys = _one_column(wanted, self._contract.key)
            meant = pc.is_in(key_column(rows, self._contract.key), value_set=keys)
            return any(self._is_past(found, row) for row in rows.filter(meant).to_pylist())

        summary = {"freshet.batch": f"erase-{self._name}"}
        for history in self._histories().values():
            ended += history.end(
                holds_personal, summary, on_expired=lambda: self._step(EraseStep.EXPIRED)
            )
            self._step(EraseStep.DELETED)
        return Erased(snapshots=ended.snapshots, files=ended.files)

    def _is_past(self, found: _Found, row: Mapping[str, Any]) -> bool:
        """Whether a row of a file that no snapshot has is the person's, and from before."""
        text = key_text(self._contract, row)
        known = found.going.get(text)
        if known is not None:
            is_bare = set(row) <= {*self._contract.key, VERSION, POSITION, PATCHES}
            says_nothing = is_bare and not row.get(PATCHES)
            return not says_nothing and (row[VERSION], row[POSITION]) < known.tombstone
        holds = found.subject.columns_in(row) or found.subject.columns_in(_patched(row))
        return text in found.staying and bool(holds)

    def _record(self, done: Erased, started: datetime) -> None:
        """The receipt: what went from where, and nothing of whose it was."""
        told = {"request": self._name, "by": self._by, **done.to_json()}
        row = ReceiptRow(
            batch=f"erase-{self._name}",
            kind=Kind.ERASE,
            receipt=Receipt(),
            started_at=started,
            committed_at=self._now(),
            table_name=self._table,
            contract_version=self._contract.contract_version,
            note=json.dumps(told),
        )
        self._lake.record([row])
        self._step(EraseStep.RECORDED)


_PLACE_COLUMNS = ("shard_id", "sequence_number", "record_index", "position", "arrived_at")


def _burial(known: _Known, at: datetime, index: int) -> tuple[int, str]:
    """Version and position of the delete that ends a key: above everything known of it."""
    if known.marker[0] > known.version or known.marker[0] == VERSION_MAX:
        return known.marker
    if known.tombstone[0] > max(known.version, known.marker[0]):
        return known.tombstone
    newest = max(known.version, known.tombstone[0], known.marker[0])
    return min(newest + 1, VERSION_MAX), _LAST + position_of(str(micros(at)), index)


def _patched(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row's patches hold beside its columns: by column, a covered or waiting value."""
    return {column: entry[2] for column, entry in _entries(row).items()}


def _patch_versions(row: Mapping[str, Any]) -> list[int]:
    return [int(entry[0]) for entry in _entries(row).values()]


def _entries(row: Mapping[str, Any]) -> dict[str, list[Any]]:
    patches = row.get(PATCHES)
    return json.loads(patches) if patches else {}


def _rows_in(line: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows that a line of the change log holds, by the column that holds them."""
    return {name: json.loads(line[name]) for name in _ROWS_OF_JSON if line.get(name)}


def _any(masks: Sequence[Any], rows: int) -> pa.ChunkedArray | pa.Array:
    """Where any of the masks is true."""
    return reduce(pc.or_, masks, pa.repeat(pa.scalar(False), rows))


def _quoted(text: str) -> str:
    """A text as it stands in JSON of the logs, without its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _one_column(table: pa.Table, key: Sequence[str]) -> pa.Array:
    return key_column(table, key).combine_chunks()


def _without(lines: pa.Table, positions: set[str]) -> pa.Table:
    gone = pc.is_in(lines.column("position"), value_set=pa.array(sorted(positions), pa.string()))
    return lines.filter(pc.invert(gone))


def _place(line: Mapping[str, Any]) -> Place:
    return Place(*(line[name] for name in _PLACE_COLUMNS))


def _records(body: Mapping[str, Any]) -> list[Any]:
    """The records of a failure object; none where it holds their range only."""
    payload = body.get("payload")
    records = json.loads(payload).get("Records", []) if isinstance(payload, str) else []
    return list(records)


def _data(record: Mapping[str, Any]) -> tuple[bytes, datetime]:
    kinesis = record["kinesis"]
    arrived = datetime.fromtimestamp(float(kinesis["approximateArrivalTimestamp"]), UTC)
    return base64.b64decode(kinesis["data"]), arrived


def _shard(record: Mapping[str, Any]) -> str:
    return str(record["eventID"]).partition(":")[0]
