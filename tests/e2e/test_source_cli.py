"""`freshet source …` and the options of `freshet poll`, as a user runs them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Run

from api_poller.declaration import parse_source
from local.sample import ECB_RATES
from local.sample.ecb import Ecb
from local.sample.serving import Reply, Request, SampleServer

START = {"ECB_START": "2011-11-01"}


def shelves(request: Request) -> Reply:
    """Categories with a total, by page."""
    rows = [{"id": one, "name": f"Shelf {one}", "slug": f"shelf-{one}"} for one in range(25)]
    page, size = (int(request.query.get(name, one)) for name, one in (("page", 1), ("limit", 10)))
    body = {"categories": rows[(page - 1) * size : page * size], "total": len(rows)}
    return Reply(200, json.dumps(body).encode())


@pytest.fixture(scope="module")
def rates() -> Iterator[Ecb]:
    with Ecb(ECB_RATES) as server:
        yield server


def test_sources_are_listed_before_anything_ever_ran(freshet: Run, tmp_path: Path) -> None:
    done = freshet(tmp_path / "home", "source", "list", "--json")

    rows = {row["name"]: row for row in done.json}
    assert done.code == 0
    assert rows["ecb"]["table"] == "exchange_rates"
    assert rows["ecb"]["mode"] == "incremental"
    assert rows["platzi"]["watermark"] is None
    assert not (tmp_path / "home").exists()


def test_a_source_is_tried_out_polled_and_forgotten(
    freshet: Run, tmp_path: Path, rates: Ecb
) -> None:
    home = tmp_path / "home"
    at = ("ecb", "--url", rates.url, "--json")

    tried = freshet(home, "source", "check", *at, **START)
    dry = freshet(home, "poll", *at, "--dry-run", **START)
    first = freshet(home, "poll", *at, **START)
    [known] = [row for row in freshet(home, "source", "list", "--json").json if row["rows"]]
    since = freshet(home, "poll", *at, "--since", "2011-12-20", "--dry-run", **START)
    kept = freshet(home, "source", "reset", "ecb", stdin="n\n")
    forgotten = freshet(home, "source", "reset", "ecb", "--yes")
    again = freshet(home, "poll", *at, "--dry-run", **START)

    assert {step["verdict"] for step in tried.json["steps"]} == {"ok"}
    assert len(tried.json["rows"]) == 3
    assert (dry.code, dry.json["published"]) == (0, 0)
    assert dry.json["created"] == first.json["published"] > 100
    assert known["name"] == "ecb"
    assert known["watermark"] == first.json["watermark"]
    assert since.json["listed"] < first.json["listed"]
    assert kept.code == 1
    assert "rows that vanish until then stay in the table" in kept.err
    assert forgotten.code == 0
    assert again.json["created"] == first.json["published"]


def test_a_source_that_does_not_work_fails_with_what_to_do(freshet: Run, tmp_path: Path) -> None:
    done = freshet(tmp_path / "home", "source", "check", "ecb", "--url", "http://127.0.0.1:9")

    assert done.code == 1
    assert "cannot be reached" in done.out
    assert done.error == "Error: source ecb does not work yet; the lines above say why"


def test_a_proposal_is_written_tried_out_and_polled(freshet: Run, tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "sources"
    folder.mkdir()
    at = {"SOURCES_FOLDER": str(folder)}

    with SampleServer(shelves, base_path="/v2") as server:
        url = f"{server.url}/categories"
        told = freshet(home, "source", "discover", url, **at)
        saved = freshet(home, "source", "discover", url, "--save", "shelves", **at)
        tried = freshet(home, "source", "check", "shelves", "--json", **at)
        polled = freshet(home, "poll", "shelves", "--json", **at)

    assert parse_source(told.out, "stdout").table == "categories"
    assert not saved.code
    assert "try it out: freshet source check shelves" in saved.err
    assert tried.code == 0, tried.out
    assert (polled.json["published"], polled.json["complete"]) == (25, True)


def test_a_table_that_is_not_declared_yet_is_proposed_with_its_class(
    freshet: Run, tmp_path: Path
) -> None:
    rows = json.dumps([{"id": one, "colour": "red"} for one in range(3)]).encode()
    at = {"SOURCES_FOLDER": str(tmp_path)}

    with SampleServer(lambda _: Reply(200, rows), base_path="") as server:
        url = f"{server.url}/balloons"
        done = freshet(tmp_path / "home", "source", "discover", url, "--save", "balloons", **at)

    assert done.code == 0
    assert "class Balloon(" in done.err
    assert "once table balloons is declared, rename it to balloons.yaml" in done.err
    assert [path.name for path in tmp_path.glob("*.yaml*")] == ["balloons.yaml.draft"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("source", "check", "nosuch"), 2, "'nosuch' is not a source; sources: "),
        (("source", "reset", "nosuch", "--yes"), 2, "'nosuch' is not a source"),
        (("source", "discover", "https://x.example", "--header", "Accept"), 2, "Name=value"),
        (("source", "discover", "https://x.example", "--save", "../x"), 2, "small letters"),
        (("source", "discover", "http://x.example/rows"), 1, "is not encrypted"),
        (("source", "discover", "ftp://x.example/rows"), 1, "https://host/path"),
        (("source", "reset", "ecb", "--yes"), 1, "no pipeline has run"),
        (("poll", "platzi", "--since", "2026-01-01"), 1, "nothing to read since"),
    ],
)
def test_misuse_is_told_in_one_line(
    freshet: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = freshet(tmp_path / "home", *arguments)

    assert done.code == code
    assert said in " ".join(done.err.split())
