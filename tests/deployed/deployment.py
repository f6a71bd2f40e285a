"""A deployed stack as its users meet it: outputs lead to everything, and effects are waited for."""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import boto3
import urllib3
from tests.template.stack import Stack as Template
from tests.template.stack import stack_with

from freshet.tables import TABLES
from lake.lake import Lake
from local.account import Account, signed

# Within it a change is queryable: two batching windows, a cold start and a retry of the mapping.
LANDING_S_MAX = 60.0
LOOK_AGAIN_S = 0.1

T = TypeVar("T")


def until(look: Callable[[], T], *, deadline_s: float = LANDING_S_MAX) -> T:
    """The first answer of `look` that is true; AssertionError with the last one at the deadline."""
    give_up_at = time.monotonic() + deadline_s
    while not (seen := look()):
        assert time.monotonic() < give_up_at, f"still {seen!r} after {deadline_s:.0f} s"
        time.sleep(LOOK_AGAIN_S)
    return seen


class Deployed:
    """The stack `name` in the AWS that the environment points to."""

    def __init__(self, name: str) -> None:
        self.name, self.session = name, boto3.Session()
        self.account = Account(name, self.session)
        [self._told] = self.aws("cloudformation").describe_stacks(StackName=name)["Stacks"]
        self.outputs = {one["OutputKey"]: one["OutputValue"] for one in self._told["Outputs"]}
        self.is_here = bool(os.environ.get("AWS_ENDPOINT_URL"))

    def aws(self, service: Any) -> Any:
        """A client of a service."""
        return self.session.client(service)

    @cached_property
    def template(self) -> Template:
        """What the template says with this stack's parameters."""
        parameters = {
            one["ParameterKey"]: one["ParameterValue"] for one in self._told["Parameters"]
        }
        return stack_with(parameters)

    @cached_property
    def resources(self) -> dict[str, dict[str, Any]]:
        """What CloudFormation lists, by logical id."""
        pages = self.aws("cloudformation").get_paginator("list_stack_resources")
        return {
            one["LogicalResourceId"]: one
            for page in pages.paginate(StackName=self.name)
            for one in page["StackResourceSummaries"]
        }

    def physical(self, kind: str) -> dict[str, str]:
        """Physical ids by logical id of the resources of one type (`S3::Bucket`)."""
        return {
            name: one["PhysicalResourceId"]
            for name, one in self.resources.items()
            if one["ResourceType"] == f"AWS::{kind}"
        }

    def request(
        self, method: str, path: str, body: str | bytes = b"", headers: Mapping[str, str] = {}
    ) -> tuple[int, Any]:
        """A signed request to the stack's API; status and JSON body."""
        url = self.outputs["ApiUrl"] + path
        data = body.encode() if isinstance(body, str) else body
        credentials = self.session.get_credentials()
        assert credentials is not None
        sign = signed(credentials, str(self.session.region_name))
        answer = urllib3.request(
            method, url, body=data, headers=sign(method, url, data, headers), timeout=30.0
        )
        return answer.status, json.loads(answer.data) if answer.data else None

    def replay(self, recorded: Mapping[str, Any]) -> tuple[int, Any]:
        """The request that an event of events/ records, sent to this stack."""
        kept = ("content-type", "content-encoding", "freshet-version")
        headers = {name: recorded["headers"][name] for name in kept if name in recorded["headers"]}
        body = recorded.get("body", "")
        return self.request(
            recorded["requestContext"]["http"]["method"],
            recorded["rawPath"],
            base64.b64decode(body) if recorded.get("isBase64Encoded") else body,
            headers,
        )

    def publish(self, *records: bytes) -> None:
        """Put records into the stream."""
        for record in records:
            self.aws("kinesis").put_record(
                StreamName=self.outputs["StreamName"], Data=record, PartitionKey=record[:64].hex()
            )

    def invoke(self, function: str, event: Any) -> Any:
        """Invoke the function that an output names and wait; its answer, AssertionError if none."""
        payload = json.dumps(event).encode()
        answer = self.aws("lambda").invoke(FunctionName=self.outputs[function], Payload=payload)
        said = json.loads(answer["Payload"].read())
        assert "FunctionError" not in answer, said
        return said

    @contextmanager
    def lake(self) -> Iterator[Lake]:
        """The lake as its readers open it."""
        with self.account.lake() as (lake, _):
            yield lake

    def rows(self, table: str) -> dict[str, dict[str, Any]]:
        """All rows of a table whose key is one column, by that key."""
        [key] = TABLES[table].key
        with self.lake() as lake:
            return {row[key]: row for row in lake.rows(table).to_pylist()}

    def logged(self, log: str) -> list[dict[str, Any]]:
        """All lines of a log."""
        with self.lake() as lake:
            return [row for part in lake.log(log) for row in part.to_pylist()]

    def objects(self, prefix: str) -> set[str]:
        """Keys of the lake bucket below a prefix."""
        pages = self.aws("s3").get_paginator("list_objects_v2")
        bucket = self.outputs["LakeBucketName"]
        return {
            one["Key"]
            for page in pages.paginate(Bucket=bucket, Prefix=prefix)
            for one in page.get("Contents", ())
        }

    def glue_version(self, table: str) -> str:
        """The catalog's `VersionId` of a table: any commit changes it."""
        told = self.aws("glue").get_table(DatabaseName=self.outputs["DatabaseName"], Name=table)
        return str(told["Table"]["VersionId"])
