"""Side by side in one run: this lake and the other ways to merge changes into partitioned Parquet.

Each contender runs in a process of its own and gets the same batches in turn, round by round, so
that a busy machine slows all of them alike: read the ratios, not the seconds. This driver uses
only the standard library and stays small, because a child's peak memory begins with that of the
process that forked it.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FLOORS = ("floor", "floor-parallel")
CONTENDERS = ("freshet", *FLOORS, "deltalake", "deltalake-told", "pandas", "awswrangler", "upsert")
# `Table.upsert` takes a minute for 10,000 changes; it gets the smallest batch only.
SMALLEST_ONLY = ("upsert",)
# Building a table or checking it takes seconds; a contender that needs this long is broken.
SETUP_BOUND_S = 300.0
# What a Lambda function of ours sets: the system's allocator gives memory back, and few arenas
# hold it.
MEMORY_SETTINGS = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}

EPILOG = """\
examples:
  python benchmarks/merge.py             a million rows, 1,000 and 10,000 changes: minutes
  python benchmarks/merge.py --quick     a small table: under a minute
  python benchmarks/merge.py --only freshet floor --batches 100000 --rounds 3
  python benchmarks/merge.py --json > result.json

exit status: 0 every result was right; 1 one was wrong or failed; 2 wrong usage.
"""


class WorkerError(Exception):
    """A contender's process failed; the message ends with what it said last."""


class OverBoundError(Exception):
    """A contender took longer than it may."""


@dataclass(frozen=True)
class Plan:
    """What is run."""

    rows: int
    days: int
    batches: tuple[int, ...]
    rounds: int
    only: tuple[str, ...]
    seed: int
    bound_s: float

    @property
    def sizes(self) -> list[int]:
        """Changes in each batch in order: one to warm up, then `rounds` of each size."""
        return [self.batches[0], *(size for size in self.batches for _ in range(self.rounds))]

    def rounds_of(self, size: int) -> range:
        """Numbers of the timed batches of one size."""
        start = 1 + self.batches.index(size) * self.rounds
        return range(start, start + self.rounds)


@dataclass
class Result:
    """What was measured of one contender."""

    name: str
    seconds: dict[int, float] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    peak_mb: int = 0
    applied: list[int] = field(default_factory=list)
    over_bound_at: int | None = None
    difference: str | None = None
    replay_committed: bool | None = None
    failure: str | None = None

    @property
    def right(self) -> bool:
        """Nothing failed, every row is as the model says, and a replay (ours) committed nothing."""
        return not (self.difference or self.failure or self.replay_committed)


class Worker:
    """A contender's process: one JSON line asked, one answered."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", name, str(folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(),
                cwd=ROOT,
            )

    def ask(self, command: dict[str, Any], bound_s: float) -> dict[str, Any]:
        """The answer. Raises `OverBoundError` (the process is then gone) or `WorkerError`."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(command).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], bound_s)[0]:
            process.kill()
            process.wait()
            raise OverBoundError
        line = process.stdout.readline()
        if not line:
            process.wait()
            raise WorkerError(f"{self.name}: {_last_line(self._log)} (see {self._log})")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        """End the process; it ends by itself when its input does."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()


def _environment() -> dict[str, str]:
    paths = f"{ROOT}{os.pathsep}{ROOT / 'src'}"
    return os.environ | MEMORY_SETTINGS | {"PYTHONPATH": paths}


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "ended without a word"


class Run:
    """One benchmark: the workers and what they answered."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self._plan, self._folder = plan, folder
        self._workers: dict[str, Worker] = {}
        self._touched: list[str] = []
        self.results = {name: Result(name) for name in plan.only}
        self.touched_files: dict[int, int] = {}

    def run(self) -> None:
        """Make the rows, build the tables, time the rounds, check every table."""
        self._make_workload()
        try:
            for name in self._plan.only:
                self._attempt(name, self._set_up)
            for number, size in enumerate(self._plan.sizes):
                self._round(number, size)
            for name in self._plan.only:
                self._attempt(name, self._check)
        finally:
            for worker in self._workers.values():
                worker.stop()

    def _make_workload(self) -> None:
        _say(f"making {self._plan.rows:,} rows and {len(self._plan.sizes)} batches")
        sizes = [str(size) for size in self._plan.sizes]
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.workload", str(self._folder)),
                *(str(self._plan.rows), str(self._plan.days), str(self._plan.seed), *sizes),
            ],
            env=_environment(),
            cwd=ROOT,
            check=True,
        )

    def _attempt(self, name: str, step: Any, *arguments: Any) -> None:
        """One step of a contender that is still in the run; a failure takes only that one out."""
        result = self.results[name]
        if result.failure is not None or result.over_bound_at is not None:
            return
        try:
            step(name, *arguments)
        except (WorkerError, BrokenPipeError) as error:
            result.failure = str(error)
            _say(f"{name}: FAILED: {error}")

    def _set_up(self, name: str) -> None:
        """Build in one process, measure in another: peak memory must be that of the batches."""
        if name not in FLOORS:
            self._build(name)
        self._workers[name] = Worker(name, self._folder)

    def _build(self, name: str) -> None:
        _say(f"{name}: building its table")
        builder = Worker(name, self._folder)
        try:
            builder.ask({"do": "setup"}, SETUP_BOUND_S)
        except OverBoundError:
            raise WorkerError(f"{name}: building took over {SETUP_BOUND_S:.0f} s") from None
        finally:
            builder.stop()

    def _round(self, number: int, size: int) -> None:
        """One batch for every contender: the lake, the floors on the files it touched, the rest."""
        first = [name for name in ("freshet", *FLOORS) if name in self.results]
        others = [name for name in self._plan.only if name not in first]
        turn = number % len(others) if others else 0
        for name in [*first, *others[turn:], *others[:turn]]:
            if name in SMALLEST_ONLY and size != self._plan.batches[0]:
                continue
            self._attempt(name, self._apply, number, size)
        _say(f"batch {number + 1} of {len(self._plan.sizes)} ({size:,} changes) done")

    def _apply(self, name: str, number: int, size: int) -> None:
        result = self.results[name]
        if sum(result.seconds.values()) > self._plan.bound_s:
            return  # it has shown what it needs
        command = {"do": "apply", "batch": number, "files": self._touched}
        try:
            answer = self._workers[name].ask(command, self._plan.bound_s)
        except OverBoundError:
            result.over_bound_at = number
            _say(f"{name}: over {self._plan.bound_s:.0f} s, left out from here")
            return
        if name == "freshet":
            self._touched = answer["touched"]
            self.touched_files[size] = len(self._touched)
        result.seconds[number], result.cpu[number] = answer["seconds"], answer["cpu"]
        result.peak_mb = answer["peak_mb"]
        result.applied.append(number)

    def _check(self, name: str) -> None:
        if name in FLOORS:
            return
        result, worker = self.results[name], self._workers[name]
        _say(f"{name}: comparing its table with the model")
        if name == "freshet":
            replay = worker.ask({"do": "replay", "batch": result.applied[-1]}, SETUP_BOUND_S)
            result.replay_committed = replay["committed"]
        answer = worker.ask({"do": "check", "batches": result.applied}, SETUP_BOUND_S)
        result.difference = answer["difference"]
        worker.stop()


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def figures(plan: Plan, results: dict[str, Result], size: int) -> list[dict[str, Any]]:
    """One row per contender for one batch size; the ratio is the median of the rounds' ratios."""
    floor = results["floor"].seconds if "floor" in results else {}
    return [_figure(plan, result, floor, size) for result in results.values()]


def _figure(plan: Plan, result: Result, floor: dict[int, float], size: int) -> dict[str, Any]:
    rounds = [number for number in plan.rounds_of(size) if number in result.seconds]
    ratios = [result.seconds[number] / floor[number] for number in rounds if number in floor]
    seconds = median(result.seconds[number] for number in rounds) if rounds else None
    return {
        "contender": result.name,
        "rounds": len(rounds),
        "seconds": seconds,
        "ratio_to_floor": median(ratios) if ratios else None,
        "cpu_seconds": median(result.cpu[number] for number in rounds) if rounds else None,
        "changes_per_second": size / seconds if seconds else None,
        "peak_mb": result.peak_mb or None,
        "over_bound": result.over_bound_at is not None,
        "result": _verdict(result),
    }


def _verdict(result: Result) -> str:
    if result.failure:
        return "failed"
    if result.over_bound_at is not None:
        return "not checked"
    if result.name in FLOORS:
        return "-"
    if result.difference:
        return f"WRONG: {result.difference}"
    return "WRONG: a replay committed" if result.replay_committed else "right"


def report(plan: Plan, run: Run) -> str:
    """The tables for people."""
    parts = []
    for size in plan.batches:
        files = run.touched_files.get(size)
        touched = f", {files} files touched" if files else ""
        parts.append(
            f"{size:,} changes into {plan.rows:,} rows in {plan.days} days{touched} "
            f"(medians of up to {plan.rounds} rounds)\n"
            + _table(figures(plan, run.results, size), plan.bound_s)
        )
    failures = [result.failure for result in run.results.values() if result.failure]
    return "\n\n".join([*parts, *failures])


_HEAD = ("contender", "s", "x floor", "CPU s", "changes/s", "peak MB", "result")


def _table(rows: Iterable[dict[str, Any]], bound_s: float) -> str:
    cells = [_HEAD, *(_cells(row, bound_s) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
    last = len(_HEAD) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _cells(row: dict[str, Any], bound_s: float) -> tuple[str, ...]:
    if row["seconds"] is None:
        nothing = f"> {bound_s:.0f}" if row["over_bound"] else "-"
        return (
            row["contender"],
            nothing,
            "-",
            "-",
            "-",
            "-",
            row["result"] if row["over_bound"] else "-",
        )
    ratio = row["ratio_to_floor"]
    return (
        row["contender"],
        f"{row['seconds']:.3f}",
        f"{ratio:.2f}" if ratio else "-",
        f"{row['cpu_seconds']:.3f}",
        f"{row['changes_per_second']:,.0f}",
        str(row["peak_mb"]),
        row["result"],
    )


def as_json(plan: Plan, run: Run) -> str:
    """The same figures for programs."""
    return json.dumps(
        {
            "rows": plan.rows,
            "days": plan.days,
            "seed": plan.seed,
            "rounds": plan.rounds,
            "bound_s": plan.bound_s,
            "cores": os.cpu_count(),
            "batches": [
                {
                    "changes": size,
                    "files_touched": run.touched_files.get(size),
                    "contenders": figures(plan, run.results, size),
                }
                for size in plan.batches
            ],
        },
        indent=2,
    )


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="merge.py",
        description="Merge changes into a table of sales, this lake beside the alternatives.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, metavar="N", help="rows of the table (1,000,000)")
    parser.add_argument("--days", type=int, metavar="N", help="daily partitions (365)")
    parser.add_argument(
        "--batches", type=int, nargs="+", metavar="N", help="changes a batch (1000 10000)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="timed batches of each size (5)")
    parser.add_argument(
        "--only", nargs="+", choices=CONTENDERS, metavar="NAME", help=", ".join(CONTENDERS)
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of rows and batches (1)")
    parser.add_argument(
        "--bound", type=float, metavar="S", help="seconds a contender may take in all (90)"
    )
    parser.add_argument("--json", action="store_true", help="figures as JSON on standard output")
    parser.add_argument("--quick", action="store_true", help="a small table, under a minute")
    asked = parser.parse_args(argv)
    if asked.only and "freshet" not in asked.only and set(asked.only) & set(FLOORS):
        parser.error("a floor rewrites the files that freshet touched: name freshet too")
    return asked


def _plan(asked: argparse.Namespace) -> Plan:
    quick = asked.quick
    names = asked.only or [name for name in CONTENDERS if not quick or name != "awswrangler"]
    batches = asked.batches or ([100, 1000] if quick else [1000, 10_000])
    return Plan(
        rows=asked.rows or (50_000 if quick else 1_000_000),
        days=asked.days or (90 if quick else 365),
        batches=tuple(sorted(set(batches))),
        rounds=asked.rounds or (3 if quick else 5),
        only=tuple(name for name in CONTENDERS if name in names),
        seed=asked.seed,
        bound_s=asked.bound or (15 if quick else 90),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run and print; the exit status."""
    asked = _arguments(argv)
    plan = _plan(asked)
    with tempfile.TemporaryDirectory(prefix="freshet-bench-") as folder:
        run = Run(plan, Path(folder))
        run.run()
    print(as_json(plan, run) if asked.json else report(plan, run))
    return 0 if all(result.right for result in run.results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
