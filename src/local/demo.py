"""The demo: a real month of a shop through the whole pipeline, compared with an independent answer.

Sales and returns are posted out of order, some twice and some broken; a shop whose prices move day
by day is polled every day; ECB rates are polled. At the end SQL over the lake must say exactly what
pandas says of the raw file. Any difference is a failure.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from freshet.arrow import position_of
from freshet.stream import RECORD_EVENTS_MAX
from local.embedded import LocalRuntimeError
from local.mapping import Invocation, Outcome
from local.output import talk
from local.runtime import STREAM, Home, Pipeline, open_lake, protector
from local.sample import ECB_RATES, RETAIL_MONTH
from local.sample.answer import Answer, compute
from local.sample.catalogue import Catalogue
from local.sample.disorder import Broken, Door, disorder
from local.sample.ecb import Ecb
from local.sample.retail import check_shape, register_changes
from local.sample.shop import Shop
from local.sending import Sender, batches
from local.sql import ask, connect

QUERIES = Path(__file__).parent / "queries"
SEED = 20101201
SENDERS = 2
MARKER = "demo"


@dataclass(frozen=True, slots=True)
class LandedBatch:
    """The stretch of a shard that one invocation made queryable, and when (epoch seconds)."""

    shard_id: str
    first: str
    last: str
    finished_at: float


@dataclass
class Landed:
    """What the demo saw while it ran."""

    sent: int = 0
    refused: int = 0
    refused_wanted: int = 0
    quarantined_wanted: int = 0
    product_changes: int = 0
    rates: int = 0
    started_at: float = 0.0
    finished_at: float = 0.0
    batches: list[LandedBatch] = field(default_factory=list)
    busy_s: dict[str, float] = field(default_factory=dict)

    def note(self, invocation: Invocation) -> None:
        """Keep where and when a batch landed, not its records: a year of them fills the memory."""
        if invocation.outcome is Outcome.SUCCEEDED:
            self.batches.append(
                LandedBatch(
                    invocation.shard_id,
                    position_of(invocation.first_sequence_number, 0),
                    position_of(invocation.last_sequence_number, RECORD_EVENTS_MAX),
                    invocation.finished_at,
                )
            )

    @property
    def events(self) -> int:
        """Events that went through the stream."""
        return self.sent + self.product_changes + self.rates

    @property
    def seconds(self) -> float:
        """From the first event sent to the last commit."""
        return self.finished_at - self.started_at


@dataclass(frozen=True)
class Comparison:
    """One question, asked of the lake and of pandas."""

    question: str
    checked: int
    differences: tuple[str, ...]


def run(home: Home, data: Path | None) -> tuple[Landed, list[Comparison], dict[str, Any]]:
    """Run the demo in a home of its own; returns what landed, the comparisons and the results.

    Raises `LocalRuntimeError` or `SampleDataError` with one line for the user.
    """
    retail = data or RETAIL_MONTH
    check_shape(retail)
    _claim(home)
    with _progress() as progress:
        landed = _stream(home, retail, progress)
        with _step(progress, "computing the answer with pandas"):
            answer = compute(retail, ECB_RATES)
        with _step(progress, "asking the lake with SQL"), open_lake(home) as (lake, endpoint):
            connection = connect(lake, endpoint)
            shown = _ask(connection, landed)
            hide_customers(answer, protector().hashed)
            comparisons = list(_compare(connection, answer, shown, landed))
    return landed, comparisons, shown


def hide_customers(answer: Answer, hashed: Callable[[str], str]) -> None:
    """Hash the customers of the raw file: the lake never saw them."""
    customers = answer.sales["customer_id"]
    answer.sales["customer_id"] = customers.map(hashed, na_action="ignore")


def _claim(home: Home) -> None:
    """Empty the home if it is a demo's; refuse to touch anybody else's data."""
    home.make()
    marker = home.folder / MARKER
    if any(home.folder.iterdir()) and not marker.exists():
        raise LocalRuntimeError(
            f"{home.folder} holds data that is not the demo's; run it elsewhere: "
            "FRESHET_HOME=demo-home make demo, or freshet demo --home demo-home"
        )
    home.clear()
    marker.write_text("made by `freshet demo`; the next demo empties this folder\n")


def _progress() -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=talk,
    )


@contextmanager
def _step(progress: Progress, description: str) -> Iterator[None]:
    """Show something of unknown length while it lasts."""
    task = progress.add_task(description, total=None)
    yield
    progress.remove_task(task)


def _stream(home: Home, retail: Path, progress: Progress) -> Landed:
    """Everything that goes through the pipeline, until all of it is queryable."""
    landed = Landed()
    with ExitStack() as stack:
        with _step(progress, "starting shop, ECB, AWS and functions"):
            catalogue = Catalogue.from_file(retail)
            shop = stack.enter_context(Shop(catalogue))
            ecb = stack.enter_context(Ecb(ECB_RATES))
            pipeline = Pipeline(home, sources=_sources(shop, ecb), on_invocation=landed.note)
            stack.enter_context(pipeline)
        landed.started_at = time.time()
        landed.rates = pipeline.poll("ecb")["published"]
        _poll_and_post(pipeline, _Days(shop, catalogue.days), retail, landed, progress)
        with _step(progress, "waiting until everything is queryable"):
            pipeline.drain()
        landed.finished_at = max(batch.finished_at for batch in landed.batches)
        landed.busy_s = dict(pipeline.busy_s)
    return landed


def _sources(shop: Shop, ecb: Ecb) -> dict[str, str]:
    """The poller's settings: our shop, and rates from the month before the sample begins."""
    return {
        "PLATZI_URL": shop.url,
        "ECB_URL": ecb.url,
        "ECB_START": "2010-11-15",
        "PRODUCT_CURRENCY": "GBP",
    }


@dataclass
class _Days:
    """The shop's days, until they are over or somebody calls it off."""

    shop: Shop
    days: Sequence[date]
    called_off: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[date]:
        for day in self.days:
            if self.called_off.is_set():
                return
            self.shop.set_day(day)
            yield day


def _poll_and_post(
    pipeline: Pipeline, days: _Days, retail: Path, landed: Landed, progress: Progress
) -> None:
    """Poll the shop day by day while sales are posted; a fault of one ends the other."""
    with ThreadPoolExecutor(1) as polling:
        polled = polling.submit(_poll_days, pipeline, days, landed, progress)
        try:
            _post(pipeline, retail, landed, progress, polled)
        except BaseException:
            days.called_off.set()
            raise
        polled.result()


def _poll_days(pipeline: Pipeline, days: _Days, landed: Landed, progress: Progress) -> None:
    task = progress.add_task("polling the shop, day by day", total=len(days.days))
    for _ in days:
        landed.product_changes += pipeline.poll("platzi")["published"]
        progress.advance(task)


def _post(
    pipeline: Pipeline, retail: Path, landed: Landed, progress: Progress, polled: Future[None]
) -> None:
    """Post sales and returns as the disordered register emits them, broken records included."""
    task = progress.add_task("posting sales and returns", total=None)
    sender = Sender(pipeline.gateway.url)
    lock = threading.Lock()

    def post(batch: list[bytes]) -> None:
        pipeline.check()
        if polled.done():
            polled.result()
        sent = sender.send("sales", batch)
        with lock:
            landed.sent += sent.accepted
            landed.refused += sent.rejected
        progress.advance(task, len(batch))

    with ThreadPoolExecutor(SENDERS) as pool:
        _bounded(pool, post, batches(_lines(pipeline, retail, landed, post)))
    progress.update(task, total=landed.sent + landed.refused)


def _lines(
    pipeline: Pipeline, retail: Path, landed: Landed, post: Callable[[list[bytes]], None]
) -> Iterator[bytes]:
    """Each change as a JSON line; broken records leave by their own door on the way."""
    for item in disorder(register_changes(retail), SEED):
        if not isinstance(item, Broken):
            yield json.dumps(item).encode()
        elif item.door is Door.HTTP:
            landed.refused_wanted += 1
            post([item.body])
        else:
            landed.quarantined_wanted += 1
            pipeline.aws.client("kinesis").put_record(
                StreamName=STREAM, Data=item.body, PartitionKey=item.kind
            )


def _bounded(
    pool: ThreadPoolExecutor, post: Callable[[list[bytes]], None], work: Iterable[list[bytes]]
) -> None:
    """Feed the pool without piling the whole year up in memory."""
    room = threading.Semaphore(SENDERS * 2)

    def one(batch: list[bytes]) -> None:
        try:
            post(batch)
        finally:
            room.release()

    under_way: deque[Future[None]] = deque()
    for batch in work:
        room.acquire()
        under_way.append(pool.submit(one, batch))
        while under_way and under_way[0].done():
            under_way.popleft().result()  # a fault ends the posting at once
    for future in under_way:
        future.result()


def _ask(connection: Any, landed: Landed) -> dict[str, Any]:
    """The questions of the demo, in SQL."""
    answers: dict[str, Any] = {
        path.stem: ask(connection, path.read_text())[1] for path in sorted(QUERIES.glob("*.sql"))
    }
    answers["net_revenue_by_day"] = [
        (day, gbp, _in_eur(gbp, rate), rate_date)
        for day, gbp, rate_date, rate in answers["net_revenue_by_day"]
    ]
    answers["products"] = ask(connection, "SELECT sku, title, price FROM products ORDER BY sku")[1]
    answers["latency_s"] = _latency(connection, landed.batches)
    return answers


def _in_eur(gbp: Decimal, rate: Decimal | None) -> Decimal | None:
    return None if rate is None else (gbp / rate).quantize(Decimal("0.01"), ROUND_HALF_UP)


def _latency(connection: Any, batches_landed: Sequence[LandedBatch]) -> dict[str, float]:
    """Seconds from acceptance at the edge to the end of the commit that made it queryable."""
    landed = pa.Table.from_pylist([asdict(batch) for batch in batches_landed])
    connection.register("batches", landed)
    _, rows = ask(connection, (QUERIES / "latency" / "event_to_queryable.sql").read_text())
    p50, p95, p99, longest, events = rows[0]
    return {"p50": p50, "p95": p95, "p99": p99, "max": longest, "events": events}


def _compare(
    connection: Any, answer: Answer, shown: dict[str, Any], landed: Landed
) -> Iterator[Comparison]:
    """Every result against the independent one."""
    yield _compare_sales(connection, answer.sales.reset_index())
    yield _same(
        "net revenue per day in GBP",
        answer.revenue_gbp,
        {day: gbp for day, gbp, _, _ in shown["net_revenue_by_day"]},
    )
    yield _same(
        "net revenue per day in EUR",
        answer.revenue_eur,
        {day: eur for day, _, eur, _ in shown["net_revenue_by_day"]},
    )
    yield _same(
        "most returned products",
        dict(enumerate(answer.most_returned)),
        dict(enumerate((sku, int(units)) for sku, units in shown["most_returned"])),
    )
    yield _same(
        "products and prices now",
        answer.products,
        {sku: (title, price) for sku, title, price in shown["products"]},
    )
    history: dict[str, list[tuple[date, Decimal]]] = {}
    for sku, since, price in shown["price_history"]:
        history.setdefault(sku, []).append((since, price))
    yield _same("price history of every product", answer.price_history, history)
    quarantined = sum(row[2] for row in shown["quarantined"])
    yield _same(
        "broken records, refused or quarantined",
        {"refused": landed.refused_wanted, "quarantined": landed.quarantined_wanted},
        {"refused": landed.refused, "quarantined": quarantined},
    )


def _compare_sales(connection: Any, wanted: pd.DataFrame) -> Comparison:
    """All current sales, column by column."""
    columns = [column for column in wanted.columns if column != "sale_id"]
    query = f"SELECT sale_id, {', '.join(columns)} FROM sales"  # noqa: S608 - our own names
    _, found = ask(connection, query)
    lake = {row[0]: tuple(map(_comparable, row[1:])) for row in found}
    raw = {
        row[0]: tuple(map(_comparable, row[1:]))
        for row in wanted[["sale_id", *columns]].itertuples(index=False, name=None)
    }
    return _same(f"sales, each with {len(columns)} columns", raw, lake)


def _comparable(value: Any) -> Any:
    """Pandas' and DuckDB's ways to say the same: nulls, integers, instants."""
    if value is None or value is pd.NaT or (isinstance(value, float) and math.isnan(value)):
        return None
    if hasattr(value, "timestamp"):
        return value.timestamp()
    return int(value) if hasattr(value, "item") else value


def _same(question: str, wanted: dict[Any, Any], found: dict[Any, Any]) -> Comparison:
    differences = [
        f"{key}: pandas says {wanted.get(key)!r}, the lake says {found.get(key)!r}"
        for key in wanted.keys() | found.keys()
        if wanted.get(key) != found.get(key)
    ]
    return Comparison(question, len(wanted), tuple(sorted(differences)))
