"""The poller against a server that misbehaves over real sockets.

Each fault must end in an error that names the source and says what to do, with no event published
and the state untouched; what passes within the retries must go unnoticed.
"""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from moto import mock_aws

from api_poller import app
from api_poller.app import Handler, build
from api_poller.http import (
    Answer,
    Fetcher,
    HttpLimits,
    SourceAnswerError,
    SourceError,
    SourceRefusedError,
    SourceUnavailableError,
)
from api_poller.settings import Settings
from api_poller.state import StateConflictError, StateStore
from freshet.event import Op
from freshet.objects import DirectoryObjects, StoredObject
from freshet.tables import TABLES
from freshet.testing import MemoryStream, StoppedClock
from freshet.wire import Decoded, decode_record

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
LIMITS = HttpLimits(
    connect_timeout_s=1.0,
    read_timeout_s=0.3,
    answer_s_max=0.6,
    attempts_max=3,
    wait_s_first=0.01,
    wait_s_max=30.0,
    body_bytes_max=100_000,
    unpacked_bytes_max=200_000,
)

Reply = Callable[["Visit"], None]


class Visit(BaseHTTPRequestHandler):
    """One connection to the misbehaving server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for a delayed ACK
    server: Misbehaving

    def do_GET(self) -> None:
        self.server.visits.append(self.path)
        faults = self.server.faults
        (faults.popleft() if faults else self.server.healthy)(self)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """A well-formed answer; header names are written with underscores."""
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def raw(self, data: bytes) -> None:
        """Exactly these bytes, then the end of the connection."""
        self.close_connection = True
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep quiet."""


class Misbehaving(ThreadingHTTPServer):
    """Serves `items` and `rates`, after the faults that are queued."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.faults: deque[Reply] = deque()
        self.visits: list[str] = []
        self.items: list[dict[str, Any]] = [item(number) for number in range(7)]
        self.rates = [("USD", "2026-11-19", "1.11"), ("USD", "2026-11-20", "1.12")]
        self.done = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def healthy(self, visit: Visit) -> None:
        parts = urlsplit(visit.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if "/data/EXR/" in parts.path:
            visit.answer(200, self._csv(query).encode(), Content_Type="text/csv")
        else:
            offset, limit = int(query["offset"]), int(query["limit"])
            visit.answer(200, json.dumps(self.items[offset : offset + limit]).encode())

    def _csv(self, query: dict[str, str]) -> str:
        lines = [
            f"EXR.D.{currency}.EUR.SP00.A,{currency},{day},{value}"
            for currency, day, value in self.rates
            if query["startPeriod"] <= day <= query["endPeriod"]
        ]
        return "\r\n".join(["KEY,CURRENCY,TIME_PERIOD,OBS_VALUE", *lines, ""]) if lines else ""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up on a fault is no news."""


def item(number: int, price: int = 10) -> dict[str, Any]:
    return {
        "id": number,
        "title": f"Product {number}",
        "slug": f"product-{number}",
        "price": price,
        "description": "",
        "category": {"id": 1, "name": "Clothes"},
        "images": [],
        "creationAt": "2026-11-20T21:41:12.000Z",
        "updatedAt": "2026-11-20T21:41:12.000Z",
    }


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with Misbehaving() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.done.set()
        made.shutdown()
        thread.join(timeout=5)


class Rig:
    """The deployed handler over a real fetcher, a folder and a memory stream."""

    def __init__(self, server: Misbehaving, folder: Path) -> None:
        self.server, self.waits, self.stream = server, list[float](), MemoryStream()
        self.clock = StoppedClock(NOW)
        self.http = Fetcher(LIMITS, now=self.clock, sleep=self.waits.append, jitter=lambda: 0.5)
        self.objects = DirectoryObjects(folder)
        self.handle = self.handler()

    def handler(self, http: Fetcher | None = None) -> Handler:
        settings = Settings.from_env(
            {
                "STREAM_NAME": "changes",
                "STATE_BUCKET": "state",
                "PLATZI_URL": f"{self.server.url}/api/v1",
                "ECB_URL": f"{self.server.url}/service",
                "ECB_START": "2026-11-01",
                "PAGE_ROWS": "3",
            }
        )
        return build(
            settings,
            stream=self.stream,
            objects=self.objects,
            http=http or self.http,
            now=self.clock,
        )

    def poll(self, source: str = "platzi") -> dict[str, Any]:
        self.clock.advance(60)
        return self.handle({"source": source}, None)

    def fetch(self) -> Answer:
        return self.http.get("platzi", f"{self.server.url}/?offset=0&limit=1", accept="text/json")

    def remembered(self) -> dict[str, StoredObject]:
        return {key: self.objects.get(key) for key in self.objects.list("")}


@pytest.fixture
def rig(server: Misbehaving, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    made = Rig(server, tmp_path)
    yield made
    made.http.close()


def status(code: int, **headers: str) -> Reply:
    return lambda visit: visit.answer(code, b'{"message":"no"}', **headers)


def raw(data: bytes) -> Reply:
    return lambda visit: visit.raw(data)


def body(data: bytes, **headers: str) -> Reply:
    return lambda visit: visit.answer(200, data, **headers)


def silent(visit: Visit) -> None:
    visit.server.done.wait(timeout=5)
    visit.close_connection = True


def dripping(visit: Visit) -> None:
    visit.send_response(200)
    visit.send_header("Content-Length", "1000")
    visit.end_headers()
    while not visit.server.done.wait(timeout=0.05):
        visit.wfile.write(b" ")


ARRAY = json.dumps([item(0), item(1), item(2)]).encode()
CUT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n" + ARRAY
CUT_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + ARRAY[:20]
CUT_BETWEEN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"
UNMEASURED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + ARRAY[:-20]
HTML = b"<!doctype html><title>Maintenance</title>"
BOMB = gzip.compress(b" " * 10_000_000)

FAULTS: dict[str, tuple[Reply, type[Exception], str]] = {
    "500": (status(500), SourceUnavailableError, "answers 500"),
    "502": (status(502), SourceUnavailableError, "answers 502"),
    "503": (status(503), SourceUnavailableError, "answers 503"),
    "408": (status(408), SourceUnavailableError, "answers 408"),
    "429": (status(429), SourceUnavailableError, "answers 429"),
    "429, come back soon": (
        status(429, Retry_After="7"),
        SourceUnavailableError,
        "answers 429",
    ),
    "429, come back tomorrow": (
        status(429, Retry_After="86400"),
        SourceUnavailableError,
        "86400 s: poll less often",
    ),
    "silence": (silent, SourceUnavailableError, "too slow"),
    "drip": (dripping, SourceUnavailableError, r"took over 0\.6 s"),
    "hang-up": (raw(b""), SourceUnavailableError, "broke off"),
    "no HTTP": (raw(b"\x00\x01\x02\r\n\r\n"), SourceUnavailableError, "broke off"),
    "truncated": (raw(CUT), SourceUnavailableError, "broke off"),
    "truncated chunk": (raw(CUT_CHUNK), SourceUnavailableError, "broke off"),
    "truncated between chunks": (raw(CUT_BETWEEN_CHUNKS), SourceUnavailableError, "broke off"),
    "truncated, length unknown": (raw(UNMEASURED), SourceAnswerError, "not JSON"),
    "truncated gzip": (
        body(gzip.compress(ARRAY)[:-9], Content_Encoding="gzip"),
        SourceUnavailableError,
        "gzip",
    ),
    "no gzip": (body(ARRAY, Content_Encoding="gzip"), SourceUnavailableError, "broken gzip"),
    "zip bomb": (body(BOMB, Content_Encoding="gzip"), SourceAnswerError, "more than 200000"),
    "other encoding": (body(ARRAY, Content_Encoding="br"), SourceAnswerError, "'br'"),
    "flood": (body(b" " * 300_000), SourceAnswerError, "more than 100000"),
    "HTML": (body(HTML, Content_Type="text/html"), SourceAnswerError, "HTML"),
    "HTML called JSON": (body(b"\n " + HTML), SourceAnswerError, "HTML"),
    "object": (body(b'{"items":[]}'), SourceAnswerError, "something other than a JSON array"),
    "empty body": (body(b""), SourceAnswerError, "not JSON"),
    "204": (lambda visit: visit.answer(204, b""), SourceAnswerError, "not JSON"),
    "401": (status(401), SourceRefusedError, "credentials"),
    "403": (status(403), SourceRefusedError, "credentials"),
    "404": (status(404), SourceRefusedError, "correct the source's URL"),
    "400": (status(400), SourceRefusedError, "answers 400"),
    "304": (status(304), SourceRefusedError, "answers 304"),
    "another host": (
        status(302, Location="http://localhost:1/api/v1/products"),
        SourceRefusedError,
        "redirects to http://localhost:1/",
    ),
    "another scheme": (status(302, Location="file:///etc/passwd"), SourceRefusedError, "redirects"),
    "half": (body(ARRAY[: len(ARRAY) // 2]), SourceAnswerError, "not JSON"),
    "nowhere": (status(301), SourceRefusedError, "redirects"),
}


@pytest.mark.parametrize("page", [0, 3], ids=["first page", "last page"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_any_page_publishes_nothing_and_says_what_to_do(
    fault: str, page: int, rig: Rig
) -> None:
    rig.poll()
    told, remembered = len(rig.stream.records), rig.remembered()
    reply, expected, message = FAULTS[fault]
    rig.server.items = [item(number, price=99) for number in range(1, 7)]
    rig.server.faults.extend([rig.server.healthy] * page + [reply] * LIMITS.attempts_max)

    with pytest.raises(expected, match=message) as raised:
        rig.poll()

    error: Any = raised.value
    assert error.source == "platzi"
    assert f"source 'platzi' at {rig.server.url}/api/v1/products" in str(error)
    assert error.advice in str(error)
    assert len(rig.stream.records) == told
    assert rig.remembered() == remembered
    rig.server.faults.clear()
    assert rig.poll()["updated"] == 6


@pytest.mark.parametrize(
    "fault",
    [
        name
        for name, (_, error, _) in FAULTS.items()
        if error is SourceUnavailableError and name != "429, come back tomorrow"
    ],
)
def test_what_passes_within_the_retries_goes_unnoticed(fault: str, rig: Rig) -> None:
    rig.server.faults.append(FAULTS[fault][0])

    report = rig.poll()

    assert (report["created"], report["complete"]) == (7, True)
    assert len(rig.waits) == 1


@pytest.mark.parametrize(
    "fault", ["500", "silence", "truncated", "half", "HTML", "404", "drip", "403"]
)
def test_a_fault_of_the_bank_leaves_its_watermark(fault: str, rig: Rig) -> None:
    first = rig.poll("ecb")
    remembered = rig.remembered()
    rig.server.rates.append(("USD", "2026-11-21", "1.13"))
    half = body(b"KEY,CURRENCY,TIME_PERIOD,OBS_VALUE\r\nEXR,USD,2026-11-21,1.")
    reply = half if fault == "half" else FAULTS[fault][0]
    rig.server.faults.extend([reply] * LIMITS.attempts_max)

    with pytest.raises((SourceError, SourceRefusedError), match="source 'ecb' at http://127"):
        rig.poll("ecb")

    assert rig.remembered() == remembered
    rig.server.faults.clear()
    assert (first["watermark"], rig.poll("ecb")["watermark"]) == ("2026-11-20", "2026-11-21")


def test_an_empty_answer_of_the_bank_changes_nothing(rig: Rig) -> None:
    rig.poll("ecb")
    remembered = rig.remembered()
    rig.server.faults.append(body(b"", Content_Type="text/csv"))

    report = rig.poll("ecb")

    assert (report["listed"], report["published"]) == (0, 0)
    assert report["watermark"] == "2026-11-20"
    assert rig.remembered() == remembered


def test_a_server_that_is_down_is_named(rig: Rig, tmp_path: Path) -> None:
    rig.http.close()
    rig.server.server_close()

    with pytest.raises(SourceUnavailableError, match=r"'platzi'.*cannot be reached.*3 attempt"):
        rig.poll()

    assert rig.remembered() == {}


@pytest.mark.parametrize("asked_s", [5, 30])
def test_retry_after_in_seconds_is_waited_for(asked_s: int, rig: Rig) -> None:
    rig.server.faults.append(status(429, Retry_After=str(asked_s)))

    rig.fetch()

    assert rig.waits == [asked_s]


def test_retry_after_as_a_date_is_waited_for(rig: Rig) -> None:
    date = format_datetime(NOW + timedelta(seconds=12), usegmt=True)
    rig.server.faults.append(status(503, Retry_After=date))

    rig.fetch()

    assert rig.waits == [12]


@pytest.mark.parametrize("value", ["soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_retry_after_that_says_nothing_useful_is_backed_off_from(value: str, rig: Rig) -> None:
    rig.server.faults.append(status(429, Retry_After=value))

    rig.fetch()

    assert rig.waits == [pytest.approx(0.0075)]


def test_a_source_that_wants_a_longer_pause_than_a_poll_has_is_left_at_once(rig: Rig) -> None:
    rig.server.faults.append(status(429, Retry_After="31"))

    with pytest.raises(SourceUnavailableError, match="come back in 31 s"):
        rig.fetch()

    assert (rig.waits, len(rig.server.visits)) == ([], 1)


def test_pauses_double_and_are_bounded_in_number(rig: Rig) -> None:
    rig.server.faults.extend([status(500)] * 9)

    with pytest.raises(SourceUnavailableError):
        rig.fetch()

    assert rig.waits == [pytest.approx(0.0075), pytest.approx(0.015)]
    assert len(rig.server.visits) == LIMITS.attempts_max


def test_redirects_within_the_host_are_followed_and_circles_are_not(rig: Rig) -> None:
    rig.server.faults.append(status(308, Location="/moved?offset=0&limit=1"))
    assert len(json.loads(rig.fetch().body)) == 1

    rig.server.faults.extend([status(308, Location="/moved?offset=0&limit=1")] * 9)
    with pytest.raises(SourceRefusedError, match="circle"):
        rig.fetch()

    assert len(rig.server.visits) == 2 + LIMITS.redirects_max + 1


def test_gzip_is_asked_for_and_unpacked(rig: Rig) -> None:
    asked: list[str | None] = []

    def packed(visit: Visit) -> None:
        asked.append(visit.headers["Accept-Encoding"])
        visit.answer(200, gzip.compress(ARRAY), Content_Encoding="gzip")

    rig.server.faults.append(packed)

    assert rig.fetch().body == ARRAY
    assert asked == ["gzip"]


def test_zlib_streams_are_not_taken_for_gzip(rig: Rig) -> None:
    rig.server.faults.append(body(zlib.compress(ARRAY), Content_Encoding="deflate"))

    with pytest.raises(SourceAnswerError, match="'deflate'"):
        rig.fetch()


def test_chunked_answers_are_whole_answers(rig: Rig) -> None:
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n"
    rig.server.faults.append(raw(data))

    answer = rig.fetch()

    assert (answer.body, answer.measured) == (b"[]", True)


def test_an_answer_that_ends_with_the_connection_is_known_as_such(rig: Rig) -> None:
    rig.server.faults.append(raw(b"HTTP/1.1 200 OK\r\n\r\n[]"))

    answer = rig.fetch()

    assert (answer.body, answer.measured) == (b"[]", False)


def test_one_connection_serves_all_pages(rig: Rig) -> None:
    accepted: list[object] = []
    connect = rig.server.get_request

    def counted() -> Any:
        accepted.append(None)
        return connect()

    rig.server.get_request = counted  # type: ignore[method-assign]

    rig.poll()

    assert len(rig.server.visits) > 2
    assert len(accepted) == 1


def test_the_deployed_handler_polls_into_kinesis_and_s3(
    server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "POWERTOOLS_METRICS_DISABLED": "true",
        "STREAM_NAME": "changes",
        "STATE_BUCKET": "freshet-state",
        "STATE_PREFIX": "prod",
        "PLATZI_URL": f"{server.url}/api/v1/",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    app._handler.cache_clear()
    with mock_aws():
        kinesis, s3 = boto3.client("kinesis"), boto3.client("s3")
        kinesis.create_stream(StreamName="changes", ShardCount=1)
        s3.create_bucket(Bucket="freshet-state")

        reports = [app.handler({"source": "platzi"}, None) for _ in range(2)]

        shard = kinesis.describe_stream(StreamName="changes")["StreamDescription"]["Shards"][0]
        iterator = kinesis.get_shard_iterator(
            StreamName="changes", ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        records = kinesis.get_records(ShardIterator=iterator)["Records"]
        objects = s3.list_objects_v2(Bucket="freshet-state")["Contents"]
    app._handler.cache_clear()

    assert [report["published"] for report in reports] == [7, 0]
    decoded = [part for record in records for part in decode_record(record["Data"], TABLES)]
    assert len(decoded) == 7
    assert all(isinstance(part, Decoded) for part in decoded)
    assert [stored["Key"] for stored in objects] == ["prod/pollers/platzi/state.json.zst"]


def test_of_two_polls_at_once_one_publishes_and_the_other_gives_way(rig: Rig) -> None:
    """Scheduler may fire twice: the second poll runs whole while the first waits for a page."""
    second = Fetcher(LIMITS, now=rig.clock)
    reports: list[dict[str, Any]] = []

    def meanwhile(visit: Visit) -> None:
        reports.append(rig.handler(second)({"source": "platzi"}, None))
        visit.server.healthy(visit)

    rig.http = Fetcher(HttpLimits(attempts_max=1), now=rig.clock)
    rig.handle = rig.handler()
    rig.server.faults.extend([rig.server.healthy, meanwhile])

    with pytest.raises(StateConflictError, match="another poll"):
        rig.poll()
    second.close()

    assert [report["created"] for report in reports] == [7]
    events = rig.stream.events()
    assert len(events) == 7
    assert {event.op for event in events} == {Op.READ}
    state, _ = StateStore(rig.objects).load("platzi")
    assert len(state.rows) == 7
