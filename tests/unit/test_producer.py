"""The HTTP edge of the producer: what is taken, what each kind of bad input gets, and that a resend
is the same change again. The stream is `MemoryStream`, the store a folder; both pass their suites.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import zstandard

from freshet.clock import micros
from freshet.errors import SettingsError, StorageError, StreamUnavailableError
from freshet.event import ChangeEvent, Op
from freshet.objects import DirectoryObjects
from freshet.pii import Protector
from freshet.stream import RECORD_BYTES_MAX
from freshet.tables import TABLES
from freshet.testing import EPOCH, MemoryStream, StoppedClock, product_row, rate_row, sale_row
from producer.answers import (
    ANSWER_BYTES_MAX,
    ChangesAnswer,
    HealthAnswer,
    RowOutcome,
    TablesAnswer,
    ThrottledProblem,
)
from producer.app import Handler, build
from producer.openapi import CHANGE_EXAMPLES, NDJSON_EXAMPLE
from producer.problems import Problem
from producer.requests import BODY_BYTES_MAX, UNPACKED_BYTES_MAX
from producer.settings import Settings

EVENTS = Path(__file__).parents[2] / "events"
SALES = "/v1/tables/sales/changes"
NDJSON = {"content-type": "application/x-ndjson"}
PROTECTOR = Protector(bytes(32), TABLES)
RATE = "/v1/tables/exchange_rates/rows/USD,2026-11-20"


@dataclass
class Answer:
    """A decoded answer."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)

    @property
    def media_type(self) -> str:
        return self.headers["Content-Type"]

    def problem(self) -> tuple[int, str, str | None]:
        """Status, reason and field of a problem, which must be one in every respect."""
        assert self.media_type == "application/problem+json"
        problem = Problem.model_validate(self.body)
        assert problem.type == f"urn:freshet:problem:{problem.reason}"
        assert problem.status == self.status
        assert problem.detail
        return self.status, problem.reason, problem.field

    def changes(self) -> ChangesAnswer:
        """The outcomes, which must add up."""
        answer = ChangesAnswer.model_validate(self.body)
        statuses = [outcome.status for outcome in answer.outcomes]
        assert [outcome.index for outcome in answer.outcomes] == list(range(len(statuses)))
        assert answer.accepted == statuses.count("accepted")
        assert answer.rejected == statuses.count("rejected")
        assert answer.throttled == statuses.count("throttled")
        return answer

    def only(self) -> tuple[str, str | None]:
        """Reason and field of the one event, which was rejected."""
        (outcome,) = self.changes().outcomes
        assert outcome.status == "rejected"
        assert outcome.reason
        assert outcome.detail
        return outcome.reason, outcome.field


@dataclass
class Producer:
    """The producer with its surroundings."""

    folder: Path
    stream: MemoryStream = field(default_factory=MemoryStream)
    clock: StoppedClock = field(default_factory=StoppedClock)
    handler: Handler = field(init=False)

    def __post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """A fresh execution environment over the same stream and store."""
        ids = iter(f"request{number}" for number in range(10**6))
        self.handler = build(
            stream=self.stream,
            objects=DirectoryObjects(self.folder),
            protector=PROTECTOR,
            now=self.clock,
            new_id=lambda: next(ids),
        )

    def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Text goes as it is, bytes in base64 as API Gateway does, other values as JSON."""
        event = http_event(method, path, body, headers or {})
        answer = self.handler(event, None)
        assert answer["isBase64Encoded"] is False
        return Answer(answer["statusCode"], answer["headers"], answer["body"])

    def post(self, body: object, headers: dict[str, str] | None = None) -> Answer:
        return self.send("POST", SALES, body, headers)

    @property
    def events(self) -> list[ChangeEvent]:
        return sorted(self.stream.events(), key=lambda event: event.version)

    @property
    def stored(self) -> list[Path]:
        return sorted((self.folder / "idempotency").glob("*"))


def http_event(method: str, path: str, body: object, headers: dict[str, str]) -> dict[str, Any]:
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", **headers},
        "requestContext": {
            "http": {"method": method, "path": path, "sourceIp": "203.0.113.7"},
            "requestId": "LV7fzho-PHcEJPw=",
            "stage": "$default",
        },
        "isBase64Encoded": isinstance(body, bytes),
    }
    if isinstance(body, bytes):
        event["body"] = base64.b64encode(body).decode()
    elif body is not None:
        event["body"] = body if isinstance(body, str) else json.dumps(body)
    return event


@pytest.fixture
def producer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Producer:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    return Producer(tmp_path)


def upsert(sale_id: str = "536365-1", **columns: Any) -> dict[str, Any]:
    return {"after": sale_row(sale_id, **columns)}


# --- What is taken ------------------------------------------------------------------------------


def test_a_row_alone_is_an_upsert_stamped_with_all_it_lacks(producer: Producer) -> None:
    answer = producer.post(upsert())

    (event,) = producer.events
    assert answer.status == 202
    assert answer.body == {
        "accepted": 1,
        "rejected": 0,
        "throttled": 0,
        "outcomes": [
            {
                "index": 0,
                "status": "accepted",
                "event_id": "request0-0",
                "version": micros(EPOCH),
                "key": "536365-1",
            }
        ],
    }
    assert (event.table, event.op, event.source) == ("sales", Op.UPDATE, "http")
    assert (event.event_id, event.version, event.accepted_at) == (
        "request0-0",
        micros(EPOCH),
        EPOCH,
    )


def test_what_the_source_says_is_kept_and_only_the_time_of_acceptance_is_ours(
    producer: Producer,
) -> None:
    producer.post(
        {
            **upsert(),
            "op": "c",
            "table": "sales",
            "key": {"sale_id": "536365-1"},
            "before": {"quantity": 5},
            "version": 42,
            "event_id": "till-7-000123",
            "source": "till-7",
            "occurred_at": "2010-12-01T08:26:00Z",
            "accepted_at": "1999-01-01T00:00:00Z",
        }
    )

    (event,) = producer.events
    assert (event.op, event.version, event.event_id, event.source) == (
        Op.CREATE,
        42,
        "till-7-000123",
        "till-7",
    )
    assert event.before == {"quantity": 5}
    assert event.accepted_at == EPOCH


def test_an_array_and_lines_of_the_same_events_are_the_same(producer: Producer) -> None:
    events = [upsert(), {"op": "d", "key": {"sale_id": "536365-2"}}, upsert("536366-1")]

    array = producer.post(events)
    lines = producer.post("\n\n".join(json.dumps(event) for event in events) + "\n", NDJSON)

    assert array.status == lines.status == 202
    assert [one.key for one in array.changes().outcomes] == [
        one.key for one in lines.changes().outcomes
    ]
    first, second = producer.events[:3], producer.events[3:]
    assert [(one.op, one.key, one.after) for one in first] == [
        (one.op, one.key, one.after) for one in second
    ]


def test_versions_stamped_in_one_request_follow_the_order_of_its_events(producer: Producer) -> None:
    outcomes = producer.post([upsert(quantity=at) for at in range(5)]).changes().outcomes
    later = producer.post(upsert(quantity=9)).changes().outcomes

    versions = [one.version for one in (*outcomes, *later)]
    assert versions == [micros(EPOCH) + at for at in range(6)]


def test_decimals_arrive_as_written_and_never_as_floats(producer: Producer) -> None:
    producer.post(json.dumps(upsert()).replace('"2.5500"', "0.1"))

    (event,) = producer.events
    assert event.after is not None
    assert str(event.after["unit_price"]) == "0.1000"


@pytest.mark.parametrize("example", CHANGE_EXAMPLES, ids=str)
def test_each_documented_example_is_accepted(producer: Producer, example: str) -> None:
    assert producer.post(CHANGE_EXAMPLES[example]["value"]).status == 202


def test_the_documented_lines_are_accepted(producer: Producer) -> None:
    assert producer.post(NDJSON_EXAMPLE, NDJSON).changes().accepted == 2


def test_a_return_goes_in_as_an_update_of_its_sale(producer: Producer) -> None:
    producer.post(CHANGE_EXAMPLES["sale"]["value"])
    producer.post(CHANGE_EXAMPLES["return"]["value"])

    sale, returned = producer.events
    assert sale.key == returned.key
    assert returned.op is Op.UPDATE
    assert returned.after is not None
    assert returned.after["returned_quantity"] == 2


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "identity", "GZIP"])
def test_a_compressed_body_is_unpacked(producer: Producer, encoding: str) -> None:
    plain = json.dumps([upsert(f"{at}-1") for at in range(100)]).encode()
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
        "identity": bytes,
    }
    body = packers[encoding.lower()](plain)

    answer = producer.post(body, {"content-encoding": encoding})

    assert answer.status == 202
    assert len(producer.events) == 100


def test_several_gzip_members_are_one_body(producer: Producer) -> None:
    first, second = (json.dumps(upsert(f"{at}-1")).encode() + b"\n" for at in range(2))

    answer = producer.post(
        gzip.compress(first) + gzip.compress(second), {**NDJSON, "content-encoding": "gzip"}
    )

    assert answer.changes().accepted == 2


@pytest.mark.parametrize(
    "content_type",
    ["application/json; charset=UTF-8", "APPLICATION/JSON", 'application/json;charset="utf-8"'],
)
def test_a_media_type_is_read_as_the_rfc_says(producer: Producer, content_type: str) -> None:
    assert producer.post(upsert(), {"content-type": content_type}).status == 202


def test_header_names_are_taken_in_any_case(producer: Producer) -> None:
    event = http_event("POST", SALES, "\n", {})
    event["headers"] = {"Content-Type": "application/jsonl"}
    event["body"] = json.dumps(upsert())

    assert producer.handler(event, None)["statusCode"] == 202


def test_a_row_put_to_its_url_is_an_upsert(producer: Producer) -> None:
    answer = producer.send(
        "PUT",
        "/v1/tables/exchange_rates/rows/USD,2026-11-20",
        rate_row(),
        {"freshet-version": "7", "freshet-occurred-at": "2026-11-20T15:00:00Z"},
    )

    (event,) = producer.events
    assert answer.status == 202
    assert RowOutcome.model_validate(answer.body).model_dump() == answer.body
    assert answer.body["key"] == "USD,2026-11-20"
    assert (event.op, event.version, event.key["currency"]) == (Op.UPDATE, 7, "USD")
    assert event.occurred_at is not None


@pytest.mark.parametrize("media_type", ["application/json", "application/merge-patch+json"])
def test_columns_patched_at_a_rows_url_are_a_partial_update(
    producer: Producer, media_type: str
) -> None:
    headers = {
        "content-type": media_type,
        "freshet-version": "7",
        "freshet-occurred-at": "2026-11-20T15:00:00Z",
    }

    answer = producer.send("PATCH", RATE, '{"rate": 1.1}', headers)

    (event,) = producer.events
    assert answer.status == 202
    assert RowOutcome.model_validate(answer.body).model_dump() == answer.body
    assert answer.body["key"] == "USD,2026-11-20"
    assert (event.op, event.version, event.after) == (Op.UPDATE, 7, None)
    assert event.patch == {"rate": Decimal("1.100000")}
    assert event.key == {"currency": "USD", "rate_date": date(2026, 11, 20)}


def test_null_empties_a_column_that_may_be_empty(producer: Producer) -> None:
    producer.send("PATCH", "/v1/tables/products/rows/4", {"sku": None})

    (event,) = producer.events
    assert event.patch == {"sku": None}


def test_a_patch_among_events_is_an_update_of_these_columns_only(producer: Producer) -> None:
    """Without `op`, as a row is; defaults of columns that are not there stay out of it."""
    key = {"sale_id": "536365-1"}

    answer = producer.post([upsert(), {"key": key, "patch": {"description": None}}])

    event = producer.events[1]
    assert answer.status == 202
    assert (event.op, event.key, event.after) == (Op.UPDATE, key, None)
    assert event.patch == {"description": None}


@pytest.mark.parametrize(
    ("event", "reason", "field"),
    [
        ({"patch": {"quantity": 1}}, "missing_member", "key"),
        ({"key": {"sale_id": "1"}, "patch": {}}, "wrong_type", "patch"),
        ({"key": {"sale_id": "1"}, "patch": {"quantity": "1"}}, "wrong_type", "patch.quantity"),
        ({"key": {"sale_id": "1"}, "patch": {"line": 1}, "op": "d"}, "invalid_value", "patch"),
        ({"key": {"sale_id": "1"}, "patch": {"line": 1}, **upsert("1")}, "invalid_value", "patch"),
    ],
    ids=str,
)
def test_a_patch_that_is_none_says_reason_and_field(
    producer: Producer, event: dict[str, Any], reason: str, field: str
) -> None:
    assert producer.post(event).only() == (reason, field)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, (422, "wrong_type", "patch")),
        ("null", (422, "wrong_type", "patch")),
        ([], (422, "wrong_type", "patch")),
        ({"colour": "red"}, (422, "unknown_column", "colour")),
        ({"currency": "GBP", "rate": 1}, (422, "key_in_patch", "currency")),
        ({"rate": None}, (422, "wrong_type", "rate")),
        ('{"rate": NaN}', (422, "out_of_range", "rate")),
        ("", (400, "empty_body", None)),
        ("{", (400, "malformed_json", None)),
    ],
)
def test_a_row_that_cannot_be_patched_says_reason_and_field(
    producer: Producer, body: object, problem: tuple[int, str, str | None]
) -> None:
    answer = producer.send("PATCH", RATE, body)

    assert answer.problem() == problem
    assert producer.stream.records == []


def test_a_patch_with_the_same_idempotency_key_is_the_same_change_again(
    producer: Producer,
) -> None:
    key = {"idempotency-key": "k"}
    first = producer.send("PATCH", RATE, {"rate": 1}, key)
    producer.clock.advance(60)

    again = producer.send("PATCH", RATE, {"rate": 1}, key)
    other = producer.send("PATCH", RATE, {"rate": 2}, key)
    put = producer.send("PUT", RATE, {"rate": 1}, key)

    assert first.body == again.body
    assert {other.problem()[1], put.problem()[1]} == {"idempotency_key_reused"}


def test_a_row_deleted_at_its_url_is_a_delete(producer: Producer) -> None:
    answer = producer.send("DELETE", "/v1/tables/products/rows/4")

    (event,) = producer.events
    assert answer.status == 202
    assert (event.op, event.key, event.after) == (Op.DELETE, {"product_id": "4"}, None)
    assert event.version == answer.body["version"] == micros(EPOCH)


@pytest.mark.parametrize(
    ("path_key", "product_id"),
    [
        ("4", "4"),
        ("a b", "a b"),
        ("a%20b", "a b"),
        ("München", "München"),
        ("M%C3%BCnchen", "München"),
        ("50%25", "50%"),
        ("a%2Cb", "a,b"),
        ("a%2Fb", "a/b"),
        ("a%3Fb%23c", "a?b#c"),
    ],
)
def test_the_key_text_of_an_answer_names_the_same_row_in_a_path(
    producer: Producer, path_key: str, product_id: str
) -> None:
    """API Gateway decodes a path once before the function sees it."""
    answer = producer.send("DELETE", f"/v1/tables/products/rows/{path_key}")

    assert answer.status == 202
    assert [event.key for event in producer.events] == [{"product_id": product_id}]


@pytest.mark.parametrize("path_key", ["%41", "50%", "a%2cb%2C", "%25%41"])
def test_a_path_that_could_name_another_row_deletes_nothing(
    producer: Producer, path_key: str
) -> None:
    answer = producer.send("DELETE", f"/v1/tables/products/rows/{path_key}")

    assert answer.problem() == (422, "ambiguous_key", "key")
    assert producer.events == []


def test_tables_are_described_as_json_schema(producer: Producer) -> None:
    answer = producer.send("GET", "/v1/tables")

    tables = {one.table: one for one in TablesAnswer.model_validate(answer.body).tables}
    assert answer.status == 200
    assert set(tables) == set(TABLES.names)
    assert tables["exchange_rates"].key == ["currency", "rate_date"]
    assert tables["sales"].partition == ["day(sold_at)"]
    assert tables["products"].partition == ["bucket[4](product_id)"]
    assert tables["sales"].json_schema["additionalProperties"] is False
    assert "sold_at" in tables["sales"].json_schema["required"]


def test_health_says_ok(producer: Producer) -> None:
    answer = producer.send("GET", "/health")

    assert (answer.status, HealthAnswer.model_validate(answer.body).status) == (200, "ok")


def test_the_openapi_document_describes_every_route_status_and_example(producer: Producer) -> None:
    document = producer.send("GET", "/openapi.json").body

    operations = {
        (path, method): set(operation["responses"])
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    row = "/v1/tables/{table}/rows/{key}"
    assert document["openapi"].startswith("3.1")
    assert operations == {
        ("/v1/tables/{table}/changes", "post"): {
            *("202", "207", "400", "404", "413", "415", "422", "429", "503")
        },
        (row, "put"): {"202", "400", "404", "413", "415", "422", "429", "503"},
        (row, "patch"): {"202", "400", "404", "413", "415", "422", "429", "503"},
        (row, "delete"): {"202", "400", "404", "422", "429", "503"},
        ("/v1/tables", "get"): {"200"},
        ("/health", "get"): {"200"},
    }
    body = document["paths"]["/v1/tables/{table}/changes"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "application/x-ndjson", "application/jsonl"}
    assert set(body["application/json"]["examples"]) == set(CHANGE_EXAMPLES)
    assert_references_resolve(document)


def test_a_second_producer_in_the_process_documents_itself_as_well(
    producer: Producer, tmp_path: Path
) -> None:
    first = producer.send("GET", "/openapi.json").text

    assert Producer(tmp_path / "other").send("GET", "/openapi.json").text == first


def assert_references_resolve(document: dict[str, Any]) -> None:
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            reference = value.get("$ref", "#/components/schemas/Problem")
            assert reference.rpartition("/")[2] in document["components"]["schemas"], reference
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


# --- What bad input gets ------------------------------------------------------------------------


def test_a_bad_event_is_named_and_its_neighbours_are_accepted(producer: Producer) -> None:
    answer = producer.post([upsert(), upsert("536365-2", quantity="six"), upsert("536365-3")])

    accepted, rejected, last = answer.changes().outcomes
    assert answer.status == 207
    assert (accepted.status, last.status) == ("accepted", "accepted")
    assert (rejected.index, rejected.reason, rejected.field) == (1, "wrong_type", "after.quantity")
    assert len(producer.events) == 2


def test_when_no_event_is_acceptable_the_request_is_unprocessable(producer: Producer) -> None:
    answer = producer.post([5, {"op": "d"}])

    assert answer.status == 422
    assert [one.reason for one in answer.changes().outcomes] == ["wrong_type", "missing_member"]
    assert producer.stream.records == []


DEEP = '{"a":' * 90 + "1" + "}" * 90
LONG = "x" * 65


def delete(**members: str) -> str:
    """A delete as JSON text, with `members` as they are written."""
    given = {"op": '"d"', "key": '{"sale_id": "x"}', **members}
    return "{" + ", ".join(f'"{name}": {text}' for name, text in given.items()) + "}"


BAD_EVENTS = [
    ('{"after": {"unit_price": NaN}}', "out_of_range", "after.unit_price"),
    ('{"after": {"line": -Infinity}}', "out_of_range", "after.line"),
    ('{"after": {"line": 1e99999999999999999999}}', "out_of_range", "after.line"),
    ('{"after": {"colour": "red"}}', "missing_column", "after.sale_id"),
    ("NaN", "out_of_range", None),
    ("5", "wrong_type", None),
    ("null", "wrong_type", None),
    ("{}", "missing_member", "op"),
    ('{"op": "d"}', "missing_member", "key"),
    ('{"tabel": "sales"}', "unknown_member", "tabel"),
    ('{"\\ud800": 1}', "unknown_member", "\\ud800"),
    (delete(table='"products"'), "table_mismatch", "table"),
    (delete(table="5"), "table_mismatch", "table"),
    (delete(op='"drop"'), "invalid_value", "op"),
    (delete(key="{}"), "missing_member", "key"),
    (delete(key='{"sale_id": null}'), "missing_key", "key.sale_id"),
    (delete(key='{"sale_id": "x", "line": 1}'), "unknown_column", "key.line"),
    (delete(key='{"sale_id": "\\ud800"}'), "invalid_text", "key.sale_id"),
    (delete(key=f'{{"sale_id": "{LONG}"}}'), "too_long", "key.sale_id"),
    (delete(version="0"), "out_of_range", "version"),
    (delete(version="9223372036854775808"), "out_of_range", "version"),
    (delete(version="9" * 5000), "out_of_range", "version"),
    (delete(version="1.0"), "wrong_type", "version"),
    (delete(occurred_at='"now"'), "invalid_value", "occurred_at"),
    (delete(before='{"a": [1, NaN]}'), "out_of_range", "before.a[1]"),
    (delete(before='{"a": 1e99999}'), "out_of_range", "before"),
    (delete(before=DEEP), "too_deep", "before"),
]


@pytest.mark.parametrize(("text", "reason", "field"), BAD_EVENTS, ids=lambda one: str(one)[:50])
@pytest.mark.parametrize("headers", [{}, NDJSON], ids=["array", "lines"])
def test_a_bad_event_says_reason_and_field_and_spares_its_neighbour(
    producer: Producer, text: str, reason: str, field: str | None, headers: dict[str, str]
) -> None:
    good = json.dumps(upsert())
    body = f"{good}\n{text}\n{good}" if headers else f"[{good},{text},{good}]"

    answer = producer.post(body, headers)

    rejected = answer.changes().outcomes[1]
    assert answer.status == 207
    assert (rejected.status, rejected.reason, rejected.field) == ("rejected", reason, field)
    assert len(producer.events) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"after": {"sale_id": "5363', "malformed_json"),
        (b"<html>", "malformed_json"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a": "' + b"x" * 1024 * 1024 + b'"}', "too_large"),
    ],
    ids=["cut off", "html", "latin", "deep", "huge"],
)
def test_a_bad_line_is_rejected_alone(producer: Producer, line: bytes, reason: str) -> None:
    good = json.dumps(upsert()).encode()

    answer = producer.post(b"\n".join((good, line, good)), NDJSON)

    rejected = answer.changes().outcomes[1]
    assert answer.status == 207
    assert (rejected.status, rejected.reason) == ("rejected", reason)
    assert len(producer.events) == 2


@pytest.mark.parametrize(
    ("body", "reason", "index", "place"),
    [
        (b'[{"after": {}},\n {"after": }]', "malformed_json", 1, "line 2, column 12"),
        (b'{"after": {"sale_id": "5363', "malformed_json", None, "line 1, column 23"),
        (b"[{},{}", "malformed_json", 1, "line 1, column 7"),
        (b"[{},{}] x", "malformed_json", None, "line 1, column 9"),
        (b"<!DOCTYPE html>", "malformed_json", None, "line 1, column 1"),
        (b"[1, 2, " + b"[" * 100_000, "too_deep", 2, ""),
        (b'{"a":' * 100_000, "too_deep", None, ""),
        (b'{\n"a": "\xff"}', "not_utf8", None, "byte 8 (line 2)"),
        (b"\xfe\xff\x00{", "not_utf8", None, "byte 0"),
        (b"", "empty_body", None, ""),
        (b" \n", "empty_body", None, ""),
        (b"[]", "empty_body", None, ""),
    ],
)
def test_a_body_that_is_no_json_says_where(
    producer: Producer, body: bytes, reason: str, index: int | None, place: str
) -> None:
    answer = producer.post(body)

    assert answer.problem() == (400, reason, None)
    assert answer.body.get("index") == index
    assert place in answer.body["detail"]
    assert producer.stream.records == []


def test_a_lone_surrogate_that_the_gateway_let_through_is_named(producer: Producer) -> None:
    assert producer.post('{"after": "\ud800"}').problem() == (400, "not_utf8", None)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"content-type": "application/x-www-form-urlencoded"}, "unsupported_media_type"),
        ({"content-type": "text/csv"}, "unsupported_media_type"),
        ({"content-type": "application/json; charset=utf-16"}, "unsupported_media_type"),
        ({"content-encoding": "br"}, "unsupported_encoding"),
        ({"content-encoding": "gzip, gzip"}, "unsupported_encoding"),
    ],
)
def test_a_type_or_encoding_not_offered_is_refused_with_those_that_are(
    producer: Producer, headers: dict[str, str], reason: str
) -> None:
    answer = producer.post(upsert(), headers)

    assert answer.problem() == (415, reason, None)
    assert {"Accept-Post", "Accept-Encoding"} & set(answer.headers)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (b"not gzip", "gzip"),
        (gzip.compress(b'{"a": 1}')[:-4], "gzip"),
        (gzip.compress(b"{}") + b"tail", "gzip"),
        (b"not zstd", "zstd"),
        (zstandard.compress(b'{"a": 1}' * 99)[:-3], "zstd"),
    ],
    ids=["no gzip", "gzip cut off", "bytes after gzip", "no zstd", "zstd cut off"],
)
def test_a_body_that_is_not_what_its_encoding_says_is_refused(
    producer: Producer, body: bytes, encoding: str
) -> None:
    answer = producer.post(body, {"content-encoding": encoding})

    assert answer.problem() == (400, "corrupt_compression", None)


def test_a_body_that_is_not_base64_is_refused(producer: Producer) -> None:
    event = {**http_event("POST", SALES, "ä#", {}), "isBase64Encoded": True}

    assert producer.handler(event, None)["statusCode"] == 400


def zip_bomb(encoding: str) -> bytes:
    """A few kilobytes that unpack to 256 MiB."""
    mebibyte = b"\0" * (1 << 20)
    packer: Any = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    if encoding == "zstd":
        packer = zstandard.ZstdCompressor().compressobj()
    return b"".join([packer.compress(mebibyte) for _ in range(256)]) + bytes(packer.flush())


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_zip_bomb_is_refused_while_it_is_still_small(producer: Producer, encoding: str) -> None:
    bomb = zip_bomb(encoding)
    assert len(bomb) < BODY_BYTES_MAX
    tracemalloc.start()

    answer = producer.post(bomb, {"content-encoding": encoding})

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.problem() == (413, "too_large", None)
    assert str(UNPACKED_BYTES_MAX) in answer.body["detail"]
    assert peak < 4 * UNPACKED_BYTES_MAX


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_million_tiny_compressed_parts_are_refused_at_once(
    producer: Producer, encoding: str
) -> None:
    part = gzip.compress(b" ") if encoding == "gzip" else zstandard.compress(b" ")
    started = time.process_time()

    answer = producer.post(part * (4_000_000 // len(part)), {"content-encoding": encoding})

    assert answer.problem()[:2] == (413, "too_large")
    assert time.process_time() - started < 5  # a copy of the rest for each part takes minutes


def test_a_body_over_the_payload_limit_is_refused_before_it_is_decoded(producer: Producer) -> None:
    for body in ("x" * (BODY_BYTES_MAX + 1), b"x" * (BODY_BYTES_MAX + 3)):
        assert producer.post(body).problem() == (413, "too_large", None)


def test_a_body_at_the_payload_limit_is_taken(producer: Producer) -> None:
    line = json.dumps(upsert()).encode() + b"\n"
    count = BODY_BYTES_MAX // len(line)

    answer = producer.post(line * count, NDJSON)

    assert answer.status == 202
    assert len(answer.text) < ANSWER_BYTES_MAX
    assert answer.changes().accepted == len(producer.events) == count > 15_000


def test_more_events_than_an_answer_can_name_are_refused_before_any_is_published(
    producer: Producer,
) -> None:
    answer = producer.post(b"5\n" * 60_000, NDJSON)

    assert answer.problem() == (413, "too_many_events", None)
    assert producer.stream.records == []


def test_an_event_too_large_for_any_record_is_rejected_alone(producer: Producer) -> None:
    huge = {**upsert("536365-2"), "before": {"description": "x" * RECORD_BYTES_MAX}}

    answer = producer.post([upsert(), huge, upsert("536365-3")])

    assert answer.status == 207
    assert [(one.status, one.reason) for one in answer.changes().outcomes] == [
        ("accepted", None),
        ("rejected", "too_large"),
        ("accepted", None),
    ]
    assert len(producer.events) == 2


@pytest.mark.parametrize("hours", [25, 24 * 365 * 50])
def test_a_version_from_a_clock_that_is_ahead_is_refused(producer: Producer, hours: int) -> None:
    answer = producer.post({**upsert(), "version": micros(EPOCH) + hours * 3_600_000_000})

    assert (answer.status, answer.only()) == (422, ("future_version", "version"))


@pytest.mark.parametrize(
    "version",
    [1, 23_119_000_000, 10**15, micros(EPOCH) + 23 * 3_600_000_000, 10**18 * 2, 2**63 - 1],
    ids=["first", "log position", "small", "an hour ahead", "nanoseconds", "greatest"],
)
def test_a_version_that_is_no_future_time_is_opaque(producer: Producer, version: int) -> None:
    producer.post({**upsert(), "version": version})

    assert [event.version for event in producer.events] == [version]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/v1/tables/orders/changes", 404, "unknown_table"),
        ("PUT", "/v1/tables/orders/rows/1", 404, "unknown_table"),
        ("DELETE", "/v1/tables/orders/rows/1", 404, "unknown_table"),
        ("GET", "/nothing", 404, "unknown_path"),
        ("POST", "/v1/tables/sales", 404, "unknown_path"),
        ("GET", SALES, 405, "method_not_allowed"),
        ("POST", "/v1/tables/sales/rows/1", 405, "method_not_allowed"),
        ("GET", "/v1/tables/sales/rows/1", 405, "method_not_allowed"),
        ("POST", "/v1/tables", 405, "method_not_allowed"),
        ("DELETE", "/health", 405, "method_not_allowed"),
    ],
)
def test_a_path_or_method_that_does_not_exist_is_a_problem(
    producer: Producer, method: str, path: str, status: int, reason: str
) -> None:
    answer = producer.send(method, path, upsert())

    assert answer.problem()[:2] == (status, reason)


def test_an_unknown_table_is_answered_with_the_known_ones(producer: Producer) -> None:
    answer = producer.send("POST", "/v1/tables/orders/changes", upsert())

    assert "sales, products, exchange_rates" in answer.body["detail"]


def test_a_wrong_method_is_answered_with_the_right_ones(producer: Producer) -> None:
    answer = producer.send("GET", "/v1/tables/sales/rows/1")

    assert answer.headers["Allow"] == "PUT, PATCH, DELETE"


@pytest.mark.parametrize(
    ("key", "body", "problem"),
    [
        ("USD,2026-11-21", rate_row(), (422, "key_mismatch", "key")),
        ("USD", rate_row(), (422, "missing_key", "key")),
        ("USD,yesterday", rate_row(), (422, "invalid_value", "key.rate_date")),
        ("USD,2026-11-20", rate_row(rate="x"), (422, "wrong_type", "rate")),
        ("USD,2026-11-20", [], (422, "missing_member", "after")),
        ("USD,2026-11-20", {}, (422, "missing_column", "currency")),
        ("USD,2026-11-20", '{"rate": NaN}', (422, "out_of_range", "rate")),
        ("USD,2026-11-20", "", (400, "empty_body", None)),
        ("USD,2026-11-20", "{", (400, "malformed_json", None)),
    ],
)
def test_a_row_that_cannot_be_put_says_reason_and_field(
    producer: Producer, key: str, body: object, problem: tuple[int, str, str | None]
) -> None:
    answer = producer.send("PUT", f"/v1/tables/exchange_rates/rows/{key}", body)

    assert answer.problem() == problem
    assert producer.stream.records == []


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("freshet-version", "x"),
        ("freshet-version", "-1"),
        ("freshet-version", "1e3"),
        ("freshet-version", "1" * 20),
        ("idempotency-key", ""),
        ("idempotency-key", "x" * 256),
        ("idempotency-key", "line\nbreak"),
        ("idempotency-key", "Schlüssel"),
    ],
)
def test_a_header_that_cannot_be_read_is_named(producer: Producer, header: str, value: str) -> None:
    answer = producer.send("DELETE", "/v1/tables/products/rows/4", None, {header: value})

    assert answer.problem() == (400, "invalid_parameter", header)


def test_an_occurrence_that_is_no_instant_is_named(producer: Producer) -> None:
    headers = {"freshet-occurred-at": "yesterday"}

    answer = producer.send("DELETE", "/v1/tables/products/rows/4", None, headers)

    assert answer.problem() == (422, "invalid_value", "occurred_at")


# --- Throttling and faults ----------------------------------------------------------------------


def test_what_the_stream_did_not_take_can_be_sent_again_as_the_same_change(
    producer: Producer,
) -> None:
    events = [upsert(f"{536365 + at}-1") for at in range(100)]
    producer.stream.throttle_next(10)

    answer = producer.post(events)

    refused = [one for one in answer.changes().outcomes if one.status == "throttled"]
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "2"
    assert refused
    assert len(producer.events) == 100 - len(refused)

    producer.clock.advance(5)
    again = [
        {**events[one.index], "event_id": one.event_id, "version": one.version} for one in refused
    ]
    assert producer.post(again).status == 202
    assert [event.version for event in producer.events] == [micros(EPOCH) + at for at in range(100)]
    assert [event.event_id for event in producer.events] == [f"request0-{at}" for at in range(100)]


def test_a_stream_that_takes_nothing_asks_the_caller_to_slow_down(producer: Producer) -> None:
    producer.stream.throttle_next(1000)

    answer = producer.post([upsert(), 5])

    assert answer.problem()[:2] == (429, "throttled")
    assert ThrottledProblem.model_validate(answer.body).throttled == 1
    assert answer.changes().rejected == 1
    assert answer.headers["Retry-After"] == "2"


def test_a_throttled_row_asks_the_caller_to_slow_down(producer: Producer) -> None:
    producer.stream.throttle_next(1)

    answer = producer.send("PUT", "/v1/tables/products/rows/4", product_row())

    assert answer.problem()[:2] == (429, "throttled")
    assert answer.headers["Retry-After"] == "2"


class Broken:
    """A stream and a store that fail with a given error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, _name: str) -> Any:
        def fail(*_arguments: object, **_named: object) -> None:
            raise self.error

        return fail


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (StreamUnavailableError("prod-changes", "did not answer"), 503, "unavailable"),
        (StorageError("s3://prod-state", "did not answer"), 503, "unavailable"),
        (
            SettingsError("STREAM_NAME", "'prod-changes' does not exist"),
            500,
            "misconfigured",
        ),
    ],
)
def test_a_fault_of_ours_is_a_problem_that_leaks_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, reason: str
) -> None:
    broken = Broken(error)
    handler = build(stream=broken, objects=broken, protector=PROTECTOR, now=StoppedClock())

    answer = handler(http_event("POST", SALES, upsert(), {"idempotency-key": "k"}), None)

    assert Answer(answer["statusCode"], answer["headers"], answer["body"]).problem() == (
        status,
        reason,
        None,
    )
    assert "prod-" not in answer["body"]


def test_a_bug_fails_the_invocation_instead_of_looking_like_an_answer() -> None:
    broken = Broken(ZeroDivisionError("a bug"))
    handler = build(stream=broken, objects=broken, protector=PROTECTOR)

    with pytest.raises(ZeroDivisionError):
        handler(http_event("POST", SALES, upsert(), {}), None)


# --- Idempotency --------------------------------------------------------------------------------


def test_a_resend_with_the_same_key_is_the_same_change_again(producer: Producer) -> None:
    key = {"idempotency-key": "batch-41"}
    body = [upsert(), 5, upsert("536365-2")]

    first = producer.post(body, key)
    producer.clock.advance(3600)
    producer.restart()
    second = producer.post(body, key)

    assert (first.status, first.body) == (second.status, second.body)
    assert len({(event.event_id, event.version) for event in producer.events}) == 2
    assert len(producer.events) == 4


def test_a_resend_packed_otherwise_is_the_same_request(producer: Producer) -> None:
    text = json.dumps(upsert())

    first = producer.post(text, {"idempotency-key": "k"})
    second = producer.post(
        gzip.compress(text.encode()), {"idempotency-key": "k", "content-encoding": "gzip"}
    )

    assert first.body == second.body


def test_an_idempotency_key_used_for_another_body_is_refused(producer: Producer) -> None:
    key = {"idempotency-key": "batch-41"}
    producer.post(upsert(), key)

    answer = producer.post(upsert(quantity=7), key)

    assert answer.problem() == (422, "idempotency_key_reused", "Idempotency-Key")
    assert len(producer.events) == 1


def test_an_idempotency_key_belongs_to_its_table(producer: Producer) -> None:
    key = {"idempotency-key": "k"}

    sale = producer.post(upsert(), key)
    product = producer.send("PUT", "/v1/tables/products/rows/4", product_row(), key)

    assert (sale.status, product.status) == (202, 202)
    assert sale.body["outcomes"][0]["event_id"] != product.body["event_id"]


def test_one_key_for_a_put_and_a_delete_of_the_same_row_is_refused(producer: Producer) -> None:
    key, path = {"idempotency-key": "k"}, "/v1/tables/products/rows/4"
    producer.send("PUT", path, product_row(), key)

    assert producer.send("DELETE", path, None, key).problem()[1] == "idempotency_key_reused"
    assert producer.send("PUT", path, product_row(), key).status == 202


def test_nothing_is_stored_when_every_event_brings_its_own_stamp(producer: Producer) -> None:
    own = {**upsert(), "version": 7, "event_id": "till-7-000123"}

    producer.post([own, own], {"idempotency-key": "k"})
    assert producer.stored == []

    producer.post([own, upsert("536365-2")], {"idempotency-key": "k"})
    assert len(producer.stored) == 1


def test_an_idempotency_record_holds_no_row_and_no_key(producer: Producer) -> None:
    producer.post(upsert(), {"idempotency-key": "customer 17850"})

    (record,) = producer.stored
    assert set(json.loads(record.read_bytes())) == {"fingerprint", "version"}
    assert "17850" not in record.name


def test_of_two_first_requests_at_once_both_get_the_version_of_the_one_that_won(
    tmp_path: Path,
) -> None:
    producers = [Producer(tmp_path) for _ in range(8)]
    for number, one in enumerate(producers):
        one.clock.advance(number)

    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda one: one.post(upsert(), {"idempotency-key": "k"}).body, producers)
        )

    assert answers == [answers[0]] * 8


def test_a_damaged_idempotency_record_is_our_fault_and_retryable(producer: Producer) -> None:
    producer.post(upsert(), {"idempotency-key": "k"})
    producer.stored[0].write_bytes(b"{}")

    assert producer.post(upsert(), {"idempotency-key": "k"}).problem()[:2] == (503, "unavailable")


# --- The rest -----------------------------------------------------------------------------------


def test_requests_from_several_threads_do_not_mix(producer: Producer) -> None:
    """Powertools keeps the current request on a class: until one ends, no other may begin."""

    def send(number: int) -> tuple[int, str]:
        answer = producer.post(upsert(f"{number}-1"))
        return number, answer.body["outcomes"][0]["key"]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            pairs = list(pool.map(send, range(400)))
    finally:
        sys.setswitchinterval(interval)

    assert [key for _, key in pairs] == [f"{number}-1" for number, _ in pairs]
    assert len({event.version for event in producer.events}) == 400


def test_a_request_is_logged_with_counts_and_without_values(
    producer: Producer, capsys: pytest.CaptureFixture[str]
) -> None:
    producer.post([upsert(), 5, upsert("536366-1", customer_id="secret-17850")])

    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    log = json.loads(line)
    assert log["message"] == "changes_accepted"
    assert (log["table"], log["accepted"], log["rejected"], log["throttled"]) == ("sales", 2, 1, 0)
    assert "17850" not in line
    assert captured.out == ""


def test_counts_go_out_as_embedded_metrics_by_table(
    producer: Producer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED")

    producer.post([upsert(), 5, upsert("536366-1")])

    (line,) = capsys.readouterr().out.splitlines()
    metrics = json.loads(line)
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Freshet"
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["table"]]
    assert (metrics["table"], metrics["ChangesAccepted"], metrics["ChangesRejected"]) == (
        "sales",
        [2.0],
        [1.0],
    )
    assert "ChangesThrottled" not in metrics


def test_settings_come_from_the_environment() -> None:
    names = {"STREAM_NAME": "changes", "STATE_BUCKET": "state"}

    assert Settings.from_env(names) == Settings("changes", "state")
    assert Settings.from_env(names | {"PII_SECRET_ARN": " k "}) == Settings("changes", "state", "k")


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "STREAM_NAME"),
        ({"STREAM_NAME": " ", "STATE_BUCKET": "b"}, "STREAM_NAME"),
        ({"STREAM_NAME": "s"}, "STATE_BUCKET"),
    ],
    ids=str,
)
def test_a_setting_that_is_missing_or_wrong_is_named(environ: dict[str, str], name: str) -> None:
    with pytest.raises(SettingsError) as raised:
        Settings.from_env(environ)

    assert raised.value.name == name


def test_five_hundred_events_are_accepted_well_above_ten_thousand_a_second(
    producer: Producer,
) -> None:
    """CPU seconds, so that a busy machine does not count; thirty thousand are usual."""
    event = http_event("POST", SALES, [upsert(f"{at}-1") for at in range(500)], {})
    producer.handler(event, None)

    fastest = min(timed(lambda: producer.handler(event, None)) for _ in range(8))

    assert 500 / fastest > 10_000


def timed(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("http_post_changes", 202),
        ("http_post_changes_ndjson", 207),
        ("http_put_row", 202),
        ("http_patch_row", 202),
        ("http_delete_row", 202),
        ("http_get_tables", 200),
    ],
)
def test_each_recorded_event_gets_its_answer(producer: Producer, name: str, status: int) -> None:
    event = json.loads((EVENTS / f"{name}.json").read_text())

    assert producer.handler(event, None)["statusCode"] == status


def test_an_idempotency_key_used_for_another_version_of_a_row_is_refused(
    producer: Producer,
) -> None:
    """The header stamps the change: with another one it is another change."""
    row, key = sale_row("536365-1"), {"idempotency-key": "one"}
    path = "/v1/tables/sales/rows/536365-1"
    producer.send("PUT", path, row, {**key, "freshet-occurred-at": "2026-11-21T08:30:00Z"})

    answer = producer.send("PUT", path, row, {**key, "freshet-occurred-at": "2026-11-21T09:30:00Z"})

    assert answer.problem() == (422, "idempotency_key_reused", "Idempotency-Key")
