"""An event source mapping in miniature: threads that drive a function from a stream by the rules of
`delivery`.

One thread reads each shard and hands its records, by partition key, to the shard's lanes; each lane
delivers its own batches in order. Parents are consumed before their children. The checkpoint of a
shard is written after a batch is done, so a kill at any moment repeats records and never loses one.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from botocore.exceptions import BotoCoreError, ClientError

from freshet.errors import FreshetError, StorageError, TransientError
from local.delivery import (
    UNHANDLED_ERROR,
    Condition,
    Item,
    MappingSettings,
    Piece,
    Progress,
    Verdict,
    batch_event,
    cut,
    deliver,
    failure_key,
    failure_record,
    interpret,
    item_of,
    payload_bytes,
    startable,
)
from local.embedded import LocalRuntimeError
from local.invocation import Handler, LocalFunction, local_function
from local.shards import Shard, ShardReader, StreamRecord

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# Kinesis: records per GetRecords call.
READ_RECORDS_MAX = 10_000
# A shard buffers about this many batches ahead of its lanes, then stops reading.
BATCHES_AHEAD = 2
POLL_INTERVAL_S = 0.1
LIST_INTERVAL_S = 1.0
STOP_DEADLINE_S = 30.0
BACKOFF_FIRST_S = 0.2
BACKOFF_MAX_S = 10.0

logger = logging.getLogger(__name__)


class MappingFailedError(LocalRuntimeError):
    """The mapping itself (not the function) met an error it does not know, and has stopped."""


class DrainTimeoutError(TransientError):
    """The stream was not consumed to its tip in time; `pending` names the shards that lag."""

    def __init__(self, deadline_s: float, pending: tuple[str, ...]) -> None:
        self.deadline_s, self.pending = deadline_s, pending
        super().__init__(
            f"stream not consumed within {deadline_s:g} s; "
            f"behind: {', '.join(pending) or 'shard list'}"
        )


class Checkpoint(NamedTuple):
    """All up to and including `after` is done; `finished`: so is the whole closed shard."""

    after: str | None = None
    finished: bool = False


class Checkpoints(Protocol):
    """How far each shard is consumed. A saved checkpoint must survive a kill."""

    def load(self) -> Mapping[str, Checkpoint]:
        """All checkpoints by shard id."""

    def save(self, shard_id: str, checkpoint: Checkpoint) -> None:
        """Replace one shard's checkpoint; called from several threads."""


class FileCheckpoints:
    """Checkpoints in one small JSON file, replaced whole by an atomic rename."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def load(self) -> dict[str, Checkpoint]:
        """All checkpoints, none before the first save; LocalRuntimeError if unreadable."""
        if not self._path.exists():
            return {}
        try:
            return {
                name: Checkpoint(**value)
                for name, value in json.loads(self._path.read_bytes()).items()
            }
        except (ValueError, TypeError, AttributeError) as error:
            raise LocalRuntimeError(
                f"{self._path} is not a checkpoint file ({error}); delete it to start over"
            ) from error

    def save(self, shard_id: str, checkpoint: Checkpoint) -> None:
        """Write the file anew with this shard's checkpoint."""
        with self._lock:
            checkpoints = {**self.load(), shard_id: checkpoint}
            text = json.dumps({name: value._asdict() for name, value in checkpoints.items()})
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_name(self._path.name + ".tmp")
            temporary.write_text(text)
            temporary.replace(self._path)


class FailureDestination(Protocol):
    """Where records go that a function could not take."""

    def put(self, key: str, body: bytes) -> None:
        """Store durably; a TransientError is tried again, or the records would be lost."""


class S3FailureDestination:
    """The S3 on-failure destination of a mapping."""

    def __init__(self, client: S3Client, bucket: str) -> None:
        self._client, self._bucket = client, bucket

    def put(self, key: str, body: bytes) -> None:
        """Write one failure record; StorageError when S3 refuses it."""
        try:
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=body, ContentType="application/json"
            )
        except (ClientError, BotoCoreError) as error:
            raise StorageError(f"s3://{self._bucket}/{key}", str(error)) from error


class Outcome(StrEnum):
    """How an invocation ended."""

    SUCCEEDED = "succeeded"
    PARTLY_FAILED = "partly_failed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One call of the function, for an observer. Times are epoch seconds."""

    shard_id: str
    records: tuple[StreamRecord, ...]
    started_at: float
    finished_at: float
    outcome: Outcome

    @property
    def first_sequence_number(self) -> str:
        """Sequence number of the first record."""
        return self.records[0].sequence_number

    @property
    def last_sequence_number(self) -> str:
        """Sequence number of the last record."""
        return self.records[-1].sequence_number


def exponential_backoff(failures: int) -> float:
    """Seconds to wait after that many failures in a row."""
    return float(min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(failures - 1, 16)))


class _StoppingError(Exception):
    """Unwinds a delivery when the mapping stops; its batch stays above the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class _Plumbing:
    """What every shard of one mapping shares."""

    function: LocalFunction
    reader: ShardReader
    checkpoints: Checkpoints
    settings: MappingSettings
    failures: FailureDestination | None
    on_invocation: Callable[[Invocation], None]
    mapping_id: str
    clock: Callable[[], float]
    backoff: Callable[[int], float]
    poll_interval_s: float
    stop: threading.Event
    changed: threading.Condition  # guards all state that threads share
    generation: Callable[[], int]  # of the latest drain
    finished: Callable[[], None]  # a shard has come to its end
    crashed: Callable[[Exception], None]

    def wait(self, failures: int) -> None:
        """Back off, or leave when the mapping stops."""
        if self.stop.wait(self.backoff(failures)):
            raise _StoppingError

    def thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """A started thread whose unexpected error stops the mapping, not just itself."""

        def guarded() -> None:
            try:
                target()
            except _StoppingError:
                pass
            except Exception as error:  # noqa: BLE001 - handed to whoever drains or stops the mapping
                self.crashed(error)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread


class _Lane:
    """Records of some partition keys, waiting in order; its batch window began at `since`."""

    def __init__(self) -> None:
        self.pending: deque[Item] = deque()
        self.since = 0.0

    def push(self, item: Item) -> None:
        if not self.pending:
            self.since = time.monotonic()
        self.pending.append(item)

    def take(self, settings: MappingSettings, *, ended: bool) -> tuple[Item, ...]:
        """The next batch, or nothing if it should still grow."""
        waited = time.monotonic() - self.since
        count = cut(self.pending, settings, window_over=ended or waited >= settings.window_s)
        if count:
            self.since = time.monotonic()
        return tuple(self.pending.popleft() for _ in range(count))


class _ShardWorker:
    """Reads one shard and delivers it through its lanes until it ends or the mapping stops."""

    def __init__(self, shard: Shard, checkpoint: Checkpoint, plumbing: _Plumbing) -> None:
        self.shard_id, self._plumbing = shard.shard_id, plumbing
        self._progress = Progress(checkpoint.after)
        self._position = checkpoint.after
        self._lanes = [_Lane() for _ in range(plumbing.settings.parallelization_factor)]
        self._buffered_records = self._buffered_bytes = 0
        self._ended = False
        self._saving = threading.Lock()
        self._tip = (0, 0)  # of which drain, at how many records taken
        self.drained = 0  # the latest drain whose tip is done
        self._lane_threads = [
            plumbing.thread(f"{self.shard_id}-lane-{number}", partial(self._run_lane, lane))
            for number, lane in enumerate(self._lanes)
        ]
        self._reader_thread = plumbing.thread(f"{self.shard_id}-reader", self._run_reader)

    def join(self, deadline: float) -> bool:
        """Wait for the threads until `deadline` on the monotonic clock; whether they are gone."""
        threads = [*self._lane_threads, self._reader_thread]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run_reader(self) -> None:
        failures = 0
        while not self._ended:
            self._wait_for_room()
            drain = self._plumbing.generation()
            try:
                page = self._plumbing.reader.read(self.shard_id, self._position, READ_RECORDS_MAX)
            except TransientError as error:
                failures += 1
                logger.warning(
                    "shard_read_failed shard=%s failures=%d error=%s",
                    self.shard_id,
                    failures,
                    error,
                )
                self._plumbing.wait(failures)
                continue
            failures = 0
            self._accept(page.records, ended=page.ended, drain=drain)
            if (
                not page.records
                and not page.ended
                and self._plumbing.stop.wait(self._plumbing.poll_interval_s)
            ):
                raise _StoppingError
        for thread in self._lane_threads:
            thread.join()
        self._finish_shard()

    def _wait_for_room(self) -> None:
        settings, changed = self._plumbing.settings, self._plumbing.changed
        batches = BATCHES_AHEAD * settings.parallelization_factor
        with changed:
            changed.wait_for(
                lambda: (
                    self._plumbing.stop.is_set()
                    or (
                        self._buffered_records < batches * settings.batch_size
                        and self._buffered_bytes < batches * settings.payload_bytes_max
                    )
                )
            )
        if self._plumbing.stop.is_set():
            raise _StoppingError

    def _accept(self, records: tuple[StreamRecord, ...], *, ended: bool, drain: int) -> None:
        arn = self._plumbing.reader.stream_arn
        items = [item_of(record, self.shard_id, arn) for record in records]
        with self._plumbing.changed:
            for item in items:
                self._progress.take(item.record.sequence_number)
                lane = zlib.crc32(item.record.partition_key.encode()) % len(self._lanes)
                self._lanes[lane].push(item)
                self._position = item.record.sequence_number
            self._buffered_records += len(items)
            self._buffered_bytes += payload_bytes(items)
            self._ended = ended
            if not records and drain > self._tip[0]:
                self._tip = (drain, self._progress.taken)
            self._note_drained()
            self._plumbing.changed.notify_all()

    def _note_drained(self) -> None:
        drain, taken = self._tip
        if self._progress.completed >= taken:
            self.drained = drain

    def _run_lane(self, lane: _Lane) -> None:
        while batch := self._next_batch(lane):
            deliver(
                batch,
                self._plumbing.settings,
                invoke=self._invoke,
                discard=self._discard,
                now=self._plumbing.clock,
                wait=self._plumbing.wait,
            )
            self._finish_batch(batch)

    def _next_batch(self, lane: _Lane) -> tuple[Item, ...]:
        """Block until a batch is ready; empty when the shard has ended and the lane is done."""
        settings, changed = self._plumbing.settings, self._plumbing.changed
        with changed:
            while not self._plumbing.stop.is_set():
                batch = lane.take(settings, ended=self._ended) if lane.pending else ()
                if batch or (self._ended and not lane.pending):
                    return batch
                left = settings.window_s - (time.monotonic() - lane.since)
                changed.wait(max(left, 0.001) if lane.pending else None)
        raise _StoppingError

    def _invoke(self, piece: Piece) -> Verdict:
        plumbing = self._plumbing
        if plumbing.stop.is_set():
            raise _StoppingError
        started_at = plumbing.clock()
        verdict = self._call(piece)
        outcome = Outcome.SUCCEEDED if verdict.succeeded else Outcome.FAILED
        if verdict.failed_from:
            outcome = Outcome.PARTLY_FAILED
        plumbing.on_invocation(
            Invocation(self.shard_id, piece.records, started_at, plumbing.clock(), outcome)
        )
        return verdict

    def _call(self, piece: Piece) -> Verdict:
        plumbing = self._plumbing
        if payload_bytes(piece.items) - 1 > plumbing.settings.payload_bytes_max:
            return UNHANDLED_ERROR  # Lambda refuses the invocation: RequestTooLargeException
        event = batch_event(piece, self.shard_id, plumbing.reader.stream_arn)
        try:
            response = plumbing.function.invoke(event)
        except Exception:
            logger.exception(
                "function_failed function=%s shard=%s", plumbing.function.name, self.shard_id
            )
            return UNHANDLED_ERROR
        return interpret(
            response, piece.records, report=plumbing.settings.report_batch_item_failures
        )

    def _discard(self, piece: Piece, condition: Condition, verdict: Verdict) -> None:
        """Hand records to the failure destination before anything after them is delivered."""
        plumbing, at = self._plumbing, datetime.fromtimestamp(self._plumbing.clock(), UTC)
        logger.error(
            "records_discarded shard=%s records=%d condition=%s",
            self.shard_id,
            len(piece.items),
            condition,
        )
        if plumbing.failures is None:
            return
        key = failure_key(plumbing.mapping_id, self.shard_id, at=at, unique=str(uuid.uuid4()))
        record = failure_record(
            piece,
            condition,
            verdict,
            shard_id=self.shard_id,
            stream_arn=plumbing.reader.stream_arn,
            function_arn=plumbing.function.arn,
            request_id=str(uuid.uuid4()),
            at=at,
        )
        self._put_failure(plumbing.failures, key, json.dumps(record).encode())

    def _put_failure(self, destination: FailureDestination, key: str, body: bytes) -> None:
        failures = 0
        while True:
            try:
                destination.put(key, body)
            except TransientError as error:
                failures += 1
                logger.warning(
                    "failure_destination_failed key=%s failures=%d error=%s", key, failures, error
                )
                self._plumbing.wait(failures)
            else:
                return

    def _finish_batch(self, batch: tuple[Item, ...]) -> None:
        with self._plumbing.changed:
            before = self._progress.checkpoint
            self._progress.finish(item.record.sequence_number for item in batch)
            self._buffered_records -= len(batch)
            self._buffered_bytes -= payload_bytes(batch)
            moved = self._progress.checkpoint != before
        if moved:
            with self._saving:  # the checkpoint is read inside, so a slower lane cannot set it back
                self._plumbing.checkpoints.save(
                    self.shard_id, Checkpoint(self._progress.checkpoint)
                )
        with self._plumbing.changed:
            self._note_drained()
            self._plumbing.changed.notify_all()

    def _finish_shard(self) -> None:
        if self._plumbing.stop.is_set():
            raise _StoppingError  # the lanes left early
        self._plumbing.checkpoints.save(self.shard_id, Checkpoint(self._position, finished=True))
        self._plumbing.finished()


def _stable_id(stream_arn: str, function_name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{stream_arn}/{function_name}"))


def _ignore(_: Invocation) -> None:
    pass


class EventSourceMapping:
    """Delivers a stream to `function` from `start` to `stop`, and resumes from its checkpoints.

    A function given as a bare handler runs one invocation at a time; pass a LocalFunction with more
    `concurrency` for a handler that is safe in several threads. `failures` None drops what cannot
    be delivered, as Lambda does without a destination. `on_invocation` runs in the lanes' threads.
    """

    def __init__(
        self,
        function: Handler | LocalFunction,
        reader: ShardReader,
        checkpoints: Checkpoints,
        settings: MappingSettings,
        *,
        failures: FailureDestination | None = None,
        on_invocation: Callable[[Invocation], None] = _ignore,
        mapping_id: str | None = None,
        clock: Callable[[], float] = time.time,
        backoff: Callable[[int], float] = exponential_backoff,
        poll_interval_s: float = POLL_INTERVAL_S,
    ) -> None:
        named = local_function(function, "consumer")
        self._stop, self._list_now = threading.Event(), threading.Event()
        self._changed = threading.Condition()
        self._generation = self._listed = 0
        self._shards: list[Shard] = []
        self._workers: dict[str, _ShardWorker] = {}
        self._supervisor: threading.Thread | None = None
        self._failure: Exception | None = None
        self._plumbing = _Plumbing(
            function=named,
            reader=reader,
            checkpoints=checkpoints,
            settings=settings,
            failures=failures,
            on_invocation=on_invocation,
            mapping_id=mapping_id or _stable_id(reader.stream_arn, named.name),
            clock=clock,
            backoff=backoff,
            poll_interval_s=poll_interval_s,
            stop=self._stop,
            changed=self._changed,
            generation=lambda: self._generation,
            finished=self._list_now.set,
            crashed=self._crash,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._halt()
        if kind is None:
            self._raise_failure()

    def start(self) -> None:
        """Begin delivering in the background."""
        self._supervisor = self._plumbing.thread("mapping", self._supervise)

    def stop(self) -> None:
        """End all threads after the invocations under way; MappingFailedError if it had failed."""
        self._halt()
        self._raise_failure()

    def drain(self, deadline_s: float) -> None:
        """Block until every record put before this call is done.

        Raises DrainTimeoutError when that takes longer than `deadline_s`, MappingFailedError when
        it never will.
        """
        with self._changed:
            self._generation += 1
            wanted = self._generation
            self._list_now.set()
            drained = self._changed.wait_for(
                lambda: self._failure is not None or self._is_drained(wanted), timeout=deadline_s
            )
        self._raise_failure()
        if not drained:
            raise DrainTimeoutError(deadline_s, self._behind(wanted))

    def _supervise(self) -> None:
        failures = 0
        while not self._stop.is_set():
            self._list_now.clear()
            drain = self._generation
            try:
                shards = list(self._plumbing.reader.shards())
            except TransientError as error:
                failures += 1
                logger.warning("shard_list_failed failures=%d error=%s", failures, error)
                self._plumbing.wait(failures)
                continue
            failures = 0
            self._begin(shards, drain)
            self._list_now.wait(LIST_INTERVAL_S)

    def _begin(self, shards: list[Shard], drain: int) -> None:
        checkpoints = self._plumbing.checkpoints.load()
        finished = {name for name, checkpoint in checkpoints.items() if checkpoint.finished}
        with self._changed:
            for shard in startable(shards, finished=finished, started=self._workers):
                checkpoint = checkpoints.get(shard.shard_id, Checkpoint())
                self._workers[shard.shard_id] = _ShardWorker(shard, checkpoint, self._plumbing)
            self._shards = [shard for shard in shards if shard.shard_id not in finished]
            self._listed = drain
            self._changed.notify_all()

    def _is_drained(self, wanted: int) -> bool:
        return self._listed >= wanted and not self._behind(wanted)

    def _behind(self, wanted: int) -> tuple[str, ...]:
        names = (shard.shard_id for shard in self._shards)
        return tuple(
            name
            for name in names
            if name not in self._workers or self._workers[name].drained < wanted
        )

    def _crash(self, error: Exception) -> None:
        logger.error("mapping_failed error=%r", error)
        with self._changed:
            self._failure = self._failure or error
            self._stop.set()
            self._changed.notify_all()
        self._list_now.set()

    def _halt(self) -> None:
        deadline = time.monotonic() + STOP_DEADLINE_S
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        self._list_now.set()
        if self._supervisor is not None:
            self._supervisor.join(max(0.0, deadline - time.monotonic()))
        for worker in self._workers.values():
            if not worker.join(deadline):
                logger.warning("invocation_still_running shard=%s", worker.shard_id)

    def _raise_failure(self) -> None:
        error = self._failure
        if isinstance(error, FreshetError):
            raise error
        if error is not None:
            raise MappingFailedError(f"event source mapping failed: {error!r}") from error
