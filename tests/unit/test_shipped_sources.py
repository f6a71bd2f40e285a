"""What the answers of each source that ships become: recorded shapes in, rows of contracts out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from api_poller.changes import Skipped
from api_poller.declaration import SourceDeclaration, load_sources
from api_poller.http import SourceAnswerError, SourceRefusedError, SourceUnavailableError
from api_poller.listing import DeclaredSource, Outcome, Page, parents_of
from api_poller.transport import Answer, Request
from freshet.contract import Row
from freshet.tables import TABLES

SHIPPED = load_sources(Path(__file__).parents[2] / "src" / "sources")
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
CLOTHES = {"id": 1, "name": "Clothes", "slug": "clothes"}

Reply = Callable[[str, Mapping[str, str]], bytes]


class ScriptedSession:
    """Answers from a function of path and query; `urls` holds what was asked."""

    def __init__(self, reply: Reply, *, measured: bool = True) -> None:
        self.reply, self.measured = reply, measured
        self.urls: list[str] = []
        self.requests: list[Request] = []

    def fetch(self, request: Request) -> Answer:
        self.urls.append(request.url)
        self.requests.append(request)
        parts = urlsplit(request.url)
        query = {
            name: values[0]
            for name, values in parse_qs(parts.query, keep_blank_values=True).items()
        }
        return Answer(request.url, 200, {}, self.reply(parts.path, query), self.measured)

    def unsigned(self, url: str) -> str:
        return url


@dataclass
class Listed:
    """A whole listing in one piece."""

    pages: list[Page] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def rows(self) -> dict[str, Row]:
        return {key: row for page in self.pages for key, row in page.rows.items()}

    @property
    def skipped(self) -> list[Skipped]:
        return [skipped for page in self.pages for skipped in page.skipped]

    @property
    def complete(self) -> bool:
        return self.outcome is not None and self.outcome.complete

    @property
    def reason(self) -> str:
        return (self.outcome and self.outcome.reason) or ""


def listed(
    source: DeclaredSource,
    watermark: str | None = None,
    resume: str | None = None,
    now: datetime = NOW,
) -> Listed:
    found = Listed()
    pages = source.pages(watermark, now, resume)
    while True:
        try:
            found.pages.append(next(pages))
        except StopIteration as end:
            found.outcome = end.value
            return found


def changed(declaration: SourceDeclaration, **members: Any) -> SourceDeclaration:
    """The declaration with other members; `page_rows` and `start` are where they belong."""
    if "page_rows" in members:
        paged = {"page_rows": members.pop("page_rows")}
        members["pagination"] = declaration.pagination.model_copy(update=paged)
    if "start" in members:
        members["sync"] = declaration.sync.model_copy(update={"start": members.pop("start")})
    return declaration.model_copy(update=members)


def shipped(name: str, session: ScriptedSession, **members: Any) -> DeclaredSource:
    declaration = changed(SHIPPED[name], **members)
    return DeclaredSource(name, declaration, TABLES[declaration.table], session)


def item(product_id: Any, price: Any = 39, **members: Any) -> dict[str, Any]:
    """A product as the Platzi API lists it."""
    return {
        "id": product_id,
        "title": f"Product {product_id}",
        "slug": f"product-{product_id}",
        "price": price,
        "description": "Cleats.",
        "category": CLOTHES,
        "images": ["https://i.imgur.com/one.jpeg", "https://i.imgur.com/two.jpeg"],
        "creationAt": "2026-11-20T21:41:12.000Z",
        "updatedAt": "2026-11-20T21:41:12.000Z",
        **members,
    }


class Shop:
    """A Platzi shop: `items` is its catalogue; `before_page` may change it between two pages."""

    def __init__(self, *items: dict[str, Any]) -> None:
        self.items = list(items)
        self.pages = 0
        self.before_page: Callable[[int], object] = lambda _: None
        self.session = ScriptedSession(self._page)

    def _page(self, path: str, query: Mapping[str, str]) -> bytes:
        self.pages += 1
        self.before_page(self.pages)
        assert path == "/api/v1/products"
        offset, limit = int(query["offset"]), int(query["limit"])
        return json.dumps(self.items[offset : offset + limit]).encode()

    def source(self, page_rows: int = 3) -> DeclaredSource:
        url = "http://shop/api/v1"
        return shipped("platzi", self.session, url=url, page_rows=page_rows)


def shop_answering(body: bytes | Reply) -> Shop:
    shop = Shop()
    shop.session = ScriptedSession(body if callable(body) else lambda _, query: body)
    return shop


# --- the shop -------------------------------------------------------------------------------------


def test_a_product_becomes_a_row_of_the_contract() -> None:
    source = Shop(item(35, price=39)).source()

    found = listed(source)

    assert found.rows == {
        "35": {
            "product_id": "35",
            "sku": "product-35",
            "title": "Product 35",
            "description": "Cleats.",
            "price": Decimal("39.0000"),
            "currency": "USD",
            "category_id": "1",
            "category": "Clothes",
            "image_url": "https://i.imgur.com/one.jpeg",
            "created_at": datetime(2026, 11, 20, 21, 41, 12, tzinfo=UTC),
            "updated_at": datetime(2026, 11, 20, 21, 41, 12, tzinfo=UTC),
        }
    }
    assert source.occurred_at(found.rows["35"]) == datetime(2026, 11, 20, 21, 41, 12, tzinfo=UTC)
    assert found.complete


def test_prices_are_exact_decimals() -> None:
    page = b'[{"id":1,"title":"a","price":0.1}]'
    shop = shop_answering(lambda _, query: page)

    assert listed(shop.source()).rows["1"]["price"] == Decimal("0.1")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 20])
def test_every_page_is_read_whatever_their_number(count: int) -> None:
    found = listed(Shop(*(item(number) for number in range(count))).source())

    assert len(found.rows) == count
    assert found.complete


def test_both_paging_parameters_are_always_sent() -> None:
    shop = Shop(*(item(number) for number in range(5)))

    listed(shop.source())

    assert all("offset=" in url and "limit=3" in url for url in shop.session.urls)


def test_a_server_that_caps_its_pages_is_still_read_to_the_end() -> None:
    items = [item(number) for number in range(20)]

    def capped(_: str, query: Mapping[str, str]) -> bytes:
        offset = int(query["offset"])
        return json.dumps(items[offset : offset + 4]).encode()

    found = listed(shop_answering(capped).source(page_rows=10))

    assert len(found.rows) == 20
    assert found.complete


def test_a_delete_between_two_pages_starts_the_listing_over_and_loses_no_row() -> None:
    shop = Shop(*(item(number) for number in range(9)))
    shop.before_page = lambda page: shop.items.pop(0) if page == 3 else None

    found = listed(shop.source())

    assert found.rows.keys() >= {str(number) for number in range(1, 9)}
    assert found.complete


def test_a_delete_that_empties_the_next_page_starts_the_listing_over() -> None:
    shop = Shop(*(item(number) for number in range(3)))
    shop.before_page = lambda page: shop.items.pop() if page == 2 else None

    found = listed(shop.source())

    assert found.pages[-2].rows.keys() == {"0", "1"}
    assert found.complete


def test_a_shop_that_never_holds_still_is_given_up_with_advice() -> None:
    shop = Shop(*(item(number) for number in range(90)))
    shop.before_page = lambda page: shop.items.pop(0)

    found = listed(shop.source())

    assert not found.complete
    assert "moved between pages in each of 4 listings" in found.reason
    assert "page_rows" in found.reason
    assert shop.pages < 90


def test_a_server_that_repeats_its_first_page_is_not_believed() -> None:
    page = json.dumps([item(1), item(2), item(3)]).encode()

    found = listed(shop_answering(page).source())

    assert not found.complete
    assert "repeats its pages" in found.reason


@pytest.mark.parametrize("ids", [(1, 2, 1, 4), (1, 2, 3, 1), (1, 1)])
def test_a_listing_that_names_a_product_twice_is_not_believed(ids: tuple[int, ...]) -> None:
    found = listed(Shop(*map(item, ids)).source())

    assert not found.complete
    assert "'1' is listed twice" in found.reason


def test_a_server_that_ignores_the_limit_is_not_believed() -> None:
    page = json.dumps([item(number) for number in range(9)]).encode()

    with pytest.raises(SourceAnswerError, match="9 records where 3"):
        listed(shop_answering(page).source())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b'{"message":"no"}',
        b"[1,2]",
        b'[{"id":1},',
        b"[NaN]",
        b"\xff[]",
        b'[{"price": Infinity}]',
        b'[{"price": 1e99999999999999999999}]',
        b"[" * 100_000,
        b'[{"id":' + b"9" * 5000 + b"}]",
    ],
)
def test_what_is_no_array_of_products_is_refused_with_source_and_address(body: bytes) -> None:
    with pytest.raises(SourceAnswerError, match=r"source 'platzi' at http://shop/api/v1/products"):
        listed(shop_answering(body).source())


@pytest.mark.parametrize(
    ("broken", "skipped"),
    [
        (item(2, price=None), Skipped("2", "wrong_type", "price")),
        (item(2, price="1.00001"), Skipped("2", "out_of_range", "price")),
        (item(2, title="x" * 500), Skipped("2", "too_long", "title")),
        (item(2, updatedAt="yesterday"), Skipped("2", "invalid_value", "updated_at")),
        (item(None), Skipped(None, "missing_key", "key.product_id")),
        (item(True), Skipped(None, "wrong_type", "key.product_id")),
        (item(2.0), Skipped(None, "wrong_type", "key.product_id")),
        (item("x" * 65), Skipped(None, "too_long", "key.product_id")),
    ],
)
def test_a_product_that_does_not_fit_is_reported_and_its_neighbours_go_on(
    broken: dict[str, Any], skipped: Skipped
) -> None:
    found = listed(Shop(item(1), broken, item(3)).source())

    assert found.rows.keys() == {"1", "3"}
    assert found.skipped == [skipped]
    assert found.complete is (skipped.key is not None)


def test_products_without_the_optional_parts_are_rows_too() -> None:
    bare = {"id": "a,b/ü", "title": "Bare", "price": "1.50", "category": None, "images": [None]}

    (row,) = listed(Shop(bare).source()).rows.values()

    assert (row["product_id"], row["category"], row["image_url"]) == ("a,b/ü", None, None)


def test_categories_are_rows_of_their_own_table() -> None:
    category = {
        "id": 4,
        "name": "Shoes",
        "slug": "shoes",
        "image": "https://i.imgur.com/qNOjJje.jpeg",
        "creationAt": "2026-11-20T21:41:12.000Z",
        "updatedAt": "2026-11-20T21:41:12.000Z",
    }
    session = ScriptedSession(lambda *_: json.dumps([category]).encode())

    found = listed(shipped("platzi_categories", session))

    at = datetime(2026, 11, 20, 21, 41, 12, tzinfo=UTC)
    assert found.rows == {
        "4": {
            "category_id": "4",
            "name": "Shoes",
            "slug": "shoes",
            "image_url": "https://i.imgur.com/qNOjJje.jpeg",
            "created_at": at,
            "updated_at": at,
        }
    }
    assert session.urls == ["https://api.escuelajs.co/api/v1/categories"]
    assert found.complete


# --- the rates ------------------------------------------------------------------------------------

DATAONLY = "KEY,FREQ,CURRENCY,CURRENCY_DENOM,EXR_TYPE,EXR_SUFFIX,TIME_PERIOD,OBS_VALUE"
FULL = (
    f"{DATAONLY},OBS_STATUS,OBS_CONF,OBS_PRE_BREAK,OBS_COM,TIME_FORMAT,BREAKS,COLLECTION,"
    "COMPILING_ORG,DISS_ORG,DOM_SER_IDS,PUBL_ECB,PUBL_MU,PUBL_PUBLIC,UNIT_INDEX_BASE,COMPILATION,"
    "COVERAGE,DECIMALS,NAT_TITLE,SOURCE_AGENCY,SOURCE_PUB,TITLE,TITLE_COMPL,UNIT,UNIT_MULT"
)
FULL_ROW = (
    "EXR.D.USD.EUR.SP00.A,D,USD,EUR,SP00,A,2026-09-30,1.1355,A,F,,,P1D,,A,,,,,,,99Q1=100,,,4,,4F0,,"
    'US dollar/Euro ECB reference exchange rate,"ECB reference exchange rate, US dollar/Euro, '
    '2.15 pm (C.E.T.)",USD,0'
)


def line(currency: str, day: str, value: str) -> str:
    return f"EXR.D.{currency}.EUR.SP00.A,D,{currency},EUR,SP00,A,{day},{value}"


def bank(session: ScriptedSession, start: str = "2026-09-01") -> DeclaredSource:
    return shipped("ecb", session, url="http://bank/service", start=start)


def rates(
    *lines: str, start: str = "2026-09-01", header: str = DATAONLY, end: str = "\r\n"
) -> DeclaredSource:
    """A bank that answers each window with the given lines that lie in it."""
    day_at = header.split(",").index("TIME_PERIOD")

    def answer(path: str, query: Mapping[str, str]) -> bytes:
        assert path == "/service/data/EXR/D..EUR.SP00.A"
        assert query["format"] == "csvdata"
        first, last = query["startPeriod"], query["endPeriod"]
        inside = [text for text in lines if first <= text.split(",")[day_at] <= last]
        return end.join([header, *inside, ""]).encode() if inside else b""

    return bank(ScriptedSession(answer), start)


def csv_of(*lines: str) -> bytes:
    return "\n".join([DATAONLY, *lines, ""]).encode()


def answering(body: bytes, *, measured: bool = True) -> DeclaredSource:
    return bank(ScriptedSession(lambda _, query: body, measured=measured))


def rate(currency: str, day: str, value: str) -> dict[str, Any]:
    return {"currency": currency, "rate_date": date.fromisoformat(day), "rate": Decimal(value)}


def periods_asked(source: DeclaredSource) -> list[tuple[str, str]]:
    session: Any = source.session
    queries = [parse_qs(urlsplit(url).query) for url in session.urls]
    return [(query["startPeriod"][0], query["endPeriod"][0]) for query in queries]


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize(
    ("header", "row"),
    [(FULL, FULL_ROW), (DATAONLY, line("USD", "2026-09-30", "1.1355"))],
)
def test_both_shapes_of_csv_and_both_line_ends_give_the_same_row(
    header: str, row: str, end: str
) -> None:
    source = rates(row, header=header, end=end)

    found = listed(source)

    assert found.rows == {"USD,2026-09-30": rate("USD", "2026-09-30", "1.1355")}
    assert source.occurred_at(found.rows["USD,2026-09-30"]) == datetime(2026, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize("hole", ["", "N/A", "NaN", "-", " "])
def test_a_day_without_a_rate_is_no_row_and_no_problem(hole: str) -> None:
    found = listed(rates(line("USD", "2026-09-29", "1.1"), line("USD", "2026-09-30", hole)))

    assert found.rows.keys() == {"USD,2026-09-29"}
    assert found.skipped == []


def test_a_rate_that_is_no_number_is_reported() -> None:
    found = listed(rates(line("USD", "2026-09-29", "1.1"), line("USD", "2026-09-30", "1x")))

    assert found.skipped == [Skipped("USD,2026-09-30", "wrong_type", "rate")]


@pytest.mark.parametrize("body", [b"", csv_of()], ids=["no body", "a header alone"])
@pytest.mark.parametrize("watermark", [None, "2026-11-20"])
def test_an_empty_answer_changes_nothing(body: bytes, watermark: str | None) -> None:
    found = listed(answering(body), watermark)

    assert (found.rows, found.skipped, found.complete) == ({}, [], True)


def test_a_later_poll_reads_the_overlap_before_the_watermark_again() -> None:
    source = rates(line("USD", "2026-11-10", "1.2"), line("USD", "2026-11-20", "1.1"))

    found = listed(source, "2026-11-20")

    assert periods_asked(source) == [("2026-11-10", "2026-11-21")]
    assert found.rows.keys() == {"USD,2026-11-10", "USD,2026-11-20"}
    assert (source.rule.cursor, source.rule.lookback.days) == ("rate_date", 10)


def test_history_is_read_in_years_from_its_first_day_to_today() -> None:
    source = rates(
        line("USD", "2024-01-02", "1.0"),
        line("USD", "2025-01-02", "1.1"),
        line("USD", "2026-01-02", "1.2"),
        start="2024-01-01",
    )

    found = listed(source)

    assert [list(page.rows) for page in found.pages] == [
        ["USD,2024-01-02"],
        ["USD,2025-01-02"],
        ["USD,2026-01-02"],
    ]
    assert [page.resume for page in found.pages] == [None, None, None]  # each closes a window
    assert periods_asked(source) == [
        ("2024-01-01", "2024-12-30"),
        ("2024-12-31", "2025-12-30"),
        ("2025-12-31", "2026-11-21"),
    ]


def test_years_before_the_first_rate_and_after_the_last_may_be_empty() -> None:
    found = listed(rates(line("USD", "2010-12-01", "1.3"), start="1999-01-04"))

    assert list(found.rows) == ["USD,2010-12-01"]
    assert found.complete


def test_an_empty_year_between_rates_is_a_fault_and_not_history() -> None:
    source = rates(
        line("USD", "2022-06-01", "1.0"), line("USD", "2026-06-01", "1.1"), start="2022-01-01"
    )
    pages = source.pages(None, NOW, None)

    assert list(next(pages).rows) == ["USD,2022-06-01"]
    tokens = [next(pages).resume for _ in range(3)]
    with pytest.raises(SourceAnswerError, match="between rows: from 2023-01-01 on"):
        next(pages)
    # Whoever goes on from any of the empty years begins with the first of them.
    for token in tokens:
        again = rates(line("USD", "2026-06-01", "1.1"), start="2022-01-01")
        next(again.pages(None, NOW, token))
        assert periods_asked(again) == [("2023-01-01", "2023-12-31")]


def test_other_series_in_the_answer_are_passed_over() -> None:
    monthly = "EXR.M.USD.EUR.SP00.A,M,USD,EUR,SP00,A,2026-09,1.1"

    found = listed(answering(csv_of(monthly, line("USD", "2026-09-30", "1.1"))))

    assert found.rows.keys() == {"USD,2026-09-30"}
    assert found.skipped == []


def test_rates_outside_the_period_or_told_twice_differently_are_reported() -> None:
    lines = [
        line("USD", "1999-01-04", "1.0"),
        line("GBP", "2026-09-30", "0.8"),
        line("GBP", "2026-09-30", "0.9"),
        line("JPY", "2026-09-30", "170"),
        line("JPY", "2026-09-30", "170"),
    ]

    found = listed(answering(csv_of(*lines)))

    assert found.rows.keys() == {"JPY,2026-09-30"}
    assert found.skipped == [
        Skipped("USD,1999-01-04", "outside the period asked for", "rate_date"),
        Skipped("GBP,2026-09-30", "two different rows for one key", None),
    ]


@pytest.mark.parametrize(
    "body",
    [
        f"{DATAONLY}\n{line('USD', '2026-09-30', '1.1')[:-5]}\n",
        f"{DATAONLY}\n{line('USD', '2026-09-30', '1.1')},more\n",
        f"{DATAONLY}\n{line('USD', '2026-09-30', '1.13')}",
        f"{FULL}\n{FULL_ROW[:-9]}",
        "KEY,TIME_PERIOD,OBS_VALUE\na,2026-09-30,1.1",
        '{"header":{}}',
        f'{DATAONLY}\n"never closed',
    ],
)
def test_what_is_no_csv_of_rates_is_refused(body: str) -> None:
    with pytest.raises(SourceAnswerError, match=r"source 'ecb' at http://bank/service/data/EXR/"):
        listed(answering(body.encode()))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SourceAnswerError, match="not CSV"):
        listed(answering(csv_of() + b"\xff\xfe\n"))


def test_csv_of_unknown_length_is_refused_because_a_cut_could_look_whole() -> None:
    with pytest.raises(SourceAnswerError, match="how long"):
        listed(answering(csv_of(line("USD", "2026-09-30", "1.1")), measured=False))


@pytest.mark.parametrize(
    ("status", "expected"), [(404, SourceUnavailableError), (403, SourceRefusedError)]
)
def test_a_404_of_the_bank_proves_nothing_and_a_403_does(
    status: int, expected: type[Exception]
) -> None:
    def refuse(path: str, query: Mapping[str, str]) -> bytes:
        raise SourceRefusedError("ecb", path, "answers", advice="look", status=status)

    with pytest.raises(expected) as raised:
        listed(bank(ScriptedSession(refuse)))

    assert getattr(raised.value, "status", None) == status


# --- DummyJSON ------------------------------------------------------------------------------------

MASCARA = {
    "id": 1,
    "title": "Essence Mascara Lash Princess",
    "description": "Popular.",
    "category": "beauty",
    "price": 9.99,
    "discountPercentage": 10.48,
    "rating": 2.56,
    "stock": 99,
    "tags": ["beauty", "mascara"],
    "brand": "Essence",
    "sku": "BEA-ESS-ESS-001",
    "weight": 4,
    "dimensions": {"width": 15.14, "height": 13.08, "depth": 22.99},
    "reviews": [{"rating": 3, "reviewerName": "Eleanor Collins", "reviewerEmail": "e@x.io"}],
    "meta": {
        "createdAt": "2025-04-30T09:41:02.053Z",
        "updatedAt": "2025-04-30T09:41:02.053Z",
        "barcode": "5784719087687",
        "qrCode": "https://cdn.dummyjson.com/public/qr-code.png",
    },
    "images": ["https://cdn.dummyjson.com/product-images/beauty/1.webp"],
    "thumbnail": "https://cdn.dummyjson.com/product-images/beauty/thumbnail.webp",
}
CART_LINE = {
    "id": 168,
    "title": "Charger SXT RWD",
    "price": 32999.99,
    "quantity": 3,
    "total": 98999.97,
    "discountPercentage": 13.39,
    "discountedTotal": 85743.87,
    "thumbnail": "https://cdn.dummyjson.com/product-images/vehicle/thumbnail.webp",
}


def dummyjson(name: str, member: str, items: list[dict[str, Any]]) -> DeclaredSource:
    """Its envelope: `limit` is the number of records returned, not the one asked for."""

    def answer(path: str, query: Mapping[str, str]) -> bytes:
        skip, limit = int(query["skip"]), int(query["limit"])
        page = items[skip : skip + limit]
        envelope = {member: page, "total": len(items), "skip": skip, "limit": len(page)}
        return json.dumps(envelope).encode()

    return shipped(name, ScriptedSession(answer))


def test_products_of_dummyjson_have_keys_of_their_own_and_no_personal_data() -> None:
    found = listed(dummyjson("dummyjson_products", "products", [MASCARA]))

    at = datetime(2025, 4, 30, 9, 41, 2, 53000, tzinfo=UTC)
    assert found.rows == {
        "dummyjson-1": {
            "product_id": "dummyjson-1",
            "sku": "BEA-ESS-ESS-001",
            "title": "Essence Mascara Lash Princess",
            "description": "Popular.",
            "price": Decimal("9.9900"),
            "currency": "USD",
            "category_id": None,
            "category": "beauty",
            "image_url": "https://cdn.dummyjson.com/product-images/beauty/1.webp",
            "created_at": at,
            "updated_at": at,
        }
    }
    assert found.complete


def test_all_194_products_of_dummyjson_are_listed() -> None:
    items = [MASCARA | {"id": number} for number in range(1, 195)]

    found = listed(dummyjson("dummyjson_products", "products", items))

    assert len(found.rows) == 194
    assert found.complete


def test_each_line_of_a_cart_is_a_sale() -> None:
    cart = {
        "id": 1,
        "products": [CART_LINE, CART_LINE | {"id": 78, "quantity": 2}],
        "total": 103774.85,
        "discountedTotal": 89686.65,
        "userId": 33,
        "totalProducts": 2,
        "totalQuantity": 5,
    }
    carts = [cart, {**cart, "id": 2, "products": []}, {**cart, "id": 3, "products": [CART_LINE]}]

    found = listed(dummyjson("dummyjson_carts", "carts", carts))

    assert list(found.rows) == ["dummyjson-1-1", "dummyjson-1-2", "dummyjson-3-1"]
    assert found.rows["dummyjson-1-1"] == {
        "sale_id": "dummyjson-1-1",
        "invoice_no": "dummyjson-1",
        "line": 1,
        "sku": "dummyjson-168",
        "description": "Charger SXT RWD",
        "quantity": 3,
        "returned_quantity": 0,
        "unit_price": Decimal("32999.9900"),
        "currency": "USD",
        "customer_id": "dummyjson-33",
        "country": None,
        "sold_at": datetime(1970, 1, 1, tzinfo=UTC),
    }
    assert found.complete


def test_pages_of_carts_are_counted_in_carts_and_not_in_lines() -> None:
    carts = [{"id": number, "userId": 1, "products": [CART_LINE] * 3} for number in range(208)]
    source = dummyjson("dummyjson_carts", "carts", carts)

    found = listed(source)

    assert len(found.rows) == 3 * 208
    assert found.complete


# --- Spotify --------------------------------------------------------------------------------------

ARTIST = {
    "id": "0TnOYISbd1XYRBk9myaseg",
    "type": "artist",
    "name": "Pitbull",
    "uri": "spotify:artist:0TnOYISbd1XYRBk9myaseg",
    "external_urls": {"spotify": "https://open.spotify.com/artist/0TnOYISbd1XYRBk9myaseg"},
    "images": [{"url": "https://i.scdn.co/image/a", "height": 640, "width": 640}],
}
ALBUM = {
    "id": "2up3OPMp9Tb4dAKM2erWXQ",
    "type": "album",
    "uri": "spotify:album:2up3OPMp9Tb4dAKM2erWXQ",
    "name": "Album",
    "album_type": "album",
    "total_tracks": 9,
    "release_date": "1981-12",
    "release_date_precision": "month",
    "images": [{"url": "https://i.scdn.co/image/b", "height": 300, "width": 300}],
    "artists": [{"id": "a1", "name": "One"}, {"id": "a2", "name": "Two"}],
    "external_urls": {"spotify": "https://open.spotify.com/album/2up3OPMp9Tb4dAKM2erWXQ"},
}


def catalogue(path: str, query: Mapping[str, str]) -> bytes:
    """Objects by id; an id of letters `gone` is not there."""
    kind, _, object_id = path.removeprefix("/v1/").partition("/")
    if object_id == "gone":
        raise SourceRefusedError("spotify", path, "answers 404", advice="look", status=404)
    if kind == "artists":
        return json.dumps(ARTIST | {"id": object_id}).encode()
    if kind == "albums":
        return json.dumps(ALBUM | {"id": object_id}).encode()
    track = {
        "id": object_id,
        "name": "Track",
        "album": {"id": "b1"},
        "artists": [{"id": "a1", "name": "One"}],
        "disc_number": 1,
        "track_number": 3,
        "duration_ms": 207959,
        "explicit": False,
    }
    return json.dumps(track).encode()


def test_albums_are_rows_whose_date_says_how_much_of_it_is_known() -> None:
    found = listed(shipped("spotify_albums", ScriptedSession(catalogue)))

    assert list(found.rows) == ["2up3OPMp9Tb4dAKM2erWXQ", "4aawyAB9vmqN3uQ7FjRGTy"]
    assert found.rows["2up3OPMp9Tb4dAKM2erWXQ"] == {
        "album_id": "2up3OPMp9Tb4dAKM2erWXQ",
        "title": "Album",
        "album_type": "album",
        "artist_id": "a1",
        "artists": "One, Two",
        "release_date": date(1981, 12, 1),
        "release_date_precision": "month",
        "total_tracks": 9,
        "image_url": "https://i.scdn.co/image/b",
        "url": "https://open.spotify.com/album/2up3OPMp9Tb4dAKM2erWXQ",
    }
    assert found.complete


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2013-08-21", date(2013, 8, 21)), ("1981", date(1981, 1, 1)), ("0000", None), (None, None)],
)
def test_release_dates_of_every_precision_are_read(text: str | None, expected: date | None) -> None:
    body = json.dumps(ALBUM | {"release_date": text}).encode()

    found = listed(shipped("spotify_albums", ScriptedSession(lambda *_: body)))

    assert [row["release_date"] for row in found.rows.values()] == [expected]


def test_artists_and_tracks_are_asked_for_one_by_one() -> None:
    session = ScriptedSession(catalogue)

    artists = listed(shipped("spotify_artists", session))
    tracks = listed(shipped("spotify_tracks", session))

    assert [row["name"] for row in artists.rows.values()] == ["Pitbull", "Pitbull"]
    assert [row["duration_ms"] for row in tracks.rows.values()] == [207959, 207959]
    assert [urlsplit(url).path for url in session.urls] == [
        "/v1/artists/0TnOYISbd1XYRBk9myaseg",
        "/v1/artists/1dfeR4HaWDbWqFHLkxsg1d",
        "/v1/tracks/11dFghVXANMlKmJXsNCbNl",
        "/v1/tracks/3n3Ppam7vgaVa1iaRUc9Lp",
    ]


def test_an_album_that_was_taken_down_is_absent_and_the_listing_complete() -> None:
    parents = SHIPPED["spotify_albums"].parents
    assert parents is not None
    two = parents.model_copy(update={"values": ("2up3OPMp9Tb4dAKM2erWXQ", "gone")})

    found = listed(shipped("spotify_albums", ScriptedSession(catalogue), parents=two))

    assert list(found.rows) == ["2up3OPMp9Tb4dAKM2erWXQ"]
    assert found.complete


def test_new_releases_are_the_albums_of_each_artist_that_is_followed() -> None:
    def answer(path: str, query: Mapping[str, str]) -> bytes:
        if not path.endswith("/albums"):
            return catalogue(path, query)
        offset, artist = int(query.get("offset", 0)), path.split("/")[3]
        albums = [ALBUM | {"id": f"{number:02}", "artists": []} for number in range(13)]
        base = f"https://api.spotify.com/v1/artists/{artist}/albums"
        following = f"{base}?offset=10&limit=10&include_groups=album,single"
        page = {
            "href": base,
            "items": albums[offset : offset + 10],
            "limit": 10,
            "next": None if offset else following,
            "offset": offset,
            "previous": None,
            "total": 13,
        }
        return json.dumps(page).encode()

    session = ScriptedSession(answer)
    artists = shipped("spotify_artists", session)
    declaration = SHIPPED["spotify_new_releases"]
    source = DeclaredSource(
        "spotify_new_releases",
        declaration,
        TABLES["new_releases"],
        session,
        parents_of(artists, "artist_id"),
    )

    found = listed(source)

    assert len(found.rows) == 26
    assert found.rows["0TnOYISbd1XYRBk9myaseg,12"]["release_date"] == date(1981, 12, 1)
    assert found.complete
