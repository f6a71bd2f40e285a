"""The change event: one row's change with the metadata that decides whether it wins.

`parse_event` is the only way from untrusted JSON to a `ChangeEvent`; producer, poller and consumer
all use it, so an event that one of them accepts is an event the others understand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import quote, unquote

from pydantic_core import PydanticCustomError

from freshet.clock import micros
from freshet.contract import Contract, Registry, Row, parse_timestamp
from freshet.errors import RejectedError, UnknownTableError

VERSION_MAX = (1 << 63) - 1  # Iceberg long, Kinesis consumers in any language
TEXT_MAX = 256  # event_id and source: room for any id, none for a payload
BEFORE_DEPTH_MAX = 16  # rows are flat; a JSON column in them may nest, not without end
DIGITS_MAX = 400  # beyond a double's 309: written out, 1E+999999999 would fill the memory


# A clock that far ahead is wrong, and its version would win over every change until then.
FUTURE_MAX = timedelta(hours=24)
# Versions are opaque, but one in this range can only be microseconds: from September 2001 to the
# last instant a datetime holds. Log positions lie below, nanoseconds above.
_MICROS_MIN, _MICROS_MAX = 10**15, micros(datetime.fromisoformat("9999-12-31T23:59:59+00:00"))


class Op(StrEnum):
    """What happened to the row, in Debezium's letters."""

    CREATE = "c"
    UPDATE = "u"
    DELETE = "d"
    READ = "r"


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One row's change: `after` is the full valid row, or `patch` some of its columns; a delete has
    neither.

    `before` is a hint only (JSON values as they came): it never decides who wins.
    `version` is positive; greater is newer. Times are aware UTC.
    """

    table: str
    op: Op
    key: Row
    version: int
    after: Row | None
    before: Mapping[str, Any] | None
    event_id: str
    source: str
    occurred_at: datetime | None
    accepted_at: datetime
    patch: Row | None = None

    @property
    def is_delete(self) -> bool:
        """True for the end of a row."""
        return self.op is Op.DELETE

    def to_json(self) -> dict[str, Any]:
        """The event as JSON values; `parse_event` reads exactly this back."""
        body: dict[str, Any] = {
            "table": self.table,
            "op": self.op.value,
            "key": json_row(self.key),
            "version": self.version,
            "event_id": self.event_id,
            "source": self.source,
            "accepted_at": json_value(self.accepted_at),
        }
        if self.after is not None:
            body["after"] = json_row(self.after)
        if self.patch is not None:
            body["patch"] = json_row(self.patch)
        if self.before is not None:
            body["before"] = json_row(self.before)
        if self.occurred_at is not None:
            body["occurred_at"] = json_value(self.occurred_at)
        return body


def json_value(value: Any) -> Any:
    """A column's value in its one JSON form: decimals as digits, instants in UTC with a Z."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    return value


def json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with every value in its JSON form."""
    return {column: json_value(value) for column, value in row.items()}


def key_text(contract: type[Contract], key: Mapping[str, Any]) -> str:
    """The key as one canonical text, `USD,2026-09-30`: same row, same text; also the path of a
    row's URL.
    """
    return ",".join(quote(str(json_value(key[column])), safe=" :") for column in contract.key)


def parse_key_text(contract: type[Contract], text: str) -> Row:
    """The key that `key_text` wrote. Raises `RejectedError` (missing_key) when parts do not fit."""
    parts = [unquote(part) for part in text.split(",")]
    if len(parts) != len(contract.key):
        raise RejectedError(
            "missing_key",
            f"needs {len(contract.key)} part(s): {','.join(contract.key)}",
            field="key",
        )
    return contract.parse_key(
        {
            column: contract.value_of_text(column, part)
            for column, part in zip(contract.key, parts, strict=True)
        }
    )


def lane_of(table: str, key: str, lanes: int) -> int:
    """The lane of a row, 0 ≤ lane < lanes: changes of one row share it, and so a shard."""
    digest = hashlib.blake2b(f"{table}\x1f{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % lanes


_OPS = frozenset(op.value for op in Op)
_MEMBERS = frozenset(
    (
        "table",
        "op",
        "key",
        "version",
        "after",
        "patch",
        "before",
        "event_id",
        "source",
        "occurred_at",
        "accepted_at",
    )
)


def parse_event(
    body: object,
    tables: Registry,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> ChangeEvent:
    """The change event that a decoded JSON object describes.

    `defaults` fill members the object does not carry (the producer stamps version, event_id, source
    and accepted_at this way). Raises `RejectedError` with reason and field.
    """
    if not isinstance(body, Mapping):
        raise RejectedError("wrong_type", "an event must be a JSON object")
    unknown = body.keys() - _MEMBERS
    if unknown:
        raise RejectedError(
            "unknown_member", "is not a member of an event", field=min(map(str, unknown))
        )
    members = {
        **(defaults or {}),
        **{name: value for name, value in body.items() if value is not None},
    }
    contract = _contract(members, tables)
    operation = _op(members)
    patch = _patch(members, operation, contract)
    after = None if patch is not None else _after(members, operation, contract)
    source = _text(members, "source")
    check_trusted(source, contract)
    return ChangeEvent(
        table=contract.table,
        op=operation,
        key=_key(members, after, contract),
        version=_version(members),
        after=after,
        before=_before(members),
        event_id=_text(members, "event_id"),
        source=source,
        occurred_at=_instant(members, "occurred_at"),
        accepted_at=_instant(members, "accepted_at") or _missing("accepted_at"),
        patch=patch,
    )


def check_trusted(source: str, contract: type[Contract]) -> None:
    """Refuse a source that the table does not trust: versions of two sources do not compare.

    Raises `RejectedError` (untrusted_source).
    """
    if not any(fnmatchcase(source, pattern) for pattern in contract.trusts):
        detail = f"table {contract.table!r} takes versions of {', '.join(contract.trusts)} only"
        raise RejectedError("untrusted_source", detail, field="source")


def _missing(field: str) -> Any:
    raise RejectedError("missing_member", "is required", field=field)


def _contract(members: Mapping[str, Any], tables: Registry) -> type[Contract]:
    table = members.get("table") or _missing("table")
    if not isinstance(table, str):
        raise RejectedError("wrong_type", "must be a text", field="table")
    try:
        return tables[table]
    except UnknownTableError as error:
        raise RejectedError("unknown_table", str(error), field="table") from None


def _op(members: Mapping[str, Any]) -> Op:
    op = members.get("op") or _missing("op")
    # `Op(op)` would write any value into its own error message, also one nested beyond writing.
    if not isinstance(op, str) or op not in _OPS:
        raise RejectedError("invalid_value", "must be one of c, u, d, r", field="op")
    return Op(op)


def _patch(members: Mapping[str, Any], op: Op, contract: type[Contract]) -> Row | None:
    patch = members.get("patch")
    if patch is None:
        return None
    if op is not Op.UPDATE:
        raise RejectedError("invalid_value", "belongs to an update, op u", field="patch")
    if members.get("after") is not None:
        raise RejectedError("invalid_value", "must be absent where after is there", field="patch")
    try:
        return contract.parse_patch(patch)
    except RejectedError as error:
        field = f"patch.{error.field}" if error.field else "patch"
        raise RejectedError(error.reason, error.detail, field=field) from None


def _after(members: Mapping[str, Any], op: Op, contract: type[Contract]) -> Row | None:
    after = members.get("after")
    if op is Op.DELETE:
        if after is not None:
            raise RejectedError("invalid_value", "must be absent in a delete", field="after")
        return None
    if not isinstance(after, Mapping):
        raise RejectedError("missing_member", "must hold the full row", field="after")
    try:
        return contract.parse(after)
    except RejectedError as error:
        field = f"after.{error.field}" if error.field else "after"
        raise RejectedError(error.reason, error.detail, field=field) from None


def _key(members: Mapping[str, Any], after: Row | None, contract: type[Contract]) -> Row:
    """The merge key: given, or taken from `after`; where both are there they must agree."""
    from_row = None if after is None else {column: after[column] for column in contract.key}
    if "key" not in members and from_row is not None:
        return from_row
    key = contract.parse_key(members.get("key") or _missing("key"))
    if from_row is not None and key != from_row:
        raise RejectedError("key_mismatch", "differs from the key columns of after", field="key")
    return key


def _before(members: Mapping[str, Any]) -> Mapping[str, Any] | None:
    before = members.get("before")
    if before is None:
        return None
    if not isinstance(before, Mapping):
        raise RejectedError("wrong_type", "must be an object", field="before")
    _check_hint(before, BEFORE_DEPTH_MAX)
    return before


def _check_hint(value: object, depth: int) -> None:
    """No contract covers `before`; still it must be text that UTF-8, and numbers that memory, can
    hold.
    """
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise RejectedError("invalid_text", "holds a lone surrogate", field="before")
    elif isinstance(value, Decimal):
        if not value.is_finite() or abs(value.adjusted()) > DIGITS_MAX:
            raise RejectedError("out_of_range", "holds a number out of range", field="before")
    elif isinstance(value, Mapping | list):
        if not depth:
            raise RejectedError("too_deep", "is nested too deeply", field="before")
        parts = [*value, *value.values()] if isinstance(value, Mapping) else value
        for part in parts:
            _check_hint(part, depth - 1)


def _version(members: Mapping[str, Any]) -> int:
    version = members.get("version")
    if version is None:
        _missing("version")
    if not isinstance(version, int) or isinstance(version, bool):
        raise RejectedError("wrong_type", "must be a whole number", field="version")
    if not 0 < version <= VERSION_MAX:
        raise RejectedError("out_of_range", "must be between 1 and 2^63-1", field="version")
    return version


def _text(members: Mapping[str, Any], field: str) -> str:
    value = members.get(field)
    if value is None:
        _missing(field)
    if not isinstance(value, str):
        raise RejectedError("wrong_type", "must be a text", field=field)
    if not 0 < len(value) <= TEXT_MAX:
        raise RejectedError("too_long", f"must have 1 to {TEXT_MAX} characters", field=field)
    if not value.isprintable():
        raise RejectedError("invalid_text", "must be printable text", field=field)
    return value


def _instant(members: Mapping[str, Any], field: str) -> datetime | None:
    value = members.get(field)
    if value is None:
        return None
    try:
        return parse_timestamp(value)
    except PydanticCustomError as error:
        raise RejectedError(error.type, error.message(), field=field) from None


def check_future(version: int, now: datetime) -> None:
    """Refuse a version that can only be microseconds and lies more than a day after `now`.

    Raises `RejectedError` (future_version).
    """
    if _MICROS_MIN < version < _MICROS_MAX and version > micros(now + FUTURE_MAX):
        raise RejectedError(
            "future_version",
            "is more than 24 hours ahead and would block the row until then: check the clock",
            field="version",
        )
