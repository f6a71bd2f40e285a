"""Every line of every record of a batch is decoded or rejected, exactly once and in its place."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.decode import IGNORED_KINDS_MAX, REJECTED_MAX, DecodedBatch, decode_batch
from freshet.clock import micros
from freshet.event import ChangeEvent, Op
from freshet.tables import TABLES
from freshet.testing import change, sale_row
from freshet.wire import LINES_MAX, encode_event, encode_record

EVENTS = Path(__file__).parents[2] / "events"
GOOD = encode_event(change(after=sale_row()))


def recorded(name: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return event


def decoded(name: str) -> DecodedBatch:
    return decode_batch(recorded(name), TABLES)


def batch_of(*data: str | bytes) -> dict[str, Any]:
    """A Kinesis event of these records; text stands as it is where base64 belongs."""
    return {"Records": [record(at, part) for at, part in enumerate(data)]}


def record(at: int, data: str | bytes) -> dict[str, Any]:
    return {
        "kinesis": {
            "sequenceNumber": str(1000 + at),
            "data": data if isinstance(data, str) else base64.b64encode(data).decode(),
            "approximateArrivalTimestamp": 1795249809.125,
        },
        "eventID": f"shardId-000000000003:{1000 + at}",
    }


def test_records_of_one_and_of_many_events_are_one_batch_in_stream_order() -> None:
    batch = decoded("kinesis_packed")

    assert [(item.event.table, item.event.op) for item in batch.events] == [
        ("sales", Op.CREATE),
        ("sales", Op.CREATE),
        ("sales", Op.CREATE),
        ("sales", Op.CREATE),
        ("sales", Op.CREATE),
        ("sales", Op.UPDATE),
        ("sales", Op.DELETE),
        ("sales", Op.CREATE),
        ("products", Op.READ),
    ]
    positions = [item.place.position for item in batch.events]
    assert positions == sorted(set(positions))
    assert not batch.rejected


def test_a_compressed_record_gives_the_same_as_a_plain_one() -> None:
    batch = decoded("kinesis_zstd")

    assert [item.event.key["sale_id"] for item in batch.events[:3]] == [
        "536365-1",
        "536365-2",
        "536365-3",
    ]
    assert len(batch.events) == 40
    assert not batch.rejected


def test_poison_is_rejected_with_its_reason_and_its_neighbours_are_not() -> None:
    batch = decoded("kinesis_poison")

    assert [(line.reason, line.field, line.table) for line in batch.rejected] == [
        ("unknown_format", None, None),
        ("wrong_type", "after.quantity", "sales"),
        ("malformed_json", None, None),
        ("unsupported_version", None, None),
        ("corrupt_compression", None, None),
        ("not_utf8", None, None),
        ("unknown_table", "table", None),
    ]
    assert len(batch.events) == 4
    assert batch.ignored == {"tombstone": 1}  # an empty record is Debezium's


def test_a_rejected_record_keeps_its_original_bytes_and_a_rejected_line_its_own() -> None:
    event = recorded("kinesis_poison")
    sent = [base64.b64decode(item["kinesis"]["data"]) for item in event["Records"]]

    rejected = decode_batch(event, TABLES).rejected

    assert rejected[0].data == sent[1]
    assert [line.data for line in rejected[1:3]] == sent[2][6:].split(b"\n")[1:3]
    assert [line.data for line in rejected[3:]] == sent[4:8]
    assert sent[3] == b""


def test_a_place_says_shard_sequence_number_line_and_arrival() -> None:
    batch = decode_batch(batch_of(encode_record([GOOD, b"{}"])), TABLES)

    place = batch.rejected[0].place
    assert (place.shard_id, place.sequence_number, place.index) == (
        "shardId-000000000003",
        "1000",
        1,
    )
    assert place.arrived_at == datetime(2026, 11, 21, 8, 30, 9, 125_000, tzinfo=UTC)


def test_the_same_batch_has_the_same_name_and_another_has_another() -> None:
    same, other = batch_of(GOOD, GOOD), batch_of(GOOD)

    names = [decode_batch(event, TABLES).name for event in (same, same, other)]

    assert names[0] == names[1] == "shardId-000000000003-1000-1001"
    assert names[2] != names[0]


def test_events_are_grouped_by_table_in_stream_order() -> None:
    groups = decoded("kinesis_packed").by_table()

    assert {table: len(placed) for table, placed in groups.items()} == {"sales": 8, "products": 1}
    positions = [placed.position for placed in groups["sales"]]
    assert positions == sorted(positions)


@pytest.mark.parametrize("data", ["not base64!", "YQ", "{}", "ä"])
def test_data_that_is_not_base64_is_rejected_as_it_came(data: str) -> None:
    batch = decode_batch(batch_of(data, GOOD), TABLES)

    assert [line.data for line in batch.rejected] == [data.encode()]
    assert len(batch.events) == 1


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_nothing_is_lost_whatever_the_bytes(parts: list[bytes]) -> None:
    """Each record ends in at least one place, and the good one behind it always lands."""
    batch = decode_batch(batch_of(*parts, GOOD), TABLES)

    alone = [decode_batch(batch_of(part), TABLES) for part in parts]
    assert all(outcomes(one) >= 1 for one in alone)
    assert outcomes(batch) == sum(map(outcomes, alone)) + 1
    assert batch.events[-1].event.key == {"sale_id": "536365-1"}


def outcomes(batch: DecodedBatch) -> int:
    listed = len(batch.events) + len(batch.rejected) + len(batch.truncations)
    return listed + batch.ignored.total()


HEARTBEAT = json.dumps({"ts_ms": 1795249808000}).encode()
TRUNCATE = {
    "op": "t",
    "before": None,
    "after": None,
    "ts_ms": 1795249808500,
    "source": {
        "connector": "postgresql",
        "name": "shop",
        "ts_ms": 1795249808000,
        "schema": "public",
        "table": "sales",
        "lsn": 77,
    },
}


def test_what_is_no_change_is_counted_by_kind_and_is_no_line_of_a_log() -> None:
    batch = decode_batch(batch_of(b"", GOOD, HEARTBEAT, b"", b"null"), TABLES)

    assert batch.ignored == {"tombstone": 3, "heartbeat": 1}
    assert (len(batch.events), batch.rejected, batch.truncations) == (1, [], [])


def test_kinds_that_records_make_up_are_bounded() -> None:
    controls = [
        json.dumps(
            {
                "control": {},
                "metadata": {
                    "record-type": "control",
                    "operation": f"made-up-{at}",
                    "timestamp": "2026-11-21T08:30:08.000Z",
                },
            }
        ).encode()
        for at in range(IGNORED_KINDS_MAX + 9)
    ]

    batch = decode_batch(batch_of(*controls), TABLES)

    assert len(batch.ignored) <= IGNORED_KINDS_MAX + 1
    assert batch.ignored.total() == len(controls)


def test_a_truncation_keeps_its_place_and_belongs_to_its_table() -> None:
    batch = decode_batch(batch_of(GOOD, json.dumps(TRUNCATE).encode()), TABLES)

    [end] = batch.truncations
    assert (end.table, end.version, end.place.sequence_number) == ("sales", 77, "1001")
    assert end.source == "debezium/shop"
    assert batch.truncations_of("sales") == [end]
    assert batch.truncations_of("products") == []


def test_a_table_that_was_only_truncated_has_no_changes_but_its_turn() -> None:
    batch = decode_batch(batch_of(json.dumps(TRUNCATE).encode()), TABLES)

    assert batch.by_table() == {"sales": []}


def test_truncations_take_effect_in_order_of_their_versions() -> None:
    """The last one decides; an older one after it would only cost another look."""
    later = {**TRUNCATE, "source": {**TRUNCATE["source"], "lsn": 99}}  # type: ignore[dict-item]
    batch = decode_batch(batch_of(*(json.dumps(one).encode() for one in (later, TRUNCATE))), TABLES)

    assert [end.version for end in batch.truncations_of("sales")] == [77, 99]


def test_personal_data_is_hidden_before_an_event_goes_anywhere() -> None:
    def protect(event: ChangeEvent) -> ChangeEvent:
        assert event.after is not None
        return replace(event, after={**event.after, "customer_id": "hmac:0"})

    batch = decode_batch(batch_of(GOOD), TABLES, protect=protect)

    assert [dict(item.event.after or {})["customer_id"] for item in batch.events] == ["hmac:0"]


def test_a_rejected_line_names_the_decoder_that_refused_it() -> None:
    """Its table is unknown to us; that it is Debezium's is not."""
    envelope = {**TRUNCATE, "source": {**TRUNCATE["source"], "table": "nobodys"}}  # type: ignore[dict-item]

    [line] = decode_batch(batch_of(json.dumps(envelope).encode()), TABLES).rejected

    assert (line.decoder, line.reason) == ("debezium", "unknown_table")


def test_a_version_from_the_future_is_quarantined_and_does_not_block_its_row() -> None:
    """Put straight onto the stream it passed: the row then took no change until that day."""
    arrived = datetime.fromtimestamp(1795249809.125, UTC)
    ahead = micros(arrived + timedelta(hours=25))
    late = encode_event(change(after=sale_row(), version=ahead))

    batch = decode_batch(batch_of(late, GOOD), TABLES)

    assert [line.reason for line in batch.rejected] == ["future_version"]
    assert len(batch.events) == 1


def test_a_batch_of_bombs_of_tiny_lines_is_rejected_record_by_record() -> None:
    """Each within a record's own limits, together they were gigabytes of rejected lines."""
    bomb = encode_record([b"x"] * (LINES_MAX - 1))
    bombs = REJECTED_MAX // LINES_MAX + 4

    batch = decode_batch(batch_of(*[bomb] * bombs, GOOD), TABLES)

    assert len(batch.events) == 1
    assert len(batch.rejected) <= REJECTED_MAX + bombs
    assert [line.data for line in batch.rejected[-2:]] == [bomb, bomb]
    assert {line.reason for line in batch.rejected[-2:]} == {"too_large"}
