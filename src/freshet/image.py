"""Row images of change-capture tools, read into the columns of a contract.

The contract's column says what a value must become, the source's schema (where it sends one) what
it is, and the mapping what neither says. Nothing is guessed where a wrong guess would pass as a
value: a number in base64 needs its scale, a count of time its unit. The contract still judges what
comes out.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, NamedTuple, TypeGuard

from freshet.contract import ColumnType, Contract, Day, Flag, Integer, Money, Real, Text, Timestamp
from freshet.errors import RejectedError
from freshet.event import DIGITS_MAX, Op, key_text
from freshet.mapping import ColumnRule, TableMapping, Unit, columns_of, constant_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_ZERO = date(1970, 1, 1).toordinal()
_MICROS_MIN = -62_135_596_800_000_000  # 0001-01-01
_MICROS_MAX = 253_402_300_799_999_999  # 9999-12-31T23:59:59.999999
_PER_SECOND: Mapping[str, int] = {
    "seconds": 1,
    "millis": 10**3,
    "micros": 10**6,
    "nanos": 10**9,
}
# PostgreSQL's infinite times as its driver and Debezium count them (PGStatement), in whatever unit.
_INFINITE = frozenset(
    (
        *(
            value // step
            for value in (9223372036825200000, -9223372036832400000)
            for step in (1, 1000)
        ),
        (1 << 63) - 1,
        -(1 << 63),
    )
)
_INFINITE_TEXTS = frozenset(("infinity", "+infinity", "-infinity"))
# A count in a wrong unit lands decades or millennia off, mostly within the first months of 1970.
_LIKELY_SECONDS = (365 * 86_400, 7_258_118_400)  # 1971 to 2200
# Contracts hold at most 38 digits; twice that is a mistake or a bomb.
_BASE64_MAX = 64
_SCALE_MAX = DIGITS_MAX
_AMPLE = Context(prec=DIGITS_MAX, Emax=999_999, Emin=-999_999)

_DIGITS = re.compile(
    r"[+-]?(?:[0-9]{1,80}(?:\.[0-9]{0,80})?|\.[0-9]{1,80})(?:[eE][+-]?[0-9]{1,3})?"
)
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_INSTANT = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2})(?::([0-9]{2})(?:\.([0-9]{1,9}))?)?"
    r" ?([Zz]|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
_DATE = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:[Zz]|[+-][0-9]{2}:[0-9]{2})?")
_FLAGS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


@dataclass(frozen=True, slots=True)
class Hint:
    """What a source's schema says of a column.

    `unit` is of a time or date, `time_unit` of a time of day; `digits` is true where numbers in
    texts are plain digits. `untyped`: there is no schema, and `default_unit` is what the source
    counts times in unless it is told otherwise: to be doubted.
    """

    unit: Unit | None = None
    time_unit: Unit | None = None
    scale: int | None = None
    digits: bool = False
    untyped: bool = False
    default_unit: Unit | None = None


NO_HINT = Hint()
TYPED = Hint(digits=True)


@dataclass(frozen=True, slots=True)
class Image:
    """The columns of one row image, and those whose value the source did not send."""

    values: dict[str, Any]
    held: frozenset[str] = frozenset()


class Stamp(NamedTuple):
    """What an event has beside its row."""

    version: int
    source: str
    occurred_at: datetime | None
    accepted_at: datetime


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that is meant to be no change of a row."""

    kind: str


@dataclass(frozen=True, slots=True)
class Truncated:
    """The end of all rows of a table that are older than its version."""

    table: str
    version: int
    event_id: str
    source: str
    occurred_at: datetime | None
    accepted_at: datetime


class Reading(NamedTuple):
    """What one record of another tool comes to: event bodies for `parse_event`, something that is
    no change, or the error. `table` is known as soon as the record names it.
    """

    table: str | None = None
    events: tuple[dict[str, Any], ...] = ()
    other: Skipped | Truncated | None = None
    error: RejectedError | None = None


Hints = Callable[[str], Hint]


def read_image(
    image: Mapping[str, Any],
    mapping: TableMapping,
    contract: type[Contract],
    hints: Hints,
    *,
    untouched: Callable[[Any], bool] = lambda _: False,
) -> Image:
    """The row of a source as JSON values and times by our columns.

    Values for which `untouched` holds are no values: the source left them out. Raises
    `RejectedError` naming the source's column.
    """
    columns = columns_of(contract)
    values = _constants(mapping, contract)
    held = set()
    for name, value in image.items():
        rule = mapping.rule(name, columns)
        if rule is None:
            continue
        if untouched(value):
            held.add(rule.column)
            continue
        if rule.column in values:
            detail = f"is {rule.column!r} under another name: name one of them under `ignore`"
            raise RejectedError("unknown_column", detail, field=f"after.{name}")
        values[rule.column] = _converted(name, value, columns[rule.column].type, rule, hints(name))
    return Image(values, frozenset(held))


def read_key(
    image: Mapping[str, Any], mapping: TableMapping, contract: type[Contract], hints: Hints
) -> dict[str, Any]:
    """The merge-key columns that an image holds; whatever else it holds is of no interest."""
    columns = columns_of(contract)
    constants = _constants(mapping, contract)
    key = {column: constants[column] for column in contract.key if column in constants}
    for name, value in image.items():
        rule = mapping.find(name, columns)
        if rule is not None and rule.column in contract.key and value is not None:
            key[rule.column] = _converted(
                name, value, columns[rule.column].type, rule, hints(name), image="key"
            )
    return key


def _constants(mapping: TableMapping, contract: type[Contract]) -> dict[str, Any]:
    return {
        column: constant_of(contract, column, text) for column, text in mapping.constants.items()
    }


def upsert(contract: type[Contract], op: Op, image: Image, stamp: Stamp) -> dict[str, Any] | None:
    """The event that makes a row what its image says; None where the image says nothing new.

    An image with columns held back becomes a patch of the others.
    """
    key = key_of(contract, image)
    body = {"op": op.value, "key": key, **_members(contract, key, stamp, op)}
    if not image.held:
        return {**body, "after": image.values}
    patch = {column: value for column, value in image.values.items() if column not in contract.key}
    return {**body, "op": Op.UPDATE.value, "patch": patch} if patch else None


def delete(contract: type[Contract], key: Mapping[str, Any], stamp: Stamp) -> dict[str, Any]:
    """The event that ends a row."""
    return {"op": Op.DELETE.value, "key": key, **_members(contract, key, stamp, Op.DELETE)}


def update(
    contract: type[Contract], old: Mapping[str, Any], image: Image, stamp: Stamp
) -> tuple[dict[str, Any], ...]:
    """The event of an update, or two where it changed the merge key: the end of the row `old`, and
    the new one.

    Raises `RejectedError` (partial_key_change) where the new row is not whole.
    """
    body = upsert(contract, Op.UPDATE, image, stamp)
    key = key_of(contract, image)
    was = contract.parse_key({**key, **old}) if old else key
    if not old or was == contract.parse_key(key):
        return (body,) if body else ()
    if image.held:
        detail = "changed, and the record does not hold the whole row: send full images"
        raise RejectedError("partial_key_change", detail, field="key")
    return (delete(contract, was, stamp), body) if body else ()


def key_of(contract: type[Contract], image: Image) -> dict[str, Any]:
    """The merge key of an image; raises `RejectedError` where a part was held back."""
    for column in contract.key:
        if column in image.held:
            detail = "was left out by the source; its key must be part of its replica identity"
            raise RejectedError("missing_key", detail, field=f"key.{column}")
    return {column: image.values.get(column) for column in contract.key}


def _members(
    contract: type[Contract], key: Mapping[str, Any], stamp: Stamp, op: Op
) -> dict[str, Any]:
    return {
        "table": contract.table,
        "version": stamp.version,
        "event_id": f"{contract.table}:{stamp.version}:{_digest(contract, key, op)}",
        "source": stamp.source,
        "occurred_at": stamp.occurred_at,
        "accepted_at": stamp.accepted_at,
    }


def _digest(contract: type[Contract], key: Mapping[str, Any], op: Op) -> str:
    """What tells events of one version apart. A key of personal data leaves no digest: one without
    a secret could be searched for.
    """
    columns = columns_of(contract)
    if any(columns[column].pii for column in contract.key):
        return op.value
    text = key_text(contract, contract.parse_key(key))
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# --- values ---------------------------------------------------------------------------------------


def _converted(
    name: str,
    value: Any,
    kind: ColumnType,
    rule: ColumnRule,
    hint: Hint,
    *,
    image: str = "after",
) -> Any:
    if value is None:
        return None
    try:
        return _READERS[type(kind)](value, rule, hint)
    except RejectedError as error:
        raise RejectedError(error.reason, error.detail, field=f"{image}.{name}") from None


def whole(value: Any) -> TypeGuard[int]:
    """True for a JSON whole number, which `true` is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any, rule: ColumnRule, hint: Hint) -> Any:
    if isinstance(value, str):
        return _text_of_text(value, rule, hint)
    if _is_variable(value):
        return format(_variable(value), "f")
    if whole(value) and (hint.unit or rule.unit or hint.time_unit):
        return _text_of_time(value, rule, hint)
    return _text_of_number(value) if rule.as_ == "text" else value


def _text_of_text(value: str, rule: ColumnRule, hint: Hint) -> str:
    if rule.encoding in ("base64", "hex"):
        return _text_of_bytes(value, rule.encoding)
    if hint.scale is not None or (rule.scale is not None and not hint.digits):
        return format(_decimal(value, rule, hint), "f")
    return value


def _text_of_time(value: int, rule: ColumnRule, hint: Hint) -> str:
    if hint.time_unit:
        return _clock(value, hint.time_unit)
    unit = hint.unit or rule.unit or ""
    if unit == "days":
        return _day_of(value).isoformat()
    return _instant(value, unit, rule).isoformat().replace("+00:00", "Z")


def _text_of_number(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        if abs(value.adjusted()) > DIGITS_MAX:
            raise RejectedError("out_of_range", "is a number out of range")
        return format(value, "f")
    return value


def _text_of_bytes(value: str, encoding: str) -> str:
    try:
        if encoding == "hex":
            raw = bytes.fromhex(value.removeprefix("0x").removeprefix("\\x"))
        else:
            raw = base64.b64decode(value, validate=True)
        return raw.decode("utf-8")
    except (binascii.Error, ValueError):
        detail = f"is not UTF-8 text written as {encoding}"
        raise RejectedError("invalid_value", detail) from None


def _integer(value: Any, rule: ColumnRule, hint: Hint) -> Any:
    if whole(value):
        return value
    number = _decimal(value, rule, hint)
    if isinstance(number, Decimal) and number.is_finite() and number.adjusted() < 40:
        exact = number.to_integral_value(context=_AMPLE)
        return int(exact) if exact == number else number
    return number


def _money(value: Any, rule: ColumnRule, hint: Hint) -> Any:
    return _decimal(value, rule, hint)


def _decimal(value: Any, rule: ColumnRule, hint: Hint) -> Any:
    """A number in any of the forms that sources write; what is none of them stays as it is."""
    if _is_variable(value):
        return _variable(value)
    if not isinstance(value, str):
        return value
    if rule.encoding == "digits" or hint.digits:
        return _digits(value)
    scale = rule.scale if hint.scale is None else hint.scale
    if scale is not None:
        return _unscaled(value, scale)
    if value and _BASE64.fullmatch(value):
        detail = (
            "may be a number in base64, whose decimals only a schema or a mapping tells: send "
            "schemas, or set `scale`, or `encoding: digits` where it is the number itself"
        )
        raise RejectedError("unknown_scale", detail)
    return _digits(value)


def _digits(value: str) -> Decimal:
    if not _DIGITS.fullmatch(value):
        raise RejectedError("invalid_value", "must be a finite number or a string of digits")
    return Decimal(value)


def _unscaled(value: str, scale: int) -> Decimal:
    """The number whose digits are the big-endian two's complement of these bytes (BigDecimal)."""
    if len(value) > _BASE64_MAX or abs(scale) > _SCALE_MAX:
        raise RejectedError("out_of_range", "has more digits than any column holds")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise RejectedError("invalid_value", "must be a number in base64") from None
    if not raw:
        raise RejectedError("invalid_value", "must be a number in base64, and is empty")
    return Decimal(int.from_bytes(raw, "big", signed=True)).scaleb(-scale, _AMPLE)


def _is_variable(value: Any) -> bool:
    """Debezium's VariableScaleDecimal, of columns that declare no scale."""
    return isinstance(value, dict) and value.keys() == {"scale", "value"}


def _variable(value: Mapping[str, Any]) -> Decimal:
    if not whole(value["scale"]) or not isinstance(value["value"], str):
        raise RejectedError("wrong_type", "must be a scale and a number in base64")
    return _unscaled(value["value"], value["scale"])


def _timestamp(value: Any, rule: ColumnRule, hint: Hint) -> Any:
    if isinstance(value, str):
        return instant_of_text(value, cut=rule.round == "down")
    if not whole(value) or hint.unit == "days" or hint.time_unit:
        return value
    unit = hint.unit or rule.unit or _likely(value, hint.default_unit)
    return _instant(value, unit, rule)


def _likely(value: int, unit: Unit | None) -> str:
    """The unit a source uses by default, unless the value makes sense in another one only."""
    low, high = _LIKELY_SECONDS
    likely = {name for name, per in _PER_SECOND.items() if low <= value // per <= high}
    if unit is None or (likely and unit not in likely):
        guess = f" It looks like {min(likely)}." if likely else ""
        detail = f"is a time in an unknown unit: send schemas or set `unit` in the mapping.{guess}"
        raise RejectedError("unknown_unit", detail)
    return unit


def _instant(value: int, unit: str, rule: ColumnRule) -> datetime:
    _check_finite(value)
    micros, rest = divmod(value * 10**6, _PER_SECOND[unit]) if unit in _PER_SECOND else (0, 1)
    if rest and rule.round != "down":
        raise RejectedError("out_of_range", _TOO_FINE)
    if not _MICROS_MIN <= micros <= _MICROS_MAX:
        raise RejectedError("out_of_range", "is not a date that exists")
    return _EPOCH + timedelta(microseconds=micros)


_TOO_FINE = "is finer than a microsecond: set `round: down` in the mapping to cut it"


def _check_finite(value: int) -> None:
    if value in _INFINITE:
        raise _infinite()


def _infinite() -> RejectedError:
    return RejectedError("infinite_time", "is an infinite time, which no table of the lake holds")


def instant_of_text(value: str, *, cut: bool = False) -> datetime:
    """The instant in UTC that an ISO text names; without a zone it is UTC, as both tools mean it.

    Raises `RejectedError`: infinite_time, invalid_value, or out_of_range for what is no date or
    finer than a microsecond (unless `cut`).
    """
    if value.lower() in _INFINITE_TEXTS:
        raise _infinite()
    found = _INSTANT.fullmatch(value)
    if not found:
        raise RejectedError("invalid_value", "must be a time as 2026-11-21T08:30:00Z")
    day, minute, second, fraction, zone = found.groups()
    if (fraction or "")[6:].strip("0") and not cut:
        raise RejectedError("out_of_range", _TOO_FINE)
    text = f"{day}T{minute}:{second or '00'}.{(fraction or '')[:6]:0<6}{(zone or 'Z').upper()}"
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RejectedError("out_of_range", "is not a date that exists") from None


def _day(value: Any, rule: ColumnRule, hint: Hint) -> Any:
    if isinstance(value, str):
        return _day_of_text(value)
    unit = hint.unit or rule.unit or ("days" if hint.untyped else None)
    if not whole(value) or unit is None:
        return value
    if unit == "days":
        return _day_of(value)
    return _midnight(_instant(value, unit, rule))


def _day_of(value: int) -> date:
    _check_finite(value)
    if value in ((1 << 31) - 1, -(1 << 31)):
        raise _infinite()
    if not 1 <= value + _DAY_ZERO <= date.max.toordinal():
        raise RejectedError("out_of_range", "is not a date that exists")
    return date.fromordinal(value + _DAY_ZERO)


def _day_of_text(value: str) -> Any:
    found = _DATE.fullmatch(value)
    if found:
        return found[1]  # the contract says whether it exists
    return _midnight(instant_of_text(value))


def _midnight(instant: datetime) -> date:
    if (instant.hour, instant.minute, instant.second, instant.microsecond) != (0, 0, 0, 0):
        raise RejectedError("invalid_value", "is a time and not a date")
    return instant.date()


def _clock(value: int, unit: str) -> str:
    """A time of day as text, `08:26:00` with as many decimals as it needs.

    MySQL's TIME is a span of up to 838 hours, also a negative one.
    """
    seconds, rest = divmod(abs(value), _PER_SECOND[unit])
    if seconds >= 1000 * 3600:
        raise RejectedError("out_of_range", "is not a time of day")
    sign = "-" if value < 0 else ""
    clock = f"{sign}{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    digits = len(str(_PER_SECOND[unit])) - 1
    fraction = f"{rest:0{digits}d}".rstrip("0") if rest else ""
    return f"{clock}.{fraction}" if fraction else clock


def _flag(value: Any, rule: ColumnRule, hint: Hint) -> Any:  # noqa: ARG001 - one shape for all
    if isinstance(value, str):
        return _FLAGS.get(value.lower(), value) if len(value) <= 5 else value
    if whole(value) and value in (0, 1):
        return bool(value)
    return value


_READERS: Mapping[type[ColumnType], Callable[[Any, ColumnRule, Hint], Any]] = {
    Text: _text,
    Integer: _integer,
    Money: _money,
    Real: _money,
    Timestamp: _timestamp,
    Day: _day,
    Flag: _flag,
}
