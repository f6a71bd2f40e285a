"""The laws, checked on the lake itself: what the tables, tombstones, receipts and log say of each
other.

Nothing here trusts the code that wrote them: rows are read back file by file, the log is replayed
through the plain-dict model, and the two must agree.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from freshet.arrow import POSITION, VERSION
from freshet.contract import Contract
from freshet.event import json_row, key_text
from freshet.model import ModelChange, supersedes
from freshet.receipt import Receipt
from lake.lake import Lake
from lake.log import CHANGE_LOG
from lake.spec import partition_values
from lake.table import KeyedTable, View

Progress = Callable[[str], None]
# Enough to see what is wrong; a broken table could have millions.
FINDINGS_MAX = 20


@dataclass(frozen=True, slots=True)
class Check:
    """One law checked on one table: how much was looked at, and what contradicts the law."""

    table: str
    law: str
    checked: int
    findings: tuple[str, ...]

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
    tombstones = _tombstones(current.tombstones.read_all(tombstones_view), contract)
    progress(f"{contract.table}: replaying the log through the model")
    expected = _replay(lake, contract)
    return [
        _one_home(contract, rows),
        _buried(contract, rows.state, tombstones),
        _receipts(contract, rows_view),
        _equals(contract, rows.state, tombstones, expected),
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


def _tombstones(table: pa.Table, contract: type[Contract]) -> dict[str, tuple[int, str]]:
    return {key_text(contract, row): (row[VERSION], row[POSITION]) for row in table.to_pylist()}


def _replay(lake: Lake, contract: type[Contract]) -> dict[str, ModelChange]:
    """The winner of every key in the log; the model's `after` is canonical JSON text here."""
    winners: dict[str, ModelChange] = {}
    for change in _logged(lake, contract):
        if supersedes(change, winners.get(str(change.key))):
            winners[str(change.key)] = change
    return winners


def _logged(lake: Lake, contract: type[Contract]) -> Iterator[ModelChange]:
    """Every logged change in stream order, so that ties fall as they fell."""
    columns = ["key", "version", "position", "after"]
    parts = [part.select(columns) for part in lake.log(CHANGE_LOG, contract.table)]
    if not parts:
        return
    for part in pa.concat_tables(parts).sort_by("position").to_batches():
        for row in part.to_pylist():
            after = None if row["after"] is None else {"row": _canonical(json.loads(row["after"]))}
            yield ModelChange(row["key"], row["version"], row["position"], after)


def _canonical(row: dict[str, Any]) -> str:
    """A row as one text. A null is left out: older events lack columns that came later."""
    present = {column: value for column, value in row.items() if value is not None}
    return json.dumps(present, sort_keys=True, ensure_ascii=False)


def _differing(one: str, other: str) -> str:
    """The columns in which two canonical rows differ."""
    left, right = json.loads(one), json.loads(other)
    return ", ".join(
        column
        for column in sorted(left.keys() | right.keys())
        if left.get(column) != right.get(column)
    )


def _check(contract: type[Contract], law: str, checked: int, findings: list[str]) -> Check:
    return Check(contract.table, law, checked, tuple(findings[:FINDINGS_MAX]))


def _one_home(contract: type[Contract], rows: _Rows) -> Check:
    findings = [f"{key} is in more than one row" for key in rows.twice] + rows.misplaced
    return _check(contract, "L8 one row and one partition per key", len(rows.state), findings)


def _buried(
    contract: type[Contract],
    rows: dict[str, tuple[int, str, str]],
    tombstones: dict[str, tuple[int, str]],
) -> Check:
    findings = [
        f"{key} lives at version {rows[key][0]} under a tombstone of version {version}"
        for key, (version, position) in tombstones.items()
        if key in rows and rows[key][:2] < (version, position)
    ]
    return _check(contract, "L1 no row under a newer tombstone", len(tombstones), findings)


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
    tombstones: dict[str, tuple[int, str]],
    expected: dict[str, ModelChange],
) -> Check:
    findings = [
        f"{key} is in the table but not in the log" for key in rows.keys() - expected.keys()
    ]
    for key, change in expected.items():
        finding = _difference(change, rows.get(key), tombstones.get(key, (0, ""))[0])
        if finding:
            findings.append(f"{key} {finding}")
    return _check(contract, "L1 the log replayed equals the table", len(expected), findings)


def _difference(change: ModelChange, row: tuple[int, str, str] | None, buried: int) -> str | None:
    """How a key's row or tombstone contradicts its winning change, None where it does not."""
    if change.after is None:
        if row is not None:
            return f"was deleted at version {change.version} but has a row"
        if buried < change.version:
            return f"was deleted at version {change.version}: no tombstone"
        return None
    if row is None:
        return f"is missing: version {change.version} is in the log"
    version, _, content = row
    if version != change.version:
        return f"shows version {version}, the log says {change.version}"
    columns = _differing(content, change.after["row"])
    return f"differs from the log at version {version} in {columns}" if columns else None
