"""`source discover` against servers of every shape: what it proposes loads, and lists all rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from api_poller.app import compose
from api_poller.declaration import parse_source
from api_poller.settings import Settings
from freshet.contract import Contract, Registry
from freshet.tables import TABLES
from freshet.testing import MemoryObjects, MemoryStream
from local import discover as asked
from local.discover import Login, Proposal, contract_module, discover, login_of
from local.observed import NothingToLearnError
from local.sample import ECB_RATES
from local.sample.catalogue import Catalogue, DaySale
from local.sample.ecb import Ecb
from local.sample.serving import Reply, Request, SampleServer
from local.sample.shop import Shop

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
DAY = date(2010, 12, 1)
STAMP = "2026-11-20T21:41:12.000Z"

Rows = Sequence[Mapping[str, Any]]


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of our own need no pauses."""
    limits = asked.LIMITS.model_copy(update={"requests_per_second": None})
    monkeypatch.setattr(asked, "LIMITS", limits)


def products(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "title": f"Product {number}",
            "description": "All that it is",
            "category": "beauty",
            "price": number / 4,
            "rating": 4.31,
            "sku": f"SKU-{number:04}",
            "tags": ["new"],
            "thumbnail": f"https://images.example/{number}.webp",
            "reviews": [{"rating": 5, "reviewerEmail": "ada@mail.com"}],
            "meta": {"createdAt": STAMP, "updatedAt": STAMP},
        }
        for number in range(1, count + 1)
    ]


def carts(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "products": [{"id": 9, "title": "Mug", "price": 2.5, "quantity": 3}],
            "total": 7.5,
            "userId": 40 + number,
            "totalProducts": 1,
        }
        for number in range(1, count + 1)
    ]


def albums(count: int) -> list[dict[str, Any]]:
    dates = ("1981-12-08", "1981-12", "1981")
    return [
        {
            "id": f"2up3OPMp9Tb4dAKM2er{number:03}",
            "type": "album",
            "name": f"Album {number}",
            "album_type": "album",
            "total_tracks": 9,
            "release_date": dates[number % 3],
            "release_date_precision": ("day", "month", "year")[number % 3],
            "images": [{"url": f"https://i.example/{number}", "height": 300}],
            "artists": [{"id": "artist-1", "name": "Ada"}, {"id": "artist-2", "name": "Bob"}],
        }
        for number in range(count)
    ]


def issues(count: int) -> list[dict[str, Any]]:
    return [
        {
            "id": 9_000 + number,
            "title": f"It breaks {number}",
            "user": {"login": "ada", "id": 7},
            "locked": False,
            "comments": number,
            "state_reason": None,
            "updated_at": "2026-11-20T21:41:12Z",
        }
        for number in range(count)
    ]


def answer(body: Any, *headers: tuple[str, str]) -> Reply:
    return Reply(200, json.dumps(body).encode(), headers=headers)


def number(request: Request, name: str, default: int) -> int:
    return int(request.query.get(name, default))


# --- servers --------------------------------------------------------------------------------------

Serve = Callable[[Request], Reply]


def by_skip(name: str, rows: Rows) -> Serve:
    """DummyJSON: skip and limit, a total, a limit in the answer that is the number returned."""

    def serve(request: Request) -> Reply:
        skip, limit = number(request, "skip", 0), number(request, "limit", 30)
        page = rows[skip : skip + limit] if limit else rows
        envelope = {name: page, "total": len(rows), "skip": skip, "limit": len(page)}
        return answer(envelope, ("X-RateLimit-Limit", "100"), ("X-RateLimit-Remaining", "99"))

    return serve


def by_next_link(rows: Rows) -> Serve:
    """Spotify: `next` is an address; more than ten at once are refused."""

    def serve(request: Request) -> Reply:
        offset, limit = number(request, "offset", 0), number(request, "limit", 5)
        if limit > 10:
            return Reply(400, b'{"error":{"status":400,"message":"Invalid limit"}}')
        here = f"http://{request.headers['host']}{request.path}"
        following = f"{here}?offset={offset + limit}&limit={limit}"
        return answer(
            {
                "href": here,
                "items": rows[offset : offset + limit],
                "limit": limit,
                "next": following if offset + limit < len(rows) else None,
                "offset": offset,
                "previous": None,
                "total": len(rows),
            }
        )

    return serve


def by_link_header(rows: Rows) -> Serve:
    def serve(request: Request) -> Reply:
        page, size = number(request, "page", 1), number(request, "per_page", 7)
        here = f"http://{request.headers['host']}{request.path}"
        link = f'<{here}?page={page + 1}&per_page={size}>; rel="next", <{here}>; rel="first"'
        headers = [("Link", link)] if page * size < len(rows) else []
        return answer(rows[(page - 1) * size : page * size], *headers)

    return serve


def by_page(rows: Rows, *, first: int, cap: int = 1000) -> Serve:
    """Numbered pages within an envelope, at most `cap` rows each."""

    def serve(request: Request) -> Reply:
        page, size = number(request, "page", first), min(cap, number(request, "per_page", 10))
        begin = (page - first) * size
        meta = {"page": page, "per_page": size, "total": len(rows)}
        return answer({"meta": meta, "data": rows[begin : begin + size]})

    return serve


def by_cursor(rows: Rows) -> Serve:
    def serve(request: Request) -> Reply:
        begin = int(request.query.get("pageToken", "c0")[1:])
        following = f"c{begin + 6}" if begin + 6 < len(rows) else None
        return answer({"results": rows[begin : begin + 6], "nextPageToken": following})

    return serve


def by_last_key(rows: Rows) -> Serve:
    def serve(request: Request) -> Reply:
        ids = [str(row["id"]) for row in rows]
        after = request.query.get("starting_after")
        begin = 0 if after is None else ids.index(after) + 1
        page = rows[begin : begin + 6]
        return answer({"object": "list", "data": page, "has_more": begin + 6 < len(rows)})

    return serve


def unpaged(rows: Rows) -> Serve:
    return lambda request: answer({"rows": rows})


SHAPES: dict[str, tuple[Serve, str, str, dict[str, Any]]] = {
    "DummyJSON's products": (
        by_skip("products", products(194)),
        "/products",
        "products",
        {"kind": "offset", "offset": "skip", "limit": "limit", "page_rows": 100, "total": "total"},
    ),
    "DummyJSON's carts": (
        by_skip("carts", carts(43)),
        "/carts",
        "carts",
        {"kind": "offset", "offset": "skip", "limit": "limit", "page_rows": 100, "total": "total"},
    ),
    "Spotify's albums": (
        by_next_link(albums(12)),
        "/v1/artists/0TnOYISbd1XYRBk9myaseg/albums?limit=10&include_groups=album",
        "albums",
        {"kind": "next", "next": "next", "total": "total"},
    ),
    "a Link header": (
        by_link_header(issues(23)),
        "/repos/ada/engine/issues?state=all",
        "issues",
        {"kind": "link"},
    ),
    "pages from 1": (
        by_page(issues(41), first=1),
        "/issues",
        "issues",
        {"kind": "page", "page": "page", "first": 1, "limit": "per_page", "page_rows": 100}
        | {"total": "meta.total"},
    ),
    "pages from 0, capped": (
        by_page(issues(41), first=0, cap=15),
        "/issues?page=0",
        "issues",
        {"kind": "page", "page": "page", "first": 0, "limit": "per_page", "page_rows": 15}
        | {"total": "meta.total"},
    ),
    "a cursor in the answer": (
        by_cursor(issues(20)),
        "/issues",
        "issues",
        {"kind": "cursor", "cursor": "pageToken", "next": "nextPageToken"},
    ),
    "the last key as cursor": (
        by_last_key(issues(20)),
        "/issues",
        "issues",
        {"kind": "cursor", "cursor": "starting_after", "last": "id", "more": "has_more"},
    ),
    "one answer": (unpaged(issues(9)), "/issues", "issues", {"kind": "none"}),
}
COUNTS = {
    "DummyJSON's products": 194,
    "DummyJSON's carts": 43,
    "Spotify's albums": 12,
    "a Link header": 23,
    "pages from 1": 41,
    "pages from 0, capped": 41,
    "a cursor in the answer": 20,
    "the last key as cursor": 20,
    "one answer": 9,
}


def tables_with(proposal: Proposal) -> Registry:
    """The declared tables and the proposed one, made of its text as a person would add it."""
    if proposal.contract is None:
        return TABLES
    module: dict[str, Any] = {"__name__": "proposed"}
    exec(compile(contract_module(proposal.contract), "proposed", "exec", dont_inherit=True), module)
    made = [
        one
        for one in module.values()
        if isinstance(one, type) and issubclass(one, Contract) and one is not Contract
    ]
    return Registry((*TABLES, *made))


def listed(proposal: Proposal, folder: Path, **environment: str) -> tuple[int, bool]:
    """How many rows the proposed source lists, and whether it vouches for all of them."""
    unhurried = "limits: {requests_per_second: 1000}\n"
    (folder / f"{proposal.name}.yaml").write_text(proposal.yaml + unhurried)
    names = {"STREAM_NAME": "s", "STATE_BUCKET": "b", "SOURCES_FOLDER": str(folder)}
    settings = Settings.from_env(names | {"ALLOW_LOOPBACK": "true"} | environment)
    composition = compose(
        settings,
        stream=MemoryStream(),
        objects=MemoryObjects(),
        now=lambda: NOW,
        tables=tables_with(proposal),
    )
    pages = composition.source(proposal.name).pages(None, NOW, None)
    keys: set[str] = set()
    while True:
        try:
            page = next(pages)
        except StopIteration as end:
            return len(keys), end.value.complete
        assert not page.skipped
        keys |= page.rows.keys()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_proposal_loads_and_lists_every_row(shape: str, tmp_path: Path) -> None:
    serve, path, table, pagination = SHAPES[shape]

    with SampleServer(serve, base_path="") as server:
        proposal = discover(f"{server.url}{path}", Login())
        declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
        told = listed(proposal, tmp_path)

    assert proposal.table == table
    assert declared.pagination.model_dump(exclude_unset=True) == pagination
    assert told == (COUNTS[shape], True)


def shop(count: int) -> Shop:
    sales = [
        DaySale(DAY, f"S{one:04}", f"Product {one}", Decimal(one) / 4) for one in range(1, count)
    ]
    return Shop(Catalogue(sales))


def test_a_shop_without_total_or_envelope_becomes_products(tmp_path: Path) -> None:
    with shop(131) as server:
        proposal = discover(f"{server.url}/products", Login())
        told = listed(proposal, tmp_path)

    declared = parse_source(proposal.yaml, "proposal")
    mapped = {name: one.path for name, one in declared.columns.items()}
    assert (proposal.table, proposal.contract) == ("products", None)
    assert declared.pagination.kind == "offset"
    assert declared.columns["currency"].constant == "XXX"
    assert "the answer names no currency: replace XXX" in proposal.doubts
    assert mapped | {"currency": None} == {
        "product_id": "id",
        "title": "title",
        "description": "description",
        "price": "price",
        "currency": None,
        "category_id": "category.id",
        "category": "category.name",
        "image_url": "images.0",
        "created_at": "creationAt",
        "updated_at": "updatedAt",
    }
    assert declared.occurred_at == "updated_at"
    assert told == (130, True)


def test_csv_becomes_a_table_with_a_key_of_two_columns(tmp_path: Path) -> None:
    query = "format=csvdata&startPeriod=2010-12-01&endPeriod=2010-12-20&detail=dataonly"
    with Ecb(ECB_RATES) as server:
        url = f"{server.url}/data/EXR/D.USD+GBP.EUR.SP00.A?{query}"
        proposal = discover(url, Login(), table="rates")
        told = listed(proposal, tmp_path)

    declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
    assert declared.format == "csv"
    assert tables_with(proposal)["rates"].key == ("key", "time_period")
    assert declared.params["detail"] == "dataonly"
    assert told == (28, True)
    assert any("KEY and TIME_PERIOD together" in doubt for doubt in proposal.doubts)


def test_a_class_that_is_proposed_is_the_one_the_sample_was_checked_with() -> None:
    serve, path, table, _ = SHAPES["a Link header"]
    with SampleServer(serve, base_path="") as server:
        proposal = discover(f"{server.url}{path}", Login())

    contract = tables_with(proposal)[table]
    assert contract.key == ("issue_id",)
    assert [str(one) for one in contract.partition] == ["bucket[4](issue_id)"]
    assert {one.name: type(one.type).__name__ for one in contract.columns} == {
        "issue_id": "Text",
        "title": "Text",
        "locked": "Flag",
        "comments": "Integer",
        "updated_at": "Timestamp",
    }
    assert [one.name for one in contract.columns if not one.nullable] == ["issue_id"]


def test_what_is_personal_or_never_filled_is_left_for_a_person_to_map() -> None:
    serve, path, _, _ = SHAPES["a Link header"]
    with SampleServer(serve, base_path="") as server:
        proposal = discover(f"{server.url}{path}", Login())

    declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
    assert not any("user" in (one.path or "") for one in declared.columns.values())
    assert "# personal by name, so only map what you need: user.login, user.id" in proposal.yaml
    assert "# not mapped: state_reason (never filled)" in proposal.yaml


def test_values_of_the_sample_are_not_repeated() -> None:
    people = [{"id": one, "email": f"ada{one}@mail.com", "note": "Diamonds"} for one in range(5)]
    with SampleServer(unpaged(people), base_path="") as server:
        proposal = discover(f"{server.url}/people", Login())

    assert "ada" not in proposal.yaml
    assert "Diamonds" not in proposal.yaml + str(proposal.contract)


def test_a_parameter_that_is_ignored_is_not_taken_for_pagination() -> None:
    with SampleServer(unpaged(issues(50)), base_path="") as server:
        proposal = discover(f"{server.url}/issues?limit=20&offset=0", Login())

    declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
    assert declared.pagination.kind == "none"
    assert dict(declared.params) == {"limit": "20", "offset": "0"}


def test_a_longer_total_without_a_way_to_the_rest_is_a_doubt() -> None:
    with SampleServer(lambda _: answer({"total": 900, "rows": issues(50)}), base_path="") as server:
        proposal = discover(f"{server.url}/issues", Login())

    assert any("speaks of 900 records and holds 50" in doubt for doubt in proposal.doubts)


def test_a_next_link_to_another_host_is_not_followed() -> None:
    elsewhere = SampleServer(unpaged(issues(3)), base_path="")
    with elsewhere:

        def serve(_: Request) -> Reply:
            return answer({"items": issues(5), "next": f"{elsewhere.url}/issues?page=2"})

        with SampleServer(serve, base_path="") as server:
            proposal = discover(f"{server.url}/issues", Login())

        assert elsewhere.requests_served == 0
    declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
    assert declared.pagination.kind == "none"
    assert any(
        doubt.startswith("1 questions about pages got no answer") for doubt in proposal.doubts
    )


# --- credentials ----------------------------------------------------------------------------------

SECRET = "bq-4f1c-secret-77"


def guarded(expects: Callable[[Request], bool]) -> Serve:
    def serve(request: Request) -> Reply:
        if not expects(request):
            return Reply(401, b'{"message":"Unauthorized"}')
        return answer(issues(5))

    return serve


LOGINS: dict[str, tuple[list[str], str, Callable[[Request], bool], dict[str, Any], str]] = {
    "bearer": (
        [f"Authorization=Bearer {SECRET}"],
        "",
        lambda request: request.headers.get("authorization") == f"Bearer {SECRET}",
        {"kind": "bearer"},
        "token",
    ),
    "header": (
        [f"X-Api-Key={SECRET}", "Accept-Language=en"],
        "",
        lambda request: request.headers.get("x-api-key") == SECRET,
        {"kind": "api_key", "in_": "header", "name": "X-Api-Key"},
        "api_key",
    ),
    "query": (
        [],
        f"?api_key={SECRET}",
        lambda request: request.query.get("api_key") == SECRET,
        {"kind": "api_key", "in_": "query", "name": "api_key"},
        "api_key",
    ),
}


@pytest.mark.parametrize("kind", LOGINS)
def test_a_credential_is_used_declared_by_reference_and_never_told(
    kind: str, tmp_path: Path
) -> None:
    headers, query, expects, auth, member = LOGINS[kind]
    said: list[str] = []

    with SampleServer(guarded(expects), base_path="") as server:
        url, login = login_of(f"{server.url}/issues{query}", headers)
        proposal = discover(url, login, name="tracker", progress=said.append)
        credentials = json.dumps({member: SECRET})
        told = listed(proposal, tmp_path, TRACKER_CREDENTIALS=credentials)

    declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
    assert declared.auth.model_dump(exclude_unset=True) == auth
    assert declared.credentials == "TRACKER"
    assert told == (5, True)
    assert SECRET not in proposal.yaml + repr(proposal) + repr(login) + "".join(said)


def test_a_header_without_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="write a header as Name=value"):
        login_of("https://api.example.com", ["Accept"])


# --- what cannot be learned from ------------------------------------------------------------------

USELESS = {
    "nothing": (b"", "application/json", "answers nothing"),
    "no records": (b'{"items":[],"total":0}', "application/json", "answers no record"),
    "an empty list": (b"[]", "application/json", "answers no record"),
    "text": (b"welcome", "text/plain", "neither JSON"),
    "bytes": (b"\xff\xfe\x00", "application/octet-stream", "no UTF-8"),
}


@pytest.mark.parametrize("what", USELESS)
def test_an_answer_without_records_is_refused_with_what_to_do(what: str) -> None:
    body, content_type, message = USELESS[what]

    with (
        SampleServer(lambda _: Reply(200, body, content_type), base_path="") as server,
        pytest.raises(NothingToLearnError, match=message),
    ):
        discover(f"{server.url}/things", Login())


def test_names_that_would_break_the_file_are_left_out() -> None:
    odd = [
        {"id": one, "a: b": 1, "x\ny": 2, "*star": 3, "": 4, "no": 5, "0": 6, "ü": "x", "q\"'": 7}
        for one in range(4)
    ]
    with SampleServer(unpaged(odd), base_path="") as server:
        proposal = discover(f"{server.url}/things", Login())

    declared = parse_source(proposal.yaml, "proposal", tables_with(proposal))
    paths = {one.path for one in declared.columns.values()}
    assert {"id", "no", "0", "ü"} <= paths
    assert not {"x\ny", "*star", ""} & paths
