"""The chaos run: traffic of three formats through the local runtime while everything fails.

Four lives of the event source mapping consume a stream that splits and merges under them; sandboxes
are killed at every step of the lake, calls to the store fail, batches come twice, some are given
up, embedded AWS is killed, and half-way the consumer restarts with the next version of the
contracts. Then what was refused and given up is brought back, and five things must hold: nothing is
unaccounted for, the counts add up to what was sent, the tables are what the model says, every
reader of Iceberg sees them alike, now and in the past, and nothing but garbage was left to discard.
`python -m tests.chaos.run --events 100000`
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.contracts import SECOND, STREAMS
from tests.chaos.site import FAILURES_BUCKET, STREAM, Faults, Site, curse_of
from tests.chaos.traffic import PII_KEY, Meant, Outgoing, Traffic
from tests.readers import Place as LakePlace
from tests.readers import Readers, readers, shown

from freshet.arrow import position_of
from freshet.clock import utc_now
from freshet.contract import Contract
from freshet.event import json_row
from freshet.kinesis import RetainedStream
from freshet.model import ModelChange, current_state
from freshet.pii import Protector
from freshet.wire import Part as WirePart
from freshet.wire import decode_record
from lake.conservation import FailedBatch, verify_ledger
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE, RECEIPTS, RESOLUTIONS
from lake.replay import Again, Wanted, discard, quarantined, replay_quarantine
from lake.steps import Step
from lake.table import KeyedTable
from lake.testing import waiting
from lake.travel import history
from lake.verify import verify_table
from local.delivery import MappingSettings
from local.failures import Failures, Source, replay_failures

# Batches of all lives of the mapping, about, if nothing failed.
BATCHES, BATCH_RECORDS_MIN = 100, 45
# In a run of so many events each step has more than one kill, each life more than one curse.
LONG_EVENTS, KILLS_LONG, CURSED_LONG = 20_000, 3, 2
TOLD_MAX = 10
# Moments of the past that independent readers compare of each table, about.
PAST_READ = 4
Place = tuple[str, str]
Say = Callable[[str], None]


@dataclass
class Sent:
    """What the stream took: every part at its place."""

    parts: dict[Place, Any] = field(default_factory=dict)
    records: Counter[str] = field(default_factory=Counter)

    def add(self, records: Iterable[Outgoing], placed: Iterable[Place]) -> None:
        """Note records as the stream has placed them."""
        for one, (shard_id, number) in zip(records, placed, strict=True):
            self.records[shard_id] += 1
            for index, part in enumerate(one.parts):
                self.parts[shard_id, position_of(number, index * one.apart)] = part

    def places(self, *meant: Meant) -> set[Place]:
        """Where parts of these kinds are."""
        return {place for place, part in self.parts.items() if part.meant in meant}


@dataclass
class Run:
    """One run. `found` is what differs from what must be; empty in the end."""

    site: Site
    traffic: Traffic
    say: Say
    deadline: float
    sent: Sent = field(default_factory=Sent)
    found: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)

    def consume(self) -> None:
        """Everything sent and consumed, in four lives."""
        records, quarter = self.traffic.records, len(self.traffic.records) // 4 + 1
        parts = [records[at : at + quarter] for at in range(0, len(records), quarter)]
        site = self.site
        self._life("bisecting", parts[0], self._settings(bisect=True), [(site.split, 0)])
        self._life("giving up whole", parts[1], self._settings(bisect=False), [(site.merge, 1)])
        site.tables = SECOND
        site.kill_aws()
        self.say("embedded AWS was killed; the consumer restarts with version 2 of the contracts")
        resharding = [(site.split, 1), (site.merge, 0)]
        self._life("version 2", parts[2], self._settings(bisect=True), resharding)
        resharding = [(site.split, 0), (site.split, 2), (site.merge, 1)]
        self._life("version 2 on", parts[3], self._settings(bisect=True), resharding)

    def _settings(self, *, bisect: bool) -> MappingSettings:
        size = max(BATCH_RECORDS_MIN, len(self.traffic.records) // BATCHES)
        return MappingSettings(
            batch_size=size,
            window_s=0.2,
            bisect_on_error=bisect,
            retry_attempts_max=2,
            report_batch_item_failures=True,
        )

    def _life(
        self,
        name: str,
        records: list[Outgoing],
        settings: MappingSettings,
        resharding: Sequence[tuple[Callable[[int], None], int]],
    ) -> None:
        """Put records while they are consumed; reshard with most of them still unread."""
        began = time.monotonic()
        self._curse(records)
        step = len(records) // (len(resharding) + 1) + 1
        with self.site.mapping(settings) as mapping:
            for at in range(0, len(records), step):
                self._put(records[at : at + step])
                if at // step < len(resharding):
                    reshard, shard = resharding[at // step]
                    reshard(shard)
            mapping.drain(max(1.0, self.deadline - time.monotonic()))
        took = time.monotonic() - began
        self.say(f"{name}: {len(records):,} records, {took:.1f} s, {self.site.invocations} calls")

    def _put(self, records: list[Outgoing]) -> None:
        self.sent.add(records, self.site.put([one.entry() for one in records]))

    def _curse(self, records: list[Outgoing]) -> None:
        """Records on which every invocation dies; some carry changes that nothing else tells."""
        full = [one for one in records if len(one.parts) > 2]
        count = CURSED_LONG if self.traffic.events >= LONG_EVENTS else 1
        chosen = self.site.faults.random.sample(full, count)
        self.site.faults.cursed |= {curse_of(one.data) for one in chosen}

    # What must hold -------------------------------------------------------------------------------

    def check(self) -> None:
        """Bring back what can be brought back, and hold everything against what was sent."""
        lake = self.site.open_lake(SECOND)
        try:
            self._check_ledger(lake, "before the way back")
            self._bring_back(lake)
            self._check_counts(lake)
            self._check_tables(lake)
            self._check_readers(lake)
            self._discard_garbage(lake)
            self._check_ledger(lake, "in the end")
        finally:
            lake.close()

    def expect(self, what: str, found: Any, wanted: Any) -> None:
        """Note a difference."""
        if found != wanted:
            self.found.append(f"{what}: {_shortened(found, wanted)}")

    def _again(self, lake: Lake) -> Again:
        return Again(lake, SECOND, _decode, utc_now, "chaos", Protector(PII_KEY, SECOND).event)

    def _failures(self) -> Failures:
        return Failures(self.site.objects(FAILURES_BUCKET))

    def _check_ledger(self, lake: Lake, when: str) -> None:
        stream = RetainedStream(self.site.aws.client("kinesis"), STREAM)
        retained = [(one.shard_id, one.sequence_number, one.data, one.arrived_at) for one in stream]
        self.expect(f"records retained {when}", len(retained), len(self.traffic.records))
        failures = [
            FailedBatch(
                one.key, one.shard_id, one.first_sequence_number, one.last_sequence_number,
                one.records,
            )
            for one in self._failures().pending()
        ]  # fmt: skip
        checks = verify_ledger(lake, decode=_decode, records=retained, failures=failures)
        tables = (check for contract in SECOND for check in verify_table(lake, contract))
        for check in [*checks, *tables]:
            for finding in check.findings:
                self.found.append(f"verify {when}: {check.table}: {check.law}: {finding}")
        self.say(f"verified {when}: {sum(not check.holds for check in checks)} laws broken")

    def _bring_back(self, lake: Lake) -> None:
        """Failure objects first, as `freshet quarantine replay` does; then refused lines."""
        again, streams = self._again(lake), self.site.aws.client("kinesis")
        source = Source(STREAMS, lambda name: RetainedStream(streams, name))
        waited = list(self._failures().pending())
        refused = {(kept.line.place.shard_id, kept.line.place.position): kept.line.reason
                   for kept in quarantined(lake, Wanted())}  # fmt: skip
        garbage, later = self.sent.places(Meant.GARBAGE), self.sent.places(Meant.LATER)
        self.expect("refused, but good", set(refused) - garbage - later, set())
        failed = replay_failures(again, self._failures(), source, Wanted())
        self.expect("failures that could not be read", failed.errors, [])
        self.expect("failures still there", list(self._failures().pending()), [])
        replayed = replay_quarantine(again, Wanted())
        twice = replay_quarantine(again, Wanted())
        self.expect("a second replay lands", (twice.landed, twice.changed), (0, 0))
        self.expect("still refused", replayed.still_bad, len(garbage))
        self.told |= {
            "given_up": {"batches": len(waited), "records": sum(one.records for one in waited),
                         "range_only": sum(one.payload is None for one in waited)},
            "refused": dict(Counter(refused.values()).most_common()),
            "replayed_lines": replayed.landed,
        }  # fmt: skip
        if not (waited and replayed.landed):
            self.found.append(f"nothing to bring back: {self.told}")

    def _check_counts(self, lake: Lake) -> None:
        """Every part is in exactly one place, and receipts count each exactly once."""
        changes = self.sent.places(Meant.CHANGE, Meant.LATER)
        self.expect("places in the change log", _places(lake, CHANGE_LOG), changes)
        closed = _places(lake, RESOLUTIONS)
        garbage = self.sent.places(Meant.GARBAGE)
        self.expect("open quarantine", _places(lake, QUARANTINE) - closed, garbage)
        later = self.sent.places(Meant.LATER)
        self.expect("resolved, but not by the second version", closed - later, set())
        records, parts = _receipted(lake)
        self.expect("records by receipts", records, dict(self.sent.records))
        self.expect("parts by receipts", parts, len(self.sent.parts))

    def _check_tables(self, lake: Lake) -> None:
        for contract in SECOND:
            name = contract.table
            rows = {
                row[contract.key[0]]: _present(json_row(row)) for row in lake.rows(name).to_pylist()
            }
            waits = {key[0]: columns for key, columns in waiting(lake, contract).items()}
            wanted_rows, wanted_waits = self._truth(name)
            self.expect(f"keys of {name}", set(rows), set(wanted_rows))
            for key in sorted(rows.keys() & wanted_rows.keys()):
                self.expect(f"{name} {key}", rows[key], wanted_rows[key])
            self.expect(f"waiting patches of {name}", waits, wanted_waits)
            self.told.setdefault("rows", {})[name] = len(rows)
            self.told["waiting"] = self.told.get("waiting", 0) + len(waits)

    def _check_readers(self, lake: Lake) -> None:
        """Whoever knows nothing of Freshet reads the same, now and at moments of the past."""
        self.told["moments_read"] = 0
        with readers() as read:
            for contract in SECOND:
                current = lake.current(contract.table)
                for keyed in (current.rows, current.tombstones):
                    self._check_moments(contract, keyed, read)

    def _check_moments(self, contract: type[Contract], keyed: KeyedTable, read: Readers) -> None:
        view = keyed.view()
        place = LakePlace(view.table.metadata_location, self.site.access())
        past = [one.snapshot_id for one in history(view.table)]
        for moment in (None, *past[:: len(past) // PAST_READ + 1]):
            seen = read(place, moment, contract.key)
            ours = seen["pyiceberg"]
            if moment is None:
                ours = shown(keyed.read_all(view), contract.key)
            for by, rows in seen.items():
                self.expect(f"{keyed.spec.name} at {moment or 'the end'} by {by}", rows, ours)
            self.told["moments_read"] += 1

    def _truth(self, table: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Rows and waiting patches of a table: by its source database, or by the model."""
        if table in self.traffic.rows:
            return {
                key: _present(json_row(row)) for key, row in self.traffic.rows[table].items()
            }, {}
        states = current_state(self._changes(table))
        rows = {str(key): _present(one.after) for key, one in states.items() if one.after}
        waits = {str(key): dict(one.patch) for key, one in states.items() if one.patch}
        return rows, waits

    def _changes(self, table: str) -> Iterator[ModelChange]:
        """Every change sent, in stream order, so that ties fall as they fell."""
        for (_, position), part in sorted(self.sent.parts.items(), key=lambda item: item[0][1]):
            if part.told is not None and part.told[0] == table:
                _, key, version, after, patch = part.told
                yield ModelChange(key, version, position, after, patch)

    def _discard_garbage(self, lake: Lake) -> None:
        garbage = self.sent.places(Meant.GARBAGE)
        discarded = discard(self._again(lake), Wanted(), "garbage of the chaos run")
        self.expect("discarded lines", discarded, len(garbage))
        self.expect("open in the end", list(quarantined(lake, Wanted())), [])
        faults = self.site.faults
        self.expect("steps without a kill", set(Step) - set(faults.killed), set())
        self.told |= {"killed": {step.value: n for step, n in sorted(faults.killed.items())},
                      "met": dict(faults.met), "invocations": self.site.invocations}  # fmt: skip


def _decode(data: bytes, arrived_at: datetime) -> Iterable[WirePart]:
    return decode_record(data, SECOND, arrived_at=arrived_at, streams=STREAMS)


def _places(lake: Lake, log: str) -> set[Place]:
    found = set()
    for part in lake.log(log, columns=["shard_id", "position"]):
        found |= set(zip(*(column.to_pylist() for column in part.columns), strict=True))
    return found


def _receipted(lake: Lake) -> tuple[dict[str, int], int]:
    """Records by shard and parts of all, each once: by the widest range that has a receipt.

    Redeliveries repeat batches and halve them: ranges lie within one another, or apart.
    """
    told: dict[tuple[str, int, int], set[tuple[int, int]]] = defaultdict(set)
    for _, receipt in lake.log_objects(RECEIPTS):
        rows = receipt.to_pylist()
        if rows[0]["shard_id"] is not None:
            ends = int(rows[0]["first_sequence_number"]), int(rows[0]["last_sequence_number"])
            sums = sum(row["records"] for row in rows), sum(row["received"] for row in rows)
            told[(rows[0]["shard_id"], *ends)].add(sums)
    records: Counter[str] = Counter()
    parts, reached = 0, dict[str, int]()
    for shard_id, first, last in sorted(told, key=lambda one: (one[0], one[1], -one[2])):
        counts = told[shard_id, first, last]
        assert len(counts) == 1, f"receipts of one range tell {counts}"
        if last > reached.get(shard_id, 0):
            assert first > reached.get(shard_id, 0), f"{shard_id}: ranges overlap at {first}"
            reached[shard_id] = last
            in_range = min(counts)
            records[shard_id] += in_range[0]
            parts += in_range[1]
    return dict(records), parts


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as both sides tell it: no nulls, none of the lake's own columns."""
    return {
        name: value for name, value in row.items() if value is not None and not name.startswith("_")
    }


def _shortened(found: Any, wanted: Any) -> str:
    if isinstance(found, set) and isinstance(wanted, set):
        surplus, missing = sorted(found - wanted), sorted(wanted - found)
        return (
            f"{len(surplus)} too many, as {surplus[:2]}; {len(missing)} missing, as {missing[:2]}"
        )
    return f"{str(found)[:400]} instead of {str(wanted)[:400]}"


@dataclass(frozen=True)
class Wish:
    """What to run, and how long it may take."""

    events: int
    seed: int
    minutes: float


def chaos(wish: Wish, folder: Path, say: Say) -> tuple[dict[str, Any], list[str]]:
    """Run it; what it came to, and what differs from what must be."""
    began = time.monotonic()
    traffic = Traffic(wish.events, wish.seed)
    sent = {meant.value: traffic.count(meant) for meant in Meant}
    say(f"{len(traffic.records):,} records with {sum(sent.values()):,} parts")
    each = KILLS_LONG if wish.events >= LONG_EVENTS else 1
    faults = Faults(Random(wish.seed), Counter(dict.fromkeys(Step, each)))
    with Site(folder, faults).running() as site:
        run = Run(site, traffic, say, began + wish.minutes * 60)
        run.consume()
        consumed = time.monotonic()
        run.check()
    told = {
        "events": wish.events,
        "seed": wish.seed,
        "records": len(traffic.records),
        "parts": sent,
        **run.told,
        "seconds": {
            "consuming": round(consumed - began, 1),
            "all": round(time.monotonic() - began, 1),
        },
        "peak_mb": {
            name: resource.getrusage(who).ru_maxrss // 1024
            for name, who in (
                ("runtime", resource.RUSAGE_SELF),
                ("embedded_aws", resource.RUSAGE_CHILDREN),
            )
        },
        "differences": len(run.found),
    }
    return told, run.found


def main(arguments: list[str] | None = None) -> int:
    """Entry point; 1 when something differs."""
    parser = argparse.ArgumentParser(description="The chaos run through the local runtime.")
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--home", type=Path, help="an empty folder; by default one that goes")
    parser.add_argument("--minutes", type=float, default=15, help="give up then")
    wanted = parser.parse_args(arguments)
    # Faults are what this is about: each would be a page of warnings.
    logging.disable(logging.CRITICAL)
    os.environ["POWERTOOLS_METRICS_DISABLED"] = "true"  # their lines would mix with the summary
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {text}", file=sys.stderr, flush=True)

    with _folder(wanted.home) as folder:
        told, found = chaos(Wish(wanted.events, wanted.seed, wanted.minutes), folder, say)
    print(json.dumps(told, indent=2))
    for difference in found[:TOLD_MAX]:
        say(difference)
    if found:
        say(f"{len(found)} differences")
    return bool(found)


@contextmanager
def _folder(home: Path | None) -> Iterator[Path]:
    if home is not None:
        home.mkdir(parents=True, exist_ok=True)
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
