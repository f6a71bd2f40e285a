"""`freshet gold` over a lake in embedded S3, and the way to Athena through awswrangler."""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from awswrangler.exceptions import QueryFailed
from moto import mock_aws
from typer.testing import CliRunner

from consumer.app import build
from freshet.event import ChangeEvent
from freshet.tables import TABLES
from freshet.testing import EPOCH, StoppedClock, change, product_row, rate_row, sale_row
from freshet.wire import encode_event, encode_record
from local.clouds import Where
from local.gold import load_views
from local.gold_athena import AthenaError, WranglerAthena
from local.gold_commands import app, renewing
from local.options import Failed
from local.runtime import Home, open_lake
from local.sql import ask, connect

VIEWS = [view.name for view in load_views()]
EVERY = timedelta(hours=3)


def batch(*events: ChangeEvent, first: int = 1) -> dict[str, Any]:
    """An invocation with a record for each event."""
    return {
        "Records": [
            {
                "kinesis": {
                    "sequenceNumber": str(first + at),
                    "data": b64encode(encode_record([encode_event(event)])).decode(),
                    "approximateArrivalTimestamp": event.accepted_at.timestamp(),
                },
                "eventID": f"shardId-000000000001:{first + at}",
            }
            for at, event in enumerate(events)
        ]
    }


def sale(version: int, day: int, **columns: Any) -> ChangeEvent:
    """A change of one sale of 2 December 2010, accepted on some day after."""
    row = sale_row("1-1", unit_price="10.0000", quantity=3, sold_at="2010-12-02T09:00:00Z")
    accepted = (EPOCH + timedelta(days=day)).isoformat()
    return change(after=row | columns, version=version, accepted_at=accepted)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("gold"))
    home.aws.mkdir()
    events = [
        sale(1, 0),
        sale(2, 40, returned_quantity=1),
        change("products", product_row("1", price="10.0000"), version=1),
        change("exchange_rates", rate_row("GBP", "2010-12-01", rate="0.800000"), version=1),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
        with open_lake(home, read_only=False) as (lake, _):
            build(lake, tables=TABLES, now=StoppedClock())(batch(*events), None)
        yield home


def freshet(*arguments: str, home: Path) -> list[dict[str, Any]]:
    where = (Where.EMBEDDED, "freshet")
    done = CliRunner().invoke(app, [*arguments, "--home", str(home), "--json"], obj=where)
    if done.exception is not None:
        raise done.exception
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def asked(home: Home, query: str) -> list[tuple[Any, ...]]:
    with open_lake(home, read_only=False) as (lake, access):
        connection = connect(lake, access)
        rows = ask(connection, query)[1]
        connection.close()
    return rows


RESTATED = (
    "SELECT sale_id, first_reported_on, learned_on, day_net_from, day_net_to FROM restatements"
)


def test_gold_is_there_before_and_after_it_is_applied_and_renewed_when_it_is_again(
    home: Home,
) -> None:
    live = asked(home, RESTATED)
    assert [row[0] for row in live] == ["1-1"]
    assert [int(net) for net in live[0][3:]] == [30, 20]

    applied = {row["view"]: row for row in freshet("apply", home=home.folder)}

    assert list(applied) == VIEWS
    assert (applied["sale_changes"]["parts_written"], applied["sale_changes"]["rows"]) == (2, 2)
    assert applied["restatements"]["did"] == "view"
    assert asked(home, RESTATED) == live

    again = {row["view"]: row["did"] for row in freshet("apply", home=home.folder)}
    assert {again[name] for name in ("sale_changes", "revenue_changes")} == {"unchanged"}

    with open_lake(home, read_only=False) as (lake, _):
        event = batch(sale(3, 80, returned_quantity=2), first=100)
        build(lake, tables=TABLES, now=StoppedClock())(event, None)
    assert len(asked(home, RESTATED)) == 1  # as it was materialised
    done = {row["view"]: row for row in freshet("apply", home=home.folder)}
    assert (done["sale_changes"]["parts_written"], done["sale_changes"]["parts_kept"]) == (1, 2)
    assert [int(row[4]) for row in asked(home, f"{RESTATED} ORDER BY learned_at")] == [20, 10]


def test_gold_list_says_when_a_heavy_view_was_materialised(home: Home) -> None:
    freshet("apply", home=home.folder)

    listed = {row["view"]: row for row in freshet("list", home=home.folder)}

    assert list(listed) == VIEWS
    heavy = listed["sale_changes"]
    assert heavy["heavy"] == "daily, by month of ingest_date"
    assert heavy["materialised"]
    assert "sold_on" in heavy["columns"]
    assert (listed["restatements"]["heavy"], listed["restatements"]["materialised"]) == (None, None)
    assert all(row["description"] for row in listed.values())


def test_a_running_pipeline_renews_gold_each_interval_and_outlives_a_failure(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    freshet("apply", home=home.folder)
    with open_lake(home, read_only=False) as opened:
        lake, _ = opened
        sent = sale(4, 120, returned_quantity=3)
        build(lake, tables=TABLES, now=StoppedClock())(batch(sent, first=200), None)
        opening: Iterator[AbstractContextManager[Any]]
        opening = iter([nullcontext(opened), failing(), nullcontext(opened)])
        waits, ended = list[float](), threading.Event()

        def wait(seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) > 2:
                ended.set()
            return ended.is_set()

        with renewing(lambda: next(opening), EVERY, wait):
            assert ended.wait(30)

    # Since the last renewal first, then since each attempt.
    assert all(10_000 < seconds <= 10_800 for seconds in waits)
    told = capsys.readouterr().err
    assert "renewal of gold views failed: the disk is full" in told
    assert "renewed gold views:" in told
    assert "sale_changes" in told
    [(renewed,)] = asked(home, "SELECT count(*) FROM sale_changes WHERE returned_quantity = 3")
    assert renewed == 1


def test_gold_that_was_never_applied_is_renewed_when_the_first_interval_is_over(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    home.aws.mkdir()
    waits = list[float]()

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return True

    with (
        open_lake(home, read_only=False) as opened,
        renewing(lambda: nullcontext(opened), EVERY, wait),
    ):
        pass

    [first] = waits
    assert 10_000 < first <= 10_800


@contextmanager
def failing() -> Iterator[Any]:
    raise OSError("the disk is full")
    yield


def test_gold_list_needs_no_pipeline(tmp_path: Path) -> None:
    rows = freshet("list", home=tmp_path / "nothing")

    assert [row["view"] for row in rows] == VIEWS
    assert {row["materialised"] for row in rows} == {None}


def test_gold_check_holds_and_writes_what_is_committed(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", "--write", str(tmp_path)])

    assert done.exit_code == 0
    assert {line.split()[-1] for line in done.stdout.splitlines()[1:]} == {"True"}
    assert len(list((tmp_path / "athena").iterdir())) == len(VIEWS)


def test_gold_check_names_the_view_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [*load_views()]
    broken = type(views[0])("broken", "SELECT median(rate) AS m FROM no_table", "It.", None, None)
    monkeypatch.setattr("local.gold_commands.load_views", lambda: (*views, broken))

    done = CliRunner().invoke(app, ["check"])

    assert isinstance(done.exception, Failed)
    assert "broken" in done.stdout
    assert "broken: duckdb: " in done.stderr
    assert "not a function that all engines" in done.stderr


@mock_aws
def test_a_statement_goes_to_athena_in_its_workgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    session = boto3.Session(region_name="us-east-1")
    client = session.client("athena")
    place: Any = {"ResultConfiguration": {"OutputLocation": "s3://results/"}}
    client.create_work_group(Name="freshet", Configuration=place)

    WranglerAthena(session, "lake", "freshet").run("CREATE OR REPLACE VIEW a AS SELECT 1", "view a")

    [asked_for] = client.list_query_executions(WorkGroup="freshet")["QueryExecutionIds"]
    told = client.get_query_execution(QueryExecutionId=asked_for)["QueryExecution"]
    assert told["Query"] == "CREATE OR REPLACE VIEW a AS SELECT 1"
    assert told["QueryExecutionContext"]["Database"] == "lake"


def test_what_athena_refuses_is_told_with_the_views_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_sql: str, **_: Any) -> None:
        raise QueryFailed("SYNTAX_ERROR: line 1:8: Column 'x' cannot be resolved")

    monkeypatch.setattr("awswrangler.athena.start_query_execution", refused)

    with pytest.raises(AthenaError, match=r"Athena, view a: SYNTAX_ERROR: .* cannot be resolved$"):
        WranglerAthena(boto3.Session(), "lake", "freshet").run("SELECT x", "view a")
