"""Idempotency keys: a request that is sent again is the same change again, never a second one.

Event ids derive from the key, so they need no memory. Versions come from a clock, so the first one
stamped for a key is kept as a small object, `idempotency/<hash>`: the first writer wins and a
resend reads it. The consumer then sees equal ids and versions and counts duplicates (law L3). The
object also keeps a fingerprint of the request, so that a key used for something else is refused.
Nothing is stored when every event brings its own version and event id.

Retention is the bucket's: a lifecycle rule on the prefix `idempotency/` must exceed the longest
time a client keeps resending (7 days is ample). A key that has expired is simply new again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from http import HTTPStatus

from freshet.errors import StorageError
from freshet.objects import Objects, PreconditionError
from producer.problems import ProblemError

PREFIX = "idempotency/"
DIGEST_BYTES = 16


def scope_of(table: str, key: str) -> str:
    """The hash a table and an idempotency key stand for: the object's name and the events' id."""
    return _digest(table.encode() + b"\x1f" + key.encode())


def fingerprint_of(method: str, path: str, stamps: Sequence[str | None], body: bytes) -> str:
    """The hash of everything that makes two requests the same request; `stamps` are the headers
    that stamp a row's change.
    """
    said = (method, path, *(stamp or "" for stamp in stamps))
    return _digest(b"\x1f".join((*(part.encode("utf-8", "surrogatepass") for part in said), body)))


def version_of(objects: Objects, scope: str, fingerprint: str, fresh: Callable[[], int]) -> int:
    """The version first stamped for `scope`; `fresh` gives it when this is the first time.

    Raises `ProblemError` (422) when the key was used for another request, `StorageError`.
    """
    version = fresh()
    kept = json.dumps({"fingerprint": fingerprint, "version": version}).encode()
    try:
        objects.put_if(PREFIX + scope, kept, etag=None)
    except PreconditionError:
        return _kept_version(objects, PREFIX + scope, fingerprint)
    return version


def _kept_version(objects: Objects, name: str, fingerprint: str) -> int:
    try:
        kept = json.loads(objects.get(name).data)
        kept_fingerprint, version = kept["fingerprint"], int(kept["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(name, "holds no idempotency record: delete the object") from error
    if kept_fingerprint != fingerprint:
        raise ProblemError(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "this key was used for another request: take a new key, or resend that body",
            field="Idempotency-Key",
        )
    return version


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()
