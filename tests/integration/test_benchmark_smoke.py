"""The benchmark at a tiny size: every contender really does the work it is timed for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.long  # contenders take their time
ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 120
CHECKED = ("freshet", "deltalake", "deltalake-told", "pandas", "upsert")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "merge.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def in_project(code: str, *arguments: str) -> str:
    """What a Python program that sees the benchmarks prints."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    pytest.importorskip("deltalake", reason="install the bench extra")
    size = ("--rows", "600", "--days", "6", "--batches", "10", "50", "--rounds", "1")
    done = run(*size, "--json", "--only", *CHECKED, "floor")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_every_contender_ends_with_the_table_the_model_says(result: dict[str, Any]) -> None:
    verdicts = {row["contender"]: row["result"] for row in result["batches"][0]["contenders"]}

    assert {name: verdicts[name] for name in CHECKED} == dict.fromkeys(CHECKED, "right")


def test_every_figure_of_a_timed_contender_is_there(result: dict[str, Any]) -> None:
    for batch in result["batches"]:
        for row in batch["contenders"]:
            if row["contender"] == "upsert" and batch["changes"] == 50:
                assert row["seconds"] is None, "upsert gets the smallest batch only"
            else:
                assert row["seconds"] > 0
                assert row["ratio_to_floor"] > 0
                assert row["peak_mb"] > 0
                assert row["changes_per_second"] > 0


def test_the_floor_rewrites_as_many_files_as_the_lake(result: dict[str, Any]) -> None:
    assert all(batch["files_touched"] > 0 for batch in result["batches"])


def test_a_contender_that_takes_too_long_is_left_out_and_named() -> None:
    size = ("--rows", "600", "--days", "6", "--batches", "10", "--rounds", "1")
    done = run(*size, "--only", "freshet", "--bound", "0.001")

    assert "> 0" in done.stdout
    assert "not checked" in done.stdout


def test_a_floor_without_the_lake_is_a_wrong_usage() -> None:
    done = run("--only", "floor")

    assert done.returncode == 2
    assert "name freshet too" in done.stderr


def test_help_shows_commands_that_can_be_run() -> None:
    done = run("--help")

    assert done.returncode == 0
    assert "benchmarks/merge.py --quick" in done.stdout


def test_the_check_finds_a_wrong_a_missing_and_a_stale_row(tmp_path: Path) -> None:
    """A check that passes everything would make every contender right."""
    code = """
import sys
from pathlib import Path
import pyarrow as pa
from benchmarks.workload import Workload, difference, expected_rows
work = Workload(Path(sys.argv[1]))
work.make(rows=1000, days=30, sizes=[50], seed=3)
base, batch = work.read_base(), work.read_batch(0)
expected = expected_rows(base, [batch])
at = expected.schema.get_field_index("quantity")
minus = pa.repeat(pa.scalar(-1, pa.int32()), len(expected))
wrong = expected.set_column(at, expected.schema.field(at), minus)
print(difference(expected, expected))
print(difference(wrong, expected))
print(difference(expected.slice(1), expected))
print(difference(base, expected) is not None)
"""
    lines = in_project(code, str(tmp_path)).splitlines()

    assert lines[0] == "None"
    assert lines[1] == "columns differ: quantity"
    assert "rows, expected" in lines[2]
    assert lines[3] == "True"


def test_the_floor_writes_with_the_settings_of_the_lake() -> None:
    code = """
from benchmarks.contenders.floor import DICTIONARY_COLUMNS
from benchmarks.workload import ROWS, ZSTD_LEVEL, BenchSale
from benchmarks.contenders import floor_parallel
from lake import lake, parquet
print(parquet._dictionary_columns(ROWS, BenchSale.key) == DICTIONARY_COLUMNS)
print(parquet._ZSTD_LEVEL == ZSTD_LEVEL)
print(lake.IO_THREADS == floor_parallel.THREADS)
"""
    assert in_project(code).split() == ["True", "True", "True"]
