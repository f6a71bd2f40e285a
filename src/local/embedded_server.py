"""The child process of `local.embedded`: MiniStack's Kinesis, S3 and Secrets Manager, made durable.

MiniStack alone writes Kinesis, bucket settings and secrets to disk only on an orderly shutdown: a
killed process loses every acknowledged record. Here a record is in an append-only journal, and a
setting in a state file, before its answer goes out. Shards split and merge without losing what
nobody has read yet. Writes survive the death of the process, not of
the machine (there is no fsync). Run as a script in isolated mode, because MiniStack reads its
configuration from the environment while it is imported.
"""

# ruff: noqa: SLF001, PLC0415 - patches a pinned MiniStack; imports it only once configured

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import sys
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# A new journal segment starts here, so that expired records leave the disk in pieces of this size.
SEGMENT_BYTES_MAX = 64 * 1024 * 1024
# Kinesis answers one GetRecords with 10 MB at most.
GET_RECORDS_BYTES_MAX = 10 * 1024 * 1024
# Iterators live 300 s; looking for dead ones on every request would cost more than the requests.
ITERATOR_SWEEP_S = 30.0
READ_ONLY_ACTIONS = ("Put", "Get", "Describe", "List", "SubscribeToShard")
SERVICES = ("kinesis", "s3", "secretsmanager")
# What a shard has since a split or merge closed it: nothing is put into it from there on.
ENDED = "ending_sequence_number"

Json = dict[str, Any]
Records = dict[str, list[Json]]  # shard id -> records as MiniStack keeps them


class RecordJournal:
    """Append-only file of acknowledged records, in segments dropped whole after retention."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._number = max((int(path.stem) for path in self._segments()), default=0)
        self._file = None if not self._number else self._open()

    def append(self, stream_arn: str, shards: Records) -> bool:
        """Write the records of one request as one line; True when this started a new segment.

        Raises OSError, with nothing left in the file, when the line cannot be written whole.
        """
        started = self._file is None or self._file.tell() > SEGMENT_BYTES_MAX
        if started:
            self._roll()
        assert self._file is not None
        line = (
            json.dumps({"stream": stream_arn, "shards": shards}, separators=(",", ":")).encode()
            + b"\n"
        )
        size = self._file.tell()
        try:
            written = self._file.write(line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes written")  # noqa: TRY301 - same path
        except OSError:
            self._file.truncate(size)
            self._file.seek(size)
            raise
        return started

    def replay(self) -> Iterator[tuple[str, Records]]:
        """Yield the requests in order; a torn last line was never acknowledged."""
        for path in self._segments():
            with path.open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        entry = json.loads(line)
                        yield entry["stream"], entry["shards"]

    def drop_before(self, epoch_s: float) -> None:
        """Delete the segments whose newest record arrived before `epoch_s`."""
        for path in self._segments():
            if int(path.stem) != self._number and path.stat().st_mtime < epoch_s:
                path.unlink()

    def close(self) -> None:
        """Release the file; everything appended is already in it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _segments(self) -> list[Path]:
        return sorted(self._folder.glob("*.jsonl"))

    def _open(self) -> Any:
        file = (self._folder / f"{self._number:08d}.jsonl").open("ab", buffering=0)
        end = _length_of_whole_lines(Path(file.name))
        file.truncate(end)
        file.seek(end)
        return file

    def _roll(self) -> None:
        self.close()
        self._number += 1
        self._file = self._open()


def _length_of_whole_lines(path: Path) -> int:
    content = path.read_bytes()
    return content.rfind(b"\n") + 1


class SequenceNumbers:
    """MiniStack's sequence numbers (20 digits of milliseconds, 10 of a counter), never smaller than
    before.

    The clock may step back and the counter restarts with the process; order within a shard must
    survive both.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock, self._millis, self._count = clock, 0, 0

    def next(self) -> str:
        """The next sequence number."""
        self._millis = max(self._millis, int(self._clock() * 1000))
        self._count += 1
        return f"{self._millis:020d}{self._count:010d}"

    def start_after(self, sequence_number: str) -> None:
        """Make later numbers greater than `sequence_number`, which an earlier process gave."""
        self._millis = max(self._millis, int(sequence_number[:20]) + 1)


class StateFiles:
    """One JSON file per service for what is not a record or an object: streams, secrets."""

    def __init__(self, folder: Path, persistence: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._persistence = folder, persistence

    def save(self, service: str, state: Json) -> None:
        """Replace the service's state; OSError when it cannot be written."""
        temporary = self._folder / f"{service}.json.tmp"
        temporary.write_text(json.dumps(state, default=self._persistence._json_default))
        temporary.replace(self._folder / f"{service}.json")

    def load(self, service: str) -> Json | None:
        """The service's state as last saved."""
        path = self._folder / f"{service}.json"
        if not path.exists():
            return None
        state: Json = json.loads(path.read_text(), object_hook=self._persistence._json_object_hook)
        return state


class DurableKinesis:
    """MiniStack's Kinesis with a journal before its answers and no cost per stored record."""

    def __init__(self, module: Any, journal: RecordJournal) -> None:
        self._module, self._journal = module, journal
        self._numbers = SequenceNumbers()
        self._swept_at = 0.0
        self._expire_iterators = module._expire_iterators

    def install(self) -> None:
        """Replace functions of the module; its dispatcher looks them up on every request."""
        module = self._module
        module._put_record = self._journaled(module._put_record, lambda answer: [answer["ShardId"]])
        module._put_records = self._journaled(
            module._put_records, lambda answer: [record["ShardId"] for record in answer["Records"]]
        )
        module._get_records = self._sized(module._get_records)
        module._next_sequence_number = self._numbers.next
        module._expire_records = self._expire
        module._expire_iterators = self._sweep_iterators
        module._split_shard = self._closing(module._split_shard, ("ShardToSplit",))
        merged = ("ShardToMerge", "AdjacentShardToMerge")
        module._merge_shards = self._closing(module._merge_shards, merged)
        module._update_shard_count = self._refuse_count
        module._route_to_shard = _open_shard_of
        module._shard_out = _with_end(module._shard_out)

    def state(self) -> Json:
        """The streams without their records, which are in the journal."""
        streams = type(self._module._streams)()
        for scope, stream in self._module._streams._data.items():
            shards = {name: {**shard, "records": []} for name, shard in stream["shards"].items()}
            streams._data[scope] = {**stream, "shards": shards}
        return {"streams": streams}

    def restore(self, state: Json | None) -> None:
        """Load the streams, then the journal's records that belong to them and are not expired."""
        self._module._restore_state(state)
        streams = {stream["StreamARN"]: stream for stream in self._streams()}
        self._drop_expired_segments()
        for stream in streams.values():
            for shard in stream["shards"].values():
                for end in (ENDED, "starting_sequence_number"):
                    if shard.get(end):
                        self._numbers.start_after(shard[end])
        for arn, shards in self._journal.replay():
            for shard_id, records in shards.items():
                self._numbers.start_after(records[-1]["SequenceNumber"])
                shard = streams.get(arn, {"shards": {}})["shards"].get(shard_id)
                # Records from before the shard's start belong to a deleted stream of the same name.
                if shard and records[0]["SequenceNumber"] > shard["starting_sequence_number"]:
                    shard["records"].extend(records)

    def _streams(self) -> list[Json]:
        return list(self._module._streams._data.values())

    def _drop_expired_segments(self) -> None:
        hours = max((stream["RetentionPeriodHours"] for stream in self._streams()), default=24)
        self._journal.drop_before(time.time() - hours * 3600)

    def _journaled(
        self, put: Callable[[Json], Any], shard_ids: Callable[[Json], list[str]]
    ) -> Callable[[Json], Any]:
        def journaled_put(request: Json) -> Any:
            response = put(request)
            if response[0] == 200:
                _, stream = self._module._resolve_stream(request)
                counts = Counter(shard_ids(json.loads(response[2])))
                try:
                    added = {
                        name: stream["shards"][name]["records"][-n:] for name, n in counts.items()
                    }
                    if self._journal.append(stream["StreamARN"], added):
                        self._drop_expired_segments()
                except OSError as error:
                    for name, n in counts.items():
                        del stream["shards"][name]["records"][-n:]
                    return self._module.error_response_json(
                        "InternalFailureException", str(error), 500
                    )
            return response

        return journaled_put

    def _sized(self, get: Callable[[Json], Any]) -> Callable[[Json], Any]:
        def sized_get(request: Json) -> Any:
            state = self._module._shard_iterators.get(request.get("ShardIterator"))
            stream = state and self._module._streams.get(state["stream"])
            if stream and state["shard_id"] in stream["shards"]:
                records = stream["shards"][state["shard_id"]]["records"]
                limit = min(request.get("Limit", 10_000), 10_000)
                request = {**request, "Limit": _fitting(records, state["position"], limit)}
                return self._ending(stream["shards"][state["shard_id"]], get(request))
            return get(request)

        return sized_get

    def _ending(self, shard: Json, response: Any) -> Any:
        """A closed shard read to its end has no next iterator."""
        if ENDED not in shard or response[0] != 200:
            return response
        answer = json.loads(response[2])
        iterator = answer["NextShardIterator"]
        if self._module._shard_iterators[iterator]["position"] < len(shard["records"]):
            return response
        del self._module._shard_iterators[iterator]
        return self._module.json_response({**answer, "NextShardIterator": None})

    def _closing(self, reshard: Callable[[Json], Any], members: tuple[str, ...]) -> Any:
        """A split or merge whose parents stay, closed, for as long as they hold records.

        MiniStack drops them with what nobody has read yet.
        """

        def resharded(request: Json) -> Any:
            _, stream = self._module._resolve_stream(request)
            shards = stream["shards"] if stream else {}
            names = [str(request.get(member)) for member in members]
            parents = {name: shards[name] for name in names if name in shards}
            if problem := _unfit(parents, len(names)):
                return self._module.error_response_json("InvalidArgumentException", problem, 400)
            ended = self._numbers.next()  # before the children begin
            response = reshard(request)
            if response[0] == 200:
                for name, parent in parents.items():
                    shards[name] = {**parent, ENDED: ended}
            return response

        return resharded

    def _expire(self, stream: Json) -> None:
        """Records are in arrival order: look at the first (MiniStack copies every list)."""
        cutoff = time.time() - stream["RetentionPeriodHours"] * 3600
        for shard_id, shard in list(stream["shards"].items()):
            records = shard["records"]
            if not records and ENDED in shard and int(shard[ENDED][:20]) < cutoff * 1000:
                del stream["shards"][shard_id]
            if records and records[0]["ApproximateArrivalTimestamp"] < cutoff:
                count = bisect_left(records, cutoff, key=lambda r: r["ApproximateArrivalTimestamp"])
                del records[:count]
                self._shift_iterators(stream["StreamName"], shard_id, count)

    def _shift_iterators(self, stream_name: str, shard_id: str, count: int) -> None:
        """An iterator is an index into the list that has just lost its first `count` records."""
        for state in self._module._shard_iterators.values():
            if (state["stream"], state["shard_id"]) == (stream_name, shard_id):
                state["position"] = max(0, state["position"] - count)

    def _sweep_iterators(self) -> None:
        now = time.monotonic()
        if now - self._swept_at > ITERATOR_SWEEP_S:
            self._swept_at = now
            self._expire_iterators()

    def _refuse_count(self, _request: Json) -> Any:
        return self._module.error_response_json(
            "UnsupportedOperation",
            "The embedded stream takes no new count (MiniStack would lose its unread records): "
            "split and merge shards instead.",
            400,
        )


def _unfit(parents: Json, wanted: int) -> str | None:
    """Why shards cannot be split or merged; None where they can, or where MiniStack says why."""
    if any(ENDED in parent for parent in parents.values()):
        return "A shard that is closed cannot be split or merged."
    if wanted == 2 and len(parents) == 2:
        low, high = sorted(parents.values(), key=lambda one: int(one["starting_hash_key"]))
        if int(low["ending_hash_key"]) + 1 != int(high["starting_hash_key"]):
            return "The shards are not adjacent."
    return None


def _open_shard_of(hash_key: int, stream: Json) -> str:
    """The open shard whose range holds a hash key: open ones cover all of them."""
    return next(
        str(name)
        for name, shard in stream["shards"].items()
        if ENDED not in shard
        and int(shard["starting_hash_key"]) <= hash_key <= int(shard["ending_hash_key"])
    )


def _with_end(shard_out: Callable[[str, Json], Json]) -> Callable[[str, Json], Json]:
    """Tell of a closed shard where it ended: by that, clients know that it is closed."""

    def ended_shard_out(shard_id: str, shard: Json) -> Json:
        told = shard_out(shard_id, shard)
        if ENDED in shard:
            told["SequenceNumberRange"]["EndingSequenceNumber"] = shard[ENDED]
        return told

    return ended_shard_out


def _fitting(records: list[Json], position: int, limit: int) -> int:
    size = 0
    for count, record in enumerate(records[position : position + limit]):
        size += len(record["Data"]) * 3 // 4
        if size > GET_RECORDS_BYTES_MAX:
            return max(count, 1)
    return limit


def persist_strictly(s3: Any) -> None:
    """Fail the request whose object could not be written to disk; MiniStack only warns."""
    persist = s3._persist_object

    def persist_or_fail(bucket: str, key: str, record: Any) -> None:
        persist(bucket, key, record)
        if isinstance(record, dict) and record.get("body") is not None:
            raise OSError(f"object {bucket}/{key} could not be written to disk")

    s3._persist_object = persist_or_fail


def repair_torn_objects(root: Path) -> None:
    """Finish overwrites that a kill cut between an object's data file and its sidecar.

    MiniStack replaces the data first; data newer than its sidecar therefore carries another
    object's ETag and size.
    """
    for sidecar in root.rglob("*.meta.json"):
        data = sidecar.with_name(sidecar.name.removesuffix(".meta.json"))
        if data.exists() and data.stat().st_mtime_ns > sidecar.stat().st_mtime_ns:
            content = data.read_bytes()
            meta = json.loads(sidecar.read_text())
            etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
            temporary = sidecar.with_name(sidecar.name + ".tmp")
            temporary.write_text(
                json.dumps({**meta, "etag": etag, "size": len(content), "checksums": {}})
            )
            temporary.replace(sidecar)


def changes_state(service: str, method: str, path: str, headers: dict[str, str]) -> bool:
    """Whether a successful request changed what `StateFiles` keeps."""
    if service == "s3":
        return method in {"PUT", "POST", "DELETE"} and "/" not in path.strip("/")
    action = headers.get("x-amz-target", "").rpartition(".")[2]
    if service == "kinesis":
        return not action.startswith(READ_ONLY_ACTIONS)
    return not action.startswith(("Get", "Describe", "List"))


def save_after_changes(module: Any, service: str, save: Callable[[], None]) -> None:
    """Make the module's answers wait until the state they report is on disk."""
    handle = module.handle_request

    async def handle_and_save(
        method: str, path: str, headers: dict[str, str], body: bytes, query: Any, **options: Any
    ) -> Any:
        response = await handle(method, path, headers, body, query, **options)
        if response[0] < 300 and changes_state(service, method, path, headers):
            save()
        return response

    module.handle_request = handle_and_save


def configure(folder: Path, port: int) -> None:
    """Set what MiniStack reads at import; it must listen nowhere else and write nowhere else."""
    os.environ.update(
        GATEWAY_PORT=str(port),
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        MINISTACK_REGION="us-east-1",
        SERVICES=",".join((*SERVICES, "sts")),
        AUTH="false",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
        PERSIST_STATE="0",
        S3_PERSIST="1",
        S3_DATA_DIR=str(folder / "s3"),
        STATE_DIR=str(folder / "state"),
        TMPDIR=str(folder),
        LOG_LEVEL="WARNING",
    )


def durable_application(folder: Path) -> Any:
    """MiniStack's ASGI application on the state of `folder`, every write durable."""
    repair_torn_objects(folder / "s3")
    from ministack import app
    from ministack.core import persistence
    from ministack.services import kinesis, s3, secretsmanager

    files = StateFiles(folder / "state", persistence)
    durable = DurableKinesis(kinesis, RecordJournal(folder / "kinesis"))
    durable.install()
    durable.restore(files.load("kinesis"))
    persist_strictly(s3)
    for module, service in ((s3, "s3"), (secretsmanager, "secretsmanager")):
        module.load_persisted_state(files.load(service))
    states = {
        "kinesis": durable.state,
        "s3": s3.get_state,
        "secretsmanager": secretsmanager.get_state,
    }
    for module, service in ((kinesis, "kinesis"), (s3, "s3"), (secretsmanager, "secretsmanager")):
        save_after_changes(module, service, partial(_save, files, service, states[service]))
    return _without_lifespan(app.app)


def _save(files: StateFiles, service: str, state: Callable[[], Json]) -> None:
    files.save(service, state())


def _without_lifespan(application: Any) -> Any:
    """Skip MiniStack's start-up tasks: containers, brokers, schedulers of other services."""

    async def http_only(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await application(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})

    return http_only


async def serve_until_orphaned(application: Any, listening: int) -> None:
    """Serve on the inherited socket until our standard input ends: the parent is gone."""
    from hypercorn.asyncio import serve
    from hypercorn.config import Config

    config = Config()
    config.bind = [f"fd://{listening}"]
    config.keep_alive_timeout = 75
    config.graceful_timeout = 1
    config.loglevel = "WARNING"
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_parent, daemon=True).start()
    await serve(application, config, shutdown_trigger=stop.wait)


def main() -> None:
    """Entry point: FOLDER and the file descriptor of a bound socket."""
    folder, listening = Path(sys.argv[1]), int(sys.argv[2])
    with socket.socket(fileno=os.dup(listening)) as bound:
        port = bound.getsockname()[1]
    configure(folder, port)
    asyncio.run(serve_until_orphaned(durable_application(folder), listening))


if __name__ == "__main__":
    main()
