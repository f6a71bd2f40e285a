"""The contracts as last locked, in a file that is reviewed with the code (`contracts.lock`).

What the lake cannot take, or senders would trip over, is refused here: before a deployment, not at
its first batch. The rules are those of `lake.evolution` and what only contracts know: key, former
names, defaults and the handling of personal data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any

import yaml

from freshet.contract import (
    Column,
    ColumnType,
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    Real,
    Text,
    Timestamp,
)
from freshet.errors import TerminalError

HEAD = """\
# The contracts as they were last locked, by `freshet contracts lock`: not to be edited by hand.
# `freshet contracts check` compares the classes with this and refuses what the lake cannot take.
"""
_KIND = re.compile(r"(?P<kind>[a-z]+)(?:\((?P<sizes>[0-9.,]+)\))?")
_KINDS = ("text", "integer", "real", "money", "timestamp", "day", "flag")
_STRICTNESS: Mapping[str | None, int] = {None: 0, "hash": 1, "drop": 2}


class LockError(TerminalError):
    """A lock file that cannot be read."""

    def __init__(self, file: str, detail: str) -> None:
        self.file = file
        super().__init__(f"{file}: {detail}; restore it from version control")


@dataclass(frozen=True, slots=True)
class LockedColumn:
    """One column as the lock tells it; `default` is JSON, None where every row must say it."""

    type: str
    optional: bool = False
    default: str | None = None
    pattern: str | None = None
    pii: str | None = None
    aliases: tuple[str, ...] = ()
    deprecated: str | None = None
    description: str = ""


@dataclass(frozen=True, slots=True)
class LockedTable:
    """One contract as the lock tells it."""

    version: int
    description: str
    key: tuple[str, ...]
    partition: tuple[str, ...]
    trusts: tuple[str, ...]
    columns: Mapping[str, LockedColumn]


@dataclass(frozen=True, slots=True)
class ContractChange:
    """One difference. `advice` says what to do about one that is refused, None: it is allowed."""

    table: str
    column: str | None
    what: str
    advice: str | None = None

    @property
    def is_allowed(self) -> bool:
        """Whether lake and senders can take it."""
        return self.advice is None

    def __str__(self) -> str:
        """As people read it: where, what and, where refused, what to do."""
        where = self.table if self.column is None else f"{self.table}.{self.column}"
        return f"{where}: {self.what}" + ("" if self.advice is None else f"; {self.advice}")


def locked(tables: Iterable[type[Contract]]) -> dict[str, LockedTable]:
    """The contracts as a lock tells them, by table."""
    return {contract.table: _locked_table(contract) for contract in tables}


def lock_text(tables: Mapping[str, LockedTable]) -> str:
    """The lock file: YAML, one line a column; the same contracts give the same text."""
    lines = [HEAD.rstrip()]
    for name, table in sorted(tables.items()):
        lines.append(f"{name}:")
        lines += [
            f"  {member}: {_flow(_plain(getattr(table, member)))}"
            for member in ("version", "description", "key", "partition", "trusts")
        ]
        lines.append("  columns:")
        lines += [f"    {column}: {_flow(_told(one))}" for column, one in table.columns.items()]
    return "\n".join(lines) + "\n"


def read_lock(text: str, file: str = "contracts.lock") -> dict[str, LockedTable]:
    """What `lock_text` wrote; `file` is named where it is none. Raises `LockError`."""
    try:
        tables = {str(name): _read_table(one) for name, one in yaml.safe_load(text).items()}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"is no lock of contracts ({' '.join(str(error).split())})"
        raise LockError(file, detail) from error
    if not tables:  # what was cut short must not pass for a project's first lock
        raise LockError(file, "names no contract")
    return tables


def changes(
    old: Mapping[str, LockedTable], new: Mapping[str, LockedTable]
) -> tuple[ContractChange, ...]:
    """What changed between two states of the contracts, in order of table."""
    found: list[ContractChange] = []
    for name in sorted({*old, *new}):
        if name not in new:
            advice = (
                "its rows are in the lake: keep the class, or lock with --force and drop it there"
            )
            found.append(ContractChange(name, None, "is no longer declared", advice))
        elif name not in old:
            found.append(ContractChange(name, None, "is a new table"))
        else:
            found += (
                ContractChange(name, column, what, advice)
                for column, what, advice in _table_changes(old[name], new[name])
            )
    return tuple(found)


# --- the contracts in the lock's words ------------------------------------------------------------


def type_text(type_: ColumnType) -> str:
    """A column type as the lock and the catalogue write it: `text(1..64)`, `money(18,4)`."""
    match type_:
        case Text(max_length=most, min_length=least):
            return f"text({least}..{most})" if least else f"text({most})"
        case Integer(bits=bits):
            return f"integer({bits})"
        case Real(bits=bits):
            return f"real({bits})"
        case Money(precision=precision, scale=scale):
            return f"money({precision},{scale})"
        case Timestamp() | Day() | Flag():
            return type(type_).__name__.lower()


def _locked_table(contract: type[Contract]) -> LockedTable:
    return LockedTable(
        contract.contract_version,
        " ".join((contract.__doc__ or "").split()),
        contract.key,
        tuple(map(str, contract.partition)),
        contract.trusts,
        {column.name: _locked_column(contract, column) for column in contract.columns},
    )


def _locked_column(contract: type[Contract], column: Column) -> LockedColumn:
    default = None
    if not column.needed:
        default = json.dumps(contract.model_fields[column.name].get_default(), default=str)
    return LockedColumn(
        type_text(column.type),
        column.nullable,
        default,
        column.pattern,
        column.pii,
        column.aliases,
        column.deprecated,
        column.description,
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _told(column: LockedColumn) -> dict[str, Any]:
    """The members of a column that say something."""
    return {
        name: _plain(one)
        for name, one in asdict(column).items()
        if one not in (None, (), "", False)
    }


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9
    )
    return str(text).removesuffix("...\n").strip()


def _read_table(body: Mapping[str, Any]) -> LockedTable:
    members = {one.name: body[one.name] for one in fields(LockedTable)}
    for name in ("key", "partition", "trusts"):
        members[name] = tuple(members[name])
    columns = {name: _read_column(one) for name, one in members["columns"].items()}
    return LockedTable(**{**members, "columns": columns})


def _read_column(body: Mapping[str, Any]) -> LockedColumn:
    column = LockedColumn(**{**body, "aliases": tuple(body.get("aliases", ()))})
    _size(column.type)
    return column


# --- what may change ------------------------------------------------------------------------------

# Column (None: the table), what changed, and what to do where that is refused.
_Change = tuple[str | None, str, str | None]


def _table_changes(old: LockedTable, new: LockedTable) -> Iterator[_Change]:
    now = {alias: name for name, one in new.columns.items() for alias in one.aliases}
    became = {name: name if name in new.columns else now.get(name) for name in old.columns}
    yield from _of_table(old, new, became)
    for name, column in old.columns.items():
        called = became[name]
        if called is None:
            advice = (
                "its values are in the lake: keep it, `Deprecated(…)`, or where it is only called "
                f'otherwise now, declare `Aliases("{name}")` on that column'
            )
            yield name, "is no longer declared", advice
            continue
        if called != name and called in old.columns:
            yield name, f"became {called!r}, which is there already", "keep both columns"
            continue
        if called != name:
            yield called, f"was called {name!r}", None
        yield from ((called, *one) for one in _of_values(column, new.columns[called]))
        yield from ((called, *one) for one in _of_words(name, called, column, new.columns[called]))
        yield from _of_personal(called, column, new.columns[called], is_key=name in old.key)
    for name in new.columns.keys() - set(became.values()):
        yield _addition(name, new.columns[name])


def _of_table(
    old: LockedTable, new: LockedTable, became: Mapping[str, str | None]
) -> Iterator[_Change]:
    if tuple(became.get(name) for name in old.key) != new.key:
        what = f"its merge key was {', '.join(old.key)} and is {', '.join(new.key)}"
        yield None, what, "rows are found by it: declare another table and fill that one"
    if [_parted(text, became) for text in old.partition] != [_parted(one) for one in new.partition]:
        what = f"was partitioned by {', '.join(old.partition)}, is by {', '.join(new.partition)}"
        yield None, what, "files lie by it: keep it, or declare another table and fill that one"
    if new.version < old.version:
        advice = "quarantined lines name it: it only grows"
        yield None, f"contract_version {old.version} became {new.version}", advice
    if new.trusts != old.trusts:
        yield _of_trust(old.trusts, new.trusts)
    if new.description != old.description:
        yield None, "is described otherwise", None
    if new.version > old.version:
        yield None, f"contract_version {old.version} became {new.version}", None


def _of_trust(old: tuple[str, ...], new: tuple[str, ...]) -> _Change:
    """Patterns of sources: each of before must be within one of now."""
    what = f"trusts {', '.join(new)}, trusted {', '.join(old)}"
    dropped = [one for one in old if not any(fnmatchcase(one, wide) for wide in new)]
    advice = f"what still comes from {', '.join(dropped)} would be refused: keep it in `trusts`"
    return None, what, advice if dropped else None


def _parted(text: str, became: Mapping[str, str | None] | None = None) -> tuple[str, str | None]:
    """Transform and column of a partition field, the column by the name it has now."""
    transform, _, column = text.removesuffix(")").rpartition("(")
    return transform, column if became is None else became.get(column)


def _of_values(old: LockedColumn, new: LockedColumn) -> Iterator[tuple[str, str | None]]:
    """Which values a column takes."""
    if new.type != old.type:
        yield _retyping(old.type, new.type)
    if old.optional and not new.optional:
        yield "is required and was optional", "rows without it are in the lake: keep it `| None`"
    if new.optional and not old.optional:
        yield "is optional and was required", None
    if new.pattern != old.pattern:
        advice = "what was valid would be refused: keep the pattern, or validate in the source"
        yield f"its pattern is {new.pattern}, was {old.pattern}", advice if new.pattern else None
    if old.default is not None and new.default is None:
        yield "has no default any more", "senders may leave it out today: keep the default"
    elif old.default is None and new.default is not None:
        yield f"may be left out, and is {new.default} then", None
    elif new.default != old.default:
        yield f"its default is {new.default}, was {old.default}", None


def _of_words(
    was: str, name: str, old: LockedColumn, new: LockedColumn
) -> Iterator[tuple[str, str | None]]:
    """What a column is called, and what is said of it."""
    for alias in sorted({*old.aliases} - {*new.aliases, name}):
        advice = f'what still comes under it would be refused: keep `Aliases("{alias}")`'
        yield f"its former name {alias!r} is forgotten", advice
    for alias in sorted({*new.aliases} - {*old.aliases, was}):
        yield f"is understood as {alias!r} too", None
    if new.deprecated != old.deprecated:
        yield f"is deprecated: {new.deprecated}" if new.deprecated else "is not deprecated", None
    if new.description != old.description:
        yield "is described otherwise", None


def _of_personal(
    name: str, old: LockedColumn, new: LockedColumn, *, is_key: bool
) -> Iterator[_Change]:
    if new.pii == old.pii:
        return
    what = f"its personal data is handled {new.pii or 'as it comes'}, was {old.pii or 'as it came'}"
    if _STRICTNESS[new.pii] < _STRICTNESS[old.pii]:
        advice = f'it would enter the lake unprotected: keep `Pii("{old.pii}")`'
        yield name, what, advice
    elif is_key:
        yield name, what, "it is the key of rows in the lake: declare another table"
    else:
        yield name, f"{what}; rows that are there keep what they hold until they change", None


def _addition(name: str, column: LockedColumn) -> _Change:
    if not column.optional:
        advice = "rows without it are in the lake: declare it `| None = Field(None, …)`"
        return name, "is new and required", advice
    if column.default is None:
        advice = "events without it would be refused: give it a default, `Field(None, …)`"
        return name, "is new and must be in every event", advice
    return name, "is a new column", None


def _retyping(old: str, new: str) -> tuple[str, str | None]:
    what = f"was {old}, is {new}"
    (kind, was), (other, now) = _size(old), _size(new)
    if kind != other:
        return what, "files hold the old type: declare a new optional column, deprecate this one"
    if kind == "text":
        is_wider = now[-1] >= was[-1] and (now[0] if now[1:] else 0) <= (was[0] if was[1:] else 0)
    else:
        is_wider = now[0] >= was[0] and now[1:] == was[1:]
    return what, None if is_wider else f"values that fit {old} are in the lake: keep it or widen it"


def _size(text: str) -> tuple[str, tuple[int, ...]]:
    found = _KIND.fullmatch(text)
    if found is None or found["kind"] not in _KINDS:
        raise ValueError(f"{text!r} is no column type")
    sizes = re.split(r"[.,]+", found["sizes"]) if found["sizes"] else ()
    return found["kind"], tuple(map(int, sizes))
