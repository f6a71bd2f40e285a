"""`freshet --aws account`: a stack with the outputs of ours, in a MiniStack that is the account.

Its API and its poller are a server on the loopback that keeps what it was asked.
"""

from __future__ import annotations

import io
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.e2e.conftest import Done
from tests.e2e.ministack import ROOT, ministack
from tests.unit.test_consumer_decode import recorded

from consumer.app import build
from freshet.tables import TABLES
from freshet.testing import StoppedClock, sale_row
from lake.opening import open_lake
from lake.settings import LakeSettings
from local.account import Stack, StackError
from local.cli import _run, app
from local.runtime import LakeAccess

STACK, BUCKET, DATABASE, POLLER = "shop", "shop-lake", "shop_lake", "shop-poller"
CONSUMER, STREAM = "shop-consumer", "shop-changes"
REGION, KEY, SECRET = "eu-west-1", "AKIAIOSFODNN7EXAMPLE", "a-secret-key-that-nobody-may-see"
SALE = json.dumps({"after": sale_row("A-1"), "version": 1})
REPORT = {
    "source": "ecb",
    "listed": 3,
    "created": 3,
    "updated": 0,
    "deleted": 0,
    "unchanged": 0,
    "skipped": 0,
    "guarded": 0,
    "published": 3,
    "problems": [],
}


# How the consumer is configured: what decodes a record here as the stack does.
CONFIGURATION = {
    "FunctionName": CONSUMER,
    "Environment": {
        "Variables": {
            "LAKE_BUCKET": BUCKET,
            "LAKE_PREFIX": "lake",
            "DATABASE": DATABASE,
            "PII_SECRET_ARN": "never-read",
        }
    },
}


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Front:
    """The stack's API and the Lambda service, in one."""

    status: int = 202
    failure: dict[str, str] | None = None
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def answer(self, asked: Asked) -> tuple[int, dict[str, str], Any]:
        self.asked.append(asked)
        if "/functions/" in asked.path:
            failed = {"X-Amz-Function-Error": "Unhandled"} if self.failure else {}
            return 200, failed, self.failure or REPORT
        events = asked.body.splitlines()
        outcomes = [{"index": at, "status": "accepted"} for at in range(len(events))]
        refused = {"message": "Forbidden"}
        return self.status, {}, {"outcomes": outcomes} if self.status == 202 else refused


@contextmanager
def serving(front: Front) -> Iterator[Front]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._tell(200, {}, CONFIGURATION)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self._tell(*front.answer(Asked("POST", self.path, headers, body)))

        def _tell(self, status: int, more: dict[str, str], told: Any) -> None:
            text = json.dumps(told).encode()
            self.send_response(status)
            for name, value in ({"content-length": str(len(text))} | more).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            """Tests read what was asked, not a log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        front.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield front
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ministack(
        tmp_path_factory.mktemp("account"), "cloudformation,s3,glue,iam,kinesis,sts"
    ) as url:
        yield url


@pytest.fixture(scope="module")
def front() -> Iterator[Front]:
    with serving(Front()) as running:
        yield running


@dataclass(frozen=True)
class Deployed:
    """A stack and the command that asks it, run in this process: each imports half of AWS."""

    endpoint: str
    front: Front
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_LAMBDA": self.front.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    def freshet(self, *arguments: str, stdin: str = "", **more: str) -> Done:
        out, err, code = io.StringIO(), io.StringIO(), 0
        told = {"FRESHET_HOME": str(self.home), "FRESHET_STACK": STACK, **self.environment, **more}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in told.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            with redirect_stdout(out), redirect_stderr(err):
                try:
                    _run(partial(app, ["--aws", "account", *arguments]))
                except SystemExit as end:
                    code = int(end.code or 0)
        done = Done(code, out.getvalue(), err.getvalue())
        assert SECRET not in done.out + done.err
        return done

    def client(self, service: str, **options: Any) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            **options,
        )

    def land(self, event: dict[str, Any]) -> None:
        """What the deployed consumer does."""
        settings = LakeSettings(BUCKET, "lake", DATABASE, "glue")
        lake = open_lake(settings, TABLES, self.client)
        build(lake, tables=TABLES, now=StoppedClock())(event, None)
        lake.close()


@pytest.fixture(scope="module")
def stack(endpoint: str, front: Front, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    deployed = Deployed(endpoint, front, tmp_path_factory.mktemp("no") / "home")
    cloudformation = deployed.client("cloudformation")
    cloudformation.create_stack(StackName=STACK, TemplateBody=json.dumps(small_stack(front.url)))
    cloudformation.get_waiter("stack_create_complete").wait(
        StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )
    deployed.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
    return deployed


@pytest.fixture
def deployed(stack: Deployed) -> Iterator[Deployed]:
    """The stack for one test: nothing asked yet, the lake empty."""
    stack.front.asked.clear()
    stack.front.status, stack.front.failure = 202, None
    yield stack
    s3, glue = stack.client("s3"), stack.client("glue")
    for found in s3.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        s3.delete_object(Bucket=BUCKET, Key=found["Key"])
    for table in glue.get_tables(DatabaseName=DATABASE)["TableList"]:
        glue.delete_table(DatabaseName=DATABASE, Name=table["Name"])


def small_stack(url: str) -> dict[str, Any]:
    database = {"CatalogId": {"Ref": "AWS::AccountId"}, "DatabaseInput": {"Name": DATABASE}}
    outputs = {
        "ApiUrl": url,
        "LakeBucketName": {"Ref": "LakeBucket"},
        "DatabaseName": {"Ref": "Database"},
        "ApiPollerFunctionName": POLLER,
        "ConsumerFunctionName": CONSUMER,
        "StreamName": STREAM,
    }
    return {
        "Resources": {
            "LakeBucket": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": BUCKET}},
            "Database": {"Type": "AWS::Glue::Database", "Properties": database},
        },
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }


def test_the_outputs_that_are_asked_for_are_the_templates() -> None:
    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda *_: "")
    template = yaml.load((ROOT / "template.yaml").read_text(), Loader)

    assert set(small_stack("")["Outputs"]) <= set(template["Outputs"])


def test_a_lake_that_nobody_wrote_yet_reads_as_empty_and_stays_untouched(
    deployed: Deployed,
) -> None:
    tables = deployed.freshet("tables", "--json")
    rows = deployed.freshet("query", "SELECT count(*) AS n FROM sales", "--json")
    checks = deployed.freshet("verify", "--json")

    assert {row["table"]: row["rows"] for row in tables.json} == dict.fromkeys(TABLES.names, 0)
    assert rows.json == [{"n": 0}]
    assert checks.code == 0, checks.err
    assert deployed.client("glue").get_tables(DatabaseName=DATABASE)["TableList"] == []
    assert "Contents" not in deployed.client("s3").list_objects_v2(Bucket=BUCKET)


def test_the_deployed_lake_is_asked_told_and_verified(deployed: Deployed) -> None:
    deployed.land(recorded("kinesis_packed"))

    rows = deployed.freshet("query", "SELECT quantity FROM sales WHERE sale_id = '536365-1'")
    logged = deployed.freshet("query", "SELECT count(*) AS n FROM change_log", "--json")
    story = deployed.freshet("why", "sales", "536365-1", "--json")
    checks = deployed.freshet("verify", "--json")

    assert rows.out.split() == ["quantity", "6"], rows.err
    assert logged.json == [{"n": 9}]
    assert "current" in [chapter["verdict"] for chapter in story.json]
    assert checks.code == 0, checks.out
    assert "in flight" in checks.err


def test_reading_never_changes_a_deployed_table(deployed: Deployed) -> None:
    """A checkout that is newer than the release shows its columns, and adds none."""
    deployed.land(recorded("kinesis_packed"))
    drop_column(deployed, "sales", "description")
    metadata = metadata_of(deployed, "sales")

    done = deployed.freshet("query", "SELECT description, quantity FROM sales", "--json")

    assert done.code == 0, done.err
    assert all("description" in row for row in done.json)
    assert len(done.json) == 4
    assert metadata_of(deployed, "sales") == metadata


def metadata_of(deployed: Deployed, table: str) -> str:
    found = deployed.client("glue").get_table(DatabaseName=DATABASE, Name=table)["Table"]
    location: str = found["Parameters"]["metadata_location"]
    return location


def drop_column(deployed: Deployed, table: str, column: str) -> None:
    """As a release had it that did not know the column yet."""
    settings = LakeSettings(BUCKET, "lake", DATABASE, "glue")
    lake = open_lake(settings, TABLES, deployed.client)
    with (
        lake.current(table)
        .rows.view()
        .table.update_schema(allow_incompatible_changes=True) as update
    ):
        update.delete_column(column)
    lake.close()


def test_events_go_in_signed_for_this_very_request(deployed: Deployed) -> None:
    done = deployed.freshet("send", "-", "--table", "sales", "--json", stdin=SALE)

    [asked] = deployed.front.asked
    assert done.json == {"accepted": 1, "rejected": 0, "refused": []}, done.err
    assert asked.path == "/v1/tables/sales/changes"
    assert f"Credential={KEY}/" in asked.headers["authorization"]
    assert f"/{REGION}/execute-api/aws4_request" in asked.headers["authorization"]
    assert signature(asked, asked.path, asked.body) == signature_of(asked)
    assert signature(asked, "/v1/tables/products/changes", asked.body) != signature_of(asked)
    assert signature(asked, asked.path, b"{}") != signature_of(asked)


def signature_of(asked: Asked) -> str:
    return asked.headers["authorization"].rpartition("Signature=")[2]


def signature(asked: Asked, path: str, body: bytes) -> str:
    """The signature that AWS would compute for this path and body at the request's own time."""
    named = asked.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
    headers = {name: asked.headers[name] for name in named.split(";")}
    request = AWSRequest("POST", f"http://{asked.headers['host']}{path}", data=body)
    for name, value in headers.items():
        request.headers[name] = value
    request.context["timestamp"] = asked.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(KEY, SECRET), "execute-api", REGION)
    canonical = signer.canonical_request(request)
    return signer.signature(signer.string_to_sign(request, canonical), request)


def test_a_bearer_token_takes_the_signatures_place(deployed: Deployed) -> None:
    token = "eyJhbGciOiJub25lIn0.a-token"

    done = deployed.freshet("send", "-", "--table", "sales", stdin=SALE, FRESHET_TOKEN=token)

    [asked] = deployed.front.asked
    assert asked.headers["authorization"] == f"Bearer {token}"
    assert "x-amz-date" not in asked.headers
    assert token not in done.out + done.err


@pytest.mark.parametrize("status", [401, 403])
def test_a_caller_who_is_not_let_in_learns_what_to_attach(deployed: Deployed, status: int) -> None:
    deployed.front.status = status

    done = deployed.freshet("send", "-", "--table", "sales", stdin=SALE)

    assert done.code == 1
    assert "SendChangesPolicy" in done.error
    assert str(status) in done.error
    assert len(deployed.front.asked) == 1


def test_a_poll_is_the_deployed_pollers(deployed: Deployed) -> None:
    done = deployed.freshet("poll", "ecb", "--json")

    [asked] = deployed.front.asked
    assert done.json == REPORT, done.err
    assert asked.path == f"/2015-03-31/functions/{POLLER}/invocations"
    assert json.loads(asked.body) == {"source": "ecb"}


def test_a_poll_that_fails_says_what_the_function_said(deployed: Deployed) -> None:
    deployed.front.failure = {"errorType": "SourceError", "errorMessage": "the bank\nis closed"}

    done = deployed.freshet("poll", "ecb")

    assert done.code == 1
    assert done.error == f"Error: {POLLER} failed with SourceError: the bank is closed"
    assert len(deployed.front.asked) == 1


def test_where_a_deployed_source_is_cannot_be_said_here(deployed: Deployed) -> None:
    done = deployed.freshet("poll", "ecb", "--url", "http://localhost:1")

    assert done.code == 1
    assert "EcbUrl" in done.error
    assert not deployed.front.asked


@pytest.mark.parametrize("command", ["up", "demo", "maintain"])
def test_what_runs_a_pipeline_here_refuses_in_one_line(deployed: Deployed, command: str) -> None:
    done = deployed.freshet(command)

    assert done.code == 1
    assert f"`freshet {command}` is for a pipeline on this machine" in done.error
    assert not deployed.home.exists()


def test_a_place_that_there_is_not_is_misuse(deployed: Deployed) -> None:
    done = deployed.freshet("--aws", "moon", "tables")

    assert done.code == 2
    assert "embedded" in done.err


def test_faults_of_the_account_are_one_line_with_what_to_do(deployed: Deployed) -> None:
    ask = partial(deployed.freshet, "tables")

    assert "stack 'nowhere' is not in eu-west-1" in ask(FRESHET_STACK="nowhere").error
    assert "no AWS credentials found" in ask(AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="").error
    assert "AWS_DEFAULT_REGION" in ask(AWS_REGION="", AWS_DEFAULT_REGION="").error
    assert "nope" in ask(AWS_PROFILE="nope").error
    assert "check AWS_PROFILE" in ask(AWS_ENDPOINT_URL="http://127.0.0.1:1").error


def test_a_stack_that_is_not_ours_says_so() -> None:
    with pytest.raises(StackError, match="has no output LakeBucketName; is it a Freshet stack"):
        Stack("other", {})["LakeBucketName"]


def test_keys_and_tokens_are_in_no_representation() -> None:
    access = LakeAccess("s3://b/lake", "http://x", REGION, KEY, SECRET, "a-token")

    assert SECRET not in repr(access)
    assert "a-token" not in repr(access)
