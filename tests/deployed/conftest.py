"""A deployed stack to ask: the one that FRESHET_E2E_STACK names in the AWS that the environment
points to (AWS_PROFILE, AWS_DEFAULT_REGION, AWS_ENDPOINT_URL …), else the template deployed to this
machine.

The suite writes sales, products and quarantined lines of its own: name a stack for trying things.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.conftest import AWS_ENVIRONMENT
from tests.deployed.deployment import Deployed
from tests.packaging.artifacts import HOST_ARCH, built_artifacts, interpreter

from local.stack import SamCli, StackAws

NAMED_STACK = os.environ.get("FRESHET_E2E_STACK")
# Off by default; a day later than this run ends.
EVERY_SOURCE = ('DummyJsonSchedule="rate(1 day)"', 'SpotifySchedule="rate(1 day)"')
# As given to this run: every test begins with an environment without them.
GIVEN = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}


@dataclass(frozen=True)
class Place:
    """Where a stack is: its name, and the variables that point to its AWS."""

    stack: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Iterator[Place]:
    if NAMED_STACK:
        yield Place(NAMED_STACK, GIVEN)
        return
    folder = tmp_path_factory.mktemp("stack")
    assert pytestconfig.cache is not None
    built = built_artifacts(pytestconfig.cache.mkdir("artifacts"), HOST_ARCH, interpreter().version)
    with StackAws(folder / "aws", python=interpreter().path) as aws:
        sam = SamCli.find(folder)
        parameters = [f"Architecture={HOST_ARCH}", *EVERY_SOURCE]
        deployment = sam.deploy(aws, built, "freshet-e2e", parameters)
        yield Place(deployment.name, aws.environment())


@pytest.fixture(autouse=True)
def pointed_at(environment: None, place: Place) -> None:
    """AWS clients made by a test go where the stack is; `environment` puts all back."""
    for name in AWS_ENVIRONMENT:
        os.environ.pop(name, None)
    os.environ.update(place.environment)


@pytest.fixture
def stack(pointed_at: None, place: Place) -> Deployed:
    return Deployed(place.stack)
