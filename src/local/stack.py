"""The whole template as a stack on this machine, with no Docker: built and deployed by the SAM CLI
that deploys it to AWS, its functions running as local processes.

MiniStack stands in for AWS (`stack_server.py` says how). Its state is in memory: a stack starts
empty and ends with the process that started it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.embedded import REGION, EmbeddedAws, LocalRuntimeError

ROOT = Path(__file__).parents[2]
TEMPLATE, SAM_CONFIG = ROOT / "template.yaml", ROOT / "samconfig.toml"
# A build belongs to the checkout, whatever home it is deployed for.
BUILDS = ROOT / ".aws-sam" / "local"
CONFIG_ENVIRONMENT = "local"
ACCESS_KEY = "local"  # any will do: the stand-in looks whether a request is signed, not by whom
# A build downloads 60 MB at most; on a slow line that is minutes, not a quarter of an hour.
SAM_DEADLINE_S = 900.0
# Of a failed command, what says why; the rest is in the file that the message names.
FAILURE_LINES = 5
START_SERVER = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from local.stack_server import main; main()"
)


@dataclass(frozen=True)
class Deployment:
    """A deployed stack: its name, how many resources it has, its outputs by name."""

    name: str
    resources: int
    outputs: dict[str, str]

    def commands(self, endpoint_url: str) -> list[str]:
        """Lines to copy into another terminal, where `endpoint_url` stands in for AWS."""
        rate = '[{"after": {"currency": "USD", "rate_date": "2026-11-20", "rate": "1.1596"}}]'
        signed = f"--aws-sigv4 aws:amz:{REGION}:execute-api --user {ACCESS_KEY}:{ACCESS_KEY}"
        rates = f"{self.outputs['ApiUrl']}/v1/tables/exchange_rates/changes"
        keys = f"AWS_ACCESS_KEY_ID={ACCESS_KEY} AWS_SECRET_ACCESS_KEY={ACCESS_KEY}"
        freshet = f"freshet --aws account --stack {self.name}"
        return [
            "In another terminal:",
            f"  export AWS_ENDPOINT_URL={endpoint_url} AWS_DEFAULT_REGION={REGION} {keys}",
            f"  curl {signed} --json '{rate}' '{rates}'",
            f'  {freshet} query "FROM exchange_rates"',
            f"  {freshet} verify",
        ]


class StackAws(EmbeddedAws):
    """Embedded AWS with every service of the template, its functions run by the Python `python`.

    The artifacts that are deployed here must be built for that Python and this processor.
    """

    def __init__(self, folder: Path, port: int = 0, python: Path = Path(sys.executable)) -> None:
        super().__init__(folder, port)
        self._python = python

    def aws(self, service: str) -> Any:
        """The boto3 client of any service; `client` knows the types of three."""
        return self._new_client(service)

    def stack(self, name: str) -> Deployment:
        """The stack `name` as CloudFormation tells it."""
        cloudformation = self.aws("cloudformation")
        [told] = cloudformation.describe_stacks(StackName=name)["Stacks"]
        pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=name)
        return Deployment(
            name,
            sum(len(page["StackResourceSummaries"]) for page in pages),
            {output["OutputKey"]: output["OutputValue"] for output in told.get("Outputs", [])},
        )

    def refuse_death(self) -> None:
        """LocalRuntimeError when the services are gone, and with them the stack."""
        if self._child is not None and self._child.poll() is not None:
            raise LocalRuntimeError(
                f"embedded AWS died (exit code {self._child.poll()}); "
                f"see {self._folder / 'embedded.log'}, and run this again"
            )

    def _command(self, listening: int) -> list[str]:
        source = str(Path(__file__).parents[1])
        served = [str(self._folder), str(listening), str(self._python)]
        return [sys.executable, "-I", "-c", START_SERVER, source, *served]


class SamCli:
    """The SAM CLI, with its own files in `folder` and nothing of the machine's own AWS set-up."""

    def __init__(self, folder: Path, program: Path) -> None:
        self._folder, self._program = folder.absolute(), program

    @classmethod
    def find(cls, folder: Path) -> SamCli:
        """The one that `make setup` installs beside this Python, or the one on PATH."""
        ours = Path(sys.prefix, "sam", "bin", "sam")
        program = ours if ours.is_file() else shutil.which("sam")
        if not program:
            raise LocalRuntimeError(
                "the SAM CLI is missing; run `make tools`, or install aws-sam-cli on your PATH"
            )
        if not TEMPLATE.is_file():
            raise LocalRuntimeError(f"{TEMPLATE} is missing; run this from a checkout of Freshet")
        return cls(folder, Path(program))

    def build(self, arch: str, python: str) -> Path:
        """Build for a processor (`arm64`, `x86_64`) and a Python (`3.13`); the built folder.

        What did not change since the last build for them is taken from it.
        """
        folder = BUILDS / f"{arch}-{python}"
        self._run(
            ("build", "--cached", "--parallel", "--template-file", str(TEMPLATE)),
            ("--build-dir", str(folder / "build"), "--cache-dir", str(folder / "cache")),
            ("--parameter-overrides", f"Architecture={arch}"),
            FRESHET_ARCH=arch,
            FRESHET_PYTHON=python,
            PYTHON=sys.executable,  # `python3` may be a shim of pyenv, which fails in parallel
        )
        return folder / "build"

    def deploy(
        self, aws: StackAws, built: Path, name: str, parameters: Sequence[str]
    ) -> Deployment:
        """Deploy a built folder as stack `name` with parameters `Key=value`."""
        config = _configured("deploy")
        aws.ensure_bucket(config["s3_bucket"])
        try:
            self._run(
                ("deploy", "--template-file", str(built / "template.yaml"), "--stack-name", name),
                ("--parameter-overrides", *config["parameter_overrides"].split(), *parameters),
                SAM_CLI_POLL_DELAY="1",
                **aws.environment(),
            )
        except LocalRuntimeError as error:
            raise LocalRuntimeError(_why_failed(aws, name) or str(error)) from error
        return aws.stack(name)

    def _run(self, *arguments: Sequence[str], **environment: str) -> None:
        command, *options = [word for words in arguments for word in words]
        config = ("--config-file", str(SAM_CONFIG), "--config-env", CONFIG_ENVIRONMENT)
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"{command}.log"
        try:
            with log.open("wb") as output:
                done = subprocess.run(  # noqa: S603 - a program we have looked up
                    [self._program, command, *config, *options],
                    env=self._environment(environment),
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=SAM_DEADLINE_S,
                    check=False,
                )
        except subprocess.TimeoutExpired as error:
            raise LocalRuntimeError(
                f"sam {command} did not end in {SAM_DEADLINE_S:.0f} s; {log} says how far it came"
            ) from error
        if done.returncode:
            last = log.read_text(errors="replace").split("\n")
            why = " / ".join([line.strip() for line in last if line.strip()][-FAILURE_LINES:])
            raise LocalRuntimeError(f"sam {command} failed: {why} (all of it: {log})")

    def _environment(self, more: dict[str, str]) -> dict[str, str]:
        ours = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
        return {
            **ours,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_DEFAULT_REGION": "us-east-1",
            "SAM_CLI_TELEMETRY": "0",
            "__SAM_CLI_APP_DIR": str(self._folder / "sam"),  # else it writes into the home folder
            **more,
        }


def host_arch() -> str:
    """This machine's processor by Lambda's name."""
    return "arm64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


def deploy_here(
    folder: Path, aws: StackAws, name: str, progress: Callable[[str], None]
) -> Deployment:
    """Build the template for this machine and deploy it to a running `aws` as stack `name`."""
    sam = SamCli.find(folder)
    arch, python = host_arch(), "{}.{}".format(*sys.version_info)
    with _alone():
        progress(f"building for {arch} and Python {python}")
        built = sam.build(arch, python)
        progress(f"deploying stack {name}")
        return sam.deploy(aws, built, name, [f"Architecture={arch}"])


@contextmanager
def _alone() -> Iterator[None]:
    """One build at a time, and none while another deploys what was built."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with (BUILDS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _configured(command: str) -> dict[str, Any]:
    """What samconfig.toml sets for a command on this machine."""
    config = tomllib.loads(SAM_CONFIG.read_text())[CONFIG_ENVIRONMENT]
    parameters: dict[str, Any] = config[command]["parameters"]
    return parameters


def _why_failed(aws: StackAws, name: str) -> str:
    """The first resource that failed, and why; empty where the stack was never begun."""
    try:
        told = aws.aws("cloudformation").describe_stack_events(StackName=name)["StackEvents"]
    except aws.aws("cloudformation").exceptions.ClientError:
        return ""
    failed = [event for event in told if event["ResourceStatus"].endswith("_FAILED")]
    if not failed:
        return ""
    first = failed[-1]
    reason = " ".join(first.get("ResourceStatusReason", "no reason given").split())
    return f"sam deploy failed: {first['LogicalResourceId']}: {reason}"
