"""The wire format as properties: nothing that is sent changes, nothing that arrives is lost."""

from __future__ import annotations

import json
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
    Ignored,
    Rejected,
    Truncation,
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


@given(st.builds(bytes.__add__, st.sampled_from([b"", MAGIC, b"{", b"[", b"{\n"]), NOISE))
@example(b"")
@example(b"null")
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
    assert all(isinstance(part, Decoded | Rejected | Ignored | Truncation) for part in parts)


# --- what other tools write -----------------------------------------------------------------------

# One record of each kind; the members below are put into them, out of them and in place of others.
CAPTURED: tuple[dict[str, Any], ...] = (
    {
        "before": None,
        "after": sale_row(),
        "source": {"connector": "postgresql", "name": "shop", "schema": "public"}
        | {"table": "sales", "lsn": 7, "ts_ms": 1795249809000},
        "op": "u",
        "ts_ms": 1795249809100,
    },
    {**sale_row(), "__op": "c", "__table": "sales", "__name": "shop", "__lsn": 7, "__ts_ms": 1},
    {
        "data": sale_row(),
        "before-image": {"sale_id": "536365-2"},
        "metadata": {
            "timestamp": "2026-11-21T08:30:08.086557Z",
            "record-type": "data",
            "operation": "update",
            "schema-name": "public",
            "table-name": "sales",
            "transaction-record-id": 1,
            "commit-timestamp": "2026-11-21T08:30:08.078294Z",
        },
    },
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(["c", "d", "t", "m", "__debezium_unavailable_value", "AQ==", "infinity"]),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part),
    max_leaves=5,
)


@st.composite
def bent_records(draw: st.DrawFn) -> bytes:
    """A record of another tool with up to three of its members made anything at all."""
    record = json.loads(json.dumps(draw(st.sampled_from(CAPTURED))))
    for _ in range(draw(st.integers(0, 3))):
        inner = [part for part in record.values() if isinstance(part, dict) and part]
        holder = draw(st.sampled_from([record, *inner]))
        name = draw(st.sampled_from(sorted(holder)) | st.text(max_size=4))
        if draw(st.booleans()):
            holder[name] = draw(JSON_VALUES)
        else:
            holder.pop(name, None)
    if draw(st.booleans()):
        record = {"schema": draw(JSON_VALUES), "payload": record}
    return json.dumps(record, indent=draw(st.sampled_from([None, 1]))).encode()


@given(bent_records())
@settings(max_examples=400)
def test_a_bent_record_of_another_tool_is_taken_or_rejected_and_never_raises(data: bytes) -> None:
    parts = list(decode_record(data, TABLES))

    assert [part.index for part in parts] == [0, LINES_MAX + 1][: len(parts)]
    assert parts
    assert [part.data for part in parts if isinstance(part, Rejected)] in ([], [data])
    for part in parts:
        if isinstance(part, Decoded):  # what one of us accepts the others understand
            again = decode_record(encode_event(part.event), TABLES)
            assert [one.event for one in again if isinstance(one, Decoded)] == [part.event]


def native_line() -> bytes:
    return encode_event(change("sales", sale_row(), version=1))


def test_an_empty_record_is_the_tombstone_of_another_tool() -> None:
    assert list(decode_record(b"", TABLES)) == [Ignored(0, "tombstone", "debezium")]
    assert list(decode_record(b"null", TABLES)) == [Ignored(0, "tombstone", "debezium")]


def test_one_object_over_many_lines_is_one_event() -> None:
    event = change("sales", sale_row(), version=1)

    parts = list(decode_record(json.dumps(event.to_json(), indent=2).encode() + b"\n", TABLES))

    assert parts == [Decoded(0, event)]


@pytest.mark.parametrize("blank", [b" ", b"\n", b"\t\r\n"])
def test_blank_before_an_event_is_no_other_format(blank: bytes) -> None:
    """A refused line that begins so comes again alone, as it is in the quarantine."""
    (part,) = decode_record(blank + native_line(), TABLES)

    assert isinstance(part, Decoded)


def test_a_broken_object_over_many_lines_is_rejected_whole_and_not_line_by_line() -> None:
    data = json.dumps(CAPTURED[2], indent="\t").encode()[:-2]

    (part,) = decode_record(data, TABLES)

    assert isinstance(part, Rejected)
    assert (part.error.reason, part.data) == ("malformed_json", data)


def test_a_broken_first_line_takes_no_other_line_with_it() -> None:
    parts = list(decode_record(b'{"table":\n' + native_line() + b"\n[", TABLES))

    assert [type(part) for part in parts] == [Rejected, Decoded, Rejected]
    assert [part.index for part in parts] == [0, 1, 2]


def test_lines_of_several_tools_in_one_record_each_find_their_decoder() -> None:
    """The changed key makes two parts of the second line; its neighbours keep their places."""
    lines = [native_line(), json.dumps(CAPTURED[2]).encode(), json.dumps(CAPTURED[0]).encode()]

    parts = list(decode_record(encode_record([*lines, b"{}"]), TABLES))

    assert [(part.index, part.decoder) for part in parts if not isinstance(part, Rejected)] == [
        (0, "native"),
        (1, "dms"),
        (LINES_MAX + 2, "dms"),
        (2, "debezium"),
    ]
    assert [(part.index, part.data) for part in parts if isinstance(part, Rejected)] == [(3, b"{}")]


BENT = json.dumps({**CAPTURED[1], "sold_at": "soon"}).encode()


@pytest.mark.parametrize("line", [b"{", b'{"a":1e99999999999999999999}', BENT])
def test_a_rejected_line_keeps_no_frames_alive(line: bytes) -> None:
    """A frame holds the decoded line: thousands of them would fill the memory."""
    (part,) = decode_record(line, TABLES)

    assert isinstance(part, Rejected)
    assert part.error.__traceback__ is None
    assert part.error.__context__ is None


def test_an_aggregated_record_is_rejected_by_name_and_says_what_to_switch_off() -> None:
    (part,) = decode_record(b"\xf3\x89\x9a\xc2" + b"\x0a\x01" * 9, TABLES)

    assert isinstance(part, Rejected)
    assert part.error.reason == "kpl_aggregated"
    assert "AggregationEnabled" in part.error.detail


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
