"""A source database: plays changes, keeps a log of them and what its table holds in the end.

It knows nothing of Freshet. Each change has a place in the log (`lsn`), a transaction with its
commit time, and the row before and after it; the encoders write it down as their format does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

Row = dict[str, Any]

STARTED = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
# A log position far above the start of a log, as any database in use has.
FIRST_LSN = 24_023_128


@dataclass(frozen=True)
class SourceTable:
    """A table: its columns with the types PostgreSQL would give them, its primary key, and the
    column whose long texts are kept aside (TOAST).
    """

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]
    toasted: str | None = None

    def key_of(self, row: Row) -> Row:
        """The key columns of a row."""
        return {name: row[name] for name in self.key}


KEY = "item_id"
ITEMS = SourceTable(
    "items",
    {
        KEY: "text",
        "title": "text",
        "body": "text",
        "price": "numeric(2)",
        "stock": "bigint",
        "listed": "boolean",
        "listed_on": "date",
        "changed_at": "timestamp",
    },
    (KEY,),
    "body",
)
COLUMNS = tuple(ITEMS.columns)


class Kind(Enum):
    """What happened to the table."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    REKEY = "rekey"
    TRUNCATE = "truncate"


@dataclass(frozen=True)
class SourceChange:
    """One change: `before` and `after` are full rows (None where there is none), `touched` the
    columns an update set. `order` counts the changes of a transaction from 1.
    """

    table: SourceTable
    kind: Kind
    lsn: int
    transaction: int
    order: int
    committed_at: datetime
    before: Row | None
    after: Row | None
    touched: frozenset[str]
    removed: tuple[Row, ...] = ()


@dataclass
class Log:
    """The database's log: every change in order, transactions committed one after the other."""

    changes: list[SourceChange] = field(default_factory=list)
    _lsn: int = FIRST_LSN
    _transaction: int = 556
    _order: int = 0
    _committed_at: datetime = STARTED

    def commit(self, at: datetime = STARTED) -> None:
        """End the transaction: what follows is another's, committed `at` or, as clocks are, a
        little after the last.
        """
        self._transaction += 1
        self._order = 0
        self._committed_at = max(at, self._committed_at + timedelta(microseconds=7_919_003))

    def add(
        self,
        table: SourceTable,
        kind: Kind,
        before: Row | None,
        after: Row | None,
        *,
        touched: Iterable[str] = (),
        removed: Iterable[Row] = (),
    ) -> None:
        """Write down one change."""
        self._lsn += 104
        self._order += 1
        self.changes.append(
            SourceChange(
                table,
                kind,
                self._lsn,
                self._transaction,
                self._order,
                self._committed_at,
                before,
                after,
                frozenset(touched),
                tuple(removed),
            )
        )


@dataclass
class Source:
    """A database of one table, `items`. Statements that hit nothing, or a key that is taken, do
    nothing, as in SQL.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    log: Log = field(default_factory=Log)

    @property
    def changes(self) -> list[SourceChange]:
        """The log so far."""
        return self.log.changes

    def commit(self) -> None:
        """End the transaction."""
        self.log.commit()

    def insert(self, row: Row) -> None:
        """A new row, where the key is free."""
        if row[KEY] not in self.rows:
            self.rows[row[KEY]] = row
            self.log.add(ITEMS, Kind.INSERT, None, row, touched=row)

    def update(self, key: str, columns: Row) -> None:
        """Set some columns (never the key) of a row that is there."""
        before = self.rows.get(key)
        if before is not None:
            self.rows[key] = before | columns
            self.log.add(ITEMS, Kind.UPDATE, before, self.rows[key], touched=columns)

    def delete(self, key: str) -> None:
        """End a row that is there."""
        before = self.rows.pop(key, None)
        if before is not None:
            self.log.add(ITEMS, Kind.DELETE, before, None)

    def rekey(self, key: str, new: str) -> None:
        """Give a row another key, where that is free."""
        if key in self.rows and new not in self.rows:
            before = self.rows.pop(key)
            self.rows[new] = before | {KEY: new}
            self.log.add(ITEMS, Kind.REKEY, before, self.rows[new], touched={KEY})

    def truncate(self) -> None:
        """End every row at once."""
        removed = tuple(self.rows.values())
        self.rows.clear()
        self.log.add(ITEMS, Kind.TRUNCATE, None, None, removed=removed)


def left_by(changes: Iterable[SourceChange]) -> list[tuple[SourceTable, Row]]:
    """The rows that changes leave behind: what a snapshot or a full load reads."""
    rows: dict[tuple[Any, ...], tuple[SourceTable, Row]] = {}
    for change in changes:
        table = change.table
        if change.kind is Kind.TRUNCATE:
            rows = {at: held for at, held in rows.items() if held[0] is not table}
        if change.before is not None:
            del rows[_place(table, change.before)]
        if change.after is not None:
            rows[_place(table, change.after)] = (table, change.after)
    return list(rows.values())


def _place(table: SourceTable, row: Row) -> tuple[Any, ...]:
    return (table.name, *table.key_of(row).values())


def item(key: str, content: int) -> Row:
    """A row whose every column follows from `content`; some are null."""
    return {KEY: key} | {name: value_of(name, content) for name in COLUMNS if name != KEY}


def value_of(column: str, content: int) -> Any:
    """A value of `column`, null where the column allows it and `content` says so."""
    match column:
        case "title":
            return f"Title ☃ {content}"
        case "body":
            return None if content % 5 == 4 else "long " * 3 + str(content)
        case "price":
            return None if content % 7 == 3 else Decimal(content * 37 - 90).scaleb(-2)
        case "stock":
            return None if content % 4 == 1 else content * 1_000_003 - 7
        case "listed":
            return None if content % 6 == 5 else content % 2 == 0
        case "listed_on":
            return None if content % 3 == 2 else date(1969, 12, 29) + timedelta(days=content)
        case "changed_at":
            return STARTED + timedelta(microseconds=content * 1_000_037)
    raise KeyError(column)
