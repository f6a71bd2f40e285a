"""What is read of AWS Secrets Manager: a secret's value, and the key that personal data is hashed
with.

Values may stand in no log, error or trace: errors name the setting that names the secret. This is
boto3 rather than powertools' parameters, which turn every failure into one error with only a text
to tell a secret that is missing from one that could not be read just now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError

from freshet.contract import Contract, Registry
from freshet.errors import FreshetError, SettingsError, TransientError
from freshet.pii import KEY_SETTING, Protector

if TYPE_CHECKING:
    from mypy_boto3_secretsmanager import SecretsManagerClient

# One small answer: three tries of 5 s are plenty, and end before API Gateway's 30 s do.
_CONFIG = Config(
    connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"}
)
_TRANSIENT_CODES = frozenset(
    ("InternalServiceError", "RequestTimeout", "ServiceUnavailable", "LimitExceededException")
) | {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException"}
# What to do about codes whose own text does not say it.
_ADVICE = {
    "AccessDeniedException": "refuses this caller: grant it secretsmanager:GetSecretValue on the "
    "secret and kms:Decrypt on the secret's key",
    "DecryptionFailure": "cannot be decrypted: grant this caller kms:Decrypt on the secret's key "
    "and see that the key is enabled",
    "ResourceNotFoundException": "does not exist in this account and region: correct the name",
}
# AWS has one code for a secret that is missing and for one without a value; only the text differs.
_EMPTY = "can't find the specified secret value for staging label"


class SecretUnavailableError(TransientError):
    """Secrets Manager throttled or did not answer."""

    def __init__(self, setting: str, detail: str) -> None:
        self.setting, self.detail = setting, detail
        super().__init__(f"the secret that {setting} names cannot be read now ({detail})")


def secrets_client() -> SecretsManagerClient:
    """A client of Secrets Manager with short time-outs."""
    # Its debug log holds answers whole, and Lambda's log level may be set to DEBUG for all loggers.
    logging.getLogger("botocore.parsers").setLevel(logging.INFO)
    return boto3.client("secretsmanager", config=_CONFIG)


def read_secret(
    client: SecretsManagerClient, secret_id: str, *, setting: str
) -> str | bytes | None:
    """What a secret holds now: text, or bytes where it is binary; None while it has no value.

    `setting` is the environment variable that names the secret, for errors. Raises `SettingsError`
    where a person must act, `SecretUnavailableError` where a later call may succeed.
    """
    try:
        value = client.get_secret_value(SecretId=secret_id)
    except ClientError as error:
        if _is_empty(error):
            return None
        raise _translation(error, setting) from error
    except (NoConnectionError, HTTPClientError) as error:  # none, timed out, or lost
        raise SecretUnavailableError(setting, type(error).__name__) from error
    except NoCredentialsError as error:
        detail = "no AWS credentials found: set a profile, keys or a role"
        raise SettingsError("AWS_PROFILE", detail) from error
    except BotoCoreError as error:
        detail = f"the Secrets Manager client cannot be used: {error}"
        raise SettingsError("AWS_ENDPOINT_URL", detail) from error
    # Emulators show a secret without a value as one that has neither.
    return value.get("SecretString", value.get("SecretBinary"))


def open_protector(
    secret_id: str,
    tables: Registry | Iterable[type[Contract]],
    client: Callable[[], SecretsManagerClient] = secrets_client,
) -> Protector:
    """The protector of `tables` with the key in the secret `secret_id`; an empty name is no key.

    The key is the secret's text. It is read when the first value is hashed, and then kept. Raises
    `SettingsError` at once where a table hashes and no secret is named; hashing raises as
    `read_secret`, and again until the key was read.
    """
    return Protector((lambda: _key(client(), secret_id)) if secret_id else None, tables)


def _key(client: SecretsManagerClient, secret_id: str) -> bytes:
    text = read_secret(client, secret_id, setting=KEY_SETTING)
    if not isinstance(text, str):
        detail = "its secret holds no text: put 64 random characters there once, and keep them"
        raise SettingsError(KEY_SETTING, detail)
    return text.strip().encode()  # a line break at the end is an editor's, not the key's


def _is_empty(error: ClientError) -> bool:
    told = error.response.get("Error", {})
    return told.get("Code") == "ResourceNotFoundException" and _EMPTY in told.get("Message", "")


def _translation(error: ClientError, setting: str) -> FreshetError:
    told = error.response.get("Error", {})
    code = str(told.get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _TRANSIENT_CODES or status >= 500:
        return SecretUnavailableError(setting, code or f"HTTP {status}")
    advice = _ADVICE.get(code, f"answers {code}: {told.get('Message', 'no message')}")
    return SettingsError(setting, f"the secret {advice}")
