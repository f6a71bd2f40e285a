"""The answer the pipeline has to reach, computed from the raw files with pandas and nothing else.

Written apart from the code it checks, on purpose: other matching logic, other arithmetic (whole
tenths of pence), no import of the register, the catalogue, `freshet` or `lake`. Where both agree,
a mistake would have to be made twice.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Context, Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# Prices have at most 3 decimals: whole tenths of pence add up exactly in integers.
TENTHS_PER_POUND = 1000
CENT = Decimal("0.01")
# Ample for a quotient that is rounded to cents once.
EXACT = Context(prec=60)
# The catalogue's rule for vanishing rows, restated: one code in 16, unsold for more than 7 days.
SLOW_ONE_IN, SLOW_DAYS = 16, 7


@dataclass(frozen=True)
class Answer:
    """What every query at the end of the demo must show.

    `sales`: one row per sale_id with invoice_no, line, sku, quantity, returned_quantity,
    unit_price (`Decimal`, 4 places), customer_id, country, sold_at (UTC). Revenue is net, per UTC
    day of the sale. `most_returned`: (sku, units), most first. `products`: sku -> (title, price)
    still listed at the end. `price_history`: sku -> (day of the change, price), vanished products
    included.
    """

    sales: pd.DataFrame
    revenue_gbp: dict[date, Decimal]
    revenue_eur: dict[date, Decimal]
    most_returned: list[tuple[str, int]]
    products: dict[str, tuple[str, Decimal]]
    price_history: dict[str, list[tuple[date, Decimal]]]
    returns_matched: int
    returns_unmatched: int


def compute(retail: Path, ecb_rates: Path, *, days_seen: Iterable[date] | None = None) -> Answer:
    """The answer for one raw file and the ECB rates that cover it.

    `days_seen`: the days on which the shop was polled; default: every trading day. The catalogue
    is the one of the last of them.
    """
    lines = _read(retail)
    matches = _match(lines)
    sales = _sales(lines, matches)
    gbp = _revenue_tenths(sales)
    products, history = _catalogue(lines, days_seen)
    cancelled = int(lines["cancelled"].sum())
    return Answer(
        sales=_presentable(sales),
        revenue_gbp={day: _pounds(tenths) for day, tenths in gbp.items()},
        revenue_eur=_in_eur(gbp, ecb_rates),
        most_returned=_most_returned(lines),
        products=products,
        price_history=history,
        returns_matched=len(matches),
        returns_unmatched=cancelled - len(matches),
    )


def _read(path: Path) -> pd.DataFrame:
    lines = pd.read_parquet(path).reset_index(drop=True)
    lines["line"] = lines.groupby("invoice_no").cumcount() + 1
    lines["tenths"] = (lines["unit_price"] * TENTHS_PER_POUND).round().astype("int64")
    is_c = lines["invoice_no"].str.startswith("C")
    lines["cancelled"] = is_c & (lines["quantity"] < 0)
    lines["is_c"] = is_c
    lines["day"] = lines["invoice_date"].dt.date
    local = lines["invoice_date"].dt.tz_localize("Europe/London", ambiguous=True)
    lines["sold_at"] = local.dt.tz_convert("UTC")
    return lines


def _match(lines: pd.DataFrame) -> pd.Series:
    """Index: row of a cancellation; value: row of the sale it returns."""
    known = lines[lines["customer_id"].notna()]
    sold = known[~known["is_c"] & (known["quantity"] > 0)]
    taken_back = known[known["cancelled"]]
    keys = ["customer_id", "stock_code", "tenths"]
    pairs = taken_back[keys].reset_index().merge(sold[keys].reset_index(), on=keys)
    pairs = pairs.sort_values(["index_x", "index_y"])
    returns, sales = pairs["index_x"].to_numpy("int64"), pairs["index_y"].to_numpy("int64")
    when = lines["invoice_date"].to_numpy()
    earlier = (sales < returns) & (when[sales] <= when[returns])
    returns, sales = returns[earlier], sales[earlier]
    left = lines["quantity"].to_numpy("int64", copy=True)
    starts = np.flatnonzero(np.diff(returns, prepend=-1))
    found: dict[int, int] = {}
    for back, candidates in zip(returns[starts], np.split(sales, starts[1:]), strict=False):
        enough = candidates[left[candidates] >= -left[back]]
        if enough.size:
            found[int(back)] = int(enough[-1])
            left[enough[-1]] += left[back]
    return pd.Series(found, dtype="int64")


def _sales(lines: pd.DataFrame, matches: pd.Series) -> pd.DataFrame:
    given_back = -lines.loc[matches.index, "quantity"].astype("int64")
    returned = given_back.groupby(matches.to_numpy()).sum()
    sales = lines.drop(index=matches.index).copy()
    sales["returned_quantity"] = returned.reindex(sales.index, fill_value=0).astype("int64")
    sales["sale_id"] = sales["invoice_no"] + "-" + sales["line"].astype(str)
    return sales


def _revenue_tenths(sales: pd.DataFrame) -> dict[date, int]:
    kept = sales["quantity"].astype("int64") - sales["returned_quantity"]
    per_day = (kept * sales["tenths"]).groupby(sales["sold_at"].dt.date).sum()
    return dict(zip(per_day.index.tolist(), per_day.tolist(), strict=True))


def _presentable(sales: pd.DataFrame) -> pd.DataFrame:
    shown = sales.rename(columns={"stock_code": "sku"}).set_index("sale_id")
    prices = {tenths: _pounds(tenths) for tenths in shown["tenths"].unique().tolist()}
    shown["unit_price"] = shown["tenths"].map(prices).astype(object)
    shown["customer_id"] = shown["customer_id"].astype("Int64").astype("string")
    shown["description"] = shown["description"].str.strip()
    for column in ("customer_id", "description"):
        text = shown[column].astype(object)
        shown[column] = text.where(text.notna() & (text != ""), None)
    columns = ["invoice_no", "line", "sku", "description", "quantity", "returned_quantity"]
    return shown[[*columns, "unit_price", "customer_id", "country", "sold_at"]]


def _pounds(tenths: int) -> Decimal:
    return Decimal(tenths).scaleb(-3).quantize(Decimal("0.0001"))


def _in_eur(gbp_tenths: dict[date, int], ecb_rates: Path) -> dict[date, Decimal]:
    table = pd.read_csv(ecb_rates, dtype=str, keep_default_na=False, usecols=["Date", "GBP"])
    published = table[table["GBP"] != "N/A"].sort_values("Date")
    days = published["Date"].tolist()
    euros = {}
    for day, tenths in gbp_tenths.items():
        place = int(np.searchsorted(days, day.isoformat(), side="right")) - 1
        if place < 0:
            raise ValueError(
                f"{ecb_rates}: no GBP rate on or before {day}; use a file that has one"
            )
        rate = Decimal(published["GBP"].iloc[place])
        amount = EXACT.divide(Decimal(tenths), rate * TENTHS_PER_POUND)
        euros[day] = amount.quantize(CENT, rounding=ROUND_HALF_UP)
    return euros


def _most_returned(lines: pd.DataFrame, top: int = 10) -> list[tuple[str, int]]:
    # Whether a cancellation found its sale or not: the units came back.
    units = -lines[lines["cancelled"]].groupby("stock_code")["quantity"].sum()
    ranked = sorted(units.items(), key=lambda item: (-item[1], item[0]))
    return [(str(sku), int(count)) for sku, count in ranked[:top]]


@dataclass(frozen=True)
class _Grid:
    """A line per calendar day, a column per stock code; values carried forward.

    `price` in tenths of pence, 0 before the first sale; `since`: number of the day on which the
    listed row got its present title and price, -1 where none is listed.
    """

    days: list[date]
    skus: list[str]
    price: Any
    title: Any
    listed: Any
    since: Any


def _catalogue(
    lines: pd.DataFrame, days_seen: Iterable[date] | None
) -> tuple[dict[str, tuple[str, Decimal]], dict[str, list[tuple[date, Decimal]]]]:
    sold = lines[~lines["is_c"] & (lines["tenths"] > 0)]
    if sold.empty:
        return {}, {}
    first = min(sold["day"])
    days = sorted(set(sold["day"]) if days_seen is None else days_seen)
    seen = [(day - first).days for day in days if first <= day]
    if not seen:
        return {}, {}
    grid = _grid(sold, until=max(days[-1], sold["day"].max()))
    return _end(grid, seen[-1]), _history(grid, seen)


def _grid(sold: pd.DataFrame, until: date) -> _Grid:
    named = sold.assign(title=sold["description"].str.strip())
    prices = _mode_of_day(sold, "tenths")
    titles = _mode_of_day(named[named["title"].fillna("") != ""], "title").reindex(prices.index)
    # Runs past the last sale when the shop was seen later: slow sellers vanish then, too.
    everyday = pd.date_range(min(sold["day"]), until).date
    by_price = prices.unstack("stock_code").reindex(everyday)
    skus = [str(sku) for sku in by_price.columns]
    by_title = titles.unstack("stock_code").reindex(index=everyday, columns=by_price.columns)
    title = by_title.ffill().astype(object).to_numpy(copy=True)
    unnamed = pd.isna(title)
    title[unnamed] = np.broadcast_to(np.array(skus, dtype=object), title.shape)[unnamed]
    price = by_price.ffill().fillna(0).astype("int64").to_numpy()
    listed = _listed(by_price.notna().to_numpy(), skus)
    return _Grid(list(everyday), skus, price, title, listed, _since(price, title, listed))


def _mode_of_day(lines: pd.DataFrame, column: str) -> pd.Series:
    rows = lines.reset_index(names="row")
    counted = rows.groupby(["day", "stock_code", column])["row"].agg(["size", "min"]).reset_index()
    best = counted.sort_values(["size", "min"], ascending=[False, True])
    return best.drop_duplicates(["day", "stock_code"]).set_index(["day", "stock_code"])[column]


def _listed(sold: Any, skus: list[str]) -> Any:
    slow = np.array([zlib.crc32(sku.encode()) % SLOW_ONE_IN == 0 for sku in skus])
    number = np.arange(len(sold))[:, None]
    last_sold = np.maximum.accumulate(np.where(sold, number, -1))
    return (last_sold >= 0) & (~slow | (number - last_sold <= SLOW_DAYS))


def _since(price: Any, title: Any, listed: Any) -> Any:
    same = np.zeros_like(listed)
    same[1:] = listed[:-1] & (price[1:] == price[:-1]) & (title[1:] == title[:-1])
    number = np.arange(len(listed))[:, None]
    return np.where(listed, np.maximum.accumulate(np.where(same, -1, number)), -1)


def _end(grid: _Grid, number: int) -> dict[str, tuple[str, Decimal]]:
    here = np.flatnonzero(grid.listed[number])
    return {
        grid.skus[at]: (str(grid.title[number, at]), _pounds(int(grid.price[number, at])))
        for at in here
    }


def _history(grid: _Grid, seen: list[int]) -> dict[str, list[tuple[date, Decimal]]]:
    history: dict[str, list[tuple[date, Decimal]]] = {}
    for at, sku in enumerate(grid.skus):
        here = [number for number in seen if grid.listed[number, at]]
        tenths, since = grid.price[here, at], grid.since[here, at]
        new = np.flatnonzero(np.diff(tenths, prepend=-1))
        if new.size:
            history[sku] = [(grid.days[since[k]], _pounds(int(tenths[k]))) for k in new]
    return history
