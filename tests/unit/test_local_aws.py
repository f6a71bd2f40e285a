"""What Docker would run, held to the rest without Docker: docker-compose.yml and the environment
file of `sam local`. No machine of ours has started the one or the other.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from api_poller.settings import Settings as PollerSettings
from lake.settings import LakeSettings
from local.localstack import GLUE_URL, PLATZI_SECRET
from local.runtime import DATABASE, LAKE_BUCKET, LAKE_PREFIX, STATE_BUCKET, STREAM
from maintenance.settings import Settings as MaintenanceSettings
from producer.settings import Settings as ProducerSettings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
ENVIRONMENT: dict[str, dict[str, str]] = json.loads(
    (ROOT / "events" / "env.localstack.json").read_text()
)
NETWORK = "freshet-local"
SETTINGS: dict[str, Any] = {
    "ProducerFunction": ProducerSettings,
    "ApiPollerFunction": PollerSettings,
    "ConsumerFunction": LakeSettings,
    "MaintenanceFunction": MaintenanceSettings,
}
every_service = pytest.mark.parametrize("service", SERVICES)
every_function = pytest.mark.parametrize("function", SETTINGS)


class _Template(yaml.SafeLoader):
    """The template with its intrinsic functions left as they are written."""


def _intrinsic(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> dict[str, Any]:
    if isinstance(node, yaml.ScalarNode):
        return {suffix: loader.construct_scalar(node)}
    if isinstance(node, yaml.SequenceNode):
        return {suffix: loader.construct_sequence(node, deep=True)}
    assert isinstance(node, yaml.MappingNode)
    return {suffix: loader.construct_mapping(node, deep=True)}


_Template.add_multi_constructor("!", _intrinsic)
TEMPLATE: dict[str, Any] = yaml.load((ROOT / "template.yaml").read_text(), _Template)
RESOURCES: dict[str, Any] = TEMPLATE["Resources"]


def declared(function: str) -> dict[str, Any]:
    """The variables of a function as the template declares them."""
    common = TEMPLATE["Globals"]["Function"]["Environment"]["Variables"]
    own = RESOURCES[function]["Properties"]["Environment"]["Variables"]
    return {**common, **own}


def passed_on(function: str) -> dict[str, str]:
    """The variables that SAM CLI gives a function: of the file, only what the template declares; of
    the template, what is no reference to a resource.
    """
    plain = {name: str(value) for name, value in declared(function).items() if value == str(value)}
    return plain | {
        name: value for name, value in ENVIRONMENT[function].items() if name in declared(function)
    }


@every_service
def test_no_port_is_open_to_the_network(service: str) -> None:
    for port in SERVICES[service]["ports"]:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)


@every_service
def test_every_service_says_when_it_is_ready_and_stops_by_itself(service: str) -> None:
    check = SERVICES[service]["healthcheck"]

    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(check)
    assert SERVICES[service]["init"] is True
    assert SERVICES[service]["networks"] == ["local"]
    assert COMPOSE["networks"]["local"]["name"] == NETWORK


def test_images_and_packages_are_pinned() -> None:
    inline = SERVICES["glue"]["build"]["dockerfile_inline"]

    assert SERVICES["localstack"]["image"] == "localstack/localstack:4.14.0"
    assert re.search(r"^FROM python:3\.13\.\d+-slim-\w+$", inline, flags=re.MULTILINE)
    assert f"ministack=={version('ministack')}" in inline
    assert "USER nobody" in inline


def test_the_stand_in_starts_afresh_with_the_s3_that_its_tables_are_in() -> None:
    condition = SERVICES["glue"]["depends_on"]["localstack"]

    assert condition == {"condition": "service_healthy", "restart": True}
    assert SERVICES["glue"]["environment"]["PERSIST_STATE"] == "0"
    assert "volumes" not in SERVICES["glue"]


def test_every_service_that_freshet_needs_is_on() -> None:
    on = set(SERVICES["localstack"]["environment"]["SERVICES"].split(","))

    assert {"kinesis", "s3", "secretsmanager", "lambda"} <= on
    assert SERVICES["glue"]["environment"]["SERVICES"] == "glue"


def test_the_command_line_finds_the_stand_in_where_compose_puts_it() -> None:
    [port] = SERVICES["glue"]["ports"]

    assert f"http://localhost:{port.split(':')[1]}" == GLUE_URL
    assert SERVICES["glue"]["environment"]["GATEWAY_PORT"] == port.split(":")[2]


@every_function
def test_the_file_overrides_only_what_the_template_declares(function: str) -> None:
    """SAM CLI drops the others without a word."""
    assert set(ENVIRONMENT[function]) <= set(declared(function))


@every_function
def test_the_file_and_the_template_set_all_that_the_code_requires(function: str) -> None:
    assert set(ENVIRONMENT) == set(SETTINGS)
    assert RESOURCES[function]["Type"] == "AWS::Serverless::Function"

    SETTINGS[function].from_env({k: v for k, v in passed_on(function).items() if v})


@every_function
def test_what_refers_to_a_resource_of_the_stack_is_overridden(function: str) -> None:
    """`sam local` would pass the logical id: there is no stack whose names it could know."""
    names = {name for name, value in declared(function).items() if _refers(value)}

    assert names <= set(ENVIRONMENT[function])


def _refers(value: Any) -> bool:
    return isinstance(value, dict) and (value.get("Ref") in RESOURCES or "GetAtt" in value)


@every_function
def test_endpoints_are_services_of_the_compose_network(function: str) -> None:
    endpoints = {
        name: urlsplit(value)
        for name, value in ENVIRONMENT[function].items()
        if name.startswith("AWS_ENDPOINT_URL")
    }

    assert "AWS_ENDPOINT_URL" in endpoints
    assert ("AWS_ENDPOINT_URL_GLUE" in endpoints) == ("DATABASE" in ENVIRONMENT[function])
    for endpoint in endpoints.values():
        [port] = SERVICES[str(endpoint.hostname)]["ports"]
        assert port.endswith(f":{endpoint.port}")


def test_the_functions_work_on_what_the_command_line_makes() -> None:
    made = {
        "STREAM_NAME": STREAM,
        "STATE_BUCKET": STATE_BUCKET,
        "LAKE_BUCKET": LAKE_BUCKET,
        "LAKE_PREFIX": LAKE_PREFIX,
        "DATABASE": DATABASE,
        "PLATZI_SECRET_ID": PLATZI_SECRET,
    }
    for function in SETTINGS:
        given = passed_on(function)
        assert {name: given[name] for name in made if name in given} == {
            name: value for name, value in made.items() if name in given
        }


def test_sam_local_finds_the_routes_of_the_http_api() -> None:
    """SAM CLI takes the first resource of an API's or a function's type, in the template's order,
    for what all routes are made of: a function there hides the API that is spelled out.
    """
    kinds = [body["Type"] for body in RESOURCES.values()]
    first = next(
        kind for kind in kinds if kind.startswith(("AWS::ApiGatewayV2::", "AWS::Serverless::F"))
    )

    assert first.startswith("AWS::ApiGatewayV2::")
