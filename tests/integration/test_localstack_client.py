"""Tools made for LocalStack work on embedded AWS as they are: `localstack-client` is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from localstack_client.session import Session

from local.embedded import EmbeddedAws
from local.localstack import GLUE_URL, LocalStack


def test_localstack_client_reads_what_was_put_into_embedded_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedAws(tmp_path) as aws:
        aws.ensure_bucket("lake")
        aws.client("s3").put_object(Bucket="lake", Key="answer", Body=b"42")
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)

        found = Session().client("s3").get_object(Bucket="lake", Key="answer")["Body"].read()

    assert found == b"42"


@pytest.mark.parametrize(
    ("variable", "value", "endpoint"),
    [
        ("LOCALSTACK_HOST", "", "http://localhost:4566"),
        ("LOCALSTACK_HOST", "127.0.0.1:4599", "http://127.0.0.1:4599"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:4600", "http://127.0.0.1:4600"),
    ],
)
def test_localstack_is_where_localstack_client_finds_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, endpoint: str
) -> None:
    monkeypatch.setenv(variable, value)

    localstack = LocalStack()
    told = localstack.environment()

    assert {localstack.client(name).meta.endpoint_url for name in ("s3", "kinesis")} == {endpoint}
    assert (told["AWS_ENDPOINT_URL"], told["AWS_ENDPOINT_URL_GLUE"]) == (endpoint, GLUE_URL)
    assert localstack.client("glue").meta.endpoint_url == GLUE_URL


def test_the_users_keys_do_not_reach_localstack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-users")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-users")

    told = LocalStack().environment()

    assert "AKIAIOSFODNN7EXAMPLE" not in told.values()
    assert "the-users" not in told.values()
