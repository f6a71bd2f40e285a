"""Change detection: the previous rows and a listing in, the changes between them out. Pure.

A listing tells what is there, never what happened. Updates are rows that differ, deletes are rows
that are gone; and since absence is all there is to a delete, it counts only when the whole table
was listed, every row of it could be identified, and not too much is gone at once.

Keys whose publishing was begun but never confirmed (`pending`) are changes whatever the listing
says: what the stream holds of them is unknown, so the listed state is published anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from freshet.contract import Contract, Row
from freshet.event import ChangeEvent, Op, json_row, parse_key_text

JsonRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A listed row that does not fit the contract; `key` is None where it cannot be read."""

    key: str | None
    reason: str
    field: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a source shows now, or the part of it that was asked for.

    `rows` are valid rows by key text. `whole_table` says that absence means deleted. `backfill`
    marks history being read for the first time. `since` (column, least value) bounds what is worth
    remembering of a table too large for that; `watermark` is how far in source time the source is
    complete after it.
    """

    rows: Mapping[str, Row]
    whole_table: bool
    backfill: bool
    watermark: str | None
    skipped: Sequence[Skipped] = ()
    since: tuple[str, str] | None = None

    @property
    def complete(self) -> bool:
        """True when every listed row could be identified, so that absence is certain."""
        return all(skipped.key is not None for skipped in self.skipped)

    @property
    def unreadable(self) -> AbstractSet[str]:
        """Keys that are there with a row that does not fit the contract."""
        return {skipped.key for skipped in self.skipped if skipped.key is not None}


@dataclass(frozen=True, slots=True)
class Change:
    """One row's difference between the previous rows and the listing."""

    op: Op
    key: str
    after: Row | None
    before: JsonRow | None


@dataclass(frozen=True, slots=True)
class ChangePlan:
    """What to publish, and what will be known once it is published.

    `guarded` counts deletes that were held back; their rows stay in `rows` and come up again.
    """

    changes: tuple[Change, ...]
    rows: Mapping[str, JsonRow]
    pending: frozenset[str]
    unchanged: int
    guarded: int = 0
    counts: Mapping[Op, int] = field(default_factory=dict)


def plan_changes(
    previous: Mapping[str, JsonRow],
    pending: AbstractSet[str],
    listing: Listing,
    *,
    delete_share_max: float,
) -> ChangePlan:
    """The changes that turn what the stream was told before into what is listed now.

    When more than `delete_share_max` (0 to 1) of the known keys are gone at once, no delete is
    planned at all: half a listing that looks whole must not empty a table.
    """
    listed = {key: json_row(row) for key, row in listing.rows.items()}
    kept = [
        _upsert(key, listing, None if key in pending else previous.get(key), known=key in previous)
        for key, row in listed.items()
        if key in pending or previous.get(key) != row
    ]
    gone = _gone(previous, pending, listing, listed)
    guarded = len(gone) > delete_share_max * len(previous.keys() | pending)
    removed = [] if guarded else [Change(Op.DELETE, key, None, previous.get(key)) for key in gone]
    changes = (*kept, *removed)
    rows = {key: row for key, row in previous.items() if key not in listed} | listed
    for change in removed:
        rows.pop(change.key, None)
    return ChangePlan(
        changes,
        _remembered(rows, listing.since),
        frozenset(pending - {change.key for change in changes}),
        unchanged=len(listed) - len(kept),
        guarded=len(gone) if guarded else 0,
        counts=_counts(changes),
    )


def _upsert(key: str, listing: Listing, before: JsonRow | None, *, known: bool) -> Change:
    if known:
        return Change(Op.UPDATE, key, listing.rows[key], before)
    return Change(Op.READ if listing.backfill else Op.CREATE, key, listing.rows[key], None)


def _gone(
    previous: Mapping[str, JsonRow],
    pending: AbstractSet[str],
    listing: Listing,
    listed: Mapping[str, JsonRow],
) -> list[str]:
    if not (listing.whole_table and listing.complete):
        return []
    return sorted((previous.keys() | pending) - listed.keys() - listing.unreadable)


def _remembered(
    rows: Mapping[str, JsonRow], since: tuple[str, str] | None
) -> Mapping[str, JsonRow]:
    if since is None:
        return rows
    column, least = since
    return {key: row for key, row in rows.items() if row[column] >= least}


def _counts(changes: Iterable[Change]) -> dict[Op, int]:
    counts = dict.fromkeys(Op, 0)
    for change in changes:
        counts[change.op] += 1
    return counts


def events_of(
    changes: Sequence[Change],
    contract: type[Contract],
    *,
    source: str,
    first_version: int,
    accepted_at: datetime,
    occurred_at: Callable[[Row], datetime | None],
) -> list[ChangeEvent]:
    """The change events of a plan, with consecutive versions from `first_version`.

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


def content_hash(row: JsonRow | None) -> str:
    """A short digest of a row's JSON values, whatever the order of its columns."""
    text = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _event_id(source: str, table: str, change: Change, version: int) -> str:
    row = None if change.after is None else json_row(change.after)
    parts = (source, table, change.key, content_hash(row), str(version))
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=16).hexdigest()
