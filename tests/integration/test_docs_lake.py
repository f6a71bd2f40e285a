"""The catalogue of a lake that is at hand: rows, files and freshness as its receipts tell them."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from consumer.app import build
from freshet.clock import Now
from freshet.tables import TABLES
from freshet.testing import change, rate_row
from freshet.wire import encode_event, encode_record
from local.docs_commands import catalogue_files, lake_facts
from local.runtime import Home, open_lake
from local.sql import connect

COMMITTED = datetime(2026, 11, 21, 8, 30, 10, tzinfo=UTC)
OCCURRED = COMMITTED - timedelta(seconds=10)


def _record(number: int, day: int) -> dict[str, Any]:
    row = rate_row("USD", f"2026-09-{day:02d}", rate="1.1")
    event = change("exchange_rates", row, version=1, occurred_at=OCCURRED)
    data = b64encode(encode_record([encode_event(event)])).decode()
    arrived = COMMITTED.timestamp()
    return {
        "kinesis": {
            "sequenceNumber": str(number),
            "data": data,
            "approximateArrivalTimestamp": arrived,
        },
        "eventID": f"shardId-000000000000:{number}",
    }


def test_a_lake_tells_its_rows_and_how_fresh_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    home = Home(tmp_path / "home")
    home.aws.mkdir(parents=True)
    now: Now = lambda: COMMITTED  # noqa: E731
    with open_lake(home, read_only=False) as (lake, access):
        handle = build(lake, tables=TABLES, now=now)
        handle({"Records": [_record(1, 1), _record(2, 2)]}, None)
        handle({"Records": [_record(3, 3)]}, None)
        connection = connect(lake, access)
        facts = lake_facts(lake, connection)
        connection.close()

    rates, sales = facts["exchange_rates"], facts["sales"]
    assert (rates.rows, rates.files, rates.snapshots) == (3, 1, 2)
    assert rates.committed_at == "2026-11-21T08:30:10.000000Z"
    assert rates.lags_ms["event_p50_ms"] == 10_000
    assert (sales.rows, sales.committed_at, sales.lags_ms) == (0, None, {})
    pages = catalogue_files(facts)
    assert "| Event to queryable, p50 | 10.0 s |" in pages["exchange_rates.md"]
    assert "10.0 s" in pages["index.html"]
