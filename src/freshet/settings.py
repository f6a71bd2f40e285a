"""What settings of all functions share: a variable that must be there, or an error naming it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from freshet.errors import SettingsError


def required(environ: Mapping[str, str], name: str) -> str:
    """The value of a variable that has no default. Raises `SettingsError` when absent or blank."""
    value = environ.get(name, "").strip()
    if not value:
        raise SettingsError(name, "is not set; the template sets it for the deployed function")
    return value


def metrics_namespace(environ: Mapping[str, str] | None = None) -> str:
    """The CloudWatch namespace: the template names one for each stack, so that two stacks in one
    account keep their metrics apart; "Freshet" where nothing is set.
    """
    env = os.environ if environ is None else environ
    return env.get("POWERTOOLS_METRICS_NAMESPACE", "").strip() or "Freshet"
