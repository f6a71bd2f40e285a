"""Embedded AWS: Kinesis, S3 and Secrets Manager as one child process on the loopback, with no
Docker and no cloud.

The child (`embedded_server.py`) keeps its state in one folder and acknowledges nothing that a
killed process could lose. It dies with its parent. Everything else in this project talks to it
through boto3, as it would talk to AWS.
"""

from __future__ import annotations

import fcntl
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from freshet.errors import TerminalError

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_secretsmanager import SecretsManagerClient

REGION = "us-east-1"
ACCOUNT_ID = "000000000000"
HOST = "127.0.0.1"
# Replaying a day's journal of 1 GB takes seconds; after a minute no answer will come.
START_DEADLINE_S = 60.0
# An earlier owner of the folder may still be shutting down (its own grace is 1 s).
LOCK_DEADLINE_S = 5.0
STOP_DEADLINE_S = 5.0
HEALTH_POLL_S = 0.02
STREAM_POLL_S = 0.2  # LocalStack makes a stream within a second
PORT_REMEDY = "choose another port for embedded AWS, or 0 for a free one"


class LocalRuntimeError(TerminalError):
    """The local runtime cannot run as asked; the message says what to change."""


class EmbeddedAws:
    """Kinesis, S3 and Secrets Manager with their state in `folder`, from `start` to `stop`.

    `port` 0 takes a free one. A folder serves one instance at a time. Streams keep records for 24
    h, as in AWS; older ones leave memory and disk by themselves.
    """

    def __init__(self, folder: Path, port: int = 0) -> None:
        self._folder, self._wanted_port = folder.absolute(), port
        self._child: subprocess.Popen[bytes] | None = None
        self._port = 0
        self._session = boto3.session.Session()
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Return when the services answer; LocalRuntimeError when port, folder or child refuses."""
        lock = claim(self._folder)
        with lock, listening_socket(HOST, self._wanted_port, remedy=PORT_REMEDY) as listening:
            self._port = listening.getsockname()[1]
            self._child = self._spawn(listening.fileno(), lock.fileno())
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the child; safe to call twice. Nothing acknowledged depends on an orderly stop."""
        child, self._child = self._child, None
        if child is None:
            return
        assert child.stdin is not None
        child.stdin.close()
        try:
            child.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._clients.clear()

    @property
    def endpoint_url(self) -> str:
        """Base URL of all services."""
        return f"http://{HOST}:{self._port}"

    @property
    def pid(self) -> int | None:
        """Process id of the child while it runs."""
        return self._child.pid if self._child else None

    def environment(self) -> dict[str, str]:
        """The variables with which an AWS SDK in a function finds these services."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @overload
    def client(self, service: Literal["kinesis"]) -> KinesisClient: ...
    @overload
    def client(self, service: Literal["s3"]) -> S3Client: ...
    @overload
    def client(self, service: Literal["secretsmanager"]) -> SecretsManagerClient: ...
    def client(self, service: str) -> Any:
        """The boto3 client of a service, shared by all threads: short time-outs, three attempts."""
        with self._clients_lock:
            if service not in self._clients:
                self._clients[service] = self._new_client(service)
            return self._clients[service]

    def ensure_stream(self, name: str, shards: int = 1) -> str:
        """Create the stream if it is missing and return its ARN; shards of an old one stay."""
        return ensure_stream(self.client("kinesis"), name, shards)

    def ensure_bucket(self, name: str) -> str:
        """Create the bucket if it is missing and return its name."""
        return ensure_bucket(self.client("s3"), name)

    def _new_client(self, service: str) -> Any:
        return self._session.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106 - a stand-in accepts anything
            config=Config(
                connect_timeout=2,
                read_timeout=10,
                retries={"total_max_attempts": 3, "mode": "standard"},
                max_pool_connections=32,
                s3={"addressing_style": "path"},
            ),
        )

    def _spawn(self, listening: int, lock: int) -> subprocess.Popen[bytes]:
        with (self._folder / "embedded.log").open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own interpreter and script
                self._command(listening),
                stdin=subprocess.PIPE,  # its end-of-file tells the child that this process is gone
                stdout=log,
                stderr=log,
                pass_fds=(listening, lock),  # the child holds the folder's lock as long as it lives
                start_new_session=True,  # Ctrl-C is for us; we stop the child in our own order
            )

    def _command(self, listening: int) -> list[str]:
        server = Path(__file__).with_name("embedded_server.py")
        return [sys.executable, "-I", str(server), str(self._folder), str(listening)]

    def _wait_until_healthy(self) -> None:
        give_up_at = time.monotonic() + START_DEADLINE_S
        assert self._child is not None
        while time.monotonic() < give_up_at and self._child.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.endpoint_url}/_ministack/health", timeout=1):  # noqa: S310
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(HEALTH_POLL_S)
        raise LocalRuntimeError(
            f"embedded AWS did not start (exit code {self._child.poll()}); "
            f"see {self._folder / 'embedded.log'}"
        )


def listening_socket(host: str, port: int, *, remedy: str) -> socket.socket:
    """Take `host`:`port` (0: a free one); LocalRuntimeError, with the remedy, when refused."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        # Listening at once makes a second start on the same port fail here, not in its child.
        listening.listen(100)
    except OSError as error:
        listening.close()
        raise LocalRuntimeError(
            f"cannot listen on {host}:{port} ({error.strerror}); {remedy}"
        ) from error
    return listening


def ensure_stream(kinesis: KinesisClient, name: str, shards: int) -> str:
    """Create the stream if it is missing; its ARN once it takes records.

    LocalRuntimeError when it never does.
    """
    try:
        kinesis.create_stream(StreamName=name, ShardCount=shards)
    except ClientError as error:
        if error.response["Error"]["Code"] != "ResourceInUseException":
            raise
    give_up_at = time.monotonic() + START_DEADLINE_S
    while True:
        stream = kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]
        if stream["StreamStatus"] in {"ACTIVE", "UPDATING"}:
            return stream["StreamARN"]
        if time.monotonic() > give_up_at:
            raise LocalRuntimeError(f"stream {name} stays {stream['StreamStatus']}; delete it")
        time.sleep(STREAM_POLL_S)


def ensure_bucket(s3: S3Client, name: str) -> str:
    """Create the bucket if it is missing and return its name."""
    s3.create_bucket(Bucket=name)  # us-east-1 answers 200 for a bucket one already owns
    return name


def claim(folder: Path) -> Any:
    """Lock the folder: two servers in it would overwrite each other's state."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        raise LocalRuntimeError(
            f"cannot write to {folder} ({error.strerror}); choose another folder"
        ) from error
    give_up_at = time.monotonic() + LOCK_DEADLINE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                lock.close()
                raise LocalRuntimeError(
                    f"{folder} is in use by another embedded AWS; stop it or choose another folder"
                ) from None
            time.sleep(HEALTH_POLL_S)
        else:
            return lock
