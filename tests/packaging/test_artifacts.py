"""What a deploy uploads holds what the functions need, for Lambda's processor, and nothing else."""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.packaging.artifacts import (
    DEPLOYED_ARCH,
    DEPLOYED_PYTHON,
    FUNCTIONS,
    ROOT,
    Function,
    build_environment,
)

# Lambda takes 250 MB (MiB in fact) of code and layers; what is below is room to grow.
UNZIPPED_BYTES_MAX = 200_000_000
ELF_MACHINE_AARCH64 = 183  # EM_AARCH64 in elf.h
HEAVY = {"pyarrow", "pyiceberg", "pandas", "numpy"}
NOWHERE = {"pandas", "numpy", "s3fs", "fsspec", "requests", "sqlalchemy", "duckdb", "ministack"}
NOT_DEPLOYED = {"freshet/model.py", "freshet/testing.py", "lake/testing.py", "lake/sqlite.py"}
LAYER = "LakeLayer/python"
ROOMS = {"freshet", "lake"} | {function.name for function in FUNCTIONS}

each_function = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.name)


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def packages(folder: Path) -> set[str]:
    """Importable names at the top of a folder."""
    return {path.name.split(".", 1)[0] for path in folder.iterdir()}


def pins(lock: str) -> dict[str, str]:
    text = (ROOT / lock).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", text, re.MULTILINE))


def make(folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT / folder,
        env=build_environment(DEPLOYED_ARCH, DEPLOYED_PYTHON),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def tree(folder: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of every file."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            int(path.stat().st_mtime),
        )
        for path in files(folder)
    }


def test_every_function_and_the_layer_is_built(deployed: Path) -> None:
    folders = {path.name for path in deployed.iterdir() if path.is_dir()}

    assert folders == {function.logical_id for function in FUNCTIONS} | {"LakeLayer"}


@each_function
def test_a_function_holds_the_rooms_that_it_needs_and_no_other(
    deployed: Path, function: Function
) -> None:
    rooms = {path.name for path in (ROOT / "src").iterdir() if (path / "__init__.py").is_file()}
    needed = {"freshet", function.name} | ({"lake"} if function.has_layer else set())

    artifact = deployed / function.logical_id
    sources = {
        str(path.relative_to(artifact)) for room in needed for path in files(artifact / room)
    }
    written = {
        str(path.relative_to(ROOT / "src"))
        for room in needed
        for path in (ROOT / "src" / room).rglob("*.py")
    }

    assert packages(artifact) & rooms == needed
    assert {one for one in sources if one.endswith(".py")} == written - NOT_DEPLOYED


@each_function
def test_who_polls_or_decodes_holds_the_declarations_of_sources(
    deployed: Path, function: Function
) -> None:
    held = {path.name for path in files(deployed / function.logical_id / "sources")}
    written = {path.name for path in (ROOT / "src/sources").rglob("*.yaml")}

    assert len(written) > 7
    assert held == (written if function.name in ("api_poller", "consumer") else set())


@each_function
def test_only_the_layer_is_heavy(deployed: Path, function: Function) -> None:
    """Producer and poller hold no pyarrow, pandas or numpy; consumer and maintenance do not carry
    a second copy of what their layer brings.
    """
    artifact = packages(deployed / function.logical_id)

    assert not artifact & (HEAVY | NOWHERE)
    assert not artifact & packages(deployed / LAYER)


def test_the_layer_holds_arrow_and_iceberg_without_what_nobody_calls(deployed: Path) -> None:
    layer = deployed / LAYER
    names = {path.name.split(".", 1)[0] for path in files(layer / "pyarrow")}

    assert {"pyarrow", "pyiceberg"} <= packages(layer)
    assert not packages(layer) & NOWHERE
    assert not names & {"libarrow_flight", "_flight", "_gcsfs", "_azurefs", "_hdfs", "_orc"}
    assert not [path for path in files(layer) if {"tests", "include"} & set(path.parts)]
    assert not [path for path in files(layer) if path.suffix in (".pyx", ".pxd", ".pxi", ".h")]


@each_function
def test_functions_and_layer_fit_with_room_to_grow(
    deployed: Path, function: Function, record_property: Callable[[str, object], None]
) -> None:
    unzipped = size(deployed / function.logical_id)
    if function.has_layer:
        unzipped += size(deployed / "LakeLayer")
    record_property("unzipped_bytes", unzipped)

    assert unzipped < UNZIPPED_BYTES_MAX


def test_every_library_is_for_lambdas_processor_and_python(deployed: Path) -> None:
    libraries = [path for path in files(deployed) if ".so" in path.suffixes]

    machines = {int.from_bytes(path.read_bytes()[18:20], "little") for path in libraries}
    tags = {tag for path in libraries for tag in re.findall(r"\.cpython-(\d+)-", path.name)}

    assert len(libraries) > 20
    assert machines == {ELF_MACHINE_AARCH64}
    assert tags == {DEPLOYED_PYTHON.replace(".", "")}


@pytest.mark.parametrize(
    ("folder", "target", "place"),
    [("src", "ProducerFunction", "ProducerFunction"), ("layers/lake", "LakeLayer", LAYER)],
)
def test_a_second_build_is_equal_to_the_byte(
    deployed: Path, tmp_path: Path, folder: str, target: str, place: str
) -> None:
    """Also in another folder: a deploy uploads only what changed."""
    again = tmp_path / target
    again.mkdir()

    done = make(folder, f"build-{target}", f"ARTIFACTS_DIR={again}")

    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / place) == tree(deployed / place)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("build-ProducerFunction",), "ARTIFACTS_DIR is not set; run sam build"),
        (("build-ProducerFunction", "FRESHET_ARCH=arm"), "set arm64 or x86_64"),
        (("build-OtherFunction", "ARTIFACTS_DIR=/nowhere"), "knows no function OtherFunction"),
    ],
)
def test_a_build_that_cannot_be_says_why(arguments: tuple[str, ...], told: str) -> None:
    done = make("src", *arguments)

    assert done.returncode
    assert told in done.stderr


def test_what_deploys_is_what_is_tested() -> None:
    """Versions come from one lock, and layer and functions never bring two of one package."""
    tested, light, heavy = (
        pins(lock)
        for lock in (
            "requirements/dev.lock",
            "src/requirements.txt",
            "layers/lake/requirements.txt",
        )
    )

    assert heavy.items() <= tested.items()
    assert light.items() <= tested.items()
    assert not heavy.keys() & light.keys()
    assert not (heavy.keys() | light.keys()) & NOWHERE


def test_every_aws_service_that_a_function_calls_is_described_in_its_artifact(
    deployed: Path,
) -> None:
    asked = {
        str(node.args[0].value)
        for function in FUNCTIONS
        for path in files(deployed / function.logical_id)
        if path.suffix == ".py" and path.relative_to(deployed).parts[1] in ROOMS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("boto3.client", "client")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    }

    assert asked >= {"kinesis", "s3", "glue"}
    for function in FUNCTIONS:
        assert asked <= packages(deployed / function.logical_id / "botocore/data")
