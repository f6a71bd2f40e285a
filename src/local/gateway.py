"""API Gateway's HTTP API on the loopback: requests become payload-2.0 events, replies become HTTP
responses.

The two translations are pure functions, so that their edge cases (cookies, compressed bodies,
repeated parameters, decoded paths) are tested without a socket. Only the `$default` route and stage
exist, as in the template; nobody is asked to sign, so `requestContext.authorizer` is absent.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qsl

import waitress

from local.embedded import ACCOUNT_ID, HOST, listening_socket
from local.invocation import PAYLOAD_BYTES_MAX, Handler, LocalFunction, local_function

# HTTP API quota: 10 MB of request body.
BODY_BYTES_MAX = 10 * 1024 * 1024
# Waitress refuses larger bodies while reading; between the limits we answer as API Gateway does.
BODY_BYTES_READ_MAX = 4 * BODY_BYTES_MAX
THREADS = 8
CLOSE_DEADLINE_S = 5.0
API_ID = "local"
# The API's one catch-all route: the function routes by method and path.
ROUTE_KEY = "$default"
TEXT_TYPES = re.compile(
    r"text/.*|application/(json|xml|javascript|x-www-form-urlencoded|x-ndjson|yaml|.*\+json|.*\+xml)",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)

Environ = Mapping[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What goes back over HTTP."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def event_of_request(
    environ: Environ, body: bytes, *, now: datetime, request_id: str
) -> dict[str, Any]:
    """Translate a WSGI request into a payload-2.0 event; members without content are absent."""
    path, headers = _decoded_path(environ), _headers(environ)
    cookies = [part.strip() for part in headers.pop("cookie", "").split(";") if part.strip()]
    text, is_base64 = _body_text(body, headers)
    optional = {
        "cookies": cookies,
        "queryStringParameters": _query_parameters(environ["QUERY_STRING"]),
        "body": text,
    }
    return {
        "version": "2.0",
        "routeKey": ROUTE_KEY,
        "rawPath": path,
        "rawQueryString": environ["QUERY_STRING"],
        "headers": headers,
        **{name: value for name, value in optional.items() if value},
        "requestContext": _request_context(environ, headers, path, now=now, request_id=request_id),
        "isBase64Encoded": is_base64,
    }


def _request_context(
    environ: Environ,
    headers: Mapping[str, str],
    path: str,
    *,
    now: datetime,
    request_id: str,
) -> dict[str, Any]:
    domain = headers.get("host", HOST)
    return {
        "accountId": ACCOUNT_ID,
        "apiId": API_ID,
        "domainName": domain,
        "domainPrefix": domain.split(".", 1)[0].split(":", 1)[0],
        "http": {
            "method": environ["REQUEST_METHOD"],
            "path": path,
            "protocol": environ["SERVER_PROTOCOL"],
            "sourceIp": environ["REMOTE_ADDR"],
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": request_id,
        "routeKey": ROUTE_KEY,
        "stage": "$default",
        "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
        "timeEpoch": int(now.timestamp() * 1000),
    }


def _decoded_path(environ: Environ) -> str:
    """The path as HTTP APIs deliver it: percent-decoded (REST APIs keep the encoding)."""
    path: str = environ["PATH_INFO"]  # WSGI: bytes as Latin-1
    return path.encode("latin-1").decode("utf-8", "replace")


def _headers(environ: Environ) -> dict[str, str]:
    """Lower-case names (the server has joined repeats) plus what the AWS edge adds."""
    headers = {
        name.removeprefix("HTTP_").replace("_", "-").lower(): value
        for name, value in environ.items()
        if name.startswith("HTTP_") or (name in {"CONTENT_TYPE", "CONTENT_LENGTH"} and value)
    }
    return headers | {
        "x-forwarded-for": environ["REMOTE_ADDR"],
        "x-forwarded-port": environ["SERVER_PORT"],
        "x-forwarded-proto": environ["wsgi.url_scheme"],
    }


def _query_parameters(query: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        parameters[name] = f"{parameters[name]},{value}" if name in parameters else value
    return parameters


def _body_text(body: bytes, headers: Mapping[str, str]) -> tuple[str, bool]:
    """The body as text; as base64 if compressed, not declared as text, or not UTF-8."""
    media_type = headers.get("content-type", "").split(";", 1)[0].strip()
    compressed = headers.get("content-encoding", "identity") not in {"", "identity"}
    if body and not compressed and TEXT_TYPES.fullmatch(media_type):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass
    return base64.b64encode(body).decode("ascii"), bool(body)


def reply_of_response(response: Any) -> HttpReply:
    """Translate a function's response; one without `statusCode` is the body of a 200 JSON reply.

    Raises ValueError or TypeError for a response API Gateway cannot use (it answers 500).
    """
    if not isinstance(response, dict) or "statusCode" not in response:
        return _json_reply(200, response)
    headers = {
        str(name).lower(): _header_value(value)
        for name, value in (response.get("headers") or {}).items()
    }
    headers.setdefault("content-type", "text/plain;charset=utf-8")
    cookies = [("set-cookie", _header_value(cookie)) for cookie in response.get("cookies") or []]
    headers.pop("content-length", None)  # ours is computed
    return HttpReply(
        _status(response["statusCode"]), (*headers.items(), *cookies), _reply_body(response)
    )


def _reply_body(response: Mapping[str, Any]) -> bytes:
    body = response.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise TypeError(f"body must be a string, not {type(body).__name__}; return json.dumps(...)")
    if not response.get("isBase64Encoded"):
        return body.encode()
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError("isBase64Encoded is true but body is not base64") from error


def _status(value: Any) -> int:
    status = int(value)
    if not 100 <= status <= 599:
        raise ValueError(f"statusCode {status} is outside 100-599")
    return status


def _header_value(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\r" in text or "\n" in text:
        raise ValueError("a header value may not contain line breaks")
    return text


def _json_reply(status: int, value: Any) -> HttpReply:
    return HttpReply(status, (("content-type", "application/json"),), json.dumps(value).encode())


class Gateway:
    """Serves one function over HTTP on `host`:`port` (0: a free port) from `start` to `stop`.

    A handler that raises is logged with its trace and answered with 500, as API Gateway does.
    """

    def __init__(
        self,
        function: Handler | LocalFunction,
        host: str = HOST,
        port: int = 0,
    ) -> None:
        self._function = local_function(function, "producer")
        self._host, self._port = host, port
        self._server: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Serve in the background; LocalRuntimeError when the port cannot be taken."""
        listening = listening_socket(
            self._host, self._port, remedy="choose another port with --port"
        )
        self._server = waitress.create_server(
            self._application,
            sockets=[listening],
            threads=THREADS,
            max_request_body_size=BODY_BYTES_READ_MAX,
            clear_untrusted_proxy_headers=True,
            ident="",
        )
        self._thread = threading.Thread(target=self._serve, name="gateway", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the requests under way and free the port; safe to call twice."""
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.task_dispatcher.shutdown(timeout=CLOSE_DEADLINE_S)
        run_in_loop(server, lambda: _close(server))
        self._thread.join(CLOSE_DEADLINE_S)

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash."""
        return f"http://{self._host}:{self._server.effective_port}"

    def _serve(self) -> None:
        self._server.run()

    def _application(self, environ: Environ, start_response: StartResponse) -> list[bytes]:
        reply = self._reply(environ, environ["wsgi.input"].read())
        start_response(
            f"{reply.status} {_reason(reply.status)}",
            [
                *reply.headers,
                ("apigw-requestid", uuid.uuid4().hex[:16]),
                ("content-length", str(len(reply.body))),
            ],
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [reply.body]

    def _reply(self, environ: Environ, body: bytes) -> HttpReply:
        if len(body) > BODY_BYTES_MAX:
            return _json_reply(413, {"message": "Request Entity Too Large"})
        request_id = uuid.uuid4().hex
        event = event_of_request(environ, body, now=datetime.now(UTC), request_id=request_id)
        if len(json.dumps(event)) > PAYLOAD_BYTES_MAX:
            return _json_reply(413, {"message": "Request Entity Too Large"})
        try:
            return reply_of_response(self._function.invoke(event, request_id=request_id))
        except Exception:
            logger.exception(
                "function_failed function=%s request_id=%s", self._function.name, request_id
            )
            return _json_reply(500, {"message": "Internal Server Error"})


def run_in_loop(server: Any, closing: Callable[[], None]) -> None:
    """Have a waitress server's own thread run `closing`, which may close the trigger itself.

    `pull_trigger` hands the call over first and writes to the trigger's pipe after: another pull in
    between runs the call, and the write meets a closed pipe. Under the lock the write comes first.
    """
    trigger = server.trigger
    with trigger.lock:
        trigger.thunks.append(closing)
        trigger._physical_pull()  # noqa: SLF001


def _close(server: Any) -> None:
    """Runs in the server's own thread: its loop ends when no socket is left."""
    for channel in list(server.active_channels.values()):
        channel.close_when_flushed = True
    server.close()


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
