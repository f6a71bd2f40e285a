"""The European Central Bank's exchange-rate API on a laptop, serving the shipped rates.

Column layout, ordering and the ways it has of saying "nothing" are those of the real service: an
unknown series is a 404, a window without a publication is a 200 with an empty body, and a day
without a publication is simply absent.
"""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path

from local.sample.serving import Reply, Request, SampleServer

BASE_PATH = "/service"
NOT_PUBLISHED = "N/A"
DATA_COLUMNS = (
    "KEY",
    "FREQ",
    "CURRENCY",
    "CURRENCY_DENOM",
    "EXR_TYPE",
    "EXR_SUFFIX",
    "TIME_PERIOD",
    "OBS_VALUE",
)
# fmt: off
FULL_COLUMNS = (
    *DATA_COLUMNS,
    "OBS_STATUS", "OBS_CONF", "OBS_PRE_BREAK", "OBS_COM", "TIME_FORMAT", "BREAKS", "COLLECTION",
    "COMPILING_ORG", "DISS_ORG", "DOM_SER_IDS", "PUBL_ECB", "PUBL_MU", "PUBL_PUBLIC",
    "UNIT_INDEX_BASE", "COMPILATION", "COVERAGE", "DECIMALS", "NAT_TITLE", "SOURCE_AGENCY",
    "SOURCE_PUB", "TITLE", "TITLE_COMPL", "UNIT", "UNIT_MULT",
)
CURRENCY_NAMES = {
    "USD": "US dollar", "JPY": "Japanese yen", "GBP": "UK pound sterling", "CHF": "Swiss franc",
    "SEK": "Swedish krona", "NOK": "Norwegian krone", "DKK": "Danish krone", "CZK": "Czech koruna",
    "PLN": "Polish zloty", "HUF": "Hungarian forint", "AUD": "Australian dollar",
    "CAD": "Canadian dollar", "CNY": "Chinese yuan renminbi", "EEK": "Estonian kroon",
}
# fmt: on
PERIOD = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
# Parts of the real service nobody here needs; refusing beats ignoring them in silence.
UNSERVED = ("updatedAfter", "includeHistory")


class Ecb(SampleServer):
    """The rate service; `url` is the base under which `/data/EXR/{key}` lives.

    It knows every day of the file until `set_today` hides the later ones.
    """

    def __init__(self, path: Path, *, port: int = 0) -> None:
        super().__init__(self._answer, base_path=BASE_PATH, port=port)
        self._rates = read_rates(path)
        self._today = date.max.isoformat()
        self._replaced: dict[tuple[str, str], str] = {}

    def set_today(self, today: date) -> None:
        """Hide what was published after that day."""
        self._today = today.isoformat()

    def blank(self, currency: str, day: date, text: str = NOT_PUBLISHED) -> None:
        """Serve an observation without a number (`N/A` or empty) for that currency and day."""
        self._replaced[currency, day.isoformat()] = text

    def _answer(self, request: Request) -> Reply:
        parts = request.path.split("/")[2:]
        if request.method != "GET" or len(parts) != 3 or parts[:2] != ["data", "EXR"]:
            return _problem(404, "No such resource")
        if unserved := [name for name in UNSERVED if name in request.query]:
            return _problem(501, f"{unserved[0]} is not implemented")
        if not _wants_csv(request):
            return _problem(406, "Only csvdata is served")
        if problem := _bad_parameter(request.query, parts[2]):
            return _problem(400, problem)
        currencies = list(_matching(parts[2], self._rates))
        if not currencies:
            return _problem(404, "No results found.")
        full = request.query.get("detail", "full") == "full"
        rows = [row for name in currencies for row in self._series(name, request.query)]
        return Reply(200, _csv(rows, full=full), "text/csv", headers=(("Vary", "accept"),))

    def _series(self, currency: str, query: Mapping[str, str]) -> list[tuple[str, str, str]]:
        start, end = query.get("startPeriod", ""), query.get("endPeriod", self._today)
        observed = [
            (currency, day, value)
            for day, value in self._published(currency)
            if start <= day[: len(start)] and day[: len(end)] <= end
        ]
        if "lastNObservations" in query:
            observed = observed[max(0, len(observed) - int(query["lastNObservations"])) :]
        if "firstNObservations" in query:
            observed = observed[: int(query["firstNObservations"])]
        return observed

    def _published(self, currency: str) -> Iterator[tuple[str, str]]:
        for day, value in self._rates[currency].items():
            if day <= self._today:
                yield day, self._replaced.get((currency, day), value)


def read_rates(path: Path) -> dict[str, dict[str, str]]:
    """Currency -> ISO day, ascending -> published text, from the ECB's own file format.

    A currency of the header that was never published in the file is there, with no days.
    """
    with path.open(newline="", encoding="ascii") as file:
        header, *lines = csv.reader(file)
    rates: dict[str, dict[str, str]] = {name: {} for name in sorted(header[1:]) if name}
    for day, *values in sorted(lines):
        # The trailing comma of every line makes one nameless column.
        for currency, value in zip(header[1:], values, strict=True):
            if currency and value != NOT_PUBLISHED:
                rates[currency][day] = value
    return rates


def _matching(key: str, currencies: Mapping[str, object]) -> Iterator[str]:
    wanted = [set(part.split("+")) - {""} for part in key.split(".")]
    for currency in currencies:
        series = ("D", currency, "EUR", "SP00", "A")
        if all(not part or own in part for part, own in zip(wanted, series, strict=True)):
            yield currency


def _csv(rows: list[tuple[str, str, str]], *, full: bool) -> bytes:
    if not rows:
        return b""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(FULL_COLUMNS if full else DATA_COLUMNS)
    for currency, day, value in rows:
        data = (f"EXR.D.{currency}.EUR.SP00.A", "D", currency, "EUR", "SP00", "A", day, value)
        writer.writerow(data + _attributes(currency) if full else data)
    return text.getvalue().encode()


def _attributes(currency: str) -> tuple[str, ...]:
    name = CURRENCY_NAMES.get(currency, currency)
    values = {
        "OBS_STATUS": "A",
        "OBS_CONF": "F",
        "TIME_FORMAT": "P1D",
        "COLLECTION": "A",
        "UNIT_INDEX_BASE": "99Q1=100",
        "DECIMALS": "4",
        "SOURCE_AGENCY": "4F0",
        "TITLE": f"{name}/Euro ECB reference exchange rate",
        "TITLE_COMPL": f"ECB reference exchange rate, {name}/Euro, 2.15 pm (C.E.T.)",
        "UNIT": currency,
        "UNIT_MULT": "0",
    }
    return tuple(values.get(column, "") for column in FULL_COLUMNS[len(DATA_COLUMNS) :])


def _wants_csv(request: Request) -> bool:
    if "format" in request.query:
        return request.query["format"] == "csvdata"
    return "text/csv" in request.headers.get("accept", "")


def _bad_parameter(query: Mapping[str, str], key: str) -> str | None:
    if key.count(".") != 4:
        return f"Key {key!r} does not have 5 dimensions"
    for name in ("startPeriod", "endPeriod"):
        if name in query and not _is_period(query[name]):
            return f"Invalid value for {name}: {query[name]!r}"
    for name in ("lastNObservations", "firstNObservations"):
        if name in query and not query[name].isdecimal():
            return f"Invalid value for {name}: {query[name]!r}"
    if query.get("detail", "full") not in ("full", "dataonly"):
        return f"Invalid value for detail: {query['detail']!r}"
    return None


def _is_period(text: str) -> bool:
    match = PERIOD.fullmatch(text)
    if match is None:
        return False
    year, month, day = (int(part or 1) for part in match.groups())
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True


def _problem(status: int, text: str) -> Reply:
    return Reply(status, text.encode(), "text/plain")
