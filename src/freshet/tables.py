"""The tables Freshet ships. Adding a table is adding a class here and listing it in `TABLES`."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import Field

from freshet.contract import (
    Contract,
    Day,
    Integer,
    Money,
    PartitionField,
    Registry,
    Text,
    Timestamp,
)

Currency = Annotated[str, Text(3, 3), Field(pattern="^[A-Z]{3}$")]


class Sale(
    Contract, table="sales", key=("sale_id",), partition=(PartitionField("day", "sold_at"),)
):
    """One line of an invoice in its current state: a return raises `returned_quantity` of the
    sale.
    """

    sale_id: Annotated[str, Text(64, 1)] = Field(description="Invoice number and line, unique")
    invoice_no: Annotated[str, Text(32, 1)] = Field(description="Invoice the line belongs to")
    line: Annotated[int, Integer(32)] = Field(
        description="Position of the line in its invoice, from 1"
    )
    sku: Annotated[str, Text(64, 1)] = Field(description="Stock code of the product sold")
    description: Annotated[str, Text(400)] | None = Field(
        None, description="Product text on the line"
    )
    quantity: Annotated[int, Integer(32)] = Field(
        description="Units sold; negative for a return that names no sale"
    )
    returned_quantity: Annotated[int, Integer(32)] = Field(0, description="Units returned since")
    unit_price: Annotated[Decimal, Money(18, 4)] = Field(description="Price of one unit")
    currency: Currency = Field(description="ISO 4217 code of the price")
    customer_id: Annotated[str, Text(64)] | None = Field(None, description="Customer, if known")
    country: Annotated[str, Text(64)] | None = Field(None, description="Customer's country")
    sold_at: Annotated[datetime, Timestamp()] = Field(description="When the line was sold")


class Product(
    Contract,
    table="products",
    key=("product_id",),
    partition=(PartitionField("bucket", "product_id", 4),),
):
    """One product of a shop's catalogue as the shop shows it now."""

    product_id: Annotated[str, Text(64, 1)] = Field(description="The shop's own id of the product")
    sku: Annotated[str, Text(200)] | None = Field(None, description="Stock code (the shop's slug)")
    title: Annotated[str, Text(400)] = Field(description="Name shown to customers")
    description: Annotated[str, Text(4000)] | None = Field(
        None, description="Text shown to customers"
    )
    price: Annotated[Decimal, Money(18, 4)] = Field(description="Current price of one unit")
    currency: Currency = Field(description="ISO 4217 code of the price")
    category_id: Annotated[str, Text(64)] | None = Field(None, description="Category id")
    category: Annotated[str, Text(200)] | None = Field(None, description="Category name")
    image_url: Annotated[str, Text(2000)] | None = Field(None, description="First picture")
    created_at: Annotated[datetime, Timestamp()] | None = Field(None, description="Listed since")
    updated_at: Annotated[datetime, Timestamp()] | None = Field(
        None, description="The shop's own time of last change"
    )


class ExchangeRate(
    Contract,
    table="exchange_rates",
    key=("currency", "rate_date"),
    partition=(PartitionField("month", "rate_date"),),
):
    """The euro reference rate of one currency on one day: units of `currency` for one EUR."""

    currency: Currency = Field(description="ISO 4217 code")
    rate_date: Annotated[date, Day()] = Field(description="Day the rate was published for")
    rate: Annotated[Decimal, Money(18, 6)] = Field(description="Units of the currency for one EUR")


TABLES = Registry((Sale, Product, ExchangeRate))

__all__ = ["TABLES", "ExchangeRate", "Product", "Sale"]
