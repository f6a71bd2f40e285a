"""What the template declares and MiniStack's CloudFormation passes over, made up for here.

The template stays what AWS gets. Each function below closes one gap of the pinned MiniStack with
that service's own code where it has any; what AWS does in its place is said beside it.
"""

# ruff: noqa: SLF001, PLC0415 - patches a pinned MiniStack; imports it only once configured

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

Json = dict[str, Any]
Create = Callable[[str, Json, str], tuple[str, Json]]


def close_gaps(port: int) -> None:
    """Patch MiniStack, which is configured by now and answers at `port`."""
    from ministack.services import athena, kinesis, s3, secretsmanager
    from ministack.services.cloudformation import (
        changesets,
        engine,
        handlers,
        provisioners,
        stacks,
    )

    known = provisioners._RESOURCE_HANDLERS
    known["AWS::Athena::NamedQuery"] = named_queries(athena)
    api, stream = known["AWS::ApiGatewayV2::Api"], known["AWS::Kinesis::Stream"]
    api["create"] = plain_address(api["create"], provisioners, port)
    stream["create"] = encrypted_stream(stream["create"], kinesis)
    secret = known["AWS::SecretsManager::Secret"]
    secret["create"] = empty_secret(secret["create"], secretsmanager)
    provisioners._S3_BUCKET_CONFIGURATIONS += bucket_configurations(s3)
    provisioners._cw_metric_alarm_record = metric_math(provisioners._cw_metric_alarm_record)
    evaluate = joins_in_conditions(engine._evaluate_conditions)
    for module in (engine, handlers, changesets, stacks):
        module._evaluate_conditions = evaluate


def named_queries(athena: Any) -> Json:
    """The provisioner of Athena's saved queries."""

    def create(_logical_id: str, properties: Json, _stack: str) -> tuple[str, Json]:
        _, _, body = athena._create_named_query(properties)
        query_id = json.loads(body)["NamedQueryId"]
        return query_id, {"NamedQueryId": query_id}

    def delete(query_id: str, _properties: Json) -> None:
        athena._delete_named_query({"NamedQueryId": query_id})

    return {"create": create, "delete": delete}


def plain_address(create: Create, provisioners: Any, port: int) -> Create:
    """Give an API an address on the loopback; its host name of AWS would resolve nowhere."""

    def create_api(logical_id: str, properties: Json, stack: str) -> tuple[str, Json]:
        api_id, attributes = create(logical_id, properties, stack)
        address = f"http://127.0.0.1:{port}/_aws/execute-api/{api_id}/$default"
        provisioners._apigw_v2._apis[api_id]["apiEndpoint"] = address
        return api_id, {**attributes, "ApiEndpoint": address}

    return create_api


def encrypted_stream(create: Create, kinesis: Any) -> Create:
    """Encrypt a stream as StreamEncryption says."""

    def create_stream(logical_id: str, properties: Json, stack: str) -> tuple[str, Json]:
        name, attributes = create(logical_id, properties, stack)
        if "StreamEncryption" in properties:
            kinesis._start_stream_encryption({"StreamName": name, **properties["StreamEncryption"]})
        return name, attributes

    return create_stream


def empty_secret(create: Create, secretsmanager: Any) -> Create:
    """A secret declared without a value has no version, not an empty one."""

    def create_secret(logical_id: str, properties: Json, stack: str) -> tuple[str, Json]:
        name, attributes = create(logical_id, properties, stack)
        if not {"SecretString", "GenerateSecretString"} & properties.keys():
            secretsmanager._secrets[name]["Versions"].clear()
        return name, attributes

    return create_secret


def metric_math(record: Callable[[str, Json], Json]) -> Callable[[str, Json], Json]:
    """Keep alarms on metric math, under the name of their expression; they are never evaluated."""

    def record_alarm(name: str, properties: Json) -> Json:
        metrics = properties.get("Metrics")
        if not metrics:
            return record(name, properties)
        [shown] = [metric for metric in metrics if metric.get("ReturnData", True)]
        named = {"Namespace": "MetricMath", "MetricName": shown["Id"]}
        rest = {key: value for key, value in properties.items() if key != "Metrics"}
        return record(name, {**rest, **named})

    return record_alarm


def bucket_configurations(s3: Any) -> tuple[tuple[Any, ...], ...]:
    """Encryption and life cycle of buckets: property, body of the API's call, put, delete."""
    encryption = (s3._put_bucket_encryption, s3._delete_bucket_encryption)
    lifecycle = (s3._put_bucket_lifecycle, s3._delete_bucket_lifecycle)
    return (
        ("BucketEncryption", _encryption, *encryption),
        ("LifecycleConfiguration", _lifecycle, *lifecycle),
    )


def _encryption(properties: Json) -> bytes:
    rules = [
        {
            "ApplyServerSideEncryptionByDefault": rule["ServerSideEncryptionByDefault"],
            "BucketKeyEnabled": rule.get("BucketKeyEnabled", False),
        }
        for rule in properties["ServerSideEncryptionConfiguration"]
    ]
    return _s3_body("PutBucketEncryption", ServerSideEncryptionConfiguration={"Rules": rules})


def _lifecycle(properties: Json) -> bytes:
    rules = [_lifecycle_rule(rule) for rule in properties["Rules"]]
    return _s3_body("PutBucketLifecycleConfiguration", LifecycleConfiguration={"Rules": rules})


def _lifecycle_rule(rule: Json) -> Json:
    expiration: Json = {}
    if "ExpirationInDays" in rule:
        expiration["Days"] = int(rule["ExpirationInDays"])  # text where it is a parameter
    if "ExpiredObjectDeleteMarker" in rule:
        expiration["ExpiredObjectDeleteMarker"] = rule["ExpiredObjectDeleteMarker"]
    same = ("Status", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload")
    return {
        "ID": rule["Id"],
        "Filter": {"Prefix": rule.get("Prefix", "")},
        **({"Expiration": expiration} if expiration else {}),
        **{name: rule[name] for name in same if name in rule},
    }


def _s3_body(operation: str, **parameters: Any) -> bytes:
    """The XML that a client would send."""
    import botocore.session
    from botocore.serialize import create_serializer

    model = botocore.session.get_session().get_service_model("s3").operation_model(operation)
    request = create_serializer("rest-xml").serialize_to_request(
        {"Bucket": "any", **parameters}, model
    )
    body: bytes = request["body"]
    return body


def joins_in_conditions(evaluate: Callable[[Json, Json], Json]) -> Callable[[Json, Json], Json]:
    """Evaluate Fn::Join in conditions, which would count as true."""

    def evaluate_conditions(template: Json, parameters: Json) -> Json:
        conditions = _joined(template.get("Conditions") or {}, parameters)
        return evaluate({**template, "Conditions": conditions}, parameters)

    return evaluate_conditions


def _joined(value: Any, parameters: Mapping[str, Json]) -> Any:
    """The value with every join of a list parameter done."""
    if isinstance(value, list):
        return [_joined(item, parameters) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"Fn::Join"}:
        separator, listed = value["Fn::Join"]
        return separator.join(str(parameters[listed["Ref"]]["Value"]).split(","))
    return {key: _joined(item, parameters) for key, item in value.items()}
