"""The Makefile's own promises: it explains itself, and says plainly when Python is too old."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_make_alone_prints_help_that_names_every_target_a_user_needs() -> None:
    done = make()

    assert done.returncode == 0
    for target in ("setup", "demo", "up", "test", "check", "bench"):
        assert f"make {target} " in done.stdout


def test_an_old_python_is_told_in_one_line_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = (3, 9, 1)\n$2"\n'
    )
    old.chmod(0o755)

    done = make("setup", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}")

    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2
    assert len(lines) == 1
    assert "needs Python 3.11 or newer" in lines[0]
    assert "PYTHON=python3.12" in lines[0]
    assert not (tmp_path / "venv").exists()
