"""A session against a server that misbehaves over real sockets.

Each fault must end, within its bounds, in the error that says what to do, or go unnoticed when it
passes within the repeats.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import resource
import ssl
import time
import traceback
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr, TypeAdapter
from tests.misbehaving import (
    HTML,
    Misbehaving,
    Reply,
    Visit,
    body,
    dripping,
    dripping_headers,
    endless,
    gzip_bomb,
    misbehaving,
    raw,
    redirect,
    reset_in_body,
    reset_in_headers,
    silent,
    status,
    truncated_gzip,
    value,
)

from api_poller.auth import authenticator_for
from api_poller.auth_models import Auth, NoAuth
from api_poller.http import (
    Answer,
    BudgetSpentError,
    Limits,
    Request,
    Session,
    SourceAnswerError,
    SourceError,
    SourceRefusedError,
    SourceUnavailableError,
)
from api_poller.tokens import MemoryTokens
from api_poller.transport import UrllibTransport
from freshet.testing import StoppedClock

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
LIMITS = Limits(
    requests_per_second=None,
    connect_timeout_s=1.0,
    read_timeout_s=0.3,
    answer_s_max=0.6,
    attempts_max=3,
    wait_s_first=0.01,
    wait_s_max=30.0,
    body_bytes_max=100_000,
    unpacked_bytes_max=200_000,
)
TOKEN = "sk-live-51Hq7ZtopSecretToken"
AUTHS: TypeAdapter[Any] = TypeAdapter(Auth)


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as made:
        yield made


@pytest.fixture
def elsewhere() -> Iterator[Misbehaving]:
    with misbehaving() as made:
        yield made


class Rig:
    """Sessions with the server; `waits` is what they would have slept, `seconds` their clock."""

    def __init__(self, server: Misbehaving) -> None:
        self.server, self.waits, self.clock = server, list[float](), StoppedClock(NOW)
        self.seconds = 1000.0
        self.transport = UrllibTransport()
        server.clock = self.clock
        server.on("/things", value([{"id": 1}]))

    def session(self, limits: Limits = LIMITS, auth: Any = None, **more: Any) -> Session:
        hosts = more.pop("hosts", {self.server.place})
        credentials = {name: SecretStr(text) for name, text in more.pop("fields", {}).items()}
        return Session(
            "shop",
            limits,
            frozenset(hosts),
            authenticator_for(
                AUTHS.validate_python(auth or {"kind": "none"}),
                credentials,
                MemoryTokens(),
                self.clock,
                setting="SHOP_CREDENTIALS",
            ),
            transport=self.transport,
            now=self.clock,
            sleep=self._sleep,
            monotonic=lambda: self.seconds,
            jitter=lambda: 0.5,
            **({"allow_loopback": True} | more),
        )

    def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.seconds += seconds
        self.clock.advance(seconds)

    def fetch(self, session: Session | None = None, path: str = "/things") -> Answer:
        return (session or self.session()).fetch(Request("GET", f"{self.server.url}{path}"))


@pytest.fixture
def rig(server: Misbehaving) -> Iterator[Rig]:
    made = Rig(server)
    yield made
    made.transport.close()


def told(error: BaseException) -> str:
    """All that an error may bring into a log, down its chain."""
    parts, waiting = [], [error]
    while waiting:
        one = waiting.pop()
        parts.append(f"{one!r} {one} {vars(one)}")
        waiting += [each for each in (one.__cause__, one.__context__) if each]
    return "\n".join([*parts, *traceback.format_exception(error)])


# --- every fault ----------------------------------------------------------------------------------

ARRAY = json.dumps([{"id": number} for number in range(9)]).encode()
CUT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n" + ARRAY
CUT_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n" + ARRAY[:20]
CUT_BETWEEN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[]\r\n"
QUOTA = {"error": {"status": 429, "message": "Too many requests", "reason": "QUOTA_EXCEEDED"}}

PASSING: dict[str, tuple[Reply, str]] = {
    "500": (status(500), "answers 500"),
    "502": (status(502), "answers 502"),
    "503": (status(503), "answers 503"),
    "408": (status(408), "answers 408"),
    "429": (status(429), "answers 429"),
    "429, come back soon": (status(429, Retry_After="7"), "answers 429"),
    "silence": (silent, "too slow"),
    "drip": (dripping, r"took over 0\.6 s"),
    "drip of headers": (dripping_headers, r"took over 0\.6 s"),
    "hang-up": (raw(b""), "broke off"),
    "reset in headers": (reset_in_headers, "broke off"),
    "reset in body": (reset_in_body, "broke off"),
    "no HTTP": (raw(b"\x00\x01\x02\r\n\r\n"), "broke off"),
    "truncated": (raw(CUT), "broke off"),
    "truncated chunk": (raw(CUT_CHUNK), "broke off"),
    "truncated between chunks": (raw(CUT_BETWEEN_CHUNKS), "broke off"),
    "truncated gzip": (truncated_gzip(ARRAY), "gzip"),
    "no gzip": (body(ARRAY, Content_Encoding="gzip"), "broken gzip"),
}
LASTING: dict[str, tuple[Reply, type[SourceError | SourceRefusedError], str]] = {
    "429, come back tomorrow": (
        status(429, Retry_After="86400"),
        BudgetSpentError,
        "86400 s: poll less often",
    ),
    "quota": (value(QUOTA, 429), BudgetSpentError, "quota is used up"),
    "quota of a day": (
        value({"error": {"code": 403, "status": "x", "reason": "dailyLimitExceeded"}}, 403),
        BudgetSpentError,
        "quota is used up",
    ),
    "gzip bomb": (gzip_bomb(10_000_000), SourceAnswerError, "more than 200000"),
    "other encoding": (body(ARRAY, Content_Encoding="br"), SourceAnswerError, "'br'"),
    "zlib": (
        body(zlib.compress(ARRAY), Content_Encoding="deflate"),
        SourceAnswerError,
        "'deflate'",
    ),
    "flood": (body(b" " * 300_000), SourceAnswerError, "more than 100000"),
    "10 GB": (endless, SourceAnswerError, "more than 100000"),
    "10 GB, as announced": (
        partial(endless, announced=True),
        SourceAnswerError,
        "more than 100000",
    ),
    "HTML": (body(HTML, Content_Type="text/html"), SourceAnswerError, "HTML"),
    "HTML called JSON": (body(b"\n " + HTML), SourceAnswerError, "HTML"),
    "401": (status(401), SourceRefusedError, "declare `auth` and `credentials`"),
    "403": (status(403), SourceRefusedError, "credentials"),
    "404": (status(404), SourceRefusedError, "correct the source's URL"),
    "400": (value({"message": ["limit must be a number"]}, 400), SourceRefusedError, "limit must"),
    "304": (status(304), SourceRefusedError, "answers 304"),
    "another port": (redirect("http://127.0.0.1:1/things"), SourceRefusedError, "another host"),
    "another host": (redirect("http://localhost:1/things"), SourceRefusedError, "another host"),
    "metadata": (redirect("http://169.254.169.254/latest"), SourceRefusedError, "another host"),
    "another scheme": (redirect("file:///etc/passwd"), SourceRefusedError, "another host"),
    "nowhere": (status(301), SourceRefusedError, "redirects"),
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_within_the_repeats_goes_unnoticed(fault: str, rig: Rig) -> None:
    rig.server.faults.append(PASSING[fault][0])

    assert rig.fetch().body == b'[{"id": 1}]'
    assert (len(rig.waits), len(rig.server.seen)) == (1, 2)


@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_is_unavailable_after_a_bounded_number_of_tries(
    fault: str, rig: Rig
) -> None:
    reply, message = PASSING[fault]
    rig.server.faults.extend([reply] * 9)

    with pytest.raises(SourceUnavailableError, match=message) as raised:
        rig.fetch()

    assert type(raised.value) is SourceUnavailableError
    assert len(rig.server.seen) == LIMITS.attempts_max
    assert f"source 'shop' at {rig.server.url}/things" in str(raised.value)
    assert raised.value.advice in str(raised.value)


@pytest.mark.parametrize("fault", LASTING)
def test_what_repeating_cannot_mend_is_not_repeated(fault: str, rig: Rig) -> None:
    reply, expected, message = LASTING[fault]
    rig.server.faults.extend([reply] * 9)

    with pytest.raises(expected, match=message) as raised:
        rig.fetch()

    error: Any = raised.value
    assert type(error) is expected
    assert len(rig.server.seen) == 1
    assert rig.waits == []
    assert f"source 'shop' at {rig.server.url}/things" in str(error)
    assert error.advice in str(error)


def test_a_server_that_is_down_is_named(rig: Rig) -> None:
    rig.server.server_close()

    with pytest.raises(SourceUnavailableError, match=r"'shop'.*cannot be reached, 3 attempt"):
        rig.fetch()


@pytest.mark.parametrize("announced", [False, True])
def test_ten_gigabytes_are_neither_read_nor_kept(announced: bool, rig: Rig) -> None:
    rig.server.faults.append(partial(endless, announced=announced))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(SourceAnswerError):
        rig.fetch()

    assert rig.server.sent_bytes < 20_000_000  # what fits into the sockets' buffers
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 30_000


def test_a_drip_ends_in_time_though_no_read_is_slow(rig: Rig) -> None:
    rig.server.faults.append(dripping_headers)
    started_s = time.monotonic()

    rig.fetch()

    assert time.monotonic() - started_s < 2.0


# --- what is fine ---------------------------------------------------------------------------------


def test_gzip_is_asked_for_and_unpacked_be_it_for_the_way_or_a_file(rig: Rig) -> None:
    packed = gzip.compress(ARRAY)
    rig.server.on(
        "/things", body(packed, Content_Encoding="gzip"), body(packed, Content_Type="text/csv")
    )

    assert [rig.fetch().body, rig.fetch().body] == [ARRAY, ARRAY]
    assert rig.server.seen[0].headers["accept-encoding"] == "gzip"


def test_an_answer_that_ends_with_the_connection_is_known_as_such(rig: Rig) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n[\r\n1\r\n]\r\n0\r\n\r\n"
    rig.server.faults.extend([raw(b"HTTP/1.1 200 OK\r\n\r\n[]"), raw(chunked)])

    answers = [rig.fetch(), rig.fetch()]

    assert [(answer.body, answer.measured) for answer in answers] == [(b"[]", False), (b"[]", True)]


def test_one_connection_serves_many_requests_refused_ones_included(rig: Rig) -> None:
    session = rig.session()
    rig.server.on("/things", value([]), status(404), status(503), value([]))

    rig.fetch(session)
    with pytest.raises(SourceRefusedError):
        rig.fetch(session)
    rig.fetch(session)

    assert (len(rig.server.seen), rig.server.connections) == (4, 1)
    assert session.requests_made == 4


def test_headers_come_in_lower_case_with_a_line_for_each_cookie(rig: Rig) -> None:
    def cookies(visit: Visit) -> None:
        visit.send_response(200)
        for cookie in ("a=1; Path=/", "b=2; Expires=Wed, 21 Oct 2015 07:28:00 GMT"):
            visit.send_header("Set-Cookie", cookie)
        visit.send_header("Link", "</next>; rel=next")
        visit.send_header("Content-Length", "2")
        visit.end_headers()
        visit.wfile.write(b"[]")

    rig.server.on("/things", cookies)

    headers = rig.fetch().headers

    assert headers["link"] == "</next>; rel=next"
    assert headers["set-cookie"].splitlines() == [
        "a=1; Path=/",
        "b=2; Expires=Wed, 21 Oct 2015 07:28:00 GMT",
    ]


# --- redirects and places -------------------------------------------------------------------------


def test_redirects_within_the_host_are_followed_and_circles_are_not(rig: Rig) -> None:
    rig.server.faults.append(redirect("/moved", 308))
    rig.server.on("/moved", value([1]))
    assert rig.fetch().url == f"{rig.server.url}/moved"

    rig.server.faults.extend([redirect("/moved", 308)] * 9)
    with pytest.raises(SourceRefusedError, match="circle"):
        rig.fetch()

    assert len(rig.server.seen) == 2 + LIMITS.redirects_max + 1


def test_a_post_is_not_turned_into_a_get_by_a_redirect(rig: Rig) -> None:
    rig.server.on("/things", redirect("/moved", 302))

    with pytest.raises(SourceRefusedError, match="redirects a POST"):
        rig.session().exchange(Request("POST", f"{rig.server.url}/things", body=b"{}"))

    assert len(rig.server.seen) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_not_even_a_declared_host_is_reached_by_a_redirect(
    code: int, rig: Rig, elsewhere: Misbehaving
) -> None:
    rig.server.on("/things", redirect(f"{elsewhere.url}/things", code))
    session = rig.session(
        hosts={rig.server.place, elsewhere.place}, auth={"kind": "bearer"}, fields={"token": TOKEN}
    )

    with pytest.raises(SourceRefusedError, match="another host are not followed"):
        rig.fetch(session)

    assert elsewhere.connections == 0


def test_a_declared_host_may_be_asked_and_any_other_may_not(
    rig: Rig, elsewhere: Misbehaving
) -> None:
    elsewhere.on("/next", value([2]))
    request = Request("GET", f"{elsewhere.url}/next")

    assert rig.session(hosts={elsewhere.place}).fetch(request).body == b"[2]"
    with pytest.raises(SourceRefusedError, match=r"none of the declared hosts.*add it to `hosts`"):
        rig.session().fetch(request)

    assert len(elsewhere.seen) == 1


def test_a_log_in_is_not_even_tried_for_an_undeclared_host(rig: Rig) -> None:
    auth = {"kind": "oauth2_client_credentials", "token_url": f"{rig.server.url}/oauth/token"}
    session = rig.session(auth=auth, fields={"client_id": "a", "client_secret": "b"})

    with pytest.raises(SourceRefusedError, match="none of the declared hosts"):
        session.fetch(Request("GET", "https://evil.example/things"))

    assert rig.server.connections == 0


@pytest.mark.parametrize(
    "url", ["ftp://shop/x", "https://u:p@shop/x", "/things", "https://", "https://[", ""]
)
def test_what_is_no_address_of_a_place_is_refused(url: str, rig: Rig) -> None:
    with pytest.raises(SourceRefusedError, match="must be an address"):
        rig.session(hosts={"shop"}).fetch(Request("GET", url))


def test_plain_http_is_for_the_loopback_of_a_laptop_only(rig: Rig) -> None:
    with pytest.raises(SourceRefusedError, match="is not encrypted; use https"):
        rig.session(hosts={"shop.example"}).fetch(Request("GET", "http://shop.example:80/x"))
    with pytest.raises(SourceRefusedError, match="is not encrypted"):
        rig.fetch(rig.session(allow_loopback=False))

    assert rig.server.connections == 0


def test_a_name_that_resolves_to_an_inner_address_gets_not_a_byte(rig: Rig) -> None:
    """As with DNS rebinding: what counts is the peer of the connection, not the name."""
    place = f"localhost:{rig.server.server_port}"
    session = rig.session(hosts={place}, allow_loopback=False)

    with pytest.raises(SourceRefusedError, match="leads to this machine itself"):
        session.fetch(Request("GET", f"https://{place}/things"))

    assert rig.server.seen == []


def test_tls_without_a_known_certificate_is_not_spoken(rig: Rig) -> None:
    with pytest.raises(SourceUnavailableError, match="TLS"):
        rig.session().fetch(Request("GET", f"https://{rig.server.place}/things"))

    assert rig.server.seen == []


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehaving]:
    """A server whose certificate, for `localhost`, this machine trusts during a test."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "localhost.pem"
    kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(*kind, serialization.NoEncryption())
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(file)
    with misbehaving(context) as made:
        made.on("/things", value([1]))
        yield made


def test_over_tls_answers_are_read_and_drips_end_in_time(trusted: Misbehaving) -> None:
    rig = Rig(trusted)
    rig.server.on("/things", value([1]))
    place = f"localhost:{trusted.server_port}"
    session, request = rig.session(hosts={place}), Request("GET", f"https://{place}/things")

    assert [session.fetch(request).body, session.fetch(request).body] == [b"[1]", b"[1]"]
    assert trusted.connections == 1

    trusted.faults.extend([dripping, dripping_headers, reset_in_body])
    with pytest.raises(SourceUnavailableError, match="broke off"):
        session.fetch(request)
    rig.transport.close()


def test_over_tls_an_inner_address_gets_not_a_byte_and_another_name_no_request(
    trusted: Misbehaving,
) -> None:
    rig = Rig(trusted)
    places = {f"localhost:{trusted.server_port}", trusted.place}
    inner = rig.session(hosts=places, allow_loopback=False)
    misnamed = rig.session(hosts=places)

    with pytest.raises(SourceRefusedError, match="this machine itself"):
        inner.fetch(Request("GET", f"https://localhost:{trusted.server_port}/things"))
    with pytest.raises(SourceUnavailableError, match="certificate"):
        misnamed.fetch(Request("GET", f"https://{trusted.place}/things"))

    assert trusted.seen == []
    rig.transport.close()


# --- pauses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked_s", [5, 30])
def test_retry_after_in_seconds_is_waited_for(asked_s: int, rig: Rig) -> None:
    rig.server.faults.append(status(429, Retry_After=str(asked_s)))

    rig.fetch()

    assert rig.waits == [asked_s]


@pytest.mark.parametrize("skew_s", [0, -7200, 86_400])
def test_retry_after_as_a_date_is_read_by_the_clock_of_the_server(skew_s: int, rig: Rig) -> None:
    rig.server.skew = timedelta(seconds=skew_s)
    date = format_datetime(rig.server.now() + timedelta(seconds=12), usegmt=True)
    rig.server.faults.append(status(503, Retry_After=date))

    rig.fetch()

    assert rig.waits == [12]


@pytest.mark.parametrize("text", ["soon", "-5", "Wed, 21 Oct 2015 07:28:00 GMT", ""])
def test_retry_after_that_says_nothing_useful_is_backed_off_from(text: str, rig: Rig) -> None:
    rig.server.faults.append(status(429, Retry_After=text))

    rig.fetch()

    assert rig.waits == [pytest.approx(0.0075)]


def test_pauses_double_and_are_bounded_in_number(rig: Rig) -> None:
    rig.server.faults.extend([status(500)] * 9)

    with pytest.raises(SourceUnavailableError):
        rig.fetch()

    assert rig.waits == [pytest.approx(0.0075), pytest.approx(0.015)]


def test_requests_keep_the_declared_pace(rig: Rig) -> None:
    session = rig.session(LIMITS.model_copy(update={"requests_per_second": 4.0}))

    for _ in range(5):
        rig.fetch(session)

    assert rig.waits == [0.25] * 4


def test_time_spent_elsewhere_counts_towards_the_pace(rig: Rig) -> None:
    session = rig.session(LIMITS.model_copy(update={"requests_per_second": 4.0}))

    rig.fetch(session)
    rig.seconds += 0.1
    rig.fetch(session)
    rig.seconds += 9
    rig.fetch(session)

    assert rig.waits == [pytest.approx(0.15)]


@pytest.mark.parametrize("reset", ["seconds", "epoch", "epoch in ms", "epoch of a wrong clock"])
def test_a_source_that_says_that_nothing_is_left_is_left_alone_until_it_resets(
    reset: str, rig: Rig
) -> None:
    if reset.endswith("clock"):
        rig.server.skew = timedelta(hours=5)
    epoch_s = int(rig.server.now().timestamp()) + 10
    at = {"seconds": "10", "epoch in ms": f"{epoch_s}000"}.get(reset, str(epoch_s))
    headers = {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": at}
    rig.server.on("/things", value([], headers=headers), value([]))
    session = rig.session()

    rig.fetch(session)
    rig.fetch(session)

    assert rig.waits == [10]


def test_a_limit_that_is_not_reached_holds_nothing_up(rig: Rig) -> None:
    headers = {"X_RateLimit_Remaining": "1", "X_RateLimit_Reset": "10"}
    rig.server.on("/things", value([], headers=headers))
    session = rig.session()

    rig.fetch(session)
    rig.fetch(session)

    assert rig.waits == []


def test_a_403_that_means_a_limit_is_waited_for_as_a_429_is(rig: Rig) -> None:
    headers = {"X_RateLimit_Remaining": "0", "X_RateLimit_Reset": "3"}
    rig.server.on("/things", value({}, 403, headers), value([1]))

    assert rig.fetch().body == b"[1]"
    assert rig.waits == [3]


# --- budgets --------------------------------------------------------------------------------------


def test_the_budget_of_requests_counts_repeats_and_stops_the_poll(rig: Rig) -> None:
    session = rig.session(LIMITS.model_copy(update={"requests_max": 3}))
    rig.server.faults.append(status(500))

    rig.fetch(session)
    rig.fetch(session)
    with pytest.raises(BudgetSpentError, match="made its 3 requests; the next poll takes up"):
        rig.fetch(session)

    assert len(rig.server.seen) == session.requests_made == 3


def test_a_pause_longer_than_the_poll_has_left_stops_it_at_once(rig: Rig) -> None:
    ends_at = rig.seconds + 8
    session = rig.session(remaining_s=lambda: ends_at - rig.seconds)
    rig.server.faults.append(status(429, Retry_After="9"))

    with pytest.raises(BudgetSpentError, match=r"answers 429.*no time left"):
        rig.fetch(session)

    assert rig.waits == []


def test_a_pace_slower_than_the_time_left_stops_the_poll_without_a_wait(rig: Rig) -> None:
    ends_at = rig.seconds + 5
    limits = LIMITS.model_copy(update={"requests_per_second": 0.1})
    session = rig.session(limits, remaining_s=lambda: ends_at - rig.seconds)
    rig.fetch(session)

    with pytest.raises(BudgetSpentError, match="time of this poll is over"):
        rig.fetch(session)

    assert (rig.waits, len(rig.server.seen)) == ([], 1)


def test_a_pause_that_the_poll_has_time_for_is_waited_for(rig: Rig) -> None:
    ends_at = rig.seconds + 50
    limits = LIMITS.model_copy(update={"requests_per_second": 0.025})
    session = rig.session(limits, remaining_s=lambda: ends_at - rig.seconds)

    rig.fetch(session)
    rig.fetch(session)

    assert rig.waits == [40]


def test_no_answer_is_waited_for_beyond_the_time_left(rig: Rig) -> None:
    rig.server.faults.extend([dripping] * 3)
    started_s = time.monotonic()
    ends_at = started_s + 0.2
    session = rig.session(remaining_s=lambda: ends_at - time.monotonic())

    with pytest.raises(BudgetSpentError, match="no time left"):
        rig.fetch(session)

    assert time.monotonic() - started_s < 0.5


def test_a_limit_that_resets_in_an_hour_ends_the_poll(rig: Rig) -> None:
    headers = {"RateLimit_Remaining": "0", "RateLimit_Reset": "3600"}
    rig.server.on("/things", value([1], headers=headers))
    session = rig.session()

    assert rig.fetch(session).body == b"[1]"
    with pytest.raises(BudgetSpentError, match="no request for 3600 s"):
        rig.fetch(session)


def test_a_poll_without_an_end_has_time_for_everything(rig: Rig) -> None:
    assert (
        rig.session(remaining_s=lambda: math.inf)
        .fetch(Request("GET", f"{rig.server.url}/things"))
        .body
    )


# --- secrets --------------------------------------------------------------------------------------

KINDS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bearer": ({"kind": "bearer"}, {"token": TOKEN}),
    "basic": ({"kind": "basic"}, {"username": "ada@mail.com", "password": TOKEN}),
    "header": ({"kind": "api_key", "in": "header", "name": "X-Key"}, {"api_key": TOKEN}),
    "query": ({"kind": "api_key", "in": "query", "name": "key"}, {"api_key": TOKEN}),
    "cookie": ({"kind": "api_key", "in": "cookie", "name": "key"}, {"api_key": TOKEN}),
}


def reflecting(code: int, **headers: str) -> Reply:
    """A source that sends the credentials back, wherever it can."""

    def reply(visit: Visit) -> None:
        sent = json.dumps({**visit.seen.headers, **visit.seen.query})
        visit.json({"message": sent[:150] + TOKEN}, code, **headers)

    return reply


REFLECTIONS: dict[str, Reply] = {
    "401": reflecting(401, WWW_Authenticate=TOKEN),
    "400": reflecting(400),
    "503": reflecting(503),
    "429": reflecting(429, Retry_After="86400"),
    "redirect": redirect(f"http://localhost:1/{TOKEN}?token={TOKEN}"),
    "circle": redirect(f"/{TOKEN}?token={TOKEN}"),
    "circle by query": redirect(f"/things?key={TOKEN}"),
    "encoding": body(b"[]", Content_Encoding=TOKEN),
    "hang-up": raw(b""),
    "silence": silent,
    "HTML": body(HTML, Content_Type=f"text/html; {TOKEN}"),
    "healthy": value([1]),
}


@pytest.mark.parametrize(
    ("kind", "reflection"),
    [(kind, one) for kind in KINDS for one in REFLECTIONS if one != "silence" or kind == "query"],
)
def test_no_error_answer_or_log_holds_a_credential_even_when_it_is_sent_back(
    kind: str, reflection: str, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even with every logger at DEBUG, as Lambda's log level may set them."""
    caplog.set_level(logging.DEBUG)
    auth, fields = KINDS[kind]
    session = rig.session(auth=auth, fields=fields)
    rig.server.faults.extend([REFLECTIONS[reflection]] * 9)

    try:
        outcome = rig.fetch(session).url
    except (SourceError, SourceRefusedError) as error:
        outcome = told(error)

    seen = rig.server.seen[0]
    assert TOKEN in f"{seen.headers} {seen.query}" or kind == "basic"
    assert TOKEN not in outcome + caplog.text
    assert "YWRhQG1haWwuY29t" not in outcome + caplog.text  # Basic, base64
    assert outcome


def test_what_a_source_says_to_a_refusal_is_told_unless_a_short_secret_is_in_it(rig: Rig) -> None:
    auth, password = {"kind": "basic"}, {"username": "ada", "password": "12345"}
    rig.server.on("/things", value({"message": "no such page"}, 400), value("12345?", 400))
    session = rig.session(auth=auth, fields=password)

    with pytest.raises(SourceRefusedError, match=r"answers 400 \(no such page\)"):
        rig.fetch(session)
    with pytest.raises(SourceRefusedError, match="answers 400;"):
        rig.fetch(session)


def test_a_credential_is_blanked_in_an_address_as_well_where_it_is_written_otherwise(
    rig: Rig,
) -> None:
    key = "sk/live+51==Hq7Z"
    session = rig.session(auth={"kind": "bearer"}, fields={"token": key})
    rig.server.on("/things", redirect(f"http://localhost:1/{quote(key, safe='')}"))

    with pytest.raises(SourceRefusedError, match="redirects to http://localhost:1/…") as raised:
        rig.fetch(session)

    assert quote(key, safe="") not in told(raised.value)


def test_a_request_and_an_answer_show_no_secrets_in_their_repr() -> None:
    request = Request("POST", "https://shop/login", {"X-Key": TOKEN}, TOKEN.encode())
    answer = Answer("https://shop/login", 200, {"set-cookie": TOKEN}, TOKEN.encode(), True)

    assert TOKEN not in f"{request!r} {answer!r}"


def test_a_header_that_cannot_be_sent_is_an_error_without_a_quote(rig: Rig) -> None:
    session = rig.session(auth={"kind": "bearer"}, fields={"token": f"{TOKEN}\r\nHost: evil"})

    with pytest.raises(SourceAnswerError, match="not valid HTTP") as raised:
        rig.fetch(session)

    assert TOKEN not in told(raised.value)
    assert rig.server.seen == []


def test_no_auth_sends_nothing_that_was_not_asked_for(rig: Rig) -> None:
    rig.fetch()

    assert isinstance(AUTHS.validate_python({"kind": "none"}), NoAuth)
    assert rig.server.seen[0].headers.keys() == {
        *("host", "accept", "accept-encoding", "user-agent")
    }
