"""The README cannot lie: its shell blocks run, in order, in one fresh home."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
# The command that runs this very test: CI calls it.
TEST_COMMAND = "make test\n"
BLOCK_S_MAX = 240
# A line that fails must not leave `freshet up` or `local-deploy` behind.
END_JOBS = "kill $(jobs -p) 2>/dev/null || true"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_the_blocks_of_the_readme_run_in_order(tmp_path: Path) -> None:
    """The later ones ask what the demo left behind."""
    environment = {**os.environ, "FRESHET_HOME": str(tmp_path / "home")}

    for block in BLOCKS:
        if block != TEST_COMMAND:
            assert_runs(block.replace("8080", str(free_port())), environment)


def assert_runs(block: str, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail\ntrap '{END_JOBS}' EXIT\n{block}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that what it left in the background ends with it
    ) as process:
        try:
            out, err = process.communicate(timeout=BLOCK_S_MAX)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, f"{block}\n{out}\n{err}"


def sam_local_lines() -> list[str]:
    """The lines of the README that run functions in containers."""
    return [line for line in README.splitlines() if "/sam local " in line]


@pytest.mark.long
@pytest.mark.parametrize("line", sam_local_lines())
def test_the_readmes_sam_local_commands_ask_for_nothing_but_a_container_runtime(line: str) -> None:
    """There is none where this runs: SAM takes every argument before it says so."""
    if container_runtime_answers():
        pytest.skip("with a container runtime the commands want LocalStack as well")
    done = subprocess.run(
        ["bash", "-c", f"set -e\n{line}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BLOCK_S_MAX,
        check=False,
    )
    assert "requires a container runtime" in done.stderr


def container_runtime_answers() -> bool:
    docker = shutil.which("docker")
    return (
        docker is not None
        and not subprocess.run(
            [docker, "info"], capture_output=True, timeout=30, check=False
        ).returncode
    )


def test_ci_runs_the_readmes_test_command() -> None:
    assert TEST_COMMAND in BLOCKS
    assert TEST_COMMAND.strip() in (ROOT / ".ci" / "run").read_text().splitlines()


def test_every_make_target_the_readme_names_exists() -> None:
    named = set(re.findall(r"make ([a-z-]+)", README))

    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert named <= targets
