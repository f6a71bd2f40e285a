"""SQL over the lake's own files: tables as their current snapshot shows them, logs, tombstones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from tests.unit.test_consumer_decode import batch_of, recorded

from consumer.app import build
from freshet.tables import TABLES
from freshet.testing import StoppedClock, change, rate_row, sale_row
from freshet.wire import encode_event, encode_record
from lake.lake import Lake
from local.gold import GOLD
from local.runtime import Home, LakeAccess, open_lake
from local.sql import QueryError, ask, connect

LOGGED = "change_log", "quarantine", "quarantine_resolutions", "receipts"
GOLD_VIEWS = [path.stem for path in GOLD.glob("*.sql")]


@dataclass
class Open:
    """A lake in embedded S3 and the way there."""

    lake: Lake
    access: LakeAccess

    def land(self, event: dict[str, Any]) -> None:
        build(self.lake, tables=TABLES, now=StoppedClock())(event, None)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        connection = connect(self.lake, self.access)
        try:
            return ask(connection, query)[1]
        finally:
            connection.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("sql"))
    home.aws.mkdir()
    return home


@pytest.fixture(scope="module")
def opened(home: Home) -> Iterator[Open]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        with open_lake(home, read_only=False) as (lake, access):
            yield Open(lake, access)


def test_everything_is_there_and_empty_before_the_first_event(opened: Open) -> None:
    """First in this file: the others land events."""
    names = [name for (name,) in opened.ask("SHOW TABLES")]

    assert names == sorted(
        [*TABLES.names, *(f"{name}_tombstones" for name in TABLES.names), *LOGGED, *GOLD_VIEWS]
    )
    assert "products_eur" in GOLD_VIEWS
    for name in set(names) - {"rate_periods"}:  # the euro has a rate of its own
        assert opened.ask(f"SELECT count(*) FROM {name}") == [(0,)]
    assert columns(opened, "sales")["unit_price"] == "DECIMAL(18,4)"


def test_rows_come_with_exact_types(opened: Open) -> None:
    opened.land(recorded("kinesis_packed"))

    [row] = opened.ask(
        "SELECT unit_price, quantity, sold_at, customer_id FROM sales WHERE sale_id = '536365-1'"
    )
    assert row == (Decimal("2.5500"), 6, datetime(2010, 12, 1, 8, 26, tzinfo=UTC), "17850")


def test_tombstones_and_the_log_are_tables_too(opened: Open) -> None:
    opened.land(recorded("kinesis_packed"))

    assert opened.ask("SELECT sale_id, _version FROM sales_tombstones") == [
        ("536365-3", 1291191960000900)
    ]
    assert opened.ask(
        "SELECT table_name, ingest_date, count(*) FROM change_log GROUP BY ALL ORDER BY ALL"
    ) == [("products", date(2026, 11, 21), 1), ("sales", date(2026, 11, 21), 8)]


def test_quarantined_bytes_can_be_asked_for(opened: Open) -> None:
    opened.land(recorded("kinesis_poison"))

    assert opened.ask("SELECT decode(data) FROM quarantine WHERE reason = 'unknown_format'") == [
        ("<html><body>502 Bad Gateway</body></html>",)
    ]


def test_columns_are_the_same_with_and_without_files(opened: Open, tmp_path: Path) -> None:
    """Nothing of the folders' names leaks into a table."""
    opened.land(recorded("kinesis_packed"))
    filled = {name: columns(opened, name) for name in ("sales", *LOGGED)}

    assert list(filled["sales"])[-3:] == ["_version", "_position", "_patches"]
    assert list(filled["change_log"])[-2:] == ["table_name", "ingest_date"]
    assert filled["quarantine"]["ingest_date"] == "DATE"


def test_a_query_sees_only_the_current_snapshot(opened: Open) -> None:
    """A replaced file is still in the folder: the view does not read it."""
    for version, rate in ((1, "1.083700"), (2, "1.100000")):
        body = encode_event(
            change("exchange_rates", rate_row(rate=rate), version=version, source="ecb")
        )
        event = batch_of(encode_record([body]))
        event["Records"][0]["kinesis"]["sequenceNumber"] = str(5000 + version)
        opened.land(event)

    assert opened.ask("SELECT rate FROM exchange_rates") == [(Decimal("1.100000"),)]


def test_a_connection_keeps_its_snapshot_while_others_commit(opened: Open) -> None:
    connection = connect(opened.lake, opened.access)
    [(before,)] = ask(connection, "SELECT count(*) FROM sales")[1]
    event = batch_of(encode_event(change(after=sale_row("NEW-1"))))
    event["Records"][0]["kinesis"]["sequenceNumber"] = "7000"

    opened.land(event)

    assert ask(connection, "SELECT count(*) FROM sales")[1] == [(before,)]
    assert opened.ask("SELECT count(*) FROM sales") == [(before + 1,)]
    connection.close()


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nosuch FROM sales", "nosuch"),
        ("SELECT * FROM nosuch", "nosuch"),
        ("SELECT 1/0::DECIMAL(3,0) + CAST('x' AS INTEGER)", "Could not convert"),
        ("DELETE FROM sales", "Can only delete"),
    ],
)
def test_sql_that_fails_is_one_line_that_says_why(opened: Open, query: str, says: str) -> None:
    with pytest.raises(QueryError, match=says) as caught:
        opened.ask(query)

    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, duckdb.Error)


def test_a_statement_without_rows_answers_nothing(opened: Open) -> None:
    assert opened.ask("CREATE TEMP TABLE t AS SELECT 1 AS n") == []


def columns(opened: Open, table: str) -> dict[str, str]:
    return {row[0]: row[1] for row in opened.ask(f"DESCRIBE {table}")}


def test_a_batch_cut_anew_when_it_came_again_is_counted_once(opened: Open) -> None:
    """Bisection names the halves differently: both logs held every line twice."""
    lines = [encode_event(change(after=sale_row(f"cut-{n}"))) for n in range(2)]
    whole = batch_of(*lines, b"cut short")
    for one in whole["Records"]:
        one["kinesis"]["sequenceNumber"] = "77" + one["kinesis"]["sequenceNumber"]

    opened.land(whole)
    opened.land({"Records": whole["Records"][1:]})

    logged = opened.ask("SELECT key, count(*) FROM change_log WHERE key LIKE 'cut-%' GROUP BY ALL")
    assert sorted(logged) == [("cut-0", 1), ("cut-1", 1)]
    assert opened.ask("SELECT count(*) FROM quarantine WHERE data = 'cut short'::BLOB") == [(1,)]
