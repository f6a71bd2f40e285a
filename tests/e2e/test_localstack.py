"""`freshet --aws localstack`: embedded AWS plays LocalStack, the stand-in of docker-compose.yml is
itself. The commands find both as `localstack-client` would, and nothing else.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import pytest
from tests.e2e.conftest import Done, Run, Start
from tests.e2e.ministack import ministack

from freshet.tables import TABLES
from freshet.testing import sale_row
from local.embedded import EmbeddedAws
from local.localstack import PLATZI_SECRET
from local.sample import ECB_RATES
from local.sample.ecb import Ecb

pytestmark = pytest.mark.long  # every command once more, over another AWS

SALE = json.dumps({"after": sale_row("A-1"), "version": 1})


@dataclass(frozen=True)
class Place:
    """Where both are, and how to ask a command about it."""

    aws: str
    glue: str
    home: Path
    run: Run

    @property
    def environment(self) -> dict[str, str]:
        host = self.aws.removeprefix("http://").replace("127.0.0.1", "localhost")
        return {
            "AWS_ENDPOINT_URL": "",  # it would go before; another module's pipeline may have set it
            "LOCALSTACK_HOST": host,
            "AWS_ENDPOINT_URL_GLUE": self.glue,
            "AWS_PROFILE": "nope",  # the user's own: no local command may look at it
            "FRESHET_AWS": "localstack",
        }

    def freshet(self, *arguments: str, stdin: str = "", **more: str) -> Done:
        return self.run(self.home, *arguments, stdin=stdin, **(self.environment | more))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory, freshet: Run) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("localstack")
    with EmbeddedAws(folder / "aws") as aws, ministack(folder / "glue") as glue:
        yield Place(aws.endpoint_url, glue, folder / "home", freshet)


@pytest.fixture(scope="module")
def looked(empty: Place) -> list[Done]:
    """What `make local-aws` ends with, twice."""
    return [empty.freshet("tables", "--json") for _ in range(2)]


@pytest.fixture(scope="module")
def place(empty: Place, looked: list[Done]) -> Place:
    """A place with one sale."""
    sent = empty.freshet("send", "-", "--table", "sales", "--json", stdin=SALE)
    assert sent.code == 0, sent.err
    assert sent.json == {"accepted": 1, "rejected": 0, "refused": []}
    return empty


def test_a_look_makes_what_the_pipeline_needs_and_may_be_repeated(
    empty: Place, looked: list[Done]
) -> None:
    for done in looked:
        assert done.code == 0, done.err
        assert {row["table"]: row["rows"] for row in done.json} == dict.fromkeys(TABLES.names, 0)
    client = boto3.session.Session(region_name="us-east-1").client
    names = [one["Name"] for one in client("s3", endpoint_url=empty.aws).list_buckets()["Buckets"]]
    assert {"freshet-lake", "freshet-state", "freshet-failures"} <= set(names)
    assert client("kinesis", endpoint_url=empty.aws).list_streams()["StreamNames"] == ["freshet"]
    secrets = client("secretsmanager", endpoint_url=empty.aws)
    assert secrets.describe_secret(SecretId=PLATZI_SECRET)["Name"] == PLATZI_SECRET
    found = client("glue", endpoint_url=empty.glue).get_databases()["DatabaseList"]
    assert [one["Name"] for one in found] == ["freshet"]


def test_what_is_sent_can_be_asked_for_told_and_verified(place: Place) -> None:
    rows = place.freshet("query", "SELECT sale_id, quantity FROM sales", "--json")
    story = place.freshet("why", "sales", "A-1", "--json")
    checks = place.freshet("verify", "sales", "--json")

    assert rows.json == [{"sale_id": "A-1", "quantity": 6}], rows.err
    assert "current" in [chapter["verdict"] for chapter in story.json]
    assert checks.code == 0
    assert checks.json


def test_the_catalog_is_glue_and_the_home_holds_no_data(place: Place) -> None:
    glue = boto3.client("glue", endpoint_url=place.glue, region_name="us-east-1")

    names = [one["Name"] for one in glue.get_tables(DatabaseName="freshet")["TableList"]]

    home = place.home.with_name("home-localstack")
    assert "sales" in names
    assert not place.home.exists()
    assert not (home / "catalog.db").exists()
    assert list(home.glob("checkpoints-*.json"))


def test_a_poll_lands_too(place: Place) -> None:
    with Ecb(ECB_RATES) as bank:
        done = place.freshet("poll", "ecb", "--url", bank.url, "--json", ECB_START="2010-12-20")
    rows = place.freshet("query", "SELECT count(*) AS n FROM exchange_rates", "--json")

    assert done.code == 0, done.err
    assert rows.json == [{"n": done.json["published"]}]
    assert done.json["published"] > 0


def test_up_serves_and_others_send_through_it(place: Place, freshet_up: Start) -> None:
    with freshet_up(place.home, **place.environment) as running:
        sent = place.freshet("send", "-", "--table", "sales", "--json", stdin=SALE)
        refused = place.freshet("verify")
        assert running.stop(signal.SIGTERM) == 0

    assert sent.json["accepted"] == 1
    assert refused.code == 1
    assert running.url in refused.error


def test_a_demo_does_not_mix_with_rows_it_did_not_make(place: Place) -> None:
    done = place.freshet("demo")

    assert done.code == 1
    assert "holds rows" in done.error


def test_a_place_where_nothing_answers_is_one_line(empty: Place) -> None:
    nowhere = empty.freshet("tables", LOCALSTACK_HOST="localhost:1")
    no_glue = empty.freshet("tables", AWS_ENDPOINT_URL_GLUE="http://localhost:1")

    assert nowhere.code == no_glue.code == 1
    assert "http://localhost:1 " in nowhere.error
    assert "LOCALSTACK_HOST" in nowhere.error
    assert "Glue stand-in" in no_glue.error
    assert "AWS_ENDPOINT_URL_GLUE" in no_glue.error
    for done in (nowhere, no_glue):
        assert "`make local-aws`" in done.error


def test_checkpoints_of_a_stream_that_is_gone_do_not_count(tmp_path: Path, freshet: Run) -> None:
    """LocalStack forgets its stream when it stops: the next one starts at its own beginning."""
    for number in ("1", "2"):
        folder = tmp_path / number
        with EmbeddedAws(folder / "aws") as aws, ministack(folder / "glue") as glue:
            again = Place(aws.endpoint_url, glue, tmp_path / "home", freshet)
            assert again.freshet("send", "-", "--table", "sales", stdin=SALE).code == 0
            rows = again.freshet("query", "SELECT sale_id FROM sales", "--json")

        assert rows.json == [{"sale_id": "A-1"}]
