"""Current state of one contract: its rows and its tombstones, kept as one truth by two Iceberg
tables.

Two tables cannot be swapped together, so the order of steps carries the laws: tombstones are
committed before the rows they remove, rows are committed only on the exact snapshot they were
planned on, and after each commit the other table is looked at again. Whichever of two writers comes
second sees the first and mends. Every attempt plans from scratch on what is there; nothing is
assumed from the last one but finished files.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from freshet.arrow import DELETED, POSITION, VERSION, changes_schema, key_column
from freshet.errors import ConflictError
from freshet.merge import Outcome, collapse
from freshet.receipt import Receipt
from lake.snapshot import CommitConflictError
from lake.steps import OnConflict, OnStep, Step
from lake.table import FileTask, KeyedTable, Rewrite, RewriteMemo, Role, View

# Eight writers on one table lose at most seven races in a row on average; this bounds bad luck, not
# load.
ATTEMPTS_MAX = 40
# First pause after a lost race, doubling up to the cap; jitter keeps losers apart.
_PAUSE_S, _PAUSE_S_MAX = 0.02, 1.0

_RECEIPT_OF = {
    (Role.CHANGE, Outcome.INSERTED): "inserted",
    (Role.CHANGE, Outcome.UPDATED): "updated",
    (Role.CHANGE, Outcome.DELETED): "deleted",
    (Role.CHANGE, Outcome.UNCHANGED): "unchanged",
    (Role.CHANGE, Outcome.DUPLICATE): "duplicate",
    (Role.CHANGE, Outcome.STALE): "stale",
    (Role.MOVE_IN, Outcome.INSERTED): "updated",
    (Role.RETRACT, Outcome.DELETED): "retracted",
}


@dataclass
class _Batch:
    """What one apply carries from attempt to attempt."""

    winners: pa.Table
    losers: Receipt
    note: Mapping[str, str]
    rows_memo: RewriteMemo = field(default_factory=RewriteMemo)
    tombstones_memo: RewriteMemo = field(default_factory=RewriteMemo)
    own_tombstones: set[tuple[str, int]] = field(default_factory=set)
    committed: Receipt | None = None


@dataclass(frozen=True)
class _Decision:
    """One attempt's plan against one view of each table."""

    rows_view: View
    tombstones_view: View
    tasks: list[FileTask]
    rewrites: list[Rewrite]
    new_tombstones: pa.Table
    receipt: Receipt

    @property
    def changes_rows(self) -> bool:
        return any(rewrite.removed or rewrite.added for rewrite in self.rewrites)


class CurrentState:
    """Applies changes of one contract to its rows and tombstones."""

    def __init__(
        self,
        rows: KeyedTable,
        tombstones: KeyedTable,
        *,
        wait: Callable[[float], object],
        on_step: OnStep,
        on_conflict: OnConflict,
    ) -> None:
        self.rows, self.tombstones = rows, tombstones
        self._wait, self._step, self._on_conflict = wait, on_step, on_conflict
        self._lock = threading.Lock()

    def apply(self, changes: pa.Table, note: Mapping[str, str]) -> Receipt:
        """Make the table hold the newest of what it held and these changes; the receipt says what
        that did.

        `note` is kept in the snapshot summary. Raises `ConflictError` (transient) when other
        writers won every attempt.
        """
        collapsed = collapse(changes, self.rows.spec.key)
        lost = collapsed.duplicate + collapsed.stale
        losers = Receipt(received=lost, duplicate=collapsed.duplicate, stale=collapsed.stale)
        batch = _Batch(collapsed.winners, losers, note)
        # Writers of one process take turns: racing each other would only cost rounds.
        with self._lock:
            return self._until_settled(batch)

    def _until_settled(self, batch: _Batch) -> Receipt:
        for attempt in range(ATTEMPTS_MAX):
            decision = self._decide(batch)
            if self._commit(batch, decision):
                self._step(Step.VALIDATED)
                return batch.committed or decision.receipt
            if attempt:
                pause = min(_PAUSE_S_MAX, _PAUSE_S * 2**attempt)
                self._wait(random.uniform(0, pause))  # noqa: S311 - jitter, not secrecy
        raise ConflictError(self.rows.spec.name, ATTEMPTS_MAX)

    def _decide(self, batch: _Batch) -> _Decision:
        """Plan and rewrite on what both tables show now. Writes data files, commits nothing."""
        # Rows first: of a delete committed in between, the tombstone is seen and the row still is,
        # and the commit on exactly these rows fails. The other way about, a late change would
        # bring the row back for readers until this batch looked at the tombstones again.
        rows_view = self.rows.view()
        self._step(Step.VIEWED)
        tombstones_view = self.tombstones.view()
        known = self._known_tombstones(tombstones_view, batch.winners)
        standing, overruled = known.split(batch.winners)
        retracts = known.as_deletes(batch.winners, overruled)
        live = batch.winners.take(pa.array(standing, pa.int64()))
        tasks = self.rows.plan(rows_view, live, retracts)
        self._step(Step.PLANNED)
        rewrites = self.rows.rewrite(rows_view, tasks, batch.rows_memo)
        self._step(Step.FILES_WRITTEN)
        met = {text for task in tasks for text in self._texts(task.changes)}
        unmet = self._unmet_deletes(live, met)
        won = [_won_deletes(task, rewrite) for task, rewrite in zip(tasks, rewrites, strict=True)]
        buried = _concat(won, like=live)
        new = pa.concat_tables(
            [self._unburied(buried, known.buries), self._unburied(unmet, known.forewarns)]
        )
        receipt = self._receipt(
            batch, tasks, rewrites, len(overruled), self._met_none(unmet, known, batch)
        )
        return _Decision(rows_view, tombstones_view, tasks, rewrites, new, receipt)

    def _commit(self, batch: _Batch, decision: _Decision) -> bool:
        """Tombstones, then rows, then a look at what others did meanwhile. False: decide again."""
        try:
            seen = self._commit_tombstones(batch, decision)
            if decision.changes_rows:
                summary = dict(batch.note) | _summary(
                    decision.receipt, again=batch.committed is not None
                )
                self.rows.commit(decision.rows_view, decision.rewrites, summary)
                batch.committed = _settled(batch.committed, decision.receipt)
                self._step(Step.ROWS_COMMITTED)
            elif decision.new_tombstones.num_rows and self._moved(
                self.rows, decision.rows_view.snapshot_id
            ):
                return False
        except CommitConflictError:
            self._on_conflict(self.rows.spec.name)
            return False
        return not (decision.changes_rows and self._moved(self.tombstones, seen))

    def _commit_tombstones(self, batch: _Batch, decision: _Decision) -> int | None:
        """Commit new tombstones; the snapshot of the tombstone table this attempt has seen."""
        new, view = decision.new_tombstones, decision.tombstones_view
        if not new.num_rows:
            return view.snapshot_id
        tasks = self.tombstones.plan(view, new, new.slice(0, 0))
        rewrites = self.tombstones.rewrite(view, tasks, batch.tombstones_memo)
        self._step(Step.TOMBSTONES_WRITTEN)
        if not any(rewrite.added for rewrite in rewrites):
            return view.snapshot_id  # another writer buried the very same
        seen = self.tombstones.commit(
            view, rewrites, {"freshet.tombstones-of": self.rows.spec.name}
        )
        batch.own_tombstones.update(
            zip(self._texts(new), new.column(VERSION).to_pylist(), strict=True)
        )
        self._step(Step.TOMBSTONES_COMMITTED)
        return seen

    def _moved(self, table: KeyedTable, seen: int | None) -> bool:
        return table.view().snapshot_id != seen

    def _texts(self, table: pa.Table) -> list[str]:
        return [str(value) for value in key_column(table, self.rows.spec.key).to_pylist()]

    def _known_tombstones(self, view: View, winners: pa.Table) -> _Tombstones:
        located = self.tombstones.locate(
            view, key_column(winners, self.rows.spec.key).combine_chunks()
        )
        return _Tombstones(located.key_at, located.rows, self._texts(winners))

    def _unmet_deletes(self, live: pa.Table, met: set[str]) -> pa.Table:
        """Deletes of keys that have no row: they still leave a tombstone."""
        texts, deleted = self._texts(live), live.column(DELETED).to_pylist()
        return live.filter(
            pa.array(
                [gone and text not in met for text, gone in zip(texts, deleted, strict=True)],
                pa.bool_(),
            )
        )

    def _unburied(self, deletes: pa.Table, is_known: Callable[[str, int, str], bool]) -> pa.Table:
        """Deletes whose tombstone is not there yet, as upserts of the tombstone table."""
        columns = (deletes.column(name).to_pylist() for name in (VERSION, POSITION))
        new = [not is_known(*one) for one in zip(self._texts(deletes), *columns, strict=True)]
        schema = changes_schema(self.tombstones.spec.schema, self.tombstones.spec.key)
        table = deletes.filter(pa.array(new, pa.bool_())).select(schema.names)
        return table.set_column(
            table.schema.get_field_index(DELETED),
            schema.field(DELETED),
            pa.repeat(pa.scalar(False), len(table)),
        ).cast(schema)

    def _met_none(self, unmet: pa.Table, known: _Tombstones, batch: _Batch) -> Receipt:
        """Outcomes of deletes without a row: known already, or a tombstone for the future."""
        pairs = list(zip(self._texts(unmet), unmet.column(VERSION).to_pylist(), strict=True))
        duplicate = sum(
            known.forewarns(text, version) and (text, version) not in batch.own_tombstones
            for text, version in pairs
        )
        return Receipt(received=len(pairs), duplicate=duplicate, unchanged=len(pairs) - duplicate)

    def _receipt(
        self,
        batch: _Batch,
        tasks: list[FileTask],
        rewrites: list[Rewrite],
        overruled: int,
        alone: Receipt,
    ) -> Receipt:
        pairs = Counter(
            pair
            for task, rewrite in zip(tasks, rewrites, strict=True)
            for pair in zip(task.roles, rewrite.outcomes, strict=True)
        )
        counts: Counter[str] = Counter()
        for (role, outcome), count in pairs.items():
            name = _RECEIPT_OF.get((Role(role), Outcome(outcome)))
            if name is not None:
                counts[name] += count
        counts["stale"] += overruled
        received = sum(count for name, count in counts.items() if name != "retracted")
        total = batch.losers + alone + Receipt(received=received, **counts)
        expected = batch.winners.num_rows + batch.losers.received
        assert total.received == expected, (
            f"{expected} changes came, {total.received} have an outcome"
        )
        return total


class _Tombstones:
    """Tombstones that exist for keys of a batch."""

    def __init__(self, key_at: list[int], rows: pa.Table, texts: list[str]) -> None:
        versions = rows.column(VERSION).to_pylist() if key_at else []
        positions = rows.column(POSITION).to_pylist() if key_at else []
        self._at = dict(zip(key_at, zip(versions, positions, strict=True), strict=True))
        self._place = {texts[at]: place for at, place in self._at.items()}

    def buries(self, text: str, version: int, position: str) -> bool:
        """True if the tombstone of a delete that removes a row is there. Its position matters: the
        row may tie with it, and must stay removed when it comes again.
        """
        place = self._place.get(text)
        return place is not None and place >= (version, position)

    def forewarns(self, text: str, version: int, _position: str = "") -> bool:
        """True if the tombstone of a delete that met no row is there, or of one just like it."""
        place = self._place.get(text)
        return place is not None and place[0] == version

    def split(self, winners: pa.Table) -> tuple[list[int], list[int]]:
        """Positions of changes that stand against their tombstone, and of those it overrules."""
        versions, positions = (
            winners.column(VERSION).to_pylist(),
            winners.column(POSITION).to_pylist(),
        )
        deleted = winners.column(DELETED).to_pylist()
        overruled = {
            at
            for at, (version, position) in self._at.items()
            if versions[at] < version
            or (versions[at] == version and not deleted[at] and positions[at] <= position)
        }
        return [at for at in range(winners.num_rows) if at not in overruled], sorted(overruled)

    def as_deletes(self, winners: pa.Table, overruled: list[int]) -> pa.Table:
        """Deletes at the tombstones' versions for the overruled keys: a row under one must go."""
        table = winners.take(pa.array(overruled, pa.int64()))
        for name, values in (
            (VERSION, [self._at[at][0] for at in overruled]),
            (POSITION, [self._at[at][1] for at in overruled]),
            (DELETED, [True] * len(overruled)),
        ):
            column = table.schema.field(name)
            table = table.set_column(
                table.schema.get_field_index(name), column, pa.array(values, column.type)
            )
        return table


def _won_deletes(task: FileTask, rewrite: Rewrite) -> pa.Table:
    won = [
        role == Role.CHANGE and outcome == Outcome.DELETED
        for role, outcome in zip(task.roles, rewrite.outcomes, strict=True)
    ]
    return task.changes.filter(pa.array(won, pa.bool_()))


def _concat(tables: list[pa.Table], *, like: pa.Table) -> pa.Table:
    return pa.concat_tables([like.slice(0, 0), *tables])


def _summary(receipt: Receipt, *, again: bool) -> dict[str, str]:
    """The receipt as snapshot properties. A mending commit received nothing: it only retracts."""
    shown = Receipt(retracted=receipt.retracted) if again else receipt
    return {f"freshet.{name}": str(count) for name, count in shown.to_dict().items()}


def _settled(before: Receipt | None, now: Receipt) -> Receipt:
    """The batch's receipt after one more commit: outcomes of the first, retractions of all."""
    return now if before is None else before + Receipt(retracted=now.retracted)
