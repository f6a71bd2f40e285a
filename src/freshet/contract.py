"""Contracts: a table is declared once, as a pydantic class, and everything else derives from it.

A column is an annotated field whose marker (`Text(40)`, `Integer(32)`, `Money(18, 4)`, ...) is the
single source of its validation, JSON Schema, Arrow type and Iceberg type. Parsing is strict: a
value either is what the contract says or it is rejected with the column's name; nothing is coerced,
cut or rounded.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Annotated, Any, ClassVar, Literal, TypeGuard, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from freshet.errors import RejectedError, UnknownTableError

Row = dict[str, Any]

# RFC 3339 with an explicit zone and at most microseconds: what every reader of the lake can hold.
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d\d:\d\d)"
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DECIMAL = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?")
_INTEGER = re.compile(r"-?[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Text:
    """A string of at most `max_length` characters; `min_length` 1 also refuses the empty one."""

    max_length: int
    min_length: int = 0

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Strict string within its length; lone surrogates are refused by the length check.

        pydantic puts the pattern of `= Field(…, pattern=…)` before this marker: it is taken over.
        """
        before = handler(str)
        pattern = before.get("pattern") if before["type"] == "str" else None
        return core_schema.str_schema(
            strict=True, max_length=self.max_length, min_length=self.min_length, pattern=pattern
        )


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number of 32 or 64 bits."""

    bits: Literal[32, 64] = 64

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Strict integer (no bool, no 1.0) within the bits."""
        bound = 1 << (self.bits - 1)
        return core_schema.int_schema(strict=True, ge=-bound, le=bound - 1)


@dataclass(frozen=True, slots=True)
class Money:
    """An exact decimal: a JSON number, or a string of digits with an optional point."""

    precision: int = 18
    scale: int = 4

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Exact decimal; more decimals or digits than declared are refused, never rounded."""
        return core_schema.no_info_plain_validator_function(
            self._parse,
            json_schema_input_schema=core_schema.decimal_schema(),
            serialization=core_schema.to_string_ser_schema(),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        """Number or digit string, with the limits in words a reader of the schema can use."""
        digits = self.precision - self.scale
        pattern = rf"^-?\d{{1,{digits}}}(\.\d{{1,{self.scale}}})?$"
        return {"anyOf": [{"type": "number"}, {"type": "string", "pattern": pattern}]}

    def _parse(self, value: object) -> Decimal:
        number = _decimal_of(value)
        digits = self.precision - self.scale
        if number and number.adjusted() >= digits:
            raise PydanticCustomError(
                "out_of_range",
                "needs more than {digits} digits before the point",
                {"digits": digits},
            )
        exact = number.quantize(Decimal(1).scaleb(-self.scale), context=_AMPLE)
        if exact != number:
            raise PydanticCustomError(
                "out_of_range", "has more than {scale} decimals", {"scale": self.scale}
            )
        return exact


# Iceberg decimals have at most 38 digits; Python's own default of 28 would refuse some of them.
_AMPLE = Context(prec=80)


def _decimal_of(value: object) -> Decimal:
    if isinstance(value, Decimal):
        if value.is_finite():
            return value
    elif (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and _DECIMAL.fullmatch(value)
    ):
        return Decimal(value)
    raise PydanticCustomError("wrong_type", "must be a finite number or a string of digits")


@dataclass(frozen=True, slots=True)
class Real:
    """A measured number of 32 or 64 bits (IEEE 754): finite, the nearest that the bits can hold.

    For amounts take `Money`: here 0.1 is not exact. No part of a merge key or a partition.
    """

    bits: Literal[32, 64] = 64

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """A JSON number: no text, no bool, no NaN, and no whole number that would be rounded."""
        return core_schema.no_info_plain_validator_function(
            self._parse, json_schema_input_schema=core_schema.float_schema(allow_inf_nan=False)
        )

    def _parse(self, value: object) -> float:
        if not _is_number(value):
            raise PydanticCustomError("wrong_type", "must be a finite number")
        number = _nearest(value, self.bits)
        is_cut = isinstance(value, int) and number != value
        if math.isinf(number) or is_cut or (number == 0 and value != 0):
            raise PydanticCustomError(
                "out_of_range", "is more than {bits} bits hold", {"bits": self.bits}
            )
        return number


def _is_number(value: object) -> TypeGuard[float | Decimal]:
    if isinstance(value, Decimal):
        return value.is_finite()
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _nearest(value: float | Decimal, bits: int) -> float:
    """The number of these bits that is nearest; infinite beyond them."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0] if bits == 32 else value)
    except OverflowError:
        return math.inf


@dataclass(frozen=True, slots=True)
class Timestamp:
    """An instant in UTC with microseconds; text must name its zone."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """RFC 3339 text with a zone, or an aware datetime."""
        return core_schema.no_info_plain_validator_function(
            parse_timestamp, json_schema_input_schema=core_schema.datetime_schema()
        )


def parse_timestamp(value: object) -> datetime:
    """The instant in UTC that `value` names (RFC 3339 with zone, or an aware datetime).

    Raises `PydanticCustomError`: wrong_type, invalid_value or out_of_range.
    """
    if isinstance(value, str):
        if not _TIMESTAMP.fullmatch(value):
            raise PydanticCustomError(
                "invalid_value",
                "must be RFC 3339 with a zone and at most microseconds, as 2026-11-21T08:30:00Z",
            )
        try:
            return datetime.fromisoformat(value.upper()).astimezone(UTC)
        except (ValueError, OverflowError):
            raise PydanticCustomError("out_of_range", "is not a date that exists") from None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    raise PydanticCustomError("wrong_type", "must be a timestamp text with a zone")


@dataclass(frozen=True, slots=True)
class Day:
    """A calendar date, written YYYY-MM-DD."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """ISO date text or a date that carries no time."""
        return core_schema.no_info_plain_validator_function(
            _parse_date, json_schema_input_schema=core_schema.date_schema()
        )


def _parse_date(value: object) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if not isinstance(value, str):
        raise PydanticCustomError("wrong_type", "must be a date text")
    if not _DATE.fullmatch(value):
        raise PydanticCustomError("invalid_value", "must be a date as 2026-11-21")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise PydanticCustomError("out_of_range", "is not a date that exists") from None


@dataclass(frozen=True, slots=True)
class Flag:
    """True or false."""

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Strict boolean."""
        return core_schema.bool_schema(strict=True)


Handling = Literal["hash", "drop"]


@dataclass(frozen=True, slots=True)
class Pii:
    """Personal data: hashed with the deployment's key, or dropped, before it reaches the stream."""

    handling: Handling


@dataclass(frozen=True, slots=True, init=False)
class Aliases:
    """Former names of a column: the lake renames it at the next commit, and whatever still comes
    under a former name is understood.
    """

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)


@dataclass(frozen=True, slots=True)
class Deprecated:
    """On its way out: stays in the lake and may be left out of new rows. `advice` says what to use
    instead.
    """

    advice: str

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Marked for readers of the schema and of OpenAPI."""
        return {**handler(schema), "deprecated": True}


ColumnType = Text | Integer | Real | Money | Timestamp | Day | Flag
_MARKERS = (*get_args(ColumnType), Pii, Aliases, Deprecated)
_PYTHON: Mapping[type, type] = {
    Text: str,
    Integer: int,
    Real: float,
    Money: Decimal,
    Timestamp: datetime,
    Day: date,
    Flag: bool,
}


@dataclass(frozen=True, slots=True)
class PartitionField:
    """One field of a partition spec, in Iceberg's words: `day(sold_at)`, `bucket[16](sku)`."""

    transform: Literal["day", "month", "bucket", "identity"]
    column: str
    buckets: int = 0

    def __str__(self) -> str:
        """As people write it."""
        if self.transform == "identity":
            return self.column
        count = f"[{self.buckets}]" if self.transform == "bucket" else ""
        return f"{self.transform}{count}({self.column})"


@dataclass(frozen=True, slots=True)
class Column:
    """One declared column: what readers, validators and schemas need to know of it.

    `needed`: every row must say it; a column with a default is not. `aliases` are former names.
    `pattern` is what a text must match, beside its length.
    """

    name: str
    type: ColumnType
    nullable: bool
    description: str
    pii: Handling | None = None
    aliases: tuple[str, ...] = ()
    deprecated: str | None = None
    needed: bool = True
    pattern: str | None = None

    @property
    def words(self) -> str:
        """What the catalogue, the lake and Glue say of it."""
        advice = None if self.deprecated is None else f"Deprecated: {self.deprecated}"
        return ". ".join(part for part in (self.description, advice) if part)


class Contract(BaseModel):
    """Base of every declared table. An instance is one valid row.

    What a column takes is its type and, of a text, the pattern beside it (`Field(pattern="…")`):
    those are locked, and hold for patches as for rows. Any other constraint is refused.

    Subclasses name their table, merge key and partition as class keywords, and, where its versions
    must come from certain sources only, those in `trusts` (patterns as `debezium/shop`)::

        class Sale(Contract, table="sales", key=("sale_id",), partition=(PartitionField("day",
        "sold_at"),)):
            sale_id: Annotated[str, Text(64, 1)]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: ClassVar[str]
    key: ClassVar[tuple[str, ...]]
    partition: ClassVar[tuple[PartitionField, ...]]
    contract_version: ClassVar[int]
    trusts: ClassVar[tuple[str, ...]]
    columns: ClassVar[tuple[Column, ...]]
    former: ClassVar[Mapping[str, str]]
    _adapters: ClassVar[dict[str, TypeAdapter[Any]]]

    def __init_subclass__(cls, **_declaration: Any) -> None:
        """Let the declaration keywords through to `__pydantic_init_subclass__`."""
        super().__init_subclass__()

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        *,
        table: str = "",
        key: tuple[str, ...] = (),
        partition: tuple[PartitionField, ...] = (),
        contract_version: int = 1,
        trusts: tuple[str, ...] = ("*",),
        **kwargs: Any,
    ) -> None:
        """Derive the columns and check that key and partition name real ones."""
        if kwargs:  # pydantic would pass over a misspelt one
            raise TypeError(f"{cls.__name__}: knows no class keyword {', '.join(sorted(kwargs))}")
        super().__pydantic_init_subclass__()
        cls.table, cls.key, cls.partition = table, key, partition
        cls.contract_version, cls.trusts = contract_version, trusts
        _check_constraints(cls)
        cls.columns = tuple(_column(name, field) for name, field in cls.model_fields.items())
        cls.former = {alias: column.name for column in cls.columns for alias in column.aliases}
        cls._adapters = {name: _adapter(field) for name, field in cls.model_fields.items()}
        _check_declaration(cls)

    @classmethod
    def parse(cls, values: object) -> Row:
        """The valid row that `values` (a decoded JSON object) describes: Python values by column.

        Raises `RejectedError` with the first culprit's reason and column.
        """
        try:
            return dict(cls.model_validate(cls.renamed(values)).__dict__)
        except ValidationError as error:
            raise rejection_of(error) from None

    @classmethod
    def parse_key(cls, values: object) -> Row:
        """The merge-key values in `values`, an object that may hold nothing else.

        Raises `RejectedError` (missing_key, or the reason the value is not valid).
        """
        if not isinstance(values, Mapping):
            raise RejectedError(
                "missing_key", "must be an object of the merge-key columns", field="key"
            )
        given: Mapping[str, Any] = cls.renamed(values)
        for column in cls.key:
            if given.get(column) is None:
                raise RejectedError(
                    "missing_key", "is part of the merge key", field=f"key.{column}"
                )
        for column in given:
            if column not in cls.key:
                raise RejectedError(
                    "unknown_column", "is not part of the merge key", field=f"key.{column}"
                )
        return {
            column: cls.parse_value(column, given[column], field=f"key.{column}")
            for column in cls.key
        }

    @classmethod
    def parse_patch(cls, values: object) -> Row:
        """The valid values of the columns that `values` holds: some, and none of the merge key.

        Raises `RejectedError`.
        """
        if not isinstance(values, Mapping) or not values:
            raise RejectedError("wrong_type", "must be an object of at least one column")
        given: Mapping[str, Any] = cls.renamed(values)
        for column in given:
            if column in cls.key:
                detail = "is part of the merge key: delete the row and create another instead"
                raise RejectedError("key_in_patch", detail, field=str(column))
            if column not in cls._adapters:
                raise RejectedError("unknown_column", "is not declared", field=str(column))
        return {column: cls.parse_value(column, value) for column, value in given.items()}

    @classmethod
    def renamed(cls, values: Any) -> Any:
        """`values` with former names of columns replaced; what is no object comes back as it is.

        Raises `RejectedError` (unknown_column) where a column is there under two names.
        """
        if (
            not cls.former
            or not isinstance(values, Mapping)
            or cls.former.keys().isdisjoint(values)
        ):
            return values
        made: dict[Any, Any] = {}
        for name, value in values.items():
            now = cls.former.get(name, name)
            if now in made:
                detail = f"is there twice, under a former name of {now!r} too"
                raise RejectedError("unknown_column", detail, field=str(name))
            made[now] = value
        return made

    @classmethod
    def parse_value(cls, column: str, value: object, *, field: str | None = None) -> Any:
        """One column's valid value. Raises `RejectedError` naming `field` (or else the column)."""
        try:
            return cls._adapters[column].validate_python(value)
        except ValidationError as error:
            rejection = rejection_of(error)
            raise RejectedError(rejection.reason, rejection.detail, field=field or column) from None

    @classmethod
    def value_of_text(cls, column: str, text: str) -> Any:
        """The JSON value that `text` (a part of a URL path) stands for: digits for integers, else
        text.
        """
        if isinstance(cls.column(column).type, Integer) and _INTEGER.fullmatch(text):
            return int(text)
        return text

    @classmethod
    def column(cls, name: str) -> Column:
        """The declared column called `name`; KeyError where there is none."""
        return {column.name: column for column in cls.columns}[name]


def _adapter(field: FieldInfo) -> TypeAdapter[Any]:
    annotation: Any = field.annotation
    for marker in field.metadata:
        annotation = Annotated[annotation, marker]
    return TypeAdapter(annotation)


def _column(name: str, field: FieldInfo) -> Column:
    markers = _markers(field)
    [type_] = (marker for marker in markers if isinstance(marker, get_args(ColumnType)))
    nullable = type(None) in get_args(field.annotation)
    pii = next((marker.handling for marker in markers if isinstance(marker, Pii)), None)
    aliases = tuple(
        alias for marker in markers if isinstance(marker, Aliases) for alias in marker.names
    )
    advice = next((marker.advice for marker in markers if isinstance(marker, Deprecated)), None)
    pattern = next((marker.pattern for marker in markers if _is_pattern(marker)), None)
    description = " ".join((field.description or "").split())
    needed = field.is_required()
    return Column(name, type_, nullable, description, pii, aliases, advice, needed, pattern)


def _markers(field: FieldInfo) -> list[Any]:
    """All markers, also those in `Annotated[str, Text(9)] | None`, which pydantic leaves inside."""
    nested = (getattr(option, "__metadata__", ()) for option in get_args(field.annotation))
    found = [*field.metadata, *(marker for markers in nested for marker in markers)]
    split = (one.metadata if isinstance(one, FieldInfo) else [one] for one in found)
    return [marker for markers in split for marker in markers]


def _is_pattern(marker: Any) -> bool:
    """Whether it is what pydantic makes of `Field(pattern="…")`, with nothing else in it."""
    return getattr(marker, "__dict__", {}).keys() == {"pattern"}


def _check_constraints(contract: type[Contract]) -> None:
    """Whatever narrows a column is in its `Column`; else lock and patches would not know of it."""
    made = contract.__pydantic_decorators__
    if any((made.validators, made.field_validators, made.root_validators, made.model_validators)):
        raise TypeError(
            f"{contract.__name__}: has a validator, which the lock cannot hold: validate in the "
            "source"
        )
    for name, field in contract.model_fields.items():
        _check_constraint(f"{contract.__name__}: column {name!r}", field)


def _check_constraint(where: str, field: FieldInfo) -> None:
    markers = _markers(field)
    types = [marker for marker in markers if isinstance(marker, get_args(ColumnType))]
    if len(types) != 1:
        raise TypeError(f"{where}: must have one column type marker, has {types or 'none'}")
    python = _PYTHON[type(types[0])]
    if _beside(field.annotation) not in (python, Any):
        form = f"Annotated[{python.__name__}, {types[0]}]"
        raise TypeError(f"{where}: declare it as `{form}` or `{form} | None`, nothing narrower")
    patterns = [marker.pattern for marker in markers if _is_pattern(marker)]
    if patterns and (python is not str or len(patterns) > 1 or not isinstance(patterns[0], str)):
        raise TypeError(f"{where}: can have one pattern, written as a string, if it is a Text")
    for marker in markers:
        if not isinstance(marker, _MARKERS) and not _is_pattern(marker):
            raise TypeError(
                f"{where}: {marker!r} is no part of a contract: say it in the type (`Text(5, 3)`: "
                "3 to 5 characters, `Integer(32)`, `Money(9, 2)`) or, of a text, by a pattern; "
                "validate anything else in the source"
            )
    if field.validation_alias is not None:
        raise TypeError(f'{where}: for a former name declare `Aliases("…")`, and not an alias')


def _beside(annotation: Any) -> Any:
    """The Python type that a column's marker stands beside, in `Annotated[str, …] | None` too."""
    options = get_args(annotation)
    marked = [one.__origin__ for one in options if hasattr(one, "__metadata__")]
    return marked[0] if marked and type(None) in options else annotation


def _check_declaration(contract: type[Contract]) -> None:
    names = {column.name: column for column in contract.columns}
    for column in contract.key:
        if column not in names or names[column].nullable:
            raise TypeError(
                f"{contract.__name__}: key column {column!r} must be declared, required"
            )
    for field in contract.partition:
        if field.column not in names:
            raise TypeError(
                f"{contract.__name__}: partition column {field.column!r} is not declared"
            )
    for declared in contract.columns:
        _check_pii(contract, declared)
        _check_words(contract, declared)
        _check_retired(contract, declared)
    _check_names(contract)
    if any(name.startswith("_") for name in names):
        raise TypeError(f"{contract.__name__}: column names beginning with '_' are the lake's own")


# A column's comment in Glue, and a table's (AWS Glue API, Column and TableInput).
COLUMN_WORDS_MAX, TABLE_WORDS_MAX = 255, 2048


def _check_words(contract: type[Contract], column: Column) -> None:
    """What is said of a column must fit where engines show it."""
    if len(column.words) > COLUMN_WORDS_MAX:
        raise TypeError(
            f"{contract.__name__}: column {column.name!r}: its description must have at most "
            f"{COLUMN_WORDS_MAX} characters, Glue's limit"
        )


def _check_retired(contract: type[Contract], column: Column) -> None:
    """What every row must have cannot be on its way out; what identifies it must be exact."""
    where = f"{contract.__name__}: column {column.name!r}"
    identifies = {*contract.key, *(field.column for field in contract.partition)}
    if column.deprecated is not None and (
        not column.nullable or column.needed or column.name in identifies
    ):
        raise TypeError(
            f"{where}: to be deprecated it must be optional with a default (`| None = Field(None)`)"
            ", and no part of key or partition"
        )
    if isinstance(column.type, Real) and column.name in identifies:
        raise TypeError(f"{where}: Real is not exact, and so no part of key or partition")


def _check_names(contract: type[Contract]) -> None:
    """A name, present or former, means one column, in any case: Glue and Athena fold it."""
    taken: dict[str, str] = {}
    for column in contract.columns:
        where = f"{contract.__name__}: column {column.name!r}"
        other = taken.setdefault(column.name.casefold(), column.name)
        if other != column.name:
            raise TypeError(f"{where}: Glue and Athena take it for {other!r}; call it otherwise")
    for column in contract.columns:
        for alias in column.aliases:
            if alias.casefold() in taken or not alias or alias.startswith("_"):
                raise TypeError(
                    f"{contract.__name__}: column {column.name!r}: its former name {alias!r} is a "
                    "column's name (Glue and Athena fold case), empty or begins with '_'; take a "
                    "name that was never used"
                )
            taken[alias.casefold()] = alias


# What a hash is written as: `hmac:` and 40 hexadecimal digits (`freshet.pii`).
HASHED_EXAMPLE = "hmac:" + "0" * 40
HASHED_LENGTH = len(HASHED_EXAMPLE)


def _check_pii(contract: type[Contract], column: Column) -> None:
    """A handling must leave a value that the column can hold."""
    where = f"{contract.__name__}: column {column.name!r}"
    if column.pii == "hash" and not (
        isinstance(column.type, Text) and column.type.max_length >= HASHED_LENGTH
    ):
        raise TypeError(f"{where}: to be hashed it must be Text({HASHED_LENGTH}) or longer")
    if column.pii == "drop" and not column.nullable:
        raise TypeError(f"{where}: to be dropped it must be optional (`| None`), and no key")
    if column.pii == "drop" and column.name in {field.column for field in contract.partition}:
        raise TypeError(f"{where}: to be dropped it must not be what the table is partitioned by")
    if column.pii == "hash":
        try:
            contract.parse_value(column.name, HASHED_EXAMPLE)
        except RejectedError as error:
            raise TypeError(f"{where}: refuses {HASHED_EXAMPLE!r}, what it will hold") from error


# Pydantic's error types -> our stable reason codes; types of ours pass through unchanged.
_REASONS = {
    "missing": "missing_column",
    "extra_forbidden": "unknown_column",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "string_unicode": "invalid_text",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "int_parsing_size": "out_of_range",
    "out_of_range": "out_of_range",
    "invalid_value": "invalid_value",
    "value_error": "invalid_value",
    "literal_error": "invalid_value",
    "string_pattern_mismatch": "invalid_value",
}


def rejection_of(error: ValidationError) -> RejectedError:
    """The first problem of a validation, as a rejection with reason and column path."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or None
    reason = _REASONS.get(first["type"], "wrong_type")
    return RejectedError(reason, first["msg"], field=field)


class Registry:
    """The declared tables by name."""

    def __init__(self, contracts: tuple[type[Contract], ...]) -> None:
        self._contracts = {contract.table: contract for contract in contracts}

    @property
    def names(self) -> tuple[str, ...]:
        """Table names in order of declaration."""
        return tuple(self._contracts)

    def __iter__(self) -> Any:
        return iter(self._contracts.values())

    def __getitem__(self, table: str) -> type[Contract]:
        """The contract of `table`; raises `UnknownTableError` naming those that exist."""
        try:
            return self._contracts[table]
        except (KeyError, TypeError):
            raise UnknownTableError(str(table), self.names) from None
