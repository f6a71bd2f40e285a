"""Listings of servers that do to their pages what servers do, and what may be believed then."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api_poller.changes import Skipped
from api_poller.declaration import SourceDeclaration, parse_source
from api_poller.http import SourceAnswerError, SourceRefusedError
from api_poller.listing import DeclaredSource, Outcome, Page, parents_of
from api_poller.transport import Answer, Request
from freshet.contract import Row
from freshet.tables import TABLES

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
COLUMNS = """
columns:
  product_id: { path: id, as: text }
  title: name
  price: price
  currency: { constant: EUR }
  updated_at: at
"""
Query = Mapping[str, str]
Reply = Callable[[str, Query], Any]


class Server:
    """Answers documents (or whole answers) from a function of path and query."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.urls: list[str] = []
        self.requests: list[Request] = []

    def fetch(self, request: Request) -> Answer:
        self.urls.append(request.url)
        self.requests.append(request)
        parts = urlsplit(request.url)
        found = parse_qs(parts.query, keep_blank_values=True)
        query = {name: values[0] for name, values in found.items()}
        made = self.reply(parts.path, query)
        if isinstance(made, Answer):
            return made
        return Answer(request.url, 200, {}, json.dumps(made).encode(), measured=True)

    def unsigned(self, url: str) -> str:
        return url


def declared(text: str, columns: str = COLUMNS, table: str = "products") -> SourceDeclaration:
    head = f"table: {table}\nurl: https://shop.example/api\npath: /items\n"
    return parse_source(f"{head}{text}\n{columns}", "sources/shop.yaml")


def source_of(text: str, reply: Reply, columns: str = COLUMNS) -> DeclaredSource:
    return DeclaredSource("shop", declared(text, columns), TABLES["products"], Server(reply))


def server_of(source: DeclaredSource) -> Server:
    assert isinstance(source.session, Server)
    return source.session


def item(number: int, at: str = "2026-11-20T00:00:00Z", **members: Any) -> dict[str, Any]:
    return {"id": number, "name": f"Item {number}", "price": 1, "at": at, **members}


def drained(pages: Generator[Page, None, Outcome]) -> tuple[list[Page], Outcome]:
    found: list[Page] = []
    while True:
        try:
            found.append(next(pages))
        except StopIteration as end:
            return found, end.value


def listed(source: DeclaredSource, watermark: str | None = None) -> tuple[list[Page], Outcome]:
    return drained(source.pages(watermark, NOW, None))


def keys(pages: Sequence[Page]) -> list[str]:
    return [key for page in pages for key in page.rows]


def rows(pages: Sequence[Page]) -> dict[str, Row]:
    return {key: row for page in pages for key, row in page.rows.items()}


# --- every kind of pagination ---------------------------------------------------------------------

PAGINATIONS = {
    "page": "pagination: { kind: page, page: page, limit: size, page_rows: 3 }",
    "page from 0": "pagination: { kind: page, first: 0, limit: size, page_rows: 3 }",
    "page, total": "pagination: { kind: page, limit: size, page_rows: 3, total: total }",
    "offset": "pagination: { kind: offset, limit: size, page_rows: 3 }",
    "offset, total": "pagination: { kind: offset, limit: size, page_rows: 3, total: total }",
    "offset, no overlap": "pagination: { kind: offset, limit: size, page_rows: 3, overlap: false }",
    "cursor": "pagination: { kind: cursor, cursor: after, next: paging.after }",
    "cursor, more": "pagination: { kind: cursor, cursor: after, last: id, more: paging.more }",
    "next": "pagination: { kind: next, next: paging.next, total: total }",
    "link": "pagination: { kind: link, total_header: X-Total }",
    "keyset": "pagination: { kind: keyset, after: from_id, path: id, limit: size, page_rows: 3 }",
    "keyset, exclusive": (
        "pagination: { kind: keyset, after: after_id, path: id, limit: size, page_rows: 3, "
        "inclusive: false }"
    ),
}


class Catalogue:
    """One list, served in pages of three in every way at once."""

    def __init__(self, items: Sequence[dict[str, Any]], first_page: int = 1) -> None:
        self.items = list(items)
        self.first_page = first_page
        self.pages = 0
        self.before_page: Callable[[int], object] = lambda _: None

    def __call__(self, path: str, query: Query) -> Answer:
        self.pages += 1
        self.before_page(self.pages)
        found = self.items
        if "from_id" in query:
            found = [one for one in found if one["id"] >= int(query["from_id"])]
        if "after_id" in query:
            found = [one for one in found if one["id"] > int(query["after_id"])]
        at = int(query.get("offset", 0))
        if "page" in query:
            at = 3 * (int(query["page"]) - self.first_page)
        if "after" in query:
            at = sum(one["id"] <= int(query["after"]) for one in found)
        page = found[at : at + 3]
        more = at + 3 < len(found)
        following = f"/api/items?offset={at + 3}"
        paging: dict[str, Any] = {"more": more}
        if more:
            paging |= {"next": following, "after": page[-1]["id"]}
        headers = {"x-total": str(len(self.items))}
        if more:
            headers["link"] = f'<{following}>; rel="next", </api/items>; rel="first"'
        body = {"items": page, "total": len(self.items), "paging": paging}
        url = "https://shop.example/api/items"
        return Answer(url, 200, headers, json.dumps(body).encode(), measured=True)


def catalogue_source(kind: str, catalogue: Reply) -> DeclaredSource:
    return source_of(f"records: items\n{PAGINATIONS[kind]}", catalogue)


def catalogue_of(kind: str, count: int) -> Catalogue:
    first = 0 if kind == "page from 0" else 1
    return Catalogue([item(number) for number in range(1, count + 1)], first)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 20])
@pytest.mark.parametrize("kind", PAGINATIONS)
def test_every_pagination_lists_every_row_and_knows_that_it_did(kind: str, count: int) -> None:
    pages, outcome = listed(catalogue_source(kind, catalogue_of(kind, count)))

    assert rows(pages).keys() == {str(number) for number in range(1, count + 1)}
    assert outcome == Outcome(complete=True)
    assert [page.resume is None for page in pages] == [False] * (len(pages) - 1) + [True]


@pytest.mark.parametrize("kind", PAGINATIONS)
def test_a_listing_goes_on_after_any_page_in_another_process(kind: str) -> None:
    """Whatever page it stops at, what was told before and what is told after is everything."""
    pages, _ = listed(catalogue_source(kind, catalogue_of(kind, 10)))

    for stop in range(1, len(pages)):
        again = catalogue_source(kind, catalogue_of(kind, 10))
        rest, outcome = drained(again.pages(None, NOW, pages[stop - 1].resume))
        assert rows([*pages[:stop], *rest]).keys() == {str(number) for number in range(1, 11)}
        assert len(rest) == len(pages) - stop
        assert outcome.complete


@pytest.mark.parametrize("when", range(1, 9))
@pytest.mark.parametrize("kind", PAGINATIONS)
def test_no_delete_while_pages_are_read_makes_another_row_look_gone(kind: str, when: int) -> None:
    """After any page the first row goes: a listing that says it is complete has shown the rest."""
    catalogue = catalogue_of(kind, 10)
    catalogue.before_page = lambda page: catalogue.items.pop(0) if page == when else None

    pages, outcome = listed(catalogue_source(kind, catalogue))

    if outcome.complete:
        assert rows(pages).keys() >= {str(one["id"]) for one in catalogue.items}
    assert outcome.complete or outcome.reason


@given(
    st.sampled_from([*PAGINATIONS]),
    st.lists(st.tuples(st.integers(1, 25), st.booleans(), st.integers(0, 12)), max_size=6),
)
@settings(deadline=None, max_examples=300)
def test_a_listing_that_calls_itself_complete_has_shown_every_row_that_was_always_there(
    kind: str, history: list[tuple[int, bool, int]]
) -> None:
    """Rows come and go anywhere between any two pages."""
    first = 0 if kind == "page from 0" else 1
    catalogue = Catalogue([item(2 * number) for number in range(1, 11)], first)
    always = {str(one["id"]) for one in catalogue.items}

    def happen(page: int) -> None:
        for when, comes, where in history:
            if when == page and comes and 2 * where + 1 not in {o["id"] for o in catalogue.items}:
                catalogue.items.append(item(2 * where + 1))
                catalogue.items.sort(key=lambda one: int(one["id"]))
            elif when == page and not comes and where < len(catalogue.items):
                always.discard(str(catalogue.items.pop(where)["id"]))

    catalogue.before_page = happen

    pages, outcome = listed(catalogue_source(kind, catalogue))

    assert not outcome.complete or rows(pages).keys() >= always


# --- totals, empty and repeated pages -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["page, total", "offset, total", "next"])
@pytest.mark.parametrize("total", [7, 9])
def test_a_total_that_does_not_match_is_told(kind: str, total: int) -> None:
    catalogue = catalogue_of(kind, 8)

    def wrong(path: str, query: Query) -> Answer:
        answer = catalogue(path, query)
        body = json.loads(answer.body) | {"total": total}
        return Answer(answer.url, 200, answer.headers, json.dumps(body).encode(), measured=True)

    pages, outcome = listed(catalogue_source(kind, wrong))

    assert len(rows(pages)) == 8
    assert outcome == Outcome(False, f"8 records are listed, and the total says {total}")


def test_a_total_that_changes_while_pages_are_read_starts_the_listing_over() -> None:
    catalogue = catalogue_of("next", 8)
    catalogue.before_page = lambda page: catalogue.items.pop() if page == 3 else None

    pages, outcome = listed(catalogue_source("next", catalogue))

    assert outcome.complete
    assert keys(pages)[-7:] == [str(number) for number in range(1, 8)]


def test_a_declared_total_that_is_not_there_is_refused() -> None:
    source = source_of(
        "records: items\npagination: { kind: offset, total: count }", lambda *_: {"items": []}
    )

    with pytest.raises(SourceAnswerError, match="no total at count"):
        listed(source)


@pytest.mark.parametrize("kind", ["page", "offset, no overlap", "page, total"])
def test_an_empty_page_in_the_middle_is_read_past_and_not_believed(kind: str) -> None:
    catalogue = catalogue_of(kind, 10)

    def holed(path: str, query: Query) -> Answer:
        answer = catalogue(path, query)
        if query.get("page") == "2" or query.get("offset") == "3":
            body = json.loads(answer.body) | {"items": []}
            return Answer(answer.url, 200, {}, json.dumps(body).encode(), measured=True)
        return answer

    pages, outcome = listed(catalogue_source(kind, holed))

    assert {"1", "2", "3", "10"} <= rows(pages).keys()
    assert not outcome.complete


@pytest.mark.parametrize("kind", ["next", "link", "cursor, more"])
def test_an_empty_page_with_a_next_one_is_a_page_like_others(kind: str) -> None:
    following = {"next": "/api/items?offset=3", "more": True, "after": 3}
    empty = {"items": [], "paging": following, "total": 1}
    last = {"items": [item(1)], "paging": {"more": False}, "total": 1}

    def reply(path: str, query: Query) -> Answer:
        first = not query
        headers = {"x-total": "1"}
        if first:
            headers["link"] = "<https://shop.example/api/items?offset=3>; rel=next"
        body = json.dumps(empty if first else last).encode()
        return Answer("https://shop.example/api/items", 200, headers, body, measured=True)

    kind_text = PAGINATIONS["cursor" if kind == "cursor, more" else kind]
    pages, outcome = listed(source_of(f"records: items\n{kind_text}", reply))

    assert (keys(pages), outcome.complete) == (["1"], True)


@pytest.mark.parametrize("kind", PAGINATIONS)
def test_a_server_that_ignores_its_paging_parameters_ends_and_is_not_believed(kind: str) -> None:
    body = {
        "items": [item(1), item(2), item(3)],
        "total": 9,
        "paging": {"more": True, "after": 3, "next": "/api/items?offset=3"},
    }
    headers = {"link": "</api/items?offset=3>; rel=next", "x-total": "9"}
    asked: list[str] = []

    def reply(path: str, query: Query) -> Answer:
        asked.append(path)
        data = json.dumps(body).encode()
        return Answer("https://shop.example/api/items", 200, headers, data, measured=True)

    pages, outcome = listed(catalogue_source(kind, reply))

    assert rows(pages).keys() == {"1", "2", "3"}
    assert not outcome.complete
    assert len(asked) <= 8


@pytest.mark.parametrize("kind", ["next", "link"])
def test_next_links_that_go_in_a_circle_end(kind: str) -> None:
    """Each page is new, but the third names the first again."""

    def reply(path: str, query: Query) -> Answer:
        at = int(query.get("offset", 0))
        following = f"/api/items?offset={(at + 1) % 3}"
        body = {"items": [item(at)], "paging": {"next": following}, "total": 3}
        headers = {"link": f'<{following}>; rel="next"', "x-total": "3"}
        url = f"https://shop.example/api/items?offset={at}"
        return Answer(url, 200, headers, json.dumps(body).encode(), measured=True)

    source = catalogue_source(kind, reply)

    pages, outcome = listed(source)

    assert rows(pages).keys() == {"0", "1", "2"}
    assert not outcome.complete
    assert len(server_of(source).urls) < 20


def test_a_next_link_to_another_host_is_left_to_the_session_to_refuse() -> None:
    def reply(path: str, query: Query) -> Any:
        if path == "/evil":
            raise SourceRefusedError("shop", path, "is none", advice="add it", status=None)
        return {"items": [item(1)], "paging": {"next": "https://evil.example/evil"}, "total": 2}

    source = catalogue_source("next", reply)

    with pytest.raises(SourceRefusedError):
        listed(source)

    assert server_of(source).urls[-1] == "https://evil.example/evil"


@pytest.mark.parametrize("link", [7, "http://[", {"href": "/x"}])
def test_a_next_link_that_is_no_address_is_refused(link: Any) -> None:
    reply = {"items": [item(1)], "paging": {"next": link}, "total": 2}

    with pytest.raises(SourceAnswerError, match="address"):
        listed(catalogue_source("next", lambda *_: reply))


def test_more_rows_than_a_poll_may_list_are_refused() -> None:
    text = f"records: items\n{PAGINATIONS['cursor']}\nlimits: {{ rows_max: 5 }}"

    with pytest.raises(SourceAnswerError, match="more than 5 records"):
        listed(source_of(text, catalogue_of("cursor", 7)))


def test_listings_that_start_over_do_not_count_towards_the_limit() -> None:
    text = f"records: items\n{PAGINATIONS['page']}\nlimits: {{ rows_max: 10 }}"

    pages, outcome = listed(source_of(text, catalogue_of("page", 10)))

    assert outcome.complete
    assert len(keys(pages)) == 20


@pytest.mark.parametrize("format_", ["csv", "json_lines"])
@pytest.mark.parametrize("body", [b"", b"\r\n"])
def test_nothing_at_all_is_no_listing_unless_declared(format_: str, body: bytes) -> None:
    def reply(path: str, query: Query) -> Answer:
        return Answer("https://shop.example/api/items", 200, {}, body, measured=True)

    with pytest.raises(SourceAnswerError, match="nothing at all"):
        listed(source_of(f"format: {format_}", reply))

    if not body:
        text = f"format: {format_}\nanswers: {{ empty_body: true }}"
        assert listed(source_of(text, reply))[1].complete


def test_a_cursor_without_an_end_ends_at_the_limit() -> None:
    numbers = iter(range(10_000))

    def reply(path: str, query: Query) -> Any:
        number = next(numbers)
        return {"items": [item(number)], "paging": {"after": f"c{number}"}}

    text = f"records: items\n{PAGINATIONS['cursor']}\nlimits: {{ rows_max: 50 }}"

    with pytest.raises(SourceAnswerError, match="more than 50 records"):
        listed(source_of(text, reply))


def test_listings_that_never_agree_are_given_up() -> None:
    catalogue = catalogue_of("page", 10)
    catalogue.before_page = lambda page: catalogue.items.append(item(100 + page))

    _, outcome = listed(catalogue_source("page", catalogue))

    assert not outcome.complete
    assert "in each of 4 listings" in str(outcome.reason)


@pytest.mark.parametrize("kind", ["page", "offset, no overlap", "cursor", "next", "link"])
def test_two_listings_are_not_asked_for_where_no_known_row_is_missing(kind: str) -> None:
    once, twice = catalogue_of(kind, 10), catalogue_of(kind, 10)

    pages, outcome = drained(
        catalogue_source(kind, once).pages(None, NOW, None, missing=lambda: False)
    )
    listed(catalogue_source(kind, twice))

    assert (len(rows(pages)), outcome.complete) == (10, True)
    assert twice.pages == 2 * once.pages


def test_two_listings_are_not_asked_for_where_one_answer_holds_everything() -> None:
    catalogue = catalogue_of("page", 2)

    listed(catalogue_source("page", catalogue))

    assert catalogue.pages == 3  # the page, and two empty ones behind it


# --- ties at the cursor ---------------------------------------------------------------------------

KEYSET = "pagination: { kind: keyset, after: since, path: at, limit: n, page_rows: 3%s }"


def feed(items: Sequence[dict[str, Any]], *, inclusive: bool, cap: int = 3) -> Reply:
    """A feed by change time: from `since` on, or only what is behind it."""

    def reply(path: str, query: Query) -> Any:
        since = query.get("since", "")
        found = [one for one in items if (one["at"] >= since if inclusive else one["at"] > since)]
        return found[: min(cap, int(query["n"]))]

    return reply


def minutes(*at: int) -> list[dict[str, Any]]:
    """Items whose change times are these minutes, in order."""
    return [item(n, at=f"2026-11-20T00:{minute:02}:00Z") for n, minute in enumerate(at, 1)]


@pytest.mark.parametrize("inclusive", [True, False])
@given(ats=st.lists(st.integers(0, 59), max_size=20))
@settings(deadline=None, max_examples=100)
def test_ties_across_the_edge_of_a_page_are_neither_lost_nor_told_twice(
    inclusive: bool, ats: list[int]
) -> None:
    items = minutes(*sorted(ats))
    text = KEYSET % ("" if inclusive else ", inclusive: false")

    pages, outcome = listed(source_of(text, feed(items, inclusive=inclusive)))

    tied = max((ats.count(at) for at in ats), default=0)
    if outcome.complete:
        assert keys(pages) == [str(one["id"]) for one in items]
    else:
        assert tied >= 3
        assert "share at=" in str(outcome.reason)
    assert outcome.complete or tied >= 3


def test_a_feed_that_caps_its_pages_below_what_is_asked_is_noticed_at_a_tie() -> None:
    items = minutes(1, 2, 3, 3, 3, 4)
    text = KEYSET.replace("page_rows: 3", "page_rows: 100") % ""

    pages, outcome = listed(source_of(text, feed(items, inclusive=True, cap=2)))

    assert not outcome.complete
    assert "share at=2026-11-20T00:03:00Z" in str(outcome.reason)
    assert keys(pages) == ["1", "2", "3", "4"]


def test_a_feed_that_is_not_in_order_is_refused() -> None:
    with pytest.raises(SourceAnswerError, match="do not ascend by at"):
        listed(source_of(KEYSET % "", lambda *_: minutes(2, 1)))


def test_numbers_are_compared_as_numbers_and_instants_as_instants() -> None:
    numbers = "pagination: { kind: keyset, after: since, path: id, limit: n, page_rows: 3 }"
    finer = [
        item(1, at="2026-11-20T00:00:00Z"),
        item(2, at="2026-11-20T00:00:00.5Z"),
        item(3, at="2026-11-20T02:00:01+02:00"),
    ]

    def by_id(path: str, query: Query) -> Any:
        return [item(n) for n in (8, 9, 10, 11) if n >= int(query.get("since", 0))][:3]

    assert keys(listed(source_of(numbers, by_id))[0]) == ["8", "9", "10", "11"]
    whole = KEYSET.replace("page_rows: 3", "page_rows: 9") % ""
    replies = iter([finer, finer[-1:]])
    assert keys(listed(source_of(whole, lambda *_: next(replies)))[0]) == ["1", "2", "3"]


# --- incremental ----------------------------------------------------------------------------------

SINCE = """
sync: { mode: incremental, cursor: updated_at, lookback_days: 1, from: { param: since } }
pagination: { kind: none }
"""


def test_an_incremental_source_asks_from_its_watermark_less_the_lookback() -> None:
    source = source_of(SINCE, lambda *_: [])

    listed(source, "2026-11-20T10:00:00.500000Z")
    listed(source)

    assert [parse_qs(urlsplit(url).query).get("since") for url in server_of(source).urls] == [
        ["2026-11-19T10:00:00Z"],
        None,
    ]
    assert (source.rule.cursor, source.rule.lookback.days) == ("updated_at", 1)


def test_a_row_dated_ahead_does_not_keep_all_others_out() -> None:
    source = source_of(SINCE, lambda *_: [])

    listed(source, "2099-01-01T00:00:00Z")

    assert "since=2026-11-20T08%3A30%3A00Z" in server_of(source).urls[0]


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("unix", "1795168800"),
        ("unix_ms", "1795168800000"),
        ("'%d.%m.%Y'", "20.11.2026"),
        ("iso", "2026-11-20T10:00:00Z"),
    ],
)
def test_the_watermark_is_written_as_the_api_wants_it(format_: str, text: str) -> None:
    sync = f"{{ mode: incremental, cursor: updated_at, from: {{ param: s, format: {format_} }} }}"
    source = source_of(f"sync: {sync}", lambda *_: [])

    listed(source, "2026-11-20T10:00:00.9Z")

    assert parse_qs(urlsplit(server_of(source).urls[0]).query)["s"] == [text]


@pytest.mark.parametrize(
    ("inclusive", "asked"), [("true", "2026-11-20T10:00:00Z"), ("false", "2026-11-20T09:59:59Z")]
)
def test_a_feed_goes_on_from_the_watermark_and_reads_its_ties_again(
    inclusive: str, asked: str
) -> None:
    text = f"""
sync: {{ mode: incremental, cursor: updated_at }}
pagination: {{ kind: keyset, after: since, path: at, page_rows: 3, inclusive: {inclusive} }}
"""
    source = source_of(text, lambda *_: [])

    _, outcome = listed(source, "2026-11-20T10:00:00Z")

    assert parse_qs(urlsplit(server_of(source).urls[0]).query)["since"] == [asked]
    assert outcome.complete


WINDOWS = """
pagination: { kind: offset, limit: size, page_rows: 3 }
records: items
sync:
  mode: incremental
  cursor: updated_at
  start: 2026-11-01
  from: { param: since }
  to: { param: until }
  window_days: 7
"""


def orders(catalogue: Sequence[dict[str, Any]]) -> Reply:
    def reply(path: str, query: Query) -> Any:
        inside = [one for one in catalogue if query["since"] <= one["at"] <= query["until"]]
        at = int(query["offset"])
        return {"items": inside[at : at + 3]}

    return reply


def test_windows_of_time_are_read_in_order_and_empty_ones_are_no_end_of_a_window() -> None:
    days = [2, 2, 3, 3, 4, 16, 20]
    items = [item(n, at=f"2026-11-{day:02}T12:00:00Z") for n, day in enumerate(days)]

    pages, outcome = listed(source_of(WINDOWS, orders(items)))

    assert rows(pages).keys() == {str(n) for n in range(7)}
    assert outcome.complete
    ends = [sorted(page.rows) for page in pages if page.resume is None]
    assert len(ends) == 2  # the first week, and the third with the end of all


def test_a_window_goes_on_after_any_of_its_pages() -> None:
    items = [item(n, at=f"2026-11-{2 + n:02}T12:00:00Z") for n in range(18)]
    pages, _ = listed(source_of(WINDOWS, orders(items)))

    for stop in range(1, len(pages)):
        token = pages[stop - 1].resume
        if token is not None:
            rest, outcome = drained(source_of(WINDOWS, orders(items)).pages(None, NOW, token))
            assert rows([*pages[:stop], *rest]).keys() == {str(n) for n in range(18)}
            assert outcome.complete


def test_an_incremental_source_stops_at_the_first_window_that_is_not_complete() -> None:
    """Behind it the watermark would pass what was not shown."""
    items = [item(n, at=f"2026-11-{2 + n:02}T12:00:00Z") for n in range(18)]
    shows = orders(items)
    text = WINDOWS.replace("page_rows: 3", "page_rows: 3, total: total")

    def reply(path: str, query: Query) -> Any:
        total = sum(query["since"] <= one["at"] <= query["until"] for one in items)
        lost = 1 if query["since"].startswith("2026-11-08") else 0
        return shows(path, query) | {"total": total + lost}

    pages, outcome = listed(source_of(text, reply))

    assert rows(pages).keys() < {str(n) for n in range(14)}
    assert not outcome.complete
    assert "the total says" in str(outcome.reason)


# --- parents --------------------------------------------------------------------------------------

CHILDREN = """
path: /shops/{parent}/items
parents: { values: [b, a, c] }
"""


def children(text: str, reply: Reply) -> DeclaredSource:
    declaration = parse_source(
        f"table: products\nurl: https://shop.example/api\n{CHILDREN}{text}{COLUMNS}",
        "sources/shop.yaml",
    )
    return DeclaredSource("shop", declaration, TABLES["products"], Server(reply))


def test_each_parent_is_listed_and_its_value_is_encoded() -> None:
    declaration = parse_source(
        "table: products\nurl: https://shop.example/api\npath: /shops/{parent}/items\n"
        "parents: { values: ['a/b?c'] }\nparams: { of: '{parent}' }\n"
        "columns: { product_id: '@parent', title: name, price: price, currency: {constant: EUR} }",
        "sources/shop.yaml",
    )
    server = Server(lambda *_: [item(1)])

    pages, _ = listed(DeclaredSource("shop", declaration, TABLES["products"], server))

    assert server.urls == ["https://shop.example/api/shops/a%2Fb%3Fc/items?of=a%2Fb%3Fc"]
    assert rows(pages)["a%2Fb%3Fc"]["product_id"] == "a/b?c"


def test_a_row_that_several_parents_list_is_told_for_the_first() -> None:
    def reply(path: str, query: Query) -> Any:
        parent = path.split("/")[3]
        return [item(7, name=f"of {parent}"), item({"a": 1, "b": 2, "c": 3}[parent])]

    pages, outcome = listed(children("", reply))

    assert keys(pages) == ["7", "1", "2", "3"]
    assert rows(pages)["7"]["title"] == "of a"
    assert outcome.complete


def test_children_go_on_after_any_page_and_skip_a_parent_that_is_gone() -> None:
    paged = "pagination: { kind: offset, limit: size, page_rows: 3 }\n"

    def reply(path: str, query: Query) -> Any:
        base = {"a": 10, "b": 20, "c": 30}[path.split("/")[3]]
        return [item(base + n) for n in range(4)][int(query["offset"]) :][:3]

    pages, _ = listed(children(paged, reply))
    expected = {str(base + n) for base in (10, 20, 30) for n in range(4)}

    for stop in range(1, len(pages)):
        rest, outcome = drained(children(paged, reply).pages(None, NOW, pages[stop - 1].resume))
        assert rows([*pages[:stop], *rest]).keys() == expected
        assert outcome.complete
    within_b = next(page.resume for page in pages if "23" not in page.rows and "20" in page.rows)
    source = children(paged, reply)
    fewer = source.declaration.parents.model_copy(update={"values": ("a", "c")})  # type: ignore[union-attr]
    declaration = source.declaration.model_copy(update={"parents": fewer})
    changed = DeclaredSource("shop", declaration, TABLES["products"], Server(reply))
    rest, _ = drained(changed.pages(None, NOW, within_b))
    assert rows(rest).keys() == {str(base + n) for base in (10, 30) for n in range(4)}


def test_children_of_an_incomplete_parent_listing_are_no_proof_either() -> None:
    def shops(path: str, query: Query) -> Any:
        return {"items": [item(1), item(2)][int(query["offset"]) :], "total": 3}

    parent = source_of("records: items\npagination: { kind: offset, total: total }", shops)
    declaration = parse_source(
        "table: products\nurl: https://shop.example/api\npath: /shops/{parent}\n"
        f"parents: {{ source: shops, column: product_id }}\n{COLUMNS}",
        "sources/shop.yaml",
    )
    server = Server(lambda path, _: [item(int(path.rpartition("/")[2]) + 10)])
    source = DeclaredSource(
        "shop", declaration, TABLES["products"], server, parents_of(parent, "product_id")
    )

    pages, outcome = listed(source)

    assert keys(pages) == ["11", "12"]
    assert outcome == Outcome(
        False, "its parents in shops: 2 records are listed, and the total says 3"
    )


def test_no_parents_are_a_complete_listing_of_nothing() -> None:
    parent = source_of("", lambda *_: [])
    declaration = parse_source(
        "table: products\nurl: https://shop.example/api\npath: /shops/{parent}\n"
        f"parents: {{ source: shops, column: product_id }}\n{COLUMNS}",
        "sources/shop.yaml",
    )
    source = DeclaredSource(
        "shop",
        declaration,
        TABLES["products"],
        Server(lambda *_: []),
        parents_of(parent, "product_id"),
    )

    assert listed(source) == ([], Outcome(complete=True))


# --- statuses, tokens, deletes --------------------------------------------------------------------


def refusing(status: int) -> Reply:
    def reply(path: str, query: Query) -> Any:
        if query.get("offset", "0") != "0":
            raise SourceRefusedError("shop", path, "no", advice="look", status=status)
        return [item(1), item(2), item(3)]

    return reply


def test_a_page_that_is_gone_half_way_is_no_end() -> None:
    text = f"{PAGINATIONS['offset']}\nanswers: {{ empty_statuses: [404] }}"

    pages, outcome = listed(source_of(text, refusing(404)))

    assert keys(pages) == ["1", "2", "3"]
    assert outcome == Outcome(False, "a page is gone")


def test_other_refusals_are_told_as_they_are() -> None:
    text = f"{PAGINATIONS['offset']}\nanswers: {{ empty_statuses: [404] }}"

    with pytest.raises(SourceRefusedError):
        listed(source_of(text, refusing(403)))


@pytest.mark.parametrize("token", ["", "{", "[]", "null", '{"v":1}', '{"v":1,"of":"other"}'])
def test_a_token_of_something_else_begins_the_listing_anew(token: str) -> None:
    source = catalogue_source("offset", catalogue_of("offset", 5))

    pages, outcome = drained(source.pages(None, NOW, token))

    assert len(rows(pages)) == 5
    assert outcome.complete


def test_a_token_of_the_declaration_before_a_change_begins_the_listing_anew() -> None:
    first, _ = listed(catalogue_source("offset", catalogue_of("offset", 9)))
    text = f"records: items\n{PAGINATIONS['offset']}\nparams: {{ sort: name }}"
    changed = source_of(text, catalogue_of("offset", 9))

    pages, _ = drained(changed.pages(None, NOW, first[1].resume))

    assert len(rows(pages)) == 9


def test_records_marked_as_deleted_are_told_as_such() -> None:
    text = "deleted: { path: isDeleted, equals: true }"
    reply = [
        item(1),
        item(2, isDeleted=True),
        item(3, isDeleted=False),
        {"id": 4, "isDeleted": True},
        {"isDeleted": True},
        item(5, isDeleted=1),
    ]

    (page,), outcome = listed(source_of(text, lambda *_: reply))

    assert page.rows.keys() == {"1", "3", "5"}
    assert page.deleted == {"2", "4"}
    assert page.skipped == [Skipped(None, "missing_key", "key.product_id")]
    assert not outcome.complete


def test_any_value_marks_a_record_as_deleted_where_none_is_named() -> None:
    reply = [item(1, deletedOn=None), item(2, deletedOn="2026-11-20T00:00:00Z"), item(3)]

    (page,), _ = listed(source_of("deleted: { path: deletedOn }", lambda *_: reply))

    assert list(page.rows) == ["1", "3"]
    assert page.deleted == {"2"}


def test_two_different_rows_for_one_key_in_one_answer_are_reported_and_not_told() -> None:
    reply = [item(1), item(2), item(2, price=9)]

    (page,), outcome = listed(source_of("", lambda *_: reply))

    assert page.rows.keys() == {"1"}
    assert page.skipped == [Skipped("2", "two different rows for one key", None)]
    assert not outcome.complete


def test_headers_and_format_are_asked_for_as_declared() -> None:
    source = source_of("headers: { Accept-Language: en }", lambda *_: [])

    listed(source)

    (request,) = server_of(source).requests
    assert (request.headers, request.accept) == ({"Accept-Language": "en"}, "application/json")
