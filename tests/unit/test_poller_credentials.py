"""What a source's secret may hold, what each fault of reading it becomes, and that none of it is
ever quoted.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
)
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from api_poller.app import build
from api_poller.credentials import (
    HEADERS_MAX,
    VALUE_CHARS_MAX,
    CredentialsUnavailableError,
    Headers,
    parse_headers,
    read_headers,
)
from api_poller.http import Answer, Fetcher, SourceRefusedError, _Request
from api_poller.settings import Settings
from freshet.errors import SettingsError, TerminalError, TransientError
from freshet.objects import DirectoryObjects
from freshet.testing import MemoryStream, StoppedClock

TOKEN = "sk-live-51Hq7ZtopSecretToken"
SETTING = "PLATZI_SECRET_ID"


def secret(**headers: Any) -> str:
    return json.dumps({"headers": headers})


def opened(headers: Headers) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in headers.items()}


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything Python would show or keep behind it."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None:
            yield one
            waiting += [one.__cause__, one.__context__]


def told(error: BaseException) -> str:
    """All that an error may bring into a log, down its chain."""
    parts = [f"{one!r} {one} {vars(one)}" for one in chain(error)]
    return "\n".join([*parts, *traceback.format_exception(error)])


# --- content --------------------------------------------------------------------------------------


def test_a_secret_holds_the_headers_that_a_source_wants() -> None:
    text = json.dumps({"headers": {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": "a\tb c"}})

    headers = parse_headers(text, setting=SETTING)

    assert opened(headers) == {"Authorization": f"Bearer {TOKEN}", "X-Api-Key": "a\tb c"}
    assert TOKEN not in f"{headers} {headers!r}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOKEN, "holds no JSON object"),
        (f'"{TOKEN}"', "holds no JSON object"),
        (f'{{"headers": {{"Authorization": "{TOKEN}"}}', "holds no JSON object"),
        ("[" * 100_000 + TOKEN, "holds no JSON object"),
        ("", "holds no JSON object"),
        (json.dumps({"Authorization": TOKEN}), "headers: Field required"),
        (json.dumps({"headers": {"A": TOKEN}, TOKEN: 1}), "a member other than headers"),
        (json.dumps({"headers": [TOKEN]}), "at headers:"),
        (json.dumps({"headers": TOKEN}), "at headers:"),
        (secret(), "at headers: Dictionary should have at least 1 item"),
        (secret(**{f"X-{at}": TOKEN for at in range(HEADERS_MAX + 1)}), "at most 10 items"),
        (secret(Authorization=TOKEN, authorization="b"), "there twice"),
        (secret(A="b", C=None), r"at headers\[2\]"),
        (secret(A=TOKEN, C=5), r"at headers\[2\]"),
        (secret(A=[TOKEN]), r"at headers\[1\]"),
        (secret(A=""), r"headers\[1\].*1 to 8000 characters"),
        (secret(A=TOKEN * VALUE_CHARS_MAX), r"headers\[1\].*1 to 8000 characters"),
        (secret(A=f"{TOKEN}\r\nHost: evil"), r"headers\[1\].*without line breaks"),
        (secret(A=f"{TOKEN}\n"), r"headers\[1\].*without line breaks"),
        (secret(A=f"{TOKEN}\x00"), r"headers\[1\].*printable ASCII"),
        (secret(A=f"{TOKEN}\xe9"), r"headers\[1\].*printable ASCII"),
        (secret(A=f" {TOKEN}"), r"headers\[1\].*white space"),
        (secret(**{f"Bearer {TOKEN}": "Authorization"}), r"at headers\[1\]"),
        (secret(**{f"{TOKEN}:": "a"}), r"at headers\[1\]"),
        (secret(**{f"{TOKEN}\n": "a"}), r"at headers\[1\]"),
        (secret(**{"": TOKEN}), r"at headers\[1\]"),
        *(
            (secret(**{"X-Key": TOKEN, name: TOKEN}), r"headers\[2\].*the poller sets itself")
            for name in (
                "Host",
                "content-length",
                "Content-Type",
                "TRANSFER-ENCODING",
                "Connection",
                "Accept",
                "Accept-Encoding",
                "If-None-Match",
                "Range",
                "Proxy-Authorization",
                "User-Agent",
            )
        ),
    ],
    ids=lambda value: value[:24],
)
def test_wrong_content_is_named_by_its_place_and_never_quoted(text: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as raised:
        parse_headers(text, setting=SETTING)

    assert raised.value.name == SETTING
    assert '{"headers": {"Authorization":' in str(raised.value)
    assert TOKEN not in told(raised.value)
    assert list(chain(raised.value)) == [raised.value]


def test_a_binary_secret_is_refused(client: Any) -> None:
    with Stubber(client) as stub:
        stub.add_response("get_secret_value", {"SecretBinary": TOKEN.encode()})

        with pytest.raises(SettingsError, match="holds no JSON object"):
            read_headers(client, "shop", setting=SETTING)


token_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(TOKEN) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["headers", "A", "Host", TOKEN, ""]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(token_json)
def test_whatever_a_secret_holds_is_taken_or_refused_without_a_quote(content: Any) -> None:
    outcome: Headers | SettingsError
    try:
        outcome = parse_headers(json.dumps(content), setting=SETTING)
    except SettingsError as error:
        outcome = error

    if isinstance(outcome, SettingsError):
        assert TOKEN not in told(outcome)
    else:
        assert opened(outcome) == content["headers"]


# --- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Any:
    return boto3.client("secretsmanager", region_name="eu-west-1")


def refused(client: Any, code: str, message: str, status: int) -> BaseException | Headers:
    """What reading the secret comes to when Secrets Manager answers this."""
    with Stubber(client) as stub:
        stub.add_client_error("get_secret_value", code, message, status)
        try:
            return read_headers(client, "shop", setting=SETTING)
        except (TerminalError, TransientError) as error:
            return error


def test_a_secret_without_a_value_means_no_credentials(client: Any) -> None:
    message = "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT"

    assert refused(client, "ResourceNotFoundException", message, 400) == {}


@pytest.mark.parametrize(
    ("code", "message", "advice"),
    [
        (
            "ResourceNotFoundException",
            "Secrets Manager can't find the specified secret.",
            "does not exist in this account and region: correct the name",
        ),
        ("AccessDeniedException", "not authorized", "grant it secretsmanager:GetSecretValue"),
        ("AccessDeniedException", "Access to KMS is not allowed", "kms:Decrypt on the secret's"),
        ("DecryptionFailure", "The ciphertext", "kms:Decrypt on the secret's key"),
        ("InvalidRequestException", "marked for deletion", "marked for deletion"),
        ("UnrecognizedClientException", "token is invalid", "UnrecognizedClientException"),
    ],
)
def test_what_a_person_must_mend_names_the_setting_and_what_to_do(
    client: Any, code: str, message: str, advice: str
) -> None:
    error = refused(client, code, message, 400)

    assert isinstance(error, SettingsError)
    assert error.name == SETTING
    assert advice in str(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ThrottlingException", 400),
        ("Throttling", 400),
        ("LimitExceededException", 400),
        ("InternalServiceError", 500),
        ("ServiceUnavailable", 503),
        ("Unheard", 502),
    ],
)
def test_what_may_pass_is_transient(client: Any, code: str, status: int) -> None:
    error = refused(client, code, "later", status)

    assert isinstance(error, CredentialsUnavailableError)
    assert code in str(error)
    assert "the watermark stays" in str(error)


class Failing:
    """A client whose call fails before there is an answer."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def get_secret_value(self, **_: str) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        EndpointConnectionError(endpoint_url="https://secretsmanager"),
        ConnectTimeoutError(endpoint_url="https://secretsmanager"),
        ReadTimeoutError(endpoint_url="https://secretsmanager"),
        ConnectionClosedError(endpoint_url="https://secretsmanager"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_answer_is_transient(error: Exception) -> None:
    client: Any = Failing(error)

    with pytest.raises(CredentialsUnavailableError, match=type(error).__name__):
        read_headers(client, "shop", setting=SETTING)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (NoCredentialsError(), "AWS_PROFILE"),
        (ParamValidationError(report="SecretId"), "AWS_ENDPOINT_URL"),
    ],
)
def test_a_client_that_cannot_work_is_a_setting(error: Exception, name: str) -> None:
    client: Any = Failing(error)

    with pytest.raises(SettingsError) as raised:
        read_headers(client, "shop", setting=SETTING)

    assert raised.value.name == name


def test_an_answer_holds_the_text_that_is_parsed(client: Any) -> None:
    answer = {"SecretString": secret(Authorization=f"Bearer {TOKEN}")}
    with Stubber(client) as stub:
        stub.add_response("get_secret_value", answer, {"SecretId": "shop"})

        headers = read_headers(client, "shop", setting=SETTING)

    assert opened(headers) == {"Authorization": f"Bearer {TOKEN}"}


# --- in a poll ------------------------------------------------------------------------------------


class Closed(Fetcher):
    """A shop without products and a bank without rates."""

    def get(self, source: str, url: str, *, accept: str) -> Answer:
        return Answer(url, 200, b"[]" if "/products" in url else b"", measured=True)


def test_the_secret_is_read_once_a_poll_of_its_source_and_for_no_other(tmp_path: Path) -> None:
    reads: list[None] = []

    def headers() -> Headers:
        reads.append(None)
        return {"Authorization": SecretStr(TOKEN)}

    handle = build(
        Settings.from_env({"STREAM_NAME": "changes", "STATE_BUCKET": "state"}),
        stream=MemoryStream(),
        objects=DirectoryObjects(tmp_path),
        http=Closed(),
        now=StoppedClock(datetime(2026, 11, 21, tzinfo=UTC)),
        platzi_headers=headers,
    )

    counts = []
    for source in ("platzi", "platzi", "ecb"):
        handle({"source": source}, None)
        counts.append(len(reads))

    assert counts == [1, 2, 2]


def test_a_secret_that_cannot_be_read_refuses_the_poll_and_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def headers() -> Headers:
        raise CredentialsUnavailableError(SETTING, "ThrottlingException")

    stream = MemoryStream()
    handle = build(
        Settings.from_env({"STREAM_NAME": "changes", "STATE_BUCKET": "state"}),
        stream=stream,
        objects=DirectoryObjects(tmp_path),
        http=Closed(),
        now=StoppedClock(datetime(2026, 11, 21, tzinfo=UTC)),
        platzi_headers=headers,
    )

    with pytest.raises(CredentialsUnavailableError):
        handle({"source": "platzi"}, None)

    assert json.loads(capsys.readouterr().out)["PollsRefused"] == [1.0]
    assert not stream.records
    assert not list(DirectoryObjects(tmp_path).list(""))


@pytest.mark.parametrize(
    "location",
    [
        "http://shop.example/api/products",
        "https://shop.example:8443/api/products",
        "https://other.example/api/products",
        "//other.example/api/products",
        "https://shop.example.other.example/",
        "https://shop.example@other.example/",
        "https://other.example\\@shop.example/",
        "https://[",
        "",
        None,
    ],
)
def test_no_redirect_leaves_scheme_host_and_port(location: str | None) -> None:
    """With a backslash, Python's parser reads another host than the library that connects."""
    request = _Request("platzi", "https://shop.example/api/products?offset=0", "text/json")

    with pytest.raises(SourceRefusedError, match="redirects to"):
        request.redirected(302, location)


@pytest.mark.parametrize("location", ["/v2/products", "https://SHOP.example:443/v2/products"])
def test_a_redirect_within_the_host_is_followed(location: str) -> None:
    request = _Request("platzi", "https://shop.example/api/products", "text/json")

    assert request.redirected(301, location).url.endswith("/v2/products")


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{TOKEN}@shop.example/api",
        "https://shop.example:99999/",
        "https://[/",
    ],
)
def test_a_source_url_has_one_reading_and_no_credentials(url: str) -> None:
    with pytest.raises(SettingsError, match="setting PLATZI_URL") as raised:
        Settings.from_env({"STREAM_NAME": "a", "STATE_BUCKET": "b", "PLATZI_URL": url})

    assert TOKEN not in str(raised.value)


def test_the_secret_is_optional_and_blank_counts_as_absent() -> None:
    base = {"STREAM_NAME": "a", "STATE_BUCKET": "b"}

    assert Settings.from_env(base).platzi_secret_id is None
    assert Settings.from_env(base | {SETTING: ""}).platzi_secret_id is None
    assert Settings.from_env(base | {SETTING: "shop"}).platzi_secret_id == "shop"
