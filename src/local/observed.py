"""What a sample answer of an unknown API shows: its records, their members, what identifies them.

Everything here is read off values that were seen, never off documentation, so it is a proposal: a
person decides. Pure.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from itertools import combinations, pairwise
from typing import Any

from api_poller.records import value_at
from freshet.errors import TerminalError

JsonObject = Mapping[str, Any]

# Enough to tell types and uniqueness; a sample answer may hold thousands of records.
RECORDS_LOOKED_AT = 500
# Deeper members than `data.attributes.price.amount` are another resource's.
_DEPTH_MAX = 4
# Pairs of members are tried as a key only among the first: what identifies a row comes early.
_KEY_MEMBERS_MAX = 12
_CONTRACT_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d\d:\d\d)"
)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_TIMES = frozenset(("at", "time", "date", "timestamp", "ts", "created", "updated", "modified"))
# Words in names of members that hold, or lead to, a person.
_PERSONAL = frozenset(
    re.findall(
        r"\w+",
        "email mail phone mobile fax password passwd pwd secret token address street postcode "
        "postal zip birth birthday dob age gender ssn iban card bank ip mac lat lng latitude "
        "longitude tax firstname lastname fullname maiden surname username login avatar customer "
        "user person employee patient passport ein crypto",
    )
)
_PERSONAL_PAIRS = (("first", "name"), ("last", "name"), ("full", "name"), ("user", "name"))


class NothingToLearnError(TerminalError):
    """A sample answer from which no declaration can be proposed."""

    def __init__(self, url: str, detail: str, advice: str) -> None:
        self.url, self.detail = url, detail
        super().__init__(f"{url}: {detail}; {advice}")


class Kind(StrEnum):
    """What the values of a member have in common."""

    TEXT = "text"
    DIGITS = "digits in a text"
    NUMERIC = "a number in a text"
    INTEGER = "whole number"
    NUMBER = "number"
    FLAG = "true or false"
    TIME = "time"
    ISO_TIME = "time in another ISO form"
    LOCAL_TIME = "time without a zone"
    UNIX = "seconds since 1970"
    UNIX_MS = "milliseconds since 1970"
    DAY = "day"
    PARTIAL_DAY = "day, month or year"
    MIXED = "of mixed types"
    EMPTY = "never filled"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of the records, over all that were looked at.

    `always` says that every record has a value, `unique` that all differ, `rising` that each is
    greater than the one before. `length_max` counts characters, `decimals_max` digits behind the
    point; `is_blank` says that some records have an empty text there.
    """

    path: str
    kind: Kind
    always: bool
    unique: bool
    rising: bool
    length_max: int
    decimals_max: int
    is_address: bool
    is_blank: bool = False

    @property
    def personal(self) -> bool:
        """Whether its name suggests personal data or a secret."""
        return is_personal(self.path)


@dataclass(frozen=True, slots=True)
class Observed:
    """A decoded answer: where its records are and what their members look like.

    `inner` are lists of objects inside the records, by the path that would list them instead.
    """

    format: str
    delimiter: str
    document: Any
    records_path: str
    records: Sequence[JsonObject]
    members: Sequence[Member]
    key: tuple[str, ...]
    inner: Sequence[str] = ()

    def identity(self, record: JsonObject) -> Any:
        """What tells a record from others: its key, or all of it."""
        if not self.key:
            return json.dumps(record, sort_keys=True, default=str)
        return tuple(str(value_at(record, path)) for path in self.key)

    def records_in(self, other: Any) -> list[JsonObject] | None:
        """The records of another answer of the same shape; None where it has another."""
        found = [other] if self.records_path == "." else value_at(other, self.records_path)
        if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
            return None
        return found


def observe(url: str, body: bytes, content_type: str) -> Observed:
    """What an answer shows. Raises `NothingToLearnError`; `url` is for its message."""
    format_, delimiter, document = decoded(url, body, content_type)
    path, records = _records(url, document)
    looked_at = records[:RECORDS_LOOKED_AT]
    members = tuple(_members(looked_at))
    return Observed(
        format_,
        delimiter,
        document,
        path,
        records,
        members,
        _key(looked_at, members),
        tuple(_inner_lists(path, looked_at)) if format_ == "json" else (),
    )


def words(name: str) -> list[str]:
    """The words of a member's name: `imageUrl`, `image_url` and `image.url` are all two."""
    apart = re.sub(r"([a-z0-9])([A-Z])|([A-Z])(?=[A-Z][a-z])", r"\1\3 \2", name)
    return [word.lower() for word in re.split(r"[^A-Za-z]+", apart) if word]


def is_personal(name: str) -> bool:
    """Whether a name suggests personal data or a secret. Guessing, so rather too often."""
    found = words(name)
    return bool(_PERSONAL & set(found)) or any(pair in pairwise(found) for pair in _PERSONAL_PAIRS)


# --- decoding -------------------------------------------------------------------------------------


def decoded(url: str, body: bytes, content_type: str) -> tuple[str, str, Any]:
    """Format, delimiter and document of a body. Raises `NothingToLearnError`."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise NothingToLearnError(url, "answers no UTF-8 text", "is it an API?") from None
    if not text.strip():
        raise NothingToLearnError(
            url, "answers nothing", "ask for something that has rows, such as a longer period"
        )
    for format_, decode in (("json", _json), ("json_lines", _json_lines)):
        document = decode(text)
        if document is not None:
            return format_, ",", document
    if text.lstrip()[0] not in "{[<" and ("csv" in content_type or "\n" in text):
        delimiter = max(",;\t|", key=text.partition("\n")[0].count)
        table = _csv(text, delimiter)
        if table:
            return "csv", delimiter, table
    raise NothingToLearnError(
        url,
        f"answers neither JSON, JSON lines nor CSV ({content_type or 'no content type'})",
        "open it in a browser; many APIs want a header such as --header Accept=application/json",
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError, InvalidOperation):
        return None


def _json_lines(text: str) -> Any:
    lines = [_json(line) for line in text.split("\n") if line.strip()]
    return lines if lines and all(isinstance(line, dict) for line in lines) else None


def _csv(text: str, delimiter: str) -> list[dict[str, str]] | None:
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except (csv.Error, ValueError):
        return None
    rows = [row for row in rows if row]
    if len(header) < 2 or len(set(header)) < len(header):
        return None
    if any(len(row) != len(header) for row in rows):
        return None
    return [dict(zip(header, row, strict=True)) for row in rows]


# --- records --------------------------------------------------------------------------------------


def _records(url: str, document: Any) -> tuple[str, list[JsonObject]]:
    """The path and the members of the largest list of objects; '.' where the answer is the row."""
    found = list(_lists(document, "", 0))
    if isinstance(document, Mapping) and document:
        own_id = any(words(name)[-1:] == ["id"] for name, v in document.items() if _is_scalar(v))
        empty = any(value == [] for value in document.values())
        if own_id or not (found or empty):
            return ".", [document]
    if not found:
        raise NothingToLearnError(
            url, "answers no record", "ask for something that has rows, or for the whole list"
        )
    path, records = max(found, key=lambda one: (len(one[1]), -one[0].count(".")))
    return path, records


def _lists(value: Any, path: str, depth: int) -> Iterator[tuple[str, list[JsonObject]]]:
    if isinstance(value, list):
        if value and all(isinstance(one, Mapping) for one in value):
            yield path, value
    elif isinstance(value, Mapping) and depth < _DEPTH_MAX:
        for name, member in value.items():
            if _is_step(name):
                yield from _lists(member, f"{path}.{name}".lstrip("."), depth + 1)


def _inner_lists(path: str, records: Sequence[JsonObject]) -> Iterator[str]:
    names = dict.fromkeys(
        name
        for record in records
        for name, value in record.items()
        if _is_step(name)
        and isinstance(value, list)
        and value
        and all(isinstance(one, Mapping) for one in value)
    )
    around = "" if path == "." else f"{path}.*."
    for name in names:
        yield (around or ("" if path == "." else "*.")) + name


def _is_step(name: object) -> bool:
    """Whether a member's name can stand in a path as it is."""
    if not isinstance(name, str) or not name.isprintable():
        return False
    return bool(re.fullmatch(r"[^.*^#@{}\s][^.*{}\s]{0,127}", name))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | Decimal)


# --- members --------------------------------------------------------------------------------------


def _members(records: Sequence[JsonObject]) -> Iterator[Member]:
    paths = dict.fromkeys(path for record in records for path in _leaves(record, "", 0))
    for path in paths:
        yield _member(path, [value_at(record, path) for record in records])


def _leaves(value: Any, path: str, depth: int) -> Iterator[str]:
    """Paths of the scalars in a record; of a list, only its first element is one."""
    if isinstance(value, Mapping) and depth < _DEPTH_MAX:
        for name, member in value.items():
            if _is_step(name):
                yield from _leaves(member, f"{path}.{name}".lstrip("."), depth + 1)
    elif isinstance(value, list) and value and depth < _DEPTH_MAX:
        yield from _leaves(value[0], f"{path}.0", depth + 1)
    elif path and not isinstance(value, Mapping | list):
        yield path


def _member(path: str, values: Sequence[Any]) -> Member:
    present = [value for value in values if _is_scalar(value) and value != ""]
    odd = any(isinstance(value, Mapping | list) for value in values)
    kind = Kind.MIXED if odd else _kind(path, present)
    texts = [str(value) for value in present]
    comparable = kind not in (Kind.MIXED, Kind.EMPTY)
    ordered = [int(text) for text in texts] if kind is Kind.DIGITS else present
    return Member(
        path,
        kind,
        always=len(present) == len(values),
        unique=len(set(texts)) == len(values),
        rising=comparable and all(a < b for a, b in pairwise(ordered)),
        length_max=max(map(len, texts), default=0),
        decimals_max=max((len(text.partition(".")[2]) for text in texts), default=0),
        is_address=bool(texts) and all(_ADDRESS.match(text) for text in texts),
        is_blank=any(value == "" for value in values),
    )


def _kind(path: str, values: Sequence[Any]) -> Kind:
    kinds = {_kind_of(value) for value in values}
    if not kinds:
        return Kind.EMPTY
    if kinds == {Kind.INTEGER}:
        return _unix(path, values) or Kind.INTEGER
    if len(kinds) == 1:
        return kinds.pop()
    days = {Kind.DAY, Kind.PARTIAL_DAY, Kind.DIGITS}
    if kinds <= days and {len(value) for value in values} <= {4, 7, 10}:
        return Kind.PARTIAL_DAY
    found = next((kind for kind, parts in _TOGETHER.items() if kinds <= parts), None)
    return found or (Kind.TEXT if all(isinstance(v, str) for v in values) else Kind.MIXED)


# What values of two kinds have in common.
_TOGETHER = {
    Kind.NUMBER: {Kind.INTEGER, Kind.NUMBER},
    Kind.NUMERIC: {Kind.DIGITS, Kind.NUMERIC},
    Kind.ISO_TIME: {Kind.TIME, Kind.ISO_TIME},
}


def _kind_of(value: Any) -> Kind:
    if isinstance(value, bool):
        return Kind.FLAG
    if isinstance(value, int):
        return Kind.INTEGER
    if isinstance(value, Decimal):
        return Kind.NUMBER
    return _kind_of_text(value)


_PATTERNS = {
    Kind.DIGITS: re.compile(r"0|-?[1-9]\d{0,17}"),
    Kind.NUMERIC: re.compile(r"-?\d{1,18}\.\d{1,12}"),
    Kind.PARTIAL_DAY: re.compile(r"\d{4}-(0[1-9]|1[0-2])"),
}


def _kind_of_text(text: str) -> Kind:
    for kind, pattern in _PATTERNS.items():
        if pattern.fullmatch(text):
            return kind
    try:
        moment = datetime.fromisoformat(text) if _DAY.match(text) else None
    except ValueError:
        moment = None
    if moment is None:
        return Kind.TEXT
    if _DAY.fullmatch(text):
        return Kind.DAY
    if moment.tzinfo is not None:
        return Kind.TIME if _CONTRACT_TIME.fullmatch(text) else Kind.ISO_TIME
    return Kind.LOCAL_TIME


def _unix(path: str, values: Sequence[int]) -> Kind | None:
    """Whole numbers that are times by name and size: from 2001 to 2096."""
    if not set(words(path)[-2:]) & _TIMES:
        return None
    for kind, unit in ((Kind.UNIX, 1), (Kind.UNIX_MS, 1000)):
        if all(10**9 * unit <= value < 4 * 10**9 * unit for value in values):
            return kind
    return None


# --- keys -----------------------------------------------------------------------------------------

_KEY_KINDS = (Kind.TEXT, Kind.DIGITS, Kind.INTEGER, Kind.DAY)
_CODES = frozenset(("key", "code", "slug", "sku", "number", "handle", "isbn", "symbol", "ref"))


def key_candidates(members: Sequence[Member]) -> list[str]:
    """Members that could be the key alone, the likeliest first: unique, and named like an id."""
    able = [one for one in members if _may_be_key(one) and one.unique and one.always]
    ranked = sorted((_key_rank(one), position, one.path) for position, one in enumerate(able))
    return [path for rank, _, path in ranked if rank < 9]


def _may_be_key(member: Member) -> bool:
    return (
        member.kind in _KEY_KINDS
        and member.length_max <= 200
        and not member.is_address
        and ".0" not in member.path
    )


def _key_rank(member: Member) -> int:
    found, nested = words(member.path), member.path.count(".")
    if member.path.lower() in ("id", "_id", "uuid", "guid"):
        return 0
    if found[-1:] in (["id"], ["uuid"], ["guid"]):
        return 1 if not nested else 3
    if set(found) & _CODES and not nested:
        return 2
    if member.kind is Kind.INTEGER and member.rising and not nested:
        return 4
    return 9  # unique by chance, as titles are


def _key(records: Sequence[JsonObject], members: Sequence[Member]) -> tuple[str, ...]:
    """The likeliest key; empty where nothing identifies a record."""
    candidates = key_candidates(members)
    if candidates:
        return (candidates[0],)
    able = [one for one in members if _may_be_key(one) and one.always]
    varied = [one.path for one in able if _distinct(records, (one.path,)) > 1]
    for pair in combinations(varied[:_KEY_MEMBERS_MAX], 2):
        if len(records) > 1 and _distinct(records, pair) == len(records):
            return pair
    unique = [one.path for one in able if one.unique]
    return (unique[0],) if unique else ()


def _distinct(records: Sequence[JsonObject], paths: tuple[str, ...]) -> int:
    return len({tuple(str(value_at(record, path)) for path in paths) for record in records})
