"""Reading source APIs over HTTP without believing them.

A source may be down, slow, throttling, cut off in mid-answer, hidden behind a login page or simply
huge. Every one of these ends, within bounds, in an error that names the source and says what to do;
only a whole answer of the announced length gets through. The transport is urllib3: boto3 brings it.
Credentials go to the host they are meant for and nowhere else, whatever a redirect says.

    SourceError (transient)          the next poll may succeed
    ├── SourceUnavailableError       down, slow, throttled, cut off: repeated within the fetch
    └── SourceAnswerError            answered, but not with what its documentation promises
    SourceRefusedError (terminal)    401, 403, 404 …: a person has to change something
"""

from __future__ import annotations

import copy
import random
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import urljoin

import urllib3
from pydantic import SecretStr
from urllib3.response import BaseHTTPResponse
from urllib3.util import parse_url

from freshet.clock import Now, utc_now
from freshet.errors import TerminalError, TransientError


class SourceError(TransientError):
    """A source did not give what was asked of it; nothing of the poll took effect.

    `status` is the HTTP status, None where there was no answer; `advice` says what to do.
    """

    def __init__(
        self, source: str, url: str, detail: str, *, advice: str, status: int | None = None
    ) -> None:
        self.source, self.url, self.detail = source, url, detail
        self.advice, self.status = advice, status
        super().__init__(_sentence(source, url, detail, advice))


class SourceUnavailableError(SourceError):
    """The source is down, slow, throttling or was cut off."""


class SourceAnswerError(SourceError):
    """The source answered something that cannot be what was asked for."""


class SourceRefusedError(TerminalError):
    """The source refuses this request for good; `status` is its HTTP status, None for a circle."""

    def __init__(
        self, source: str, url: str, detail: str, *, advice: str, status: int | None
    ) -> None:
        self.source, self.url, self.detail = source, url, detail
        self.advice, self.status = advice, status
        super().__init__(_sentence(source, url, detail, advice))


def _sentence(source: str, url: str, detail: str, advice: str) -> str:
    return f"source {source!r} at {url}: {detail}; {advice}"


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of a fetch; a poll of a few pages must fit a Lambda's minutes.

    The largest honest answers are a year of ECB rates (under 1 MB) and a page of 10,000 products
    (under 20 MB). Times are seconds, sizes bytes.
    """

    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    answer_s_max: float = 60.0
    attempts_max: int = 4
    wait_s_first: float = 0.5
    wait_s_max: float = 30.0
    body_bytes_max: int = 32 * 1024 * 1024
    unpacked_bytes_max: int = 64 * 1024 * 1024
    redirects_max: int = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. `measured` is False where the server never said how long it would be."""

    url: str
    status: int
    body: bytes
    measured: bool


DEFAULT_LIMITS = HttpLimits()

# Worth asking again: the server's own troubles, and 408/425/429, which say so.
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Shorter words are too common to be blanked out of an error, and too short to be a credential.
_SECRET_CHARS_MIN = 8
_LATER = "nothing was published and the watermark stays: the next poll takes up from there"


class Fetcher:
    """GET with time-outs, bounded and jittered repeats, `Retry-After`, size caps and verified TLS.

    `sleep` and `monotonic` take and give seconds, `jitter` gives 0 ≤ x < 1. Close it when done.
    """

    def __init__(
        self,
        limits: HttpLimits = DEFAULT_LIMITS,
        *,
        now: Now = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._limits, self._now, self._sleep = limits, now, sleep
        self._monotonic, self._jitter = monotonic, jitter
        self._pool = urllib3.PoolManager(cert_reqs="CERT_REQUIRED")
        self._carried: Mapping[str, SecretStr] = {}
        self._home: _Origin | None = None

    def carrying(self, headers: Mapping[str, SecretStr], *, to: str) -> Self:
        """The same fetcher, adding `headers` to requests for the scheme, host and port of `to`.

        Connections are shared, headers are not: to any other place it goes without them.
        """
        made = copy.copy(self)
        made._carried, made._home = dict(headers), _origin(to)  # noqa: SLF001 - one of us
        return made

    def close(self) -> None:
        """Close idle connections."""
        self._pool.clear()

    def get(self, source: str, url: str, *, accept: str) -> Answer:
        """The whole answer to a GET of `url`: status 2xx, no HTML, body unpacked.

        Raises `SourceUnavailableError`, `SourceAnswerError`, `SourceRefusedError`.
        """
        for attempt in range(1, self._limits.attempts_max + 1):
            try:
                return self._follow(_Request(source, url, accept, self._secrets(url)))
            except _TryAgainError as again:
                wait_s = self._wait_s(attempt, again.retry_after_s)
                if attempt == self._limits.attempts_max or wait_s is None:
                    raise self._gave_up(again, attempt) from again.__cause__
            self._sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _wait_s(self, attempt: int, retry_after_s: float | None) -> float | None:
        """Seconds until the next attempt; None when the source asks for more than this poll has."""
        bound = min(self._limits.wait_s_max, self._limits.wait_s_first * 2.0 ** (attempt - 1))
        backoff = bound * (0.5 + self._jitter() / 2)
        if retry_after_s is None:
            return backoff
        return None if retry_after_s > self._limits.wait_s_max else max(retry_after_s, backoff)

    def _gave_up(self, again: _TryAgainError, attempts: int) -> SourceUnavailableError:
        advice, request = _LATER, again.request
        if again.retry_after_s is not None and again.retry_after_s > self._limits.wait_s_max:
            advice = (
                f"it asks to come back in {again.retry_after_s:.0f} s: poll less often; {_LATER}"
            )
        detail = f"{again.detail}, {attempts} attempt(s)"
        return SourceUnavailableError(
            request.source, request.url, detail, advice=advice, status=again.status
        )

    def _follow(self, request: _Request) -> Answer:
        """One attempt, following redirects that stay on the host."""
        for _ in range(self._limits.redirects_max + 1):
            answer = self._once(request)
            if isinstance(answer, Answer):
                return answer
            request = answer
        raise request.refused(None, "redirects in a circle", "correct the source's URL setting")

    def _once(self, request: _Request) -> Answer | _Request:
        try:
            response = self._send(request)
            try:
                return self._read(request, response)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise _TryAgainError(request, _reason(error)) from error

    def _send(self, request: _Request) -> BaseHTTPResponse:
        return self._pool.request(
            "GET",
            request.url,
            headers=self._headers(request),
            timeout=urllib3.Timeout(
                connect=self._limits.connect_timeout_s, read=self._limits.read_timeout_s
            ),
            retries=False,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )

    def _headers(self, request: _Request) -> dict[str, str]:
        own = {"Accept": request.accept, "Accept-Encoding": "gzip", "User-Agent": "freshet"}
        if _origin(request.url) != self._home:
            return own
        return {name: value.get_secret_value() for name, value in self._carried.items()} | own

    def _secrets(self, url: str) -> tuple[str, ...]:
        """What must not stand in an error, should the source send it back; words of its own address
        are none.
        """
        values = (value.get_secret_value() for value in self._carried.values())
        words = {word for value in values for word in (value, *value.split())}
        return tuple(word for word in words if len(word) >= _SECRET_CHARS_MIN and word not in url)

    def _read(self, request: _Request, response: BaseHTTPResponse) -> Answer | _Request:
        status, headers = response.status, response.headers
        if status in _AGAIN:
            after = _retry_after_s(headers.get("Retry-After"), self._now)
            raise _TryAgainError(request, f"answers {status}", status=status, retry_after_s=after)
        if status in _REDIRECTS:
            return request.redirected(status, headers.get("Location"))
        if not 200 <= status < 300:
            raise request.refused(status, f"answers {status}", _advice(status))
        raw = self._body(request, response)
        body = self._unpacked(request, raw, headers)
        if _is_html(body, headers.get("Content-Type", "")):
            raise request.unusable(
                f"answers HTML or XML instead of {request.accept}",
                "a login, error or maintenance page is in the way: open the URL in a browser",
                status,
            )
        measured = "Content-Length" in headers or "Transfer-Encoding" in headers
        response.release_conn()
        return Answer(request.url, status, body, measured)

    def _body(self, request: _Request, response: BaseHTTPResponse) -> bytes:
        """The raw body, read as it comes so that neither drips nor floods outlast their bounds.

        urllib3 raises when it ends before the announced length or the last chunk.
        """
        deadline = self._monotonic() + self._limits.answer_s_max
        body = bytearray()
        while chunk := response.read1(1 << 16, decode_content=False):
            body += chunk
            if len(body) > self._limits.body_bytes_max:
                raise self._too_large(request, self._limits.body_bytes_max, response.status)
            if self._monotonic() > deadline:
                raise _TryAgainError(request, f"took over {self._limits.answer_s_max:g} s")
        return bytes(body)

    def _unpacked(self, request: _Request, raw: bytes, headers: Mapping[str, str]) -> bytes:
        encoding = headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("identity", "") or not raw:
            return raw
        if encoding not in ("gzip", "x-gzip"):
            raise request.unusable(
                f"answers in encoding {encoding!r}, asked for gzip", "report it to the source"
            )
        unpacker = zlib.decompressobj(wbits=31)  # 16 + 15: a gzip header, the largest window
        try:
            body = unpacker.decompress(raw, self._limits.unpacked_bytes_max)
        except zlib.error as error:
            raise _TryAgainError(request, "answers broken gzip") from error
        if unpacker.unconsumed_tail:
            raise self._too_large(request, self._limits.unpacked_bytes_max)
        if not unpacker.eof or unpacker.unused_data:
            raise _TryAgainError(request, "was cut off or goes on within its gzip body")
        return body

    def _too_large(
        self, request: _Request, bytes_max: int, status: int | None = None
    ) -> SourceAnswerError:
        return request.unusable(
            f"answers more than {bytes_max} bytes",
            "ask for smaller pages, or check that the URL is the API's",
            status,
        )


@dataclass(frozen=True, slots=True)
class _Request:
    source: str
    url: str
    accept: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def redirected(self, status: int, location: str | None) -> _Request:
        """The same request where the answer points to; only within the configured host."""
        try:
            target = urljoin(self.url, location or "")
            stays = bool(location) and _origin(target) == _origin(self.url)
        except ValueError:  # no URL at all, such as `http://[`
            target, stays = location or "", False
        if not stays:
            raise self.refused(
                status,
                f"redirects to {target.partition('?')[0]}",
                "redirects to another host are not followed: if it is right, set it as source URL",
            )
        if any(secret in target for secret in self.secrets):  # addresses stand in logs and errors
            raise self.refused(
                status,
                "redirects to an address with its credentials in it",
                "ask its owner to stop",
            )
        return _Request(self.source, target, self.accept, self.secrets)

    def refused(self, status: int | None, detail: str, advice: str) -> SourceRefusedError:
        return SourceRefusedError(
            self.source, self.url, self._safe(detail), advice=advice, status=status
        )

    def unusable(self, detail: str, advice: str, status: int | None = None) -> SourceAnswerError:
        return SourceAnswerError(
            self.source,
            self.url,
            self._safe(detail),
            advice=f"{advice}; {_LATER}",
            status=status,
        )

    def _safe(self, text: str) -> str:
        """Text that may hold what the source sent back, without the credentials."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, "…")
        return text


class _TryAgainError(Exception):
    """One attempt failed in a way that the next may not; never leaves this module."""

    def __init__(
        self,
        request: _Request,
        detail: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.request, self.detail = request, detail
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(detail)


def _retry_after_s(value: str | None, now: Now) -> float | None:
    """Seconds that a `Retry-After` (number or HTTP date) asks for; None where it is neither."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - now()).total_seconds())
    except (ValueError, TypeError):  # no date, or a date without a zone
        return None


_Origin = tuple[str | None, str | None, int | None]


def _origin(url: str) -> _Origin:
    """Scheme, host and port as urllib3, which connects, reads them. Raises ValueError.

    The standard library's parser takes `https://evil\\@shop/` for the host `shop`, urllib3 for
    `evil`: what decides where a request may go must read it as what sends it does.
    """
    parts = parse_url(url)
    return parts.scheme, parts.host, parts.port or _DEFAULT_PORTS.get(parts.scheme or "")


def _is_html(body: bytes, content_type: str) -> bool:
    """True for markup by its label or its first character; no JSON or CSV begins with `<`."""
    return bool(body) and (
        "html" in content_type.lower() or body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    )


def _advice(status: int) -> str:
    if status in (401, 403):
        return (
            "it wants other credentials (see the secret of this source) or has blocked this "
            "address: check with its owner"
        )
    if status == 404:
        return "there is nothing at this address: correct the source's URL setting"
    return "the request does not suit it: check the source's URL setting against its documentation"


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
