"""`freshet history`, `diff`, `rollback` and SQL as of a moment, over a lake in embedded S3."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.unit.test_consumer_decode import batch_of
from typer.testing import CliRunner, Result

from consumer.app import build
from freshet.arrow import position_of
from freshet.errors import FreshetError
from freshet.tables import TABLES
from freshet.testing import StoppedClock, change, sale_row
from freshet.wire import MAGIC, PART_STRIDE, encode_event
from lake import travel
from lake.log import LoggedEvent, Place, QuarantinedLine, Resolution, Verdict
from lake.prune import NO_ROW
from lake.travel import Moment, NoSuchSnapshotError, StateExpiredError
from local import time_commands
from local.clouds import Where
from local.options import Failed
from local.past import connect_at
from local.runtime import Home, open_lake
from local.sql import QueryError, ask

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(time_commands.app)


@app.callback()
def where(context: typer.Context) -> None:
    context.obj = (Where.EMBEDDED, "freshet")


@dataclass
class World:
    """A pipeline's home; its lake is open for one step at a time, as commands open it."""

    home: Home
    first: int = 0
    second: int = 0

    def land(self, *rows: tuple[str, int], version: int, gone: tuple[str, ...] = ()) -> int:
        """Consume one batch; the snapshot it made."""
        events = [
            change("sales", sale_row(key, quantity=quantity), version=version)
            for key, quantity in rows
        ]
        events += [change("sales", None, key={"sale_id": key}, version=version) for key in gone]
        with open_lake(self.home, read_only=False) as (lake, _):
            handle = build(lake, tables=TABLES, now=StoppedClock())
            handle(batch_of(*map(encode_event, events)), None)
            snapshot_id = lake.current("sales").rows.view().snapshot_id
            assert isinstance(snapshot_id, int)
            return snapshot_id

    def at(self, moment: Moment, query: str) -> list[tuple[Any, ...]]:
        with open_lake(self.home, read_only=False) as (lake, access):
            shown = connect_at(lake, access, moment)
            try:
                return ask(shown.connection, query)[1]
            finally:
                shown.connection.close()

    def run(self, *arguments: str, answer: str = "") -> Result:
        command = [*arguments, "--home", str(self.home.folder)]
        return CliRunner().invoke(app, command, input=answer)

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Of two batches: B went, C came, A changed. Only the last test of this file writes."""
    home = Home(tmp_path_factory.mktemp("time") / "home")
    home.aws.mkdir(parents=True)
    world = World(home)
    world.first = world.land(("A", 1), ("B", 1), version=1)
    world.second = world.land(("A", 2), ("C", 3), version=2, gone=("B",))
    return world


QUANTITIES = "SELECT sale_id, quantity FROM sales ORDER BY sale_id"


def test_sql_sees_the_tables_of_a_moment(world: World) -> None:
    ahead = datetime.now(UTC) + timedelta(hours=1)

    with open_lake(world.home, read_only=False) as (lake, access):

        def at(moment: Moment, query: str) -> list[tuple[Any, ...]]:
            return ask(connect_at(lake, access, moment).connection, query)[1]

        assert at(world.first, QUANTITIES) == [("A", 1), ("B", 1)]
        assert at(world.second, QUANTITIES) == at(ahead, QUANTITIES) == [("A", 2), ("C", 3)]
        assert at(ahead - timedelta(days=1), QUANTITIES) == []
        # A snapshot of one table is a time for all others, and gold views show what they show.
        assert at(world.first, "SELECT count(*) FROM sales_tombstones") == [(0,)]
        assert at(world.first, "SELECT sum(gross_gbp) FROM sales_by_day") != (
            at(world.second, "SELECT sum(gross_gbp) FROM sales_by_day")
        )
        # Logs end at the moment too, and so do the views that are made of them.
        logged = "SELECT count(*) FROM change_log"
        assert at(datetime(2020, 1, 1, tzinfo=UTC), logged) == [(0,)]
        assert at(ahead, logged) == [(3,)]  # both batches begin at one place of the stream
        assert at(datetime(2020, 1, 1, tzinfo=UTC), "FROM sales_by_day_as_reported") == []
        with pytest.raises(NoSuchSnapshotError, match="no table has snapshot 42"):
            connect_at(lake, access, 42)


def test_a_table_without_that_past_is_left_out_and_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_lake(world.home, read_only=False) as (lake, access):
        ordered = travel._ordered

        def ended(table: Any) -> list[Any]:
            """History of the sales has lost its beginning."""
            return ordered(table)[1:] if table.name()[-1] == "sales" else ordered(table)

        monkeypatch.setattr(travel, "_ordered", ended)
        shown = connect_at(lake, access, datetime(2020, 1, 1, tzinfo=UTC))

        assert any(note.startswith("table 'sales': there is no state") for note in shown.notes)
        assert ask(shown.connection, "SELECT count(*) FROM products")[1] == [(0,)]
        for query in (
            "SELECT count(*) FROM sales",
            "SELECT sku FROM sales WHERE quantity > 1",
            "SELECT count(*) FROM products WHERE sku NOT IN (SELECT sku FROM sales)",
            "FROM sales_by_day",
        ):
            with pytest.raises(QueryError, match="'sales': there is no state of 2020"):
                ask(shown.connection, query)


# What lay in the quarantine: the whole lines of one record, one line of another that became two
# changes, and a patch that was logged long before it was pruned.
REFUSED = [
    ("1", 0, MAGIC + b"\x09", "unsupported_version", (0, 1, 2)),
    ("2", 0, b"{}", "unknown_column", (0, PART_STRIDE)),
    ("3", 4, b"{}", NO_ROW, (4,)),
]
ARRIVED = datetime(2026, 1, 1, tzinfo=UTC)


def _replayed_at(world: World, *times: datetime) -> None:
    """Log lines of the quarantine, beside a neighbour that never was there, and resolve them."""

    def place(number: str, index: int) -> Place:
        return Place("shard-q", number, index, position_of(number, index), ARRIVED)

    event = change("sales", sale_row("Q"), version=1)
    with open_lake(world.home, read_only=False) as (lake, _):
        for number, index, data, reason, parts in REFUSED:
            at = place(number, index)
            line = QuarantinedLine(reason, None, "", data, at, "sales")
            logged = [LoggedEvent(event, place(number, part)) for part in parts]
            lake.keep(f"refused-{number}", [], [line])
            lake.keep(f"replay-{number}", logged, [])
            for time in times:
                by = f"{number} at {time}"
                lake.resolve([Resolution(at, "sales", Verdict.REPLAYED, by, time, "tester")])
        lake.keep("shard-q-2-2", [LoggedEvent(event, place("2", 1))], [])


def test_a_replayed_line_was_in_the_log_when_it_had_been_replayed(
    world: World, tmp_path: Path
) -> None:
    world = World(Home(tmp_path / "home"))
    world.home.aws.mkdir(parents=True)
    replayed = ARRIVED + timedelta(days=2)
    _replayed_at(world, replayed)
    query = "SELECT sequence_number, record_index FROM change_log ORDER BY ALL"
    whole = [("1", 0), ("1", 1), ("1", 2), ("2", 0), ("2", 1), ("2", PART_STRIDE), ("3", 4)]

    assert world.at(ARRIVED - timedelta(seconds=1), query) == []
    assert world.at(replayed - timedelta(seconds=1), query) == [("2", 1), ("3", 4)]
    assert world.at(replayed, query) == whole


def test_history_is_listed_newest_first(world: World) -> None:
    told = world.json("history", "sales")

    assert [one["snapshot_id"] for one in told] == [str(world.second), str(world.first)]
    assert told[0]["done"] == {"received": 3, "inserted": 1, "updated": 1, "deleted": 1}
    table = world.run("history", "sales").stdout
    assert str(world.first) in table
    assert "updated 1" in table


def test_a_difference_is_shown_by_column(world: World) -> None:
    first, second = world.first, world.second

    told = world.json("diff", "sales", str(first), str(second))
    shown = world.run("diff", "sales", str(first), str(second))
    short = world.json("diff", "sales", str(first), str(second), "--limit", "1")

    assert (told["inserted"], told["updated"], told["deleted"]) == (1, 1, 1)
    by_key = {one["key"]: one for one in told["rows"]}
    assert by_key["A"]["columns"] == {"quantity": {"before": 1, "after": 2}}
    assert by_key["C"]["columns"]["unit_price"] == {"before": None, "after": "2.5500"}
    assert "quantity" in shown.stdout
    assert "1 inserted, 1 updated, 1 deleted" in shown.stderr
    assert (len(short["rows"]), short["updated"]) == (1, 1)


@pytest.mark.parametrize(
    "arguments", [("diff", "sales", "then", "now"), ("history", "sale"), ("rollback", "sales", "x")]
)
def test_a_word_that_is_no_table_or_moment_is_a_misuse(
    world: World, arguments: tuple[str, ...]
) -> None:
    assert world.run(*arguments).exit_code == 2


def test_a_time_that_utc_has_no_year_for_is_a_misuse(world: World) -> None:
    done = world.run("rollback", "sales", "0001-01-01T00:00:00+05:00", "--dry-run")

    assert done.exit_code == 2
    assert "UTC unless" in " ".join(world.run("rollback", "--help").stdout.split())


def test_an_unknown_snapshot_is_an_error_that_says_what_lists_them(world: World) -> None:
    done = world.run("rollback", "sales", "42", "--yes")

    assert isinstance(done.exception, FreshetError)
    assert "freshet history sales" in str(done.exception)


def test_a_rollback_to_an_expired_state_is_refused_and_a_look_says_so(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_lake(world.home, read_only=False) as (lake, _):
        told = travel.history(lake.current("sales").rows.view().table)
    ordered = travel._ordered

    def with_a_gap(table: Any) -> list[Any]:
        """A snapshot between the two has expired."""
        first, last = ordered(table)
        return [first, last.model_copy(update={"sequence_number": 9})]

    monkeypatch.setattr(travel, "_ordered", with_a_gap)
    between = told[0].committed_at.isoformat()

    seen = world.run("rollback", "sales", between, "--dry-run", "--json")
    asked = world.run("rollback", "sales", between, answer="y\n")
    done = world.run("rollback", "sales", between, "--yes")

    assert (seen.exit_code, json.loads(seen.stdout)["exact"]) == (0, False)
    for text in (seen.stderr, str(asked.exception), str(done.exception)):
        assert str(world.first) in text
        assert str(world.second) in text
    assert isinstance(asked.exception, StateExpiredError)
    assert isinstance(done.exception, StateExpiredError)
    assert len(world.json("history", "sales")) == 2


def test_a_rollback_is_looked_at_asked_for_and_done(world: World) -> None:
    first = world.first

    seen = world.json("rollback", "sales", str(first), "--dry-run")
    declined = world.run("rollback", "sales", str(first), answer="n\n")
    unchanged = world.json("history", "sales")
    done = world.json("rollback", "sales", str(first), "--yes")
    again = world.run("rollback", "sales", str(first), "--yes")

    assert (seen["came_back"], seen["restored"], seen["removed"]) == (1, 1, 1)
    assert seen["snapshot_id"] is None
    assert isinstance(declined.exception, Failed)
    assert "1 rows come back, 1 get their old values, 1 go" in declined.stderr
    assert len(unchanged) == 2
    assert done["to_snapshot_id"] == str(first)
    assert done["snapshot_id"] not in (None, str(first))
    assert world.at(datetime.now(UTC) + timedelta(hours=1), QUANTITIES) == [("A", 1), ("B", 1)]
    assert "nothing was to be done" in again.stderr
