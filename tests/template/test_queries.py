"""The saved queries, transpiled from Athena's dialect, over a small lake: every column exists and
every answer is right. So are the views for Redshift.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import sqlglot
from tests.template.rules import START_QUERY
from tests.template.stack import stack

from consumer.app import build
from freshet.tables import TABLES
from freshet.testing import StoppedClock, change, product_row, rate_row, sale_row
from freshet.wire import encode_event, encode_record
from lake.log import CHANGE_LOG, QUARANTINE
from local.gold import load_views
from local.runtime import LAKE_BUCKET, LAKE_PREFIX, Home, open_lake
from local.sql import ask, connect

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC)
POISON = b"<html>502</html>"
# Of a statement in Athena, and of what a schedule sends.
QUERY_BYTES_MAX = 262_144


def _record(number: int, line: bytes, arrived: datetime) -> dict[str, Any]:
    return {
        "kinesis": {
            "sequenceNumber": str(number),
            "data": b64encode(line).decode(),
            "approximateArrivalTimestamp": arrived.timestamp(),
        },
        "eventID": f"shardId-000000000003:{number}",
    }


def _events() -> list[bytes]:
    sales = [
        sale_row("1-1", unit_price="10.0000", quantity=3, returned_quantity=1, currency="GBP"),
        sale_row("1-2", unit_price="5.0000", quantity=-2, currency="GBP", sku="71053"),
        sale_row("2-1", unit_price="7.0000", quantity=1, currency="EUR"),
        sale_row("3-1", unit_price="9.0000", quantity=1, currency="USD", sku="22745"),
    ]
    rates = [
        rate_row("GBP", "2010-11-29", rate="0.900000"),
        rate_row("GBP", "2010-11-30", rate="0.800000"),
        rate_row("GBP", "2010-12-02", rate="0.100000"),
    ]
    shown = [("9.9900", 1), ("8.9900", 2)]
    return [
        *(encode_event(change(after=row, version=1)) for row in sales),
        *(encode_event(change("exchange_rates", row, version=1)) for row in rates),
        *(
            encode_event(change("products", product_row("1", price=price), version=version))
            for price, version in shown
        ),
    ]


@pytest.fixture(scope="module")
def athena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[duckdb.DuckDBPyConnection]:
    """The lake as Athena shows it, one event delivered twice and cut anew in between."""
    home = Home(tmp_path_factory.mktemp("athena"))
    home.aws.mkdir()
    lines = _events()
    records = [_record(at, encode_record([line]), NOW) for at, line in enumerate(lines)]
    records += [_record(50, POISON, NOW), _record(51, POISON, NOW - timedelta(days=10))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
        with open_lake(home, read_only=False) as (lake, endpoint):
            handle = build(lake, tables=TABLES, now=StoppedClock())
            handle({"Records": records}, None)
            handle({"Records": records[:-1]}, None)
            connection = connect(lake, endpoint)
            _show_as_athena_does(connection)
            yield connection
            connection.close()


def _show_as_athena_does(connection: duckdb.DuckDBPyConnection) -> None:
    """Folder dates are text there, every copy of a line is seen, and failures are a table."""
    for log in (CHANGE_LOG, QUARANTINE):
        files = f"'s3://{LAKE_BUCKET}/{LAKE_PREFIX}/{log}/**/*.parquet', hive_partitioning = true"
        connection.execute(
            f"CREATE OR REPLACE VIEW {log} AS SELECT * REPLACE "
            f"(CAST(ingest_date AS varchar) AS ingest_date) FROM read_parquet({files})"
        )
    failure = json.loads((ROOT / "events" / "kinesis_failure.json").read_text())
    row = {name.lower(): _lowered(value) for name, value in failure.items()}
    connection.register(
        "failures", pa.Table.from_pylist([row | {"$path": "s3://lake/aws/lambda/1"}])
    )


def _lowered(value: Any) -> Any:
    return {key.lower(): one for key, one in value.items()} if isinstance(value, dict) else value


def saved(name: str) -> str:
    return str(stack().properties(name)["QueryString"])


def answer(connection: duckdb.DuckDBPyConnection, query: str) -> list[dict[str, Any]]:
    [statement] = sqlglot.transpile(query, read="athena", write="duckdb")
    names, rows = ask(connection, statement)
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_net_revenue_counts_returns_and_takes_the_last_rate_known(
    athena: duckdb.DuckDBPyConnection,
) -> None:
    days = {row["currency"]: row for row in answer(athena, saved("RevenueQuery"))}

    assert days.keys() == {"GBP", "EUR", "USD"}
    assert float(days["GBP"]["net"]) == 2 * 10 - 2 * 5
    assert days["GBP"]["rate_date"] == date(2010, 11, 30)
    assert days["GBP"]["net_eur"] == pytest.approx(10 / 0.8)
    assert days["EUR"]["net_eur"] == pytest.approx(7)
    assert days["USD"]["net_eur"] is None


def test_returns_are_counted_by_product(athena: duckdb.DuckDBPyConnection) -> None:
    rows = answer(athena, saved("ReturnsQuery"))

    assert [(row["sku"], row["units"]) for row in rows] == [("71053", 2), ("85123A", 1)]


def test_a_quarantined_line_counts_once_and_for_a_week(athena: duckdb.DuckDBPyConnection) -> None:
    assert ask(athena, "SELECT count(*) FROM quarantine")[1] > [(2,)]

    [row] = answer(athena, saved("QuarantineQuery"))

    assert (row["table_name"], row["reason"], row["lines"]) == ("unknown", "unknown_format", 1)
    assert row["example"]
    assert row["first_seen"] == row["last_seen"]


def test_a_price_is_told_once_for_each_version(athena: duckdb.DuckDBPyConnection) -> None:
    assert ask(athena, "SELECT count(*) FROM change_log WHERE table_name = 'products'")[1] == [(4,)]

    rows = answer(athena, saved("PriceHistoryQuery"))

    assert [(row["version"], row["price"], row["currency"]) for row in rows] == [
        (1, "9.9900", "GBP"),
        (2, "8.9900", "GBP"),
    ]
    assert all(row["since"] for row in rows)


def test_batches_given_up_say_where_their_records_are(athena: duckdb.DuckDBPyConnection) -> None:
    [row] = answer(athena, saved("FailuresQuery"))

    assert row["condition"] == "RecordAgeExceeded"
    assert row["shardid"] == "shardId-000000000003"
    assert (row["batchsize"], row["object"]) == (5, "s3://lake/aws/lambda/1")


def test_every_saved_query_is_tried_here() -> None:
    tried = {
        "RevenueQuery",
        "ReturnsQuery",
        "QuarantineQuery",
        "PriceHistoryQuery",
        "FailuresQuery",
    }
    queries = stack().of_type("Athena::NamedQuery")

    assert queries.keys() == tried
    for query in queries.values():
        assert (query["WorkGroup"], query["Database"]) == ("<WorkGroup>", "<Database>")
        assert query["Description"]


def test_the_schedule_renews_every_heavy_view_with_the_statement_of_its_file() -> None:
    """Fails when `freshet gold check --write` wrote another one: the template needs it too."""
    renewals = [
        (one["ScheduleExpression"], json.loads(one["Target"]["Input"]))
        for one in stack("gold").of_type("Scheduler::Schedule").values()
        if one["Target"]["Arn"] == START_QUERY
    ]
    asked = {given["QueryString"].split()[2]: (when, given) for when, given in renewals}
    heavy = [view for view in load_views() if view.heavy]

    assert asked.keys() == {view.name for view in heavy}
    for view in heavy:
        when, given = asked[view.name]
        text = (ROOT / "sql" / "athena" / f"{view.name}.sql").read_text()
        merge = text[text.index("MERGE INTO") :].strip().removesuffix(";")
        assert given["QueryString"].split() == merge.split(), view.name
        assert (given["WorkGroup"], given["QueryExecutionContext"]) == (
            "<GoldWorkGroup>",
            {"Database": "freshet"},
        )
        minutes = {name: _minute(asked[name][0]) for name in asked}
        assert when == f"cron({minutes[view.name]} 3,15 * * ? *)"
        assert all(minutes[used] < minutes[view.name] for used in view.uses & asked.keys())
        assert len(json.dumps(given)) < QUERY_BYTES_MAX


def _minute(expression: str) -> int:
    return int(expression.removeprefix("cron(").partition(" ")[0])


def test_the_views_for_redshift_answer_as_athena_does(athena: duckdb.DuckDBPyConnection) -> None:
    athena.execute("CREATE SCHEMA lake; CREATE SCHEMA gold")
    for table in ("sales", "exchange_rates", "products"):
        athena.execute(f"CREATE VIEW lake.{table} AS FROM main.{table}")
    for statement in _redshift("CREATE OR REPLACE VIEW"):
        assert statement.endswith("WITH NO SCHEMA BINDING")
        view = statement.removesuffix("WITH NO SCHEMA BINDING")
        [made] = sqlglot.transpile(view, read="redshift", write="duckdb")
        athena.execute(made)

    [revenue, products] = _redshift("SELECT")
    [made] = sqlglot.transpile(revenue, read="redshift", write="duckdb")
    wanted = {
        row["currency"]: (row["net"], row["net_eur"])
        for row in answer(athena, saved("RevenueQuery"))
    }
    assert {currency: (net, eur) for _, currency, net, eur in ask(athena, made)[1]} == wanted
    [made] = sqlglot.transpile(products, read="redshift", write="duckdb")
    assert [count for _, count, _ in ask(athena, made)[1]] == [1]


def _redshift(beginning: str) -> list[str]:
    text = (ROOT / "sql" / "redshift" / "external_schema.sql").read_text()
    bare = (" ".join(one.split()) for one in re.sub(r"--[^\n]*", "", text).split(";"))
    return [one for one in bare if one.startswith(beginning)]
