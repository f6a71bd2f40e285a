"""`freshet up`: HTTP in, tables out; killed at any moment, nothing acknowledged is lost."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import urllib3
from tests.e2e.conftest import COMMAND, Run, Start, _environment

from freshet.testing import sale_row
from local.embedded import EmbeddedAws
from local.runtime import STREAM

QUERYABLE_S_MAX = 30
GONE_S_MAX = 10
HTTP = urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(connect=5, read=30))


def post(url: str, *events: dict[str, Any]) -> list[str]:
    """Post changes; the sale ids of those that were acknowledged."""
    answer = HTTP.request("POST", f"{url}/v1/tables/sales/changes", json=list(events))
    assert answer.status == 202, answer.data
    return [outcome["key"] for outcome in answer.json()["outcomes"]]


def sale(sale_id: str, version: int = 1, **columns: Any) -> dict[str, Any]:
    return {"after": sale_row(sale_id, **columns), "version": version}


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Poll a condition, bounded."""
    give_up_at = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up_at, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def sales(freshet: Run, home: Path) -> dict[str, int]:
    """Sale ids and what was returned of each."""
    query = "SELECT sale_id, returned_quantity FROM sales"
    done = freshet(home, "query", query, "--json")
    assert done.code == 0, done.err
    return {row["sale_id"]: row["returned_quantity"] for row in done.json}


def children_of(home: Path) -> list[int]:
    """Processes of embedded AWS in this home."""
    listed = subprocess.run(
        ["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True
    ).stdout
    return [
        int(line.split(None, 1)[0])
        for line in listed.splitlines()
        if "embedded_server" in line and str(home) in line
    ]


def test_what_is_posted_can_be_queried_and_ctrl_c_ends_it_cleanly(
    freshet: Run, freshet_up: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with freshet_up(home) as running:
        assert HTTP.request("GET", f"{running.url}/health").status == 200
        assert HTTP.request("GET", f"{running.url}/openapi.json").status == 200
        post(running.url, sale("A-1"), sale("A-2"))
        post(running.url, sale("A-2", 2, returned_quantity=3), {"op": "d", **key("A-1", 3)})
        until(lambda: sales(freshet, home) == {"A-2": 3}, QUERYABLE_S_MAX, "the return is seen")

        assert running.stop(signal.SIGINT) == 0

    assert running.heard[-1] == "stopping"
    assert not (home / "runtime.json").exists()
    until(lambda: not children_of(home), GONE_S_MAX, "embedded AWS is gone")
    assert sales(freshet, home) == {"A-2": 3}  # the state stays


def key(sale_id: str, version: int) -> dict[str, Any]:
    return {"key": {"sale_id": sale_id}, "version": version}


def test_commands_beside_a_running_pipeline_use_it(
    freshet: Run, freshet_up: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with freshet_up(home) as running:
        sent = freshet(home, "send", "-", "--table", "sales", stdin=json.dumps(sale("B-1")))
        assert (sent.code, sent.out.split()) == (0, ["accepted", "rejected", "1", "0"])
        until(lambda: "B-1" in sales(freshet, home), QUERYABLE_S_MAX, "what was sent is seen")

        second = freshet(home, "up", "--port", "0")
        assert second.code == 1
        assert running.url in second.error
        assert "stop that first" in second.error

        port = running.url.rpartition(":")[2]
        elsewhere = freshet(tmp_path / "other", "up", "--port", port)
        assert elsewhere.code == 1
        assert "choose another port with --port" in elsewhere.error

        unreachable = freshet(home, "poll", "ecb", "--url", "http://127.0.0.1:9")
        assert unreachable.code == 1
        assert "source 'ecb' at http://127.0.0.1:9" in unreachable.error

        assert running.stop(signal.SIGTERM) == 0
    until(lambda: not children_of(tmp_path), GONE_S_MAX, "no child of any of them is left")


def test_a_killed_pipeline_loses_nothing_it_acknowledged(
    freshet: Run, freshet_up: Start, tmp_path: Path
) -> None:
    """Killed without warning while clients post; the next start completes what was begun."""
    home, acknowledged, enough = tmp_path / "home", set[str](), threading.Event()

    def keep_posting(url: str) -> None:
        try:
            for number in count(1):
                ids = [f"K-{number}-{line}" for line in range(20)]
                acknowledged.update(post(url, *(sale(sale_id) for sale_id in ids)))
                if number == 15:
                    enough.set()
        except urllib3.exceptions.HTTPError:
            pass  # killed: what was under way was not acknowledged

    with freshet_up(home) as running:
        client = threading.Thread(target=keep_posting, args=(running.url,))
        client.start()
        assert enough.wait(QUERYABLE_S_MAX)
        assert running.stop(signal.SIGKILL) == -signal.SIGKILL
        client.join(QUERYABLE_S_MAX)
        assert not client.is_alive()
    assert (home / "runtime.json").exists()  # nobody cleaned up

    with freshet_up(home) as running:
        until(lambda: acknowledged <= sales(freshet, home).keys(), QUERYABLE_S_MAX, "all is there")
        post(running.url, sale("K-1-0", 2, returned_quantity=1))
        until(lambda: sales(freshet, home)["K-1-0"] == 1, QUERYABLE_S_MAX, "it takes more")
        assert running.stop(signal.SIGINT) == 0
    checked = freshet(home, "verify", "sales", "--json")
    assert checked.code == 0, checked.out
    assert len(acknowledged) >= 300


def test_an_interrupted_send_leaves_no_process_and_no_lock(freshet: Run, tmp_path: Path) -> None:
    """Ctrl-C while it waits for standard input: 130, one line, and the home can be used again."""
    home = tmp_path / "home"
    process = subprocess.Popen(
        [*COMMAND, "send", "-", "--table", "sales"],
        env=_environment(home, {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        until((home / "runtime.json").exists, QUERYABLE_S_MAX, "the pipeline runs")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=QUERYABLE_S_MAX)

    assert process.returncode == 130
    assert "Traceback" not in err
    until(lambda: not children_of(home), GONE_S_MAX, "embedded AWS is gone")
    assert freshet(home, "tables").code == 0


def test_a_poll_that_fails_on_schedule_is_told_and_the_pipeline_goes_on(
    freshet_up: Start, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        port = closed.getsockname()[1]
        home, place = tmp_path / "home", f"ecb=http://127.0.0.1:{port}"
        with freshet_up(home, "--poll", "ecb=3600", "--url", place) as running:
            assert running.process.stderr is not None
            line = running.process.stderr.readline()
            assert line.startswith("poll of ecb failed: source 'ecb' at ")
            assert HTTP.request("GET", f"{running.url}/health").status == 200
            assert running.stop(signal.SIGINT) == 0


def test_a_raw_record_from_any_tool_is_taken_and_poison_is_not_in_its_way(
    freshet: Run, freshet_up: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with freshet_up(home) as running:
        addresses = json.loads((home / "runtime.json").read_text())
        os.environ.update(EmbeddedAws(home / "aws").environment())
        kinesis = EmbeddedAws(home / "aws")._session.client(
            "kinesis", endpoint_url=addresses["aws"], region_name="us-east-1"
        )
        event = {**sale("R-1"), "table": "sales", "op": "c", "event_id": "r", "source": "tool"}
        event["accepted_at"] = "2026-11-21T08:30:00Z"
        for data in (b"\xff\xfe poison", json.dumps(event).encode()):
            kinesis.put_record(StreamName=STREAM, Data=data, PartitionKey="one")

        until(lambda: "R-1" in sales(freshet, home), QUERYABLE_S_MAX, "the neighbour lands")
        asked = freshet(home, "query", "SELECT reason FROM quarantine", "--format", "csv")
        assert asked.out == "reason\nunknown_format\n"
        kinesis.close()
        assert running.stop(signal.SIGINT) == 0
