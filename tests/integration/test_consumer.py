"""The consumer's handler over a lake: what lands, what is quarantined, what comes again."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field
from tests.unit.test_consumer_decode import batch_of, recorded

from consumer import app
from consumer.app import Handler, build
from consumer.settings import Settings
from freshet.contract import Contract, Integer, Money, PartitionField, Registry, Text
from freshet.errors import SchemaChangeError, SettingsError, StorageError
from freshet.event import ChangeEvent
from freshet.mapping import load_streams
from freshet.objects import StoredObject
from freshet.s3 import S3Objects
from freshet.secret import SecretUnavailableError
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, logger
from freshet.testing import EPOCH, MemoryObjects, StoppedClock, change, sale_row
from freshet.wire import encode_event
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE, RECEIPTS
from lake.settings import LakeSettings
from lake.testing import LakeSite
from local.runtime import Aws, Home, local_aws

DONE: dict[str, Any] = {"batchItemFailures": []}
# The events of events/*.json were accepted at 08:30:08, some fractions of a second apart.
NOW = StoppedClock(EPOCH + timedelta(seconds=10))


class FailingObjects(MemoryObjects):
    """A store that fails on the writes below `prefix` while one is set."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix: str | None = None

    def put(self, key: str, data: bytes) -> str:
        self._check(key)
        return super().put(key, data)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        self._check(key)
        return super().put_if(key, data, etag=etag)

    def _check(self, key: str) -> None:
        if self.prefix is not None and key.startswith(self.prefix):
            raise StorageError(key, "503 SlowDown")


@pytest.fixture
def objects() -> FailingObjects:
    return FailingObjects()


@pytest.fixture
def site(objects: FailingObjects, tmp_path: Path) -> LakeSite:
    return LakeSite(objects, tmp_path / "catalog.db")


@pytest.fixture
def lake(site: LakeSite) -> Iterator[Lake]:
    lake = site.open()
    yield lake
    lake.close()


@pytest.fixture
def handle(lake: Lake) -> Handler:
    return build(lake, tables=TABLES, now=NOW)


def rows(lake: Lake, table: str = "sales") -> dict[str, dict[str, Any]]:
    key = TABLES[table].key[0]
    return {row[key]: row for row in lake.rows(table).to_pylist()}


def logged(lake: Lake, log: str) -> list[dict[str, Any]]:
    return [row for part in lake.log(log) for row in part.to_pylist()]


def stored(objects: MemoryObjects) -> set[str]:
    return set(objects.list(""))


def test_a_batch_becomes_the_current_state_of_each_table(handle: Handler, lake: Lake) -> None:
    assert handle(recorded("kinesis_packed"), None) == DONE

    sales = rows(lake)
    assert sorted(sales) == ["536365-1", "536365-2", "536365-4", "536395-7"]
    assert sales["536395-7"]["returned_quantity"] == 1  # the return updated its sale
    assert list(rows(lake, "products")) == ["4"]


def test_a_compressed_batch_lands_whole(handle: Handler, lake: Lake) -> None:
    assert handle(recorded("kinesis_zstd"), None) == DONE

    assert lake.rows("sales").num_rows == 40


def test_poison_takes_no_hostage(handle: Handler, lake: Lake) -> None:
    """Law L4: what cannot be taken is quarantined, its neighbours land in the same batch."""
    event = recorded("kinesis_poison")

    assert handle(event, None) == DONE

    assert len(rows(lake)) == 4
    kept = {
        (line["sequence_number"], line["record_index"]): line for line in logged(lake, QUARANTINE)
    }
    assert len(kept) == 7
    first_bad = event["Records"][1]["kinesis"]["sequenceNumber"]
    assert kept[first_bad, 0]["data"] == b"<html><body>502 Bad Gateway</body></html>"
    assert kept[first_bad, 0]["reason"] == "unknown_format"
    in_good_record = event["Records"][2]["kinesis"]["sequenceNumber"]
    assert json.loads(kept[in_good_record, 1]["data"])["after"]["quantity"] == "six"
    assert kept[in_good_record, 1]["field"] == "after.quantity"


def test_a_batch_of_nothing_but_poison_is_done(handle: Handler, lake: Lake) -> None:
    assert handle(batch_of(b"\x00\x01", b"{"), None) == DONE

    assert len(logged(lake, QUARANTINE)) == 2


def test_a_batch_of_nothing_but_heartbeats_is_done(handle: Handler, lake: Lake) -> None:
    assert handle(batch_of(b"", b'{"ts_ms": 1795249808000}'), None) == DONE

    [row] = logged(lake, RECEIPTS)
    assert (row["received"], row["ignored"], row["table_name"]) == (2, 2, None)
    assert row["note"] == "ignored 1 heartbeat, 1 tombstone"
    assert logged(lake, QUARANTINE) == logged(lake, CHANGE_LOG) == []


def test_every_event_that_lands_is_in_the_log_with_its_place(handle: Handler, lake: Lake) -> None:
    handle(recorded("kinesis_packed"), None)

    events = logged(lake, CHANGE_LOG)
    assert len(events) == 9
    assert len({event["position"] for event in events}) == 9
    assert {event["shard_id"] for event in events} == {"shardId-000000000006"}


def test_a_redelivered_batch_writes_nothing(
    handle: Handler, lake: Lake, objects: FailingObjects
) -> None:
    """Law L3, and the same for a batch with quarantined lines. The ledger tells of it."""
    batches = [recorded("kinesis_packed"), recorded("kinesis_poison")]
    for event in batches:
        handle(event, None)
    before = {key for key in stored(objects) if not key.startswith("receipts/")}
    receipts = len(stored(objects)) - len(before)
    again = build(lake, tables=TABLES, now=StoppedClock(NOW() + timedelta(seconds=9)))

    for event in batches:
        assert again(event, None) == DONE

    after = stored(objects)
    assert {key for key in after if not key.startswith("receipts/")} == before
    assert (receipts, len(after) - len(before)) == (2, 4)


@pytest.mark.parametrize(
    "prefix",
    ["quarantine/", "change_log/", "freshet/sales/data/", "freshet/sales/metadata/"],
)
def test_a_transient_fault_fails_the_batch_from_its_first_record_and_redelivery_completes_it(
    handle: Handler, lake: Lake, objects: FailingObjects, prefix: str
) -> None:
    event = recorded("kinesis_poison")
    handle(recorded("kinesis_packed"), None)  # the tables exist, with other rows
    before = rows(lake)
    objects.prefix = prefix

    answer = handle(event, None)

    first = event["Records"][0]["kinesis"]["sequenceNumber"]
    assert answer == {"batchItemFailures": [{"itemIdentifier": first}]}
    assert rows(lake) == before
    objects.prefix = None
    assert handle(event, None) == DONE
    assert len(logged(lake, QUARANTINE)) == 7
    assert len(rows(lake)) == len(before) + 4


def test_a_batch_without_a_receipt_is_not_done(
    handle: Handler, lake: Lake, objects: FailingObjects
) -> None:
    """It landed, and is delivered again until the ledger says so."""
    event = recorded("kinesis_packed")
    objects.prefix = "receipts/"

    assert handle(event, None)["batchItemFailures"]

    objects.prefix = None
    assert handle(event, None) == DONE
    lines = by_table(logged(lake, RECEIPTS))
    assert (lines["sales"]["inserted"], lines["products"]["duplicate"]) == (0, 1)


def by_table(lines: list[dict[str, Any]]) -> dict[str | None, dict[str, Any]]:
    found = {line["table_name"]: line for line in lines}
    assert len(found) == len(lines)
    return found


def test_a_key_that_cannot_be_read_just_now_fails_the_batch_for_a_while(lake: Lake) -> None:
    """Personal data is hashed at decode: without the key nothing may land, and nothing is lost."""
    event = recorded("kinesis_packed")
    answers = iter([SecretUnavailableError("PII_SECRET_ARN", "HTTP 500")])

    def protect(one: ChangeEvent) -> ChangeEvent:
        for error in answers:
            raise error
        return one

    handle = build(lake, tables=TABLES, now=NOW, protect=protect)

    first = event["Records"][0]["kinesis"]["sequenceNumber"]
    assert handle(event, None) == {"batchItemFailures": [{"itemIdentifier": first}]}
    assert logged(lake, CHANGE_LOG) == []
    assert handle(event, None) == DONE
    assert len(rows(lake)) == 4


def test_a_receipt_has_a_line_for_each_table_and_one_for_the_logs(
    handle: Handler, lake: Lake
) -> None:
    event = recorded("kinesis_packed")
    numbers = [item["kinesis"]["sequenceNumber"] for item in event["Records"]]

    handle(event, None)

    lines = by_table(logged(lake, RECEIPTS))
    assert lines.keys() == {None, "sales", "products"}
    for line in lines.values():
        assert (line["kind"], line["shard_id"]) == ("stream", "shardId-000000000006")
        assert line["batch"] == f"shardId-000000000006-{numbers[0]}-{numbers[-1]}"
        ends = line["first_sequence_number"], line["last_sequence_number"]
        assert ends == (numbers[0], numbers[-1])
    assert [lines[name]["received"] for name in (None, "sales", "products")] == [0, 8, 1]
    assert [lines[name]["records"] for name in (None, "sales", "products")] == [len(numbers), 0, 0]
    for name in ("sales", "products"):
        assert lines[name]["contract_version"] == TABLES[name].contract_version
        assert lines[name]["snapshot_id"] == lake.current(name).rows.view().snapshot_id
        assert 1000 < lines[name]["accept_lag_ms_p50"] <= lines[name]["accept_lag_ms_p99"] < 3000


class CountingObjects(MemoryObjects):
    """Counts for itself what a receipt is to say."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()

    def get(self, key: str) -> StoredObject:
        stored = super().get(key)
        self._add(bytes_read=len(stored.data))
        return stored

    def put(self, key: str, data: bytes) -> str:
        if not key.startswith("receipts/"):
            self._add(bytes_written=len(data))
        return super().put(key, data)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        done = super().put_if(key, data, etag=etag)
        self._add(bytes_written=len(data))
        return done

    def list(self, prefix: str) -> Iterator[str]:
        self._add()
        return super().list(prefix)

    def _add(self, **counts: int) -> None:
        with self._counting:
            self.counts.update({"requests": 1, **counts})


COSTS = ("requests", "bytes_read", "bytes_written")


def test_bytes_and_requests_are_the_stores_own_also_of_two_shards_at_once(tmp_path: Path) -> None:
    objects = CountingObjects()
    lake = LakeSite(objects, tmp_path / "catalog.db").open(io_threads=3)
    handle = build(lake, tables=TABLES, now=NOW)
    for table in TABLES.names:
        lake.rows(table)  # the tables are there
    objects.counts.clear()
    one, other = recorded("kinesis_zstd"), recorded("kinesis_poison")

    with ThreadPoolExecutor(2) as shards:
        assert list(shards.map(lambda event: handle(event, None), (one, other))) == [DONE, DONE]
    counted = dict(objects.counts)

    lines = logged(lake, RECEIPTS)
    assert {name: sum(line[name] for line in lines) for name in COSTS} == counted
    assert all(line["requests"] > 0 for line in lines)
    lake.close()


def test_each_batch_logs_a_receipt_that_adds_up(
    handle: Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.setLevel(logging.INFO)

    handle(recorded("kinesis_packed"), None)

    receipt = said(capsys, LogEvent.BATCH_COMMITTED)
    counts = {name: receipt[name] for name in ("received", "inserted", "deleted", "duplicate")}
    # 536365-1 comes twice; 536365-3 is created and deleted, 536395-7 sold and returned, at once.
    assert counts == {"received": 9, "inserted": 5, "deleted": 0, "duplicate": 1}
    assert receipt["stale"] + receipt["unchanged"] == 3
    assert receipt["batch"].startswith("shardId-000000000006-")
    assert 1000 < receipt["lag_ms_p50"] <= receipt["lag_ms_p99"] < 3000


def test_a_receipt_counts_what_was_rejected(
    handle: Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.setLevel(logging.INFO)

    handle(recorded("kinesis_poison"), None)

    receipt = said(capsys, LogEvent.BATCH_COMMITTED)
    assert (receipt["received"], receipt["inserted"], receipt["rejected"]) == (12, 4, 7)
    assert receipt["ignored"] == 1


def test_a_transient_fault_is_logged_with_its_batch(
    handle: Handler, objects: FailingObjects, capsys: pytest.CaptureFixture[str]
) -> None:
    objects.prefix = "change_log/"

    handle(recorded("kinesis_packed"), None)

    assert "503 SlowDown" in said(capsys, LogEvent.BATCH_FAILED)["error"]


def test_a_batch_leaves_its_name_and_receipt_in_the_snapshot(handle: Handler, lake: Lake) -> None:
    handle(recorded("kinesis_packed"), None)

    snapshot = lake.current("products").rows.view().table.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    summary = snapshot.summary.additional_properties
    assert summary["freshet.inserted"] == "1"
    assert summary["freshet.batch"].startswith("shardId-000000000006-")


class Priced(
    Contract, table="prices", key=("sku",), partition=(PartitionField("identity", "sku"),)
):
    """As first declared."""

    sku: Annotated[str, Text(8, 1)] = Field(description="Key")
    price: Annotated[Any, Money(18, 4)] = Field(description="Money")


class Counted(
    Contract, table="prices", key=("sku",), partition=(PartitionField("identity", "sku"),)
):
    """With a column that became something else: no lake can take that."""

    sku: Annotated[str, Text(8, 1)] = Field(description="Key")
    price: Annotated[int, Integer(32)] = Field(description="No longer money")


def price_event(price: Any) -> dict[str, Any]:
    body = {
        "table": "prices",
        "op": "c",
        "version": 1,
        "event_id": "e",
        "source": "test",
        "accepted_at": "2026-11-21T08:30:00Z",
        "after": {"sku": "A", "price": price},
    }
    return batch_of(json.dumps(body).encode())


def test_a_contract_the_lake_cannot_follow_is_raised_not_retried_for_ever(
    objects: FailingObjects, tmp_path: Path
) -> None:
    """Terminal: the mapping bisects, gives up, and keeps the records at its failure destination."""
    for contract, price in ((Priced, "1.50"), (Counted, 3)):
        tables = Registry((contract,))
        lake = LakeSite(objects, tmp_path / "catalog.db", tables=tables).open()
        handle = build(lake, tables=tables, now=NOW)
        if contract is Priced:
            assert handle(price_event(price), None) == DONE
        else:
            with pytest.raises(SchemaChangeError, match="'price'"):
                handle(price_event(price), None)
        lake.close()


def test_the_deployed_handler_is_composed_from_its_environment(tmp_path: Path) -> None:
    app._opened.cache_clear()
    with local_aws(Home(tmp_path)) as aws:
        event = batch_of(encode_event(change(after=sale_row())))
        assert app.handler(event, Context()) == DONE
        keys = listed(aws)
    app._opened.cache_clear()

    assert any(key.startswith("lake/change_log/table_name=sales/") for key in keys)
    assert any("/sales/data/sold_at_day=2010-12-01/" in key for key in keys)


def listed(aws: Aws) -> list[str]:
    return list(S3Objects(aws.client("s3"), "freshet-lake").list(""))


class Context:
    function_name = "consumer"
    memory_limit_in_mb = 512
    invoked_function_arn = "arn:aws:lambda:eu-west-1:123456789012:function:consumer"
    aws_request_id = "c9b8fa9f-5a7f-4e2b-af9c-0c604cde93a5"


SETTINGS = {"LAKE_BUCKET": "lake-bucket", "DATABASE": "freshet"}


def test_settings_default_to_glue_and_name_the_lakes_root() -> None:
    settings = LakeSettings.from_env(SETTINGS)

    assert (settings.catalog, settings.root) == ("glue", "s3://lake-bucket/lake")


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, "LAKE_BUCKET"),
        ({"LAKE_BUCKET": "b"}, "DATABASE"),
        ({**SETTINGS, "CATALOG": "hive"}, "CATALOG"),
        ({**SETTINGS, "CATALOG": "sql"}, "CATALOG_PATH"),
    ],
)
def test_a_missing_or_wrong_setting_is_named(environment: dict[str, str], variable: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        LakeSettings.from_env(environment)


def test_the_consumers_own_settings_have_defaults_that_a_deployment_may_replace() -> None:
    shipped = Settings.from_env(SETTINGS)
    other = Settings.from_env({**SETTINGS, "STREAMS_FOLDER": "/here", "PII_SECRET_ARN": " arn "})

    assert (shipped.lake, shipped.pii_secret_arn) == (LakeSettings.from_env(SETTINGS), "")
    assert load_streams(shipped.streams_folder, TABLES) is not None
    assert any(shipped.streams_folder.glob("*.yaml"))
    assert (other.streams_folder, other.pii_secret_arn) == (Path("/here"), "arn")


def said(capsys: pytest.CaptureFixture[str], name: LogEvent) -> dict[str, Any]:
    """The one log line of this name."""
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line[:1] == "{"]
    [found] = [line for line in lines if line["message"] == name.value]
    return dict(found)


def test_freshness_is_put_out_by_table_where_the_source_told_its_time(
    handle: Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    told = change("sales", sale_row("A-1"), version=1)
    event = replace(told, occurred_at=EPOCH - timedelta(seconds=90))

    handle(batch_of(encode_event(event)), None)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [fresh] = [line for line in lines if "EventLagP95Milliseconds" in line]
    assert fresh["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["table"]]
    lags = [fresh[f"EventLagP{p}Milliseconds"] for p in (50, 95, 99)]
    assert (fresh["table"], lags) == ("sales", [[100_000.0]] * 3)
