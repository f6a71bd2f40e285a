"""How an unknown API pages: guesses from a first answer, proved by a second one.

A parameter that a server ignores looks like one that works, so no guess is believed until the page
it asks for came and was the right one: other records, or exactly the record that should be first.
Pure: the caller asks what `next_question` wants to know and hands over what came.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

from api_poller.pagination import next_link
from api_poller.records import value_at
from local.observed import NothingToLearnError, Observed, decoded, words

# A page of this many rows is small for every API and still few pages for a large table.
PAGE_ROWS = 100
# Questions to a server nobody knows yet; each guess costs one.
QUESTIONS_MAX = 16

_OFFSETS = ("offset", "skip", "start", "startIndex", "start_index", "from")
_LIMITS = (
    *("limit", "take", "per_page", "page_size", "pageSize", "perPage", "size", "count", "top"),
    *("max_results", "maxResults", "$top"),
)
_PAGES = ("page", "page_number", "pageNumber", "pageNo", "p")
_CURSORS = ("cursor", "page_token", "pageToken", "after", "next_token", "continuation", "next")
# Where nothing in an answer tells: what most APIs call it.
_USUAL: tuple[tuple[str, str | None], ...] = (
    *(("offset", "limit"), ("skip", "limit"), ("page", "limit"), ("page", "per_page")),
    *(("page", "page_size"), ("page", "pageSize"), ("page", "size"), ("page", None)),
)
_TOTALS = (
    *("total", "totalCount", "total_count", "totalItems", "total_items", "totalResults"),
    *("total_results", "totalRecords", "total_records", "totalElements", "count", "@odata.count"),
)
_TOTAL_HEADERS = ("x-total-count", "x-total", "total-count", "x-wp-total", "x-pagination-total")
_MORE = ("has_more", "hasMore", "more", "has_next", "hasNext", "hasNextPage")


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer of the server; header names are lower case."""

    url: str
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


# What came for each address that was asked; None where nothing usable did.
Answers = Mapping[str, Sample | None]


@dataclass(frozen=True, slots=True)
class Guess:
    """A declaration of pagination, and the question that would prove it.

    The answer to `probe` must begin with record number `first_is` (from 0) of the first answer and
    hold at most `most` records, or where that is None, show records that the first does not.
    `owns` are the parameters of the address that the pager sets itself.
    """

    declared: Mapping[str, Any]
    why: str
    probe: str
    owns: frozenset[str] = frozenset()
    first_is: int | None = None
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Paging:
    """What was found: the declaration, what it rests on, and what speaks against it."""

    declared: Mapping[str, Any]
    why: str
    owns: frozenset[str] = frozenset()
    doubts: tuple[str, ...] = ()
    asked: int = 0


def next_question(first: Sample, seen: Observed, answers: Answers) -> str | None:
    """The next address to ask for; None when enough is known."""
    found = _decide(first, seen, answers)
    return found if isinstance(found, str) and len(answers) < QUESTIONS_MAX else None


def paging_of(first: Sample, seen: Observed, answers: Answers) -> Paging:
    """How the server pages, from what it was asked so far."""
    found = _decide(first, seen, answers)
    return found if isinstance(found, Paging) else _unpaged(first, seen, answers)


def _decide(first: Sample, seen: Observed, answers: Answers) -> Paging | str:
    """The paging found, or the address whose answer is needed to go on."""
    if seen.records_path == ".":
        return Paging({"kind": "none"}, "the answer is one record")
    for guess in _guesses(first, seen):
        if guess.probe not in answers:
            return guess.probe
        if _proves(guess, seen, answers[guess.probe]):
            return _sized(guess, first, seen, answers)
    return _unpaged(first, seen, answers)


def _unpaged(first: Sample, seen: Observed, answers: Answers) -> Paging:
    total = _total(first, seen).get("total_rows")
    doubts = []
    if total is not None and total > len(seen.records):
        doubts.append(
            f"the answer speaks of {total} records and holds {len(seen.records)}: find out how the "
            "API pages, or deletes will be wrong"
        )
    elif len(seen.records) < 3:
        doubts.append("too few records to see whether the API pages")
    return Paging(
        {"kind": "none"},
        "no paging seen: one answer holds everything",
        frozenset(),
        tuple(doubts),
        len(answers),
    )


# --- guesses --------------------------------------------------------------------------------------


def _guesses(first: Sample, seen: Observed) -> Iterator[Guess]:
    """Guesses, those with most evidence first."""
    yield from _links(first, seen)
    if seen.format == "json" and isinstance(seen.document, Mapping):
        yield from _cursors(first, seen)
    pairs = list(_paired(_named(first, seen)))
    if not pairs and seen.format != "json":
        return
    for position, limit in dict.fromkeys((*pairs, *_USUAL)):
        yield from _numbered(first, seen, position, limit)


def _links(first: Sample, seen: Observed) -> Iterator[Guess]:
    target = next_link(first.headers.get("link", ""))
    if target:
        url = urljoin(first.url, target)
        yield Guess({"kind": "link", **_header_total(first)}, "the `Link` header names it", url)
    for path, value in _around(seen):
        if isinstance(value, str) and value and _names_next(path) and _is_link(value):
            total = _declared_total(first, seen)
            url = urljoin(first.url, value)
            yield Guess({"kind": "next", "next": path, **total}, f"{path} names it", url)


def _names_next(path: str) -> bool:
    found = words(path)
    return "next" in found and not {"token", "cursor"} & set(found)


def _is_link(value: str) -> bool:
    return value.startswith(("http://", "https://", "/", "?"))


def _cursors(first: Sample, seen: Observed) -> Iterator[Guess]:
    """Cursors in the answer; where it has `has_more`, parameters that take the last key."""
    more = next((path for path, v in _around(seen) if _last(path) in _MORE and v is True), None)
    flag = {"more": more} if more else {}
    total = _declared_total(first, seen)
    for path, value in _around(seen):
        if not (isinstance(value, str) and value) or _is_link(value) or not _names_cursor(path):
            continue
        for name in dict.fromkeys((*_cursor_names(path), *_CURSORS[:4])):
            yield Guess(
                {"kind": "cursor", "cursor": name, "next": path, **flag, **total},
                f"{path} holds a cursor for `{name}`",
                _with(first.url, {name: value}),
                frozenset((name,)),
            )
    if more and len(seen.key) == 1:
        last = value_at(seen.records[-1], seen.key[0])
        for name in ("starting_after", "after", "cursor"):
            yield Guess(
                {"kind": "cursor", "cursor": name, "last": seen.key[0], **flag, **total},
                f"`{name}` takes the last {seen.key[0]}",
                _with(first.url, {name: str(last)}),
                frozenset((name,)),
            )


def _names_cursor(path: str) -> bool:
    found = set(words(path))
    if found & {"previous", "prev", "before"}:
        return False
    return bool(found & {"cursor", "cursors", "token", "continuation"} or _last(path) == "next")


def _cursor_names(path: str) -> Iterator[str]:
    """Parameters that a cursor of this name is likely for: nextPageToken is for pageToken."""
    name = _last(path)
    yield name
    for prefix in ("next_", "next"):
        if name.startswith(prefix) and len(name) > len(prefix):
            rest = name[len(prefix) :]
            yield rest[0].lower() + rest[1:]


def _named(first: Sample, seen: Observed) -> list[str]:
    """Parameters of the address, and numbers that the answer repeats beside the records."""
    given = dict(parse_qsl(urlsplit(first.url).query, keep_blank_values=True))
    found = [_last(path) for path, value in _around(seen) if _is_whole(value)]
    current = {"current_page": "page", "currentPage": "page", "page_no": "page"}
    return list(dict.fromkeys([*given, *(current.get(name, name) for name in found)]))


def _paired(names: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    limits = [name for name in names if name in _LIMITS]
    for position in (name for name in names if name in (*_OFFSETS, *_PAGES)):
        for limit in limits:
            yield position, limit
        if not limits:
            yield position, "limit" if position in _OFFSETS else None


def _numbered(first: Sample, seen: Observed, position: str, limit: str | None) -> Iterator[Guess]:
    """Offsets and page numbers, by asking for small pages whose first record is known."""
    count, total = len(seen.records), _declared_total(first, seen)
    owns = frozenset(filter(None, (position, limit)))
    if position in _OFFSETS and limit and count >= 2:
        start = int(_given(first.url, position, "0"))
        yield Guess(
            {"kind": "offset", "offset": position, "limit": limit, "page_rows": 0, **total},
            f"asked for {position}={start + 1}&{limit}=2, it began with the second record",
            _with(first.url, {position: str(start + 1), limit: "2"}),
            owns,
            first_is=1,
            most=2,
        )
    if position in _PAGES and _given(first.url, position, "1") in ("0", "1"):
        for number, base in ((2, 1), (1, 0)):
            if limit and count >= 3:
                yield Guess(
                    {"kind": "page", "page": position, "first": base, "limit": limit}
                    | {"page_rows": 0, **total},
                    f"asked for {position}={number}&{limit}=2, it began with the third record",
                    _with(first.url, {position: str(number), limit: "2"}),
                    owns,
                    first_is=2,
                    most=2,
                )
        if not limit:
            base = int(_given(first.url, position, "1"))
            yield Guess(
                {"kind": "page", "page": position, "first": base, **total},
                f"asked for {position}={base + 1}, it showed other records",
                _with(first.url, {position: str(base + 1)}),
                owns,
            )


def _given(url: str, name: str, default: str) -> str:
    value = dict(parse_qsl(urlsplit(url).query)).get(name, default)
    return value if value.isascii() and value.isdecimal() and len(value) < 10 else default


# --- proof ----------------------------------------------------------------------------------------


def _proves(guess: Guess, seen: Observed, answer: Sample | None) -> bool:
    records = _records(seen, answer)
    if not records or (guess.most is not None and len(records) > guess.most):
        return False
    if guess.first_is is not None:
        return bool(seen.identity(records[0]) == seen.identity(seen.records[guess.first_is]))
    known = {seen.identity(record) for record in seen.records}
    return seen.identity(records[0]) not in known


def _records(seen: Observed, answer: Sample | None) -> list[Mapping[str, Any]] | None:
    if answer is None:
        return None
    try:
        _, _, document = decoded(answer.url, answer.body, answer.headers.get("content-type", ""))
    except NothingToLearnError:
        return None
    return seen.records_in(document)


def _sized(guess: Guess, first: Sample, seen: Observed, answers: Answers) -> Paging | str:
    """The guess with the rows of a page: those given in the address, or as many as are served."""
    found = Paging(guess.declared, guess.why, guess.owns, asked=len(answers))
    limit = guess.declared.get("limit")
    if not limit:
        return found
    given = int(_given(first.url, limit, "0"))
    if given >= 2:
        return replace(found, declared={**guess.declared, "page_rows": min(given, 10_000)})
    question = _with(first.url, {limit: str(PAGE_ROWS), **_beginning(guess)})
    if question not in answers:
        return question
    rows = _page_rows(first, seen, len(_records(seen, answers[question]) or ()), guess)
    return replace(found, declared={**guess.declared, "page_rows": rows}, asked=len(answers))


def _page_rows(first: Sample, seen: Observed, served: int, guess: Guess) -> int:
    """Rows to ask for, when `served` came where PAGE_ROWS were asked for."""
    if not served:  # refused: more than the API gives at once
        return max(2, len(seen.records))
    if guess.declared["kind"] == "offset":  # goes on behind what came, however little that is
        return PAGE_ROWS
    total = _total(first, seen).get("total_rows", PAGE_ROWS)
    return PAGE_ROWS if served >= min(PAGE_ROWS, total) else max(2, served)


def _beginning(guess: Guess) -> dict[str, str]:
    if guess.declared["kind"] == "offset":
        return {guess.declared["offset"]: "0"}
    if guess.declared["kind"] == "page":
        return {guess.declared["page"]: str(guess.declared["first"])}
    return {}


# --- what stands around the records ---------------------------------------------------------------


def _around(seen: Observed) -> Iterator[tuple[str, Any]]:
    """Paths and values of the answer beside its records, by depth."""
    if not isinstance(seen.document, Mapping):
        return
    waiting: list[tuple[str, Any]] = [("", seen.document)]
    while waiting:
        path, value = waiting.pop(0)
        if path == seen.records_path:
            continue
        if isinstance(value, Mapping) and path.count(".") < 3:
            waiting += [
                (f"{path}.{name}".lstrip("."), one)
                for name, one in value.items()
                if re.fullmatch(r"[^\s*]{1,128}", name) and name.isprintable()
            ]
        elif path and not isinstance(value, list):
            yield path, value


def _last(path: str) -> str:
    return path if path.startswith("@") else path.rpartition(".")[2]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _total(first: Sample, seen: Observed) -> dict[str, Any]:
    """Where the number of all records stands, and that number."""
    count = len(seen.records)
    for name in _TOTALS:
        for path, value in _around(seen):
            # A `count` that is just this page's would end every listing as wrong.
            least = count + 1 if name == "count" else count
            if _last(path) == name and _is_whole(value) and value >= least:
                return {"total": path, "total_rows": value}
    for name in _TOTAL_HEADERS:
        text = first.headers.get(name, "")
        if text.isascii() and text.isdecimal() and int(text) >= count:
            return {"total_header": name, "total_rows": int(text)}
    return {}


def _declared_total(first: Sample, seen: Observed) -> dict[str, Any]:
    found = _total(first, seen)
    found.pop("total_rows", None)
    return found


def _header_total(first: Sample) -> dict[str, Any]:
    name = _TOTAL_HEADERS[0]
    return {"total_header": name} if first.headers.get(name, "").isdecimal() else {}


def _with(url: str, params: Mapping[str, str]) -> str:
    """The address with these query parameters in place of those of the same name."""
    parts = urlsplit(url)
    kept = [
        pair for pair in parse_qsl(parts.query, keep_blank_values=True) if pair[0] not in params
    ]
    query = urlencode([*kept, *params.items()], safe=":,/$@")
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
