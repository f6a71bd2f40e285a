"""Change detection: what the stream was told and what is listed now in, changes out. Pure.

A listing tells what is there, never what happened. Updates are rows whose content differs, deletes
are rows that are gone or that the source marks as deleted. Absence is no proof by itself: it counts
only when the whole table was listed, every row of it could be identified, and not too much is gone
at once.

Keys whose publishing was begun but never confirmed (`pending`) are changes whatever the listing
says: what the stream holds of them is unknown, so the listed state is published anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from api_poller.snapshot import Entry, JsonRow, Snapshot, content_of, digest_of
from freshet.contract import Contract, Day, Integer, Money, Row, Timestamp
from freshet.event import ChangeEvent, Op, json_row, json_value, parse_key_text

# The digest of no content: the stream was told that the row is gone.
DELETED = digest_of(b"")


@dataclass(frozen=True, slots=True)
class Skipped:
    """A listed row that does not fit the contract; `key` is None where it cannot be read."""

    key: str | None
    reason: str
    field: str | None


@dataclass(frozen=True, slots=True)
class SyncRule:
    """How a source is kept in step with the stream.

    `cursor` is the column that grows with every change, None where only the whole listing tells
    what changed; `lookback` is how far before the watermark an incremental source is read again.
    `delete_share_max` (0 to 1) is the share of known rows that may vanish in one poll. `keep_rows`
    says whether rows are kept for the `before` of changes; None keeps those of small tables. A
    listing older than `listing_age_max` is not resumed, and none is where `keep_place` is False:
    its place would be personal data.
    """

    cursor: str | None = None
    lookback: timedelta = timedelta()
    delete_share_max: float = 0.2
    keep_rows: bool | None = None
    keep_place: bool = True
    # A day-old half of a listing says little about now, and the next one begins today anyway.
    listing_age_max: timedelta = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Change:
    """One row's difference from what the stream was told; `content` is empty for a delete."""

    op: Op
    key: str
    after: Row | None = None
    before: JsonRow | None = None
    content: bytes = b""


@dataclass(slots=True)
class Differences:
    """Changes found and not yet published: at most one a row, the one observed last.

    `snapshot` and `pending` are what the stream was told and what it may have been told.
    `backfill` marks rows that are read for the first time. A `windowed` snapshot remembers only
    what is read again, deletes included: a key it does not hold may well be a row of the table.
    `still_gone` are rows known to be deleted that the source shows as deleted once more.
    """

    snapshot: Snapshot
    pending: AbstractSet[str] = frozenset()
    backfill: bool = False
    windowed: bool = False
    changes: dict[str, Change] = field(default_factory=dict)
    still_gone: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.changes)

    def list_row(self, key: str, row: Row) -> bool:
        """Take note of a listed row; True when it is a change."""
        content = content_of(json_row(row))
        told = self.snapshot.hash_of(key)
        if told == digest_of(content) and key not in self.pending:
            self.changes.pop(key, None)  # it went back while it was listed
            return False
        created = Op.READ if self.backfill else Op.CREATE
        op = created if told in (None, DELETED) else Op.UPDATE
        self.changes[key] = Change(op, key, row, content=content)
        return True

    def list_deleted(self, key: str) -> None:
        """Take note of a row that is gone; one the stream never heard of is no change."""
        told = self.snapshot.hash_of(key)
        if told == DELETED:
            self.still_gone.add(key)
        unheard = told == DELETED or (told is None and not self.windowed)
        if unheard and key not in self.pending:
            self.changes.pop(key, None)
        else:
            self.changes[key] = Change(Op.DELETE, key)

    def gone(self, seen: AbstractSet[str]) -> list[str]:
        """Keys the stream may hold that a complete listing, which showed `seen`, lacks."""
        absent = {key for key in self.snapshot if key not in seen} | (self.pending - seen)
        return sorted(absent)

    def with_before(self, changes: Iterable[Change], contract: type[Contract]) -> list[Change]:
        """`changes` with the row before, where the snapshot keeps it and it is certain."""
        empty = dict.fromkeys(column.name for column in contract.columns)
        return [
            change
            if (row := self._certain_row(change.key)) is None
            else Change(change.op, change.key, change.after, empty | row, change.content)
            for change in changes
        ]

    def _certain_row(self, key: str) -> dict[str, Any] | None:
        return None if key in self.pending else self.snapshot.row_of(key)


def guarded(gone: int, known: int, share_max: float) -> bool:
    """True when so many deletes at once rather mean half a listing that looks whole."""
    return gone > share_max * known


def applied(
    snapshot: Snapshot,
    changes: Iterable[Change],
    *,
    keep_rows: bool,
    cursor: Cursor | None = None,
    deleted_at: str | None = None,
) -> Snapshot:
    """What the stream was told, once it has accepted `changes`.

    With a cursor deletes are remembered like rows, at the cursor `deleted_at`: the source goes on
    showing them for as long as it is asked for their time.
    """
    entries, removed = dict[str, Entry](), list[str]()
    for change in changes:
        if change.after is None and cursor is None:
            removed.append(change.key)
        elif change.after is None:
            entries[change.key] = Entry(DELETED, deleted_at or "")
        else:
            text = (cursor.text(change.after) if cursor else None) or ""
            content = change.content if keep_rows else b""
            entries[change.key] = Entry(digest_of(change.content), text, content)
    return snapshot.replaced(entries, removed, keep_rows=keep_rows)


@dataclass(frozen=True, slots=True)
class Cursor:
    """The column of a contract that grows with every change of a row, and its order as text."""

    contract: type[Contract]
    column: str

    def text(self, row: Mapping[str, Any]) -> str | None:
        """A row's cursor (Python or JSON value) as text; None where it has none."""
        value = json_value(row[self.column])
        return None if value is None else str(value)

    def canonical(self, text: str) -> str:
        """The text that this column writes for the value. Raises `RejectedError`."""
        value = self.contract.value_of_text(self.column, text)
        return str(json_value(self.contract.parse_value(self.column, value)))

    def at(self, instant: datetime) -> str | None:
        """The cursor of a row that changes at `instant`; None for columns that are no time."""
        kind = self.contract.column(self.column).type
        if isinstance(kind, Timestamp):
            return str(json_value(instant))
        return instant.astimezone(UTC).date().isoformat() if isinstance(kind, Day) else None

    def order(self, text: str) -> Any:
        """What texts are compared by: numbers as numbers, days and instants as they are written."""
        number = isinstance(self.contract.column(self.column).type, Integer | Money)
        return Decimal(text) if number else text

    def greatest(self, *texts: str | None) -> str | None:
        """The greatest of these; None where all are None."""
        return max((text for text in texts if text is not None), key=self.order, default=None)

    def least_again(self, watermark: str, lookback: timedelta, now: datetime) -> str:
        """The least cursor that is read again after `watermark`.

        Only days and instants look back, from now at the latest: a row dated ahead must not keep
        all others out. Other columns are read again from the watermark itself, for its ties.
        """
        today = self.at(now)
        if today is None:
            return watermark
        value = self.contract.parse_value(self.column, min(watermark, today))
        return str(json_value(value - lookback))


def events_of(
    changes: Sequence[Change],
    contract: type[Contract],
    *,
    source: str,
    first_version: int,
    accepted_at: datetime,
    occurred_at: Callable[[Row], datetime | None],
) -> list[ChangeEvent]:
    """The change events of some changes, with consecutive versions from `first_version`.

    The version is the time of observation: sources without history have no better one. Ids derive
    from source, key, content and version, so equal ids mean equal events.
    """
    return [
        ChangeEvent(
            table=contract.table,
            op=change.op,
            key=parse_key_text(contract, change.key),
            version=version,
            after=change.after,
            before=change.before,
            event_id=_event_id(source, contract.table, change, version),
            source=source,
            occurred_at=None if change.after is None else occurred_at(change.after),
            accepted_at=accepted_at,
        )
        for version, change in enumerate(changes, first_version)
    ]


def _event_id(source: str, table: str, change: Change, version: int) -> str:
    parts = (source, table, change.key, digest_of(change.content).hex(), str(version))
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()
