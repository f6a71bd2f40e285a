"""`freshet erase --purge-versions`: what a versioned bucket keeps of rewritten objects."""

from __future__ import annotations

from collections.abc import Iterator

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from freshet.errors import SettingsError, StorageError
from freshet.s3 import S3Objects

BUCKET, PREFIX = "lake-bucket", "lake"


@pytest.fixture
def store() -> Iterator[S3Objects]:
    with mock_aws():
        client = boto3.client(
            "s3",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=BUCKET)
        client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
        yield S3Objects(client, BUCKET, PREFIX)


def bodies(store: S3Objects) -> list[bytes]:
    client = store._client
    listed = client.list_object_versions(Bucket=BUCKET).get("Versions", [])
    return [
        client.get_object(Bucket=BUCKET, Key=one["Key"], VersionId=one["VersionId"])["Body"].read()
        for one in listed
    ]


def test_earlier_versions_go_and_the_latest_and_other_folders_stay(store: S3Objects) -> None:
    store.put("change_log/table_name=sales/a", b"with the person")
    store.put("change_log/table_name=sales/a", b"without")
    store.put("change_log/table_name=sales/gone", b"deleted, with the person")
    store.delete("change_log/table_name=sales/gone")
    store.put("change_log/table_name=products/b", b"earlier of others")
    store.put("change_log/table_name=products/b", b"latest of others")

    deleted = store.forget_versions("change_log/table_name=sales/")

    assert deleted == 2
    assert sorted(bodies(store)) == [b"earlier of others", b"latest of others", b"without"]
    assert list(store.list("change_log/table_name=sales/")) == ["change_log/table_name=sales/a"]
    assert store.forget_versions("change_log/table_name=sales/") == 0


def test_a_caller_who_may_not_is_told(store: S3Objects) -> None:
    with Stubber(store._client) as stub:
        stub.add_client_error("list_object_versions", "AccessDenied", http_status_code=403)

        with pytest.raises(SettingsError, match="ListObjectVersions"):
            store.forget_versions("change_log/")


@pytest.mark.parametrize(
    ("code", "error", "told"),
    [
        ("AccessDenied", SettingsError, "grant s3:DeleteObjectVersion"),
        ("SlowDown", StorageError, "SlowDown"),
    ],
)
def test_versions_that_could_not_be_deleted_are_no_success(
    store: S3Objects, code: str, error: type[Exception], told: str
) -> None:
    store.put("change_log/a", b"one")
    store.put("change_log/a", b"two")
    refused = {"Errors": [{"Key": "lake/change_log/a", "Code": code}]}
    with Stubber(store._client) as stub:
        listed = {"Versions": [{"Key": "lake/change_log/a", "VersionId": "1", "IsLatest": False}]}
        stub.add_response("list_object_versions", listed)
        stub.add_response("delete_objects", refused)

        with pytest.raises(error, match=told):
            store.forget_versions("change_log/")
