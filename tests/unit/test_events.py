"""Every event of events/ drives the handler that it is for, and is shaped as AWS sends it.

The files are what `sam local invoke` and the packaging test use as well. A new file without an
expectation here fails, and so does an expectation without its file.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pytest

from api_poller import app as api_poller
from api_poller.http import Answer, Limits, Request
from api_poller.settings import Settings
from consumer import app as consumer
from freshet.objects import DirectoryObjects
from freshet.pii import Protector
from freshet.tables import TABLES
from freshet.testing import EPOCH, MemoryObjects, MemoryStream, StoppedClock
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE
from lake.maintain import Maintenance
from lake.testing import LakeSite
from local.delivery import (
    WHOLE_BATCH_FAILED,
    Condition,
    Piece,
    batch_event,
    failure_record,
    item_of,
)
from local.gateway import event_of_request
from local.invocation import LocalFunction
from local.shards import StreamRecord
from maintenance import app as maintenance
from producer import app as producer

EVENTS = Path(__file__).parents[2] / "events"
FILES = {path.stem: path for path in sorted(EVENTS.glob("*_*.json"))}
NOW = StoppedClock(EPOCH + timedelta(seconds=10))  # the events were accepted at 08:30:08
PRODUCT = {"id": 4, "title": "Majestic Mountain Graphic T-Shirt", "price": 44}
CATEGORY = {"id": 1, "name": "Clothes", "slug": "clothes"}
RATES = "KEY,CURRENCY,TIME_PERIOD,OBS_VALUE\r\nEXR,USD,2026-11-20,1.0837\r\n"

Event = dict[str, Any]


class Fetched:
    """A shop of one product in one category, and a bank with one rate."""

    def send(
        self, request: Request, limits: Limits, *, seconds_max: float, allow_loopback: bool
    ) -> Answer:
        shop = {"products": json.dumps([PRODUCT]), "categories": json.dumps([CATEGORY])}
        body = shop.get(urlsplit(request.url).path.rpartition("/")[2], RATES)
        return Answer(request.url, 200, {}, body.encode(), measured=True)


class Stage:
    """Every function over one memory stream and one lake in memory."""

    def __init__(self, folder: Path, lake: Lake) -> None:
        self.stream, self.lake = MemoryStream(), lake
        objects = DirectoryObjects(folder / "state")
        protector = Protector(bytes(32), TABLES)
        self.produce = producer.build(
            stream=self.stream, objects=objects, protector=protector, now=NOW
        )
        self.consume = consumer.build(lake, tables=TABLES, now=NOW)
        self.poll = api_poller.build(
            Settings.from_env(
                {"STREAM_NAME": "changes", "STATE_BUCKET": "state", "ECB_START": "2026-11-01"}
            ),
            stream=self.stream,
            objects=objects,
            protector=protector,
            transport=Fetched(),
            now=NOW,
        )
        self.maintain = maintenance.build(Maintenance(lake, now=NOW), tables=TABLES)

    def logged(self, log: str) -> list[dict[str, Any]]:
        """The log's lines in stream order."""
        lines = [row for part in self.lake.log(log) for row in part.to_pylist()]
        return sorted(lines, key=lambda line: line["position"])

    def sales(self) -> dict[str, int]:
        """Returned units by sale, as the table holds them."""
        rows = self.lake.rows("sales").to_pylist()
        return {row["sale_id"]: row["returned_quantity"] for row in rows}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    with closing(LakeSite(MemoryObjects(), tmp_path / "catalog.db").open()) as lake:
        yield Stage(tmp_path, lake)


def read(name: str) -> Event:
    event: Event = json.loads(FILES[name].read_text())
    return event


def data_of(event: Event) -> list[bytes]:
    return [base64.b64decode(record["kinesis"]["data"]) for record in event["Records"]]


# --- what each event must come to -----------------------------------------------------------------


class Expectation(Protocol):
    """Drives the handler with the event and asserts what comes of it."""

    def __call__(self, stage: Stage, event: Event) -> None: ...


def answered(status: int, published: int) -> Expectation:
    """The producer answers `status` and publishes that many changes."""

    def expect(stage: Stage, event: Event) -> None:
        assert stage.produce(event, None)["statusCode"] == status
        assert len(stage.stream.events()) == published

    return expect


def landed(events: int, *reasons: str) -> Expectation:
    """The consumer logs that many events and quarantines the rest for these reasons."""

    def expect(stage: Stage, event: Event) -> None:
        assert stage.consume(event, None) == {"batchItemFailures": []}
        assert len(stage.logged(CHANGE_LOG)) == events
        assert [line["reason"] for line in stage.logged(QUARANTINE)] == list(reasons)

    return expect


def replayable(stage: Stage, event: Event) -> None:
    """The payload of a failure object is the very event that the consumer was handed."""
    landed(5)(stage, json.loads(event["payload"]))
    assert stage.sales() == {"536370-4": 4, "536370-7": 0}  # one returned, one deleted


def polled(source: str, key: Mapping[str, Any]) -> Expectation:
    """The poller publishes the one row of that source."""

    def expect(stage: Stage, event: Event) -> None:
        report = stage.poll(event, None)
        assert (report["source"], report["published"]) == (source, 1)
        assert [one.to_json()["key"] for one in stage.stream.events()] == [key]

    return expect


def maintained(stage: Stage, event: Event) -> None:
    """All tables had their turn; members that Scheduler fills in are no input."""
    stage.consume(read("kinesis_packed"), None)

    report = LocalFunction(stage.maintain, "maintenance", timeout_s=900).invoke(event)

    assert report["dry_run"] is False
    assert {one["table"] for one in report["tables"]} >= set(TABLES.names)
    assert len(stage.sales()) == 4


POISON = (
    "unknown_format",
    "wrong_type",
    "malformed_json",
    "unsupported_version",
    "corrupt_compression",
    "not_utf8",
    "unknown_table",
)
EXPECTED: dict[str, Expectation] = {
    "http_delete_row": answered(202, 1),
    "http_get_tables": answered(200, 0),
    "http_patch_row": answered(202, 1),
    "http_post_changes": answered(202, 3),
    "http_post_changes_ndjson": answered(207, 2),
    "http_put_row": answered(202, 1),
    # Decimals as base64 without a schema: no mapping says their scale, and it is not guessed at.
    "kinesis_debezium": landed(2, "unknown_scale", "unknown_scale"),
    "kinesis_dms": landed(5),  # four records, one of them a changed key: a delete and an upsert
    "kinesis_failure": replayable,
    "kinesis_packed": landed(9),
    "kinesis_poison": landed(4, *POISON),
    "kinesis_zstd": landed(40),
    "schedule_ecb": polled("ecb", {"currency": "USD", "rate_date": "2026-11-20"}),
    "schedule_maintenance": maintained,
    "schedule_platzi": polled("platzi", {"product_id": "4"}),
    "schedule_platzi_categories": polled("platzi_categories", {"category_id": "1"}),
}


@pytest.mark.parametrize("name", FILES)
def test_an_event_drives_its_handler_to_what_is_expected(name: str, stage: Stage) -> None:
    assert name in EXPECTED, f"say in EXPECTED what {FILES[name].name} must come to"

    EXPECTED[name](stage, read(name))


def test_no_expectation_outlives_its_event() -> None:
    assert set(EXPECTED) == set(FILES)
    assert {path.suffix for path in FILES.values()} == {".json"}


# --- the shapes -----------------------------------------------------------------------------------


def named(prefix: str) -> list[str]:
    return [name for name in FILES if name.startswith(prefix)]


def kinesis_batch(name: str) -> Event:
    """The `Records` of a stream's event, also out of a failure object."""
    event = read(name)
    batch: Event = json.loads(event["payload"]) if "payload" in event else event
    return batch


@pytest.mark.parametrize("name", named("http_"))
def test_an_http_event_is_what_the_local_gateway_makes_of_its_request(name: str) -> None:
    """All but the account's own ids and the signer, whom nobody asks for on a laptop."""
    event = read(name)
    body = (event.get("body") or "").encode()
    if event["isBase64Encoded"]:
        body = base64.b64decode(body)
    request = event["requestContext"]
    at = datetime.fromtimestamp(request["timeEpoch"] / 1000, UTC)

    made = event_of_request(environ_of(event), body, now=at, request_id=request["requestId"])

    del request["authorizer"]
    request |= {name: made["requestContext"][name] for name in ("accountId", "apiId")}
    for one in (event, made):  # API Gateway knows fewer text types, so compare what they carry
        text = one.pop("body", "")
        raw = base64.b64decode(text) if one.pop("isBase64Encoded") else text.encode()
        assert raw == body
    assert made == event
    assert "pathParameters" not in event


def environ_of(event: Event) -> dict[str, Any]:
    """The WSGI request that an event came from."""
    http, headers = event["requestContext"]["http"], event["headers"]
    names = {"content-type": "CONTENT_TYPE", "content-length": "CONTENT_LENGTH"}
    return {
        "REQUEST_METHOD": http["method"],
        "PATH_INFO": http["path"],
        "QUERY_STRING": event["rawQueryString"],
        "SERVER_PROTOCOL": http["protocol"],
        "SERVER_PORT": headers["x-forwarded-port"],
        "REMOTE_ADDR": http["sourceIp"],
        "wsgi.url_scheme": headers["x-forwarded-proto"],
        **{
            names.get(name, f"HTTP_{name.upper().replace('-', '_')}"): value
            for name, value in headers.items()
        },
    }


@pytest.mark.parametrize("name", named("http_"))
def test_an_http_event_names_its_signer_and_its_length(name: str) -> None:
    """IAM authorisation, with the ids of AWS's documentation."""
    event = read(name)

    iam = event["requestContext"]["authorizer"]["iam"]
    assert list(iam) == [
        "accessKey",
        "accountId",
        "callerId",
        "cognitoIdentity",
        "principalOrgId",
        "userArn",
        "userId",
    ]
    assert iam["accessKey"] == "AKIAIOSFODNN7EXAMPLE"
    assert f"Credential={iam['accessKey']}/" in event["headers"]["authorization"]
    text = event.get("body", "").encode()
    sent = base64.b64decode(text) if event["isBase64Encoded"] else text
    assert int(event["headers"].get("content-length", 0)) == len(sent)


@pytest.mark.parametrize("name", named("kinesis_"))
def test_a_stream_event_is_what_the_local_mapping_sends(name: str) -> None:
    """One shard, numbers that grow, and every member of a record as Lambda writes it."""
    batch = kinesis_batch(name)
    records = batch["Records"]
    arn, shard = records[0]["eventSourceARN"], records[0]["eventID"].partition(":")[0]

    made = batch_event(piece_of(batch), shard, arn)

    for record, ours in zip(records, made["Records"], strict=True):
        assert record | {"invokeIdentityArn": ours["invokeIdentityArn"]} == ours
    numbers = [int(record["kinesis"]["sequenceNumber"]) for record in records]
    assert all(before < after for before, after in pairwise(numbers))


def piece_of(batch: Event) -> Piece:
    """The records of a batch as the local mapping holds them."""
    records = batch["Records"]
    return Piece(
        tuple(
            item_of(
                StreamRecord(
                    record["kinesis"]["sequenceNumber"],
                    record["kinesis"]["partitionKey"],
                    data,
                    record["kinesis"]["approximateArrivalTimestamp"],
                ),
                "",
                record["eventSourceARN"],
            )
            for record, data in zip(records, data_of(batch), strict=True)
        )
    )


def test_a_failure_object_is_what_the_local_mapping_leaves() -> None:
    """Metadata that agrees with its payload, and the payload as a string.

    The template lets age decide, not the number of tries: so there is no `responseContext`.
    """
    event, batch = read("kinesis_failure"), kinesis_batch("kinesis_failure")
    request = event["requestContext"]
    info = event["KinesisBatchInfo"]
    piece = Piece(piece_of(batch).items, attempts=request["approximateInvokeCount"])

    made = failure_record(
        piece,
        Condition(request["condition"]),
        WHOLE_BATCH_FAILED,
        shard_id=info["shardId"],
        stream_arn=info["streamArn"],
        function_arn=request["functionArn"],
        request_id=request["requestId"],
        at=datetime.fromisoformat(event["timestamp"]),
    )

    role = batch["Records"][0]["invokeIdentityArn"]
    ours = json.loads(made.pop("payload"))
    for record in ours["Records"]:
        record["invokeIdentityArn"] = role
    assert json.loads(event.pop("payload")) == ours
    assert event == made


@pytest.mark.parametrize(
    ("name", "source", "tells"),
    [
        ("kinesis_debezium", "op", ["c", "u", "d", None, "u"]),
        ("kinesis_dms", "operation", ["create-table", "load", "insert", "update", "delete"]),
    ],
)
def test_a_change_capture_event_holds_one_record_of_each_kind(
    name: str, source: str, tells: list[str | None]
) -> None:
    """Debezium with and without its schema, and the tombstone; DMS in the order of a task."""
    records = [json.loads(data) if data else {} for data in data_of(read(name))]
    bodies = [record.get("payload", record.get("metadata", record)) for record in records]

    assert [body.get(source) for body in bodies] == tells


def test_every_schedule_tells_its_slot() -> None:
    """Scheduler may fire twice: the slot's own time is what repeats, not the clock."""
    filled = {"scheduled_time", "schedule_arn", "execution_id", "attempt_number"}

    for name in named("schedule_"):
        event = read(name)
        assert event.keys() - {"source"} == filled
        assert event["schedule_arn"].endswith(f"/freshet/{name.removeprefix('schedule_')}")
        assert datetime.fromisoformat(event["scheduled_time"]).tzinfo is not None
