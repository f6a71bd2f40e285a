"""The child process of `local.stack`: MiniStack with CloudFormation and Lambda, for a whole stack.

Its workers start in a second, where they would unpack 160 MB each, and see what a function in
Lambda sees: its code, its layer, the standard library, and no environment but their own. All state
is in memory and ends with the process. What MiniStack's CloudFormation lacks is in `stack_gaps.py`.
"""

# ruff: noqa: SLF001, PLC0415 - patches a pinned MiniStack; imports it only once configured

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import socket
import sys
import zipfile
from pathlib import Path
from typing import Any, Self

from local.embedded_server import serve_until_orphaned
from local.stack_gaps import close_gaps

# What a process needs from the machine. Functions inherit the environment of this server, and may
# hold nothing that they would not hold in Lambda.
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ")
# Of the interpreter's import path a function gets the standard library: what is installed beside it
# is not there in Lambda.
ONLY_STANDARD_LIBRARY = """
import sys as _sys
_sys.path[:] = [p for p in _sys.path if p.startswith(_sys.base_prefix) and "-packages" not in p]
"""


def configure(folder: Path, port: int) -> None:
    """Set what MiniStack reads at import; it must listen nowhere else and write nowhere else."""
    kept = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
    os.environ.clear()
    os.environ.update(
        kept,
        GATEWAY_PORT=str(port),
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        MINISTACK_REGION="us-east-1",
        AUTH="false",
        LAMBDA_EXECUTOR="local",
        LAMBDA_ACCOUNT_CONCURRENCY="64",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
        PERSIST_STATE="0",
        S3_PERSIST="0",
        STATE_DIR=str(folder / "state"),
        HOME=str(folder),
        TMPDIR=str(folder / "tmp"),
        LOG_LEVEL="WARNING",
    )
    clear(folder)
    (folder / "tmp").mkdir()


def clear(folder: Path) -> None:
    """Delete what an earlier process left: it is of no use without its memory."""
    for name in ("tmp", "state", "unpacked"):
        shutil.rmtree(folder / name, ignore_errors=True)


def application(folder: Path, python: str, port: int) -> Any:
    """MiniStack's ASGI application, its gaps closed, its functions run by `python`."""
    from ministack import app
    from ministack.core import lambda_runtime

    close_gaps(port)
    lambda_runtime.zipfile = UnpackedOnce(folder / "unpacked")
    script = ONLY_STANDARD_LIBRARY + lambda_runtime._PYTHON_WORKER_SCRIPT
    lambda_runtime._detect_runtime_binary = lambda _runtime: (python, script)
    return app.app


class UnpackedOnce:
    """`zipfile` for MiniStack's workers: an archive is unpacked once, and linked from then on.

    MiniStack unpacks code and layer anew for every worker; Lambda has them in place.
    """

    BadZipFile, LargeFileError = zipfile.BadZipFile, zipfile.LargeZipFile

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ZipFile(self, path: str) -> LinkedArchive:  # noqa: N802 - stands in for the module
        """The archive at `path`."""
        return LinkedArchive(path, self._folder)


class LinkedArchive:
    """An archive whose `extractall` links to the one unpacked copy of its content."""

    def __init__(self, path: str, folder: Path) -> None:
        with Path(path).open("rb") as content:
            self._unpacked = folder / hashlib.file_digest(content, "sha256").hexdigest()
        self._archive = zipfile.ZipFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def namelist(self) -> list[str]:
        """The names of the archive's files."""
        return self._archive.namelist()

    def extractall(self, path: str) -> None:
        """Fill the folder `path` with links to the unpacked content."""
        if not self._unpacked.is_dir():
            self._unpack()
        for entry in self._unpacked.iterdir():
            (Path(path) / entry.name).symlink_to(entry)

    def _unpack(self) -> None:
        unfinished = self._unpacked.with_name(f"{self._unpacked.name}.{os.urandom(4).hex()}")
        self._archive.extractall(unfinished)
        try:
            unfinished.rename(self._unpacked)
        except OSError:  # another worker was first
            shutil.rmtree(unfinished)


def main() -> None:
    """Entry point: FOLDER, the file descriptor of a bound socket, and the functions' Python."""
    folder, listening, python = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    with socket.socket(fileno=os.dup(listening)) as bound:
        port = bound.getsockname()[1]
    configure(folder, port)
    served = application(folder, python, port)
    try:
        asyncio.run(serve_until_orphaned(served, listening))
    finally:
        stop_workers()
        clear(folder)


def stop_workers() -> None:
    """End the functions' processes."""
    from ministack.core import lambda_runtime

    lambda_runtime.reset()
