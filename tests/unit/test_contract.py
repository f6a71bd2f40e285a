"""Contracts: strict values, names for every mistake, and declarations that check themselves."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from freshet.contract import (
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    PartitionField,
    Pii,
    Registry,
    Text,
    Timestamp,
)
from freshet.errors import RejectedError, UnknownTableError
from freshet.event import parse_key_text
from freshet.tables import TABLES
from freshet.testing import product_row, rate_row, sale_row


class Sample(
    Contract, table="samples", key=("id",), partition=(PartitionField("bucket", "id", 4),)
):
    """Every column type once."""

    id: Annotated[int, Integer(64)]
    text: Annotated[str, Text(5, 1)] | None = Field(None, description="Short")
    small: Annotated[int, Integer(32)] | None = None
    money: Annotated[Decimal, Money(6, 2)] | None = None
    at: Annotated[datetime, Timestamp()] | None = None
    day: Annotated[date, Day()] | None = None
    flag: Annotated[bool, Flag()] | None = None


GOOD = [
    ("text", "é" * 5, "é" * 5),
    ("text", None, None),
    ("small", -(2**31), -(2**31)),
    ("small", 2**31 - 1, 2**31 - 1),
    ("id", 2**63 - 1, 2**63 - 1),
    ("money", "1234.5", Decimal("1234.50")),
    ("money", 7, Decimal("7.00")),
    ("money", Decimal("-9999.99"), Decimal("-9999.99")),
    ("money", Decimal("1E+3"), Decimal("1000.00")),
    ("at", "2026-11-21T09:30:00.123456+01:00", datetime(2026, 11, 21, 8, 30, 0, 123456, UTC)),
    ("at", "2026-11-21 08:30:00z", datetime(2026, 11, 21, 8, 30, tzinfo=UTC)),
    ("day", "2024-02-29", date(2024, 2, 29)),
    ("flag", False, False),
]

BAD = [
    ("text", "", "too_short"),
    ("text", "x" * 6, "too_long"),
    ("text", 5, "wrong_type"),
    ("text", b"abc", "wrong_type"),
    ("text", "\ud800", "invalid_text"),
    ("small", 2**31, "out_of_range"),
    ("small", True, "wrong_type"),
    ("small", Decimal("1.0"), "wrong_type"),
    ("small", "1", "wrong_type"),
    ("id", 2**63, "out_of_range"),
    ("id", 10**4000, "out_of_range"),
    ("id", None, "wrong_type"),
    ("money", "1.234", "out_of_range"),
    ("money", "12345.00", "out_of_range"),
    ("money", Decimal("NaN"), "wrong_type"),
    ("money", Decimal("Infinity"), "wrong_type"),
    ("money", Decimal("1E+999999"), "out_of_range"),
    ("money", Decimal("1E-999999"), "out_of_range"),
    ("money", 10**4000, "out_of_range"),
    ("money", "1e3", "wrong_type"),
    ("money", "\u0661", "wrong_type"),
    ("money", "", "wrong_type"),
    ("money", True, "wrong_type"),
    ("money", 1.5, "wrong_type"),
    ("at", "2026-11-21T08:30:00", "invalid_value"),
    ("at", "2026-11-21", "invalid_value"),
    ("at", "2026-11-21T08:30:00.1234567Z", "invalid_value"),
    ("at", "2026-13-21T08:30:00Z", "out_of_range"),
    ("at", "9999-12-31T23:59:59-01:00", "out_of_range"),
    ("at", 0, "wrong_type"),
    ("at", datetime(2026, 11, 21), "wrong_type"),  # noqa: DTZ001
    ("day", "2026-02-30", "out_of_range"),
    ("day", "20260101", "invalid_value"),
    ("day", datetime(2026, 11, 21, tzinfo=UTC), "wrong_type"),
    ("flag", 1, "wrong_type"),
    ("flag", "true", "wrong_type"),
    ("nope", 1, "unknown_column"),
]


@pytest.mark.parametrize(("column", "value", "parsed"), GOOD, ids=str)
def test_a_valid_value_is_parsed_and_never_rounded(column: str, value: Any, parsed: Any) -> None:
    row = Sample.parse({"id": 1, column: value})

    assert row[column] == parsed
    assert type(row[column]) is type(parsed)


@pytest.mark.parametrize(
    ("column", "value", "reason"), BAD, ids=lambda value: str(type(value).__name__)
)
def test_an_invalid_value_is_rejected_with_its_column(column: str, value: Any, reason: str) -> None:
    with pytest.raises(RejectedError) as raised:
        Sample.parse({"id": 1, column: value})

    assert (raised.value.reason, raised.value.field) == (reason, column)


def test_money_keeps_the_declared_scale() -> None:
    assert str(Sample.parse({"id": 1, "money": 7})["money"]) == "7.00"


def test_a_missing_column_is_named_and_a_nullable_one_is_none() -> None:
    with pytest.raises(RejectedError, match="missing_column: id"):
        Sample.parse({})

    assert Sample.parse({"id": 1})["text"] is None


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("-7", -7), ("0007", 7)])
def test_digits_in_a_path_are_an_integer_key(text: str, number: int) -> None:
    assert parse_key_text(Sample, text) == {"id": number}


@pytest.mark.parametrize(
    "text",
    ["--5", "1.0", "x", "9" * 5000, "\u0663", "", "9223372036854775808"],
    ids=lambda text: text[:20],
)
def test_a_path_that_is_no_integer_key_is_rejected(text: str) -> None:
    with pytest.raises(RejectedError) as raised:
        parse_key_text(Sample, text)

    assert raised.value.field == "key.id"


def test_columns_carry_type_nullability_and_description() -> None:
    text = Sample.column("text")

    assert (text.type, text.nullable, text.description) == (Text(5, 1), True, "Short")
    assert Sample.column("id").nullable is False


@pytest.mark.parametrize(
    ("declaration", "complaint"),
    [
        ({"key": ("nope",)}, "key column 'nope'"),
        ({"key": ("note",)}, "key column 'note'"),
        ({"key": ("id",), "partition": (PartitionField("day", "when"),)}, "'when' is not declared"),
    ],
)
def test_a_declaration_that_names_a_wrong_column_is_refused(
    declaration: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):

        class Wrong(Contract, table="wrong", **declaration):
            id: Annotated[int, Integer()]
            note: Annotated[str, Text(9)] | None = None


def test_the_json_schema_states_the_limits_of_every_column() -> None:
    schema = Sample.model_json_schema()["properties"]

    assert schema["id"]["maximum"] == 2**63 - 1
    assert schema["text"]["anyOf"][0] == {"type": "string", "maxLength": 5, "minLength": 1}
    assert {"type": "number"} in schema["money"]["anyOf"]
    assert {"type": "null"} in schema["money"]["anyOf"]
    assert schema["at"]["anyOf"][0]["format"] == "date-time"


@pytest.mark.parametrize(
    ("table", "row"),
    [("sales", sale_row()), ("products", product_row()), ("exchange_rates", rate_row())],
)
def test_each_shipped_table_takes_its_sample_row(table: str, row: dict[str, Any]) -> None:
    assert TABLES[table].parse(row).keys() >= row.keys()


def test_an_unknown_table_is_named_together_with_the_known_ones() -> None:
    with pytest.raises(UnknownTableError) as raised:
        Registry((Sample,))["sales"]

    assert (raised.value.table, raised.value.known) == ("sales", ("samples",))


@pytest.mark.parametrize(
    "text", ["1234567890123456789012.34", "-9999999999999999999999999999999.99"]
)
def test_decimals_beyond_pythons_default_precision_are_exact(text: str) -> None:
    """28 digits is Python's default: valid numbers were refused, some with an untyped error."""
    wide: TypeAdapter[Decimal] = TypeAdapter(Annotated[Decimal, Money(38, 2)])

    assert str(wide.validate_python(text)) == text


@pytest.mark.parametrize("number", [Decimal("1E+999999"), Decimal("1E-999999")])
def test_a_decimal_of_absurd_size_is_refused(number: Decimal) -> None:
    wide: TypeAdapter[Decimal] = TypeAdapter(Annotated[Decimal, Money(38, 10)])

    with pytest.raises(ValidationError):
        wide.validate_python(number)


def declare_pii(annotation: Any, **keywords: Any) -> type[Contract]:
    namespace = {
        "__module__": __name__,
        "__annotations__": {"id": Annotated[str, Text(64, 1)], "name": annotation},
    }
    keywords = {"table": "people", "key": ("id",), **keywords}
    return type("Person", (Contract,), namespace, **keywords)


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, Text(64), Pii("hash")],
        Annotated[str, Text(64), Pii("hash")] | None,
        Annotated[Annotated[str, Text(64)] | None, Pii("hash")],
    ],
)
def test_a_personal_column_is_known_as_such_wherever_its_marker_stands(annotation: Any) -> None:
    assert declare_pii(annotation).column("name").pii == "hash"


@pytest.mark.parametrize(
    ("annotation", "keywords", "complaint"),
    [
        (Annotated[str, Text(44), Pii("hash")], {}, "must be Text"),
        (Annotated[int, Integer(), Pii("hash")], {}, "must be Text"),
        (Annotated[str, Text(64), Field(pattern="^[0-9]+$"), Pii("hash")], {}, "refuses 'hmac:"),
        (Annotated[str, Text(64), Pii("drop")], {}, "must be optional"),
        (
            Annotated[str, Text(64), Pii("drop")] | None,
            {"partition": (PartitionField("bucket", "name", 4),)},
            "partitioned by",
        ),
    ],
)
def test_a_handling_that_leaves_no_value_the_column_can_hold_is_refused(
    annotation: Any, keywords: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):
        declare_pii(annotation, **keywords)


def test_a_class_keyword_nobody_knows_is_refused_and_not_passed_over() -> None:
    with pytest.raises(TypeError, match="knows no class keyword version"):
        declare_pii(Annotated[str, Text(9)], version=2)


PATTERN = "^[A-Z]{3}$"


def declare_code(annotation: Any, field: Any = ...) -> type[Contract]:
    namespace = {
        "__module__": __name__,
        "__annotations__": {"id": Annotated[str, Text(64, 1)], "code": annotation},
        "code": field,
    }
    return type("Coded", (Contract,), namespace, table="coded", key=("id",))


PATTERNED: dict[str, tuple[Any, Any]] = {
    "in the type": (Annotated[str, Text(5), Field(pattern=PATTERN)], ...),
    "in the type, before the marker": (Annotated[str, Field(pattern=PATTERN), Text(5)], ...),
    "beside the description": (Annotated[str, Text(5)], Field(description="C", pattern=PATTERN)),
    "of anything": (Annotated[Any, Text(5)], Field(description="C", pattern=PATTERN)),
    "with a default": (Annotated[str, Text(5)], Field("EUR", pattern=PATTERN)),
    "in an optional type": (Annotated[str, Text(5), Field(pattern=PATTERN)] | None, None),
    "first in an optional type": (Annotated[str, Field(pattern=PATTERN), Text(5)] | None, None),
    "beside an optional type": (Annotated[str, Text(5)] | None, Field(None, pattern=PATTERN)),
    "around an optional type": (
        Annotated[Annotated[str, Text(5)] | None, Field(pattern=PATTERN)],
        None,
    ),
}


@pytest.mark.parametrize("form", PATTERNED)
def test_a_pattern_holds_for_rows_and_patches_wherever_it_stands(form: str) -> None:
    coded = declare_code(*PATTERNED[form])

    assert coded.column("code").pattern == PATTERN
    assert PATTERN in str(coded.model_json_schema()["properties"]["code"])
    assert coded.parse({"id": "1", "code": "EUR"})["code"] == "EUR"
    for parse in (coded.parse_patch, lambda row: coded.parse({"id": "1", **row})):
        with pytest.raises(RejectedError, match="invalid_value: code"):
            parse({"code": "eu1"})
        with pytest.raises(RejectedError, match="too_long: code"):
            parse({"code": "EUROPE"})


WHOLE, WORD, SUM = Annotated[int, Integer(32)], Annotated[str, Text(5)], Annotated[Decimal, Money()]
UNLOCKABLE: dict[str, tuple[Any, Any, str]] = {
    "bounds in the type": (Annotated[int, Integer(32), Field(ge=1, le=9)], ..., r"Ge\(ge=1\)"),
    "a bound beside the description": (WHOLE, Field(description="C", ge=1), r"Ge\(ge=1\)"),
    "a bound beside an optional type": (WHOLE | None, Field(None, lt=9), "Lt"),
    "a bound in an optional type": (Annotated[int, Integer(), Field(gt=0)] | None, None, "Gt"),
    "a bound of money": (SUM, Field(ge=0), "Ge"),
    "a bound of money in its type": (Annotated[Decimal, Money(), Field(ge=0)], ..., "Ge"),
    "steps": (Annotated[int, Integer(32), Field(multiple_of=5)], ..., "MultipleOf"),
    "a length in the type": (Annotated[str, Text(5), Field(min_length=3)], ..., "MinLen"),
    "a length beside the description": (WORD, Field(max_length=3), r"`Text\(5, 3\)`"),
    "text constraints": (Annotated[str, Text(5), StringConstraints(to_upper=True)], ..., "Strin"),
    "a function": (Annotated[str, Text(5), AfterValidator(str.upper)], ..., "AfterValidator"),
    "a pattern and more": (WORD, Field(pattern="^x", coerce_numbers_to_str=True), "no part of a"),
    "two patterns": (Annotated[str, Text(5), Field(pattern="^x")], Field(pattern="y$"), "one patt"),
    "a compiled pattern": (WORD, Field(pattern=re.compile("^x", re.IGNORECASE)), "as a string"),
    "a pattern of a day": (Annotated[date, Day()], Field(pattern="^2"), "if it is a Text"),
    "two types": (Annotated[str, Text(5), Text(3)], ..., "one column type marker"),
    "no type": (str, ..., "one column type marker, has none"),
    "some words": (Annotated[Literal["a"], Text(5)], ..., r"`Annotated\[str, Text\("),
    "some optional words": (Annotated[Literal["a"], Text(5)] | None, None, r"\] \| None`"),
    "a type around none": (Annotated[str | None, Text(5)], None, r"\] \| None`"),
    "a list": (list[Annotated[str, Text(5)]], ..., "declare it as"),
    "an alias": (WORD, Field(alias="was"), "Aliases"),
}


@pytest.mark.parametrize("case", UNLOCKABLE)
def test_what_the_lock_cannot_hold_is_refused_by_name(case: str) -> None:
    annotation, field, words = UNLOCKABLE[case]

    with pytest.raises(TypeError, match=f"Coded: column 'code': .*{words}"):
        declare_code(annotation, field)


@pytest.mark.parametrize(
    "decorate", [field_validator("id"), model_validator(mode="before")], ids=["field", "model"]
)
def test_a_validator_which_patches_would_pass_by_is_refused(decorate: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="Checked: has a validator"):

        class Checked(Contract, table="checked", key=("id",)):
            id: Annotated[str, Text(5)]

            @decorate
            @classmethod
            def check(cls, value: Any) -> Any:
                return value
