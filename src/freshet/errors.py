"""The error tree: each error Freshet raises belongs to exactly one of two families.

FreshetError
├── TerminalError            no retry can help: quarantine, or tell the caller
│   ├── RejectedError        a record or event that is not what its contract says
│   ├── UnknownTableError    a table nobody declared
│   ├── SchemaChangeError    a contract change the lake cannot take
│   └── SettingsError        a setting is missing or wrong
└── TransientError           the same input may succeed later: redeliver
    ├── ConflictError        another writer won every round of a commit
    ├── StreamUnavailableError  the stream throttled or did not answer
    └── StorageError         the object store or catalog did not answer
"""

from __future__ import annotations

QUOTED_MAX = 300  # characters: a sentence and a column path fit, a payload does not


class FreshetError(Exception):
    """Base of every error that Freshet raises on purpose."""


class TerminalError(FreshetError):
    """No retry can make this succeed."""


class TransientError(FreshetError):
    """The same input may succeed later; the stream redelivers it."""


class RejectedError(TerminalError):
    """A record or event that cannot be taken.

    `reason` is a stable code (listed in docs/architecture.md), `field` the path of the culprit or
    None, `detail` one sentence for a person.
    """

    def __init__(self, reason: str, detail: str, *, field: str | None = None) -> None:
        self.reason, self.detail = reason, _quotable(detail)
        self.field = None if field is None else _quotable(field)
        super().__init__(": ".join(part for part in (reason, self.field, self.detail) if part))


def _quotable(text: str) -> str:
    """Text that came from outside, made fit for logs and answers: valid Unicode and short."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return safe if len(safe) <= QUOTED_MAX else safe[:QUOTED_MAX] + "…"


class UnknownTableError(TerminalError):
    """A table that no contract declares."""

    def __init__(self, table: str, known: tuple[str, ...]) -> None:
        self.table, self.known = table, known
        super().__init__(f"unknown table {table!r}; declared tables: {', '.join(known)}")


class SchemaChangeError(TerminalError):
    """A contract differs from the lake's table in a way that cannot be applied."""

    def __init__(self, table: str, column: str, detail: str) -> None:
        self.table, self.column, self.detail = table, column, detail
        super().__init__(f"table {table!r}, column {column!r}: {detail}")


class SettingsError(TerminalError):
    """A setting is missing or has a value that cannot be used."""

    def __init__(self, name: str, detail: str) -> None:
        self.name, self.detail = name, detail
        super().__init__(f"setting {name}: {detail}")


class ConflictError(TransientError):
    """Other writers won every round of a commit."""

    def __init__(self, table: str, attempts: int) -> None:
        self.table, self.attempts = table, attempts
        super().__init__(f"table {table!r}: {attempts} commit attempts lost to other writers")


class StreamUnavailableError(TransientError):
    """The stream throttled or did not answer within the retries."""

    def __init__(self, stream: str, detail: str) -> None:
        self.stream, self.detail = stream, detail
        super().__init__(f"stream {stream!r}: {detail}")


class StorageError(TransientError):
    """The object store or the catalog did not answer within the retries."""

    def __init__(self, place: str, detail: str) -> None:
        self.place, self.detail = place, detail
        super().__init__(f"{place}: {detail}")
