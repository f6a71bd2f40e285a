"""One poll of one source: load state, list page by page, publish what changed, advance.

The order is the guarantee. Nothing is remembered before the stream accepted it, and nothing is
published before the state says that it may be, so a crash at any point repeats events and loses
none. A poll never holds a whole listing: rows that did not change are let go page by page, those
that did are published as they add up. A listing too long for one poll is put down between two pages
and taken up there by the next.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from api_poller.changes import (
    DELETED,
    Change,
    Cursor,
    Differences,
    Skipped,
    SyncRule,
    applied,
    events_of,
    guarded,
)
from api_poller.http import BudgetSpentError, SourceAnswerError, SourceRefusedError
from api_poller.snapshot import Entry, Snapshot
from api_poller.state import PollState, Progress, StateStore
from freshet.clock import Now, VersionClock
from freshet.contract import Contract, Row
from freshet.errors import TerminalError, TransientError
from freshet.event import Op
from freshet.stream import ChangeStream

# About 3 MB of events at a time: bounded memory, and far more than a PutRecords call takes.
PUBLISH_EVENTS_MAX = 5_000
# Enough to see what is wrong with a source; a log line must not grow with its mistakes.
PROBLEMS_MAX = 20
# Rows of tables up to this size are kept unless the source says otherwise: some 2 MB packed, which
# every poll that finds a change reads and writes. Beyond, `before` costs more than it tells.
ROWS_KEPT_MAX = 20_000
# The last publish may take its 10 s, and so may each of two writes of the state.
STOP_MARGIN_S = 30.0
# A token is an offset, a cursor or a URL; it must not become the place where a source keeps data.
RESUME_CHARS_MAX = 64 * 1024

ReportProgress = Callable[[int, int, int], object]


class Page(Protocol):
    """Some rows of a listing; `resume` goes on after them, None ends the listing or window."""

    @property
    def rows(self) -> Mapping[str, Row]:
        """Valid rows by key text."""
        ...

    @property
    def deleted(self) -> AbstractSet[str]:
        """Keys that the source marks as deleted."""
        ...

    @property
    def skipped(self) -> Sequence[Skipped]:
        """Rows that do not fit the contract."""
        ...

    @property
    def resume(self) -> str | None:
        """Opaque token to go on after this page."""
        ...


class Outcome(Protocol):
    """What a listing was worth, known after its last page."""

    @property
    def complete(self) -> bool:
        """True when absence may be trusted."""
        ...

    @property
    def reason(self) -> str | None:
        """Why it may not."""
        ...


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

    @property
    def rule(self) -> SyncRule:
        """How it is kept in step."""
        ...

    def pages(
        self,
        watermark: str | None,
        now: datetime,
        resume: str | None,
        missing: Callable[[], bool] = lambda: True,
    ) -> Generator[Page, None, Outcome]:
        """What it shows from the watermark on, or after the page that `resume` came with.

        A window of an incremental source that is not the last ends in a page without `resume`, and
        another page follows only if it was complete. `missing` says whether a known row was not
        shown so far: where none is, no absence has to be confirmed. Raises `SourceError`,
        `SourceRefusedError` rather than yield a page it cannot vouch for.
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


class NoCursorError(TerminalError):
    """A poll since some value, of a source that has no cursor."""

    def __init__(self, source: str) -> None:
        self.source = source
        super().__init__(
            f"source {source!r} is listed whole at every poll, so there is nothing to read since: "
            "leave `since` out, or declare sync.mode incremental with a cursor"
        )


@dataclass(frozen=True, slots=True)
class PollReport:
    """What one poll found and did. Counts are rows; `published` counts events.

    `guarded` is how many deletes were held back because too many rows vanished at once; `problems`
    names the first skipped rows by key, reason and column, and says why there are no deletes.
    `unfinished` says that the next poll goes on with this listing, `resumed_rows` how many of its
    rows earlier polls have read. Without publishing (`dry_run`) the counts are what would be.
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
    pages: int = 0
    unfinished: bool = False
    resumed_rows: int = 0
    dry_run: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"problems": list(self.problems)}


@dataclass(frozen=True, slots=True)
class Poller:
    """Polls sources with one stream and one state store.

    `stop_margin_s` is the time a poll keeps for its end; `publish_events_max` events are published
    at a time.
    """

    stream: ChangeStream
    states: StateStore
    now: Now
    stop_margin_s: float = STOP_MARGIN_S
    publish_events_max: int = PUBLISH_EVENTS_MAX

    def poll(
        self,
        source: Source,
        *,
        full: bool = False,
        dry_run: bool = False,
        since: str | None = None,
        remaining_s: Callable[[], float] | None = None,
        progress: ReportProgress = lambda pages, rows, changes: None,  # noqa: ARG005
    ) -> PollReport:
        """Bring the stream up to what `source` shows now, or as far as `remaining_s` allows.

        `full` reads from the beginning whatever the watermark and an unfinished listing say;
        `since` (a value of the cursor) reads from there; `dry_run` publishes and writes nothing.
        `progress` is told pages, rows and changes so far, after every page.

        Raises `SourceError`, `SourceRefusedError`, `PublishIncompleteError`, `NoCursorError`,
        `StateConflictError`, `StateCorruptError`, `StorageError`; each leaves the watermark where
        it was, and what was published before it is not published again.
        """
        cursor = _cursor(source)
        if since is not None:
            if cursor is None:
                raise NoCursorError(source.name)
            since = cursor.canonical(since)
        state, etag = self.states.load(source.name, cursor=source.rule.cursor)
        poll = _Poll(self, source, cursor, state, etag, dry_run=dry_run, remaining_s=remaining_s)
        poll.begin(since, anew=full or since is not None)
        outcome = poll.read(progress)
        return poll.stop() if outcome is None else poll.finish(outcome)

    def reset(self, source: str) -> None:
        """Forget what the stream was told of `source`; see `StateStore.reset` for what follows."""
        self.states.reset(source)


def _cursor(source: Source) -> Cursor | None:
    column = source.rule.cursor
    return None if column is None else Cursor(source.contract, column)


@dataclass(slots=True)
class _Listing:
    """A listing under way; `resume` is the token after the last page taken, `floor` the least
    cursor that was asked for.
    """

    started: datetime
    watermark: str | None
    kept: int = 0
    floor: str | None = None
    resume: str | None = None
    greatest: str | None = None
    certain: bool = True
    rows: int = 0
    published: int = 0
    windows: int = 0
    window_over: bool = False
    seen: set[str] = field(default_factory=set)
    unreadable: set[str] = field(default_factory=set)

    def progress(self, pending: AbstractSet[str]) -> Progress | None:
        """What to remember of it, once everything it showed was published."""
        if self.resume is None or len(self.resume) > RESUME_CHARS_MAX:
            return None
        return Progress(
            resume=self.resume,
            started=self.started,
            watermark=self.watermark,
            greatest=self.greatest,
            certain=self.certain,
            kept=self.kept,
            rows=self.rows,
            published=self.published,
            seen=frozenset(self.seen),
            unreadable=frozenset(self.unreadable & pending),
        )


class _Poll:
    """One poll under way: what it knows, and the steps that change it."""

    def __init__(
        self,
        poller: Poller,
        source: Source,
        cursor: Cursor | None,
        state: PollState,
        etag: str | None,
        *,
        dry_run: bool,
        remaining_s: Callable[[], float] | None,
    ) -> None:
        self.poller, self.source, self.cursor = poller, source, cursor
        self.state, self.saved, self.etag = state, state, etag
        self.dry_run, self.remaining_s = dry_run, remaining_s
        self.found = Differences(
            state.snapshot, state.pending, backfill=not state.listed, windowed=cursor is not None
        )
        self.listing = _Listing(poller.now(), state.watermark)
        self.slowest_s, self.left_s = 0.0, remaining_s() if remaining_s else 0.0
        self.counts = dict.fromkeys(Op, 0)
        self.problems: list[str] = []
        self.report = PollReport(source.name, source.contract.table, dry_run=dry_run)

    # --- the listing ------------------------------------------------------------------------------

    def begin(self, since: str | None, *, anew: bool) -> None:
        """Take up the unfinished listing, or begin one from the watermark."""
        if anew:
            self.listing.watermark = since
            self.state = replace(self.state, watermark=since, progress=None)
        elif self.state.progress is not None and self._resumable(self.state.progress):
            self._resume(self.state.progress)
        else:
            self.state = replace(self.state, progress=None)
        if self.cursor is not None and self.listing.watermark is not None:
            self.listing.floor = self._least_again(self.cursor, self.listing.watermark)

    def _resumable(self, progress: Progress) -> bool:
        age_max = self.source.rule.listing_age_max
        if self.poller.now() - progress.started > age_max:
            hours = age_max.total_seconds() / 3600
            self.problems.append(
                f"the listing begun at {progress.started.isoformat()} was not finished within "
                f"{hours:g} hours and starts over: poll more often, or list with larger pages"
            )
            return False
        # Listed before and in doubt since: only the page that showed them can tell.
        return not (self.state.pending & progress.seen) - progress.unreadable

    def _resume(self, progress: Progress) -> None:
        self.listing = _Listing(
            started=progress.started,
            watermark=progress.watermark,
            kept=progress.kept,
            resume=progress.resume,
            greatest=progress.greatest,
            certain=progress.certain,
            rows=progress.rows,
            published=progress.published,
            seen=set(progress.seen),
            unreadable=set(progress.unreadable),
        )
        self.report = replace(self.report, resumed_rows=progress.rows)

    def read(self, progress: ReportProgress) -> Outcome | None:
        """Take page after page; None when time, or the source's patience, ended before them."""
        with closing(self._pages()) as pages:
            while self._in_time():
                try:
                    page = next(pages)
                except StopIteration as end:
                    outcome: Outcome = end.value
                    return outcome
                except BudgetSpentError as error:
                    if not self.report.pages:
                        raise
                    self.problems.append(str(error))
                    if self.listing.window_over and self.cursor is not None:
                        self._close_window()
                    return None
                self._take(page)
                report = self.report
                progress(report.pages, report.listed, report.published + len(self.found))
        return None

    def _pages(self) -> Generator[Page, None, Outcome]:
        """The source's pages; a token the source no longer takes begins the listing anew."""
        listing, now = self.listing, self.poller.now()
        pages = self.source.pages(listing.watermark, now, listing.resume, self._is_missing)
        if listing.resume is None:
            return (yield from pages)
        try:
            first = next(pages)
        except StopIteration as end:
            outcome: Outcome = end.value
            return outcome
        except (SourceAnswerError, SourceRefusedError) as error:
            self.problems.append(f"the listing could not be resumed and starts over: {error}")
            self._begin_anew()
            return (yield from self.source.pages(listing.watermark, now, None, self._is_missing))
        yield first
        return (yield from pages)

    def _is_missing(self) -> bool:
        """Whether a known row was not shown so far."""
        return bool(self.found.gone(self.listing.seen))

    def _begin_anew(self) -> None:
        """Forget how far the listing had come, but not where it began from."""
        made = _Listing(self.poller.now(), self.listing.watermark)
        made.floor = self.listing.floor
        self.listing = made
        self.state = replace(self.state, progress=None)
        self.report = replace(self.report, resumed_rows=0)

    def _in_time(self) -> bool:
        """True while the next page, should it take as long as the longest, leaves the margin."""
        if self.remaining_s is None:
            return True
        left_s = self.remaining_s()
        self.slowest_s, self.left_s = max(self.slowest_s, self.left_s - left_s), left_s
        listing = self.listing
        # Behind the last page of a listing is nothing but its outcome. Behind that of a window is
        # another window; one a poll is the least, or a short time limit would never end any.
        if not self.report.pages or (listing.window_over and not listing.windows):
            return True
        return left_s > self.poller.stop_margin_s + self.slowest_s

    def _take(self, page: Page) -> None:
        """Note what a page shows; publish when enough has changed, or when it begins a window."""
        if self.listing.window_over:
            self._close_window()
        listing, unchanged = self.listing, 0
        for key, row in page.rows.items():
            unchanged += self._pass_over(row) or not self.found.list_row(key, row)
        self._see(page.rows)
        self._see(page.deleted)
        for key in page.deleted:
            self.found.list_deleted(key)
        self._skip(page.skipped)
        rows = len(page.rows) + len(page.deleted - page.rows.keys()) + len(page.skipped)
        listing.rows += rows
        self.report = replace(
            self.report,
            pages=self.report.pages + 1,
            listed=self.report.listed + rows,
            unchanged=self.report.unchanged + unchanged,
            skipped=self.report.skipped + len(page.skipped),
        )
        listing.window_over = page.resume is None
        if page.resume is not None:
            listing.resume = page.resume
            if len(self.found) >= self.poller.publish_events_max:
                self._publish()
                self._settle(progress=self._progress())

    def _pass_over(self, row: Row) -> bool:
        """Note an incremental source's row; True when it lies before what was asked for.

        Such rows were told long ago and are forgotten since: they would be told at every poll.
        """
        text = self.cursor.text(row) if self.cursor else None
        if self.cursor is None or text is None:
            return False
        floor = self.listing.floor
        if floor is not None and self.cursor.order(text) < self.cursor.order(floor):
            return True
        self.listing.greatest = self.cursor.greatest(self.listing.greatest, text)
        return False

    def _see(self, keys: Iterable[str]) -> None:
        """Note what a listed table shows, and how much of it was known before."""
        if self.cursor is not None:
            return
        state, listing = self.state, self.listing
        for key in keys:
            if key not in listing.seen:
                listing.kept += key in state.snapshot or key in state.pending
                listing.seen.add(state.snapshot.own(key))

    def _skip(self, skipped: Sequence[Skipped]) -> None:
        keys = [one.key for one in skipped if one.key is not None]
        self._see(keys)
        self.listing.unreadable.update(keys)
        self.listing.certain &= len(keys) == len(skipped)
        self.problems += [
            f"{one.key or 'a row without a usable key'}: {one.field or 'row'}: {one.reason}"
            for one in skipped[:PROBLEMS_MAX]
        ]

    # --- the ends ---------------------------------------------------------------------------------

    def stop(self) -> PollReport:
        """Put the listing down: publish what was found and remember where it goes on."""
        self._publish()
        progress = self._progress()
        if progress is None and self.listing.resume is not None:
            reason = (
                f"its source's place in it takes {len(self.listing.resume)} characters, and "
                f"{RESUME_CHARS_MAX} are kept"
                if self.source.rule.keep_place
                else "its source's place in it is personal data, which is not kept: list with "
                "larger pages, or page by numbers or offsets"
            )
            self.problems.append(f"the listing starts over at the next poll: {reason}")
        self._settle(progress=progress)
        return self._reported(complete=False, unfinished=True)

    def _progress(self) -> Progress | None:
        """How far the listing has come, where that may be remembered."""
        keep = self.source.rule.keep_place
        return self.listing.progress(self.state.pending) if keep else None

    def finish(self, outcome: Outcome) -> PollReport:
        """Conclude from the whole listing: deletes, or how far an incremental source was read."""
        complete = outcome.complete and self.listing.certain
        if not complete:
            held = "the watermark stays" if self.cursor else "no deletes"
            reason = outcome.reason if not outcome.complete else "a row has no usable key"
            self.problems.insert(0, f"{held}: the listing is not complete ({reason})")
        elif self.cursor is None:
            self._find_deletes()
        self._publish()
        if self.cursor is not None and outcome.complete:
            self._advance()
        self._settle(progress=None, listed=True)
        return self._reported(complete=complete)

    def _find_deletes(self) -> None:
        gone = self.found.gone(self.listing.seen)
        known = self.listing.kept + len(gone)
        if guarded(len(gone), known, self.source.rule.delete_share_max):
            self.report = replace(self.report, guarded=len(gone))
            self.problems.insert(
                0,
                f"{len(gone)} deletes held back: too large a share of the rows vanished at once; "
                "if that is right, poll once with DELETE_SHARE_MAX=1, or declare a higher "
                "sync.delete_share_max",
            )
            return
        for key in gone:
            self.found.list_deleted(key)

    def _close_window(self) -> None:
        """Remember a window that is followed by another."""
        self._publish()
        self._advance()
        listing = self.listing
        listing.resume, listing.greatest, listing.window_over = None, None, False
        listing.windows += 1
        self._settle(progress=None)

    def _advance(self) -> None:
        """Move the watermark to the greatest cursor read, and forget what is not read again."""
        if self.cursor is None:
            return
        watermark = self.cursor.greatest(self.state.watermark, self._greatest_read(self.cursor))
        snapshot = self.state.snapshot
        if watermark is not None:
            least = self._least_again(self.cursor, watermark)
            stale = snapshot.older_than(self.cursor.order(least), self.cursor.order)
            # What is shown as deleted again would be told again if it were forgotten.
            gone = Entry(DELETED, self._deleted_at(self.cursor) or "")
            still = {key: gone for key in stale if key in self.found.still_gone}
            stale = [key for key in stale if key not in still]
            snapshot = snapshot.replaced(still, stale, keep_rows=snapshot.keeps_rows)
        self._know(replace(self.state, watermark=watermark, snapshot=snapshot))

    def _greatest_read(self, cursor: Cursor) -> str | None:
        """Of a listing that took several polls no later than it began: what changed meanwhile,
        before the place where it went on, must be within what the next poll looks back.
        """
        greatest, began = self.listing.greatest, cursor.at(self.listing.started)
        if greatest is None or began is None or not self.report.resumed_rows:
            return greatest
        return min(greatest, began)

    def _least_again(self, cursor: Cursor, watermark: str) -> str:
        return cursor.least_again(watermark, self.source.rule.lookback, self.poller.now())

    def _reported(self, **members: Any) -> PollReport:
        return replace(
            self.report,
            created=self.counts[Op.CREATE] + self.counts[Op.READ],
            updated=self.counts[Op.UPDATE],
            deleted=self.counts[Op.DELETE],
            watermark=self.state.watermark,
            problems=tuple(self.problems[:PROBLEMS_MAX]),
            **members,
        )

    # --- publishing -------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Publish what was found, a chunk at a time; each write of the state between two chunks
        confirms the one and announces the other.
        """
        changes, most = list(self.found.changes.values()), self.poller.publish_events_max
        for start in range(0, len(changes), most):
            chunk = self.found.with_before(changes[start : start + most], self.source.contract)
            if not self.dry_run:
                self._tell(chunk, start, len(changes))
            for change in chunk:
                self.counts[change.op] += 1
            self._know(
                replace(
                    self.state,
                    snapshot=self._told(chunk),
                    pending=self.state.pending - {change.key for change in chunk},
                )
            )
        self.found.changes.clear()

    def _tell(self, chunk: Sequence[Change], start: int, total: int) -> None:
        """Reserve versions and name the keys in the state, then publish."""
        poller = self.poller
        first = VersionClock(poller.now, last=self.state.version).take(len(chunk))
        pending = self.state.pending | {change.key for change in chunk}
        self._settle(version=first + len(chunk) - 1, pending=pending)
        published = poller.stream.publish(
            events_of(
                chunk,
                self.source.contract,
                source=self.source.name,
                first_version=first,
                accepted_at=poller.now(),
                occurred_at=self.source.occurred_at,
            )
        )
        if not published.complete:
            accepted = start + len(published.accepted)
            raise PublishIncompleteError(self.source.name, accepted, total, published.detail)
        self.listing.published += len(chunk)
        self.report = replace(self.report, published=self.report.published + len(chunk))

    def _told(self, chunk: Sequence[Change]) -> Snapshot:
        """The snapshot once the stream has accepted `chunk`."""
        keep_rows = self.source.rule.keep_rows
        if keep_rows is None:
            keep_rows = len(self.state.snapshot) + len(chunk) <= ROWS_KEPT_MAX
        return applied(
            self.state.snapshot,
            chunk,
            keep_rows=keep_rows,
            cursor=self.cursor,
            deleted_at=None if self.cursor is None else self._deleted_at(self.cursor),
        )

    def _deleted_at(self, cursor: Cursor) -> str | None:
        """The cursor at which a delete is remembered: as if it were a change of now."""
        now = cursor.at(self.poller.now())
        return now or self.listing.greatest or self.listing.watermark

    def _know(self, state: PollState) -> None:
        """Go on from this state, without writing it yet."""
        self.state = state
        self.found.snapshot, self.found.pending = state.snapshot, state.pending

    def _settle(self, **members: Any) -> None:
        """Write the state with these members, unless it says nothing new."""
        self.state = replace(self.state, **members)
        if self.dry_run or self.state == self.saved:
            return
        self.etag = self.poller.states.save(self.source.name, self.state, etag=self.etag)
        self.saved = self.state
