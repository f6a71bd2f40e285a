"""A stack in an AWS account, asked from a laptop: the stack's own outputs say where everything is.

Reading never changes what is deployed: tables that are not there yet read as empty, and a contract
that differs from the deployed one is refused. Changes go in by the front door, signed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError
from pyiceberg.catalog.glue import GlueCatalog
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.update import TableRequirement, TableUpdate

from api_poller.state import StateStore
from freshet.errors import SettingsError, TerminalError, TransientError
from freshet.s3 import S3Objects
from freshet.tables import TABLES
from lake.catalog import LakeCatalog
from lake.io import ObjectsFileIO
from lake.lake import Lake
from local.embedded import LocalRuntimeError
from local.output import say
from local.runtime import LAKE_PREFIX, LakeAccess, ReportProgress
from local.sending import Authorise, Sender

TOKEN = "FRESHET_TOKEN"  # noqa: S105 - the variable's name
# The poller may take Lambda's 15 minutes; its answer comes after. Asked twice it would poll twice.
_INVOKE_CONFIG = Config(
    connect_timeout=5, read_timeout=930, tcp_keepalive=True, retries={"total_max_attempts": 1}
)
# CloudFormation is asked one thing at the start: a wrong endpoint is said within seconds.
_ASK_CONFIG = Config(
    connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 3, "mode": "standard"}
)
_SIGN_IN = "sign in again: these credentials are no longer good"
_REMEDIES = {
    "AccessDenied": "grant it to your AWS identity",
    "AccessDeniedException": "grant it to your AWS identity",
    "ExpiredToken": _SIGN_IN,
    "ExpiredTokenException": _SIGN_IN,
    "InvalidClientTokenId": _SIGN_IN,
    "InvalidSignatureException": _SIGN_IN,
    "SignatureDoesNotMatch": _SIGN_IN,
    "UnrecognizedClientException": _SIGN_IN,
}


class AwsRefusedError(TerminalError):
    """AWS answered a call with an error; `code` is AWS's."""

    def __init__(self, call: str, code: str, remedy: str) -> None:
        self.call, self.code = call, code
        super().__init__(f"AWS refuses {call} ({code}): {remedy}")


class AwsUnreachableError(TransientError):
    """AWS did not answer a call, or could not be asked."""

    def __init__(self, call: str, detail: str) -> None:
        self.call = call
        super().__init__(
            f"{call}: {detail.rstrip('.')}; check AWS_PROFILE, AWS_DEFAULT_REGION and the network"
        )


class StackError(TerminalError):
    """The stack is not there or is not one of ours."""

    def __init__(self, stack: str, detail: str) -> None:
        self.stack = stack
        super().__init__(f"stack {stack!r} {detail}")


class FunctionFailedError(TerminalError):
    """A deployed function raised; `kind` is the class of its error."""

    def __init__(self, function: str, kind: str, detail: str) -> None:
        self.function, self.kind = function, kind
        super().__init__(f"{function} failed with {kind}: {' '.join(detail.split())}")


@contextmanager
def _told(call: str) -> Iterator[None]:
    """AWS's errors in one line that says what to do."""
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", "unknown"))
        remedy = _REMEDIES.get(code, " ".join(str(error).split()))
        raise AwsRefusedError(call, code, remedy) from error
    except NoCredentialsError as error:
        raise SettingsError("AWS_PROFILE", "no AWS credentials found: set it, or keys") from error
    except NoRegionError as error:
        raise SettingsError("AWS_DEFAULT_REGION", "is not set: where is the stack?") from error
    except BotoCoreError as error:
        raise AwsUnreachableError(call, " ".join(str(error).split())) from error


@dataclass(frozen=True)
class Stack:
    """A deployed stack: its name and what it puts out."""

    name: str
    outputs: Mapping[str, str]

    @classmethod
    def read(cls, session: boto3.Session, name: str) -> Stack:
        """Ask CloudFormation. Raises `StackError` where there is no such stack."""
        with _told("cloudformation:DescribeStacks"):
            client = session.client("cloudformation", config=_ASK_CONFIG)
            try:
                [stack] = client.describe_stacks(StackName=name)["Stacks"]
            except ClientError as error:
                # How CloudFormation calls a name that it does not know.
                if error.response.get("Error", {}).get("Code") != "ValidationError":
                    raise
                where = f"is not in {client.meta.region_name} of this account"
                raise StackError(
                    name, f"{where}; name it with --stack, or AWS_DEFAULT_REGION"
                ) from error
        outputs = {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", ())}
        return cls(name, outputs)

    def __getitem__(self, output: str) -> str:
        """One output. Raises `StackError` where the stack has none of that name."""
        try:
            return self.outputs[output]
        except KeyError:
            detail = f"has no output {output}; is it a Freshet stack, and fully deployed?"
            raise StackError(self.name, detail) from None


def signed(credentials: Credentials, region: str) -> Authorise:
    """Sign requests to an HTTP API (Signature Version 4), each with the keys valid by then."""

    def authorise(
        method: str, url: str, body: bytes, headers: Mapping[str, str]
    ) -> Mapping[str, str]:
        request = AWSRequest(method=method, url=url, data=body, headers=dict(headers))
        with _told("the credentials"):
            SigV4Auth(credentials.get_frozen_credentials(), "execute-api", region).add_auth(request)
        return dict(request.headers.items())

    return authorise


def with_token(token: str) -> Authorise:
    """Send a bearer token: for an API whose authoriser takes JWTs."""

    def authorise(
        _method: str, _url: str, _body: bytes, headers: Mapping[str, str]
    ) -> Mapping[str, str]:
        return {**headers, "authorization": f"Bearer {token}"}

    return authorise


class _ReadOnly(LakeCatalog, GlueCatalog):
    """Glue as a reader sees it: no database is made, and nothing is committed."""

    place = "Glue catalog"
    faults = (BotoCoreError, ClientError)

    def __init__(self, client: Any, files: ObjectsFileIO, *, warehouse: str, stack: str) -> None:
        super().__init__("freshet", client=client, warehouse=warehouse)
        self.files, self._stack = files, stack

    def commit_table(
        self,
        table: Table,
        requirements: tuple[TableRequirement, ...],  # noqa: ARG002 - pyiceberg's
        updates: tuple[TableUpdate, ...],  # noqa: ARG002 - pyiceberg's
    ) -> CommitTableResponse:
        """Refuse: a lake that only reads asks for none."""
        raise StackError(self._stack, f"is read from here; {table.name()[-1]} was to be changed")


def _session() -> boto3.Session:
    with _told("the session"):
        session = boto3.Session()
        if session.region_name is None:
            raise NoRegionError
        return session


@dataclass
class Account:
    """See `Cloud`: a deployed stack in the account that the environment points to."""

    stack: str
    session: boto3.Session = field(default_factory=_session)

    def home(self, command: str) -> NoReturn:
        """See `Cloud`."""
        raise LocalRuntimeError(
            f"`freshet {command}` is for a pipeline on this machine; stack {self.stack!r} runs, "
            "and is maintained, in AWS: leave --aws account out"
        )

    def demo_home(self) -> NoReturn:
        """See `Cloud`."""
        self.home("demo")

    @contextmanager
    def lake(
        self,
        *,
        read_only: bool = True,  # noqa: ARG002 - it always is
    ) -> Iterator[tuple[Any, LakeAccess]]:
        """See `Cloud`."""
        stack = self._read()
        root = f"s3://{stack['LakeBucketName']}/{LAKE_PREFIX}"
        with _told("a client"):
            keys = self._credentials().get_frozen_credentials()
            s3, glue = self.session.client("s3"), self.session.client("glue")
        lake = Lake(
            S3Objects(s3, stack["LakeBucketName"], LAKE_PREFIX),
            root,
            lambda files: _ReadOnly(glue, files, warehouse=root, stack=self.stack),
            tables=TABLES,
            database=stack["DatabaseName"],
            read_only=True,
        )
        try:
            yield (
                lake,
                LakeAccess(
                    root,
                    endpoint_url=s3.meta.endpoint_url,
                    region=s3.meta.region_name,
                    key_id=str(keys.access_key),
                    secret=str(keys.secret_key),
                    token=keys.token,
                ),
            )
        finally:
            lake.close()

    @contextmanager
    def sender(self) -> Iterator[Sender]:
        """See `Cloud`: FRESHET_TOKEN as bearer token if it is set, a signature otherwise."""
        url, token = self._read()["ApiUrl"], os.environ.get(TOKEN, "").strip()
        if token:
            yield Sender(url, authorise=with_token(token))
        else:
            region = str(self.session.region_name)
            yield Sender(url, authorise=signed(self._credentials(), region))

    def poll(
        self,
        event: Mapping[str, Any],
        places: dict[str, str],
        progress: ReportProgress,  # noqa: ARG002 - a function answers once
    ) -> dict[str, Any]:
        """See `Cloud`: invokes the deployed poller, and waits for it."""
        if places:
            raise LocalRuntimeError(
                "where the deployed poller finds its sources is a parameter of the stack "
                "(PlatziUrl, EcbUrl): deploy that, and leave --url out"
            )
        function = self._read()["ApiPollerFunctionName"]
        with _told(f"lambda:InvokeFunction of {function}"):
            client = self.session.client("lambda", config=_INVOKE_CONFIG)
            answer = client.invoke(FunctionName=function, Payload=json.dumps(dict(event)))
            report = json.loads(answer["Payload"].read())
        if answer.get("FunctionError"):
            kind, detail = report.get("errorType", "an error"), report.get("errorMessage", "")
            raise FunctionFailedError(function, kind, detail)
        return cast("dict[str, Any]", report)

    @contextmanager
    def states(self) -> Iterator[Any]:
        """See `Cloud`."""
        bucket = self._read()["StateBucketName"]
        with _told("a client"):
            objects = S3Objects(self.session.client("s3"), bucket)
        yield StateStore(objects)

    def be_at_rest(self) -> None:
        """See `Cloud`: whether a deployed pipeline is busy cannot be known from here."""
        say(
            "a change in flight can look like a broken law: repeat before you believe one, or "
            "pause the mapping (output EventSourceMappingId)"
        )

    def _read(self) -> Stack:
        return Stack.read(self.session, self.stack)

    def _credentials(self) -> Credentials:
        with _told("the credentials"):
            credentials = self.session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            return credentials
