"""What a declaration of a log-in may say, when a token ends, which addresses are never spoken to,
and how tokens are kept.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError
from tests.misbehaving import jwt

from api_poller import oauth2
from api_poller.auth import authenticator_for, jwt_claims
from api_poller.auth_models import Auth, fields_needed, filled
from api_poller.http import Answer, Request
from api_poller.tokens import KeptTokens, MemoryTokens, ObjectTokens, TokenStore, tokens_key
from api_poller.transport import forbidden, place_of
from freshet.errors import SettingsError
from freshet.objects import DirectoryObjects, PreconditionError
from freshet.testing import StoppedClock

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
AUTHS: TypeAdapter[Any] = TypeAdapter(Auth)
LOGIN = {"url": "/login", "body": {"email": "{username}", "password": "{password}", "days": 3}}
REFRESH = {"url": "/refresh", "body": {"token": "{refresh_token}", "client": "{client_id}"}}

# --- declarations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "needed"),
    [
        ({"kind": "none"}, set()),
        ({"kind": "basic"}, {"username"}),
        ({"kind": "bearer"}, {"token"}),
        ({"kind": "api_key", "in": "query", "name": "k"}, {"api_key"}),
        (
            {"kind": "oauth2_client_credentials", "token_url": "https://a/t"},
            {"client_id", "client_secret"},
        ),
        (
            {"kind": "oauth2_refresh_token", "token_url": "https://a/t"},
            {"client_id", "refresh_token"},
        ),
        ({"kind": "login", "login": LOGIN}, {"username", "password"}),
        (
            {"kind": "login", "login": LOGIN, "refresh": REFRESH},
            {"username", "password", "client_id"},
        ),
        (
            {
                "kind": "session_token",
                "login": LOGIN,
                "token": "t",
                "send": {"in": "cookie", "name": "s"},
                "sign_up": {"url": "/users", "headers": {"X-Key": "{api_key}"}},
            },
            {"username", "password", "api_key"},
        ),
    ],
)
def test_a_kind_names_the_credentials_that_it_needs(
    declared: dict[str, Any], needed: set[str]
) -> None:
    auth = AUTHS.validate_python(declared)
    fields = {name: SecretStr("x" * 9) for name in needed}

    assert fields_needed(auth) == needed
    authenticator_for(auth, fields, MemoryTokens(), StoppedClock(NOW))
    for name in needed:
        rest = {one: value for one, value in fields.items() if one != name}
        with pytest.raises(SettingsError, match=f"setting SHOP: auth of kind .* needs {name}"):
            authenticator_for(auth, rest, MemoryTokens(), StoppedClock(NOW), setting="SHOP")


@pytest.mark.parametrize(
    ("declared", "place"),
    [
        ({}, "kind"),
        ({"kind": "magic"}, "magic"),
        ({"kind": "none", "token": "abc"}, "none.token"),
        ({"kind": "bearer", "token": "abc"}, "bearer.token"),
        ({"kind": "api_key", "in": "header"}, "api_key.name"),
        ({"kind": "api_key", "in": "body", "name": "k"}, "api_key.in"),
        ({"kind": "api_key", "in": "header", "name": "a b"}, "api_key.name"),
        ({"kind": "api_key", "in": "header", "name": "a", "prefix": "K\r\nHost: b"}, "prefix"),
        ({"kind": "oauth2_refresh_token", "token_url": "ftp://a/t"}, "token_url"),
        ({"kind": "oauth2_refresh_token", "token_url": "https://u:p@a/t"}, "token_url"),
        ({"kind": "oauth2_refresh_token", "token_url": "//a/t"}, "token_url"),
        ({"kind": "oauth2_refresh_token", "token_url": "https://["}, "token_url"),
        ({"kind": "login", "login": {"url": "/l", "method": "GET"}}, "login.method"),
        ({"kind": "login", "login": LOGIN, "renew_on": [200]}, "renew_on"),
        ({"kind": "session_token", "login": LOGIN, "token": "t"}, "session_token.send"),
    ],
)
def test_what_is_no_declaration_is_named_by_its_place(declared: dict[str, Any], place: str) -> None:
    with pytest.raises(ValidationError) as raised:
        AUTHS.validate_python(declared)

    assert place in str(raised.value)


def test_a_value_is_filled_in_once_whatever_it_holds() -> None:
    assert filled("{a}{b} {}{0}", {"a": "{b}", "b": "\\1"}) == "{b}\\1 {}{0}"


def test_declarations_have_a_schema_for_editors() -> None:
    schema = AUTHS.json_schema()

    assert set(schema["discriminator"]["mapping"]) == {
        *("none", "basic", "bearer", "api_key", "login", "session_token"),
        *("oauth2_client_credentials", "oauth2_refresh_token"),
    }


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("169.254.169.254", "metadata"),
        ("fe80::1%eth0", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("2002:a9fe:a9fe::1", "metadata"),
        ("fd00:ec2::254", "private"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("0.0.0.0", "private"),
        ("::", "private"),
        ("224.0.0.1", "private"),
        ("239.1.1.1", "private"),
        ("ff02::1", "private"),
        ("ff0e::1", "private"),
        ("255.255.255.255", "private"),
        ("127.0.0.1", "this machine"),
        ("127.8.8.8", "this machine"),
        ("::1", "this machine"),
        ("::ffff:127.0.0.1", "this machine"),
    ],
)
def test_inner_addresses_are_never_spoken_to(address: str, reason: str) -> None:
    assert reason in (forbidden(address, allow_loopback=False) or "")
    assert (forbidden(address, allow_loopback=True) is None) is (reason == "this machine")


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::808:808"])
def test_public_addresses_are_fine(address: str) -> None:
    assert forbidden(address, allow_loopback=False) is None


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://Shop.Example/a", "shop.example"),
        ("https://shop.example:443", "shop.example"),
        ("http://shop.example:443", "shop.example:443"),
        ("https://shop.example:8443/a?b", "shop.example:8443"),
        ("https://[2606:2800::1]/", "[2606:2800::1]"),
        ("https://evil.example\\@shop.example/", "evil.example"),
        ("https://shop.example#@evil.example/", "shop.example"),
    ],
)
def test_a_place_is_what_the_library_that_connects_reads(url: str, place: str) -> None:
    assert place_of(url) == place


# --- tokens ---------------------------------------------------------------------------------------


@given(st.text() | st.lists(st.text(), min_size=3, max_size=3).map(".".join))
def test_what_is_no_jwt_has_no_claims(text: str) -> None:
    assert isinstance(jwt_claims(text), dict)


def test_the_claims_of_a_jwt_are_read_whatever_its_padding() -> None:
    for length in range(8):
        assert jwt_claims(jwt({"sub": "x" * length}))["sub"] == "x" * length


@pytest.mark.parametrize("end", [-1, 0, "soon", None, True, 1e400, 10**30, [1]])
def test_an_end_that_makes_no_sense_is_no_end(end: Any) -> None:
    """A token that would look ended at once must not mean a log-in for every request."""
    token = jwt({"exp": end})
    logins: list[Request] = []

    def send(request: Request) -> Answer:
        logins.append(request)
        return Answer(request.url, 200, {}, json.dumps({"access_token": token}).encode(), True)

    authenticator = authenticator_for(
        AUTHS.validate_python({"kind": "login", "login": {"url": "https://a/l"}}),
        {},
        MemoryTokens(),
        StoppedClock(NOW),
    )

    for _ in range(3):
        signed = authenticator.sign(Request("GET", "https://a/things"), send)

    assert signed.headers == {"Authorization": f"Bearer {token}"}
    assert len(logins) == 1


def test_a_jwt_of_a_server_that_shows_no_clock_lives_as_long_as_it_says_itself() -> None:
    clock, logins, there = StoppedClock(NOW), list[Request](), NOW.timestamp() - 86_400

    def send(request: Request) -> Answer:
        logins.append(request)
        body = json.dumps({"access_token": jwt({"iat": there, "exp": there + 3600})}).encode()
        return Answer(request.url, 200, {}, body, measured=True)

    declared = AUTHS.validate_python({"kind": "login", "login": {"url": "https://a/l"}})
    authenticator = authenticator_for(declared, {}, MemoryTokens(), clock)
    counts = []
    for wait_s in (0, 3569, 2):
        clock.advance(wait_s)
        authenticator.sign(Request("GET", "https://a/things"), send)
        counts.append(len(logins))

    assert counts == [1, 1, 2]


@pytest.mark.parametrize(
    ("end", "lives_s"),
    [
        ("2026-11-21T09:30:00Z", 3600),
        ("2026-11-21T10:30:00+01:00", 3600),
        ("2026-11-21T09:30:00", 3600),
        (int(NOW.timestamp()) + 3600, 3600),
        (str(int(NOW.timestamp()) + 3600), 3600),
        ((int(NOW.timestamp()) + 3600) * 1000, 3600),
        (int(NOW.timestamp()) + 100, 100),
    ],
)
def test_a_declared_end_is_read_in_the_usual_ways(end: Any, lives_s: int) -> None:
    clock, logins = StoppedClock(NOW), list[Request]()

    def send(request: Request) -> Answer:
        logins.append(request)
        return Answer(request.url, 200, {}, json.dumps({"t": "opaque", "end": end}).encode(), True)

    declared = {
        "kind": "login",
        "login": {"url": "https://a/l"},
        "token": "t",
        "life": {"time_at": "end"},
    }
    authenticator = authenticator_for(AUTHS.validate_python(declared), {}, MemoryTokens(), clock)
    counts = []
    margin_s = min(30, lives_s / 10)
    for wait_s in (0, lives_s - margin_s - 1, 2):
        clock.advance(wait_s)
        authenticator.sign(Request("GET", "https://a/things"), send)
        counts.append(len(logins))

    assert counts == [1, 1, 2]


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"[]", b"null", b"5", b"<html>", b"[" * 100_000, b"\xff", b'{"access_token": []}'),
        *(b'{"access_token": "a", "expires_in": "soon"}', b'{"error": null}'),
    ],
)
def test_what_is_no_grant_is_a_code_and_no_exception(body: bytes) -> None:
    assert isinstance(oauth2.grant(body), str)


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token": "abcdefgh", "expires_in": "3600", "refresh_token": ""}',
        b"access_token=abcdefgh&expires_in=3600",
    ],
)
def test_grants_of_loose_servers_are_read(body: bytes) -> None:
    assert oauth2.grant(body) == oauth2.Grant("abcdefgh", None, 3600)


# --- kept tokens ----------------------------------------------------------------------------------

KEPT = KeptTokens(
    seed="abc",
    refresh_token=SecretStr("refresh-token-1"),
    access_token=SecretStr("access-token-1"),
    ends_at=NOW,
    renewing_until=NOW + timedelta(seconds=1),
)


@pytest.fixture(params=["memory", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> TokenStore:
    if request.param == "memory":
        return MemoryTokens()
    return ObjectTokens(DirectoryObjects(tmp_path), "SHOP")


def test_tokens_come_back_as_they_were_kept(store: TokenStore) -> None:
    assert store.load() == (None, None)

    etag = store.save(KEPT, etag=None)

    assert store.load() == (KEPT, etag)


def test_of_two_writers_the_second_hears_of_the_first(store: TokenStore) -> None:
    etag = store.save(KEPT, etag=None)
    store.save(KEPT, etag=etag)

    for stale in (None, etag):
        with pytest.raises(PreconditionError):
            store.save(KEPT, etag=stale)


@pytest.mark.parametrize(
    "data",
    [b"", b"x", zstandard.compress(b"{}"), zstandard.compress(b" " * 10_000_000)],
    ids=["empty", "no zstd", "no tokens", "bomb"],
)
def test_an_object_that_holds_no_tokens_is_as_good_as_none(data: bytes, tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path)
    etag = objects.put(tokens_key("SHOP"), data)
    store = ObjectTokens(objects, "SHOP")

    assert store.load() == (None, etag)
    store.save(KEPT, etag=etag)
    assert store.load()[0] == KEPT
