"""The rules of delivery, proved on generated failures and against the shapes AWS documents."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.errors import SettingsError
from local.delivery import (
    ENDLESS,
    SUCCESS,
    UNHANDLED_ERROR,
    WHOLE_BATCH_FAILED,
    Condition,
    Item,
    MappingSettings,
    Piece,
    Progress,
    Verdict,
    after_failure,
    batch_event,
    cut,
    deliver,
    failure_key,
    failure_record,
    interpret,
    item_of,
    startable,
)
from local.shards import Shard, StreamRecord

ARN = "arn:aws:kinesis:us-east-2:123456789012:stream/mystream"
SHARD = "shardId-000000000001"


def record(number: int, data: bytes = b"", arrived_at: float = 1_000.0) -> StreamRecord:
    return StreamRecord(f"{number:056d}", f"key-{number}", data, arrived_at)


def items(*records: StreamRecord) -> tuple[Item, ...]:
    return tuple(item_of(one, SHARD, ARN) for one in records)


def piece(*numbers: int, attempts: int = 0) -> Piece:
    return Piece(items(*map(record, numbers)), attempts)


def test_the_event_is_what_lambda_sends() -> None:
    sent = StreamRecord("4959", "sales:536365:1", b'{"id":1}', 1545084650.987)

    event = batch_event(Piece(items(sent)), SHARD, ARN)

    assert event == {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "sales:536365:1",
                    "sequenceNumber": "4959",
                    "data": "eyJpZCI6MX0=",
                    "approximateArrivalTimestamp": 1545084650.987,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"{SHARD}:4959",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": "arn:aws:iam::000000000000:role/lambda-role",
                "awsRegion": "us-east-2",
                "eventSourceARN": ARN,
            }
        ]
    }


record_lists = st.lists(
    st.tuples(st.binary(max_size=40), st.floats(0, 2e9), st.text(max_size=5)), max_size=30
).map(
    lambda rows: [
        StreamRecord(f"{number:056d}", key, data, arrived_at)
        for number, (data, arrived_at, key) in enumerate(rows)
    ]
)


@given(record_lists, st.integers(1, 12), st.integers(1, 4_000), st.booleans())
def test_a_batch_is_the_longest_that_fits_and_waits_unless_full_or_due(
    records: list[StreamRecord], batch_size: int, payload_bytes_max: int, window_over: bool
) -> None:
    pending = items(*records)
    settings = MappingSettings(batch_size=batch_size, payload_bytes_max=payload_bytes_max)

    count = cut(pending, settings, window_over=window_over)

    def event_bytes(n: int) -> int:
        event = batch_event(Piece(pending[:n]), SHARD, ARN)
        return len(json.dumps(event, separators=(",", ":"))) + 1

    more_would_fit = (
        count < min(batch_size, len(pending)) and event_bytes(count + 1) <= payload_bytes_max
    )
    if count:
        assert count <= batch_size
        assert count == 1 or event_bytes(count) <= payload_bytes_max
        assert not more_would_fit
    else:
        assert not pending or not window_over
        assert len(pending) < batch_size
        assert len(pending) < 2 or event_bytes(len(pending)) <= payload_bytes_max


@pytest.mark.parametrize(
    "response",
    [
        {"batchItemFailures": []},
        {"batchItemFailures": None},
        {},
        None,
        "",
        [],
    ],
)
def test_documented_success_shapes_are_success(response: Any) -> None:
    assert interpret(response, [record(1), record(2)], report=True) == SUCCESS


@pytest.mark.parametrize("bad", [{"itemIdentifier": ""}, {"itemIdentifier": None}, {}, "7", 7])
@pytest.mark.parametrize("before", [[], [{"itemIdentifier": f"{2:056d}"}]])
def test_one_unusable_identifier_fails_the_whole_batch(bad: Any, before: list[Any]) -> None:
    response = {"batchItemFailures": [*before, bad]}

    assert interpret(response, [record(1), record(2)], report=True) == WHOLE_BATCH_FAILED


def test_an_identifier_that_is_not_in_the_batch_fails_the_whole_batch() -> None:
    response = {"batchItemFailures": [{"itemIdentifier": "9"}]}

    assert interpret(response, [record(1), record(2)], report=True) == WHOLE_BATCH_FAILED


def test_the_lowest_of_several_failures_is_where_delivery_resumes() -> None:
    response = {"batchItemFailures": [{"itemIdentifier": f"{n:056d}"} for n in (4, 2, 3)]}

    assert interpret(response, [record(n) for n in (1, 2, 3, 4)], report=True) == Verdict(1)


def test_a_report_nobody_asked_for_is_ignored() -> None:
    response = {"batchItemFailures": [{"itemIdentifier": f"{1:056d}"}]}

    assert interpret(response, [record(1)], report=False) == SUCCESS


def test_without_bisect_the_rest_is_retried_and_counts_an_attempt() -> None:
    plan = after_failure(piece(1, 2, 3), Verdict(1), MappingSettings())

    assert plan.retry == (piece(2, 3, attempts=1),)
    assert plan.after_wait


def test_bisect_splits_at_the_reported_record_without_counting_an_attempt() -> None:
    plan = after_failure(piece(1, 2, 3), Verdict(2), MappingSettings(bisect_on_error=True))

    assert (plan.retry, plan.after_wait) == ((piece(3),), False)


def test_bisect_halves_a_batch_that_failed_whole_without_counting_an_attempt() -> None:
    settings = MappingSettings(bisect_on_error=True, retry_attempts_max=0)

    plan = after_failure(piece(1, 2, 3), UNHANDLED_ERROR, settings)

    assert (plan.retry, plan.discard) == ((piece(1), piece(2, 3)), None)


def test_a_piece_out_of_attempts_is_given_up_whole() -> None:
    settings = MappingSettings(retry_attempts_max=1)

    plan = after_failure(piece(1, 2, attempts=1), UNHANDLED_ERROR, settings)

    assert (plan.retry, plan.discard) == ((), piece(1, 2, attempts=2))


@st.composite
def mapping_settings(draw: st.DrawFn) -> MappingSettings:
    return MappingSettings(
        bisect_on_error=draw(st.booleans()),
        retry_attempts_max=draw(st.sampled_from([ENDLESS, 0, 1, 3])),
        record_age_s_max=draw(st.sampled_from([ENDLESS, 3])),
        report_batch_item_failures=draw(st.booleans()),
    )


class FailingFunction:
    """Fails each record a given number of times, in a given manner, and remembers all."""

    def __init__(self, failures: list[int], manners: list[str], settings: MappingSettings) -> None:
        self.left, self.manners, self.settings = list(failures), manners, settings
        self.calls: list[tuple[int, ...]] = []
        self.settled: list[int] = []
        self.discarded: list[tuple[Condition, Piece]] = []
        self.now = 1_000.0

    def invoke(self, sent: Piece) -> Verdict:
        numbers = [int(one.sequence_number) for one in sent.records]
        self.calls.append(tuple(numbers))
        failing = [number for number in numbers if self.left[number]]
        verdict = SUCCESS
        if failing:
            self.left[failing[0]] -= 1
            verdict = self.verdict(sent, failing)
        done = numbers if verdict.failed_from is None else numbers[: verdict.failed_from]
        self.settled += done
        return verdict

    def verdict(self, sent: Piece, failing: list[int]) -> Verdict:
        manner = self.manners[len(self.calls) % len(self.manners)]
        identifiers = {"report": [f"{n:056d}" for n in failing], "garble": ["?"]}.get(manner)
        if identifiers is None or not self.settings.report_batch_item_failures:
            return UNHANDLED_ERROR
        response = {"batchItemFailures": [{"itemIdentifier": one} for one in identifiers]}
        return interpret(response, sent.records, report=True)

    def discard(self, sent: Piece, condition: Condition, _verdict: Verdict) -> None:
        self.discarded.append((condition, sent))
        self.settled += [int(one.sequence_number) for one in sent.records]

    def wait(self, failures: int) -> None:
        assert failures > 0
        self.now += 1


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=12),
    st.lists(st.sampled_from(["raise", "report", "garble"]), min_size=1, max_size=5),
    mapping_settings(),
)
def test_every_record_is_done_or_in_the_destination_once_and_in_order(
    failures: list[int], manners: list[str], settings: MappingSettings
) -> None:
    function = FailingFunction(failures, manners, settings)
    batch = items(*(record(n, arrived_at=1_000.0 + n / 100) for n in range(len(failures))))

    deliver(
        batch,
        settings,
        invoke=function.invoke,
        discard=function.discard,
        now=lambda: function.now,
        wait=function.wait,
    )

    assert function.settled == list(range(len(failures)))
    for condition, given_up in function.discarded:
        if condition is Condition.EXHAUSTED:
            assert given_up.attempts == settings.retry_attempts_max + 1
        else:
            assert settings.record_age_s_max != ENDLESS


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.lists(st.sampled_from(["raise", "report", "garble"]), min_size=1, max_size=5),
    mapping_settings(),
)
def test_a_record_is_never_delivered_before_its_predecessor_is_settled(
    failures: list[int], manners: list[str], settings: MappingSettings
) -> None:
    function = FailingFunction(failures, manners, settings)

    def invoke(sent: Piece) -> Verdict:
        numbers = [int(one.sequence_number) for one in sent.records]
        first = len(function.settled)
        assert numbers == list(range(first, first + len(numbers)))
        return function.invoke(sent)

    deliver(
        items(*map(record, range(len(failures)))),
        settings,
        invoke=invoke,
        discard=function.discard,
        now=lambda: function.now,
        wait=function.wait,
    )

    assert len(function.settled) == len(failures)


def test_bisect_gives_up_the_poison_record_alone() -> None:
    settings = MappingSettings(bisect_on_error=True, retry_attempts_max=2)
    function = FailingFunction([0, 0, 0, 99, 0, 0], ["raise"], settings)

    deliver(
        items(*map(record, range(6))),
        settings,
        invoke=function.invoke,
        discard=function.discard,
        now=lambda: function.now,
        wait=function.wait,
    )

    assert function.discarded == [(Condition.EXHAUSTED, piece(3, attempts=3))]


def test_the_failure_record_is_what_lambda_writes_to_s3() -> None:
    first = StreamRecord("21", "custom", b'{"id":1}', 1573691884.835)
    last = StreamRecord("22", "custom", b"", 1573691885.58)
    batch = Piece(items(first, last), attempts=2)

    found = failure_record(
        batch,
        Condition.EXHAUSTED,
        UNHANDLED_ERROR,
        shard_id=SHARD,
        stream_arn=ARN,
        function_arn="arn:aws:lambda:us-east-2:123456789012:function:myfunction",
        request_id="c9b8fa9f",
        at=datetime(2019, 11, 14, 0, 38, 6, 21_000, UTC),
    )

    assert json.loads(found.pop("payload")) == batch_event(batch, SHARD, ARN)
    assert found == {
        "requestContext": {
            "requestId": "c9b8fa9f",
            "functionArn": "arn:aws:lambda:us-east-2:123456789012:function:myfunction",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 2,
        },
        "responseContext": {
            "statusCode": 200,
            "executedVersion": "$LATEST",
            "functionError": "Unhandled",
        },
        "version": "1.0",
        "timestamp": "2019-11-14T00:38:06.021Z",
        "KinesisBatchInfo": {
            "shardId": SHARD,
            "startSequenceNumber": "21",
            "endSequenceNumber": "22",
            "approximateArrivalOfFirstRecord": "2019-11-14T00:38:04.835Z",
            "approximateArrivalOfLastRecord": "2019-11-14T00:38:05.580Z",
            "batchSize": 2,
            "streamArn": ARN,
        },
    }


@pytest.mark.parametrize(
    ("condition", "verdict", "expected"),
    [
        (Condition.EXHAUSTED, WHOLE_BATCH_FAILED, {"functionError": None}),
        (Condition.TOO_OLD, UNHANDLED_ERROR, None),
    ],
)
def test_a_reported_failure_has_no_error_and_an_old_record_no_response(
    condition: Condition, verdict: Verdict, expected: dict[str, Any] | None
) -> None:
    found = failure_record(
        piece(1),
        condition,
        verdict,
        shard_id=SHARD,
        stream_arn=ARN,
        function_arn="f",
        request_id="r",
        at=datetime(2026, 1, 1, tzinfo=UTC),
    )

    context = found.get("responseContext")
    assert (context and {"functionError": context["functionError"]}) == expected
    assert found["requestContext"]["condition"] == condition.value


def test_the_failure_key_has_lambdas_layout() -> None:
    at = datetime(2026, 11, 21, 0, 5, 9, tzinfo=UTC)

    assert failure_key("map", SHARD, at=at, unique="u") == (
        f"aws/lambda/map/{SHARD}/2026/11/21/2026-11-21T00.05.09-u"
    )


@given(st.permutations(range(12)), st.integers(1, 5))
def test_the_checkpoint_is_the_last_record_with_nothing_outstanding_below(
    order: list[int], batch: int
) -> None:
    progress = Progress("start")
    for number in range(12):
        progress.take(str(number))
    finished: set[int] = set()

    for begin in range(0, 12, batch):
        finished |= set(order[begin : begin + batch])
        progress.finish(str(number) for number in order[begin : begin + batch])

        prefix = next((n for n in range(12) if n not in finished), 12)
        assert progress.completed == prefix
        assert progress.checkpoint == (str(prefix - 1) if prefix else "start")


def test_a_child_starts_when_every_parent_that_still_exists_is_finished() -> None:
    shards = [Shard("a"), Shard("b"), Shard("c", ("a", "b")), Shard("d", ("gone",))]

    assert startable(shards, finished=[], started=[]) == [shards[0], shards[1], shards[3]]
    assert startable(shards, finished=["a"], started=["b", "d"]) == []
    assert startable(shards, finished=["a", "b"], started=["d"]) == [shards[2]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"batch_size": 10_001},
        {"window_s": 301},
        {"parallelization_factor": 11},
        {"payload_bytes_max": 7_000_000},
        {"retry_attempts_max": -2},
        {"record_age_s_max": 604_801},
    ],
)
def test_a_setting_lambda_would_refuse_is_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong

    with pytest.raises(SettingsError, match=name):
        MappingSettings(**wrong)
