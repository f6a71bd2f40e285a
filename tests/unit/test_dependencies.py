"""Dependencies are few, explained and the same everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = {"pyarrow", "pandas", "numpy", "pyiceberg", "awswrangler", "duckdb"}


def pins(lock: str) -> dict[str, str]:
    """Package -> version of a lock file; several versions of one package are joined."""
    found: dict[str, str] = {}
    for name, version in re.findall(
        r"^([a-z0-9-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE
    ):
        found[name] = f"{found[name]} {version}" if name in found else version
    return found


def test_the_functions_requirements_hold_nothing_heavy() -> None:
    assert not pins("src/requirements.txt").keys() & HEAVY


def test_the_functions_run_on_the_versions_that_are_tested() -> None:
    tested = pins("requirements/dev.lock")

    assert pins("src/requirements.txt").items() <= tested.items()


def test_every_direct_dependency_is_locked_and_says_why_it_is_there() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    direct = [*project["dependencies"], *(one for extra in extras.values() for one in extra)]

    names = {re.split(r"[\[=<>]", one)[0] for one in direct}

    assert names <= pins("requirements/dev.lock").keys()
    assert not [one for one in direct if not re.search(rf'"{re.escape(one)}",\s*# \S', text)]
