"""`freshet quarantine`, `freshet replay` and `freshet rebuild`, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Run

from freshet.testing import EPOCH, change, sale_row
from freshet.wire import encode_event
from local.delivery import (
    WHOLE_BATCH_FAILED,
    Condition,
    Item,
    Piece,
    failure_key,
    failure_record,
)
from local.runtime import FAILURES_BUCKET, STREAM, Home, Pipeline, local_aws
from local.shards import StreamRecord

pytestmark = pytest.mark.long  # each command starts a pipeline; what they do is tested below

# A row of a database whose columns have names of their own, as Debezium sends it.
DEBEZIUM = {
    "before": None,
    "after": {"id": "4", "name": "White heart", "price": "2.55", "currency": "GBP"},
    "source": {
        "connector": "postgresql",
        "name": "shop",
        "db": "shop",
        "schema": "public",
        "table": "products",
        "lsn": 24023128,
        "ts_ms": 1559033904863,
        "snapshot": "false",
    },
    "op": "c",
    "ts_ms": 1559033904961,
}
# What makes it a row of ours.
STREAMS = """
format: debezium
match: shop
tables:
  public.products:
    table: products
    columns: {id: product_id, name: title}
"""
BROKEN = b'{"table": "sales", "op": "u", "version": 1'
WHEN = ("--from", "2026-01-01", "--to", "2100-01-01")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running pipeline that was given good and bad records, and gave one batch up."""
    folder = tmp_path_factory.mktemp("way-back") / "home"
    good = encode_event(change("sales", sale_row("1-1"), version=5))
    with Pipeline(Home(folder)) as pipeline:
        kinesis = pipeline.aws.client("kinesis")
        for data in (good, BROKEN, json.dumps(DEBEZIUM).encode()):
            kinesis.put_record(StreamName=STREAM, PartitionKey="one", Data=data)
        pipeline.drain()
        key, body = given_up()
        pipeline.aws.client("s3").put_object(Bucket=FAILURES_BUCKET, Key=key, Body=body)
        yield folder


def given_up() -> tuple[str, bytes]:
    """A failure object that holds one sale."""
    data = encode_event(change("sales", sale_row("2-1"), version=5))
    record = StreamRecord(
        "49590338271490256608559692538361571095921575989136588898", "one", data, 1e9
    )
    shard = "shardId-000000000001"
    body = failure_record(
        Piece((Item(record, 0),), 3),
        Condition.EXHAUSTED,
        WHOLE_BATCH_FAILED,
        shard_id=shard,
        stream_arn=f"arn:aws:kinesis:eu-west-1:000000000000:stream/{STREAM}",
        function_arn="arn:aws:lambda:eu-west-1:000000000000:function:consumer",
        request_id="r-1",
        at=EPOCH,
    )
    return failure_key("mapping", shard, at=EPOCH, unique="u"), json.dumps(body).encode()


def rows(freshet: Run, home: Path, table: str, key: str) -> list[Any]:
    done = freshet(home, "query", f"SELECT {key} AS key FROM {table} ORDER BY 1", "--json")
    return [row["key"] for row in done.json]


def test_what_was_refused_is_listed_looked_at_replayed_and_discarded(
    freshet: Run, home: Path, tmp_path: Path
) -> None:
    """One story: each command sees what the one before it left."""
    (tmp_path / "shop.yaml").write_text(STREAMS)
    declared = {"STREAMS_FOLDER": str(tmp_path)}

    listed = freshet(home, "quarantine", "list", "--json")
    before = freshet(home, "quarantine", "show", "--table", "products", "--json")
    declared_now = freshet(home, "quarantine", "show", "--table", "products", "--json", **declared)
    dry = freshet(home, "quarantine", "replay", "--dry-run", "--json", **declared)
    replayed = freshet(home, "quarantine", "replay", "--json", **declared)
    again = freshet(home, "quarantine", "replay", "--json", **declared)
    left = freshet(home, "quarantine", "list", "--json")
    unnarrowed = freshet(home, "quarantine", "discard", "--because", "a test")
    discarded = freshet(home, "quarantine", "discard", "--yes", "--because", "a test", "--json")
    everything = freshet(home, "quarantine", "list", "--all", "--lines", "--json")

    groups = {row["reason"]: row for row in listed.json}
    assert groups["batch_failed: RetryAttemptsExhausted"]["lines"] == 1
    assert groups["malformed_json"]["lines"] == 1
    assert {row["table"] for row in listed.json} == {"products", "unknown"}
    [shown] = before.json
    assert "still refused" in shown["now"]
    assert "White heart" in shown["data"]
    [shown] = declared_now.json
    assert shown["now"] == "would land: c of products 4, version 24023128"
    assert shown["decoder"] == "debezium"
    for done, changed in ((dry, 0), (replayed, 2)):
        failed, refused = done.json
        assert (failed["landed"], refused["landed"], refused["still_bad"]) == (1, 1, 1)
        assert failed["changed"] + refused["changed"] == changed
    assert [part["landed"] for part in again.json] == [0, 0]
    assert [row["reason"] for row in left.json] == ["malformed_json"]
    assert unnarrowed.code == 2
    assert discarded.json == [{"lines": 1, "failed_records": 0}]
    assert sorted(row["state"] for row in everything.json) == ["discarded", "replayed"]
    assert rows(freshet, home, "products", "product_id") == ["4"]
    assert rows(freshet, home, "sales", "sale_id") == ["1-1", "2-1"]


def test_a_replay_of_log_or_stream_changes_nothing_and_says_so(freshet: Run, home: Path) -> None:
    for more in (("--table", "sales"), ("--from-stream",)):
        done = freshet(home, "replay", *WHEN, *more, "--json")

        [part] = done.json
        assert (done.code, part["changed"]) == (0, 0)
        assert part["lines"] > 0
        assert "nothing changed" in done.err


def test_a_rebuilt_table_holds_what_it_held(freshet: Run, home: Path) -> None:
    before = rows(freshet, home, "sales", "sale_id")

    done = freshet(home, "rebuild", "sales", "--json")

    assert done.code == 0
    assert done.json["rows_before"] == done.json["rows_after"] == len(before) > 0
    assert rows(freshet, home, "sales", "sale_id") == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("quarantine", "list", "--from", "yesterday"),
        ("replay", "--from", "2026-01-02", "--to", "2026-01-01"),
        ("rebuild", "nothing"),
    ],
)
def test_misuse_is_told_as_misuse(arguments: tuple[str, ...], freshet: Run, home: Path) -> None:
    assert freshet(home, *arguments).code == 2


def test_commands_ask_for_a_pipeline_that_ran(freshet: Run, tmp_path: Path) -> None:
    done = freshet(tmp_path / "home", "quarantine", "list")

    assert done.code == 1
    assert "no pipeline has run" in done.error


def test_a_failure_object_that_is_none_is_named(freshet: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    Home(home).make()
    with local_aws(Home(home)) as aws:
        key = "aws/lambda/mapping/shard/odd"
        aws.client("s3").put_object(Bucket=FAILURES_BUCKET, Key=key, Body=b"{}")

    done = freshet(home, "quarantine", "list")

    assert done.code == 1
    assert key in done.error
