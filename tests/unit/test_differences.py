"""What a source lists beside what the lake holds: which rows are missing, extra, different."""

from __future__ import annotations

from typing import Any

import pytest

from freshet.contract import Row
from freshet.event import Op
from freshet.tables import Product
from freshet.testing import product_row
from local.differences import (
    Difference,
    Kind,
    Listed,
    StoredRow,
    Told,
    Unlisted,
    compare,
    corrections,
    is_of_source,
)


def row(key: str, **columns: Any) -> Row:
    return Product.parse(product_row(key, **columns))


def stored(key: str, version: int = 5, **columns: Any) -> StoredRow:
    return StoredRow(key, row(key, **columns), version, f"p{version}", f"bucket={key}")


def listed(*keys: str, **members: Any) -> Listed:
    return Listed({key: row(key) for key in keys}, **members)


def test_equal_rows_are_counted_and_not_kept() -> None:
    found = compare(listed("1", "2"), [stored("1"), stored("2")])

    assert (found.equal, found.missing, found.different, found.unlisted) == (2, {}, (), ())


def test_missing_and_different_rows_are_named_with_their_columns() -> None:
    found = compare(listed("1", "2"), [stored("1", price="3", title="Other")])

    assert found.missing == {"2": row("2")}
    assert found.different == (
        Difference(
            Kind.DIFFERENT,
            "1",
            "bucket=1",
            row("1"),
            row("1", price="3", title="Other"),
            5,
            ("title", "price"),
        ),
    )


def test_a_value_written_otherwise_is_no_difference() -> None:
    same = Listed({"1": row("1", price="2.5", created_at="2026-11-20T22:41:12+01:00")})

    found = compare(same, [stored("1", price="2.5000", created_at="2026-11-20T21:41:12Z")])

    assert found.equal == 1


def test_a_row_that_is_listed_but_unreadable_is_neither_extra_nor_different() -> None:
    found = compare(listed(unreadable=frozenset({"1"})), [stored("1"), stored("2")])

    assert [one.key for one in found.unlisted] == ["2"]
    assert not found.different


def test_where_absence_proves_nothing_only_what_is_marked_as_deleted_is_unlisted() -> None:
    shown = listed(absence_counts=False, deleted=frozenset({"2"}))

    found = compare(shown, [stored("1"), stored("2")])

    assert [one.key for one in found.unlisted] == ["2"]


MINE = Unlisted("1", 5, "p5", "")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([], False),
        ([Told(Op.CREATE, 5, "p5")], True),
        # Somebody changed our row; we never said that it was gone.
        ([Told(Op.CREATE, 3, "p3")], True),
        # We deleted it, then somebody else made one of that key.
        ([Told(Op.CREATE, 3, "p3"), Told(Op.DELETE, 4, "p4")], False),
        # We deleted it, and the lake shows our older row all the same.
        ([Told(Op.CREATE, 5, "p5"), Told(Op.DELETE, 6, "p6")], True),
        # Told again after the delete; the log is in no order.
        ([Told(Op.CREATE, 7, "p7"), Told(Op.DELETE, 6, "p6")], True),
        # A tie falls as in the lake: the later in the stream.
        ([Told(Op.DELETE, 4, "p4"), Told(Op.CREATE, 4, "p3")], False),
    ],
)
def test_a_row_is_the_sources_by_what_it_told(told: list[Told], *, expected: bool) -> None:
    assert is_of_source(MINE, told) is expected


def test_only_rows_of_the_source_become_extra() -> None:
    found = compare(listed("1"), [stored("1"), stored("2"), stored("3")])

    settled = found.settled({"2": [Told(Op.CREATE, 5, "p5")]})

    assert [(one.kind, one.key) for one in settled.extra] == [(Kind.EXTRA, "2")]
    assert (settled.unlisted, settled.stored) == ((), 2)


def test_corrections_make_the_lake_what_is_listed() -> None:
    found = compare(listed("1", "2"), [stored("1", price="3"), stored("3")])

    changes = corrections(found.settled({"3": [Told(Op.READ, 1, "p1")]}))

    assert [(one.op, one.key, one.after) for one in changes] == [
        (Op.CREATE, "2", row("2")),
        (Op.UPDATE, "1", row("1")),
        (Op.DELETE, "3", None),
    ]
    before = changes[1].before
    assert before is not None
    assert before["price"] == "3.0000"
