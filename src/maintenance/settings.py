"""The settings of maintenance; the only place here that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from freshet.errors import SettingsError
from lake.settings import LakeSettings
from lake.vacuum import GRACE, GRACE_MIN

# A year: a longer grace is a mistake in the unit, and the marks would never stop growing.
_GRACE_HOURS_MAX = 24 * 366


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the lake is, and how long an unreferenced file stays."""

    lake: LakeSettings
    grace: timedelta

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from environment variables. Raises `SettingsError` naming the variable."""
        env = os.environ if environment is None else environment
        return cls(LakeSettings.from_env(env), _grace(env.get("GRACE_HOURS", "").strip()))


def _grace(text: str) -> timedelta:
    hours_min = GRACE_MIN // timedelta(hours=1)
    if not text:
        return GRACE
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise SettingsError("GRACE_HOURS", f"must be a whole number of hours, not {text!r}")
    if not hours_min <= int(text) <= _GRACE_HOURS_MAX:
        detail = f"must be {hours_min} to {_GRACE_HOURS_MAX} hours, not {text}"
        raise SettingsError("GRACE_HOURS", detail)
    return timedelta(hours=int(text))
