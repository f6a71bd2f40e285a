"""Contracts: a table is declared once, as a pydantic class, and everything else derives from it.

A column is an annotated field whose marker (`Text(40)`, `Integer(32)`, `Money(18, 4)`, ...) is the
single source of its validation, JSON Schema, Arrow type and Iceberg type. Parsing is strict: a
value either is what the contract says or it is rejected with the column's name; nothing is coerced,
cut or rounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
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
        """Strict string within its length; lone surrogates are refused by the length check."""
        return core_schema.str_schema(
            strict=True, max_length=self.max_length, min_length=self.min_length
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


ColumnType = Text | Integer | Money | Timestamp | Day | Flag


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
    """One declared column: what readers, validators and schemas need to know of it."""

    name: str
    type: ColumnType
    nullable: bool
    description: str


class Contract(BaseModel):
    """Base of every declared table. An instance is one valid row.

    Subclasses name their table, merge key and partition as class keywords::

        class Sale(Contract, table="sales", key=("sale_id",), partition=(PartitionField("day",
        "sold_at"),)):
            sale_id: Annotated[str, Text(64, 1)]
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    table: ClassVar[str]
    key: ClassVar[tuple[str, ...]]
    partition: ClassVar[tuple[PartitionField, ...]]
    contract_version: ClassVar[int]
    columns: ClassVar[tuple[Column, ...]]
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
        **kwargs: Any,
    ) -> None:
        """Derive the columns and check that key and partition name real ones."""
        super().__pydantic_init_subclass__(**kwargs)
        cls.table, cls.key, cls.partition = table, key, partition
        cls.contract_version = contract_version
        cls.columns = tuple(_column(name, field) for name, field in cls.model_fields.items())
        cls._adapters = {name: _adapter(field) for name, field in cls.model_fields.items()}
        _check_declaration(cls)

    @classmethod
    def parse(cls, values: object) -> Row:
        """The valid row that `values` (a decoded JSON object) describes: Python values by column.

        Raises `RejectedError` with the first culprit's reason and column.
        """
        try:
            return dict(cls.model_validate(values).__dict__)
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
        for column in cls.key:
            if values.get(column) is None:
                raise RejectedError(
                    "missing_key", "is part of the merge key", field=f"key.{column}"
                )
        for column in values:
            if column not in cls.key:
                raise RejectedError(
                    "unknown_column", "is not part of the merge key", field=f"key.{column}"
                )
        return {
            column: cls.parse_value(column, values[column], field=f"key.{column}")
            for column in cls.key
        }

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
    marker = next((m for m in field.metadata if isinstance(m, get_args(ColumnType))), None)
    if marker is None:
        marker = _nested_marker(field)
    nullable = type(None) in get_args(field.annotation)
    return Column(name, marker, nullable, field.description or "")


def _nested_marker(field: FieldInfo) -> ColumnType:
    """The marker inside `Annotated[str, Text(9)] | None`, which pydantic leaves inside."""
    for option in get_args(field.annotation):
        for marker in getattr(option, "__metadata__", ()):
            if isinstance(marker, get_args(ColumnType)):
                return marker  # type: ignore[no-any-return]
    raise TypeError(f"column of annotation {field.annotation!r} has no column type marker")


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
    if any(name.startswith("_") for name in names):
        raise TypeError(f"{contract.__name__}: column names beginning with '_' are the lake's own")


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
