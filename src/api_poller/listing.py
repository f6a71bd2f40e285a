"""A declared source, listed page by page without being believed.

Whatever pages a server gives, every row in them is told, and at the end the listing says whether
what it did not show can be taken for gone. Rows that move between pages, repeated pages, totals
that do not add up and rows without a key make it start over or say no. It keeps its place in a
token after every page, so that a poll may stop anywhere and another go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import quote, urlencode

from api_poller.changes import Skipped, SyncRule
from api_poller.declaration import (
    FullSync,
    KeysetPagination,
    NoPagination,
    OffsetPagination,
    PagePagination,
    ParentValues,
    SourceDeclaration,
)
from api_poller.http import SourceAnswerError, SourceRefusedError, SourceUnavailableError
from api_poller.pagination import (
    Ask,
    Pager,
    Position,
    Reading,
    Turn,
    identity_of,
    pager_for,
    total_of,
)
from api_poller.periods import Periods
from api_poller.records import (
    JsonObject,
    MalformedError,
    Mapped,
    Mapper,
    RecordsPath,
    decode,
)
from api_poller.transport import Answer, Request
from freshet.contract import Contract, Row
from freshet.event import json_value
from freshet.pii import Protector

# A source whose rows move during each of four listings is too busy for its page size.
LISTING_ATTEMPTS_MAX = 4
TOKEN_FORMAT = 1
_ACCEPT = {
    "json": "application/json",
    "json_lines": "application/x-ndjson, application/json",
    "csv": "text/csv",
}
_LATER = "nothing of this page was published"


@dataclass(frozen=True, slots=True)
class Page:
    """Rows by key text, keys that are marked as deleted, and what does not fit the contract.

    `resume` goes on after this page; None after the last page of a listing or window.
    """

    rows: Mapping[str, Row]
    deleted: frozenset[str] = frozenset()
    skipped: Sequence[Skipped] = ()
    resume: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether everything was shown, so that absence may be trusted and the watermark advance."""

    complete: bool
    reason: str | None = None


class Session(Protocol):
    """One source's conversation; see `api_poller.http.Session`."""

    def fetch(self, request: Request) -> Answer:
        """The whole answer, status 2xx. Raises `SourceError`, `SourceRefusedError`."""
        ...

    def unsigned(self, url: str) -> str:
        """The address without a key in it."""
        ...


# The values to list a source for, and whether they are all there are.
Parents = Callable[[datetime], tuple[Sequence[str], Outcome]]


@dataclass(frozen=True)
class DeclaredSource:
    """A source as declared, over a session for one poll.

    `parents` gives the parents' values where they come from another source (see `parents_of`).
    With a `protector`, what it shows is without personal data: rows, keys and doubts alike.
    """

    name: str
    declaration: SourceDeclaration
    contract: type[Contract]
    session: Session
    parents: Parents | None = None
    protector: Protector | None = None

    @property
    def rule(self) -> SyncRule:
        """How it is kept in step."""
        sync = self.declaration.sync
        keep_place = not names_personal(self.declaration, self.contract)
        if isinstance(sync, FullSync):
            return SyncRule(
                delete_share_max=sync.delete_share_max,
                keep_rows=sync.keep_rows,
                keep_place=keep_place,
            )
        return SyncRule(
            cursor=sync.cursor,
            lookback=timedelta(days=sync.lookback_days),
            keep_rows=sync.keep_rows,
            keep_place=keep_place,
        )

    def pages(
        self,
        watermark: str | None,
        now: datetime,
        resume: str | None,
        missing: Callable[[], bool] = lambda: True,
    ) -> Generator[Page, None, Outcome]:
        """What it shows from the watermark on, or after the page that came with `resume`.

        A window that is not the last ends in a page without `resume`. A token of another
        declaration begins anew. `missing` says whether a known row was not shown so far: where none
        is, nothing has to be confirmed by a second look. Raises `SourceError`,
        `SourceRefusedError`.
        """
        values, known = self._parent_values(now)
        listing = _Listing(self, watermark, now, values, missing)
        place = listing.first() if resume is None else listing.place_of(resume)
        outcome = yield from listing.read(place)
        return known if outcome.complete and not known.complete else outcome

    def occurred_at(self, row: Row) -> datetime | None:
        """The source's own time of a row's change; a day is its midnight in UTC."""
        column = self.declaration.occurred_at
        value = None if column is None else row[column]
        if isinstance(value, date) and not isinstance(value, datetime):
            return datetime.combine(value, time(), UTC)
        return value

    @cached_property
    def mapper(self) -> Mapper:
        """What makes rows of its records."""
        return Mapper(self.declaration, self.contract, self.protector)

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that a resume token depends on."""
        text = self.declaration.model_dump_json(exclude={"limits", "schedule", "description"})
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def _parent_values(self, now: datetime) -> tuple[Sequence[str | None], Outcome]:
        declared = self.declaration.parents
        if declared is None:
            return [None], Outcome(complete=True)
        if isinstance(declared, ParentValues):
            return sorted(set(declared.values)), Outcome(complete=True)
        assert self.parents is not None, f"source {self.name!r} was composed without its parents"
        values, outcome = self.parents(now)
        if not outcome.complete:
            outcome = Outcome(
                complete=False, reason=f"its parents in {declared.source}: {outcome.reason}"
            )
        return sorted(set(values)), outcome


def names_personal(declaration: SourceDeclaration, contract: type[Contract]) -> bool:
    """Whether a place in its listing, which is a row's own value, may be personal data."""
    personal = [column.name for column in contract.columns if column.pii]
    match declaration.pagination:
        case NoPagination() | PagePagination() | OffsetPagination():
            return False
        case KeysetPagination(path=path):
            mapped = (declaration.columns[name] for name in personal if name in declaration.columns)
            return any(path in mapping.paths for mapping in mapped)
        case _:  # the server's own cursors and addresses: what they hold is mostly a row's key
            return any(name in contract.key for name in personal)


def parents_of(source: DeclaredSource, column: str) -> Parents:
    """The values of a column of everything that `source` lists."""

    def values(now: datetime) -> tuple[Sequence[str], Outcome]:
        found: set[str] = set()
        pages = source.pages(None, now, None)
        while True:
            try:
                page = next(pages)
            except StopIteration as end:
                outcome: Outcome = end.value
                return sorted(found), outcome
            listed = (row[column] for row in page.rows.values())
            found.update(str(json_value(value)) for value in listed if value is not None)

    return values


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a listing stands.

    `pages` counts pages with records, `items` those records, `read` the records in them and `shown`
    the rows of this attempt at this parent's window; `before` is what was read before it. `doubt`
    is the first reason not to trust the end of this attempt, `settled` that of those before.
    `agreed` is the digest of the attempt before; `gap` the first window without rows since one that
    had some. `closed` says that a window with rows has just ended.
    """

    parent: str | None = None
    since: str | None = None
    until: str | None = None
    attempt: int = 1
    position: Position | None = None
    pages: int = 0
    items: int = 0
    read: int = 0
    shown: int = 0
    before: int = 0
    total: int | None = None
    digest: str = ""
    agreed: str = ""
    doubt: str | None = None
    settled: str | None = None
    gap: str | None = None
    closed: bool = False
    done: bool = False

    def doubting(self, *reasons: str | None) -> _Place:
        """The same place with the first of these reasons, unless there is one already."""
        found = next((reason for reason in (self.doubt, *reasons) if reason), None)
        return replace(self, doubt=found)


class _Listing:
    """One listing under way. What it knows beyond its place only makes it notice more."""

    def __init__(
        self,
        source: DeclaredSource,
        watermark: str | None,
        now: datetime,
        parents: Sequence[str | None],
        missing: Callable[[], bool],
    ) -> None:
        self.source, self.declared, self.missing = source, source.declaration, missing
        self.watermark, self.parents = watermark, parents
        self.periods = Periods(self.declared, source.contract, watermark, now)
        self.pager: Pager = pager_for(self.declared.pagination)
        self.path = RecordsPath(self.declared.records)
        self.full = isinstance(self.declared.sync, FullSync)
        # Keys of this attempt; positions asked for in it; the records of its last page.
        self.seen, self.asked = set[str](), set[str]()
        self.last: Sequence[str] = ()
        # The parent that a row was told for: the first that lists it.
        self.told: dict[str, str | None] = {}

    # --- places -----------------------------------------------------------------------------------

    def first(self) -> _Place:
        """The place before the first page."""
        if not self.parents:
            return _Place(done=True)
        return self._at_parent(_Place(), self.parents[0])

    def _at_parent(self, place: _Place, parent: str | None) -> _Place:
        since, until = self.periods.first()
        return self._anew(replace(place, parent=parent, since=since, until=until, gap=None))

    def _anew(self, place: _Place, *, attempt: int = 1, agreed: str = "") -> _Place:
        """The first page of a parent's window, for the first time or again."""
        self.seen, self.asked, self.last = set(), set(), ()
        return _Place(
            parent=place.parent,
            since=place.since,
            until=place.until,
            attempt=attempt,
            position=self.periods.position(place.since),
            before=place.before,
            agreed=agreed,
            settled=place.settled,
            gap=place.gap,
        )

    def token(self, place: _Place) -> str | None:
        """The place as a text that another process can take up."""
        if place.done:
            return None
        if place.gap is not None:  # the gap may be a fault: it is where to go on, not behind it
            until = self.periods.until(place.gap)
            place = replace(self._anew(place), since=place.gap, until=until, gap=None)
        unsaid = asdict(_Place())
        said = {name: value for name, value in asdict(place).items() if value != unsaid[name]}
        head = {"v": TOKEN_FORMAT, "of": self.source.fingerprint}
        return json.dumps(head | said, separators=(",", ":"), ensure_ascii=False)

    def place_of(self, token: str) -> _Place:
        """The place that a token names; the first one where it is of another declaration."""
        try:
            said = json.loads(token)
            if (said.pop("v"), said.pop("of")) != (TOKEN_FORMAT, self.source.fingerprint):
                return self.first()
            place = _Place(**said)
        except (ValueError, TypeError, KeyError, AttributeError):
            return self.first()
        if place.parent in self.parents:
            return place
        return self._after_parent(replace(place, doubt=None))  # this one is gone: on to the next

    # --- from page to page ------------------------------------------------------------------------

    def read(self, place: _Place) -> Generator[Page, None, Outcome]:
        """Page after page from a place on."""
        while not place.done:
            page, place = self._step(place)
            yield page
            if place.settled and not self.full:
                break  # an incremental source goes on only from what is complete
        return Outcome(complete=place.settled is None, reason=place.settled)

    def _step(self, place: _Place) -> tuple[Page, _Place]:
        """One page, and the place after it."""
        self.asked.add(_written_position(place.position))
        reading, records = self._reading(place)
        told: Sequence[Sequence[Mapped]] = ()
        if reading is None:
            gone = "a page is gone" if place.position else None
            following = self._after_attempt(place.doubting(gone))
        elif self._repeats(reading):
            detail = "the server repeats its pages: check the parameters of `pagination`"
            following = self._after_attempt(place.doubting(detail))
        else:
            self.last = reading.identities
            told, following = self._turned(place, reading, records)
        return self._page(place, told, following), following

    def _turned(
        self, place: _Place, reading: Reading, records: Sequence[Sequence[Mapped]]
    ) -> tuple[Sequence[Sequence[Mapped]], _Place]:
        """What a page tells that the one before did not, and the place after it."""
        turn = self._turn(place, reading)
        if turn.moved is not None:
            return records, self._again(place, turn.moved)
        fresh = [records[at] for at in turn.fresh]
        noted = self._noted(place, reading, fresh, turn)
        moved = self._moved(place, noted, fresh)
        if moved is not None:
            return fresh, self._again(noted, moved)
        if turn.next is None:
            return fresh, self._after_attempt(noted)
        if _written_position(turn.next) in self.asked:
            detail = "the server names a next page that it has named before"
            return fresh, self._after_attempt(noted.doubting(detail))
        return fresh, replace(noted, position=turn.next)

    def _noted(
        self, place: _Place, reading: Reading, fresh: Sequence[Sequence[Mapped]], turn: Turn
    ) -> _Place:
        """The place with what a page adds to its counts and doubts."""
        records = [record for item in fresh for record in item]
        shown = sum(record.row is not None or record.skipped is not None for record in records)
        total = place.total if reading.document is None else self._total(reading)
        noted = replace(
            place,
            pages=place.pages + bool(fresh),
            items=place.items + len(fresh),
            shown=place.shown + shown,
            read=place.read + len(records),
            total=total,
            closed=False,
            digest=_chained(place.digest, [reading.identities[at] for at in turn.fresh]),
        )
        self._check_bounds(noted, reading.url)
        unreadable = self.full and any(
            record.skipped is not None and record.key is None for record in records
        )
        return noted.doubting(turn.fault, "a record has no usable key" if unreadable else None)

    def _check_bounds(self, place: _Place, url: str) -> None:
        rows_max = self.declared.limits.rows_max
        if place.before + place.read > rows_max:
            raise self._unusable(
                url,
                f"lists more than {rows_max} records",
                "check that the parameters of `pagination` are heeded, or raise `limits.rows_max`",
            )
        if place.gap is not None and place.shown:
            raise self._unusable(
                url,
                f"answers no rows for a period between rows: from {place.gap} on",
                "if there are such periods, say so by `sync.empty_windows`",
            )

    def _moved(
        self, before: _Place, noted: _Place, fresh: Sequence[Sequence[Mapped]]
    ) -> str | None:
        """Why rows must have moved since the attempt began; only a whole listing minds."""
        if not self.full:
            return None
        if before.total not in (None, noted.total):
            return f"the total went from {before.total} to {noted.total}"
        if isinstance(self.declared.pagination, KeysetPagination):
            return None  # a record that changes comes again, by order
        for record in (record for item in fresh for record in item):
            if record.key is not None and record.key in self.seen:
                return f"{record.key!r} is listed twice"
            self.seen.add(record.key or "")
        return None

    def _again(self, place: _Place, moved: str) -> _Place:
        """The beginning of the next attempt; past the last one, the doubt that remains."""
        if place.attempt < LISTING_ATTEMPTS_MAX and not self._at_once():
            return self._anew(place, attempt=place.attempt + 1)
        if not self._at_once():
            moved = (
                f"rows moved between pages in each of {LISTING_ATTEMPTS_MAX} listings ({moved}): "
                "raise `pagination.page_rows` so that a listing takes fewer pages"
            )
        return self._after_window(place.doubting(moved))

    def _at_once(self) -> bool:
        return isinstance(self.declared.pagination, NoPagination)

    def _after_attempt(self, place: _Place) -> _Place:
        """After the last page: read it all again to be sure, or go on behind it."""
        total, items = place.total, place.items
        if total is not None and (items < total or (self.full and items > total)):
            place = place.doubting(f"{items} records are listed, and the total says {total}")
        second = self._wants_second_look() and place.pages > 1 and place.doubt is None
        if not second or place.digest == place.agreed:
            return self._after_window(place)
        if place.attempt < LISTING_ATTEMPTS_MAX:
            return self._anew(place, attempt=place.attempt + 1, agreed=place.digest)
        return self._again(place, "no two listings agreed")

    def _wants_second_look(self) -> bool:
        """Most pages cannot tell that rows moved: for a row to be gone, two listings must agree."""
        match self.declared.pagination:
            case OffsetPagination(overlap=True) | KeysetPagination() | NoPagination():
                return False
            case paged:
                return self.full and paged.confirm and self.missing()

    def _after_window(self, place: _Place) -> _Place:
        known = bool(place.before or self.watermark)
        place = replace(
            place, settled=place.settled or place.doubt, before=place.before + place.read
        )
        if self.periods.gaps_are_faults and not place.shown and known:
            place = replace(place, gap=place.gap or place.since)
        following = self.periods.after(place.until)
        if following is None:
            return self._after_parent(place)
        since, until = following
        anew = self._anew(replace(place, since=since, until=until))
        return replace(anew, closed=place.shown > 0)

    def _after_parent(self, place: _Place) -> _Place:
        parents = [parent for parent in self.parents if (parent or "") > (place.parent or "")]
        if not parents:
            return replace(place, done=True)
        return self._at_parent(place, parents[0])

    # --- one page ---------------------------------------------------------------------------------

    def _page(self, place: _Place, items: Sequence[Sequence[Mapped]], following: _Place) -> Page:
        """What is told of some items, and where to go on."""
        rows: dict[str, Row] = {}
        deleted: set[str] = set()
        skipped: dict[str | None, Skipped] = {}
        in_order = isinstance(self.declared.pagination, KeysetPagination)
        for record in (record for item in items for record in item):
            key = record.key
            if record.skipped is not None:
                skipped[key] = record.skipped
            elif key is None or self.told.setdefault(key, place.parent) != place.parent:
                continue
            elif record.deleted:
                deleted.add(key)
            elif record.row is not None and self.periods.is_outside(
                place.since, place.until, record.row
            ):
                skipped[key] = Skipped(key, "outside the period asked for", self.periods.column)
            elif record.row is not None:
                if rows.setdefault(key, record.row) != record.row and not in_order:
                    skipped[key] = Skipped(key, "two different rows for one key", None)
                rows[key] = record.row
        kept = {key: row for key, row in rows.items() if key not in skipped and key not in deleted}
        resume = None if self._ends_window(following) else self.token(following)
        return Page(kept, frozenset(deleted), list(skipped.values()), resume)

    def _ends_window(self, following: _Place) -> bool:
        """Whether everything up to the end of a window with rows is told after this page."""
        if self.full or following.done or self.parents != [None]:
            return following.done
        return following.closed

    def _repeats(self, reading: Reading) -> bool:
        """A page like the one before; with an overlap of one record, only from two on."""
        if isinstance(self.declared.pagination, KeysetPagination):
            return False
        return len(reading.items) > 1 and reading.identities == self.last

    def _reading(self, place: _Place) -> tuple[Reading | None, list[list[Mapped]]]:
        """An answer and its records by item; None for a status that means: nothing there."""
        answer = self._fetch(self._url(place))
        if answer is None:
            return None, []
        try:
            document, items = self._decoded(answer)
        except MalformedError as error:
            raise self._unusable(answer.url, error.detail, error.advice) from error
        mapper = self.source.mapper
        records = [
            [mapper.map(record) for record in self.path.records(item, place.parent)]
            for item in items
        ]
        identities = [
            next((one.key for one in mapped if one.key is not None), None) or identity_of(item)
            for item, mapped in zip(items, records, strict=True)
        ]
        return Reading(answer.url, answer.headers, document, items, identities), records

    def _decoded(self, answer: Answer) -> tuple[Any, list[JsonObject]]:
        if not answer.body and self.declared.answers.empty_body:
            return None, []
        if self.declared.format != "json" and answer.body and not answer.measured:
            raise MalformedError(
                "answers without saying how long its answer is",
                "a cut could look whole: poll again",
            )
        if self.declared.format != "json" and not answer.body.strip():
            raise MalformedError(
                "answers nothing at all", "if that means no records, say so by `answers.empty_body`"
            )
        document = decode(answer.body, self.declared)
        return document, self.path.items(document)

    def _turn(self, place: _Place, reading: Reading) -> Turn:
        asked = getattr(self.declared.pagination, "page_rows", None)
        count = len(reading.items)
        if asked is not None and getattr(self.declared.pagination, "limit", None) and count > asked:
            raise self._unusable(
                reading.url,
                f"answers {count} records where {asked} were asked for",
                "check that the parameters of `pagination` are heeded at this address",
            )
        try:
            return self.pager.turn(place.position or {}, reading)
        except MalformedError as error:
            raise self._unusable(reading.url, error.detail, error.advice) from error

    def _total(self, reading: Reading) -> int | None:
        try:
            return total_of(self.declared.pagination, reading)
        except MalformedError as error:
            raise self._unusable(reading.url, error.detail, error.advice) from error

    # --- one request ------------------------------------------------------------------------------

    def _url(self, place: _Place) -> str:
        ask: Ask = self.pager.ask(place.position or {})
        if ask.url is not None:
            return ask.url
        parent = place.parent or ""
        path = self.declared.path.replace("{parent}", quote(parent, safe=""))
        params = {
            **{
                name: text.replace("{parent}", parent)
                for name, text in self.declared.params.items()
            },
            **self.periods.params(place.since, place.until),
            **ask.params,
        }
        query = f"?{urlencode(params)}" if params else ""
        return f"{self.declared.url}{path}{query}"

    def _fetch(self, url: str) -> Answer | None:
        accept = _ACCEPT[self.declared.format]
        request = Request("GET", url, headers=dict(self.declared.headers), accept=accept)
        answers = self.declared.answers
        try:
            answer = self.source.session.fetch(request)
        except SourceRefusedError as error:
            if error.status in answers.empty_statuses:
                return None
            if error.status not in answers.transient_statuses:
                raise
            raise SourceUnavailableError(
                self.source.name,
                error.url,
                f"answers {error.status}, which it has also done for what it had",
                advice="the next poll asks again; if it lasts for days, check `url` and `path`",
                status=error.status,
            ) from error
        return answer

    def _unusable(self, url: str, detail: str, advice: str) -> SourceAnswerError:
        advice = f"{advice}; {_LATER}"
        return SourceAnswerError(self.source.name, url, detail, advice=advice, status=200)


def _written_position(position: Position | None) -> str:
    return json.dumps(position or {}, sort_keys=True)


def _chained(digest: str, identities: Sequence[str]) -> str:
    """A digest of all records in order that can go on from its own text."""
    if not identities:
        return digest
    text = "\x1f".join((digest, *identities))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()
