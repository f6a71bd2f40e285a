"""A query in Athena: what is shown while it runs, what it costs, and when it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import boto3
import pandas as pd
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws
from moto.athena.models import QueryResults, athena_backends

from local.athena import Answer, Database, Scan, ScanLimitError, ask, size_text
from local.gold_athena import AthenaError

MB = 1_000_000


class Framed(Database):
    """A database whose results need no awswrangler."""

    def frame(self, query_id: str) -> Any:
        return pd.DataFrame({"n": [1]})


DATABASE = Framed(None, "freshet", "freshet-group")


def seen(state: str, scanned: int = 0, kind: str = "DML", **status: str) -> dict[str, Any]:
    statistics = {"DataScannedInBytes": scanned, "TotalExecutionTimeInMillis": 1500}
    told = {"Status": {"State": state, **status}, "Statistics": statistics, "StatementType": kind}
    return {"QueryExecution": told}


class Asked:
    """A client whose answers are given, held to what Athena's API takes."""

    def __init__(self, *looks: dict[str, Any], stopped: bool = False) -> None:
        self.client: Any = boto3.client("athena", region_name="eu-west-1")
        self.stub = Stubber(self.client)
        context = {"Database": "freshet"}
        self.stub.add_response(
            "start_query_execution",
            {"QueryExecutionId": "q-1"},
            {
                "QueryString": "SELECT 1",
                "QueryExecutionContext": context,
                "WorkGroup": "freshet-group",
            },
        )
        for look in looks:
            self.stub.add_response("get_query_execution", look, {"QueryExecutionId": "q-1"})
        if stopped:
            self.stub.add_response("stop_query_execution", {}, {"QueryExecutionId": "q-1"})
        self.stub.activate()
        self.waited: list[float] = []
        self.shown: list[Scan] = []

    def ask(
        self, bytes_max: int | None = None, wait: Callable[[float], object] | None = None
    ) -> Answer:
        answer = ask(
            DATABASE,
            "SELECT 1",
            wait=wait or self.waited.append,
            progress=self.shown.append,
            bytes_max=bytes_max,
            client=self.client,
        )
        self.stub.assert_no_pending_responses()
        return answer


def test_the_one_who_waits_sees_bytes_and_cost_grow() -> None:
    asked = Asked(seen("QUEUED"), seen("RUNNING", 50 * MB), seen("SUCCEEDED", (1 << 40) // 5))

    answer = asked.ask()

    assert [scan.state for scan in asked.shown] == ["QUEUED", "RUNNING", "SUCCEEDED"]
    assert answer.scan.cost_usd == pytest.approx(1.0)
    assert str(asked.shown[1]) == "running: 50.0 MB scanned, 1.5 s, $0.0002"
    assert len(asked.waited) == 2
    assert asked.waited[1] > asked.waited[0]


def test_a_small_query_costs_the_least_there_is_and_a_declaration_nothing() -> None:
    assert Scan("SUCCEEDED", 1, 0).cost_usd == Scan("SUCCEEDED", 10 * MB, 0).cost_usd > 0
    assert Asked(seen("SUCCEEDED", kind="DDL")).ask().scan.cost_usd == 0


def test_a_query_that_scans_too_much_is_stopped() -> None:
    asked = Asked(seen("RUNNING", 9 * MB), seen("RUNNING", 11 * MB), stopped=True)

    with pytest.raises(ScanLimitError, match=r"11\.0 MB and may scan 10\.0 MB") as raised:
        asked.ask(10 * MB)

    assert (raised.value.scanned_bytes, raised.value.bytes_max) == (11 * MB, 10 * MB)
    asked.stub.assert_no_pending_responses()


def test_a_query_that_nobody_waits_for_any_more_is_stopped() -> None:
    asked = Asked(seen("RUNNING"), stopped=True)

    def interrupted(_seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked.ask(wait=interrupted)

    asked.stub.assert_no_pending_responses()


def test_why_a_query_failed_is_told() -> None:
    asked = Asked(seen("FAILED", StateChangeReason="SYNTAX_ERROR: line 1:8"), stopped=True)

    with pytest.raises(AthenaError, match="SYNTAX_ERROR: line 1:8"):
        asked.ask()


def test_what_athena_refuses_is_told_and_no_query_is_stopped() -> None:
    client: Any = boto3.client("athena", region_name="eu-west-1")
    with Stubber(client) as stub:
        stub.add_client_error("start_query_execution", "AccessDeniedException", "not you")
        with pytest.raises(AthenaError, match="not you") as raised:
            ask(DATABASE, "SELECT 1", wait=lambda _s: None, client=client)

    assert isinstance(raised.value.__cause__, ClientError)


def test_rows_are_python_values_and_none_for_what_is_not_there() -> None:
    frame = pd.DataFrame(
        {
            "n": pd.array([1, None], dtype="Int64"),
            "d": [Decimal("1.50"), None],
            "day": [date(2026, 11, 21), None],
            "t": pd.array([pd.Timestamp("2026-11-21"), pd.NaT]),
        }
    )

    answer = Answer(frame, Scan("SUCCEEDED", 0, 0))

    assert answer.columns == ["n", "d", "day", "t"]
    assert answer.rows[0][:3] == (1, Decimal("1.50"), date(2026, 11, 21))
    assert answer.rows[1] == (None, None, None, None)


# awswrangler asks pandas to copy, which pandas 3 finds out of date.
@pytest.mark.filterwarnings("ignore:The copy keyword:Warning")
@mock_aws
def test_results_come_back_as_a_data_frame() -> None:
    session = boto3.Session(region_name="us-east-1")
    session.client("s3").create_bucket(Bucket="lake")
    session.client("athena").create_work_group(
        Name="group",
        Configuration={"ResultConfiguration": {"OutputLocation": "s3://lake/results/"}},
    )
    column: dict[str, Any] = {
        "CatalogName": "hive",
        "SchemaName": "",
        "TableName": "",
        "Nullable": "UNKNOWN",
    }
    column |= {"CaseSensitive": True}
    columns: list[dict[str, Any]] = [
        {**column, "Name": name, "Label": name, "Type": kind, "Precision": 19, "Scale": 0}
        for name, kind in (("sku", "varchar"), ("n", "bigint"))
    ]
    results = QueryResults(
        rows=[
            {"Data": [{"VarCharValue": name} for name in row]} for row in (("sku", "n"), ("a", "2"))
        ],
        column_info=columns,
    )
    athena_backends["123456789012"]["us-east-1"].query_results_queue.append(results)
    client = session.client("athena")

    answer = ask(
        Database(session, "freshet", "group"),
        "SELECT sku, n FROM sales",
        wait=lambda _seconds: None,
        client=_Located(client),
    )

    assert (answer.columns, answer.rows) == (["sku", "n"], [("a", 2)])


class _Located:
    """moto keeps results where the call says, not where the workgroup does."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def start_query_execution(self, **options: Any) -> Any:
        output = {"OutputLocation": "s3://lake/results/"}
        return self._client.start_query_execution(ResultConfiguration=output, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_sizes_are_said_in_the_units_of_the_bill() -> None:
    assert (size_text(0), size_text(12_340_000), size_text(1_200_000_000_000)) == (
        "0.0 MB",
        "12.3 MB",
        "1,200.0 GB",
    )
