"""Nothing is lost: stream, receipts, logs, quarantine and failure objects, held against each other.

What entered is in the stream until its retention ends. Every record there must be within the range
of a receipt, wait at the failure destination, or be newer than what was consumed; and every part
of it, decoded again, must be a line of the change log, a line of the quarantine, or no change at
all. Receipts in turn must balance and agree with the logs, which holds without the stream, too.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

from freshet.arrow import position_of
from freshet.receipt import Receipt
from freshet.wire import Ignored, Part, Rejected
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE, RECEIPTS, RESOLUTIONS, Kind, Verdict
from lake.verify import FINDINGS_MAX, Check, Progress

Decode = Callable[[bytes, datetime], Iterable[Part]]
"""Original bytes and their arrival -> parts, as the consumer decodes them."""
Records = Iterable[tuple[str, str, bytes, datetime]]
"""Shard, sequence number, data and arrival of every record that a stream retains."""

EVERY_TABLE = "*"
# Receipts of whole batches: each says what the logs hold under its batch's name. A replay may be of
# one table, and finds the rest logged under other names.
_WHOLE = (Kind.STREAM, Kind.FAILURE)


class FailedBatch(NamedTuple):
    """A batch that the event source mapping gave up on, as its failure object tells it.

    `discarded` is one that somebody gave up for good.
    """

    name: str
    shard_id: str
    first_sequence_number: str
    last_sequence_number: str
    records: int
    discarded: bool = False


def verify_ledger(
    lake: Lake,
    *,
    decode: Decode,
    records: Records = (),
    failures: Iterable[FailedBatch] = (),
    quarantine_since: datetime | None = None,
    progress: Progress = lambda _: None,
) -> list[Check]:
    """Check conservation. `records` are what the stream retains (none: the rest is still checked),
    `failures` the failure objects, and `quarantine_since` the instant before which the bucket's
    lifecycle has expired the quarantine (None: it is kept).

    Memory grows with the retained records, the quarantine and the number of receipts, not with the
    change log.
    """
    progress("ledger: reading receipts")
    books = _Books(lake, failures)
    progress("ledger: decoding what the stream retains")
    stream = _Stream(records, decode)
    progress("ledger: reading quarantine and change log")
    logs = _Logs(lake, stream, books, decode)
    return [
        _accounted(stream, books, logs),
        _balanced(books, logs, quarantine_since),
        _resolved(logs),
        _receipted(logs),
    ]


class _Ranges:
    """Ranges of sequence numbers of one shard."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._sorted = True

    def add(self, first: str, last: str) -> None:
        self._ranges.append((int(first), int(last)))
        self._sorted = False

    def cover(self, number: int) -> bool:
        """True if one of the ranges holds the number."""
        self._settle()
        at = bisect_right(self._ranges, number, key=lambda one: one[0])
        return at > 0 and self._ranges[at - 1][1] >= number

    @property
    def span(self) -> tuple[int, int]:
        """The smallest and the greatest number; (0, -1) where there is no range."""
        self._settle()
        return (self._ranges[0][0], self._ranges[-1][1]) if self._ranges else (0, -1)

    def _settle(self) -> None:
        """In order, overlapping ones as one: redeliveries cut batches anew."""
        if self._sorted:
            return
        merged: list[tuple[int, int]] = []
        for first, last in sorted(self._ranges):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        self._ranges, self._sorted = merged, True


class _Books:
    """Receipts and failure objects."""

    def __init__(self, lake: Lake, failures: Iterable[FailedBatch]) -> None:
        self.receipts: list[dict[str, Any]] = []
        self.names: set[str] = set()
        self.covered: dict[str, _Ranges] = defaultdict(_Ranges)
        self.brought_back: dict[str, _Ranges] = defaultdict(_Ranges)
        for part in lake.log(RECEIPTS, columns=_RECEIPT_COLUMNS):
            for row in part.to_pylist():
                self._take(row)
        given_up = [one for one in failures if not self._is_back(one)]
        self.waiting = [one for one in given_up if not one.discarded]
        self.failed: dict[str, _Ranges] = defaultdict(_Ranges)
        for one in given_up:
            self.failed[one.shard_id].add(one.first_sequence_number, one.last_sequence_number)

    def _take(self, row: dict[str, Any]) -> None:
        if row["shard_id"] is None:
            return
        if row["kind"] in _WHOLE:
            self.receipts.append(row)
        self.names.add(row["batch"])
        if row["table_name"] is None:
            ends = row["first_sequence_number"], row["last_sequence_number"]
            self.covered[row["shard_id"]].add(*ends)
            if row["kind"] == Kind.FAILURE:
                self.brought_back[row["shard_id"]].add(*ends)

    def _is_back(self, failure: FailedBatch) -> bool:
        ranges = self.brought_back[failure.shard_id]
        ends = failure.first_sequence_number, failure.last_sequence_number
        return all(ranges.cover(int(end)) for end in ends)

    def consumed(self, shard_id: str) -> tuple[int, int]:
        """The first number the ledger knows of a shard, and the last that was dealt with."""
        spans = [ranges[shard_id].span for ranges in (self.covered, self.failed)]
        spans = [span for span in spans if span[1] >= 0]
        first, last = (min(spans)[0], max(end for _, end in spans)) if spans else (0, -1)
        return first, last

    def missed(self, shard_id: str, sequence_number: str) -> bool:
        """True for a record that was passed over: neither receipted, nor failed, nor to come."""
        number = int(sequence_number)
        begin, end = self.consumed(shard_id)
        known = self.covered[shard_id].cover(number) or self.failed[shard_id].cover(number)
        return begin <= number <= end and not known


_RECEIPT_COLUMNS = [
    "batch",
    "kind",
    "shard_id",
    "first_sequence_number",
    "last_sequence_number",
    "table_name",
    "committed_at",
    *Receipt().to_dict(),
]


@dataclass(frozen=True, slots=True)
class _Record:
    shard_id: str
    sequence_number: str
    arrived_at: datetime
    digest: bytes
    parts: tuple[str, ...]
    """Positions of what is, or would be, a line of a log."""

    @property
    def number(self) -> int:
        return int(self.sequence_number)


class _Stream:
    """What the stream retains, decoded again."""

    def __init__(self, records: Records, decode: Decode) -> None:
        self.records = [_decoded(*record, decode) for record in records]
        self.at = {(one.shard_id, one.sequence_number): one for one in self.records}


def _decoded(
    shard_id: str, number: str, data: bytes, arrived_at: datetime, decode: Decode
) -> _Record:
    parts = tuple(
        position_of(number, part.index)
        for part in decode(data, arrived_at)
        if not isinstance(part, Ignored)
    )
    return _Record(shard_id, number, arrived_at, _digest(data), parts)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


_PLACE_COLUMNS = ["shard_id", "sequence_number", "record_index", "position"]


class _Logs:
    """What the logs say of the stream's records and of one another."""

    def __init__(self, lake: Lake, stream: _Stream, books: _Books, decode: Decode) -> None:
        self.kept: set[tuple[str, str]] = set()
        """Places of retained parts that a log holds."""
        self.whole: set[tuple[str, str]] = set()
        """Records (shard, sequence number) that the quarantine took whole."""
        self.twice: list[str] = []
        self.lines: dict[str, dict[str, dict[str, int]]] = {
            log: defaultdict(lambda: defaultdict(int)) for log in (CHANGE_LOG, QUARANTINE)
        }
        """Log, batch, folder: lines, as the objects' names have it."""
        self.recut: set[str] = set()
        """Batches with several objects in one folder: decoded otherwise when they came again."""
        self.short: list[str] = []
        self.missed: dict[str, int] = {}
        """Logged batches without a receipt: lines of records that were passed over."""
        self._stream, self._books, self._decode = stream, books, decode
        self._resolutions: dict[tuple[str, str], Verdict] = {}
        self._erased: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._read_resolutions(lake)
        self.quarantined: dict[tuple[str, str], Verdict | None] = {}
        """Places of quarantined lines, and what became of them; None: open."""
        self.replayed: dict[tuple[str, str], set[tuple[str, str]]] = {}
        """Places of replayed lines that the change log does not hold yet, by line."""
        self._read_quarantine(lake)
        self._read_change_log(lake)

    def _read_resolutions(self, lake: Lake) -> None:
        columns = [*_PLACE_COLUMNS, "resolution"]
        for key, part in lake.log_objects(RESOLUTIONS, columns=columns):
            for row in part.to_pylist():
                place = row["shard_id"], row["position"]
                self._resolutions[place] = Verdict(row["resolution"])
                if self._resolutions[place] is not Verdict.ERASED:
                    continue
                self.kept.add(place)
                self._erased[_table_of(key)].append(
                    (row["shard_id"], int(row["sequence_number"] or 0))
                )

    def _read_quarantine(self, lake: Lake) -> None:
        columns = [*_PLACE_COLUMNS, "arrived_at", "data"]
        for key, part in lake.log_objects(QUARANTINE, columns=columns):
            self._take_object(QUARANTINE, key, part.num_rows)
            for row in part.to_pylist():
                place = row["shard_id"], row["position"]
                verdict = self._resolutions.get(place)
                self.quarantined[place] = verdict
                if verdict is Verdict.REPLAYED:
                    self.replayed[place] = self._places(row) or {place}
                self.kept.add(place)
                record = self._stream.at.get((row["shard_id"], row["sequence_number"]))
                if record and row["record_index"] == 0 and _digest(row["data"]) == record.digest:
                    self.whole.add((record.shard_id, record.sequence_number))

    def _places(self, row: dict[str, Any]) -> set[tuple[str, str]]:
        """Where the change log must hold what a line says, read as it is read now."""
        number, index = row["sequence_number"], row["record_index"]
        return {
            (row["shard_id"], position_of(number, index + part.index))
            for part in self._decode(row["data"], row["arrived_at"])
            if not isinstance(part, Ignored | Rejected)
        }

    def _read_change_log(self, lake: Lake) -> None:
        columns = ["shard_id", "sequence_number", "position"]
        table_at: dict[tuple[str, str], str] = {}
        wanted = set().union(*self.replayed.values())
        found = set()
        for key, part in lake.log_objects(CHANGE_LOG, columns=columns):
            batch = self._take_object(CHANGE_LOG, key, part.num_rows)
            shards, numbers, positions = (part.column(name).to_pylist() for name in columns)
            records = list(zip(shards, numbers, strict=True))
            if batch not in self._books.names:
                self.missed[batch] = sum(self._books.missed(*record) for record in set(records))
            for record, place in zip(records, zip(shards, positions, strict=True), strict=True):
                if place in wanted:
                    found.add(place)
                if record in self._stream.at:
                    self.kept.add(place)
                    table = table_at.setdefault(place, _table_of(key))
                    if table != _table_of(key):
                        both = f"{table} and {_table_of(key)}"
                        self.twice.append(f"{place[0]} {place[1]} is in the logs of both {both}")
        self.replayed = {line: places - found for line, places in self.replayed.items()}

    def _take_object(self, log: str, key: str, rows: int) -> str:
        """Note an object's lines; the batch it is named by."""
        folder, _, name = key.rpartition("/")
        batch, _, count = name.removesuffix(".parquet").rpartition("-")
        folders = self.lines[log][batch]
        if folder in folders:
            self.recut.add(batch)
        folders[folder] += int(count)
        missing = int(count) - rows
        if missing > 0 and missing > self._erased_of(_table_of(key), batch):
            self.short.append(f"{key} holds {rows} of its {count} lines, and no erasure says why")
        return batch

    def _erased_of(self, table: str, batch: str) -> int:
        """How many erased lines of a table lie in a batch's range."""
        shard_id, first, last = _range_of(batch)
        return sum(
            shard_id is None or (shard_id == shard and first <= number <= last)
            for shard, number in self._erased[table]
        )


def _range_of(batch: str) -> tuple[str | None, int, int]:
    """Shard and range that a stream's batch is named by; None for the name of another."""
    parts = batch.rsplit("-", 2)
    if len(parts) == 3 and parts[1].isdecimal() and parts[2].isdecimal():
        return parts[0], int(parts[1]), int(parts[2])
    return None, 0, 0


def _table_of(key: str) -> str:
    return key.split("/")[1].removeprefix("table_name=")


def _check(law: str, checked: int, findings: Iterable[str], notes: Collection[str] = ()) -> Check:
    """A check of no one table; findings and notes bounded."""
    told = tuple(notes)[:FINDINGS_MAX]
    return Check(EVERY_TABLE, law, checked, tuple(findings)[:FINDINGS_MAX], told)


def _accounted(stream: _Stream, books: _Books, logs: _Logs) -> Check:
    """Every retained record is where it must be, or waits where it can be had back."""
    findings, notes = list(logs.twice), _waiting(books)
    ordered = sorted(stream.records, key=lambda one: (one.shard_id, one.number))
    for (state, shard_id), members in groupby(
        ordered, key=lambda one: (_state(one, books, logs), one.shard_id)
    ):
        run = list(members)
        told = f"{shard_id}: {len(run)} record(s) from {_span(run)}"
        if state == _LOST:
            findings.append(f"{told} have parts in neither change log nor quarantine: {_back(run)}")
        elif state == _GAP:
            findings.append(f"{told} are in no receipt and no failure object: {_back(run)}")
        elif state == _AHEAD:
            notes.append(f"{told} are not consumed yet")
    return _check("L5 every record of the stream is accounted for", len(ordered), findings, notes)


_DONE, _AHEAD, _WAITS, _LOST, _GAP = "done", "ahead", "waits", "lost", "gap"


def _state(record: _Record, books: _Books, logs: _Logs) -> str:
    """Where a record is."""
    shard, number = record.shard_id, record.number
    is_whole = (shard, record.sequence_number) in logs.whole
    lost = not is_whole and any((shard, part) not in logs.kept for part in record.parts)
    if books.covered[shard].cover(number):
        return _LOST if lost else _DONE
    begin, end = books.consumed(shard)
    if number > end:
        # A batch in the making is in the logs before it has a receipt.
        return _AHEAD
    if books.failed[shard].cover(number):
        return _WAITS
    # Consumed before there was a ledger: the logs alone answer for it.
    return _DONE if number < begin and not lost else _GAP


def _span(run: Sequence[_Record]) -> str:
    return f"{run[0].sequence_number} to {run[-1].sequence_number}"


def _back(run: Sequence[_Record]) -> str:
    """The command that brings records back: `--to` is exclusive, and arrivals are in ms."""
    first = min(record.arrived_at for record in run)
    last = max(record.arrived_at for record in run) + timedelta(milliseconds=1)
    times = (at.isoformat(timespec="milliseconds").replace("+00:00", "Z") for at in (first, last))
    return "`freshet replay --from-stream --from {} --to {}` brings them back".format(*times)


def _waiting(books: _Books) -> list[str]:
    return [
        f"{one.name}: {one.records} record(s) of {one.shard_id} from {one.first_sequence_number} "
        f"to {one.last_sequence_number} wait at the failure destination: `freshet quarantine "
        "replay` brings them back"
        for one in books.waiting
    ]


def _balanced(books: _Books, logs: _Logs, since: datetime | None) -> Check:
    """Every receipt adds up, and says what the logs say of its batch."""
    findings, expired = list(logs.short), 0
    for row in books.receipts:
        named = f"receipt of {row['batch']}, {row['table_name'] or 'logs'}"
        counts = {name: row[name] or 0 for name in Receipt().to_dict()}
        try:
            receipt = Receipt(**counts)
        except AssertionError as error:
            findings.append(f"{named}: {error}")
            continue
        if row["table_name"] is None and since is not None and row["committed_at"] < since:
            expired += receipt.rejected
        elif told := _disagreement(row, receipt, logs):
            findings.append(f"{named}: {told}")
    notes = [f"{expired} line(s) were rejected before {since}: expired"] if expired else []
    return _check("L5 receipts agree with the logs", len(books.receipts), findings, notes)


def _disagreement(row: dict[str, Any], receipt: Receipt, logs: _Logs) -> str | None:
    """How a receipt contradicts the logs, None where it does not."""
    batch, table = row["batch"], row["table_name"]
    if table is None:
        log, said = QUARANTINE, receipt.rejected
        held = sum(logs.lines[log][batch].values())
    else:
        log, said, part = CHANGE_LOG, receipt.received, f"{CHANGE_LOG}/table_name={table}/"
        folders = logs.lines[log][batch].items()
        held = sum(lines for folder, lines in folders if f"{folder}/".startswith(part))
    # Decoded otherwise when it came again, a batch left lines of both times; what a contract mended
    # meanwhile was refused only once, and a line kept twice is none lost.
    is_again = batch in logs.recut or log == QUARANTINE
    agrees = held >= said if is_again else held == said
    return None if agrees else f"counts {said} line(s), the {log} holds {held} of that batch"


def _resolved(logs: _Logs) -> Check:
    """Every quarantined line is open, or resolved; a replayed one is in the change log."""
    findings = [
        f"{shard_id} {position} was replayed, but {len(places)} change(s) of it are not in the "
        "change log: `freshet replay --from-stream` brings them back while the stream has them"
        for (shard_id, position), places in logs.replayed.items()
        if places
    ]
    opened = sum(verdict is None for verdict in logs.quarantined.values())
    notes = [f"{opened} line(s) wait: `freshet quarantine list` tells why"] if opened else []
    law = "L4 quarantined lines are open or resolved"
    return _check(law, len(logs.quarantined), findings, notes)


def _receipted(logs: _Logs) -> Check:
    """A batch that was logged before others were consumed has a receipt, or waits as a failure."""
    findings = [
        f"{batch}: {records} record(s) are in the change log, and no receipt says that they "
        "reached the tables: `freshet replay` of their arrival makes sure"
        for batch, records in logs.missed.items()
        if records
    ]
    logged = sum(_range_of(batch)[0] is not None for batch in logs.lines[CHANGE_LOG])
    return _check("L5 what is logged has a receipt", logged, findings)
