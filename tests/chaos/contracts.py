"""The tables of the chaos run, in two versions of their contracts.

Half-way the consumer restarts with the second: `sales` has an optional column more and takes longer
countries, and `vouchers` is declared, of which only rejected lines were known until then.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from pydantic import Field
from tests.encoders.history import SourceTable

from freshet.contract import Contract, Flag, Integer, Money, PartitionField, Registry, Text
from freshet.contract import Timestamp as Instant
from freshet.mapping import DebeziumStream, DmsStream, Streams
from freshet.tables import Product, Sale


class SaleNext(
    Sale,
    table="sales",
    key=("sale_id",),
    partition=(PartitionField("day", "sold_at"),),
    contract_version=2,
):
    """Sales as the second version declares them."""

    country: Annotated[str, Text(200)] | None = Field(None, description="Customer's country")
    channel: Annotated[str, Text(20)] | None = Field(None, description="Where it was sold")


class Stock(
    Contract,
    table="stock",
    key=("sku",),
    partition=(PartitionField("bucket", "sku", 2),),
    trusts=("debezium/warehouse",),
):
    """What a Debezium connector sends."""

    sku: Annotated[str, Text(40, 1)] = Field(description="Key")
    units: Annotated[int, Integer(64)] | None = Field(None, description="Whole number")
    cost: Annotated[Decimal, Money(18, 4)] | None = Field(None, description="Exact")
    note: Annotated[str, Text(400)] | None = Field(None, description="Long text, kept aside")
    counted_at: Annotated[datetime, Instant()] | None = Field(None, description="Instant")


class Shipment(
    Contract,
    table="shipments",
    key=("shipment_id",),
    partition=(PartitionField("bucket", "shipment_id", 2),),
    trusts=("dms/carrier",),
):
    """What an AWS DMS task sends."""

    shipment_id: Annotated[str, Text(40, 1)] = Field(description="Key")
    parcels: Annotated[int, Integer(64)] | None = Field(None, description="Whole number")
    fee: Annotated[Decimal, Money(18, 4)] | None = Field(None, description="Exact")
    note: Annotated[str, Text(400)] | None = Field(None, description="Text")
    delivered: Annotated[bool, Flag()] | None = Field(None, description="Flag")


class Voucher(
    Contract, table="vouchers", key=("code",), partition=(PartitionField("bucket", "code", 2),)
):
    """A table that nobody had declared when its first rows came."""

    code: Annotated[str, Text(40, 1)] = Field(description="Key")
    amount: Annotated[Decimal, Money(18, 4)] = Field(description="Exact")


FIRST = Registry((Sale, Product, Stock, Shipment))
SECOND = Registry((SaleNext, Product, Stock, Shipment, Voucher))
STREAMS = Streams(
    (
        DebeziumStream(name="warehouse"),
        DmsStream(name="carrier", match="carrier", missing="unchanged"),
    )
)
STOCK = SourceTable(
    "stock",
    {
        "sku": "text",
        "units": "bigint",
        "cost": "numeric(4)",
        "note": "text",
        "counted_at": "timestamp",
    },
    ("sku",),
    "note",
)
SHIPMENTS = SourceTable(
    "shipments",
    {
        "shipment_id": "text",
        "parcels": "bigint",
        "fee": "numeric(4)",
        "note": "text",
        "delivered": "boolean",
    },
    ("shipment_id",),
)
