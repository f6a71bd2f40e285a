"""The difference between two states of a table, applied to the one, is the other.

What befalls polls on the way is the matter of `test_source_histories.py`.
"""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st
from tests.listed import product

from api_poller.changes import Differences, applied, guarded
from api_poller.snapshot import Entry, Snapshot, content_of, digest_of
from freshet.event import Op, json_row

Table = dict[str, int]
keys = st.sampled_from("abcd")
tables = st.dictionaries(keys, st.integers(0, 2))


def told(table: Table) -> Snapshot:
    contents = {key: content_of(json_row(product(key, price))) for key, price in table.items()}
    return Snapshot.of({key: Entry(digest_of(text), "", text) for key, text in contents.items()})


def prices(snapshot: Snapshot) -> dict[str, Decimal]:
    rows = {key: snapshot.row_of(key) for key in snapshot}
    return {key: Decimal(row["price"]) for key, row in rows.items() if row is not None}


def compared(before: Table, pending: set[str], after: Table) -> Differences:
    found = Differences(told(before), frozenset(pending))
    for key, price in after.items():
        found.list_row(key, product(key, price))
    return found


@given(tables, st.sets(keys), tables)
def test_differences_turn_what_was_told_into_what_is_listed(
    before: Table, pending: set[str], after: Table
) -> None:
    found = compared(before, pending, after)
    gone = found.gone(after.keys())
    for key in gone:
        found.list_deleted(key)

    assert set(gone) == (before.keys() | pending) - after.keys()
    changed = {key for key in after if key in pending or before.get(key) != after[key]}
    upserts = {c.key: c.after for c in found.changes.values() if c.op is not Op.DELETE}
    assert upserts == {key: product(key, after[key]) for key in changed}
    assert {c.key for c in found.changes.values() if c.op is Op.DELETE} == set(gone)
    assert prices(applied(found.snapshot, found.changes.values(), keep_rows=True)) == after


@given(tables, tables)
def test_what_is_only_listed_never_deletes(before: Table, after: Table) -> None:
    found = compared(before, set(), after)

    assert all(change.op is not Op.DELETE for change in found.changes.values())
    assert prices(applied(found.snapshot, found.changes.values(), keep_rows=True)) == before | after


@given(st.lists(tables, max_size=4))
def test_only_what_was_shown_last_counts_of_rows_that_are_shown_again(shown: list[Table]) -> None:
    found = Differences(told({"a": 0, "b": 1}))
    last: Table = {}
    for table in shown:
        last |= table
        for key, price in table.items():
            found.list_row(key, product(key, price))

    assert found.changes.keys() == compared({"a": 0, "b": 1}, set(), last).changes.keys()


@given(st.integers(0, 50), st.integers(0, 50), st.floats(0, 1))
def test_the_guard_never_lets_more_than_its_share_go(gone: int, more: int, share: float) -> None:
    known = gone + more

    assert guarded(gone, known, share) == (gone > share * known)
    assert not guarded(gone, known, 1.0)
    assert not guarded(0, known, share)
