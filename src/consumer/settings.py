"""The settings of the consumer; the only place here that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from freshet.pii import KEY_SETTING
from lake.settings import LakeSettings

# Beside the packages, in a checkout, an installed wheel and a Lambda alike.
SHIPPED_STREAMS = Path(__file__).parents[1] / "sources" / "streams"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the lake is, and where the streams of other tools are declared; `pii_secret_arn` names
    the secret with the key that personal data is hashed with, and is empty where there is none.
    """

    lake: LakeSettings
    streams_folder: Path = SHIPPED_STREAMS
    pii_secret_arn: str = ""

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from environment variables. Raises `SettingsError` naming the variable."""
        env = os.environ if environment is None else environment
        folder = env.get("STREAMS_FOLDER", "").strip()
        return cls(
            lake=LakeSettings.from_env(env),
            streams_folder=Path(folder) if folder else SHIPPED_STREAMS,
            pii_secret_arn=env.get(KEY_SETTING, "").strip(),
        )
