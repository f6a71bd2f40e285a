"""The whole pipeline on a laptop: the deployed handlers over a local AWS, in one home folder.

A home holds everything: embedded AWS's state, the SQLite catalog, the mapping's checkpoints. It
survives restarts and kills. One process owns a home at a time; others find the owner's addresses in
`runtime.json`. What of this differs over another local AWS is a method of `Home`.
"""

# ruff: noqa: PLC0415 - functions are imported when they are run: `freshet --help` needs none

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from freshet.pii import Protector
from freshet.tables import TABLES
from local.delivery import ENDLESS, MappingSettings
from local.embedded import HOST, EmbeddedAws, LocalRuntimeError
from local.gateway import Gateway
from local.invocation import Handler, LocalFunction
from local.mapping import (
    DrainTimeoutError,
    EventSourceMapping,
    FileCheckpoints,
    Invocation,
    Outcome,
    S3FailureDestination,
)
from local.scheduler import Schedule, Scheduler
from local.shards import KinesisShards

STREAM = "freshet"
PII_SECRET = "freshet/pii-key"  # noqa: S105 - its name
# As the poller's setting of that name: where sources are declared, beside the packages by default.
SOURCES_FOLDER = Path(os.environ.get("SOURCES_FOLDER") or Path(__file__).parents[1] / "sources")
SOURCES = tuple(sorted(path.stem for path in SOURCES_FOLDER.glob("*.yaml")))
LAKE_BUCKET, STATE_BUCKET, FAILURES_BUCKET = "freshet-lake", "freshet-state", "freshet-failures"
LAKE_PREFIX, DATABASE = "lake", "freshet"
SHARDS = 2  # as many as a laptop has cores to consume them

# A short window, because nobody waits five seconds at a demo; bisection and age bound a bad record.
MAPPING = MappingSettings(
    batch_size=1000,
    window_s=0.5,
    bisect_on_error=True,
    retry_attempts_max=ENDLESS,  # a fault that passes must not cost a record its place
    record_age_s_max=86_400,
    report_batch_item_failures=True,
)
# An HTTP API waits 30 s; a first poll reads years of rates; a batch commits in seconds.
PRODUCE_TIMEOUT_S, POLL_TIMEOUT_S, CONSUME_TIMEOUT_S = 30, 900, 300
PRODUCERS = 4
DRAIN_DEADLINE_S = 600.0
# How often a drain looks whether the consumer still gets on.
DRAIN_CHECK_S = 0.5
# Cutting a batch of 1,000 down to one record fails ten times in a row; twice that is no hiccup.
FAILURES_MAX = 20
# A function that raises has a fault that no repetition mends; three times rule out an accident.
CRASHES_MAX = 3
# The child of a killed owner leaves within a second or two.
LEAVE_DEADLINE_S = 5.0
LEAVE_POLL_S = 0.05


class ConsumerFailingError(LocalRuntimeError):
    """The consumer does not get on with what is in the stream."""


@dataclass(frozen=True)
class Addresses:
    """Where a running pipeline answers, and its process."""

    aws: str
    gateway: str
    pid: int


class Aws(Protocol):
    """What a pipeline needs of the AWS it runs on."""

    @property
    def client(self) -> Callable[..., Any]:
        """Makes or returns the boto3 client of a service."""

    @property
    def endpoint_url(self) -> str:
        """Where it is."""

    def ensure_stream(self, name: str, shards: int = 1) -> str:
        """Create the stream if it is missing and return its ARN."""

    def ensure_bucket(self, name: str) -> str:
        """Create the bucket if it is missing and return its name."""

    def environment(self) -> dict[str, str]:
        """The variables with which an AWS SDK in a function finds it."""


@dataclass(frozen=True)
class LakeAccess:
    """How a reader beside the lake reaches its objects below `root` (`s3://bucket/prefix`)."""

    root: str
    endpoint_url: str
    region: str
    key_id: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Home:
    """The folder of one local pipeline."""

    folder: Path

    def open_aws(self) -> AbstractContextManager[Aws]:
        """The AWS that this home's pipeline runs on, for as long as it is needed."""
        return EmbeddedAws(self.aws)

    def aws_beside(self, owner: Addresses) -> dict[str, str]:
        """The variables with which an SDK finds the AWS of the process that runs this home."""
        return EmbeddedAws(self.aws).environment() | {"AWS_ENDPOINT_URL": owner.aws}

    def held(self) -> AbstractContextManager[object]:
        """Keep other pipelines out of this home; embedded AWS does that itself."""
        return nullcontext()

    def refuse_demo(self) -> None:
        """LocalRuntimeError where a demo would meet data that it cannot tell from its own."""

    def settings(self) -> dict[str, str]:
        """What the functions of this home are told beside names and sources."""
        return {"CATALOG": "sql", "CATALOG_PATH": str(self.catalog)}

    @property
    def aws(self) -> Path:
        """State of embedded AWS, and the lock of whoever runs this home."""
        return self.folder / "aws"

    @property
    def catalog(self) -> Path:
        """The SQLite catalog."""
        return self.folder.absolute() / "catalog.db"

    @property
    def checkpoints(self) -> Path:
        """The mapping's checkpoints."""
        return self.folder / "checkpoints.json"

    @property
    def log(self) -> Path:
        """Warnings and traces of the local runtime."""
        return self.folder / "freshet.log"

    @property
    def addresses_file(self) -> Path:
        """Where the owner writes its addresses."""
        return self.folder / "runtime.json"

    def make(self) -> None:
        """Create the folder, or raise LocalRuntimeError where it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".writable"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            raise LocalRuntimeError(
                f"cannot write to {self.folder} ({error.strerror}); "
                "choose another folder with --home"
            ) from None

    def require(self) -> None:
        """LocalRuntimeError where no pipeline ever ran: asking would only show emptiness."""
        if not self.aws.is_dir():
            raise LocalRuntimeError(
                f"no pipeline has run in {self.folder}; run `freshet demo` or `freshet up`, "
                "or name another folder with --home"
            )

    def owner(self) -> Addresses | None:
        """The addresses of the process that runs this home now, if one does."""
        try:
            addresses = Addresses(**json.loads(self.addresses_file.read_text()))
            os.kill(addresses.pid, 0)
        except (OSError, ValueError, TypeError):
            return None
        return addresses if self._is_held() else None

    def refuse_owner(self) -> None:
        """LocalRuntimeError while a process runs this home."""
        owner = self.owner()
        if owner is not None:
            raise LocalRuntimeError(
                f"{self.folder} is run by process {owner.pid} ({owner.gateway}); "
                "stop that first or choose another folder with --home"
            )

    def clear(self) -> None:
        """Delete what the home holds. LocalRuntimeError while a process uses it."""
        self.refuse_owner()
        give_up_at = time.monotonic() + LEAVE_DEADLINE_S
        while self._is_held():
            if time.monotonic() > give_up_at:
                raise LocalRuntimeError(f"{self.folder} is in use by another `freshet`; stop it")
            time.sleep(LEAVE_POLL_S)
        # Folders first: a mark beside them still says whose they are if this is cut short.
        for path in sorted(self.folder.iterdir(), key=Path.is_file):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _is_held(self) -> bool:
        """Whether embedded AWS runs in this home: it keeps the folder locked while it lives."""
        with suppress(FileNotFoundError), (self.aws / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


def function_environment(
    aws: Mapping[str, str], home: Home, sources: Mapping[str, str]
) -> dict[str, str]:
    """The environment of the local functions: what the template sets, for this home."""
    return {
        **aws,
        **sources,
        "STREAM_NAME": STREAM,
        "STATE_BUCKET": STATE_BUCKET,
        "PII_SECRET_ARN": PII_SECRET,
        "ALLOW_LOOPBACK": "true",  # sample servers
        "LAKE_BUCKET": LAKE_BUCKET,
        "LAKE_PREFIX": LAKE_PREFIX,
        "DATABASE": DATABASE,
        **home.settings(),
        "POWERTOOLS_METRICS_DISABLED": "true",  # EMF lines would mix with data on stdout
        "POWERTOOLS_LOG_LEVEL": os.environ.get("POWERTOOLS_LOG_LEVEL", "WARNING"),
    }


def _forget_real_aws() -> None:
    """Take the user's own AWS profile, keys, endpoints and proxies out of this process: nothing run
    here may reach a real account, or fail because of one.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), HOST, "localhost")))


@contextmanager
def local_aws(home: Home, sources: Mapping[str, str] | None = None) -> Iterator[Aws]:
    """The AWS of a home with its stream and buckets; sets the functions' environment."""
    _forget_real_aws()
    with home.open_aws() as aws:
        aws.ensure_stream(STREAM, SHARDS)
        for bucket in (LAKE_BUCKET, STATE_BUCKET, FAILURES_BUCKET):
            aws.ensure_bucket(bucket)
        ensure_pii_key(aws)
        os.environ.update(function_environment(aws.environment(), home, sources or {}))
        yield aws


def ensure_pii_key(aws: Aws) -> None:
    """Make the key that personal data is hashed with, once: values hashed with another one would
    join with none of the old.
    """
    client = aws.client("secretsmanager")
    with suppress(client.exceptions.ResourceExistsException):
        client.create_secret(Name=PII_SECRET, SecretString=secrets.token_hex(32))


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Warnings and traces go to a file: a terminal wants the one line that matters."""
    handler = logging.FileHandler(path, delay=True)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


class _Progress:
    """Whether the consumer gets on. Safe for threads."""

    def __init__(self, log: Path) -> None:
        self._log, self._lock = log, threading.Lock()
        self._failed = self._crashed = self._discarded = 0
        self._error = "the log lines above name the fault"

    def crashed(self, error: Exception) -> None:
        with self._lock:
            self._crashed += 1
            self._error = f"{type(error).__name__}: {error}; trace in {self._log}"

    def ended(self, invocation: Invocation) -> None:
        with self._lock:
            succeeded = invocation.outcome is Outcome.SUCCEEDED
            self._failed = 0 if succeeded else self._failed + 1
            self._crashed = 0 if succeeded else self._crashed

    def discarded(self) -> None:
        with self._lock:
            self._discarded += 1

    def trouble(self) -> str | None:
        """One line that says what is wrong, None while all is well."""
        with self._lock:
            if self._discarded:
                what = f"put records aside in s3://{FAILURES_BUCKET} that it could not take"
            elif self._failed >= FAILURES_MAX or self._crashed >= CRASHES_MAX:
                what = "fails again and again; its records stay in the stream"
            else:
                return None
            return f"the consumer {what} ({self._error})"


class _NotedFailures(S3FailureDestination):
    """The mapping's failure destination; tells when something lands there."""

    def __init__(self, client: Any, noted: Callable[[], None]) -> None:
        super().__init__(client, FAILURES_BUCKET)
        self._noted = noted

    def put(self, key: str, body: bytes) -> None:
        super().put(key, body)
        self._noted()


ReportProgress = Callable[[int, int, int], object]


def _ignore(_: Any) -> None:
    pass


@dataclass
class Pipeline:
    """Producer behind a gateway, poller behind a scheduler, consumer behind the stream's mapping.

    `sources` are settings of the poller (`PLATZI_URL`), `rates_s` the schedules by source.
    `busy_s` adds up the seconds spent in each function.
    """

    home: Home
    port: int = 0
    sources: Mapping[str, str] = field(default_factory=dict)
    rates_s: Mapping[str, float] = field(default_factory=dict)
    on_invocation: Callable[[Invocation], None] = _ignore
    on_firing: Callable[[Any], None] = _ignore
    busy_s: dict[str, float] = field(default_factory=dict)
    _timing: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __enter__(self) -> Self:
        """Start everything; LocalRuntimeError with one line if a port or folder refuses."""
        self.home.make()
        self.home.refuse_owner()
        self._progress = _Progress(self.home.log)
        with ExitStack() as stack:
            stack.enter_context(self.home.held())
            self.aws = stack.enter_context(local_aws(self.home, self.sources))
            self._start(stack)
            self._running = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop taking, finish what is under way, stop."""
        self._running.__exit__(*error)  # type: ignore[arg-type]

    def _start(self, stack: ExitStack) -> None:
        # Handlers read their settings when first called and log as configured when imported.
        from api_poller.app import handler as poll
        from consumer.app import handler as consume
        from producer.app import handler as produce

        stack.enter_context(_logging_to(self.home.log))
        self.mapping = self._mapping(self._function(consume, "consumer", CONSUME_TIMEOUT_S, SHARDS))
        self.mapping.start()
        stack.callback(self.mapping.stop)
        self.gateway = Gateway(
            self._function(produce, "producer", PRODUCE_TIMEOUT_S, PRODUCERS), port=self.port
        )
        self.gateway.start()
        stack.callback(self.gateway.stop)
        schedules = [self._schedule(name) for name in SOURCES]
        polling = self._function(poll, "api_poller", POLL_TIMEOUT_S, 1)
        self.scheduler = Scheduler(polling, schedules, on_firing=self.on_firing)
        self.scheduler.start()
        stack.callback(self.scheduler.stop)
        addresses = Addresses(self.aws.endpoint_url, self.gateway.url, os.getpid())
        self.home.addresses_file.write_text(json.dumps(asdict(addresses)))
        stack.callback(self.home.addresses_file.unlink, missing_ok=True)

    def _schedule(self, source: str) -> Schedule:
        """A source's schedule. Polls by hand are tried once: somebody waits for the answer."""
        rate_s = self.rates_s.get(source)
        return Schedule(name=source, rate_s=rate_s, retry_attempts_max=2 if rate_s else 0)

    def _mapping(self, consuming: LocalFunction) -> EventSourceMapping:
        return EventSourceMapping(
            consuming,
            KinesisShards(self.aws.client("kinesis"), self.aws.ensure_stream(STREAM, SHARDS)),
            FileCheckpoints(self.home.checkpoints),
            MAPPING,
            failures=_NotedFailures(self.aws.client("s3"), self._progress.discarded),
            on_invocation=self._ended,
        )

    def poll(self, source: str) -> dict[str, Any]:
        """Poll a source now; the poll's report. Raises the poller's error."""
        firing = self.scheduler.fire_now(source)
        if firing.error is not None:
            raise firing.error
        report: dict[str, Any] = firing.response
        return report

    def drain(self, deadline_s: float = DRAIN_DEADLINE_S) -> None:
        """Return when everything in the stream is queryable.

        Raises `ConsumerFailingError` as soon as that is not to be expected, `DrainTimeoutError`.
        """
        give_up_at = time.monotonic() + deadline_s
        while True:
            self.check()
            try:
                self.mapping.drain(DRAIN_CHECK_S)
            except DrainTimeoutError as error:
                if time.monotonic() > give_up_at:
                    raise DrainTimeoutError(deadline_s, error.pending) from None
            else:
                return self.check()

    def watch(self) -> str | None:
        """As `trouble`; raises `MappingFailedError` when the mapping has stopped."""
        with suppress(DrainTimeoutError):
            self.mapping.drain(0)
        return self.trouble()

    def check(self) -> None:
        """Raise `ConsumerFailingError` where the consumer does not get on."""
        trouble = self.trouble()
        if trouble is not None:
            raise ConsumerFailingError(trouble)

    def trouble(self) -> str | None:
        """What keeps the consumer from getting on, in one line; None while nothing does."""
        return self._progress.trouble()

    def _ended(self, invocation: Invocation) -> None:
        self._progress.ended(invocation)
        self.on_invocation(invocation)

    def _function(
        self, handler: Handler, name: str, timeout_s: float, concurrency: int
    ) -> LocalFunction:
        """A deployed handler as a local function whose busy seconds are added up in `busy_s`."""

        def timed(event: dict[str, Any], context: Any) -> Any:
            began = time.perf_counter()
            try:
                return handler(event, context)
            except Exception as error:
                if name == "consumer":
                    self._progress.crashed(error)
                raise
            finally:
                with self._timing:
                    took = time.perf_counter() - began
                    self.busy_s[name] = self.busy_s.get(name, 0.0) + took

        return LocalFunction(timed, name, timeout_s=timeout_s, concurrency=concurrency)


@contextmanager
def reading(home: Home) -> Iterator[None]:
    """The environment leads to a home's AWS: the running owner's, or one started meanwhile."""
    home.require()
    owner = home.owner()
    if owner is None:
        with local_aws(home):
            yield
        return
    _point_functions_at(owner, home, {})
    yield


def poll_now(event: Mapping[str, Any], progress: ReportProgress) -> dict[str, Any]:
    """Poll into the stream that the environment leads to; the poll's report.

    `event` is what a schedule would send, `progress` is told pages, rows and changes so far.
    Raises the poller's error.
    """
    from api_poller.app import poll

    def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
        return poll(event, context, progress)

    function = LocalFunction(handler, "api_poller", timeout_s=POLL_TIMEOUT_S)
    report: dict[str, Any] = function.invoke(dict(event))
    return report


@contextmanager
def beside(home: Home, sources: Mapping[str, str]) -> Iterator[None]:
    """The environment leads to a home's AWS, also one that is new; `sources` are the poller's."""
    owner = home.owner()
    if owner is not None:
        _point_functions_at(owner, home, sources)
        yield
        return
    home.make()
    with home.held(), local_aws(home, sources):
        yield


def _point_functions_at(owner: Addresses, home: Home, sources: Mapping[str, str]) -> None:
    _forget_real_aws()
    os.environ.update(function_environment(home.aws_beside(owner), home, sources))


@contextmanager
def open_lake(home: Home, *, read_only: bool = True) -> Iterator[tuple[Any, LakeAccess]]:
    """A home's lake, and how to reach its objects: for reading, which leaves tables as they are,
    unless told otherwise.
    """
    with reading(home), open_lake_here(read_only=read_only) as opened:
        yield opened


@contextmanager
def open_lake_here(*, read_only: bool = True) -> Iterator[tuple[Any, LakeAccess]]:
    """As `open_lake`, of the AWS that the environment leads to, as it does while a `Pipeline` runs.

    Safe for a thread beside the pipeline's own: it changes no variable and shares no session.
    """
    import boto3

    from lake.opening import open_lake as opened
    from lake.settings import LakeSettings

    settings = LakeSettings.from_env()
    lake = opened(settings, TABLES, boto3.session.Session().client, read_only=read_only)
    try:
        yield lake, _access(settings.root)
    finally:
        lake.close()


def protector() -> Protector:
    """What hashes personal data with the key of the AWS that the environment leads to."""
    from freshet.secret import open_protector

    return open_protector(os.environ["PII_SECRET_ARN"], TABLES)


def _access(root: str) -> LakeAccess:
    env = os.environ
    return LakeAccess(
        root,
        endpoint_url=env["AWS_ENDPOINT_URL"],
        region=env["AWS_REGION"],
        key_id=env["AWS_ACCESS_KEY_ID"],
        secret=env["AWS_SECRET_ACCESS_KEY"],
        token=env.get("AWS_SESSION_TOKEN"),
    )
