"""The sample shop and the sample rate service, over real HTTP on the loopback interface."""

import base64
import csv
import io
import json
import time
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
import urllib3

from local.sample import ECB_RATES, RETAIL_MONTH
from local.sample.catalogue import Catalogue, DaySale
from local.sample.ecb import DATA_COLUMNS, FULL_COLUMNS, Ecb
from local.sample.serving import Fault
from local.sample.shop import REFRESH_TOKEN_S, Shop, category_of

DAY = date(2010, 12, 1)
SLOW_SKU = "10120"


def sales() -> list[DaySale]:
    return [
        DaySale(DAY, SLOW_SKU, "DOGGY RUBBER", Decimal("0.21")),
        DaySale(DAY, "85123A", "T-LIGHT HOLDER", Decimal("2.55")),
        DaySale(DAY, "85123a", "T-LIGHT HOLDER", Decimal("5.795")),
        DaySale(DAY, "22423", "CAKESTAND", Decimal(13)),
        DaySale(date(2010, 12, 2), "22423", "CAKESTAND", Decimal("12.75")),
        DaySale(date(2010, 12, 3), "21034", "REX CASH+CARRY", Decimal("0.1")),
    ]


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop(Catalogue(sales())) as served:
        yield served


@pytest.fixture
def ecb() -> Iterator[Ecb]:
    with Ecb(ECB_RATES) as served:
        yield served


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=10.0) as pool:
        yield pool


@pytest.fixture
def get(http: urllib3.PoolManager) -> Any:
    def fetch(url: str, **headers: str) -> urllib3.BaseHTTPResponse:
        return http.request("GET", url, headers=headers or None)

    return fetch


def slugs(reply: urllib3.BaseHTTPResponse) -> list[str]:
    return [row["slug"] for row in reply.json()]


def test_a_product_has_the_fields_and_forms_of_the_original(shop: Shop, get: Any) -> None:
    shop.set_day(date(2010, 12, 2))

    stand = get(f"{shop.url}/products/slug/22423").json()

    name = ("Kitchen", "Garden", "Party", "Stationery", "Miscellaneous")[category_of("22423") - 1]
    assert stand == {
        "id": 4,
        "title": "CAKESTAND",
        "slug": "22423",
        "price": 12.75,
        "description": "CAKESTAND, stock code 22423",
        "category": {
            "id": category_of("22423"),
            "name": name,
            "slug": name.lower(),
            "image": f"https://images.example/category-{category_of('22423')}.jpeg",
            "creationAt": "2010-12-01T08:00:00.000Z",
            "updatedAt": "2010-12-01T08:00:00.000Z",
        },
        "images": ["https://images.example/4.jpeg"],
        "creationAt": "2010-12-01T08:00:00.000Z",
        "updatedAt": "2010-12-02T08:00:00.000Z",
    }


def test_prices_are_json_numbers_without_a_float_error(shop: Shop, get: Any) -> None:
    reply = get(f"{shop.url}/products")

    prices = json.loads(reply.data, parse_float=Decimal)

    assert [row["price"] for row in prices] == [
        Decimal("0.21"),
        Decimal("2.55"),
        Decimal("5.795"),
        13,
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("offset=1&limit=2", ["85123A", "85123a"]),
        ("offset=3&limit=2", ["22423"]),
        ("offset=4&limit=2", []),
        ("limit=2", [SLOW_SKU, "85123A", "85123a", "22423"]),
        ("offset=2", [SLOW_SKU, "85123A", "85123a", "22423"]),
        ("offset=0&limit=0", [SLOW_SKU, "85123A", "85123a", "22423"]),
        ("offset=0&limit=-1", [SLOW_SKU, "85123A", "85123a", "22423"]),
        ("title=holder", ["85123A", "85123a"]),
        ("price=13", ["22423"]),
        ("price_min=1&price_max=6", ["85123A", "85123a"]),
        ("price_min=1", [SLOW_SKU, "85123A", "85123a", "22423"]),
    ],
)
def test_listings_page_and_filter_as_the_original_does(
    shop: Shop, get: Any, query: str, expected: list[str]
) -> None:
    assert slugs(get(f"{shop.url}/products?{query}")) == expected


def test_categories_list_their_products_and_filter_by_id_and_slug(shop: Shop, get: Any) -> None:
    categories = get(f"{shop.url}/categories").json()

    assert [row["id"] for row in categories] == [1, 2, 3, 4, 5]
    assert len(get(f"{shop.url}/categories?limit=2").json()) == 2
    listed = []
    for row in categories:
        products = slugs(get(f"{shop.url}/categories/{row['id']}/products"))
        assert slugs(get(f"{shop.url}/products?categoryId={row['id']}")) == products
        assert slugs(get(f"{shop.url}/products?categorySlug={row['slug']}")) == products
        listed += products
    assert sorted(listed) == sorted(slugs(get(f"{shop.url}/products")))


def test_a_renamed_category_shows_in_products_whose_own_stamp_stays(shop: Shop, get: Any) -> None:
    shop.set_day(date(2010, 12, 3))
    shop.rename_category(category_of("22423"), "Tea Time")

    row = get(f"{shop.url}/products/slug/22423").json()

    assert (row["category"]["name"], row["category"]["slug"]) == ("Tea Time", "tea time")
    assert row["category"]["updatedAt"] == "2010-12-03T08:00:00.000Z"
    assert row["updatedAt"] == "2010-12-02T08:00:00.000Z"


@pytest.mark.parametrize(
    ("path", "status", "name"),
    [
        ("/products/999", 400, "EntityNotFoundError"),
        ("/products/slug/none", 400, "EntityNotFoundError"),
        ("/categories/9", 400, "EntityNotFoundError"),
        ("/products?offset=0&limit=many", 400, "Bad Request"),
        ("/products/one", 400, "Bad Request"),
        ("/nosuch", 404, "Not Found"),
        ("/auth/profile", 401, None),
    ],
)
def test_errors_have_the_originals_status_and_body(
    shop: Shop, get: Any, path: str, status: int, name: str | None
) -> None:
    reply = get(f"{shop.url}{path}")

    body = reply.json()
    assert (reply.status, body.get("name", body.get("error"))) == (status, name)


def test_moving_the_day_changes_adds_and_removes_rows(shop: Shop, get: Any) -> None:
    def seen() -> dict[str, float]:
        return {row["slug"]: row["price"] for row in get(f"{shop.url}/products").json()}

    first = seen()
    shop.set_day(date(2010, 12, 9))
    later = seen()

    assert first["22423"] == 13
    assert later == {"85123A": 2.55, "85123a": 5.795, "22423": 12.75, "21034": 0.1}
    assert get(shop.url + "/products").headers["Date"] == "Thu, 09 Dec 2010 08:00:00 GMT"


def test_a_row_deleted_between_two_pages_makes_a_reader_skip_one(shop: Shop, get: Any) -> None:
    first = slugs(get(f"{shop.url}/products?offset=0&limit=2"))
    shop.remove_first()
    second = slugs(get(f"{shop.url}/products?offset=2&limit=2"))

    assert first + second == [SLOW_SKU, "85123A", "22423"]


def test_a_weak_etag_spares_an_unchanged_listing(shop: Shop, get: Any) -> None:
    etag = get(f"{shop.url}/products").headers["ETag"]

    unchanged = get(f"{shop.url}/products", **{"If-None-Match": etag})
    shop.set_day(date(2010, 12, 2))
    changed = get(f"{shop.url}/products", **{"If-None-Match": etag})

    assert etag.startswith('W/"')
    assert (unchanged.status, unchanged.data, changed.status) == (304, b"", 200)


def test_login_refresh_and_profile_answer_as_the_original(http: urllib3.PoolManager) -> None:
    clock = [1_000_000.0]
    with Shop(Catalogue(sales()), now=lambda: clock[0]) as shop:

        def post(path: str, body: Any) -> tuple[int, Any]:
            reply = http.request("POST", shop.url + path, json=body)
            return reply.status, reply.json()

        def profile(token: str) -> int:
            headers = {"Authorization": f"Bearer {token}"}
            return http.request("GET", f"{shop.url}/auth/profile", headers=headers).status

        login = {"email": "john@mail.com", "password": "changeme"}
        status, tokens = post("/auth/login", login)
        access, refresh = tokens["access_token"], tokens["refresh_token"]
        claims = json.loads(base64.urlsafe_b64decode(access.split(".")[1] + "=="))

        assert status == 201
        assert set(tokens) == {"access_token", "refresh_token"}
        assert claims == {"sub": 1, "iat": 1_000_000, "exp": 1_000_000 + 20 * 86_400}
        assert post("/auth/login", login | {"password": "wrong"})[0] == 401
        assert (profile(access), profile(refresh), profile("x.y.z")) == (200, 401, 401)
        assert post("/auth/refresh-token", {"refreshToken": refresh})[0] == 201
        assert post("/auth/refresh-token", {"refresh_token": refresh})[0] == 401
        clock[0] += REFRESH_TOKEN_S
        assert post("/auth/refresh-token", {"refreshToken": refresh})[0] == 401
        assert profile(access) == 200


def test_the_whole_month_is_listed_in_pages_quickly(get: Any) -> None:
    with Shop(Catalogue.from_file(RETAIL_MONTH)) as shop:
        shop.set_day(date(2010, 12, 23))
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        while page := get(f"{shop.url}/products?offset={len(rows)}&limit=500").json():
            rows += page
        took_s = time.perf_counter() - started

    assert len(rows) == len({row["id"] for row in rows}) == len({row["slug"] for row in rows})
    assert (len(rows), took_s < 5.0) == (2_737, True)


def test_planned_faults_hit_the_page_they_were_planned_for_and_then_heal(
    shop: Shop, get: Any
) -> None:
    whole = get(f"{shop.url}/products")
    shop.fail_next("500", after_pages=1, times=2)
    shop.fail_next("429", retry_after_s=7)
    shop.fail_next("html")
    shop.fail_next("truncated")
    shop.fail_next("empty")

    replies = [get(f"{shop.url}/products") for _ in range(8)]

    assert [reply.status for reply in replies] == [200, 500, 500, 429, 200, 200, 200, 200]
    assert replies[3].headers["Retry-After"] == "7"
    assert replies[4].headers["Content-Type"].startswith("text/html")
    assert replies[5].data == whole.data[: len(whole.data) // 2]
    assert (replies[6].data, replies[6].headers["Content-Length"]) == (b"", "0")
    assert replies[7].data == whole.data
    assert shop.requests_served == 9


def test_a_cut_connection_is_an_error_for_the_reader(shop: Shop, get: Any) -> None:
    shop.fail_next(Fault.CUT)

    with pytest.raises(urllib3.exceptions.ProtocolError):
        get(f"{shop.url}/products")

    assert get(f"{shop.url}/products").status == 200


def test_a_slow_answer_outlasts_a_short_timeout_and_does_not_delay_stop(
    shop: Shop, http: urllib3.PoolManager
) -> None:
    shop.fail_next("slow", delay_s=60.0)

    with pytest.raises(urllib3.exceptions.ReadTimeoutError):
        http.request("GET", f"{shop.url}/products", timeout=0.2)

    started = time.perf_counter()
    shop.stop()
    assert time.perf_counter() - started < 10.0


def test_planned_faults_can_be_forgotten_and_unknown_ones_are_refused(shop: Shop, get: Any) -> None:
    shop.fail_next("500", times=5)
    shop.heal()

    assert get(f"{shop.url}/products").status == 200
    with pytest.raises(ValueError, match="418"):
        shop.fail_next("418")


def test_a_stopped_server_gives_its_port_back_and_can_start_again(get: Any) -> None:
    shop = Shop(Catalogue(sales())).start()
    port = urllib3.util.parse_url(shop.url).port
    assert port is not None
    assert get(f"{shop.url}/products").status == 200

    shop.stop()
    shop.stop()

    with pytest.raises(RuntimeError, match="before start"):
        _ = shop.url
    with Shop(Catalogue(sales()), port=port) as again:
        assert get(f"{again.url}/products").status == 200
        with pytest.raises(OSError, match="in use"):
            Shop(Catalogue(sales()), port=port).start()


def rates_of(reply: urllib3.BaseHTTPResponse) -> list[tuple[str, str, str]]:
    rows = csv.DictReader(io.StringIO(reply.data.decode(), newline=""))
    return [(row["CURRENCY"], row["TIME_PERIOD"], row["OBS_VALUE"]) for row in rows]


def test_a_full_reply_has_the_32_columns_of_the_original(ecb: Ecb, get: Any) -> None:
    day = "startPeriod=2010-12-01&endPeriod=2010-12-01"
    reply = get(f"{ecb.url}/data/EXR/D.USD.EUR.SP00.A?{day}&format=csvdata")

    header, row, end = reply.data.decode().split("\r\n")
    assert len(FULL_COLUMNS) == 32
    assert header == ",".join(FULL_COLUMNS)
    assert row == (
        "EXR.D.USD.EUR.SP00.A,D,USD,EUR,SP00,A,2010-12-01,1.3115,A,F,,,P1D,,A,,,,,,,99Q1=100,,,4,,"
        "4F0,,US dollar/Euro ECB reference exchange rate,"
        '"ECB reference exchange rate, US dollar/Euro, 2.15 pm (C.E.T.)",USD,0'
    )
    assert end == ""


def test_a_dataonly_reply_stops_after_the_value_and_groups_by_series(ecb: Ecb, get: Any) -> None:
    window = "startPeriod=2010-12-10&endPeriod=2010-12-13&detail=dataonly"
    reply = get(f"{ecb.url}/data/EXR/D.USD%2BGBP.EUR.SP00.A?{window}", Accept="text/csv")

    assert reply.data.decode().split("\r\n")[0] == ",".join(DATA_COLUMNS)
    assert rates_of(reply) == [
        ("GBP", "2010-12-10", "0.83715"),
        ("GBP", "2010-12-13", "0.84375"),
        ("USD", "2010-12-10", "1.3244"),
        ("USD", "2010-12-13", "1.3267"),
    ]


@pytest.mark.parametrize(
    ("key", "query", "expected"),
    [
        ("D.USD+GBP.EUR.SP00.A", "startPeriod=2010-12-10&endPeriod=2010-12-10", 2),
        ("D..EUR.SP00.A", "startPeriod=2010-12-10&endPeriod=2010-12-10", 33),
        ("....", "startPeriod=2010-12-10&endPeriod=2010-12-10", 33),
        ("D.GBP.EUR.SP00.A", "startPeriod=2010-12&endPeriod=2010-12", 23),
        ("D.GBP.EUR.SP00.A", "startPeriod=2011&endPeriod=2011", 257),
        ("D.GBP.EUR.SP00.A", "startPeriod=2011-06-01&endPeriod=2011-06&lastNObservations=3", 3),
        ("D.EEK.EUR.SP00.A", "startPeriod=2010-12-30&endPeriod=2011-01-10", 2),
    ],
)
def test_keys_and_periods_select_as_the_original_does(
    ecb: Ecb, get: Any, key: str, query: str, expected: int
) -> None:
    reply = get(f"{ecb.url}/data/EXR/{key}?{query}&format=csvdata&detail=dataonly")

    assert (reply.status, len(rates_of(reply))) == (200, expected)


def test_the_last_publication_on_or_before_a_weekend_day_is_fridays(ecb: Ecb, get: Any) -> None:
    query = "endPeriod=2010-12-12&lastNObservations=1&format=csvdata"

    reply = get(f"{ecb.url}/data/EXR/D.GBP.EUR.SP00.A?{query}")

    assert rates_of(reply) == [("GBP", "2010-12-10", "0.83715")]


def test_a_window_without_publication_is_an_empty_200(ecb: Ecb, get: Any) -> None:
    window = "startPeriod=2010-12-11&endPeriod=2010-12-12&format=csvdata"

    reply = get(f"{ecb.url}/data/EXR/D.GBP.EUR.SP00.A?{window}")

    assert (reply.status, reply.headers["Content-Length"], reply.data) == (200, "0", b"")
    assert reply.headers["Content-Type"] == "text/csv"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/data/EXR/D.XXX.EUR.SP00.A?format=csvdata", 404),
        ("/data/EXR/M.USD.EUR.SP00.A?format=csvdata", 404),
        ("/data/OTHER/D.USD.EUR.SP00.A?format=csvdata", 404),
        ("/data/EXR/D.USD?format=csvdata", 400),
        ("/data/EXR/D.USD.EUR.SP00.A?format=csvdata&startPeriod=2010-13-01", 400),
        ("/data/EXR/D.USD.EUR.SP00.A?format=csvdata&endPeriod=yesterday", 400),
        ("/data/EXR/D.USD.EUR.SP00.A?format=csvdata&lastNObservations=-1", 400),
        ("/data/EXR/D.USD.EUR.SP00.A?format=csvdata&detail=some", 400),
        ("/data/EXR/D.USD.EUR.SP00.A?format=csvdata&updatedAfter=2010-12-01", 501),
        ("/data/EXR/D.USD.EUR.SP00.A?format=jsondata", 406),
        ("/data/EXR/D.USD.EUR.SP00.A", 406),
    ],
)
def test_what_is_wrong_or_not_there_has_its_status(
    ecb: Ecb, get: Any, path: str, status: int
) -> None:
    assert get(ecb.url + path).status == status


def test_days_after_today_are_not_published_yet(ecb: Ecb, get: Any) -> None:
    url = f"{ecb.url}/data/EXR/D.GBP.EUR.SP00.A?startPeriod=2010-12-09&format=csvdata"
    ecb.set_today(date(2010, 12, 10))
    before = rates_of(get(url))
    ecb.set_today(date(2010, 12, 13))

    assert [day for _, day, _ in before] == ["2010-12-09", "2010-12-10"]
    assert [day for _, day, _ in rates_of(get(url))] == ["2010-12-09", "2010-12-10", "2010-12-13"]


@pytest.mark.parametrize("text", ["N/A", ""])
def test_an_observation_without_a_number_can_be_served(ecb: Ecb, get: Any, text: str) -> None:
    ecb.blank("GBP", date(2010, 12, 10), text)
    window = "startPeriod=2010-12-09&endPeriod=2010-12-10&format=csvdata"

    reply = get(f"{ecb.url}/data/EXR/D.GBP.EUR.SP00.A?{window}")

    assert [value for _, _, value in rates_of(reply)] == ["0.8382", text]


def test_every_shipped_rate_is_served_unaltered(ecb: Ecb, get: Any) -> None:
    header, *lines = ECB_RATES.read_text().splitlines()
    currencies = header.split(",")[1:-1]
    published = {
        (currency, line[:10], value)
        for line in lines
        for currency, value in zip(currencies, line.split(",")[1:-1], strict=True)
        if value != "N/A"
    }

    reply = get(f"{ecb.url}/data/EXR/D..EUR.SP00.A?format=csvdata&detail=dataonly")

    served = rates_of(reply)
    assert len(served) == len(published)
    assert set(served) == published
    assert served == sorted(served, key=lambda row: row[:2])
