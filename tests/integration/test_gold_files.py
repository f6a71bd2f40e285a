"""Heavy gold views as files: the shipped month's true history, live and materialised, and how files
are renewed, swapped and let go.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest
from tests.retail_history import (
    Line,
    as_reported,
    change_log,
    current_rows,
    price_history,
    rates,
    restatements,
    revenue_changes,
    write_log,
)

from freshet.errors import ConflictError
from freshet.objects import DirectoryObjects
from local.gold import Heavy, View, load_views
from local.gold_files import FOLDER, Renewal, forget, materialise, materialised
from local.sql import create_gold_views, create_log_views

MONTH = (
    Path(__file__).parents[2]
    / "src"
    / "local"
    / "sample"
    / "data"
    / "online_retail_2010_12.parquet"
)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HEAVY = [view for view in load_views() if view.heavy]


@pytest.fixture(scope="module")
def lines() -> list[Line]:
    return change_log(MONTH)


@pytest.fixture(scope="module")
def changes(lines: list[Line]) -> pd.DataFrame:
    return revenue_changes(lines)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, lines: list[Line]) -> Path:
    root = tmp_path_factory.mktemp("month")
    write_log(lines, root)
    for table in ("sales", "products"):
        pq.write_table(current_rows(lines, table), root / f"{table}.parquet")
    pq.write_table(rates(), root / "exchange_rates.parquet")
    return root


def opened(root: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for table in ("sales", "products", "exchange_rates"):
        connection.execute(f"CREATE VIEW {table} AS FROM read_parquet('{root}/{table}.parquet')")
    create_log_views(connection, str(root))
    create_gold_views(connection, materialised(connection, str(root)))
    return connection


@pytest.fixture(scope="module", params=["live", "materialised"])
def month(request: pytest.FixtureRequest, root: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    connection = opened(root)
    if request.param == "materialised":
        for view in HEAVY:
            materialise(connection, DirectoryObjects(root), view, root=str(root), now=NOW)
        connection.close()
        connection = opened(root)
    yield connection
    connection.close()
    forget(DirectoryObjects(root))


def test_every_line_of_the_stream_is_one_change_however_often_it_was_logged(
    month: duckdb.DuckDBPyConnection, lines: list[Line]
) -> None:
    assert any(line.copies > 1 for line in lines)
    for table, view in (("sales", "sale_changes"), ("products", "product_changes")):
        told = sorted(line.position for line in lines if line.table == table)

        found = month.execute(f"SELECT position FROM {view} ORDER BY position").fetchall()

        assert [position for (position,) in found] == told


def test_the_months_prices_are_those_worked_out_by_hand(
    month: duckdb.DuckDBPyConnection, lines: list[Line]
) -> None:
    wanted = {
        (*row[:3], row[3].replace(tzinfo=None), row[4] and row[4].replace(tzinfo=None))
        for row in price_history(lines)
    }

    found = month.execute(
        "SELECT product_id, currency, price, valid_from, valid_to FROM product_price_history"
    ).fetchall()

    assert len(found) == len(wanted) > 10_000
    assert set(found) == wanted


def test_the_months_restatements_are_those_that_pandas_finds(
    month: duckdb.DuckDBPyConnection, changes: pd.DataFrame
) -> None:
    wanted = restatements(changes)

    found = month.execute(
        "SELECT CAST(day AS varchar), currency, learned_at, sale_id, sale_net_from, sale_net_to, "
        "CAST(day_net_to * 10000 AS bigint) FROM restatements"
    ).fetchall()

    names = ["day", "currency", "learned_at", "key", "net_from", "net_to", "day_net_to"]
    told = wanted.assign(learned_at=wanted["learned_at"].dt.tz_localize(None))[names]
    assert len(found) == len(told) > 1_000
    assert set(found) == {
        (*row[:2], row[2].to_pydatetime(), *row[3:]) for row in told.itertuples(index=False)
    }


@pytest.mark.parametrize("on", [date(2010, 12, 3), date(2010, 12, 24), date(2011, 2, 1)])
def test_what_was_reported_then_is_one_query_away(
    month: duckdb.DuckDBPyConnection, changes: pd.DataFrame, on: date
) -> None:
    found = month.execute(
        "SELECT CAST(day AS varchar), currency, CAST(net * 10000 AS bigint) "
        "FROM sales_by_day_as_reported "
        "WHERE reported_on <= $1 AND (superseded_on IS NULL OR superseded_on > $1)",
        [on],
    ).fetchall()

    assert {row[:2]: row[2] for row in found} == as_reported(changes, on)


def test_what_is_known_now_is_what_the_current_sales_say(month: duckdb.DuckDBPyConnection) -> None:
    """Two ways to one number: the whole history of the log, and the current state."""
    by_history = month.execute(
        "SELECT day, currency, net FROM sales_by_day_as_reported WHERE superseded_on IS NULL "
        "AND net <> 0"
    ).fetchall()
    by_state = month.execute("SELECT day, currency, net FROM sales_by_day WHERE net <> 0")

    assert set(by_history) == set(by_state.fetchall())
    assert len(by_history) > 15


def euros(row: Any) -> Decimal:
    """The amount at the rate, to four decimals, half up: by fractions."""
    return Decimal(
        math.floor(Fraction(row["net"]) / Fraction(row["rate"]) * 10_000 + Fraction(1, 2))
    )


@pytest.fixture(scope="module")
def sales(root: Path) -> pd.DataFrame:
    """The current sales with their day and its rate, as pandas joins them."""
    frame = pq.read_table(root / "sales.parquet").to_pandas()
    rate = pq.read_table(root / "exchange_rates.parquet").to_pandas()
    frame["day"] = frame["sold_at"].dt.normalize().dt.tz_localize(None).astype("datetime64[ns]")
    frame["net"] = (frame["quantity"] - frame["returned_quantity"]) * frame["unit_price"]
    rate["day"] = rate["rate_date"].astype("datetime64[ns]")
    pounds = rate[rate["currency"] == "GBP"].sort_values("day")[["day", "rate"]]
    return pd.merge_asof(frame.sort_values("day"), pounds, on="day")


def test_every_days_sales_are_those_that_pandas_adds_up(
    month: duckdb.DuckDBPyConnection, sales: pd.DataFrame
) -> None:
    days = sales.groupby("day").agg(net=("net", "sum"), rate=("rate", "first"), n=("net", "size"))
    days["gross"] = sales[sales["quantity"] > 0].groupby("day").apply(
        lambda day: (day["quantity"] * day["unit_price"]).sum()
    )  # fmt: skip

    found = month.execute(
        "SELECT day, sale_lines, gross, net, net_gbp, net_eur * 10000, rate FROM sales_by_day"
    ).fetchall()

    assert set(found) == {
        (day.date(), row["n"], row["gross"], row["net"], row["net"], euros(row), row["rate"])
        for day, row in zip(days.index.to_series(), days.to_dict("records"), strict=True)
    }
    assert len(found) == len(days) > 15


def test_every_customers_value_is_what_pandas_adds_up(
    month: duckdb.DuckDBPyConnection, sales: pd.DataFrame
) -> None:
    known = sales.groupby(["customer_id", "day"]).agg(net=("net", "sum"), rate=("rate", "first"))
    known["eur"] = pd.Series(map(euros, known.to_dict("records")), index=known.index)
    wanted = known.groupby("customer_id")["eur"].sum().to_dict()

    found = month.execute("SELECT customer_id, net_eur * 10000 FROM customer_value").fetchall()

    assert dict(found) == wanted
    assert len(found) == len(wanted) > 900


def test_a_view_that_is_not_heavy_has_no_files(root: Path, month: Any) -> None:
    held = materialised(opened(root), str(root))

    assert held.keys() <= {view.name for view in HEAVY}


# A small log whose every line can be seen: an amount for each place and day.
VIEW = View(
    "paid", "SELECT place, on_day, amount FROM log", "It.", Heavy("daily", ("place",), "on_day"),
    None, digest="1",
)  # fmt: skip


class Small:
    """A view over a log of few lines, and its files."""

    def __init__(self, folder: Path) -> None:
        self.root, self.objects = folder, DirectoryObjects(folder)
        self.connection = duckdb.connect()
        self.connection.execute("CREATE TABLE log (place int, on_day date, amount int)")
        self.pay(1, "2026-09-30", 5)
        self.pay(2, "2026-10-01", 7)
        self.pay(3, "2026-11-01", 9)

    def pay(self, *values: Any) -> None:
        self.connection.execute("INSERT INTO log VALUES (?, ?, ?)", values)

    def renew(self, view: View = VIEW, *, at: datetime = NOW) -> Renewal:
        return materialise(self.connection, self.objects, view, root=str(self.root), now=at)

    def rows(self) -> list[Any]:
        """What a reader that comes now sees."""
        reader = duckdb.connect()
        materialised(reader, str(self.root))[VIEW.name].show(reader, VIEW)
        found = reader.execute("SELECT place, amount FROM paid ORDER BY place").fetchall()
        reader.close()
        return found

    def files(self) -> list[str]:
        return list(self.objects.list(f"{FOLDER}/paid/"))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    small = Small(tmp_path)
    yield small
    small.connection.close()


def test_only_months_that_changed_are_written(small: Small) -> None:
    assert small.renew() == Renewal("paid", written=3, kept=0, rows=3)
    before = set(small.files())

    assert small.renew() == Renewal("paid", written=0, kept=3, rows=3)
    assert set(small.files()) == before

    small.pay(4, "2026-10-31", 1)
    assert small.renew() == Renewal("paid", written=1, kept=2, rows=4)
    assert [name.split("/")[2][:7] for name in set(small.files()) - before] == ["2026-10"]
    assert small.rows() == [(1, 5), (2, 7), (3, 9), (4, 1)]


def test_a_line_that_vanished_from_the_log_vanishes_from_the_view(small: Small) -> None:
    """As erasure has it; the file that held it goes when its grace is over."""
    small.renew()
    small.connection.execute("DELETE FROM log WHERE place = 2")

    assert small.renew() == Renewal("paid", written=0, kept=2, rows=2)
    assert small.rows() == [(1, 5), (3, 9)]
    assert len(small.files()) == 3

    small.renew(at=NOW + timedelta(hours=2))
    assert len(small.files()) == 2


def test_a_reader_keeps_the_files_that_it_began_with(small: Small) -> None:
    small.renew()
    reader = duckdb.connect()
    materialised(reader, str(small.root))["paid"].show(reader, VIEW)
    small.pay(4, "2026-10-31", 1)
    small.renew(at=NOW + timedelta(minutes=1))
    small.renew(at=NOW + timedelta(minutes=2))

    assert reader.execute("SELECT count(*) FROM paid").fetchall() == [(3,)]
    assert len(small.rows()) == 4


def test_a_view_without_months_is_one_file_swapped_when_any_of_it_changes(small: Small) -> None:
    view = replace(VIEW, heavy=Heavy("daily", ("place",), None))
    assert small.renew(view) == Renewal("paid", written=1, kept=0, rows=3)
    assert small.renew(view) == Renewal("paid", written=0, kept=1, rows=3)

    small.connection.execute("UPDATE log SET amount = 0 WHERE place = 1")

    assert small.renew(view) == Renewal("paid", written=1, kept=0, rows=3)
    assert small.rows()[0] == (1, 0)


def test_another_query_uses_nothing_of_the_one_before(small: Small) -> None:
    small.renew()
    doubled = replace(VIEW, sql="SELECT place, on_day, amount * 2 AS amount FROM log", digest="2")
    held = materialised(small.connection, str(small.root))["paid"]

    assert not held.answers(doubled)
    assert small.renew(doubled).written == 3
    assert small.rows() == [(1, 10), (2, 14), (3, 18)]


def test_of_two_renewals_at_once_one_is_told_to_come_again(small: Small) -> None:
    small.renew()
    small.pay(4, "2026-10-31", 1)

    class Raced(DirectoryObjects):
        """Another process renews the view between the reading and the swap."""

        def put(self, key: str, data: bytes) -> str:
            if key.endswith(".parquet"):
                other = duckdb.connect()
                other.execute("CREATE TABLE log AS SELECT 9 AS place, DATE '2026-01-01' AS on_day, "
                              "1 AS amount")  # fmt: skip
                materialise(other, small.objects, VIEW, root=str(small.root), now=NOW)
                other.close()
            return super().put(key, data)

    with pytest.raises(ConflictError, match="gold/paid"):
        materialise(small.connection, Raced(small.root), VIEW, root=str(small.root), now=NOW)

    assert small.rows() == [(9, 1)]
    assert small.renew().rows == 4
    assert small.rows() == [(1, 5), (2, 7), (3, 9), (4, 1)]


def test_a_renewal_cut_short_before_its_swap_leaves_the_view_as_it_was(small: Small) -> None:
    small.renew()
    small.pay(4, "2026-10-31", 1)

    class Killed(DirectoryObjects):
        def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        materialise(small.connection, Killed(small.root), VIEW, root=str(small.root), now=NOW)

    assert small.rows() == [(1, 5), (2, 7), (3, 9)]
    small.pay(5, "2026-10-31", 1)
    assert small.renew().written == 1
    assert len(small.rows()) == 5
    assert len(small.files()) == 5  # what was cut short and what was replaced are let go later
    small.renew(at=NOW + timedelta(hours=2))
    assert len(small.files()) == 3


def test_what_is_forgotten_leaves_no_object(small: Small) -> None:
    small.renew()

    assert forget(small.objects) == 4

    assert list(small.objects.list(FOLDER)) == []
    assert materialised(small.connection, str(small.root)) == {}


def test_a_view_over_an_empty_log_stays_live(small: Small) -> None:
    small.connection.execute("DELETE FROM log")

    assert small.renew() == Renewal("paid", written=0, kept=0, rows=0)
    assert not materialised(small.connection, str(small.root))["paid"].answers(VIEW)
