"""Wire format v1: how change events travel in a Kinesis record, and what else is understood.

    F R S H | version 0x01 | encoding | body
    body = one JSON event per line; encoding 0x00 plain, 0x01 zstd

One record carries one or many events of one lane. Lines are independent: a bad one is rejected
alone. A record that begins with `{` is taken as such a body without the prefix, so that any tool
can put an event, or as one JSON object over many lines, as AWS DMS writes it. Each object is
recognised by itself: an event of ours, of Debezium or of DMS. An empty record is Debezium's
tombstone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import zstandard

from freshet import debezium, dms
from freshet.contract import Registry
from freshet.errors import RejectedError
from freshet.event import ChangeEvent, check_future, parse_event
from freshet.image import Reading, Truncated
from freshet.mapping import DEFAULT_STREAMS, Streams

MAGIC = b"FRSH"
# What the Kinesis Producer Library begins an aggregated record with.
_KPL_MAGIC = b"\xf3\x89\x9a\xc2"
VERSION = 1
PLAIN, ZSTD = 0, 1

# Lambda hands at most 6 MB to an invocation; a record that unpacks to more than this is a bomb or
# a mistake.
UNPACKED_BYTES_MAX = 16 * 1024 * 1024
# A line longer than a default Kinesis record (1 MiB) was never put as one event.
LINE_BYTES_MAX = 1024 * 1024
# Ten times what `freshet.stream.pack` puts into a record: more is a bomb of tiny lines.
LINES_MAX = 5_000
# Between the first and the second part of a line: no part's number depends on its neighbours.
PART_STRIDE = LINES_MAX + 1
# Level 3 is zstd's own default: beyond it CPU grows faster than bytes shrink on JSON.
_LEVEL = 3
# Writers make one frame; a million tiny ones would cost a copy of the rest each.
FRAMES_MAX = 16
# A frame may ask its reader for this much memory: RFC 9659's bound for zstd on the web.
_WINDOW_BYTES_MAX = 8 * 1024 * 1024
# At most 128 KiB come out of 4 bytes, so one step of a bomb yields 8 MiB.
_STEP_BYTES = 256
# Below this a zstd frame saves nothing worth a header.
_COMPRESS_BYTES_MIN = 512


@dataclass(frozen=True, slots=True)
class Rejected:
    """One line (or whole record) that is no event: its original bytes and why."""

    index: int
    data: bytes
    error: RejectedError
    table: str | None = None
    decoder: str = "native"


@dataclass(frozen=True, slots=True)
class Ignored:
    """A record, or a part of one, that is no change of a row and is meant to be none: its kind, as
    `tombstone` or `heartbeat`.
    """

    index: int
    kind: str
    decoder: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """One event and its place among the parts of its record, and the decoder that read it."""

    index: int
    event: ChangeEvent
    decoder: str = "native"


@dataclass(frozen=True, slots=True)
class Truncation:
    """The end of all rows of a table that are older than `version`."""

    index: int
    table: str
    version: int
    source: str
    event_id: str
    occurred_at: datetime | None
    accepted_at: datetime
    decoder: str = "debezium"


Part = Decoded | Rejected | Ignored | Truncation


def encode_event(event: ChangeEvent) -> bytes:
    """The event as one JSON line, without the newline."""
    return json.dumps(
        event.to_json(), ensure_ascii=False, separators=(",", ":"), default=str
    ).encode()


def encode_record(lines: Iterable[bytes], *, compress: bool = True) -> bytes:
    """Encoded events as the data of one Kinesis record."""
    body = b"\n".join(lines)
    if compress and len(body) >= _COMPRESS_BYTES_MIN:
        packed = zstandard.ZstdCompressor(level=_LEVEL).compress(body)
        return MAGIC + bytes((VERSION, ZSTD)) + packed
    return MAGIC + bytes((VERSION, PLAIN)) + body


def decode_record(
    data: bytes,
    tables: Registry,
    *,
    arrived_at: datetime | None = None,
    streams: Streams = DEFAULT_STREAMS,
) -> Iterator[Part]:
    """Every event in a record's data, and every part of it that is none, each exactly once.

    A part has the number of its line; a second part of a line (a changed key) is numbered past all
    lines, so that no neighbour's place depends on it. With `arrived_at` an event whose version lies
    a day beyond it is rejected (future_version). `streams` says how the tables of other tools'
    records map to ours.
    """
    if not data or data.strip() == b"null":
        yield Ignored(0, "tombstone", "debezium")
        return
    reader = _Reader(tables, streams, arrived_at)
    try:
        body = _body(data)
        if data[:4] != MAGIC and _is_one_value(body):
            yield from reader.parts(0, data)
            return
        _check_lines(body)
    except RejectedError as error:
        yield Rejected(0, data, error)
        return
    for index, line in enumerate(body.split(b"\n")):
        if line.strip():
            yield from reader.parts(index, line)


def _is_one_value(data: bytes) -> bool:
    """Whether a record without the prefix is one JSON value over many lines, be it a broken one.

    One that is broken has no line that is an object by itself.
    """
    if b"\n" not in data.strip() or len(data) > LINE_BYTES_MAX:
        return False
    try:
        text = data.decode("utf-8").strip()
        return _JSON.raw_decode(text)[1] == len(text)
    except (ValueError, RecursionError, InvalidOperation, RejectedError):
        return not any(_is_object(line) for line in data.split(b"\n")[:LINES_MAX])


def _is_object(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False
    try:
        return isinstance(parse_json(line), dict)
    except RejectedError:
        return False


def _check_lines(body: bytes) -> None:
    if not body.strip():
        raise RejectedError("empty_record", "holds no event")
    if body.count(b"\n") > LINES_MAX:
        raise RejectedError("too_large", f"has more than {LINES_MAX} lines")


def _body(data: bytes) -> bytes:
    # Blank in front is no other format: a line of a record may begin so, and is replayed alone.
    if data.lstrip()[:1] in b"{[":
        return data
    if data[:4] == _KPL_MAGIC:
        detail = "was aggregated by the KPL: set AggregationEnabled to false in its configuration"
        raise RejectedError("kpl_aggregated", detail)
    if data[:4] != MAGIC:
        raise RejectedError("unknown_format", "neither Freshet's prefix nor a JSON object")
    if len(data) < 6:
        raise RejectedError("truncated", "ends within the prefix")
    if data[4] != VERSION:
        raise RejectedError(
            "unsupported_version",
            f"wire version {data[4]}; this reader knows {VERSION}: upgrade it",
        )
    return _unpack(data[5], data[6:])


def _unpack(encoding: int, payload: bytes) -> bytes:
    if encoding == PLAIN:
        return payload
    if encoding != ZSTD:
        raise RejectedError("unknown_format", f"unknown encoding {encoding}")
    return unpack_zstd(payload, UNPACKED_BYTES_MAX)


def unpack_zstd(payload: bytes, bytes_max: int) -> bytes:
    """The whole content of one or more zstd frames.

    Raises `RejectedError`: too_large beyond `bytes_max`, corrupt_compression for what is no frame
    or ends early. Memory stays near `bytes_max`: input goes in by small steps.
    """
    body = bytearray()
    try:
        for _ in range(FRAMES_MAX):
            if not payload:
                return bytes(body)
            frame = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).decompressobj()
            at = 0
            while at < len(payload) and not frame.eof:
                body += frame.decompress(payload[at : at + _STEP_BYTES])
                at += _STEP_BYTES
                if len(body) > bytes_max:
                    raise RejectedError("too_large", f"unpacks to more than {bytes_max} bytes")
            if not frame.eof:
                raise RejectedError("corrupt_compression", "ends within a zstd frame")
            payload = frame.unused_data + payload[at:]
    except zstandard.ZstdError as error:
        raise RejectedError("corrupt_compression", str(error)) from None
    if payload:
        raise RejectedError("too_large", f"is cut into more than {FRAMES_MAX} compressed parts")
    return bytes(body)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads one JSON value after the other, by the decoder that knows it."""

    tables: Registry
    streams: Streams
    arrived_at: datetime | None

    def parts(self, index: int, line: bytes) -> list[Part]:
        """What a line comes to, numbered from `index`: all of it is taken or all rejected."""
        decoder, table = "native", None
        try:
            body = parse_json(line)
            decoder = self._decoder(body)
            if decoder == "native":
                table = _table(body, self.tables)
                return [Decoded(index, self._event(body))]
            reading = self._reading(decoder, body)
            table = reading.table
            return self._made(index, decoder, reading)
        except RejectedError as error:
            # Without its trace: thousands of rejected lines must not keep their frames alive.
            error.__context__ = None
            return [Rejected(index, line, error.with_traceback(None), table, decoder)]

    def _decoder(self, body: Any) -> str:
        if not isinstance(body, dict):
            return "native"
        if dms.recognises(body):
            return "dms"
        return "debezium" if debezium.recognises(body, self.streams) else "native"

    def _reading(self, decoder: str, body: Any) -> Reading:
        decode = dms.decode if decoder == "dms" else debezium.decode
        return decode(body, self.tables, self.streams, self.arrived_at)

    def _made(self, index: int, decoder: str, reading: Reading) -> list[Part]:
        if reading.error is not None:
            raise reading.error
        if isinstance(reading.other, Truncated):
            return [self._truncation(index, reading.other)]
        if reading.other is not None:
            return [Ignored(index, reading.other.kind, decoder)]
        events = [self._event(body) for body in reading.events]
        return [
            Decoded(index + at * PART_STRIDE, event, decoder) for at, event in enumerate(events)
        ]

    def _event(self, body: Any) -> ChangeEvent:
        event = parse_event(body, self.tables)
        self._check_future(event.version)
        return event

    def _truncation(self, index: int, end: Truncated) -> Truncation:
        self._check_future(end.version)
        who = (end.table, end.version, end.source, end.event_id)
        return Truncation(index, *who, end.occurred_at, end.accepted_at)

    def _check_future(self, version: int) -> None:
        if self.arrived_at is not None:
            check_future(version, self.arrived_at)


def _table(body: Any, tables: Registry) -> str | None:
    """The declared table that an event of ours names."""
    table = body.get("table") if isinstance(body, dict) else None
    return table if table in tables.names else None


def parse_json(text: bytes) -> Any:
    """Strict JSON with exact decimals. Raises `RejectedError`: malformed_json, not_utf8, too_deep,
    too_large.
    """
    if len(text) > LINE_BYTES_MAX:
        raise RejectedError("too_large", f"an event may have {LINE_BYTES_MAX} bytes")
    try:
        return _JSON.decode(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RejectedError("not_utf8", f"byte {error.start} is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise RejectedError("malformed_json", f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise RejectedError("too_deep", "is nested too deeply") from None
    except (ValueError, InvalidOperation):  # an integer of 5,000 digits, an exponent of 20
        raise RejectedError("out_of_range", "holds a number out of range") from None


def _no_constant(name: str) -> Any:
    raise RejectedError("out_of_range", f"{name} is not a JSON number")


_JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)
