"""A build for this machine, a runtime for it, and what it talks to: made once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.packaging.artifacts import (
    DEPLOYED_ARCH,
    DEPLOYED_PYTHON,
    HOST_ARCH,
    built_artifacts,
    interpreter,
    runtime_client,
)
from tests.packaging.runtime_api import Runtime
from tests.packaging.stage import Stage, stage


@pytest.fixture(scope="session")
def cache_dir(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("artifacts")


@pytest.fixture(scope="session")
def built(cache_dir: Path) -> Path:
    """Every function and the layer, for this machine."""
    return built_artifacts(cache_dir, HOST_ARCH, interpreter().version)


@pytest.fixture(scope="session")
def deployed(cache_dir: Path) -> Path:
    """Every function and the layer, exactly as a deploy uploads them."""
    return built_artifacts(cache_dir, DEPLOYED_ARCH, DEPLOYED_PYTHON)


@pytest.fixture(scope="session")
def runtime(cache_dir: Path) -> Runtime:
    return Runtime(interpreter().path, runtime_client(cache_dir))


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("stage")) as running:
        yield running
