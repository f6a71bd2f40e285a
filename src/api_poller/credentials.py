"""Credentials of a source, by reference: in AWS Secrets Manager, or a laptop's environment.

A declaration names them, such as `credentials: SPOTIFY`, and says no more. In the cloud
`SPOTIFY_SECRET_ID` names a secret that holds `{"client_id": "…", "client_secret": "…"}`, or request
headers as `{"headers": {"Authorization": "Bearer …"}}`; it is read at every poll, so that a rotated
one counts at once. On a laptop `SPOTIFY_CREDENTIALS` holds the same JSON, or `SPOTIFY_CLIENT_ID`
and so on one field each. What they hold may stand in no log, error, report or trace: values live in
pydantic's `SecretStr`, errors name the place by position, since also a name may be a token in the
wrong place, and no error is raised while one that holds the text is handled, or Python would chain
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
)

from freshet.errors import SettingsError, TransientError
from freshet.secret import SecretUnavailableError, read_secret

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

Headers = Mapping[str, SecretStr]
Fields = Mapping[str, SecretStr]

HEADERS_MAX = 10
FIELDS_MAX = 30
# What one variable each may hold on a laptop; anything else goes into <NAME>_CREDENTIALS.
LOCAL_FIELDS = (
    *("username", "password", "token", "api_key"),
    *("client_id", "client_secret", "refresh_token"),
)
# Usual servers take 8 KB for all headers together; a longer value is a pasted file.
VALUE_CHARS_MAX = 8_000
_FORM = 'put {"username": "…", "password": "…"} or {"headers": {"Authorization": "Bearer …"}} there'

# RFC 9110, 5.6.2 (RFC 7230, 3.2.6): a name is a token.
_NAME_PATTERN = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$"
# The connection's and the poller's own: they say where a request ends, where it goes and what comes
# back, so none of them is a credential. Names are compared in lower case.
_OWN_NAMES = frozenset(
    ("connection", "expect", "host", "keep-alive", "range", "te", "trailer", "transfer-encoding")
) | {"upgrade", "user-agent"}
_OWN_PREFIXES = ("accept", "content-", "if-", "proxy-")


class CredentialsUnavailableError(TransientError):
    """Secrets Manager throttled or did not answer; nothing was asked of the source."""

    def __init__(self, setting: str, detail: str) -> None:
        self.setting, self.detail = setting, detail
        super().__init__(
            f"the secret that {setting} names cannot be read now ({detail}): nothing was published "
            "and the watermark stays; the next poll takes up from there"
        )


@dataclass(frozen=True, slots=True)
class Credentials:
    """The fields that a log-in uses, and headers to send along; `setting` names them in errors."""

    setting: str
    fields: Fields = field(default_factory=dict)
    headers: Headers = field(default_factory=dict)


def credentials_for(
    reference: str, environ: Mapping[str, str], secrets: Callable[[], SecretsManagerClient]
) -> Credentials:
    """The credentials of this name as they are now; none where nothing is set.

    `environ` is what the settings hand over, `secrets` makes the client when a secret is named.
    Raises `SettingsError` where a person must act, `CredentialsUnavailableError` where the next
    poll may succeed.
    """
    setting = f"{reference}_SECRET_ID"
    if secret_id := environ.get(setting):
        return read_credentials(secrets(), secret_id, setting=setting)
    setting = f"{reference}_CREDENTIALS"
    made = parse_credentials(environ.get(setting, ""), setting=setting)
    single = {
        name: SecretStr(value)
        for name in LOCAL_FIELDS
        if (value := environ.get(f"{reference}_{name.upper()}"))
    }
    return replace(made, fields={**made.fields, **single})


def read_credentials(client: SecretsManagerClient, secret_id: str, *, setting: str) -> Credentials:
    """What the secret `secret_id` holds now; no credentials while it has no value.

    `setting` is the environment variable that names the secret, for errors. Raises as
    `credentials_for`.
    """
    try:
        value = read_secret(client, secret_id, setting=setting)
    except SecretUnavailableError as error:
        raise CredentialsUnavailableError(setting, error.detail) from error
    if value is None:
        return Credentials(setting)
    return parse_credentials(value if isinstance(value, str) else None, setting=setting)


def parse_credentials(text: str | None, *, setting: str) -> Credentials:
    """The credentials that a text describes. Raises `SettingsError`, which quotes none of it.

    `text` is None for a binary secret; a blank one holds no credentials.
    """
    if text is not None and not text.strip():
        return Credentials(setting)
    try:
        content = None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise SettingsError(setting, f"holds no JSON object: {_FORM}")
    parts = {"headers": content["headers"]} if "headers" in content else {}
    fields = {name: value for name, value in content.items() if name != "headers"}
    try:
        read = _Content.model_validate({**parts, "fields": fields})
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
        detail = f"{_place(wrong['loc'], content)}: {wrong['msg']}"
    else:
        return Credentials(setting, read.fields, read.headers)
    raise SettingsError(setting, f"its content is wrong at {detail}; {_FORM}")


def _settable(name: str) -> str:
    lower = name.lower()
    if lower in _OWN_NAMES or lower.startswith(_OWN_PREFIXES):
        raise ValueError("is a header that the poller sets itself")
    return name


def _sendable(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not 0 < len(text) <= VALUE_CHARS_MAX:
        raise ValueError(f"a value must have 1 to {VALUE_CHARS_MAX} characters")
    if not text.replace("\t", " ").isprintable() or not text.isascii():
        raise ValueError("a value must be printable ASCII, without line breaks")
    if text != text.strip():
        raise ValueError("a value must not begin or end with white space")
    return value


def _usable(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not 0 < len(text) <= VALUE_CHARS_MAX:
        raise ValueError(f"a value must have 1 to {VALUE_CHARS_MAX} characters")
    if not text.isprintable():
        raise ValueError("a value must be printable, without line breaks")
    return value


def _distinct(headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
    if len({name.lower() for name in headers}) != len(headers):
        raise ValueError("a header is there twice; capitals make no difference")
    return headers


_Name = Annotated[
    str, StringConstraints(pattern=_NAME_PATTERN, max_length=256), AfterValidator(_settable)
]
_Value = Annotated[SecretStr, AfterValidator(_sendable)]


_FieldName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_FieldValue = Annotated[SecretStr, AfterValidator(_usable)]


class _Content(BaseModel):
    """What credentials must hold."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    fields: Annotated[dict[_FieldName, _FieldValue], Field(max_length=FIELDS_MAX)]
    headers: Annotated[
        dict[_Name, _Value],
        Field(min_length=1, max_length=HEADERS_MAX, default_factory=dict),
        AfterValidator(_distinct),
    ]


def _place(loc: tuple[int | str, ...], content: Mapping[str, Any]) -> str:
    """Where a problem lies, without a word of the content: `headers[2]` is the second header."""
    if len(loc) == 1:
        return "the object" if loc[0] == "fields" else "headers"
    within = content if loc[0] == "fields" else content["headers"]
    if not isinstance(within, dict):
        return "headers"
    at = list(within).index(loc[1]) + 1
    return f"member {at}" if loc[0] == "fields" else f"headers[{at}]"
