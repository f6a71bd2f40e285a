"""From the body of an answer to rows of a contract. Pure.

A body is decoded whole or not at all: a cut-off answer that could pass for a shorter one is
refused. Its records are then mapped one by one, and one that does not fit its contract is told by
key, reason and column while its neighbours go on. No value is coerced unless its column's mapping
says how.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from api_poller.changes import Skipped
from api_poller.declaration import ColumnMapping, SourceDeclaration, template_paths
from freshet.contract import Contract, Day, Row
from freshet.errors import RejectedError
from freshet.event import key_text
from freshet.pii import Protector

JsonObject = Mapping[str, Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NUMBER = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?")
_WHOLE = re.compile(r"-?[0-9]{1,19}")
# The year 9999 in microseconds has 18; written out, 1E+999999999 would fill the memory.
_MICROS_DIGITS_MAX = 20
# fromisoformat would drop what is finer than microseconds.
_TOO_FINE = re.compile(r"[.,]\d{7}")


class MalformedError(ValueError):
    """A body that is not what was declared; the listing names source and address with it."""

    def __init__(self, detail: str, advice: str) -> None:
        self.detail, self.advice = detail, advice
        super().__init__(f"{detail}; {advice}")


@dataclass(frozen=True, slots=True)
class Record:
    """What becomes a row: `around` are the records it is part of, the nearest first; `position`
    is its place among its neighbours from 1; `parent` is the value it was listed for.
    """

    value: Any
    around: tuple[Any, ...] = ()
    position: int = 1
    parent: str | None = None


@dataclass(frozen=True, slots=True)
class Mapped:
    """A record after mapping: a row, a deleted key, skipped, or passed over (none of them)."""

    key: str | None = None
    row: Row | None = None
    deleted: bool = False
    skipped: Skipped | None = None


# --- decoding -------------------------------------------------------------------------------------


def decode(body: bytes, declaration: SourceDeclaration) -> Any:
    """The document that a body holds; CSV and JSON lines are lists of objects.

    Raises `MalformedError`.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not(declaration.format, error) from None
    match declaration.format:
        case "json":
            return _json(text, "JSON")
        case "json_lines":
            return [_json(line, "JSON lines") for line in text.split("\n") if line.strip()]
        case "csv":
            return _csv(text, declaration)


_NAMES = {"json": "JSON", "json_lines": "JSON lines", "csv": "CSV"}


def _not(format_: str, error: Exception) -> MalformedError:
    return MalformedError(
        f"answers what is not {_NAMES.get(format_, format_)} ({error})",
        "open the address in a browser: the answer may be cut off or an error page",
    )


def _json(text: str, format_: str) -> Any:
    """JSON with exact decimals."""
    try:
        return json.loads(text, parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise _not(format_, error) from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def _csv(text: str, declaration: SourceDeclaration) -> list[dict[str, str]]:
    """The rows of a CSV file by column name."""
    rows: list[dict[str, str]] = []
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=declaration.delimiter, strict=True)
    try:
        header = next(lines, [])
        _check_header(header, text, declaration)
        for line in lines:
            if line and len(line) != len(header):
                raise MalformedError(
                    "answers CSV whose rows differ in length", "it may be cut off: poll again"
                )
            if line:
                rows.append(dict(zip(header, line, strict=True)))
    except csv.Error as error:
        raise _not("csv", error) from None
    return rows


def _check_header(header: Sequence[str], text: str, declaration: SourceDeclaration) -> None:
    """Every mapped column is there, and the end of the file is not the end of a mapped value:
    with the rate in the last column, 1.1355 could end as 1.1.
    """
    if not header:
        return
    used = {path for mapping in declaration.columns.values() for path in _member_paths(mapping)}
    for name in sorted(used):
        if name not in header:
            raise MalformedError(
                f"answers CSV without column {name}", "correct `columns` in the declaration"
            )
    if len(set(header)) != len(header):
        raise MalformedError("answers CSV with two columns of one name", "report it to the source")
    if header[-1] in used and not text.endswith("\n"):
        raise MalformedError("answers CSV whose last value may be cut off", "poll again")


def _member_paths(mapping: ColumnMapping) -> list[str]:
    """Paths into the record itself."""
    return [
        path for path in mapping.paths if path not in ("#", "@parent") and not path.startswith("^")
    ]


# --- records --------------------------------------------------------------------------------------


def value_at(value: Any, path: str) -> Any:
    """The member of a decoded value that a path names; None where there is none.

    A member whose name is the whole rest of the path goes first: `@odata.nextLink` is one name.
    """
    while path:
        if isinstance(value, Mapping):
            if path in value:
                return value[path]
            step, _, path = path.partition(".")
            value = value.get(step)
        elif isinstance(value, list):
            step, _, path = path.partition(".")
            at = int(step) if step.isdecimal() and len(step) < 9 else len(value)
            value = value[at] if at < len(value) else None
        else:
            return None
    return value


class RecordsPath:
    """Where the records of a document are: `products`, `data.items`, `carts.*.products`.

    What stands before the first star is the list that pages are made of, its members are `items`.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        parts = [part.strip(".") for part in path.split("*")]
        self._items, self._inner = parts[0], parts[1:]

    def items(self, document: Any) -> list[JsonObject]:
        """The members of the list that pages are made of. Raises `MalformedError`."""
        found = [document] if self._path == "." else value_at(document, self._items)
        if self._inner and isinstance(found, Mapping):
            found = list(found.values())
        if not isinstance(found, list) or not all(isinstance(item, Mapping) for item in found):
            where = f" at {self._items!r}" if self._items.strip(".") else ""
            what = "object" if self._path == "." else "array of objects"
            raise MalformedError(
                f"answers something other than a JSON {what}{where}",
                "check `url`, `path` and `records` in the declaration against the answer",
            )
        return found

    def records(self, item: JsonObject, parent: str | None) -> Iterator[Record]:
        """The records in one item: itself, or what lies behind the stars."""
        found = [Record(item, (), 1, parent)]
        for path in self._inner:
            found = [inner for outer in found for inner in _inside(outer, path)]
        return iter(found)


def _inside(outer: Record, path: str) -> list[Record]:
    """The records at a path of a record; the record itself where the path ends with a star."""
    if not path:
        return [outer]
    found = value_at(outer.value, path)
    members = found if isinstance(found, list) else [] if found is None else [found]
    around = (outer.value, *outer.around)
    return [
        Record(member, around, position, outer.parent) for position, member in enumerate(members, 1)
    ]


# --- mapping --------------------------------------------------------------------------------------

_Value = Callable[[Record], Any]


class Mapper:
    """Maps records to rows of `contract` as the declaration says.

    A `protector` takes the personal data out of rows and keys, once they are known to be valid.
    """

    def __init__(
        self,
        declaration: SourceDeclaration,
        contract: type[Contract],
        protector: Protector | None = None,
    ) -> None:
        self._contract, self._protector = contract, protector
        self._columns = {
            name: _value_of(name, mapping, is_day=isinstance(contract.column(name).type, Day))
            for name, mapping in declaration.columns.items()
        }
        self._key = {name: self._columns[name] for name in contract.key}
        self._where = dict(declaration.where)
        self._unless = {
            path: frozenset(text.upper() for text in texts)
            for path, texts in declaration.unless.items()
        }
        self._deleted = declaration.deleted

    def map(self, record: Record) -> Mapped:
        """The row of a record, or what else it is."""
        if self._passes_over(record):
            return Mapped(self._key_text(record)[0])
        if self._is_deleted(record):
            key, skipped = self._key_text(record)
            return Mapped(key, deleted=skipped is None, skipped=skipped)
        try:
            row = self._contract.parse(self._values(self._columns, record))
        except RejectedError as error:
            key, skipped = self._key_text(record)
            skipped = skipped or Skipped(key, error.reason, error.field)
            return Mapped(key, skipped=skipped)
        row = self._protected(row)
        return Mapped(key_text(self._contract, row), row)

    def _protected(self, row: Row) -> Row:
        return row if self._protector is None else self._protector.row(self._contract, row)

    def _values(self, columns: Mapping[str, _Value], record: Record) -> dict[str, Any]:
        return {name: value(record) for name, value in columns.items()}

    def _key_text(self, record: Record) -> tuple[str | None, Skipped | None]:
        try:
            key = self._contract.parse_key(self._values(self._key, record))
        except RejectedError as error:
            field = error.field or ""
            field = field if field.startswith("key") else f"key.{field}"
            return None, Skipped(None, error.reason, field)
        return key_text(self._contract, self._protected(key)), None

    def _passes_over(self, record: Record) -> bool:
        for path, wanted in self._where.items():
            value = _member(record, path)
            if value is not None and not _same(value, wanted):
                return True
        return any(
            isinstance(value := _member(record, path), str) and value.strip().upper() in texts
            for path, texts in self._unless.items()
        )

    def _is_deleted(self, record: Record) -> bool:
        if self._deleted is None:
            return False
        value = _member(record, self._deleted.path)
        if self._deleted.equals is None:
            return value is not None
        return _same(value, self._deleted.equals)


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON: true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _member(record: Record, path: str) -> Any:
    """The value that a path of a mapping names."""
    if path == "#":
        return record.position
    if path == "@parent":
        return record.parent
    ups = len(path) - len(path.lstrip("^"))
    if not ups:
        return value_at(record.value, path)
    return value_at(record.around[ups - 1], path[ups:]) if ups <= len(record.around) else None


def _value_of(name: str, mapping: ColumnMapping, *, is_day: bool) -> _Value:
    """How a column's value is made of a record."""
    steps = _conversions(name, mapping, is_day=is_day)
    origin = _origin(mapping)
    if not steps:
        return origin

    def converted(record: Record) -> Any:
        value = origin(record)
        for step in steps:
            if value is None:
                break
            value = step(value)
        return value

    return converted


def _origin(mapping: ColumnMapping) -> _Value:
    if mapping.constant is not None:
        constant = mapping.constant
        return lambda _: constant
    if mapping.template is not None:
        return _template(mapping.template)
    path = mapping.path or ""
    if path in ("#", "@parent") or path.startswith("^"):
        return lambda record: _member(record, path)
    return lambda record: value_at(record.value, path)


def _template(template: str) -> _Value:
    """Text around values; None when one of them is neither text nor a whole number."""
    paths = template_paths(template)

    def filled(record: Record) -> str | None:
        texts = [_text(_member(record, path)) for path in paths]
        if not all(isinstance(text, str) and text for text in texts):
            return None
        parts = template
        for path in paths:  # put marks in place first: a value may hold braces itself
            parts = parts.replace(f"{{{path}}}", "\x00", 1)
        return "".join(
            literal + text for literal, text in zip(parts.split("\x00"), [*texts, ""], strict=True)
        )

    return filled


def _conversions(name: str, mapping: ColumnMapping, *, is_day: bool) -> list[Callable[[Any], Any]]:
    steps: list[Callable[[Any], Any]] = []
    if mapping.nulls:
        nulls = frozenset(mapping.nulls)
        steps.append(lambda value: None if isinstance(value, str) and value in nulls else value)
    if mapping.join is not None:
        steps.append(lambda value: _joined(value, mapping.each or "", mapping.join or "", name))
    if mapping.scale:
        scale = mapping.scale
        steps.append(lambda value: _scaled(value, scale))
    if mapping.time_format:
        zone = None if mapping.zone is None else ZoneInfo(mapping.zone)
        steps.append(lambda value: _time(value, mapping.time_format, zone, name, is_day=is_day))
    if mapping.as_ is not None:
        steps.append({"text": _text, "integer": _integer, "flag": _flag}[mapping.as_])
    return steps


def _joined(value: Any, each: str, join: str, name: str) -> Any:
    if not isinstance(value, list):
        return value
    texts = [value_at(element, each) for element in value]
    if not all(isinstance(text, str) for text in texts):
        raise RejectedError("wrong_type", "must be a list of texts", field=name)
    return join.join(texts) if texts else None


def _scaled(value: Any, scale: int) -> Any:
    """A number of cents as an amount; what is no number is left for the contract to refuse."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = Decimal(value)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return _shifted(Decimal(value), -scale)
    return value


def _shifted(number: Decimal, places: int) -> Decimal:
    """Times ten to the power of `places`, exactly: Decimal's own arithmetic rounds to 28 digits."""
    sign, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int):  # no number, or infinite
        return number
    return Decimal((sign, digits, exponent + places))


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _integer(value: Any) -> Any:
    return int(value) if isinstance(value, str) and _WHOLE.fullmatch(value) else value


def _flag(value: Any) -> Any:
    return {"true": True, "false": False}.get(value, value) if isinstance(value, str) else value


def _time(
    value: Any, formats: Sequence[str], zone: ZoneInfo | None, name: str, *, is_day: bool
) -> datetime | date:
    """The time that a value means by the first format it fits. Raises `RejectedError`."""
    for format_ in formats:
        try:
            found = _read_time(value, format_)
        except (ValueError, OverflowError, TypeError, ArithmeticError):
            continue
        if found.tzinfo is None and zone is not None:
            found = found.replace(tzinfo=zone)
        if is_day:
            return (found if zone is None else found.astimezone(zone)).date()
        if found.tzinfo is not None:
            return found.astimezone(UTC)
    raise RejectedError(
        "invalid_value", f"must be a time as {' or '.join(formats)}, with a zone", field=name
    )


def _read_time(value: Any, format_: str) -> datetime:
    """Raises ValueError, TypeError, OverflowError, ArithmeticError for what does not fit."""
    if format_ in ("unix", "unix_ms"):
        number = Decimal(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value
        if isinstance(number, bool) or not isinstance(number, int | Decimal):
            raise TypeError
        exact = _shifted(Decimal(number), 6 if format_ == "unix" else 3)
        if exact.adjusted() > _MICROS_DIGITS_MAX or exact != exact.to_integral_value():
            raise ValueError
        return _EPOCH + timedelta(microseconds=int(exact))
    if not isinstance(value, str) or _TOO_FINE.search(value):
        raise TypeError
    if format_ == "iso":
        return datetime.fromisoformat(value)
    return datetime.strptime(value, format_)  # noqa: DTZ007 - a zone may be declared beside it
