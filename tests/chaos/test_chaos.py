"""The chaos run, small enough for every day, and proof that its checks can fail."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.contracts import FIRST, SECOND, STREAMS
from tests.chaos.run import Wish, chaos
from tests.chaos.site import Site
from tests.chaos.traffic import Meant, Traffic

from freshet.clock import utc_now
from freshet.contract import Registry
from freshet.wire import Ignored, Rejected, decode_record
from lake.steps import Step

EVENTS, MINUTES = 1_500, 3


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")


@pytest.fixture(scope="module")
def traffic() -> Traffic:
    return Traffic(EVENTS, seed=3)


def decoded(traffic: Traffic, tables: Registry) -> list[list[tuple[int, str]]]:
    """What each record comes to by these contracts: number and kind of each part."""
    kinds = {Ignored: "nothing", Rejected: "rejected"}
    return [
        [
            (part.index, kinds.get(type(part), "change"))
            for part in decode_record(one.data, tables, arrived_at=utc_now(), streams=STREAMS)
        ]
        for one in traffic.records
    ]


@pytest.mark.parametrize(
    ("tables", "later"), [(FIRST, "rejected"), (SECOND, "change")], ids=["first", "second"]
)
def test_the_traffic_is_to_the_consumer_what_it_was_meant_to_be(
    traffic: Traffic, tables: Registry, later: str
) -> None:
    kinds = {
        Meant.CHANGE: "change",
        Meant.LATER: later,
        Meant.GARBAGE: "rejected",
        Meant.NOTHING: "nothing",
    }
    meant = [
        [(at * one.apart, kinds[part.meant]) for at, part in enumerate(one.parts)]
        for one in traffic.records
    ]

    assert decoded(traffic, tables) == meant


def test_the_traffic_follows_from_its_seed_and_holds_every_kind(traffic: Traffic) -> None:
    assert Traffic(EVENTS, seed=3).records == traffic.records
    assert Traffic(EVENTS, seed=4).records != traffic.records
    assert all(traffic.count(meant) >= 10 for meant in Meant)
    poison = traffic.count(Meant.GARBAGE) + traffic.count(Meant.LATER)
    assert 0.005 <= poison / EVENTS <= 0.02


def test_nothing_is_lost_and_the_lake_equals_the_model_although_everything_fails(
    tmp_path: Path,
) -> None:
    told, found = chaos(Wish(EVENTS, 1, MINUTES), tmp_path, lambda _: None)

    assert found == []
    assert told["moments_read"] >= 20
    assert set(told["killed"]) == {step.value for step in Step}
    assert all(told["met"][fault] for fault in ("cursed", "faulty", "twice", "raced", "conflict"))
    assert told["given_up"]["range_only"]
    assert told["replayed_lines"]


def test_a_batch_that_was_answered_and_not_landed_does_not_go_unnoticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, call = Counter[str](), Site._call

    def forgetful(site: Site, event: Any, context: Any, meets: set[str]) -> Any:
        calls["all"] += 1
        forgets = calls["all"] == 1
        return {"batchItemFailures": []} if forgets else call(site, event, context, meets)

    monkeypatch.setattr(Site, "_call", forgetful)

    _, found = chaos(Wish(300, 1, MINUTES), tmp_path, lambda _: None)

    said = " ".join(found)
    for finding in ("places in the change log", "records by receipts", "parts by receipts"):
        assert finding in said
