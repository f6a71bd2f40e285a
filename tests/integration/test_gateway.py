"""Requests over a real socket become the events API Gateway sends; replies come back as HTTP."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.utilities.typing import LambdaContext

from local.embedded import LocalRuntimeError
from local.gateway import BODY_BYTES_MAX, Gateway, run_in_loop


class Recorder:
    """A function that remembers the events it got and answers what it was told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.response: Any = {"statusCode": 204}

    def __call__(self, event: dict[str, Any], context: Any) -> Any:
        self.events.append(event)
        if isinstance(self.response, Exception):
            raise self.response
        return self.response


@pytest.fixture
def function() -> Recorder:
    return Recorder()


@pytest.fixture
def gateway(function: Recorder) -> Iterator[Gateway]:
    with Gateway(function) as running:
        yield running


class Reply:
    """Status, headers and body of an HTTP response, read whole."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = response.status, response.headers, response.read()


def send(
    gateway: Gateway,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: list[tuple[str, str]] | None = None,
) -> Reply:
    connection = http.client.HTTPConnection(urlsplit(gateway.url).netloc, timeout=10)
    try:
        connection.putrequest(method, target)
        for name, value in headers or []:
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        return Reply(connection.getresponse())
    finally:
        connection.close()


def test_a_request_becomes_the_documented_event(gateway: Gateway, function: Recorder) -> None:
    headers = [
        ("Content-Type", "application/json"),
        ("User-Agent", "test/1"),
        ("Cookie", "c1=v1; c2=v2"),
        ("X-Tag", "a"),
        ("X-Tag", "b"),
    ]

    send(gateway, "POST", "/events/sales?dry=1&tag=a&tag=b%20c&none=", b'{"invoice":"1"}', headers)

    (event,) = function.events
    context = event.pop("requestContext")
    netloc = urlsplit(gateway.url).netloc
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/events/sales",
        "rawQueryString": "dry=1&tag=a&tag=b%20c&none=",
        "cookies": ["c1=v1", "c2=v2"],
        "headers": {
            "accept-encoding": "identity",
            "content-length": "15",
            "content-type": "application/json",
            "host": netloc,
            "user-agent": "test/1",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-port": netloc.split(":")[1],
            "x-forwarded-proto": "http",
            "x-tag": "a, b",
        },
        "queryStringParameters": {"dry": "1", "tag": "a,b c", "none": ""},
        "body": '{"invoice":"1"}',
        "isBase64Encoded": False,
    }
    assert context["http"] == {
        "method": "POST",
        "path": "/events/sales",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "test/1",
    }
    assert (context["routeKey"], context["stage"]) == ("$default", "$default")
    assert context["timeEpoch"] > 0
    assert {"accountId", "apiId", "domainName", "domainPrefix", "requestId", "time"} < set(context)


def test_members_without_content_are_absent(gateway: Gateway, function: Recorder) -> None:
    send(gateway, "GET", "/elsewhere")

    (event,) = function.events
    assert event["routeKey"] == "$default"
    assert not {"cookies", "queryStringParameters", "pathParameters", "body"} & set(event)
    assert event["isBase64Encoded"] is False


def test_the_path_is_decoded_and_left_to_the_function_to_route(
    gateway: Gateway, function: Recorder
) -> None:
    send(gateway, "POST", "/events/a%20b%C3%A9")

    (event,) = function.events
    assert event["rawPath"] == event["requestContext"]["http"]["path"] == "/events/a bé"
    assert "pathParameters" not in event


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (
            gzip.compress(b"{}", mtime=0),
            [("Content-Type", "application/json"), ("Content-Encoding", "gzip")],
        ),
        (b"\xff\xfe", [("Content-Type", "application/octet-stream")]),
        (b"\xff\xfe", [("Content-Type", "application/json")]),
        (b"plain", []),
    ],
)
def test_a_body_that_is_not_text_arrives_as_base64(
    gateway: Gateway, function: Recorder, body: bytes, headers: list[tuple[str, str]]
) -> None:
    send(gateway, "POST", "/x", body, headers)

    (event,) = function.events
    assert event["isBase64Encoded"] is True
    assert base64.b64decode(event["body"]) == body


def test_a_full_reply_goes_back_with_headers_cookies_and_binary_body(
    gateway: Gateway, function: Recorder
) -> None:
    function.response = {
        "statusCode": 207,
        "headers": {"Content-Type": "image/png", "X-N": 1, "X-Flag": True},
        "cookies": ["a=1; Secure", "b=2"],
        "body": base64.b64encode(b"\x89PNG").decode(),
        "isBase64Encoded": True,
    }

    reply = send(gateway, "GET", "/x")

    assert (reply.status, reply.body) == (207, b"\x89PNG")
    assert (reply.headers["content-type"], reply.headers["x-n"]) == ("image/png", "1")
    assert reply.headers["x-flag"] == "true"
    assert reply.headers.get_all("set-cookie") == ["a=1; Secure", "b=2"]


@pytest.mark.parametrize("response", [{"ok": True}, "hello", None, [1, 2]])
def test_a_reply_without_status_is_the_body_of_a_200_json_reply(
    gateway: Gateway, function: Recorder, response: Any
) -> None:
    function.response = response

    reply = send(gateway, "GET", "/x")

    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert json.loads(reply.body) == response


@pytest.mark.parametrize(
    "response",
    [
        RuntimeError("boom"),
        {"statusCode": "many"},
        {"statusCode": 999},
        {"statusCode": 200, "body": {"not": "text"}},
        {"statusCode": 200, "body": "!!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": {"x": "a\r\nset-cookie: evil=1"}},
        {"statusCode": 200, "body": "x" * 7_000_000},
        {"not json": {1, 2}},
    ],
)
def test_a_failing_function_is_a_500_and_the_gateway_lives_on(
    gateway: Gateway, function: Recorder, response: Any
) -> None:
    function.response = response

    reply = send(gateway, "GET", "/x")

    assert (reply.status, json.loads(reply.body)) == (500, {"message": "Internal Server Error"})
    function.response = {"statusCode": 200}
    assert send(gateway, "GET", "/x").status == 200


@pytest.mark.parametrize(
    ("size", "content_type"),
    [
        (BODY_BYTES_MAX + 1, "application/json"),  # HTTP API quota
        (6 * 1024 * 1024, "application/json"),  # Lambda payload
        (5 * 1024 * 1024, "application/octet-stream"),  # Lambda payload once in base64
    ],
)
def test_a_request_above_a_limit_is_413_and_never_reaches_the_function(
    gateway: Gateway, function: Recorder, size: int, content_type: str
) -> None:
    reply = send(gateway, "POST", "/x", b"1" * size, [("Content-Type", content_type)])

    assert (reply.status, json.loads(reply.body)) == (413, {"message": "Request Entity Too Large"})
    assert function.events == []


def test_a_request_just_below_the_payload_limit_is_served(
    gateway: Gateway, function: Recorder
) -> None:
    body = b"1" * (6 * 1024 * 1024 - 4096)

    reply = send(gateway, "POST", "/x", body, [("Content-Type", "application/json")])

    assert reply.status == 204
    assert len(function.events[0]["body"]) == len(body)


def test_calls_of_one_function_never_overlap() -> None:
    running, overlaps, lock = [0], [0], threading.Lock()

    def slow(event: dict[str, Any], context: Any) -> dict[str, Any]:
        with lock:
            running[0] += 1
            overlaps[0] = max(overlaps[0], running[0])
        threading.Event().wait(0.01)
        with lock:
            running[0] -= 1
        assert context.get_remaining_time_in_millis() > 0
        return {"statusCode": 200}

    with Gateway(slow) as gateway:
        threads = [threading.Thread(target=send, args=(gateway, "GET", "/")) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)

    assert overlaps == [1]


def test_a_powertools_handler_runs_as_it_is_deployed() -> None:
    app, powertools_logger = APIGatewayHttpResolver(), Logger(service="test", level="CRITICAL")

    @app.get("/rows/<key>")
    def get_row(key: str) -> dict[str, str]:
        return {"key": key, "request": app.lambda_context.aws_request_id}

    @powertools_logger.inject_lambda_context
    def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        return app.resolve(event, context)

    with Gateway(handler) as gateway:
        found, missing = send(gateway, "GET", "/rows/a%20b"), send(gateway, "GET", "/nowhere")

    assert (found.status, missing.status) == (200, 404)
    assert json.loads(found.body)["key"] == "a b"
    assert json.loads(found.body)["request"]


def test_stopping_frees_the_port_although_a_client_keeps_its_connection(
    function: Recorder,
) -> None:
    gateway = Gateway(function)
    gateway.start()
    port = urlsplit(gateway.url).port
    connection = http.client.HTTPConnection(f"127.0.0.1:{port}", timeout=10)
    connection.request("GET", "/")
    connection.getresponse().read()

    gateway.stop()
    gateway.stop()
    connection.close()

    with Gateway(function, port=port or 0) as again:
        assert send(again, "GET", "/").status == 204


def test_a_taken_port_is_one_clear_line_with_the_flag_to_change(function: Recorder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(LocalRuntimeError, match=rf"127.0.0.1:{port} .*--port"):
            Gateway(function, port=port).start()


def test_a_pull_in_between_cannot_close_the_pipe_before_the_stop_has_written() -> None:
    """Seen in CI: another pull ran the closing call, and the stop wrote to a closed pipe."""
    pulled_by_another = threading.Event()

    class Trigger:
        lock = threading.Lock()
        thunks: ClassVar[list[Any]] = []
        is_open = True

        def _physical_pull(self) -> None:
            threading.Thread(target=self.run_thunks).start()
            pulled_by_another.wait(0.05)
            assert self.is_open

        def run_thunks(self) -> None:
            with self.lock:
                for thunk in self.thunks:
                    thunk()
            pulled_by_another.set()

    trigger = Trigger()
    run_in_loop(SimpleNamespace(trigger=trigger), lambda: setattr(trigger, "is_open", False))

    assert pulled_by_another.wait(5)
    assert not trigger.is_open
