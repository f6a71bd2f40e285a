"""Which tables and columns of a source database become which of ours, for streams that others
write (Debezium, AWS DMS).

A stream needs no declaration where its tables and columns are named as the contracts are. What
differs stands in one YAML file per source, `sources/streams/<name>.yaml`; docs/sources-streams.md
explains it. Every YAML scalar is read as text, so `NO` is Norway and never false.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from freshet.contract import Column, Contract, Flag, Integer, Registry
from freshet.errors import RejectedError, TerminalError, UnknownTableError

# What Debezium writes where PostgreSQL sent no value since the column did not change
# (unavailable.value.placeholder), and what versions before 1.1 wrote (toasted.value.placeholder).
PLACEHOLDERS = ("__debezium_unavailable_value", "__DEBEZIUM_TOASTED_VALUE__")

Unit = Literal["days", "seconds", "millis", "micros", "nanos"]


class MappingError(TerminalError):
    """Declarations of streams that cannot be used; `problems` is everything that is wrong."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ColumnRule(_Declared):
    """Where a source column goes, and what its values mean where the source does not say."""

    column: str = Field(description="Column of the contract")
    as_: Literal["text"] | None = Field(
        None,
        validation_alias=AliasChoices("as", "as_"),
        description="text: write numbers as text, for ids",
    )
    scale: int | None = Field(
        None, ge=0, le=38, description="Decimals of base64 numbers that come without a schema"
    )
    unit: Unit | None = Field(None, description="What a time or date without a schema counts")
    encoding: Literal["base64", "hex", "digits"] | None = Field(
        None, description="Bytes that are UTF-8 text; digits: numbers come as plain text"
    )
    round: Literal["down"] | None = Field(
        None, description="down: cut times finer than a microsecond instead of refusing them"
    )


@lru_cache(maxsize=4096)
def plain_rule(column: str) -> ColumnRule:
    """The rule of a source column that is named as ours is."""
    return ColumnRule(column=column)


def _called_now(name: str, columns: Mapping[str, Column]) -> str | None:
    """The column that once had this name: sources are renamed when it suits them."""
    return next((one.name for one in columns.values() if name in one.aliases), None)


def _rule(value: object) -> object:
    return {"column": value} if isinstance(value, str) else value


class TableMapping(_Declared):
    """How the rows of one source table become rows of one of ours.

    Columns that are not named here go by their own name; one that our table does not have is a
    rejection, unless `ignore` names it.
    """

    table: str = Field(description="Table of ours")
    columns: Mapping[
        str, Annotated[ColumnRule, BeforeValidator(_rule, json_schema_input_type=str | ColumnRule)]
    ] = Field(default_factory=dict, description="Source column: column of ours, or a rule")
    constants: Mapping[str, str] = Field(
        default_factory=dict, description="Columns that the source does not have"
    )
    ignore: tuple[str, ...] = Field((), description="Source columns that are left out on purpose")

    @cached_property
    def taken(self) -> frozenset[str]:
        """The columns of ours that no source column of the same name may fill."""
        return frozenset((*self.constants, *(rule.column for rule in self.columns.values())))

    def find(self, name: str, columns: Mapping[str, Column]) -> ColumnRule | None:
        """The rule for a source column; None where it goes nowhere."""
        rule = self.columns.get(name)
        if rule is None and name not in self.ignore:
            now = name if name in columns else _called_now(name, columns)
            if now is not None and now not in self.taken:
                return plain_rule(now)
        return rule

    def rule(self, name: str, columns: Mapping[str, Column]) -> ColumnRule | None:
        """As `find`; raises `RejectedError` for a column that is not left out on purpose."""
        rule = self.find(name, columns)
        if rule is None and name not in self.ignore:
            detail = f"is no column of {self.table!r}: map it, or name it under `ignore`"
            raise RejectedError("unknown_column", detail, field=f"after.{name}")
        return rule


@lru_cache(maxsize=256)
def columns_of(contract: type[Contract]) -> Mapping[str, Column]:
    """The columns of a contract by name."""
    return {column.name: column for column in contract.columns}


@lru_cache(maxsize=1024)
def constant_of(contract: type[Contract], column: str, text: str) -> Any:
    """The value that a constant's text stands for in its column."""
    kind = columns_of(contract)[column].type
    if isinstance(kind, Flag) and text in ("true", "false"):
        return text == "true"
    if isinstance(kind, Integer) and text.lstrip("-").isdecimal() and len(text) <= 20:
        return int(text)
    return text


@lru_cache(maxsize=256)
def _plain_table(table: str) -> TableMapping:
    return TableMapping(table=table)


class _Stream(_Declared):
    name: str = Field("", pattern=r"^[A-Za-z0-9_.-]{0,100}$")
    enabled: bool = True
    match: str | None = Field(None, min_length=1)
    tables: Mapping[str, TableMapping] = Field(default_factory=dict)
    ignore_tables: tuple[str, ...] = Field(
        (), description="Source tables that are left out on purpose; * stands for anything"
    )

    def table_of(
        self, names: tuple[str, ...], tables: Registry
    ) -> tuple[TableMapping, type[Contract]] | None:
        """The mapping and contract of a source table, None for one that is left out on purpose.

        `names` are what it may be called here, the best first, its bare name last. Raises
        `RejectedError` (unknown_table).
        """
        declared = next((self.tables[name] for name in names if name in self.tables), None)
        if declared is None:
            if any(fnmatchcase(name, one) for one in self.ignore_tables for name in names):
                return None
            if names[-1] not in tables.names:
                detail = f"{names[0]!r} is no table of ours: map it, or name it in ignore_tables"
                raise RejectedError("unknown_table", detail, field="table")
            declared = _plain_table(names[-1])
        try:
            return declared, tables[declared.table]
        except UnknownTableError as error:
            raise RejectedError("unknown_table", str(error), field="table") from None


class DebeziumStream(_Stream):
    """One Debezium connector: `match` is its topic.prefix (source.name), the file's name if absent.

    `version`: `position` is the log position; ts_us and ts_ms take the commit time of connectors
    whose positions are no versions here. `reads`: `oldest` lets rows of a snapshot lose against
    every change, as a transaction may commit while its snapshot has a later position.
    """

    format: Literal["debezium"] = "debezium"
    prefix: str = Field("__", min_length=1, description="add.fields.prefix of flattened records")
    placeholders: tuple[str, ...] = PLACEHOLDERS
    version: Literal["position", "ts_us", "ts_ms"] = "position"
    reads: Literal["position", "oldest"] = "position"


class DmsStream(_Stream):
    """One AWS DMS task: `match` is a pattern of the schemas it sends, all if absent.

    `missing`: what a column means that an update does not carry. `version`: `commit` is the commit
    time and the place in the transaction; `commit_time` the time alone, for sources that know
    whole seconds; `timestamp` when DMS wrote it, for tasks without transaction details.
    """

    format: Literal["dms"] = "dms"
    before_image: str = "before-image"
    missing: Literal["null", "unchanged"] = "null"
    version: Literal["commit", "commit_time", "timestamp"] = "commit"

    @model_validator(mode="after")
    def _own_member(self) -> DmsStream:
        if self.before_image in ("data", "metadata", "control"):
            raise ValueError(f"before_image cannot be {self.before_image!r}: DMS has that itself")
        return self


Stream = Annotated[DebeziumStream | DmsStream, Field(discriminator="format")]
_STREAM: TypeAdapter[DebeziumStream | DmsStream] = TypeAdapter(Stream)
_ANY_DEBEZIUM, _ANY_DMS = DebeziumStream(), DmsStream(name="default")


@dataclass(frozen=True)
class Streams:
    """The declared streams; what none of them matches is read by names alone."""

    declared: tuple[DebeziumStream | DmsStream, ...] = ()

    @cached_property
    def debezium(self) -> tuple[DebeziumStream, ...]:
        """The enabled Debezium streams."""
        return tuple(one for one in self._enabled() if isinstance(one, DebeziumStream))

    @cached_property
    def dms(self) -> tuple[DmsStream, ...]:
        """The enabled DMS streams."""
        return tuple(one for one in self._enabled() if isinstance(one, DmsStream))

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """What metadata of flattened records may begin with, the longest first."""
        found = {_ANY_DEBEZIUM.prefix, *(stream.prefix for stream in self.debezium)}
        return tuple(sorted(found, key=lambda prefix: (-len(prefix), prefix)))

    def debezium_of(self, name: str) -> DebeziumStream:
        """The stream of the connector with this `source.name`."""
        matching = (one for one in self.debezium if fnmatchcase(name, one.match or one.name))
        return next(matching, _ANY_DEBEZIUM)

    def dms_of(self, schema: str) -> DmsStream:
        """The stream of a source schema."""
        return next((one for one in self.dms if fnmatchcase(schema, one.match or "*")), _ANY_DMS)

    def _enabled(self) -> Iterator[DebeziumStream | DmsStream]:
        return (stream for stream in self.declared if stream.enabled)


DEFAULT_STREAMS = Streams()


def load_streams(folder: Path, tables: Registry) -> Streams:
    """The streams declared in `folder` (one YAML file each), in order of name.

    Raises `MappingError` with the problems of all files.
    """
    found, problems = [], []
    for path in sorted(folder.glob("*.yaml")):
        try:
            found.append(parse_stream(path.read_text(encoding="utf-8"), path.stem, tables))
        except MappingError as error:
            problems += [f"{folder.name}/{path.name}: {problem}" for problem in error.problems]
        except UnicodeDecodeError:
            problems.append(f"{folder.name}/{path.name}: is not UTF-8 text")
    if problems:
        raise MappingError(tuple(problems))
    return Streams(tuple(found))


def parse_stream(text: str, name: str, tables: Registry) -> DebeziumStream | DmsStream:
    """The stream that a file's text declares, called `name`. Raises `MappingError`."""
    body = _yaml(text)
    if not isinstance(body, dict):
        raise MappingError(("must hold members, as `format: debezium`",))
    if "name" in body:
        raise MappingError(("name: is the name of the file",))
    try:
        stream = _STREAM.validate_python({**body, "name": name})
    except ValidationError as error:
        raise MappingError(tuple(_problems(error))) from None
    if problems := tuple(_misfits(stream, tables)):
        raise MappingError(problems)
    return stream


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a file, for editors; `sources/streams/schema.json` holds it."""
    schema = _STREAM.json_schema()
    for kind in ("DebeziumStream", "DmsStream"):
        del schema["$defs"][kind]["properties"]["name"]
        schema["$defs"][kind]["required"] = ["format"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - producer and poller import this module for its names alone

    class Loader(yaml.BaseLoader):
        """All scalars are text, and a member that is there twice is an error."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
            names = [key.value for key, _ in node.value]
            if twice := {str(name) for name in names if names.count(name) > 1}:
                line = node.start_mark.line + 1
                raise MappingError((f"line {line}: {min(twice)!r} is there twice",))
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 - BaseLoader makes texts, lists and dicts only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        detail = getattr(error, "problem", None) or "cannot be read as YAML"
        raise MappingError((f"{where}{detail}",)) from None


_DETAILS = {"extra_forbidden": "is no member here", "missing": "is required"}
_FORMATS = frozenset(("debezium", "dms"))


def _problems(error: ValidationError) -> Iterator[str]:
    for found in error.errors(include_url=False, include_input=False):
        where = ".".join(str(part) for part in found["loc"] if part not in _FORMATS)
        detail = _DETAILS.get(found["type"], found["msg"].removeprefix("Value error, "))
        yield f"{where or 'format'}: {detail}"


def _misfits(stream: DebeziumStream | DmsStream, tables: Registry) -> Iterator[str]:
    """Where the declaration does not fit the contracts."""
    for source, mapping in stream.tables.items():
        if mapping.table not in tables.names:
            yield f"tables.{source}.table: {mapping.table!r} is not declared"
        else:
            yield from _column_misfits(f"tables.{source}", mapping, tables[mapping.table])


def _column_misfits(where: str, mapping: TableMapping, contract: type[Contract]) -> Iterator[str]:
    columns = columns_of(contract)
    filled: set[str] = set()
    for name, rule in mapping.columns.items():
        if rule.column not in columns:
            yield f"{where}.columns.{name}: {rule.column!r} is no column of {mapping.table!r}"
        if rule.column in filled or rule.column in mapping.constants:
            yield f"{where}.columns.{name}: {rule.column!r} is filled twice"
        filled.add(rule.column)
    for column, text in mapping.constants.items():
        if column not in columns:
            yield f"{where}.constants.{column}: is no column of {mapping.table!r}"
            continue
        try:
            contract.parse_value(column, constant_of(contract, column, text))
        except RejectedError as error:
            yield f"{where}.constants.{column}: {error.detail}"
