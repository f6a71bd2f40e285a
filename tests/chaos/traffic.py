"""What is sent: records of three formats, poison among them, and what it all must come to.

Everything follows from a seed. Each part of a record is written down as it is made (a change that
any contract takes, one that only the second takes, garbage, or no change), so that what the lake
holds is compared with what was meant, not with what the decoders made of it.
"""

from __future__ import annotations

import hmac
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from random import Random
from typing import Any, NamedTuple

from tests.chaos.contracts import SHIPMENTS, STOCK
from tests.encoders import debezium, dms
from tests.encoders.history import STARTED, Kind, Log, SourceTable

from freshet.event import lane_of
from freshet.kinesis import explicit_hash_key, partition_key
from freshet.stream import LANES
from freshet.wire import LINES_MAX, encode_record

PII_KEY = b"chaos" * 8
ACCEPTED = "2026-11-21T08:30:00Z"
# Commit times are versions there: all of them lie before any clock that this runs by.
OPENED = datetime(2020, 1, 1, tzinfo=UTC)
# Shares of all events.
POISON, LATER_CONTRACT, DEBEZIUM, DMS = 0.006, 0.008, 0.06, 0.05
DUPLICATED, TIED, PATCHED, DELETED, HOMELESS = 0.02, 0.01, 0.12, 0.08, 0.01
# How far an event may come after its successors: most a little, some very late.
JITTER, LATE, LATE_SHARE = 40, 1_500, 0.01
SALES_PER_DAY, DAYS = 0.8, 12
PACK_MAX = 14
Json = dict[str, Any]


class Meant(Enum):
    """What a part of a record is."""

    CHANGE = "change"
    LATER = "later"  # a change that only the second version of the contracts takes
    GARBAGE = "garbage"
    NOTHING = "nothing"  # a tombstone, a heartbeat, a control record


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a record; `told` of a native change: table, key, version, after, patch."""

    meant: Meant
    told: tuple[str, str, int, Json | None, Json | None] | None = None


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A record to put, and its parts in order; their numbers are so far `apart`."""

    data: bytes
    lane: int
    parts: tuple[Part, ...]
    apart: int = 1

    def entry(self) -> Json:
        """As PutRecords takes it."""
        return {
            "Data": self.data,
            "PartitionKey": partition_key(self.lane),
            "ExplicitHashKey": explicit_hash_key(self.lane, LANES),
        }


class Line(NamedTuple):
    """A line of a packed record."""

    data: bytes
    lane: int
    part: Part


@dataclass
class Traffic:
    """Records of `events` parts or a few more, the same for the same seed.

    `rows` are what the tables of the two source databases hold in the end.
    """

    events: int
    seed: int
    records: list[Outgoing] = field(default_factory=list)
    rows: dict[str, dict[str, Json]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = Random(self.seed)
        units = [*self._packed(), *self._debezium(), *self._dms()]
        spread = [(at + self._delay(), number, one) for number, (at, one) in enumerate(units)]
        self.records = [one for _, _, one in sorted(spread, key=lambda item: item[:2])]

    def count(self, meant: Meant) -> int:
        """How many parts are meant so."""
        return sum(part.meant is meant for one in self.records for part in one.parts)

    def _delay(self) -> float:
        reach = LATE if self._random.random() < LATE_SHARE else JITTER
        return self._random.uniform(0, min(reach, self.events / 4))

    def _packed(self) -> Iterator[tuple[float, Outgoing]]:
        """Native lines as records, most of them packed; a place in time with each."""
        by_lane: dict[int, list[Line]] = defaultdict(list)
        wanted: dict[int, int] = {}
        total = round(self.events * (1 - DEBEZIUM - DMS))
        for number in range(total):
            at = number * self.events / total
            if self._random.random() < POISON / 4:
                yield at, self._garbage_record()
                continue
            for line in self._lines(number, total):
                lane = by_lane[line.lane]
                lane.append(line)
                if len(lane) >= wanted.setdefault(line.lane, self._random.randint(1, PACK_MAX)):
                    yield at, self._record(lane)
                    by_lane.pop(line.lane)
                    wanted.pop(line.lane)
        for lane in by_lane.values():
            yield float(self.events), self._record(lane)

    def _record(self, lines: list[Line]) -> Outgoing:
        parts = tuple(line.part for line in lines)
        if len(lines) == 1 and self._random.random() < 0.5:
            return Outgoing(lines[0].data, lines[0].lane, parts)
        data = encode_record([line.data for line in lines], compress=self._random.random() < 0.7)
        return Outgoing(data, lines[0].lane, parts)

    def _garbage_record(self) -> Outgoing:
        whole = [
            b"\x00\x01 no format of anybody",
            b"FRSH\x01\x01 not zstd at all",
            b"FRSH\x07\x00{}",
            b'{"table": "sales", "op": ',
            b"[1, 2, 3]",
            "Bestellung Nº 5".encode("latin-1"),
        ]
        data = self._random.choice(whole) + b" " * self._random.randint(0, 3)
        return Outgoing(data, self._random.randrange(LANES), (Part(Meant.GARBAGE),))

    # Native events ------------------------------------------------------------------------------

    def _lines(self, number: int, total: int) -> list[Line]:
        chance = self._random.random()
        if chance < POISON * 3 / 4:
            return [self._garbage_line(number)]
        if chance < POISON + LATER_CONTRACT / 4:
            return [self._voucher(number)]
        is_sale = self._random.random() < 0.7
        line = self._sale(number, total) if is_sale else self._product(number, total)
        copies = 2 if self._random.random() < DUPLICATED else 1
        return [line] * copies

    def _garbage_line(self, number: int) -> Line:
        key = f"g-{number}"
        sale = self._event("sales", key, 5, {"after": sale_row(self._random, key, 1)})
        bad: list[Any] = [
            {**sale, "after": {**sale["after"], "quantity": "six"}},
            {**sale, "after": {**sale["after"], "unit_price": "1e3"}},
            {**sale, "version": 0},
            {**sale, "version": 9_000_000_000_000_000},
            {**sale, "nobody": "declared this member"},
            {**sale, "table": "no such table"},
            self._event("stock", key, 5, {"after": {"sku": key}}),
            "no event",
        ]
        data = json.dumps(self._random.choice(bad)).encode()
        if self._random.random() < 0.2:
            data = data[: len(data) // 2]
        return Line(data, self._random.randrange(LANES), Part(Meant.GARBAGE))

    def _voucher(self, number: int) -> Line:
        key = f"V-{self._random.randrange(max(4, number // 100))}"
        after = {"code": key, "amount": f"{self._random.randrange(1, 9_000)}.5000"}
        return self._line("vouchers", key, self._version(number), after, None, Meant.LATER)

    def _sale(self, number: int, total: int) -> Line:
        key = f"S-{self._random.randrange(max(20, total // 8))}"
        if self._random.random() < HOMELESS:
            key = f"H-{self._random.randrange(max(4, total // 400))}"
            return self._patch("sales", key, number, _sale_patch(self._random))
        if self._random.random() < PATCHED:
            return self._patch("sales", key, number, _sale_patch(self._random))
        if self._random.random() < DELETED:
            return self._line("sales", key, self._version(number), None, None, Meant.CHANGE)
        after, meant = sale_row(self._random, key, number), Meant.CHANGE
        if self._random.random() < LATER_CONTRACT:
            meant = Meant.LATER
            after |= self._random.choice([{"channel": "web"}, {"country": "Llan" + "fair" * 20}])
        return self._line("sales", key, self._version(number), after, None, meant)

    def _product(self, number: int, total: int) -> Line:
        key = f"P-{self._random.randrange(max(10, total // 60))}"
        price = f"{self._random.randrange(1, 900)}.9900"
        if self._random.random() < PATCHED:
            patch: Json = {"price": price} | self._random.choice([{}, {"description": None}])
            return self._patch("products", key, number, patch)
        if self._random.random() < DELETED / 2:
            return self._line("products", key, self._version(number), None, None, Meant.CHANGE)
        after = {
            "product_id": key,
            "sku": f"sku {key}",
            "title": f"Title ☃ {self._random.randrange(50)}",
            "description": "text " * self._random.randrange(1, 8),
            "price": price,
            "currency": "GBP",
        }
        return self._line("products", key, self._version(number), after, None, Meant.CHANGE)

    def _version(self, number: int) -> int:
        """Mostly new; now and then one that another change of the same time has, too."""
        tied = self._random.random() < TIED
        return number // 500 * 1000 + 1 if tied else number * 2 + 2

    def _patch(self, table: str, key: str, number: int, patch: Json) -> Line:
        return self._line(table, key, self._version(number), None, patch, Meant.CHANGE)

    def _line(
        self,
        table: str,
        key: str,
        version: int,
        after: Json | None,
        patch: Json | None,
        meant: Meant,
    ) -> Line:
        images = {
            name: row for name, row in (("after", after), ("patch", patch)) if row is not None
        }
        data = json.dumps(self._event(table, key, version, images), ensure_ascii=False).encode()
        told = (table, key, version, _hashed(after), _hashed(patch))
        return Line(data, lane_of(table, key, LANES), Part(meant, told))

    def _event(self, table: str, key: str, version: int, images: Json) -> Json:
        return {
            "table": table,
            "op": "u" if images else "d",
            "key": {KEY_OF.get(table, "key"): key},
            "version": version,
            "event_id": f"{table}-{key}-{version}",
            "source": "chaos",
            "occurred_at": ACCEPTED,
            "accepted_at": ACCEPTED,
            **images,
        }

    # Source databases ---------------------------------------------------------------------------

    def _debezium(self) -> Iterator[tuple[float, Outgoing]]:
        choice = debezium.DebeziumChoice(
            server="warehouse", toast=True, heartbeats=True, decimals="string", wrapper=False
        )
        log = self._played(STOCK, round(self.events * DEBEZIUM / 2.4), truncates=True)
        for number, change in enumerate(log.changes):
            at = number * self.events / len(log.changes)
            for data in debezium.encode([change], choice):
                nothing = not data or b'"op":' not in data
                part = Part(Meant.NOTHING if nothing else Meant.CHANGE)
                yield at, Outgoing(data, self._random.randrange(LANES), (part,))

    def _dms(self) -> Iterator[tuple[float, Outgoing]]:
        choice = dms.DmsChoice(schema="carrier", partial=True, controls=False)
        log = self._played(SHIPMENTS, round(self.events * DMS), truncates=False)
        control = dms.DmsChoice(schema="carrier", loaded=1)
        for data in dms.encode(log.changes[:1], control)[:2]:
            yield 0.0, Outgoing(data, 0, (Part(Meant.NOTHING),))
        for number, change in enumerate(log.changes):
            at = number * self.events / len(log.changes)
            for data in dms.encode([change], choice):
                parts = (Part(Meant.CHANGE),) * (2 if change.kind is Kind.REKEY else 1)
                yield at, Outgoing(data, self._random.randrange(LANES), parts, LINES_MAX + 1)

    def _played(self, table: SourceTable, changes: int, *, truncates: bool) -> Log:
        """A database that ran random statements; its rows in the end are the truth."""
        log, rows, made = Log(_committed_at=OPENED), self.rows.setdefault(table.name, {}), 0
        (key,) = table.key
        while len(log.changes) < changes:
            chance = self._random.random()
            if truncates and len(log.changes) == changes // 2:
                log.add(table, Kind.TRUNCATE, None, None, removed=tuple(rows.values()))
                rows.clear()
            elif not rows or chance < 0.3:
                made += 1
                name = f"{table.name}-{made}"
                rows[name] = {key: name} | self._values(table, list(table.columns)[1:])
                log.add(table, Kind.INSERT, None, rows[name], touched=rows[name])
            elif chance < 0.36:
                log.add(table, Kind.DELETE, rows.pop(self._random.choice(list(rows))), None)
            elif chance < 0.40:
                made += 1
                before = rows.pop(self._random.choice(list(rows)))
                name = f"{table.name}-{made}"
                rows[name] = before | {key: name}
                log.add(table, Kind.REKEY, before, rows[name], touched={key})
            else:
                name = self._random.choice(list(rows))
                set_to = self._values(table, self._random.sample(list(table.columns)[1:], 2))
                before, rows[name] = rows[name], rows[name] | set_to
                log.add(table, Kind.UPDATE, before, rows[name], touched=set_to)
            log.commit(OPENED)
        return log

    def _values(self, table: SourceTable, columns: list[str]) -> Json:
        return {name: self._value(table.columns[name]) for name in columns}

    def _value(self, kind: str) -> Any:
        number = self._random.randrange(10_000)
        if number % 9 == 0:
            return None
        if kind.startswith("numeric"):
            return Decimal(number * 25).scaleb(-4)
        if kind == "timestamp":
            return STARTED + timedelta(microseconds=number * 1_000_037)
        if kind == "boolean":
            return number % 2 == 0
        return f"text {number}" if kind == "text" else number


KEY_OF = {
    "sales": "sale_id",
    "products": "product_id",
    "vouchers": "code",
    "stock": "sku",
    "shipments": "shipment_id",
}


def sale_row(random: Random, key: str, number: int) -> Json:
    """A full row; its day is mostly the key's own, so that few rows move."""
    day = sum(map(ord, key)) % DAYS if random.random() < 0.97 else random.randrange(DAYS)
    return {
        "sale_id": key,
        "invoice_no": f"I-{number}",
        "line": 1 + number % 9,
        "sku": f"sku-{number % 400}",
        "quantity": random.randrange(-3, 40),
        "returned_quantity": random.randrange(3),
        "unit_price": f"{random.randrange(900)}.2500",
        "currency": "GBP",
        "customer_id": f"C-{random.randrange(500)}",
        "country": random.choice(["United Kingdom", "France", None]),
        "sold_at": f"2026-11-{1 + day:02d}T{number % 24:02d}:00:00.000000Z",
    }


def _sale_patch(random: Random) -> Json:
    patches: list[Json] = [
        {"quantity": random.randrange(90)},
        {"returned_quantity": random.randrange(9), "country": None},
        {"customer_id": f"C-{random.randrange(500)}"},
        {"sold_at": f"2026-11-{1 + random.randrange(DAYS):02d}T12:00:00.000000Z"},
    ]
    return random.choice(patches)


def _hashed(row: Json | None) -> Json | None:
    """The row as a lake may hold it: customers by the HMAC of the key."""
    if row is None or row.get("customer_id") is None:
        return row
    digest = hmac.new(PII_KEY, row["customer_id"].encode(), sha256).hexdigest()
    return row | {"customer_id": f"hmac:{digest[:40]}"}
