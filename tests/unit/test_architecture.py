"""The dependency rule, read from the syntax trees: who imports whom, what the core never does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
FUNCTIONS = ("producer", "api_poller", "consumer", "maintenance")
ROOMS = ("freshet", "lake", "local", *FUNCTIONS)
AWS = ("boto3", "botocore", "awswrangler", "aws_lambda_powertools", "aws_xray_sdk", "mypy_boto3")
# The adapters of the language: the one place in it that knows AWS.
FRESHET_ADAPTERS = {
    *("freshet/kinesis.py", "freshet/s3.py", "freshet/secret.py", "freshet/telemetry.py"),
}
LAKE_ADAPTERS = {"lake/glue.py"}
POLLER_ADAPTERS = {"api_poller/credentials.py"}
PURE = (
    "freshet/arrow.py",
    "freshet/contract.py",
    "freshet/debezium.py",
    "freshet/dms.py",
    "freshet/errors.py",
    "freshet/event.py",
    "freshet/image.py",
    "freshet/lock.py",
    "freshet/mapping.py",
    "freshet/merge.py",
    "freshet/model.py",
    "freshet/patch.py",
    "freshet/pii.py",
    "freshet/receipt.py",
    "freshet/stream.py",
    "freshet/tables.py",
    "freshet/wire.py",
    "api_poller/auth_models.py",
    "api_poller/changes.py",
    "api_poller/oauth2.py",
    "api_poller/pagination.py",
    "api_poller/periods.py",
    "api_poller/records.py",
    "api_poller/snapshot.py",
    "consumer/decode.py",
    "lake/history.py",
    "local/delivery.py",
    "local/differences.py",
    "local/observed.py",
    "local/paging.py",
    "local/proposal.py",
    "producer/accept.py",
    "producer/answers.py",
    "producer/openapi.py",
)
IMPURE_MODULES = ("os", "random", "secrets", "socket", "subprocess", "threading", "time", "uuid")
CLOCK_CALLS = {"now", "today", "utcnow"}
HEAVY = ("pyarrow", "pandas", "numpy", "pyiceberg", "duckdb")
VAGUE = {"util", "utils", "common", "helper", "helpers", "misc", "models"}


@dataclass(frozen=True)
class Module:
    """A file of src and its syntax tree."""

    name: str
    tree: ast.Module

    @property
    def room(self) -> str:
        return self.name.split("/", 1)[0]

    def imports(self) -> Iterator[str]:
        """Every imported module, also inside functions; not what only the type checker sees."""
        hidden = {
            id(node)
            for block in ast.walk(self.tree)
            if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
            for node in ast.walk(block)
        }
        for node in ast.walk(self.tree):
            if id(node) in hidden:
                continue
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{self.name} imports relatively"
                yield str(node.module)

    def imports_any(self, names: tuple[str, ...]) -> set[str]:
        return {module for module in self.imports() if module.split(".", 1)[0] in names}


MODULES = [
    Module(str(path.relative_to(SRC)), ast.parse(path.read_text()))
    for path in sorted(SRC.rglob("*.py"))
]
BY_NAME = {module.name: module for module in MODULES}
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def test_the_rooms_are_those_of_the_design() -> None:
    assert {module.room for module in MODULES} == set(ROOMS)


@every_module
def test_arrows_point_to_the_language(module: Module) -> None:
    """Functions never import one another nor `local`; producer and poller never the lake."""
    allowed = {
        "freshet": {"freshet"},
        "lake": {"freshet", "lake"},
        "producer": {"freshet", "producer"},
        "api_poller": {"freshet", "api_poller"},
        "consumer": {"freshet", "lake", "consumer"},
        "maintenance": {"freshet", "lake", "maintenance"},
        "local": set(ROOMS),
    }[module.room]

    assert {name.split(".", 1)[0] for name in module.imports_any(ROOMS)} <= allowed


@every_module
def test_aws_stays_in_adapters_composition_roots_and_the_local_runtime(module: Module) -> None:
    adapters = FRESHET_ADAPTERS | LAKE_ADAPTERS | POLLER_ADAPTERS
    may = adapters | {f"{function}/app.py" for function in FUNCTIONS}
    # The producer's edge is a powertools router; powertools is not AWS's API.
    routes = {"producer/routes.py"}
    if module.room == "local" or module.name in may:
        return
    found = module.imports_any(AWS)
    if module.name in routes:
        found = {name for name in found if not name.startswith("aws_lambda_powertools")}

    assert not found


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_do_no_io_and_read_no_clock_environment_or_randomness(name: str) -> None:
    module = BY_NAME[name]

    assert not module.imports_any((*IMPURE_MODULES, *AWS))
    assert not [ast.unparse(node) for node in ast.walk(module.tree) if _is_impure_call(node)]


def _is_impure_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name):
        return node.func.id in {"open", "print", "input"}
    return isinstance(node.func, ast.Attribute) and node.func.attr in CLOCK_CALLS


@every_module
def test_only_settings_read_the_environment(module: Module) -> None:
    """`local` hands the environment to the handlers, as Lambda does."""
    if module.room == "local" or module.name.endswith("/settings.py"):
        return
    touched = {
        node.attr
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}
    }

    assert not touched


@pytest.mark.parametrize("function", ["producer", "api_poller"])
def test_light_functions_reach_no_heavy_library(function: str) -> None:
    """Their bundles hold no pyarrow, pandas or numpy: followed through everything they import."""
    reached, waiting = set(), [f"{function}/app.py"]
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        assert not BY_NAME[name].imports_any(HEAVY), name
        waiting.extend(file for file in map(_file_of, BY_NAME[name].imports()) if file)

    assert len(reached) > 5


def _file_of(imported: str) -> str | None:
    path = imported.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in BY_NAME), None)


@every_module
def test_names_say_what_a_module_is_for(module: Module) -> None:
    assert not VAGUE & set(Path(module.name).with_suffix("").parts)


@every_module
def test_a_module_says_why_it_exists(module: Module) -> None:
    docstring = ast.get_docstring(module.tree) or ""

    assert len(docstring.split()) > 4, f"{module.name} has no docstring worth the name"


@every_module
def test_functions_stay_small(module: Module) -> None:
    """Forty lines at most, docstring and signature not counted."""
    long = {
        node.name: _body_lines(node)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef) and _body_lines(node) > 40
    }

    assert not long


def _body_lines(node: ast.FunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
