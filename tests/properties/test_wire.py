"""The wire format as properties: nothing that is sent changes, nothing that arrives is lost."""

from __future__ import annotations

from datetime import UTC
from decimal import Decimal
from typing import Any

import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from freshet.contract import Contract, Day, Flag, Integer, Money, Text, Timestamp
from freshet.event import ChangeEvent, Op, key_text, lane_of, parse_key_text
from freshet.stream import RECORD_BYTES_MAX, RECORD_EVENTS_MAX, pack
from freshet.tables import TABLES
from freshet.testing import change, sale_row
from freshet.wire import (
    FRAMES_MAX,
    LINES_MAX,
    MAGIC,
    PLAIN,
    UNPACKED_BYTES_MAX,
    VERSION,
    ZSTD,
    Decoded,
    Rejected,
    decode_record,
    encode_event,
    encode_record,
)

CHARACTERS = st.characters(codec="utf-8")
TEXT = st.text(CHARACTERS)
INSTANTS = st.datetimes(timezones=st.just(UTC))
COMPRESS = st.booleans()


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value a column of this type can hold."""
    match kind:
        case Text(max_length, min_length):
            return st.text(CHARACTERS, min_size=min_length, max_size=min(max_length, 40))
        case Integer(bits):
            return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        case Money(precision, scale):
            digits = st.integers(-(10**precision) + 1, 10**precision - 1)
            return digits.map(lambda number: Decimal(number).scaleb(-scale))
        case Timestamp():
            return INSTANTS
        case Day():
            return st.dates()
        case Flag():
            return st.booleans()
        case _:
            raise AssertionError(kind)


PATTERNED = {
    "currency": st.from_regex(r"\A[A-Z]{3}\Z"),
    "release_date_precision": st.sampled_from(("year", "month", "day")),
}


def rows(contract: type[Contract]) -> st.SearchStrategy[dict[str, Any]]:
    columns = {}
    for column in contract.columns:
        value = PATTERNED.get(column.name, values(column.type))
        columns[column.name] = st.none() | value if column.nullable else value
    return st.fixed_dictionaries(columns)


IDS = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=40).filter(
    str.isprintable
)
HINTS = st.none() | st.dictionaries(TEXT, TEXT | st.none() | st.integers() | st.booleans())


@st.composite
def events(draw: st.DrawFn) -> ChangeEvent:
    contract = draw(st.sampled_from(tuple(TABLES)))
    row = draw(rows(contract))
    op = draw(st.sampled_from(Op))
    return ChangeEvent(
        table=contract.table,
        op=op,
        key={column: row[column] for column in contract.key},
        version=draw(st.integers(1, 2**63 - 1)),
        after=None if op is Op.DELETE else row,
        before=draw(HINTS),
        event_id=draw(IDS),
        source=draw(IDS),
        occurred_at=draw(st.none() | INSTANTS),
        accepted_at=draw(INSTANTS),
    )


@given(events(), COMPRESS)
def test_any_event_of_any_contract_survives_the_wire(event: ChangeEvent, compress: bool) -> None:
    data = encode_record([encode_event(event)], compress=compress)

    assert list(decode_record(data, TABLES)) == [Decoded(0, event)]


@given(st.lists(events(), max_size=30), st.integers(1, 8), COMPRESS)
def test_packing_loses_nothing_and_keeps_each_row_in_order_on_its_lane(
    batch: list[ChangeEvent], lanes: int, compress: bool
) -> None:
    packed = pack(batch, TABLES, lanes=lanes, compress=compress)

    unpacked = {
        position: part.event
        for record in packed
        for position, part in zip(record.events, decode_record(record.data, TABLES), strict=True)
        if isinstance(part, Decoded)
    }
    assert unpacked == dict(enumerate(batch))
    for lane in range(lanes):
        positions = [at for record in packed if record.lane == lane for at in record.events]
        assert positions == [at for at, event in enumerate(batch) if lane_at(event, lanes) == lane]


@given(st.integers(1, 1300))
@settings(max_examples=10, deadline=None)
def test_no_record_holds_more_than_its_limits(count: int) -> None:
    batch = [
        change("sales", sale_row(quantity=at, description="x" * 400), version=at + 1)
        for at in range(count)
    ]

    packed = pack(batch, TABLES, lanes=1, compress=False)

    assert [at for record in packed for at in record.events] == list(range(count))
    assert max(len(record.events) for record in packed) <= RECORD_EVENTS_MAX
    assert max(len(record.data) for record in packed) <= RECORD_BYTES_MAX + 6


@given(st.sampled_from(tuple(TABLES)), st.data())
def test_a_key_text_names_exactly_its_row(contract: type[Contract], data: st.DataObject) -> None:
    row = data.draw(rows(contract))
    key = {column: row[column] for column in contract.key}

    text = key_text(contract, key)

    assert parse_key_text(contract, text) == key
    assert key_text(contract, parse_key_text(contract, text)) == text


NOISE = st.binary(max_size=300)
LINES = st.lists(
    st.sampled_from(
        [
            b"",
            b"  ",
            b"{}",
            b"[1]",
            b"null",
            b"NaN",
            b"1e99999999999999999999",
            b"9" * 5000,
            b'{"table":"sales"}',
            b'{"table":["sales"],"op":{}}',
            b'{"table":"sales","op":"d","key":{"sale_id":"\\ud800"}}',
            b'{"\\ud800":1}',
            b"[" * 3000,
            b'{"table":' + b"[" * 900 + b"]" * 900 + b"}",
            b'{"table":"sales","op":' + b"[" * 900 + b"]" * 900 + b"}",
            b"\xff\xfe",
        ]
    )
    | NOISE.map(lambda noise: noise.replace(b"\n", b"")),
    max_size=8,
)


@given(st.builds(bytes.__add__, st.sampled_from([b"", MAGIC, b"{", b"["]), NOISE))
@example(b"")
@example(b" \n ")
@example(MAGIC)
@example(MAGIC + bytes((VERSION,)))
@example(MAGIC + bytes((9, PLAIN)) + b"{}")
@example(MAGIC + bytes((VERSION, 7)) + b"{}")
@example(MAGIC + bytes((VERSION, ZSTD)) + b"no zstd")
@example(MAGIC + bytes((VERSION, PLAIN)))
@example(MAGIC + bytes((VERSION, PLAIN)) + b"\n\n")
@settings(max_examples=300)
def test_arbitrary_bytes_are_decoded_or_rejected_and_never_raise(data: bytes) -> None:
    parts = list(decode_record(data, TABLES))

    assert parts
    assert all(isinstance(part, Decoded | Rejected) for part in parts)


@given(LINES, COMPRESS)
def test_every_line_of_a_record_is_accounted_for(lines: list[bytes], compress: bool) -> None:
    parts = list(decode_record(encode_record(lines, compress=compress), TABLES))

    present = [(index, line) for index, line in enumerate(lines) if line.strip()]
    if present:
        assert [(part.index, part.data) for part in parts if isinstance(part, Rejected)] == present
    else:
        assert [part.error.reason for part in parts if isinstance(part, Rejected)] == [
            "empty_record"
        ]


@given(st.lists(events(), min_size=1, max_size=5), LINES, st.randoms(use_true_random=False))
def test_bad_lines_do_not_touch_their_neighbours(
    good: list[ChangeEvent], bad: list[bytes], random: Any
) -> None:
    lines: list[tuple[ChangeEvent | None, bytes]] = [(one, encode_event(one)) for one in good]
    lines += [(None, line) for line in bad]
    random.shuffle(lines)

    parts = list(decode_record(encode_record([line for _, line in lines]), TABLES))

    decoded = {part.index: part.event for part in parts if isinstance(part, Decoded)}
    assert decoded == {at: event for at, (event, _) in enumerate(lines) if event is not None}


def zstd_record(payload: bytes) -> bytes:
    return MAGIC + bytes((VERSION, ZSTD)) + payload


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (zstandard.compress(b"\0" * (UNPACKED_BYTES_MAX + 1)), "too_large"),
        (zstandard.compress(b'{"a":1}\n' * 99)[:-1], "corrupt_compression"),
        (zstandard.compress(b"{}") + b"tail", "corrupt_compression"),
        (zstandard.compress(b"{}") * (FRAMES_MAX + 1), "too_large"),
        (zstandard.compress(b""), "empty_record"),
        (zstandard.compress(b"x\n" * (LINES_MAX + 1)), "too_large"),
    ],
    ids=[
        "bomb",
        "cut off",
        "bytes after the frame",
        "too many frames",
        "nothing inside",
        "bomb of lines",
    ],
)
def test_a_bad_compressed_record_is_rejected_as_a_whole(payload: bytes, reason: str) -> None:
    data = zstd_record(payload)

    (part,) = decode_record(data, TABLES)

    assert isinstance(part, Rejected)
    assert (part.error.reason, part.data) == (reason, data)


@given(st.lists(events(), min_size=2, max_size=4))
def test_a_record_of_several_frames_is_read_to_its_end(batch: list[ChangeEvent]) -> None:
    frames = b"".join(zstandard.compress(encode_event(event) + b"\n") for event in batch)

    parts = list(decode_record(zstd_record(frames), TABLES))

    assert [part.event for part in parts if isinstance(part, Decoded)] == batch


def lane_at(event: ChangeEvent, lanes: int) -> int:
    return lane_of(event.table, key_text(TABLES[event.table], event.key), lanes)


def test_the_lane_of_a_row_never_changes() -> None:
    """A changed hash would put a row's next change on another shard than its last."""
    lanes = [lane_of("sales", f"{invoice}-1", 64) for invoice in range(536365, 536369)]

    assert lanes == [24, 37, 18, 36]
