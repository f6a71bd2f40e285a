"""What the poller remembers, as bytes: whole, small, and never believed when it is damaged."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from api_poller.changes import Differences
from api_poller.snapshot import (
    BLOCK_ROWS,
    EMPTY,
    Entry,
    Snapshot,
    SnapshotCorruptError,
    content_of,
    digest_of,
)
from api_poller.state import (
    PollState,
    Progress,
    StateConflictError,
    StateCorruptError,
    StateStore,
    state_key,
)
from freshet.event import json_row
from freshet.objects import DirectoryObjects
from freshet.tables import Product
from freshet.testing import MemoryObjects, product_row

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


def entry(number: int, cursor: str = "") -> Entry:
    content = content_of({"price": str(number), "title": "Mug ü"})
    return Entry(digest_of(content), cursor, content)


def contents(snapshot: Snapshot) -> dict[str, Any]:
    return {key: (snapshot.hash_of(key), snapshot.row_of(key)) for key in snapshot}


# --- the snapshot ---------------------------------------------------------------------------------

edits = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcdefghij"), st.integers(0, 3)),
        st.sets(st.sampled_from("abcdefghij")),
    ),
    max_size=8,
)


@given(edits, st.integers(1, 3))
def test_a_snapshot_is_the_dictionary_of_what_was_written_into_it(
    history: list[tuple[dict[str, int], set[str]]], block_rows: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api_poller.snapshot.BLOCK_ROWS", block_rows)
        model: dict[str, Entry] = {}
        snapshot = EMPTY
        for changed, unwanted in history:
            entries = {key: entry(number, f"{number}") for key, number in changed.items()}
            removed = unwanted - changed.keys()
            before = contents(snapshot)
            made = snapshot.replaced(entries, removed, keep_rows=True)
            assert contents(snapshot) == before, "what was made of it leaves it alone"
            snapshot = Snapshot.from_bytes(made.to_bytes())
            assert snapshot == made
            model = {key: one for key, one in (model | entries).items() if key not in removed}

        assert contents(snapshot) == {
            key: (one.digest, json.loads(one.content)) for key, one in model.items()
        }
        assert set(snapshot.older_than(2, int)) == {
            k for k, e in model.items() if int(e.cursor) < 2
        }


def test_a_key_it_was_told_nothing_of_has_neither_digest_nor_row() -> None:
    snapshot = Snapshot.of({"a": entry(1)})

    assert ("b" in snapshot, snapshot.hash_of("b"), snapshot.row_of("b")) == (False, None, None)


def test_rows_are_forgotten_when_they_are_not_kept_and_fill_up_when_they_are_again() -> None:
    snapshot = Snapshot.of({"a": entry(1), "b": entry(2)})

    bare = snapshot.replaced({"c": entry(3)}, keep_rows=False)
    again = bare.replaced({"d": entry(4)}, keep_rows=True)

    assert [bare.row_of(key) for key in "abc"] == [None, None, None]
    assert bare.hash_of("a") == snapshot.hash_of("a")
    assert (again.row_of("a"), again.row_of("d")) == (None, {"price": "4", "title": "Mug ü"})


def test_nothing_to_change_is_the_very_same_snapshot() -> None:
    snapshot = Snapshot.of({"a": entry(1)})

    assert snapshot.replaced(keep_rows=True) is snapshot
    assert EMPTY.replaced(keep_rows=True) is EMPTY


def test_a_key_that_would_break_the_column_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        Snapshot.of({"a\nb": entry(1)}).to_bytes()


@pytest.mark.parametrize("damage", ["cut", "longer", "flipped", "count", "no head", "blocks"])
def test_damage_is_noticed(damage: str) -> None:
    data = Snapshot.of({f"{number}": entry(number) for number in range(2_000)}).to_bytes()
    head, _, body = data.partition(b"\n")
    said = json.loads(head)
    damaged = {
        "cut": data[:-1],
        "longer": data + b"x",
        "flipped": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
        "count": json.dumps(said | {"rows": 1_999}).encode() + b"\n" + body,
        "no head": body,
        "blocks": json.dumps(said | {"sections": said["sections"][:3]}).encode()
        + b"\n"
        + body[: sum(said["sections"][:3])],
    }[damage]

    if damage == "blocks":  # all of them or none: a snapshot without rows is one
        assert not Snapshot.from_bytes(damaged).keeps_rows
        return
    with pytest.raises(SnapshotCorruptError):
        Snapshot.from_bytes(damaged).row_of("1999")


def test_100_000_rows_are_small_quick_to_read_and_quick_to_change() -> None:
    rng = random.Random(7)
    entries = {
        f"{rng.randrange(1 << 48):012x}-{number}": Entry(rng.randbytes(16))
        for number in range(100_000)
    }
    snapshot = Snapshot.of(entries, keep_rows=False)

    data = snapshot.to_bytes()
    started_s = time.process_time()
    read = Snapshot.from_bytes(data)
    read_s = time.process_time() - started_s
    changed = dict(list(entries.items())[:100])
    started_s = time.process_time()
    read.replaced(changed, keep_rows=False)
    replaced_s = time.process_time() - started_s

    assert len(data) <= 5_000_000
    assert read_s < 0.3
    assert replaced_s < 0.3
    assert len(read) == 100_000


def test_rows_kept_of_20_000_products_take_a_few_megabytes() -> None:
    entries = {}
    for number in range(20_000):
        row = Product.parse(product_row(f"{number}", title=f"Product {number}", price=number))
        content = content_of(json_row(row))
        entries[f"{number}"] = Entry(digest_of(content), "", content)

    snapshot = Snapshot.of(entries)

    assert len(snapshot.to_bytes()) < 3_000_000
    kept = snapshot.row_of(f"{BLOCK_ROWS * 3 + 1}")
    assert kept is not None
    assert kept["title"] == f"Product {BLOCK_ROWS * 3 + 1}"


# --- the state ------------------------------------------------------------------------------------

STATE = PollState(
    watermark="2026-11-20",
    version=7,
    listed=True,
    pending=frozenset({"b", "a,ü"}),
    snapshot=Snapshot.of({"a": entry(1), "c": entry(2), "d": entry(3, "2026-11-20")}),
    progress=Progress(
        resume='{"offset":40}',
        started=NOW,
        watermark="2026-11-01",
        greatest="2026-11-21",
        certain=False,
        kept=3,
        rows=40,
        published=2,
        seen=frozenset({"a", "d", "b"}),
        unreadable=frozenset({"b"}),
    ),
)


def test_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    store = StateStore(DirectoryObjects(tmp_path))

    etag = store.save("platzi", STATE, etag=None)

    assert store.load("platzi") == (STATE, etag)
    assert store.load("ecb") == (PollState(), None)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1_000])
def test_what_a_listing_has_shown_is_kept_as_a_bit_a_row(count: int) -> None:
    snapshot = Snapshot.of({f"{number}": entry(0) for number in range(count)}, keep_rows=False)
    seen = frozenset(key for key in snapshot if int(key) % 3 == 0)
    progress = Progress("token", NOW, seen=seen | {"not remembered, so of no matter"})
    store = StateStore(MemoryObjects())

    store.save("platzi", PollState(snapshot=snapshot, progress=progress), etag=None)

    loaded = store.load("platzi")[0].progress
    assert loaded == replace(progress, seen=seen)


def test_the_progress_of_a_long_listing_is_small() -> None:
    keys = [f"product-{number}" for number in range(100_000)]
    snapshot = Snapshot.of({key: entry(0) for key in keys}, keep_rows=False)
    objects = MemoryObjects()
    sizes = []
    for progress in (None, Progress("token", NOW, seen=frozenset(keys[::2]))):
        StateStore(objects).save(
            f"{progress}"[:4], PollState(snapshot=snapshot, progress=progress), etag=None
        )
    sizes = [len(objects.get(key).data) for key in objects.list("")]

    assert max(sizes) - min(sizes) < 20_000


def test_the_head_of_a_state_can_be_read_by_any_zstd(tmp_path: Path) -> None:
    StateStore(objects := DirectoryObjects(tmp_path)).save("platzi", STATE, etag=None)

    frames = zstandard.ZstdDecompressor().stream_reader(
        objects.get(state_key("platzi")).data, read_across_frames=True
    )
    head = json.loads(frames.read().split(b"\n", 1)[0])

    assert (head["format"], head["version"], head["rows"]) == (2, 7, 3)


def test_the_second_of_two_writers_of_one_state_loses(tmp_path: Path) -> None:
    store = StateStore(DirectoryObjects(tmp_path))
    etag = store.save("platzi", PollState(), etag=None)
    store.save("platzi", STATE, etag=etag)

    with pytest.raises(StateConflictError, match=r"another poll.*gives way"):
        store.save("platzi", PollState(version=9), etag=etag)

    assert store.load("platzi")[0] == STATE


def packed(body: object) -> bytes:
    return zstandard.ZstdCompressor().compress(json.dumps(body).encode())


FIRST_FORMAT: Mapping[str, Any] = {
    "format": 1,
    "source": "platzi",
    "watermark": "2026-11-20",
    "version": 5,
    "listed": True,
    "pending": ["9"],
    "rows": {"4": json_row(Product.parse(product_row("4", updated_at="2026-11-20T00:00:00Z")))},
}


def test_a_state_of_the_first_format_says_the_same_as_before() -> None:
    objects = MemoryObjects()
    objects.put(state_key("platzi"), packed(FIRST_FORMAT))

    state, etag = StateStore(objects).load("platzi", cursor="updated_at")

    assert etag == objects.get(state_key("platzi")).etag
    assert (state.watermark, state.version, state.listed) == ("2026-11-20", 5, True)
    assert (set(state.pending), set(state.snapshot)) == ({"9"}, {"4"})
    row = Product.parse(product_row("4", updated_at="2026-11-20T00:00:00Z"))
    assert not Differences(state.snapshot).list_row("4", row), "the row is no change"
    assert state.snapshot.older_than("2026-11-21", str) == ["4"]


GOOD = {"format": 1, "source": "platzi", "watermark": None, "version": 0, "listed": True}


def _second_format() -> bytes:
    objects = MemoryObjects()
    StateStore(objects).save("platzi", STATE, etag=None)
    return objects.get(state_key("platzi")).data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not zstd",
        packed("text"),
        packed({}),
        packed([]),
        packed(GOOD),
        packed(GOOD | {"pending": [], "rows": {"a": 1}}),
        packed(GOOD | {"pending": [1], "rows": {}}),
        packed(GOOD | {"pending": [], "rows": {}, "format": 3}),
        packed(GOOD | {"pending": [], "rows": {}, "format": 2}),
        packed(GOOD | {"pending": [], "rows": {}, "source": "ecb"}),
        packed(GOOD | {"pending": [], "rows": {}})[:-3],
        _second_format()[:-1],
        _second_format()[:20],
        _second_format()[:4],
        _second_format() + b"x",
    ],
)
def test_a_corrupt_state_names_its_object_and_the_way_out(tmp_path: Path, data: bytes) -> None:
    objects = DirectoryObjects(tmp_path)
    objects.put(state_key("platzi"), data)

    with pytest.raises(StateCorruptError, match=r"pollers/platzi/state\.json\.zst.*delete it"):
        StateStore(objects).load("platzi")


def test_a_reset_forgets_everything_but_the_versions() -> None:
    store = StateStore(MemoryObjects())
    store.save("platzi", STATE, etag=None)

    store.reset("platzi")
    store.reset("never polled")

    assert store.load("platzi")[0] == PollState(version=7)
    assert store.load("never polled") == (PollState(), None)


def test_a_reset_deletes_a_state_that_cannot_be_read() -> None:
    objects = MemoryObjects()
    objects.put(state_key("platzi"), b"not zstd")

    StateStore(objects).reset("platzi")

    assert list(objects.list("")) == []
