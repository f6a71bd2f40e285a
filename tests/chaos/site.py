"""The local runtime under chaos: embedded AWS, an event source mapping, and sandboxes that die.

As on Lambda, a sandbox serves one invocation at a time and is gone for good when it is killed; the
next invocation starts cold. A kill is an exception that nothing in the product catches, raised at a
step of the lake. It reaches the mapping as Lambda would tell it: the function failed.
"""

from __future__ import annotations

import base64
import copy
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.contracts import FIRST, STREAMS
from tests.chaos.traffic import PII_KEY

from consumer.app import build
from freshet.clock import utc_now
from freshet.contract import Registry
from freshet.errors import StorageError
from freshet.objects import StoredObject
from freshet.pii import Protector
from freshet.s3 import S3Objects
from lake.lake import Lake
from lake.sqlite import sql_catalog
from lake.steps import OnStep, Step, no_step
from local.delivery import MappingSettings
from local.embedded import EmbeddedAws
from local.invocation import LocalFunction
from local.mapping import EventSourceMapping, FileCheckpoints, Invocation, S3FailureDestination
from local.runtime import LakeAccess
from local.shards import HASH_KEY_MAX, KinesisShards

STREAM, LAKE_BUCKET, FAILURES_BUCKET = "chaos", "chaos-lake", "chaos-failures"
SHARDS_FIRST, CONCURRENCY = 2, 3
PUT_RECORDS_MAX = 500
# Every how many invocations which fault falls.
DOOMED_EVERY, FAULTY_EVERY, TWICE_EVERY, RACED_EVERY = 3, 7, 5, 11
_BACKOFF_S = 0.01
Json = dict[str, Any]


class Killed(BaseException):
    """The process of a sandbox ends here."""


class SandboxDiedError(RuntimeError):
    """What the mapping is told of it."""


class FaultyObjects:
    """A store one of whose calls fails, as S3 does after the SDK's retries."""

    def __init__(self, objects: S3Objects) -> None:
        self._objects, self._lock = objects, threading.Lock()
        self.calls_left = 0

    def get(self, key: str) -> StoredObject:
        self._fail_in_turn(key)
        return self._objects.get(key)

    def put(self, key: str, data: bytes) -> str:
        self._fail_in_turn(key)
        return self._objects.put(key, data)

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        self._fail_in_turn(key)
        return self._objects.put_if(key, data, etag=etag)

    def delete(self, key: str) -> None:
        self._objects.delete(key)

    def list(self, prefix: str) -> Iterator[str]:
        return self._objects.list(prefix)

    def _fail_in_turn(self, key: str) -> None:
        with self._lock:
            self.calls_left -= 1
            if self.calls_left == 0:
                raise StorageError(key, "503 Slow Down")


@dataclass
class Faults:
    """Which invocation meets which fault. Safe for threads; the same for the same seed and order.

    `cursed` are records, by their data in base64, which no invocation survives.
    """

    random: Random
    steps_left: Counter[Step]
    cursed: set[str] = field(default_factory=set)
    met: Counter[str] = field(default_factory=Counter)
    killed: Counter[Step] = field(default_factory=Counter)
    _invocations: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self, event: Mapping[str, Any]) -> set[str]:
        """What an invocation with this event is in for."""
        with self._lock:
            self._invocations += 1
            number = self._invocations
            names = {
                "cursed": any(one["kinesis"]["data"] in self.cursed for one in event["Records"]),
                "doomed": number % DOOMED_EVERY == 0,
                "faulty": number % FAULTY_EVERY == 0,
                "twice": number % TWICE_EVERY == 0,
                "raced": number % RACED_EVERY == 0,
            }
            found = {name for name, meets in names.items() if meets}
            self.met.update(found)
            return found

    def kills_at(self, step: Step) -> bool:
        """Whether a doomed invocation ends at this step."""
        with self._lock:
            if not self.steps_left[step] or self.random.random() < 0.2:
                return False
            self.steps_left[step] -= 1
            self.killed[step] += 1
            return True

    def calls(self) -> int:
        """After how many calls to the store one fails."""
        with self._lock:
            return self.random.randint(1, 40)


class _Sandbox:
    """One process of the function, with a lake of its own."""

    def __init__(self, site: Site, tables: Registry) -> None:
        self.doomed = False
        self._faults = site.faults
        self.objects = FaultyObjects(site.objects())
        self.lake = site.open_lake(tables, objects=self.objects, on_step=self._step)
        protect = Protector(PII_KEY, tables)
        self.handle = build(self.lake, tables=tables, now=utc_now, streams=STREAMS, protect=protect)

    def _step(self, step: Step) -> None:
        if self.doomed and self._faults.kills_at(step):
            raise Killed


class Site:
    """Everything in one folder, as long as it is open. `tables` are the consumer's, and may be
    exchanged while no mapping runs.
    """

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.folder, self.faults, self.tables = folder, faults, FIRST
        self.aws = EmbeddedAws(folder / "aws")
        self.invocations = 0
        self.failure_numbers = count()
        self._idle: list[_Sandbox] = []
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[Site]:
        """Start embedded AWS, and stop everything in the end."""
        self.aws.start()
        try:
            self.arn = self.aws.ensure_stream(STREAM, SHARDS_FIRST)
            for bucket in (LAKE_BUCKET, FAILURES_BUCKET):
                self.aws.ensure_bucket(bucket)
            yield self
        finally:
            self.forget_sandboxes()
            self.aws.stop()

    def kill_aws(self) -> None:
        """Kill embedded AWS, as a machine's memory killer would, and start it again."""
        pid = self.aws.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.forget_sandboxes()
        self.aws.stop()
        self.aws.start()

    def forget_sandboxes(self) -> None:
        """A deployment: whatever is called from now on starts cold."""
        while self._idle:
            self._idle.pop().lake.close()

    def objects(self, bucket: str = LAKE_BUCKET) -> S3Objects:
        """What a bucket holds."""
        return S3Objects(self.aws.client("s3"), bucket)

    def access(self) -> LakeAccess:
        """How readers reach the lake's bucket."""
        told = self.aws.environment()
        return LakeAccess(
            f"s3://{LAKE_BUCKET}",
            told["AWS_ENDPOINT_URL"],
            told["AWS_REGION"],
            told["AWS_ACCESS_KEY_ID"],
            told["AWS_SECRET_ACCESS_KEY"],
        )

    def open_lake(
        self, tables: Registry, *, objects: Any = None, on_step: OnStep = no_step
    ) -> Lake:
        """Another process's view of the lake."""
        root = f"s3://{LAKE_BUCKET}"
        open_catalog = partial(
            sql_catalog, self.folder / "catalog.db", warehouse=root, database="chaos"
        )
        return Lake(
            objects or self.objects(),
            root,
            open_catalog,
            tables=tables,
            database="chaos",
            on_step=on_step,
            on_conflict=self._note_conflict,
            io_threads=2,
        )

    # The stream -----------------------------------------------------------------------------------

    def put(self, entries: list[Any]) -> list[tuple[str, str]]:
        """Put records; shard and sequence number of each."""
        placed = []
        for at in range(0, len(entries), PUT_RECORDS_MAX):
            answer = self.aws.client("kinesis").put_records(
                StreamName=STREAM, Records=entries[at : at + PUT_RECORDS_MAX]
            )
            assert answer["FailedRecordCount"] == 0
            placed += [(one["ShardId"], one["SequenceNumber"]) for one in answer["Records"]]
        return placed

    def split(self, at: int) -> None:
        """Split the `at`-th open shard in the middle."""
        shard = self._open_shards()[at]
        low, high = shard["HashKeyRange"].values()
        middle = (int(low) + int(high) + 1) // 2
        self.aws.client("kinesis").split_shard(
            StreamName=STREAM, ShardToSplit=shard["ShardId"], NewStartingHashKey=str(middle)
        )

    def merge(self, at: int) -> None:
        """Merge the `at`-th open shard with the next."""
        first, second = self._open_shards()[at : at + 2]
        self.aws.client("kinesis").merge_shards(
            StreamName=STREAM,
            ShardToMerge=first["ShardId"],
            AdjacentShardToMerge=second["ShardId"],
        )

    def _open_shards(self) -> list[Any]:
        """Open shards by the hash keys they begin with; together they have all of them."""
        shards = self.aws.client("kinesis").list_shards(StreamName=STREAM)["Shards"]
        found = sorted(
            (one for one in shards if "EndingSequenceNumber" not in one["SequenceNumberRange"]),
            key=lambda one: int(one["HashKeyRange"]["StartingHashKey"]),
        )
        assert int(found[-1]["HashKeyRange"]["EndingHashKey"]) == HASH_KEY_MAX
        return found

    # The function ---------------------------------------------------------------------------------

    def mapping(self, settings: MappingSettings) -> EventSourceMapping:
        """The event source mapping, going on where the last one stopped."""
        return EventSourceMapping(
            LocalFunction(self._invoke, "consumer", concurrency=CONCURRENCY),
            KinesisShards(self.aws.client("kinesis"), self.arn),
            FileCheckpoints(self.folder / "checkpoints.json"),
            settings,
            failures=_Failures(self),
            on_invocation=self._count,
            backoff=lambda _: _BACKOFF_S,
            poll_interval_s=0.02,
        )

    def _note_conflict(self, _table: str) -> None:
        with self._lock:
            self.faults.met["conflict"] += 1

    def _count(self, _: Invocation) -> None:
        with self._lock:
            self.invocations += 1

    def _invoke(self, event: Json, context: Any) -> Json:
        """One invocation, and its zombies: the same batch again, beside it or after it."""
        meets = self.faults.next(event)
        if "cursed" in meets:
            raise SandboxDiedError("out of memory")
        zombie = threading.Thread(target=self._zombie, args=(copy.deepcopy(event),))
        if "raced" in meets:
            zombie.start()
        try:
            answer = self._call(event, context, meets)
        finally:
            if "raced" in meets:
                zombie.join()
        if "twice" in meets:
            self._call(copy.deepcopy(event), context, set())
        return answer

    def _zombie(self, event: Json) -> None:
        """An invocation that Lambda gave up waiting for: nobody reads its answer."""
        self._call(event, None, set())

    def _call(self, event: Json, context: Any, meets: set[str]) -> Json:
        sandbox = self._sandbox()
        sandbox.doomed = "doomed" in meets
        sandbox.objects.calls_left = self.faults.calls() if "faulty" in meets else 0
        try:
            answer = sandbox.handle(event, context)
        except Killed:
            sandbox.lake.close()
            raise SandboxDiedError("killed") from None
        with self._lock:
            self._idle.append(sandbox)
        return answer

    def _sandbox(self) -> _Sandbox:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return _Sandbox(self, self.tables)


class _Failures(S3FailureDestination):
    """The failure destination; every other object tells the range alone, as SQS and SNS would."""

    def __init__(self, site: Site) -> None:
        super().__init__(site.aws.client("s3"), FAILURES_BUCKET)
        self._numbers = site.failure_numbers

    def put(self, key: str, body: bytes) -> None:
        if next(self._numbers) % 2:
            told = json.loads(body)
            del told["payload"]
            body = json.dumps(told).encode()
        super().put(key, body)


def curse_of(data: bytes) -> str:
    """A record as `Faults.cursed` names it."""
    return base64.b64encode(data).decode()
