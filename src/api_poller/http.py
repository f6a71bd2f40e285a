"""Speaking to source APIs over HTTP without believing them.

A source may be down, slow, throttling, cut off in mid-answer, hidden behind a login page or simply
huge. Every one of these ends, within bounds, in an error that names the source and says what to do;
only a whole answer of the announced length gets through. A session speaks to declared places only,
at the declared pace, and whatever a source sends back, no credential stands in an error.

    SourceError (transient)          the next poll may succeed
    ├── SourceUnavailableError       down, slow, throttled, cut off: repeated within the fetch
    │   └── BudgetSpentError         enough for this poll: stop, keep the place, go on in the next
    └── SourceAnswerError            answered, but not with what its documentation promises
    SourceRefusedError (terminal)    401, 403, 404 …: a person has to change something
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urljoin

from tenacity import RetryCallState, Retrying, retry_if_exception_type

from api_poller.auth import Authenticator, LoginFailedError, server_time
from api_poller.transport import (
    Answer,
    Failure,
    Fault,
    Limits,
    Request,
    Transport,
    UrllibTransport,
    is_loopback_name,
    place_of,
)
from freshet.clock import Now, utc_now
from freshet.errors import TerminalError, TransientError

__all__ = [
    "Answer",
    "BudgetSpentError",
    "Limits",
    "Request",
    "Session",
    "SourceAnswerError",
    "SourceError",
    "SourceRefusedError",
    "SourceUnavailableError",
    "UrllibTransport",
    "place_of",
]


class SourceError(TransientError):
    """A source did not give what was asked of it.

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


class BudgetSpentError(SourceUnavailableError):
    """This poll may ask no more: its requests, its time, or the source's quota are used up.

    No fault: stop cleanly, keep the place, and go on in the next poll.
    """


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


# Worth asking again: the server's own troubles, and 408/425/429, which say so.
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
# GitHub answers 403 where others answer 429.
_THROTTLES = frozenset((403, 429))
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_REDIRECTS_OF_ANY_METHOD = frozenset((307, 308))
# Codes by which Spotify and Google say that waiting a little does not help.
_QUOTA_CODES = frozenset(("QUOTA_EXCEEDED", "QUOTAEXCEEDED", "DAILYLIMITEXCEEDED"))
# Shorter words are too common to be blanked out of an error, and too short to be a credential.
_SECRET_CHARS_MIN = 8
_QUOTED_CHARS_MAX = 200
# Reset headers hold seconds from now, or seconds or milliseconds since 1970: no pause is 30 years
# long, and nobody counts seconds of the year 5138.
_EPOCH_S_MIN = 1_000_000_000
_EPOCH_MS_MIN = 100_000_000_000
_LATER = "the next poll takes up from there"


class Session:
    """One source's conversation during one poll: places, pace, repeats, log-in, redaction.

    `hosts` are places as `place_of` gives them. `sleep` and `monotonic` take and give seconds,
    `jitter` gives 0 ≤ x < 1, `remaining_s` the seconds that the poll has left (None: no end). For
    one thread. `requests_made` counts every request, repeats, redirects and log-ins included.
    """

    def __init__(
        self,
        source: str,
        limits: Limits,
        hosts: frozenset[str],
        authenticator: Authenticator,
        *,
        transport: Transport,
        now: Now = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
        allow_loopback: bool = False,
        remaining_s: Callable[[], float] | None = None,
    ) -> None:
        self.source, self.requests_made = source, 0
        self._limits, self._hosts, self._auth = limits, hosts, authenticator
        self._transport, self._now, self._sleep = transport, now, sleep
        self._monotonic, self._jitter = monotonic, jitter
        self._allow_loopback = allow_loopback
        self._remaining_s = remaining_s or (lambda: math.inf)
        self._turn_at = self._held_until = -math.inf

    def fetch(self, request: Request) -> Answer:
        """The whole answer to a request: status 2xx, no HTML, body unpacked; signed and logged in.

        Refused with a status that renewing the log-in may mend, it is asked once more. Its `url`
        holds no key. Raises `SourceUnavailableError`, `BudgetSpentError`, `SourceAnswerError`,
        `SourceRefusedError`, and what the token store raises.
        """
        answer, renewed = self._signed_exchange(request), False
        if answer.status in self._auth.renew_on and self._renewed(answer):
            answer, renewed = self._signed_exchange(request), True
        if not 200 <= answer.status < 300:
            raise self._not_taken(request, answer, renewed=renewed)
        if _is_html(answer):
            raise self._unusable(
                request,
                f"answers HTML or XML instead of {request.accept}",
                "a login, error or maintenance page is in the way: open the URL in a browser",
                answer.status,
            )
        return replace(answer, url=self._safe(request, self._auth.unsigned(answer.url)))

    def exchange(self, request: Request) -> Answer:
        """The answer to a request as it is, unsigned: any status that is not worth repeating.

        For authenticators, which read a refusal themselves. Raises as `fetch` does.
        """
        self._check_place(request)
        retrying = Retrying(
            stop=self._is_last,
            wait=self._wait_s,
            retry=retry_if_exception_type(_TryAgainError),
            sleep=self._sleep,
            retry_error_callback=self._give_up,
        )
        answer: Answer = retrying(self._follow, request)
        return answer

    def unsigned(self, url: str) -> str:
        """The address without the key that it would be asked with; for what is kept or told."""
        return self._auth.unsigned(url)

    # --- log-in ---

    def _signed_exchange(self, request: Request) -> Answer:
        self._check_place(request)  # before anything is done for an address that is not declared
        try:
            signed = self._auth.sign(request, self.exchange)
        except LoginFailedError as error:
            failed = error
        else:
            return self.exchange(signed)
        raise self._login_failed(failed)

    def _renewed(self, refused: Answer) -> bool:
        try:
            return self._auth.renew(refused, self.exchange)
        except LoginFailedError as error:
            failed = error
        raise self._login_failed(failed)

    def _login_failed(self, failed: LoginFailedError) -> SourceRefusedError:
        request = Request("POST", failed.answer.url)
        detail = failed.detail + self._said(request, failed.answer)
        return self._refused(request, failed.answer.status, detail, failed.advice)

    # --- one request ---

    def _follow(self, request: Request) -> Answer:
        """One attempt, following redirects that stay on the host."""
        first = request
        for _ in range(self._limits.redirects_max + 1):
            answer = self._once(request)
            if answer.status not in _REDIRECTS:
                return answer
            request = self._redirected(first, request, answer)
        raise self._refused(
            request, None, "redirects in a circle", "correct the source's URL setting"
        )

    def _once(self, request: Request) -> Answer:
        self._take_turn(request)
        self.requests_made += 1
        seconds_max = min(self._limits.answer_s_max, self._remaining_s())
        answer = self._transport.send(
            request, self._limits, seconds_max=seconds_max, allow_loopback=self._allow_loopback
        )
        if isinstance(answer, Failure):
            raise self._failed(request, answer)
        hold_s = self._hold_s(answer)
        if hold_s is not None:
            self._held_until = self._monotonic() + hold_s
        if answer.status in _THROTTLES and _quota_code(answer):
            detail = f"answers {answer.status}: its quota is used up"
            raise self._spent(request, detail, answer.status)
        throttled = answer.status in _THROTTLES and hold_s is not None
        if answer.status in _AGAIN or throttled:
            after_s = _retry_after_s(answer.headers, self._now)
            raise _TryAgainError(
                request,
                f"answers {answer.status}",
                answer.status,
                hold_s if after_s is None else after_s,
            )
        return answer

    def _failed(self, request: Request, failure: Failure) -> Exception:
        match failure.fault:
            case Fault.BROKEN:
                return _TryAgainError(request, failure.detail, failure.status)
            case Fault.UNUSABLE:
                return self._unusable(request, failure.detail, failure.advice, failure.status)
            case Fault.FORBIDDEN:
                advice = "only public addresses over TLS are spoken to: correct the source's url"
                return self._refused(request, None, failure.detail, advice)

    def _redirected(self, first: Request, request: Request, answer: Answer) -> Request:
        """The same request where the answer points to; only within the host."""
        target = redirect_target(request.url, answer.headers.get("location"))
        if target is None:
            location = self._auth.unsigned(answer.headers.get("location", ""))
            raise self._refused(
                request,
                answer.status,
                f"redirects to {location.partition('?')[0]}",
                "redirects to another host are not followed: if it is right, set it as source URL",
            )
        # Addresses stand in logs; only a key that is in the address by declaration may stay there.
        if self._blanked(first, self._auth.unsigned(target)) != self._auth.unsigned(target):
            raise self._refused(
                request,
                answer.status,
                "redirects to an address with its credentials in it",
                "ask its owner to stop",
            )
        if request.method != "GET" and answer.status not in _REDIRECTS_OF_ANY_METHOD:
            raise self._refused(
                request,
                answer.status,
                f"redirects a {request.method} to {target.partition('?')[0]}",
                "set that address instead",
            )
        return replace(request, url=target)

    def _check_place(self, request: Request) -> None:
        """Raises `SourceRefusedError` for a place that is not declared, or without encryption."""
        try:
            place = place_of(request.url)
        except ValueError as error:
            raise self._refused(request, None, str(error), "correct it") from None
        if place not in self._hosts:
            known = ", ".join(sorted(self._hosts))
            raise self._refused(
                request,
                None,
                f"{place} is none of the declared hosts ({known})",
                "if it is right, add it to `hosts` of the source",
            )
        local = self._allow_loopback and is_loopback_name(request.url)
        if not request.url.lower().startswith("https:") and not local:
            raise self._refused(request, None, "is not encrypted", "use https")

    # --- pace and repeats ---

    def _take_turn(self, request: Request) -> None:
        """Wait for this request's turn. Raises `BudgetSpentError`."""
        if self.requests_made >= self._limits.requests_max:
            raise self._spent(
                request, f"this poll has made its {self._limits.requests_max} requests"
            )
        held_s = self._held_until - self._monotonic()
        if held_s > self._limits.wait_s_max:
            raise self._spent(request, f"it allows no request for {held_s:.0f} s")
        wait_s = max(0.0, held_s, self._turn_at - self._monotonic())
        if wait_s >= self._remaining_s():
            raise self._spent(request, "the time of this poll is over")
        if wait_s > 0:
            self._sleep(wait_s)
        if self._limits.requests_per_second is not None:
            # A bucket of one token: sources count in windows of their own, a burst may hit two.
            self._turn_at = self._monotonic() + 1 / self._limits.requests_per_second

    def _hold_s(self, answer: Answer) -> float | None:
        """Seconds until the source takes another request, where it says that none is left."""
        left, reset = (_number(answer.headers, name) for name in ("remaining", "reset"))
        if left is None or left > 0 or reset is None:
            return None
        if reset < _EPOCH_S_MIN:
            return reset
        there = server_time(answer.headers) or self._now()
        epoch_s = reset / 1000 if reset >= _EPOCH_MS_MIN else reset
        return max(0.0, epoch_s - there.timestamp())

    def _wait_s(self, state: RetryCallState) -> float:
        """Seconds until the next attempt: doubling and jittered, or what the source asks for."""
        limits, again = self._limits, _again(state)
        bound = min(limits.wait_s_max, limits.wait_s_first * 2.0 ** (state.attempt_number - 1))
        backoff_s = bound * (0.5 + self._jitter() / 2)
        return max(backoff_s, again.retry_after_s or 0.0)

    def _is_last(self, state: RetryCallState) -> bool:
        """Whether enough was tried, or the wait is longer than this poll wants to or can wait."""
        limits, asked_s = self._limits, _again(state).retry_after_s or 0.0
        if state.attempt_number >= limits.attempts_max or asked_s > limits.wait_s_max:
            return True
        return self._wait_s(state) >= self._remaining_s()

    def _give_up(self, state: RetryCallState) -> Answer:
        again, remaining_s = _again(state), self._remaining_s()
        detail = f"{again.detail}, {state.attempt_number} attempt(s)"
        asked_s = again.retry_after_s or 0.0
        if asked_s > self._limits.wait_s_max:
            advice = f"it asks to come back in {asked_s:.0f} s: poll less often"
            raise self._spent(again.request, detail, again.status, advice)
        if state.attempt_number < self._limits.attempts_max or remaining_s <= 0:
            raise self._spent(again.request, f"{detail}, and no time left", again.status)
        raise SourceUnavailableError(
            self.source, self._told(again.request), detail, advice=_LATER, status=again.status
        )

    # --- errors ---

    def _spent(
        self, request: Request, detail: str, status: int | None = None, advice: str = ""
    ) -> BudgetSpentError:
        advice = f"{advice}; {_LATER}" if advice else _LATER
        return BudgetSpentError(
            self.source, self._told(request), detail, advice=advice, status=status
        )

    def _not_taken(self, request: Request, answer: Answer, *, renewed: bool) -> SourceRefusedError:
        detail = f"answers {answer.status}{self._said(request, answer)}"
        if renewed:
            detail += ", also after logging in anew"
        advice = _advice(answer.status, self._auth.advice)
        return self._refused(request, answer.status, detail, advice)

    def _refused(
        self, request: Request, status: int | None, detail: str, advice: str
    ) -> SourceRefusedError:
        return SourceRefusedError(
            self.source,
            self._told(request),
            self._safe(request, detail),
            advice=advice,
            status=status,
        )

    def _unusable(
        self, request: Request, detail: str, advice: str, status: int | None = None
    ) -> SourceAnswerError:
        return SourceAnswerError(
            self.source,
            self._told(request),
            self._safe(request, detail),
            advice=f"{advice or 'report it to the source'}; {_LATER}",
            status=status,
        )

    def _told(self, request: Request) -> str:
        return self._safe(request, self._auth.unsigned(request.url))

    def _said(self, request: Request, answer: Answer) -> str:
        """What the source itself says to a refusal, in brackets; nothing where it may be secret."""
        said = _message(answer)
        short = {one for one in self._auth.secrets() if 2 < len(one) < _SECRET_CHARS_MIN}
        if not said or any(one in said for one in short):
            return ""
        return f" ({self._safe(request, said)})"

    def _safe(self, request: Request, text: str) -> str:
        """Text that may hold what the source sent back, without the credentials."""
        return self._blanked(request, "".join(one if one.isprintable() else " " for one in text))

    def _blanked(self, request: Request, text: str) -> str:
        own = self._auth.unsigned(request.url)  # words of the source's own address are no secret
        found = {
            form
            for value in self._auth.secrets()
            for word in (value, *value.split())
            for form in (word, quote(word, safe=""))
            if len(word) >= _SECRET_CHARS_MIN and word not in own
        }
        for secret in sorted(found, key=len, reverse=True):
            text = text.replace(secret, "…")
        return text


class _TryAgainError(Exception):
    """One attempt failed in a way that the next may not; never leaves this module."""

    def __init__(
        self,
        request: Request,
        detail: str,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.request, self.detail = request, detail
        self.status, self.retry_after_s = status, retry_after_s
        super().__init__(detail)


def _again(state: RetryCallState) -> _TryAgainError:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, _TryAgainError)
    return error


def redirect_target(url: str, location: str | None) -> str | None:
    """Where a redirect leads; None where that is not the same scheme, host and port."""
    try:
        target = urljoin(url, location or "")
        stays = bool(location) and _origin(target) == _origin(url)
    except ValueError:  # no URL at all, such as `http://[`
        return None
    return target if stays else None


def _origin(url: str) -> tuple[str, str]:
    return url.partition(":")[0].lower(), place_of(url)


def _retry_after_s(headers: Mapping[str, str], now: Now) -> float | None:
    """Seconds that a `Retry-After` (number or HTTP date) asks for; None where it is neither.

    A date is read by the server's clock where it shows one.
    """
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until - (server_time(headers) or now())).total_seconds())
    except (ValueError, TypeError):  # no date, or a date without a zone
        return None


def _number(headers: Mapping[str, str], name: str) -> float | None:
    """A rate limit header's number, under its common name or that of the IETF's draft."""
    for prefix in ("x-ratelimit-", "x-rate-limit-", "ratelimit-"):
        value = headers.get(f"{prefix}{name}", "").strip()
        if value.replace(".", "", 1).isdecimal():
            return float(value)
    return None


def _document(answer: Answer) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        return None


def _quota_code(answer: Answer) -> bool:
    """Whether a refusal says by its code that more than a pause is needed."""
    found = _document(answer)
    parts = [found, found.get("error")] if isinstance(found, dict) else []
    codes = [part.get(name) for part in parts if isinstance(part, dict) for name in _CODE_MEMBERS]
    return any(isinstance(code, str) and code.upper() in _QUOTA_CODES for code in codes)


_CODE_MEMBERS = ("reason", "code", "status")
_MESSAGE_MEMBERS = ("message", "error_description", "detail", "title", "error")


def _message(answer: Answer) -> str | None:
    """The sentence in an error answer, as the usual APIs have it; None where there is none."""
    found = _document(answer)
    for _ in range(3):
        if isinstance(found, dict):
            found = next((found[name] for name in _MESSAGE_MEMBERS if found.get(name)), None)
        elif isinstance(found, list):
            found = found[0] if found else None
    if not isinstance(found, str):
        return None
    return found if len(found) <= _QUOTED_CHARS_MAX else f"{found[:_QUOTED_CHARS_MAX]}…"


def _is_html(answer: Answer) -> bool:
    """True for markup by its label or its first character; no JSON or CSV begins with `<`."""
    kind = answer.headers.get("content-type", "").lower()
    start = answer.body.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    return bool(answer.body) and ("html" in kind or start == b"<")


def _advice(status: int, credentials: str) -> str:
    if status in (401, 403):
        return (
            f"it wants other credentials or has blocked this address: {credentials}, and ask its "
            "owner"
        )
    if status == 404:
        return "there is nothing at this address: correct the source's URL setting"
    return "the request does not suit it: check the source's URL setting against its documentation"
