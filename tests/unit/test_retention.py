"""Retention: what may be asked for is kept, and it never matters when it was decided."""

from __future__ import annotations

from bisect import bisect_right

from hypothesis import given
from hypothesis import strategies as st

from lake.retention import RETENTION, Retention, Stamp

HOUR, DAY = 3_600_000, 86_400_000
NOW = 20_000 * DAY + 17 * HOUR + 1234


def history(times: list[int]) -> list[Stamp]:
    return [Stamp(at, number) for number, at in enumerate(sorted(times))]


def current_at(stamps: list[Stamp], instant: int) -> Stamp | None:
    before = bisect_right([stamp.at_ms for stamp in stamps], instant)
    return stamps[before - 1] if before else None


def kept(retention: Retention, stamps: list[Stamp], now: int) -> list[Stamp]:
    gone = set(retention.expired(stamps, now))
    return [stamp for stamp in stamps if stamp.snapshot_id not in gone]


def test_a_short_history_is_kept_whole() -> None:
    assert RETENTION.expired(history([NOW - n for n in range(50)]), NOW) == []


def test_of_a_busy_month_the_newest_the_hours_and_the_midnights_are_kept() -> None:
    stamps = history([NOW - minute * 60_000 for minute in range(40 * 24 * 60)])

    left = kept(RETENTION, stamps, NOW)

    # Midnights of the last two days are full hours, too; 50 minutes reach over one hour at most.
    assert 50 + 47 + 28 <= len(left) <= 50 + 48 + 30
    assert left[-50:] == stamps[-50:]
    for day in range(30):
        midnight = (20_000 - day) * DAY
        assert current_at(left, midnight) == current_at(stamps, midnight)


def test_what_a_quiet_table_showed_last_month_is_kept_though_it_is_older() -> None:
    old, busy = NOW - 400 * DAY, [NOW - n for n in range(200)]

    left = kept(RETENTION, history([old, *busy]), NOW)

    assert left[0].at_ms == old
    assert len(left) == 51


def test_the_newest_snapshot_stays_whatever_is_asked() -> None:
    assert kept(Retention(0, 0, 0), history([1, 2, 3]), NOW) == [Stamp(3, 2)]


times = st.lists(st.integers(NOW - 5 * DAY, NOW), min_size=1, max_size=60, unique=True)


@given(times, st.sets(st.integers(0, 59)))
def test_deciding_at_every_commit_keeps_what_deciding_once_would(
    moments: list[int], decided: set[int]
) -> None:
    """Commits that expire and commits that do not, in any mixture, end alike."""
    retention = Retention(newest=3, hours=6, days=3)
    stamps, left = history(moments), list[Stamp]()
    for number, stamp in enumerate(stamps):
        left.append(stamp)
        if number in decided:
            left = kept(retention, left, stamp.at_ms)

    assert kept(retention, left, NOW) == kept(retention, stamps, NOW)


@given(times)
def test_every_promised_instant_is_answered_exactly(moments: list[int]) -> None:
    retention = Retention(newest=1, hours=6, days=3)
    stamps = history(moments)

    left = kept(retention, stamps, NOW)

    instants = [NOW // HOUR * HOUR - n * HOUR for n in range(6)]
    instants += [NOW // DAY * DAY - n * DAY for n in range(3)]
    assert [current_at(left, at) for at in instants] == [current_at(stamps, at) for at in instants]
