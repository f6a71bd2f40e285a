"""Any allowed sequence of changes keeps every row readable: under today's names in the table, and
in old snapshots under the names of then. What the lock allows the lake takes.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evolving import Declared, contract, stock

from freshet.contract import Contract, Integer, Money, Real, Registry, Text
from freshet.lock import changes, locked
from freshet.objects import DirectoryObjects
from lake.lake import Lake
from lake.testing import LakeSite, batch, placed

VALUES: dict[type, Any] = {Text: "text", Integer: 7, Real: 0.5, Money: Decimal("1.50")}
NARROW = (Text(5), Integer(32), Real(32), Money(9, 2))
WIDER = {Text: Text(9), Integer: Integer(64), Real: Real(64), Money: Money(30, 2)}
LARGE: dict[type, Any] = {
    Text: "text-text",
    Integer: 1 << 50,
    Real: 1e200,
    Money: Decimal("1" * 28 + ".25"),
}
STEPS = ("add", "widen", "rename", "rename key", "relax", "deprecate", "describe")
steps = st.lists(
    st.tuples(st.sampled_from(STEPS), st.integers(0, 50), st.booleans()), min_size=1, max_size=7
)


@dataclass
class Story:
    """The columns as declared now, by an identity that no renaming changes; and all rows."""

    key: Declared = field(default_factory=lambda: Declared(Text(9)))
    names: dict[int, str] = field(default_factory=lambda: {-1: "id", 0: "c0"})
    columns: dict[int, Declared] = field(default_factory=lambda: {0: Declared(Integer(32))})
    rows: dict[str, dict[int, Any]] = field(default_factory=dict)
    past: list[tuple[int, dict[int, str], dict[str, dict[int, Any]]]] = field(default_factory=list)
    at: int = 0

    def declared(self) -> type[Contract]:
        columns = {self.names[-1]: self.key}
        columns |= {self.names[one]: column for one, column in self.columns.items()}
        return contract(columns, key=(self.names[-1],))

    def change(self, step: str, number: int) -> None:
        self.at += 1
        one = sorted(self.columns)[number % len(self.columns)]
        column = self.columns[one]
        if step == "add":
            new = len(self.columns)
            self.names[new] = f"c{new}"
            self.columns[new] = Declared(NARROW[number % len(NARROW)], optional=True)
        elif step == "widen":
            self.columns[one] = column.but(type=WIDER[type(column.type)])
        elif step == "rename":
            self.columns[one] = column.but(aliases=(*column.aliases, self.names[one]))
            self.names[one] = f"{self.names[one].partition('_')[0]}_{self.at}"
        elif step == "rename key":
            self.key = self.key.but(aliases=(*self.key.aliases, self.names[-1]))
            self.names[-1] = f"id_{self.at}"
        elif step == "describe":
            self.columns[one] = column.but(description=f"words {self.at}")
        else:
            words = "no more" if step == "deprecate" else column.deprecated
            self.columns[one] = column.but(optional=True, deprecated=words)

    def write(self, lake: Lake, declared: type[Contract], number: int, *, former: bool) -> None:
        """A new row, and a patch of an older one, under the names of now or of once."""
        called = {-1: _called(self.names[-1], self.key, number, former=former)}
        for one, column in self.columns.items():
            called[one] = _called(self.names[one], column, number, former=former)
        values = {one: _value(column.type) for one, column in self.columns.items()}
        name = f"r{self.at}"
        row = {called[-1]: name} | {called[one]: value for one, value in values.items()}
        made = [placed(declared, 2 * self.at, version=2 * self.at + 1, after=row)]
        if self.rows:
            other = sorted(self.rows)[number % len(self.rows)]
            one = sorted(values)[number % len(values)]
            told = {"key": {called[-1]: other}, "patch": {called[one]: values[one]}}
            made.append(placed(declared, 2 * self.at + 1, version=2 * self.at + 2, **told))
            self.rows[other] = self.rows[other] | {one: values[one]}
        self.rows[name] = values
        lake.apply(declared.table, batch(declared, made), {})
        snapshot = stock(lake).metadata.current_snapshot_id or 0
        self.past.append((snapshot, dict(self.names), dict(self.rows)))


def _called(name: str, column: Declared, number: int, *, former: bool) -> str:
    names = (*column.aliases, name)
    return names[number % len(names)] if former else name


def _value(type_: Any) -> Any:
    return (LARGE if type_ == WIDER[type(type_)] else VALUES)[type(type_)]


def _shown(table: Any, names: dict[int, str]) -> dict[str, dict[int, Any]]:
    return {
        row[names[-1]]: {one: row[name] for one, name in names.items() if one >= 0}
        for row in table.to_pylist()
    }


def _wanted(rows: dict[str, dict[int, Any]], names: dict[int, str]) -> dict[str, dict[int, Any]]:
    return {key: {one: row.get(one) for one in names if one >= 0} for key, row in rows.items()}


@settings(max_examples=25, deadline=None)
@given(steps)
def test_any_allowed_sequence_of_changes_keeps_all_rows_readable(
    story_of: list[tuple[str, int, bool]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        story = Story()
        before: type[Contract] | None = None
        for step, number, former in [("describe", 0, False), *story_of]:
            story.change(step, number)
            declared = story.declared()
            if before is not None:
                refused = [
                    one for one in changes(locked([before]), locked([declared])) if one.advice
                ]
                assert not refused
            lake = _open(Path(folder), declared)
            story.write(lake, declared, number, former=former)
            assert _shown(lake.rows("evolving"), story.names) == _wanted(story.rows, story.names)
            before = declared

        table = stock(lake)
        assert _shown(table.scan().to_arrow(), story.names) == _wanted(story.rows, story.names)
        for snapshot, names, rows in story.past:
            then = table.scan(snapshot_id=snapshot).to_arrow()
            assert _shown(then, names) == _wanted(rows, names)


def _open(folder: Path, declared: type[Contract]) -> Lake:
    objects = DirectoryObjects(folder / "lake")
    root, tables = f"file://{folder}/lake", Registry((declared,))
    return LakeSite(objects, folder / "catalog.db", root=root, tables=tables).open()
