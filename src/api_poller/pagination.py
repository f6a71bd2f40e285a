"""How a listing goes from page to page. Pure: a pager says what to ask, and reads what came.

Pages are not a snapshot: rows move while they are read, servers ignore parameters, repeat
themselves or end early. A pager therefore does not only find the next page, it also says which
records of a page were not on the one before, and whether rows must have moved in between. A
position is a small JSON object, so that a listing can be put down between two pages and taken up by
another process.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Protocol
from urllib.parse import urljoin

from pydantic_core import PydanticCustomError

from api_poller.declaration import (
    CursorPagination,
    KeysetPagination,
    LinkPagination,
    NextPagination,
    NoPagination,
    OffsetPagination,
    PagePagination,
    Pagination,
)
from api_poller.records import JsonObject, MalformedError, value_at
from freshet.contract import parse_timestamp

Position = dict[str, Any]

# RFC 8288: a link is `<address>` and parameters up to the next one.
_LINK = re.compile(r"<([^>]*)>([^<]*)")
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,]*))", re.IGNORECASE)
# A double's; written out, 1E+999999999 would fill the memory.
_DIGITS_MAX = 309
_NUMBER = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?")


@dataclass(frozen=True, slots=True)
class Ask:
    """What to ask for: further query parameters, or a whole address in place of the declared."""

    params: Mapping[str, str] = field(default_factory=dict)
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer as a pager sees it. `identities` say which records are the same on two pages."""

    url: str
    headers: Mapping[str, str]
    document: Any
    items: Sequence[JsonObject]
    identities: Sequence[str]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a page meant: the indexes of records not read before, and where to go on.

    `moved` says that rows moved since the page before, `fault` why the end cannot be trusted.
    """

    fresh: Sequence[int]
    next: Position | None
    moved: str | None = None
    fault: str | None = None


class Pager(Protocol):
    """One kind of pagination; the position of the first page is `{}`."""

    def ask(self, position: Position) -> Ask:
        """What to ask for at a position."""
        ...

    def turn(self, position: Position, reading: Reading) -> Turn:
        """What the answer at a position meant. Raises `MalformedError`."""
        ...


def total_of(pagination: Pagination, reading: Reading) -> int | None:
    """How many records the answer says there are in all; None where nothing is declared.

    Raises `MalformedError` for a total that is declared and not there.
    """
    if isinstance(pagination, NoPagination):
        return None
    if pagination.total_header is not None:
        value: Any = reading.headers.get(pagination.total_header.lower())
        return _count(value, f"header {pagination.total_header}")
    if pagination.total is not None:
        return _count(value_at(reading.document, pagination.total), pagination.total)
    return None


def _count(value: Any, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 19:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    raise MalformedError(
        f"answers no total at {where}", "correct `pagination.total` in the declaration"
    )


def identity_of(item: JsonObject) -> str:
    """A digest of a record that has no key: only an equal one is the same."""
    text = json.dumps(item, sort_keys=True, default=str)
    return "#" + hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=12).hexdigest()


def _limits(pagination: Any) -> dict[str, str]:
    if pagination.limit is None:
        return {}
    return {pagination.limit: str(pagination.page_rows)}


@dataclass(frozen=True, slots=True)
class _OnePage:
    def ask(self, position: Position) -> Ask:
        del position
        return Ask()

    def turn(self, position: Position, reading: Reading) -> Turn:
        del position
        return Turn(range(len(reading.items)), None)


@dataclass(frozen=True, slots=True)
class _Pages:
    """Numbered pages; two empty ones in a row are the end, one alone is a hole."""

    declared: PagePagination

    def ask(self, position: Position) -> Ask:
        page = position.get("page", self.declared.first)
        return Ask({self.declared.page: str(page), **_limits(self.declared)})

    def turn(self, position: Position, reading: Reading) -> Turn:
        page = position.get("page", self.declared.first)
        return _counted_turn(position, reading, {"page": page + 1})


@dataclass(frozen=True, slots=True)
class _Offsets:
    """Offsets without overlap; two empty pages in a row are the end, one alone is a hole."""

    declared: OffsetPagination

    def ask(self, position: Position) -> Ask:
        offset = position.get("offset", 0)
        return Ask({self.declared.offset: str(offset), **_limits(self.declared)})

    def turn(self, position: Position, reading: Reading) -> Turn:
        step = len(reading.items) or self.declared.page_rows
        return _counted_turn(position, reading, {"offset": position.get("offset", 0) + step})


def _counted_turn(position: Position, reading: Reading, following: Position) -> Turn:
    """The turn of a page that is found by its number: the next one exists until it is empty."""
    fault = None
    if not reading.items:
        if position.get("empty"):
            return Turn((), None)
        return Turn((), following | {"empty": True})
    if position.get("empty"):
        fault = "a page between pages with records was empty"
    return Turn(range(len(reading.items)), following, fault=fault)


@dataclass(frozen=True, slots=True)
class _Overlapping:
    """Offsets whose pages begin with the last record of the page before.

    If that record does not come again, records before it came or went. A page that brings nothing
    else is the end, so an empty page is never believed.
    """

    declared: OffsetPagination

    def ask(self, position: Position) -> Ask:
        offset = position.get("offset", 0)
        return Ask({self.declared.offset: str(offset), **_limits(self.declared)})

    def turn(self, position: Position, reading: Reading) -> Turn:
        count = len(reading.items)
        overlap = 1 if "last" in position else 0
        if overlap and (not count or reading.identities[0] != position["last"]):
            return Turn((), None, moved="rows moved between two pages")
        if count == overlap:
            return Turn((), None)
        following = {
            "offset": position.get("offset", 0) + count - 1,
            "last": reading.identities[-1],
        }
        return Turn(range(overlap, count), following)


@dataclass(frozen=True, slots=True)
class _Cursors:
    """Cursors that the answer gives, or that its last record is."""

    declared: CursorPagination

    def ask(self, position: Position) -> Ask:
        cursor = {self.declared.cursor: position["cursor"]} if "cursor" in position else {}
        return Ask({**cursor, **_limits(self.declared)})

    def turn(self, position: Position, reading: Reading) -> Turn:
        del position
        cursor = self._cursor(reading)
        fresh = range(len(reading.items))
        return Turn(fresh, None if cursor is None else {"cursor": cursor})

    def _cursor(self, reading: Reading) -> str | None:
        more = self.declared.more and value_at(reading.document, self.declared.more)
        if self.declared.more and not isinstance(more, bool):
            raise MalformedError(
                f"answers no true or false at {self.declared.more}",
                "correct `pagination.more` in the declaration",
            )
        if more is False:
            return None
        if self.declared.next is not None:
            value = value_at(reading.document, self.declared.next)
        elif reading.items:
            value = value_at(reading.items[-1], self.declared.last or "")
        else:
            return None
        if value is None or value == "":
            if more:
                raise MalformedError("says that there is more, and gives no cursor", "poll again")
            return None
        return _parameter(value, self.declared.next or self.declared.last or "")


def _parameter(value: Any, path: str) -> str:
    huge = isinstance(value, Decimal) and abs(value.adjusted()) > _DIGITS_MAX
    if huge or isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise MalformedError(
            f"answers neither text nor number at {path}", "correct `pagination` in the declaration"
        )
    return format(value, "f") if isinstance(value, Decimal) else str(value)


@dataclass(frozen=True, slots=True)
class _NextLinks:
    """Addresses in the answer."""

    declared: NextPagination

    def ask(self, position: Position) -> Ask:
        return Ask(url=position["url"]) if "url" in position else Ask(_limits(self.declared))

    def turn(self, position: Position, reading: Reading) -> Turn:
        del position
        value = value_at(reading.document, self.declared.next)
        if value is not None and not isinstance(value, str):
            raise MalformedError(
                f"answers no address at {self.declared.next}",
                "correct `pagination.next` in the declaration",
            )
        return Turn(range(len(reading.items)), _link_position(reading.url, value))


@dataclass(frozen=True, slots=True)
class _LinkHeaders:
    """Addresses in `Link` headers."""

    declared: LinkPagination

    def ask(self, position: Position) -> Ask:
        return Ask(url=position["url"]) if "url" in position else Ask(_limits(self.declared))

    def turn(self, position: Position, reading: Reading) -> Turn:
        del position
        target = next_link(reading.headers.get("link", ""))
        return Turn(range(len(reading.items)), _link_position(reading.url, target))


def next_link(header: str) -> str | None:
    """The target of rel="next" in a `Link` header (RFC 8288); None where there is none."""
    for found in _LINK.finditer(header):
        rel = _REL.search(found[2])
        if rel and "next" in (rel[1] or rel[2] or "").lower().split():
            return found[1]
    return None


def _link_position(base: str, link: str | None) -> Position | None:
    if not link:
        return None
    try:
        return {"url": urljoin(base, link)}
    except ValueError:  # such as http://[
        raise MalformedError(
            "names a next page that is no address", "report it to the source"
        ) from None


@dataclass(frozen=True, slots=True)
class _Keyset:
    """Records from a value on, in its ascending order.

    The next page is asked for so that all records with the greatest value seen come again: what was
    seen of them is the `edge` and left out. A page of nothing but the edge is the end, unless it is
    full: then more records share the value than a page holds, and there is no way past them.
    """

    declared: KeysetPagination

    def ask(self, position: Position) -> Ask:
        after = {self.declared.after: position["after"]} if "after" in position else {}
        return Ask({**after, **_limits(self.declared)})

    def turn(self, position: Position, reading: Reading) -> Turn:
        values = self._values(reading)
        edge, count = set(position.get("edge", ())), len(values)
        fresh = [at for at, same in enumerate(reading.identities) if same not in edge]
        # A server that went on after a page shorter than asked for caps its pages there.
        capped = position.get("capped", 0)
        if not fresh:
            full = count > 0 and count >= (capped or self.declared.page_rows)
            return Turn((), None, fault=self._stuck(count, values[-1]) if full else None)
        following = self._following(position, reading, values)
        if "count" in position:
            following["capped"] = max(capped, position["count"])
        return Turn(fresh, {**following, "count": count})

    def _values(self, reading: Reading) -> list[str]:
        values = [
            _parameter(value_at(item, self.declared.path), self.declared.path)
            for item in reading.items
        ]
        for one, other in pairwise(values):
            if _order(one) > _order(other):
                raise MalformedError(
                    f"answers records that do not ascend by {self.declared.path}",
                    "keyset pagination needs them sorted: add the API's parameter to `params`",
                )
        return values

    def _following(self, position: Position, reading: Reading, values: Sequence[str]) -> Position:
        last = values[-1]
        tied = [
            same for same, value in zip(reading.identities, values, strict=True) if value == last
        ]
        if self.declared.inclusive:
            after: str | None = last
        else:  # all values greater than the one below the last: the last one's ties come again
            below = [value for value in values if value != last]
            after = below[-1] if below else position.get("after")
        if after == position.get("after"):
            tied = [*position.get("edge", ()), *tied]
        made: Position = {"edge": sorted(set(tied))}
        return made if after is None else made | {"after": after}

    def _stuck(self, count: int, value: str) -> str:
        return (
            f"{count} records share {self.declared.path}={value}, as many as a page holds: raise "
            "`page_rows`, or page by a member that differs"
        )


def _order(value: str) -> tuple[int, Any]:
    """What values are compared by: numbers as numbers, instants as instants, else texts."""
    if _NUMBER.fullmatch(value):
        return 0, Decimal(value)
    try:
        instant: datetime = parse_timestamp(value)
    except PydanticCustomError:
        return 2, value
    return 1, instant


_PAGERS: dict[type[Any], Callable[[Any], Pager]] = {
    NoPagination: lambda _: _OnePage(),
    PagePagination: _Pages,
    OffsetPagination: lambda declared: (_Overlapping if declared.overlap else _Offsets)(declared),
    CursorPagination: _Cursors,
    NextPagination: _NextLinks,
    LinkPagination: _LinkHeaders,
    KeysetPagination: _Keyset,
}


def pager_for(pagination: Pagination) -> Pager:
    """The pager that a declaration asks for."""
    return _PAGERS[type(pagination)](pagination)
