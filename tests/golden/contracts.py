"""The tables of the golden files: those of the documents' own examples, and one of every type."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

from freshet.contract import (
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    PartitionField,
    Registry,
    Text,
    Timestamp,
)


class Customer(
    Contract, table="customers", key=("id",), partition=(PartitionField("bucket", "id", 2),)
):
    """`inventory.customers` of Debezium's tutorial and reference."""

    id: Annotated[int, Integer(32)]
    first_name: Annotated[str, Text(255)]
    last_name: Annotated[str, Text(255)]
    email: Annotated[str, Text(255)]


class Foo(Contract, table="foo", key=("id",), partition=(PartitionField("bucket", "id", 2),)):
    """The table of the recorded DMS stream."""

    id: Annotated[int, Integer(32)]
    name: Annotated[str, Text(255)] | None = None
    age: Annotated[int, Integer(32)] | None = None
    attributes: Annotated[str, Text(4000)] | None = None


class Everything(
    Contract, table="everything", key=("id",), partition=(PartitionField("bucket", "id", 2),)
):
    """One column of each type a contract knows."""

    id: Annotated[str, Text(64, 1)]
    text: Annotated[str, Text(4000)] | None = None
    small: Annotated[int, Integer(32)] | None = None
    big: Annotated[int, Integer(64)] | None = None
    amount: Annotated[Decimal, Money(18, 4)] | None = None
    wide: Annotated[Decimal, Money(38, 0)] | None = None
    flag: Annotated[bool, Flag()] | None = None
    day: Annotated[date, Day()] | None = None
    moment: Annotated[datetime, Timestamp()] | None = None


GOLDEN_TABLES = Registry((Customer, Foo, Everything))
