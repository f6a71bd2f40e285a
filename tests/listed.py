"""A source for tests: tables in memory, listed in pages by key or by cursor, with faults between.

Pages are keyset pages: `after` what was shown last, never an offset, so a row that is there all the
time is shown whatever comes and goes around it. A token holds everything the listing has shown, so
that a test knows what a listing showed that was taken up by another poll.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from api_poller.changes import Skipped, SyncRule
from freshet.contract import Contract, Row
from freshet.event import ChangeEvent, json_value, key_text
from freshet.model import ModelChange, current_state, live_rows
from freshet.tables import Product

DAY_0 = datetime(2026, 11, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Page:
    rows: Mapping[str, Row] = field(default_factory=dict)
    deleted: AbstractSet[str] = frozenset()
    skipped: Sequence[Skipped] = ()
    resume: str | None = None


@dataclass(frozen=True)
class Outcome:
    complete: bool = True
    reason: str | None = None


def product(key: str, price: int, day: int | None = None) -> Row:
    """A product; `day` is when it changed last."""
    updated_at = None if day is None else DAY_0 + timedelta(days=day)
    row = {"product_id": key, "title": "Mug", "price": price, "currency": "USD"}
    return Product.parse({**row, "updated_at": updated_at})


Between = Callable[[int], None]


@dataclass
class ListedTable:
    """Lists a table whole: key → price; None stands for a row that is marked as deleted.

    `between` is called with the number of the page before each page is made.
    """

    table: dict[str, int | None] = field(default_factory=dict)
    page_rows: int = 2
    rule: SyncRule = field(default_factory=lambda: SyncRule(delete_share_max=1.0))
    between: Between = lambda _: None
    outcome: Outcome = field(default_factory=Outcome)
    hidden: AbstractSet[str] = frozenset()
    broken: dict[int, Sequence[Skipped]] = field(default_factory=dict)
    token_of: Callable[[str], str] = str
    name: str = "shop"
    contract: type[Contract] = Product
    shown: dict[str, int | None] = field(default_factory=dict)
    tokens: dict[str, tuple[str, dict[str, int | None]]] = field(default_factory=dict)
    asked: list[str | None] = field(default_factory=list)

    def pages(
        self,
        watermark: str | None,
        now: datetime,
        resume: str | None,
        missing: Callable[[], bool] = lambda: True,
    ) -> Generator[Page, None, Outcome]:
        self.asked.append(resume)
        after, shown = ("", {}) if resume is None else self.tokens[resume]
        shown = dict(shown)
        number, more = 0, True
        while more:
            number += 1
            self.between(number)
            left = sorted(key for key in self.table.keys() - self.hidden if key > after)
            part, more = left[: self.page_rows], len(left) > self.page_rows
            shown |= {key: self.table[key] for key in part}
            after = part[-1] if part else after
            yield Page(
                {key: product(key, price) for key, price in self._priced(part)},
                frozenset(key for key in part if self.table[key] is None),
                self.broken.get(number, ()),
                self._token(after, shown) if more else None,
            )
        self.shown = shown
        return self.outcome

    def _priced(self, part: Sequence[str]) -> list[tuple[str, int]]:
        return [(key, price) for key in part if (price := self.table[key]) is not None]

    def _token(self, after: str, shown: dict[str, int | None]) -> str:
        token = self.token_of(f"token-{len(self.tokens)}")
        self.tokens[token] = after, dict(shown)
        return token

    def occurred_at(self, row: Row) -> datetime | None:
        return None


@dataclass
class ListedChanges:
    """Lists what changed since: key → (price or None, day of change), in windows of some days."""

    table: dict[str, tuple[int | None, int]] = field(default_factory=dict)
    page_rows: int = 2
    lookback: int = 2
    window_days: int = 1_000
    between: Between = lambda _: None
    outcome: Outcome = field(default_factory=Outcome)
    hidden: AbstractSet[str] = frozenset()
    heeds_start: bool = True
    name: str = "shop"
    contract: type[Contract] = Product
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)

    @property
    def rule(self) -> SyncRule:
        return SyncRule(cursor="updated_at", lookback=timedelta(days=self.lookback))

    def pages(
        self,
        watermark: str | None,
        now: datetime,
        resume: str | None,
        missing: Callable[[], bool] = lambda: True,
    ) -> Generator[Page, None, Outcome]:
        self.asked.append((watermark, resume))
        first = 0
        if watermark is not None and self.heeds_start:
            first = max(0, _day(watermark) - self.lookback)
        after = (first, "")
        if resume is not None:
            start, day, key = resume.split("/")
            first, after = int(start), (int(day), key)
        number = 0
        while True:
            last = first + self.window_days
            rest, more = False, True
            while more:
                number += 1
                self.between(number)
                rest = any(day >= last for _, day in self.table.values())
                left = sorted(
                    (day, key)
                    for key, (_, day) in self.table.items()
                    if (day, key) > after and (day < last or not rest) and key not in self.hidden
                )
                part, more = left[: self.page_rows], len(left) > self.page_rows
                after = part[-1] if part else after
                token = f"{first}/{after[0]}/{after[1]}" if more else None
                yield self._page([key for _, key in part], token)
            if not rest:
                return self.outcome
            first, after = last, max(after, (last, ""))

    def _page(self, keys: Sequence[str], token: str | None) -> Page:
        shown = {key: self.table[key] for key in keys}
        return Page(
            {k: product(k, price, day) for k, (price, day) in shown.items() if price is not None},
            frozenset(key for key, (price, _) in shown.items() if price is None),
            (),
            token,
        )

    def occurred_at(self, row: Row) -> datetime | None:
        return None


def _day(text: str) -> int:
    return (datetime.fromisoformat(text) - DAY_0).days


def watermark_of(day: int) -> str:
    """The watermark a poll writes that has read up to this day."""
    return str(json_value(DAY_0 + timedelta(days=day)))


def merged(events: Sequence[ChangeEvent]) -> dict[str, int]:
    """What the lake holds after these events, says the model: key → price."""
    changes = [
        ModelChange(key_text(Product, event.key), event.version, f"{at:09}", event.after)
        for at, event in enumerate(events)
    ]
    rows = live_rows(current_state(changes))
    return {str(key): int(row["price"]) for key, row in rows.items()}


def there(table: Mapping[str, int | None]) -> dict[str, int]:
    """A table without the rows that are marked as deleted."""
    return {key: price for key, price in table.items() if price is not None}
