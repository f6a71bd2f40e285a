"""What each source's answers become, what the poller remembers, and what a poll does with both."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import zstandard

from api_poller import app
from api_poller.app import UnknownSourceError, build
from api_poller.changes import Listing, Skipped
from api_poller.ecb import EcbRates
from api_poller.http import (
    Answer,
    Fetcher,
    SourceAnswerError,
    SourceError,
    SourceRefusedError,
)
from api_poller.platzi import PlatziCatalogue
from api_poller.poll import Poller, PollReport, PublishIncompleteError, Source
from api_poller.settings import Settings
from api_poller.state import (
    PollState,
    StateConflictError,
    StateCorruptError,
    StateStore,
    state_key,
)
from freshet.errors import SettingsError
from freshet.event import Op
from freshet.objects import DirectoryObjects, ObjectMissingError
from freshet.testing import MemoryStream, StoppedClock

EVENTS = Path(__file__).parents[2] / "events"
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
CLOTHES = {"id": 1, "name": "Clothes", "slug": "clothes"}


class ScriptedHttp(Fetcher):
    """A fetcher that answers from a function of path and query; `urls` holds what was asked."""

    def __init__(self, answer: Callable[[str, Mapping[str, str]], bytes]) -> None:
        super().__init__()
        self._answer, self.urls, self.measured = answer, list[str](), True

    def get(self, source: str, url: str, *, accept: str) -> Answer:
        self.urls.append(url)
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return Answer(url, 200, self._answer(parts.path, query), self.measured)


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
        self.http = ScriptedHttp(self._page)

    def _page(self, path: str, query: Mapping[str, str]) -> bytes:
        self.pages += 1
        self.before_page(self.pages)
        assert path == "/api/v1/products"
        offset, limit = int(query["offset"]), int(query["limit"])
        return json.dumps(self.items[offset : offset + limit]).encode()

    def source(self, page_rows: int = 3) -> PlatziCatalogue:
        return PlatziCatalogue(self.http, "http://shop/api/v1", "USD", page_rows)


def only_listing(source: Source, state: PollState | None = None) -> Listing:
    (listing,) = source.listings(state or PollState(), NOW)
    return listing


# --- the shop -------------------------------------------------------------------------------------


def test_a_product_becomes_a_row_of_the_contract() -> None:
    shop = Shop(item(35, price=39))

    listing = only_listing(shop.source())

    assert listing.rows == {
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
    assert listing.watermark == "2026-11-20T21:41:12.000000Z"
    assert listing.complete


def test_prices_are_exact_decimals() -> None:
    shop = Shop()
    shop.http = ScriptedHttp(
        lambda _, query: b'[{"id":1,"title":"a","price":0.1}]' if query["offset"] == "0" else b"[]"
    )

    assert only_listing(shop.source()).rows["1"]["price"] == Decimal("0.1")


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7, 20])
def test_every_page_is_read_whatever_their_number(count: int) -> None:
    shop = Shop(*(item(number) for number in range(count)))

    assert len(only_listing(shop.source()).rows) == count


def test_both_paging_parameters_are_always_sent() -> None:
    shop = Shop(*(item(number) for number in range(5)))

    only_listing(shop.source())

    assert all("offset=" in url and "limit=3" in url for url in shop.http.urls)


def test_a_server_that_caps_its_pages_is_still_read_to_the_end() -> None:
    shop = Shop(*(item(number) for number in range(20)))

    def capped(_: str, query: Mapping[str, str]) -> bytes:
        offset = int(query["offset"])
        return json.dumps(shop.items[offset : offset + 4]).encode()

    shop.http = ScriptedHttp(capped)

    assert len(only_listing(shop.source(page_rows=10)).rows) == 20


def test_a_delete_between_two_pages_starts_the_listing_over_and_loses_no_row() -> None:
    shop = Shop(*(item(number) for number in range(9)))
    shop.before_page = lambda page: shop.items.pop(0) if page == 3 else None

    listing = only_listing(shop.source())

    assert listing.rows.keys() == {str(number) for number in range(1, 9)}


def test_a_delete_that_empties_the_next_page_starts_the_listing_over() -> None:
    shop = Shop(*(item(number) for number in range(3)))
    shop.before_page = lambda page: shop.items.pop() if page == 2 else None

    assert only_listing(shop.source()).rows.keys() == {"0", "1"}


def test_a_shop_that_never_holds_still_is_given_up_with_advice() -> None:
    shop = Shop(*(item(number) for number in range(90)))
    shop.before_page = lambda page: shop.items.pop(0)

    with pytest.raises(SourceAnswerError, match=r"'platzi'.*moved.*PAGE_ROWS"):
        only_listing(shop.source())

    assert shop.pages < 90


def test_a_server_that_repeats_its_first_page_is_not_believed() -> None:
    page = json.dumps([item(1), item(2), item(3)]).encode()
    shop = Shop()
    shop.http = ScriptedHttp(lambda _, query: page)

    with pytest.raises(SourceAnswerError, match="moved"):
        only_listing(shop.source())


def test_a_listing_that_names_a_product_twice_is_not_believed() -> None:
    with pytest.raises(SourceAnswerError, match="moved"):
        only_listing(Shop(item(1), item(2), item(1), item(4)).source())


def test_a_server_that_ignores_the_limit_is_not_believed() -> None:
    page = json.dumps([item(number) for number in range(9)]).encode()
    shop = Shop()
    shop.http = ScriptedHttp(lambda _, query: page)

    with pytest.raises(SourceAnswerError, match="9 products where 3"):
        only_listing(shop.source())


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
    shop = Shop()
    shop.http = ScriptedHttp(lambda _, query: body)

    with pytest.raises(SourceAnswerError, match=r"source 'platzi' at http://shop/api/v1/products"):
        only_listing(shop.source())


@pytest.mark.parametrize(
    ("broken", "skipped"),
    [
        (item(2, price=None), Skipped("2", "wrong_type", "price")),
        (item(2, price="1.00001"), Skipped("2", "out_of_range", "price")),
        (item(2, title="x" * 500), Skipped("2", "too_long", "title")),
        (item(2, updatedAt="yesterday"), Skipped("2", "invalid_value", "updated_at")),
        (item(None), Skipped(None, "missing_key", "key.product_id")),
        (item(True), Skipped(None, "missing_key", "key.product_id")),
        (item("x" * 65), Skipped(None, "too_long", "key.product_id")),
    ],
)
def test_a_product_that_does_not_fit_is_reported_and_its_neighbours_go_on(
    broken: dict[str, Any], skipped: Skipped
) -> None:
    listing = only_listing(Shop(item(1), broken, item(3)).source())

    assert listing.rows.keys() == {"1", "3"}
    assert listing.skipped == [skipped]
    assert listing.complete is (skipped.key is not None)


def test_products_without_the_optional_parts_are_rows_too() -> None:
    bare = {"id": "a,b/ü", "title": "Bare", "price": "1.50", "category": None, "images": [None]}

    (row,) = only_listing(Shop(bare).source()).rows.values()

    assert (row["product_id"], row["category"], row["image_url"]) == ("a,b/ü", None, None)


def test_four_thousand_products_are_listed_and_compared_within_a_second(tmp_path: Path) -> None:
    shop = Shop(*(item(number, price=number / 100) for number in range(4_000)))
    poller, stream = poller_in(tmp_path)
    poller.poll(shop.source(page_rows=500))
    shop.items[7]["price"] = 1
    told = len(stream.events())

    started_s = time.process_time()
    report = poller.poll(shop.source(page_rows=500))
    took_s = time.process_time() - started_s

    assert took_s < 1.0
    assert (report.updated, report.unchanged) == (1, 3_999)
    assert len(stream.events()) == told + 1


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


def rates(
    *lines: str, start: str = "2026-09-01", header: str = DATAONLY, end: str = "\r\n"
) -> EcbRates:
    """A bank that answers each window with the given lines that lie in it."""
    day_at = header.split(",").index("TIME_PERIOD")

    def answer(path: str, query: Mapping[str, str]) -> bytes:
        assert path == "/service/data/EXR/D..EUR.SP00.A"
        assert query["format"] == "csvdata"
        first, last = query["startPeriod"], query["endPeriod"]
        inside = [text for text in lines if first <= text.split(",")[day_at] <= last]
        return end.join([header, *inside, ""]).encode() if inside else b""

    return EcbRates(
        ScriptedHttp(answer),
        "http://bank/service",
        date.fromisoformat(start),
        timedelta(days=10),
    )


def csv_of(*lines: str) -> bytes:
    return "\n".join([DATAONLY, *lines, ""]).encode()


def answering(body: bytes, *, measured: bool = True) -> EcbRates:
    http = ScriptedHttp(lambda _, query: body)
    http.measured = measured
    return EcbRates(http, "http://bank/service", date(2026, 9, 1), timedelta(days=10))


def rate(currency: str, day: str, value: str) -> dict[str, Any]:
    return {"currency": currency, "rate_date": date.fromisoformat(day), "rate": Decimal(value)}


@pytest.mark.parametrize("end", ["\r\n", "\n"])
@pytest.mark.parametrize(
    ("header", "row"),
    [(FULL, FULL_ROW), (DATAONLY, line("USD", "2026-09-30", "1.1355"))],
)
def test_both_shapes_of_csv_and_both_line_ends_give_the_same_row(
    header: str, row: str, end: str
) -> None:
    source = rates(row, header=header, end=end)

    assert only_listing(source).rows == {"USD,2026-09-30": rate("USD", "2026-09-30", "1.1355")}


@pytest.mark.parametrize("hole", ["", "N/A", "NaN", "-", " "])
def test_a_day_without_a_rate_is_no_row_and_no_problem(hole: str) -> None:
    source = rates(line("USD", "2026-09-29", "1.1"), line("USD", "2026-09-30", hole))

    listing = only_listing(source)

    assert listing.rows.keys() == {"USD,2026-09-29"}
    assert listing.skipped == []


def test_a_rate_that_is_no_number_is_reported() -> None:
    source = rates(line("USD", "2026-09-29", "1.1"), line("USD", "2026-09-30", "1,1,"[:1] + "x"))

    assert only_listing(source).skipped == [Skipped("USD,2026-09-30", "wrong_type", "rate")]


def test_an_empty_answer_on_a_weekend_changes_nothing() -> None:
    assert list(answering(b"").listings(PollState(watermark="2026-11-20"), NOW)) == []


def test_a_header_alone_is_an_empty_answer() -> None:
    assert list(answering(csv_of()).listings(PollState(), NOW)) == []


def test_a_later_poll_reads_the_overlap_before_the_watermark_again() -> None:
    source = rates(line("USD", "2026-11-10", "1.2"), line("USD", "2026-11-20", "1.1"))

    listing = only_listing(source, PollState(watermark="2026-11-20", listed=True))

    (url,) = source.http.urls  # type: ignore[attr-defined]
    assert "startPeriod=2026-11-10&endPeriod=2026-11-21" in url
    assert listing.rows.keys() == {"USD,2026-11-10", "USD,2026-11-20"}
    assert (listing.watermark, listing.since) == ("2026-11-20", ("rate_date", "2026-11-10"))
    assert (listing.whole_table, listing.backfill) == (False, False)


def test_history_is_read_in_years_from_its_first_day_to_today() -> None:
    source = rates(
        line("USD", "2024-01-02", "1.0"),
        line("USD", "2025-01-02", "1.1"),
        line("USD", "2026-01-02", "1.2"),
        start="2024-01-01",
    )

    listings = list(source.listings(PollState(), NOW))

    assert [listing.watermark for listing in listings] == ["2024-01-02", "2025-01-02", "2026-01-02"]
    assert all(listing.backfill for listing in listings)
    periods = [parse_qs(urlsplit(url).query) for url in source.http.urls]  # type: ignore[attr-defined]
    assert [(period["startPeriod"][0], period["endPeriod"][0]) for period in periods] == [
        ("2024-01-01", "2024-12-30"),
        ("2024-12-31", "2025-12-30"),
        ("2025-12-31", "2026-11-21"),
    ]


def test_years_before_the_first_rate_and_after_the_last_may_be_empty() -> None:
    source = rates(line("USD", "2010-12-01", "1.3"), start="1999-01-04")

    assert [listing.watermark for listing in source.listings(PollState(), NOW)] == ["2010-12-01"]


def test_an_empty_year_between_rates_is_a_fault_and_not_history() -> None:
    source = rates(
        line("USD", "2022-06-01", "1.0"), line("USD", "2026-06-01", "1.1"), start="2022-01-01"
    )
    listings = source.listings(PollState(), NOW)

    assert next(listings).watermark == "2022-06-01"
    with pytest.raises(SourceAnswerError, match="between rates"):
        next(listings)


def test_other_series_in_the_answer_are_passed_over() -> None:
    monthly = "EXR.M.USD.EUR.SP00.A,M,USD,EUR,SP00,A,2026-09,1.1"
    source = answering(csv_of(monthly, line("USD", "2026-09-30", "1.1")))

    assert only_listing(source).rows.keys() == {"USD,2026-09-30"}


def test_rates_outside_the_period_or_told_twice_differently_are_reported() -> None:
    lines = [
        line("USD", "1999-01-04", "1.0"),
        line("GBP", "2026-09-30", "0.8"),
        line("GBP", "2026-09-30", "0.9"),
        line("JPY", "2026-09-30", "170"),
        line("JPY", "2026-09-30", "170"),
    ]

    listing = only_listing(answering(csv_of(*lines)))

    assert listing.rows.keys() == {"JPY,2026-09-30"}
    assert {skipped.key for skipped in listing.skipped} == {"USD,1999-01-04", "GBP,2026-09-30"}


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
        list(answering(body.encode()).listings(PollState(), NOW))


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(SourceAnswerError, match="not CSV"):
        list(answering(csv_of() + b"\xff\xfe\n").listings(PollState(), NOW))


def test_csv_of_unknown_length_is_refused_because_a_cut_could_look_whole() -> None:
    with pytest.raises(SourceAnswerError, match="how long"):
        list(
            answering(csv_of(line("USD", "2026-09-30", "1.1")), measured=False).listings(
                PollState(), NOW
            )
        )


@pytest.mark.parametrize(("status", "expected"), [(404, SourceError), (403, SourceRefusedError)])
def test_a_404_of_the_bank_proves_nothing_and_a_403_does(
    status: int, expected: type[Exception]
) -> None:
    source = answering(b"")

    def refuse(path: str, query: Mapping[str, str]) -> bytes:
        raise SourceRefusedError("ecb", path, "answers", advice="look", status=status)

    with pytest.raises(expected) as raised:
        list(
            EcbRates(ScriptedHttp(refuse), source.url, source.start, source.overlap).listings(
                PollState(), NOW
            )
        )

    assert getattr(raised.value, "status", None) == status


# --- state ----------------------------------------------------------------------------------------

STATE = PollState(
    watermark="2026-11-20",
    version=7,
    listed=True,
    pending=frozenset({"b", "a"}),
    rows={"a": {"title": "ü", "price": "1.0000", "sku": None}},
)


def test_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = StateStore(DirectoryObjects(tmp_path))

    etag = store.save("platzi", STATE, etag=None)

    assert store.load("platzi") == (STATE, etag)
    assert store.load("ecb") == (PollState(), None)


def test_the_second_of_two_writers_of_one_state_loses(tmp_path: Path) -> None:
    store = StateStore(DirectoryObjects(tmp_path))
    etag = store.save("platzi", PollState(), etag=None)
    store.save("platzi", STATE, etag=etag)

    with pytest.raises(StateConflictError, match=r"another poll.*gives way"):
        store.save("platzi", PollState(version=9), etag=etag)

    assert store.load("platzi")[0] == STATE


def packed(body: object) -> bytes:
    return zstandard.ZstdCompressor().compress(json.dumps(body).encode())


GOOD = {"format": 1, "source": "platzi", "watermark": None, "version": 0, "listed": True}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not zstd",
        packed("text"),
        packed({}),
        packed(GOOD),
        packed(GOOD | {"pending": [], "rows": {"a": 1}}),
        packed(GOOD | {"pending": [1], "rows": {}}),
        packed(GOOD | {"pending": [], "rows": {}, "format": 2}),
        packed(GOOD | {"pending": [], "rows": {}, "source": "ecb"}),
        packed(GOOD | {"pending": [], "rows": {}})[:-3],
    ],
)
def test_a_corrupt_state_names_its_object_and_the_way_out(tmp_path: Path, data: bytes) -> None:
    objects = DirectoryObjects(tmp_path)
    objects.put(state_key("platzi"), data)

    with pytest.raises(StateCorruptError, match=r"pollers/platzi/state\.json\.zst.*delete it"):
        StateStore(objects).load("platzi")


def test_a_state_of_four_thousand_products_is_small(tmp_path: Path) -> None:
    poller, _ = poller_in(tmp_path)
    poller.poll(Shop(*(item(number) for number in range(4_000))).source(page_rows=500))

    assert len(DirectoryObjects(tmp_path).get(state_key("platzi")).data) < 200_000


# --- the poll -------------------------------------------------------------------------------------


def poller_in(folder: Path, share: float = 0.5) -> tuple[Poller, MemoryStream]:
    stream = MemoryStream()
    clock = StoppedClock(NOW)
    return Poller(stream, StateStore(DirectoryObjects(folder)), clock, share), stream


def test_first_poll_reads_later_polls_tell_differences(tmp_path: Path) -> None:
    poller, stream = poller_in(tmp_path)
    shop = Shop(item(1), item(2), item(3))

    first = poller.poll(shop.source())
    shop.items[0] = item(1, price=40, updatedAt="2026-11-21T08:00:00.000Z")
    del shop.items[1]
    shop.items.append(item(4))
    second = poller.poll(shop.source())
    third = poller.poll(shop.source())

    assert first == PollReport(
        source="platzi",
        table="products",
        listed=3,
        created=3,
        published=3,
        watermark="2026-11-20T21:41:12.000000Z",
    )
    assert (second.created, second.updated, second.deleted, second.unchanged) == (1, 1, 1, 1)
    assert (third.published, third.unchanged) == (0, 3)
    events = stream.events()
    assert {event.op for event in events[:3]} == {Op.READ}
    assert {(event.op, event.key["product_id"]) for event in events[3:]} == {
        (Op.UPDATE, "1"),
        (Op.DELETE, "2"),
        (Op.CREATE, "4"),
    }
    assert len({event.version for event in events}) == 6
    assert max(event.version for event in events[:3]) < min(event.version for event in events[3:])


def test_a_renamed_category_is_a_change_although_updated_at_stands_still(tmp_path: Path) -> None:
    poller, stream = poller_in(tmp_path)
    shop = Shop(item(1), item(2, category={"id": 2, "name": "Shoes"}))
    poller.poll(shop.source())

    shop.items[0]["category"] = CLOTHES | {"name": "Garments"}
    report = poller.poll(shop.source())

    assert report.updated == 1
    last = stream.events()[-1]
    assert last.before is not None
    assert last.after is not None
    assert (last.before["category"], last.after["category"]) == ("Clothes", "Garments")


def test_an_unchanged_source_writes_no_state(tmp_path: Path) -> None:
    poller, _ = poller_in(tmp_path)
    shop = Shop(item(1))
    poller.poll(shop.source())
    before = (tmp_path / state_key("platzi")).stat().st_mtime_ns

    poller.poll(shop.source())

    assert (tmp_path / state_key("platzi")).stat().st_mtime_ns == before


def test_the_guard_is_reported_and_its_rows_stay_known(tmp_path: Path) -> None:
    poller, stream = poller_in(tmp_path, share=0.2)
    shop = Shop(*(item(number) for number in range(10)))
    poller.poll(shop.source())

    shop.items = shop.items[:5]
    report = poller.poll(shop.source())

    assert (report.guarded, report.deleted, report.published) == (5, 0, 0)
    assert "DELETE_SHARE_MAX=1" in report.problems[0]
    assert {event.op for event in stream.events()} == {Op.READ}
    shop.items += [item(number) for number in range(5, 10)]
    assert poller.poll(shop.source()).published == 0


def test_a_throttled_stream_leaves_the_watermark_and_the_next_poll_completes(
    tmp_path: Path,
) -> None:
    poller, stream = poller_in(tmp_path)
    shop = Shop(*(item(number) for number in range(10)))
    stream.throttle_next(3)

    with pytest.raises(PublishIncompleteError, match="of 10 events") as raised:
        poller.poll(shop.source())

    assert raised.value.accepted == len(stream.events()) < 10
    state, _ = poller.states.load("platzi")
    assert (state.watermark, state.listed, len(state.pending)) == (None, False, 10)
    assert poller.poll(shop.source()).published == 10
    state, _ = poller.states.load("platzi")
    assert (state.listed, state.pending, len(state.rows)) == (True, frozenset(), 10)


def test_a_source_that_fails_half_way_changes_nothing(tmp_path: Path) -> None:
    poller, stream = poller_in(tmp_path)
    shop = Shop(*(item(number) for number in range(9)))
    poller.poll(shop.source())
    state, told = poller.states.load("platzi"), len(stream.events())
    shop.items[0]["price"] = 1

    def fail(page: int) -> None:
        raise SourceAnswerError("platzi", "http://shop", "answers 500", advice="wait")

    shop.before_page = lambda page: fail(page) if shop.pages % 3 == 0 else None
    with pytest.raises(SourceAnswerError):
        poller.poll(shop.source())

    assert poller.states.load("platzi") == state
    assert len(stream.events()) == told


def test_history_is_remembered_year_by_year(tmp_path: Path) -> None:
    poller, stream = poller_in(tmp_path)
    lines = [line("USD", day, "1.1") for day in ("2024-06-03", "2025-06-03", "2026-06-03")]
    broken = rates(*lines[:2], line("USD", "2026-06-03", "1.1")[:-4], start="2024-01-01")

    with pytest.raises(SourceAnswerError):
        poller.poll(broken)
    watermark = poller.states.load("ecb")[0].watermark
    report = poller.poll(rates(*lines, start="2024-01-01"))

    assert watermark == "2025-06-03"
    assert (report.created, report.unchanged, report.watermark) == (1, 1, "2026-06-03")
    assert [event.key["rate_date"].year for event in stream.events()] == [2024, 2025, 2026]


def test_revisions_new_and_ended_currencies_are_told_and_never_as_deletes(tmp_path: Path) -> None:
    poller, stream = poller_in(tmp_path)
    poller.poll(
        rates(
            line("USD", "2026-11-18", "1.10"),
            line("USD", "2026-11-19", "1.11"),
            line("BGN", "2026-11-18", "1.9558"),
        )
    )

    report = poller.poll(
        rates(
            line("USD", "2026-11-18", "1.10"),
            line("USD", "2026-11-19", "1.12"),
            line("USD", "2026-11-20", "1.13"),
            line("XYZ", "2026-11-20", "5"),
        )
    )

    assert (report.created, report.updated, report.deleted, report.unchanged) == (2, 1, 0, 1)
    assert report.watermark == "2026-11-20"
    assert {(event.op, event.key["currency"]) for event in stream.events()[3:]} == {
        (Op.UPDATE, "USD"),
        (Op.CREATE, "USD"),
        (Op.CREATE, "XYZ"),
    }
    assert stream.events()[0].occurred_at == datetime(2026, 11, 18, tzinfo=UTC)


def test_only_the_overlap_of_the_rates_is_remembered(tmp_path: Path) -> None:
    poller, _ = poller_in(tmp_path)

    poller.poll(rates(line("USD", "2026-09-30", "1.1"), line("USD", "2026-11-20", "1.1")))

    assert poller.states.load("ecb")[0].rows.keys() == {"USD,2026-11-20"}


# --- settings and the handler ---------------------------------------------------------------------

ENVIRONMENT = {"STREAM_NAME": "changes", "STATE_BUCKET": "state"}


def test_settings_need_only_the_names_of_the_resources() -> None:
    settings = Settings.from_env(ENVIRONMENT)

    assert settings.platzi_url == "https://api.escuelajs.co/api/v1"
    assert settings.ecb_url == "https://data-api.ecb.europa.eu/service"
    assert (settings.product_currency, settings.delete_share_max) == ("USD", 0.2)
    assert settings.ecb_start == date(1999, 1, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STREAM_NAME", ""),
        ("STATE_BUCKET", ""),
        ("PLATZI_URL", "escuelajs.co"),
        ("PLATZI_URL", "file:///etc/passwd"),
        ("ECB_URL", "https://host/path?format=csv"),
        ("PRODUCT_CURRENCY", "dollars"),
        ("DELETE_SHARE_MAX", "20"),
        ("ECB_START", "long ago"),
        ("PAGE_ROWS", "1"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"setting {name}:"):
        Settings.from_env(ENVIRONMENT | {name: value})


@pytest.mark.parametrize("name", ["platzi", "ecb"])
def test_the_handler_takes_what_the_scheduler_sends(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    http = ScriptedHttp(lambda path, query: b"[]" if "products" in path else b"")
    handle = build(
        Settings.from_env(ENVIRONMENT),
        stream=MemoryStream(),
        objects=DirectoryObjects(tmp_path),
        http=http,
        now=StoppedClock(NOW),
    )

    answer = handle(json.loads((EVENTS / f"schedule_{name}.json").read_text()), None)

    assert json.loads(json.dumps(answer)) == answer
    assert (answer["source"], answer["listed"], answer["complete"]) == (name, 0, True)


@pytest.mark.parametrize("event", [{}, {"source": "nobody"}, {"source": None}, {"source": ["a"]}])
def test_an_unknown_source_is_answered_with_the_known_ones(
    event: dict[str, Any], tmp_path: Path
) -> None:
    handle = build(
        Settings.from_env(ENVIRONMENT),
        stream=MemoryStream(),
        objects=DirectoryObjects(tmp_path),
        http=ScriptedHttp(lambda path, query: b""),
        now=StoppedClock(NOW),
    )

    with pytest.raises(UnknownSourceError, match="platzi, ecb"):
        handle(event, None)

    with pytest.raises(ObjectMissingError):
        DirectoryObjects(tmp_path).get(state_key("platzi"))


def test_the_deployed_handler_names_the_setting_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAM_NAME", raising=False)

    with pytest.raises(SettingsError, match="STREAM_NAME"):
        app.handler({"source": "platzi"}, None)


def test_the_poller_imports_neither_a_data_frame_nor_needs_aws() -> None:
    program = (
        "import sys, api_poller.app\n"
        "heavy = {'pyarrow', 'pandas', 'numpy', 'pyiceberg', 'duckdb'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    source = Path(__file__).parents[2] / "src"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
