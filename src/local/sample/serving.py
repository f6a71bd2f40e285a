"""Serves the sample sources over real HTTP on a free loopback port, and breaks them on request.

A source is a function from request to reply; everything that can go wrong between a source and a
poller (errors, throttling, cut bodies, silence) is done here, once, for every source.
"""

import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import parse_qsl

from waitress.server import create_server
from waitress.wasyncore import close_all

from local.gateway import run_in_loop

# A poller reads a source from a few threads at most.
SERVER_THREADS = 4
STOP_TIMEOUT_S = 10.0
SERVER_ERROR = b'{"statusCode":500,"message":"Internal server error"}'
THROTTLED = b'{"statusCode":429,"message":"ThrottlerException: Too Many Requests"}'
HTML_PAGE = b"<!doctype html><html><body><h1>Down for maintenance</h1></body></html>"


class Fault(StrEnum):
    """What a source does instead of answering.

    TRUNCATED is half a body with the right `Content-Length`; CUT promises the whole body and
    closes the connection half way; EMPTY and HTML are status 200; SLOW answers correctly, but
    late.
    """

    ERROR = "500"
    THROTTLED = "429"
    HTML = "html"
    TRUNCATED = "truncated"
    CUT = "cut"
    EMPTY = "empty"
    SLOW = "slow"


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; `path` is percent-decoded, header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP reply. `promised_bytes` overrides the true `Content-Length`."""

    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    promised_bytes: int | None = None


@dataclass(slots=True)
class _PlannedFault:
    kind: Fault
    wait_requests: int
    times: int
    delay_s: float
    retry_after_s: int


@dataclass(slots=True)
class _Faults:
    planned: list[_PlannedFault] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> _PlannedFault | None:
        with self.lock:
            if not self.planned:
                return None
            fault = self.planned[0]
            if fault.wait_requests > 0:
                fault.wait_requests -= 1
                return None
            fault.times -= 1
            if fault.times == 0:
                self.planned.pop(0)
            return fault


class SampleServer:
    """A source on `http://127.0.0.1:<free port>`; a context manager that starts and stops it.

    `requests_served` counts every request, failed ones included.
    """

    def __init__(self, reply: Callable[[Request], Reply], *, base_path: str, port: int = 0) -> None:
        self._reply, self._base_path, self._port = reply, base_path, port
        self._faults = _Faults()
        self._stopping = threading.Event()
        self._server: Any = None
        self._thread: threading.Thread | None = None
        self.requests_served = 0

    @property
    def url(self) -> str:
        """Base URL, without a trailing slash; only while started."""
        if self._server is None:
            raise RuntimeError("the server has no URL before start()")
        return f"http://127.0.0.1:{self._server.effective_port}{self._base_path}"

    def start(self) -> Self:
        """Listen and serve until `stop`. Raises `OSError` when a given port is taken."""
        self._stopping.clear()
        listener = _listener(self._port)
        self._server = create_server(self._wsgi, sockets=[listener], threads=SERVER_THREADS)
        self._thread = threading.Thread(target=self._server.run, name="sample", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every connection and wait for the threads; harmless when not started."""
        if self._server is None or self._thread is None:
            return
        self._stopping.set()
        server, self._server = self._server, None
        server.task_dispatcher.shutdown()
        # Only the server's own loop may close its sockets.
        run_in_loop(server, lambda: close_all(server._map, ignore_all=True))  # noqa: SLF001
        self._thread.join(STOP_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def fail_next(
        self,
        kind: Fault | str,
        *,
        after_pages: int = 0,
        times: int = 1,
        delay_s: float = 5.0,
        retry_after_s: int = 1,
    ) -> None:
        """Answer `after_pages` more requests as usual, then `times` requests with the fault.

        Faults queue up: a second one starts counting when the first is used up. `delay_s` is for
        SLOW, `retry_after_s` for THROTTLED.
        """
        fault = _PlannedFault(Fault(kind), after_pages, times, delay_s, retry_after_s)
        with self._faults.lock:
            self._faults.planned.append(fault)

    def heal(self) -> None:
        """Forget every planned fault."""
        with self._faults.lock:
            self._faults.planned.clear()

    def _wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self._faults.lock:
            self.requests_served += 1
        fault = self._faults.next()
        reply = self._reply(_request(environ))
        if fault is not None:
            reply = self._broken(reply, fault)
        length = len(reply.body) if reply.promised_bytes is None else reply.promised_bytes
        status = f"{reply.status} {HTTPStatus(reply.status).phrase}"
        basics = [("Content-Type", reply.content_type), ("Content-Length", str(length))]
        start_response(status, [*basics, *reply.headers])
        return [reply.body]

    def _broken(self, reply: Reply, fault: _PlannedFault) -> Reply:
        if fault.kind is Fault.SLOW:
            # Also ends when the server is stopped.
            self._stopping.wait(fault.delay_s)
            return reply
        half = reply.body[: len(reply.body) // 2]
        wait = (("Retry-After", str(fault.retry_after_s)),)
        return {
            Fault.ERROR: Reply(500, SERVER_ERROR),
            Fault.THROTTLED: Reply(429, THROTTLED, headers=wait),
            Fault.HTML: Reply(200, HTML_PAGE, "text/html; charset=utf-8"),
            Fault.TRUNCATED: replace(reply, body=half),
            Fault.CUT: replace(reply, body=half, promised_bytes=len(reply.body)),
            Fault.EMPTY: replace(reply, body=b""),
        }[fault.kind]


def _listener(port: int) -> socket.socket:
    # Bound here, not by waitress, which leaks its sockets when the port is taken.
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    return listener


def _request(environ: Mapping[str, Any]) -> Request:
    headers = {
        name[5:].lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("HTTP_")
    }
    # WSGI hands the path over as bytes dressed as Latin-1.
    path = environ["PATH_INFO"].encode("latin-1").decode("utf-8", "replace")
    query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
    body = environ["wsgi.input"].read()
    return Request(environ["REQUEST_METHOD"], path, query, headers, body)
