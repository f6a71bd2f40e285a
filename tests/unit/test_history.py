"""The story of a key: which change stands, which stood, which never did, and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from freshet.model import current_state
from lake.history import Chapter, as_model, explain


def event(
    at: int, version: int, after: dict[str, Any] | None, *, patch: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {
        "op": "u" if after or patch else "d",
        "key": "A-1",
        "version": version,
        "position": f"{at:05d}",
        "arrived_at": datetime(2026, 11, 21, tzinfo=UTC) + timedelta(seconds=at),
        "after": None if after is None else json.dumps(after),
        "patch": None if patch is None else json.dumps(patch),
    }


def patch(at: int, version: int, **columns: Any) -> dict[str, Any]:
    return event(at, version, None, patch=columns)


def truncation(at: int, version: int) -> dict[str, Any]:
    return event(at, version, None) | {"op": "t", "key": "*"}


def told(*events: dict[str, Any]) -> list[tuple[str, str]]:
    return [(chapter.verdict, chapter.because) for chapter in explain(list(events))]


def test_a_single_change_is_current() -> None:
    assert told(event(1, 10, {"n": 1})) == [("current", "first change of this key")]


def test_a_newer_change_supersedes_the_older() -> None:
    assert told(event(1, 10, {"n": 1}), event(2, 11, {"n": 2})) == [
        ("superseded", "first change of this key, until version 11"),
        ("current", "newer than version 10"),
    ]


def test_what_a_rollback_logged_is_told_when_it_came_not_where_it_sorts() -> None:
    rolled_back = event(2, 11, {"n": 0}) | {"position": "!00001"}

    assert told(event(1, 10, {"n": 1}), rolled_back) == [
        ("superseded", "first change of this key, until version 11"),
        ("current", "newer than version 10"),
    ]


def test_a_late_change_is_stale_and_says_what_was_there() -> None:
    assert told(event(1, 10, {"n": 1}), event(2, 9, {"n": 0})) == [
        ("current", "first change of this key"),
        ("stale", "version 10 was there already"),
    ]


def test_a_change_after_a_newer_delete_does_not_bring_the_row_back() -> None:
    assert [verdict for verdict, _ in told(event(1, 10, None), event(2, 9, {"n": 0}))] == [
        "current",
        "stale",
    ]


def test_a_row_that_returns_after_its_delete_supersedes_the_delete() -> None:
    story = told(event(1, 10, {"n": 1}), event(2, 11, None), event(3, 12, {"n": 1}))

    assert [verdict for verdict, _ in story] == ["superseded", "superseded", "current"]


def test_the_same_change_again_is_a_duplicate() -> None:
    assert told(event(1, 10, {"n": 1}), event(2, 10, {"n": 1})) == [
        ("current", "first change of this key"),
        ("duplicate", "says what this version said already"),
    ]


def test_at_a_tie_the_later_in_the_stream_wins() -> None:
    assert told(event(1, 10, {"n": 1}), event(2, 10, {"n": 2})) == [
        ("superseded", "first change of this key, until version 10"),
        ("current", "same version, later in the stream"),
    ]


def test_events_are_told_in_stream_order_and_a_redelivery_once() -> None:
    first, second = event(1, 10, {"n": 1}), event(2, 11, {"n": 2})

    assert told(second, first, second) == told(first, second)


def test_no_events_make_no_story() -> None:
    assert explain([]) == []


def test_a_patch_tells_which_columns_it_changes_and_which_are_newer_since() -> None:
    story = told(
        event(1, 10, {"n": 1, "m": 1}), patch(2, 12, n=2, m=2), patch(3, 13, m=3), patch(4, 11, m=0)
    )

    assert story == [
        ("current", "first change of this key"),
        ("current", "changes n; m: newer since"),
        ("current", "changes m"),
        ("stale", "version 13 was there already"),
    ]


def test_a_patch_without_a_row_waits_until_the_row_comes() -> None:
    assert told(patch(1, 12, n=2)) == [("waiting", "changes n once there is a row")]
    assert told(patch(1, 12, n=2), event(2, 10, {"n": 1})) == [
        ("current", "changes n"),
        ("current", "first change of this key"),
    ]


def test_a_row_newer_than_a_patch_supersedes_it() -> None:
    assert told(event(1, 10, {"n": 1}), patch(2, 11, n=2), event(3, 12, {"n": 3}))[1] == (
        "superseded",
        "changed n, newer since",
    )


def test_a_patch_older_than_the_row_is_stale_and_one_sent_again_a_duplicate() -> None:
    story = told(event(1, 10, {"n": 1}), patch(2, 9, n=0), patch(3, 11, n=2), patch(4, 11, n=2))

    assert story[1] == ("stale", "version 10 was there already")
    assert story[3] == ("duplicate", "says what this version said already")


def test_a_truncation_is_a_delete_in_the_story_of_every_key_that_has_one() -> None:
    story = told(event(1, 10, {"n": 1}), truncation(2, 11), event(3, 9, {"n": 0}))

    assert story == [
        ("superseded", "first change of this key, until version 11"),
        ("current", "truncation, newer than version 10"),
        ("stale", "version 11 was there already"),
    ]
    assert told(truncation(2, 11)) == []


@given(
    st.lists(
        st.tuples(
            st.integers(1, 5),
            st.none() | st.fixed_dictionaries({"n": st.integers(1, 2)}),
            st.none() | st.fixed_dictionaries({"n": st.integers(1, 2)}),
        ),
        max_size=12,
    )
)
def test_what_is_current_or_waits_is_the_models_winner_and_its_patches(
    changes: list[tuple[int, dict[str, Any] | None, dict[str, Any] | None]],
) -> None:
    events = [
        patch(at, version, **columns) if columns else event(at, version, after)
        for at, (version, after, columns) in enumerate(changes)
    ]

    chapters = explain(events)

    model = current_state(as_model(item) for item in events).get("A-1")
    standing = [c.event for c in chapters if c.verdict in ("current", "waiting")]
    bases = [one["position"] for one in standing if one["patch"] is None]
    patches = [json.loads(one["patch"]) for one in standing if one["patch"]]
    assert bases == ([model.position] if model and model.version else [])
    assert len(patches) <= 1
    assert len(chapters) == len(events)
    if model is not None and patches:
        assert patches[0] == (model.patch or model.after)
    if model is not None and model.after is None:
        assert bool(patches) is (model.patch is not None)


def test_a_delete_again_is_a_duplicate_unless_it_ends_a_patch_that_came_between() -> None:
    story = told(event(1, 10, None), patch(2, 10, n=2), truncation(3, 10), event(4, 10, None))

    assert story == [
        ("superseded", "first change of this key, until version 10"),
        ("superseded", "changed n, newer since"),
        ("current", "truncation, same version, later in the stream"),
        ("duplicate", "says what this version said already"),
    ]


def test_truncations_do_not_hide_what_waits() -> None:
    chapters = explain([patch(1, 12, n=2), truncation(2, 11)])

    assert positions(chapters, "waiting") == ["00001"]
    assert positions(chapters, "current") == ["00002"]


def positions(chapters: list[Chapter], verdict: str) -> list[str]:
    return [chapter.event["position"] for chapter in chapters if chapter.verdict == verdict]
