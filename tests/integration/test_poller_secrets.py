"""The poller with credentials, over real sockets and a real Secrets Manager on the loopback.

They must reach the source's own host, at every page and as they are now, and nothing else: no other
host after a redirect, no log, no error, no report.
"""

from __future__ import annotations

import json
import logging
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import zstandard
from pydantic import SecretStr

from api_poller import app
from api_poller.credentials import read_headers
from api_poller.http import Fetcher, HttpLimits, SourceRefusedError
from freshet.errors import FreshetError, SettingsError
from local.embedded import EmbeddedAws

TOKEN = "sk-live-51Hq7ZtopSecretToken"
BEARER = f"Bearer {TOKEN}"
SETTING = "PLATZI_SECRET_ID"
ITEMS = [{"id": number, "title": f"Product {number}", "price": 10} for number in range(5)]

Reply = Callable[["Visit"], None]


class Visit(BaseHTTPRequestHandler):
    """One request; what it carried is kept."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Shop

    def do_GET(self) -> None:
        self.server.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.server.reply(self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """A well-formed answer; header names are written with underscores."""
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep quiet."""


class Shop(ThreadingHTTPServer):
    """A shop that keeps the headers of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Visit)
        self.seen: list[dict[str, str]] = []
        self.reply: Reply = catalogue

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def catalogue(visit: Visit) -> None:
    query = {name: int(values[0]) for name, values in parse_qs(urlsplit(visit.path).query).items()}
    page = ITEMS[query["offset"] : query["offset"] + query["limit"]]
    visit.answer(200, json.dumps(page).encode())


@contextmanager
def serving() -> Iterator[Shop]:
    with Shop() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join(timeout=5)


@pytest.fixture
def shop() -> Iterator[Shop]:
    with serving() as made:
        yield made


@pytest.fixture
def elsewhere() -> Iterator[Shop]:
    with serving() as made:
        yield made


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(tmp_path_factory.mktemp("aws")) as running:
        running.ensure_stream("changes")
        running.ensure_bucket("state")
        yield running


Poll = Callable[[], dict[str, Any]]


@pytest.fixture
def name() -> str:
    """A secret's name of the test's own."""
    return f"freshet/{uuid.uuid4().hex}"


@pytest.fixture
def poll(
    aws: EmbeddedAws, shop: Shop, name: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Poll]:
    """The deployed handler, with the secret `name` as the shop's."""
    environment = {
        **aws.environment(),
        "POWERTOOLS_METRICS_DISABLED": "true",
        "STREAM_NAME": "changes",
        "STATE_BUCKET": "state",
        "STATE_PREFIX": name,
        "PLATZI_URL": f"{shop.url}/api/v1",
        "PAGE_ROWS": "3",
        SETTING: name,
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    app._handler.cache_clear()
    yield lambda: app.handler({"source": "platzi"}, None)
    app._handler.cache_clear()


def put(aws: EmbeddedAws, name: str, **headers: str) -> None:
    """Give the secret a value, making it first if there is none."""
    secrets, text = aws.client("secretsmanager"), json.dumps({"headers": headers})
    try:
        secrets.put_secret_value(SecretId=name, SecretString=text)
    except secrets.exceptions.ResourceNotFoundException:
        secrets.create_secret(Name=name, SecretString=text)


def test_every_page_is_asked_for_with_the_headers_that_the_secret_holds_now(
    poll: Poll, aws: EmbeddedAws, shop: Shop, name: str
) -> None:
    put(aws, name, Authorization=BEARER, **{"X-Api-Key": "one"})
    first = poll()
    put(aws, name, Authorization="Bearer rotated")
    before = len(shop.seen)

    poll()

    assert first["published"] == 5
    assert before > 1
    assert {seen["authorization"] for seen in shop.seen[:before]} == {BEARER}
    assert {seen["x-api-key"] for seen in shop.seen[:before]} == {"one"}
    assert {seen["authorization"] for seen in shop.seen[before:]} == {"Bearer rotated"}
    assert not any("x-api-key" in seen for seen in shop.seen[before:])
    assert {seen["accept"] for seen in shop.seen} == {"application/json"}


def test_a_secret_without_a_value_leaves_requests_as_they_are(
    poll: Poll, aws: EmbeddedAws, shop: Shop, name: str
) -> None:
    aws.client("secretsmanager").create_secret(Name=name)

    assert poll()["published"] == 5

    assert not any("authorization" in seen for seen in shop.seen)


def test_a_secret_that_does_not_exist_is_a_setting_and_nothing_is_asked(
    poll: Poll, shop: Shop
) -> None:
    with pytest.raises(SettingsError, match=rf"{SETTING}.*does not exist"):
        poll()

    assert not shop.seen


def test_a_secret_of_other_content_is_a_setting_and_nothing_is_asked(
    poll: Poll, aws: EmbeddedAws, shop: Shop, name: str
) -> None:
    aws.client("secretsmanager").create_secret(Name=name, SecretString=TOKEN)

    with pytest.raises(SettingsError, match=rf"{SETTING}.*no JSON object"):
        poll()

    assert not shop.seen


def test_an_arn_names_the_secret_as_well(aws: EmbeddedAws, name: str) -> None:
    put(aws, name, Authorization=BEARER)
    secrets = aws.client("secretsmanager")

    headers = read_headers(secrets, secrets.describe_secret(SecretId=name)["ARN"], setting=SETTING)

    assert headers["Authorization"].get_secret_value() == BEARER


# --- where they go --------------------------------------------------------------------------------

LIMITS = HttpLimits(connect_timeout_s=1, read_timeout_s=2, attempts_max=1)


@pytest.fixture
def fetcher() -> Iterator[Fetcher]:
    made = Fetcher(LIMITS)
    yield made
    made.close()


def carrying(fetcher: Fetcher, to: str) -> Fetcher:
    values = {"Authorization": SecretStr(BEARER), "X-Api-Key": SecretStr(TOKEN)}
    return fetcher.carrying(values, to=to)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{other}/api",
        "http://localhost:{other}/api",
        "//127.0.0.1:{other}/api",
        "http://127.0.0.1:{own}@127.0.0.1:{other}/api",
        "http://127.0.0.1:{other}\\@127.0.0.1:{own}/api",
        "https://127.0.0.1:{own}/api",
    ],
)
def test_a_redirect_to_another_place_is_refused_before_anything_is_sent_there(
    status: int, location: str, shop: Shop, elsewhere: Shop, fetcher: Fetcher
) -> None:
    target = location.format(own=shop.server_port, other=elsewhere.server_port)
    shop.reply = lambda visit: visit.answer(status, Location=target)

    with pytest.raises(SourceRefusedError, match="redirects to another host are not followed"):
        carrying(fetcher, shop.url).get("platzi", f"{shop.url}/api", accept="text/json")

    assert [seen["authorization"] for seen in shop.seen] == [BEARER]
    assert not elsewhere.seen


def test_a_redirect_within_the_host_keeps_them(shop: Shop, fetcher: Fetcher) -> None:
    def moved(visit: Visit) -> None:
        if visit.path == "/old":
            visit.answer(308, Location="/new")
        else:
            visit.answer(200, b"[]")

    shop.reply = moved

    answer = carrying(fetcher, shop.url).get("platzi", f"{shop.url}/old", accept="text/json")

    assert answer.url == f"{shop.url}/new"
    assert [seen["authorization"] for seen in shop.seen] == [BEARER, BEARER]
    assert [seen["x-api-key"] for seen in shop.seen] == [TOKEN, TOKEN]


def test_a_header_that_says_what_the_address_says_bars_no_redirect(
    shop: Shop, fetcher: Fetcher
) -> None:
    shop.reply = lambda visit: (
        visit.answer(200, b"[]")
        if visit.path.endswith("/")
        else visit.answer(301, Location="/products/")
    )
    bound = fetcher.carrying({"X-Scope": SecretStr("products")}, to=shop.url)

    assert bound.get("platzi", f"{shop.url}/products", accept="text/json").body == b"[]"


@pytest.mark.parametrize("home", ["https://127.0.0.1:{own}", "http://localhost:{own}", "http://a"])
def test_a_request_to_any_other_scheme_host_or_port_goes_without_them(
    home: str, shop: Shop, fetcher: Fetcher
) -> None:
    """Whoever asks: the fetcher itself knows whom they are for."""
    shop.reply = lambda visit: visit.answer(200, b"[]")
    bound = carrying(fetcher, home.format(own=shop.server_port))

    bound.get("platzi", f"{shop.url}/api", accept="text/json")

    assert [set(seen) for seen in shop.seen] == [
        {"host", "accept", "accept-encoding", "user-agent"}
    ]


def test_the_fetcher_they_were_given_from_stays_without_them(shop: Shop, fetcher: Fetcher) -> None:
    shop.reply = lambda visit: visit.answer(200, b"[]")
    carrying(fetcher, shop.url).get("platzi", f"{shop.url}/api", accept="text/json")

    fetcher.get("ecb", f"{shop.url}/api", accept="text/json")

    assert ["authorization" in seen for seen in shop.seen] == [True, False]


# --- where they never stand -----------------------------------------------------------------------


def reflected(status: int, body: bytes = b"", **headers: str) -> Reply:
    """A source that sends the credentials back."""
    return lambda visit: visit.answer(status, body, **headers)


def circle(visit: Visit) -> None:
    visit.answer(302, Location=f"/{TOKEN}?token={TOKEN}")


def moved_to_a_fault(visit: Visit) -> None:
    if TOKEN in visit.path:
        visit.answer(200, b'{"not": "a list"}')
    else:
        visit.answer(302, Location=f"/{TOKEN}")


def moved_to_silence(visit: Visit) -> None:
    if TOKEN in visit.path:
        visit.answer(503, Retry_After="86400")
    else:
        visit.answer(302, Location=f"/{TOKEN}")


REFLECTIONS: dict[str, Reply] = {
    "healthy": catalogue,
    "refused": reflected(401, BEARER.encode(), WWW_Authenticate=BEARER),
    "redirect": reflected(302, Location=f"http://localhost:1/{TOKEN}?token={TOKEN}"),
    "circle": circle,
    "moved to a fault": moved_to_a_fault,
    "moved to silence": moved_to_silence,
    "encoding": reflected(200, b"[]", Content_Encoding=TOKEN),
    "no JSON": reflected(200, BEARER.encode()),
    "retry": reflected(429, BEARER.encode(), Retry_After="86400"),
    "hang-up": lambda visit: setattr(visit, "close_connection", True),
}


@pytest.mark.parametrize("reflection", REFLECTIONS)
def test_credentials_stand_in_no_log_error_or_report_even_when_sent_back(
    reflection: str,
    poll: Poll,
    aws: EmbeddedAws,
    shop: Shop,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even with every logger at DEBUG, as Lambda's log level may set them."""
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "false")
    monkeypatch.setattr(app, "Fetcher", lambda: Fetcher(LIMITS))
    put(aws, name, Authorization=BEARER)  # whose own request a DEBUG log would hold
    caplog.set_level(logging.DEBUG)
    shop.reply = REFLECTIONS[reflection]

    told = outcome(poll)

    assert shop.seen[0]["authorization"] == BEARER
    captured = capsys.readouterr()
    assert "GetSecretValue" in caplog.text  # DEBUG it was
    for text in (told, caplog.text, captured.out, captured.err):
        assert TOKEN not in text


def outcome(poll: Poll) -> str:
    """All that a poll says: its report, or its error down the chain."""
    try:
        return json.dumps(poll())
    except FreshetError as error:
        return "\n".join([repr(error), str(vars(error)), *traceback.format_exception(error)])


def test_no_module_of_the_poller_writes_credentials_in_its_repr(shop: Shop) -> None:
    made = carrying(Fetcher(LIMITS), shop.url)

    assert TOKEN not in f"{made!r} {vars(made)!r}"
    made.close()


def test_the_state_that_a_poll_leaves_holds_no_credentials(
    poll: Poll, aws: EmbeddedAws, name: str
) -> None:
    put(aws, name, Authorization=BEARER)
    poll()

    s3 = aws.client("s3")
    stored = s3.list_objects_v2(Bucket="state", Prefix=name)["Contents"]
    bodies = [s3.get_object(Bucket="state", Key=one["Key"])["Body"].read() for one in stored]

    assert len(bodies) == 1
    assert TOKEN.encode() not in unpacked(bodies[0])


def unpacked(body: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(body)
