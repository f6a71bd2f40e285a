"""The deployed handler of the poller over real Kinesis and S3 interfaces and a shop's real sockets.

What a source, a crash or a meeting of two polls may do to a poll is tested without AWS (see
test_source_faults.py and the properties of source histories); here is what only the handler as it
is deployed can show: its environment, its clients, and S3's conditional writes.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from tests.misbehaving import Misbehaving, Reply, Visit, misbehaving, raw

from api_poller import app
from api_poller.state import StateConflictError, StateStore, state_key
from freshet.event import ChangeEvent, Op
from freshet.s3 import S3Objects
from freshet.tables import TABLES
from freshet.wire import Decoded, decode_record
from local.embedded import EmbeddedAws

PAGE = "/api/v1/products"


def item(number: int) -> dict[str, Any]:
    return {
        "id": number,
        "title": f"Product {number}",
        "price": 10,
        "updatedAt": "2026-11-20T21:41:12.000Z",
    }


def shop(visit: Visit) -> None:
    offset, limit = (int(visit.seen.query[name]) for name in ("offset", "limit"))
    visit.json([item(number) for number in range(7)][offset : offset + limit])


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as made:
        made.on(PAGE, shop)
        yield made


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(tmp_path_factory.mktemp("aws")) as running:
        running.ensure_bucket("state")
        yield running


class Deployed:
    """A stream and a prefix of the test's own, and what the handler leaves there."""

    def __init__(self, aws: EmbeddedAws) -> None:
        self._aws, self.name = aws, uuid.uuid4().hex
        aws.ensure_stream(self.name)

    def environment(self, server: Misbehaving) -> dict[str, str]:
        return {
            **self._aws.environment(),
            "POWERTOOLS_METRICS_DISABLED": "true",
            "STREAM_NAME": self.name,
            "STATE_BUCKET": "state",
            "STATE_PREFIX": self.name,
            "PLATZI_URL": f"{server.url}/api/v1/",
            "PAGE_ROWS": "3",
            "ALLOW_LOOPBACK": "true",
        }

    def poll(self) -> dict[str, Any]:
        report: dict[str, Any] = app.handler({"source": "platzi"}, None)
        return report

    def events(self) -> list[ChangeEvent]:
        kinesis = self._aws.client("kinesis")
        shards = kinesis.list_shards(StreamName=self.name)["Shards"]
        records = [
            record
            for shard in shards
            for record in kinesis.get_records(
                ShardIterator=kinesis.get_shard_iterator(
                    StreamName=self.name,
                    ShardId=shard["ShardId"],
                    ShardIteratorType="TRIM_HORIZON",
                )["ShardIterator"]
            )["Records"]
        ]
        parts = [part for record in records for part in decode_record(record["Data"], TABLES)]
        assert all(isinstance(part, Decoded) for part in parts)
        return [part.event for part in parts if isinstance(part, Decoded)]

    def objects(self) -> list[str]:
        listed = self._aws.client("s3").list_objects_v2(Bucket="state", Prefix=f"{self.name}/")
        return [stored["Key"] for stored in listed.get("Contents", [])]

    def known(self) -> int:
        """How many rows the state remembers."""
        store = StateStore(S3Objects(self._aws.client("s3"), "state", self.name))
        return len(store.load("platzi")[0].snapshot)


@pytest.fixture
def deployed(
    aws: EmbeddedAws, server: Misbehaving, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployed]:
    made = Deployed(aws)
    for name, value in made.environment(server).items():
        monkeypatch.setenv(name, value)
    app._deployed.cache_clear()
    yield made
    app._deployed.cache_clear()


def test_the_deployed_handler_polls_into_kinesis_and_s3(deployed: Deployed) -> None:
    reports = [deployed.poll() for _ in range(2)]

    assert [report["published"] for report in reports] == [7, 0]
    assert sorted(event.key["product_id"] for event in deployed.events()) == list("0123456")
    assert deployed.objects() == [f"{deployed.name}/{state_key('platzi')}"]


def test_of_two_invocations_at_once_one_publishes_and_the_other_gives_way(
    deployed: Deployed, server: Misbehaving
) -> None:
    """Scheduler may fire twice: the second invocation runs whole while the first waits."""
    reports: list[dict[str, Any]] = []

    def meanwhile(visit: Visit) -> None:
        reports.append(deployed.poll())
        shop(visit)

    server.faults.extend([shop, meanwhile])

    with pytest.raises(StateConflictError, match="another poll"):
        deployed.poll()

    assert [report["created"] for report in reports] == [7]
    events = deployed.events()
    assert (len(events), {event.op for event in events}) == (7, {Op.READ})
    assert deployed.known() == 7


@pytest.mark.parametrize("fault", [raw(b""), raw(b"\x00\x01\r\n\r\n")], ids=["hang-up", "no HTTP"])
def test_a_fault_that_passes_is_waited_out_by_the_deployed_limits(
    fault: Reply, deployed: Deployed, server: Misbehaving
) -> None:
    server.faults.extend([shop, fault])

    assert deployed.poll()["published"] == 7
