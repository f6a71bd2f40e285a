"""The stand-in that a stack is deployed to, and the SAM CLI that deploys it: what functions see,
what a deploy does not inherit, and errors that say what to do.
"""

from __future__ import annotations

import io
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import WaiterError

from local.embedded import LocalRuntimeError
from local.stack import SamCli, StackAws, _why_failed

TELLS = """
import os, sys
def handler(event, context):
    return {"path": sys.path, "environment": sorted(os.environ), "event": event}
"""
ROLE = "arn:aws:iam::000000000000:role/any"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StackAws]:
    monkeypatch.setenv("SECRET_OF_THIS_MACHINE", "x")
    with StackAws(tmp_path / "aws") as aws:
        yield aws


def made(aws: StackAws, name: str) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        # Equal archives for equal code: by its name alone an entry would take the time of day.
        archive.writestr(zipfile.ZipInfo("tells.py"), TELLS)
    aws.aws("lambda").create_function(
        FunctionName=name,
        Runtime="python3.13",
        Handler="tells.handler",
        Role=ROLE,
        Code={"ZipFile": content.getvalue()},
        Environment={"Variables": {"OWN": "1"}},
    )


def invoked(aws: StackAws, name: str) -> dict[str, Any]:
    answer = aws.aws("lambda").invoke(FunctionName=name, Payload=b"{}")
    told: dict[str, Any] = json.loads(answer["Payload"].read())
    return told


def test_a_function_sees_its_code_and_the_standard_library_and_nothing_of_this_machine(
    aws: StackAws,
) -> None:
    made(aws, "one")

    told = invoked(aws, "one")

    assert not [entry for entry in told["path"] if "-packages" in entry or entry.endswith("/src")]
    assert "SECRET_OF_THIS_MACHINE" not in told["environment"]
    assert "OWN" in told["environment"]


def test_equal_code_is_unpacked_once_for_all_workers(aws: StackAws, tmp_path: Path) -> None:
    made(aws, "one")
    made(aws, "two")

    assert invoked(aws, "one")["event"] == invoked(aws, "two")["event"] == {}

    assert len(list((tmp_path / "aws" / "unpacked").iterdir())) == 1


def test_an_end_leaves_nothing_behind(tmp_path: Path) -> None:
    with StackAws(tmp_path / "aws") as aws:
        made(aws, "one")
        invoked(aws, "one")

    assert sorted(path.name for path in (tmp_path / "aws").iterdir()) == ["embedded.log", "lock"]


def test_a_condition_over_a_joined_list_is_decided(aws: StackAws) -> None:
    template = {
        "Parameters": {"Listed": {"Type": "CommaDelimitedList", "Default": ""}},
        "Conditions": {
            "Any": {"Fn::Not": [{"Fn::Equals": [{"Fn::Join": ["", {"Ref": "Listed"}]}, ""]}]}
        },
        "Resources": {
            "Always": {"Type": "AWS::SNS::Topic"},
            "Sometimes": {"Type": "AWS::SNS::Topic", "Condition": "Any"},
        },
    }
    cloudformation = aws.aws("cloudformation")
    for name, listed in (("empty", ""), ("full", "a,b")):
        cloudformation.create_stack(
            StackName=name,
            TemplateBody=json.dumps(template),
            Parameters=[{"ParameterKey": "Listed", "ParameterValue": listed}],
        )
        cloudformation.get_waiter("stack_create_complete").wait(
            StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 20}
        )

    assert aws.stack("empty").resources == 1
    assert aws.stack("full").resources == 2


def test_a_failed_deploy_names_the_resource_and_the_reason(aws: StackAws) -> None:
    cloudformation = aws.aws("cloudformation")
    resources = {"Nameless": {"Type": "AWS::Athena::WorkGroup", "Properties": {}}}
    cloudformation.create_stack(
        StackName="broken", TemplateBody=json.dumps({"Resources": resources})
    )
    with pytest.raises(WaiterError, match="ROLLBACK_COMPLETE"):
        cloudformation.get_waiter("stack_create_complete").wait(
            StackName="broken", WaiterConfig={"Delay": 1, "MaxAttempts": 20}
        )

    assert _why_failed(aws, "broken").startswith("sam deploy failed: Nameless: ")
    assert _why_failed(aws, "never begun") == ""


def test_services_that_died_are_told(aws: StackAws) -> None:
    aws.refuse_death()
    assert aws.pid is not None
    os.kill(aws.pid, 9)
    os.waitid(os.P_PID, aws.pid, os.WEXITED | os.WNOWAIT)

    with pytest.raises(LocalRuntimeError, match=r"died .* run this again"):
        aws.refuse_death()


def sam_that(folder: Path, script: str) -> SamCli:
    """The SAM CLI in the shape of a shell script."""
    program = folder / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return SamCli(folder / "sam", program)


def test_a_failed_build_says_how_it_ended_and_where_the_rest_is(tmp_path: Path) -> None:
    sam = sam_that(tmp_path, "echo first; for at in 1 2 3 4 5; do echo last $at; done; exit 1")

    with pytest.raises(LocalRuntimeError) as failed:
        sam.build("arm64", "3.13")

    log = tmp_path / "sam" / "build.log"
    told = " / ".join(f"last {at}" for at in range(1, 6))
    assert str(failed.value) == f"sam build failed: {told} (all of it: {log})"
    assert log.read_text().startswith("first\n")


def test_the_sam_cli_sees_nothing_of_the_machine_s_own_aws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "production")
    sam = sam_that(tmp_path, "env")

    sam.build("arm64", "3.13")

    lines = (tmp_path / "sam" / "build.log").read_text().splitlines()
    seen = dict(line.split("=", 1) for line in lines if "=" in line)
    assert "AWS_PROFILE" not in seen
    assert seen["AWS_CONFIG_FILE"] == seen["AWS_SHARED_CREDENTIALS_FILE"] == os.devnull
    assert (seen["FRESHET_ARCH"], seen["FRESHET_PYTHON"]) == ("arm64", "3.13")
    assert seen["SAM_CLI_TELEMETRY"] == "0"


def test_a_missing_sam_cli_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LocalRuntimeError, match="run `make tools`"):
        SamCli.find(tmp_path)
