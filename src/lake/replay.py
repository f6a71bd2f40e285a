"""The way back: what lies in the quarantine or in the change log goes through the merge again.

A quarantined line is decoded from its original bytes by the contracts and mappings of today and
keeps its place in the stream, so that a table ends as if the line had never been refused. The order
of steps makes a kill harmless at any point: logged, merged, receipted, and only then resolved. What
was done before the kill is done again and changes nothing (laws L2 and L3); a line is open until a
resolution says otherwise, and no step deletes one.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.arrow import PlacedEvent, changes_table, position_of
from freshet.clock import Now
from freshet.contract import Contract, Registry
from freshet.errors import RejectedError, TerminalError
from freshet.event import ChangeEvent, Op, parse_key_text
from freshet.objects import Objects
from freshet.receipt import Receipt
from freshet.wire import Decoded, Ignored, Part, Rejected, Truncation
from lake.lake import Lake
from lake.ledger import Meter, metered
from lake.log import (
    CHANGE_LOG,
    LOGS,
    QUARANTINE,
    RESOLUTIONS,
    TRUNCATE_OP,
    UNKNOWN_TABLE,
    Kind,
    LoggedEvent,
    LoggedTruncation,
    Place,
    QuarantinedLine,
    ReceiptRow,
    Resolution,
    Verdict,
)
from lake.prune import bury_again

Decode = Callable[[bytes, datetime], Iterable[Part]]
"""Original bytes and their arrival -> parts, as the consumer decodes them."""
Protect = Callable[[ChangeEvent], ChangeEvent]
Progress = Callable[[str], None]

# Applied at once: some commits fewer than by the object, and tens of MB at most.
CHUNK_EVENTS, CHUNK_BYTES = 10_000, 16 * 1024 * 1024
# Lines between two words of progress.
TOLD_LINES = 1_000


class UnreadableEventError(TerminalError):
    """An event of the change log that today's contract does not take."""

    def __init__(self, table: str, place: Place, error: RejectedError) -> None:
        self.table, self.place, self.reason = table, place, error.reason
        super().__init__(
            f"table {table!r}: the contract refuses its logged event at {place.shard_id}, "
            f"{place.position} ({error}); bring back what the contract allowed then"
        )


def unchanged(event: ChangeEvent) -> ChangeEvent:
    """What protects an event that holds nothing personal."""
    return event


@dataclass(frozen=True)
class Again:
    """Where changes come in again: an open lake, today's contracts and decoding, a clock, and by
    whose hand.
    """

    lake: Lake
    tables: Registry
    decode: Decode
    now: Now
    by: str
    protect: Protect = unchanged


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which lines are meant: all that match every given member. `since` ≤ arrival < `until`."""

    reason: str | None = None
    table: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    decoder: str | None = None
    shard: str | None = None
    place: str | None = None
    """One line: its `shard_id`, a colon and its `position`."""

    def takes(self, line: QuarantinedLine) -> bool:
        """Whether the line is meant."""
        pairs = (
            (self.reason, line.reason),
            (self.table, line.table or UNKNOWN_TABLE),
            (self.decoder, line.decoder),
            (self.shard, line.place.shard_id),
            (self.place, place_text(line.place)),
        )
        alike = all(asked is None or asked == has for asked, has in pairs)
        return alike and self.holds(line.place.arrived_at)

    def holds(self, arrived_at: datetime) -> bool:
        """Whether the arrival is within the range."""
        return (self.since is None or self.since <= arrived_at) and (
            self.until is None or arrived_at < self.until
        )

    @property
    def everything(self) -> bool:
        """True when nothing narrows it."""
        return self == Wanted()


@dataclass(frozen=True, slots=True)
class Resolved:
    """What became of a line, when, by whom and why."""

    resolution: str
    reason: str
    at: datetime
    by: str


@dataclass(frozen=True, slots=True)
class Kept:
    """A line of the quarantine and its resolution; None: it is open."""

    line: QuarantinedLine
    contract_version: int | None
    resolved: Resolved | None


def place_text(place: Place) -> str:
    """A line's name on the command line: shard and position."""
    return f"{place.shard_id}:{place.position}"


def quarantined(lake: Lake, wanted: Wanted, *, resolved: bool = False) -> Iterator[Kept]:
    """The open lines that are meant, each once, by table and day; with `resolved` also the others.

    Memory grows with the places of one table's day, not with the quarantine.
    """
    keys = _log_keys(lake, QUARANTINE, wanted.table, wanted.since, wanted.until)
    for folder, members in groupby(keys, key=_folder):
        closed = _resolutions(lake, folder)
        seen: set[tuple[str, str]] = set()
        for key in members:
            for kept in _lines(lake, key, closed):
                place = kept.line.place.shard_id, kept.line.place.position
                # A batch that was cut anew on its way is there twice: one line of each place.
                if place in seen or not wanted.takes(kept.line):
                    continue
                seen.add(place)
                if resolved or kept.resolved is None:
                    yield kept


def _lines(lake: Lake, key: str, closed: Mapping[tuple[str, str], Resolved]) -> Iterator[Kept]:
    table = _table_of(key)
    for row in _log_object(lake, QUARANTINE, key).to_pylist():
        place = _place_of(row)
        line = QuarantinedLine(
            row["reason"],
            row["field"],
            row["detail"],
            row["data"],
            place,
            None if table == UNKNOWN_TABLE else table,
            row["decoder"] or "native",
        )
        at = closed.get((place.shard_id, place.position))
        yield Kept(line, row["contract_version"], at)


def _resolutions(lake: Lake, folder: str) -> dict[tuple[str, str], Resolved]:
    """Resolutions of a folder of the quarantine, by place: they lie in a folder of that name."""
    found = {}
    prefix = folder.replace(QUARANTINE, RESOLUTIONS, 1)
    for key in _store(lake).list(f"{prefix}/"):
        for row in _log_object(lake, RESOLUTIONS, key).to_pylist():
            found[row["shard_id"], row["position"]] = Resolved(
                row["resolution"], row["reason"], row["resolved_at"], row["resolved_by"]
            )
    return found


def erased_places(lake: Lake) -> set[tuple[str, str]]:
    """Shard and position of every line that was erased: the stream may hold it for a while."""
    columns = ["resolution", "shard_id", "position"]
    return {
        (row["shard_id"], row["position"])
        for part in lake.log(RESOLUTIONS, columns=columns)
        for row in part.to_pylist()
        if row["resolution"] == Verdict.ERASED
    }


@dataclass(frozen=True, slots=True)
class Parts:
    """What a line says now: changes of rows at their places, and how much of it is none."""

    events: tuple[LoggedEvent, ...] = ()
    truncations: tuple[LoggedTruncation, ...] = ()
    ignored: tuple[str, ...] = ()
    rejected: tuple[RejectedError, ...] = ()


def decoded(again: Again, line: QuarantinedLine) -> Parts:
    """Decode a line's original bytes as the consumer would today."""
    events: list[LoggedEvent] = []
    truncations: list[LoggedTruncation] = []
    ignored: list[str] = []
    rejected: list[RejectedError] = []
    for part in again.decode(line.data, line.place.arrived_at):
        place = _moved(line.place, part.index)
        if isinstance(part, Decoded):
            events.append(LoggedEvent(again.protect(part.event), place))
        elif isinstance(part, Rejected):
            rejected.append(part.error)
        elif isinstance(part, Ignored):
            ignored.append(part.kind)
        else:
            truncations.append(_truncation(part, place))
    return Parts(tuple(events), tuple(truncations), tuple(ignored), tuple(rejected))


def _truncation(part: Truncation, place: Place) -> LoggedTruncation:
    return LoggedTruncation(
        part.table,
        part.version,
        part.event_id,
        part.source,
        part.occurred_at,
        part.accepted_at,
        place,
    )


def _moved(place: Place, index: int) -> Place:
    """The place of a part of a line: the line's own, counted on from its index."""
    if not index:
        return place
    position = position_of(place.sequence_number, place.index + index)
    return replace(place, index=place.index + index, position=position)


@dataclass
class Replayed:
    """What a replay came to. `landed` and `ignored` lines are resolved, `still_bad` stay open;
    `errors` are of what could not be replayed at all, and held nothing else up.
    """

    lines: int = 0
    landed: int = 0
    ignored: int = 0
    still_bad: int = 0
    receipts: dict[str, Receipt] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    errors: list[TerminalError] = field(default_factory=list)

    def count(self, parts: Parts) -> None:
        """Count one line."""
        self.lines += 1
        if parts.rejected:
            self.still_bad += 1
            self.reasons.update({error.reason for error in parts.rejected})
        elif parts.events or parts.truncations:
            self.landed += 1
        else:
            self.ignored += 1

    def add(self, table: str, receipt: Receipt) -> None:
        """Add what one merge did to a table."""
        self.receipts[table] = self.receipts.get(table, Receipt()) + receipt

    @property
    def changed(self) -> int:
        """Rows that are now otherwise than before, or patches that now wait."""
        return sum(
            one.inserted + one.updated + one.deleted + one.retracted + one.waiting
            for one in self.receipts.values()
        )


@dataclass
class _Chunk:
    """Lines on their way, landed together."""

    events: list[LoggedEvent] = field(default_factory=list)
    truncations: list[LoggedTruncation] = field(default_factory=list)
    resolutions: list[Resolution] = field(default_factory=list)
    size: int = 0
    lines: int = 0

    def add(self, parts: Parts, size: int) -> None:
        self.events += parts.events
        self.truncations += parts.truncations
        self.size += size

    @property
    def is_full(self) -> bool:
        return len(self.events) >= CHUNK_EVENTS or self.size >= CHUNK_BYTES

    @property
    def name(self) -> str:
        """Content-made: the same lines again are the same log objects."""
        placed = [item.place for item in self.events] + [end.place for end in self.truncations]
        places = sorted((place.shard_id, place.position) for place in placed)
        digest = hashlib.blake2b(json.dumps(places).encode(), digest_size=12).hexdigest()
        return f"replay-{digest}"


def replay_quarantine(
    again: Again,
    wanted: Wanted,
    *,
    dry_run: bool = False,
    progress: Progress = lambda _: None,
) -> Replayed:
    """Land the open lines that today's contracts take; the rest stay open and are counted.

    Of a record that was refused whole, what is good lands; it stays open while any part is bad.
    Raises as `Lake.apply`; run again, it goes on where it was.
    """
    done, chunk = Replayed(), _Chunk()
    for kept in quarantined(again.lake, wanted):
        parts = decoded(again, kept.line)
        done.count(parts)
        if done.lines % TOLD_LINES == 0:
            progress(f"{done.lines:,} lines, {done.landed:,} land")
        if dry_run:
            continue
        chunk.add(parts, len(kept.line.data))
        if not parts.rejected:
            chunk.resolutions.append(_resolution(again, kept.line, parts))
        if chunk.is_full:
            _settle(again, chunk, done)
            progress(f"{done.lines:,} lines, {done.landed:,} landed")
            chunk = _Chunk()
    if not dry_run:
        _settle(again, chunk, done)
    return done


def _resolution(again: Again, line: QuarantinedLine, parts: Parts) -> Resolution:
    changes = len(parts.events) + len(parts.truncations)
    # What is ignored has no line in the change log: it is not to be looked for there.
    verdict = Verdict.REPLAYED if changes else Verdict.DISCARDED
    reason = f"{changes} change(s)" if changes else f"ignored: {', '.join(sorted(parts.ignored))}"
    return Resolution(line.place, line.table, verdict, reason, again.now(), again.by)


def _settle(again: Again, chunk: _Chunk, done: Replayed) -> None:
    """Log, merge, receipt, resolve, in this order."""
    if chunk.events or chunk.truncations:
        name = chunk.name
        with metered() as meter:
            began = again.now()
            again.lake.keep(name, chunk.events, (), chunk.truncations)
            landed = merge_again(again, chunk.events, chunk.truncations, {"freshet.batch": name})
        record(again, name, Kind.REPLAY, landed, began=began, meter=meter)
        for table, applied in landed.items():
            done.add(table, applied.receipt)
    if chunk.resolutions:
        again.lake.resolve(chunk.resolutions)


class Landed(NamedTuple):
    """What came of one table's part of a chunk."""

    receipt: Receipt
    snapshot_id: int | None


def merge_again(
    again: Again,
    events: Sequence[LoggedEvent],
    truncations: Sequence[LoggedTruncation],
    note: Mapping[str, str],
) -> dict[str, Landed]:
    """Merge changes into their tables; what came of each."""
    bury_again(again.lake, events)
    placed: dict[str, list[PlacedEvent]] = {}
    for item in events:
        placed.setdefault(item.event.table, []).append(PlacedEvent(item.event, item.place.position))
    landed: dict[str, Landed] = {}
    for table, changes in placed.items():
        applied = again.lake.apply(table, changes_table(again.tables[table], changes), note)
        landed[table] = Landed(applied.receipt, applied.snapshot_id)
    for end in truncations:
        applied = again.lake.truncate(end.table, end.version, end.place.position, note)
        before = landed.get(end.table, Landed(Receipt(), None))
        landed[end.table] = Landed(
            before.receipt + applied.receipt, applied.snapshot_id or before.snapshot_id
        )
    return landed


def record(
    again: Again,
    name: str,
    kind: Kind,
    landed: Mapping[str, Landed],
    *,
    began: datetime,
    meter: Meter,
) -> None:
    """Write the receipt of work that did not come from a shard: no range is claimed by it."""
    finished = again.now()
    rows = [
        ReceiptRow(
            batch=name,
            kind=kind,
            receipt=one.receipt,
            started_at=began,
            committed_at=finished,
            table_name=table,
            contract_version=again.tables[table].contract_version,
            snapshot_id=one.snapshot_id,
            # Told once: the lines of a batch add up to its own figures.
            bytes_read=0 if at else meter.bytes_read,
            bytes_written=0 if at else meter.bytes_written,
            requests=0 if at else meter.requests,
            note=f"by {again.by}",
        )
        for at, (table, one) in enumerate(sorted(landed.items()))
    ]
    if rows:
        again.lake.record(rows)


def discard(
    again: Again, wanted: Wanted, because: str, *, progress: Progress = lambda _: None
) -> int:
    """Resolve the open lines that are meant as discarded, and say why. Deletes nothing."""
    discarded = 0
    pending: list[Resolution] = []
    for kept in quarantined(again.lake, wanted):
        line = kept.line
        pending.append(
            Resolution(line.place, line.table, Verdict.DISCARDED, because, again.now(), again.by)
        )
        discarded += 1
        if len(pending) >= CHUNK_EVENTS:
            again.lake.resolve(pending)
            progress(f"{discarded:,} lines discarded")
            pending = []
    if pending:
        again.lake.resolve(pending)
    return discarded


def replay_log(
    again: Again,
    tables: Iterable[type[Contract]],
    since: datetime,
    until: datetime,
    *,
    progress: Progress = lambda _: None,
) -> Replayed:
    """Merge the logged changes that arrived in the range once more; normally nothing changes.

    Object by object, in chunks: memory does not grow with the range. Raises as `Lake.apply`, and
    `UnreadableEventError`.
    """
    done = Replayed()
    for contract in tables:
        chunk = _Chunk()
        for key in _log_keys(again.lake, CHANGE_LOG, contract.table, since, until):
            rows = _log_object(again.lake, CHANGE_LOG, key)
            parts = logged(again, contract, rows, Wanted(since=since, until=until).holds)
            chunk.add(parts, rows.nbytes)
            done.lines += len(parts.events) + len(parts.truncations)
            if chunk.is_full:
                _merge_logged(again, chunk, done)
                progress(f"{contract.table}: {done.lines:,} logged changes merged again")
                chunk = _Chunk()
        _merge_logged(again, chunk, done)
    return done


def _merge_logged(again: Again, chunk: _Chunk, done: Replayed) -> None:
    if not chunk.events and not chunk.truncations:
        return
    name = chunk.name
    with metered() as meter:
        began = again.now()
        landed = merge_again(again, chunk.events, chunk.truncations, {"freshet.batch": name})
    record(again, name, Kind.REPLAY, landed, began=began, meter=meter)
    for table, one in landed.items():
        done.add(table, one.receipt)


def logged(
    again: Again,
    contract: type[Contract],
    rows: pa.Table,
    holds: Callable[[datetime], bool] = lambda _: True,
) -> Parts:
    """The changes in an object of the change log, those of the arrivals that `holds` takes.

    Raises `UnreadableEventError` for one that today's contract does not take.
    """
    events: list[LoggedEvent] = []
    truncations: list[LoggedTruncation] = []
    for row in rows.to_pylist():
        if not holds(row["arrived_at"]):
            continue
        place = _place_of(row)
        if row["op"] == TRUNCATE_OP:
            truncations.append(_truncation_of(contract.table, row, place))
            continue
        try:
            event = _event_of(contract, row)
        except RejectedError as error:
            raise UnreadableEventError(contract.table, place, error) from error
        events.append(LoggedEvent(again.protect(event), place))
    return Parts(tuple(events), tuple(truncations))


def _truncation_of(table: str, row: Mapping[str, Any], place: Place) -> LoggedTruncation:
    return LoggedTruncation(
        table=table,
        version=row["version"],
        event_id=row["event_id"],
        source=row["source"],
        occurred_at=row["occurred_at"],
        accepted_at=row["accepted_at"],
        place=place,
    )


def _event_of(contract: type[Contract], row: Mapping[str, Any]) -> ChangeEvent:
    """A logged event. Whom the table trusts was settled when it was logged."""
    after, patch, before = (
        None if row[name] is None else json.loads(row[name])
        for name in ("after", "patch", "before")
    )
    return ChangeEvent(
        table=contract.table,
        op=Op(row["op"]),
        key=parse_key_text(contract, row["key"]),
        version=row["version"],
        after=None if after is None else contract.parse(after),
        before=before,
        event_id=row["event_id"],
        source=row["source"],
        occurred_at=row["occurred_at"],
        accepted_at=row["accepted_at"],
        patch=None if patch is None else contract.parse_patch(patch),
    )


def change_log_keys(lake: Lake, table: str) -> list[str]:
    """The objects of a table's change log, by day."""
    return list(_log_keys(lake, CHANGE_LOG, table, None, None))


def change_log_object(lake: Lake, key: str) -> pa.Table:
    """The rows of one of them."""
    return _log_object(lake, CHANGE_LOG, key)


def _store(lake: Lake) -> Objects:
    return lake.objects


def _log_keys(
    lake: Lake, log: str, table: str | None, since: datetime | None, until: datetime | None
) -> Iterator[str]:
    """Keys of a log's objects: of one table or all, of the days that the range touches."""
    prefix = f"{log}/" if table is None else f"{log}/table_name={table}/"
    first = None if since is None else since.astimezone(UTC).date()
    last = None if until is None else until.astimezone(UTC).date()
    for key in _store(lake).list(prefix):
        day = _day_of(key)
        if (first is None or first <= day) and (last is None or day <= last):
            yield key


def _log_object(lake: Lake, log: str, key: str) -> pa.Table:
    """An object of a log; columns that it is too old to have are null."""
    file = pq.ParquetFile(pa.BufferReader(_store(lake).get(key).data))
    rows, schema = file.read(use_threads=False), LOGS[log].schema
    return pa.table(
        [
            rows.column(name) if name in rows.column_names else pa.nulls(rows.num_rows, kind)
            for name, kind in zip(schema.names, schema.types, strict=True)
        ],
        schema=schema,
    )


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _table_of(key: str) -> str:
    return key.split("/")[1].removeprefix("table_name=")


def _day_of(key: str) -> date:
    return date.fromisoformat(key.split("/")[2].removeprefix("ingest_date="))


def _place_of(row: Mapping[str, Any]) -> Place:
    return Place(
        row["shard_id"],
        row["sequence_number"],
        row["record_index"],
        row["position"],
        row["arrived_at"],
    )
