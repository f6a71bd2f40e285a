"""Settings of the producer: the only place where this function reads its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from freshet.pii import KEY_SETTING
from freshet.settings import required


@dataclass(frozen=True, slots=True)
class Settings:
    """Where to publish and where to keep idempotency keys; `pii_secret_arn` names the secret with
    the key that personal data is hashed with, and is empty where there is none.
    """

    stream_name: str
    state_bucket: str
    pii_secret_arn: str = ""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Settings from STREAM_NAME and STATE_BUCKET, both required, and PII_SECRET_ARN, which is
        required where a table hashes.

        Raises `SettingsError` naming the variable that is missing or wrong.
        """
        return cls(
            stream_name=required(environ, "STREAM_NAME"),
            state_bucket=required(environ, "STATE_BUCKET"),
            pii_secret_arn=environ.get(KEY_SETTING, "").strip(),
        )
