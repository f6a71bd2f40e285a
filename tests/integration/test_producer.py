"""The producer as Lambda runs it: composed from its environment, on recorded events, against moto.

moto serves one thread here; concurrency is proved on `MemoryStream` and on the embedded AWS.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from freshet.errors import SettingsError
from freshet.event import ChangeEvent, Op
from freshet.tables import TABLES
from freshet.wire import Decoded, decode_record
from producer import app

ROOT = Path(__file__).parents[2]
# What Lambda's own environment brings, with credentials that open nothing.
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "POWERTOOLS_METRICS_DISABLED": "true",
    "STREAM_NAME": "changes",
    "STATE_BUCKET": "state",
    "PII_SECRET_ARN": "pii-key",
}


class Context:
    """What the tracer and logger ask of Lambda's context."""

    function_name = "producer"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:producer"
    aws_request_id = "c9b8fa9f-5a7f-4e2b-af9c-0c604cde93a5"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    app._composed.cache_clear()
    with mock_aws():
        yield monkeypatch
    app._composed.cache_clear()


@pytest.fixture
def aws(environment: pytest.MonkeyPatch) -> Any:
    boto3.client("secretsmanager").create_secret(Name="pii-key", SecretString="k" * 64)
    kinesis = boto3.client("kinesis")
    kinesis.create_stream(StreamName="changes", ShardCount=2)
    boto3.client("s3").create_bucket(
        Bucket="state", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    return kinesis


def recorded(name: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((ROOT / "events" / f"{name}.json").read_text())
    return event


def call(name: str) -> tuple[int, Any]:
    answer = app.handler(recorded(name), Context())
    return answer["statusCode"], json.loads(answer["body"])


def published(kinesis: Any) -> list[ChangeEvent]:
    events = []
    for shard in kinesis.list_shards(StreamName="changes")["Shards"]:
        iterator = kinesis.get_shard_iterator(
            StreamName="changes", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        for record in kinesis.get_records(ShardIterator=iterator)["Records"]:
            for part in decode_record(record["Data"], TABLES):
                assert isinstance(part, Decoded)
                events.append(part.event)
    return sorted(events, key=lambda event: event.version)


def test_a_recorded_batch_is_in_the_stream_with_the_versions_its_answer_names(aws: Any) -> None:
    status, answer = call("http_post_changes")

    events = published(aws)
    assert status == 202
    assert {(one["event_id"], one["version"]) for one in answer["outcomes"]} == {
        (event.event_id, event.version) for event in events
    }
    sale, returned = (event for event in events if event.key == {"sale_id": "536365-1"})
    assert (sale.op, returned.op) == (Op.CREATE, Op.UPDATE)
    assert returned.after is not None
    assert returned.after["returned_quantity"] == 2


def test_a_resent_batch_carries_the_same_ids_and_versions(aws: Any) -> None:
    first = call("http_post_changes")
    app._composed.cache_clear()
    second = call("http_post_changes")

    events = published(aws)
    assert first == second
    assert len(events) == 6
    assert len({(event.event_id, event.version) for event in events}) == 3
    objects = boto3.client("s3").list_objects_v2(Bucket="state")["Contents"]
    assert [one["Key"].rpartition("/")[0] for one in objects] == ["idempotency"]


def test_of_recorded_lines_the_good_ones_are_accepted_and_the_bad_ones_named(aws: Any) -> None:
    status, answer = call("http_post_changes_ndjson")

    assert status == 207
    assert [(one["status"], one.get("reason"), one.get("field")) for one in answer["outcomes"]] == [
        ("accepted", None, None),
        ("rejected", "wrong_type", "after.quantity"),
        ("accepted", None, None),
        ("rejected", "malformed_json", None),
    ]
    assert [event.key["sale_id"] for event in published(aws)] == ["536367-1", "536366-2"]


def test_a_recorded_row_is_put_and_a_recorded_row_is_deleted(aws: Any) -> None:
    put, _ = call("http_put_row")
    deleted, answer = call("http_delete_row")

    assert (put, deleted) == (202, 202)
    assert [(event.table, event.op, event.version) for event in published(aws)] == [
        ("products", Op.UPDATE, 1291192180000000),
        ("exchange_rates", Op.DELETE, answer["version"]),
    ]


def test_tables_are_listed_without_touching_aws(environment: pytest.MonkeyPatch) -> None:
    status, answer = call("http_get_tables")

    assert status == 200
    assert [table["table"] for table in answer["tables"]] == list(TABLES.names)


def test_a_stream_that_does_not_exist_is_misconfiguration_and_leaks_no_name(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("STREAM_NAME", "prod-changes")

    status, answer = call("http_put_row")

    assert (status, answer["reason"]) == (500, "misconfigured")
    assert "prod-changes" not in json.dumps(answer)
    assert "STREAM_NAME" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["STREAM_NAME", "STATE_BUCKET"])
def test_a_missing_setting_fails_the_invocation_by_name(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.delenv(name)

    with pytest.raises(SettingsError, match=name):
        app.handler(recorded("http_get_tables"), Context())


def test_the_bundle_imports_without_aws_and_without_the_heavy_layer() -> None:
    """A clean interpreter, no credentials, no region: what Lambda's init phase sees at worst."""
    program = (
        "import sys, producer.app as app; assert callable(app.handler);"
        "heavy = {'pyarrow', 'pandas', 'numpy', 'pyiceberg', 'local', 'lake'} & set(sys.modules);"
        "assert not heavy, heavy"
    )

    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
