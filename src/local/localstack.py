"""LocalStack as the AWS under a local pipeline: its Kinesis, S3 and Secrets Manager, and a Glue
stand-in beside it (`docker-compose.yml`).

The functions run in this process as they do over embedded AWS; the catalog is Glue. What is in
LocalStack outlives this process but not LocalStack, so only checkpoints of the very stream count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from localstack_client.session import Session

from freshet.tables import TABLES
from local.embedded import REGION, LocalRuntimeError, claim, ensure_bucket, ensure_stream
from local.runtime import LAKE_BUCKET, LAKE_PREFIX, STREAM, Addresses, Aws, Home, open_lake

# The stand-in of docker-compose.yml: LocalStack's free image has no Glue.
GLUE_URL = "http://localhost:4567"
PLATZI_SECRET = "freshet/platzi"  # noqa: S105 - its name
# Whoever waits at a terminal learns within seconds that nothing is there.
_CONFIG = Config(
    connect_timeout=2,
    read_timeout=10,
    retries={"total_max_attempts": 3, "mode": "standard"},
    max_pool_connections=32,
)


class LocalStack:
    """The clients and variables that lead to LocalStack, found as `localstack-client` finds it:
    LOCALSTACK_HOST or AWS_ENDPOINT_URL; Glue at AWS_ENDPOINT_URL_GLUE.
    """

    def __init__(self) -> None:
        # Read now: a pipeline takes the user's own AWS variables out of the process.
        self._session = Session(region_name=REGION)
        self._glue_url = os.environ.get("AWS_ENDPOINT_URL_GLUE", "").strip() or GLUE_URL
        self._clients: dict[str, Any] = {}

    def client(self, service: str) -> Any:
        """The client of a service, one for all threads."""
        if service not in self._clients:
            self._clients[service] = self._new_client(service)
        return self._clients[service]

    @property
    def endpoint_url(self) -> str:
        """Where LocalStack is."""
        url: str = self.client("kinesis").meta.endpoint_url
        return url

    def environment(self) -> dict[str, str]:
        """The variables with which an AWS SDK in a function finds LocalStack and the stand-in."""
        credentials = self._session.get_credentials()
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ENDPOINT_URL_GLUE": self._glue_url,
            "AWS_ACCESS_KEY_ID": credentials.access_key,
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
            "AWS_SESSION_TOKEN": credentials.token,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def ensure_stream(self, name: str, shards: int = 1) -> str:
        """Create the stream if it is missing and return its ARN."""
        return ensure_stream(self.client("kinesis"), name, shards)

    def ensure_bucket(self, name: str) -> str:
        """Create the bucket if it is missing and return its name."""
        return ensure_bucket(self.client("s3"), name)

    def ensure_secret(self, name: str) -> str:
        """Create the secret, empty, if it is missing and return its name."""
        secrets = self.client("secretsmanager")
        try:
            secrets.create_secret(Name=name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "ResourceExistsException":
                raise
        return name

    def require(self) -> None:
        """LocalRuntimeError unless LocalStack and the Glue stand-in answer."""
        with _answering("LocalStack", self.endpoint_url, "LOCALSTACK_HOST"):
            self.client("kinesis").list_streams(Limit=1)
        with _answering("the Glue stand-in", self._glue_url, "AWS_ENDPOINT_URL_GLUE"):
            self.client("glue").get_databases(MaxResults=1)

    def _new_client(self, service: str) -> Any:
        if service != "glue":
            return self._session.client(service, config=_CONFIG)
        credentials = self._session.get_credentials()
        return boto3.client(
            "glue",
            endpoint_url=self._glue_url,
            region_name=REGION,
            aws_access_key_id=credentials.access_key,
            aws_secret_access_key=credentials.secret_key,
            config=_CONFIG,
        )


@contextmanager
def _answering(what: str, url: str, variable: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise LocalRuntimeError(
            f"{what} does not answer at {url} ({type(error).__name__}); start it with "
            f"`make local-aws`, or say where it is with {variable}"
        ) from error


@dataclass(frozen=True)
class LocalStackHome(Home):
    """The home of a pipeline over LocalStack: its checkpoints, its log and its lock."""

    localstack: LocalStack = field(default_factory=LocalStack)

    @contextmanager
    def open_aws(self) -> Iterator[Aws]:
        """See `Home`. LocalRuntimeError when it does not answer."""
        self.localstack.require()
        self.localstack.ensure_secret(PLATZI_SECRET)
        yield self.localstack

    def aws_beside(self, owner: Addresses) -> dict[str, str]:  # noqa: ARG002 - AWS is not its own
        """See `Home`."""
        return self.localstack.environment()

    def held(self) -> AbstractContextManager[object]:
        """See `Home`."""
        lock: AbstractContextManager[object] = claim(self.aws)
        return lock

    def settings(self) -> dict[str, str]:
        """See `Home`."""
        return {"CATALOG": "glue", "PLATZI_SECRET_ID": PLATZI_SECRET}

    @property
    def checkpoints(self) -> Path:
        """The checkpoints of this very stream: LocalStack forgets its streams when it stops."""
        summary = self.localstack.client("kinesis").describe_stream_summary(StreamName=STREAM)
        created = summary["StreamDescriptionSummary"]["StreamCreationTimestamp"]
        return self.folder / f"checkpoints-{created:%Y%m%dT%H%M%S}.json"

    def require(self) -> None:
        """Nothing: what is in LocalStack need not come from a pipeline of this home."""

    def refuse_demo(self) -> None:
        """See `Home`: a demo compares the whole lake, and cannot empty this one."""
        with open_lake(self) as (lake, _):
            if any(lake.current(name).rows.view().snapshot_id for name in TABLES.names):
                raise LocalRuntimeError(
                    f"the lake s3://{LAKE_BUCKET}/{LAKE_PREFIX} at {self.localstack.endpoint_url} "
                    "holds rows, and a demo needs it for itself; start LocalStack afresh: "
                    "docker compose down, then make local-aws"
                )


def home_over_localstack(folder: Path) -> LocalStackHome:
    """The home beside `folder`: the demo empties its own, and theirs have other checkpoints."""
    return LocalStackHome(folder.with_name(f"{folder.name}-localstack"))
