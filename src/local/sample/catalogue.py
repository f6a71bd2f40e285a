"""The product catalogue the shop shows on each day, derived from what was sold at which price.

The raw file has no product master. A product appears on the day it is first sold, carries its
title and price forward, changes when a day's sales say otherwise, and a few slow sellers vanish,
so that updates and deletes reach the poller with nothing invented but the rule.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from local.sample.retail import check_shape, exact_price

# One product in sixteen is delisted when nobody bought it for over a week: a few percent vanish.
DELISTED_ONE_IN = 16
DELISTED_AFTER_DAYS = 7


class DaySale(NamedTuple):
    """What one day's sales say about one product; `title` is None when no line carries one."""

    day: date
    sku: str
    title: str | None
    price: Decimal


@dataclass(frozen=True, slots=True)
class Product:
    """One row of the shop. `updated` is the day its title or price last changed."""

    id: int
    sku: str
    title: str
    price: Decimal
    created: date
    updated: date


class Catalogue:
    """The shop's rows on any day, computed forward from the day asked for last.

    A product that vanished and is sold again is a new row with a new id, as in any shop.
    """

    def __init__(self, sales: Iterable[DaySale]) -> None:
        self._sales: dict[date, list[DaySale]] = defaultdict(list)
        for sale in sales:
            self._sales[sale.day].append(sale)
        self.days = tuple(sorted(self._sales))
        self._rewind()

    @classmethod
    def from_file(cls, path: Path) -> "Catalogue":
        """The catalogue of a raw retail file; raises `SampleDataError` when it is not one."""
        return cls(day_sales(path))

    def on(self, day: date) -> Mapping[str, Product]:
        """The rows of that day by sku, in order of id; empty before the first sale."""
        if day < self._day:
            self._rewind()
        while self._day < day and self.days:
            self._day += timedelta(days=1)
            for sale in self._sales.get(self._day, ()):
                self._sell(sale)
            self._delist()
        return MappingProxyType(dict(self._rows))

    def _rewind(self) -> None:
        self._rows: dict[str, Product] = {}
        self._slow: dict[str, date] = {}
        self._titles: dict[str, str] = {}
        self._id = 0
        self._day = self.days[0] - timedelta(days=1) if self.days else date.min

    def _sell(self, sale: DaySale) -> None:
        title = self._titles[sale.sku] = sale.title or self._titles.get(sale.sku, sale.sku)
        row = self._rows.get(sale.sku)
        if row is None:
            self._id += 1
            self._rows[sale.sku] = Product(
                self._id, sale.sku, title, sale.price, sale.day, sale.day
            )
        elif (row.title, row.price) != (title, sale.price):
            self._rows[sale.sku] = replace(row, title=title, price=sale.price, updated=sale.day)
        if zlib.crc32(sale.sku.encode()) % DELISTED_ONE_IN == 0:
            self._slow[sale.sku] = sale.day

    def _delist(self) -> None:
        last_day = self._day - timedelta(days=DELISTED_AFTER_DAYS)
        for sku in [sku for sku, sold in self._slow.items() if sold < last_day]:
            del self._slow[sku], self._rows[sku]


def day_sales(path: Path) -> Iterator[DaySale]:
    """Per UK trading day and stock code, the most frequent price and title; ties go to the first
    seen.

    Only lines that were really sold count: no cancellation, and a positive price. Write-offs carry
    a price of 0 and remarks such as "damaged" in place of a title. Ordered by day, then first
    seen.
    """
    lines = _sold_lines(path)
    prices = _most_frequent(lines, "unit_price")
    named = pc.not_equal(lines["title"].cast(pa.string()), "")
    titles = _most_frequent(lines.filter(named), "title")
    first_seen = _first_seen(lines)
    for day, sku in sorted(prices, key=lambda cell: (cell[0], first_seen[cell])):
        price = exact_price(prices[day, sku]).normalize()
        yield DaySale(day, sku, titles.get((day, sku)), price)


def _sold_lines(path: Path) -> Any:
    check_shape(path)
    texts = ["invoice_no", "stock_code", "description"]
    # Dictionaries keep a whole year of repeated texts at a few bytes per line.
    with pq.ParquetFile(path, read_dictionary=texts) as file:
        raw = file.read([*texts, "unit_price", "invoice_date"], use_threads=False)
    raw = raw.append_column("row", pa.array(range(raw.num_rows), pa.int64()))
    cancelled = pc.starts_with(raw["invoice_no"].cast(pa.string()), "C")
    sold = raw.filter(pc.and_(pc.invert(cancelled), pc.greater(raw["unit_price"], 0)))
    titles = pc.fill_null(sold["description"].cast(pa.string()), "")
    return pa.table(
        {
            "day": sold["invoice_date"].cast(pa.date32(), safe=False),
            "sku": sold["stock_code"].unify_dictionaries(),
            "title": pc.utf8_trim_whitespace(titles).dictionary_encode(),
            "unit_price": sold["unit_price"],
            "row": sold["row"],
        }
    )


def _most_frequent(lines: Any, column: str) -> dict[tuple[date, str], Any]:
    grouped = lines.group_by(["day", "sku", column], use_threads=False)
    counted = grouped.aggregate([([], "count_all"), ("row", "min")])
    ranked = counted.sort_by([("count_all", "ascending"), ("row_min", "descending")])
    cells = zip(ranked["day"].to_pylist(), ranked["sku"].to_pylist(), strict=True)
    # The best comes last, and the last one written wins.
    return dict(zip(cells, ranked[column].to_pylist(), strict=True))


def _first_seen(lines: Any) -> dict[tuple[date, str], int]:
    seen = lines.group_by(["day", "sku"], use_threads=False).aggregate([("row", "min")])
    cells = zip(seen["day"].to_pylist(), seen["sku"].to_pylist(), strict=True)
    return dict(zip(cells, seen["row_min"].to_pylist(), strict=True))
