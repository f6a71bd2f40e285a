"""The lake in Redshift: which statements there are, in which order, and how they are run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import duckdb
import pytest
import sqlglot
from botocore.stub import Stubber
from tests.template.stack import stack

from local.gold import load_views
from local.redshift import (
    RedshiftError,
    Statement,
    Step,
    Target,
    apply,
    load_statements,
    split,
    variables_of,
)

VARIABLES = {"database": "freshet", "region": "eu-west-1", "role_arn": "arn:aws:iam::1:role/r"}
VIEWS = [view.name for view in load_views()]
TARGET = Target("dev", workgroup="shop-lake")


def test_statements_come_in_an_order_in_which_each_can_be_made() -> None:
    made = load_statements(VARIABLES, VIEWS)

    assert made[0].sql.startswith("CREATE EXTERNAL SCHEMA IF NOT EXISTS lake")
    assert made[0].sql.endswith("REGION 'eu-west-1' IAM_ROLE 'arn:aws:iam::1:role/r'")
    known: set[str] = set()
    for one in made:
        text = re.sub(r"WITH NO SCHEMA BINDING", "", one.sql)
        used = set(re.findall(r"\b(?:FROM|JOIN) gold\.(\w+)", text))
        assert used <= known, one.what
        known |= set(re.findall(r"VIEW gold\.(\w+)", text))
    assert known >= {"net_revenue_by_day", "sales_by_day", "restatements", "revenue_by_month"}


def test_every_statement_may_be_run_again() -> None:
    repeatable = ("IF NOT EXISTS", "CREATE OR REPLACE VIEW", "DROP MATERIALIZED VIEW IF EXISTS")
    dropped: set[str] = set()
    for one in load_statements(VARIABLES, VIEWS):
        if one.sql.startswith("CREATE MATERIALIZED VIEW"):
            assert one.what.replace("CREATE", "DROP") in dropped
        else:
            assert any(words in one.sql for words in repeatable), one.what
            dropped.add(one.what)


def test_who_may_read_is_granted_only_where_a_role_is_named() -> None:
    without = load_statements(VARIABLES, VIEWS)
    granted = load_statements({**VARIABLES, "readers": 'the "shop"'}, VIEWS)

    assert not [one for one in without if "GRANT" in one.sql]
    assert granted[-1].sql == 'GRANT SELECT ON ALL TABLES IN SCHEMA gold TO ROLE "the ""shop"""'
    assert len(granted) > len(without) + 1


def test_a_variable_without_a_value_is_named() -> None:
    with pytest.raises(RedshiftError, match="'role_arn'"):
        load_statements({"database": "a", "region": "b"}, VIEWS)


def test_values_cannot_break_out_of_their_quotes() -> None:
    made = load_statements({**VARIABLES, "database": "a'; DROP SCHEMA gold; --"}, VIEWS)

    assert "DATABASE 'a''; DROP SCHEMA gold; --' REGION" in made[0].sql


def test_a_file_is_split_where_statements_end_and_nowhere_else() -> None:
    text = """-- a; comment with 'quotes
    SELECT ';' AS "a;b", 'it''s -- no comment'; -- another
    -- and 'one'
    CREATE x - 1;;
    """

    assert list(split(text)) == ["SELECT ';' AS \"a;b\", 'it''s -- no comment'", "CREATE x - 1"]


def test_the_stack_s_output_says_where_the_lake_is() -> None:
    output = stack("redshift").outputs["RedshiftExternalSchema"]

    assert variables_of(output["Value"] if isinstance(output, dict) else output) == {
        "database": "freshet",
        "region": "eu-west-1",
        "role_arn": "<RedshiftRole.Arn>",
    }
    with pytest.raises(RedshiftError, match="RedshiftExternalSchema"):
        variables_of("SELECT 1")


def test_the_materialised_view_adds_up() -> None:
    [made] = [
        one.sql
        for one in load_statements(VARIABLES, VIEWS)
        if one.sql.startswith("CREATE MATERIALIZED VIEW")
    ]
    query = made.partition(" AS\n")[2]
    [there] = sqlglot.transpile(query, read="redshift", write="duckdb")
    with duckdb.connect() as connection:
        connection.execute("CREATE SCHEMA lake")
        connection.execute(
            "CREATE TABLE lake.sales AS SELECT * FROM (VALUES"
            " (TIMESTAMP '2010-12-01', 'GBP', 3, 1, 2.50),"
            " (TIMESTAMP '2010-12-31', 'GBP', 1, 0, 1.00),"
            " (TIMESTAMP '2011-01-01', 'GBP', 1, 0, 9.00)"
            ") AS t(sold_at, currency, quantity, returned_quantity, unit_price)"
        )
        rows = connection.execute(f"{there} ORDER BY 1").fetchall()

    assert [row[2:] for row in rows] == [(2, 8.5, 2.5, 6), (1, 9, 0, 9)]


class DataApi:
    """A Data API whose answers are given, held to what the service takes."""

    def __init__(self) -> None:
        self.client: Any = boto3.client("redshift-data", region_name="eu-west-1")
        self.stub = Stubber(self.client)
        self.stub.activate()
        self.waited: list[float] = []
        self.steps: list[Step] = []

    def takes(self, sql: str, name: str, *states: dict[str, str], **target: str) -> None:
        where = target or {"Database": "dev", "WorkgroupName": "shop-lake"}
        self.stub.add_response(
            "execute_statement", {"Id": name}, {"Sql": sql, "StatementName": "freshet f", **where}
        )
        for state in states:
            self.stub.add_response("describe_statement", {"Id": name, **state}, {"Id": name})

    def apply(self, statements: Sequence[str], target: Target = TARGET) -> tuple[Step, ...]:
        ticks = count()
        return apply(
            self.client,
            [Statement("f", sql) for sql in statements],
            target,
            wait=self.waited.append,
            clock=lambda: float(next(ticks)),
            progress=self.steps.append,
        )


def status(state: str, **told: str) -> dict[str, str]:
    return {"Status": state, **told}


def test_statements_run_one_by_one_and_each_look_is_told() -> None:
    api = DataApi()
    api.takes("CREATE a", "1", status("SUBMITTED"), status("STARTED"), status("FINISHED"))
    api.takes("CREATE b", "2", status("FINISHED"))

    done = api.apply(["CREATE a", "CREATE b"])

    assert [(one.number, one.total, one.state) for one in api.steps] == [
        (1, 2, "SUBMITTED"),
        (1, 2, "STARTED"),
        (1, 2, "FINISHED"),
        (2, 2, "FINISHED"),
    ]
    assert [one.statement.sql for one in done] == ["CREATE a", "CREATE b"]
    assert len(api.waited) == 2
    assert done[0].elapsed_s > done[1].elapsed_s > 0
    api.stub.assert_no_pending_responses()


@pytest.mark.parametrize("state", ["FAILED", "ABORTED"])
def test_a_statement_that_fails_ends_it_and_is_named(state: str) -> None:
    api = DataApi()
    api.takes("CREATE VIEW gold.a AS x", "1", status(state, Error='relation "x" is not there'))

    with pytest.raises(RedshiftError, match=r'f\.sql, CREATE VIEW gold\.a: relation "x"'):
        api.apply(["CREATE VIEW gold.a AS x", "CREATE b"])

    api.stub.assert_no_pending_responses()


def test_a_cluster_is_spoken_to_as_a_user_or_with_a_secret() -> None:
    api = DataApi()
    where = {"Database": "dev", "ClusterIdentifier": "c-1", "DbUser": "admin"}
    api.takes("CREATE a", "1", status("FINISHED"), **where)

    assert api.apply(["CREATE a"], Target("dev", cluster="c-1", user="admin"))
    assert Target("dev", secret_arn="arn").options() == {"Database": "dev", "SecretArn": "arn"}


def test_what_the_data_api_refuses_is_told() -> None:
    api = DataApi()
    api.stub.add_client_error("execute_statement", "ValidationException", "no such workgroup")

    with pytest.raises(RedshiftError, match="no such workgroup"):
        api.apply(["CREATE a"])


def test_every_statement_file_is_one_that_is_applied() -> None:
    folder = Path(__file__).parents[2] / "sql" / "redshift"
    held = {path.stem for path in folder.rglob("*.sql")}

    assert held == {one.file for one in load_statements(VARIABLES, VIEWS)}
