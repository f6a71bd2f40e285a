"""What must hold of the decoders for every byte string there is."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.golden.contracts import GOLDEN_TABLES

from freshet.errors import QUOTED_MAX
from freshet.event import TEXT_MAX, VERSION_MAX
from freshet.mapping import DEFAULT_STREAMS, Streams, parse_stream
from freshet.wire import (
    LINES_MAX,
    Decoded,
    Ignored,
    Rejected,
    Truncation,
    decode_record,
    encode_event,
)

# Sources as somebody might declare them: every kind of rule is in them once.
_DEBEZIUM = """
format: debezium
match: "*e*"
prefix: _
tables:
  public.everything:
    table: everything
    columns:
      id: {column: text, encoding: base64}
      text: {column: id, as: text}
      amount: {column: amount, scale: 2}
      moment: {column: moment, unit: nanos, round: down}
      day: {column: day, unit: seconds}
      small: {column: wide, encoding: digits}
    constants: {flag: "true"}
    ignore: [big, wide]
  customers: {table: foo, columns: {first_name: name, last_name: attributes}, ignore: [email]}
ignore_tables: ["*orders"]
"""
_DMS = """
format: dms
match: pub*
missing: unchanged
before_image: before
version: commit_time
tables: {foo: {table: everything, columns: {name: text, age: small}, ignore: [attributes]}}
"""
STREAMS = (
    DEFAULT_STREAMS,
    Streams(
        (
            parse_stream(_DEBEZIUM, "fuzzed", GOLDEN_TABLES),
            parse_stream(_DMS, "fuzzed_dms", GOLDEN_TABLES),
        )
    ),
)
ARRIVED = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
# CPU seconds: a batch of 10,000 such records would still end within Lambda's 15 minutes twice over,
# and no input of this size needs a hundredth of it.
SECONDS_MAX = 1.0
KIND_MAX = 200


class BrokenPromiseError(AssertionError):
    """A decoder did with some bytes what it must never do."""


@dataclass
class Tally:
    """What the inputs so far came to."""

    inputs: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: bytes = b""

    def check(self, data: bytes) -> None:
        """Decode one input and count what became of it; raises what is wrong with it."""
        began = time.process_time()
        parts = decoded(data)
        took = time.process_time() - began
        if took > self.slowest_s:
            self.slowest_s, self.slowest = took, data
        if took > SECONDS_MAX:
            raise BrokenPromiseError(f"took {took:.2f} s")
        check_parts(parts)
        self.inputs += 1
        for part in parts:
            self.parts[type(part).__name__] += 1
            if isinstance(part, Rejected):
                self.reasons[part.error.reason] += 1


def decoded(data: bytes) -> list[Any]:
    """The parts of an input; every other one is read with declared sources."""
    streams = STREAMS[len(data) % len(STREAMS)]
    return list(decode_record(data, GOLDEN_TABLES, arrived_at=ARRIVED, streams=streams))


def check_parts(parts: list[Any]) -> None:
    """Every byte string has an outcome, each part has one, and each can be kept as it must be."""
    if not parts:
        raise BrokenPromiseError("no outcome")
    indexes = [part.index for part in parts]
    # The second part of a line is numbered past all lines: only the first ones are in order.
    first = [index for index in indexes if index <= LINES_MAX]
    if len(set(indexes)) < len(indexes) or first != sorted(first) or min(indexes) < 0:
        raise BrokenPromiseError(f"indexes {indexes[:20]}")
    for part in parts:
        check = _CHECKS.get(type(part))
        if check is None or not check(part):
            raise BrokenPromiseError(f"not an outcome: {part!r:.400}")


def _decoded(part: Any) -> bool:
    """An accepted event can be written, and what is written is the same event."""
    line = encode_event(part.event)
    again = next(iter(decode_record(line, GOLDEN_TABLES)))
    return (
        isinstance(again, Decoded)
        and again.event == part.event
        and part.event.table in GOLDEN_TABLES.names
        and _label(part.decoder)
    )


def _rejected(part: Any) -> bool:
    error = part.error
    return (
        _label(error.reason)
        and len(error.detail) <= QUOTED_MAX + 1
        and (error.field is None or len(error.field) <= QUOTED_MAX + 1)
        and (part.table is None or part.table in GOLDEN_TABLES.names)
        and isinstance(part.data, bytes)
        and _label(part.decoder)
    )


def _ignored(part: Any) -> bool:
    kind = part.kind
    return 0 < len(kind) <= KIND_MAX and kind.isprintable() and _label(part.decoder)


def _truncation(part: Any) -> bool:
    return (
        part.table in GOLDEN_TABLES.names
        and 0 < part.version <= VERSION_MAX
        and all(0 < len(text) <= TEXT_MAX for text in (part.source, part.event_id))
    )


def _label(text: str) -> bool:
    """A stable code: short, of small letters."""
    return 0 < len(text) <= 40 and text.replace("_", "").isalnum() and text.islower()


_CHECKS = {
    Decoded: _decoded,
    Rejected: _rejected,
    Ignored: _ignored,
    Truncation: _truncation,
}
