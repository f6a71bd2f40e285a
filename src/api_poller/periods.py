"""What an incremental source is asked for: the time from its watermark on, in windows. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from api_poller.declaration import (
    IncrementalSync,
    KeysetPagination,
    PeriodParameter,
    SourceDeclaration,
    start_value,
)
from freshet.contract import Contract, Day, Row, Timestamp
from freshet.event import json_value


class Periods:
    """What an incremental source is asked for: the time from the watermark on, in windows.

    Bounds are texts, so that they can stand in a token: days, instants, or values as they are.
    """

    def __init__(
        self,
        declaration: SourceDeclaration,
        contract: type[Contract],
        watermark: str | None,
        now: datetime,
    ) -> None:
        sync = declaration.sync
        self.sync = sync if isinstance(sync, IncrementalSync) else None
        self.contract, self.keyset = contract, declaration.pagination
        self.column = self.sync.cursor if self.sync else None
        kind = self.contract.column(self.sync.cursor).type if self.sync else None
        self.is_day, self.is_timed = isinstance(kind, Day), isinstance(kind, Day | Timestamp)
        self.end: Any = now.astimezone(UTC).date() if self.is_day else now.astimezone(UTC)
        self.begin = self._begin(watermark)

    @property
    def gaps_are_faults(self) -> bool:
        """Whether a window without rows between windows with rows cannot be."""
        return self.sync is not None and not self.sync.empty_windows

    def _begin(self, watermark: str | None) -> Any:
        """The least cursor to ask for; None for the beginning of history."""
        sync = self.sync
        if sync is None:
            return None
        start = None
        if sync.start is not None:
            start = self._value(str(start_value(sync, self.contract)))
        if watermark is None:
            return start
        mark = self._value(watermark)
        if self.is_timed:  # a row dated ahead must not keep all others out
            mark = min(mark, self.end) - timedelta(days=sync.lookback_days)
        return mark if start is None else max(mark, start)

    def _value(self, text: str) -> Any:
        column = self.sync.cursor if self.sync else ""
        return self.contract.parse_value(column, self.contract.value_of_text(column, text))

    def first(self) -> tuple[str | None, str | None]:
        """The first window."""
        if self.begin is None:
            return None, None
        since = str(json_value(self.begin))
        return since, self.until(since)

    def until(self, since: str) -> str | None:
        """The end of the window that begins there."""
        if self.sync is None or not self.is_timed:
            return None
        begin, end = self._value(since), self.end
        if self.sync.window_days is not None:
            days = self.sync.window_days - (1 if self.is_day else 0)
            end = min(begin + timedelta(days=days), end)
        return str(json_value(max(begin, end)))

    def after(self, until: str | None) -> tuple[str, str | None] | None:
        """The window after the one that ends there; None after the last."""
        if self.sync is None or until is None or self.sync.window_days is None:
            return None
        since = self._value(until) + timedelta(days=1 if self.is_day else 0)
        if since > self.end or (since == self.end and not self.is_day):
            return None
        text = str(json_value(since))
        return text, self.until(text)

    def params(self, since: str | None, until: str | None) -> dict[str, str]:
        """The query parameters that ask for a window."""
        if self.sync is None or since is None:
            return {}
        bounds = ((self.sync.from_, since), (self.sync.to, until))
        return {
            parameter.param: _in_format(self._value(text), parameter)
            for parameter, text in bounds
            if parameter is not None and text is not None
        }

    def position(self, since: str | None) -> dict[str, Any] | None:
        """Where a listing that is asked for by its pager's own parameter begins."""
        keyset = self.keyset
        if (
            self.sync is None
            or since is None
            or self.sync.from_ is not None
            or not isinstance(keyset, KeysetPagination)
        ):
            return None
        value = self._value(since)
        if not keyset.inclusive:  # rows with the watermark's own value are asked for again
            value = _just_before(value)
        return {"after": _in_format(value, PeriodParameter(param=keyset.after))}

    def is_outside(self, since: str | None, until: str | None, row: Row) -> bool:
        """A day that was not asked for."""
        sync = self.sync
        if sync is None or not (self.is_day and sync.from_ and sync.to) or since is None:
            return False
        return not since <= str(json_value(row[sync.cursor])) <= (until or "")


def _just_before(value: Any) -> Any:
    if isinstance(value, datetime):
        return value - timedelta(seconds=1)
    if isinstance(value, date):
        return value - timedelta(days=1)
    return value - 1 if isinstance(value, int) else value


def _in_format(value: Any, parameter: PeriodParameter) -> str:
    """A bound as the API wants it; finer than its format is cut, so that nothing is left out."""
    if not isinstance(value, date):
        return str(value)
    if parameter.format == "iso":
        is_instant = isinstance(value, datetime)
        return value.strftime("%Y-%m-%dT%H:%M:%SZ") if is_instant else value.isoformat()
    instant = value if isinstance(value, datetime) else datetime.combine(value, time(), UTC)
    if parameter.format in ("unix", "unix_ms"):
        factor = 1 if parameter.format == "unix" else 1_000
        return str(int(instant.timestamp()) * factor)
    return value.strftime(parameter.format)
