"""The cash register: raw retail lines become the change events a source of truth would emit.

The raw file has one row per invoice line, no line key, and cancellations that do not name the sale
they cancel. Here every line gets an identity, and a cancellation becomes an update of the sale it
returns, so that the pipeline is fed what a real register knows: creates, then updates of the same
key.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq

from freshet.errors import TerminalError

# The file's clock is the shop's wall clock.
UK = ZoneInfo("Europe/London")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
# Four places hold the file's three and leave one for a currency with finer prices.
PRICE_PLACES = Decimal("0.0001")
# Bounds memory: about 10 MB of Python objects at a time.
READ_BATCH_ROWS = 20_000

SHAPE = {
    "invoice_no": "text",
    "stock_code": "text",
    "description": "text",
    "quantity": "integer",
    "invoice_date": "timestamp without zone",
    "unit_price": "float",
    "customer_id": "integer",
    "country": "text",
}


class SampleDataError(TerminalError):
    """A file that is not the Online Retail table; carries `path` and `problem`."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        columns = ", ".join(f"{name} ({kind})" for name, kind in SHAPE.items())
        super().__init__(f"{path}: {problem}; expected a Parquet file with the columns {columns}")


class Line(NamedTuple):
    """One raw row, and its place in the file."""

    row: int
    invoice_no: str
    stock_code: str
    description: str | None
    quantity: int
    invoice_date: datetime
    unit_price: float
    customer_id: int | None
    country: str


class RegisterChange(TypedDict):
    """One change as the register reports it, ready for the producer's HTTP API.

    `before` is present on about half of the updates: a source does not always know the old row.
    """

    op: str
    event_id: str
    version: int
    occurred_at: str
    after: dict[str, Any]
    before: NotRequired[dict[str, Any]]


def check_shape(path: Path) -> None:
    """Refuse a file that is not the Online Retail table.

    Raises `SampleDataError`, one line that names the file and the first column that does not fit.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as exc:
        raise SampleDataError(path, f"cannot be read as Parquet ({_first_line(exc)})") from exc
    for name, kind in SHAPE.items():
        if name not in schema.names:
            raise SampleDataError(path, f"column {name!r} is missing")
        if (found := _kind(schema.field(name).type)) != kind:
            raise SampleDataError(path, f"column {name!r} is {found}, not {kind}")


def read_lines(path: Path) -> Iterator[Line]:
    """The raw lines in file order, read in batches so that memory does not grow with the file."""
    check_shape(path)
    row = count()
    with pq.ParquetFile(path) as file:
        batches = file.iter_batches(READ_BATCH_ROWS, columns=list(SHAPE), use_threads=False)
        for batch in batches:
            columns = (batch.column(name).to_pylist() for name in SHAPE)
            # `row` goes last: zip would take one number too many if it were asked first.
            for *values, number in zip(*columns, row, strict=False):
                yield Line(number, *values)


def is_cancellation(line: Line) -> bool:
    """Whether the line takes goods back; the source marks such invoices with a leading `C`."""
    return line.invoice_no.startswith("C") and line.quantity < 0


class _Sold(NamedTuple):
    row: int
    at: datetime
    remaining: int


def match_returns(path: Path) -> dict[int, int]:
    """Row number of each matched cancellation -> row number of the sale it returns.

    A cancellation of a known customer returns the latest earlier line (in file order, and not dated
    later) of the same customer, stock code and unit price that still has the quantity to give back.
    """
    wanted = {_product_of(line) for line in read_lines(path) if _may_return(line)}
    sold: dict[tuple[int | None, str, float], list[_Sold]] = defaultdict(list)
    matches: dict[int, int] = {}
    for line in read_lines(path):
        product = _product_of(line)
        if line.customer_id is None or product not in wanted:
            continue
        if is_cancellation(line):
            if (sale_row := _take_back(sold[product], line)) is not None:
                matches[line.row] = sale_row
        elif line.quantity > 0 and not line.invoice_no.startswith("C"):
            sold[product].append(_Sold(line.row, line.invoice_date, line.quantity))
    return matches


def register_changes(path: Path) -> Iterator[RegisterChange]:
    """Every change of the `sales` table in the order the register wrote the lines.

    A line becomes a create; a matched cancellation becomes an update of the sale it returns.
    Versions of one key strictly increase: microseconds of the source time plus a running number
    per key.
    """
    matches = match_returns(path)
    returned_later = set(matches.values())
    latest: dict[int, RegisterChange] = {}
    returns: Counter[int] = Counter()
    position: Counter[str] = Counter()
    for line in read_lines(path):
        position[line.invoice_no] += 1
        sale_row = matches.get(line.row, line.row)
        if sale_row == line.row:
            change = _sale(line, position[line.invoice_no], path)
        else:
            returns[sale_row] += 1
            change = _return(latest[sale_row], line, returns[sale_row])
        if sale_row in returned_later:
            latest[sale_row] = change
        yield change


def exact_price(price: float) -> Decimal:
    """The decimal the source meant: the shortest one that reads back as this float.

    Raises `decimal.InvalidOperation` or `ValueError` when it is no number or needs over 4 decimals.
    """
    exact = Decimal(repr(price))
    rounded = exact.quantize(PRICE_PLACES)
    if rounded != exact:
        raise ValueError(f"{price!r} has more than 4 decimals")
    return rounded


@lru_cache(maxsize=4096)
def utc_from_uk(local: datetime) -> datetime:
    """UTC of a UK wall-clock time; of an hour that occurs twice, the first."""
    return local.replace(tzinfo=UK).astimezone(UTC)


def iso(moment: datetime) -> str:
    """ISO 8601 in UTC with `Z`, second resolution: all the source has."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def micros(moment: datetime) -> int:
    """Microseconds since 1970 UTC."""
    return (moment - EPOCH) // MICROSECOND


def _sale(line: Line, position: int, path: Path) -> RegisterChange:
    sold_at = utc_from_uk(line.invoice_date)
    sale_id = f"{line.invoice_no}-{position}"
    after = {
        "sale_id": sale_id,
        "invoice_no": line.invoice_no,
        "line": position,
        "sku": line.stock_code,
        "description": (line.description or "").strip() or None,
        "quantity": line.quantity,
        "returned_quantity": 0,
        "unit_price": _price_text(line, path),
        "currency": "GBP",
        "customer_id": None if line.customer_id is None else str(line.customer_id),
        "country": line.country,
        "sold_at": iso(sold_at),
    }
    return _change("c", sale_id, micros(sold_at), sold_at, after)


def _return(sale: RegisterChange, line: Line, number: int) -> RegisterChange:
    returned_at = utc_from_uk(line.invoice_date)
    old = sale["after"]
    after = old | {"returned_quantity": old["returned_quantity"] - line.quantity}
    # The maximum covers a clock set back between two returns of one sale.
    version = max(sale["version"] + 1, micros(returned_at) + number)
    change = _change("u", old["sale_id"], version, returned_at, after)
    if zlib.crc32(change["event_id"].encode()) % 2:
        change["before"] = old
    return change


def _change(
    op: str, sale_id: str, version: int, occurred_at: datetime, after: dict[str, Any]
) -> RegisterChange:
    return {
        "op": op,
        "event_id": f"register-{sale_id}-{version}",
        "version": version,
        "occurred_at": iso(occurred_at),
        "after": after,
    }


def _price_text(line: Line, path: Path) -> str:
    try:
        return _cached_price_text(line.unit_price)
    except (InvalidOperation, ValueError) as exc:
        problem = f"row {line.row}: unit_price {line.unit_price!r} is not a price of 4 decimals"
        raise SampleDataError(path, problem) from exc


@lru_cache(maxsize=4096)
def _cached_price_text(price: float) -> str:
    return str(exact_price(price))


def _may_return(line: Line) -> bool:
    return is_cancellation(line) and line.customer_id is not None


def _product_of(line: Line) -> tuple[int | None, str, float]:
    return line.customer_id, line.stock_code, line.unit_price


def _take_back(sold: list[_Sold], line: Line) -> int | None:
    for index in range(len(sold) - 1, -1, -1):
        sale = sold[index]
        if sale.at <= line.invoice_date and sale.remaining >= -line.quantity:
            sold[index] = sale._replace(remaining=sale.remaining + line.quantity)
            return sale.row
    return None


def _kind(found: Any) -> str:
    kinds = {
        "text": pa.types.is_string(found) or pa.types.is_large_string(found),
        "integer": pa.types.is_integer(found),
        "float": pa.types.is_floating(found),
        "timestamp without zone": pa.types.is_timestamp(found) and found.tz is None,
    }
    return next((name for name, fits in kinds.items() if fits), str(found))


def _first_line(exc: Exception) -> str:
    return str(exc).splitlines()[0] if str(exc) else type(exc).__name__
