"""A server that misbehaves over real sockets on the loopback, as a poller must survive it.

Replies are functions of a visit. `faults` come first, whatever was asked; then the replies of the
path, in order, the last of them for ever. `Door` is the part with log-ins: it hands out tokens that
end by the server's own clock, which `skew` sets wrong.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Reply = Callable[["Visit"], None]

TEN_GIGABYTES = 10 * 1024**3
HTML = b"<!doctype html><title>Maintenance</title>"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a request looked like; header names are lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def form(self) -> dict[str, str]:
        return dict(parse_qsl(self.body.decode()))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Visit(BaseHTTPRequestHandler):
    """One connection to the misbehaving server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or every answer waits 40 ms for a delayed ACK
    server: Misbehaving
    seen: Seen

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen = Seen(self.command, parts.path, query, headers, body)
        self.server.seen.append(self.seen)
        self.server.reply_to(self.seen)(self)

    def do_POST(self) -> None:
        self.do_GET()

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A well-formed answer; header names are written with underscores."""
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.answer(status, json.dumps(value).encode(), **headers)

    def raw(self, data: bytes) -> None:
        """Exactly these bytes, then the end of the connection."""
        self.close_connection = True
        self.wfile.write(data)

    def reset(self) -> None:
        """End the connection with a reset instead of a proper end."""
        self.close_connection = True
        self.wfile.flush()
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return format_datetime(self.server.now(), usegmt=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep quiet."""


class Misbehaving(ThreadingHTTPServer):
    """Replies to `seen` requests by `faults` first and by path then; unknown paths are 404.

    `clock` and `skew` make the `Date` of its answers; `sent_bytes` counts what `endless` wrote.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.faults: deque[Reply] = deque()
        self.seen: list[Seen] = []
        self.clock: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.skew = timedelta()
        self.done = threading.Event()
        self.connections = 0
        self.sent_bytes = 0
        self._replies: dict[str, deque[Reply]] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def now(self) -> datetime:
        return self.clock() + self.skew

    def on(self, path: str, *replies: Reply) -> None:
        """Reply to this path with each in turn, with the last for ever."""
        self._replies[path] = deque(replies)

    def reply_to(self, seen: Seen) -> Reply:
        if self.faults:
            return self.faults.popleft()
        replies = self._replies.get(seen.path)
        if replies is None:
            return status(404)
        return replies.popleft() if len(replies) > 1 else replies[0]

    def asked(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up on a fault is no news."""


@contextmanager
def misbehaving(tls: ssl.SSLContext | None = None) -> Iterator[Misbehaving]:
    """A running server, on a free port; it speaks TLS by the given context."""
    with Misbehaving() as made:
        if tls is not None:
            made.socket = tls.wrap_socket(made.socket, server_side=True)
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.done.set()
            made.shutdown()
            thread.join(timeout=5)


# --- replies --------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Reply:
    return lambda visit: visit.answer(code, b'{"message":"no"}', **headers)


def raw(data: bytes) -> Reply:
    return lambda visit: visit.raw(data)


def body(data: bytes, **headers: str) -> Reply:
    return lambda visit: visit.answer(200, data, **headers)


def value(content: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return lambda visit: visit.json(content, code, **(headers or {}))


def redirect(location: str, code: int = 302) -> Reply:
    return lambda visit: visit.answer(code, Location=location)


def silent(visit: Visit) -> None:
    visit.server.done.wait(timeout=5)
    visit.close_connection = True


def dripping(visit: Visit) -> None:
    visit.send_response(200)
    visit.send_header("Content-Length", "1000")
    visit.end_headers()
    while not visit.server.done.wait(timeout=0.05):
        visit.wfile.write(b" ")


def dripping_headers(visit: Visit) -> None:
    """Never quiet for long, never done with its headers."""
    visit.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while not visit.server.done.wait(timeout=0.05):
        visit.wfile.write(b"x")


def reset_in_headers(visit: Visit) -> None:
    visit.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Ty")
    visit.reset()


def reset_in_body(visit: Visit) -> None:
    visit.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n[1,")
    visit.reset()


def truncated_gzip(data: bytes) -> Reply:
    return body(gzip.compress(data)[:-9], Content_Encoding="gzip")


def gzip_bomb(size: int) -> Reply:
    return body(gzip.compress(b" " * size), Content_Encoding="gzip")


def endless(visit: Visit, *, announced: bool = False) -> None:
    """Ten gigabytes, made as they are read and never held."""
    how = f"Content-Length: {TEN_GIGABYTES}" if announced else "Connection: close"
    visit.close_connection = True
    visit.wfile.write(f"HTTP/1.1 200 OK\r\n{how}\r\n\r\n".encode())
    chunk = b" " * 65_536
    for _ in range(TEN_GIGABYTES // len(chunk)):
        visit.wfile.write(chunk)  # raises when the client hangs up
        visit.server.sent_bytes += len(chunk)


# --- log-ins --------------------------------------------------------------------------------------


@dataclass
class Door:
    """Log-ins of every kind, in front of `/things`.

    Users are name to password. Tokens live for `life_s` by the server's clock; None: for ever, as
    far as anyone says. With `rotates`, a refresh token is good for one exchange.
    """

    server: Misbehaving
    users: dict[str, str] = field(default_factory=lambda: {"ada@mail.com": "countess-1815"})
    life_s: float | None = 3600.0
    refresh_life_s: float = 36_000.0
    rotates: bool = True
    things: Any = field(default_factory=lambda: [{"id": 1}])
    refresh_tokens: set[str] = field(default_factory=lambda: {"refresh-token-0"})
    issued: list[str] = field(default_factory=list)
    revoked: set[str] = field(default_factory=set)
    sign_up_status: int = 201
    login_status: int = 201
    refusal: int = 401

    CLIENT = ("freshet-client", "client-secret-4711")

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[str, datetime] = {}
        for path, reply in {
            "/things": self._things,
            "/oauth/token": self._oauth,
            "/auth/login": self._login,
            "/auth/refresh": self._refresh,
            "/users": self._sign_up,
            "/session": self._session,
        }.items():
            self.server.on(path, reply)

    def token(self, *, life_s: float | None = None, kind: str = "access") -> str:
        """A JWT that ends after `life_s` seconds of the server's clock."""
        now, life_s = self.server.now(), self.life_s if life_s is None else life_s
        claims: dict[str, Any] = {"sub": 1, "jti": f"{kind}-{len(self._ends)}"}
        if life_s is not None:
            claims |= {"iat": int(now.timestamp()), "exp": int(now.timestamp() + life_s)}
        made = jwt(claims)
        self._ends[made] = now + timedelta(seconds=life_s or 10**8)
        if kind == "access":
            self.issued.append(made)
        else:
            self.refresh_tokens.add(made)
        return made

    def lets_in(self, token: str) -> bool:
        ends = self._ends.get(token)
        return ends is not None and self.server.now() < ends and token not in self.revoked

    def _things(self, visit: Visit) -> None:
        _, _, token = visit.seen.headers.get("authorization", "").partition(" ")
        cookie = visit.seen.headers.get("cookie", "").partition("=")[2]
        key = visit.seen.headers.get("x-session", "")
        if any(self.lets_in(one) for one in (token, cookie, key)):
            visit.json(self.things)
        else:
            visit.json({"message": f"Token Expired! {token}"}, self.refusal)

    def _oauth(self, visit: Visit) -> None:
        form = visit.seen.form
        basic = visit.seen.headers.get("authorization", "").removeprefix("Basic ")
        pair = tuple(base64.b64decode(basic).decode().split(":", 1)) if basic else ()
        if self.CLIENT not in (pair, (form.get("client_id"), form.get("client_secret"))):
            visit.json({"error": "invalid_client", "error_description": f"who is {pair}?"}, 400)
        elif form["grant_type"] == "client_credentials":
            visit.json(self._grant())
        else:
            self._exchange(visit, form.get("refresh_token", ""))

    def _exchange(self, visit: Visit, old: str) -> None:
        with self._lock:
            good = old in self.refresh_tokens
            if good and self.rotates:
                self.refresh_tokens.discard(old)
                made = f"refresh-token-{len(self._ends) + 1}"
                self.refresh_tokens.add(made)
        if not good:
            visit.json({"error": "invalid_grant", "error_description": f"{old} is used"}, 400)
        else:
            visit.json(self._grant() | ({"refresh_token": made} if self.rotates else {}))

    def _grant(self) -> dict[str, Any]:
        made = "BQ" + hashlib.sha256(str(len(self._ends)).encode()).hexdigest()
        life_s = self.life_s or 10**8
        self._ends[made] = self.server.now() + timedelta(seconds=life_s)
        self.issued.append(made)
        return {"access_token": made, "token_type": "bearer", "expires_in": int(life_s)}

    def _login(self, visit: Visit) -> None:
        sent = visit.seen.json
        name = sent.get("email") or sent.get("username")
        if self.users.get(name) != sent["password"]:
            visit.json({"message": f"no user {name} with {sent['password']}"}, self.refusal)
        else:
            visit.json(self._pair(), self.login_status)

    def _pair(self) -> dict[str, str]:
        refresh = self.token(life_s=self.refresh_life_s, kind="refresh")
        return {"access_token": self.token(), "refresh_token": refresh}

    def _refresh(self, visit: Visit) -> None:
        sent = visit.seen.json.get("refreshToken", "")
        if sent in self.refresh_tokens and self.lets_in(sent):
            visit.json(self._pair(), self.login_status)
        else:
            visit.json({"message": "Invalid refresh token"}, 403)

    def _sign_up(self, visit: Visit) -> None:
        sent = visit.seen.json
        if self.sign_up_status < 300:
            self.users[sent["email"]] = sent["password"]
        visit.json({"id": 9, "message": "sign-up"}, self.sign_up_status)

    def _session(self, visit: Visit) -> None:
        sent = visit.seen.json
        if self.users.get(sent["username"]) != sent["password"]:
            visit.json({"message": "no"}, 400)
            return
        made = self.token()
        visit.json(
            {"data": {"session": made}, "expires": "2099-01-01T00:00:00Z"},
            Set_Cookie=f"sid={made}; Path=/; HttpOnly",
            X_Session=made,
        )


def jwt(claims: Mapping[str, Any]) -> str:
    """A token of this shape; nobody here looks at signatures."""
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts]
    return b".".join([*texts, b"c2lnbmF0dXJl"]).decode()
