"""Tools made for LocalStack work on embedded AWS as they are: `localstack-client` is one."""

from __future__ import annotations

from pathlib import Path

import pytest
from localstack_client.session import Session

from local.embedded import EmbeddedAws


def test_localstack_client_reads_what_was_put_into_embedded_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EmbeddedAws(tmp_path) as aws:
        aws.ensure_bucket("lake")
        aws.client("s3").put_object(Bucket="lake", Key="answer", Body=b"42")
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.endpoint_url)

        found = Session().client("s3").get_object(Bucket="lake", Key="answer")["Body"].read()

    assert found == b"42"
