"""Reading back what a stream retains: all of it, in order, through refusals and expired iterators.

moto answers here as the keeper of well-formed calls; refusals come from a client that stands before
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError
from moto import mock_aws

from freshet import kinesis
from freshet.errors import SettingsError, StreamUnavailableError
from freshet.kinesis import READ_ATTEMPTS_MAX, RecordsGoneError, RetainedStream

STREAM = "changes"
RECORDS = 25


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stream of two shards; pages hold three records."""
    monkeypatch.setattr(kinesis, "GET_RECORDS_MAX", 3)
    with mock_aws():
        client = boto3.client("kinesis", region_name="eu-west-1")
        client.create_stream(StreamName=STREAM, ShardCount=2)
        for at in range(RECORDS):
            client.put_record(StreamName=STREAM, Data=b"%d" % at, PartitionKey=str(at))
        yield client


class Moody:
    """A client whose call of `name` meets `refuse(call number)` first."""

    def __init__(self, client: Any, name: str, refuse: Callable[[int], None]) -> None:
        self._client, self._name, self._refuse, self._calls = client, name, refuse, 0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if name != self._name:
            return attribute

        def call(**arguments: Any) -> Any:
            self._calls += 1
            self._refuse(self._calls)
            return attribute(**arguments)

        return call


def error(code: str, status: int = 400) -> ClientError:
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetRecords")  # type: ignore[arg-type]


def stream(client: Any, waits: list[float] | None = None) -> RetainedStream:
    return RetainedStream(client, STREAM, wait=(waits if waits is not None else []).append)


def test_every_record_of_every_shard_comes_once_and_in_order(client: Any) -> None:
    records = list(stream(client))

    assert sorted(int(record.data) for record in records) == list(range(RECORDS))
    for shard in ("shardId-000000000000", "shardId-000000000001"):
        numbers = [int(one.sequence_number) for one in records if one.shard_id == shard]
        assert len(numbers) > 3
        assert numbers == sorted(set(numbers))
    assert all(record.arrived_at.tzinfo is UTC for record in records)


def test_a_range_has_both_its_ends(client: Any) -> None:
    everything = list(stream(client))
    shard = everything[0].shard_id
    first, last = everything[1].sequence_number, everything[5].sequence_number

    found = list(stream(client).records(shard, first=first, last=last))

    assert found == everything[1:6]


def test_what_is_no_longer_there_is_an_error_that_names_it(client: Any) -> None:
    """Kinesis answers such a range with the oldest record it still has."""
    shard = stream(client).shards()[0]

    oldest = next(iter(stream(client).records(shard)))
    pretended = Trimmed(client, oldest.sequence_number)

    with pytest.raises(RecordsGoneError, match=f"{shard} cannot be read from 7777"):
        list(stream(pretended).records(shard, first="7777"))


class Trimmed:
    """A client of a stream that has forgotten: reading at any number begins at the oldest."""

    def __init__(self, client: Any, oldest: str) -> None:
        self._client, self._oldest = client, oldest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_shard_iterator(self, **arguments: Any) -> Any:
        return self._client.get_shard_iterator(
            **{**arguments, "StartingSequenceNumber": self._oldest}
        )


def test_an_empty_shard_has_nothing_to_give_back(client: Any) -> None:
    client.create_stream(StreamName="empty", ShardCount=1)
    empty = RetainedStream(client, "empty", wait=lambda _s: None)

    assert list(empty) == []


def test_an_expired_iterator_goes_on_where_it_was(client: Any) -> None:
    def refuse(call: int) -> None:
        if call in (1, 4):
            raise client.exceptions.ExpiredIteratorException({"Error": {}}, "GetRecords")

    assert list(stream(Moody(client, "get_records", refuse))) == list(stream(client))


@pytest.mark.parametrize(
    "refusal",
    [
        error("ProvisionedThroughputExceededException"),
        error("InternalFailure", 500),
        EndpointConnectionError(endpoint_url="https://kinesis"),
    ],
    ids=lambda refusal: type(refusal).__name__ + str(refusal)[:30],
)
def test_a_busy_stream_is_asked_again_after_a_second(client: Any, refusal: Exception) -> None:
    waits: list[float] = []

    def refuse(call: int) -> None:
        if call < 4:
            raise refusal

    records = list(stream(Moody(client, "get_records", refuse), waits))

    assert len(records) == RECORDS
    assert waits == [1.0] * 3


def test_a_stream_that_stays_busy_is_unavailable(client: Any) -> None:
    waits: list[float] = []

    def refuse(_call: int) -> None:
        raise error("LimitExceededException")

    with pytest.raises(StreamUnavailableError, match="LimitExceeded"):
        stream(Moody(client, "list_shards", refuse), waits).shards()
    assert len(waits) == READ_ATTEMPTS_MAX - 1


def test_a_reader_without_a_grant_is_told_which(client: Any) -> None:
    def refuse(_call: int) -> None:
        raise error("AccessDeniedException")

    with pytest.raises(SettingsError, match="kinesis:GetRecords"):
        list(stream(Moody(client, "get_records", refuse)))
