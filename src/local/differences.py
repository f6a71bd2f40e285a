"""What a source lists beside what the lake holds of it: missing, extra and different rows. Pure.

A table may be fed by several sources and by HTTP. A listed row is the source's, so it is compared
whoever wrote the lake's. A row that is not listed is the source's only if the change log says so:
either the last thing the source told of it was not a delete, or the very change that the lake shows
was the source's. What the poller remembers would not do: it forgets a row with its delete, which
the lake may have lost, and everything with a reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from api_poller.changes import Change
from api_poller.snapshot import content_of
from freshet.contract import Row
from freshet.event import Op, json_row


class Kind(StrEnum):
    """In what a row of the lake and of the listing differ."""

    MISSING = "missing"  # listed, not in the lake
    EXTRA = "extra"  # in the lake, not listed
    DIFFERENT = "different"


@dataclass(frozen=True, slots=True)
class Listed:
    """A source's complete listing: valid rows by key text, keys whose rows are not valid, and keys
    that the source marks as deleted.

    `absence_counts` is False for a source that is read by periods: what it does not show may be
    there all the same.
    """

    rows: Mapping[str, Row]
    unreadable: frozenset[str] = frozenset()
    deleted: frozenset[str] = frozenset()
    absence_counts: bool = True

    def lacks(self, key: str) -> bool:
        """True when the source says, or its silence does, that it has no such row."""
        if key in self.rows or key in self.unreadable:
            return False
        return self.absence_counts or key in self.deleted


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row of the lake with the change it came from, and its partition's name."""

    key: str
    row: Row
    version: int
    position: str
    partition: str


@dataclass(frozen=True, slots=True)
class Told:
    """One change that the source told of a row, as the change log has it."""

    op: Op
    version: int
    position: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One row; `columns` are those that differ, `version` that of the lake's row."""

    kind: Kind
    key: str
    partition: str
    listed: Row | None = None
    stored: Row | None = None
    version: int = 0
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unlisted:
    """A row of the lake that is not listed; its values do not matter."""

    key: str
    version: int
    position: str
    partition: str


@dataclass(frozen=True, slots=True)
class Differences:
    """What a comparison found. Rows are `unlisted` until `settled` knows which are the source's."""

    equal: int = 0
    missing: Mapping[str, Row] = field(default_factory=dict)
    different: tuple[Difference, ...] = ()
    unlisted: tuple[Unlisted, ...] = ()
    extra: tuple[Difference, ...] = ()

    @property
    def stored(self) -> int:
        """Rows of the lake that are the source's."""
        return self.equal + len(self.different) + len(self.extra)

    def settled(self, told: Mapping[str, list[Told]]) -> Differences:
        """With the unlisted rows that are the source's as extra; `told` is by key text."""
        extra = tuple(
            Difference(Kind.EXTRA, row.key, row.partition, version=row.version)
            for row in self.unlisted
            if is_of_source(row, told.get(row.key, []))
        )
        return replace(self, unlisted=(), extra=extra)


def compare(listed: Listed, stored: Iterable[StoredRow]) -> Differences:
    """The listing beside the rows of its table, each looked at once and not kept if it is right."""
    equal, different, unlisted = 0, list[Difference](), list[Unlisted]()
    met = set[str]()
    for one in stored:
        row = listed.rows.get(one.key)
        if row is None:
            if listed.lacks(one.key):
                unlisted.append(Unlisted(one.key, one.version, one.position, one.partition))
            continue
        met.add(one.key)
        columns = tuple(name for name, value in row.items() if one.row[name] != value)
        if columns:
            different.append(
                Difference(
                    Kind.DIFFERENT, one.key, one.partition, row, one.row, one.version, columns
                )
            )
        else:
            equal += 1
    missing = {key: row for key, row in listed.rows.items() if key not in met}
    return Differences(equal, missing, tuple(different), tuple(unlisted))


def is_of_source(row: Unlisted, told: list[Told]) -> bool:
    """Whether a row of the lake is a source's, by what the source told of its key."""
    if not told:
        return False
    last = max(told, key=lambda one: (one.version, one.position))
    wrote = any((one.version, one.position) == (row.version, row.position) for one in told)
    return wrote or last.op is not Op.DELETE


def corrections(differences: Differences) -> list[Change]:
    """The changes after which the lake is as the source lists."""
    return [
        *(_written(Op.CREATE, key, row) for key, row in differences.missing.items()),
        *(
            _written(Op.UPDATE, one.key, one.listed, json_row(one.stored))
            for one in differences.different
            if one.listed is not None and one.stored is not None
        ),
        *(Change(Op.DELETE, one.key) for one in differences.extra),
    ]


def _written(op: Op, key: str, row: Row, before: Row | None = None) -> Change:
    return Change(op, key, row, before, content_of(json_row(row)))
