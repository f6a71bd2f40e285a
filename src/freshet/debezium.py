"""Debezium's JSON, as Debezium Server and Kafka Connect write it, read into change events.

Taken are envelopes with and without their schema, and flattened records (ExtractNewRecordState).
The position in the source's log is the version; docs/sources-streams.md says how for each
connector. Shapes: Debezium 3.x reference; versions since 1.4 differ only in what they lack.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from freshet.contract import Contract, Registry
from freshet.errors import RejectedError
from freshet.event import VERSION_MAX, Op, check_trusted
from freshet.image import (
    NO_HINT,
    Hint,
    Hints,
    Reading,
    Skipped,
    Stamp,
    Truncated,
    delete,
    read_image,
    read_key,
    update,
    upsert,
    whole,
)
from freshet.mapping import DebeziumStream, Streams, TableMapping, Unit

_HEARTBEAT = frozenset(("ts_ms", "ts_us", "ts_ns"))
_TRANSACTION = _HEARTBEAT | {"status", "id", "event_count", "data_collections"}
# Members of an event of ours that no envelope has.
_OURS = frozenset(("table", "key", "version", "event_id"))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIMES = {"ts_us": 1, "ts_ms": 1000}  # microseconds in one of them
_MICROS_MAX = 253_402_300_799_999_999
# io.debezium.time.* and Kafka Connect's own logical types. Zoned*, Iso*, Interval and Year need no
# hint: they are texts or numbers that say what they are.
_UNITS: Mapping[str, Unit] = {
    "io.debezium.time.Date": "days",
    "org.apache.kafka.connect.data.Date": "days",
    "io.debezium.time.Timestamp": "millis",
    "org.apache.kafka.connect.data.Timestamp": "millis",
    "io.debezium.time.MicroTimestamp": "micros",
    "io.debezium.time.NanoTimestamp": "nanos",
}
_TIME_UNITS: Mapping[str, Unit] = {
    "io.debezium.time.Time": "millis",
    "org.apache.kafka.connect.data.Time": "millis",
    "io.debezium.time.MicroTime": "micros",
    "io.debezium.time.NanoTime": "nanos",
}
_DECIMAL = "org.apache.kafka.connect.data.Decimal"
# What a TIMESTAMP or DATETIME without a precision counts with time.precision.mode=adaptive.
_DEFAULT_UNITS: Mapping[str, Unit] = {
    "postgresql": "micros",
    "mysql": "millis",
    "mariadb": "millis",
    "sqlserver": "millis",
}
_NAME_MAX = 200


class _Record(NamedTuple):
    """The parts of a record that envelopes and flattened records both have."""

    op: str
    source: Mapping[str, Any]
    before: Any
    after: Any
    fields: Mapping[str, Hint] | None
    handled: Mapping[str, Any]  # where the connector's own times stand


class _Route(NamedTuple):
    stream: DebeziumStream
    mapping: TableMapping
    contract: type[Contract]
    connector: str


def recognises(body: Mapping[str, Any], streams: Streams) -> bool:
    """True for a JSON object that only Debezium writes."""
    if "payload" in body:
        return body.keys() <= {"schema", "payload"}
    return _other_kind(body) is not None or _is_envelope(body) or _prefix(body, streams) is not None


def decode(
    body: Mapping[str, Any], tables: Registry, streams: Streams, arrived_at: datetime | None
) -> Reading:
    """What a record that `recognises` takes comes to. Never raises."""
    reading = Reading()
    try:
        schema, payload = _unwrapped(body)
        if payload is None:
            return Reading(other=Skipped("tombstone"))
        if kind := _other_kind(payload):
            return Reading(other=Skipped(kind))
        record = _record(schema, payload, streams)
        if record.op == "m":
            return Reading(other=Skipped("message"))
        route = _route(record.source, tables, streams)
        if route is None:
            return Reading(other=Skipped("ignored_table"))
        reading = Reading(table=route.contract.table)
        return reading._replace(**_outcome(record, route, arrived_at))
    except RejectedError as error:
        return reading._replace(error=error)


def _unwrapped(body: Mapping[str, Any]) -> tuple[Mapping[str, Any] | None, Any]:
    if "payload" not in body:
        return None, body
    schema, payload = body.get("schema"), body["payload"]
    for field, value in (("schema", schema), ("payload", payload)):
        if value is not None and not isinstance(value, dict):
            raise RejectedError("wrong_type", "must be an object", field=field)
    return schema, payload


def _other_kind(payload: Mapping[str, Any]) -> str | None:
    """What a record is that tells of no row."""
    if payload and payload.keys() <= _HEARTBEAT:
        return "heartbeat"
    if payload.get("status") in ("BEGIN", "END") and "id" in payload.keys() <= _TRANSACTION:
        return "transaction"
    if "ddl" in payload and "op" not in payload and isinstance(payload.get("source"), dict):
        return "schema_change"
    return None


def _is_envelope(payload: Mapping[str, Any]) -> bool:
    """An envelope has an object as its source; without one it must at least be none of ours."""
    if "op" not in payload:
        return False
    if isinstance(payload.get("source"), dict):
        return True
    return ("before" in payload or "after" in payload) and not payload.keys() & _OURS


def _prefix(payload: Mapping[str, Any], streams: Streams) -> str | None:
    """What the metadata of a flattened record begins with; None for any other record."""
    for prefix in streams.prefixes:
        if f"{prefix}op" in payload or f"{prefix}deleted" in payload:
            return prefix
    return None


def _record(
    schema: Mapping[str, Any] | None, payload: Mapping[str, Any], streams: Streams
) -> _Record:
    source = payload.get("source")
    if "op" in payload and isinstance(source, dict):
        op = _op(payload["op"])
        fields = _fields(schema, "before" if op == "d" else "after")
        return _Record(op, source, payload.get("before"), payload.get("after"), fields, payload)
    prefix = _prefix(payload, streams)
    if prefix is not None:
        return _flattened(schema, payload, prefix, streams)
    if _is_envelope(payload):
        raise RejectedError("missing_member", "must tell where it comes from", field="source")
    detail = "is neither an envelope nor a flattened record with add.fields=op"
    raise RejectedError("unknown_format", detail, field="payload")


def _op(op: Any) -> str:
    if not isinstance(op, str) or op not in ("c", "u", "d", "r", "t", "m"):
        raise RejectedError("invalid_value", "must be one of c, u, d, r, t, m", field="op")
    return op


def _flattened(
    schema: Mapping[str, Any] | None, payload: Mapping[str, Any], prefix: str, streams: Streams
) -> _Record:
    row, members = {}, {}
    for name, value in payload.items():
        if name.startswith(prefix):
            members[name[len(prefix) :]] = value
        else:
            row[name] = value
    source = {name: value for name, value in members.items() if name not in _HEARTBEAT}
    for name, value in members.items():
        if name.startswith("source_"):
            source[name.removeprefix("source_")] = value
    _name_source(source, schema, streams)
    deleted = members.get("deleted") in ("true", True)
    op = "d" if deleted else _op(members.get("op", "u"))
    return _Record(op, source, row, row, _fields(schema, None), members)


def _name_source(
    source: dict[str, Any], schema: Mapping[str, Any] | None, streams: Streams
) -> None:
    """Complete where a flattened record comes from: its schema is named after its topic."""
    topic = (schema or {}).get("name")
    if isinstance(topic, str) and topic.endswith(".Value"):
        parts = topic.removesuffix(".Value").split(".")
        source.setdefault("name", parts[0])
        source.setdefault("table", parts[-1])
        if len(parts) == 3:
            source.setdefault("schema", parts[1])
    if source.get("name") is None and len(streams.debezium) == 1:
        source["name"] = streams.debezium[0].match or streams.debezium[0].name


def _route(source: Mapping[str, Any], tables: Registry, streams: Streams) -> _Route | None:
    name = source.get("name")
    if name is None:
        detail = "is missing: put name into add.fields, or declare one Debezium stream only"
        raise RejectedError("unknown_source", detail, field="source.name")
    for field in ("name", "table"):
        _check_name(source.get(field), field)
    stream = streams.debezium_of(str(name))
    found = stream.table_of(_table_names(source), tables)
    return None if found is None else _Route(stream, *found, _connector(source))


def _check_name(value: Any, field: str) -> None:
    if not isinstance(value, str) or not value.isprintable() or not 0 < len(value) <= _NAME_MAX:
        detail = f"must be a name of 1 to {_NAME_MAX} printable characters"
        raise RejectedError("missing_member", detail, field=f"source.{field}")


def _table_names(source: Mapping[str, Any]) -> tuple[str, ...]:
    """What the source table may be called in a declaration: schema.table or db.table first."""
    schema, db, table = source.get("schema"), source.get("db"), source["table"]
    names = (f"{schema}.{table}" if schema else "", f"{db}.{table}" if db else "")
    whole = f"{db}.{schema}.{table}" if db and schema else ""
    return (*(name for name in (*names, whole) if name), table)


def _connector(source: Mapping[str, Any]) -> str:
    """The connector a record names; a flattened one may show it by its members alone."""
    named = source.get("connector")
    if isinstance(named, str):
        return named
    shown = (("lsn", "postgresql"), ("file", "mysql"), ("commit_lsn", "sqlserver"))
    return next((connector for member, connector in shown if member in source), "")


def _outcome(record: _Record, route: _Route, arrived_at: datetime | None) -> dict[str, Any]:
    """The members of the reading that this record's change makes."""
    stamp = _stamp(record, route, arrived_at)
    contract = route.contract
    if record.op == "t":
        return {"other": _truncated(contract, stamp)}
    if record.op == "d":
        return {"events": (delete(contract, _old_key(record, route), stamp),)}
    events = _written(record, route, stamp)
    return {"events": events} if events else {"other": Skipped("unchanged")}


def _written(record: _Record, route: _Route, stamp: Stamp) -> tuple[dict[str, Any], ...]:
    """The events of a created, read or updated row."""
    if not isinstance(record.after, dict):
        raise RejectedError("missing_member", "must hold the full row", field="after")
    hints = _hints(record, route)
    untouched = _untouched(route.stream.placeholders)
    image = read_image(record.after, route.mapping, route.contract, hints, untouched=untouched)
    if record.op == "u":
        old: dict[str, Any] = {}
        if isinstance(record.before, dict) and record.before is not record.after:
            old = read_key(record.before, route.mapping, route.contract, hints)
        return update(route.contract, old, image, stamp)
    body = upsert(route.contract, Op(record.op), image, stamp)
    return (body,) if body else ()


def _old_key(record: _Record, route: _Route) -> dict[str, Any]:
    if not isinstance(record.before, dict):
        detail = "must hold the key: set the table's REPLICA IDENTITY to its key or FULL"
        raise RejectedError("missing_key", detail, field="before")
    return read_key(record.before, route.mapping, route.contract, _hints(record, route))


def _truncated(contract: type[Contract], stamp: Stamp) -> Truncated:
    check_trusted(stamp.source, contract)
    event_id = f"{contract.table}:{stamp.version}:truncate"
    times = (stamp.occurred_at, stamp.accepted_at)
    return Truncated(contract.table, stamp.version, event_id, stamp.source, *times)


# --- schemas --------------------------------------------------------------------------------------


def _fields(schema: Mapping[str, Any] | None, image: str | None) -> Mapping[str, Hint] | None:
    """What the schema says of each column; None without one."""
    if schema is None:
        return None
    if image is not None:
        parts = (part for part in _list(schema) if part.get("field") == image)
        schema = next(parts, {})
    return {str(field.get("field")): _hint(field) for field in _list(schema)}


def _list(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    fields = schema.get("fields")
    return [one for one in fields if isinstance(one, dict)] if isinstance(fields, list) else []


def _hint(field: Mapping[str, Any]) -> Hint:
    name, kind = field.get("name"), field.get("type")
    if name == _DECIMAL:
        parameters = field.get("parameters")
        scale = parameters.get("scale") if isinstance(parameters, dict) else None
        if isinstance(scale, str) and re.fullmatch(r"-?[0-9]{1,4}", scale):
            return Hint(scale=int(scale))
        return NO_HINT
    if not isinstance(name, str):
        return Hint(digits=kind == "string")
    return Hint(_UNITS.get(name), _TIME_UNITS.get(name), digits=kind == "string")


def _hints(record: _Record, route: _Route) -> Hints:
    if record.fields is not None:
        fields = record.fields
        return lambda name: fields.get(name, NO_HINT)
    hint = Hint(untyped=True, default_unit=_DEFAULT_UNITS.get(route.connector))
    return lambda _: hint


@lru_cache(maxsize=64)
def _untouched(placeholders: tuple[str, ...]) -> Callable[[Any], bool]:
    """Whether a value stands for a column that PostgreSQL did not send as it did not change.

    Written as text, as bytes in any binary.handling.mode, and in arrays and maps of either; an
    array of numbers holds the bytes one by one, one of UUIDs the name-based UUID of the text.
    """
    texts: set[str] = set()
    byte_lists = []
    for placeholder in placeholders:
        raw = placeholder.encode()
        encoded = (base64.b64encode(raw), base64.urlsafe_b64encode(raw))
        texts.update((placeholder, raw.hex(), *(one.decode() for one in encoded)))
        byte_lists.append(list(raw))
    uuids = {_name_uuid(placeholder) for placeholder in placeholders}

    def untouched(value: Any) -> bool:
        if isinstance(value, str):
            return value in texts
        if isinstance(value, dict) and value:
            return all(isinstance(one, str) and one in texts for one in (*value, *value.values()))
        if isinstance(value, list) and value:
            if all(isinstance(one, str) for one in value):
                return all(one in texts or one in uuids for one in value)
            return value in byte_lists
        return False

    return untouched


def _name_uuid(text: str) -> str:
    """Java's UUID.nameUUIDFromBytes."""
    digest = bytearray(hashlib.md5(text.encode(), usedforsecurity=False).digest())
    # Version 3 and the variant of RFC 9562, as in section 5.3.
    digest[6], digest[8] = digest[6] & 0x0F | 0x30, digest[8] & 0x3F | 0x80
    parts = (digest[:4], digest[4:6], digest[6:8], digest[8:10], digest[10:])
    return "-".join(part.hex() for part in parts)


# --- versions -------------------------------------------------------------------------------------


def _stamp(record: _Record, route: _Route, arrived_at: datetime | None) -> Stamp:
    occurred = _instant(record.source)
    accepted = arrived_at or _instant(record.handled) or occurred
    if accepted is None:
        raise RejectedError("missing_member", "is required", field="ts_ms")
    oldest = record.op == "r" and route.stream.reads == "oldest"
    version = 1 if oldest else _version(record.source, route.stream, route.connector)
    return Stamp(version, f"debezium/{record.source['name']}", occurred, accepted)


def _instant(member: Mapping[str, Any]) -> datetime | None:
    micros = _micros(member)
    return None if micros is None else _EPOCH + timedelta(microseconds=micros)


def _micros(member: Mapping[str, Any]) -> int | None:
    """The time a member tells, as exactly as it tells it."""
    for name, micros in _TIMES.items():
        value = member.get(name)
        if whole(value) and 0 < value <= _MICROS_MAX // micros:
            return value * micros
    return None


def _version(source: Mapping[str, Any], stream: DebeziumStream, connector: str) -> int:
    if stream.version != "position":
        micros = _micros({stream.version: source.get(stream.version)})
        if micros is None:
            raise _unknown_version(f"source.{stream.version}", "is no time")
        return micros
    versions = _VERSIONS.get(connector)
    if versions is None:
        detail = f"connector {connector[:40]!r} has no position that is a version: set"
        raise _unknown_version("source", f"{detail} `version: ts_us` in the stream's mapping")
    return versions(source)


def _unknown_version(field: str, detail: str) -> RejectedError:
    return RejectedError("unknown_version", detail, field=field)


def _postgresql(source: Mapping[str, Any]) -> int:
    """The change's own place in the write-ahead log."""
    return _number(source, "lsn", 1, VERSION_MAX)


def _mysql(source: Mapping[str, Any]) -> int:
    """Binlog file number (20 bits), position in the file (32), row of the event (11).

    A binlog position is an unsigned 32-bit number, and the server stops at file 2^31; 2^20 files of
    1 GiB are a petabyte. Rows beyond 2,047 of one event share a version: stream order decides.
    """
    file = source.get("file")
    found = re.fullmatch(r"[^\n]{1,500}\.([0-9]{1,10})", file) if isinstance(file, str) else None
    if not found:
        detail = "must be a binlog file as mysql-bin.000003: put file, pos and row into add.fields"
        raise _unknown_version("source.file", detail)
    number = int(found[1])
    if not 0 < number < 1 << 20:
        raise RejectedError("out_of_range", "must be file 1 to 1048575", field="source.file")
    position = _number(source, "pos", 0, (1 << 32) - 1)
    row = _number(source, "row", 0, VERSION_MAX) if source.get("row") is not None else 0
    return number << 43 | position << 11 | min(row, 2047)


def _sqlserver(source: Mapping[str, Any]) -> int:
    """The commit's place in the log: file (28 bits), block (24), slot (11).

    Commits order transactions, also against a snapshot, which sees what was committed. Changes that
    one transaction makes to one row share a version: stream order decides.
    """
    text = source.get("commit_lsn")
    pattern = r"([0-9a-fA-F]{8}):([0-9a-fA-F]{8}):([0-9a-fA-F]{4})"
    found = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if not found:
        detail = "must be a position as 00000027:00000758:0005: put it into add.fields"
        raise _unknown_version("source.commit_lsn", detail)
    file, block, slot = (int(part, 16) for part in found.groups())
    if file >= 1 << 28 or block >= 1 << 24 or slot >= 1 << 11 or not (file or block or slot):
        raise RejectedError("out_of_range", "is no position of a log", field="source.commit_lsn")
    return file << 35 | block << 11 | slot


def _number(source: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = source.get(name)
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    if not whole(value):
        raise _unknown_version(f"source.{name}", "is missing: put it into add.fields")
    if not low <= value <= high:
        raise RejectedError("out_of_range", f"must be {low} to {high}", field=f"source.{name}")
    return value


_VERSIONS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "postgresql": _postgresql,
    "mysql": _mysql,
    "mariadb": _mysql,
    "sqlserver": _sqlserver,
}
