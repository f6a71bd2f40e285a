"""AWS DMS's Kinesis records, read into change events.

Data records tell of rows, control records of tables (ignored: a contract says what a table is). A
change's version is its commit time in microseconds and its place in the transaction, a loaded
row's the plain microseconds of its load, which lie below every change. Shapes: AWS DMS user guide,
and records of real tasks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from freshet.clock import micros
from freshet.contract import Contract, Registry
from freshet.errors import RejectedError
from freshet.event import VERSION_MAX, Op, check_future
from freshet.image import (
    TYPED,
    Hint,
    Image,
    Reading,
    Skipped,
    Stamp,
    delete,
    instant_of_text,
    read_image,
    read_key,
    update,
    upsert,
    whole,
)
from freshet.mapping import DmsStream, Streams, TableMapping, columns_of

_OPS = {"load": Op.READ, "insert": Op.CREATE, "update": Op.UPDATE, "delete": Op.DELETE}
_OPERATION = re.compile(r"[a-z][a-z0-9_-]{0,63}")
# Eleven bits below the microsecond of a commit: good until the year 2112.
_RECORD_BITS = 11
_RECORD_MAX = (1 << _RECORD_BITS) - 1
_NAME_MAX = 200


class _Route(NamedTuple):
    stream: DmsStream
    mapping: TableMapping
    contract: type[Contract]


def recognises(body: Mapping[str, Any]) -> bool:
    """True for a JSON object that only DMS writes."""
    metadata = body.get("metadata")
    return isinstance(metadata, dict) and "record-type" in metadata and "op" not in body


def decode(
    body: Mapping[str, Any], tables: Registry, streams: Streams, arrived_at: datetime | None
) -> Reading:
    """What a record that `recognises` takes comes to. Never raises."""
    reading = Reading()
    try:
        metadata = body["metadata"]
        if kind := _other_kind(metadata):
            return Reading(other=Skipped(kind))
        route = _route(metadata, tables, streams)
        if route is None:
            return Reading(other=Skipped("ignored_table"))
        reading = Reading(table=route.contract.table)
        events = _events(body, metadata, route, arrived_at)
        if not events:
            return reading._replace(other=Skipped("unchanged"))
        return reading._replace(events=events)
    except RejectedError as error:
        return reading._replace(error=error)


def _other_kind(metadata: Mapping[str, Any]) -> str | None:
    """What a record is that tells of no row of ours."""
    operation = metadata.get("operation")
    named = isinstance(operation, str) and _OPERATION.fullmatch(operation)
    if metadata["record-type"] == "control":
        return f"control:{operation}" if named else "control"
    table = metadata.get("table-name")
    if isinstance(table, str) and table.startswith("awsdms_"):
        return "control:awsdms"
    return None


def _route(metadata: Mapping[str, Any], tables: Registry, streams: Streams) -> _Route | None:
    if metadata["record-type"] != "data":
        detail = "must be data or control"
        raise RejectedError("invalid_value", detail, field="metadata.record-type")
    schema, table = metadata.get("schema-name") or "", metadata.get("table-name")
    for field, name in (("schema-name", schema), ("table-name", table)):
        if not isinstance(name, str) or len(name) > _NAME_MAX:
            detail = f"must be a name of at most {_NAME_MAX} characters"
            raise RejectedError("missing_member", detail, field=f"metadata.{field}")
    if not table:
        raise RejectedError("missing_member", "is required", field="metadata.table-name")
    stream = streams.dms_of(schema)
    names = (f"{schema}.{table}", table) if schema else (table,)
    found = stream.table_of(names, tables)
    return None if found is None else _Route(stream, *found)


def _events(
    body: Mapping[str, Any], metadata: Mapping[str, Any], route: _Route, arrived_at: datetime | None
) -> tuple[dict[str, Any], ...]:
    data = _data(body, route.stream)
    op = _op(metadata)
    stamp = _stamp(metadata, op, route.stream, arrived_at)
    if op is Op.DELETE:
        key = read_key(data, route.mapping, route.contract, _hints)
        return (delete(route.contract, key, stamp),)
    image = read_image(data, route.mapping, route.contract, _hints)
    if op is Op.UPDATE:
        if route.stream.missing == "unchanged":
            image = Image(image.values, _left_out(image, route.contract))
        return update(route.contract, _old_key(body, route), image, stamp)
    event = upsert(route.contract, op, image, stamp)
    return (event,) if event else ()


def _hints(_: str) -> Hint:
    return TYPED


def _data(body: Mapping[str, Any], stream: DmsStream) -> Mapping[str, Any]:
    """The row; raises for a member that nobody declared: it may be the image of another key."""
    unknown = body.keys() - {"data", "metadata", "control", stream.before_image}
    if unknown:
        detail = "is no member of a record: if it is the before image, name it `before_image`"
        raise RejectedError("unknown_member", detail, field=min(unknown))
    data = body.get("data")
    if not isinstance(data, dict):
        raise RejectedError("missing_member", "must hold the row", field="data")
    return data


def _op(metadata: Mapping[str, Any]) -> Op:
    operation = metadata.get("operation")
    if not isinstance(operation, str) or operation not in _OPS:
        detail = "must be load, insert, update or delete"
        raise RejectedError("invalid_value", detail, field="metadata.operation")
    return _OPS[operation]


def _left_out(image: Image, contract: type[Contract]) -> frozenset[str]:
    """The columns that a partial image does not carry; its key it must."""
    missing = columns_of(contract).keys() - image.values.keys() - set(contract.key)
    return frozenset(missing)


def _old_key(body: Mapping[str, Any], route: _Route) -> dict[str, Any]:
    """What the before image tells of the key: nothing where it did not change."""
    before = body.get(route.stream.before_image)
    if before is None:
        return {}
    if not isinstance(before, dict):
        detail = "must be an object"
        raise RejectedError("wrong_type", detail, field=route.stream.before_image)
    constants = route.mapping.constants
    key = read_key(before, route.mapping, route.contract, _hints)
    return {column: value for column, value in key.items() if column not in constants}


# --- versions -------------------------------------------------------------------------------------


def _stamp(
    metadata: Mapping[str, Any], op: Op, stream: DmsStream, arrived_at: datetime | None
) -> Stamp:
    written = _time(metadata, "timestamp")
    committed = _time(metadata, "commit-timestamp")
    if op is Op.READ or stream.version == "timestamp":
        instant = micros(_required(written, "timestamp"))
    else:
        instant = micros(_required(committed, "commit-timestamp"))
    version = instant if op is Op.READ else instant << _RECORD_BITS
    if op is not Op.READ and stream.version == "commit":
        version |= _record_id(metadata)
    if not 0 < version <= VERSION_MAX:
        raise RejectedError("out_of_range", "lies before 1970 or after 2112", field="metadata")
    if arrived_at is not None:
        # A version with a place in its low bits is no time any more: its time is judged here.
        check_future(instant, arrived_at)
    accepted = arrived_at or written or committed
    if accepted is None:
        raise RejectedError("missing_member", "is required", field="metadata.timestamp")
    return Stamp(version, f"dms/{stream.name}", committed or written, accepted)


def _time(metadata: Mapping[str, Any], name: str) -> datetime | None:
    value = metadata.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise RejectedError("wrong_type", "must be a timestamp text", field=f"metadata.{name}")
    try:
        return instant_of_text(value, cut=True)
    except RejectedError as error:
        raise RejectedError(error.reason, error.detail, field=f"metadata.{name}") from None


def _required(instant: datetime | None, name: str) -> datetime:
    if instant is None:
        detail = (
            "is missing: set IncludeTransactionDetails on the endpoint, or `version: timestamp`"
        )
        raise RejectedError("unknown_version", detail, field=f"metadata.{name}")
    return instant


def _record_id(metadata: Mapping[str, Any]) -> int:
    """The place in the transaction; from 2,047 on changes share a version: stream order decides."""
    value = metadata.get("transaction-record-id")
    if value is None:
        return 0
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    if not whole(value) or value < 0:
        detail = "must be a whole number"
        raise RejectedError("wrong_type", detail, field="metadata.transaction-record-id")
    return min(value, _RECORD_MAX)
