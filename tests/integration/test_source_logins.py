"""Every kind of log-in against a server with a door, over real sockets: what is sent, what happens
when tokens end, and what happens when they are refused.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, TypeAdapter
from tests.misbehaving import Door, Misbehaving, Visit, misbehaving, raw, status, value

from api_poller.auth import TokensBusyError, authenticator_for
from api_poller.auth_models import Auth
from api_poller.declaration import parse_source
from api_poller.http import (
    Limits,
    Request,
    Session,
    SourceRefusedError,
    SourceUnavailableError,
)
from api_poller.settings import SHIPPED_SOURCES
from api_poller.tokens import KeptTokens, MemoryTokens, ObjectTokens, TokenStore
from api_poller.transport import UrllibTransport
from freshet.objects import DirectoryObjects
from freshet.testing import StoppedClock

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
LIMITS = Limits(requests_per_second=None, read_timeout_s=1.0, attempts_max=2, wait_s_first=0.01)
USER = {"username": "ada@mail.com", "password": "countess-1815"}
CLIENT = {"client_id": Door.CLIENT[0], "client_secret": Door.CLIENT[1]}
AUTHS: TypeAdapter[Any] = TypeAdapter(Auth)

GRANT = {"kind": "oauth2_client_credentials", "token_url": "/oauth/token"}
REFRESH = {"kind": "oauth2_refresh_token", "token_url": "/oauth/token"}
LOGIN = {
    "kind": "login",
    "login": {"url": "/auth/login", "body": {"email": "{username}", "password": "{password}"}},
}
WITH_REFRESH = LOGIN | {
    "refresh_token": "refresh_token",
    "refresh": {"url": "/auth/refresh", "body": {"refreshToken": "{refresh_token}"}},
}
SIGN_UP = {
    "url": "/users",
    "body": {"name": "Freshet", "email": "{username}", "password": "{password}"},
}
SESSION = {
    "kind": "session_token",
    "login": {"url": "/session", "body": {"username": "{username}", "password": "{password}"}},
    "token": "data.session",
    "send": {"in": "header", "name": "X-Session"},
}


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as made:
        yield made


class Rig:
    """Sessions with a server that has a door; all share one clock, which sleeping advances."""

    def __init__(self, server: Misbehaving) -> None:
        self.server, self.clock, self.door = server, StoppedClock(NOW), Door(server)
        server.clock = self.clock
        self.transport = UrllibTransport()

    def session(
        self,
        auth: Mapping[str, Any],
        fields: Mapping[str, str],
        tokens: TokenStore | None = None,
        *,
        sleep: Any = None,
    ) -> Session:
        authenticator = authenticator_for(
            AUTHS.validate_python(auth),
            {name: SecretStr(text) for name, text in fields.items()},
            tokens or MemoryTokens(),
            self.clock,
            base_url=self.server.url,
            setting="SHOP_CREDENTIALS",
            sleep=sleep or self.clock.advance,
        )
        return Session(
            "shop",
            LIMITS,
            frozenset((self.server.place,)),
            authenticator,
            transport=self.transport,
            now=self.clock,
            sleep=self.clock.advance,
            allow_loopback=True,
        )

    def fetch(self, session: Session, path: str = "/things") -> bytes:
        return session.fetch(Request("GET", f"{self.server.url}{path}")).body

    def asked(self) -> list[str]:
        return [seen.path for seen in self.server.seen]


@pytest.fixture
def rig(server: Misbehaving) -> Iterator[Rig]:
    made = Rig(server)
    yield made
    made.transport.close()


THINGS = b'[{"id": 1}]'


# --- values that never change ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "fields", "header", "sent"),
    [
        (
            {"kind": "basic"},
            {"username": "Ada", "password": "a:b"},
            "authorization",
            "Basic QWRhOmE6Yg==",
        ),
        ({"kind": "basic"}, {"username": "key"}, "authorization", "Basic a2V5Og=="),
        ({"kind": "bearer"}, {"token": "abc"}, "authorization", "Bearer abc"),
        ({"kind": "bearer", "prefix": "Token"}, {"token": "abc"}, "authorization", "Token abc"),
        (
            {"kind": "api_key", "in": "header", "name": "X-Api-Key"},
            {"api_key": "abc"},
            "x-api-key",
            "abc",
        ),
        (
            {"kind": "api_key", "in": "header", "name": "Authorization", "prefix": "Key"},
            {"api_key": "abc"},
            "authorization",
            "Key abc",
        ),
        (
            {"kind": "api_key", "in": "cookie", "name": "sid"},
            {"api_key": "abc"},
            "cookie",
            "sid=abc",
        ),
    ],
)
def test_a_fixed_value_goes_where_it_is_declared_to(
    auth: dict[str, Any], fields: dict[str, str], header: str, sent: str, rig: Rig
) -> None:
    rig.server.on("/things", value([]))

    rig.fetch(rig.session(auth, fields))

    assert rig.server.seen[0].headers[header] == sent


def test_a_key_in_the_query_is_set_once_and_never_told(rig: Rig) -> None:
    rig.server.on("/things", value([]))
    session = rig.session(
        {"kind": "api_key", "in": "query", "name": "key"}, {"api_key": "a b&c=d/1234"}
    )

    answers = [
        session.fetch(Request("GET", f"{rig.server.url}/things{query}"))
        for query in ("", "?a=1%2B2&key=old&b=", "?key=old")
    ]

    assert [seen.query for seen in rig.server.seen] == [
        {"key": "a b&c=d/1234"},
        {"a": "1+2", "b": "", "key": "a b&c=d/1234"},
        {"key": "a b&c=d/1234"},
    ]
    assert [answer.url for answer in answers] == [
        f"{rig.server.url}/things",
        f"{rig.server.url}/things?a=1%2B2&b=",
        f"{rig.server.url}/things",
    ]
    assert session.unsigned("https://shop/a?key=1&b=2") == "https://shop/a?b=2"


def test_headers_of_the_credentials_go_along_with_every_request(rig: Rig) -> None:
    rig.server.on("/things", value([]))
    authenticator = authenticator_for(
        AUTHS.validate_python({"kind": "none"}),
        {},
        MemoryTokens(),
        rig.clock,
        headers={"Authorization": SecretStr("Bearer abc")},
    )
    session = rig.session({"kind": "none"}, {})
    session._auth = authenticator

    rig.fetch(session)

    assert rig.server.seen[0].headers["authorization"] == "Bearer abc"


def test_a_fixed_value_that_is_refused_is_not_tried_again(rig: Rig) -> None:
    rig.server.on("/things", status(401))

    with pytest.raises(SourceRefusedError, match="check the credentials of SHOP_CREDENTIALS"):
        rig.fetch(rig.session({"kind": "bearer"}, {"token": "abc"}))

    assert rig.asked() == ["/things"]


# --- client credentials ---------------------------------------------------------------------------


@pytest.mark.parametrize("client_auth", ["basic", "body"])
def test_a_client_gets_one_token_for_many_requests(client_auth: str, rig: Rig) -> None:
    auth = GRANT | {
        "client_auth": client_auth,
        "scopes": ["read", "list"],
        "params": {"audience": "https://api"},
    }
    session = rig.session(auth, CLIENT)

    assert [rig.fetch(session), rig.fetch(session)] == [THINGS, THINGS]

    asked = rig.server.seen[0]
    assert rig.asked() == ["/oauth/token", "/things", "/things"]
    assert asked.form["grant_type"] == "client_credentials"
    assert (asked.form["scope"], asked.form["audience"]) == ("read list", "https://api")
    assert ("authorization" in asked.headers) is (client_auth == "basic")
    assert ("client_secret" in asked.form) is (client_auth == "body")


def test_a_token_is_renewed_before_it_ends(rig: Rig) -> None:
    session = rig.session(GRANT, CLIENT)
    rig.fetch(session)

    rig.clock.advance(3600 - 29)
    rig.fetch(session)

    assert rig.asked() == ["/oauth/token", "/things"] * 2


def test_a_token_that_ends_in_the_middle_of_a_listing_is_renewed_and_the_page_asked_again(
    rig: Rig,
) -> None:
    session = rig.session(GRANT, CLIENT)
    rig.fetch(session)
    rig.door.revoked.update(rig.door.issued)

    assert rig.fetch(session) == THINGS
    assert rig.asked() == ["/oauth/token", "/things", "/things", "/oauth/token", "/things"]


def test_a_new_token_that_is_refused_as_well_ends_it_and_says_what_to_check(rig: Rig) -> None:
    rig.server.on("/things", status(401))

    with pytest.raises(
        SourceRefusedError,
        match=r"answers 401.*also after logging in anew.*credentials of SHOP_CREDENTIALS",
    ) as raised:
        rig.fetch(rig.session(GRANT, CLIENT))

    assert raised.value.status == 401
    assert rig.asked() == ["/oauth/token", "/things"] * 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (value({"error": "invalid_client"}, 401), "check client_id and client_secret of SHOP"),
        (value({"error": "invalid_scope"}, 400), "correct `scopes`"),
        (value({"error": {"status": 400}}, 400), "gives no token"),
        (value([], 200), "no OAuth2 answer.*`token_url`"),
        (value({"access_token": 5}, 200), "no OAuth2 answer"),
        (value({"token": "abc"}, 200), "missing_token"),
        (value(None, 200), "no OAuth2 answer"),
        (status(404), "check `token_url`"),
    ],
)
def test_a_token_endpoint_that_gives_none_is_named_with_what_to_mend(
    reply: Any, message: str, rig: Rig
) -> None:
    rig.server.on("/oauth/token", reply)

    with pytest.raises(SourceRefusedError, match=message) as raised:
        rig.fetch(rig.session(GRANT, CLIENT))

    assert f"at {rig.server.url}/oauth/token" in str(raised.value)
    assert rig.asked() == ["/oauth/token"]


def test_no_secret_of_a_refused_client_is_told(rig: Rig) -> None:
    wrong = CLIENT | {"client_secret": "wrong-secret-0815"}

    with pytest.raises(SourceRefusedError, match="who is") as raised:
        rig.fetch(rig.session(GRANT, wrong))

    error = raised.value
    assert "wrong-secret-0815" not in f"{error} {error!r} {vars(error)}"
    assert (error.__cause__, error.__context__) == (None, None)


def test_a_token_endpoint_that_is_down_for_a_moment_goes_unnoticed(rig: Rig) -> None:
    rig.server.faults.append(status(503))

    assert rig.fetch(rig.session(GRANT, CLIENT)) == THINGS


def test_a_token_endpoint_that_stays_down_is_unavailable(rig: Rig) -> None:
    rig.server.on("/oauth/token", raw(b""))

    with pytest.raises(SourceUnavailableError, match="/oauth/token"):
        rig.fetch(rig.session(GRANT, CLIENT))


# --- refresh tokens -------------------------------------------------------------------------------

OWNER = CLIENT | {"refresh_token": "refresh-token-0"}


def store_in(folder: Path) -> ObjectTokens:
    return ObjectTokens(DirectoryObjects(folder), "SHOP")


def opened(tokens: TokenStore) -> tuple[str | None, str | None]:
    kept, _ = tokens.load()
    assert kept is not None
    return tuple(
        one.get_secret_value() if one else None for one in (kept.refresh_token, kept.access_token)
    )  # type: ignore[return-value]


def test_a_rotated_refresh_token_is_written_before_the_token_that_came_with_it_is_used(
    rig: Rig, tmp_path: Path
) -> None:
    tokens = store_in(tmp_path)
    seen_in_store: list[tuple[str | None, str | None]] = []

    def things(visit: Visit) -> None:
        seen_in_store.append(opened(tokens))
        rig.door._things(visit)

    rig.server.on("/things", things)

    rig.fetch(rig.session(REFRESH, OWNER, tokens))

    (rotated,) = rig.door.refresh_tokens
    assert rotated != "refresh-token-0"
    assert seen_in_store == [(rotated, rig.door.issued[0])]


def test_polls_go_on_with_what_the_last_one_kept_through_many_rotations(
    rig: Rig, tmp_path: Path
) -> None:
    tokens = store_in(tmp_path)
    for _ in range(4):
        rig.fetch(rig.session(REFRESH, OWNER, tokens))
        rig.clock.advance(3601)

    used = [seen.form["refresh_token"] for seen in rig.server.asked("/oauth/token")]
    assert len(used) == len(set(used)) == 4


def test_a_token_that_lasts_is_shared_by_polls_without_a_new_exchange(
    rig: Rig, tmp_path: Path
) -> None:
    tokens = store_in(tmp_path)
    for _ in range(3):
        rig.fetch(rig.session(REFRESH, OWNER, tokens))

    assert len(rig.server.asked("/oauth/token")) == 1


def test_a_server_that_does_not_rotate_keeps_its_refresh_token(rig: Rig, tmp_path: Path) -> None:
    rig.door.rotates = False
    tokens = store_in(tmp_path)

    rig.fetch(rig.session(REFRESH, OWNER, tokens))

    assert opened(tokens)[0] == "refresh-token-0"


def test_credentials_with_another_refresh_token_win_over_what_is_kept(
    rig: Rig, tmp_path: Path
) -> None:
    tokens = store_in(tmp_path)
    rig.fetch(rig.session(REFRESH, OWNER, tokens))
    rig.door.refresh_tokens.add("refresh-token-by-hand")

    rig.fetch(rig.session(REFRESH, OWNER | {"refresh_token": "refresh-token-by-hand"}, tokens))

    used = [seen.form["refresh_token"] for seen in rig.server.asked("/oauth/token")]
    assert used == ["refresh-token-0", "refresh-token-by-hand"]


def test_a_dead_refresh_token_says_what_to_do_and_leaves_no_lease(rig: Rig, tmp_path: Path) -> None:
    rig.door.refresh_tokens.clear()
    tokens = store_in(tmp_path)

    with pytest.raises(SourceRefusedError, match="authorize the client anew") as raised:
        rig.fetch(rig.session(REFRESH, OWNER, tokens))

    assert "refresh-token-0" not in str(raised.value)
    kept, _ = tokens.load()
    assert kept is not None
    assert kept.renewing_until is None


def test_a_token_refused_before_its_end_is_exchanged_at_once(rig: Rig, tmp_path: Path) -> None:
    session = rig.session(REFRESH, OWNER, store_in(tmp_path))
    rig.fetch(session)
    rig.door.revoked.update(rig.door.issued)

    assert rig.fetch(session) == THINGS
    assert len(rig.server.asked("/oauth/token")) == 2


def test_of_two_polls_that_race_one_exchanges_and_both_go_on(rig: Rig, tmp_path: Path) -> None:
    """The second comes while the first is at the token endpoint, whose answer rotates."""
    tokens, waiting = store_in(tmp_path), threading.Event()
    exchanging = threading.Event()

    def slow(visit: Visit) -> None:
        exchanging.set()
        assert waiting.wait(timeout=5)
        rig.door._oauth(visit)

    def sleep(seconds: float) -> None:
        waiting.set()
        first.join(timeout=5)

    rig.server.on("/oauth/token", slow)
    results: list[bytes] = []
    first = threading.Thread(
        target=lambda: results.append(rig.fetch(rig.session(REFRESH, OWNER, store_in(tmp_path))))
    )
    first.start()
    assert exchanging.wait(timeout=5)

    results.append(rig.fetch(rig.session(REFRESH, OWNER, tokens, sleep=sleep)))
    first.join(timeout=5)

    assert results == [THINGS, THINGS]
    assert len(rig.server.asked("/oauth/token")) == 1


def test_a_lease_of_a_poll_that_crashed_ends(rig: Rig, tmp_path: Path) -> None:
    tokens = store_in(tmp_path)
    rig.session(REFRESH, OWNER, tokens)._auth._kept()  # type: ignore[attr-defined]
    kept, etag = rig.session(REFRESH, OWNER, tokens)._auth._kept()  # type: ignore[attr-defined]
    lease = kept.model_copy(update={"renewing_until": NOW + timedelta(seconds=120)})
    tokens.save(lease, etag=etag)

    with pytest.raises(TokensBusyError, match="SHOP_CREDENTIALS are being renewed"):
        rig.fetch(rig.session(REFRESH, OWNER, tokens))
    rig.clock.advance(120)

    assert rig.fetch(rig.session(REFRESH, OWNER, tokens)) == THINGS


def test_tokens_that_cannot_be_read_are_made_anew_from_the_credentials(
    rig: Rig, tmp_path: Path
) -> None:
    tokens = store_in(tmp_path)
    tokens.objects.put("pollers/credentials/SHOP/tokens.json.zst", b"garbage")

    assert rig.fetch(rig.session(REFRESH, OWNER, tokens)) == THINGS


def test_kept_tokens_show_nothing_in_their_repr(rig: Rig, tmp_path: Path) -> None:
    tokens = store_in(tmp_path)
    rig.fetch(rig.session(REFRESH, OWNER, tokens))

    kept, _ = tokens.load()

    assert isinstance(kept, KeptTokens)
    assert not any(secret in repr(kept) for secret in opened(tokens) if secret)


# --- log-ins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 201])
def test_a_log_in_gives_a_token_for_many_requests(code: int, rig: Rig) -> None:
    rig.door.login_status = code
    session = rig.session(LOGIN, USER)

    assert [rig.fetch(session), rig.fetch(session)] == [THINGS, THINGS]

    assert rig.asked() == ["/auth/login", "/things", "/things"]
    assert rig.server.seen[0].json == {"email": "ada@mail.com", "password": "countess-1815"}
    assert rig.server.seen[0].headers["content-type"] == "application/json"


def test_a_log_in_may_be_a_form_with_constants_and_headers(rig: Rig) -> None:
    rig.server.on("/auth/login", value({"data": {"accessToken": rig.door.token()}}))
    login = {
        "url": "/auth/login",
        "format": "form",
        "body": {"user": "{username}/{password}", "minutes": 30},
        "headers": {"X-Tenant": "t-{username}"},
    }

    rig.fetch(rig.session({"kind": "login", "login": login, "token": "data.accessToken"}, USER))

    seen = rig.server.seen[0]
    assert seen.form == {"user": "ada@mail.com/countess-1815", "minutes": "30"}
    assert seen.headers["x-tenant"] == "t-ada@mail.com"


@pytest.mark.parametrize("skew_h", [0, -7, 7, 24 * 365])
def test_the_end_of_a_jwt_is_judged_by_the_clock_of_the_server(skew_h: int, rig: Rig) -> None:
    """Seven hours off, a token of an hour would look ended, or would never be renewed."""
    rig.server.skew = timedelta(hours=skew_h)
    session = rig.session(LOGIN, USER)
    rig.fetch(session)

    rig.clock.advance(3600 - 31)
    rig.fetch(session)
    assert rig.asked().count("/auth/login") == 1

    rig.clock.advance(2)
    rig.fetch(session)
    assert rig.asked().count("/auth/login") == 2
    assert rig.asked().count("/things") == 3  # none was refused


def test_a_token_that_says_no_end_is_used_until_it_is_refused(rig: Rig) -> None:
    rig.door.life_s = None
    session = rig.session(LOGIN, USER)
    rig.fetch(session)
    rig.clock.advance(10**6)
    rig.fetch(session)
    rig.door.revoked.update(rig.door.issued)

    rig.fetch(session)

    assert rig.asked().count("/auth/login") == 2


@pytest.mark.parametrize("refusal", [401, 403, 419])
def test_a_refusal_by_another_status_is_declared(refusal: int, rig: Rig) -> None:
    rig.door.refusal = refusal
    session = rig.session(LOGIN | {"renew_on": [refusal]}, USER)
    rig.fetch(session)
    rig.door.revoked.update(rig.door.issued)

    assert rig.fetch(session) == THINGS


def test_a_status_that_is_not_declared_renews_nothing(rig: Rig) -> None:
    rig.door.refusal = 403
    session = rig.session(LOGIN, USER)
    rig.fetch(session)
    rig.door.revoked.update(rig.door.issued)

    with pytest.raises(SourceRefusedError, match="answers 403"):
        rig.fetch(session)

    assert rig.asked().count("/auth/login") == 1


def test_a_token_that_ends_is_refreshed_by_the_refresh_token(rig: Rig) -> None:
    session = rig.session(WITH_REFRESH, USER)
    for _ in range(3):
        rig.fetch(session)
        rig.clock.advance(3600)

    assert rig.asked() == [
        *("/auth/login", "/things", "/auth/refresh", "/things", "/auth/refresh", "/things")
    ]


def test_a_refresh_token_that_died_first_means_logging_in_again(rig: Rig) -> None:
    """Platzi's access tokens live for 20 days, the refresh tokens for 10 hours."""
    rig.door.refresh_life_s = 60
    session = rig.session(WITH_REFRESH, USER)
    rig.fetch(session)
    rig.clock.advance(3600)

    assert rig.fetch(session) == THINGS
    assert rig.asked()[2:] == ["/auth/refresh", "/auth/login", "/things"]


def test_a_wrong_password_is_refused_with_what_to_check_and_not_tried_again(rig: Rig) -> None:
    rig.door.refusal = 400  # as DummyJSON answers it

    with pytest.raises(
        SourceRefusedError, match=r"refuses the log-in with 400.*credentials of SHOP_CREDENTIALS"
    ) as raised:
        rig.fetch(rig.session(LOGIN, USER | {"password": "wrong-password"}))

    assert rig.asked() == ["/auth/login"]
    assert "wrong-password" not in str(raised.value)


def test_a_log_in_without_a_token_in_its_answer_names_the_path(rig: Rig) -> None:
    with pytest.raises(SourceRefusedError, match=r"without a token at 'data.jwt'.*correct `token`"):
        rig.fetch(rig.session(LOGIN | {"token": "data.jwt"}, USER))


def test_a_user_who_does_not_exist_is_made_and_logged_in(rig: Rig) -> None:
    rig.door.users.clear()
    session = rig.session(LOGIN | {"sign_up": SIGN_UP}, USER)

    assert rig.fetch(session) == THINGS

    assert rig.asked() == ["/auth/login", "/users", "/auth/login", "/things"]
    assert rig.server.asked("/users")[0].json["name"] == "Freshet"


def test_a_user_who_exists_is_not_made_again(rig: Rig) -> None:
    rig.fetch(rig.session(LOGIN | {"sign_up": SIGN_UP}, USER))

    assert "/users" not in rig.asked()


def test_a_log_in_that_stays_refused_makes_one_user_and_not_one_a_poll(
    rig: Rig, tmp_path: Path
) -> None:
    rig.server.on("/auth/login", status(401))
    for _ in range(3):
        with pytest.raises(SourceRefusedError, match="refuses the log-in with 401"):
            rig.fetch(rig.session(LOGIN | {"sign_up": SIGN_UP}, USER, store_in(tmp_path)))

    assert rig.asked().count("/users") == 1


def test_the_log_in_that_the_shops_file_shows_signs_up_logs_in_and_refreshes(rig: Rig) -> None:
    """Platzi's own paths and spellings: `refresh_token` in answers, `refreshToken` in requests."""
    shown = (SHIPPED_SOURCES / "platzi.yaml").read_text(encoding="utf-8")
    commented = shown[shown.index("# auth:\n") :]
    declared = parse_source(shown + re.sub("^# ", "", commented, flags=re.MULTILINE), "platzi.yaml")
    rig.server.on("/auth/refresh-token", rig.door._refresh)
    rig.server.on("/users/", rig.door._sign_up)
    new_user = {"username": "grace@mail.com", "password": "nanosecond1"}
    session = rig.session(declared.auth.model_dump(by_alias=True), new_user)

    rig.fetch(session)
    rig.door.revoked.update(rig.door.issued)
    rig.fetch(session)

    assert len(rig.server.asked("/users/")) == 1
    assert len(rig.server.asked("/auth/refresh-token")) == 1


def test_a_sign_up_that_is_refused_says_so(rig: Rig) -> None:
    rig.door.users.clear()
    rig.door.sign_up_status = 409

    with pytest.raises(SourceRefusedError, match=r"at .*/users: .* 409"):
        rig.fetch(rig.session(LOGIN | {"sign_up": SIGN_UP}, USER))


def test_a_declared_end_of_a_token_that_is_no_jwt_is_kept_to(rig: Rig) -> None:
    rig.server.on("/auth/login", value({"access_token": "opaque-token", "ttl": "600"}))
    rig.server.on("/things", value([]))
    session = rig.session(LOGIN | {"life": {"seconds_at": "ttl"}}, USER)
    rig.fetch(session)
    rig.clock.advance(569)
    rig.fetch(session)
    rig.clock.advance(2)
    rig.fetch(session)

    assert rig.asked().count("/auth/login") == 2


# --- sessions -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"from": "header", "token": "X-Session"},
        {"from": "cookie", "token": "sid"},
        {"from": "cookie", "token": "sid", "send": {"in": "cookie", "name": "sid"}},
        {"send": {"in": "header", "name": "Authorization", "prefix": "Session"}},
    ],
)
def test_a_session_comes_from_body_header_or_cookie_and_goes_where_it_is_declared_to(
    way: dict[str, Any], rig: Rig
) -> None:
    session = rig.session(SESSION | way, USER)

    assert [rig.fetch(session), rig.fetch(session)] == [THINGS, THINGS]

    assert rig.asked() == ["/session", "/things", "/things"]


def test_a_session_that_ends_is_begun_anew(rig: Rig) -> None:
    session = rig.session(SESSION | {"life": {"seconds": 300}}, USER)
    rig.fetch(session)
    rig.clock.advance(280)
    rig.fetch(session)

    assert rig.asked() == ["/session", "/things"] * 2
