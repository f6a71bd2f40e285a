"""The client of the HTTP API: batches, outcomes per event, resending exactly what was throttled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from freshet.errors import RejectedError
from freshet.objects import DirectoryObjects
from freshet.pii import Protector
from freshet.tables import TABLES
from freshet.testing import MemoryStream
from local.gateway import Gateway
from local.sending import (
    BATCH_BYTES_MAX,
    BATCH_EVENTS_MAX,
    GatewayUnreachableError,
    Sender,
    Sent,
    StillThrottledError,
    batches,
    event_lines,
)
from producer.app import build

Answer = dict[str, Any]


class Producer:
    """Answers each request by the next of `rounds`; remembers what it was sent."""

    def __init__(self, *rounds: Callable[[list[Any]], Answer]) -> None:
        self._rounds = list(rounds)
        self.requests: list[list[Any]] = []
        self.paths: list[str] = []

    def __call__(self, event: dict[str, Any], _context: Any) -> Answer:
        events = [json.loads(line) for line in event["body"].split("\n")]
        self.requests.append(events)
        self.paths.append(event["rawPath"])
        return (self._rounds.pop(0) if len(self._rounds) > 1 else self._rounds[0])(events)


@contextmanager
def sender_to(producer: Producer) -> Iterator[tuple[Sender, list[float]]]:
    """A sender and the pauses it made."""
    pauses: list[float] = []
    with Gateway(producer) as gateway:
        sender = Sender(gateway.url, wait=pauses.append)
        yield sender, pauses
        sender._http.clear()


def answer(status: int, body: Any) -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    return {"statusCode": status, "headers": {"content-type": "text/plain"}, "body": text}


def outcomes(status: int, *statuses: str) -> Callable[[list[Any]], Answer]:
    """Each event's outcome in turn; ids and versions as a producer would stamp them."""

    def made(events: list[Any]) -> Answer:
        listed = [
            {"index": at, "status": name, "event_id": f"id-{event['n']}", "version": 7 + event["n"]}
            for at, (event, name) in enumerate(zip(events, statuses, strict=True))
        ]
        return answer(status, {"outcomes": listed})

    return made


def lines(count: int) -> list[bytes]:
    return [json.dumps({"n": at}).encode() for at in range(count)]


def test_accepted_events_are_counted_and_sent_once() -> None:
    producer = Producer(outcomes(202, "accepted", "accepted"))

    with sender_to(producer) as (sender, pauses):
        sent = sender.send("sales", lines(2))

    assert (sent.accepted, sent.refused, pauses) == (2, [], [])
    assert producer.paths == ["/v1/tables/sales/changes"]


def test_a_rejected_event_is_named_by_its_place_among_all_that_is_sent() -> None:
    producer = Producer(outcomes(207, "accepted", "rejected"))

    with sender_to(producer) as (sender, _):
        sent = sender.send("sales", lines(2), first_index=500)

    assert (sent.accepted, [refusal["index"] for refusal in sent.refused]) == (1, [501])


def test_only_throttled_events_are_sent_again_with_the_ids_they_were_given() -> None:
    producer = Producer(
        outcomes(503, "throttled", "accepted", "throttled"),
        outcomes(503, "accepted", "throttled"),
        outcomes(202, "accepted"),
    )

    with sender_to(producer) as (sender, pauses):
        sent = sender.send("sales", lines(3))

    assert producer.requests[1:] == [
        [{"n": 0, "event_id": "id-0", "version": 7}, {"n": 2, "event_id": "id-2", "version": 9}],
        [{"n": 2, "event_id": "id-2", "version": 9}],
    ]
    assert (sent.accepted, pauses) == (3, [0.2, 0.4])


def test_a_rejected_event_keeps_its_place_when_others_are_sent_again() -> None:
    producer = Producer(
        outcomes(503, "accepted", "throttled", "throttled"),
        outcomes(207, "accepted", "rejected"),
    )

    with sender_to(producer) as (sender, _):
        sent = sender.send("sales", lines(3))

    assert [refusal["index"] for refusal in sent.refused] == [2]


def test_a_throttled_request_without_outcomes_is_sent_again_as_it_was() -> None:
    producer = Producer(
        lambda _: answer(429, "Too Many Requests"),
        outcomes(202, "accepted"),
    )

    with sender_to(producer) as (sender, _):
        sent = sender.send("sales", lines(1))

    assert producer.requests == [[{"n": 0}], [{"n": 0}]]
    assert sent.accepted == 1


def test_endless_throttling_ends_with_an_error_that_counts_what_is_left() -> None:
    producer = Producer(outcomes(503, "throttled"))

    with sender_to(producer) as (sender, pauses), pytest.raises(StillThrottledError) as caught:
        sender.send("sales", lines(1))

    assert caught.value.left == 1
    assert len(pauses) == len(producer.requests) == 8


def test_a_request_refused_as_a_whole_refuses_each_event() -> None:
    problem = {"status": 413, "reason": "too_large", "detail": "send less at once"}
    producer = Producer(lambda _: answer(413, problem))

    with sender_to(producer) as (sender, _):
        sent = sender.send("sales", lines(2), first_index=10)

    assert sent.refused == [{**problem, "index": 10}, {**problem, "index": 11}]


def test_an_answer_that_is_no_json_is_a_refusal_that_quotes_it() -> None:
    producer = Producer(lambda _: answer(500, "<html>oops</html>"))

    with sender_to(producer) as (sender, _):
        sent = sender.send("sales", lines(1))

    assert sent.refused == [
        {"status": 500, "reason": "http_500", "detail": "<html>oops</html>", "index": 0}
    ]


def test_a_gateway_that_is_not_there_is_named() -> None:
    with Gateway(Producer(outcomes(202))) as gateway:
        url = gateway.url

    with pytest.raises(GatewayUnreachableError, match=f"{url} did not answer"):
        Sender(url).send("sales", lines(1))


def test_counts_of_batches_add_up() -> None:
    total = Sent(accepted=2)

    total.add(Sent(accepted=3, refused=[{"index": 9}]))

    assert (total.accepted, total.rejected) == (5, 1)


def test_batches_are_cut_at_the_events_and_at_the_bytes_the_producer_takes() -> None:
    many = [b"{}"] * (BATCH_EVENTS_MAX + 1)
    large = [b"x" * (BATCH_BYTES_MAX // 2 - 1)] * 3

    assert [len(batch) for batch in batches(many)] == [BATCH_EVENTS_MAX, 1]
    assert [len(batch) for batch in batches(large)] == [2, 1]
    assert list(batches([])) == []


def test_an_event_larger_than_a_batch_goes_alone() -> None:
    assert [len(batch) for batch in batches([b"{}", b"x" * BATCH_BYTES_MAX, b"{}"])] == [1, 1, 1]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"", []),
        (b"\n \n", []),
        (b'{"a":1}\n\n{"a":2}\r\n', [b'{"a":1}', b'{"a":2}']),
        (b'{"a":1}\n{broken\n', [b'{"a":1}', b"{broken"]),
        (b"[]", []),
        (b'\n [ {"a": 1},\n{"a":\r\n2} ]\n', [b'{"a": 1}', b'{"a":  2}']),
        (b'[{"t": "a\\nb \xe2\x80\xa8"}]', [b'{"t": "a\\nb \xe2\x80\xa8"}']),
        (b"[1, null]", [b"1", b"null"]),
    ],
)
def test_lines_and_arrays_give_the_same_events(content: bytes, wanted: list[bytes]) -> None:
    assert list(event_lines(content.splitlines(keepends=True))) == wanted


def test_numbers_of_an_array_pass_as_they_are_written() -> None:
    assert list(event_lines([b'[{"p": 0.10000000000000000001}]'])) == [
        b'{"p": 0.10000000000000000001}'
    ]


@pytest.mark.parametrize(
    "content", [b"[", b'[{"a":1}', b'[{"a":1} {"a":2}]', b"[{]", b"[1] 2", b'["\xff"]', b"[" * 9999]
)
def test_an_array_that_is_none_sends_nothing(content: bytes) -> None:
    with pytest.raises(RejectedError, match="malformed_json"):
        next(event_lines([content]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.decimals(allow_nan=False).map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, max_size=5), st.sampled_from([None, 2]), st.booleans())
def test_any_array_is_read_back_event_by_event(
    events: list[Any], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(events, indent=indent, ensure_ascii=ascii_only)
    content = text.encode("utf-8", "surrogatepass").splitlines(keepends=True)

    assert [json.loads(line, parse_float=Decimal) for line in event_lines(content)] == events


def test_no_number_is_rounded_when_an_event_is_sent_again() -> None:
    exact = b'{"n":0,"after":{"unit_price":12345678901234.5678}}'
    bodies: list[str] = []
    rounds = [outcomes(503, "throttled"), outcomes(202, "accepted")]

    def producer(event: dict[str, Any], _context: Any) -> Answer:
        bodies.append(event["body"])
        return rounds.pop(0)([json.loads(event["body"])])

    with Gateway(producer) as gateway:
        sender = Sender(gateway.url, wait=lambda _: None)
        sender.send("sales", [exact])
        sender._http.clear()

    assert "12345678901234.5678" in bodies[1]
    assert json.loads(bodies[1])["event_id"] == "id-0"


def test_a_request_sent_again_as_it_was_carries_the_same_idempotency_key() -> None:
    keys: list[str | None] = []
    rounds = [lambda _: answer(503, "no"), outcomes(503, "throttled"), outcomes(202, "accepted")]

    def producer(event: dict[str, Any], _context: Any) -> Answer:
        keys.append(event["headers"].get("idempotency-key"))
        return rounds.pop(0)([json.loads(event["body"])])

    with Gateway(producer) as gateway:
        sender = Sender(gateway.url, wait=lambda _: None, new_key=lambda: "one")
        sender.send("sales", lines(1))
        sender._http.clear()

    assert keys == ["one", "one", None]  # the third carries the ids it was given


def test_a_patch_goes_through_gateway_and_producer_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some columns only, in a line of `freshet send` and at the row's own URL."""
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    stream = MemoryStream()
    objects, protector = DirectoryObjects(tmp_path), Protector(bytes(32), TABLES)
    line = b'{"key":{"sale_id":"536365-1"},"patch":{"unit_price":2.10}}'

    with Gateway(build(stream=stream, objects=objects, protector=protector)) as gateway:
        sender = Sender(gateway.url)
        sent = sender.send("sales", [line])
        sender._http.clear()
        url = f"{gateway.url}/v1/tables/sales/rows/536365-2"
        with urllib3.PoolManager() as http:
            answer = http.request("PATCH", url, json={"description": None})

    assert (sent.accepted, sent.rejected, answer.status) == (1, 0, 202)
    assert {event.key["sale_id"]: event.patch for event in stream.events()} == {
        "536365-1": {"unit_price": Decimal("2.1000")},
        "536365-2": {"description": None},
    }
