"""Pagers as the state machines they are: an answer in, what is new and where to go on out."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api_poller.declaration import Pagination
from api_poller.pagination import (
    Pager,
    Position,
    Reading,
    Turn,
    identity_of,
    next_link,
    pager_for,
    total_of,
)
from api_poller.records import MalformedError

PAGINATIONS: TypeAdapter[Any] = TypeAdapter(Pagination)
URL = "https://api.example.com/v1/items?limit=2"


def declared(**members: Any) -> Any:
    return PAGINATIONS.validate_python(members)


def reading(
    *ids: Any, document: Any = None, url: str = URL, member: str = "id", **headers: str
) -> Reading:
    items = [{member: one} for one in ids]
    return Reading(url, headers, document, items, [str(one) for one in ids])


def after(pager: Pager, *answers: Reading) -> tuple[Position, Turn]:
    """Position and turn of the last of these answers, which all but it go on from."""
    position: Position = {}
    for answer in answers[:-1]:
        following = pager.turn(position, answer).next
        assert following is not None
        position = json.loads(json.dumps(following))  # as a token carries it
    return position, pager.turn(position, answers[-1])


def test_no_pagination_asks_once_and_for_nothing() -> None:
    pager = pager_for(declared(kind="none"))

    assert (pager.ask({}).params, pager.ask({}).url) == ({}, None)
    assert pager.turn({}, reading(1, 2)) == Turn(range(2), None)


def test_pages_are_numbered_from_the_first_with_their_size() -> None:
    pager = pager_for(declared(kind="page", page="p", first=0, limit="n", page_rows=2))

    position, turn = after(pager, reading(1, 2), reading(3))

    assert pager.ask({}).params == {"p": "0", "n": "2"}
    assert pager.ask(position).params == {"p": "1", "n": "2"}
    assert turn == Turn(range(1), {"page": 2})


@pytest.mark.parametrize(
    ("members", "asked"),
    [
        ({"kind": "page"}, [{"page": "1"}, {"page": "2"}, {"page": "3"}]),
        (
            {"kind": "offset", "overlap": False, "page_rows": 2},
            [
                {"offset": "0", "limit": "2"},
                {"offset": "2", "limit": "2"},
                {"offset": "4", "limit": "2"},
            ],
        ),
    ],
)
def test_two_empty_pages_in_a_row_are_the_end_and_one_is_a_hole(
    members: dict[str, Any], asked: list[dict[str, str]]
) -> None:
    pager = pager_for(declared(**members))

    hole, behind = after(pager, reading(1, 2), reading(), reading(5))
    _, end = after(pager, reading(1, 2), reading(), reading())

    assert [pager.ask({}).params, pager.ask(hole).params] == [asked[0], asked[2]]
    assert behind.fault == "a page between pages with records was empty"
    assert (end.next, end.fault) == (None, None)


def test_overlapping_pages_begin_with_the_last_record_before() -> None:
    pager = pager_for(declared(kind="offset", page_rows=3))

    second, turn = after(pager, reading(1, 2, 3), reading(3, 4, 5))
    _, end = after(pager, reading(1, 2, 3), reading(3))

    assert pager.ask(second).params == {"offset": "2", "limit": "3"}
    assert turn.fresh == range(1, 3)
    assert pager.ask(turn.next or {}).params == {"offset": "4", "limit": "3"}
    assert end == Turn((), None)


@pytest.mark.parametrize("shifted", [(), (4, 5), (2, 3, 4)])
def test_overlapping_pages_without_that_record_say_that_rows_moved(shifted: tuple[int]) -> None:
    pager = pager_for(declared(kind="offset", page_rows=3))

    _, turn = after(pager, reading(1, 2, 3), reading(*shifted))

    assert turn.moved
    assert turn.next is None


@pytest.mark.parametrize("value", ["c2", 2, Decimal("2.50")])
def test_cursors_are_sent_as_they_came(value: Any) -> None:
    pager = pager_for(declared(kind="cursor", cursor="after", next="meta.next"))

    _, turn = after(pager, reading(1, document={"meta": {"next": value}}))

    assert pager.ask({}).params == {}
    assert pager.ask(turn.next or {}).params == {"after": str(value)}


@pytest.mark.parametrize(
    "document", [{}, {"meta": None}, {"meta": {"next": None}}, {"meta": {"next": ""}}]
)
def test_no_cursor_is_the_end(document: Any) -> None:
    pager = pager_for(declared(kind="cursor", cursor="after", next="meta.next"))

    assert pager.turn({}, reading(1, document=document)).next is None


@pytest.mark.parametrize("value", [True, [], {}, Decimal("1E+999999999")])
def test_a_cursor_that_is_none_is_refused(value: Any) -> None:
    pager = pager_for(declared(kind="cursor", cursor="after", next="next"))

    with pytest.raises(MalformedError, match="neither text nor number at next"):
        pager.turn({}, reading(1, document={"next": value}))


def test_the_last_record_is_the_cursor_while_there_is_more() -> None:
    pager = pager_for(declared(kind="cursor", cursor="after", last="id", more="more"))

    assert pager.turn({}, reading(7, 9, document={"more": True})).next == {"cursor": "9"}
    assert pager.turn({}, reading(7, 9, document={"more": False})).next is None
    with pytest.raises(MalformedError, match="no true or false at more"):
        pager.turn({}, reading(7, document={"more": "yes"}))


def test_a_cursor_that_is_missing_though_there_is_more_is_refused() -> None:
    pager = pager_for(declared(kind="cursor", cursor="after", next="next", more="more"))

    with pytest.raises(MalformedError, match="says that there is more"):
        pager.turn({}, reading(1, document={"more": True}))


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("https://api.example.com/v1/items?page=2", "https://api.example.com/v1/items?page=2"),
        ("/v1/items?page=2", "https://api.example.com/v1/items?page=2"),
        ("?page=2", "https://api.example.com/v1/items?page=2"),
        ("items?page=2", "https://api.example.com/v1/items?page=2"),
        ("//evil.example/x", "https://evil.example/x"),
        ("https://evil.example/x", "https://evil.example/x"),
        (None, None),
        ("", None),
    ],
)
def test_next_links_are_read_from_where_the_answer_came(
    link: str | None, expected: str | None
) -> None:
    body = pager_for(declared(kind="next", next="links.next", limit="n", page_rows=2))
    turn = body.turn({}, reading(1, document={"links": {"next": link}}))

    assert body.ask({}).params == {"n": "2"}
    assert (turn.next or {}).get("url") == expected
    if turn.next is not None:
        assert (body.ask(turn.next).params, body.ask(turn.next).url) == ({}, expected)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('<https://a/2>; rel="next"', "https://a/2"),
        ("</2>; rel=next", "/2"),
        ('</2>; REL="Next"', "/2"),
        ('</1>; rel="prev", </3>; rel="next", </9>; rel="last"', "/3"),
        ('</3?a=1,2;b>; rel="next last"', "/3?a=1,2;b"),
        ('</3>; title="a, b"; rel="next"', "/3"),
        ('</1>; rel="nextish"', None),
        ('</1>; rel="prev"', None),
        ("", None),
        ("nonsense", None),
        ("</1>", None),
    ],
)
def test_link_headers_are_read_as_rfc_8288_writes_them(header: str, expected: str | None) -> None:
    assert next_link(header) == expected


@given(st.text(max_size=200))
def test_any_link_header_is_read_without_an_error(header: str) -> None:
    next_link(header)


def keyset(**members: Any) -> Pager:
    return pager_for(
        declared(kind="keyset", after="since", path="id", limit="n", **{"page_rows": 3, **members})
    )


def test_keyset_asks_from_the_last_value_and_leaves_out_what_it_had() -> None:
    pager = keyset()

    position, turn = after(pager, reading(1, 2, 3), reading(3, 4))

    assert pager.ask({}).params == {"n": "3"}
    assert pager.ask(position).params == {"since": "3", "n": "3"}
    assert list(turn.fresh) == [1]


def test_exclusive_keyset_asks_from_the_value_before_the_last() -> None:
    position, turn = after(keyset(inclusive=False), reading(1, 2, 3), reading(3, 4))

    assert keyset(inclusive=False).ask(position).params == {"since": "2", "n": "3"}
    assert list(turn.fresh) == [1]


def test_a_full_page_of_one_value_is_told_to_be_too_small() -> None:
    tied = [Reading(URL, {}, None, [{"id": 5}] * 3, ["a", "b", "c"])] * 2

    for inclusive in (True, False):
        _, turn = after(keyset(inclusive=inclusive), *tied)
        assert "3 records share id=5, as many as a page holds" in (turn.fault or "")
        assert turn.next is None


@pytest.mark.parametrize("ids", [(2, 1), ("2", "10", "9"), ("b", "a")])
def test_keyset_refuses_records_out_of_order(ids: tuple[Any, ...]) -> None:
    with pytest.raises(MalformedError, match="do not ascend by id"):
        keyset().turn({}, reading(*ids))


def test_keyset_refuses_records_without_the_value() -> None:
    with pytest.raises(MalformedError, match="neither text nor number at id"):
        keyset().turn({}, reading(1, None))


@pytest.mark.parametrize(
    ("members", "document", "headers", "expected"),
    [
        ({"kind": "none"}, {}, {}, None),
        ({"kind": "page"}, {"total": 7}, {}, None),
        ({"kind": "page", "total": "meta.total"}, {"meta": {"total": 7}}, {}, 7),
        ({"kind": "page", "total": "total"}, {"total": "7"}, {}, 7),
        ({"kind": "link", "total_header": "X-Total"}, None, {"x-total": "7"}, 7),
    ],
)
def test_totals_are_read_where_they_are_declared(
    members: dict[str, Any], document: Any, headers: dict[str, str], expected: int | None
) -> None:
    pagination = declared(**members)
    answer = Reading(URL, headers, document, [], [])

    assert total_of(pagination, answer) == expected


@pytest.mark.parametrize("total", [None, -1, "many", 7.5, True, "", "9" * 30])
def test_a_total_that_is_no_count_is_refused(total: Any) -> None:
    with pytest.raises(MalformedError, match="no total at total"):
        total_of(declared(kind="page", total="total"), reading(document={"total": total}))


def test_records_without_a_key_are_the_same_when_they_are_equal() -> None:
    one = {"b": Decimal("1.5"), "a": "\ud800"}

    assert identity_of(one) == identity_of(dict(reversed(one.items())))
    assert identity_of(one) != identity_of({**one, "a": "x"})
