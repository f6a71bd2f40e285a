"""One suite for every adapter of `freshet.objects.Objects`, then what only S3 can get wrong."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws

from freshet.errors import SettingsError, StorageError
from freshet.objects import (
    DirectoryObjects,
    ObjectMissingError,
    Objects,
    PreconditionError,
    StoredObject,
)
from freshet.s3 import CONFLICT_ROUNDS_MAX, S3Objects
from freshet.testing import MemoryObjects

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "freshet-state"


def s3_client(**options: Any) -> S3Client:
    return boto3.client(
        "s3",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, **options),
    )


@pytest.fixture
def bucket() -> Iterator[S3Client]:
    with mock_aws():
        client = s3_client()
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture(params=["memory", "directory", "s3", "s3 with a prefix"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "memory":
        return MemoryObjects()
    if request.param == "directory":
        return DirectoryObjects(tmp_path / "objects")
    prefix = "pollers/" if "prefix" in request.param else ""
    return S3Objects(request.getfixturevalue("bucket"), BUCKET, prefix)


def test_what_was_put_is_read_back_with_its_etag(objects: Objects) -> None:
    etag = objects.put("a/b.bin", b"\x00\xff one")

    assert objects.get("a/b.bin") == StoredObject(b"\x00\xff one", etag)


def test_an_empty_object_is_an_object(objects: Objects) -> None:
    objects.put("empty", b"")

    assert objects.get("empty").data == b""


def test_an_object_that_is_not_there_is_named(objects: Objects) -> None:
    with pytest.raises(ObjectMissingError) as raised:
        objects.get("a/missing")

    assert raised.value.key == "a/missing"


def test_a_put_replaces_and_changes_the_etag(objects: Objects) -> None:
    before = objects.put("key", b"one")
    after = objects.put("key", b"two")

    assert objects.get("key") == StoredObject(b"two", after)
    assert before != after


def test_a_conditional_create_succeeds_once(objects: Objects) -> None:
    etag = objects.put_if("key", b"first", etag=None)

    with pytest.raises(PreconditionError) as raised:
        objects.put_if("key", b"second", etag=None)

    assert raised.value.key == "key"
    assert objects.get("key") == StoredObject(b"first", etag)


def test_a_conditional_create_of_equal_bytes_still_loses(objects: Objects) -> None:
    objects.put_if("key", b"same", etag=None)

    with pytest.raises(PreconditionError):
        objects.put_if("key", b"same", etag=None)


def test_a_conditional_overwrite_needs_the_current_etag(objects: Objects) -> None:
    first = objects.put("key", b"one")
    second = objects.put_if("key", b"two", etag=first)

    with pytest.raises(PreconditionError):
        objects.put_if("key", b"three", etag=first)

    assert objects.get("key") == StoredObject(b"two", second)


def test_a_conditional_overwrite_of_nothing_loses_and_writes_nothing(objects: Objects) -> None:
    etag = objects.put("other", b"one")

    with pytest.raises(PreconditionError):
        objects.put_if("key", b"two", etag=etag)

    with pytest.raises(ObjectMissingError):
        objects.get("key")


def test_deleting_twice_is_fine(objects: Objects) -> None:
    objects.put("key", b"one")

    objects.delete("key")
    objects.delete("key")

    assert list(objects.list("")) == []


def test_a_deleted_object_can_be_created_again(objects: Objects) -> None:
    objects.put_if("key", b"one", etag=None)
    objects.delete("key")

    objects.put_if("key", b"two", etag=None)

    assert objects.get("key").data == b"two"


def test_a_listing_is_in_order_and_by_prefix_of_the_text(objects: Objects) -> None:
    for key in ("b/2", "a/10", "a/2", "a-1", "c", "a/ü"):
        objects.put(key, b"x")

    assert list(objects.list("a/")) == ["a/10", "a/2", "a/ü"]
    assert list(objects.list("a")) == ["a-1", "a/10", "a/2", "a/ü"]
    assert list(objects.list("nothing")) == []


def test_keys_with_signs_that_urls_and_shells_mind_survive(objects: Objects) -> None:
    key = "table=sales/day=2010-12-01/a b+c%20&=ü.json"

    objects.put(key, b"x")

    assert objects.get(key).data == b"x"
    assert list(objects.list("table=sales/")) == [key]


def test_of_many_concurrent_creators_exactly_one_wins(tmp_path: Path) -> None:
    """On a directory only: moto's own races would be what is measured on the other."""
    objects, start, winners = DirectoryObjects(tmp_path), threading.Barrier(8), []

    def create(number: int) -> None:
        start.wait(timeout=10)
        try:
            objects.put_if("key", b"%d" % number, etag=None)
        except PreconditionError:
            return
        winners.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)

    assert [b"%d" % number for number in winners] == [objects.get("key").data]


def test_s3_listings_go_on_after_the_first_thousand_keys(bucket: S3Client) -> None:
    objects = S3Objects(bucket, BUCKET, "many")
    keys = [f"{number:04d}" for number in range(1001)]
    for key in keys:
        objects.put(key, b"")

    assert list(objects.list("")) == keys


def test_an_s3_prefix_keeps_neighbours_apart(bucket: S3Client) -> None:
    S3Objects(bucket, BUCKET, "a").put("key", b"a")
    S3Objects(bucket, BUCKET, "ab").put("key", b"ab")

    assert list(S3Objects(bucket, BUCKET, "/a/").list("")) == ["key"]
    assert S3Objects(bucket, BUCKET, "a").get("key").data == b"a"


def test_a_bucket_that_does_not_exist_is_a_setting_to_correct(bucket: S3Client) -> None:
    objects = S3Objects(bucket, "no-such-bucket")

    for call in _calls(objects):
        with pytest.raises(SettingsError, match=r"no-such-bucket.*does not exist"):
            call()


def test_an_endpoint_that_is_down_is_a_storage_error() -> None:
    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",  # the discard port: nothing listens
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=1, read_timeout=1),
    )

    for call in _calls(S3Objects(client, BUCKET)):
        with pytest.raises(StorageError, match="s3://freshet-state/"):
            call()


def _calls(objects: Objects) -> list[Callable[[], object]]:
    return [
        lambda: objects.get("key"),
        lambda: objects.put("key", b""),
        lambda: objects.put_if("key", b"", etag=None),
        lambda: objects.delete("key"),
        lambda: list(objects.list("")),
    ]


class Script:
    """An S3 client that answers from a script; `waits` holds the pauses the adapter took."""

    def __init__(self) -> None:
        self.client = s3_client()
        self.stub = Stubber(self.client)
        self.waits: list[float] = []
        self.objects = S3Objects(self.client, BUCKET, wait=self.waits.append)

    def fails(self, verb: str, code: str, status: int, *, retries: int = 0) -> None:
        self.stub.add_client_error(
            verb, code, http_status_code=status, response_meta={"RetryAttempts": retries}
        )

    def holds(self, data: bytes) -> None:
        body = StreamingBody(io.BytesIO(data), len(data))
        self.stub.add_response("get_object", {"Body": body, "ETag": '"own"'})


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    with made.stub:
        yield made
        made.stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("code", "status"),
    [("SlowDown", 503), ("InternalError", 500), ("RequestTimeout", 400), ("TooMany", 429)],
)
def test_throttling_and_server_faults_may_pass(script: Script, code: str, status: int) -> None:
    script.fails("get_object", code, status)

    with pytest.raises(StorageError, match=code):
        script.objects.get("key")


def test_a_refused_caller_learns_which_permission_to_grant(script: Script) -> None:
    script.fails("put_object", "AccessDenied", 403)

    with pytest.raises(SettingsError, match="s3:PutObject"):
        script.objects.put("key", b"x")


def test_a_conflicting_write_is_tried_again(script: Script) -> None:
    script.fails("put_object", "ConditionalRequestConflict", 409)
    script.stub.add_response("put_object", {"ETag": '"new"'})

    assert script.objects.put_if("key", b"x", etag='"old"') == '"new"'
    assert len(script.waits) == 1


def test_conflicts_without_end_are_given_up(script: Script) -> None:
    for _ in range(CONFLICT_ROUNDS_MAX):
        script.fails("put_object", "ConditionalRequestConflict", 409)

    with pytest.raises(StorageError, match="ConditionalRequestConflict"):
        script.objects.put_if("key", b"x", etag=None)

    assert len(script.waits) == CONFLICT_ROUNDS_MAX - 1
    assert script.waits == sorted(script.waits)


def test_a_repeated_write_that_finds_its_own_bytes_has_succeeded(script: Script) -> None:
    script.fails("put_object", "PreconditionFailed", 412, retries=1)
    script.holds(b"mine")

    assert script.objects.put_if("key", b"mine", etag=None) == '"own"'


def test_a_repeated_write_that_finds_other_bytes_has_lost(script: Script) -> None:
    script.fails("put_object", "PreconditionFailed", 412, retries=1)
    script.holds(b"theirs")

    with pytest.raises(PreconditionError):
        script.objects.put_if("key", b"mine", etag=None)


def test_a_repeated_write_that_finds_nothing_has_lost(script: Script) -> None:
    script.fails("put_object", "PreconditionFailed", 412, retries=1)
    script.fails("get_object", "NoSuchKey", 404)

    with pytest.raises(PreconditionError):
        script.objects.put_if("key", b"mine", etag='"old"')


def test_a_conditional_overwrite_answered_404_has_lost(script: Script) -> None:
    script.fails("put_object", "NoSuchKey", 404)

    with pytest.raises(PreconditionError):
        script.objects.put_if("key", b"x", etag='"old"')


def test_a_download_that_breaks_off_is_read_again(script: Script) -> None:
    cut = StreamingBody(io.BytesIO(b"who"), 5)
    script.stub.add_response("get_object", {"Body": cut, "ETag": '"own"'})
    script.holds(b"whole")

    assert script.objects.get("key") == StoredObject(b"whole", '"own"')
