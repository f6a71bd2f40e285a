"""No raw personal value leaves producer or poller, in any byte: not into the stream, not into the
state, not into an answer, a log or a report. Over real Kinesis, S3 and Secrets Manager interfaces.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import zstandard
from tests.misbehaving import Misbehaving, Visit, misbehaving

from api_poller import app as api_poller
from api_poller.declaration import DeclarationError, load_sources
from api_poller.poll import Poller
from api_poller.settings import Settings
from api_poller.state import StateStore
from freshet.contract import Contract, Integer, PartitionField, Pii, Registry, Text
from freshet.errors import SettingsError
from freshet.event import ChangeEvent, Op
from freshet.kinesis import CLIENT_CONFIG, KinesisStream
from freshet.objects import DirectoryObjects
from freshet.pii import ProtectedStream, Protector
from freshet.s3 import S3Objects
from freshet.secret import SecretUnavailableError, open_protector
from freshet.testing import MemoryObjects, MemoryStream, StoppedClock
from freshet.wire import Decoded, decode_record
from local.embedded import EmbeddedAws
from producer import app as producer
from producer.idempotency import fingerprint_of

# Each in more than one place; the marks make them findable in any encoding of text.
EMAILS = [f"person-{at}-raw@example.com" for at in range(7)]
NAME, NOTE = "Raw Lovelace", "raw note about her"
RAW = ("raw@example.com", "raw%40example.com", "raw%2540example", "Raw Lovelace", "raw note")
FRAME = bytes.fromhex("28b52ffd")  # where a zstd frame begins


class Person(
    Contract, table="people", key=("email",), partition=(PartitionField("bucket", "email", 2),)
):
    """A person, known by an address."""

    email: Annotated[str, Text(200, 1), Pii("hash")]
    name: Annotated[Annotated[str, Text(200)] | None, Pii("hash")] = None
    note: Annotated[Annotated[str, Text(200)] | None, Pii("drop")] = None
    points: Annotated[int, Integer(32)] = 0


class Visitor(
    Contract, table="visitors", key=("number",), partition=(PartitionField("bucket", "number", 2),)
):
    """A person who came, by a number nobody needs to hide."""

    number: Annotated[str, Text(40, 1)]
    email: Annotated[Annotated[str, Text(200)] | None, Pii("hash")] = None


TABLES = Registry((Person, Visitor))
DECLARED = """table: {table}
url: {url}
path: /people
records: people
pagination: {pagination}
columns: {columns}
sync: {sync}
limits: {{ requests_per_second: 1000, attempts_max: 1 }}
schedule: rate(1 hour)
"""
PEOPLE = "{ email: mail, name: name, note: note, points: points }"
OFFSET = "{ kind: offset, page_rows: 3 }"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedAws]:
    with EmbeddedAws(tmp_path_factory.mktemp("aws")) as running:
        yield running


class Edge:
    """A stream, a bucket and a key of the test's own, and all that is found there."""

    def __init__(self, aws: EmbeddedAws) -> None:
        self.aws, self.name = aws, uuid.uuid4().hex
        aws.ensure_stream(self.name)
        aws.ensure_bucket(self.name)
        made = aws.client("secretsmanager").create_secret(Name=self.name, SecretString="k" * 64)
        self.protector = open_protector(made["ARN"], TABLES, lambda: aws.client("secretsmanager"))
        self.stream = KinesisStream(aws.client("kinesis"), self.name, TABLES)
        self.objects = S3Objects(aws.client("s3"), self.name)

    def records(self) -> list[bytes]:
        kinesis = self.aws.client("kinesis")
        return [
            record["Data"]
            for shard in kinesis.list_shards(StreamName=self.name)["Shards"]
            for record in kinesis.get_records(
                ShardIterator=kinesis.get_shard_iterator(
                    StreamName=self.name,
                    ShardId=shard["ShardId"],
                    ShardIteratorType="TRIM_HORIZON",
                )["ShardIterator"]
            )["Records"]
        ]

    def events(self) -> list[ChangeEvent]:
        parts = [part for data in self.records() for part in decode_record(data, TABLES)]
        assert all(isinstance(part, Decoded) for part in parts)
        found = [part.event for part in parts if isinstance(part, Decoded)]
        return sorted(found, key=lambda event: event.version)

    def kept(self) -> list[bytes]:
        """Names and contents of every object."""
        names = list(self.objects.list(""))
        return [name.encode() for name in names] + [self.objects.get(one).data for one in names]

    def assert_nothing_raw(self, *more: str) -> None:
        found = [self.records(), self.kept(), [text.encode() for text in more]]
        assert all(found[:2]), "nothing to look into"
        for data in (data for part in found for data in part):
            for text in RAW:
                assert text.encode() not in unpacked(data), text


def unpacked(data: bytes) -> bytes:
    """The bytes and whatever zstd frames among them hold."""
    starts = [at for at in range(len(data)) if data.startswith(FRAME, at)]
    frames = [zstandard.ZstdDecompressor().decompressobj().decompress(data[at:]) for at in starts]
    return b"".join((data, *frames))


@pytest.fixture
def edge(aws: EmbeddedAws, monkeypatch: pytest.MonkeyPatch) -> Edge:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    assert CLIENT_CONFIG  # the deployed one: the stream's own retries
    return Edge(aws)


# --- producer -------------------------------------------------------------------------------------


def http(method: str, path: str, body: object = None, **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", **named},
        "requestContext": {
            "http": {"method": method, "path": path, "sourceIp": "203.0.113.7"},
            "requestId": "LV7fzho-PHcEJPw=",
            "stage": "$default",
        },
        "isBase64Encoded": False,
        **({} if body is None else {"body": json.dumps(body)}),
    }


def person(at: int, **columns: Any) -> dict[str, Any]:
    return {"email": EMAILS[at], "name": NAME, "note": NOTE, **columns}


Send = Callable[..., dict[str, Any]]


@pytest.fixture
def send(edge: Edge) -> Send:
    handler = producer.build(
        stream=edge.stream, objects=edge.objects, tables=TABLES, protector=edge.protector
    )
    return lambda *request, **headers: handler(http(*request, **headers), None)


def test_the_producer_lets_nothing_raw_out(
    edge: Edge, send: Send, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, row = "/v1/tables/people/changes", f"/v1/tables/people/rows/{EMAILS[1]}"
    batch = [
        {"after": person(0), "before": {**person(0), "Full Name": NAME, "points": 1}},
        {"key": {"email": EMAILS[2]}, "patch": {"name": NAME, "note": NOTE}},
        {"op": "d", "key": {"email": EMAILS[3]}},
        {"after": person(4, points="many")},
    ]

    answers = [
        send("POST", changes, batch, idempotency_key="k1"),
        send("PUT", row, person(1), idempotency_key="k2"),
        send("PATCH", row, {"name": NAME}, idempotency_key="k3"),
        send("DELETE", row, idempotency_key="k4"),
        send("PATCH", row, {"points": "many"}),
        send("DELETE", "/v1/tables/people/rows/person%2D5-raw%40example.com"),
    ]

    assert [answer["statusCode"] for answer in answers] == [207, 202, 202, 202, 422, 422]
    captured = capfd.readouterr()
    edge.assert_nothing_raw(captured.out, captured.err, *(one["body"] for one in answers))
    events = edge.events()
    assert [event.op.value for event in events] == ["u", "u", "d", "u", "u", "d"]
    hashed = [edge.protector.hashed(EMAILS[at]) for at in (0, 2, 3, 1, 1, 1)]
    assert [event.key["email"] for event in events] == hashed
    assert [event.patch for event in events if event.patch] == [
        {"name": edge.protector.hashed(NAME), "note": None},
        {"name": edge.protector.hashed(NAME)},
    ]


def test_a_row_is_deleted_by_the_key_that_an_answer_names(edge: Edge, send: Send) -> None:
    put = json.loads(send("PUT", f"/v1/tables/people/rows/{EMAILS[0]}", person(0))["body"])

    answer = send("DELETE", f"/v1/tables/people/rows/{put['key']}")

    assert answer["statusCode"] == 202
    first, second = edge.events()
    assert (first.key, second.op) == (second.key, Op.DELETE)


def test_an_idempotency_record_cannot_be_guessed_from_a_persons_key(edge: Edge, send: Send) -> None:
    """Without the key anybody could digest addresses until one fits."""
    path = f"/v1/tables/people/rows/{EMAILS[0]}"

    first, again = (send("DELETE", path, idempotency_key="k") for _ in range(2))
    other = send("DELETE", f"/v1/tables/people/rows/{EMAILS[1]}", idempotency_key="k")

    guess = fingerprint_of("DELETE", path, [None, None], b"")
    assert first["body"] == again["body"]
    assert json.loads(other["body"])["reason"] == "idempotency_key_reused"
    assert edge.protector.hashed(guess).encode() in b"".join(edge.kept())
    assert guess.encode() not in b"".join(edge.kept())


def test_a_secret_that_is_missing_is_misconfiguration_until_it_is_there(
    edge: Edge, capfd: pytest.CaptureFixture[str]
) -> None:
    client, name = edge.aws.client("secretsmanager"), uuid.uuid4().hex
    put = putting(edge, open_protector(name, TABLES, lambda: client))

    missing = put()
    client.create_secret(Name=name, SecretString="k" * 64)
    there = put()

    assert (missing["statusCode"], there["statusCode"]) == (500, 202)
    assert json.loads(missing["body"])["reason"] == "misconfigured"
    assert "PII_SECRET_ARN" in capfd.readouterr().err
    assert len(edge.events()) == 1


def test_a_key_that_cannot_be_read_now_is_worth_another_try(edge: Edge) -> None:
    def throttled() -> bytes:
        raise SecretUnavailableError("PII_SECRET_ARN", "ThrottlingException")

    answer = putting(edge, Protector(throttled, TABLES))()

    assert (answer["statusCode"], answer["headers"]["Retry-After"]) == (503, "2")
    assert edge.records() == []


def putting(edge: Edge, protector: Protector) -> Callable[[], dict[str, Any]]:
    """Puts a person's row by a producer with this protector."""
    handler = producer.build(
        stream=edge.stream, objects=edge.objects, tables=TABLES, protector=protector
    )
    return lambda: handler(http("PUT", f"/v1/tables/people/rows/{EMAILS[0]}", person(0)), None)


def test_a_producer_of_personal_tables_does_not_start_without_a_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="PII_SECRET_ARN"):
        producer.build(
            stream=MemoryStream(TABLES), objects=DirectoryObjects(tmp_path), tables=TABLES
        )


# --- poller ---------------------------------------------------------------------------------------


class Register:
    """A shop's list of people, which may be changed between polls."""

    def __init__(self) -> None:
        self.people = [
            {"mail": mail, "name": NAME, "note": NOTE, "points": at}
            for at, mail in enumerate(EMAILS)
        ]

    def __call__(self, visit: Visit) -> None:
        query = visit.seen.query
        found = [one for one in self.people if str(one["mail"]) >= query.get("from", "")]
        offset, limit = int(query.get("offset", 0)), int(query["limit"])
        visit.json({"people": found[offset : offset + limit]})


@pytest.fixture
def register() -> Register:
    return Register()


@pytest.fixture
def server(register: Register) -> Iterator[Misbehaving]:
    with misbehaving() as made:
        made.on("/people", register)
        yield made


class Poll:
    """The poller's handler over an edge, for the one source declared in a folder."""

    def __init__(self, edge: Edge, folder: Path, server: Misbehaving) -> None:
        self.edge, self.folder, self.server = edge, folder, server
        self.settings = Settings.from_env(
            {
                "STREAM_NAME": edge.name,
                "STATE_BUCKET": edge.name,
                "SOURCES_FOLDER": str(folder),
                "ALLOW_LOOPBACK": "true",
            }
        )

    def declare(
        self,
        pagination: str = OFFSET,
        columns: str = PEOPLE,
        sync: str = "{ mode: full, delete_share_max: 1 }",
    ) -> None:
        text = DECLARED.format(
            table="people",
            url=self.server.url,
            pagination=pagination,
            columns=columns,
            sync=sync,
        )
        (self.folder / "people.yaml").write_text(text)

    def __call__(self, context: Any = None, protector: Protector | None = None) -> dict[str, Any]:
        handler = api_poller.build(
            self.settings,
            stream=self.edge.stream,
            objects=self.edge.objects,
            now=StoppedClock(),
            tables=TABLES,
            protector=protector or self.edge.protector,
        )
        return handler({"source": "people"}, context)


@pytest.fixture
def poll(edge: Edge, tmp_path: Path, server: Misbehaving) -> Poll:
    made = Poll(edge, tmp_path, server)
    made.declare()
    return made


def test_the_poller_lets_nothing_raw_out(
    edge: Edge, poll: Poll, register: Register, capfd: pytest.CaptureFixture[str]
) -> None:
    """First sight, an update with the row before, a delete, and a row that is not valid."""
    reports = [poll(), poll()]
    register.people[1]["points"] = 100
    register.people[2]["points"] = "many"
    del register.people[5]
    reports.append(poll())

    assert [report["published"] for report in reports] == [7, 0, 2]
    captured = capfd.readouterr()
    edge.assert_nothing_raw(captured.out, captured.err, json.dumps(reports))
    *_, updated, deleted = edge.events()
    assert updated.before is not None
    assert updated.before["email"] == updated.key["email"] == edge.protector.hashed(EMAILS[1])
    assert (deleted.op, deleted.key["email"]) == (Op.DELETE, edge.protector.hashed(EMAILS[5]))


def test_a_doubt_about_rows_names_them_by_their_hash(
    edge: Edge, poll: Poll, register: Register
) -> None:
    register.people[4] = register.people[0]

    report = poll()

    assert not report["complete"]
    assert "is listed twice" in report["problems"][0]
    assert edge.protector.hashed(EMAILS[0]) in report["problems"][0]
    edge.assert_nothing_raw(json.dumps(report))


class Ending:
    """A context with time to read the page that was asked for first, and for no other."""

    def __init__(self, server: Misbehaving) -> None:
        self._server = server

    def get_remaining_time_in_millis(self) -> int:
        return 40_000 if self._server.seen else 900_000


def test_a_place_that_is_a_persons_key_is_not_kept(edge: Edge, poll: Poll) -> None:
    poll.declare("{ kind: keyset, after: from, path: mail, page_rows: 3 }")

    first, second = poll(Ending(poll.server)), poll()

    assert first["unfinished"]
    assert "personal data, which is not kept" in first["problems"][0]
    assert second["complete"]
    assert second["resumed_rows"] == 0
    edge.assert_nothing_raw(json.dumps([first, second]))
    assert len(edge.events()) == 7


def test_a_place_that_is_a_number_is_kept(edge: Edge, poll: Poll) -> None:
    first, second = poll(Ending(poll.server)), poll()

    assert (first["unfinished"], second["complete"]) == (True, True)
    assert second["resumed_rows"] > 0
    edge.assert_nothing_raw()


def test_what_was_remembered_before_a_column_was_personal_does_not_go_out(
    edge: Edge, poll: Poll, register: Register
) -> None:
    """A deployment that declares a column personal finds raw rows in the poller's state."""
    plain = api_poller.compose(
        poll.settings,
        stream=MemoryStream(TABLES),
        objects=edge.objects,
        now=StoppedClock(),
        tables=TABLES,
        protector=edge.protector,
    )
    declared = plain._source("people", None, ())  # listed raw, as before the declaration
    Poller(MemoryStream(TABLES), StateStore(edge.objects), StoppedClock()).poll(declared)
    assert NAME.encode() in b"".join(map(unpacked, edge.kept()))
    register.people[0]["points"] = 100

    poll()

    edge.assert_nothing_raw()


def test_a_source_of_personal_rows_is_refused_without_a_key_and_asks_nobody(
    poll: Poll, server: Misbehaving
) -> None:
    composed = api_poller.compose(
        poll.settings,
        stream=MemoryStream(TABLES),
        objects=MemoryObjects(),
        now=StoppedClock(),
        tables=TABLES,
    )

    with pytest.raises(SettingsError, match="PII_SECRET_ARN"):
        composed.source("people")

    assert server.seen == []


def test_the_key_comes_from_the_secret_that_the_settings_name(edge: Edge, poll: Poll) -> None:
    client = edge.aws.client("secretsmanager")
    settings = poll.settings.model_copy(update={"pii_secret_arn": edge.name})
    stream = MemoryStream(TABLES)

    composed = api_poller.compose(
        settings,
        stream=stream,
        objects=MemoryObjects(),
        now=StoppedClock(),
        tables=TABLES,
        secrets=lambda: client,
    )
    composed.poller().poll(composed.source("people"))

    hashed = {edge.protector.hashed(mail) for mail in EMAILS}
    assert {event.key["email"] for event in stream.events()} == hashed
    assert isinstance(composed.stream, ProtectedStream)


@pytest.mark.parametrize(
    ("members", "detail"),
    [
        (
            {
                "pagination": "{ kind: keyset, after: from, path: mail }",
                "sync": "{ mode: incremental, cursor: name }",
            },
            "hashes have no order",
        ),
        (
            {
                "columns": '{ email: "@parent", name: name }',
                "sync": "{ mode: full }\nparents: { values: [a] }",
            },
            "column email is personal data: a parent's value stands in addresses",
        ),
        (
            {"sync": "{ mode: full }\nparents: { source: visitors, column: email }"},
            "column email is personal data: a parent's value stands in addresses",
        ),
    ],
    ids=["cursor", "parent value", "parent source"],
)
def test_a_declaration_that_would_show_personal_data_is_refused(
    poll: Poll, members: dict[str, str], detail: str
) -> None:
    poll.declare(**members)
    if "parents" in members.get("sync", ""):
        path = poll.folder / "people.yaml"
        path.write_text(path.read_text().replace("path: /people", "path: /people/{parent}"))
    visitors = DECLARED.format(
        table="visitors",
        url=poll.server.url,
        pagination=OFFSET,
        columns="{ number: { path: points, as: text }, email: mail }",
        sync="{ mode: full }",
    )
    (poll.folder / "visitors.yaml").write_text(visitors)

    with pytest.raises(DeclarationError, match=detail):
        load_sources(poll.folder, TABLES)
    with pytest.raises(DeclarationError, match=detail):
        poll()
