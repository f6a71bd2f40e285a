"""What one poll of a source does, publishes and remembers, case by case."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from tests.listed import ListedChanges, ListedTable, Outcome, merged, product, watermark_of

from api_poller import poll as polling
from api_poller.changes import Skipped, SyncRule
from api_poller.http import (
    BudgetSpentError,
    SourceAnswerError,
    SourceRefusedError,
    SourceUnavailableError,
)
from api_poller.poll import NoCursorError, Poller, PollReport, PublishIncompleteError
from api_poller.snapshot import Snapshot
from api_poller.state import PollState, StateConflictError, StateStore, state_key
from freshet.event import Op, json_row
from freshet.testing import MemoryObjects, MemoryStream, StoppedClock

FULL = SyncRule(delete_share_max=1.0)


class Rig:
    """A poller over a memory stream and store; the clock moves a minute with every poll."""

    def __init__(self, **settings: Any) -> None:
        self.stream, self.objects, self.clock = MemoryStream(), CountingObjects(), StoppedClock()
        self.states = StateStore(self.objects)
        self.poller = Poller(self.stream, self.states, self.clock, **settings)

    def poll(self, source: Any, **options: Any) -> PollReport:
        self.clock.advance(60)
        return self.poller.poll(source, **options)

    def state(self) -> PollState:
        return self.states.load("shop")[0]

    def told(self, since: int = 0) -> list[tuple[Op, str]]:
        return [(event.op, event.key["product_id"]) for event in self.stream.events()[since:]]


class CountingObjects(MemoryObjects):
    writes = 0

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        self.writes += 1
        return super().put_if(key, data, etag=etag)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def shop(count: int, **members: Any) -> ListedTable:
    return ListedTable({f"p{number:03}": 10 for number in range(count)}, **members)


def pages(most: int, source: Any) -> Callable[[], float]:
    """Time for so many pages of a source's next listing."""
    asked: list[int] = []
    source.between = asked.append
    return lambda: 1_000.0 if len(asked) < most else 0.0


def failing(page: int, error: Exception) -> Callable[[int], None]:
    def between(number: int) -> None:
        if number == page:
            raise error

    return between


DOWN = SourceUnavailableError("shop", "http://shop", "is down", advice="wait")
SPENT = BudgetSpentError("shop", "http://shop", "100 requests are spent", advice="wait")


# --- what is told ---------------------------------------------------------------------------------


def test_first_poll_reads_later_polls_tell_differences(rig: Rig) -> None:
    source = shop(3)

    first = rig.poll(source)
    source.table |= {"p000": 40, "p004": 10}
    del source.table["p001"]
    second = rig.poll(source)
    third = rig.poll(source)

    assert first == PollReport("shop", "products", listed=3, created=3, published=3, pages=2)
    assert (second.created, second.updated, second.deleted, second.unchanged) == (1, 1, 1, 1)
    assert (third.published, third.unchanged) == (0, 3)
    events = rig.stream.events()
    assert {event.op for event in events[:3]} == {Op.READ}
    assert set(rig.told(since=3)) == {
        (Op.UPDATE, "p000"),
        (Op.DELETE, "p001"),
        (Op.CREATE, "p004"),
    }
    assert len({event.version for event in events}) == 6
    assert max(event.version for event in events[:3]) < min(event.version for event in events[3:])


def test_before_comes_from_the_snapshot(rig: Rig) -> None:
    source = shop(2)
    rig.poll(source)

    source.table["p000"] = 11
    rig.poll(source)
    del source.table["p001"]
    rig.poll(source)

    update, delete = rig.stream.events()[2:]
    assert (update.before, delete.before) == (
        json_row(product("p000", 10)),
        json_row(product("p001", 10)),
    )


@pytest.mark.parametrize(("keep", "rows_max", "kept"), [(None, 3, True), (None, 2, False)])
def test_rows_of_small_tables_are_kept(
    keep: bool | None, rows_max: int, kept: bool, monkeypatch: pytest.MonkeyPatch, rig: Rig
) -> None:
    monkeypatch.setattr(polling, "ROWS_KEPT_MAX", rows_max)

    rig.poll(shop(3, rule=replace(FULL, keep_rows=keep)))

    assert rig.state().snapshot.keeps_rows is kept


@pytest.mark.parametrize("keep", [True, False])
def test_a_source_may_say_whether_its_rows_are_kept(
    keep: bool, monkeypatch: pytest.MonkeyPatch, rig: Rig
) -> None:
    monkeypatch.setattr(polling, "ROWS_KEPT_MAX", 0 if keep else 100)
    source = shop(3, rule=replace(FULL, keep_rows=keep))
    rig.poll(source)

    source.table["p000"] = 11
    rig.poll(source)

    assert rig.state().snapshot.keeps_rows is keep
    assert (rig.stream.events()[-1].before is not None) is keep


def test_an_unchanged_source_writes_no_state(rig: Rig) -> None:
    rig.poll(shop(5))
    writes = rig.objects.writes

    rig.poll(shop(5))

    assert rig.objects.writes == writes


def test_a_row_marked_as_deleted_is_a_delete_at_once_and_once(rig: Rig) -> None:
    source = shop(4, rule=SyncRule(delete_share_max=0.0))
    rig.poll(source)

    source.table |= {"p001": None, "never told": None}
    report = rig.poll(source)
    source.outcome = Outcome(complete=False, reason="a total that does not match")
    again = rig.poll(source)

    assert (report.deleted, report.listed, report.guarded) == (1, 5, 0)
    assert rig.told(since=4) == [(Op.DELETE, "p001")]
    assert again.published == 0


# --- what is not told -----------------------------------------------------------------------------


def test_an_incomplete_listing_tells_its_rows_but_no_deletes_and_says_so(rig: Rig) -> None:
    source = shop(4)
    rig.poll(source)

    source.table = {"p000": 11}
    source.outcome = Outcome(complete=False, reason="4 announced, 1 listed")
    report = rig.poll(source)

    assert (report.updated, report.deleted, report.complete) == (1, 0, False)
    assert "no deletes: the listing is not complete (4 announced, 1 listed)" in report.problems[0]
    source.outcome = Outcome()
    assert rig.poll(source).deleted == 3


def test_while_any_row_cannot_be_identified_nothing_is_deleted(rig: Rig) -> None:
    source = shop(4)
    rig.poll(source)

    del source.table["p003"]
    source.broken = {1: [Skipped(None, "missing_key", "product_id")]}
    report = rig.poll(source)

    assert (report.deleted, report.skipped, report.complete) == (0, 1, False)
    assert "usable key" in report.problems[0]


def test_a_row_that_does_not_fit_the_contract_is_not_treated_as_deleted(rig: Rig) -> None:
    source = shop(3)
    rig.poll(source)

    del source.table["p002"]
    source.broken = {1: [Skipped("p002", "out_of_range", "price")]}
    report = rig.poll(source)

    assert (report.deleted, report.skipped, report.complete) == (0, 1, True)
    assert report.problems == ("p002: price: out_of_range",)
    assert "p002" in rig.state().snapshot


def test_the_guard_is_reported_and_its_rows_come_up_again(rig: Rig) -> None:
    source = shop(10, rule=SyncRule(delete_share_max=0.2))
    rig.poll(source)

    whole = dict(source.table)
    source.table = dict(list(whole.items())[:5]) | {"new": 1}
    report = rig.poll(source)

    assert (report.guarded, report.deleted, report.created) == (5, 0, 1)
    assert "poll once with DELETE_SHARE_MAX=1" in report.problems[0]
    source.table = whole | {"new": 1}
    assert rig.poll(source).published == 0
    source.table, source.rule = {"new": 1}, FULL
    assert rig.poll(source).deleted == 10


def test_new_rows_do_not_talk_the_guard_round() -> None:
    """Keys that all change at once are a listing of something else, however many come new."""
    rig = Rig(publish_events_max=2)
    source = shop(4, rule=SyncRule(delete_share_max=0.5))
    rig.poll(source)

    source.table = {f"q{number:03}": 10 for number in range(20)}
    report = rig.poll(source)

    assert (report.created, report.deleted, report.guarded) == (20, 0, 4)


# --- faults ---------------------------------------------------------------------------------------


def test_a_throttled_stream_leaves_keys_pending_and_the_next_poll_completes(rig: Rig) -> None:
    source = shop(10)
    rig.stream.throttle_next(3)

    with pytest.raises(PublishIncompleteError, match="of 10 events") as raised:
        rig.poll(source)

    assert raised.value.accepted == len(rig.stream.events()) < 10
    state = rig.state()
    assert (state.watermark, state.listed, len(state.pending)) == (None, False, 10)
    assert rig.poll(source).published == 10
    state = rig.state()
    assert (state.listed, state.pending, len(state.snapshot)) == (True, frozenset(), 10)


def test_a_source_that_fails_half_way_changes_nothing(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source)
    state, told = rig.state(), len(rig.told())

    source.table = {"p000": 11, "p008": 10, "p007": 10}
    source.between = failing(2, DOWN)
    with pytest.raises(SourceUnavailableError):
        rig.poll(source)

    assert rig.state() == state
    assert len(rig.told()) == told


def test_what_was_published_before_a_fault_is_not_published_again() -> None:
    rig = Rig(publish_events_max=2)
    source = shop(9, between=failing(4, DOWN))

    with pytest.raises(SourceUnavailableError):
        rig.poll(source)
    source.between = lambda _: None
    report = rig.poll(source)

    assert (report.published, report.resumed_rows) == (3, 6)
    assert [key for _, key in rig.told()] == sorted(source.table)


def test_the_second_of_two_polls_at_once_gives_way_before_it_publishes(rig: Rig) -> None:
    source, other = shop(3), shop(3)

    def between(number: int) -> None:
        if number == 1:
            rig.poll(other)

    source.between = between
    with pytest.raises(StateConflictError, match="gives way"):
        rig.poll(source)

    assert len(rig.told()) == 3


# --- a listing that takes several polls -----------------------------------------------------------


def test_a_listing_is_put_down_in_time_and_taken_up_by_the_next_poll(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source)
    source.table |= {"p000": 11, "p008": 12}
    del source.table["p002"]
    told = len(rig.told())

    first = rig.poll(source, remaining_s=pages(2, source))
    second = rig.poll(source, remaining_s=pages(2, source))

    assert (first.unfinished, first.complete, first.listed, first.updated) == (True, False, 4, 1)
    assert (second.unfinished, second.resumed_rows, second.listed) == (False, 4, 4)
    assert (second.updated, second.deleted) == (1, 1)
    assert source.asked[1:] == [None, "token-5"]
    assert rig.told(since=told) == [
        (Op.UPDATE, "p000"),
        (Op.UPDATE, "p008"),
        (Op.DELETE, "p002"),
    ]
    assert rig.state().progress is None


def test_a_spent_budget_is_a_reason_to_go_on_later(rig: Rig) -> None:
    source = shop(9, between=failing(3, SPENT))

    report = rig.poll(source)

    assert (report.unfinished, report.published) == (True, 4)
    assert "100 requests are spent" in report.problems[0]
    source.between = lambda _: None
    assert rig.poll(source).listed == 5


def test_a_budget_that_does_not_do_for_one_page_is_an_error(rig: Rig) -> None:
    with pytest.raises(BudgetSpentError):
        rig.poll(shop(9, between=failing(1, SPENT)))


def test_a_poll_reads_one_page_at_least_and_hears_the_outcome_at_the_end(rig: Rig) -> None:
    nothing = rig.poll(shop(9), remaining_s=lambda: 0.0)
    whole = rig.poll(shop(2), full=True, remaining_s=lambda: 0.0)

    assert (nothing.pages, nothing.unfinished) == (1, True)
    assert (whole.pages, whole.unfinished, whole.complete) == (1, False, True)


def test_pages_that_take_long_are_allowed_for(rig: Rig) -> None:
    """A page that may take 40 s is begun only while that leaves the margin of 30 s."""
    source, left = shop(20), [100.0]

    def slowly(_: int) -> None:
        left[0] -= 40.0

    source.between = slowly
    assert rig.poll(source, remaining_s=lambda: left[0]).pages == 1
    left[0] = 151.0
    assert rig.poll(source, remaining_s=lambda: left[0]).pages == 3


def test_a_listing_that_takes_too_long_starts_over_and_says_so(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))

    rig.clock.advance(24 * 3600)
    report = rig.poll(source)

    assert (report.resumed_rows, report.listed, report.complete) == (0, 9, True)
    assert "was not finished within 24 hours and starts over" in report.problems[0]
    assert len(rig.told()) == 9, "nothing is told twice"


def test_a_listing_that_is_not_taken_up_is_not_taken_up_after_a_fault_either(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))
    rig.clock.advance(24 * 3600)
    rig.stream.throttle_next()

    with pytest.raises(PublishIncompleteError):
        rig.poll(source)

    assert rig.state().progress is None


@pytest.mark.parametrize(
    "error",
    [
        SourceAnswerError("shop", "http://shop", "unknown cursor", advice="look"),
        SourceRefusedError("shop", "http://shop", "answers 400", advice="look", status=400),
    ],
)
def test_a_token_the_source_has_forgotten_starts_the_listing_over(
    error: Exception, rig: Rig
) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))
    source.between = lambda _: failing(1, error)(1) if source.asked[-1] else None

    report = rig.poll(source)

    assert (report.complete, report.listed, report.resumed_rows) == (True, 9, 0)
    assert "could not be resumed and starts over" in report.problems[0]
    assert len(rig.told()) == 9


def test_a_source_that_is_down_keeps_its_place(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))
    source.between = failing(1, DOWN)
    with pytest.raises(SourceUnavailableError):
        rig.poll(source)
    source.between = lambda _: None

    assert rig.poll(source).resumed_rows == 4


def test_a_token_without_bounds_is_not_remembered(rig: Rig) -> None:
    source = shop(9, token_of=lambda text: text * 10_000)

    report = rig.poll(source, remaining_s=pages(2, source))

    assert report.unfinished
    assert "starts over at the next poll" in report.problems[0]
    assert rig.state().progress is None
    assert rig.poll(source).resumed_rows == 0


def test_a_first_listing_of_several_polls_is_a_backfill_to_its_end(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))
    rig.poll(source)

    assert {op for op, _ in rig.told()} == {Op.READ}


# --- options --------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_and_touches_nothing(rig: Rig) -> None:
    source = shop(5)
    rig.poll(source)
    source.table = {"p000": 11, "p001": 10, "p002": 10, "p003": 10, "new": 10}
    writes, told = rig.objects.writes, len(rig.told())

    dry = rig.poll(source, dry_run=True)

    assert (rig.objects.writes, len(rig.told())) == (writes, told)
    assert dry.dry_run
    wet = rig.poll(source)
    assert (dry.created, dry.updated, dry.deleted, dry.unchanged) == (1, 1, 1, 3)
    assert replace(dry, dry_run=False, published=wet.published) == wet


def test_a_full_poll_starts_from_the_beginning_whatever_was_begun(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))

    report = rig.poll(source, full=True)

    assert (report.listed, report.resumed_rows, report.published) == (9, 0, 5)


def test_a_full_poll_that_fails_leaves_nothing_of_what_was_begun_before_it(rig: Rig) -> None:
    source = shop(9)
    rig.poll(source, remaining_s=pages(2, source))
    source.table["p000"] = 11
    rig.stream.throttle_next()

    with pytest.raises(PublishIncompleteError):
        rig.poll(source, full=True)

    assert rig.state().progress is None
    assert rig.poll(source).listed == 9
    assert merged(rig.stream.events()) == source.table


def test_progress_is_told_after_every_page(rig: Rig) -> None:
    heard: list[tuple[int, int, int]] = []

    Rig(publish_events_max=3).poll(shop(5), progress=lambda *counts: heard.append(counts))

    assert heard == [(1, 2, 2), (2, 4, 4), (3, 5, 5)]


def test_a_reset_makes_the_next_poll_a_first_one_with_greater_versions(rig: Rig) -> None:
    source = shop(3)
    rig.poll(source)
    rig.clock.advance(-3600)

    rig.poller.reset("shop")
    del source.table["p002"]
    report = rig.poll(source)

    assert (report.created, report.deleted) == (2, 0)
    assert rig.told(since=3) == [(Op.READ, "p000"), (Op.READ, "p001")]
    versions = [event.version for event in rig.stream.events()]
    assert versions == sorted(set(versions))


def test_since_needs_a_source_with_a_cursor(rig: Rig) -> None:
    with pytest.raises(NoCursorError, match=r"sync\.mode incremental"):
        rig.poll(shop(1), since="2026-11-01")


# --- incremental sources --------------------------------------------------------------------------


def test_the_watermark_is_the_greatest_cursor_and_bounds_what_is_remembered(rig: Rig) -> None:
    source = ListedChanges({"a": (1, 0), "b": (1, 3), "c": (1, 5)}, lookback=2)

    first = rig.poll(source)
    source.table |= {"c": (2, 6), "late": (1, 4)}
    second = rig.poll(source)

    assert first.watermark == watermark_of(5)
    assert source.asked == [(None, None), (watermark_of(5), None)]
    assert (second.updated, second.created, second.unchanged) == (1, 1, 1)
    assert second.watermark == watermark_of(6)
    assert set(rig.state().snapshot) == {"c", "late"}
    assert rig.poll(source).published == 0


def test_absence_from_a_window_is_no_delete_but_a_mark_is_one(rig: Rig) -> None:
    source = ListedChanges({"a": (1, 0), "b": (1, 5)}, lookback=2)
    rig.poll(source)

    source.table = {"a": (None, 6)}
    report = rig.poll(source)

    assert (report.deleted, report.published) == (1, 1)
    assert rig.told(since=2) == [(Op.DELETE, "a")]
    assert rig.poll(source).published == 0, "although it is shown again"


def test_windows_are_remembered_one_by_one(rig: Rig) -> None:
    source = ListedChanges({"a": (1, 0), "b": (1, 12), "c": (1, 25)}, window_days=10, lookback=0)
    source.between = failing(3, DOWN)

    with pytest.raises(SourceUnavailableError):
        rig.poll(source)
    watermark = rig.state().watermark
    source.between = lambda _: None
    report = rig.poll(source)

    assert watermark == watermark_of(0), "the last window that another followed"
    assert (report.created, report.watermark) == (2, watermark_of(25))
    assert merged(rig.stream.events()) == {"a": 1, "b": 1, "c": 1}


def test_an_incomplete_listing_keeps_the_watermark_and_says_so(rig: Rig) -> None:
    source = ListedChanges({"a": (1, 0)})
    rig.poll(source)

    source.table["b"] = (1, 4)
    source.outcome = Outcome(complete=False, reason="pages moved")
    report = rig.poll(source)

    assert (report.created, report.watermark) == (1, watermark_of(0))
    assert report.problems == ("the watermark stays: the listing is not complete (pages moved)",)
    source.outcome = Outcome()
    again = rig.poll(source)
    assert (again.published, again.watermark) == (0, watermark_of(4))


def test_a_window_put_down_in_the_middle_moves_no_watermark(rig: Rig) -> None:
    source = ListedChanges({f"{number}": (1, number) for number in range(7)})

    first = rig.poll(source, remaining_s=pages(2, source))
    second = rig.poll(source)

    assert (first.unfinished, first.published, first.watermark) == (True, 4, None)
    assert (second.published, second.watermark) == (3, watermark_of(6))


def test_what_a_put_down_window_has_shown_counts_for_the_watermark(rig: Rig) -> None:
    source = ListedChanges({f"{number}": (1, number) for number in range(5)})
    rig.poll(source, remaining_s=pages(2, source))

    del source.table["4"]

    assert rig.poll(source).watermark == watermark_of(3)


def test_a_poll_that_ends_behind_a_window_goes_on_from_the_last_it_closed(rig: Rig) -> None:
    days = {"a": 0, "b": 1, "c": 2, "d": 12, "e": 25}
    source = ListedChanges({key: (1, day) for key, day in days.items()}, window_days=10, lookback=0)

    report = rig.poll(source, remaining_s=pages(3, source))

    assert (report.pages, report.unfinished, report.watermark) == (3, True, watermark_of(2))
    assert rig.state().progress is None
    again = rig.poll(source)
    assert (again.published, again.watermark) == (1, watermark_of(25))


def test_a_budget_spent_between_windows_keeps_those_that_were_read(rig: Rig) -> None:
    source = ListedChanges({"a": (1, 0), "b": (1, 12)}, window_days=10, lookback=0)
    source.between = failing(2, SPENT)

    report = rig.poll(source)

    assert (report.unfinished, report.watermark) == (True, watermark_of(0))


def test_a_source_that_does_not_heed_where_to_begin_repeats_nothing(rig: Rig) -> None:
    source = ListedChanges({f"{number}": (1, number) for number in range(9)}, heeds_start=False)
    rig.poll(source)

    report = rig.poll(source)

    assert (report.listed, report.published, report.unchanged) == (9, 0, 9)


def test_since_reads_again_from_there_and_tells_what_was_forgotten(rig: Rig) -> None:
    source = ListedChanges({f"{number}": (1, number) for number in range(9)}, lookback=1)
    rig.poll(source)

    report = rig.poll(source, since="2026-11-06T00:00:00Z")

    assert source.asked[-1] == (watermark_of(5), None)
    assert (report.published, report.unchanged) == (3, 2)
    assert report.watermark == watermark_of(8)
    assert rig.poll(source).published == 0


def test_a_full_poll_of_an_incremental_source_reads_its_whole_history(rig: Rig) -> None:
    source = ListedChanges({f"{number}": (1, number) for number in range(9)}, lookback=1)
    rig.poll(source)

    report = rig.poll(source, full=True)

    assert (source.asked[-1], report.listed) == ((None, None), 9)
    assert (report.watermark, rig.poll(source).published) == (watermark_of(8), 0)


def test_a_row_dated_ahead_does_not_hide_those_that_come_after_it(rig: Rig) -> None:
    source = ListedChanges({"ahead": (1, 4_000)}, window_days=10_000, heeds_start=False)
    rig.poll(source)

    source.table["now"] = (1, 21)
    assert rig.poll(source).created == 1
    assert rig.poll(source).published == 0


# --- from before ----------------------------------------------------------------------------------


def test_a_state_of_the_first_format_goes_on_without_an_event(rig: Rig) -> None:
    rows = {key: json_row(product(key, 10)) for key in ("p000", "p001", "p002")}
    body = {
        "format": 1,
        "source": "shop",
        "watermark": None,
        "version": 5,
        "listed": True,
        "pending": [],
        "rows": rows,
    }
    packed = zstandard.ZstdCompressor().compress(json.dumps(body).encode())
    rig.objects.put(state_key("shop"), packed)
    source = shop(3)

    assert rig.poll(source).unchanged == 3
    del source.table["p001"]
    rig.poll(source)

    assert rig.told() == [(Op.DELETE, "p001")]
    assert rig.stream.events()[0].before == rows["p001"]
    assert isinstance(rig.state().snapshot, Snapshot)
