"""Cold start and unzipped size of every function, from the artifacts that a deploy uploads.

Run `.venv/bin/python benchmarks/cold_start.py` on a machine that does nothing else. Sizes are those
of the arm64 build. Starts are those of the same build for this machine's processor, under AWS's own
runtime client, with AWS and the sources on the loopback. A start makes the whole way, from the
spawning of the process to the first byte of its first answer: imports, clients, and what the
payload asks for.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the harness is the tests' own

from tests.packaging.artifacts import (  # noqa: E402
    DEPLOYED_ARCH,
    DEPLOYED_PYTHON,
    FUNCTIONS,
    HOST_ARCH,
    Function,
    built_artifacts,
    interpreter,
    runtime_client,
)
from tests.packaging.runtime_api import ColdStart, Runtime  # noqa: E402
from tests.packaging.stage import COLD_START_PAYLOAD, Stage, event, stage  # noqa: E402

STARTS = 10
COLUMNS = "function      unzipped  + layer |  ready  first byte  slowest  processor"


def starts(function: Function, built: Path, runtime: Runtime, running: Stage) -> list[ColdStart]:
    payload = event(ROOT / "events" / f"{COLD_START_PAYLOAD[function.name]}.json")
    with running.sandbox(function, built, runtime) as once:
        once.invoke(payload)  # makes the tables, which only the very first start does
    found = []
    for _ in range(STARTS):
        with running.sandbox(function, built, runtime) as sandbox:
            found.append(sandbox.cold_start(payload))
    return found


def megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def line(function: Function, deployed: Path, found: list[ColdStart]) -> str:
    size = megabytes(deployed / function.logical_id)
    layer = megabytes(deployed / "LakeLayer") if function.has_layer else 0
    ready, first_byte, cpu = (
        statistics.median(values)
        for values in zip(*((one.init_s, one.answer_s, one.cpu_s) for one in found), strict=True)
    )
    slowest = max(one.answer_s for one in found)
    return (
        f"{function.name:12} {size:6.0f} MB {size + layer:5.0f} MB |"
        f" {ready:5.2f} s {first_byte:9.2f} s {slowest:6.2f} s {cpu:8.2f} s"
    )


def main() -> None:
    cache = ROOT / ".pytest_cache/d/artifacts"  # the tests' own builds
    python = interpreter()
    deployed = built_artifacts(cache, DEPLOYED_ARCH, DEPLOYED_PYTHON)
    built = built_artifacts(cache, HOST_ARCH, python.version)
    runtime = Runtime(python.path, runtime_client(cache))
    print(f"median of {STARTS}, Python {python.version}, {HOST_ARCH}\n{COLUMNS}")
    with tempfile.TemporaryDirectory() as folder, stage(Path(folder)) as running:
        for function in FUNCTIONS:
            print(line(function, deployed, starts(function, built, runtime, running)))


if __name__ == "__main__":
    main()
