"""The poller with credentials, over real sockets and a real Secrets Manager on the loopback.

They must reach the source at every page and as they are now, and nothing else: no log, no error, no
report, no state. Which hosts a request may carry them to is tested beneath, in
test_transport_faults.py and test_source_logins.py.
"""

from __future__ import annotations

import io
import json
import logging
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard
from tests.misbehaving import Misbehaving, Reply, Visit, body, misbehaving, redirect, status

from api_poller import app
from api_poller.settings import SHIPPED_SOURCES
from freshet.errors import FreshetError, SettingsError
from local.embedded import EmbeddedAws

TOKEN = "sk-live-51Hq7ZtopSecretToken"
BEARER = f"Bearer {TOKEN}"
SETTING = "PLATZI_SECRET_ID"
ITEMS = [{"id": number, "title": f"Product {number}", "price": 10} for number in range(5)]

# No pace and no second try: how often a fault is repeated is none of these tests' business.
LIMITS = "limits: { requests_per_second: 1000, attempts_max: 1, read_timeout_s: 2 }\n"


def catalogue(visit: Visit) -> None:
    offset, limit = (int(visit.seen.query[name]) for name in ("offset", "limit"))
    visit.json(ITEMS[offset : offset + limit])


@pytest.fixture
def shop() -> Iterator[Misbehaving]:
    with misbehaving() as made:
        made.on("/api/v1/products", catalogue)
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
def folder(tmp_path: Path) -> Path:
    """The shop as it ships, but for its limits."""
    shipped = (SHIPPED_SOURCES / "platzi.yaml").read_text()
    (tmp_path / "platzi.yaml").write_text(shipped + LIMITS)
    return tmp_path


@pytest.fixture
def poll(
    aws: EmbeddedAws, shop: Misbehaving, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Poll]:
    """The deployed handler, with the secret `name` as the shop's."""
    environment = {
        **aws.environment(),
        "POWERTOOLS_METRICS_DISABLED": "true",
        "STREAM_NAME": "changes",
        "STATE_BUCKET": "state",
        "STATE_PREFIX": name,
        "SOURCES_FOLDER": str(folder),
        "PLATZI_URL": f"{shop.url}/api/v1",
        "PAGE_ROWS": "3",
        "ALLOW_LOOPBACK": "true",
        SETTING: name,
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    forget()
    yield lambda: app.handler({"source": "platzi"}, None)
    forget()


def forget() -> None:
    """Start as a new instance of the function does: its clients know where AWS is now."""
    app._deployed.cache_clear()
    app._secrets.cache_clear()


def put(aws: EmbeddedAws, name: str, **content: Any) -> None:
    """Give the secret a value, making it first if there is none."""
    secrets, text = aws.client("secretsmanager"), json.dumps(content)
    try:
        secrets.put_secret_value(SecretId=name, SecretString=text)
    except secrets.exceptions.ResourceNotFoundException:
        secrets.create_secret(Name=name, SecretString=text)


def sent(shop: Misbehaving, header: str) -> list[str | None]:
    """What each request so far carried in this header."""
    return [seen.headers.get(header) for seen in shop.seen]


def test_every_page_is_asked_for_with_the_headers_that_the_secret_holds_now(
    poll: Poll, aws: EmbeddedAws, shop: Misbehaving, name: str
) -> None:
    put(aws, name, headers={"Authorization": BEARER, "X-Api-Key": "one"})
    first = poll()
    before = len(shop.seen)
    put(aws, name, headers={"Authorization": "Bearer rotated"})

    poll()

    rest = len(shop.seen) - before
    assert first["published"] == 5
    assert before > 1
    assert rest > 1
    assert sent(shop, "authorization") == [BEARER] * before + ["Bearer rotated"] * rest
    assert sent(shop, "x-api-key") == ["one"] * before + [None] * rest
    assert set(sent(shop, "accept")) == {"application/json"}


def test_a_log_in_takes_its_fields_from_the_secret_that_its_reference_names(
    poll: Poll,
    aws: EmbeddedAws,
    shop: Misbehaving,
    name: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Several sources may share one reference, whatever they are called."""
    log_in = "auth: { kind: api_key, in: header, name: X-Key }\ncredentials: SHOPPING\n"
    (folder / "platzi.yaml").write_text((folder / "platzi.yaml").read_text() + log_in)
    monkeypatch.delenv(SETTING)
    monkeypatch.setenv("SHOPPING_SECRET_ID", name)
    put(aws, name, api_key="one", headers={"X-Client": "freshet"})

    assert poll()["published"] == 5

    assert set(sent(shop, "x-key")) == {"one"}
    assert set(sent(shop, "x-client")) == {"freshet"}


def test_a_log_in_without_its_fields_is_a_setting_and_nothing_is_asked(
    poll: Poll, aws: EmbeddedAws, shop: Misbehaving, name: str, folder: Path
) -> None:
    log_in = "auth: { kind: api_key, in: header, name: X-Key }\ncredentials: PLATZI\n"
    (folder / "platzi.yaml").write_text((folder / "platzi.yaml").read_text() + log_in)
    put(aws, name, token=TOKEN)

    with pytest.raises(SettingsError, match=rf"{SETTING}.*api_key") as raised:
        poll()

    assert TOKEN not in str(raised.value)
    assert not shop.seen


def test_a_secret_without_a_value_leaves_requests_as_they_are(
    poll: Poll, aws: EmbeddedAws, shop: Misbehaving, name: str
) -> None:
    aws.client("secretsmanager").create_secret(Name=name)

    assert poll()["published"] == 5

    assert set(sent(shop, "authorization")) == {None}


def test_a_secret_that_does_not_exist_is_a_setting_and_nothing_is_asked(
    poll: Poll, shop: Misbehaving
) -> None:
    with pytest.raises(SettingsError, match=rf"{SETTING}.*does not exist"):
        poll()

    assert not shop.seen


def test_a_secret_of_other_content_is_a_setting_and_nothing_is_asked(
    poll: Poll, aws: EmbeddedAws, shop: Misbehaving, name: str
) -> None:
    aws.client("secretsmanager").create_secret(Name=name, SecretString=TOKEN)

    with pytest.raises(SettingsError, match=rf"{SETTING}.*no JSON object"):
        poll()

    assert not shop.seen


def test_an_arn_names_the_secret_as_well(
    poll: Poll, aws: EmbeddedAws, shop: Misbehaving, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aws, name, headers={"Authorization": BEARER})
    arn = aws.client("secretsmanager").describe_secret(SecretId=name)["ARN"]
    monkeypatch.setenv(SETTING, arn)

    poll()

    assert set(sent(shop, "authorization")) == {BEARER}


def test_a_redirect_within_the_host_keeps_them_also_where_the_address_says_the_same(
    poll: Poll, aws: EmbeddedAws, shop: Misbehaving, name: str
) -> None:
    put(aws, name, headers={"Authorization": BEARER, "X-Scope": "products"})
    shop.on("/api/v1/products", lambda visit: redirect(visit.path.replace("/v1", "/v2"))(visit))
    shop.on("/api/v2/products", catalogue)

    assert poll()["published"] == 5

    assert len(shop.asked("/api/v2/products")) > 1
    assert set(sent(shop, "authorization")) == {BEARER}
    assert set(sent(shop, "x-scope")) == {"products"}


# --- where they never stand -----------------------------------------------------------------------


def reflected(code: int, text: bytes = b"", **headers: str) -> Reply:
    """A source that sends the credentials back."""
    return lambda visit: visit.answer(code, text, **headers)


def moved_to(reply: Reply) -> Reply:
    """A redirect to an address with the credentials in it, and this reply there."""

    def answer(visit: Visit) -> None:
        if TOKEN in visit.seen.path:
            reply(visit)
        else:
            redirect(f"/{TOKEN}")(visit)

    return answer


REFLECTIONS: dict[str, Reply] = {
    "healthy": catalogue,
    "refused": reflected(401, BEARER.encode(), WWW_Authenticate=BEARER),
    "redirect": redirect(f"http://localhost:1/{TOKEN}?token={TOKEN}"),
    "circle": redirect(f"/{TOKEN}?token={TOKEN}"),
    "moved to a fault": moved_to(body(b'{"not": "a list"}')),
    "moved to silence": moved_to(status(503, Retry_After="86400")),
    "encoding": reflected(200, b"[]", Content_Encoding=TOKEN),
    "no JSON": reflected(200, BEARER.encode()),
    "retry": reflected(429, BEARER.encode(), Retry_After="86400"),
    "hang-up": lambda visit: visit.raw(b""),
}


@pytest.mark.parametrize("reflection", REFLECTIONS)
def test_credentials_stand_in_no_log_error_or_report_even_when_sent_back(
    reflection: str,
    poll: Poll,
    aws: EmbeddedAws,
    shop: Misbehaving,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not even with every logger at DEBUG, as Lambda's log level may set them."""
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "false")
    put(aws, name, headers={"Authorization": BEARER})  # whose own request a DEBUG log would hold
    caplog.set_level(logging.DEBUG)
    shop.faults.extend([REFLECTIONS[reflection]] * 9)

    told = outcome(poll)

    assert shop.seen[0].headers["authorization"] == BEARER
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


def test_a_source_shows_no_credentials_in_its_repr(poll: Poll, aws: EmbeddedAws, name: str) -> None:
    put(aws, name, headers={"Authorization": BEARER})
    made = app.compose_here()

    source = made.source("platzi")

    assert TOKEN not in f"{made!r} {source!r} {vars(source)!r} {vars(source.session)!r}"


def test_the_state_that_a_poll_leaves_holds_no_credentials(
    poll: Poll, aws: EmbeddedAws, name: str
) -> None:
    put(aws, name, headers={"Authorization": BEARER})
    poll()

    s3 = aws.client("s3")
    stored = s3.list_objects_v2(Bucket="state", Prefix=name)["Contents"]
    bodies = [s3.get_object(Bucket="state", Key=one["Key"])["Body"].read() for one in stored]

    assert len(bodies) == 1
    assert b"Product 4" in unpacked(bodies[0])  # all of it, rows included
    assert TOKEN.encode() not in unpacked(bodies[0])


def unpacked(data: bytes) -> bytes:
    """All frames of a file."""
    reader = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True)
    return reader.read()
