"""The European Central Bank's daily euro reference rates as rows of `exchange_rates`.

Rates come as CSV by period, one row per currency and publishing day; other days are absent, not
empty. The first poll reads history in windows of a year, each published and remembered before the
next; later polls re-read some days before the watermark, because published rates are sometimes
revised. Absence proves nothing here: currencies end, weekends are empty, and the API has answered
404 for data it had.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from urllib.parse import urlencode

from api_poller.changes import Listing, Skipped
from api_poller.http import Answer, Fetcher, SourceAnswerError, SourceError, SourceRefusedError
from api_poller.state import PollState
from freshet.contract import Contract, Row
from freshet.errors import RejectedError
from freshet.event import key_text
from freshet.tables import ExchangeRate

# Daily rates of all currencies against the euro: spot, average or standardised measure.
SERIES = "D..EUR.SP00.A"
WINDOW_DAYS = 365
_SERIES_MEMBERS = {"FREQ": "D", "CURRENCY_DENOM": "EUR", "EXR_TYPE": "SP00", "EXR_SUFFIX": "A"}
_COLUMNS = ("CURRENCY", "TIME_PERIOD", "OBS_VALUE")
# How the API writes "no rate that day"; NaN is what the generic formats use.
_HOLES = frozenset(("", "N/A", "NAN", "-"))


@dataclass(frozen=True, slots=True)
class EcbRates:
    """The source `ecb`: rates since `start`, re-read `overlap` days before the watermark."""

    http: Fetcher
    url: str
    start: date
    overlap: timedelta
    name: str = "ecb"
    contract: type[Contract] = ExchangeRate

    def listings(self, state: PollState, now: datetime) -> Iterator[Listing]:
        """The days from the overlap to today, a year at a time. Raises `SourceError`.

        An empty year between years with rates is a fault of the answer, not history.
        """
        watermark, empty, today = state.watermark, "", now.astimezone(UTC).date()
        for first, last in self._windows(state.watermark, today):
            rows, skipped, url = self._window(first, last)
            if not rows and not skipped:
                empty = empty or (url if watermark else "")
                continue
            if empty:
                raise self._unusable(empty, "answers no rates for a period between rates")
            days = [row["rate_date"].isoformat() for row in rows.values()]
            watermark = max([*days, watermark or ""]) or None
            yield Listing(
                rows,
                whole_table=False,
                backfill=not state.listed or last < today,
                watermark=watermark,
                skipped=skipped,
                since=self._since(watermark),
            )

    def occurred_at(self, row: Row) -> datetime | None:
        """The day of the rate, at midnight UTC."""
        return datetime.combine(row["rate_date"], time(), UTC)

    def _since(self, watermark: str | None) -> tuple[str, str] | None:
        """Rows from here on are read again by the next poll, so they are worth remembering."""
        if watermark is None:
            return None
        return "rate_date", (date.fromisoformat(watermark) - self.overlap).isoformat()

    def _windows(self, watermark: str | None, today: date) -> Iterator[tuple[date, date]]:
        first = self.start
        if watermark is not None:
            first = max(first, date.fromisoformat(watermark) - self.overlap)
        while first <= today:
            last = min(first + timedelta(days=WINDOW_DAYS - 1), today)
            yield first, last
            first = last + timedelta(days=1)

    def _window(self, first: date, last: date) -> tuple[dict[str, Row], list[Skipped], str]:
        answer = self._answer(first, last)
        rows: dict[str, Row] = {}
        skipped: dict[str | None, Skipped] = {}
        for line in self._lines(answer):
            if line["OBS_VALUE"].strip().upper() in _HOLES:
                continue
            row = _row(line)
            if isinstance(row, Skipped):
                skipped[row.key] = row
                continue
            key = key_text(ExchangeRate, row)
            if not first <= row["rate_date"] <= last:
                skipped[key] = Skipped(key, "outside the period asked for", "TIME_PERIOD")
            elif rows.setdefault(key, row) != row:
                skipped[key] = Skipped(key, "two different rates for one day", "OBS_VALUE")
        kept = {key: row for key, row in rows.items() if key not in skipped}
        return kept, list(skipped.values()), answer.url

    def _answer(self, first: date, last: date) -> Answer:
        period = {"startPeriod": first.isoformat(), "endPeriod": last.isoformat()}
        # All columns: then a cut within a row, even of the announced length, leaves too few of
        # them; with the rate in the last column, 1.1355 could end as 1.1.
        query = urlencode(period | {"format": "csvdata", "detail": "full"})
        url = f"{self.url}/data/EXR/{SERIES}?{query}"
        try:
            answer = self.http.get(self.name, url, accept="text/csv")
        except SourceRefusedError as error:
            if error.status != 404:
                raise
            raise SourceError(
                self.name,
                url,
                "answers 404, which it has also done for rates it had",
                advice="nothing was published; if it lasts for days, check ECB_URL",
                status=404,
            ) from error
        if answer.body and not answer.measured:
            raise self._unusable(url, "answers without saying how long its answer is")
        return answer

    def _lines(self, answer: Answer) -> Iterator[Mapping[str, str]]:
        """The CSV rows of the series asked for, by column name. An empty answer has none."""
        try:
            text = answer.body.decode("utf-8-sig")
            lines = csv.DictReader(io.StringIO(text, newline=""), strict=True)
            self._check_columns(answer, text, lines.fieldnames or ())
            for line in lines:
                if None in line or None in line.values():
                    raise self._unusable(answer.url, "answers CSV whose rows differ in length")
                if all(line.get(name, value) == value for name, value in _SERIES_MEMBERS.items()):
                    yield line
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._unusable(answer.url, f"answers what is not CSV ({error})") from error

    def _check_columns(self, answer: Answer, text: str, columns: Sequence[str]) -> None:
        for name in _COLUMNS if columns else ():
            if name not in columns:
                raise self._unusable(answer.url, f"answers CSV without column {name}")
        if columns and columns[-1] == "OBS_VALUE" and not text.endswith("\n"):
            raise self._unusable(answer.url, "answers CSV whose last number may be cut off")

    def _unusable(self, url: str, detail: str) -> SourceAnswerError:
        return SourceAnswerError(
            self.name,
            url,
            detail,
            advice="nothing of this answer was published; if it lasts, compare the answer in a "
            "browser with the ECB's documentation of format=csvdata",
            status=200,
        )


def _row(line: Mapping[str, str]) -> Row | Skipped:
    """The contract's row of a CSV line, or why there is none."""
    key: str | None = None
    names = {"currency": line["CURRENCY"], "rate_date": line["TIME_PERIOD"]}
    try:
        key = key_text(ExchangeRate, ExchangeRate.parse_key(names))
        return ExchangeRate.parse(names | {"rate": line["OBS_VALUE"].strip()})
    except RejectedError as error:
        return Skipped(key, error.reason, error.field)
