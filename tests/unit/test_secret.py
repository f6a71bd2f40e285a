"""The key that personal data is hashed with, as it is read of Secrets Manager."""

from __future__ import annotations

from typing import Annotated, Any

import boto3
import pytest
from botocore.stub import Stubber

from freshet.contract import Contract, Pii, Registry, Text
from freshet.errors import SettingsError
from freshet.pii import Protector
from freshet.secret import SecretUnavailableError, open_protector
from freshet.tables import ExchangeRate

ARN = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:PiiKey-a1b2c3"
KEY = "4kQ9zT1vB7nM3xW8cR5yL2pH6dS0gJfA4kQ9zT1vB7nM3xW8cR5yL2pH6dS0gJfA"


class Person(Contract, table="people", key=("name",)):
    """Somebody."""

    name: Annotated[str, Text(60, 1), Pii("hash")]


PERSONAL = Registry((Person,))


def never() -> Any:
    raise AssertionError("Secrets Manager is not to be asked")


@pytest.fixture
def client() -> Any:
    return boto3.client("secretsmanager", region_name="eu-west-1")


@pytest.mark.parametrize("text", [KEY, f"{KEY}\n"], ids=["as made", "as an editor saves it"])
def test_the_key_is_the_text_of_the_secret(client: Any, text: str) -> None:
    with Stubber(client) as stub:
        stub.add_response("get_secret_value", {"SecretString": text}, {"SecretId": ARN})
        protector = open_protector(ARN, PERSONAL, lambda: client)

        hashes = [protector.hashed("Ada") for _ in range(2)]

    assert hashes == [Protector(KEY.encode(), PERSONAL).hashed("Ada")] * 2


def test_nothing_is_read_before_something_is_hashed() -> None:
    protector = open_protector(ARN, PERSONAL, never)

    assert protector.row(ExchangeRate, {"currency": "USD"}) == {"currency": "USD"}


def test_a_table_that_hashes_without_a_secret_is_a_setting_at_once() -> None:
    with pytest.raises(SettingsError, match="people") as raised:
        open_protector("", PERSONAL, never)

    assert raised.value.name == "PII_SECRET_ARN"
    assert open_protector("", [ExchangeRate], never)


@pytest.mark.parametrize("answer", [{"SecretBinary": KEY.encode()}, {}], ids=["binary", "empty"])
def test_a_secret_without_text_is_a_setting(client: Any, answer: dict[str, Any]) -> None:
    with Stubber(client) as stub:
        stub.add_response("get_secret_value", answer)

        with pytest.raises(SettingsError, match="holds no text") as raised:
            open_protector(ARN, PERSONAL, lambda: client).hashed("Ada")

    assert raised.value.name == "PII_SECRET_ARN"


def test_a_key_that_cannot_be_read_now_is_transient_and_read_later(client: Any) -> None:
    with Stubber(client) as stub:
        stub.add_client_error("get_secret_value", "ThrottlingException", "later", 400)
        stub.add_response("get_secret_value", {"SecretString": KEY})
        protector = open_protector(ARN, PERSONAL, lambda: client)

        with pytest.raises(SecretUnavailableError, match="PII_SECRET_ARN"):
            protector.hashed("Ada")

        assert protector.hashed("Ada").startswith("hmac:")
