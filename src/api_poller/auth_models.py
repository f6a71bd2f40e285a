"""How a source wants to be logged in to, as its declaration says it.

Only the way is declared, never a secret: what a request needs is named as a field of the source's
credentials (`username`, `client_secret`, …), which live elsewhere. Each kind says which fields it
needs, so that a missing one is named before anything is asked of the source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from urllib3.util import parse_url

_FIELD = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# RFC 9110, 5.6.2: the name of a header, and RFC 6265 of a cookie, is a token.
_Token = Annotated[str, StringConstraints(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}$")]
_Status = Annotated[int, Field(ge=400, le=499)]
_Path = Annotated[str, Field(min_length=1, max_length=256)]


def _address(value: str) -> str:
    """An absolute address, or a path below the source's base URL."""
    if value.startswith("/") and not value.startswith("//"):
        return value
    parts = parse_url(value)  # the parser of what connects: no two readings of a host
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ValueError("must be https://host/path, or /path below the source's url")
    if parts.auth:
        raise ValueError("must not hold credentials: name them by `credentials`")
    return value


Address = Annotated[str, Field(max_length=2048), AfterValidator(_address)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class TokenPlace(_Part):
    """Where a token or key goes: `in` a header, query parameter or cookie of this name.

    `prefix` stands before the value, parted by a blank.
    """

    in_: Literal["header", "query", "cookie"] = Field("header", alias="in")
    name: _Token = "Authorization"
    prefix: str = Field("", pattern=r"^[!-~]*$", max_length=64)


_BEARER = TokenPlace(name="Authorization", prefix="Bearer")


class NoAuth(_Part):
    """Open to all."""

    kind: Literal["none"] = "none"


class BasicAuth(_Part):
    """HTTP Basic with the credentials' `username` and `password`."""

    kind: Literal["basic"]


class BearerAuth(_Part):
    """`Authorization: Bearer` with the credentials' `token`."""

    kind: Literal["bearer"]
    prefix: str = Field("Bearer", pattern=r"^[!-~]*$", max_length=64)


class ApiKeyAuth(TokenPlace):
    """The credentials' `api_key` in a header, a query parameter or a cookie."""

    kind: Literal["api_key"]
    name: _Token = Field(...)


class _OAuth2(_Part):
    token_url: Address
    scopes: tuple[str, ...] = ()
    # RFC 6749, 2.3.1: servers must take Basic; some take only the body.
    client_auth: Literal["basic", "body"] = "basic"
    params: Mapping[str, str] = Field(default_factory=dict)  # such as `audience`
    renew_on: frozenset[_Status] = frozenset((401,))


class OAuth2ClientCredentials(_OAuth2):
    """RFC 6749, 4.4: a token for the credentials' `client_id` and `client_secret`."""

    kind: Literal["oauth2_client_credentials"]


class OAuth2RefreshToken(_OAuth2):
    """RFC 6749, 6: a token for the credentials' `refresh_token`; a rotated one is kept.

    A public client has no `client_secret`.
    """

    kind: Literal["oauth2_refresh_token"]


class AuthRequest(_Part):
    """A request that logs in; `{field}` in a text of `body` or `headers` is a credential."""

    url: Address
    method: Literal["POST", "PUT"] = "POST"
    format: Literal["json", "form"] = "json"
    body: Mapping[str, str | int | float | bool] = Field(default_factory=dict)
    headers: Mapping[_Token, str] = Field(default_factory=dict)

    def fields(self) -> frozenset[str]:
        """The credentials that the request names."""
        return fields_in([*self.body.values(), *self.headers.values()])


class SignUp(AuthRequest):
    """Makes the user when a login with one of these statuses says that there is none."""

    when: frozenset[_Status] = frozenset((400, 401, 404))


class RefreshRequest(AuthRequest):
    """Gets a new token for `{refresh_token}`, which the login or the last refresh answered."""


class TokenLife(_Part):
    """When a token ends, where it is no JWT that says so itself.

    `seconds` is fixed; `seconds_at` and `time_at` are paths into the answer to a number of seconds
    from now, and to an ISO time or seconds since 1970.
    """

    seconds: int | None = Field(None, gt=0)
    seconds_at: _Path | None = None
    time_at: _Path | None = None


class LoginAuth(_Part):
    """A login that answers a token, often a JWT, and maybe a refresh token.

    `token` and `refresh_token` are paths into the answer of login and refresh alike.
    """

    kind: Literal["login"]
    login: AuthRequest
    token: _Path = "access_token"  # noqa: S105 - a path
    refresh_token: _Path | None = None
    refresh: RefreshRequest | None = None
    sign_up: SignUp | None = None
    life: TokenLife = TokenLife()
    send: TokenPlace = _BEARER
    renew_on: frozenset[_Status] = frozenset((401,))


class SessionTokenAuth(_Part):
    """A login whose session comes `from` the answer's body, a header or a cookie.

    `token` is the path, or the name of the header or cookie.
    """

    kind: Literal["session_token"]
    login: AuthRequest
    from_: Literal["body", "header", "cookie"] = Field("body", alias="from")
    token: _Path
    sign_up: SignUp | None = None
    life: TokenLife = TokenLife()
    send: TokenPlace
    renew_on: frozenset[_Status] = frozenset((401,))


Auth = Annotated[
    NoAuth
    | BasicAuth
    | BearerAuth
    | ApiKeyAuth
    | OAuth2ClientCredentials
    | OAuth2RefreshToken
    | LoginAuth
    | SessionTokenAuth,
    Field(discriminator="kind"),
]


def fields_needed(auth: Auth) -> frozenset[str]:
    """The fields that the credentials of a source with this login must have."""
    if not isinstance(auth, LoginAuth | SessionTokenAuth):
        return _FIELDS_NEEDED[auth.kind]
    refresh = auth.refresh if isinstance(auth, LoginAuth) else None
    requests = [one for one in (auth.login, auth.sign_up, refresh) if one]
    named = frozenset[str]().union(*(one.fields() for one in requests))
    return named - {"refresh_token"} if refresh else named


_FIELDS_NEEDED: Mapping[str, frozenset[str]] = {
    "none": frozenset(),
    "basic": frozenset(("username",)),  # an empty password is usual where a key is the user
    "bearer": frozenset(("token",)),
    "api_key": frozenset(("api_key",)),
    "oauth2_client_credentials": frozenset(("client_id", "client_secret")),
    "oauth2_refresh_token": frozenset(("client_id", "refresh_token")),
}


def fields_in(values: Iterable[object]) -> frozenset[str]:
    """The names that stand as `{name}` in texts."""
    return frozenset(
        name for value in values if isinstance(value, str) for name in _FIELD.findall(value)
    )


def filled(template: str, fields: Mapping[str, str]) -> str:
    """The text with each `{name}` replaced once. Raises `KeyError` for a name without value."""
    return _FIELD.sub(lambda found: fields[found[1]], template)
