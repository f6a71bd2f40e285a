"""How the demo's outcome reads: results, then what was compared, then where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from local.demo import Comparison, Landed
from local.output import plain, print_line, print_table

DIFFERENCES_SHOWN = 5
ROWS_SHOWN = 5
DETAIL_SHOWN = 80  # characters of a quarantine reason: a line on most screens
# Stock codes of goods start with five digits; others are postage, fees and manual entries.
GOODS_DIGITS = 5


def print_report(landed: Landed, comparisons: Sequence[Comparison], shown: dict[str, Any]) -> None:
    """The demo's report on stdout."""
    _section(
        "Net revenue per day, the last days",
        ("day", "GBP", "EUR", "rate of"),
        shown["net_revenue_by_day"][-ROWS_SHOWN:],
    )
    _section("Most returned products", ("sku", "units"), shown["most_returned"][:ROWS_SHOWN])
    _history(shown)
    _section(
        "Quarantined records, and why",
        ("reason", "field", "records", "detail"),
        [(*row[:3], row[3][:DETAIL_SHOWN]) for row in shown["quarantined"]],
    )
    _comparisons(comparisons)
    _pace(landed, shown["latency_s"])


def to_json(
    landed: Landed, comparisons: Sequence[Comparison], shown: dict[str, Any]
) -> dict[str, Any]:
    """The same as one JSON document; fields are added, never changed."""
    return {
        "ok": all(not c.differences for c in comparisons),
        "events": landed.events,
        "seconds": round(landed.seconds, 3),
        "events_per_second": round(landed.events / landed.seconds),
        "event_to_queryable_s": {
            name: round(value, 3) for name, value in shown["latency_s"].items() if name != "events"
        },
        "busy_s": {name: round(value, 3) for name, value in landed.busy_s.items()},
        "comparisons": [
            {"question": c.question, "checked": c.checked, "differences": list(c.differences)}
            for c in comparisons
        ],
        "net_revenue_by_day": [
            {"day": plain(day), "gbp": plain(gbp), "eur": plain(eur)}
            for day, gbp, eur, _ in shown["net_revenue_by_day"]
        ],
        "most_returned": [
            {"sku": sku, "units": int(units)} for sku, units in shown["most_returned"]
        ],
        "quarantined": [
            {"reason": reason, "field": field, "records": records}
            for reason, field, records, _ in shown["quarantined"]
        ],
    }


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print_table(columns, rows, title)
    print_line()


def _history(shown: dict[str, Any]) -> None:
    """The product whose price moved most often, its prices, and its price now."""
    prices: dict[str, list[tuple[Any, Any]]] = {}
    for sku, since, price in shown["price_history"]:
        prices.setdefault(sku, []).append((since, price))
    now = {sku: (title, price) for sku, title, price in shown["products"]}
    if not prices.keys() & now.keys():
        return
    known = sorted(prices.keys() & now.keys())  # of several the first, or every run told of another
    sku = max(known, key=lambda code: (_is_goods(code), len(prices[code])))
    title, price = now[sku]
    _section(
        f"Price of {sku} ({title}): {plain(price)} GBP now; its history",
        ("since", "GBP"),
        prices[sku][-ROWS_SHOWN:],
    )


def _is_goods(sku: str) -> bool:
    return sku[:GOODS_DIGITS].isdigit()


def _comparisons(comparisons: Sequence[Comparison]) -> None:
    print_line("Compared with pandas over the raw file", style="bold")
    for comparison in comparisons:
        mark, style = ("differs", "red") if comparison.differences else ("equal", "green")
        print_line(f"  {mark:7} {comparison.question} ({comparison.checked:,})", style=style)
        for difference in comparison.differences[:DIFFERENCES_SHOWN]:
            print_line(f"          {difference}")
        more = len(comparison.differences) - DIFFERENCES_SHOWN
        if more > 0:
            print_line(f"          and {more:,} more")
    print_line()


def _pace(landed: Landed, latency: dict[str, float]) -> None:
    print_line(
        f"{landed.events:,} events in {landed.seconds:.1f} s: "
        f"{landed.events / landed.seconds:,.0f} events/s end to end",
        style="bold",
    )
    print_line(
        f"  event to queryable: p50 {latency['p50']:.1f} s, p95 {latency['p95']:.1f} s, "
        f"p99 {latency['p99']:.1f} s (posted as fast as the producer takes them)"
    )
    busy = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in sorted(landed.busy_s.items()))
    print_line(f"  where the time went (seconds inside each function, waits included): {busy}")
