"""EventBridge Scheduler in miniature: fires functions at a fixed rate with the payload our template
sends.

One thread runs all schedules. A schedule never overlaps itself, because its next firing is only
looked at when the last one has returned; slots missed meanwhile are skipped, not made up. Time,
waiting and ids are injected.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from freshet.errors import TerminalError
from local.embedded import ACCOUNT_ID, REGION
from local.invocation import Handler, LocalFunction, local_function

STOP_DEADLINE_S = 30.0


class UnknownScheduleError(TerminalError):
    """A schedule that was never declared."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name, self.known = name, tuple(known)
        super().__init__(f"unknown schedule {name!r}; schedules: {', '.join(self.known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Fire for source `name` every `rate_s` seconds, first when the scheduler starts; None: only by
    hand.

    `retry_attempts_max` and `retry_wait_s` are the retry policy (EventBridge allows 185 retries
    over 24 h; a laptop wants to hear of a fault within the minute).
    """

    name: str
    rate_s: float | None
    retry_attempts_max: int = 2
    retry_wait_s: float = 1.0

    @property
    def arn(self) -> str:
        """ARN of the schedule in the embedded account."""
        return f"arn:aws:scheduler:{REGION}:{ACCOUNT_ID}:schedule/default/{self.name}"


@dataclass(frozen=True, slots=True)
class Firing:
    """What became of one slot: the function's response, or the error of its last attempt."""

    schedule: str
    scheduled_time: str
    attempts: int
    response: Any = None
    error: Exception | None = None


def firing_event(
    schedule: Schedule, *, scheduled_time: str, execution_id: str, attempt: int
) -> dict[str, str]:
    """The `Input` of our template's schedules with its place holders filled in: all strings."""
    return {
        "source": schedule.name,
        "scheduled_time": scheduled_time,
        "schedule_arn": schedule.arn,
        "execution_id": execution_id,
        "attempt_number": str(attempt),
    }


def next_slot(started_at: float, rate_s: float, *, now: float) -> float:
    """The first slot after `now` of a schedule that began at `started_at` (epoch seconds)."""
    return started_at + (int((now - started_at) // rate_s) + 1) * rate_s


class Scheduler:
    """Fires `function` for each schedule from `start` to `stop`; `fire_now` fires one by hand.

    A function that raises is retried by its schedule's policy; the outcome goes to `on_firing` and
    never ends the loop. `wait(seconds)` sleeps at most that long and returns True when the
    scheduler is being stopped.
    """

    def __init__(
        self,
        function: Handler | LocalFunction,
        schedules: Iterable[Schedule],
        *,
        on_firing: Callable[[Firing], None],
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], bool] | None = None,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._function = local_function(function, "api_poller")
        self._schedules = {schedule.name: schedule for schedule in schedules}
        self._on_firing, self._clock, self._new_id = on_firing, clock, new_id
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._busy = {name: threading.Lock() for name in self._schedules}
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin in the background; every schedule fires at once, then at its rate."""
        self._thread = threading.Thread(target=self.run, name="scheduler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End after the firing under way."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_DEADLINE_S)

    def run(self) -> None:
        """The loop itself: fire what is due, wait for the next slot, until stopped."""
        began = self._clock()
        rates = {s.name: s.rate_s for s in self._schedules.values() if s.rate_s is not None}
        due = dict.fromkeys(rates, began)
        while not self._stop.is_set() and due:
            name = min(due, key=lambda one: due[one])
            if self._wait(max(0.0, due[name] - self._clock())):
                return
            self._fire(self._schedules[name], due[name])
            due[name] = next_slot(began, rates[name], now=self._clock())

    def fire_now(self, name: str) -> Firing:
        """Fire one schedule now and return the outcome; waits if it is being fired already.

        Raises UnknownScheduleError. The outcome goes to `on_firing` as well.
        """
        if name not in self._schedules:
            raise UnknownScheduleError(name, self._schedules)
        return self._fire(self._schedules[name], self._clock())

    def _fire(self, schedule: Schedule, slot: float) -> Firing:
        with self._busy[schedule.name]:
            firing = self._attempt(schedule, _iso(slot))
        self._on_firing(firing)
        return firing

    def _attempt(self, schedule: Schedule, scheduled_time: str) -> Firing:
        execution_id, attempt = self._new_id(), 0
        while True:
            attempt += 1
            event = firing_event(
                schedule,
                scheduled_time=scheduled_time,
                execution_id=execution_id,
                attempt=attempt,
            )
            try:
                response = self._function.invoke(event)
            except Exception as error:  # noqa: BLE001 - a function may raise anything; it is reported
                failure = Firing(schedule.name, scheduled_time, attempt, error=error)
            else:
                return Firing(schedule.name, scheduled_time, attempt, response=response)
            if attempt > schedule.retry_attempts_max or self._wait(schedule.retry_wait_s):
                return failure


def _iso(epoch_s: float) -> str:
    """Scheduler's form: whole seconds, UTC."""
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
