"""The template as CloudFormation sees it: SAM-transformed offline, conditions decided, references
resolved. A reference to a resource reads `<LogicalId>`, an attribute `<LogicalId.Attribute>`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from samtranslator.translator.transform import transform
from samtranslator.yaml_helper import yaml_parse

PATH = Path(__file__).parents[2] / "template.yaml"
STACK_NAME, REGION, ACCOUNT = "freshet-test", "eu-west-1", "123456789012"
PSEUDO = {
    "AWS::AccountId": ACCOUNT,
    "AWS::Partition": "aws",
    "AWS::Region": REGION,
    "AWS::StackId": f"arn:aws:cloudformation:{REGION}:{ACCOUNT}:stack/{STACK_NAME}/51af3dc0",
    "AWS::StackName": STACK_NAME,
    "AWS::URLSuffix": "amazonaws.com",
}
# Each switches on what is off by default; what holds must hold in all of them.
VARIANTS: dict[str, dict[str, str]] = {
    "defaults": {},
    "tokens": {
        "JwtIssuer": "https://cognito-idp.eu-west-1.amazonaws.com/eu-west-1_a1B2c3D4e",
        "JwtAudience": "web,till",
    },
    "browsers": {"CorsOrigins": "https://shop.example,https://till.example"},
    "provisioned": {"StreamMode": "PROVISIONED", "ShardCount": "4", "RetentionHours": "168"},
    "told": {"AlarmEmail": "data@shop.example", "MonthlyBudgetUsd": "50"},
    "redshift": {"RedshiftServerless": "true"},
    "sources": {"DummyJsonSchedule": "rate(1 day)", "SpotifySchedule": "cron(0 5 * * ? *)"},
    "gold": {"GoldSchedule": "3,15"},
    "restored": {"CreateDatabase": "false", "DatabaseName": "lake_2"},
    "x86": {"Architecture": "x86_64"},
}
_ABSENT = object()


@dataclass(frozen=True)
class Stack:
    """Resources by logical id (`Type`, `Properties`, policies) and output values, resolved."""

    resources: dict[str, dict[str, Any]]
    outputs: dict[str, Any]
    parameters: Mapping[str, Any]

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Properties by logical id of the resources of one type (`S3::Bucket`)."""
        return {
            name: body.get("Properties", {})
            for name, body in self.resources.items()
            if body["Type"] == f"AWS::{kind}"
        }

    def properties(self, name: str) -> dict[str, Any]:
        """Properties of one resource."""
        return self.resources[name].setdefault("Properties", {})  # type: ignore[no-any-return]

    def copy(self) -> Stack:
        """One that may be spoilt."""
        return copy.deepcopy(self)


class _NoRegistry:
    """Managed policies that SAM would look up in an account; the template names none."""

    def load(self) -> dict[str, str]:
        return {}


@cache
def source() -> dict[str, Any]:
    """The template as written."""
    return yaml_parse(PATH.read_text())  # type: ignore[no-any-return]


@cache
def transformed() -> dict[str, Any]:
    """The template after the SAM transform, as if `sam build` and `sam package` had run."""
    template = copy.deepcopy(source())
    template["Globals"]["Function"]["CodeUri"] = "s3://artifacts/code"
    template["Resources"]["LakeLayer"]["Properties"]["ContentUri"] = "s3://artifacts/layer"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        return transform(template, {}, _NoRegistry())  # type: ignore[no-any-return]


@cache
def stack(variant: str = "defaults") -> Stack:
    """The stack with the parameters of `variant`. Read only: `copy` before spoiling."""
    return stack_with(VARIANTS[variant])


def stack_with(given: Mapping[str, str]) -> Stack:
    """The stack with these parameters, defaults for the others."""
    template, resolver = transformed(), Resolver(transformed(), given)
    resources = {
        name: resolver(body)
        for name, body in template["Resources"].items()
        if resolver.holds(body.get("Condition"))
    }
    outputs = {
        name: resolver(body["Value"])
        for name, body in template["Outputs"].items()
        if resolver.holds(body.get("Condition"))
    }
    return Stack(resources, outputs, resolver.parameters)


def parameter_value(declared: Mapping[str, Any], text: Any) -> Any:
    """What `Ref` gives for a parameter."""
    if declared["Type"] == "CommaDelimitedList":
        return [part.strip() for part in str(text).split(",")]
    return str(text)


class Resolver:
    """Evaluates intrinsic functions: those this template uses, and no other."""

    def __init__(self, template: Mapping[str, Any], given: Mapping[str, str]) -> None:
        declared = template["Parameters"]
        assert set(given) <= set(declared), f"no such parameter: {set(given) - set(declared)}"
        self.parameters = {
            name: parameter_value(body, given.get(name, body.get("Default")))
            for name, body in declared.items()
        }
        self._conditions = template["Conditions"]
        self._resources = template["Resources"]

    def holds(self, condition: str | None) -> bool:
        """Whether a condition holds; none always does."""
        return condition is None or bool(self(self._conditions[condition]))

    def __call__(self, value: Any) -> Any:
        """The value with every function evaluated."""
        if isinstance(value, list):
            return [item for item in map(self, value) if item is not _ABSENT]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            [(name, argument)] = value.items()
            if name in self._functions:
                return self._functions[name](argument)
            assert not name.startswith("Fn::"), f"{name} is not known here"
        done = {key: self(item) for key, item in value.items() if key != "Condition"}
        if isinstance(value.get("Condition"), dict):  # of a policy statement
            done["Condition"] = self(value["Condition"])
        return {key: item for key, item in done.items() if item is not _ABSENT}

    @property
    def _functions(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "Ref": self._ref,
            "Fn::GetAtt": lambda at: f"<{at if isinstance(at, str) else '.'.join(at)}>",
            "Fn::Sub": self._sub,
            "Fn::If": lambda it: self(it[1] if self.holds(it[0]) else it[2]),
            "Fn::Join": lambda it: it[0].join(self(it[1])),
            "Fn::Equals": lambda it: str(self(it[0])) == str(self(it[1])),
            "Fn::Not": lambda it: not self(it[0]),
            "Fn::Contains": lambda it: self(it[1]) in self(it[0]),
            "Fn::EachMemberEquals": lambda it: all(one == it[1] for one in self(it[0])),
        }

    def _ref(self, name: str) -> Any:
        if name == "AWS::NoValue":
            return _ABSENT
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.parameters:
            return self.parameters[name]
        assert name in self._resources, f"nothing is called {name}"
        assert self.holds(self._resources[name].get("Condition")), f"{name} is not there"
        return f"<{name}>"

    def _sub(self, text: str) -> str:
        return re.sub(r"\$\{(!?)([^}]+)\}", self._substituted, text)

    def _substituted(self, match: re.Match[str]) -> str:
        literal, name = match.groups()
        if literal:
            return f"${{{name}}}"
        resource, _, attribute = name.partition(".")
        value = str(self._ref(resource))
        return f"{value[:-1]}.{attribute}>" if attribute else value


def as_list(value: Any) -> list[Any]:
    """A policy's one or many."""
    return value if isinstance(value, list) else [value]


def statements(found: Stack) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement of what roles and managed policies allow, with the logical id it is from."""
    for name, role in found.of_type("IAM::Role").items():
        assert "ManagedPolicyArns" not in role, f"{name}: policies of AWS's own cannot be checked"
        for policy in role.get("Policies", []):
            yield from ((name, one) for one in policy["PolicyDocument"]["Statement"])
    for name, policy in found.of_type("IAM::ManagedPolicy").items():
        yield from ((name, one) for one in policy["PolicyDocument"]["Statement"])


def grants(found: Stack, owner: str) -> set[tuple[str, str]]:
    """Pairs of action and resource that a role or a managed policy allows."""
    return {
        (action, resource)
        for name, one in statements(found)
        if name == owner
        for action in as_list(one["Action"])
        for resource in as_list(one["Resource"])
    }


def allows(found: Stack, owner: str, action: str, resource: str) -> bool:
    """Whether a role may do this to exactly this, by wildcards as IAM reads them."""
    return any(
        _matches(allowed, action) and _matches(place, resource)
        for allowed, place in grants(found, owner)
    )


def _matches(pattern: str, text: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), text) is not None
