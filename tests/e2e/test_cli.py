"""Every command as its help shows it, its JSON, its exit codes, and what it says of bad input."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import COMMAND, Run, Start
from typer.main import get_command

from freshet.tables import TABLES
from freshet.testing import sale_row
from local.cli import app
from local.sample import ECB_RATES
from local.sample.ecb import Ecb

COMMANDS = dict(getattr(get_command(app), "commands"))  # noqa: B009 - typed as a single command
EXAMPLES = {
    name: command.epilog.removeprefix("Example: freshet ") for name, command in COMMANDS.items()
}
SENT = [
    {"after": sale_row("A-1"), "version": 1},
    {"after": sale_row("A-1", returned_quantity=2), "version": 3},
    {"after": sale_row("A-1", returned_quantity=1), "version": 2},
    {"after": sale_row("A-2"), "version": 1},
    {"op": "d", "key": {"sale_id": "A-2"}, "version": 2},
]
BAD = [
    {"after": sale_row("B-1")},
    {"after": sale_row("B-2", quantity="six")},
    "no event",
    {"after": sale_row("B-3")},
]


def ndjson(events: list[Any]) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, freshet: Run) -> Path:
    """A home with a few sales: one returned, one late, one deleted."""
    home = tmp_path_factory.mktemp("cli") / "home"
    done = freshet(home, "send", "-", "--table", "sales", stdin=ndjson(SENT))
    assert done.code == 0, done.err
    assert done.out.split() == ["accepted", "rejected", "5", "0"]
    return home


@pytest.fixture(scope="module")
def rates() -> Iterator[str]:
    with Ecb(ECB_RATES) as server:
        yield server.url


def test_help_names_every_command_and_answers_without_a_home(freshet: Run, tmp_path: Path) -> None:
    done = freshet(tmp_path / "home", "--help")

    assert done.code == 0
    assert set(COMMANDS) == {
        "demo",
        "up",
        "local-deploy",
        "send",
        "poll",
        "query",
        "tables",
        "why",
        "verify",
        "maintain",
        "reconcile",
        "source",
        "quarantine",
        "replay",
        "rebuild",
        "erase",
        "gold",
        "history",
        "diff",
        "rollback",
        "contracts",
        "docs",
        "redshift",
    }
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.out, flags=re.MULTILINE)
    assert not (tmp_path / "home").exists()


# What runs for long, what the checkout is read for, and what only an account has.
ELSEWHERE = {"demo", "up", "local-deploy", "contracts", "redshift"}


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - ELSEWHERE))
def test_the_example_in_the_help_runs(
    freshet: Run, tmp_path: Path, home: Path, rates: str, name: str
) -> None:
    """`demo` and `local-deploy` have files of their own; `up` follows. The sale of the example is
    one of the demo's.
    """
    (tmp_path / "events.ndjson").write_text(ndjson([{"after": sale_row("536365-1")}]))
    sources = {"ECB_URL": rates, "ECB_START": "2010-12-01"}
    arranged_by = {"why": "send", "reconcile": "poll"}
    if name in arranged_by:
        arrange = shlex.split(EXAMPLES[arranged_by[name]])
        assert freshet(home, *arrange, cwd=tmp_path, **sources).code == 0

    done = freshet(home, *shlex.split(EXAMPLES[name]), cwd=tmp_path, **sources)

    assert done.code == 0, done.err
    assert done.out or name == "docs"  # which writes files


def test_the_example_of_up_runs(freshet_up: Start, tmp_path: Path, rates: str) -> None:
    arguments = shlex.split(EXAMPLES["up"])[1:]
    free = arguments.index("--port")
    del arguments[free : free + 2]  # 8080 may be taken here

    with freshet_up(
        tmp_path / "home", *arguments, ECB_URL=rates, ECB_START="2010-12-01"
    ) as running:
        assert running.process.stderr is not None
        assert re.match(r"polled ecb: \d+ changes", running.process.stderr.readline())
        assert running.stop(signal.SIGTERM) == 0


def test_tables_as_json(freshet: Run, home: Path) -> None:
    done = freshet(home, "tables", "--json")

    assert done.code == 0
    tables = {row["table"]: row for row in done.json}
    assert list(tables) == list(TABLES.names)
    assert set(tables["sales"]) == {
        "table",
        "key",
        "partition",
        "rows",
        "files",
        "snapshot",
        "committed",
    }
    assert tables["sales"]["rows"] >= 1
    assert tables["products"] | {"table": ""} == {
        "table": "",
        "key": "product_id",
        "partition": "bucket[4](product_id)",
        "rows": 0,
        "files": 0,
        "snapshot": None,
        "committed": None,
    }


def test_query_prints_tables_csv_and_json(freshet: Run, home: Path) -> None:
    query = "SELECT sale_id, unit_price, customer_id, NULL AS n FROM sales WHERE sale_id = 'A-1'"

    as_json = freshet(home, "query", query, "--json")
    as_csv = freshet(home, "query", "-", "--format", "csv", stdin=query)
    as_table = freshet(home, "query", query)

    [row] = as_json.json
    customer = row["customer_id"]
    assert re.fullmatch("hmac:[0-9a-f]{40}", customer)
    assert row == {"sale_id": "A-1", "unit_price": "2.5500", "customer_id": customer, "n": None}
    assert as_csv.out == f"sale_id,unit_price,customer_id,n\nA-1,2.5500,{customer},\n"
    assert [line.split() for line in as_table.out.splitlines()] == [
        ["sale_id", "unit_price", "customer_id", "n"],
        ["A-1", "2.5500", customer],
    ]


def test_why_tells_current_superseded_and_stale(freshet: Run, home: Path) -> None:
    done = freshet(home, "why", "sales", "A-1", "--json")

    assert done.code == 0
    assert [(event["version"], event["verdict"]) for event in done.json] == [
        (1, "superseded"),
        (3, "current"),
        (2, "stale"),
    ]
    assert {"op", "key", "after", "source", "position", "because"} <= set(done.json[0])


def test_why_tells_of_a_delete_and_of_a_composite_key(freshet: Run, home: Path, rates: str) -> None:
    deleted = freshet(home, "why", "sales", "A-2", "--json").json
    sources = {"ECB_URL": rates, "ECB_START": "2010-12-01"}
    assert freshet(home, "poll", "ecb", **sources).code == 0
    rate = freshet(home, "why", "exchange_rates", "USD,2010-12-01", "--json")

    assert [(event["op"], event["verdict"]) for event in deleted] == [
        ("u", "superseded"),
        ("d", "current"),
    ]
    assert rate.code == 0
    assert json.loads(rate.json[0]["after"])["currency"] == "USD"


def test_verify_as_json_holds(freshet: Run, home: Path) -> None:
    done = freshet(home, "verify", "sales", "--json")

    assert done.code == 0
    assert len(done.json) == 4
    for check in done.json:
        assert set(check) == {"table", "law", "checked", "holds", "findings", "notes"}
        assert check["holds"]


def test_verify_names_what_is_broken_and_exits_with_1(freshet: Run, tmp_path: Path) -> None:
    """A file of the log is lost."""
    home = tmp_path / "home"
    freshet(home, "send", "-", "--table", "sales", stdin=ndjson(SENT[:1]))
    [log] = (home / "aws").rglob("change_log/table_name=sales/*/*.parquet")
    log.unlink()

    done = freshet(home, "verify", "sales")

    assert done.code == 1
    assert "BROKEN" in done.out
    assert "sales: A-1 is in the table but not in the log" in done.err.splitlines()
    assert "breaks a law" in done.error


def test_send_takes_an_array_and_names_each_refused_event(freshet: Run, tmp_path: Path) -> None:
    home, file = tmp_path / "home", tmp_path / "events.json"
    file.write_text(json.dumps(BAD, indent=2))

    done = freshet(home, "send", str(file), "--table", "sales")

    assert done.code == 1
    assert done.out.split() == ["accepted", "rejected", "2", "2"]
    assert [line for line in done.err.splitlines() if line.startswith("event ")] == [
        "event 1: after.quantity: wrong_type: Input should be a valid integer",
        "event 2: wrong_type: an event must be a JSON object",
    ]
    assert done.error == "Error: 2 of 4 events were refused"
    asked = freshet(home, "query", "SELECT sale_id FROM sales ORDER BY 1", "-f", "csv")
    assert asked.out.split() == ["sale_id", "B-1", "B-3"]  # queryable as soon as it returned


def test_send_as_json_and_of_nothing(freshet: Run, home: Path, tmp_path: Path) -> None:
    bad = freshet(home, "send", "-", "--table", "sales", "--json", stdin=ndjson(BAD[1:2]))
    nothing = freshet(home, "send", "-", "--table", "sales", "--json")

    assert bad.code == 1
    assert bad.json["refused"][0] | {"detail": ""} == {
        "index": 0,
        "status": "rejected",
        "reason": "wrong_type",
        "field": "after.quantity",
        "detail": "",
    }
    assert (nothing.code, nothing.json) == (0, {"accepted": 0, "rejected": 0, "refused": []})


def test_poll_as_json(freshet: Run, tmp_path: Path, rates: str) -> None:
    done = freshet(
        tmp_path / "home", "poll", "ecb", "--json", "--url", rates, ECB_START="2010-12-01"
    )

    assert done.code == 0, done.err
    assert done.json["created"] == done.json["published"] > 0


def test_a_source_that_does_not_answer_is_named(freshet: Run, tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = freshet(tmp_path / "home", "poll", "platzi", PLATZI_URL=url)

    assert done.code == 1
    assert f"source 'platzi' at {url}" in done.error
    assert "the next poll takes up from there" in done.error


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("query", "SELECT * FROM nosuch"), 1, "Table with name nosuch does not exist"),
        (("query", "SELEC 1"), 1, "syntax error"),
        (("query", " "), 2, "there is no SQL"),
        (("query", "SELECT 1", "--format", "xml"), 2, "xml"),
        (("why", "sales", "nosuch"), 1, "no event of sales nosuch"),
        (("why", "sales", "a,b"), 2, "needs 1 part(s): sale_id"),
        (("why", "exchange_rates", "USD,2010-13-01"), 2, "not a date"),
        (("why", "nosuch", "1"), 2, "unknown table 'nosuch'; declared tables: sales"),
        (("verify", "nosuch"), 2, "unknown table 'nosuch'"),
        (("maintain", "nosuch"), 2, "unknown table 'nosuch'"),
        (("maintain", "--grace-hours", "0"), 2, "grace-hours"),
        (("send", "-", "--table", "nosuch"), 2, "unknown table 'nosuch'"),
        (("send", "nosuch.ndjson", "--table", "sales"), 2, "cannot read 'nosuch.ndjson'"),
        (("poll", "nosuch"), 2, "platzi_categories"),
        (("poll", "ecb", "--url", "nonsense"), 1, "ECB_URL"),
        (("reconcile", "nosuch"), 2, "platzi_categories"),
        (("up", "--poll", "ecb=often"), 2, "SOURCE=SECONDS"),
        (("up", "--url", "nosuch=x"), 2, "SOURCE=URL"),
        (("up", "--port", "70000"), 2, "65535"),
        (("nosuch",), 2, "No such command 'nosuch'"),
    ],
)
def test_bad_input_gets_one_clear_line_and_its_code(
    freshet: Run, home: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    done = freshet(home, *arguments)

    assert done.code == code
    assert says in done.error
    assert not done.out


def test_asking_a_home_where_nothing_ever_ran_says_so_and_makes_nothing(
    freshet: Run, tmp_path: Path
) -> None:
    for arguments in (
        ("tables",),
        ("query", "SELECT 1"),
        ("why", "sales", "1"),
        ("verify",),
        ("maintain",),
        ("reconcile", "ecb"),
    ):
        done = freshet(tmp_path / "nosuch", *arguments)
        assert done.code == 1
        assert "no pipeline has run in" in done.error
    assert not list(tmp_path.iterdir())


def test_a_home_that_cannot_be_written_is_named(freshet: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        done = freshet(folder, "send", "-", "--table", "sales", cwd=tmp_path)
        assert done.code == 1
        assert f"cannot write to {folder}" in done.error
        assert "--home" in done.error


def test_a_reader_that_leaves_early_is_no_error(freshet: Run, home: Path) -> None:
    command = ("bash", "-c", '"$0" "$@" | head -n 1')
    everything = ("query", "FROM range(300000)", "--format", "csv")

    done = freshet(home, *everything, program=(*command, *COMMAND))

    assert (done.code, done.out, done.err) == (0, "range\n", "")


def test_any_kind_of_value_is_json(freshet: Run, home: Path) -> None:
    """A time or an interval ended in a trace."""
    done = freshet(home, "query", "SELECT TIME '12:00' AS t, INTERVAL 1 DAY AS i", "--json")

    assert done.json[0]["t"] == "12:00:00"
    assert "days=1" in done.json[0]["i"]
