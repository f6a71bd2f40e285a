"""Every variant of the stack keeps every rule, and every rule can be broken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.template.rules import RULES
from tests.template.stack import VARIANTS, Stack, stack, stack_with

Spoil = Callable[[Stack], Any]
REMOVED = object()


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_stack_keeps_the_rule(variant: str, name: str) -> None:
    assert list(RULES[name](stack(variant))) == []


def at(path: str, value: Any = REMOVED) -> Spoil:
    """Spoil the property at `Resource/Property/0/…`: set it, or remove it."""

    def spoil(found: Stack) -> None:
        name, *steps, last = path.split("/")
        place: Any = found.resources[name] if steps[:1] == ["^"] else found.properties(name)
        for step in steps[1:] if steps[:1] == ["^"] else steps:
            place = place[int(step) if isinstance(place, list) else step]
        if value is REMOVED:
            del place[last]
        elif isinstance(place, list):
            place.insert(int(last), value)
        else:
            place[last] = value

    return spoil


def gone(name: str) -> Spoil:
    """Spoil by leaving a resource out."""
    return lambda found: found.resources.pop(name)


def granted(role: str, action: str, resource: str = "*", **more: Any) -> Spoil:
    """Spoil by one more statement in a role."""
    one = {"Sid": "More", "Effect": "Allow", "Action": action, "Resource": resource, **more}
    document = "PolicyDocument/Statement/0"
    return at(f"{role}/{'' if role.endswith('Policy') else 'Policies/0/'}{document}", one)


def widened(found: Stack) -> None:
    """Every resource of the stack's own roles becomes everything."""
    for role in found.of_type("IAM::Role").values():
        for policy in role["Policies"]:
            for one in policy["PolicyDocument"]["Statement"]:
                one["Resource"] = "*"


def public_statement(effect: str) -> dict[str, Any]:
    return {"Sid": "More", "Effect": effect, "Principal": "*", "Action": "s3:*", "Resource": "*"}


def made(name: str, kind: str, **properties: Any) -> Spoil:
    """Spoil by one more resource."""
    body = {"Type": f"AWS::{kind}", "Properties": properties}
    return lambda found: found.resources.__setitem__(name, body)


TRUST = "AssumeRolePolicyDocument/Statement/0"
KEY_STATEMENT = "DataKey/KeyPolicy/Statement"
ANYBODY = {"Sid": "More", "Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "kms:Decrypt"}
SERVICE = {"Sid": "More", "Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}}
LAKE, STATE = "<LakeBucket.Arn>/", "<StateBucket.Arn>/"
DATA = f"{LAKE}lake/freshet/sales/data/*"
LOG = f"{LAKE}lake/change_log/*"
TABLE = "arn:aws:glue:eu-west-1:123456789012:table/freshet"

# Each of these alone must be found by its rule; the text is what the rule says of it.
SPOILT: dict[str, list[tuple[str, Spoil]]] = {
    "permissions_name_actions_and_resources": [
        ("on *", granted("ProducerRole", "s3:GetObject")),
        ("action kinesis:*", granted("ProducerRole", "kinesis:*", "<ChangeStream.Arn>")),
        ("action *", granted("ScheduleRole", "*", "<ConsumerFunction.Arn>")),
        ("action s3:Get*", granted("QueryLakePolicy", "s3:Get*", LAKE + "lake/*")),
        ("arn:aws:s3:::*", granted("ConsumerRole", "s3:GetObject", "arn:aws:s3:::*")),
        ("table/*", granted("ConsumerRole", "glue:GetTable", "arn:aws:glue:::table/*")),
        ("named actions", granted("ProducerRole", "s3:GetObject", NotAction="s3:PutObject")),
        ("kinesis:PutRecords on *", widened),
    ],
    "nobody_reaches_more_than_its_work": [
        (
            "ConsumerRole: may reach secretsmanager",
            granted("ConsumerRole", "secretsmanager:GetSecretValue", "<PlatziCredentials>"),
        ),
        ("ProducerRole: may reach s3 LakeBucket", granted("ProducerRole", "s3:GetObject", DATA)),
        (
            "ProducerRole: may reach glue",
            granted("ProducerRole", "glue:GetTable", "arn:aws:glue:eu-west-1:1:table/freshet/*"),
        ),
        ("ApiPollerRole: may reach s3 LakeBucket", granted("ApiPollerRole", "s3:PutObject", DATA)),
        (
            "MaintenanceRole: may reach kinesis",
            granted("MaintenanceRole", "kinesis:PutRecords", "<ChangeStream.Arn>"),
        ),
        ("cannot reach", at("ConsumerRole/Policies/1/PolicyDocument/Statement", [])),
        (
            "ApiPollerRole: cannot reach secretsmanager Other",
            made("Other", "SecretsManager::Secret"),
        ),
    ],
    "functions_do_what_they_must_and_no_more": [
        ("MaintenanceRole: may s3:PutObject", granted("MaintenanceRole", "s3:PutObject", LOG)),
        (
            "quarantine",
            granted("MaintenanceRole", "s3:DeleteObject", LAKE + "lake/quarantine/*"),
        ),
        ("ConsumerRole: may s3:DeleteObject", granted("ConsumerRole", "s3:DeleteObject", DATA)),
        ("pollers/", granted("ProducerRole", "s3:GetObject", STATE + "*")),
        ("idempotency/", granted("ApiPollerRole", "s3:PutObject", STATE + "*")),
        (
            "glue:CreateDatabase",
            granted("ConsumerRole", "glue:CreateDatabase", "arn:aws:glue:eu-west-1:123456789012:*"),
        ),
        ("cannot", at("ConsumerRole/Policies/0/PolicyDocument/Statement", [])),
    ],
    "keys_work_through_one_service": [
        ("without kms:ViaService", granted("ProducerRole", "kms:Decrypt", "<DataKey.Arn>")),
        (
            "decrypts secrets",
            granted(
                "MaintenanceRole",
                "kms:Decrypt",
                "<DataKey.Arn>",
                Condition={"StringEquals": {"kms:ViaService": "secretsmanager.eu-west-1.x"}},
            ),
        ),
    ],
    "key_policies_trust_the_account_and_bound_services": [
        ("rotate", at("DataKey/EnableKeyRotation", value=False)),
        ("trusts *", at(f"{KEY_STATEMENT}/1", ANYBODY)),
        ("anybody's behalf", at(f"{KEY_STATEMENT}/1", {**SERVICE, "Action": "kms:Decrypt"})),
        (
            "everything",
            at(f"{KEY_STATEMENT}/1", {**SERVICE, "Action": "kms:*", "Condition": {"a": 1}}),
        ),
    ],
    "roles_are_assumed_by_one_service": [
        ("may be assumed", at(f"ProducerRole/{TRUST}/Principal", "*")),
        ("may be assumed", at(f"ConsumerRole/{TRUST}/Principal", {"AWS": "1"})),
        (
            "ec2",
            at(f"ConsumerRole/{TRUST}/Principal", {"Service": "ec2.amazonaws.com"}),
        ),
        ("another account", at(f"ScheduleRole/{TRUST}/Condition")),
        ("GoldRole: another account", at(f"GoldRole/{TRUST}/Condition")),
    ],
    "everything_at_rest_is_encrypted_with_our_key": [
        ("ChangeStream", at("ChangeStream/StreamEncryption")),
        ("LakeBucket", at("LakeBucket/BucketEncryption")),
        (
            "StateBucket",
            at(
                "StateBucket/BucketEncryption/ServerSideEncryptionConfiguration/0/"
                "ServerSideEncryptionByDefault",
                {"SSEAlgorithm": "AES256"},
            ),
        ),
        ("ConsumerLogs", at("ConsumerLogs/KmsKeyId")),
        ("PlatziCredentials", at("PlatziCredentials/KmsKeyId", "alias/aws/secretsmanager")),
        ("AlarmTopic", at("AlarmTopic/KmsMasterKeyId")),
        (
            "WorkGroup",
            at("WorkGroup/WorkGroupConfiguration/EnforceWorkGroupConfiguration", value=False),
        ),
        ("RedshiftNamespace", at("RedshiftNamespace/KmsKeyId")),
        ("Queue: does SQS::Queue hold data", made("Queue", "SQS::Queue")),
    ],
    "buckets_are_closed": [
        (
            "RestrictPublicBuckets",
            at("LakeBucket/PublicAccessBlockConfiguration/RestrictPublicBuckets", value=False),
        ),
        ("BlockPublicAcls", at("StateBucket/PublicAccessBlockConfiguration")),
        ("belong to others", at("LakeBucket/OwnershipControls")),
        ("gone", at("LakeBucket/VersioningConfiguration")),
        ("access control list", at("StateBucket/AccessControl", "PublicRead")),
        ("without TLS", gone("LakeBucketPolicy")),
        ("without TLS", at("StateBucketPolicy/PolicyDocument/Statement/0/Effect", "Allow")),
        (
            "allows More",
            at("LakeBucketPolicy/PolicyDocument/Statement/0", public_statement("Allow")),
        ),
    ],
    "no_secret_is_written_down": [
        ("its value", at("PlatziCredentials/SecretString", '{"headers": {}}')),
        ("its value", at("PiiKey/GenerateSecretString/SecretStringTemplate", '{"key": "a"}')),
        (
            "looks like a secret",
            at("ApiPollerFunction/Environment/Variables/API_TOKEN", "t0ken"),
        ),
        (
            "looks like a secret",
            at("ProducerFunction/Environment/Variables/WHO", "AKIAIOSFODNN7EXAMPLE"),
        ),
        ("types its password", at("RedshiftNamespace/ManageAdminPassword")),
        ("looks like a secret", at("RedshiftNamespace/AdminUserPassword", "Passw0rd")),
    ],
    "what_holds_data_survives_the_stack": [
        ("LakeBucket", at("LakeBucket/^/DeletionPolicy")),
        ("StateBucket", at("StateBucket/^/UpdateReplacePolicy", "Delete")),
        ("DataKey", at("DataKey/^/DeletionPolicy")),
        ("Database", at("Database/^/DeletionPolicy")),
        ("LakeBucketPolicy", at("LakeBucketPolicy/^/UpdateReplacePolicy")),
    ],
    "functions_are_bounded_and_seen": [
        ("Timeout", at("ConsumerFunction/Timeout")),
        ("MemorySize", at("ProducerFunction/MemorySize")),
        ("traced", at("ApiPollerFunction/TracingConfig", {"Mode": "PassThrough"})),
        ("shares", at("MaintenanceFunction/Role", "<ConsumerRole.Arn>")),
        ("log group", at("MaintenanceFunction/LoggingConfig")),
        ("cannot write", at("ProducerFunction/LoggingConfig/LogGroup", "<ConsumerLogs>")),
        ("unexpected or missing", gone("ConsumerFunction")),
    ],
    "logs_end": [
        ("for ever", at("ConsumerLogs/RetentionInDays")),
        ("refuses", at("ProducerLogs/LogGroupName", "/aws/lambda/producer")),
    ],
    "functions_raise_alarms": [
        ("ProducerFunction: nobody hears of its Errors", gone("ProducerErrorsAlarm")),
        ("MaintenanceFunction: nobody hears of its Throttles", gone("MaintenanceThrottlesAlarm")),
        (
            "ConsumerFunction",
            at("ConsumerErrorsAlarm/Dimensions", [{"Name": "FunctionName", "Value": "other"}]),
        ),
    ],
    "alarms_are_heard_and_say_what_is_wrong": [
        ("AlarmActions", at("QuarantineAlarm/AlarmActions", [])),
        ("OKActions", at("CostAlarm/OKActions")),
        ("what is wrong", at("ConflictAlarm/AlarmDescription")),
        ("silence", at("DroppedAlarm/TreatMissingData")),
        ("further", at("SilenceAlarm/EvaluationPeriods", 8)),
        ("further", at("ThrottledStreamAlarm/EvaluationPeriods", 289)),
        ("further", at("CostAlarm/EvaluationPeriods", 169)),
    ],
    "heavy_layer_is_where_the_lake_is": [
        ("ConsumerFunction", at("ConsumerFunction/Layers")),
        ("ProducerFunction", at("ProducerFunction/Layers", ["<LakeLayer>"])),
    ],
    "mapping_sets_everything": [
        *(
            (setting, at(f"ConsumerFunctionChanges/{setting}"))
            for setting in (
                *("BatchSize", "MaximumBatchingWindowInSeconds", "ParallelizationFactor"),
                *("MaximumRetryAttempts", "MaximumRecordAgeInSeconds", "StartingPosition"),
                *("Enabled", "BisectBatchOnFunctionError", "FunctionResponseTypes"),
                *("MetricsConfig", "DestinationConfig"),
            )
        ),
        ("expire", at("ConsumerFunctionChanges/MaximumRecordAgeInSeconds", 86_400)),
    ],
    "schedules_wait_for_nobody_else": [
        ("collide", at("ApiPollerFunctionPlatzi/Name", "poll")),
        ("stopped", at("MaintenanceFunctionVacuum/State")),
        ("for a day", at("ApiPollerFunctionEcb/Target/RetryPolicy/MaximumRetryAttempts")),
        ("another role", at("ApiPollerFunctionEcb/Target/RoleArn", "<ConsumerRole.Arn>")),
        ("may not invoke", at("MaintenanceFunctionVacuum/Target/Arn", "<ConsumerFunction.Arn>")),
        ("may not invoke", at("GoldRole/Policies/0/PolicyDocument/Statement", [])),
        ("another role", at("SaleChangesRenewal/Target/RoleArn", "<ScheduleRole.Arn>")),
        ("as often", gone("ApiPollerFunctionEventInvokeConfig")),
    ],
    "the_api_lets_nobody_in_unasked": [
        ("is open", at("HttpApiRoute/AuthorizationType", "NONE")),
        (
            "OPTIONS /{proxy+} is open",
            made("Open", "ApiGatewayV2::Route", RouteKey="OPTIONS /{proxy+}"),
        ),
        ("takes JWT", at("HttpApiRoute/AuthorizationType", "JWT")),
        ("authorizer", at("HttpApiRoute/AuthorizerId", "<HttpApiAuthorizer>")),
    ],
    "the_api_bounds_and_records_who_calls": [
        (
            "made for anybody",
            made("Tokens", "ApiGatewayV2::Authorizer", JwtConfiguration={"Audience": [""]}),
        ),
        ("throttled", at("HttpApiStage/DefaultRouteSettings/ThrottlingBurstLimit")),
        ("who called", at("HttpApiStage/AccessLogSettings")),
        ("any page", at("HttpApi/CorsConfiguration", {"AllowOrigins": ["*"]})),
    ],
    "browsers_may_ask_before_they_send": [
        ("preflights", at("HttpApi/CorsConfiguration", {"AllowOrigins": ["https://a.example"]})),
        (
            "preflights",
            made("Open", "ApiGatewayV2::Route", RouteKey="OPTIONS /{proxy+}"),
        ),
        ("invoke", at("HttpApiInvokesProducer/SourceArn", "arn:<HttpApi>/*/*")),
    ],
    "invocations_come_from_this_stack": [
        ("anybody", at("HttpApiInvokesProducer/SourceArn")),
        ("anybody", at("HttpApiInvokesProducer/Principal", "*")),
    ],
    "the_topic_takes_alarms_of_this_account": [
        ("for anybody", at("AlarmTopicPolicy/PolicyDocument/Statement/0/Condition")),
        ("may publish", at("AlarmTopicPolicy/PolicyDocument/Statement/0/Principal", "*")),
        ("plain HTTP", at("AlarmTopicPolicy/PolicyDocument/Statement/1/Effect", "Allow")),
    ],
    "redshift_is_private": [
        ("public address", at("RedshiftWorkgroup/PubliclyAccessible", value=True)),
        ("without end", at("RedshiftWorkgroup/MaxCapacity")),
        ("without TLS", at("RedshiftWorkgroup/ConfigParameters", [])),
        ("may s3:PutObject", granted("RedshiftRole", "s3:PutObject", DATA)),
    ],
    "who_queries_changes_nothing": [
        ("s3:PutObject", granted("QueryLakePolicy", "s3:PutObject", DATA)),
        ("glue:UpdateTable", granted("QueryLakePolicy", "glue:UpdateTable", "arn:table/freshet/*")),
    ],
    "who_renews_gold_writes_nothing_else": [
        ("may s3:PutObject", granted("GoldRole", "s3:PutObject", DATA)),
        ("may s3:DeleteObject", granted("GoldRole", "s3:DeleteObject", LOG)),
        ("may glue:UpdateTable", granted("GoldRole", "glue:UpdateTable", f"{TABLE}/sales")),
        (
            "cannot glue:UpdateTable",
            at("GoldRole/Policies/0/PolicyDocument/Statement/3/Action", "glue:GetTable"),
        ),
        ("cannot s3:GetObject", at("GoldRole/Policies/0/PolicyDocument/Statement/4/Resource", LOG)),
    ],
}


def test_every_rule_is_broken_by_something() -> None:
    assert SPOILT.keys() == RULES.keys()


@pytest.mark.parametrize(
    ("name", "said", "spoil"),
    [(name, said, spoil) for name, spoilt in SPOILT.items() for said, spoil in spoilt],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_rule_finds_what_breaks_it(name: str, said: str, spoil: Spoil) -> None:
    found = stack_with(VARIANTS["redshift"] | VARIANTS["gold"]).copy()
    spoil(found)

    assert any(said in one for one in RULES[name](found)), list(RULES[name](found))
