"""The maintenance function: its input, its report, what it counts and when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.evolving import Declared, contract
from tests.unit.test_consumer_decode import batch_of

from consumer import app as consumer
from freshet.contract import Integer, Registry, Text
from freshet.errors import SettingsError, UnknownTableError
from freshet.tables import TABLES, Sale
from freshet.telemetry import LogEvent, Metric, count
from freshet.testing import MemoryObjects, StoppedClock, change, product_row, sale_row
from freshet.wire import encode_event
from lake.lake import Lake
from lake.maintain import Maintenance
from lake.prune import HORIZON, REPLAY
from lake.settings import LakeSettings
from lake.testing import LakeSite, batch, placed
from lake.vacuum import COMMIT_MAX, GRACE, Outcome
from local.clouds import Laptop
from local.invocation import LocalFunction
from local.runtime import DATABASE, Aws, Home, local_aws
from maintenance import app
from maintenance.app import MARGIN_S, Handler, InputError, TablesRefusedError, build
from maintenance.settings import Settings

STRAY = "freshet/sales/data/stray.parquet"
ENVIRONMENT = {"LAKE_BUCKET": "lake-bucket", "DATABASE": "freshet"}


@pytest.fixture
def objects() -> MemoryObjects:
    return MemoryObjects()


@pytest.fixture
def lake(objects: MemoryObjects, tmp_path: Path) -> Iterator[Lake]:
    """With one sale, and a file of a dead commit."""
    lake = LakeSite(objects, tmp_path / "catalog.db").open()
    lake.apply("sales", batch(Sale, [placed(Sale, 1, version=1, after=sale_row("A-1"))]), {})
    objects.put(STRAY, b"of a dead commit")
    yield lake
    lake.close()


@pytest.fixture
def clock() -> StoppedClock:
    return StoppedClock()


@pytest.fixture
def handle(lake: Lake, clock: StoppedClock) -> Handler:
    return build(Maintenance(lake, now=clock), tables=TABLES)


def invoke(handler: Handler, event: dict[str, Any], *, timeout_s: float = 900) -> Any:
    return LocalFunction(handler, "maintenance", timeout_s=timeout_s).invoke(event)


def by_table(report: Any) -> dict[str, dict[str, Any]]:
    return {one["table"]: one for one in report["tables"]}


def settle(handle: Handler, clock: StoppedClock) -> None:
    for pause in (COMMIT_MAX, GRACE):
        invoke(handle, {})
        clock.advance(pause.total_seconds())


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_a_scheduled_run_deletes_what_is_due_and_reports_every_table(
    handle: Handler, clock: StoppedClock, objects: MemoryObjects
) -> None:
    settle(handle, clock)

    # What EventBridge adds of its own is no concern.
    report = invoke(handle, {"version": "0", "detail-type": "Scheduled Event", "detail": {}})

    assert report["dry_run"] is False
    found = by_table(report)
    assert list(found) == [
        name for table in TABLES.names for name in (table, f"{table}_tombstones")
    ]
    assert (found["sales"]["outcome"], found["sales"]["deleted"]) == ("done", 1)
    assert found["products"]["outcome"] == "absent"
    assert STRAY not in set(objects.list(""))


def test_a_run_can_be_dry_and_of_some_tables(
    handle: Handler, clock: StoppedClock, objects: MemoryObjects
) -> None:
    settle(handle, clock)

    report = invoke(handle, {"dry_run": True, "tables": ["sales"]})

    found = by_table(report)
    assert list(found) == ["sales", "sales_tombstones"]
    assert (found["sales"]["deleted"], found["sales"]["left"]) == (0, 1)
    assert STRAY in set(objects.list(""))


@pytest.mark.parametrize(
    "event", [{"dry_run": "no"}, {"tables": "sales"}, {"tables": []}, {"dry_run": None}]
)
def test_input_of_another_shape_is_refused_by_name(handle: Handler, event: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"^{next(iter(event))} cannot be"):
        invoke(handle, event)


def test_a_table_that_nobody_declared_is_refused(handle: Handler) -> None:
    for name in ("sale", 3):
        with pytest.raises(UnknownTableError):
            invoke(handle, {"tables": [name]})


def test_what_was_deleted_and_what_waits_is_counted_and_logged(
    handle: Handler, clock: StoppedClock, capsys: pytest.CaptureFixture[str]
) -> None:
    invoke(handle, {"tables": ["sales"]})
    waiting = lines(capsys.readouterr().out)
    settle(handle, clock)
    capsys.readouterr()
    invoke(handle, {"tables": ["sales"]})

    told = capsys.readouterr()

    assert [(line["table"], line["FilesWaiting"]) for line in waiting] == [("sales", [1.0])]
    assert [(line["table"], line["FilesDeleted"]) for line in lines(told.out)] == [("sales", [1.0])]
    logged = {line["table"]: line for line in lines(told.err)}
    assert logged["sales"]["message"] == LogEvent.TABLE_VACUUMED
    assert logged["sales"]["deleted"] == 1


def test_a_refused_table_fails_the_run_after_the_others_had_their_turn(
    handle: Handler,
    clock: StoppedClock,
    objects: MemoryObjects,
    lake: Lake,
    capsys: pytest.CaptureFixture[str],
) -> None:
    products = batch(
        TABLES["products"],
        [
            placed(
                TABLES["products"],
                1,
                version=1,
                after={
                    "product_id": "4",
                    "sku": "s",
                    "title": "t",
                    "price": "1.0000",
                    "currency": "GBP",
                },
            )
        ],
    )
    lake.apply("products", products, {})
    stray = STRAY.replace("sales", "products")
    objects.put(stray, b"of a dead commit")
    settle(handle, clock)
    [data] = [key for key in objects.list("freshet/sales/data/") if key != STRAY]
    objects.delete(data)
    capsys.readouterr()

    with pytest.raises(TablesRefusedError, match=r"1 table\(s\): sales: .*not in the store") as no:
        invoke(handle, {})

    told = capsys.readouterr()
    assert list(no.value.refused) == ["sales"]
    kept = set(objects.list(""))
    assert STRAY in kept
    assert stray not in kept
    [refused] = [line for line in lines(told.err) if line["message"] == LogEvent.TABLE_REFUSED]
    assert (refused["level"], refused["table"]) == ("ERROR", "sales")
    [counted] = [line for line in lines(told.out) if "TablesRefused" in line]
    assert (counted["function"], counted["TablesRefused"]) == ("maintenance", [1.0])


def manifest_of(lake: Lake) -> str:
    table = lake.current("sales").rows.view().table
    snapshot = table.current_snapshot()
    assert snapshot is not None
    return snapshot.manifests(table.io)[0].manifest_path


def manifest_list_of(lake: Lake) -> str:
    snapshot = lake.current("sales").rows.view().table.current_snapshot()
    assert snapshot is not None
    return snapshot.manifest_list


def metadata_of(lake: Lake) -> str:
    return lake.current("sales").rows.view().table.metadata_location


def spoil(objects: MemoryObjects, key: str, how: str) -> None:
    data = objects.get(key).data
    if how == "deleted":
        objects.delete(key)
    else:
        objects.put(
            key,
            {"truncated": data[: len(data) // 2], "garbage": b"garbage" * 50, "empty": b""}[how],
        )


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("of", "how"),
    [
        (manifest_of, "deleted"),
        (manifest_of, "truncated"),
        (manifest_of, "garbage"),
        (manifest_list_of, "deleted"),
        (manifest_list_of, "empty"),
        (metadata_of, "deleted"),
        (metadata_of, "truncated"),
        (metadata_of, "garbage"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_and_the_others_get_their_turn(
    lake: Lake,
    clock: StoppedClock,
    objects: MemoryObjects,
    tmp_path: Path,
    of: Callable[[Lake], str],
    how: str,
    *,
    dry_run: bool,
) -> None:
    product = placed(TABLES["products"], 1, version=1, after=product_row("4"))
    lake.apply("products", batch(TABLES["products"], [product]), {})
    spoil(objects, lake.files.key(of(lake)), how)
    held = set(objects.list(""))
    fresh = LakeSite(objects, tmp_path / "catalog.db").open()  # that has kept nothing in memory

    done = Maintenance(fresh, now=clock).run([Sale, TABLES["products"]], dry_run=dry_run)
    fresh.close()

    found = {one.table: one for one in done}
    assert {name: one.outcome for name, one in found.items()} == {
        "sales": Outcome.REFUSED,
        "sales_tombstones": Outcome.DONE,
        "products": Outcome.DONE,
        "products_tombstones": Outcome.DONE,
    }
    sales = found["sales"]
    assert (sales.tidied.outcome, sales.vacuumed.outcome) == (Outcome.REFUSED, Outcome.REFUSED)
    assert "cannot be read" in sales.detail or "FileNotFoundError" in sales.detail
    assert held <= set(objects.list(""))
    assert ("maintenance/freshet/products.json" in set(objects.list(""))) is not dry_run


def test_what_keeps_both_steps_from_a_table_is_told_once(
    lake: Lake, clock: StoppedClock, objects: MemoryObjects, tmp_path: Path
) -> None:
    spoil(objects, lake.files.key(metadata_of(lake)), "garbage")
    fresh = LakeSite(objects, tmp_path / "catalog.db").open()

    [sales, _] = Maintenance(fresh, now=clock).run([Sale])
    fresh.close()

    assert sales.detail.count("its metadata cannot be read") == 1


def test_a_dry_run_evolves_no_table_and_makes_none(tmp_path: Path, clock: StoppedClock) -> None:
    objects = MemoryObjects()
    columns = {"id": Declared(Text(64, 1)), "count": Declared(Integer(32))}
    old = contract(columns)
    new = contract({**columns, "note": Declared(Text(9), optional=True)})
    other = contract(columns, table="never_written")
    first = LakeSite(objects, tmp_path / "catalog.db", tables=Registry((old,))).open()
    event = placed(old, 1, version=1, after={"id": "a", "count": 1})
    first.apply("evolving", batch(old, [event]), {})
    pointer = first.current("evolving").rows.view().table.metadata_location
    newer = LakeSite(objects, tmp_path / "catalog.db", tables=Registry((new, other))).open()
    held, database = set(objects.list("")), (tmp_path / "catalog.db").read_bytes()

    done = Maintenance(newer, now=clock).run([new, other], dry_run=True)

    assert [one.outcome for one in done] == [Outcome.DONE] * 2 + [Outcome.ABSENT] * 2
    assert set(objects.list("")) == held
    assert (tmp_path / "catalog.db").read_bytes() == database
    assert first.current("evolving").rows.view().table.metadata_location == pointer
    first.close()
    newer.close()


def test_a_home_that_is_opened_for_reading_gets_no_tables(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with local_aws(home):
        pass
    seen = {}
    for read_only in (True, False):
        with Laptop(home).lake(read_only=read_only) as (lake, _):
            assert lake.rows("sales").num_rows == 0
            seen[read_only] = lake.catalog.list_tables(DATABASE)

    assert seen == {True: [], False: [(DATABASE, "sales")]}


def test_a_run_without_time_says_what_it_did_not_look_at(
    handle: Handler, capsys: pytest.CaptureFixture[str]
) -> None:
    report = invoke(handle, {"tables": ["sales"]}, timeout_s=MARGIN_S / 2)

    assert by_table(report)["sales"]["outcome"] == "unfinished"
    [counted] = [line for line in lines(capsys.readouterr().out) if "TablesUnfinished" in line]
    assert counted["TablesUnfinished"] == [2.0]  # rows and tombstones


@pytest.mark.parametrize("namespace", [None, "", "freshet-dev"])
def test_each_stack_counts_in_its_own_namespace(
    namespace: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POWERTOOLS_METRICS_NAMESPACE", raising=False)
    if namespace is not None:
        monkeypatch.setenv("POWERTOOLS_METRICS_NAMESPACE", namespace)

    count({Metric.CONFLICTS: 1}, table="sales")

    [line] = lines(capsys.readouterr().out)
    [metrics] = line["_aws"]["CloudWatchMetrics"]
    assert metrics["Namespace"] == (namespace or "Freshet")


def test_the_consumer_counts_a_commit_that_came_second(
    capsys: pytest.CaptureFixture[str],
) -> None:
    consumer._count_conflict("sales")

    of_table, of_all = lines(capsys.readouterr().out)
    assert (of_table["table"], of_table["CommitConflicts"]) == ("sales", [1.0])
    assert (of_all["function"], of_all["CommitConflicts"]) == ("consumer", [1.0])


def test_the_grace_is_a_day_unless_it_is_set() -> None:
    usual, longer = (Settings.from_env(ENVIRONMENT | more) for more in ({}, {"GRACE_HOURS": "48"}))

    assert usual == Settings(LakeSettings.from_env(ENVIRONMENT), timedelta(hours=24), HORIZON)
    assert longer.grace == timedelta(hours=48)


@pytest.mark.parametrize("hours", ["0", "-1", "1.5", "a day", "8785", "²", "1000000000000"])
def test_a_grace_that_is_none_is_named(hours: str) -> None:
    with pytest.raises(SettingsError, match="GRACE_HOURS"):
        Settings.from_env({**ENVIRONMENT, "GRACE_HOURS": hours})


def test_tombstones_stay_for_the_streams_retention_and_the_longest_replay() -> None:
    told = {"STREAM_RETENTION_HOURS": "24", "REPLAY_DAYS": "20"}
    usual, longer = (Settings.from_env(ENVIRONMENT | more) for more in ({}, told))
    short = Settings.from_env(ENVIRONMENT | {"STREAM_RETENTION_HOURS": "24"})
    # A table's history does not reach as far as this stream: nothing is pruned.
    for_ever = Settings.from_env(ENVIRONMENT | {"STREAM_RETENTION_HOURS": "8760"})

    assert usual.prune_after == HORIZON
    assert longer.prune_after == timedelta(days=21)
    assert short.prune_after == timedelta(days=1) + REPLAY
    assert for_ever.prune_after is None


@pytest.mark.parametrize("name", ["STREAM_RETENTION_HOURS", "REPLAY_DAYS"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "a day", "8785", "²"])
def test_a_horizon_that_is_none_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        Settings.from_env({**ENVIRONMENT, name: value})


def test_the_deployed_handler_is_composed_from_its_environment(tmp_path: Path) -> None:
    consumer._opened.cache_clear()
    app._from_environment.cache_clear()
    with local_aws(Home(tmp_path)) as aws:
        landed = batch_of(encode_event(change(after=sale_row())))
        function = LocalFunction(consumer.handler, "consumer")
        assert function.invoke(landed) == {"batchItemFailures": []}
        put(aws, f"lake/{STRAY}")

        found = by_table(invoke(app.handler, {}))

    app._from_environment.cache_clear()
    consumer._opened.cache_clear()
    assert (found["sales"]["outcome"], found["sales"]["waiting"]) == ("done", 1)


def put(aws: Aws, key: str) -> None:
    aws.client("s3").put_object(Bucket="freshet-lake", Key=key, Body=b"of a dead commit")
