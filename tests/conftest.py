"""What holds for every test: no network but the loopback, no real AWS, an environment put back."""

from __future__ import annotations

import ipaddress
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# The same commit draws the same examples: whoever broke something sees it. The long run explores
# (`--hypothesis-profile=default`).
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")

# Nothing of the machine's own AWS set-up may reach a client, not even by accident.
AWS_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
OWN_VARIABLES = (
    "FRESHET_AWS",
    "FRESHET_HOME",
    "FRESHET_STACK",
    "FRESHET_TOKEN",
    "LOCALSTACK_HOST",
    "PLATZI_URL",
    "PLATZI_SECRET_ID",
    "SOURCES_FOLDER",
    "ALLOW_LOOPBACK",
    "DELETE_SHARE_MAX",
    "PAGE_ROWS",
    "ECB_URL",
    "ECB_START",
    "PRODUCT_CURRENCY",
)


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine."""


def _only_loopback(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: it sees every socket of this process, whatever library opens it."""
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        if isinstance(address, tuple) and not _is_loopback(str(address[0])):
            raise NetworkBlockedError(f"{event} to {address}")
    elif event == "socket.getaddrinfo" and not _is_known(arguments[0]):
        raise NetworkBlockedError(f"look-up of {arguments[0]!r}")


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_known(host: object) -> bool:
    """Whether naming it asks nobody: no name, our own, or an address already."""
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    return name in ("", "localhost") or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


# Whoever names a deployed stack (tests/deployed) wants it asked, wherever it is.
if "FRESHET_E2E_STACK" not in os.environ:
    sys.addaudithook(_only_loopback)


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """No AWS account, and whatever a test or a local pipeline sets is put back."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("AWS_") or name in OWN_VARIABLES:
            del os.environ[name]
    os.environ.update(AWS_ENVIRONMENT)
    yield
    os.environ.clear()
    os.environ.update(before)
