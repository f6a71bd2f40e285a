"""The catalogue of a Platzi-shaped shop as rows of `products`.

The API lists products in pages without total, cursor or order, and deletes leave no trace: only a
complete listing shows that a row is gone. Pages are not a snapshot either: a delete between two of
them shifts the rest, and one row is skipped unseen. So every page is asked for from the last row of
the one before: if that row does not come again, the listing has shifted and starts over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from api_poller.changes import Listing, Skipped
from api_poller.http import Answer, Fetcher, SourceAnswerError
from api_poller.state import PollState
from freshet.contract import Contract, Row
from freshet.errors import RejectedError
from freshet.event import json_value, key_text
from freshet.tables import Product

# A shop that deletes a product during each of four listings is too busy for this page size.
LISTING_ATTEMPTS_MAX = 4
# A page that repeats for ever must end somewhere; the largest shop we mean to list is far below.
LISTING_ROWS_MAX = 200_000

JsonObject = Mapping[str, Any]


class _ShiftedError(Exception):
    """Rows moved between two pages; never leaves this module."""


@dataclass(frozen=True, slots=True)
class PlatziCatalogue:
    """The source `platzi`: all products of the shop at `url`, priced in `currency`."""

    http: Fetcher
    url: str
    currency: str
    page_rows: int
    name: str = "platzi"
    contract: type[Contract] = Product

    def listings(self, state: PollState, now: datetime) -> Iterator[Listing]:
        """The one whole listing. Raises `SourceError`, `SourceRefusedError`."""
        del now  # a listing has no time window
        rows: dict[str, Row] = {}
        skipped: list[Skipped] = []
        for product in self._products():
            row = self._row(product)
            if isinstance(row, Skipped):
                skipped.append(row)
            else:
                rows[key_text(Product, row)] = row
        times = [json_value(row["updated_at"]) for row in rows.values() if row["updated_at"]]
        yield Listing(
            rows,
            whole_table=True,
            backfill=not state.listed,
            watermark=max([*times, state.watermark or ""]) or None,
            skipped=skipped,
        )

    def occurred_at(self, row: Row) -> datetime | None:
        """The shop's own `updatedAt`; it stays when only the category is renamed."""
        updated_at: datetime | None = row["updated_at"]
        return updated_at

    def _products(self) -> list[JsonObject]:
        for _ in range(LISTING_ATTEMPTS_MAX):
            try:
                return self._one_listing()
            except _ShiftedError:
                continue
        raise self._unusable(
            self._page_url(0),
            f"rows moved between pages in each of {LISTING_ATTEMPTS_MAX} listings",
            "raise PAGE_ROWS so that a listing takes fewer pages",
        )

    def _one_listing(self) -> list[JsonObject]:
        """Every product, by pages that overlap by one row; ends when a page brings nothing new."""
        products = self._page(0)
        while products:
            page = self._page(len(products) - 1)
            if not page or not _same(page[0], products[-1]):
                raise _ShiftedError
            if len(page) == 1:
                break
            products += page[1:]
            if len(products) > LISTING_ROWS_MAX:
                raise self._unusable(
                    self._page_url(len(products)),
                    f"lists more than {LISTING_ROWS_MAX} products",
                    "check that offset and limit are honoured at this address",
                )
        ids = [_identity(product) for product in products]
        known = [product_id for product_id in ids if product_id is not None]
        if len(set(known)) != len(known):
            raise _ShiftedError
        return products

    def _page(self, offset: int) -> list[JsonObject]:
        answer = self.http.get(self.name, self._page_url(offset), accept="application/json")
        page = self._parsed(answer)
        if not isinstance(page, list) or not all(isinstance(product, dict) for product in page):
            raise self._unusable(
                answer.url,
                "answers something other than a JSON array of products",
                "check PLATZI_URL: the products are expected below it at /products",
            )
        if len(page) > self.page_rows:
            raise self._unusable(
                answer.url,
                f"answers {len(page)} products where {self.page_rows} were asked for",
                "check that offset and limit are honoured at this address",
            )
        return page

    def _parsed(self, answer: Answer) -> Any:
        try:
            return json.loads(
                answer.body.decode("utf-8"), parse_float=Decimal, parse_constant=_no_constant
            )
        except (ValueError, RecursionError, InvalidOperation) as error:
            raise self._unusable(
                answer.url,
                f"answers what is not JSON ({error})",
                "open the URL in a browser: the answer may be cut off or an error page",
            ) from error

    def _page_url(self, offset: int) -> str:
        """Both parameters: either alone is ignored by the API, which then lists everything."""
        return f"{self.url}/products?offset={offset}&limit={self.page_rows}"

    def _row(self, product: JsonObject) -> Row | Skipped:
        """The contract's row of a product, or why there is none."""
        key: str | None = None
        try:
            product_id = _identity(product)
            key = key_text(Product, Product.parse_key({"product_id": product_id}))
            return Product.parse(self._columns(product, product_id))
        except RejectedError as error:
            return Skipped(key, error.reason, error.field)

    def _columns(self, product: JsonObject, product_id: str | None) -> dict[str, Any]:
        category, images = product.get("category"), product.get("images")
        if not isinstance(category, dict):
            category = {}
        category_id = category.get("id")
        return {
            "product_id": product_id,
            "sku": product.get("slug"),
            "title": product.get("title"),
            "description": product.get("description"),
            "price": product.get("price"),
            "currency": self.currency,
            "category_id": None if category_id is None else str(category_id),
            "category": category.get("name"),
            "image_url": _first_text(images),
            "created_at": product.get("creationAt"),
            "updated_at": product.get("updatedAt"),
        }

    def _unusable(self, url: str, detail: str, advice: str) -> SourceAnswerError:
        return SourceAnswerError(self.name, url, detail, advice=advice, status=200)


def _identity(product: JsonObject) -> str | None:
    """The product's id as text; None where it is no id."""
    value = product.get("id")
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    return None


def _same(one: JsonObject, other: JsonObject) -> bool:
    """True for the same product; without an id only an equal one is the same."""
    identity = _identity(one)
    return identity == _identity(other) and (identity is not None or one == other)


def _first_text(values: object) -> str | None:
    texts = values if isinstance(values, list) else []
    return next((text for text in texts if isinstance(text, str)), None)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
