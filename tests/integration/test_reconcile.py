"""`freshet reconcile` over the whole local pipeline, with the sample shop as the source."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, cast

import boto3
import pytest
from typer.testing import CliRunner, Result

from api_poller.changes import Skipped, SyncRule
from api_poller.listing import Outcome, Page
from api_poller.poll import Poller, Source
from api_poller.state import StateStore
from freshet.clock import micros, utc_now
from freshet.contract import Contract, Row
from freshet.event import ChangeEvent, Op, key_text
from freshet.kinesis import KinesisStream
from freshet.s3 import S3Objects
from freshet.tables import TABLES, ExchangeRate, Product
from freshet.testing import (
    MemoryObjects,
    MemoryStream,
    StoppedClock,
    change,
    product_row,
    rate_row,
)
from lake.lake import Lake
from lake.verify import verify_table
from local import cli
from local.differences import Difference, Differences, Kind, Listed
from local.options import Failed
from local.reconcile import (
    Healer,
    HealIncompleteError,
    HealRefusedError,
    ListingIncompleteError,
    Reconciliation,
    listing,
    reconcile_in,
)
from local.runtime import STATE_BUCKET, STREAM, Home, Pipeline, function_environment, open_lake
from local.sample.catalogue import Catalogue, DaySale
from local.sample.shop import Shop

DAY = date(2010, 12, 1)
PRODUCTS = 24
# In nanoseconds: far above every clock in microseconds, and taken by the consumer.
FAR = 2 * 10**18


@dataclass
class ShopSource:
    """The sample shop as a source, in pages of ten; every key begins with the source's name."""

    url: str
    name: str
    contract: type[Contract] = Product
    rule: SyncRule = field(default_factory=SyncRule)
    outcome: Outcome = field(default_factory=lambda: Outcome(complete=True))
    shown: bool = True

    def pages(
        self,
        watermark: str | None,
        now: datetime,
        resume: str | None,
        missing: Callable[[], bool] = lambda: True,
    ) -> Generator[Page, None, Outcome]:
        for offset in range(0, 1000 if self.shown else 0, 10):
            with urllib.request.urlopen(
                f"{self.url}/products?offset={offset}&limit=10", timeout=5
            ) as answer:
                products = json.loads(answer.read(), parse_float=Decimal)
            rows = [self._row(product) for product in products]
            yield Page({row["product_id"]: row for row in rows}, resume=str(offset))
            if len(products) < 10:
                break
        return self.outcome

    def occurred_at(self, row: Row) -> datetime | None:
        found: datetime | None = row["updated_at"]
        return found

    def _row(self, product: Mapping[str, Any]) -> Row:
        return Product.parse(
            {
                "product_id": f"{self.name}-{product['id']}",
                "sku": product["slug"],
                "title": product["title"],
                "price": product["price"],
                "currency": "GBP",
                "category": product["category"]["name"],
                "updated_at": product["updatedAt"],
            }
        )


@dataclass
class Scripted:
    """A source that shows these pages."""

    shown: Sequence[Page]
    outcome: Outcome = field(default_factory=lambda: Outcome(complete=True))
    name: str = "shop"
    contract: type[Contract] = Product
    rule: SyncRule = field(default_factory=SyncRule)

    def pages(
        self,
        watermark: str | None,
        now: datetime,
        resume: str | None,
        missing: Callable[[], bool] = lambda: True,
    ) -> Generator[Page, None, Outcome]:
        yield from self.shown
        return self.outcome

    def occurred_at(self, row: Row) -> datetime | None:
        return None


def product(key: str = "4", **columns: Any) -> Row:
    return Product.parse(product_row(key, **columns))


def quiet(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    sales = [DaySale(DAY, f"sku-{n}", f"Product {n}", Decimal(n)) for n in range(1, PRODUCTS + 1)]
    with Shop(Catalogue(sales)) as made:
        yield made


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        before = dict(os.environ)
        with Pipeline(Home(tmp_path_factory.mktemp("reconcile") / "home")) as running:
            yield running
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture
def source(pipeline: Pipeline, shop: Shop, request: pytest.FixtureRequest) -> ShopSource:
    """A source of the test's own in the common table, all of it in the lake."""
    os.environ.update(function_environment(pipeline.aws.environment(), pipeline.home, {}))
    shop.set_day(DAY)
    made = ShopSource(shop.url, f"shop{len(products(pipeline))}")
    report = reconcile_in(pipeline, made, heal=True, progress=quiet)
    assert (report.healed, report.left) == (PRODUCTS, 0)
    return made


def publish(pipeline: Pipeline, *events: ChangeEvent) -> None:
    """Changes that somebody else puts into the stream, until they are queryable."""
    assert KinesisStream(boto3.client("kinesis"), STREAM, TABLES).publish(events).complete
    pipeline.drain()


def products(pipeline: Pipeline) -> dict[str, Row]:
    with open_lake(pipeline.home) as (lake, _):
        return {row["product_id"]: row for row in lake.rows("products").to_pylist()}


def kinds(report: Reconciliation) -> dict[str, str]:
    return {row.key.rpartition("-")[2]: row.kind.value for row in report.rows}


def soon() -> int:
    """A version above what a source of ours has told by now."""
    return micros(utc_now() + timedelta(minutes=1))


def meddle(pipeline: Pipeline, source: ShopSource) -> None:
    """Drop a row, change one, add one; and a row of another source."""
    name = source.name
    publish(
        pipeline,
        change("products", version=FAR, key={"product_id": f"{name}-3"}),
        change("products", product_row(f"{name}-5", price="99"), version=soon()),
        change("products", product_row(f"{name}-900"), version=soon(), source=name),
        change("products", product_row(f"{name}-other"), version=soon(), source="other"),
    )


def test_a_lake_as_listed_is_clean_and_other_sources_rows_do_not_count(
    pipeline: Pipeline, source: ShopSource
) -> None:
    other = replace(source, name=f"{source.name}b")
    filled = reconcile_in(pipeline, other, heal=True, progress=quiet)
    again = reconcile_in(pipeline, source, progress=quiet)

    assert (filled.listed, filled.stored, filled.healed) == (PRODUCTS, 0, PRODUCTS)
    assert set(kinds(filled).values()) == {"missing"}
    assert (again.rows, again.stored, again.differs) == ((), PRODUCTS, False)


def test_reconcile_reports_exactly_what_was_dropped_changed_and_added(
    pipeline: Pipeline, source: ShopSource
) -> None:
    meddle(pipeline, source)
    before = products(pipeline)

    report = reconcile_in(pipeline, source, progress=quiet)

    assert kinds(report) == {"3": "missing", "5": "different", "900": "extra"}
    [different] = [row for row in report.rows if row.kind is Kind.DIFFERENT]
    assert {"price", "title"} <= set(different.columns)
    partitions = report.partitions()
    assert [sum(column) for column in list(zip(*partitions, strict=True))[1:]] == [1, 1, 1]
    assert all(name.startswith("product_id_bucket=") for name, *_ in partitions)
    assert products(pipeline) == before  # nothing was sent


def test_a_missing_row_is_told_in_the_partition_it_comes_back_to(
    pipeline: Pipeline, source: ShopSource
) -> None:
    keys = {f"{source.name}-{n}" for n in range(1, 9)}
    where = partitions_of(pipeline, source, keys)
    publish(
        pipeline, *(change("products", version=soon(), key={"product_id": key}) for key in keys)
    )

    report = reconcile_in(pipeline, source, heal=True, progress=quiet)

    assert {row.key: row.partition for row in report.rows} == where
    assert len(set(where.values())) > 1
    assert partitions_of(pipeline, source, keys) == where


def partitions_of(pipeline: Pipeline, source: ShopSource, keys: set[str]) -> dict[str, str]:
    """Where the lake holds these rows: as it tells rows that are extra."""
    nothing = replace(source, url="", shown=False)
    return {
        row.key: row.partition
        for row in reconcile_in(pipeline, nothing, progress=quiet).rows
        if row.key in keys
    }


def test_healing_mends_exactly_that_and_the_next_reconcile_is_clean(
    pipeline: Pipeline, source: ShopSource
) -> None:
    meddle(pipeline, source)
    before = products(pipeline)

    healed = reconcile_in(pipeline, source, heal=True, progress=quiet)
    again = reconcile_in(pipeline, source, heal=True, progress=quiet)

    assert (healed.healed, healed.left) == (3, 0)
    assert (again.rows, again.healed) == ((), 0)
    after, name = products(pipeline), source.name
    assert after.keys() == (before.keys() | {f"{name}-3"}) - {f"{name}-900"}
    mended = {key for key in after if after[key] != before.get(key)}
    assert mended == {f"{name}-3", f"{name}-5"}
    assert after[f"{name}-5"]["price"] == Decimal(5)
    with open_lake(pipeline.home) as (lake, _):
        assert all(check.holds for check in verify_table(lake, Product))


def test_a_correction_beats_a_column_that_is_newer_than_its_row(
    pipeline: Pipeline, source: ShopSource
) -> None:
    whole = change("products", product_row(f"{source.name}-5"), version=soon())
    publish(pipeline, replace(whole, op=Op.UPDATE, after=None, patch={"price": Decimal(99)}))

    healed = reconcile_in(pipeline, source, heal=True, progress=quiet)

    assert (healed.healed, healed.left) == (1, 0)
    assert products(pipeline)[f"{source.name}-5"]["price"] == Decimal(5)
    assert reconcile_in(pipeline, source, progress=quiet).rows == ()


def test_the_poller_goes_on_above_the_corrections_and_doubts_their_keys(
    pipeline: Pipeline, source: ShopSource
) -> None:
    """A delete from the far future was beaten: what the poller sends next must beat that too."""
    meddle(pipeline, source)
    reconcile_in(pipeline, source, heal=True, progress=quiet)

    state, _ = StateStore(S3Objects(boto3.client("s3"), STATE_BUCKET)).load(source.name)

    assert state.pending >= {f"{source.name}-{key}" for key in ("3", "5", "900")}
    assert state.version > FAR


def test_above_the_guard_nothing_is_deleted_but_told(
    pipeline: Pipeline, source: ShopSource, shop: Shop
) -> None:
    for _ in range(PRODUCTS // 4):
        shop.remove_first()
    before = products(pipeline)

    with pytest.raises(HealRefusedError, match="6 of 24 rows would be deleted") as refused:
        reconcile_in(pipeline, source, heal=True, progress=quiet)
    report = reconcile_in(pipeline, source, progress=quiet)

    assert "delete_share_max" in str(refused.value)
    assert kinds(report) == dict.fromkeys(map(str, range(1, 7)), "extra")
    assert products(pipeline) == before

    lenient = replace(source, rule=SyncRule(delete_share_max=1))
    assert reconcile_in(pipeline, lenient, heal=True, progress=quiet).healed == 6
    gone = before.keys() - products(pipeline).keys()
    assert gone == {f"{source.name}-{n}" for n in range(1, 7)}


def test_a_clock_behind_the_lake_is_refused_before_anything_is_sent(
    pipeline: Pipeline, source: ShopSource
) -> None:
    publish(pipeline, change("products", product_row(f"{source.name}-5"), version=soon()))
    before = products(pipeline)

    def slow() -> datetime:
        return utc_now() - timedelta(days=2)

    with pytest.raises(HealRefusedError, match="more than a day ahead of this clock"):
        reconcile_in(pipeline, source, heal=True, now=slow, progress=quiet)

    assert products(pipeline) == before


def test_an_incomplete_listing_is_not_compared(pipeline: Pipeline, source: ShopSource) -> None:
    torn = replace(source, outcome=Outcome(complete=False, reason="the total is 99"))

    with pytest.raises(ListingIncompleteError, match="the total is 99"):
        reconcile_in(pipeline, torn, heal=True, progress=quiet)


def test_the_command_tells_and_mends(
    pipeline: Pipeline, source: ShopSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the pipeline that runs already: a second one in this process would find its handlers."""
    monkeypatch.setattr("api_poller.app.open_source", lambda _: source)
    monkeypatch.setattr("local.reconcile.Pipeline", lambda *_, **__: nullcontext(pipeline))

    def run(*arguments: str) -> Result:
        command = ["reconcile", "platzi", "--home", str(pipeline.home.folder), *arguments]
        return CliRunner().invoke(cli.app, command)

    meddle(pipeline, source)
    told, as_json, healed, clean = run(), run("--json"), run("--heal"), run("--json")

    assert isinstance(told.exception, Failed)
    assert "3 rows of products are not as platzi lists; --heal mends that" in str(told.exception)
    assert told.stdout.split()[:4] == ["partition", "missing", "extra", "different"]
    assert told.stdout.split()[-4:] == ["all", "1", "1", "1"]
    assert isinstance(as_json.exception, Failed)
    report = json.loads(as_json.stdout)
    assert (report["missing"], report["extra"], report["different"]) == (1, 1, 1)
    assert [row["key"].rpartition("-")[2] for row in report["rows"]] == ["5", "900", "3"]
    assert report["rows"][0]["columns"]["price"] == {"lake": "99.0000", "source": "5.0000"}
    assert healed.exit_code == 0
    assert clean.exit_code == 0
    assert json.loads(clean.stdout) == {
        "source": source.name,
        "table": "products",
        "listed": PRODUCTS,
        "stored": PRODUCTS,
        "unreadable": 0,
        "absence_counts": True,
        "missing": 0,
        "extra": 0,
        "different": 0,
        "healed": 0,
        "left": 0,
        "partitions": [],
        "rows": [],
    }


# --- without a pipeline -------------------------------------------------------------------------


def test_a_listing_takes_the_last_word_on_every_row() -> None:
    source = Scripted(
        [
            Page({"1": product("1"), "2": product("2"), "3": product("3")}, resume="a"),
            Page(
                {"1": product("1", price="9")},
                deleted=frozenset({"2"}),
                skipped=[Skipped("3", "wrong_type", "price"), Skipped("4", "wrong_type", "price")],
                resume="b",
            ),
            Page({"4": product("4")}),
        ]
    )

    found = listing(source, utc_now())

    assert found == Listed(
        {"1": product("1", price="9"), "4": product("4")},
        unreadable=frozenset({"3"}),
        deleted=frozenset({"2"}),
    )


def test_a_row_without_a_usable_key_makes_a_listing_incomplete() -> None:
    source = Scripted([Page({}, skipped=[Skipped(None, "missing_key", None)])])

    with pytest.raises(ListingIncompleteError, match="missing_key"):
        listing(source, utc_now())


def test_of_a_source_read_by_periods_absence_does_not_count() -> None:
    rate = ExchangeRate.parse(rate_row())
    source = Scripted(
        [Page({key_text(ExchangeRate, rate): rate})],
        contract=ExchangeRate,
        rule=SyncRule(cursor="rate_date"),
    )

    assert not listing(source, utc_now()).absence_counts


def one_different(listed_row: Row) -> Differences:
    lake_row = product(price="77")
    return Differences(
        different=(Difference(Kind.DIFFERENT, "4", "", listed_row, lake_row, 5, ("price",)),)
    )


def heal(healer: Healer, source: Source, found: Differences) -> None:
    healer.heal(source, cast("Lake", None), found)  # only missing rows need the lake


def test_corrections_are_reserved_before_they_are_sent() -> None:
    """The stream takes nothing: the poller's state names the key and the version all the same."""
    stream, states, clock = MemoryStream(), StateStore(MemoryObjects()), StoppedClock()
    stream.throttle_next()

    with pytest.raises(HealIncompleteError, match="accepted 0 of 1 corrections"):
        heal(Healer(stream, states, clock), Scripted([]), one_different(product()))

    state, _ = states.load("shop")
    assert state.pending == {"4"}
    assert state.version >= clock().timestamp() * 1_000_000


def test_a_source_that_goes_back_to_what_the_poller_remembers_is_polled_right() -> None:
    """The poller told A; a correction told B; the source shows A again."""
    stream, states, clock = MemoryStream(), StateStore(MemoryObjects()), StoppedClock()
    poller = Poller(stream, states, clock)
    shows_a = Scripted([Page({"4": product(price="1")})])
    poller.poll(shows_a)
    clock.advance(60)

    heal(Healer(stream, states, clock), shows_a, one_different(product(price="2")))
    clock.advance(60)
    poller.poll(shows_a)
    clock.advance(60)
    poller.poll(shows_a)

    told = [(event.op, event.after and event.after["price"]) for event in stream.events()]
    assert told == [
        (Op.READ, Decimal(1)),
        (Op.UPDATE, Decimal(2)),
        (Op.UPDATE, Decimal(1)),
    ]
    versions = [event.version for event in stream.events()]
    assert versions == sorted(set(versions))
