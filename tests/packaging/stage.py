"""What built functions talk to: AWS, the shop and the ECB, all on the loopback.

AWS is MiniStack as a process of its own, not `local.embedded`, which has no Glue catalog: the
deployed functions keep their tables there. MiniStack enforces a table's `VersionId`, as Glue does.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from tests.packaging.artifacts import ROOT, Function
from tests.packaging.runtime_api import REGION, Runtime, Sandbox

from local.sample.catalogue import Catalogue
from local.sample.ecb import Ecb
from local.sample.shop import Shop

SAMPLE = ROOT / "src/local/sample/data"
STREAM, STATE_BUCKET, LAKE_BUCKET, DATABASE = "changes", "state", "lake", "freshet"
SECRET, PII_SECRET = "shop", "pii"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 5.0
# Whose payloads are whose: the names of the files in events/ begin with the trigger.
PAYLOADS = {
    "producer": "http_*",
    "api_poller": "schedule_[!m]*",
    "consumer": "kinesis_*",
    "maintenance": "schedule_maintenance*",
}
# A payload of each that makes the whole way: it reads or writes what the function is there for.
COLD_START_PAYLOAD = {
    "producer": "http_post_changes",
    "api_poller": "schedule_platzi",
    "consumer": "kinesis_packed",
    "maintenance": "schedule_maintenance",
}


def payloads(function: Function) -> list[Path]:
    """The files of events/ that this function is invoked with."""
    return sorted((ROOT / "events").glob(f"{PAYLOADS[function.name]}.json"))


def event(path: Path) -> Any:
    """The event in a payload's file; of a failure object, the event that it keeps for a replay."""
    content = json.loads(path.read_text())
    return json.loads(content["payload"]) if "payload" in content else content


@dataclass(frozen=True)
class Stage:
    """Running stand-ins; `traces` is the socket of X-Ray's daemon."""

    aws: str
    shop: Shop
    ecb: Ecb
    traces: socket.socket

    def client(self, service: Any) -> Any:
        """A boto3 client of a service."""
        return boto3.client(
            service,
            endpoint_url=self.aws,
            region_name=REGION,
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )

    def environment(self, function: Function) -> dict[str, str]:
        """What the function's environment holds: what the template gives it, and where AWS is."""
        lake = {"LAKE_BUCKET": LAKE_BUCKET, "LAKE_PREFIX": "lake", "DATABASE": DATABASE}
        hashing = {"PII_SECRET_ARN": PII_SECRET}
        publishing = {"STREAM_NAME": STREAM, "STATE_BUCKET": STATE_BUCKET}
        sources = {
            "PLATZI_URL": self.shop.url,
            "PLATZI_SECRET_ID": SECRET,
            "ECB_URL": self.ecb.url,
            "ALLOW_LOOPBACK": "true",
            "ECB_START": "2010-11-15",  # where the sample's rates begin
            "PRODUCT_CURRENCY": "GBP",
            "DELETE_SHARE_MAX": "0.2",
        }
        own = {
            "producer": publishing | hashing,
            "api_poller": publishing | hashing | sources,
            "consumer": lake | hashing,
            "maintenance": lake,
        }
        host, port = self.traces.getsockname()
        return {
            **own[function.name],
            **KEYS,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": self.aws,
            "AWS_XRAY_DAEMON_ADDRESS": f"{host}:{port}",
            "POWERTOOLS_SERVICE_NAME": function.name,
        }

    def sandbox(self, function: Function, built: Path, runtime: Runtime, *options: str) -> Sandbox:
        """An instance of a built function; `options` go to its Python."""
        return Sandbox(
            runtime,
            function.handler,
            built / function.logical_id,
            layers=function.layers(built),
            environment=self.environment(function),
            options=options,
        )


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """All stand-ins, with an empty stream, empty buckets and a secret, until the block ends."""
    catalogue = Catalogue.from_file(SAMPLE / "online_retail_2010_12.parquet")
    rates = SAMPLE / "ecb_eurofxref_2010_11_2011_12.csv"
    with (
        _ministack(folder) as aws,
        Shop(catalogue) as shop,
        Ecb(rates) as ecb,
        socket.socket(type=socket.SOCK_DGRAM) as traces,
    ):
        traces.bind(("127.0.0.1", 0))
        running = Stage(aws, shop, ecb, traces)
        running.client("kinesis").create_stream(StreamName=STREAM, ShardCount=1)
        for bucket in (STATE_BUCKET, LAKE_BUCKET):
            running.client("s3").create_bucket(Bucket=bucket)
        headers = {"headers": {"Authorization": "Bearer of a test"}}
        running.client("secretsmanager").create_secret(
            Name=SECRET, SecretString=json.dumps(headers)
        )
        running.client("secretsmanager").create_secret(
            Name=PII_SECRET, SecretString="0123456789abcdef" * 4
        )
        yield running


@contextmanager
def _ministack(folder: Path) -> Iterator[str]:
    port = _free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "ministack.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack.app"],
            env={
                **os.environ,
                "BIND_HOST": "127.0.0.1",
                "MINISTACK_HOST": "127.0.0.1",
                "GATEWAY_PORT": str(port),
                "IOT_MTLS_ENABLED": "0",  # else it opens a second port, on all interfaces
                "STATE_DIR": str(folder / "state"),
                "TMPDIR": str(folder),
            },
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_until_healthy(url, process, log)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_DEADLINE_S)
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < give_up_at and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/_ministack/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError(f"MiniStack did not start ({process.poll()}):\n{log.read_text()}")
