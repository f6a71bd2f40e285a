"""Debezium's records by hand: what its documentation shows, and what must come of it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any

import pytest

from freshet.contract import (
    Contract,
    Day,
    Flag,
    Integer,
    Money,
    Pii,
    Registry,
    Text,
    Timestamp,
)
from freshet.event import ChangeEvent, Op
from freshet.mapping import ColumnRule, DebeziumStream, Streams, TableMapping
from freshet.wire import LINES_MAX, Decoded, Ignored, Part, Rejected, Truncation, decode_record

Json = dict[str, Any]


class Thing(Contract, table="things", key=("id",)):
    """One column of each kind."""

    id: Annotated[int, Integer(64)]
    name: Annotated[str, Text(100)] | None = None
    price: Annotated[Decimal, Money(18, 4)] | None = None
    at: Annotated[datetime, Timestamp()] | None = None
    day: Annotated[date, Day()] | None = None
    live: Annotated[bool, Flag()] | None = None
    count: Annotated[int, Integer(64)] | None = None


class Person(Contract, table="people", key=("email",), trusts=("debezium/crm",)):
    """Keyed by personal data."""

    email: Annotated[str, Text(100), Pii("hash")]
    name: Annotated[str, Text(100)] | None = None


TABLES = Registry((Thing, Person))
PLACEHOLDER = "__debezium_unavailable_value"
ARRIVED = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


def source(**members: Any) -> Json:
    return {
        "version": "3.2.0.Final",
        "connector": "postgresql",
        "name": "shop",
        "ts_ms": 1795249807104,
        "ts_us": 1795249807104863,
        "snapshot": "false",
        "db": "shop",
        "schema": "public",
        "table": "things",
        "lsn": 24023128,
        **members,
    }


def envelope(op: str = "u", after: Any = None, before: Any = None, **members: Any) -> Json:
    return {
        "before": before,
        "after": after,
        "source": source(**members),
        "op": op,
        "ts_ms": 1795249807202,
    }


def with_schema(record: Json, *fields: Json) -> Json:
    """The record beside a schema of its columns, as JsonConverter writes it."""
    images = [
        {"type": "struct", "fields": list(fields), "optional": True, "field": image}
        for image in ("before", "after")
    ]
    return {"schema": {"type": "struct", "fields": images, "name": "x"}, "payload": record}


def field(name: str, type_: str, semantic: str | None = None, **parameters: str) -> Json:
    return {"field": name, "type": type_, "name": semantic, "parameters": parameters}


def parts_of(record: Any, streams: Streams | None = None) -> list[Part]:
    data = record if isinstance(record, bytes) else json.dumps(record).encode()
    return list(decode_record(data, TABLES, arrived_at=ARRIVED, streams=streams or Streams()))


def event_of(record: Any, streams: Streams | None = None) -> ChangeEvent:
    (part,) = parts_of(record, streams)
    assert isinstance(part, Decoded), part
    assert part.decoder == "debezium"
    return part.event


def rejection_of(record: Any, streams: Streams | None = None) -> tuple[str, str | None]:
    (part,) = parts_of(record, streams)
    assert isinstance(part, Rejected), part
    assert part.decoder == "debezium"
    return part.error.reason, part.error.field


def streams_of(columns: dict[str, ColumnRule] | None = None, **members: Any) -> Streams:
    mapping = TableMapping(table="things", columns=columns or {})
    return Streams((DebeziumStream(name="shop", tables={"public.things": mapping}, **members),))


# --- envelopes ------------------------------------------------------------------------------------


def test_an_update_becomes_an_event_with_the_log_position_as_its_version() -> None:
    event = event_of(envelope("u", {"id": 4, "name": "lantern"}))

    assert (event.table, event.op, event.key, event.version) == (
        "things",
        Op.UPDATE,
        {"id": 4},
        24023128,
    )
    assert event.after is not None
    assert event.after["name"] == "lantern"
    assert event.source == "debezium/shop"
    assert event.occurred_at == datetime(2026, 11, 21, 8, 30, 7, 104863, tzinfo=UTC)
    assert event.accepted_at == ARRIVED


@pytest.mark.parametrize(("op", "expected"), [("c", Op.CREATE), ("r", Op.READ), ("u", Op.UPDATE)])
def test_each_op_of_a_row_keeps_its_letter(op: str, expected: Op) -> None:
    assert event_of(envelope(op, {"id": 4})).op is expected


@pytest.mark.parametrize("before", [{"id": 4}, {"id": 4, "name": None, "gone": 1, "price": "?"}])
def test_a_delete_needs_its_key_and_nothing_else(before: Json) -> None:
    event = event_of(envelope("d", None, before))

    assert (event.op, event.key, event.after) == (Op.DELETE, {"id": 4}, None)


def test_a_delete_without_its_key_is_rejected() -> None:
    assert rejection_of(envelope("d", None, None)) == ("missing_key", "before")
    assert rejection_of(envelope("d", None, {"name": "x"})) == ("missing_key", "key.id")


def test_the_same_change_has_the_same_event_id_and_another_has_another() -> None:
    first, again = (event_of(envelope("u", {"id": 4})) for _ in range(2))
    other_row = event_of(envelope("u", {"id": 5}))
    later = event_of(envelope("u", {"id": 4}, lsn=24023129))

    assert first.event_id == again.event_id
    assert len({first.event_id, other_row.event_id, later.event_id}) == 3


def test_a_key_of_personal_data_leaves_no_trace_in_the_event_id() -> None:
    record = envelope("u", {"email": "ann@example.org"}, table="people", name="crm")

    assert event_of(record).event_id == "people:24023128:u"


def test_an_update_that_changes_a_key_of_ours_ends_the_old_row_and_makes_the_new_one() -> None:
    """Debezium itself splits changes of the primary key; ours may be another one."""
    parts = parts_of(envelope("u", {"id": 5, "name": "x"}, {"id": 4, "name": "x"}))

    events = [part.event for part in parts if isinstance(part, Decoded)]
    assert [(event.op, event.key["id"]) for event in events] == [(Op.DELETE, 4), (Op.UPDATE, 5)]
    assert [part.index for part in parts] == [0, LINES_MAX + 1]


def test_a_changed_key_without_the_whole_row_is_rejected() -> None:
    record = envelope("u", {"id": 5, "name": PLACEHOLDER, "count": 1}, {"id": 4})

    assert rejection_of(record) == ("partial_key_change", "key")


def test_an_undeclared_column_is_rejected_by_its_name() -> None:
    assert rejection_of(envelope("u", {"id": 4, "colour": "red"})) == (
        "unknown_column",
        "after.colour",
    )


def test_a_table_that_is_not_ours_is_rejected() -> None:
    assert rejection_of(envelope("u", {"id": 4}, table="audit")) == ("unknown_table", "table")


def test_a_source_that_the_table_does_not_trust_is_rejected_and_so_is_its_truncate() -> None:
    record = envelope("u", {"email": "ann@example.org"}, table="people")
    truncate = {"source": source(table="people"), "op": "t", "ts_ms": 1795249807202}

    assert rejection_of(record) == ("untrusted_source", "source")
    assert rejection_of(truncate) == ("untrusted_source", "source")


@pytest.mark.parametrize("members", [{}, {"before": None, "after": None}])
def test_a_truncate_ends_all_rows_of_its_table(members: Json) -> None:
    (part,) = parts_of({"source": source(), "op": "t", "ts_ms": 1795249807202, **members})

    assert part == Truncation(
        0,
        "things",
        24023128,
        "debezium/shop",
        "things:24023128:truncate",
        datetime(2026, 11, 21, 8, 30, 7, 104863, tzinfo=UTC),
        ARRIVED,
    )


TRANSACTION = {"status": "END", "id": "571:1", "event_count": 1, "data_collections": []}
IGNORED: dict[str, list[Any]] = {
    "tombstone": [b"", b"null", {"schema": None, "payload": None}],
    "heartbeat": [{"ts_ms": 1795249807202}],
    "transaction": [TRANSACTION, {**TRANSACTION, "status": "BEGIN", "ts_ms": 1}],
    "schema_change": [{"source": source(), "ddl": "ALTER TABLE x", "tableChanges": []}],
    "message": [{"op": "m", "source": source(), "message": {"prefix": "p", "content": ""}}],
}


@pytest.mark.parametrize(
    ("kind", "record"), [(kind, record) for kind, some in IGNORED.items() for record in some]
)
def test_what_tells_of_no_row_is_ignored_by_its_kind(kind: str, record: Any) -> None:
    assert parts_of(record) == [Ignored(0, kind, "debezium")]
    if isinstance(record, dict) and "payload" not in record:
        assert parts_of({"schema": {}, "payload": record}) == [Ignored(0, kind, "debezium")]


@pytest.mark.parametrize(
    ("record", "reason", "where"),
    [
        ({"op": "u", "after": {"id": 1}}, "missing_member", "source"),
        ({"schema": 7, "payload": {}}, "wrong_type", "schema"),
        ({"schema": {}, "payload": []}, "wrong_type", "payload"),
        ({"schema": {}, "payload": {"id": 1}}, "unknown_format", "payload"),
        ({**envelope(), "op": "x"}, "invalid_value", "op"),
        (envelope("u", [1]), "missing_member", "after"),
        (envelope("u", {"id": 1}, name=None), "unknown_source", "source.name"),
        (envelope("u", {"id": 1}, name="a\nb"), "missing_member", "source.name"),
        (envelope("u", {"id": 1}, table={}), "missing_member", "source.table"),
    ],
)
def test_what_is_no_record_of_debezium_is_rejected_by_the_culprit(
    record: Json, reason: str, where: str
) -> None:
    assert rejection_of(record) == (reason, where)


# --- versions -------------------------------------------------------------------------------------


def version_of(**members: Any) -> int:
    return event_of(envelope("u", {"id": 4}, **members)).version


MYSQL = {"connector": "mysql", "lsn": None, "file": "mysql-bin.000003", "pos": 154, "row": 2}
SQLSERVER = {"connector": "sqlserver", "lsn": None, "commit_lsn": "00000027:00000758:0005"}


def test_versions_of_mysql_are_file_position_and_row() -> None:
    assert version_of(**MYSQL) == (3 << 43) + (154 << 11) + 2
    assert version_of(**MYSQL | {"connector": "mariadb"}) == (3 << 43) + (154 << 11) + 2


def test_versions_of_mysql_grow_with_the_log() -> None:
    versions = [
        version_of(**MYSQL | more)
        for more in (
            {"row": 0},
            {"row": 1},
            {"pos": 155, "row": 0},
            {"pos": 2**32 - 1, "row": 99999},
            {"file": "mysql-bin.000004", "pos": 4, "row": 0},
            {"file": "mysql-bin.1048575", "pos": 4, "row": 0},
        )
    ]

    assert versions == sorted(set(versions))
    assert versions[-1] < 1 << 63


def test_versions_of_sql_server_are_the_commit_and_grow_with_it() -> None:
    assert version_of(**SQLSERVER) == (0x27 << 35) + (0x758 << 11) + 5
    later = ["00000027:00000758:07ff", "00000027:00ffffff:0001", "00000028:00000001:0001"]
    versions = [version_of(**SQLSERVER | {"commit_lsn": text}) for text in later]
    assert versions == sorted(set(versions))


@pytest.mark.parametrize(
    ("members", "reason", "where"),
    [
        ({"lsn": None}, "unknown_version", "source.lsn"),
        ({"lsn": True}, "unknown_version", "source.lsn"),
        ({"lsn": 0}, "out_of_range", "source.lsn"),
        ({"lsn": 1 << 63}, "out_of_range", "source.lsn"),
        (MYSQL | {"file": None}, "unknown_version", "source.file"),
        (MYSQL | {"file": "mysql-bin.1048576"}, "out_of_range", "source.file"),
        (MYSQL | {"pos": 1 << 32}, "out_of_range", "source.pos"),
        (MYSQL | {"pos": -1}, "out_of_range", "source.pos"),
        (SQLSERVER | {"commit_lsn": None}, "unknown_version", "source.commit_lsn"),
        (SQLSERVER | {"commit_lsn": "x:y:z"}, "unknown_version", "source.commit_lsn"),
        (
            SQLSERVER | {"commit_lsn": "10000000:00000000:0000"},
            "out_of_range",
            "source.commit_lsn",
        ),
        (
            SQLSERVER | {"commit_lsn": "00000001:00000000:0800"},
            "out_of_range",
            "source.commit_lsn",
        ),
        ({"connector": "oracle", "scn": "2122185"}, "unknown_version", "source"),
    ],
)
def test_a_position_that_is_no_version_is_rejected(members: Json, reason: str, where: str) -> None:
    assert rejection_of(envelope("u", {"id": 4}, **members)) == (reason, where)


def test_a_mapping_takes_the_commit_time_where_a_connector_has_no_position() -> None:
    record = envelope("u", {"id": 4}, connector="oracle", lsn=None)

    assert event_of(record, streams_of(version="ts_us")).version == 1795249807104863
    assert event_of(record, streams_of(version="ts_ms")).version == 1795249807104000


def test_rows_of_a_snapshot_lose_against_every_change_where_declared() -> None:
    streams = streams_of(reads="oldest")

    assert event_of(envelope("r", {"id": 4}), streams).version == 1
    assert event_of(envelope("u", {"id": 4}), streams).version == 24023128


# --- values ---------------------------------------------------------------------------------------


def value_of(column: str, value: Any, *fields: Json, **rule: Any) -> Any:
    """What a value comes to in a column of ours, with a schema where `fields` are given."""
    record = envelope("c", {"id": 4, column: value})
    if fields:
        record = with_schema(record, field("id", "int64"), *fields)
    streams = streams_of({column: ColumnRule(column=column, **rule)}) if rule else None
    after = event_of(record, streams).after
    assert after is not None
    return after[column]


def refusal_of(column: str, value: Any, *fields: Json, **rule: Any) -> str:
    record = envelope("c", {"id": 4, column: value})
    if fields:
        record = with_schema(record, field("id", "int64"), *fields)
    streams = streams_of({column: ColumnRule(column=column, **rule)}) if rule else None
    reason, where = rejection_of(record, streams)
    assert where == f"after.{column}"
    return reason


DECIMAL = "org.apache.kafka.connect.data.Decimal"
TIME = "io.debezium.time."
CONNECT = "org.apache.kafka.connect.data."


@pytest.mark.parametrize(
    ("value", "scale", "expected"),
    [("Y5w=", "4", "2.5500"), ("AA==", "2", "0"), ("/w==", "2", "-0.01"), ("Ag==", "-1", "20")],
)
def test_a_decimal_in_base64_has_the_scale_of_its_schema(
    value: str, scale: str, expected: str
) -> None:
    made = value_of("price", value, field("price", "bytes", DECIMAL, scale=scale))

    assert made == Decimal(expected)


def test_a_decimal_of_no_declared_scale_brings_its_own() -> None:
    struct = {"scale": 2, "value": "MDk="}
    variable = field("price", "struct", "io.debezium.data.VariableScaleDecimal")

    assert value_of("price", struct, variable) == Decimal("123.45")
    assert value_of("price", struct) == Decimal("123.45")
    assert value_of("name", struct) == "123.45"


@pytest.mark.parametrize("value", ["Y5w=", "1234", "MDk="])
def test_without_a_schema_a_number_that_may_be_base64_is_not_guessed_at(value: str) -> None:
    assert refusal_of("price", value) == "unknown_scale"
    assert refusal_of("count", value) == "unknown_scale"


def test_a_mapping_says_what_the_missing_schema_would() -> None:
    assert value_of("price", "Y5w=", scale=4) == Decimal("2.5500")
    assert value_of("price", "1234", encoding="digits") == Decimal(1234)
    assert value_of("count", "MDk=", scale=0) == 12345


def test_a_schema_is_believed_before_the_mapping() -> None:
    """One declaration serves a connector that sends schemas and one that does not."""
    micros = field("at", "int64", TIME + "MicroTimestamp")

    assert value_of("price", "1234", field("price", "string"), scale=2) == Decimal(1234)
    assert value_of("price", "Y5w=", field("price", "bytes", DECIMAL, scale="4"), scale=2) == (
        Decimal("2.5500")
    )
    assert value_of("at", 1529501823123456, micros, unit="millis") == AT
    assert value_of("name", "1234", field("name", "string"), scale=2) == "1234"


@pytest.mark.parametrize(
    ("value", "expected"), [("123.45", "123.45"), ("-7.5", "-7.5"), (2.55, "2.55"), (3, "3")]
)
def test_decimals_as_text_or_double_are_taken_as_they_are(value: Any, expected: str) -> None:
    assert value_of("price", value) == Decimal(expected)
    assert value_of("price", str(value), field("price", "string")) == Decimal(expected)


@pytest.mark.parametrize("value", ["NaN", "NAN", "Infinity", "", "1e9999", "1" * 90])
def test_a_text_that_is_no_finite_number_is_rejected(value: str) -> None:
    assert refusal_of("price", value, field("price", "string")) == "invalid_value"


@pytest.mark.parametrize("value", ["A" * 68, "!!!!", ""])
def test_a_base64_that_is_no_number_of_ours_is_rejected(value: str) -> None:
    reason = refusal_of("price", value, field("price", "bytes", DECIMAL, scale="2"))

    assert reason in ("out_of_range", "invalid_value")


AT = datetime(2018, 6, 20, 13, 37, 3, 123456, tzinfo=UTC)
INSTANTS = [
    (1529501823123456, "int64", TIME + "MicroTimestamp", AT),
    (1529501823123456000, "int64", TIME + "NanoTimestamp", AT),
    (1529501823123, "int64", TIME + "Timestamp", AT.replace(microsecond=123000)),
    (1529501823123, "int64", CONNECT + "Timestamp", AT.replace(microsecond=123000)),
    ("2018-06-20T13:37:03.123456Z", "string", TIME + "ZonedTimestamp", AT),
    ("2018-06-20T15:37:03.123456+02:00", "string", TIME + "ZonedTimestamp", AT),
    ("2018-06-20T13:37:03.123456000Z", "string", TIME + "ZonedTimestamp", AT),
    ("2018-06-20T13:37:03.123456Z", "string", TIME + "IsoTimestamp", AT),
    ("2018-06-20T13:37:03.123456", "string", TIME + "IsoTimestamp", AT),
    (-1, "int64", TIME + "MicroTimestamp", datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)),
]


@pytest.mark.parametrize(("value", "kind", "semantic", "expected"), INSTANTS)
def test_the_schema_says_what_a_time_counts(
    value: Any, kind: str, semantic: str, expected: datetime
) -> None:
    assert value_of("at", value, field("at", kind, semantic)) == expected


@pytest.mark.parametrize(
    ("value", "kind", "semantic", "expected"),
    [
        (17702, "int32", TIME + "Date", date(2018, 6, 20)),
        (-1, "int32", TIME + "Date", date(1969, 12, 31)),
        (17702, "int32", CONNECT + "Date", date(2018, 6, 20)),
        ("2018-06-20Z", "string", TIME + "IsoDate", date(2018, 6, 20)),
        ("2018-06-20", "string", TIME + "IsoDate", date(2018, 6, 20)),
        (1529452800000, "int64", TIME + "Timestamp", date(2018, 6, 20)),  # Oracle's DATE
    ],
)
def test_the_schema_says_what_a_date_counts(
    value: Any, kind: str, semantic: str, expected: date
) -> None:
    assert value_of("day", value, field("day", kind, semantic)) == expected


@pytest.mark.parametrize(
    ("value", "kind", "semantic", "expected"),
    [
        (36930123, "int32", TIME + "Time", "10:15:30.123"),
        (36930000, "int32", CONNECT + "Time", "10:15:30"),
        (36930123456, "int64", TIME + "MicroTime", "10:15:30.123456"),
        (36930123456789, "int64", TIME + "NanoTime", "10:15:30.123456789"),
        (-3020399000000, "int64", TIME + "MicroTime", "-838:59:59"),  # MySQL's least TIME
        ("10:15:30Z", "string", TIME + "ZonedTime", "10:15:30Z"),
        ("P1Y2M3DT4H5M6.78S", "string", TIME + "Interval", "P1Y2M3DT4H5M6.78S"),
        (17702, "int32", TIME + "Date", "2018-06-20"),
        (1529501823123456, "int64", TIME + "MicroTimestamp", "2018-06-20T13:37:03.123456Z"),
        ("Y5w=", "bytes", DECIMAL, "2.5500"),
        ('{"a":1}', "string", "io.debezium.data.Json", '{"a":1}'),
    ],
)
def test_a_text_column_takes_what_has_no_column_of_its_kind(
    value: Any, kind: str, semantic: str, expected: str
) -> None:
    assert value_of("name", value, field("name", kind, semantic, scale="4")) == expected


def test_years_and_spans_stay_numbers_in_a_number_column() -> None:
    assert value_of("count", 2018, field("count", "int32", TIME + "Year")) == 2018
    span = field("count", "int64", TIME + "MicroDuration")
    assert value_of("count", 37091106000000, span) == 37091106000000
    assert refusal_of("day", 2018, field("day", "int32", TIME + "Year")) == "wrong_type"


@pytest.mark.parametrize(
    ("connector", "value"), [("postgresql", 1529501823123456), ("mysql", 1529501823123)]
)
def test_without_a_schema_times_count_what_the_connector_does_by_default(
    connector: str, value: int
) -> None:
    position = MYSQL if connector == "mysql" else {}
    after = event_of(envelope("c", {"id": 4, "at": value, "day": 17702}, **position)).after

    assert after is not None
    assert after["at"].replace(microsecond=0) == AT.replace(microsecond=0)
    assert after["day"] == date(2018, 6, 20)


def test_a_time_that_makes_sense_in_another_unit_only_is_not_guessed_at() -> None:
    """Milliseconds read as microseconds would silently land in January 1970."""
    assert refusal_of("at", 1529501823123) == "unknown_unit"
    assert value_of("at", 1529501823123, unit="millis") == AT.replace(microsecond=123000)
    assert value_of("at", 1529501823, unit="seconds") == AT.replace(microsecond=0)
    assert refusal_of("at", 1529501823123456, field("at", "int64")) == "unknown_unit"


@pytest.mark.parametrize(
    "value", ["infinity", "-infinity", 9223372036825200000, -9223372036832400000, (1 << 63) - 1]
)
def test_infinite_times_are_rejected_by_name(value: Any) -> None:
    assert refusal_of("at", value) == "infinite_time"
    assert refusal_of("at", value, field("at", "int64", TIME + "MicroTimestamp")) == "infinite_time"


def test_what_is_finer_than_a_microsecond_is_refused_unless_the_mapping_cuts_it() -> None:
    nanos = field("at", "int64", TIME + "NanoTimestamp")

    assert refusal_of("at", 1529501823123456789, nanos) == "out_of_range"
    assert refusal_of("at", "2018-06-20T13:37:03.123456789Z") == "out_of_range"
    assert value_of("at", 1529501823123456789, nanos, round="down") == AT
    assert value_of("at", "2018-06-20T13:37:03.1234569Z", round="down") == AT


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("at", "yesterday", "invalid_value"),
        ("at", "2018-02-30T00:00:00Z", "out_of_range"),
        ("at", "0001-01-01T00:00:00+14:00", "out_of_range"),
        ("at", 10**19, "out_of_range"),
        ("day", 10**7, "out_of_range"),
        ("day", "2018-02-30", "out_of_range"),
        ("day", "2018-06-20T10:00:00Z", "invalid_value"),
        ("live", 2, "wrong_type"),
        ("name", 7, "wrong_type"),
        ("count", 1.5, "wrong_type"),
    ],
)
def test_a_value_that_no_column_of_its_kind_holds_is_rejected(
    column: str, value: Any, reason: str
) -> None:
    assert refusal_of(column, value) == reason


@pytest.mark.parametrize(("value", "expected"), [(True, True), (0, False), (1, True)])
def test_flags_are_booleans_or_the_numbers_of_mysql(value: Any, *, expected: bool) -> None:
    assert value_of("live", value) is expected


def test_a_mapping_writes_numbers_and_bytes_as_text() -> None:
    assert value_of("name", 7, **{"as": "text"}) == "7"
    assert value_of("name", "aGVsbG8=", encoding="base64") == "hello"
    assert value_of("name", "68656c6c6f", encoding="hex") == "hello"
    assert refusal_of("name", "/w==", encoding="base64") == "invalid_value"


# --- columns that were not sent -------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        PLACEHOLDER,
        "__DEBEZIUM_TOASTED_VALUE__",
        base64.b64encode(PLACEHOLDER.encode()).decode(),
        PLACEHOLDER.encode().hex(),
        [PLACEHOLDER],
        list(PLACEHOLDER.encode()),
        {PLACEHOLDER: PLACEHOLDER},
        ["b68a35a7-17ad-35b3-af2a-ae46edb4545a"],
    ],
)
def test_an_unchanged_column_that_was_not_sent_makes_the_event_a_patch(value: Any) -> None:
    event = event_of(envelope("u", {"id": 4, "name": value, "count": 7, "price": None}))

    assert event.after is None
    assert event.patch == {"count": 7, "price": None}
    assert event.key == {"id": 4}


def test_a_created_row_with_a_column_that_was_not_sent_is_a_patch_too() -> None:
    """A changed primary key comes as delete and create, and the create lacks the same column."""
    event = event_of(envelope("c", {"id": 5, "name": PLACEHOLDER, "count": 7}))

    assert (event.op, event.patch) == (Op.UPDATE, {"count": 7})


def test_an_update_that_sends_nothing_but_its_key_is_ignored() -> None:
    assert parts_of(envelope("u", {"id": 4, "name": PLACEHOLDER})) == [
        Ignored(0, "unchanged", "debezium")
    ]


def test_a_key_that_was_not_sent_is_rejected() -> None:
    assert rejection_of(envelope("u", {"id": PLACEHOLDER, "count": 1})) == (
        "missing_key",
        "key.id",
    )


def test_a_declared_placeholder_takes_the_place_of_the_usual_one() -> None:
    streams = streams_of(placeholders=("<same>",))

    assert event_of(envelope("u", {"id": 4, "name": "<same>", "count": 1}), streams).patch == {
        "count": 1
    }
    assert event_of(envelope("u", {"id": 4, "name": PLACEHOLDER}), streams).after is not None


# --- flattened ------------------------------------------------------------------------------------

FLAT = {
    "__op": "u",
    "__table": "things",
    "__name": "shop",
    "__lsn": 24023128,
    "__source_ts_ms": 1795249807104,
    "__deleted": "false",
}


def test_a_flattened_record_is_its_row_and_its_added_fields() -> None:
    event = event_of({"id": 4, "name": "lantern", **FLAT})

    assert (event.op, event.key, event.version) == (Op.UPDATE, {"id": 4}, 24023128)
    assert event.after is not None
    assert event.after["name"] == "lantern"
    assert event.occurred_at == datetime(2026, 11, 21, 8, 30, 7, 104000, tzinfo=UTC)


@pytest.mark.parametrize("marks", [{"__deleted": "true"}, {"__deleted": True}, {"__op": "d"}])
def test_a_rewritten_delete_ends_its_row(marks: Json) -> None:
    event = event_of({"id": 4, "name": None, **FLAT, **marks})

    assert (event.op, event.key) == (Op.DELETE, {"id": 4})


def test_a_flattened_record_with_a_column_that_was_not_sent_is_a_patch() -> None:
    assert event_of({"id": 4, "name": PLACEHOLDER, "count": 7, **FLAT}).patch == {"count": 7}


def test_a_flattened_record_may_name_its_source_in_its_schema_only() -> None:
    bare = {name: value for name, value in FLAT.items() if name not in ("__name", "__table")}
    schema = {
        "type": "struct",
        "name": "shop.public.things.Value",
        "fields": [field("id", "int64"), field("price", "bytes", DECIMAL, scale="4")],
    }

    event = event_of({"schema": schema, "payload": {"id": 4, "price": "Y5w=", **bare}})

    assert event.source == "debezium/shop"
    assert event.after is not None
    assert event.after["price"] == Decimal("2.5500")


def test_a_flattened_record_of_no_name_is_of_the_only_declared_stream_or_rejected() -> None:
    record = {"id": 4, **{name: value for name, value in FLAT.items() if name != "__name"}}

    assert rejection_of(record) == ("unknown_source", "source.name")
    assert event_of(record, streams_of()).source == "debezium/shop"


def test_another_prefix_of_added_fields_is_declared() -> None:
    record = {"id": 4, **{name.replace("__", "cdc."): value for name, value in FLAT.items()}}

    assert event_of(record, streams_of(prefix="cdc.")).key == {"id": 4}


def test_a_flattened_record_without_its_position_says_what_to_add() -> None:
    (part,) = parts_of({"id": 4, "__op": "u", "__table": "things", "__name": "shop"})

    assert isinstance(part, Rejected)
    assert part.error.reason == "unknown_version"


def test_positions_of_other_connectors_are_known_by_their_members() -> None:
    place = {name: value for name, value in FLAT.items() if name != "__lsn"}
    record = {"id": 4, **place, "__file": "mysql-bin.000003", "__pos": 154, "__row": 0}

    assert event_of(record).version == (3 << 43) + (154 << 11)
    assert event_of({"id": 4, **place, "__source_commit_lsn": "00000027:00000758:0005"}).version
