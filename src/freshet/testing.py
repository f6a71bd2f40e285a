"""Fakes and builders that are part of the product: tests and the local runtime share them.

Each fake passes the contract suite of its port (`tests/contracts`), so what a test proves on a fake
holds on the real adapter.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from freshet.contract import Registry
from freshet.event import ChangeEvent, Op, parse_event
from freshet.objects import ObjectMissingError, PreconditionError, StoredObject
from freshet.stream import LANES, PackedRecord, PublishReport, pack
from freshet.tables import TABLES
from freshet.wire import Decoded, decode_record

EPOCH = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


class MemoryStream:
    """`freshet.stream.ChangeStream` in a list: `records` holds what it accepted, in order.

    `throttled_lanes` are refused while they are named; `throttle_next` refuses the next records.
    """

    def __init__(self, tables: Registry = TABLES, *, lanes: int = LANES) -> None:
        self.records: list[PackedRecord] = []
        self.throttled_lanes: set[int] = set()
        self._tables, self._lanes, self._refusals = tables, lanes, 0

    def throttle_next(self, records: int = 1) -> None:
        """Refuse the next `records` records and what follows them on their lanes in a publish."""
        self._refusals = records

    def publish(self, events: Sequence[ChangeEvent]) -> PublishReport:
        """See `ChangeStream.publish`."""
        refused_lanes = set(self.throttled_lanes)
        throttled: list[int] = []
        for record in pack(events, self._tables, lanes=self._lanes):
            if self._refusals and record.lane not in refused_lanes:
                self._refusals -= 1
                refused_lanes.add(record.lane)
            if record.lane in refused_lanes:
                throttled.extend(record.events)
            else:
                self.records.append(record)
        accepted = tuple(at for at in range(len(events)) if at not in set(throttled))
        return PublishReport(accepted, tuple(sorted(throttled)), "throttled" if throttled else "")

    def events(self) -> list[ChangeEvent]:
        """Every accepted event, decoded from the very bytes a consumer would get."""
        return [
            part.event
            for record in self.records
            for part in decode_record(record.data, self._tables)
            if isinstance(part, Decoded)
        ]


class MemoryObjects:
    """`freshet.objects.Objects` in a dictionary. Safe for threads."""

    def __init__(self) -> None:
        self._data: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> StoredObject:
        """See `Objects.get`."""
        with self._lock:
            return self._stored(key)

    def put(self, key: str, data: bytes) -> str:
        """See `Objects.put`."""
        with self._lock:
            self._data[key] = data
            return self._stored(key).etag

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        """See `Objects.put_if`."""
        with self._lock:
            if (self._stored(key).etag if key in self._data else None) != etag:
                raise PreconditionError(key)
            self._data[key] = data
            return self._stored(key).etag

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        with self._lock:
            self._data.pop(key, None)

    def list(self, prefix: str) -> Iterator[str]:
        """See `Objects.list`."""
        with self._lock:
            keys = sorted(key for key in self._data if key.startswith(prefix))
        yield from keys

    def _stored(self, key: str) -> StoredObject:
        try:
            data = self._data[key]
        except KeyError:
            raise ObjectMissingError(key) from None
        return StoredObject(data, hashlib.blake2b(data, digest_size=16).hexdigest())


class StoppedClock:
    """A clock that stands at `instant` until `advance` moves it."""

    def __init__(self, instant: datetime = EPOCH) -> None:
        self.instant = instant

    def __call__(self) -> datetime:
        """The instant it stands at."""
        return self.instant

    def advance(self, seconds: float) -> None:
        """Move it on."""
        self.instant += timedelta(seconds=seconds)


def sale_row(sale_id: str = "536365-1", **columns: Any) -> dict[str, Any]:
    """A valid row of `sales` as JSON values; `columns` replace or add."""
    invoice, _, line = sale_id.rpartition("-")
    return {
        "sale_id": sale_id,
        "invoice_no": invoice or sale_id,
        "line": int(line) if line.isascii() and line.isdecimal() and len(line) < 10 else 1,
        "sku": "85123A",
        "description": "WHITE HANGING HEART T-LIGHT HOLDER",
        "quantity": 6,
        "returned_quantity": 0,
        "unit_price": "2.5500",
        "currency": "GBP",
        "customer_id": "17850",
        "country": "United Kingdom",
        "sold_at": "2010-12-01T08:26:00.000000Z",
        **columns,
    }


def product_row(product_id: str = "4", **columns: Any) -> dict[str, Any]:
    """A valid row of `products` as JSON values."""
    return {
        "product_id": product_id,
        "sku": "white-hanging-heart",
        "title": "White hanging heart t-light holder",
        "price": "2.5500",
        "currency": "GBP",
        **columns,
    }


def rate_row(
    currency: str = "USD", rate_date: str = "2026-11-20", **columns: Any
) -> dict[str, Any]:
    """A valid row of `exchange_rates` as JSON values."""
    return {"currency": currency, "rate_date": rate_date, "rate": "1.083700", **columns}


def change(
    table: str = "sales",
    after: dict[str, Any] | None = None,
    *,
    version: int = 1,
    op: Op | None = None,
    **members: Any,
) -> ChangeEvent:
    """A valid change event: an update to `after`, or the delete of `key` where there is none."""
    body: dict[str, Any] = {
        "table": table,
        "op": (op or (Op.UPDATE if after is not None else Op.DELETE)).value,
        "version": version,
        "event_id": f"{table}-{version}",
        "source": "test",
        "accepted_at": EPOCH,
        **members,
    }
    if after is not None:
        body["after"] = after
    return parse_event(body, TABLES)
