"""Parameters say what they are and refuse what cannot work; samconfig.toml fits them; every number
in the template has its reason beside it.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from tests.template.stack import PATH, PSEUDO, Resolver, source, stack_with, transformed

CONFIG = tomllib.loads((PATH.parent / "samconfig.toml").read_text())
PARAMETERS: Mapping[str, dict[str, Any]] = source()["Parameters"]
# Per pattern: what must pass and what must not.
EXAMPLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "DatabaseName": (
        ("freshet", "freshet_dev", "f", "a" * 63),
        ("", "Freshet", "1st", "fresh-et", "_a", "a" * 64, "a b", "fresh\n"),
    ),
    "JwtIssuer": (
        (
            "",
            "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_a1B2c3D4e",
            "https://id.example/",
        ),
        ("http://id.example", "id.example", "https://", "https://id.example/a b", " "),
    ),
    "PlatziUrl": (
        ("https://api.escuelajs.co/api/v1", "https://127.0.0.1:8443/v1"),
        ("", "http://shop.example", "https://", "https://shop.example?a=1", "https://a.example/#b"),
    ),
    "EndpointUrl": (
        ("", "http://localstack:4566", "https://aws.example"),
        ("localstack:4566", "http://localstack:4566/", "http://a b", "http://a?b"),
    ),
    "EcbUrl": (
        ("https://data-api.ecb.europa.eu/service",),
        ("", "ftp://data-api.ecb.europa.eu", "https://data-api.ecb.europa.eu/a b"),
    ),
    "PlatziSchedule": (
        ("rate(1 hour)", "cron(0 6 * * ? *)", "at(2026-11-21T08:30:00)"),
        ("", "1 hour", "rate()", "every(1 hour)", "rate(1 hour", "0 6 * * *"),
    ),
    "EcbSchedule": (
        ("cron(30 16 ? * MON-FRI *)", "rate(1 day)"),
        ("", "daily", "cron()", "crons(30 16 * * ? *)"),
    ),
    "DummyJsonSchedule": (
        ("", "rate(1 day)", "cron(0 6 * * ? *)"),
        (" ", "1 day", "rate()", "rate(1 day", "daily"),
    ),
    "SpotifySchedule": (
        ("", "rate(12 hours)", "cron(0 6 * * ? *)"),
        (" ", "12 hours", "rate()", "every(1 hour)"),
    ),
    "GoldSchedule": (
        ("", "0", "3", "23", "3,15", "0,6,12,18"),
        (" ", "24", "03", "3,", ",3", "*", "*/6", "3 15", "cron(0 3 * * ? *)"),
    ),
    "DeleteShareMax": (("", "0", "0.2", "1"), ("20", "1.5", "-0.1", ".2", "20%", "0.2\n")),
    "ProductCurrency": (("USD", "EUR"), ("", "usd", "US", "USDT", "U$D")),
    "AlarmEmail": (
        ("", "data@shop.example", "a.b+c@d.example"),
        ("data", "@shop.example", "data@", "a b@shop.example", "a@b@c"),
    ),
}


def refusal(name: str, text: str) -> str:
    """Why CloudFormation refuses a value of a parameter; empty if it takes it."""
    declared = PARAMETERS[name]
    if "AllowedPattern" in declared and not re.fullmatch(declared["AllowedPattern"], text):
        return f"{text!r} does not match {declared['AllowedPattern']}"
    if "AllowedValues" in declared and text not in map(str, declared["AllowedValues"]):
        return f"{text!r} is none of {declared['AllowedValues']}"
    if declared["Type"] == "Number":
        if not re.fullmatch(r"-?\d+(\.\d+)?", text):
            return f"{text!r} is no number"
        least, most = (
            declared.get("MinValue", float("-inf")),
            declared.get("MaxValue", float("inf")),
        )
        if not float(least) <= float(text) <= float(most):
            return f"{text} is not between {least} and {most}"
    return ""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_parameter_says_what_it_is_and_takes_its_own_default(name: str) -> None:
    declared = PARAMETERS[name]

    assert re.match(r"\S.*\.$", declared["Description"])
    assert "Default" in declared, "sam deploy must ask for nothing"
    assert refusal(name, str(declared["Default"])) == ""
    assert ("AllowedPattern" in declared) is ("ConstraintDescription" in declared)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_text_is_bounded_by_a_pattern_or_a_choice(name: str) -> None:
    declared = PARAMETERS[name]
    bounded = {"AllowedPattern", "AllowedValues", "MinValue"} & declared.keys()

    assert bounded or declared["Type"] == "CommaDelimitedList"
    assert ("AllowedPattern" in declared) is (name in EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_pattern_takes_what_works_and_nothing_else(name: str) -> None:
    good, bad = EXAMPLES[name]

    assert {text: refusal(name, text) for text in good} == dict.fromkeys(good, "")
    assert [text for text in bad if not refusal(name, text)] == []


def unhidden(parameters: Mapping[str, dict[str, Any]]) -> list[str]:
    """Parameters that take a secret and would show it, or that come with one."""
    named = re.compile("password|secret|token|credential|apikey|accesskey", re.IGNORECASE)
    return [
        name
        for name, declared in parameters.items()
        if (named.search(name) and declared.get("NoEcho") is not True)
        or re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN", str(declared.get("Default")))
    ]


def test_no_parameter_shows_a_secret() -> None:
    key = {"Type": "String", "Default": "AKIAIOSFODNN7EXAMPLE"}

    assert unhidden(PARAMETERS) == []
    assert unhidden({"ShopPassword": {"Type": "String"}, "Who": key}) == ["ShopPassword", "Who"]


def test_every_parameter_is_used_and_shown_in_a_group() -> None:
    body = "\n".join(
        line for line in PATH.read_text().splitlines() if "ParameterLabels" not in line
    )
    groups = source()["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    shown = [name for group in groups for name in group["Parameters"]]

    assert sorted(shown) == sorted(PARAMETERS)
    for name in PARAMETERS:
        assert re.search(rf"!Ref {name}\b|\$\{{{name}\}}", body), f"{name} does nothing"


@pytest.mark.parametrize(
    ("given", "broken"),
    [
        ({}, []),
        ({"JwtIssuer": "https://id.example", "JwtAudience": "web"}, []),
        ({"JwtIssuer": "https://id.example"}, ["TokensNeedAnAudience"]),
        ({"DatabaseName": "quarantine"}, ["TablesHaveAFolderOfTheirOwn"]),
        ({"DatabaseName": "change_log"}, ["TablesHaveAFolderOfTheirOwn"]),
        ({"DatabaseName": "maintenance"}, ["TablesHaveAFolderOfTheirOwn"]),
        ({"DatabaseName": "quarantine_2"}, []),
    ],
)
def test_what_cannot_work_together_is_refused_before_anything_is_made(
    given: dict[str, str], broken: list[str]
) -> None:
    resolver = Resolver(transformed(), given)
    found = [
        name
        for name, rule in source()["Rules"].items()
        if resolver(rule.get("RuleCondition", True))
        and not all(resolver(one["Assert"]) for one in rule["Assertions"])
    ]

    assert found == broken


@pytest.mark.parametrize(
    ("given", "resource", "present"),
    [
        ({"AlarmEmail": "data@shop.example"}, "AlarmSubscription", True),
        ({}, "AlarmSubscription", False),
        ({"MonthlyBudgetUsd": "0.5"}, "Budget", True),
        ({}, "Budget", False),
        ({"RedshiftServerless": "true"}, "RedshiftWorkgroup", True),
        ({}, "RedshiftWorkgroup", False),
        ({"CreateDatabase": "false"}, "Database", False),
        ({"DummyJsonSchedule": "rate(1 day)"}, "DummyJsonCartsPoll", True),
        ({"DummyJsonSchedule": "rate(1 day)"}, "SpotifyTracksPoll", False),
        ({"SpotifySchedule": "rate(1 day)"}, "SpotifyTracksPoll", True),
        ({"SpotifySchedule": "rate(1 day)"}, "SpotifyCredentials", True),
        ({"SpotifySchedule": "rate(1 day)"}, "PollSpotifyTracksAlarm", True),
        ({}, "SpotifyCredentials", False),
        ({"GoldSchedule": "3"}, "RevenueChangesRenewal", True),
        ({}, "RevenueChangesRenewal", False),
        ({}, "GoldRole", False),
        ({}, "PollSpotifyTracksAlarm", False),
        ({"JwtIssuer": "https://id.example", "JwtAudience": "a"}, "HttpApiAuthorizer", True),
        ({}, "HttpApiAuthorizer", False),
        ({"CorsOrigins": "https://shop.example"}, "HttpApiPreflightRoute", True),
        ({}, "HttpApiPreflightRoute", False),
    ],
)
def test_a_parameter_switches_its_resource(
    given: dict[str, str], resource: str, present: bool
) -> None:
    assert (resource in stack_with(given).resources) is present


def test_parameters_reach_what_they_are_for() -> None:
    made = stack_with(
        {
            "StreamMode": "PROVISIONED",
            "ShardCount": "4",
            "RetentionHours": "168",
            "JwtIssuer": "https://id.example",
            "JwtAudience": "web,till",
            "CorsOrigins": "https://a.example,https://b.example",
            "DeleteShareMax": "0.5",
        }
    )

    given = made.properties("ApiPollerFunction")["Environment"]["Variables"]
    assert given["DELETE_SHARE_MAX"] == "0.5"
    assert made.properties("ChangeStream")["ShardCount"] == "4"
    assert "ShardCount" not in stack_with({}).properties("ChangeStream")
    token = made.properties("HttpApiAuthorizer")["JwtConfiguration"]
    assert token == {"Issuer": "https://id.example", "Audience": ["web", "till"]}
    origins = made.properties("HttpApi")["CorsConfiguration"]["AllowOrigins"]
    assert origins == ["https://a.example", "https://b.example"]
    assert "CorsConfiguration" not in stack_with({}).properties("HttpApi")


# -------------------------------------------------------------------------------------- samconfig
ENVIRONMENTS = ("default", "dev", "prod", "local")


def overrides(environment: str) -> dict[str, str]:
    text = CONFIG[environment]["deploy"]["parameters"].get("parameter_overrides", "")
    pairs = (pair.partition("=")[::2] for pair in shlex.split(text))
    return dict(pairs)


def test_samconfig_has_the_four_environments_and_each_a_stack_of_its_own() -> None:
    assert set(ENVIRONMENTS) == CONFIG.keys() - {"version"}
    names = [CONFIG[name]["global"]["parameters"]["stack_name"] for name in ENVIRONMENTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_samconfig_deploys_with_parameters_that_the_template_takes(environment: str) -> None:
    given = overrides(environment)
    deploy = CONFIG[environment]["deploy"]["parameters"]

    assert given.keys() <= PARAMETERS.keys()
    assert {name: refusal(name, value) for name, value in given.items()} == dict.fromkeys(given, "")
    assert deploy["capabilities"] == "CAPABILITY_IAM"
    assert stack_with(given).resources


def test_two_environments_share_an_account_without_sharing_a_database() -> None:
    databases = [
        overrides(name).get("DatabaseName", PARAMETERS["DatabaseName"]["Default"])
        for name in ("dev", "prod")
    ]

    assert len(set(databases)) == len(databases)


def test_production_asks_before_it_changes_anything() -> None:
    assert CONFIG["prod"]["deploy"]["parameters"]["confirm_changeset"] is True


def test_nothing_in_the_stack_has_a_name_that_a_second_stack_would_claim() -> None:
    """Names are made of the stack's own or left to CloudFormation; but for the Glue database."""
    named = {
        (name, key): value
        for name, body in stack_with({}).resources.items()
        for key, value in body.get("Properties", {}).items()
        if re.fullmatch(r"\w*Name|Name", key) and isinstance(value, str)
    }
    owners = (
        "HandlerName",
        "StageName",
        "PolicyName",
        "FunctionName",
        "MetricName",
        "DatabaseName",
    )
    free = {
        place: value
        for place, value in named.items()
        if place[1] not in owners and PSEUDO["AWS::StackName"] not in value and "<" not in value
    }
    inside = ("AWS::Athena::NamedQuery", "AWS::ApiGatewayV2::Authorizer")

    assert {
        name for name, _ in free if stack_with({}).resources[name]["Type"] not in inside
    } == set()


# ---------------------------------------------------------------------------------------- numbers
def unexplained(text: str) -> Iterator[str]:
    """Lines with a number and no reason: on the line, above it, or at the head of their section.

    A section's head may explain a setting that returns: `# Period 300: …`. Parameters explain
    themselves by their Description; the dashboard's layout and what names no quantity are left out.
    """
    told: set[tuple[str, str]] = set()
    before, parameters, layout = "", False, False
    for number, line in enumerate(text.splitlines(), start=1):
        if re.match(r"[A-Z]\w*:", line):
            parameters = line.startswith("Parameters:")
        if re.match(r"  # -{10,}", line):
            told.clear()
        layout = line.startswith("  Dashboard:") or (layout and not re.match(r"[A-Z]", line))
        told.update(re.findall(r"^  # (\w+) ([\d.]+): \S", line))
        code, _, reason = line.partition(" #")
        commented = bool(reason) or before.strip().startswith("#")
        if not (parameters or layout or commented or code.strip().startswith("#")):
            numbers = re.findall(r"(\w+): ([\d.]+)(?=[\s,}\]]|$)", code)
            if set(numbers) - told:
                yield f"{number}: {line.strip()}"
        before = line


def test_every_number_has_its_reason_beside_it() -> None:
    assert list(unexplained(PATH.read_text())) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("  A:\n    Timeout: 29\n", 1),
        ("  A:\n    Timeout: 29 # the API gives up after 30\n", 0),
        ("  A:\n    # the API gives up after 30\n    Timeout: 29\n", 0),
        ("  A:\n    Retry: { Attempts: 3, Age: 60 }\n", 1),
        (
            "  # ---------- alarms\n  # Age 3: why\n  A:\n    Age: 3\n    Age: 6\n",
            1,
        ),
        ("  # Period 300: a look\n  # ---------- API\n  A:\n    Period: 300\n", 1),
        ("Parameters:\n  A:\n    Default: 5\nResources:\n  A:\n    Size: 5\n", 1),
        ('  A:\n    Version: "2012-10-17"\n    Zone: eu-west-1\n', 0),
    ],
)
def test_a_number_without_a_reason_is_found(text: str, found: int) -> None:
    assert len(list(unexplained(text))) == found
