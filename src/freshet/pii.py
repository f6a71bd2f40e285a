"""Personal data, made unreadable before it reaches the stream. Pure.

A column that its contract declares `Pii("hash")` leaves here as a keyed hash: equal values have
equal hashes in every table, so rows still join and count, and nobody without the deployment's key
can tell or guess whose they are. A `Pii("drop")` column leaves empty. What has been hashed is not
hashed again, so every boundary may apply this: producer and poller before they publish, the
consumer to what other tools put into the stream.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from freshet.contract import Contract, Registry, Row
from freshet.errors import SettingsError
from freshet.event import ChangeEvent
from freshet.stream import ChangeStream, PublishReport

# The environment variable that names the secret with the key.
KEY_SETTING = "PII_SECRET_ARN"
# The strength of HMAC-SHA-256 is its key's, up to 32 bytes (RFC 2104, section 3).
KEY_BYTES_MIN = 32
# 160 bits of the 256: no two of 2^60 values will share them, and the text stays at 45 characters.
_HEX_DIGITS = 40
_PREFIX = "hmac:"
_HASHED = re.compile(rf"{_PREFIX}[0-9a-f]{{{_HEX_DIGITS}}}")


@dataclass(frozen=True, slots=True)
class _Handling:
    """The columns of one table that hold personal data, by what becomes of them."""

    hashed: frozenset[str]
    dropped: frozenset[str]
    declared: frozenset[str]


Key = bytes | Callable[[], bytes]


class Protector:
    """Hashes and drops the personal data of declared tables with one key.

    `key` has at least 32 bytes, or gives such a key when the first value is hashed; None is for
    tables that hash nothing. Raises `SettingsError` naming `PII_SECRET_ARN` where a table hashes
    and there is no key. Holds the key in memory and shows it nowhere. Safe for threads.
    """

    __slots__ = ("_key", "_read", "_tables")

    def __init__(self, key: Key | None, tables: Registry | Iterable[type[Contract]]) -> None:
        contracts = tuple(tables)
        if key is None:
            _refuse_hashing(contracts)
        self._key = _checked(key) if isinstance(key, bytes) else b""
        self._read = key if callable(key) else None
        self._tables = {
            contract.table: handling
            for contract in contracts
            if (handling := _handling_of(contract)) is not None
        }

    @classmethod
    def none(cls, tables: Registry | Iterable[type[Contract]]) -> Protector:
        """Without a key: drops what is to be dropped. Raises `SettingsError` where a table
        hashes.
        """
        return cls(None, tables)

    def __call__(self, event: ChangeEvent) -> ChangeEvent:
        """As `event`."""
        return self.event(event)

    def event(self, event: ChangeEvent) -> ChangeEvent:
        """The event without personal data in key, rows and hint; itself where its table has none.

        `before` is reduced to declared columns: what else a source wrote there nobody declared.
        """
        handling = self._tables.get(event.table)
        if handling is None:
            return event
        return replace(
            event,
            key=self._protected(event.key, handling),
            after=self._optional(event.after, handling),
            patch=self._optional(event.patch, handling),
            before=self._hint(event.before, handling),
        )

    def row(self, contract: type[Contract], row: Mapping[str, Any]) -> Row:
        """A row, some of its columns, or its key, without personal data."""
        handling = self._tables.get(contract.table)
        return dict(row) if handling is None else self._protected(row, handling)

    def key_of(self, contract: type[Contract], key: Mapping[str, Any]) -> Row:
        """The key under which the lake has the row that somebody names by its raw key."""
        return self.row(contract, key)

    def value(self, contract: type[Contract], column: str, value: Any) -> Any:
        """The value under which the lake has a raw value of a column; None where it is dropped."""
        return self.row(contract, {column: value})[column]

    def hashed(self, value: str) -> str:
        """`hmac:` and 40 hexadecimal digits; a value that has this form is one already."""
        if _HASHED.fullmatch(value):
            return value
        if not self._key:
            if self._read is None:
                raise SettingsError(KEY_SETTING, "is not set, and a value is to be hashed")
            self._key = _checked(self._read())
        # A lone surrogate is no valid text, but `before` is a hint that nobody validates.
        digest = hmac.digest(self._key, value.encode("utf-8", "surrogatepass"), "sha256")
        return _PREFIX + digest.hex()[:_HEX_DIGITS]

    def blinded(self, table: str, digest: str) -> str:
        """A digest of something that names a row of `table`: keyed where the table hashes, so that
        nobody finds the row by digesting guesses.
        """
        handling = self._tables.get(table)
        return self.hashed(digest) if handling is not None and handling.hashed else digest

    def _optional(self, row: Row | None, handling: _Handling) -> Row | None:
        return None if row is None else self._protected(row, handling)

    def _hint(self, before: Mapping[str, Any] | None, handling: _Handling) -> Row | None:
        if before is None:
            return None
        known = {name: value for name, value in before.items() if name in handling.declared}
        return self._protected(known, handling)

    def _protected(self, row: Mapping[str, Any], handling: _Handling) -> Row:
        made = dict(row)
        for column in handling.hashed:
            if column in made:
                value = made[column]
                # Only texts are declared `hash`; anything else in a hint could match no row anyway.
                made[column] = self.hashed(value) if isinstance(value, str) else None
        for column in handling.dropped:
            if column in made:
                made[column] = None
        return made


@dataclass(frozen=True, slots=True)
class ProtectedStream:
    """A `ChangeStream` that takes no personal data, whoever publishes to it: also what was
    remembered of a row before its column was declared personal.
    """

    stream: ChangeStream
    protector: Protector

    def publish(self, events: Sequence[ChangeEvent]) -> PublishReport:
        """See `ChangeStream.publish`."""
        return self.stream.publish([self.protector.event(event) for event in events])


def hashing_tables(tables: Registry | Iterable[type[Contract]]) -> tuple[str, ...]:
    """The names of the tables that hash a column, and so need a key."""
    return tuple(
        contract.table
        for contract in tables
        if any(column.pii == "hash" for column in contract.columns)
    )


def _checked(key: bytes) -> bytes:
    if len(key) < KEY_BYTES_MIN:
        detail = f"its secret holds fewer than {KEY_BYTES_MIN} characters: too weak a key"
        raise SettingsError(KEY_SETTING, detail)
    return key


def _refuse_hashing(contracts: Iterable[type[Contract]]) -> None:
    names = hashing_tables(contracts)
    if names:
        detail = f"is not set, and columns of {', '.join(names)} are hashed with the key it names"
        raise SettingsError(KEY_SETTING, detail)


def _handling_of(contract: type[Contract]) -> _Handling | None:
    named = {
        kind: frozenset(column.name for column in contract.columns if column.pii == kind)
        for kind in ("hash", "drop")
    }
    if not any(named.values()):
        return None
    declared = frozenset(column.name for column in contract.columns)
    return _Handling(named["hash"], named["drop"], declared)
