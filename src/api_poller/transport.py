"""One request and one answer over urllib3, within bounds that no server can stretch.

Whatever a server does (drip, hang up, flood, send a bomb, resolve to an inner address), an exchange
ends in time and memory as a value: a whole answer or a `Failure` that says how it went wrong. It
is a value and no exception because urllib3's exceptions hold addresses, and these may hold keys.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import logging
import math
import socket
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

import urllib3
from pydantic import BaseModel, ConfigDict, Field
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

# What an error answer is kept of: a message fits, a page of HTML need not.
ERROR_BYTES_MAX = 64 * 1024
_CHUNK_BYTES = 64 * 1024
_GZIP_MAGIC = b"\x1f\x8b\x08"
_DEFAULT_PORTS = {"http": 80, "https": 443}
# RFC 6052 and RFC 3056: IPv4 addresses in IPv6 clothes, which reach what the IPv4 address reaches.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Limits(BaseModel):
    """Bounds of a source's requests; a poll must fit a Lambda's minutes and memory.

    The largest honest answers are a year of ECB rates (under 1 MB) and a page of 10,000 products
    (under 20 MB). A wait longer than `wait_s_max`, or more than `requests_max` requests with every
    repeat and log-in counted, ends the poll; the next one goes on from there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_second: float | None = Field(10.0, gt=0, le=1000)
    requests_max: int = Field(10_000, ge=1)
    attempts_max: int = Field(4, ge=1, le=10)
    connect_timeout_s: float = Field(5.0, gt=0, le=60)
    read_timeout_s: float = Field(20.0, gt=0, le=300)
    answer_s_max: float = Field(60.0, gt=0, le=600)
    wait_s_first: float = Field(0.5, gt=0, le=60)
    wait_s_max: float = Field(30.0, gt=0, le=600)
    body_bytes_max: int = Field(32 * 1024 * 1024, ge=1, le=256 * 1024 * 1024)
    unpacked_bytes_max: int = Field(64 * 1024 * 1024, ge=1, le=512 * 1024 * 1024)
    redirects_max: int = Field(3, ge=0, le=10)
    rows_max: int = Field(1_000_000, ge=1)


@dataclass(frozen=True, slots=True)
class Request:
    """A request. Header values and the body may be credentials: its repr shows neither."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    accept: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; header names are lower case, and each cookie of `set-cookie` has a line.

    `measured` is False where the server never said how long it would be.
    """

    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    measured: bool


class Fault(Enum):
    """Whether to ask again, to give up on the answer, or never to speak to this address."""

    BROKEN = "broken"
    UNUSABLE = "unusable"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Failure:
    """No whole answer. `status` is there when the server came so far; `advice` may be empty."""

    fault: Fault
    detail: str
    advice: str = ""
    status: int | None = None


class Transport(Protocol):
    """One exchange; see `UrllibTransport`."""

    def send(
        self, request: Request, limits: Limits, *, seconds_max: float, allow_loopback: bool
    ) -> Answer | Failure:
        """The whole answer, of any status, within `seconds_max`. Raises nothing."""
        ...


class _ForbiddenPeerError(Exception):
    """A connection that leads where nothing may be sent; never leaves this module."""


class _Watch(threading.local):
    """What holds for the exchange under way: until when, and whether loopback is fine."""

    ends_at: float = math.inf
    allow_loopback: bool = False


class UrllibTransport:
    """Exchanges over kept-alive connections with verified TLS; `monotonic` gives seconds.

    Proxies of the environment are not used: the address that is checked must be the server's.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._watch, self._monotonic = _Watch(), monotonic
        self._pool = _pool_manager(self._watch, monotonic)
        # At DEBUG it writes every address, and in an address may stand a key.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def send(
        self, request: Request, limits: Limits, *, seconds_max: float, allow_loopback: bool
    ) -> Answer | Failure:
        """See `Transport.send`."""
        self._watch.ends_at = self._monotonic() + seconds_max
        self._watch.allow_loopback = allow_loopback
        try:
            response = self._opened(request, limits)
        except _ForbiddenPeerError as error:
            return Failure(Fault.FORBIDDEN, str(error))
        except urllib3.exceptions.HTTPError as error:
            return self._broken(error, seconds_max)
        except ValueError:  # such as a header that cannot be sent
            return Failure(Fault.UNUSABLE, "cannot be asked: the request is not valid HTTP")
        try:
            return _read(request, response, limits)
        except urllib3.exceptions.HTTPError as error:
            return self._broken(error, seconds_max)
        finally:
            response.close()

    def _broken(self, error: urllib3.exceptions.HTTPError, seconds_max: float) -> Failure:
        if self._monotonic() >= self._watch.ends_at:
            return Failure(Fault.BROKEN, f"took over {seconds_max:g} s")
        return Failure(Fault.BROKEN, _reason(error))

    def _opened(self, request: Request, limits: Limits) -> BaseHTTPResponse:
        own = {"Accept": request.accept, "Accept-Encoding": "gzip", "User-Agent": "freshet"}
        return self._pool.request(
            request.method,
            request.url,
            body=request.body,
            headers={**request.headers, **own},
            timeout=urllib3.Timeout(connect=limits.connect_timeout_s, read=limits.read_timeout_s),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )


def place_of(url: str) -> str:
    """`host`, or `host:port` where it is not the scheme's own, as urllib3, which connects, reads.

    The standard library's parser takes `https://evil\\@shop/` for the host `shop`, urllib3 for
    `evil`: what decides where a request may go must read it as what sends it does. Raises
    `ValueError` for what is no http or https address, or holds a user.
    """
    try:
        parts = parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parts = urllib3.util.Url()
    if parts.scheme not in _DEFAULT_PORTS or not parts.host or parts.auth:
        raise ValueError("must be an address as https://host/path, without a user")
    port = parts.port or _DEFAULT_PORTS[parts.scheme]
    return parts.host if port == _DEFAULT_PORTS[parts.scheme] else f"{parts.host}:{port}"


def is_loopback_name(url: str) -> bool:
    """Whether the address names this machine itself."""
    host = (parse_url(url).host or "").strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def forbidden(peer: str, *, allow_loopback: bool) -> str | None:
    """Why nothing may be sent to this IP address; None where it may.

    Only addresses of the public internet are fine: what is private, link-local (with the metadata
    services 169.254.169.254 and fd00:ec2::254 among them), multicast or reserved is not.
    """
    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    address = ipaddress.ip_address(peer.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    if address.is_loopback:
        return None if allow_loopback else "leads to this machine itself"
    if address.is_link_local:
        return "leads to a link-local address, where a cloud keeps its metadata"
    if address.is_multicast or not address.is_global:
        return "leads to a private or reserved address"
    return None


class _BoundedFile(io.RawIOBase):
    """A socket's file that reads until a moment and no longer, header lines included."""

    def __init__(
        self, sock: socket.socket, raw: io.RawIOBase, ends_at: float, monotonic: Callable[[], float]
    ) -> None:
        self._sock, self._raw, self._ends_at, self._monotonic = sock, raw, ends_at, monotonic
        self._read_timeout_s = sock.gettimeout() or math.inf

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._ends_at - self._monotonic()
        if left_s <= 0:
            raise TimeoutError("the answer took too long")
        wait_s = min(left_s, self._read_timeout_s)
        self._sock.settimeout(None if wait_s == math.inf else wait_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _pool_manager(watch: _Watch, monotonic: Callable[[], float]) -> urllib3.PoolManager:
    """A pool whose connections check their peer before a byte is sent, and answer in time."""

    class Response(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
            super().__init__(sock, *args, **kwargs)
            raw = self.fp.detach()
            self.fp = io.BufferedReader(_BoundedFile(sock, raw, watch.ends_at, monotonic))

    class Plain(HTTPConnection):
        response_class = Response

        def _new_conn(self) -> socket.socket:
            return _checked(super()._new_conn(), watch, encrypted=False)

    class Encrypted(HTTPSConnection):
        response_class = Response

        def _new_conn(self) -> socket.socket:
            return _checked(super()._new_conn(), watch, encrypted=True)

    class PlainPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Plain

    class EncryptedPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Encrypted

    manager = urllib3.PoolManager(cert_reqs="CERT_REQUIRED")
    manager.pool_classes_by_scheme = {"http": PlainPool, "https": EncryptedPool}
    return manager


def _checked(sock: socket.socket, watch: _Watch, *, encrypted: bool) -> socket.socket:
    """The socket, if it leads where it may: whatever a name resolved to a moment ago."""
    peer = str(sock.getpeername()[0])
    problem = forbidden(peer, allow_loopback=watch.allow_loopback)
    if not problem and not encrypted and forbidden(peer, allow_loopback=False) is None:
        problem = "would be spoken to without encryption"
    if problem:
        sock.close()
        raise _ForbiddenPeerError(problem)
    return sock


def _read(request: Request, response: BaseHTTPResponse, limits: Limits) -> Answer | Failure:
    headers = {name.lower(): value for name, value in response.headers.items()}
    if "set-cookie" in headers:
        headers["set-cookie"] = "\n".join(response.headers.getlist("set-cookie"))
    status, fine = response.status, 200 <= response.status < 300
    raw = _body(response, limits.body_bytes_max if fine else ERROR_BYTES_MAX)
    if raw is None and fine:
        return _too_large(limits.body_bytes_max, status)
    body = _unpacked(raw or b"", headers, limits.unpacked_bytes_max)
    if isinstance(body, Failure):
        if fine:
            return body
        body = b""
    elif raw is not None:
        response.release_conn()
    measured = "content-length" in headers or "transfer-encoding" in headers
    return Answer(request.url, status, headers, body, measured)


def _body(response: BaseHTTPResponse, bytes_max: int) -> bytes | None:
    """The raw body, read as it comes; None where it is larger.

    urllib3 raises when it ends before the announced length or the last chunk.
    """
    body = bytearray()
    while chunk := response.read1(_CHUNK_BYTES, decode_content=False):
        body += chunk
        if len(body) > bytes_max:
            return None
    return bytes(body)


def _unpacked(raw: bytes, headers: Mapping[str, str], bytes_max: int) -> bytes | Failure:
    """The body as it was before gzip, be it for the way or a file that the source keeps packed."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if not raw or (encoding in ("identity", "") and not raw.startswith(_GZIP_MAGIC)):
        return raw
    if encoding not in ("identity", "", "gzip", "x-gzip"):
        detail = f"answers in encoding {encoding!r}, asked for gzip"
        return Failure(Fault.UNUSABLE, detail, "report it to the source")
    unpacker = zlib.decompressobj(wbits=31)  # 16 + 15: a gzip header, the largest window
    try:
        body = unpacker.decompress(raw, bytes_max)
    except zlib.error:
        return Failure(Fault.BROKEN, "answers broken gzip")
    if unpacker.unconsumed_tail:
        return _too_large(bytes_max)
    if not unpacker.eof or unpacker.unused_data:
        return Failure(Fault.BROKEN, "was cut off or goes on within its gzip body")
    return body


def _too_large(bytes_max: int, status: int | None = None) -> Failure:
    advice = "ask for smaller pages, or check that the URL is the API's"
    return Failure(Fault.UNUSABLE, f"answers more than {bytes_max} bytes", advice, status)


def _reason(error: urllib3.exceptions.HTTPError) -> str:
    """What happened, without urllib3's object addresses."""
    match error:
        case urllib3.exceptions.ReadTimeoutError():
            return "was too slow to answer"
        case urllib3.exceptions.ConnectTimeoutError() | urllib3.exceptions.NewConnectionError():
            return "cannot be reached"
        case urllib3.exceptions.SSLError():
            return "its TLS certificate or handshake is not valid"
        case _:
            return f"the connection broke off ({type(error).__name__})"
