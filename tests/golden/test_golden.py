"""Golden files: what Debezium's and DMS's documents show is decoded into what it means."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.golden.contracts import GOLDEN_TABLES
from tests.golden.files import Golden, golden_files

from freshet.event import json_row, json_value
from freshet.wire import Decoded, Ignored, Rejected, decode_record

ARRIVED = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
GOLDEN = golden_files()


def shown(part: Any) -> dict[str, Any]:
    """A part as the golden files write it; columns without a value are left out of a full row."""
    kind = {"part": type(part).__name__}
    if isinstance(part, Decoded):
        event = part.event
        return kind | {
            "op": event.op.value,
            "table": event.table,
            "key": json_row(event.key),
            "after": without_nulls(event.after),
            "patch": None if event.patch is None else json_row(event.patch),
            "version": event.version,
            "source": event.source,
            "occurred_at": event.occurred_at and json_value(event.occurred_at),
        }
    if isinstance(part, Rejected):
        return kind | {"reason": part.error.reason, "table": part.table}
    if isinstance(part, Ignored):
        return kind | {"kind": part.kind}
    return kind | {"table": part.table, "version": part.version, "source": part.source}


def without_nulls(row: Any) -> dict[str, Any] | None:
    if row is None:
        return None
    return {name: value for name, value in json_row(row).items() if value is not None}


def wanted(expected: dict[str, Any]) -> dict[str, Any]:
    """The members to compare: a decoded part has no row and no patch unless it says so."""
    if expected["part"] == "Decoded":
        expected = {"after": None, "patch": None} | expected
        expected["after"] = without_nulls(expected["after"])
    return expected


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_a_documented_record_becomes_the_parts_it_means(golden: Golden) -> None:
    parts = list(decode_record(golden.data, GOLDEN_TABLES, arrived_at=ARRIVED))
    found = [shown(part) for part in parts]
    assert len(found) == len(golden.expected), found
    for part, expected in zip(found, map(wanted, golden.expected), strict=True):
        assert {name: part.get(name) for name in expected} == expected, part
    assert [part.index for part in parts] == sorted({part.index for part in parts})


def test_the_same_bytes_become_the_same_parts_again() -> None:
    """Identity of events, versions and places never depends on when a record is read."""
    for golden in GOLDEN:
        first, second = (
            list(decode_record(golden.data, GOLDEN_TABLES, arrived_at=ARRIVED)) for _ in range(2)
        )
        assert [repr(part) for part in first] == [repr(part) for part in second], golden.name


def test_a_rejected_record_keeps_its_bytes() -> None:
    for golden in GOLDEN:
        for part in decode_record(golden.data, GOLDEN_TABLES, arrived_at=ARRIVED):
            if isinstance(part, Rejected):
                assert part.data in golden.data or part.data == golden.data.strip(), golden.name


def test_every_outcome_and_every_folder_has_golden_files() -> None:
    """The suite cannot shrink unnoticed."""
    kinds = Counter(part["part"] for golden in GOLDEN for part in golden.expected)
    folders = Counter(golden.name.partition("/")[0] for golden in GOLDEN)
    assert min(kinds[kind] for kind in ("Decoded", "Rejected", "Ignored", "Truncation")) >= 3
    assert folders["debezium_postgresql_types"] >= 60
    assert folders["debezium_mysql_types"] >= 25
    assert folders["dms"] >= 20
