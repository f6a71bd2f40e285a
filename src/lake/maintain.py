"""Maintenance of the lake: what keeps it small and quick to read while nobody looks.

Of each Iceberg table in turn: snapshots that retention has no use for are expired, tombstones that
no late change can need are pruned, small files of idle partitions are merged and fat ones split,
manifests are rewritten; last, vacuum deletes what nothing needs any more. Each step is complete in
itself and commits as any writer does, by compare-and-swap, or gives way; a run that is out of time,
or is killed, leaves the rest to the next. Tables share the time that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update import RemoveSnapshotsUpdate, TableUpdate

from freshet.clock import Now, micros
from freshet.contract import Contract
from freshet.errors import FreshetError
from lake.compaction import Compaction, is_idle
from lake.expire import _Alone, _totals
from lake.lake import Lake
from lake.prune import HORIZON, Prune
from lake.retention import RETENTION
from lake.snapshot import (
    CommitConflictError,
    ManifestReader,
    _Commit,
    as_operation,
    manifests_of,
    stamps,
    swap,
)
from lake.table import KeyedTable
from lake.travel import MAINTAINED
from lake.vacuum import GRACE, Outcome, Vacuumed, readable, share

# A table that is read by one more call for each of its manifests is slow; writers leave up to 8.
MANIFESTS_IDLE_MAX = 4
_UNHURRIED_S = 86_400.0
# The worse of two outcomes is told.
_WORST = (
    Outcome.REFUSED,
    Outcome.GAVE_WAY,
    Outcome.UNFINISHED,
    Outcome.DONE,
    Outcome.ABSENT,
)


@dataclass(frozen=True, slots=True)
class Tidied:
    """What was changed of one Iceberg table (or would be), before its vacuum.

    `merged` data files became `made` ones; `manifests` were rewritten into one; `left` bins of
    files are for the next run.
    """

    outcome: Outcome
    snapshots_expired: int = 0
    tombstones_pruned: int = 0
    quarantined: int = 0
    merged: int = 0
    made: int = 0
    left: int = 0
    manifests: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Maintained:
    """What a run did to one Iceberg table."""

    tidied: Tidied
    vacuumed: Vacuumed

    @property
    def table(self) -> str:
        """The table's name."""
        return self.vacuumed.table

    @property
    def outcome(self) -> Outcome:
        """The worse of both."""
        return min(self.tidied.outcome, self.vacuumed.outcome, key=_WORST.index)

    @property
    def detail(self) -> str:
        """Why it did not end well, where it did not."""
        # Both looked at the same table: what neither could read is told once.
        return "; ".join(dict.fromkeys(filter(None, (self.tidied.detail, self.vacuumed.detail))))

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        tidied = asdict(self.tidied)
        tidied["bins_left"] = tidied.pop("left")
        return self.vacuumed.to_json() | tidied | {"outcome": self.outcome, "detail": self.detail}


class Maintenance:
    """Maintains the tables of a lake. `horizon` is the age of tombstones to prune; None: never."""

    def __init__(
        self,
        lake: Lake,
        *,
        now: Now,
        grace: timedelta = GRACE,
        horizon: timedelta | None = HORIZON,
    ) -> None:
        self._lake, self._now, self._horizon = lake, now, horizon
        self._vacuum = lake.vacuum(now=now, grace=grace)
        self._catalog: Catalog = lake.catalog
        self._database: str = lake.database

    def run(
        self,
        contracts: Iterable[type[Contract]],
        *,
        left_s: Callable[[], float] = lambda: _UNHURRIED_S,
        dry_run: bool = False,
        progress: Callable[[str], None] = lambda _: None,
    ) -> list[Maintained]:
        """Maintain rows and tombstones of each contract; what became of each, in order.

        `left_s` gives the seconds left for all of them. One table that must be refused, or whose
        store does not answer or whose metadata cannot be read, does not keep the others from their
        turn. A dry run changes nothing: no table is made or evolved either.
        """
        lake = self._lake.reader() if dry_run else self._lake
        parts = [(contract, end) for contract in contracts for end in ("", "_tombstones")]
        done = []
        for at, (contract, end) in enumerate(parts):
            name = contract.table + end
            progress(f"{name}: looking for files that nothing needs and for what to tidy")
            mine = share(left_s, len(parts) - at)
            # Vacuum frees the space: half of the time is its own.
            tidied = self._turn(lake, contract, name, share(mine, 2), dry_run=dry_run)
            done.append(Maintained(tidied, self._vacuum.turn(name, mine, dry_run=dry_run)))
        return done

    def _turn(
        self,
        lake: Lake,
        contract: type[Contract],
        name: str,
        left_s: Callable[[], float],
        *,
        dry_run: bool,
    ) -> Tidied:
        try:
            with readable(name):
                if not self._is_there(name):
                    return Tidied(Outcome.ABSENT)
                current = lake.current(contract.table)
                is_rows = name == contract.table
                keyed = current.rows if is_rows else current.tombstones
                prune = None if is_rows else self._prune(lake, contract)
                return _Turn(keyed, self._catalog, prune, self._now, left_s).run(dry_run=dry_run)
        except FreshetError as error:
            return Tidied(Outcome.REFUSED, detail=str(error))

    def _prune(self, lake: Lake, contract: type[Contract]) -> Prune | None:
        return None if self._horizon is None else Prune(lake, contract, self._horizon)

    def _is_there(self, name: str) -> bool:
        """Opening a table would make it; maintenance makes none."""
        try:
            self._catalog.load_table((self._database, name))
        except NoSuchTableError:
            return False
        return True


class _Turn:
    """The steps over one table."""

    def __init__(
        self,
        keyed: KeyedTable,
        catalog: Catalog,
        prune: Prune | None,
        now: Now,
        left_s: Callable[[], float],
    ) -> None:
        self._keyed, self._catalog, self._prune = keyed, catalog, prune
        self._now, self._left_s = now, left_s
        self._compaction = Compaction(keyed)
        self._done = Tidied(Outcome.DONE)

    def run(self, *, dry_run: bool) -> Tidied:
        """All steps for which there is time."""
        if dry_run:
            self._look()
            return self._done
        for step in (self._expire, self._prune_tombstones, self._compact, self._fold):
            if self._left_s() <= 0:
                self._note(outcome=Outcome.UNFINISHED, detail="the time was over")
                return self._done
            step()
        return self._done

    def _note(self, **found: Any) -> None:
        self._done = replace(self._done, **found)

    def _give_way(self) -> None:
        self._note(outcome=Outcome.GAVE_WAY, detail="other writers were first; the next run looks")

    def _look(self) -> None:
        table, now = self._keyed.view().table, self._now()
        pruned = None if self._prune is None else self._prune.look(now)
        bins = self._compaction.look(now)
        self._note(
            snapshots_expired=len(_expired(table, now)),
            tombstones_pruned=pruned.tombstones if pruned else 0,
            quarantined=pruned.quarantined if pruned else 0,
            merged=sum(len(one.files) for one in bins),
            made=sum(one.parts for one in bins),
            manifests=_to_fold(table, now),
        )

    def _expire(self) -> None:
        """Expire snapshots of a table that nobody writes to; a commit does it itself."""
        table = self._keyed.view().table
        expired = _expired(table, self._now())
        if not expired:
            return
        try:
            swap(self._catalog, table, (RemoveSnapshotsUpdate(snapshot_ids=expired),))
        except CommitConflictError:
            self._give_way()
        else:
            self._note(snapshots_expired=len(expired))

    def _prune_tombstones(self) -> None:
        if self._prune is None:
            return
        pruned = self._prune.run(self._now(), self._left_s)
        self._note(tombstones_pruned=pruned.tombstones, quarantined=pruned.quarantined)
        if pruned.gave_way:
            self._give_way()
        elif pruned.unfinished:
            self._note(outcome=Outcome.UNFINISHED, detail="tombstones to look at are left")

    def _compact(self) -> None:
        done = self._compaction.run(self._now(), self._left_s)
        self._note(merged=done.files, made=done.made, left=done.left)
        if done.gave_way:
            self._give_way()
        elif done.left:
            self._note(outcome=Outcome.UNFINISHED, detail="files to compact are left")

    def _fold(self) -> None:
        """Rewrite the manifests of an idle table into one."""
        table = self._keyed.view().table
        count = _to_fold(table, self._now())
        if not count:
            return
        commit = _Folded(table, ManifestReader(), table.metadata.new_snapshot_id())
        told = as_operation(_totals(table, {MAINTAINED: "manifests"}), Operation.REPLACE)
        snapshot = commit.snapshot(commit.manifests((), ()), told)
        try:
            swap(self._catalog, table, commit.updates(snapshot))
        except CommitConflictError:
            self._give_way()
        else:
            self._note(manifests=count)


class _Folded(_Alone):
    """A commit that changes no file and leaves one manifest; history stays."""

    def updates(self, snapshot: Snapshot) -> tuple[TableUpdate, ...]:
        """As of any commit."""
        return _Commit.updates(self, snapshot)


def _expired(table: Table, now: datetime) -> list[int]:
    return RETENTION.expired(stamps(table), micros(now) // 1000)


def _to_fold(table: Table, now: datetime) -> int:
    """How many manifests to rewrite: none while somebody writes, or while they are few."""
    manifests: list[ManifestFile] = manifests_of(table)
    return len(manifests) if len(manifests) > MANIFESTS_IDLE_MAX and is_idle(table, now) else 0
