"""Authenticators: how each declared kind of log-in signs a request, and renews when it is refused.

An authenticator asks for its tokens through the session that it signs for, so that log-ins have the
same bounds, repeats and hosts as any request. When a token ends is judged by the server's clock:
what counts is the time left at the server, not whether our clocks agree. OAuth2's messages are
oauthlib's; no error raised here is chained to one that may hold what a server sent back.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol
from urllib.parse import quote, quote_plus, unquote_plus, urlencode

from pydantic import SecretStr

from api_poller.auth_models import (
    ApiKeyAuth,
    Auth,
    AuthRequest,
    BasicAuth,
    BearerAuth,
    LoginAuth,
    NoAuth,
    OAuth2ClientCredentials,
    OAuth2RefreshToken,
    SessionTokenAuth,
    TokenLife,
    TokenPlace,
    fields_needed,
    filled,
)
from api_poller.tokens import KeptTokens, TokenStore
from api_poller.transport import Answer, Request
from freshet.clock import Now
from freshet.errors import SettingsError, StorageError, TransientError
from freshet.objects import PreconditionError

Send = Callable[[Request], Answer]

# A token is renewed this long before its end, or a tenth of its life where that is less: a request
# takes its time.
MARGIN_S = 30.0
# An exchange with all its repeats is over in this time; what holds the lease longer has crashed.
LEASE = timedelta(seconds=120)
LEASE_WAITS_MAX = 60
LEASE_WAIT_S = 0.5
# The end of 9999 in seconds: beyond it there is no date; larger numbers are milliseconds.
_EPOCH_S_MAX = 253_402_300_799


class LoginFailedError(Exception):
    """A log-in that was refused or misunderstood; the session makes it a `SourceRefusedError`."""

    def __init__(self, answer: Answer, detail: str, advice: str) -> None:
        self.answer, self.detail, self.advice = answer, detail, advice
        super().__init__(detail)


class TokensBusyError(TransientError):
    """Another poll is renewing the tokens and does not get done."""

    def __init__(self, setting: str) -> None:
        self.setting = setting
        super().__init__(
            f"the tokens of {setting} are being renewed by another poll: nothing to do, the next "
            "poll uses what that one gets"
        )


class Authenticator(Protocol):
    """Signs the requests of one poll. `renew_on` are the statuses that a renewal may mend."""

    renew_on: frozenset[int]
    # What a person should look at when requests are refused all the same.
    advice: str

    def sign(self, request: Request, send: Send) -> Request:
        """The request with what the source wants to see; logs in first where it must.

        Raises `LoginFailedError`, `TokensBusyError`, and what `send` raises.
        """
        ...

    def renew(self, refused: Answer, send: Send) -> bool:
        """After an answer with a status of `renew_on`: True when asking again makes sense."""
        ...

    def unsigned(self, url: str) -> str:
        """The address without a key that it would be signed with."""
        ...

    def secrets(self) -> frozenset[str]:
        """What may stand in no error, as far as it is known by now."""
        ...


def authenticator_for(
    declared: Auth,
    credentials: Mapping[str, SecretStr],
    tokens: TokenStore,
    now: Now,
    *,
    base_url: str = "",
    setting: str = "credentials",
    headers: Mapping[str, SecretStr] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Authenticator:
    """The authenticator of a declared kind.

    `base_url` completes addresses that are paths, `setting` names the credentials in errors,
    `headers` are sent along with every request. Raises `SettingsError` for credentials that lack a
    field.
    """
    missing = sorted(fields_needed(declared) - credentials.keys())
    if missing:
        detail = f"auth of kind {declared.kind!r} needs {', '.join(missing)}: add what is missing"
        raise SettingsError(setting, detail)
    known = _Known(
        {name: value.get_secret_value() for name, value in credentials.items()},
        {name: value.get_secret_value() for name, value in (headers or {}).items()},
        base_url.rstrip("/"),
        setting,
        now,
        sleep,
    )
    match declared:
        case NoAuth() | BasicAuth() | BearerAuth() | ApiKeyAuth():
            return _fixed(declared, known)
        case OAuth2ClientCredentials():
            return _ClientCredentials(declared, known)
        case OAuth2RefreshToken():
            return _RefreshToken(declared, known, tokens)
        case LoginAuth() | SessionTokenAuth():
            return _Login(declared, known, tokens)


@dataclass(frozen=True, slots=True)
class _Known:
    """What all kinds have at hand."""

    fields: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    base_url: str
    setting: str
    now: Now
    sleep: Callable[[float], None]

    def address(self, url: str) -> str:
        return f"{self.base_url}{url}" if url.startswith("/") else url


@dataclass(frozen=True, slots=True)
class _Tokens:
    """A token, and when it has to be renewed by our clock; None: when it is refused."""

    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)
    ends_at: datetime | None = None

    def lasts(self, now: Now) -> bool:
        return self.ends_at is None or now() < self.ends_at


class _Signer:
    """What all authenticators share: where the value goes, and what must not be told."""

    def __init__(
        self, place: TokenPlace | None, known: _Known, renew_on: frozenset[int] = frozenset()
    ) -> None:
        self._place, self._known, self.renew_on = place, known, renew_on
        self.advice = f"check the credentials of {known.setting}, and what they are allowed to read"
        if place is None and not known.headers:
            self.advice = "declare `auth` and `credentials` of the source"
        self._secrets = {*known.fields.values(), *known.headers.values()}

    def secrets(self) -> frozenset[str]:
        """See `Authenticator.secrets`."""
        return frozenset(self._secrets)

    def unsigned(self, url: str) -> str:
        """See `Authenticator.unsigned`."""
        if self._place is None or self._place.in_ != "query":
            return url
        return _without_parameter(url, self._place.name)

    def _signed(self, request: Request, value: str) -> Request:
        headers = {**request.headers}
        for name, text in self._known.headers.items():
            _set(headers, name, text)
        if self._place is None:
            return replace(request, headers=headers)
        self._secrets.add(value)
        text = f"{self._place.prefix} {value}" if self._place.prefix else value
        if self._place.in_ == "query":
            url = _with_parameter(self.unsigned(request.url), self._place.name, text)
            return replace(request, headers=headers, url=url)
        if self._place.in_ == "cookie":
            _set(headers, "Cookie", f"{self._place.name}={text}", also=True)
        else:
            _set(headers, self._place.name, text)
        return replace(request, headers=headers)


class _Fixed(_Signer):
    """A value that never changes."""

    def __init__(self, place: TokenPlace | None, value: str, known: _Known) -> None:
        super().__init__(place, known)
        self._value = value
        self._secrets |= {value} if value else set()

    def sign(self, request: Request, send: Send) -> Request:
        """See `Authenticator.sign`."""
        del send
        return self._signed(request, self._value)

    def renew(self, refused: Answer, send: Send) -> bool:
        """See `Authenticator.renew`."""
        del refused, send
        return False


def _fixed(declared: NoAuth | BasicAuth | BearerAuth | ApiKeyAuth, known: _Known) -> _Fixed:
    match declared:
        case NoAuth():
            return _Fixed(None, "", known)
        case BasicAuth():
            pair = f"{known.fields['username']}:{known.fields.get('password', '')}"
            value = base64.b64encode(pair.encode()).decode()
            return _Fixed(TokenPlace(prefix="Basic"), value, known)
        case BearerAuth():
            return _Fixed(TokenPlace(prefix=declared.prefix), known.fields["token"], known)
        case ApiKeyAuth():
            return _Fixed(declared, known.fields["api_key"], known)


class _Renewing(_Signer):
    """A token that is asked for, and asked for anew when it ends or is refused."""

    def __init__(self, place: TokenPlace, known: _Known, renew_on: frozenset[int]) -> None:
        super().__init__(place, known, renew_on)
        self._tokens: _Tokens | None = None

    def sign(self, request: Request, send: Send) -> Request:
        """See `Authenticator.sign`."""
        if self._tokens is None or not self._tokens.lasts(self._known.now):
            self._keep(self._obtain(send, refused=None))
        assert self._tokens is not None
        return self._signed(request, self._tokens.access)

    def renew(self, refused: Answer, send: Send) -> bool:
        """See `Authenticator.renew`."""
        del refused
        self._keep(self._obtain(send, refused=self._tokens.access if self._tokens else None))
        return True

    def _keep(self, tokens: _Tokens) -> None:
        self._tokens = tokens
        self._secrets |= {token for token in (tokens.access, tokens.refresh) if token}

    def _obtain(self, send: Send, *, refused: str | None) -> _Tokens:
        raise NotImplementedError


# --- OAuth2 ---------------------------------------------------------------------------------------

_BEARER = TokenPlace(prefix="Bearer")


class _ClientCredentials(_Renewing):
    """RFC 6749, 4.4."""

    def __init__(self, declared: OAuth2ClientCredentials, known: _Known) -> None:
        super().__init__(_BEARER, known, declared.renew_on)
        self._declared = declared

    def _obtain(self, send: Send, *, refused: str | None) -> _Tokens:
        del refused
        return _granted(self._declared, self._known, send, refresh_token=None)


class _RefreshToken(_Renewing):
    """RFC 6749, 6, for servers that rotate refresh tokens and for those that do not."""

    def __init__(self, declared: OAuth2RefreshToken, known: _Known, store: TokenStore) -> None:
        super().__init__(_BEARER, known, declared.renew_on)
        self._declared, self._store = declared, store
        self._first = known.fields["refresh_token"]

    def _obtain(self, send: Send, *, refused: str | None) -> _Tokens:
        """A token that lasts and was not refused: one that is kept, or a new one."""
        now = self._known.now
        for _ in range(LEASE_WAITS_MAX):
            kept, etag = self._kept()
            tokens = _as_tokens(kept)
            if tokens and tokens.access != refused and tokens.lasts(now):
                return tokens
            if kept.renewing_until and kept.renewing_until > now():
                self._known.sleep(LEASE_WAIT_S)
                continue
            with suppress(PreconditionError):  # another poll was first: see what it gets
                lease = kept.model_copy(update={"renewing_until": now() + LEASE})
                return self._exchanged(kept, self._store.save(lease, etag=etag), send)
        raise TokensBusyError(self._known.setting)

    def _kept(self) -> tuple[KeptTokens, str | None]:
        """What is kept, unless the credentials have been given another refresh token since."""
        kept, etag = self._store.load()
        seed = _digest(self._first)
        if kept is None or kept.seed != seed or kept.refresh_token is None:
            kept = KeptTokens(seed=seed, refresh_token=SecretStr(self._first))
        return kept, etag

    def _exchanged(self, kept: KeptTokens, etag: str, send: Send) -> _Tokens:
        """New tokens, written before anyone uses them. Raises `PreconditionError`."""
        assert kept.refresh_token is not None
        old = kept.refresh_token.get_secret_value()
        self._secrets.add(old)
        try:
            tokens = _granted(self._declared, self._known, send, refresh_token=old)
        except BaseException:
            free = kept.model_copy(update={"renewing_until": None})
            with suppress(PreconditionError, StorageError):  # the lease ends by itself as well
                self._store.save(free, etag=etag)
            raise
        tokens = replace(tokens, refresh=tokens.refresh or old)
        self._keep(tokens)  # known as secrets before anything may fail
        self._store.save(
            KeptTokens(
                seed=kept.seed,
                refresh_token=SecretStr(tokens.refresh or old),
                access_token=SecretStr(tokens.access),
                ends_at=tokens.ends_at,
            ),
            etag=etag,
        )
        return tokens


def _as_tokens(kept: KeptTokens) -> _Tokens | None:
    if kept.access_token is None or kept.refresh_token is None:
        return None
    access, refresh = kept.access_token.get_secret_value(), kept.refresh_token.get_secret_value()
    return _Tokens(access, refresh, kept.ends_at)


def _granted(
    declared: OAuth2ClientCredentials | OAuth2RefreshToken,
    known: _Known,
    send: Send,
    *,
    refresh_token: str | None,
) -> _Tokens:
    """The token endpoint's answer. Raises `LoginFailedError`."""
    from api_poller import oauth2  # noqa: PLC0415 - most sources need no oauthlib

    fields = known.fields
    body = oauth2.request_body(
        fields["client_id"],
        fields.get("client_secret"),
        in_body=declared.client_auth == "body" or "client_secret" not in fields,
        scopes=declared.scopes,
        refresh_token=refresh_token,
        params=declared.params,
    )
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if declared.client_auth == "basic" and "client_secret" in fields:
        pair = f"{fields['client_id']}:{fields['client_secret']}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    answer = send(Request("POST", known.address(declared.token_url), headers, body.encode()))
    grant = oauth2.grant(answer.body)
    if isinstance(grant, str):
        raise LoginFailedError(
            answer, f"gives no token ({grant})", _grant_advice(grant, known.setting)
        )
    life = TokenLife(seconds=grant.expires_in) if grant.expires_in else TokenLife()
    ends_at = _ends_at(answer, grant.access_token, life, None, known.now)
    return _Tokens(grant.access_token, grant.refresh_token, ends_at)


def _grant_advice(code: str, setting: str) -> str:
    return {
        "invalid_client": f"check client_id and client_secret of {setting}",
        "unauthorized_client": "allow this grant for the client at the source",
        "invalid_scope": "correct `scopes` of auth",
        "invalid_grant": (
            f"the refresh token has ended or was used elsewhere: authorize the client anew and put "
            f"the new refresh_token into {setting}"
        ),
    }.get(code, f"check `token_url` of auth and the credentials of {setting}")


# --- log-in ---------------------------------------------------------------------------------------


class _Login(_Renewing):
    """A log-in of the source's own make: a JWT, or a session."""

    def __init__(
        self, declared: LoginAuth | SessionTokenAuth, known: _Known, store: TokenStore
    ) -> None:
        super().__init__(declared.send, known, declared.renew_on)
        self._declared, self._store = declared, store

    def _obtain(self, send: Send, *, refused: str | None) -> _Tokens:
        """By the refresh token where there is one that lasts, by logging in where there is none."""
        del refused
        tokens = self._refreshed(send)
        return tokens or self._logged_in(send)

    def _refreshed(self, send: Send) -> _Tokens | None:
        """None where there is nothing to refresh with or it is refused: a log-in mends both."""
        refresh = self._declared.refresh if isinstance(self._declared, LoginAuth) else None
        token = self._tokens.refresh if self._tokens else None
        if refresh is None or token is None:
            return None
        answer = send(self._request(refresh, {"refresh_token": token}))
        if not 200 <= answer.status < 300:
            return None
        made = self._tokens_in(answer)
        return replace(made, refresh=made.refresh or token)

    def _logged_in(self, send: Send) -> _Tokens:
        answer = send(self._request(self._declared.login))
        sign_up = self._declared.sign_up
        if sign_up and answer.status in sign_up.when and self._may_sign_up():
            made = send(self._request(sign_up))
            again = send(self._request(self._declared.login))
            # A user that is there already makes no news of a wrong password.
            answer = made if not _fine(made) and not _fine(again) else again
        if not _fine(answer):
            raise LoginFailedError(answer, f"refuses the log-in with {answer.status}", self.advice)
        return self._tokens_in(answer)

    def _may_sign_up(self) -> bool:
        """Once per user and for ever: a log-in that stays refused must not make a user a poll."""
        seed = _digest(self._known.fields.get("username", ""))
        kept, etag = self._store.load()
        if kept and kept.seed == seed and kept.signed_up:
            return False
        try:
            self._store.save(KeptTokens(seed=seed, signed_up=True), etag=etag)
        except PreconditionError:
            raise TokensBusyError(self._known.setting) from None
        return True

    def _request(self, declared: AuthRequest, more: Mapping[str, str] | None = None) -> Request:
        fields = {**self._known.fields, **(more or {})}
        body = {
            name: filled(value, fields) if isinstance(value, str) else value
            for name, value in declared.body.items()
        }
        headers = {name: filled(value, fields) for name, value in declared.headers.items()}
        if declared.format == "form":
            kind, text = "application/x-www-form-urlencoded", urlencode(body)
        else:
            kind, text = "application/json", json.dumps(body)
        headers["Content-Type"] = kind
        return Request(declared.method, self._known.address(declared.url), headers, text.encode())

    def _tokens_in(self, answer: Answer) -> _Tokens:
        body = _json(answer.body)
        declared = self._declared
        place = declared.from_ if isinstance(declared, SessionTokenAuth) else "body"
        access = {
            "body": lambda: _text_at(body, declared.token),
            "header": lambda: answer.headers.get(declared.token.lower()),
            "cookie": lambda: _cookie(answer.headers.get("set-cookie", ""), declared.token),
        }[place]()
        if not access:
            raise LoginFailedError(
                answer,
                f"answers the log-in with {answer.status} but without a token at "
                f"{declared.token!r} of its {place}",
                "correct `token` of auth",
            )
        path = declared.refresh_token if isinstance(declared, LoginAuth) else None
        refresh = _text_at(body, path) if path else None
        ends_at = _ends_at(answer, access, declared.life, body, self._known.now)
        return _Tokens(access, refresh, ends_at)


def _fine(answer: Answer) -> bool:
    return 200 <= answer.status < 300


# --- when a token ends ----------------------------------------------------------------------------


def _ends_at(answer: Answer, token: str, life: TokenLife, body: Any, now: Now) -> datetime | None:
    """When to renew, by our clock; None where nobody says when, or says it wrongly."""
    left_s = _declared_s(life, body)
    ends = None if left_s is not None or not life.time_at else _time_at(body, life.time_at)
    claims = jwt_claims(token)
    if left_s is None and ends is None:
        ends = _time(claims.get("exp"))
    if left_s is None and ends is not None:
        there = server_time(answer.headers) or _time(claims.get("iat")) or now()
        left_s = (ends - there).total_seconds()
    if left_s is None or left_s <= 0:
        return None
    try:
        return now() + timedelta(seconds=left_s - min(MARGIN_S, left_s / 10))
    except OverflowError:  # for ever
        return None


def _declared_s(life: TokenLife, body: Any) -> float | None:
    if life.seconds is not None:
        return float(life.seconds)
    try:
        return float(_at(body, life.seconds_at)) if life.seconds_at else None
    except (TypeError, ValueError, OverflowError):
        return None


def _time_at(body: Any, path: str) -> datetime | None:
    value = _at(body, path)
    if isinstance(value, str) and not value.isdecimal():
        try:
            read = datetime.fromisoformat(value)
        except ValueError:
            return None
        return read if read.tzinfo else read.replace(tzinfo=UTC)
    return _time(value)


def _time(value: object) -> datetime | None:
    """Seconds or milliseconds since 1970 as a time."""
    try:
        seconds = float(value)  # type: ignore[arg-type]
        return datetime.fromtimestamp(seconds / 1000 if seconds > _EPOCH_S_MAX else seconds, tz=UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def server_time(headers: Mapping[str, str]) -> datetime | None:
    """The server's clock as its `Date` header shows it, to the second."""
    try:
        read = parsedate_to_datetime(headers["date"])
    except (KeyError, ValueError, TypeError):
        return None
    return read if read.tzinfo else None


def jwt_claims(token: str) -> Mapping[str, Any]:
    """What a JWT says of itself; nothing for other tokens.

    Its signature is the server's affair: we only read when to ask for the next one.
    """
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


# --- small readings -------------------------------------------------------------------------------


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _at(body: Any, path: str) -> Any:
    for part in path.split("."):
        if isinstance(body, dict):
            body = body.get(part)
        elif isinstance(body, list) and part.isdecimal() and int(part) < len(body):
            body = body[int(part)]
        else:
            return None
    return body


def _text_at(body: Any, path: str) -> str | None:
    value = _at(body, path)
    return value if isinstance(value, str) and value else None


def _cookie(lines: str, name: str) -> str | None:
    for line in lines.splitlines():
        key, _, value = line.partition(";")[0].partition("=")
        if key.strip() == name:
            return value.strip()
    return None


def _set(headers: dict[str, str], name: str, value: str, *, also: bool = False) -> None:
    """Set a header whatever its capitals; `also` adds to a list of cookies."""
    there = next((known for known in headers if known.lower() == name.lower()), None)
    before = headers.pop(there) if there else None
    headers[name] = f"{before}; {value}" if also and before else value


def _without_parameter(url: str, name: str) -> str:
    base, mark, query = url.partition("?")
    left = [part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name]
    return f"{base}?{'&'.join(left)}" if mark and left else base


def _with_parameter(url: str, name: str, value: str) -> str:
    joint = "&" if "?" in url else "?"
    return f"{url}{joint}{quote_plus(name)}={quote(value, safe='')}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
