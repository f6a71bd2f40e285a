"""The tables Freshet ships. Adding a table is adding a class here and listing it in `TABLES`."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import Field

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
    customer_id: Annotated[str, Text(64), Pii("hash")] | None = Field(
        None, description="Customer, if known; hashed with the deployment's key"
    )
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


class Category(
    Contract,
    table="categories",
    key=("category_id",),
    partition=(PartitionField("bucket", "category_id", 2),),
):
    """One category of a shop's catalogue."""

    category_id: Annotated[str, Text(64, 1)] = Field(description="The shop's own id")
    name: Annotated[str, Text(200)] = Field(description="Name shown to customers")
    slug: Annotated[str, Text(200)] | None = Field(None, description="Name in addresses")
    image_url: Annotated[str, Text(2000)] | None = Field(None, description="Picture")
    created_at: Annotated[datetime, Timestamp()] | None = Field(None, description="Listed since")
    updated_at: Annotated[datetime, Timestamp()] | None = Field(
        None, description="The shop's own time of last change"
    )


SpotifyId = Annotated[str, Text(64, 1)]
Precision = Annotated[str, Text(5), Field(pattern="^(year|month|day)$")]


class Artist(
    Contract,
    table="artists",
    key=("artist_id",),
    partition=(PartitionField("bucket", "artist_id", 4),),
):
    """One artist of a music catalogue."""

    artist_id: SpotifyId = Field(description="The catalogue's id of the artist")
    name: Annotated[str, Text(400)] = Field(description="Name of the artist")
    url: Annotated[str, Text(2000)] | None = Field(None, description="Page for listeners")
    image_url: Annotated[str, Text(2000)] | None = Field(None, description="Widest picture")


class Album(
    Contract,
    table="albums",
    key=("album_id",),
    partition=(PartitionField("bucket", "album_id", 4),),
):
    """One album, single or compilation of a music catalogue."""

    album_id: SpotifyId = Field(description="The catalogue's id of the album")
    title: Annotated[str, Text(400)] = Field(description="Name of the album")
    album_type: Annotated[str, Text(32)] | None = Field(
        None, description="album, single or compilation"
    )
    artist_id: SpotifyId | None = Field(None, description="First artist's id")
    artists: Annotated[str, Text(2000)] | None = Field(None, description="All artists' names")
    release_date: Annotated[date, Day()] | None = Field(
        None, description="Released on; first day of a month or year known no better"
    )
    release_date_precision: Precision | None = Field(
        None, description="How much of release_date is known"
    )
    total_tracks: Annotated[int, Integer(32)] | None = Field(None, description="Tracks on it")
    image_url: Annotated[str, Text(2000)] | None = Field(None, description="Widest cover")
    url: Annotated[str, Text(2000)] | None = Field(None, description="Page for listeners")


class Track(
    Contract,
    table="tracks",
    key=("track_id",),
    partition=(PartitionField("bucket", "track_id", 4),),
):
    """One track of a music catalogue."""

    track_id: SpotifyId = Field(description="The catalogue's id of the track")
    title: Annotated[str, Text(400)] = Field(description="Name of the track")
    album_id: SpotifyId | None = Field(None, description="Album it is on")
    artist_id: SpotifyId | None = Field(None, description="First artist's id")
    artists: Annotated[str, Text(2000)] | None = Field(None, description="All artists' names")
    disc_number: Annotated[int, Integer(32)] | None = Field(None, description="Disc, from 1")
    track_number: Annotated[int, Integer(32)] | None = Field(
        None, description="Position on its disc, from 1"
    )
    duration_ms: Annotated[int, Integer(32)] | None = Field(
        None, description="Length in milliseconds"
    )
    explicit: Annotated[bool, Flag()] | None = Field(None, description="Has explicit lyrics")
    url: Annotated[str, Text(2000)] | None = Field(None, description="Page for listeners")


class NewRelease(
    Contract,
    table="new_releases",
    key=("artist_id", "album_id"),
    partition=(PartitionField("bucket", "artist_id", 4),),
):
    """One album in the list of an artist that is followed: a row that appears is a release."""

    artist_id: SpotifyId = Field(description="The artist that is followed")
    album_id: SpotifyId = Field(description="The album in the artist's list")
    title: Annotated[str, Text(400)] = Field(description="Name of the album")
    album_type: Annotated[str, Text(32)] | None = Field(
        None, description="album, single or compilation"
    )
    release_date: Annotated[date, Day()] | None = Field(
        None, description="Released on; first day of a month or year known no better"
    )
    release_date_precision: Precision | None = Field(
        None, description="How much of release_date is known"
    )
    total_tracks: Annotated[int, Integer(32)] | None = Field(None, description="Tracks on it")
    url: Annotated[str, Text(2000)] | None = Field(None, description="Page for listeners")


TABLES = Registry((Sale, Product, ExchangeRate, Category, Artist, Album, Track, NewRelease))

__all__ = [
    "TABLES",
    "Album",
    "Artist",
    "Category",
    "ExchangeRate",
    "NewRelease",
    "Product",
    "Sale",
    "Track",
]
