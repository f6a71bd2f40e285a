"""One poll of one source: load state, list, detect changes, publish, advance.

The order is the guarantee. Nothing is remembered before the stream accepted it, and nothing is
published before the state says that it may be, so a crash at any point repeats events and loses
none. A source whose answer cannot be trusted raises before the first step that has an effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any, Protocol

from api_poller.changes import ChangePlan, Listing, events_of, plan_changes
from api_poller.state import PollState, StateStore
from freshet.clock import Now, VersionClock
from freshet.contract import Contract, Row
from freshet.errors import TransientError
from freshet.event import Op
from freshet.stream import ChangeStream

# About 3 MB of events at a time: bounded memory, and far more than a PutRecords call takes.
PUBLISH_EVENTS_MAX = 5_000
# Enough to see what is wrong with a source; a log line must not grow with its mistakes.
PROBLEMS_MAX = 20


class Source(Protocol):
    """An upstream API that can be listed."""

    @property
    def name(self) -> str:
        """Name of the source in events, state and errors."""
        ...

    @property
    def contract(self) -> type[Contract]:
        """The table its rows belong to."""
        ...

    def listings(self, state: PollState, now: datetime) -> Iterator[Listing]:
        """What it shows now, in parts that can each be published and remembered on their own.

        Raises `SourceError`, `SourceRefusedError` rather than yield a part it cannot vouch for.
        """
        ...

    def occurred_at(self, row: Row) -> datetime | None:
        """The source's own time of a row's change."""
        ...


class PublishIncompleteError(TransientError):
    """The stream did not accept every event; the next poll publishes the rest."""

    def __init__(self, source: str, accepted: int, events: int, detail: str) -> None:
        self.source, self.accepted, self.events, self.detail = source, accepted, events, detail
        super().__init__(
            f"source {source!r}: the stream accepted {accepted} of {events} events ({detail}); "
            "the watermark stays and the next poll publishes these rows again: if this repeats, "
            "give the stream more shards"
        )


@dataclass(frozen=True, slots=True)
class PollReport:
    """What one poll found and did. Counts are rows; `published` counts events.

    `guarded` is how many deletes were held back because too many rows vanished at once; `problems`
    names the first skipped rows by key, reason and column.
    """

    source: str
    table: str
    listed: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    skipped: int = 0
    guarded: int = 0
    published: int = 0
    complete: bool = True
    watermark: str | None = None
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"problems": list(self.problems)}


@dataclass(frozen=True, slots=True)
class Poller:
    """Polls sources with one stream and one state store.

    `delete_share_max` (0 to 1) is the share of known rows that may vanish in one poll.
    """

    stream: ChangeStream
    states: StateStore
    now: Now
    delete_share_max: float

    def poll(self, source: Source) -> PollReport:
        """Bring the stream up to what `source` shows now.

        Raises `SourceError`, `SourceRefusedError`, `PublishIncompleteError`, `StateConflictError`,
        `StateCorruptError`, `StorageError`; each leaves the watermark where it was.
        """
        state, etag = self.states.load(source.name)
        report = PollReport(source.name, source.contract.table, watermark=state.watermark)
        for listing in source.listings(state, self.now()):
            plan = plan_changes(
                state.rows, state.pending, listing, delete_share_max=self.delete_share_max
            )
            state, etag = self._apply(source, listing, plan, state, etag)
            report = _added(report, listing, plan)
        return report

    def _apply(
        self,
        source: Source,
        listing: Listing,
        plan: ChangePlan,
        state: PollState,
        etag: str | None,
    ) -> tuple[PollState, str | None]:
        """Publish between two writes of the state; all three are left out if nothing changed."""
        begun = state
        if plan.changes:
            begun, etag = self._publish(source, plan, state, etag)
        done = replace(
            begun,
            watermark=listing.watermark,
            listed=True,
            pending=plan.pending,
            rows=plan.rows,
        )
        if done != state:
            etag = self.states.save(source.name, done, etag=etag)
        return done, etag

    def _publish(
        self, source: Source, plan: ChangePlan, state: PollState, etag: str | None
    ) -> tuple[PollState, str]:
        """Reserve versions, name the pending keys, then publish; returns the state so written."""
        first = VersionClock(self.now, last=state.version).take(len(plan.changes))
        begun = replace(
            state,
            version=first + len(plan.changes) - 1,
            pending=state.pending | {change.key for change in plan.changes},
        )
        etag = self.states.save(source.name, begun, etag=etag)
        for start in range(0, len(plan.changes), PUBLISH_EVENTS_MAX):
            events = events_of(
                plan.changes[start : start + PUBLISH_EVENTS_MAX],
                source.contract,
                source=source.name,
                first_version=first + start,
                accepted_at=self.now(),
                occurred_at=source.occurred_at,
            )
            published = self.stream.publish(events)
            if not published.complete:
                accepted = start + len(published.accepted)
                raise PublishIncompleteError(
                    source.name, accepted, len(plan.changes), published.detail
                )
        return begun, etag


def _added(report: PollReport, listing: Listing, plan: ChangePlan) -> PollReport:
    """The report with one more published listing."""
    return replace(
        report,
        listed=report.listed + len(listing.rows) + len(listing.skipped),
        created=report.created + plan.counts[Op.CREATE] + plan.counts[Op.READ],
        updated=report.updated + plan.counts[Op.UPDATE],
        deleted=report.deleted + plan.counts[Op.DELETE],
        unchanged=report.unchanged + plan.unchanged,
        skipped=report.skipped + len(listing.skipped),
        guarded=report.guarded + plan.guarded,
        published=report.published + len(plan.changes),
        complete=report.complete and listing.complete,
        watermark=listing.watermark,
        problems=(*report.problems, *_held_back(plan), *_problems(listing))[:PROBLEMS_MAX],
    )


def _held_back(plan: ChangePlan) -> Sequence[str]:
    if not plan.guarded:
        return ()
    held = f"{plan.guarded} deletes held back: too large a share of the rows vanished at once"
    return (f"{held}; if that is right, poll once with DELETE_SHARE_MAX=1",)


def _problems(listing: Listing) -> Sequence[str]:
    return [
        f"{skipped.key or 'a row without a usable key'}: {skipped.field or 'row'}: {skipped.reason}"
        for skipped in listing.skipped[:PROBLEMS_MAX]
    ]
