"""What a log-in leaves behind between polls: a rotated refresh token, above all.

A server that rotates refresh tokens takes each only once. So the new one is written before the
access token that came with it is used, and only one poll at a time may exchange: it writes that it
is about to (`renewing_until`), conditionally, and any other waits for what it gets. The object lies
in the state bucket, encrypted at rest with the stack's key, under the name of the credentials: all
sources that share them share the tokens.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import zstandard
from pydantic import AwareDatetime, BaseModel, ConfigDict, SecretStr, ValidationError

from freshet.objects import ObjectMissingError, Objects, PreconditionError

# A few JWTs of 2 KB; what unpacks to more is not ours.
TOKENS_BYTES_MAX = 256 * 1024


class KeptTokens(BaseModel):
    """What is kept; `seed` is a digest that says from which credentials it grew.

    Times are aware UTC of our clock. `renewing_until` says that a poll is renewing at the moment.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    format: int = 1
    seed: str
    refresh_token: SecretStr | None = None
    access_token: SecretStr | None = None
    ends_at: AwareDatetime | None = None
    renewing_until: AwareDatetime | None = None
    signed_up: bool = False


class TokenStore(Protocol):
    """Keeps the tokens of one set of credentials."""

    def load(self) -> tuple[KeptTokens | None, str | None]:
        """The tokens and their ETag; None where nothing usable is kept. Raises `StorageError`."""
        ...

    def save(self, kept: KeptTokens, *, etag: str | None) -> str:
        """Write over what has this ETag (None: over nothing); returns the new ETag.

        Raises `PreconditionError` when another poll wrote since, `StorageError`.
        """
        ...


@dataclass(frozen=True, slots=True)
class ObjectTokens:
    """Tokens as the object `pollers/credentials/<reference>/tokens.json.zst`."""

    objects: Objects
    reference: str

    def load(self) -> tuple[KeptTokens | None, str | None]:
        """See `TokenStore.load`."""
        try:
            stored = self.objects.get(tokens_key(self.reference))
        except ObjectMissingError:
            return None, None
        return _decoded(stored.data), stored.etag

    def save(self, kept: KeptTokens, *, etag: str | None) -> str:
        """See `TokenStore.save`."""
        body = {name: _plain(value) for name, value in kept}
        data = zstandard.ZstdCompressor().compress(json.dumps(body).encode())
        return self.objects.put_if(tokens_key(self.reference), data, etag=etag)


class MemoryTokens:
    """Tokens that die with the process."""

    def __init__(self) -> None:
        self._kept: KeptTokens | None = None
        self._writes = 0

    def load(self) -> tuple[KeptTokens | None, str | None]:
        """See `TokenStore.load`."""
        return self._kept, str(self._writes) if self._writes else None

    def save(self, kept: KeptTokens, *, etag: str | None) -> str:
        """See `TokenStore.save`."""
        if etag != self.load()[1]:
            raise PreconditionError("tokens in memory")
        self._kept, self._writes = kept, self._writes + 1
        return str(self._writes)


def tokens_key(reference: str) -> str:
    """The key of the tokens object of these credentials."""
    return f"pollers/credentials/{reference}/tokens.json.zst"


def _plain(value: object) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value.isoformat() if isinstance(value, datetime) else value


def _decoded(data: bytes) -> KeptTokens | None:
    """None for what cannot be read: the credentials are the way back, and they are at hand."""
    try:
        text = zstandard.ZstdDecompressor().stream_reader(data).read(TOKENS_BYTES_MAX)
        return KeptTokens.model_validate_json(text)
    except (zstandard.ZstdError, ValidationError):
        return None
