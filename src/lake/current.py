"""Current state of one contract: its rows and its tombstones, kept as one truth by two Iceberg
tables.

Two tables cannot be swapped together, so the order of steps carries the laws: tombstones are
committed before the rows they remove, rows are committed only on the exact snapshot they were
planned on, and after each commit the other table is looked at again. Whichever of two writers comes
second sees the first and mends. Every attempt plans from scratch on what is there; nothing is
assumed from the last one but finished files.

Partial updates travel the same road: what waits for a row lies beside the tombstones, and is joined
into every change of its key that passes. A truncation is a tombstone of every key.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from freshet.arrow import (
    DELETED,
    PATCHES,
    POSITION,
    VERSION,
    changes_schema,
    key_column,
    patches_text,
)
from freshet.errors import ConflictError
from freshet.merge import Collapsed, Outcome, collapse
from freshet.patch import (
    Place,
    Record,
    Shape,
    State,
    base_outcome,
    deleted,
    join,
    patch_outcomes,
)
from freshet.receipt import Receipt
from lake.snapshot import CommitConflictError
from lake.steps import OnConflict, OnStep, Step
from lake.table import FileTask, Joined, KeyedTable, Rewrite, RewriteMemo, Role, Sweep, View
from lake.tombstones import Known, floor_of, floor_text

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


class Applied(NamedTuple):
    """What a batch did: its receipt, and the last snapshot it made of the rows (None: none)."""

    receipt: Receipt
    snapshot_id: int | None


@dataclass
class _Batch:
    """What one apply carries from attempt to attempt."""

    received: int
    collapsed: Collapsed
    note: Mapping[str, str]
    rows_memo: RewriteMemo = field(default_factory=RewriteMemo)
    tombstones_memo: RewriteMemo = field(default_factory=RewriteMemo)
    own_tombstones: set[tuple[str, int]] = field(default_factory=set)
    own_waiting: set[tuple[str, Place]] = field(default_factory=set)
    committed: Receipt | None = None
    snapshot_id: int | None = None

    @property
    def winners(self) -> pa.Table:
        return self.collapsed.winners


@dataclass(frozen=True, slots=True)
class _Patched:
    """A change with patches, or one for whose key some wait: alone, and joined with what waits."""

    change: State
    whole: State
    is_overruled: bool
    key: Record


@dataclass(frozen=True)
class _Plan:
    """What a batch comes to beside one view of each table."""

    known: Known
    live: pa.Table
    overruled: int
    patched: dict[str, _Patched]
    tasks: list[FileTask]
    rewrites: list[Rewrite]
    met: dict[str, Joined]

    @property
    def alone(self) -> dict[str, _Patched]:
        """Changes with patches whose keys have no row."""
        return {text: one for text, one in self.patched.items() if text not in self.met}

    def is_forewarned(self, text: str, version: int, position: str) -> bool:
        """True if the tombstone of a delete that meets no row is there, and no patch waits that is
        older than the delete: of deletes at one version the later ends what came in between.
        """
        waiting = self.known.waiting(text).values()
        return self.known.forewarns(text, version) and not any(
            patch.place < (version, position) for patch in waiting
        )

    def ended(self) -> Iterator[tuple[str, Record, State, bool]]:
        """Keys with patches that are left without a row: text, key, state, and had they one."""
        for text, joined in self.met.items():
            if joined.after.after is None:
                yield text, joined.key, joined.after, True
        for text, one in self.alone.items():
            if one.whole.after is None:
                yield text, one.key, one.whole, False


@dataclass(frozen=True)
class _Decision:
    """One attempt's plan against one view of each table."""

    rows_view: View
    tombstones_view: View
    rewrites: list[Rewrite]
    new_tombstones: pa.Table
    new_waiting: set[tuple[str, Place]]
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
        self._shape = Shape.of(changes_schema(rows.spec.schema, rows.spec.key))
        self._tombstone_changes = changes_schema(tombstones.spec.schema, tombstones.spec.key)

    def apply(self, changes: pa.Table, note: Mapping[str, str]) -> Applied:
        """Make the table hold the newest of what it held and these changes; the receipt says what
        that did.

        `note` is kept in the snapshot summary. Raises `ConflictError` (transient) when other
        writers won every attempt.
        """
        collapsed = collapse(changes, self.rows.spec.key)
        batch = _Batch(changes.num_rows, collapsed, note)
        # Writers of one process take turns: racing each other would only cost rounds.
        with self._lock:
            return self._until_settled(batch)

    def truncate(self, version: int, position: str, note: Mapping[str, str]) -> Applied:
        """End every row older than this place, and overrule every older change that comes later.

        Newer rows stay, and newer patches of the rows that end wait. The truncation itself counts
        as unchanged, the rows it ended as retracted. Raises `ConflictError` (transient).
        """
        with self._lock:
            # The floor first: a row that comes after the rows were swept is overruled by it.
            self._raise_floor((version, position))
            return self._sweep((version, position), note)

    def _raise_floor(self, floor: Place) -> None:
        for _ in self._rounds():
            view = self.tombstones.view()
            if floor_of(view) >= floor:
                return
            try:
                summary = {"freshet.tombstones-of": self.rows.spec.name}
                self.tombstones.commit(view, [], summary, properties=floor_text(floor))
            except CommitConflictError:
                self._on_conflict(self.rows.spec.name)
            else:
                self._step(Step.TOMBSTONES_COMMITTED)
                return
        raise ConflictError(self.rows.spec.name, ATTEMPTS_MAX)

    def _sweep(self, floor: Place, note: Mapping[str, str]) -> Applied:
        memo: dict[str, Sweep | None] = {}
        tombstones_memo = RewriteMemo()
        for _ in self._rounds():
            rows_view = self.rows.view()
            self._step(Step.VIEWED)
            sweeps = self.rows.sweep(rows_view, floor, memo)
            self._step(Step.FILES_WRITTEN)
            ended = sum(sweep.ended for sweep in sweeps)
            receipt = Receipt(received=1, unchanged=1, retracted=ended)
            if not sweeps:
                return Applied(receipt, None)
            try:
                waiting = [one for sweep in sweeps for one in sweep.waiting]
                self._bury(self.tombstones.view(), self._tombstones(waiting), tombstones_memo)
                rewrites = [sweep.rewrite for sweep in sweeps]
                summary = dict(note) | _summary(receipt, again=False)
                snapshot_id = self.rows.commit(rows_view, rewrites, summary)
                self._step(Step.ROWS_COMMITTED)
                return Applied(receipt, snapshot_id)
            except CommitConflictError:
                self._on_conflict(self.rows.spec.name)
        raise ConflictError(self.rows.spec.name, ATTEMPTS_MAX)

    def _rounds(self) -> Iterator[None]:
        """The attempts there may be; each but the first is followed by a pause that grows."""
        for attempt in range(ATTEMPTS_MAX):
            yield
            if attempt:
                pause = min(_PAUSE_S_MAX, _PAUSE_S * 2**attempt)
                self._wait(random.uniform(0, pause))  # noqa: S311 - jitter, not secrecy

    def _until_settled(self, batch: _Batch) -> Applied:
        for _ in self._rounds():
            decision = self._decide(batch)
            if self._commit(batch, decision):
                self._step(Step.VALIDATED)
                return Applied(batch.committed or decision.receipt, batch.snapshot_id)
        raise ConflictError(self.rows.spec.name, ATTEMPTS_MAX)

    def _decide(self, batch: _Batch) -> _Decision:
        """Plan and rewrite on what both tables show now. Writes data files, commits nothing."""
        # Rows first: of a delete committed in between, the tombstone is seen and the row still is,
        # and the commit on exactly these rows fails. The other way about, a late change would
        # bring the row back for readers until this batch looked at the tombstones again.
        rows_view = self.rows.view()
        self._step(Step.VIEWED)
        tombstones_view = self.tombstones.view()
        plan = self._plan(batch, rows_view, tombstones_view)
        new, waiting = self._new_tombstones(plan)
        receipt = self._receipt(batch, plan)
        return _Decision(rows_view, tombstones_view, plan.rewrites, new, waiting, receipt)

    def _plan(self, batch: _Batch, rows_view: View, tombstones_view: View) -> _Plan:
        winners, texts = batch.winners, self._texts(batch.winners)
        known = self._known(tombstones_view, winners, texts)
        patched = self._patched(winners, known)
        standing, overruled = known.split(winners, set(patched))
        live = winners.take(pa.array(standing, pa.int64()))
        retracts = known.as_deletes(winners, overruled)
        tasks = self.rows.plan(rows_view, self._with_joined(live, patched), retracts)
        self._step(Step.PLANNED)
        rewrites = self.rows.rewrite(rows_view, tasks, batch.rows_memo)
        self._step(Step.FILES_WRITTEN)
        by_text = {texts[at]: one for at, one in patched.items()}
        return _Plan(known, live, len(overruled), by_text, tasks, rewrites, self._met(tasks))

    def _patched(self, winners: pa.Table, known: Known) -> dict[int, _Patched]:
        """Changes that carry patches, or for whose keys some wait, by place among the winners."""
        own = pc.indices_nonzero(pc.is_valid(winners.column(PATCHES))).to_pylist()
        places = sorted(known.patched.union(own))
        records = winners.take(pa.array(places, pa.int64())).to_pylist()
        patched = {}
        for at, record in zip(places, records, strict=True):
            change, waits = self._shape.read(record), known.state(at)
            whole = change if waits is None else join(waits, change)
            if not change.patches and not whole.patches:
                continue  # what waits is older than this change
            is_overruled = change.version > 0 and known.overrules(
                at, change.version, change.position, is_delete=change.after is None
            )
            patched[at] = _Patched(change, whole, is_overruled, self._key(record))
        return patched

    def _with_joined(self, live: pa.Table, patched: Mapping[int, _Patched]) -> pa.Table:
        records = [self._shape.write(one.whole, one.key) for one in patched.values()]
        if not records:
            return live
        for record in records:  # also one of which nothing is left has outcomes of its own
            record[PATCHES] = record[PATCHES] or "{}"
        return pa.concat_tables([live, pa.Table.from_pylist(records, schema=live.schema)])

    def _met(self, tasks: list[FileTask]) -> dict[str, Joined]:
        """What became of rows with patches, by key text."""
        return {
            text: task.joined[at]
            for task in tasks
            if task.joined
            for at, text in enumerate(self._texts(task.changes))
            if at in task.joined
        }

    def _key(self, record: Record) -> Record:
        return {name: record[name] for name in self.rows.spec.key}

    def _commit(self, batch: _Batch, decision: _Decision) -> bool:
        """Tombstones, then rows, then a look at what others did meanwhile. False: decide again."""
        try:
            seen = self._commit_tombstones(batch, decision)
            if decision.changes_rows:
                summary = dict(batch.note) | _summary(
                    decision.receipt, again=batch.committed is not None
                )
                batch.snapshot_id = self.rows.commit(decision.rows_view, decision.rewrites, summary)
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
        seen = self._bury(view, new, batch.tombstones_memo)
        if seen is None:
            return view.snapshot_id  # none, or another writer buried the very same
        batch.own_waiting |= decision.new_waiting
        batch.own_tombstones.update(
            zip(self._texts(new), new.column(VERSION).to_pylist(), strict=True)
        )
        self._step(Step.TOMBSTONES_COMMITTED)
        return seen

    def _bury(self, view: View, new: pa.Table, memo: RewriteMemo) -> int | None:
        """Commit upserts of the tombstone table; its snapshot, None if they say nothing new."""
        if not new.num_rows:
            return None
        tasks = self.tombstones.plan(view, new, new.slice(0, 0))
        rewrites = self.tombstones.rewrite(view, tasks, memo)
        self._step(Step.TOMBSTONES_WRITTEN)
        if not any(rewrite.added for rewrite in rewrites):
            return None
        summary = {"freshet.tombstones-of": self.rows.spec.name}
        return self.tombstones.commit(view, rewrites, summary)

    def _moved(self, table: KeyedTable, seen: int | None) -> bool:
        return table.view().snapshot_id != seen

    def _texts(self, table: pa.Table) -> list[str]:
        return [str(value) for value in key_column(table, self.rows.spec.key).to_pylist()]

    def _known(self, view: View, winners: pa.Table, texts: list[str]) -> Known:
        located = self.tombstones.locate(
            view, key_column(winners, self.rows.spec.key).combine_chunks()
        )
        return Known(located.key_at, located.rows, texts, floor_of(view))

    def _new_tombstones(self, plan: _Plan) -> tuple[pa.Table, set[tuple[str, Place]]]:
        """Tombstones to commit before the rows, and the patches that begin to wait in them."""
        won = [_won_deletes(*pair) for pair in zip(plan.tasks, plan.rewrites, strict=True)]
        news: list[tuple[Record, State]] = []
        waiting: set[tuple[str, Place]] = set()
        for text, key, state, had_row in plan.ended():
            if plan.known.lacks(text, state, had_row=had_row):
                news.append((key, state))
                waiting |= {(text, place) for place in plan.known.unknown_patches(text, state)}
        parts = [
            self._unburied(_concat(won, like=plan.live), plan.known.buries),
            self._unburied(self._unmet_deletes(plan), plan.is_forewarned),
            self._tombstones(news),
        ]
        return pa.concat_tables(parts), waiting

    def _tombstones(self, states: Sequence[tuple[Record, State]]) -> pa.Table:
        """States of keys without a row, as upserts of the tombstone table."""
        records = [
            key
            | {VERSION: state.version, POSITION: state.position}
            | {PATCHES: patches_text(state.patches), DELETED: False}
            for key, state in states
        ]
        return pa.Table.from_pylist(records, schema=self._tombstone_changes)

    def _unmet_deletes(self, plan: _Plan) -> pa.Table:
        """Deletes of keys that have no row: they still leave a tombstone."""
        met = {text for task in plan.tasks for text in self._texts(task.changes)}
        texts, deleted = self._texts(plan.live), plan.live.column(DELETED).to_pylist()
        unmet = [gone and text not in met for text, gone in zip(texts, deleted, strict=True)]
        return plan.live.filter(pa.array(unmet, pa.bool_()))

    def _unburied(self, deletes: pa.Table, is_known: Callable[[str, int, str], bool]) -> pa.Table:
        """Deletes whose tombstone is not there yet, as upserts of the tombstone table."""
        columns = (deletes.column(name).to_pylist() for name in (VERSION, POSITION))
        new = [not is_known(*one) for one in zip(self._texts(deletes), *columns, strict=True)]
        schema = self._tombstone_changes
        table = deletes.filter(pa.array(new, pa.bool_())).select(schema.names)
        return table.set_column(
            table.schema.get_field_index(DELETED),
            schema.field(DELETED),
            pa.repeat(pa.scalar(False), len(table)),
        ).cast(schema)

    def _receipt(self, batch: _Batch, plan: _Plan) -> Receipt:
        """An outcome for every change that came, and the rows that others' deletes took."""
        pairs = Counter(
            pair
            for task, rewrite in zip(plan.tasks, plan.rewrites, strict=True)
            for pair in zip(task.roles, rewrite.outcomes, strict=True)
        )
        counts: Counter[str] = Counter()
        for (role, outcome), count in pairs.items():
            name = _RECEIPT_OF.get((Role(role), Outcome(outcome)))
            if name is not None:
                counts[name] += count
        counts["stale"] += plan.overruled + batch.collapsed.stale
        counts["duplicate"] += batch.collapsed.duplicate
        unmet = self._unmet_deletes(plan)
        places = (unmet.column(name).to_pylist() for name in (VERSION, POSITION))
        for text, *place in zip(self._texts(unmet), *places, strict=True):
            counts[self._unmet_outcome(batch, plan, text, *place)] += 1
        for text, joined in plan.met.items():
            counts += self._met_outcomes(batch, plan, text, joined)
        for text, one in plan.alone.items():
            counts += self._alone_outcomes(batch, plan, text, one)
        received = counts.total() - counts["retracted"]
        assert received == batch.received, (
            f"{batch.received} changes came, {received} have an outcome"
        )
        return Receipt(received=received, **counts)

    def _unmet_outcome(
        self, batch: _Batch, plan: _Plan, text: str, version: int, position: str
    ) -> str:
        """Of a delete without a row: known already, or a tombstone for the future."""
        is_own = (text, version) in batch.own_tombstones
        is_known = plan.is_forewarned(text, version, position)
        return "duplicate" if is_known and not is_own else "unchanged"

    def _met_outcomes(self, batch: _Batch, plan: _Plan, text: str, joined: Joined) -> Counter[str]:
        """Of a change of a key with patches that has a row."""
        counts: Counter[str] = Counter()
        change, patched = joined.change, plan.patched.get(text)
        if patched is not None:
            change = patched.change
        if patched is not None and patched.is_overruled:
            counts["stale"] += 1
        elif change.version and not joined.is_retract:  # a retracted one is counted as overruled
            counts[base_outcome(change, joined.before, joined.after) or ""] += 1
        found = joined.before
        if joined.after.after is None:
            counts["retracted"] += 1 - counts["deleted"]
            found = deleted(0, "", {**found.patches, **plan.known.waiting(text)})
        return counts + self._patch_outcomes(batch, text, change, found, joined.after)

    def _alone_outcomes(self, batch: _Batch, plan: _Plan, text: str, one: _Patched) -> Counter[str]:
        """Of a change of a key with patches that has no row."""
        counts: Counter[str] = Counter()
        if one.is_overruled:
            counts["stale"] += 1
        elif one.change.after is not None:
            counts["inserted"] += 1
        elif one.change.version:
            counts[self._unmet_outcome(batch, plan, text, *one.change.place)] += 1
        waiting = plan.known.waiting(text) if one.whole.after is None else {}
        found = deleted(0, "", waiting)
        return counts + self._patch_outcomes(batch, text, one.change, found, one.whole)

    def _patch_outcomes(
        self, batch: _Batch, text: str, change: State, found: State, after: State
    ) -> Counter[str]:
        own = batch.own_waiting
        return patch_outcomes(change, found, after, is_own=lambda place: (text, place) in own)


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
