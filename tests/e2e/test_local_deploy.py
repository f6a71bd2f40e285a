"""`freshet local-deploy`: what a user runs to try the template, and the lines it gives them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.e2e.conftest import COMMAND, RUNNING, SRC, Run

LANDING_S_MAX = 60.0


@pytest.fixture
def home(pytestconfig: pytest.Config) -> Path:
    """Kept between runs: a build whose sources did not change is taken from it."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("local-deploy")


@contextmanager
def deployed(home: Path) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A running `freshet local-deploy` and what it said."""
    process = subprocess.Popen(
        [*COMMAND, "local-deploy", "--home", str(home), "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            said = [""]
            assert process.stderr is not None
            while said[-1] != RUNNING:
                line = process.stderr.readline()
                assert line, f"ended with {process.wait()}: {said}"
                said.append(line.rstrip("\n"))
            yield process, said
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.long
def test_the_lines_that_it_prints_send_a_change_and_query_it(home: Path, freshet: Run) -> None:
    with deployed(home) as (process, said):
        export, curl, query, verify = [shlex.split(line) for line in said if line[:2] == "  "]
        given = dict(word.split("=", 1) for word in export[1:])

        posted = subprocess.run(curl, capture_output=True, text=True, check=True)

        assert json.loads(posted.stdout)["accepted"] == 1, posted
        rows = landed(freshet, home, [*query[1:], "--format", "json"], given)
        assert [(row["currency"], float(row["rate"])) for row in rows] == [("USD", 1.1596)]
        checked = freshet(home, *verify[1:], **given)
        assert checked.code == 0, checked

        process.send_signal(signal.SIGINT)
        shown, _ = process.communicate(timeout=LANDING_S_MAX)

    assert process.returncode == 0
    assert "ApiUrl" in shown
    assert nobody_answers(given["AWS_ENDPOINT_URL"])


def landed(freshet: Run, home: Path, query: list[str], given: dict[str, str]) -> list[Any]:
    """The query's rows once there are any."""
    give_up_at = time.monotonic() + LANDING_S_MAX
    while time.monotonic() < give_up_at:
        done = freshet(home, *query, **given)
        assert done.code == 0, done
        if done.json:
            rows: list[Any] = done.json
            return rows
    raise AssertionError("no row landed")


def nobody_answers(url: str) -> bool:
    place = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((str(place.hostname), int(place.port or 0))) != 0


def test_a_taken_port_is_one_line_that_says_what_to_do(tmp_path: Path, freshet: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        done = freshet(tmp_path / "home", "local-deploy", "--port", str(taken.getsockname()[1]))

    assert done.code == 1
    assert "choose another port" in done.error
