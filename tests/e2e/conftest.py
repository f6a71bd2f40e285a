"""The `freshet` command as a user runs it: a process of its own, bounded in time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SRC = Path(__file__).parents[2] / "src"
COMMAND = (sys.executable, "-c", "from local.cli import main; main()")
COMMAND_S_MAX = 120
START_S_MAX = 60
RUNNING = "running; stop with Ctrl-C"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line that says what is wrong."""
        [line] = [line for line in self.err.splitlines() if line.startswith("Error: ")]
        return line


Run = Callable[..., Done]
Start = Callable[..., AbstractContextManager["Running"]]


class Running:
    """A `freshet up` that has told its addresses."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.heard = process, [""]
        assert process.stderr is not None
        while self.heard[-1] != RUNNING:
            line = process.stderr.readline()
            assert line, f"ended with {process.wait()}: {self.heard}"
            self.heard.append(line.rstrip("\n"))
        assert process.stdout is not None
        rows = [process.stdout.readline().split(maxsplit=1) for _ in range(5)]
        self.url = dict(row for row in rows if len(row) == 2)["gateway"].strip()

    def stop(self, signal_number: int) -> int:
        """Send a signal and wait for the end; the exit code."""
        self.process.send_signal(signal_number)
        _, err = self.process.communicate(timeout=START_S_MAX)
        self.heard.extend(err.splitlines())
        return self.process.returncode


def _environment(home: Path, more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SRC), "FRESHET_HOME": str(home), **more}


@pytest.fixture(scope="session")
def freshet() -> Run:
    """`freshet(home, *arguments)` runs a command to its end."""

    def run(
        home: Path,
        *arguments: str,
        stdin: str = "",
        cwd: Path | None = None,
        program: tuple[str, ...] = COMMAND,
        **environment: str,
    ) -> Done:
        done = subprocess.run(
            [*program, *arguments],
            env=_environment(home, environment),
            cwd=cwd or home.parent,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def freshet_up() -> Start:
    """`with freshet_up(home, *arguments) as running:` is a pipeline on a free port."""

    @contextmanager
    def start(home: Path, *arguments: str, **environment: str) -> Iterator[Running]:
        process = subprocess.Popen(
            [*COMMAND, "up", "--port", "0", *arguments],
            env=_environment(home, environment),
            cwd=home.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                yield Running(process)
            finally:
                if process.poll() is None:
                    process.kill()

    return start
