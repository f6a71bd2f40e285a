"""The security and operations rules of the deployed stack: each a function from a stack to what
violates it. `test_rules.py` holds every variant to all of them and spoils a stack for each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tests.template.stack import ACCOUNT, PSEUDO, Stack, allows, as_list, grants, statements

from api_poller.state import state_key
from api_poller.tokens import tokens_key
from local.gold import load_views
from producer.idempotency import PREFIX, scope_of

Rule = Callable[[Stack], Iterator[str]]
RULES: dict[str, Rule] = {}

FUNCTIONS = {
    "ProducerFunction": "ProducerRole",
    "ApiPollerFunction": "ApiPollerRole",
    "ConsumerFunction": "ConsumerRole",
    "MaintenanceFunction": "MaintenanceRole",
}
# Who hashes personal data or signs in at sources.
SECRET_READERS = ("ProducerRole", "ApiPollerRole", "ConsumerRole")
# Actions that know no resource.
BOUND_TO_NOTHING = {
    "xray:PutTraceSegments": "X-Ray has no resource for segments",
    "xray:PutTelemetryRecords": "X-Ray has no resource for telemetry",
    "kinesis:ListStreams": "lists every stream of the region; the event source mapping asks for it",
}
# Scheduler's own target for that call, and where its queries run.
START_QUERY = "arn:aws:scheduler:::aws-sdk:athena:startQueryExecution"
GOLD_WORKGROUP = f"arn:aws:athena:{PSEUDO['AWS::Region']}:{ACCOUNT}:workgroup/<GoldWorkGroup>"


def rule(function: Rule) -> Rule:
    """Enter a rule into `RULES` under its name."""
    RULES[function.__name__] = function
    return function


# -------------------------------------------------------------------------------------- permissions
@rule
def permissions_name_actions_and_resources(stack: Stack) -> Iterator[str]:
    """No wildcard action; `*` as resource only where AWS knows no other, else one of ours."""
    for owner, one in statements(stack):
        if one["Effect"] != "Allow" or {"NotAction", "NotResource"} & one.keys():
            yield f"{owner}: {one.get('Sid')} must allow named actions on named resources"
            continue
        for action in as_list(one["Action"]):
            if "*" in action:
                yield f"{owner}: action {action}"
            for resource in as_list(one["Resource"]):
                if not _is_bound(action, resource, stack.parameters["DatabaseName"]):
                    yield f"{owner}: {action} on {resource}"


def _is_bound(action: str, resource: str, database: str) -> bool:
    if resource == "*":
        return action in BOUND_TO_NOTHING
    if resource == PSEUDO["AWS::StackId"]:
        return True
    exact, wildcard, _ = resource.partition("*")
    return not wildcard or "<" in exact or f"/{database}/" in exact


@rule
def nobody_reaches_more_than_its_work(stack: Stack) -> Iterator[str]:
    """Each role touches exactly these parts of the stack with exactly these services."""
    work = {
        "ProducerRole": {
            *("kinesis ChangeStream", "s3 StateBucket", "logs ProducerLogs"),
            "secretsmanager PiiKey",
        },
        "ApiPollerRole": {
            *("kinesis ChangeStream", "s3 StateBucket", "logs ApiPollerLogs"),
            *(f"secretsmanager {name}" for name in stack.of_type("SecretsManager::Secret")),
        },
        "ConsumerRole": {
            *("kinesis ChangeStream", "kinesis *", "s3 LakeBucket", "logs ConsumerLogs"),
            *("glue catalog", "secretsmanager PiiKey"),
        },
        "MaintenanceRole": {"s3 LakeBucket", "logs MaintenanceLogs", "glue catalog"},
    }
    for role, expected in work.items():
        found = {_reach(action, resource) for action, resource in grants(stack, role)}
        for extra in sorted(found - expected - {"kms DataKey", "xray *"}):
            yield f"{role}: may reach {extra}"
        for lacking in sorted((expected | {"kms DataKey", "xray *"}) - found):
            yield f"{role}: cannot reach {lacking}"


def _reach(action: str, resource: str) -> str:
    service = action.partition(":")[0]
    named = re.match(r"<(\w+)", resource)
    if service == "glue" and re.search(r":(catalog|database/|table/)", resource):
        return "glue catalog"
    return f"{service} {named[1] if named else resource}"


@rule
def functions_do_what_they_must_and_no_more(stack: Stack) -> Iterator[str]:
    """Single deeds, as IAM would judge them."""
    for role, action, resource, expected in _deeds(stack):
        if allows(stack, role, action, resource) is not expected:
            verb = "cannot" if expected else "may"
            yield f"{role}: {verb} {action} on {resource}"


def _deeds(stack: Stack) -> Iterator[tuple[str, str, str, bool]]:
    database = stack.parameters["DatabaseName"]
    lake, state = "<LakeBucket.Arn>", "<StateBucket.Arn>"
    poller = stack.properties("ApiPollerFunction")["Environment"]["Variables"]
    watermark, tokens = (
        "/".join(filter(None, (state, poller.get("STATE_PREFIX"), key)))
        for key in (state_key("ecb"), tokens_key("SPOTIFY"))
    )
    kept = f"{state}/{PREFIX}{scope_of('sales', 'a')}"
    tables = f"{lake}/lake/{database}"
    data, metadata = f"{tables}/sales/data/a.parquet", f"{tables}/sales/metadata/v1.metadata.json"
    change_log, quarantine = (
        f"{lake}/lake/change_log/a.parquet",
        f"{lake}/lake/quarantine/a.parquet",
    )
    logs = change_log, quarantine
    failure, mark = f"{lake}/aws/lambda/a", f"{lake}/lake/maintenance/{database}/sales.json"
    glue = f"arn:aws:glue:{PSEUDO['AWS::Region']}:{ACCOUNT}"
    table = f"{glue}:table/{database}/sales"
    for role in FUNCTIONS.values():
        for action in ("s3:DeleteObjectVersion", "s3:PutBucketPolicy", "s3:PutLifecycle"):
            yield role, action, data, False
            yield role, action, lake, False
        yield role, "glue:DeleteTable", table, False
        yield role, "glue:CreateDatabase", f"{glue}:database/{database}", False
        yield role, "glue:UpdateTable", f"{glue}:table/finance/ledger", False
        for secret in stack.of_type("SecretsManager::Secret"):
            hashes = role != "MaintenanceRole" and secret == "PiiKey"
            reads_secret = role == "ApiPollerRole" or hashes
            yield role, "secretsmanager:GetSecretValue", f"<{secret}>", reads_secret
            yield role, "secretsmanager:PutSecretValue", f"<{secret}>", False
    for role, own, foreign in (
        ("ProducerRole", kept, watermark),
        ("ApiPollerRole", watermark, kept),
        ("ApiPollerRole", tokens, kept),
    ):
        for action in ("s3:GetObject", "s3:PutObject"):
            yield role, action, own, True
            yield role, action, foreign, False
            yield from ((role, action, place, False) for place in (data, metadata, *logs, failure))
        yield role, "s3:DeleteObject", own, False
        yield role, "kinesis:PutRecords", "<ChangeStream.Arn>", True
        yield role, "kinesis:GetRecords", "<ChangeStream.Arn>", False
    consumer = "ConsumerRole"
    for place in (data, metadata, *logs):
        yield consumer, "s3:PutObject", place, True
        yield consumer, "s3:DeleteObject", place, place == metadata
    yield consumer, "s3:GetObject", data, True
    yield consumer, "s3:PutObject", failure, True
    yield consumer, "s3:GetObject", failure, False
    yield consumer, "glue:UpdateTable", table, True
    yield consumer, "glue:CreateTable", table, True
    yield consumer, "kinesis:PutRecords", "<ChangeStream.Arn>", False
    maintenance = "MaintenanceRole"
    for place in (data, metadata):
        yield maintenance, "s3:DeleteObject", place, True
        yield maintenance, "s3:GetObject", place, True
        yield maintenance, "s3:PutObject", place, True
    for place in (*logs, failure):
        yield maintenance, "s3:GetObject", place, place == change_log
        yield maintenance, "s3:PutObject", place, place == quarantine
        yield maintenance, "s3:DeleteObject", place, False
    yield maintenance, "s3:PutObject", mark, True
    yield maintenance, "s3:GetObject", mark, True
    yield maintenance, "glue:GetTable", table, True
    yield maintenance, "glue:UpdateTable", table, True


@rule
def keys_work_through_one_service(stack: Stack) -> Iterator[str]:
    """Nobody calls the key directly; only who reads secrets decrypts through Secrets Manager."""
    for owner, one in statements(stack):
        if not any(action.startswith("kms:") for action in as_list(one["Action"])):
            continue
        condition = one.get("Condition", {}).get("StringEquals", {})
        services = {name.partition(".")[0] for name in as_list(condition.get("kms:ViaService", []))}
        if not services:
            yield f"{owner}: {one['Sid']} uses the key without kms:ViaService"
        if "secretsmanager" in services and owner not in SECRET_READERS:
            yield f"{owner}: {one['Sid']} decrypts secrets"


@rule
def key_policies_trust_the_account_and_bound_services(stack: Stack) -> Iterator[str]:
    """`*` is right in a key policy (it means this key), if whoever it names is bounded."""
    for name, key in stack.of_type("KMS::Key").items():
        if key.get("EnableKeyRotation") is not True:
            yield f"{name}: does not rotate"
        for one in key["KeyPolicy"]["Statement"]:
            owner = one["Principal"].get("AWS") if isinstance(one["Principal"], dict) else "*"
            if owner == f"arn:aws:iam::{ACCOUNT}:root":
                continue
            if owner is not None:
                yield f"{name}: {one.get('Sid')} trusts {owner}"
            elif not one.get("Condition"):
                yield f"{name}: {one.get('Sid')} trusts a service on anybody's behalf"
            if any(re.fullmatch(r"(kms:)?\*", action) for action in as_list(one["Action"])):
                yield f"{name}: {one.get('Sid')} gives everything"


@rule
def roles_are_assumed_by_one_service(stack: Stack) -> Iterator[str]:
    """Functions by Lambda, schedules by Scheduler for this account, Redshift by Redshift."""
    expected = {
        **{role: ["lambda.amazonaws.com"] for role in FUNCTIONS.values()},
        "ScheduleRole": ["scheduler.amazonaws.com"],
        "GoldRole": ["scheduler.amazonaws.com"],
        "RedshiftRole": ["redshift.amazonaws.com", "redshift-serverless.amazonaws.com"],
    }
    for name, role in stack.of_type("IAM::Role").items():
        [trust] = role["AssumeRolePolicyDocument"]["Statement"]
        principal = trust["Principal"]
        if not isinstance(principal, dict) or set(principal) != {"Service"}:
            yield f"{name}: may be assumed by {principal}"
        elif as_list(principal["Service"]) != expected.get(name):
            yield f"{name}: may be assumed by {principal['Service']}"
        if name in ("ScheduleRole", "GoldRole") and trust.get("Condition") != {
            "StringEquals": {"aws:SourceAccount": ACCOUNT}
        }:
            yield f"{name}: another account's schedules may use it"


# ------------------------------------------------------------------------------------ data at rest
def _bucket_key(bucket: dict[str, Any]) -> Any:
    [one] = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    default = one["ServerSideEncryptionByDefault"]
    return default["KMSMasterKeyID"] if default["SSEAlgorithm"] == "aws:kms" else None


def _results_key(workgroup: dict[str, Any]) -> Any:
    results = workgroup["ResultConfiguration"]["EncryptionConfiguration"]
    enforced = workgroup["EnforceWorkGroupConfiguration"] is True
    return results["KmsKey"] if enforced and results["EncryptionOption"] == "SSE_KMS" else None


ENCRYPTED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Kinesis::Stream": lambda it: it["StreamEncryption"]["KeyId"],
    "S3::Bucket": _bucket_key,
    "Logs::LogGroup": lambda it: it["KmsKeyId"],
    "SecretsManager::Secret": lambda it: it["KmsKeyId"],
    "SNS::Topic": lambda it: it["KmsMasterKeyId"],
    "Athena::WorkGroup": lambda it: _results_key(it["WorkGroupConfiguration"]),
    "RedshiftServerless::Namespace": lambda it: it["KmsKeyId"],
}
# What holds no data of its own: names, rules and pointers.
HOLDS_NOTHING = {
    *("ApiGatewayV2::Api", "ApiGatewayV2::Authorizer", "ApiGatewayV2::Integration"),
    *("ApiGatewayV2::Route", "ApiGatewayV2::Stage", "Athena::NamedQuery", "Budgets::Budget"),
    *("CloudWatch::Alarm", "CloudWatch::Dashboard", "Glue::Database", "Glue::Table"),
    *("IAM::ManagedPolicy", "IAM::Role", "KMS::Alias", "KMS::Key", "Lambda::EventInvokeConfig"),
    *("Lambda::EventSourceMapping", "Lambda::Function", "Lambda::LayerVersion"),
    *("Lambda::Permission", "RedshiftServerless::Workgroup", "S3::BucketPolicy"),
    *("SNS::Subscription", "SNS::TopicPolicy", "Scheduler::Schedule"),
}


@rule
def everything_at_rest_is_encrypted_with_our_key(stack: Stack) -> Iterator[str]:
    """Whatever holds data names the key; a type nobody has thought about is a violation too."""
    for name, body in stack.resources.items():
        kind = body["Type"].removeprefix("AWS::")
        if kind in HOLDS_NOTHING:
            continue
        if kind not in ENCRYPTED:
            yield f"{name}: does {kind} hold data? Say so in these rules"
            continue
        try:
            key = ENCRYPTED[kind](body.get("Properties", {}))
        except (KeyError, ValueError):
            key = None
        if key not in ("<DataKey.Arn>", "<DataKey>"):
            yield f"{name}: is not encrypted with the stack's key"


@rule
def buckets_are_closed(stack: Stack) -> Iterator[str]:
    """No public access, no foreign owners, versions kept, TLS only."""
    flags = ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets")
    policies = stack.of_type("S3::BucketPolicy").values()
    for name, bucket in stack.of_type("S3::Bucket").items():
        access = bucket.get("PublicAccessBlockConfiguration", {})
        yield from (f"{name}: {flag} is off" for flag in flags if access.get(flag) is not True)
        owners = bucket.get("OwnershipControls", {}).get("Rules", [])
        if owners != [{"ObjectOwnership": "BucketOwnerEnforced"}]:
            yield f"{name}: objects may belong to others"
        if bucket.get("VersioningConfiguration") != {"Status": "Enabled"}:
            yield f"{name}: what is deleted is gone"
        if "AccessControl" in bucket:
            yield f"{name}: has an access control list"
        own = [policy for policy in policies if policy["Bucket"] == f"<{name}>"]
        if not any(_refuses_plain_http(policy, name) for policy in own):
            yield f"{name}: answers without TLS"
        yield from (
            f"{name}: its policy allows {one.get('Sid')}"
            for policy in own
            for one in policy["PolicyDocument"]["Statement"]
            if one["Effect"] != "Deny"
        )


def _refuses_plain_http(policy: dict[str, Any], bucket: str) -> bool:
    return any(
        one["Effect"] == "Deny"
        and (one["Principal"], one["Action"]) == ("*", "s3:*")
        and one["Resource"] == [f"<{bucket}.Arn>", f"<{bucket}.Arn>/*"]
        and one["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        for one in policy["PolicyDocument"]["Statement"]
    )


@rule
def no_secret_is_written_down(stack: Stack) -> Iterator[str]:
    """Secrets are empty until somebody fills them, or made by AWS; nothing looks like a password
    or a key.
    """
    for name, secret in stack.of_type("SecretsManager::Secret").items():
        made = secret.get("GenerateSecretString")
        if "SecretString" in secret or (made and "SecretStringTemplate" in made):
            yield f"{name}: its value is in the template"
    for name, space in stack.of_type("RedshiftServerless::Namespace").items():
        if space.get("ManageAdminPassword") is not True:
            yield f"{name}: somebody types its password"
    for name, body in stack.resources.items():
        for path, text in _texts(body.get("Properties", {}), ""):
            if _looks_secret(path, text):
                yield f"{name}: {path} looks like a secret"


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, path)
    elif isinstance(value, str):
        yield path, value


def _looks_secret(path: str, text: str) -> bool:
    key = path.rpartition(".")[2].lower()
    named = re.search(r"password|passwd|secret$|secretstring|apikey|accesskey|token$", key)
    value = re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN|xox[bp]-|ghp_\w{20}", text)
    return bool(value) or bool(named and not text.startswith("<"))


@rule
def what_holds_data_survives_the_stack(stack: Stack) -> Iterator[str]:
    """Deleting or replacing the stack loses no table, no state, no key."""
    kinds = ("S3::Bucket", "S3::BucketPolicy", "KMS::Key", "Glue::Database")
    for kind in kinds:
        for name in stack.of_type(kind):
            # Kept by a first deployment that failed, they would be in the way of the next one.
            wanted = {"DeletionPolicy": "RetainExceptOnCreate", "UpdateReplacePolicy": "Retain"}
            for policy, value in wanted.items():
                if stack.resources[name].get(policy) != value:
                    yield f"{name}: {policy} is not {value}"


# -------------------------------------------------------------------------------------- functions
@rule
def functions_are_bounded_and_seen(stack: Stack) -> Iterator[str]:
    """Time, memory, a log of their own with an end, traces, a role of their own."""
    groups = stack.of_type("Logs::LogGroup")
    roles: set[str] = set()
    functions = stack.of_type("Lambda::Function")
    if functions.keys() != FUNCTIONS.keys():
        yield f"functions: {sorted(functions.keys() ^ FUNCTIONS.keys())} unexpected or missing"
    for name, function in functions.items():
        for limit, most in (("Timeout", 900), ("MemorySize", 10_240)):
            if not 1 <= int(function.get(limit, 0)) <= most:
                yield f"{name}: has no {limit}"
        if function.get("TracingConfig") != {"Mode": "Active"}:
            yield f"{name}: is not traced"
        role = str(function.get("Role")).strip("<>").removesuffix(".Arn")
        if role in roles or role != FUNCTIONS.get(name):
            yield f"{name}: shares {role}"
        roles.add(role)
        log = str(function.get("LoggingConfig", {}).get("LogGroup")).strip("<>")
        if log not in groups:
            yield f"{name}: has no log group"
        elif not allows(stack, role, "logs:PutLogEvents", f"<{log}.Arn>"):
            yield f"{name}: cannot write to {log}"


@rule
def logs_end(stack: Stack) -> Iterator[str]:
    """Every log group has a retention, and a name that the key's policy covers."""
    [key] = stack.of_type("KMS::Key").values()
    [trust] = [
        one["Condition"]["ArnLike"]["kms:EncryptionContext:aws:logs:arn"]
        for one in key["KeyPolicy"]["Statement"]
        if "ArnLike" in one.get("Condition", {})
    ]
    for name, group in stack.of_type("Logs::LogGroup").items():
        if int(group.get("RetentionInDays", 0)) < 1:
            yield f"{name}: keeps logs for ever"
        named = str(group.get("LogGroupName"))
        arn = f"arn:aws:logs:{PSEUDO['AWS::Region']}:{ACCOUNT}:log-group:{named}"
        if not any(arn.startswith(trusted.removesuffix("*")) for trusted in trust):
            yield f"{name}: the key refuses {named}"


@rule
def functions_raise_alarms(stack: Stack) -> Iterator[str]:
    """Errors and throttles of each function reach the topic."""
    watched = {
        (alarm.get("MetricName"), one["Value"])
        for alarm in stack.of_type("CloudWatch::Alarm").values()
        for one in alarm.get("Dimensions", [])
        if alarm.get("Namespace") == "AWS/Lambda" and one["Name"] == "FunctionName"
    }
    for name in stack.of_type("Lambda::Function"):
        for metric in ("Errors", "Throttles"):
            if (metric, f"<{name}>") not in watched:
                yield f"{name}: nobody hears of its {metric}"


@rule
def alarms_are_heard_and_say_what_is_wrong(stack: Stack) -> Iterator[str]:
    """An action, a text, a decision on missing data, and a window that CloudWatch takes."""
    for name, alarm in stack.of_type("CloudWatch::Alarm").items():
        for action in ("AlarmActions", "OKActions"):
            if alarm.get(action) != ["<AlarmTopic>"]:
                yield f"{name}: {action} is not the topic"
        if len(str(alarm.get("AlarmDescription", "")).split()) < 3:
            yield f"{name}: does not say what is wrong"
        if alarm.get("TreatMissingData") not in ("notBreaching", "breaching"):
            yield f"{name}: does not say what silence means"
        periods = [one["MetricStat"]["Period"] for one in _metrics(alarm)] or [alarm["Period"]]
        # PutMetricAlarm: seven days in all, one day where a period is less than an hour.
        longest = 604_800 if min(periods) >= 3600 else 86_400
        if max(periods) * int(alarm["EvaluationPeriods"]) > longest:
            yield f"{name}: looks back further than CloudWatch does"


def _metrics(alarm: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in alarm.get("Metrics", []) if "MetricStat" in one]


@rule
def heavy_layer_is_where_the_lake_is(stack: Stack) -> Iterator[str]:
    """Consumer and maintenance carry pyarrow; nobody else waits for it."""
    [layer] = stack.of_type("Lambda::LayerVersion")
    for name, function in stack.of_type("Lambda::Function").items():
        heavy = name in ("ConsumerFunction", "MaintenanceFunction")
        if function.get("Layers", []) != ([f"<{layer}>"] if heavy else []):
            yield f"{name}: layers {function.get('Layers')}"


@rule
def mapping_sets_everything(stack: Stack) -> Iterator[str]:
    """Lambda's defaults block a shard for a week or drop records without a word."""
    needed = {
        *("BatchSize", "MaximumBatchingWindowInSeconds", "ParallelizationFactor"),
        *("MaximumRetryAttempts", "MaximumRecordAgeInSeconds", "StartingPosition"),
    }
    fixed = {
        "Enabled": True,
        "BisectBatchOnFunctionError": True,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "MetricsConfig": {"Metrics": ["EventCount"]},
        "DestinationConfig": {"OnFailure": {"Destination": "<LakeBucket.Arn>"}},
        "EventSourceArn": "<ChangeStream.Arn>",
        "FunctionName": "<ConsumerFunction>",
    }
    [(name, mapping)] = stack.of_type("Lambda::EventSourceMapping").items()
    yield from (f"{name}: {setting} is Lambda's default" for setting in needed - mapping.keys())
    for setting, value in fixed.items():
        if mapping.get(setting) != value:
            yield f"{name}: {setting} is {mapping.get(setting)}"
    [stream] = stack.of_type("Kinesis::Stream").values()
    age = int(mapping.get("MaximumRecordAgeInSeconds", -1))
    if not 0 < age <= int(stream["RetentionPeriodHours"]) * 3600 // 2:
        yield f"{name}: records expire in the stream before they are put aside"


@rule
def schedules_wait_for_nobody_else(stack: Stack) -> Iterator[str]:
    """Each may do what it is for, can be stopped, repeats a bounded number of times, and has no
    name that a second stack would claim.
    """
    for name, schedule in stack.of_type("Scheduler::Schedule").items():
        target = schedule["Target"]
        asks = target["Arn"] == START_QUERY
        role, action, place = (
            ("GoldRole", "athena:StartQueryExecution", GOLD_WORKGROUP)
            if asks
            else ("ScheduleRole", "lambda:InvokeFunction", target["Arn"])
        )
        if not allows(stack, role, action, place):
            yield f"{name}: may not invoke {target['Arn']}"
        if target.get("RoleArn") != f"<{role}.Arn>":
            yield f"{name}: has another role"
        if "Name" in schedule:
            yield f"{name}: two stacks in one account would collide"
        if schedule.get("State") != stack.parameters["SchedulesState"]:
            yield f"{name}: cannot be stopped"
        if not {"MaximumRetryAttempts", "MaximumEventAgeInSeconds"} <= target["RetryPolicy"].keys():
            yield f"{name}: repeats for a day"
    invoked = stack.of_type("Lambda::EventInvokeConfig").values()
    bounded = {config["FunctionName"] for config in invoked if "MaximumRetryAttempts" in config}
    targets = {str(one["Target"]["Arn"]) for one in stack.of_type("Scheduler::Schedule").values()}
    for name in targets - {START_QUERY}:
        if name.replace(".Arn", "") not in bounded:
            yield f"{name}: Lambda repeats a failed run as often as it likes"


# -------------------------------------------------------------------------------------- the edges
@rule
def the_api_lets_nobody_in_unasked(stack: Stack) -> Iterator[str]:
    """IAM or tokens on every route; only a browser's preflight is free, and only with CORS."""
    [api] = stack.of_type("ApiGatewayV2::Api").values()
    tokens = bool(stack.parameters["JwtIssuer"])
    for name, route in stack.of_type("ApiGatewayV2::Route").items():
        how = route.get("AuthorizationType", "NONE")
        preflight = route["RouteKey"] == "OPTIONS /{proxy+}" and "CorsConfiguration" in api
        if how == "NONE" and not preflight:
            yield f"{name}: {route['RouteKey']} is open"
        if how != "NONE" and how != ("JWT" if tokens else "AWS_IAM"):
            yield f"{name}: {route['RouteKey']} takes {how}"
        if (how == "JWT") is not ("AuthorizerId" in route):
            yield f"{name}: has no authorizer for its tokens"


@rule
def the_api_bounds_and_records_who_calls(stack: Stack) -> Iterator[str]:
    """Tokens made for it, pages that were named, a limit, an access log."""
    [api] = stack.of_type("ApiGatewayV2::Api").values()
    for name, one in stack.of_type("ApiGatewayV2::Authorizer").items():
        if not all(one["JwtConfiguration"]["Audience"]):
            yield f"{name}: takes tokens made for anybody"
    if "*" in api.get("CorsConfiguration", {}).get("AllowOrigins", []):
        yield "HttpApi: any page may call it"
    for name, stage in stack.of_type("ApiGatewayV2::Stage").items():
        limits = stage.get("DefaultRouteSettings", {})
        if not {"ThrottlingRateLimit", "ThrottlingBurstLimit"} <= limits.keys():
            yield f"{name}: is not throttled"
        log = stage.get("AccessLogSettings", {})
        if log.get("DestinationArn") != "<HttpApiLogs.Arn>" or not _is_json(log.get("Format", "")):
            yield f"{name}: nobody knows who called"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@rule
def browsers_may_ask_before_they_send(stack: Stack) -> Iterator[str]:
    """With CORS, a preflight carries no credentials: $default alone would refuse it."""
    [api] = stack.of_type("ApiGatewayV2::Api").values()
    keys = {route["RouteKey"] for route in stack.of_type("ApiGatewayV2::Route").values()}
    sources = {
        one["SourceArn"].partition("<HttpApi>")[2]
        for one in stack.of_type("Lambda::Permission").values()
    }
    cors = "CorsConfiguration" in api
    if ("OPTIONS /{proxy+}" in keys) is not cors:
        yield "HttpApi: preflights are answered exactly where CORS is on"
    if sources != {"/*/$default", *(("/*/OPTIONS/*",) if cors else ())}:
        yield f"HttpApi: may invoke the producer from {sources}"


@rule
def invocations_come_from_this_stack(stack: Stack) -> Iterator[str]:
    """A permission names who invokes and from where."""
    for name, one in stack.of_type("Lambda::Permission").items():
        if one["Principal"] == "*" or "SourceArn" not in one:
            yield f"{name}: {one['Principal']} may invoke on anybody's behalf"


@rule
def the_topic_takes_alarms_of_this_account(stack: Stack) -> Iterator[str]:
    """Services publish for this account only, and over TLS."""
    for name, policy in stack.of_type("SNS::TopicPolicy").items():
        allowed = [one for one in policy["PolicyDocument"]["Statement"] if one["Effect"] == "Allow"]
        for one in allowed:
            if one.get("Condition") != {"StringEquals": {"aws:SourceAccount": ACCOUNT}}:
                yield f"{name}: {one['Sid']} publishes for anybody"
            if not isinstance(one["Principal"], dict) or set(one["Principal"]) != {"Service"}:
                yield f"{name}: {one['Principal']} may publish"
        if len(allowed) == len(policy["PolicyDocument"]["Statement"]):
            yield f"{name}: takes plain HTTP"


@rule
def redshift_is_private(stack: Stack) -> Iterator[str]:
    """No public address, TLS, a ceiling on what it may cost, a lake it can only read."""
    for name, workgroup in stack.of_type("RedshiftServerless::Workgroup").items():
        if workgroup.get("PubliclyAccessible") is not False:
            yield f"{name}: has a public address"
        if "MaxCapacity" not in workgroup:
            yield f"{name}: scales without end"
        tls = {"ParameterKey": "require_ssl", "ParameterValue": "true"}
        if tls not in workgroup.get("ConfigParameters", []):
            yield f"{name}: answers without TLS"
    for action, _ in grants(stack, "RedshiftRole"):
        if not re.search(r":(Get|List|Decrypt)", action):
            yield f"RedshiftRole: may {action}"


@rule
def who_queries_changes_nothing(stack: Stack) -> Iterator[str]:
    """The query policy reads tables and writes results, nothing else."""
    for action, resource in grants(stack, "QueryLakePolicy"):
        writes = re.search(r"s3:(Put|Delete)|glue:(Create|Update|Delete)", action)
        if writes and not resource.startswith("<LakeBucket.Arn>/athena-results/"):
            yield f"QueryLakePolicy: {action} on {resource}"


@rule
def who_renews_gold_writes_nothing_else(stack: Stack) -> Iterator[str]:
    """The lake is read; the tables of the heavy views and Athena's results are written."""
    if "GoldRole" not in stack.resources:
        return
    lake, database = "<LakeBucket.Arn>", stack.parameters["DatabaseName"]
    glue = f"arn:aws:glue:{PSEUDO['AWS::Region']}:{ACCOUNT}"
    table = f"{glue}:table/{database}"
    heavy = [view.name for view in load_views() if view.heavy]
    needed = [
        ("athena:StartQueryExecution", GOLD_WORKGROUP),
        *(("s3:GetObject", f"{lake}/lake/{log}/a.parquet") for log in ("change_log", "gold/a")),
        *(("s3:PutObject", f"{lake}/lake/gold/{name}/data/a.parquet") for name in heavy),
        *(
            ("glue:UpdateTable", place)
            for place in (f"{glue}:catalog", f"{glue}:database/{database}")
        ),
        *(("glue:UpdateTable", f"{table}/{name}") for name in heavy),
        *(("glue:GetTable", f"{table}/{name}") for name in (*heavy, "change_log")),
        *(("s3:PutObject", f"{lake}/athena-results/a"), ("s3:ListBucket", lake)),
        *((action, "<DataKey.Arn>") for action in ("kms:Decrypt", "kms:GenerateDataKey")),
    ]
    for action, place in needed:
        if not allows(stack, "GoldRole", action, place):
            yield f"GoldRole: cannot {action} on {place}"
    mine = (f"{lake}/lake/gold/", f"{lake}/athena-results/", f"{glue}:catalog")
    written = (f"{glue}:database/{database}", *(f"{table}/{name}" for name in heavy))
    for action, place in sorted(grants(stack, "GoldRole")):
        writes = re.search(r":(Abort|Put|Delete|Create|Update|Batch)", action)
        if writes and not (place.startswith(mine) or place in written):
            yield f"GoldRole: may {action} on {place}"
