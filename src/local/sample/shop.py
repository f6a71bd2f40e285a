"""A shop API on a laptop, shaped like the Platzi Fake Store API, quirks included.

The poller must work against a real shop that pages without a total, answers 400 for what is not
there and 201 for a login, and only shows a delete by no longer listing the row. This one serves
the catalogue derived from the retail sample, on whatever day the caller sets.
"""

import base64
import hashlib
import hmac
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from email.utils import format_datetime
from typing import Any

from local.sample.catalogue import Catalogue, Product
from local.sample.serving import Reply, Request, SampleServer

BASE_PATH = "/api/v1"
# The shop's clerks enter the day's prices at eight in the morning, UTC.
OPENING_HOUR = 8
# As the original: the refresh token dies first.
ACCESS_TOKEN_S = 20 * 24 * 3600
REFRESH_TOKEN_S = 10 * 3600
CATEGORY_NAMES = ("Kitchen", "Garden", "Party", "Stationery", "Miscellaneous")
# The public test accounts of the original, clear-text passwords in listings included.
USERS: tuple[dict[str, Any], ...] = (
    {"id": 1, "email": "john@mail.com", "password": "changeme", "name": "Jhon", "role": "customer"},
    {"id": 2, "email": "maria@mail.com", "password": "12345", "name": "Maria", "role": "customer"},
    {"id": 3, "email": "admin@mail.com", "password": "admin123", "name": "Admin", "role": "admin"},
)


@dataclass(frozen=True, slots=True)
class Category:
    """One of the shop's five categories; `updated` moves when it is renamed."""

    id: int
    name: str
    updated: date


@dataclass(frozen=True, slots=True)
class _Shelf:
    # One immutable picture of the shop: a request sees all of a day or nothing of it.
    day: date
    products: tuple[Product, ...]
    categories: tuple[Category, ...]


class _BadRequestError(Exception):
    """A request the shop refuses with 400; carries the reply's body."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        super().__init__(body["message"])


class Shop(SampleServer):
    """The sample shop; `url` is its API's base. It shows the catalogue's first day until `set_day`.

    `now` gives seconds since 1970 and is only used for tokens.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        port: int = 0,
        secret: bytes = b"sample",
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(self._answer, base_path=BASE_PATH, port=port)
        self._catalogue, self._secret, self._now = catalogue, secret, now
        opened = catalogue.days[0] if catalogue.days else date(1970, 1, 1)
        categories = tuple(
            Category(number, name, opened) for number, name in enumerate(CATEGORY_NAMES, 1)
        )
        self._shelf = _Shelf(opened, (), categories)
        self.set_day(opened)

    @property
    def day(self) -> date:
        """The simulated day."""
        return self._shelf.day

    def set_day(self, day: date) -> None:
        """Show the catalogue of that day: new prices, new rows, vanished rows."""
        rows = tuple(self._catalogue.on(day).values())
        self._shelf = _Shelf(day, rows, self._shelf.categories)

    def rename_category(self, category_id: int, name: str) -> None:
        """Rename a category: its products show it, while their own `updatedAt` stays."""
        shelf = self._shelf
        categories = tuple(
            Category(old.id, name, shelf.day) if old.id == category_id else old
            for old in shelf.categories
        )
        self._shelf = _Shelf(shelf.day, shelf.products, categories)

    def remove_first(self) -> None:
        """Delete the first row listed, until the next `set_day`: later pages shift by one."""
        shelf = self._shelf
        self._shelf = _Shelf(shelf.day, shelf.products[1:], shelf.categories)

    def _answer(self, request: Request) -> Reply:
        shelf = self._shelf
        headers: tuple[tuple[str, str], ...] = (
            ("Date", format_datetime(_opening(shelf.day), usegmt=True)),
        )
        path = request.path.rstrip("/")
        try:
            status, body = self._route(request, path.removeprefix(BASE_PATH), shelf)
        except _BadRequestError as exc:
            status, body = 400, exc.body
        payload = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
        if status == 200:
            etag = f'W/"{len(payload):x}-{zlib.crc32(payload):08x}"'
            headers += (("ETag", etag),)
            if request.headers.get("if-none-match") == etag:
                return Reply(304, b"", headers=headers)
        return Reply(status, payload, headers=headers)

    def _route(self, request: Request, path: str, shelf: _Shelf) -> tuple[int, Any]:
        match request.method, path.split("/")[1:]:
            case "GET", ["products"]:
                return 200, _listing(shelf, _filtered(shelf, request.query), request.query)
            case "GET", ["products", *place]:
                return 200, _render(_one(shelf, place, path), shelf)
            case "GET", ["categories", *rest]:
                return 200, _categories(shelf, rest, request.query, path)
            case "GET", ["users"]:
                return 200, list(USERS)
            case _, ["auth", action]:
                return self._authenticate(request, action)
        return _no_route(request)

    def _authenticate(self, request: Request, action: str) -> tuple[int, Any]:
        match request.method, action:
            case "POST", "login":
                return self._login(_json(request))
            case "POST", "refresh-token":
                return self._refresh(_json(request))
            case "GET", "profile":
                return self._profile(request)
        return _no_route(request)

    def _login(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        for user in USERS:
            if (user["email"], user["password"]) == (body.get("email"), body.get("password")):
                return 201, self._tokens(user["id"])
        return _unauthorized()

    def _refresh(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        user = self._user_of(body.get("refreshToken"), kind="refresh")
        return _unauthorized() if user is None else (201, self._tokens(user["id"]))

    def _profile(self, request: Request) -> tuple[int, Any]:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        user = self._user_of(token, kind="access") if scheme == "Bearer" else None
        return _unauthorized() if user is None else (200, user)

    def _tokens(self, user_id: int) -> dict[str, str]:
        return {
            "access_token": self._token(user_id, "access", ACCESS_TOKEN_S),
            "refresh_token": self._token(user_id, "refresh", REFRESH_TOKEN_S),
        }

    def _token(self, user_id: int, kind: str, life_s: int) -> str:
        issued = int(self._now())
        claims = {"sub": user_id, "iat": issued, "exp": issued + life_s}
        parts = [{"alg": "HS256", "typ": "JWT"}, claims]
        text = ".".join(_base64(json.dumps(part).encode()) for part in parts)
        return f"{text}.{self._signature(text, kind)}"

    def _signature(self, text: str, kind: str) -> str:
        # Each kind has its own key: a refresh token is no access token.
        key = self._secret + kind.encode()
        return _base64(hmac.digest(key, text.encode(), hashlib.sha256))

    def _user_of(self, token: Any, kind: str) -> dict[str, Any] | None:
        text, _, signature = str(token).rpartition(".")
        if not text or not hmac.compare_digest(
            signature.encode(), self._signature(text, kind).encode()
        ):
            return None
        claims = json.loads(base64.urlsafe_b64decode(text.partition(".")[2] + "=="))
        if claims["exp"] <= self._now():
            return None
        return next((user for user in USERS if user["id"] == claims["sub"]), None)


def _listing(shelf: _Shelf, rows: list[Product], query: Mapping[str, str]) -> list[dict[str, Any]]:
    limit, offset = _int_parameter(query, "limit"), _int_parameter(query, "offset")
    # Observed on the original: without both or a positive limit, all rows come.
    if limit is not None and offset is not None and limit > 0:
        rows = rows[max(offset, 0) : max(offset, 0) + limit]
    return [_render(row, shelf) for row in rows]


def _filtered(shelf: _Shelf, query: Mapping[str, str]) -> list[Product]:
    tests = tuple(_filters(shelf, query))
    return [row for row in shelf.products if all(test(row) for test in tests)]


def _filters(shelf: _Shelf, query: Mapping[str, str]) -> Iterator[Callable[[Product], bool]]:
    if title := query.get("title"):
        yield lambda row: title.lower() in row.title.lower()
    if "price" in query:
        price = _number("price", query["price"])
        yield lambda row: row.price == price
    # One bound alone is ignored, as on the original.
    if "price_min" in query and "price_max" in query:
        low, high = (_number(name, query[name]) for name in ("price_min", "price_max"))
        yield lambda row: low <= row.price <= high
    if "categoryId" in query:
        wanted = _number("categoryId", query["categoryId"])
        yield lambda row: category_of(row.sku) == wanted
    if slug := query.get("categorySlug"):
        ids = {category.id for category in shelf.categories if category.name.lower() == slug}
        yield lambda row: category_of(row.sku) in ids


def _categories(shelf: _Shelf, rest: list[str], query: Mapping[str, str], path: str) -> Any:
    if not rest:
        limit = _int_parameter(query, "limit")
        return [_render_category(row) for row in shelf.categories[: limit or None]]
    number = _number("id", rest[0])
    category = next((row for row in shelf.categories if row.id == number), None)
    if category is None or rest[1:] not in ([], ["products"]):
        raise _not_found("Category", "id", rest[0], path)
    if not rest[1:]:
        return _render_category(category)
    rows = [row for row in shelf.products if category_of(row.sku) == category.id]
    return _listing(shelf, rows, query)


def category_of(sku: str) -> int:
    """The category id, 1 to 5, of a stock code: stable, and blind to letter case."""
    return zlib.crc32(sku.lower().encode()) % len(CATEGORY_NAMES) + 1


def _render(row: Product, shelf: _Shelf) -> dict[str, Any]:
    return {
        "id": row.id,
        "title": row.title,
        "slug": row.sku,
        "price": _json_number(row.price),
        "description": f"{row.title}, stock code {row.sku}",
        "category": _render_category(shelf.categories[category_of(row.sku) - 1]),
        "images": [f"https://images.example/{row.id}.jpeg"],
        "creationAt": _stamp(row.created),
        "updatedAt": _stamp(row.updated),
    }


def _render_category(category: Category) -> dict[str, Any]:
    return {
        "id": category.id,
        "name": category.name,
        "slug": category.name.lower(),
        "image": f"https://images.example/category-{category.id}.jpeg",
        "creationAt": "2010-12-01T08:00:00.000Z",
        "updatedAt": _stamp(category.updated),
    }


def _one(shelf: _Shelf, place: list[str], path: str) -> Product:
    by_slug = place[0] == "slug" and len(place) == 2
    wanted = place[1] if by_slug else _number("id", "/".join(place))
    for row in shelf.products:
        if wanted == (row.sku if by_slug else row.id):
            return row
    raise _not_found("Product", "slug" if by_slug else "id", place[-1], path)


def _not_found(kind: str, name: str, value: object, path: str) -> _BadRequestError:
    where = json.dumps({"where": {name: value}}, default=str)
    return _BadRequestError(
        {
            "path": f"{BASE_PATH}{path}",
            "timestamp": "2010-12-01T08:00:00.000Z",
            "name": "EntityNotFoundError",
            "message": f'Could not find any entity of type "{kind}" matching: {where}',
        }
    )


def _int_parameter(query: Mapping[str, str], name: str) -> int | None:
    return int(_number(name, query[name])) if name in query else None


def _number(name: str, text: str) -> Decimal:
    if not text.lstrip("-").replace(".", "", 1).isdecimal():
        problem = f"{name} must be a number conforming to the specified constraints"
        raise _BadRequestError({"message": [problem], "error": "Bad Request", "statusCode": 400})
    return Decimal(text)


def _json(request: Request) -> Mapping[str, Any]:
    try:
        body = json.loads(request.body or b"{}")
    except ValueError as exc:
        problem = {"message": str(exc), "error": "Bad Request", "statusCode": 400}
        raise _BadRequestError(problem) from exc
    return body if isinstance(body, dict) else {}


def _no_route(request: Request) -> tuple[int, Any]:
    problem = f"Cannot {request.method} {request.path}"
    return 404, {"message": problem, "error": "Not Found", "statusCode": 404}


def _unauthorized() -> tuple[int, Any]:
    return 401, {"message": "Unauthorized", "statusCode": 401}


def _json_number(value: Decimal) -> int | float:
    # At most 3 decimals: the shortest text of the float is the price itself.
    return int(value) if value == value.to_integral_value() else float(value)


def _opening(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, OPENING_HOUR, tzinfo=UTC)


def _stamp(day: date) -> str:
    return _opening(day).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
