"""The process that runs one contender: one JSON command per line in, one JSON line out.

`setup` builds the table from the base rows, `apply` merges one batch (timed: load, read, merge,
write, commit), `replay` applies one again, `check` compares the whole table with the oracle. A
contender has a process and a module to itself, so that its memory, its threads and its imports
are its own.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa
from benchmarks.workload import Workload, difference, expected_rows


class Contender(Protocol):
    """One way to keep a table current."""

    def setup(self, rows: pa.Table) -> None:
        """Make the table hold these rows."""
        ...

    def prepare(self, changes: pa.Table) -> Any:
        """A batch as this contender's caller would hand it over. Not timed."""
        ...

    def apply(self, prepared: Any) -> None:
        """Apply one batch, durably. Timed."""
        ...

    def rows(self) -> pa.Table:
        """The whole table, freshly read."""
        ...


@runtime_checkable
class Inspectable(Protocol):
    """A contender that tells what it did: the lake."""

    def files(self) -> set[str]:
        """Paths of the current data files."""
        ...

    def snapshots(self) -> list[int | None]:
        """The current snapshots of its tables."""
        ...


class Session:
    """Carries out the driver's commands on one contender."""

    def __init__(self, name: str, work: Workload) -> None:
        self._work, self._name = work, name
        module = import_module(f"benchmarks.contenders.{name.replace('-', '_')}")
        self._contender: Contender = module.Contender(work.folder / name)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command's answer."""
        match command:
            case {"do": "setup"}:
                self._contender.setup(self._work.read_base())
                return {}
            case {"do": "apply", "batch": int(batch), "files": list(files)}:
                return self._apply(batch, files)
            case {"do": "replay", "batch": int(batch)}:
                return self._replay(batch)
            case {"do": "check", "batches": list(batches)}:
                return self._check(batches)
        raise ValueError(f"unknown command {command}")

    def _apply(self, batch: int, files: list[str]) -> dict[str, Any]:
        # The floor has no table: its batch is the files that the lake has just rewritten.
        is_floor = self._name.startswith("floor")
        prepared = files if is_floor else self._contender.prepare(self._work.read_batch(batch))
        before = self._files()
        started, cpu = time.perf_counter(), time.process_time()
        self._contender.apply(prepared)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        touched = sorted(before - self._files())
        return {"seconds": seconds, "cpu": cpu, "touched": touched, "peak_mb": _peak_mb()}

    def _files(self) -> set[str]:
        return self._contender.files() if isinstance(self._contender, Inspectable) else set()

    def _replay(self, batch: int) -> dict[str, Any]:
        assert isinstance(self._contender, Inspectable), f"{self._name} cannot tell what it did"
        changes = self._contender.prepare(self._work.read_batch(batch))
        before = self._contender.snapshots()
        self._contender.apply(changes)
        return {"committed": self._contender.snapshots() != before}

    def _check(self, batches: list[int]) -> dict[str, Any]:
        changes = [self._work.read_batch(number) for number in batches]
        return {
            "difference": difference(
                self._contender.rows(), expected_rows(self._work.read_base(), changes)
            )
        }


def _peak_mb() -> int:
    """The process's largest resident set so far; Linux counts in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@contextmanager
def _answers_only_on_stdout() -> Iterator[Any]:
    """Libraries may print; only answers may reach the driver."""
    answers, sys.stdout = sys.stdout, sys.stderr
    yield answers
    sys.stdout = answers


def main(name: str, folder: str) -> None:
    """Serve commands until the input ends."""
    with _answers_only_on_stdout() as answers:
        session = Session(name, Workload(Path(folder)))
        for line in sys.stdin:
            print(json.dumps(session.answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
