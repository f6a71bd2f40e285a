"""The poll of issue 4's size, over real sockets: the benchmark's figures within their bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_100_changes_in_100_000_rows_are_100_events_within_time_and_memory() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "poll.py"), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert [found[name]["events"] for name in ("first", "changed", "unchanged")] == [
        100_000,
        100,
        0,
    ]
    assert all(one["listed"] == 100_000 for one in found.values())
    assert all(one["complete"] for one in found.values())
    assert max(one["peak_mb"] for one in found.values()) < 256
    assert found["changed"]["beyond_s"] < 20
    assert found["changed"]["state_mb"] < 5
