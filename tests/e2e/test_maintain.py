"""`freshet maintain` as a user runs it: what it frees, and what runs beside it."""

from __future__ import annotations

import json
import signal
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.e2e.conftest import Run, Start
from tests.e2e.test_up import post, sale, sales, until

from local.embedded import EmbeddedAws

BUCKET = "freshet-lake"
MARKS = "lake/maintenance/freshet/sales.json"
QUERYABLE_S_MAX = 30
SHOWN = ["table", "outcome", "expired", "pruned", "merged", "into", "files", "needed"]
SHOWN += ["waiting", "deleted"]


def s3(aws: EmbeddedAws, endpoint_url: str) -> Any:
    environment = aws.environment()
    return boto3.client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )


def days_go_by(client: Any, days: int) -> None:
    """Move a table's marks into the past."""
    marks = json.loads(client.get_object(Bucket=BUCKET, Key=MARKS)["Body"].read())
    for group in marks["unreferenced"]:
        group[0] = [moment and earlier(moment, days) for moment in group[0]]
    client.put_object(Bucket=BUCKET, Key=MARKS, Body=json.dumps(marks).encode())


def earlier(moment: str, days: int) -> str:
    return (datetime.fromisoformat(moment) - timedelta(days=days)).isoformat()


def maintain(freshet: Run, home: Path, *options: str) -> dict[str, Any]:
    done = freshet(home, "maintain", "sales", "--json", *options)
    assert done.code == 0, done.err
    assert "sales: looking for files that nothing needs" in done.err
    rows, _tombstones = done.json
    return dict(rows)


@pytest.mark.long
def test_it_frees_what_nothing_needs_beside_a_running_pipeline(
    freshet: Run, freshet_up: Start, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with freshet_up(home) as running:
        post(running.url, sale("A-1"))
        until(lambda: "A-1" in sales(freshet, home), QUERYABLE_S_MAX, "the first change")
        endpoint = json.loads((home / "runtime.json").read_text())["aws"]
        client = s3(EmbeddedAws(home / "aws"), endpoint)
        stray = "lake/freshet/sales/data/stray.parquet"
        client.put_object(Bucket=BUCKET, Key=stray, Body=b"of a dead commit")

        reports = {"first": maintain(freshet, home)}
        days_go_by(client, 2)
        reports["second"] = maintain(freshet, home)
        days_go_by(client, 2)
        reports["dry"] = maintain(freshet, home, "--dry-run")
        assert is_there(client, stray), "a dry run deletes nothing"
        reports["last"] = maintain(freshet, home)
        assert not is_there(client, stray)
        post(running.url, sale("A-2"))
        until(lambda: "A-2" in sales(freshet, home), QUERYABLE_S_MAX, "the next change")
        assert running.stop(signal.SIGTERM) == 0

    # Beside the stray lies what a query and the consumer left that made the table at once.
    assert {report["outcome"] for report in reports.values()} == {"done"}
    assert reports["first"]["marked"] == reports["first"]["waiting"] >= 1
    assert (reports["second"]["waiting"] >= 1, reports["second"]["deleted"]) == (True, 0)
    assert (reports["dry"]["left"] >= 1, reports["dry"]["deleted"]) == (True, 0)
    assert (reports["last"]["left"], reports["last"]["deleted"]) == (0, reports["dry"]["left"])
    assert sales(freshet, home).keys() == {"A-1", "A-2"}


def is_there(client: Any, key: str) -> bool:
    return bool(client.list_objects_v2(Bucket=BUCKET, Prefix=key)["KeyCount"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, freshet: Run) -> Path:
    home = tmp_path_factory.mktemp("maintain") / "home"
    sent = json.dumps(sale("A-1")) + "\n"
    assert freshet(home, "send", "-", "--table", "sales", stdin=sent).code == 0
    return home


def test_it_prints_a_line_for_each_table(freshet: Run, home: Path) -> None:
    done = freshet(home, "maintain")

    assert done.code == 0
    head, *lines = [line.split() for line in done.out.splitlines()]
    assert head == SHOWN
    assert ["sales", "done"] in [line[:2] for line in lines]
    assert ["products", "absent"] in [line[:2] for line in lines]


def test_a_lake_that_is_not_whole_is_told_and_keeps_its_files(freshet: Run, tmp_path: Path) -> None:
    home = tmp_path / "home"
    sent = json.dumps(sale("A-1")) + "\n"
    freshet(home, "send", "-", "--table", "sales", stdin=sent)
    [data] = (home / "aws").rglob("sales/data/*/*.parquet")
    data.unlink()

    done = freshet(home, "maintain", "sales")

    assert done.code == 1
    assert "a retained snapshot needs 'data/" in done.err
    assert done.error == "Error: refused to delete files of sales: the lines above say why"
