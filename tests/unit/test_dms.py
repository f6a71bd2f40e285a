"""DMS's records by hand: what real tasks wrote, and what must come of it."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any

import pytest

from freshet.clock import micros
from freshet.contract import Contract, Day, Flag, Integer, Money, Registry, Text, Timestamp
from freshet.event import ChangeEvent, Op
from freshet.mapping import ColumnRule, DmsStream, Streams, TableMapping
from freshet.wire import LINES_MAX, Decoded, Ignored, Part, Rejected, decode_record

Json = dict[str, Any]


class Foo(Contract, table="foo", key=("id",)):
    """The table of the recorded task, and a column of each other kind."""

    id: Annotated[int, Integer(32)]
    name: Annotated[str, Text(100)] | None = None
    age: Annotated[int, Integer(32)] | None = None
    attributes: Annotated[str, Text(400)] | None = None
    paid: Annotated[Decimal, Money(18, 4)] | None = None
    at: Annotated[datetime, Timestamp()] | None = None
    day: Annotated[date, Day()] | None = None
    live: Annotated[bool, Flag()] | None = None
    visits: Annotated[int, Integer(32)] = 0


class Pair(Contract, table="pairs", key=("a", "b")):
    """A key of two columns."""

    a: Annotated[int, Integer(32)]
    b: Annotated[str, Text(10)]


TABLES = Registry((Foo, Pair))
ARRIVED = datetime(2024, 7, 29, 1, 0, tzinfo=UTC)
COMMIT = datetime(2024, 7, 29, 0, 59, 7, 678294, tzinfo=UTC)
ROW = {"age": 31, "attributes": '{"baz": "qux"}', "id": 45, "name": "Jane"}


def record(operation: str = "update", data: Any = None, **members: Any) -> Json:
    """A data record as a task with transaction details writes it; `members` replace metadata's."""
    metadata = {
        "timestamp": "2024-07-29T00:59:07.686557Z",
        "record-type": "data",
        "operation": operation,
        "partition-key-type": "schema-table",
        "schema-name": "public",
        "table-name": "foo",
        "transaction-id": 1141,
        "transaction-record-id": 1,
        "commit-timestamp": "2024-07-29T00:59:07.678294Z",
        "stream-position": "00000002/7C0073F8.2.00000002/7C0073F8",
        **{name.replace("_", "-"): value for name, value in members.items()},
    }
    return {"data": ROW if data is None else data, "metadata": metadata}


def load(**members: Any) -> Json:
    return record(
        "load",
        transaction_id=None,
        transaction_record_id=None,
        commit_timestamp=None,
        **members,
    )


def parts_of(body: Any, streams: Streams | None = None) -> list[Part]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return list(decode_record(data, TABLES, arrived_at=ARRIVED, streams=streams or Streams()))


def events_of(body: Any, streams: Streams | None = None) -> list[ChangeEvent]:
    parts = parts_of(body, streams)
    assert {part.decoder for part in parts} == {"dms"}
    assert [part.index for part in parts] == [0, LINES_MAX + 1][: len(parts)]
    events = [part.event for part in parts if isinstance(part, Decoded)]
    assert len(events) == len(parts), parts
    return events


def event_of(body: Any, streams: Streams | None = None) -> ChangeEvent:
    (event,) = events_of(body, streams)
    return event


def rejection_of(body: Any, streams: Streams | None = None) -> tuple[str, str | None]:
    (part,) = parts_of(body, streams)
    assert isinstance(part, Rejected), part
    assert part.decoder == "dms"
    return part.error.reason, part.error.field


def streams_of(**members: Any) -> Streams:
    return Streams((DmsStream(name="crm", **members),))


# --- rows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "op"), [("insert", Op.CREATE), ("update", Op.UPDATE), ("load", Op.READ)]
)
def test_each_operation_of_a_row_has_its_op(operation: str, op: Op) -> None:
    event = event_of(record(operation))

    assert (event.table, event.op, event.key) == ("foo", op, {"id": 45})
    assert event.after is not None
    assert event.after["attributes"] == '{"baz": "qux"}'
    assert (event.source, event.occurred_at, event.accepted_at) == ("dms/default", COMMIT, ARRIVED)


def test_columns_that_are_left_out_are_null() -> None:
    """IncludeNullAndEmpty is false by default; a column that cannot be null has its default."""
    after = event_of(record("update", {"id": 45, "name": "Jane"})).after

    assert after is not None
    assert (after["age"], after["attributes"], after["visits"]) == (None, None, 0)


@pytest.mark.parametrize(
    "data", [{"id": 45}, {"id": 45, "age": None, "name": None}, {**ROW, "unheard_of": "x"}]
)
def test_a_delete_takes_the_key_and_nothing_else_of_its_row(data: Json) -> None:
    event = event_of(record("delete", data))

    assert (event.op, event.key, event.after, event.patch) == (Op.DELETE, {"id": 45}, None, None)


@pytest.mark.parametrize("data", [{}, {"id": None}, {"name": "Jane"}])
def test_a_delete_without_its_key_is_rejected(data: Json) -> None:
    assert rejection_of(record("delete", data)) == ("missing_key", "key.id")


def test_a_changed_key_is_the_end_of_the_old_row_and_the_new_one() -> None:
    old, new = events_of({"before-image": {"id": 46}, **record()})

    assert (old.op, old.key, old.after) == (Op.DELETE, {"id": 46}, None)
    assert (new.op, new.key) == (Op.UPDATE, {"id": 45})
    assert new.after is not None
    assert old.version == new.version
    assert old.event_id != new.event_id


def test_a_changed_part_of_a_key_keeps_the_other_part() -> None:
    body = record(data={"a": 1, "b": "new"}, table_name="pairs")

    old, new = events_of({"before-image": {"b": "old"}, **body})

    assert old.key == {"a": 1, "b": "old"}
    assert new.key == {"a": 1, "b": "new"}


@pytest.mark.parametrize("before", [{}, {"id": 45}, {"id": "45"}, ROW, {"age": 30}, None])
def test_a_before_image_of_the_same_key_changes_nothing(before: Any) -> None:
    assert event_of({"before-image": before, **record()}).key == {"id": 45}


def test_the_member_of_the_before_image_is_declared_or_rejected_and_never_passed_over() -> None:
    """A member that nobody knows may hold the key of a row that would stay behind."""
    body = {"BI": {"id": 46}, **record()}

    assert rejection_of(body) == ("unknown_member", "BI")
    assert [event.key["id"] for event in events_of(body, streams_of(before_image="BI"))] == [46, 45]
    assert rejection_of({"before-image": 7, **record()}) == ("wrong_type", "before-image")


# --- partial images -------------------------------------------------------------------------------

PARTIAL = streams_of(missing="unchanged")


def test_a_partial_update_is_a_patch_of_what_it_carries() -> None:
    event = event_of(record("update", {"id": 45, "age": None, "name": "Jane"}), PARTIAL)

    assert (event.op, event.after, event.patch) == (Op.UPDATE, None, {"age": None, "name": "Jane"})


def test_an_update_that_carries_every_column_is_a_whole_row_also_there() -> None:
    data: Json = dict.fromkeys((column.name for column in Foo.columns), None)

    event = event_of(record("update", {**data, **ROW, "visits": 2}), PARTIAL)

    assert event.patch is None
    assert event.after is not None


def test_a_partial_update_of_nothing_is_ignored() -> None:
    assert parts_of(record("update", {"id": 45}), PARTIAL) == [Ignored(0, "unchanged", "dms")]


def test_an_inserted_row_is_whole_also_where_updates_are_partial() -> None:
    assert event_of(record("insert", {"id": 45}), PARTIAL).after is not None
    assert event_of(record("load", {"id": 45}), PARTIAL).after is not None


def test_a_changed_key_without_the_whole_row_is_rejected() -> None:
    body = {"before-image": {"id": 46}, **record("update", {"id": 45, "age": 1})}

    assert rejection_of(body, PARTIAL) == ("partial_key_change", "key")


# --- versions -------------------------------------------------------------------------------------


def test_a_change_has_its_commit_time_and_its_place_in_the_transaction_as_version() -> None:
    assert event_of(record()).version == micros(COMMIT) * 2048 + 1
    assert event_of(record(transaction_record_id=2)).version == micros(COMMIT) * 2048 + 2
    assert event_of(record(transaction_record_id="2")).version == micros(COMMIT) * 2048 + 2
    assert event_of(record(transaction_record_id=99999)).version == micros(COMMIT) * 2048 + 2047
    assert event_of(record(transaction_record_id=None)).version == micros(COMMIT) * 2048


def test_a_loaded_row_never_wins_over_a_change() -> None:
    loaded = event_of(load(timestamp="2024-07-29T23:59:07.000001Z"))
    first_change = event_of(record(commit_timestamp="2001-01-01T00:00:00Z"))

    assert loaded.version == micros(COMMIT.replace(hour=23, minute=59, second=7, microsecond=1))
    assert loaded.version < first_change.version


def test_a_loaded_row_from_the_future_is_rejected_and_a_change_is_not_mistaken_for_one() -> None:
    ahead = (ARRIVED + timedelta(hours=25)).isoformat()

    assert rejection_of(load(timestamp=ahead)) == ("future_version", "version")
    assert event_of(record(commit_timestamp="2024-07-29T00:59:59Z")).version


@pytest.mark.parametrize(
    ("version", "name"),
    [("commit", "commit_timestamp"), ("commit_time", "commit_timestamp"), ("timestamp",) * 2],
)
def test_a_change_of_a_clock_a_day_ahead_would_block_its_row_and_is_rejected(
    version: str, name: str
) -> None:
    near, far = ((ARRIVED + timedelta(hours=hours)).isoformat() for hours in (23, 25))
    streams = streams_of(version=version)

    assert event_of(record(**{name: near}), streams).version
    assert rejection_of(record(**{name: far}), streams) == ("future_version", "version")


def test_a_mapping_chooses_what_orders_the_changes_of_its_source() -> None:
    written = datetime(2024, 7, 29, 0, 59, 7, 686557, tzinfo=UTC)

    assert event_of(record(), streams_of(version="commit_time")).version == micros(COMMIT) * 2048
    bare = record(commit_timestamp=None, transaction_record_id=None)
    assert event_of(bare, streams_of(version="timestamp")).version == micros(written) * 2048


@pytest.mark.parametrize(
    ("members", "reason", "where"),
    [
        ({"commit_timestamp": None}, "unknown_version", "metadata.commit-timestamp"),
        ({"commit_timestamp": 7}, "wrong_type", "metadata.commit-timestamp"),
        ({"commit_timestamp": "now"}, "invalid_value", "metadata.commit-timestamp"),
        ({"commit_timestamp": "1969-01-01T00:00:00Z"}, "out_of_range", "metadata"),
        ({"commit_timestamp": "2113-01-01T00:00:00Z"}, "out_of_range", "metadata"),
        ({"transaction_record_id": -1}, "wrong_type", "metadata.transaction-record-id"),
        ({"operation": "merge"}, "invalid_value", "metadata.operation"),
        ({"record_type": "row"}, "invalid_value", "metadata.record-type"),
        ({"table_name": None}, "missing_member", "metadata.table-name"),
        ({"table_name": "bar"}, "unknown_table", "table"),
        ({"schema_name": ["public"]}, "missing_member", "metadata.schema-name"),
    ],
)
def test_metadata_that_says_nothing_usable_is_rejected_by_the_culprit(
    members: Json, reason: str, where: str
) -> None:
    assert rejection_of(record(**members)) == (reason, where)


def test_a_data_record_without_its_row_is_rejected() -> None:
    assert rejection_of({"metadata": record()["metadata"]}) == ("missing_member", "data")


# --- what is no row -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    ["create-table", "drop-table", "rename-table", "truncate-table", "add-column", "drop-column"],
)
def test_control_records_are_ignored_by_their_operation(operation: str) -> None:
    body = record(operation, record_type="control")

    assert parts_of({"control": {}, **body}) == [Ignored(0, f"control:{operation}", "dms")]


def test_a_control_record_of_an_unprintable_operation_is_ignored_without_it() -> None:
    assert parts_of(record("x\n" * 99, record_type="control")) == [Ignored(0, "control", "dms")]


def test_tables_of_dms_itself_are_ignored() -> None:
    body = record("insert", {"TASK_NAME": "x"}, schema_name="", table_name="awsdms_status")

    assert parts_of(body) == [Ignored(0, "control:awsdms", "dms")]


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("age", "31", 31),
        ("age", 31.0, 31),
        ("paid", "3.39", Decimal("3.3900")),
        ("paid", 3.39, Decimal("3.3900")),
        ("paid", "1234", Decimal("1234.0000")),
        ("paid", "1.5E+2", Decimal("150.0000")),
        ("at", "2019-08-12T10:11:12Z", datetime(2019, 8, 12, 10, 11, 12, tzinfo=UTC)),
        ("at", "2019-08-12T10:11:12.1Z", datetime(2019, 8, 12, 10, 11, 12, 100000, tzinfo=UTC)),
        ("at", "2019-08-12 10:11:12.000001000", datetime(2019, 8, 12, 10, 11, 12, 1, tzinfo=UTC)),
        ("at", "2019-08-12T10:11:12+02:00", datetime(2019, 8, 12, 8, 11, 12, tzinfo=UTC)),
        ("day", "2019-08-12", date(2019, 8, 12)),
        ("day", "2019-08-12T00:00:00Z", date(2019, 8, 12)),
        ("live", True, True),
        ("live", 0, False),
        ("live", "t", True),
        ("live", "false", False),
        ("name", "10:15:30", "10:15:30"),
        ("name", "0x010203", "0x010203"),
    ],
)
def test_a_value_is_read_as_its_column_is_meant(column: str, value: Any, expected: Any) -> None:
    after = event_of(record("insert", {"id": 1, column: value})).after

    assert after is not None
    assert after[column] == expected


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("age", "31a", "invalid_value"),
        ("age", "1.5", "wrong_type"),
        ("paid", "twelve", "invalid_value"),
        ("at", "2019-08-12T10:11:12.123456789Z", "out_of_range"),
        ("at", 1565604672, "unknown_unit"),
        ("day", 18120, "wrong_type"),
        ("live", "yes", "wrong_type"),
        ("colour", "red", "unknown_column"),
    ],
)
def test_a_value_that_is_not_what_its_column_says_is_rejected(
    column: str, value: Any, reason: str
) -> None:
    assert rejection_of(record("insert", {"id": 1, column: value})) == (reason, f"after.{column}")


# --- declared tables ------------------------------------------------------------------------------


def test_a_declared_table_has_its_columns_renamed_filled_and_left_out() -> None:
    mapping = TableMapping(
        table="foo",
        columns={"ID": ColumnRule(column="id"), "FULL_NAME": ColumnRule(column="name")},
        constants={"live": "true", "visits": "3"},
        ignore=("PASSWORD",),
    )
    streams = streams_of(match="CRM*", tables={"CRM.CLIENT": mapping})
    body = record("update", {"ID": 45, "FULL_NAME": "Jane", "PASSWORD": "x"}, schema_name="CRM")
    body["metadata"]["table-name"] = "CLIENT"

    old, new = events_of({"before-image": {"ID": 46}, **body}, streams)

    assert (old.key, old.source) == ({"id": 46}, "dms/crm")
    assert new.after is not None
    assert (new.after["name"], new.after["live"], new.after["visits"]) == ("Jane", True, 3)


def test_tables_that_are_left_out_on_purpose_are_ignored() -> None:
    streams = streams_of(ignore_tables=("public.audit*",))

    assert parts_of(record("insert", {"x": 1}, table_name="audit_log"), streams) == [
        Ignored(0, "ignored_table", "dms")
    ]


@pytest.mark.parametrize("indent", [None, 1, "\t"])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_a_record_over_many_lines_is_one_record(indent: Any, end: bytes) -> None:
    data = json.dumps({"before-image": {"id": 46}, **record()}, indent=indent).encode() + end

    assert [event.key["id"] for event in events_of(data)] == [46, 45]
