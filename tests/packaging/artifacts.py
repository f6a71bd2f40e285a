"""Builds what a deploy uploads, with the `sam build` that users run, once for all tests.

A build is kept under a digest of everything that goes into it, so that a second run of the tests
costs nothing and none ever sees an old build. Tests run the functions on this machine's processor
with Python 3.13, as Lambda does, where that is installed; else with the Python of the tests.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
DEPLOYED_PYTHON = "3.13"  # `Runtime` in the template
DEPLOYED_ARCH = "arm64"  # default of `Architecture` in the template
HOST_ARCH = {"aarch64": "arm64", "arm64": "arm64"}.get(platform.machine(), "x86_64")
# The downloads are 60 MB; what takes longer than this waits for a network that is not there.
BUILD_DEADLINE_S = 300.0
# Longer than any run of the tests that could still be using it.
KEPT_S = 24 * 3600.0


class BuildError(Exception):
    """`sam build` failed; the message is what it said."""


@dataclass(frozen=True)
class Interpreter:
    """A Python that can run the functions: its version as `3.13` and its executable."""

    version: str
    path: Path


@dataclass(frozen=True)
class Function:
    """A deployed function: its room in src, its logical id, and whether it has the lake's layer."""

    name: str
    logical_id: str
    has_layer: bool

    @property
    def handler(self) -> str:
        """What the template says."""
        return f"{self.name}.app.handler"

    def layers(self, built: Path) -> tuple[Path, ...]:
        """Its layers in a build, as they lie below /opt/python."""
        return (built / "LakeLayer/python",) if self.has_layer else ()


FUNCTIONS = (
    Function("producer", "ProducerFunction", has_layer=False),
    Function("api_poller", "ApiPollerFunction", has_layer=False),
    Function("consumer", "ConsumerFunction", has_layer=True),
    Function("maintenance", "MaintenanceFunction", has_layer=True),
)


@functools.cache
def interpreter() -> Interpreter:
    """Python 3.13 if one works here, on PATH or below pyenv, else the one that runs the tests."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    name = f"python{DEPLOYED_PYTHON}"
    on_path = (Path(folder) / name for folder in os.get_exec_path())
    for path in (*on_path, *sorted(pyenv.glob(f"versions/{DEPLOYED_PYTHON}*/bin/{name}"))):
        if path.is_file() and _version(path) == DEPLOYED_PYTHON:
            return Interpreter(DEPLOYED_PYTHON, path)
    return Interpreter("{}.{}".format(*sys.version_info), Path(sys.executable))


def _version(python: Path) -> str:
    told = subprocess.run(
        [python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,  # pyenv's shims are there without the Python that they stand for
    )
    return told.stdout.strip()


def built_artifacts(cache_dir: Path, arch: str, python: str) -> Path:
    """The folder that `sam build` makes for this processor (`arm64`, `x86_64`) and Python (`3.13`).

    It holds one folder for each function and layer, by logical id, and `template.yaml` that names
    them. Safe to call from several processes: one builds, the others wait. Raises `BuildError`.
    """
    kept = cache_dir / f"{arch}-{python}-{_digest(arch, python)}"
    with _making(kept) as unfinished:
        if unfinished:
            _drop_old(cache_dir)
            _sam_build(unfinished / "build", arch, python)
    return kept / "build"


def runtime_client(cache_dir: Path) -> Path:
    """A folder that holds awslambdaric, as requirements/dev.lock pins it, and nothing else."""
    lock, python = ROOT / "requirements/dev.lock", interpreter()
    version = re.findall(r"^awslambdaric==(\S+)", lock.read_text(), re.MULTILINE)[0]
    kept = cache_dir / f"awslambdaric-{version}-{python.version}-{HOST_ARCH}"
    with _making(kept) as unfinished:
        if unfinished:
            _run(
                [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python.path,
                 "--target", unfinished, "--constraint", lock, "awslambdaric"]
            )  # fmt: skip
    return kept


def sam() -> Path:
    """The SAM CLI that `make setup` installs, or the one on PATH. Raises `BuildError`."""
    ours = ROOT / ".venv/sam/bin/sam"
    found = ours if ours.is_file() else shutil.which("sam")
    if not found:
        raise BuildError("no SAM CLI; run make setup")
    return Path(found)


def build_environment(arch: str, python: str) -> dict[str, str]:
    """What a build for this processor and Python is told, with the interpreter first on PATH."""
    return {
        **os.environ,
        "FRESHET_ARCH": arch,
        "FRESHET_PYTHON": python,
        "PYTHON": sys.executable,  # whose pip is known to work
        "PATH": f"{interpreter().path.parent}{os.pathsep}{os.environ['PATH']}",
    }


def _sam_build(folder: Path, arch: str, python: str) -> None:
    environment = build_environment(arch, python) | {
        "AWS_DEFAULT_REGION": "us-east-1",
        "SAM_CLI_TELEMETRY": "0",
        "__SAM_CLI_APP_DIR": str(folder.parent / "sam"),  # else it writes into the home folder
    }
    _run(
        [sam(), "build", "--parallel", "--no-cached", "--template-file", TEMPLATE,
         "--build-dir", folder,
         "--parameter-overrides", f"ParameterKey=Architecture,ParameterValue={arch}"],
        environment,
    )  # fmt: skip


def _run(command: list[str | Path], environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_DEADLINE_S,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{Path(command[0]).name} failed ({done.returncode}):\n{done.stdout}")


def _digest(arch: str, python: str) -> str:
    """Of all that a build depends on: sources, locks, recipes, the template and the request."""
    digest = hashlib.sha256(f"{arch} {python} {_version(interpreter().path)}".encode())
    for path in sorted({TEMPLATE, *_files(ROOT / "src"), *_files(ROOT / "layers")}):
        if path.is_relative_to(ROOT / "src/local"):
            continue  # never deployed
        digest.update(f"\n{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _files(folder: Path) -> Iterator[Path]:
    return (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def _drop_old(cache_dir: Path) -> None:
    for folder in cache_dir.iterdir():
        if folder.is_dir() and time.time() - folder.stat().st_mtime > KEPT_S:
            shutil.rmtree(folder)


@contextmanager
def _making(folder: Path) -> Iterator[Path | None]:
    """Where to make what `folder` shall hold, or None if it is there: it appears whole or not at
    all, and of several processes one makes it while the others wait.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also when the process dies
        if folder.is_dir():
            yield None
            return
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        yield unfinished
        unfinished.rename(folder)
