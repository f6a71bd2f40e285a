"""What a source's secret may hold, what each fault of reading it becomes, and that none of it is
ever quoted.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
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

from api_poller.credentials import (
    FIELDS_MAX,
    HEADERS_MAX,
    VALUE_CHARS_MAX,
    Credentials,
    CredentialsUnavailableError,
    credentials_for,
    parse_credentials,
    read_credentials,
)
from api_poller.http import redirect_target
from freshet.errors import SettingsError, TerminalError, TransientError

TOKEN = "sk-live-51Hq7ZtopSecretToken"
SETTING = "PLATZI_SECRET_ID"


def secret(**headers: Any) -> str:
    return json.dumps({"headers": headers})


def opened(made: Credentials) -> dict[str, Any]:
    """What was read, in the form of a secret."""
    fields = {name: value.get_secret_value() for name, value in made.fields.items()}
    headers = {name: value.get_secret_value() for name, value in made.headers.items()}
    return fields | ({"headers": headers} if headers else {})


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

    made = parse_credentials(text, setting=SETTING)

    assert opened(made) == json.loads(text)
    assert TOKEN not in f"{made} {made!r}"


def test_a_secret_holds_the_fields_that_a_log_in_wants_and_headers_besides() -> None:
    text = json.dumps(
        {"client_id": "id", "client_secret": TOKEN, "password": "pä ss", "headers": {"X-A": TOKEN}}
    )

    made = parse_credentials(text, setting=SETTING)

    assert opened(made) == json.loads(text)
    assert made.setting == SETTING
    assert TOKEN not in f"{made} {made!r}"


@pytest.mark.parametrize("text", ["", " \n", "{}"])
def test_an_empty_secret_holds_no_credentials(text: str) -> None:
    assert opened(parse_credentials(text, setting=SETTING)) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TOKEN, "holds no JSON object"),
        (f'"{TOKEN}"', "holds no JSON object"),
        (f'{{"headers": {{"Authorization": "{TOKEN}"}}', "holds no JSON object"),
        ("[" * 100_000 + TOKEN, "holds no JSON object"),
        (json.dumps({"Authorization": TOKEN}), "at member 1: String should match pattern"),
        (json.dumps({"headers": {"A": TOKEN}, TOKEN: 1}), "at member 2"),
        (json.dumps({"token": TOKEN, "ttl": 5}), "at member 2"),
        (json.dumps({"token": [TOKEN]}), "at member 1"),
        (json.dumps({"token": ""}), r"member 1.*1 to 8000 characters"),
        (json.dumps({"token": TOKEN * VALUE_CHARS_MAX}), r"member 1.*1 to 8000 characters"),
        (json.dumps({"token": f"{TOKEN}\n"}), r"member 1.*without line breaks"),
        (json.dumps({f"f{at}": TOKEN for at in range(FIELDS_MAX + 1)}), "the object.*at most 30"),
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
        parse_credentials(text, setting=SETTING)

    assert raised.value.name == SETTING
    assert '{"headers": {"Authorization":' in str(raised.value)
    assert TOKEN not in told(raised.value)
    assert list(chain(raised.value)) == [raised.value]


def test_a_binary_secret_is_refused(client: Any) -> None:
    with Stubber(client) as stub:
        stub.add_response("get_secret_value", {"SecretBinary": TOKEN.encode()})

        with pytest.raises(SettingsError, match="holds no JSON object"):
            read_credentials(client, "shop", setting=SETTING)


token_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(TOKEN) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["headers", "A", "token", "Host", TOKEN, ""]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(token_json)
def test_whatever_a_secret_holds_is_taken_or_refused_without_a_quote(content: Any) -> None:
    outcome: Credentials | SettingsError
    try:
        outcome = parse_credentials(json.dumps(content), setting=SETTING)
    except SettingsError as error:
        outcome = error

    if isinstance(outcome, SettingsError):
        assert TOKEN not in told(outcome)
    else:
        assert opened(outcome) == content


# --- faults ---------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Any:
    return boto3.client("secretsmanager", region_name="eu-west-1")


def refused(client: Any, code: str, message: str, status: int) -> BaseException | Credentials:
    """What reading the secret comes to when Secrets Manager answers this."""
    with Stubber(client) as stub:
        stub.add_client_error("get_secret_value", code, message, status)
        try:
            return read_credentials(client, "shop", setting=SETTING)
        except (TerminalError, TransientError) as error:
            return error


def test_a_secret_without_a_value_means_no_credentials(client: Any) -> None:
    message = "Secrets Manager can't find the specified secret value for staging label: AWSCURRENT"

    assert refused(client, "ResourceNotFoundException", message, 400) == Credentials(SETTING)


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
        read_credentials(client, "shop", setting=SETTING)


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
        read_credentials(client, "shop", setting=SETTING)

    assert raised.value.name == name


def test_an_answer_holds_the_text_that_is_parsed(client: Any) -> None:
    answer = {"SecretString": secret(Authorization=f"Bearer {TOKEN}")}
    with Stubber(client) as stub:
        stub.add_response("get_secret_value", answer, {"SecretId": "shop"})

        made = read_credentials(client, "shop", setting=SETTING)

    assert opened(made) == {"headers": {"Authorization": f"Bearer {TOKEN}"}}


# --- by reference ---------------------------------------------------------------------------------


def no_client() -> Any:
    raise AssertionError("no secret is named")


def test_a_reference_names_a_secret_in_the_cloud(client: Any) -> None:
    environ = {"SHOP_SECRET_ID": "shop", "SHOP_TOKEN": "not looked at"}
    with Stubber(client) as stub:
        stub.add_response(
            "get_secret_value", {"SecretString": '{"token": "a"}'}, {"SecretId": "shop"}
        )

        made = credentials_for("SHOP", environ, lambda: client)

    assert (opened(made), made.setting) == ({"token": "a"}, "SHOP_SECRET_ID")


def test_a_reference_names_variables_on_a_laptop() -> None:
    environ = {
        "SHOP_CREDENTIALS": '{"username": "ada", "tenant": "x", "headers": {"X-A": "1"}}',
        "SHOP_USERNAME": "bob",
        "SHOP_CLIENT_SECRET": TOKEN,
        "SHOP_TOKEN": "",
        "SHOP_URL": "https://shop",
        "OTHER_PASSWORD": "p",
        "SHOP_SECRET_ID": "",
    }

    made = credentials_for("SHOP", environ, no_client)

    assert opened(made) == {
        "username": "bob",
        "tenant": "x",
        "client_secret": TOKEN,
        "headers": {"X-A": "1"},
    }
    assert made.setting == "SHOP_CREDENTIALS"


def test_a_reference_to_nothing_gives_none() -> None:
    assert opened(credentials_for("SHOP", {}, no_client)) == {}


def test_a_laptops_variable_that_cannot_be_read_is_named_and_not_quoted() -> None:
    with pytest.raises(SettingsError, match="setting SHOP_CREDENTIALS: holds no JSON") as raised:
        credentials_for("SHOP", {"SHOP_CREDENTIALS": TOKEN}, no_client)

    assert TOKEN not in told(raised.value)


# --- redirects ------------------------------------------------------------------------------------


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
    assert redirect_target("https://shop.example/api/products?offset=0", location) is None


@pytest.mark.parametrize("location", ["/v2/products", "https://SHOP.example:443/v2/products"])
def test_a_redirect_within_the_host_is_followed(location: str) -> None:
    target = redirect_target("https://shop.example/api/products", location)

    assert target is not None
    assert target.endswith("/v2/products")
