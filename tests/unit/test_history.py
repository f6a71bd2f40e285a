"""The story of a key: which change stands, which stood, which never did, and why."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from freshet.model import current_state
from lake.history import Chapter, as_model, explain


def event(at: int, version: int, after: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "key": "A-1",
        "version": version,
        "position": f"{at:05d}",
        "after": None if after is None else json.dumps(after),
    }


def told(*events: dict[str, Any]) -> list[tuple[str, str]]:
    return [(chapter.verdict, chapter.because) for chapter in explain(list(events))]


def test_a_single_change_is_current() -> None:
    assert told(event(1, 10, {"n": 1})) == [("current", "first change of this key")]


def test_a_newer_change_supersedes_the_older() -> None:
    assert told(event(1, 10, {"n": 1}), event(2, 11, {"n": 2})) == [
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


@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.none() | st.fixed_dictionaries({"n": st.integers(1, 2)})),
        max_size=12,
    )
)
def test_exactly_the_models_winner_is_current(
    changes: list[tuple[int, dict[str, Any] | None]],
) -> None:
    events = [event(at, version, after) for at, (version, after) in enumerate(changes)]

    chapters = explain(events)

    winner = current_state(as_model(item) for item in events).get("A-1")
    assert positions(chapters, "current") == ([] if winner is None else [winner.position])
    assert len(chapters) == len(events)


def positions(chapters: list[Chapter], verdict: str) -> list[str]:
    return [chapter.event["position"] for chapter in chapters if chapter.verdict == verdict]
