"""Objects on Amazon S3: the real adapter of `freshet.objects.Objects`.

S3 gives the port's promises itself: whole-object writes are atomic, reads see the last write, and
a write conditional upon an ETag is a compare-and-swap. What this module adds is the border:
botocore's errors become the two families, and a conditional write that the SDK repeated after a
lost answer is recognised as our own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
)
from botocore.exceptions import (
    ConnectionError as NoConnectionError,
)

from freshet.errors import SettingsError, StorageError
from freshet.objects import ObjectMissingError, PreconditionError, StoredObject

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# 409 means another write of the key was under way; S3 asks to try again, and five rounds with
# doubling pauses (1.5 s in all) outlast a write of a small object.
CONFLICT_ROUNDS_MAX = 5
CONFLICT_PAUSE_S_FIRST = 0.1
# The SDK does not repeat a download that breaks off in the body.
READ_ATTEMPTS_MAX = 3

_MISSING = frozenset(("NoSuchKey", "404"))
_REFUSED = frozenset(("AccessDenied", "403", "AllAccessDisabled", "InvalidAccessKeyId"))
_THROTTLED = frozenset(("SlowDown", "Throttling", "ThrottlingException", "RequestTimeout"))


class S3Objects:
    """Objects of `bucket` below the folder `prefix` (`state` and `state/` are the same).

    `client` keeps its own retries of throttling, 5xx and time-outs; what is left of them surfaces
    as `StorageError`. A bucket that is missing or closed to the caller is a `SettingsError`. `wait`
    takes seconds.
    """

    def __init__(
        self,
        client: S3Client,
        bucket: str,
        prefix: str = "",
        *,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client, self._bucket, self._wait = client, bucket, wait
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def get(self, key: str) -> StoredObject:
        """See `Objects.get`."""
        for attempt in range(1, READ_ATTEMPTS_MAX + 1):
            try:
                with self._translated(key):
                    answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
                    return StoredObject(answer["Body"].read(), answer["ETag"])
            except StorageError as error:
                if attempt == READ_ATTEMPTS_MAX or isinstance(error.__cause__, ClientError):
                    raise
        raise AssertionError("the last attempt returns or raises")

    def put(self, key: str, data: bytes) -> str:
        """See `Objects.put`."""
        return self._put(key, data, {})

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        """See `Objects.put_if`.

        When the SDK had to repeat the request, a failed condition may be the work of our own first
        try: the object is read again, and if it holds exactly `data` the write counts as done.
        Writers whose bytes may coincide must therefore put something of their own into them.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        try:
            return self._put(key, data, condition)
        except PreconditionError as error:
            own = self._own_write(key, data) if _was_repeated(error.__cause__) else None
            if own is None:
                raise
            return own

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        with self._translated(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Objects.list`; S3 orders keys by their UTF-8 bytes."""
        request: Any = {"Bucket": self._bucket, "Prefix": self._prefix + prefix}
        while True:
            with self._translated(prefix):
                page = self._client.list_objects_v2(**request)
            yield from (item["Key"][len(self._prefix) :] for item in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def forget_versions(self, prefix: str) -> int:
        """Delete versions that are not the latest of their object; delete markers stay and hide
        them. How many there were; none in a bucket that keeps none.

        Raises `SettingsError` where the caller may not, `StorageError`.
        """
        deleted = 0
        with self._translated(prefix):
            versions = self._client.get_paginator("list_object_versions")
            for page in versions.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                old: Any = [
                    {"Key": one["Key"], "VersionId": one["VersionId"]}
                    for one in page.get("Versions", ())
                    if not one["IsLatest"]
                ]
                if old:  # a page has at most as many as one call may delete
                    answer = self._client.delete_objects(
                        Bucket=self._bucket, Delete={"Objects": old, "Quiet": True}
                    )
                    self._require_deleted(answer.get("Errors", ()))
                deleted += len(old)
        return deleted

    def _require_deleted(self, errors: Any) -> None:
        codes = sorted({str(one.get("Code")) for one in errors})
        if not codes:
            return
        told = f"keeps {len(errors)} earlier versions ({', '.join(codes)})"
        if _REFUSED.isdisjoint(codes):
            raise StorageError(f"bucket {self._bucket!r}", told)
        advice = "grant s3:DeleteObjectVersion and run the command again"
        raise SettingsError("bucket", f"{self._bucket!r} {told}: {advice}")

    def _put(self, key: str, data: bytes, condition: dict[str, str]) -> str:
        place = {"Bucket": self._bucket, "Key": self._prefix + key}
        request: Any = place | condition
        pause = CONFLICT_PAUSE_S_FIRST
        for attempt in range(1, CONFLICT_ROUNDS_MAX + 1):
            try:
                with self._translated(key):
                    return self._client.put_object(Body=data, **request)["ETag"]
            except StorageError as error:
                if attempt == CONFLICT_ROUNDS_MAX or _status(error.__cause__) != 409:
                    raise
                self._wait(pause)
                pause *= 2
        raise AssertionError("the last round returns or raises")

    def _own_write(self, key: str, data: bytes) -> str | None:
        try:
            stored = self.get(key)
        except ObjectMissingError:
            return None
        return stored.etag if stored.data == data else None

    @contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        try:
            yield
        except ClientError as error:
            raise self._translation(key, error) from error
        except (NoConnectionError, HTTPClientError, IncompleteReadError, OSError) as error:
            raise StorageError(self._place(key), f"no whole answer: {error}") from error
        except NoCredentialsError as error:
            raise SettingsError(
                "AWS_PROFILE", "no AWS credentials found: set a profile, keys or a role"
            ) from error
        except BotoCoreError as error:
            raise SettingsError(
                "AWS_ENDPOINT_URL", f"the S3 client cannot be used: {error}"
            ) from error

    def _translation(self, key: str, error: ClientError) -> Exception:
        code, status = str(error.response.get("Error", {}).get("Code", "")), _status(error)
        if status == 412:
            return PreconditionError(key)
        if code == "NoSuchBucket":
            return self._unusable("does not exist in this account and region: create or correct it")
        if code in _MISSING:
            # A conditional overwrite of an object that is gone answers 404, not 412.
            return PreconditionError(key) if _is_write(error) else ObjectMissingError(key)
        if code in _REFUSED:
            return self._unusable(
                f"refuses {error.operation_name} of {self._prefix + key!r}: grant s3:GetObject, "
                "s3:PutObject and s3:DeleteObject on its objects and s3:ListBucket on it (without "
                "the last, a missing object is answered like a forbidden one)"
            )
        if status >= 500 or status in (0, 408, 409, 429) or code in _THROTTLED:
            return StorageError(self._place(key), f"{code or status} after the SDK's retries")
        return self._unusable(f"answers {code or status} to {error.operation_name}: {error}")

    def _unusable(self, detail: str) -> SettingsError:
        return SettingsError("bucket", f"{self._bucket!r} {detail}")

    def _place(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"


def _status(error: BaseException | None) -> int:
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_write(error: ClientError) -> bool:
    return error.operation_name == "PutObject"


def _was_repeated(error: BaseException | None) -> bool:
    """True where the SDK sent the request more than once, so its first try may have succeeded."""
    if not isinstance(error, ClientError):
        return False
    return int(error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)) > 0
