"""A poll of a large listing with few changes: seconds, memory and events.

Run `.venv/bin/python benchmarks/poll.py` (`--rows`, `--changes`, `--page-rows`, `--json`). A server
in a process of its own lists products over the loopback, 500 a page; a declared source is polled
three times, each in a fresh process: all rows new, a few changed, nothing changed. What the server
takes by itself is measured by reading every page without looking at it, and taken off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from api_poller.auth import authenticator_for  # noqa: E402
from api_poller.declaration import parse_source  # noqa: E402
from api_poller.http import Session  # noqa: E402
from api_poller.listing import DeclaredSource  # noqa: E402
from api_poller.poll import Poller  # noqa: E402
from api_poller.state import StateStore, state_key  # noqa: E402
from api_poller.tokens import MemoryTokens  # noqa: E402
from api_poller.transport import UrllibTransport  # noqa: E402
from freshet.clock import utc_now  # noqa: E402
from freshet.objects import DirectoryObjects  # noqa: E402
from freshet.tables import TABLES  # noqa: E402
from freshet.testing import MemoryStream  # noqa: E402

SHOP = """
table: products
url: {url}
path: /products
pagination: {{kind: offset, offset: offset, limit: limit, page_rows: {page_rows}, overlap: true}}
columns:
  product_id: {{path: id, as: text}}
  sku: slug
  title: title
  description: description
  price: price
  currency: {{constant: USD}}
  category: category.name
  image_url: images.0
  updated_at: updatedAt
occurred_at: updated_at
limits: {{requests_per_second: 1000}} # the most that can be declared
"""
DEADLINE_S = 300


def item(number: int, changed: int) -> dict[str, Any]:
    """A product of some 500 bytes; every so many of them has another price once it is changed."""
    return {
        "id": number,
        "slug": f"product-{number}",
        "title": f"Product {number}",
        "price": 10 + number % 90 + (0.5 if changed and number % changed == 0 else 0),
        "description": f"Number {number}. " + "Made by hand, of what grows nearby. " * 7,
        "category": {"id": number % 5, "name": f"Category {number % 5}"},
        "images": [f"https://images.example/{number}.jpeg"],
        "updatedAt": "2026-11-20T21:41:12.000Z",
    }


class Page(BaseHTTPRequestHandler):
    """Answers a page of what the server holds."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Shop

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        query = {name: int(values[0]) for name, values in parse_qs(parts.query).items()}
        first = query["offset"]
        body = b"[" + b",".join(self.server.items[first : first + query["limit"]]) + b"]"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Keep quiet."""


class Shop(ThreadingHTTPServer):
    """A shop that holds its products as JSON."""

    daemon_threads = True

    def __init__(self, items: list[bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.items = items


def serve(rows: int, changed: int, ready: Connection) -> None:
    with Shop([json.dumps(item(number, changed)).encode() for number in range(rows)]) as shop:
        ready.send(shop.server_port)
        shop.serve_forever()


@contextmanager
def served(rows: int, changed: int) -> Iterator[str]:
    """The address of a shop in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=serve, args=(rows, changed, theirs), daemon=True)
    process.start()
    if not ours.poll(DEADLINE_S):
        raise TimeoutError("the shop did not start")
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join(10)


def read_only(url: str, rows: int, page_rows: int) -> float:
    """Seconds to read every page without looking at it."""
    started_s = time.perf_counter()
    with urllib3.PoolManager() as http:
        for offset in range(0, rows, page_rows - 1):
            http.request("GET", f"{url}/products?offset={offset}&limit={page_rows}")
    return time.perf_counter() - started_s


def poll(url: str, page_rows: int, folder: str, answer: Connection) -> None:
    """One poll, in a fresh process: what it took and found."""
    declaration = parse_source(SHOP.format(url=url, page_rows=page_rows), "shop.yaml")
    objects, stream = DirectoryObjects(Path(folder)), MemoryStream(TABLES)
    auth = authenticator_for(declaration.auth, {}, MemoryTokens(), utc_now)
    session = Session(
        "shop",
        declaration.limits,
        declaration.places,
        auth,
        transport=UrllibTransport(),
        allow_loopback=True,
    )
    source = DeclaredSource("shop", declaration, TABLES[declaration.table], session)
    idle_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    report = Poller(stream, StateStore(objects), utc_now).poll(source)
    answer.send(
        {
            "seconds": time.perf_counter() - started_s,
            "cpu_s": time.process_time() - started_cpu_s,
            "idle_mb": idle_mb,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "events": len(stream.events()),
            "listed": report.listed,
            "complete": report.complete,
            "state_mb": len(objects.get(state_key("shop")).data) / 1e6,
        }
    )


def measured(url: str, page_rows: int, folder: str) -> dict[str, Any]:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=poll, args=(url, page_rows, folder, theirs))
    process.start()
    try:
        wait([ours, process.sentinel], DEADLINE_S)
        if not ours.poll():
            raise RuntimeError("the poll did not end well")
        answer: dict[str, Any] = ours.recv()
    finally:
        process.terminate()
        process.join(10)
    return answer


def run(rows: int, changes: int, page_rows: int) -> dict[str, dict[str, Any]]:
    """Figures of the three polls by name."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        every = rows // changes
        for name, step in (("first", 0), ("changed", every), ("unchanged", every)):
            with served(rows, step) as url:
                server_s = read_only(url, rows, page_rows)
                figures = measured(url, page_rows, folder)
            beyond_s = figures["seconds"] - server_s
            found[name] = figures | {"server_s": server_s, "beyond_s": beyond_s}
    return found


def main() -> None:
    multiprocessing.set_start_method("spawn")  # a fork would inherit the parent's memory
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--changes", type=int, default=100)
    parser.add_argument("--page-rows", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = run(chosen.rows, chosen.changes, chosen.page_rows)
    if chosen.json:
        print(json.dumps(found))
        return
    print(f"{chosen.rows:,} rows, {chosen.changes} changes, {chosen.page_rows} rows a page")
    print("poll        events  seconds  server  beyond    CPU  peak MB  idle MB  state MB")
    for name, one in found.items():
        print(
            f"{name:10} {one['events']:7,} {one['seconds']:8.2f} {one['server_s']:7.2f}"
            f" {one['beyond_s']:7.2f} {one['cpu_s']:6.2f} {one['peak_mb']:8.0f}"
            f" {one['idle_mb']:8.0f} {one['state_mb']:9.1f}"
        )


if __name__ == "__main__":
    main()
