"""The settings of maintenance; the only place here that reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from freshet.errors import SettingsError
from lake.prune import HORIZON, HORIZON_MAX, REPLAY, STREAM_RETENTION
from lake.settings import LakeSettings
from lake.vacuum import GRACE, GRACE_MIN

# A year: a longer grace is a mistake in the unit, and the marks would never stop growing.
_GRACE_HOURS_MAX = 24 * 366


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the lake is, how long an unreferenced file stays, and a tombstone (None: for ever)."""

    lake: LakeSettings
    grace: timedelta
    prune_after: timedelta | None = HORIZON

    @classmethod
    def from_env(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Settings from environment variables. Raises `SettingsError` naming the variable."""
        env = os.environ if environment is None else environment
        return cls(
            LakeSettings.from_env(env),
            _grace(env.get("GRACE_HOURS", "").strip()),
            _prune_after(
                env.get("STREAM_RETENTION_HOURS", "").strip(), env.get("REPLAY_DAYS", "").strip()
            ),
        )


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


def _prune_after(retention_hours: str, replay_days: str) -> timedelta | None:
    """What the stream holds and what a person replays, together: no late change is older.

    None, so that all tombstones stay, where that is more than a table's history can answer for.
    """
    retention = _whole("STREAM_RETENTION_HOURS", retention_hours, 24 * 365)
    replay = _whole("REPLAY_DAYS", replay_days, 365)
    hours = timedelta(hours=retention) if retention else STREAM_RETENTION
    horizon = hours + (timedelta(days=replay) if replay else REPLAY)
    return horizon if horizon <= HORIZON_MAX else None


def _whole(name: str, text: str, most: int) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= most):
        raise SettingsError(name, f"must be a whole number from 1 to {most}, not {text!r}")
    return int(text)
