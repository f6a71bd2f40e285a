"""MiniStack as its own process on the loopback: the Glue stand-in of docker-compose.yml, with its
very settings, and a small account for `--aws account`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
START_S_MAX = 60
LOOPBACK = "127.0.0.1"


@contextmanager
def ministack(folder: Path, services: str | None = None) -> Iterator[str]:
    """The endpoint of a MiniStack that keeps nothing; `services` where they differ from Glue."""
    folder.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    own = {
        "GATEWAY_PORT": str(port),
        "BIND_HOST": LOOPBACK,
        "MINISTACK_HOST": LOOPBACK,
        "STATE_DIR": str(folder / "state"),
        "TMPDIR": str(folder),
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
    }
    asked = {"SERVICES": services} if services else {}
    with (folder / "ministack.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"],
            env={**COMPOSE["services"]["glue"]["environment"], **own, **asked},
            stdout=log,
            stderr=log,
        )
    with process:
        try:
            _wait_for(f"http://{LOOPBACK}:{port}/_ministack/health", process)
            yield f"http://{LOOPBACK}:{port}"
        finally:
            process.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + START_S_MAX
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise AssertionError(f"MiniStack did not start (exit code {process.poll()})")
