"""OAuth2's messages to and from a token endpoint, by oauthlib.

Apart from `auth` because importing oauthlib takes a tenth of a cold start, and most sources have no
use for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error

_NO_ANSWER = "no OAuth2 answer"


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token endpoint gave; `expires_in` in seconds, None where it does not say."""

    access_token: str = field(repr=False)
    refresh_token: str | None = field(repr=False)
    expires_in: int | None


def request_body(
    client_id: str,
    client_secret: str | None,
    *,
    in_body: bool,
    scopes: tuple[str, ...],
    refresh_token: str | None,
    params: Mapping[str, str],
) -> str:
    """The form that asks for a token: for the refresh token, or for the client itself without."""
    client = BackendApplicationClient(client_id)
    more = dict(params)
    if in_body and client_secret is not None:
        more["client_secret"] = client_secret
    scope = list(scopes) or None
    body: str
    if refresh_token is None:
        body = client.prepare_request_body(scope=scope, include_client_id=in_body, **more)
    else:
        if in_body:
            more["client_id"] = client_id
        body = client.prepare_refresh_body(refresh_token=refresh_token, scope=scope, **more)
    return body


def grant(body: bytes) -> Grant | str:
    """What the endpoint gave, or the error code of RFC 6749, 5.2, that it answered."""
    text = body.decode("utf-8", "replace")
    if not _is_object_or_form(text):
        return _NO_ANSWER
    try:
        found = BackendApplicationClient("").parse_request_body_response(text)
    except OAuth2Error as error:
        return str(error.error)
    except (ValueError, TypeError, Warning):  # such as `expires_in` that is no number
        return _NO_ANSWER
    access, refresh, seconds = (
        found.get(name) for name in ("access_token", "refresh_token", "expires_in")
    )
    if not isinstance(access, str):
        return _NO_ANSWER
    return Grant(
        access,
        refresh if isinstance(refresh, str) and refresh else None,
        int(seconds) if isinstance(seconds, int | float) and seconds > 0 else None,
    )


def _is_object_or_form(text: str) -> bool:
    """Whether oauthlib can read it: some servers still answer a form."""
    try:
        return isinstance(json.loads(text), dict)
    except RecursionError:
        return False
    except ValueError:
        return True
