"""Columns for the members of an unknown API: those of a declared table if one fits, else new ones.

A table fits when its name is that of the records and every sampled record becomes a row of it. For
anything else a contract is drafted, as the class a person would write. Pure.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import Field

from freshet.contract import (
    ColumnType,
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    PartitionField,
    Real,
    Registry,
    Text,
    Timestamp,
)
from local.observed import Kind, Member, Observed, words

# ISO 4217 for "no currency": valid, and plainly not the answer.
NO_CURRENCY = "XXX"
_ALIKE = {
    "creation": "created", "create": "created", "added": "created", "inserted": "created",
    "modified": "updated", "changed": "updated", "update": "updated", "modification": "updated",
    "picture": "image", "photo": "image", "thumbnail": "image", "cover": "image", "img": "image",
    "name": "title", "label": "title", "link": "url", "date": "at", "time": "at", "on": "at",
    "timestamp": "at",
}  # fmt: skip
# Members that only wrap others.
_WRAPPERS = frozenset(("attributes", "fields", "properties", "node", "meta", "data"))
_SCORE_MIN = 0.6
_TEXT_LENGTHS = (64, 200, 400, 2000, 4000)
_MONEY_DECIMALS_MAX = 12
_PARTIAL = ["%Y-%m-%d", "%Y-%m", "%Y"]
_TIME_KINDS = (Kind.TIME, Kind.ISO_TIME, Kind.LOCAL_TIME, Kind.UNIX, Kind.UNIX_MS)
_NO_TEXT = (Kind.NUMBER, Kind.FLAG, Kind.MIXED, Kind.EMPTY)
_LISTED = re.compile(r"(.+)\.0\.([^.]+)")


@dataclass(frozen=True, slots=True)
class ProposedColumn:
    """A column, how it is mapped, and a word on why. `member` is None for a constant."""

    name: str
    mapping: Mapping[str, Any]
    member: Member | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns for a contract; `missing` are required ones that nothing was found for.

    `text` is the contract's class where it is a new one. `personal` are members left out because
    of their names, `left` all others that no column takes.
    """

    contract: type[Contract]
    columns: Sequence[ProposedColumn]
    missing: Sequence[str] = ()
    text: str | None = None
    personal: Sequence[Member] = ()
    left: Sequence[Member] = ()
    doubts: Sequence[str] = field(default_factory=tuple)


def singular(word: str) -> str:
    """One of what a plural names: `categories` are each a `category`."""
    if len(word) < 4 or word.endswith(("ss", "us", "is", "news", "series")):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word.removesuffix("s")


def snake(text: str) -> str:
    """A name as columns and tables are written; digits stay."""
    apart = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", text)
    return re.sub(r"[^a-z0-9]+", "_", apart.lower()).strip("_")


def contract_named(table: str, tables: Registry) -> type[Contract] | None:
    """The declared table of this name, or one that differs by a letter or a plural."""
    names = {singular(name): name for name in tables.names}
    if table in tables.names:
        return tables[table]
    close = get_close_matches(singular(table), names, 1, 0.9)
    return tables[names[close[0]]] if close else None


# --- a declared table -----------------------------------------------------------------------------


def columns_of(contract: type[Contract], seen: Observed) -> Columns:
    """The members that a declared table's columns seem to be."""
    pairs = sorted(_scored(contract, seen), key=lambda pair: -pair[0])
    chosen: dict[str, ProposedColumn] = {}
    taken: set[str] = set()
    for _, proposed in pairs:
        assert proposed.member is not None
        if proposed.name not in chosen and proposed.member.path not in taken:
            chosen[proposed.name] = proposed
            taken.add(proposed.member.path)
    required = [name for name, one in contract.model_fields.items() if one.is_required()]
    doubts = []
    if "currency" in required and "currency" not in chosen:
        chosen["currency"] = ProposedColumn(
            "currency", {"constant": NO_CURRENCY}, None, "not in the answer: put the real one here"
        )
        doubts.append(f"the answer names no currency: replace {NO_CURRENCY}")
    personal = [one.member for one in chosen.values() if one.member and one.member.personal]
    for one in personal:
        name = next(name for name, column in chosen.items() if column.member is one)
        if name not in required:
            del chosen[name]
    return Columns(
        contract,
        [chosen[column.name] for column in contract.columns if column.name in chosen],
        missing=[name for name in required if name not in chosen],
        personal=[one for one in seen.members if one.personal and _is_out(one, chosen)],
        left=[one for one in seen.members if not one.personal and _is_out(one, chosen)],
        doubts=doubts,
    )


def _is_out(member: Member, chosen: Mapping[str, ProposedColumn]) -> bool:
    return all(one.member is not member for one in chosen.values())


def _scored(contract: type[Contract], seen: Observed) -> Iterator[tuple[float, ProposedColumn]]:
    noun = set(map(singular, words(contract.table)))
    for column in contract.columns:
        for member in seen.members:
            score = _score(member, column.name, noun)
            if score < _SCORE_MIN:
                continue
            mapping = _mapping(member, column.type, many=column.name.endswith("s"))
            if mapping is not None:
                note = f"{'key; ' if column.name in contract.key else ''}{member.kind.value}"
                yield score, ProposedColumn(column.name, mapping, member, note)


def _score(member: Member, column: str, noun: set[str]) -> float:
    """How alike the names are: 1 and a little more is the same name."""
    wanted = _tokens(column)
    best = max(_alike(option, wanted) for option in _readings(member, noun))
    same = snake(member.path) == column
    return best + (0.1 if same else 0) - 0.05 * member.path.count(".")


def _readings(member: Member, noun: set[str]) -> Iterator[set[str]]:
    """The words that a member's name may stand for."""
    found = _tokens(member.path)
    yield found
    if "." not in member.path:
        yield found | noun
    if len(found) > 1:
        yield found - {"title"}
    if member.is_address:
        yield found | {"url"}
    if member.kind in _TIME_KINDS or member.kind is Kind.DAY:
        yield found | {"at"}


def _tokens(name: str) -> set[str]:
    found = [singular(word) for word in words(name)]
    if len(found) > 1:
        found = [word for word in found if word not in _WRAPPERS] or found
    return {_ALIKE.get(word, word) for word in found}


def _alike(one: set[str], other: set[str]) -> float:
    return len(one & other) / len(one | other)


# --- conversions ----------------------------------------------------------------------------------


def _mapping(member: Member, type_: ColumnType, *, many: bool = False) -> dict[str, Any] | None:
    """How the member's values become the column's; None where they cannot."""
    listed = _LISTED.fullmatch(member.path)
    if listed and many and isinstance(type_, Text):
        return {"path": listed[1], "each": listed[2], "join": ", "}
    extra = _conversion(member, type_)
    if extra is None:
        return None
    if member.is_blank and not isinstance(type_, Text):
        extra = {"nulls": [""], **extra}
    return {"path": member.path, **extra}


def _conversion(member: Member, type_: ColumnType) -> dict[str, Any] | None:
    if isinstance(type_, Text) and member.length_max > type_.max_length:
        return None
    if isinstance(type_, Money) and member.decimals_max > type_.scale:
        return None
    return _CONVERSIONS[type(type_)].get(member.kind)


_AS_ISO: dict[str, Any] = {"time_format": ["iso"]}
# What a mapping needs to make a column of this type from values of a kind; others cannot be it.
_CONVERSIONS: Mapping[type, Mapping[Kind, dict[str, Any]]] = {
    Text: {kind: {} for kind in Kind if kind not in _NO_TEXT}
    | {kind: {"as": "text"} for kind in (Kind.INTEGER, Kind.UNIX, Kind.UNIX_MS)},
    Integer: {Kind.INTEGER: {}, Kind.DIGITS: {"as": "integer"}},
    Money: {kind: {} for kind in (Kind.NUMBER, Kind.INTEGER, Kind.NUMERIC, Kind.DIGITS)},
    Real: {kind: {} for kind in (Kind.NUMBER, Kind.INTEGER)},
    Flag: {Kind.FLAG: {}},
    Timestamp: {
        Kind.TIME: {},
        Kind.ISO_TIME: _AS_ISO,
        Kind.LOCAL_TIME: {**_AS_ISO, "zone": "UTC"},
        Kind.UNIX: {"time_format": ["unix"]},
        Kind.UNIX_MS: {"time_format": ["unix_ms"]},
    },
    Day: {Kind.DAY: {}, Kind.PARTIAL_DAY: {"time_format": _PARTIAL}},
}


# --- a new table ----------------------------------------------------------------------------------


def drafted(table: str, seen: Observed) -> Columns:
    """A new contract for what was seen: texts with room, everything but the key may be missing."""
    columns, personal, left = dict[str, ProposedColumn](), list[Member](), list[Member]()
    fields: dict[str, tuple[ColumnType, bool, str]] = {}
    for member in sorted(seen.members, key=lambda one: one.path not in seen.key):
        is_key = member.path in seen.key
        type_ = _type_of(member, seen.format, is_key=is_key)
        mapping = None if type_ is None else _mapping(member, type_)
        name = _column_name(member, table)
        if member.personal and not is_key:
            personal.append(member)
        elif type_ is None or mapping is None or name in columns or _is_inner(member):
            left.append(member)
        else:
            note = f"{'key; ' if is_key else ''}{member.kind.value}"
            columns[name] = ProposedColumn(name, mapping, member, note)
            fields[name] = (type_, not is_key, member.path)
    key = tuple(name for name, one in columns.items() if one.member and one.member.path in seen.key)
    return Columns(
        _contract(table, key, fields),
        list(columns.values()),
        text=_class_text(table, key, fields),
        personal=personal,
        left=left,
    )


def _is_inner(member: Member) -> bool:
    """Whether it belongs to a list inside the record; a list's first picture is welcome."""
    if ".0." in member.path:
        return True
    return member.path.endswith(".0") and not member.is_address


def _type_of(member: Member, format_: str, *, is_key: bool) -> ColumnType | None:
    kind = member.kind
    if is_key and kind in (Kind.INTEGER, Kind.DIGITS):
        return Text(64, 1)
    if kind is Kind.TEXT or (kind is Kind.DIGITS and format_ != "csv"):
        return _text_type(member, is_key=is_key)
    if kind in (Kind.NUMBER, Kind.NUMERIC):
        scale = min(max(4, member.decimals_max), _MONEY_DECIMALS_MAX)
        return Money(14 + scale, scale)
    return _TYPES.get(kind)


_TYPES: Mapping[Kind, ColumnType] = {
    **dict.fromkeys(_TIME_KINDS, Timestamp()),
    **dict.fromkeys((Kind.DAY, Kind.PARTIAL_DAY), Day()),
    **dict.fromkeys((Kind.INTEGER, Kind.DIGITS), Integer()),
    Kind.FLAG: Flag(),
}


def _text_type(member: Member, *, is_key: bool) -> Text:
    if member.is_address:
        return Text(2000)
    needed = member.length_max if is_key else 2 * member.length_max
    length = next((one for one in _TEXT_LENGTHS if one >= needed), 4 * member.length_max)
    return Text(length, 1 if is_key else 0)


def _column_name(member: Member, table: str) -> str:
    steps = [step for step in member.path.split(".") if step != "0"] or ["0"]
    if len(steps) > 1:
        steps = [step for step in steps if step.lower() not in _WRAPPERS] or steps
    name = snake("_".join(steps))
    if member.path.endswith(".0"):
        name = singular(name)
    if member.is_address and words(name)[-1:] != ["url"]:
        name += "_url"
    noun = singular(table)
    if name in ("id", "", "uuid") or not name[0].isalpha() or hasattr(Contract, name):
        name = f"{noun}_{name}".rstrip("_")
    return name


_PYTHON: Mapping[type, type] = {
    Text: str, Integer: int, Real: float, Money: Decimal, Timestamp: datetime, Day: date, Flag: bool
}  # fmt: skip


def _contract(
    table: str, key: tuple[str, ...], fields: Mapping[str, tuple[ColumnType, bool, str]]
) -> type[Contract]:
    """The class that `_class_text` writes down."""

    def body(namespace: dict[str, Any]) -> None:
        namespace["__doc__"] = f"One row of {table}."
        namespace["__annotations__"] = {}
        for name, (type_, nullable, description) in fields.items():
            marked: Any = Annotated[_PYTHON[type(type_)], type_]
            namespace["__annotations__"][name] = marked | None if nullable else marked
            default: Any = None if nullable else ...
            namespace[name] = Field(default, description=description)

    declared = {"table": table, "key": key, "partition": tuple(_partition(key, fields))}
    return types.new_class(_class_name(table), (Contract,), declared, body)


def _partition(
    key: tuple[str, ...], fields: Mapping[str, tuple[ColumnType, bool, str]]
) -> Iterator[PartitionField]:
    for name in key[:1]:
        if isinstance(fields[name][0], Day):
            yield PartitionField("month", name)
        else:
            yield PartitionField("bucket", name, 4)


def _class_name(table: str) -> str:
    return "".join(word.capitalize() for word in singular(table).split("_"))


def _class_text(
    table: str, key: tuple[str, ...], fields: Mapping[str, tuple[ColumnType, bool, str]]
) -> str:
    named = "".join(f'"{name}", ' for name in key)
    partition = "".join(f"{_partition_text(one)}, " for one in _partition(key, fields))
    lines = [
        f"class {_class_name(table)}(",
        "    Contract,",
        f'    table="{table}",',
        f"    key=({named.rstrip(' ')}),",
        f"    partition=({partition.rstrip(' ')}),",
        "):",
        f'    """One row of {table}."""',
        "",
    ]
    for name, (type_, nullable, description) in fields.items():
        marked = f"Annotated[{_PYTHON[type(type_)].__name__}, {_type_text(type_)}]"
        marked, default = (f"{marked} | None", "None, ") if nullable else (marked, "")
        quoted = '"' + description.replace('"', "'") + '"'
        lines.append(f"    {name}: {marked} = Field({default}description={quoted})")
    return "\n".join(lines) + "\n"


def _partition_text(one: PartitionField) -> str:
    buckets = f", {one.buckets}" if one.buckets else ""
    return f'PartitionField("{one.transform}", "{one.column}"{buckets})'


def _type_text(type_: ColumnType) -> str:
    match type_:
        case Text():
            return f"Text({type_.max_length}{', 1' if type_.min_length else ''})"
        case Money():
            return f"Money({type_.precision}, {type_.scale})"
        case Integer():
            return f"Integer({type_.bits})"
        case _:
            return f"{type(type_).__name__}()"
