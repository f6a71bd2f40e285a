"""The gold views over a retail file: seconds of every view, and whether the histories are right.

Run `.venv/bin/python benchmarks/gold.py PATH` (`--json`) with the Online Retail file of the full
year; without a path it takes the shipped month. The file's changes become a change log with late,
doubled, corrected and quarantined ones (`tests/retail_history.py`) below a temporary folder. Every
view is computed in full, once from the log itself ("live") and once from what `freshet gold apply`
made of it; prices, revenue and restatements are compared with an independent computation.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.retail_history import (  # noqa: E402
    Line,
    as_reported,
    change_log,
    current_rows,
    price_history,
    rates,
    restatements,
    revenue_changes,
    write_log,
)

from freshet.clock import utc_now  # noqa: E402
from freshet.objects import DirectoryObjects  # noqa: E402
from local.gold import load_views  # noqa: E402
from local.gold_files import materialise, materialised  # noqa: E402
from local.sql import create_gold_views, create_log_views  # noqa: E402

MONTH = ROOT / "src/local/sample/data/online_retail_2010_12.parquet"
ROUNDS = 3


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="freshet-gold-") as folder:
        report = run(options.retail, Path(folder))
    if options.json:
        sys.stdout.write(json.dumps(report) + "\n")
    else:
        show(report)
    sys.exit(0 if all(report["right"].values()) else 1)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "retail", type=Path, nargs="?", default=MONTH, help="Online Retail, parquet"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser.parse_args()


def run(retail: Path, root: Path) -> dict[str, Any]:
    say("writing the change log …")
    lines = change_log(retail)
    write_log(lines, root)
    for table in ("sales", "products"):
        pq.write_table(current_rows(lines, table), root / f"{table}.parquet")
    pq.write_table(rates(), root / "exchange_rates.parquet")
    say("timing the views …")
    connection = opened(root)
    live = dict(seconds(connection))
    applied = dict(renewed(connection, root))
    again = dict(renewed(connection, root))
    connection = opened(root)
    made = dict(seconds(connection))
    say("working the histories out independently …")
    return {
        "lines": len(lines),
        "live_s": live,
        "materialised_s": made,
        "apply_s": applied,
        "apply_again_s": again,
        "right": dict(verdicts(connection, lines)),
    }


def opened(root: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    for table in ("sales", "products", "exchange_rates"):
        connection.execute(f"CREATE VIEW {table} AS FROM read_parquet('{root}/{table}.parquet')")
    create_log_views(connection, str(root))
    create_gold_views(connection, materialised(connection, str(root)))
    return connection


def seconds(connection: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, float]]:
    """The best of a few full computations of each view: every column of every row."""
    for view in load_views():
        rounds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            connection.execute(f"CREATE OR REPLACE TEMP TABLE answer AS FROM {view.name}")
            rounds.append(time.perf_counter() - began)
        yield view.name, min(rounds)


def renewed(connection: duckdb.DuckDBPyConnection, root: Path) -> Iterator[tuple[str, float]]:
    for view in load_views():
        if view.heavy:
            began = time.perf_counter()
            objects = DirectoryObjects(root)
            materialise(connection, objects, view, root=str(root), now=utc_now())
            yield view.name, time.perf_counter() - began


def verdicts(
    connection: duckdb.DuckDBPyConnection, lines: list[Line]
) -> Iterator[tuple[str, bool]]:
    """Whether every row of a history is the one worked out independently."""
    found = connection.execute(
        "SELECT product_id, currency, price, valid_from, valid_to FROM product_price_history"
    ).fetchall()
    wanted = {(*row[:3], bare(row[3]), bare(row[4])) for row in price_history(lines)}
    yield "product_price_history", (len(found), set(found)) == (len(wanted), wanted)
    changes = revenue_changes(lines)
    for name, frame in (("revenue_changes", changes), ("restatements", restatements(changes))):
        found = connection.execute(
            "SELECT CAST(day AS varchar), currency, learned_at, sale_id, sale_net_from, "
            f"sale_net_to, CAST(day_net_to * 10000 AS bigint) FROM {name}"
        ).fetchall()
        columns = ["day", "currency", "learned_at", "key", "net_from", "net_to", "day_net_to"]
        rows = frame[columns].itertuples(index=False, name=None)
        wanted = {(*row[:2], bare(row[2].to_pydatetime()), *row[3:]) for row in rows}
        yield name, (len(found), set(found)) == (len(wanted), wanted)
    yield (
        "sales_by_day_as_reported",
        all(reported(connection, on) == as_reported(changes, on) for on in report_days(lines)),
    )


def report_days(lines: list[Line]) -> list[Any]:
    first, last = lines[0].arrived_at.date(), lines[-1].arrived_at.date()
    return [first + timedelta(days=days) for days in range(0, (last - first).days + 30, 7)]


def reported(connection: duckdb.DuckDBPyConnection, on: Any) -> dict[Any, int]:
    rows = connection.execute(
        "SELECT CAST(day AS varchar), currency, CAST(net * 10000 AS bigint) "
        "FROM sales_by_day_as_reported "
        "WHERE reported_on <= $1 AND (superseded_on IS NULL OR superseded_on > $1)",
        [on],
    ).fetchall()
    return {row[:2]: row[2] for row in rows}


def bare(moment: Any) -> Any:
    return None if moment is None else moment.replace(tzinfo=None)


def show(report: dict[str, Any]) -> None:
    print(f"{report['lines']:,} changes of sales and products (seconds, best of {ROUNDS})")
    print(f"{'view':28}{'live':>8}{'materialised':>14}{'apply':>8}{'again':>8}  result")
    for name, live in report["live_s"].items():
        cells = (f"{report[kind][name]:.2f}" if name in report[kind] else "-"
                 for kind in ("apply_s", "apply_again_s"))  # fmt: skip
        right = {True: "right", False: "WRONG", None: "-"}[report["right"].get(name)]
        applied, again = cells
        made = report["materialised_s"][name]
        print(f"{name:28}{live:8.2f}{made:14.2f}{applied:>8}{again:>8}  {right}")


def say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
