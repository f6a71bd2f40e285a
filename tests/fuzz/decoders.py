"""Fuzzes the decoders: `python -m tests.fuzz.decoders --runs 10000000 --jobs 2`.

Two engines share the inputs. atheris is guided by the branches an input reaches, and finds its way
into them; blind mutation has no such guide and is several times as fast. Each worker is a process
of its own: one that dies, hangs or eats the memory is reported with the bytes it was at.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import mmap
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from tests.fuzz.mutate import BYTES_MAX, mutate
from tests.fuzz.seeds import SPLITS, seeds

# Share of the inputs that atheris makes; it reaches in thousands what blindness needs millions for.
GUIDED_SHARE = 0.1
# Address space of a worker: twenty times what a record may unpack to (16 MiB), and the modules.
MEMORY_BYTES_MAX = 2 * 1024**3
# What a worker may hold at most, interpreter and modules included.
RESIDENT_MB_MAX = 512
# A worker that finishes no thousand inputs in this time hangs in one.
SILENCE_S_MAX = 120.0
TOLD_EVERY = 1000
PROGRESS_S = 15.0


@dataclass(frozen=True)
class Work:
    """What one worker does."""

    engine: str
    split: str
    runs: int
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.split}"

    @property
    def told(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def at(self) -> Path:
        return self.folder / f"{self.name}.at"


class Inputs:
    """The input a worker is at, kept where its death does not take it along."""

    def __init__(self, path: Path) -> None:
        size = BYTES_MAX + 8
        path.write_bytes(bytes(size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), size)

    def put(self, data: bytes) -> None:
        """Remember `data` before it is decoded."""
        self._map[:8] = struct.pack("<Q", len(data))
        self._map[8 : 8 + len(data)] = data


def last_input(path: Path) -> bytes:
    """The input a worker was at when it ended; empty where it never had one."""
    if not path.exists():
        return b""
    kept = path.read_bytes()
    (size,) = struct.unpack("<Q", kept[:8])
    return kept[8 : 8 + size]


class Worker:
    """Feeds the target and tells what came of it."""

    def __init__(self, work: Work, tally: Any) -> None:
        self._work, self._tally = work, tally
        self._inputs = Inputs(work.at)
        self._began = time.monotonic()

    def one(self, data: bytes) -> None:
        """Decode one input; ends the process at the last one, or at the first broken promise."""
        data = data[:BYTES_MAX]
        self._inputs.put(data)
        try:
            self._tally.check(data)
        except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
            traceback.print_exc()
            _leave(1)
        if self._tally.inputs % TOLD_EVERY == 0 or self._tally.inputs >= self._work.runs:
            self.tell()
        if self._tally.inputs >= self._work.runs:
            _leave(0)

    def tell(self) -> None:
        """Write the figures; raises where memory grew beyond its bound."""
        peak_mb = _peak_mb()
        tally = self._tally
        figures = {
            "inputs": tally.inputs,
            "seconds": time.monotonic() - self._began,
            "parts": tally.parts,
            "reasons": tally.reasons,
            "slowest_s": tally.slowest_s,
            "slowest": tally.slowest[:200].decode("latin-1"),
            "peak_mb": peak_mb,
        }
        written = self._work.told.with_suffix(".new")
        written.write_text(json.dumps(figures))
        written.replace(self._work.told)
        if peak_mb > RESIDENT_MB_MAX:
            print(f"memory grew to {peak_mb} MB", file=sys.stderr)
            _leave(1)


def _peak_mb() -> int:
    """The most memory this process ever held. `getrusage` would count its parent's before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) // 1024


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libFuzzer would run its own end otherwise


def run_blind(work: Work) -> None:
    """Mutate seeds at random until the runs are done."""
    from tests.fuzz.target import Tally  # noqa: PLC0415 - a guided worker instruments it first

    worker = Worker(work, Tally())
    random, given = Random(f"{work.seed}-{work.split}"), seeds(work.split)
    for seed in given:
        worker.one(seed)
    while True:
        worker.one(mutate(random.choice(given), random, given))


def run_guided(work: Work) -> None:
    """Let atheris choose what to mutate, by the branches it reached."""
    atheris: Any = importlib.import_module("atheris")  # only where it has wheels
    with atheris.instrument_imports(include=["freshet"]):
        from tests.fuzz.target import Tally  # noqa: PLC0415 - while imports are instrumented
    given = seeds(work.split)
    corpus = work.folder / f"{work.name}-corpus"
    corpus.mkdir()
    for number, seed in enumerate(given):
        (corpus / f"{number:04d}").write_bytes(seed)
    worker = Worker(work, Tally())

    def custom(data: bytes, size_max: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, size_max))
        try:
            return mutate(data, random, given)[:size_max]
        except Exception:  # noqa: BLE001 - libFuzzer would take it for the end of a good run
            traceback.print_exc()
            _leave(1)

    options = [f"-seed={work.seed}", f"-max_len={BYTES_MAX // 4}", "-print_final_stats=0"]
    options += [f"-artifact_prefix={work.folder}/", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], worker.one, custom_mutator=custom)
    atheris.Fuzz()


ENGINES: dict[str, Callable[[Work], None]] = {"blind": run_blind, "guided": run_guided}


def plan(runs: int, seed: int, folder: Path) -> list[Work]:
    """The work of all runs, the slow engine first."""
    if importlib.util.find_spec("atheris") is None:
        say("atheris has no wheel for this machine: all inputs are made blindly")
        guided = 0
    else:
        guided = int(runs * GUIDED_SHARE)
    shares = {"guided": guided, "blind": runs - guided}
    return [
        Work(engine, split, -(-share // len(SPLITS)), seed, folder)
        for engine, share in shares.items()
        for split in SPLITS
        if share
    ]


def start(work: Work) -> subprocess.Popen[bytes]:
    """A worker's process."""
    arguments = [work.engine, work.split, str(work.runs), str(work.seed), str(work.folder)]
    command = [sys.executable, "-m", "tests.fuzz.decoders", "--worker", *arguments]
    with (work.folder / f"{work.name}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def run_worker(arguments: list[str]) -> None:
    """The whole life of a worker."""
    engine, split, runs, seed, folder = arguments
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))
    ENGINES[engine](Work(engine, split, int(runs), int(seed), Path(folder)))


@dataclass
class Running:
    """A worker under way, and when it was last heard of."""

    work: Work
    process: subprocess.Popen[bytes]
    heard_at: float
    inputs: int = 0

    def hangs(self) -> bool:
        """Whether it has told nothing new for too long."""
        inputs = int(told(self.work).get("inputs", 0))
        if inputs > self.inputs:
            self.inputs, self.heard_at = inputs, time.monotonic()
        return time.monotonic() - self.heard_at > SILENCE_S_MAX


def told(work: Work) -> dict[str, Any]:
    """A worker's figures so far; none before its first thousand inputs."""
    try:
        figures: dict[str, Any] = json.loads(work.told.read_text())
    except FileNotFoundError:
        return {}
    return figures


def run_all(works: list[Work], jobs: int, crashes: Path) -> bool:
    """Run every worker, `jobs` at a time; False as soon as one found something."""
    waiting, running = list(works), list[Running]()
    shown_at = began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < jobs:
            work = waiting.pop(0)
            running.append(Running(work, start(work), time.monotonic()))
        time.sleep(0.1)
        if time.monotonic() - shown_at > PROGRESS_S:
            shown_at = time.monotonic()
            show_progress(works, shown_at - began)
        for item in list(running):
            if item.process.poll() == 0 and told(item.work).get("inputs", 0) >= item.work.runs:
                running.remove(item)
            elif item.process.poll() is not None or item.hangs():
                for each in running:
                    each.process.kill()
                    each.process.wait()
                report_crash(item.work, crashes)
                return False
    return True


def show_progress(works: list[Work], seconds: float) -> None:
    """One line of how far it got."""
    inputs = sum(told(work).get("inputs", 0) for work in works)
    wanted = sum(work.runs for work in works)
    say(f"{inputs:>12,} of {wanted:,} inputs, {inputs / seconds:,.0f} a second")


def report_crash(work: Work, crashes: Path) -> None:
    """Keep the bytes, say how the worker died."""
    crashes.mkdir(parents=True, exist_ok=True)
    data = last_input(work.at)
    path = crashes / f"{work.name}-{work.seed}.bin"
    path.write_bytes(data)
    log = (work.folder / f"{work.name}.log").read_text(errors="replace")
    say("\n".join(log.splitlines()[-40:]))
    say(f"{work.name} found an input that breaks a decoder: {len(data)} bytes, kept in {path}")


def summarise(works: list[Work], seconds: float) -> None:
    """What all inputs came to."""
    figures = [(work, told(work)) for work in works]
    for work, figure in figures:
        rate = figure["inputs"] / figure["seconds"]
        say(f"{work.name:<16} {figure['inputs']:>10,} inputs, {rate:>8,.0f} a second")
    parts, reasons = Counter[str](), Counter[str]()
    for _, figure in figures:
        parts.update(figure["parts"])
        reasons.update(figure["reasons"])
    say(f"inputs   {sum(figure['inputs'] for _, figure in figures):,} in {seconds:.0f} s")
    say("outcomes " + ", ".join(f"{name} {count:,}" for name, count in parts.most_common()))
    say("reasons  " + ", ".join(f"{name} {count:,}" for name, count in reasons.most_common()))
    slowest = max((figure for _, figure in figures), key=lambda figure: figure["slowest_s"])
    say(f"slowest  {slowest['slowest_s'] * 1000:.1f} ms: {slowest['slowest'][:80]!r}")
    say(f"memory   {max(figure['peak_mb'] for _, figure in figures)} MB at most in one worker")


def say(line: str) -> None:
    """A line for whoever watches."""
    print(line, flush=True)


def main(arguments: list[str]) -> int:
    """The command line; 1 where an input broke a decoder."""
    if arguments[:1] == ["--worker"]:
        run_worker(arguments[1:])
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.decoders", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same blind inputs")
    parser.add_argument("--jobs", type=int, default=2, help="workers at a time")
    parser.add_argument("--crashes", type=Path, default=Path("crashes"), help="folder for findings")
    chosen = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="freshet-fuzz-") as folder:
        works = plan(chosen.runs, chosen.seed, Path(folder))
        if not run_all(works, chosen.jobs, chosen.crashes):
            return 1
        summarise(works, time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
