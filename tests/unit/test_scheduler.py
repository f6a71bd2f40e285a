"""The scheduler on a clock that only moves when somebody waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from local.scheduler import Firing, Schedule, Scheduler, UnknownScheduleError, next_slot

START = 1_795_219_200.0  # 2026-11-21T00:00:00Z


class Time:
    """A clock whose waits end at once, and that stops the scheduler after `until` seconds."""

    def __init__(self, until: float = float("inf")) -> None:
        self.now, self.until = START, START + until

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.now >= self.until


def scheduler(
    function: Callable[[dict[str, Any], Any], Any],
    *schedules: Schedule,
    time: Time,
    firings: list[Firing],
) -> Scheduler:
    return Scheduler(
        function,
        schedules,
        on_firing=firings.append,
        clock=time.clock,
        wait=time.wait,
        new_id=lambda: "execution",
    )


def test_the_function_gets_exactly_the_input_of_the_template() -> None:
    events: list[dict[str, Any]] = []
    firings: list[Firing] = []

    def function(event: dict[str, Any], context: Any) -> str:
        events.append(event)
        return "done"

    firing = scheduler(
        function, Schedule(name="platzi", rate_s=60), time=Time(), firings=firings
    ).fire_now("platzi")

    assert events == [
        {
            "source": "platzi",
            "scheduled_time": "2026-11-21T00:00:00Z",
            "schedule_arn": "arn:aws:scheduler:us-east-1:000000000000:schedule/default/platzi",
            "execution_id": "execution",
            "attempt_number": "1",
        }
    ]
    assert firing == Firing("platzi", "2026-11-21T00:00:00Z", 1, response="done")
    assert firings == [firing]


def test_schedules_fire_at_once_and_then_at_their_own_rates() -> None:
    firings: list[Firing] = []

    scheduler(
        lambda event, context: None,
        Schedule(name="often", rate_s=20),
        Schedule(name="seldom", rate_s=45),
        time=Time(until=65),
        firings=firings,
    ).run()

    fired = [(one.schedule, one.scheduled_time[-4:-1]) for one in firings]
    assert fired == [
        ("often", ":00"),
        ("seldom", ":00"),
        ("often", ":20"),
        ("often", ":40"),
        ("seldom", ":45"),
        ("often", ":00"),
    ]


def test_slots_missed_by_a_slow_function_are_skipped() -> None:
    time, firings = Time(until=100), list[Firing]()

    def slow(event: dict[str, Any], context: Any) -> None:
        time.now += 25

    scheduler(slow, Schedule(name="s", rate_s=10), time=time, firings=firings).run()

    assert [one.scheduled_time[-3:-1] for one in firings] == ["00", "30", "00", "30"]


def test_a_failing_function_is_retried_within_its_policy_then_reported_and_fires_again() -> None:
    attempts: list[str] = []
    firings: list[Firing] = []

    def failing(event: dict[str, Any], context: Any) -> None:
        attempts.append(event["attempt_number"])
        raise ConnectionError("down")

    scheduler(
        failing,
        Schedule(name="s", rate_s=60, retry_attempts_max=2),
        time=Time(until=100),
        firings=firings,
    ).run()

    assert attempts == ["1", "2", "3", "1", "2", "3"]
    assert [(one.attempts, repr(one.error)) for one in firings] == [
        (3, "ConnectionError('down')")
    ] * 2


def test_a_retry_keeps_its_execution_and_may_succeed() -> None:
    events: list[dict[str, Any]] = []
    firings: list[Firing] = []

    def flaky(event: dict[str, Any], context: Any) -> int:
        events.append(event)
        return 1 // (len(events) - 1)

    schedule = Schedule(name="s", rate_s=60)
    firing = scheduler(flaky, schedule, time=Time(), firings=firings).fire_now("s")

    assert (firing.attempts, firing.response, firing.error) == (2, 1, None)
    assert {event["execution_id"] for event in events} == {"execution"}
    assert {event["scheduled_time"] for event in events} == {"2026-11-21T00:00:00Z"}


def test_firing_by_hand_never_overlaps_the_schedule() -> None:
    entered, release, running = threading.Event(), threading.Event(), list[int]()

    def function(event: dict[str, Any], context: Any) -> None:
        running.append(1)
        assert len(running) == 1
        entered.set()
        release.wait(5)
        running.pop()

    firings: list[Firing] = []
    with Scheduler(function, [Schedule(name="s", rate_s=600)], on_firing=firings.append) as real:
        assert entered.wait(5)
        by_hand = threading.Thread(target=real.fire_now, args=("s",))
        by_hand.start()
        release.set()
        by_hand.join(5)

    assert [one.error for one in firings] == [None, None]


def test_stopping_ends_the_wait_for_the_next_slot() -> None:
    fired = threading.Event()
    real = Scheduler(
        lambda event, context: None,
        [Schedule(name="s", rate_s=3_600)],
        on_firing=lambda _: fired.set(),
    )
    real.start()
    assert fired.wait(5)

    real.stop()

    assert real._thread is not None
    assert not real._thread.is_alive()


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownScheduleError, match=r"'nope'; schedules: ecb, platzi"):
        scheduler(
            lambda event, context: None,
            Schedule(name="ecb", rate_s=60),
            Schedule(name="platzi", rate_s=60),
            time=Time(),
            firings=[],
        ).fire_now("nope")


@pytest.mark.parametrize(("now", "expected"), [(100.0, 110.0), (109.9, 110.0), (110.0, 120.0)])
def test_the_next_slot_is_after_now_and_on_the_grid(now: float, expected: float) -> None:
    assert next_slot(100.0, 10.0, now=now) == expected
