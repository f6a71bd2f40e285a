"""Makes an orderly stream of changes as untidy as real sources are, the same way every time.

Late and early events, repeats, and records that are broken on purpose: the demo has to reach the
right answer through all of it, and has to say which records it refused and why.
"""

import heapq
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import count
from typing import Any

import zstandard

from freshet.wire import MAGIC, PLAIN, UNPACKED_BYTES_MAX, VERSION, ZSTD
from local.sample.retail import RegisterChange

# Two thousand changes are about an hour of a busy day of the sample: returns overtake their sales.
WINDOW_CHANGES = 2_000
# One in fifty: what at-least-once senders repeat on a bad day.
DUPLICATE_SHARE = 0.02
# Spreads the broken records over the first half of the shipped month.
BROKEN_EVERY_CHANGES = 1_000
# Longer than any text a contract can allow, shorter than one Kinesis record (1 MiB).
OVERLONG_CHARS = 100_000


class Door(StrEnum):
    """Where a broken record enters the pipeline."""

    HTTP = "http"
    STREAM = "stream"


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that must not change any table.

    `door` HTTP: `body` is one NDJSON line (media type `application/x-ndjson`) for the producer,
    which must refuse it. `door` STREAM: `body` is the data of one Kinesis record, which must be
    quarantined.
    """

    kind: str
    door: Door
    body: bytes


def disorder(
    changes: Iterable[RegisterChange],
    seed: int,
    *,
    window_changes: int = WINDOW_CHANGES,
    broken_every_changes: int = BROKEN_EVERY_CHANGES,
) -> Iterator[RegisterChange | Broken]:
    """Delay every change at random, repeat some, and slip in every record of `broken_records`.

    No change moves further than `window_changes` places. Equal seeds give equal streams. A repeat
    is the same change again, `event_id` included.
    """
    rng = random.Random(seed)  # noqa: S311 - the sequence must be reproducible, not secret
    broken = iter(broken_records())
    waiting: list[tuple[float, int, RegisterChange]] = []
    ticket = count()
    for place, change in enumerate(changes):
        copies = 2 if rng.random() < DUPLICATE_SHARE else 1
        for _ in range(copies):
            due = place + rng.random() * window_changes
            heapq.heappush(waiting, (due, next(ticket), change))
        while waiting and waiting[0][0] <= place:
            yield heapq.heappop(waiting)[2]
        if place % broken_every_changes == broken_every_changes // 2:
            yield from (record for record in (next(broken, None),) if record)
    while waiting:
        yield heapq.heappop(waiting)[2]
    yield from broken


@cache
def broken_records() -> tuple[Broken, ...]:
    """Every broken record the demo sends, once each, in a fixed order."""
    at_http = tuple(Broken(kind, Door.HTTP, body) for kind, body in _broken_lines().items())
    on_stream = tuple(Broken(kind, Door.STREAM, body) for kind, body in _broken_stream().items())
    return tuple(record for pair in _zip_longest(at_http, on_stream) for record in pair)


def _zip_longest(
    first: tuple[Broken, ...], second: tuple[Broken, ...]
) -> Iterator[tuple[Broken, ...]]:
    # Alternates the doors, so that both kinds meet traffic early in the run.
    for index in range(max(len(first), len(second))):
        yield first[index : index + 1] + second[index : index + 1]


def _broken_lines() -> dict[str, bytes]:
    return {
        "malformed_json": _line()[:-9],
        "nan_price": _line(unit_price=float("nan")),
        "quantity_as_text": _line(quantity="six"),
        "unknown_column": _line(colour="red"),
        "missing_sale_id": _line(sale_id=_ABSENT),
        "absurd_price": _line(unit_price="1e400"),
        "invalid_utf8": _line(description="\x00marker").replace(b"\\u0000marker", b"caf\xe9"),
        "lone_surrogate": _line(description="\ud800"),
        "date_without_zone": _line(sold_at="2010-12-01T08:26:00"),
        "overlong_text": _line(description="x" * OVERLONG_CHARS),
        "wrong_currency": _line(currency="gbp"),
        "unknown_op": json.dumps(_event() | {"op": "x"}).encode(),
    }


def _broken_stream() -> dict[str, bytes]:
    bomb = zstandard.compress(bytes(UNPACKED_BYTES_MAX + 1))
    return {
        "stream_truncated": _stream_line()[:-9],
        "stream_not_text": b"\xff\xfe\x00caf\xe9",
        "stream_nan_price": _stream_line(unit_price=float("nan")),
        "stream_date_without_zone": _stream_line(sold_at="2010-12-01T08:26:00"),
        "stream_missing_sale_id": _stream_line(sale_id=_ABSENT),
        "stream_future_wire": MAGIC + bytes((VERSION + 1, PLAIN)) + _stream_line(),
        "stream_zip_bomb": MAGIC + bytes((VERSION, ZSTD)) + bomb,
    }


_ABSENT = object()


def _row(**changed: Any) -> dict[str, Any]:
    # A key no real sale has: if a broken record ever got through, it would show as an extra row.
    row: dict[str, Any] = {
        "sale_id": "BROKEN-1",
        "invoice_no": "BROKEN",
        "line": 1,
        "sku": "22423",
        "description": "REGENCY CAKESTAND 3 TIER",
        "quantity": 6,
        "returned_quantity": 0,
        "unit_price": "12.7500",
        "currency": "GBP",
        "customer_id": "17850",
        "country": "United Kingdom",
        "sold_at": "2010-12-01T08:26:00Z",
    }
    return {name: value for name, value in (row | changed).items() if value is not _ABSENT}


def _event(**changed: Any) -> dict[str, Any]:
    return {
        "op": "c",
        "event_id": "register-BROKEN-1",
        "version": 1_291_191_960_000_000,
        "occurred_at": "2010-12-01T08:26:00Z",
        "after": _row(**changed),
    }


def _line(**changed: Any) -> bytes:
    return json.dumps(_event(**changed)).encode()


def _stream_line(**changed: Any) -> bytes:
    # What the producer would have added, so that only the one thing is wrong.
    stamps = {"table": "sales", "source": "register", "accepted_at": "2010-12-01T08:26:01Z"}
    return json.dumps(_event(**changed) | stamps).encode()
