"""The laws, checked on the lake itself: what the tables, tombstones, receipts and log say of each
other.

Nothing here trusts the code that wrote them: rows are read back file by file, the log is replayed
through the plain-dict model, and the two must agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from freshet.arrow import PATCHES, POSITION, VERSION, renamed
from freshet.contract import Contract
from freshet.event import json_row, key_text
from freshet.model import ModelChange, current_state
from freshet.receipt import Receipt
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE
from lake.prune import NO_ROW, pruned_before
from lake.spec import partition_values
from lake.table import KeyedTable, View
from lake.tombstones import floor_of

Progress = Callable[[str], None]
# Enough to see what is wrong; a broken table could have millions.
FINDINGS_MAX = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One law checked on one table: how much was looked at, and what contradicts the law.

    `notes` are no contradictions: what waits, and how it goes on.
    """

    table: str
    law: str
    checked: int
    findings: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """True when nothing contradicts it."""
        return not self.findings


def verify_table(
    lake: Lake, contract: type[Contract], *, progress: Progress = lambda _: None
) -> list[Check]:
    """Check the laws on one table. Memory grows with the table and its log."""
    current = lake.current(contract.table)
    progress(f"{contract.table}: reading rows and tombstones")
    rows_view, tombstones_view = current.rows.view(), current.tombstones.view()
    rows = _rows(current.rows, rows_view, contract)
    graves = _graves(current.tombstones.read_all(tombstones_view), contract, tombstones_view)
    progress(f"{contract.table}: replaying the log through the model")
    expected = _replay(lake, contract)
    return [
        _one_home(contract, rows),
        _buried(contract, rows.state, graves),
        _receipts(contract, rows_view),
        _equals(contract, rows.state, graves, expected, _pruned(lake, contract, tombstones_view)),
    ]


@dataclass(frozen=True, slots=True)
class _Rows:
    state: dict[str, tuple[int, str, str]]
    """Row of each key: version, position, canonical JSON."""
    twice: list[str]
    misplaced: list[str]


def _rows(table: KeyedTable, view: View, contract: type[Contract]) -> _Rows:
    state: dict[str, tuple[int, str, str]] = {}
    twice, misplaced = [], []
    for partition, part in table.read_files(view):
        homes = partition_values(part, contract.partition)
        for row, home in zip(part.to_pylist(), homes, strict=True):
            key = key_text(contract, row)
            if key in state:
                twice.append(key)
            if home != partition:
                misplaced.append(f"{key} is in partition {partition}, belongs to {home}")
            state[key] = (row.pop(VERSION), row.pop(POSITION), _canonical(json_row(row)))
    return _Rows(state, twice, misplaced)


@dataclass(frozen=True, slots=True)
class _Tombstone:
    version: int
    position: str
    waiting: dict[str, Any]
    """Columns of patches newer than the delete and any truncation, which wait for a row."""


@dataclass(frozen=True, slots=True)
class _Graves:
    """What keeps rows from coming back: a tombstone of each deleted key, and the last truncation.

    A key that has none is as one deleted before everything.
    """

    tombstones: dict[str, _Tombstone]
    floor: tuple[int, str]

    def of(self, key: str) -> _Tombstone:
        return self.tombstones.get(key, _Tombstone(0, "", {}))


def _graves(table: pa.Table, contract: type[Contract], view: View) -> _Graves:
    floor = floor_of(view)
    dead = {key_text(contract, row): _tombstone(row, floor) for row in table.to_pylist()}
    return _Graves(dead, floor)


def _tombstone(row: dict[str, Any], floor: tuple[int, str]) -> _Tombstone:
    patches = json.loads(row[PATCHES]) if row[PATCHES] else {}
    ended = max(floor, (row[VERSION], row[POSITION]))
    waiting = {
        column: value
        for column, (version, position, value) in patches.items()
        if (version, position) > ended
    }
    return _Tombstone(row[VERSION], row[POSITION], waiting)


@dataclass(frozen=True, slots=True)
class _Pruned:
    """What the tables may lack because it was pruned: tombstones of deletes at these places, and
    columns of patches that went to the quarantine, by key.
    """

    places: frozenset[str] = frozenset()
    columns: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def of(self, key: str) -> frozenset[str]:
        return self.columns.get(key, frozenset())


def _pruned(lake: Lake, contract: type[Contract], view: View) -> _Pruned:
    before = pruned_before(view)
    if before is None:
        return _Pruned()
    places: set[str] = set()
    for part in lake.log(CHANGE_LOG, contract.table, ["position", "arrived_at"]):
        places.update(part.filter(pc.less(part.column("arrived_at"), before))[0].to_pylist())
    columns: dict[str, frozenset[str]] = {}
    for part in lake.log(QUARANTINE, contract.table, ["reason", "data"]):
        for line in part.filter(pc.equal(part.column("reason"), NO_ROW)).to_pylist():
            event = json.loads(line["data"])
            key = key_text(contract, renamed(event["key"], contract.former))
            patch = renamed(event["patch"], contract.former)
            columns[key] = columns.get(key, frozenset()) | patch.keys()
    return _Pruned(frozenset(places), columns)


def _replay(lake: Lake, contract: type[Contract]) -> dict[str, ModelChange]:
    """What every key in the log comes to; the model's values are JSON's here."""
    states = current_state(_logged(lake, contract))
    return {str(key): state for key, state in states.items()}


def _logged(lake: Lake, contract: type[Contract]) -> Iterator[ModelChange]:
    """Every logged change in stream order, so that ties fall as they fell."""
    columns = ["key", "version", "position", "after", "patch"]
    parts = list(lake.log(CHANGE_LOG, contract.table, columns))
    if not parts:
        return
    for part in pa.concat_tables(parts).sort_by("position").to_batches():
        for row in part.to_pylist():
            after, patch = (_image(row[name], contract) for name in ("after", "patch"))
            # A null of a row says as little as a column that is not there; a patch's erases.
            after = None if after is None else _present(after)
            yield ModelChange(row["key"], row["version"], row["position"], after, patch)


def _image(text: str | None, contract: type[Contract]) -> dict[str, Any] | None:
    """A logged row or patch; what was logged before a column was renamed has its former name."""
    return None if text is None else renamed(json.loads(text), contract.former)


def _present(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without nulls: older events lack columns that came later."""
    return {column: value for column, value in row.items() if value is not None}


def _canonical(row: Mapping[str, Any]) -> str:
    """The lake's own columns and nulls left out, a row as one text."""
    told = {column: value for column, value in row.items() if not column.startswith("_")}
    return json.dumps(_present(told), sort_keys=True, ensure_ascii=False)


def _differing(one: str, other: str, excused: frozenset[str]) -> str:
    """The columns in which two canonical rows differ, but for those excused."""
    left, right = json.loads(one), json.loads(other)
    return ", ".join(
        column
        for column in sorted((left.keys() | right.keys()) - excused)
        if left.get(column) != right.get(column)
    )


def _check(contract: type[Contract], law: str, checked: int, findings: list[str]) -> Check:
    return Check(contract.table, law, checked, tuple(findings[:FINDINGS_MAX]))


def _one_home(contract: type[Contract], rows: _Rows) -> Check:
    findings = [f"{key} is in more than one row" for key in rows.twice] + rows.misplaced
    return _check(contract, "L8 one row and one partition per key", len(rows.state), findings)


def _buried(
    contract: type[Contract], rows: dict[str, tuple[int, str, str]], graves: _Graves
) -> Check:
    findings = [
        f"{key} lives at version {rows[key][0]} under a tombstone of version {dead.version}"
        for key, dead in graves.tombstones.items()
        if key in rows and rows[key][:2] < (dead.version, dead.position)
    ]
    findings += [
        f"{key} lives at version {row[0]} under the truncation of version {graves.floor[0]}"
        for key, row in rows.items()
        if row[:2] < graves.floor
    ]
    return _check(contract, "L1 no row under a newer tombstone", len(graves.tombstones), findings)


def _receipts(contract: type[Contract], view: View) -> Check:
    """Each snapshot's receipt must balance, and explain the change of the row count."""
    snapshots = {s.snapshot_id: s for s in view.table.metadata.snapshots}
    findings = []
    for snapshot in snapshots.values():
        receipt = _receipt(snapshot)
        if isinstance(receipt, str):
            findings.append(f"snapshot {snapshot.snapshot_id}: {receipt}")
            continue
        before = _rows_before(snapshot, snapshots)
        grown = receipt.inserted - receipt.deleted - receipt.retracted
        if before is not None and _records(snapshot) - before != grown:
            findings.append(
                f"snapshot {snapshot.snapshot_id}: rows grew by {_records(snapshot) - before}, "
                f"its receipt says {grown}"
            )
    return _check(contract, "L5 receipts add up", len(snapshots), findings)


def _receipt(snapshot: Any) -> Receipt | str:
    """The receipt kept in a snapshot's summary, or how it fails to add up."""
    properties = snapshot.summary.additional_properties
    counts = {name: int(properties.get(f"freshet.{name}", 0)) for name in Receipt().to_dict()}
    try:
        return Receipt(**counts)
    except AssertionError as error:
        return str(error)


def _rows_before(snapshot: Any, snapshots: dict[int, Any]) -> int | None:
    """Rows of the snapshot before; None where that has expired, which also clears its name."""
    if snapshot.sequence_number == 1:
        return 0
    parent = snapshots.get(snapshot.parent_snapshot_id or 0)
    return None if parent is None else _records(parent)


def _records(snapshot: Any) -> int:
    return int(snapshot.summary.additional_properties.get("total-records", 0))


def _equals(
    contract: type[Contract],
    rows: dict[str, tuple[int, str, str]],
    graves: _Graves,
    expected: dict[str, ModelChange],
    pruned: _Pruned,
) -> Check:
    findings = [
        f"{key} is in the table but not in the log" for key in rows.keys() - expected.keys()
    ]
    for key, change in expected.items():
        finding = _difference(change, rows.get(key), graves.of(key), graves.floor, pruned)
        if finding:
            findings.append(f"{key} {finding}")
    return _check(contract, "L1 the log replayed equals the table", len(expected), findings)


def _difference(
    change: ModelChange,
    row: tuple[int, str, str] | None,
    dead: _Tombstone,
    floor: tuple[int, str],
    pruned: _Pruned,
) -> str | None:
    """How a key's row or tombstone contradicts what it comes to, None where it does not."""
    if change.after is None:
        return _difference_of_dead(change, row, dead, floor, pruned)
    if row is None:
        return f"is missing: version {change.version} is in the log"
    version, _, content = row
    if version != change.version:
        return f"shows version {version}, the log says {change.version}"
    columns = _differing(content, _canonical(change.after), pruned.of(str(change.key)))
    return f"differs from the log at version {version} in {columns}" if columns else None


def _difference_of_dead(
    change: ModelChange,
    row: tuple[int, str, str] | None,
    dead: _Tombstone,
    floor: tuple[int, str],
    pruned: _Pruned,
) -> str | None:
    if row is not None:
        told = f"was deleted at version {change.version}" if change.version else "only had patches"
        return f"{told} but has a row"
    if max(dead.version, floor[0]) < change.version and change.position not in pruned.places:
        return f"was deleted at version {change.version}: no tombstone"
    wanted = change.patch or {}
    if dead.waiting != wanted:
        columns = ", ".join(
            column
            for column in sorted(dead.waiting.keys() | wanted.keys())
            if dead.waiting.get(column, ...) != wanted.get(column, ...)
            and (column in dead.waiting or column not in pruned.of(str(change.key)))
        )
        if columns:
            return f"waits for its row with other patches than the log's: {columns}"
    return None
