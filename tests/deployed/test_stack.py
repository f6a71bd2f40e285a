"""The deployed stack, asked by its own outputs: everything the template declares is there and as
declared, and a change goes all the way: HTTP in, Kinesis, consumer, Glue catalog, rows out.

One file, so that one process deploys. Keys are new in every run: a stack may be tried twice.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
from botocore.exceptions import ClientError
from tests.deployed.deployment import Deployed, until
from tests.unit.test_consumer_decode import recorded

from freshet.clock import micros, utc_now
from freshet.testing import change, sale_row
from freshet.wire import encode_event
from lake.log import CHANGE_LOG, QUARANTINE
from local.sample.catalogue import Catalogue
from local.sample.shop import Shop

FUNCTIONS = ("ProducerFunction", "ApiPollerFunction", "ConsumerFunction", "MaintenanceFunction")
# What maintains itself: present means finished.
FINISHED = ("CREATE_COMPLETE", "UPDATE_COMPLETE")
WRITERS = 8
SALES_EACH = 25

# --- resources -----------------------------------------------------------------------------------


def without_digest(logical_id: str) -> str:
    """A layer's logical id ends in a digest of what was uploaded."""
    return re.sub(r"^LakeLayer[0-9a-f]+$", "LakeLayer", logical_id)


def test_every_resource_of_the_template_is_present_and_no_other(stack: Deployed) -> None:
    declared = {
        without_digest(name): body["Type"] for name, body in stack.template.resources.items()
    }

    present = {without_digest(name): one["ResourceType"] for name, one in stack.resources.items()}

    assert present == declared
    assert {one["ResourceStatus"] for one in stack.resources.values()} <= set(FINISHED)
    assert all(one["PhysicalResourceId"] for one in stack.resources.values())


def test_every_output_resolves(stack: Deployed) -> None:
    assert stack.outputs.keys() == stack.template.outputs.keys()

    for name, value in stack.outputs.items():
        assert value, name
        assert not re.search(r"\$\{|Fn::|<", value), f"{name}: {value}"


def test_the_stream_is_encrypted_with_the_stack_s_key(stack: Deployed) -> None:
    kinesis = stack.aws("kinesis")
    told = kinesis.describe_stream_summary(StreamName=stack.outputs["StreamName"])
    stream = told["StreamDescriptionSummary"]

    assert stream["EncryptionType"] == "KMS"
    assert stream["KeyId"] == stack.outputs["DataKeyArn"]
    assert stream["StreamModeDetails"]["StreamMode"] == stack.template.parameters["StreamMode"]
    assert stream["RetentionPeriodHours"] == int(stack.template.parameters["RetentionHours"])


@pytest.mark.parametrize("output", ["LakeBucketName", "StateBucketName"])
def test_the_buckets_are_encrypted_versioned_and_private(stack: Deployed, output: str) -> None:
    s3, bucket = stack.aws("s3"), stack.outputs[output]

    [encryption] = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"][
        "Rules"
    ]
    assert encryption["ApplyServerSideEncryptionByDefault"] == {
        "SSEAlgorithm": "aws:kms",
        "KMSMasterKeyID": stack.outputs["DataKeyArn"],
    }
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    blocked = s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    assert len(blocked) == 4
    assert all(blocked.values())
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    refused = {one["Sid"]: one["Effect"] for one in policy["Statement"]}
    assert refused == {"TlsOnly": "Deny", "Tls12OrNewer": "Deny"}


def test_the_lake_bucket_forgets_what_its_lifecycle_names(stack: Deployed) -> None:
    declared = stack.template.of_type("S3::Bucket")["LakeBucket"]["LifecycleConfiguration"]

    kept = stack.aws("s3").get_bucket_lifecycle_configuration(
        Bucket=stack.outputs["LakeBucketName"]
    )

    assert {rule["ID"] for rule in kept["Rules"]} == {rule["Id"] for rule in declared["Rules"]}


def test_the_log_tables_are_in_the_catalog_with_their_columns(stack: Deployed) -> None:
    glue, database = stack.aws("glue"), stack.outputs["DatabaseName"]

    for name, declared in stack.template.of_type("Glue::Table").items():
        wanted = declared["TableInput"]
        table = glue.get_table(DatabaseName=database, Name=wanted["Name"])["Table"]
        columns = [(one["Name"], one["Type"]) for one in table["StorageDescriptor"]["Columns"]]
        assert columns == [
            (one["Name"], one["Type"]) for one in wanted["StorageDescriptor"]["Columns"]
        ], name
        assert stack.outputs["LakeBucketName"] in table["StorageDescriptor"]["Location"], name


def test_the_sources_secrets_are_encrypted_with_the_stack_s_key(stack: Deployed) -> None:
    secrets = stack.physical("SecretsManager::Secret")

    assert stack.outputs["PlatziCredentialsArn"] in secrets.values()
    for arn in secrets.values():
        secret = stack.aws("secretsmanager").describe_secret(SecretId=arn)
        assert secret["KmsKeyId"] == stack.outputs["DataKeyArn"]


def test_every_schedule_invokes_its_function(stack: Deployed) -> None:
    scheduler, functions = stack.aws("scheduler"), stack.physical("Lambda::Function")
    found = {}

    for logical_id, name in stack.physical("Scheduler::Schedule").items():
        told = scheduler.get_schedule(Name=name.rpartition("/")[2])
        assert told["State"] == stack.template.parameters["SchedulesState"]
        json.loads(told["Target"]["Input"])
        found[logical_id] = told["Target"]["Arn"].rpartition(":")[2]

    assert found == {
        name: functions[declared["Target"]["Arn"].strip("<>").removesuffix(".Arn")]
        for name, declared in stack.template.of_type("Scheduler::Schedule").items()
    }
    assert {"ApiPollerFunctionEcb", "MaintenanceFunctionVacuum"} <= found.keys()


def test_the_workgroup_holds_the_saved_queries(stack: Deployed) -> None:
    athena, workgroup = stack.aws("athena"), stack.outputs["WorkGroupName"]
    ids = athena.list_named_queries(WorkGroup=workgroup)["NamedQueryIds"]
    saved = athena.batch_get_named_query(NamedQueryIds=ids)["NamedQueries"]
    settings = athena.get_work_group(WorkGroup=workgroup)["WorkGroup"]["Configuration"]

    declared = stack.template.of_type("Athena::NamedQuery").values()
    assert {one["Name"]: one["QueryString"] for one in saved} == {
        one["Name"]: one["QueryString"] for one in declared
    }
    assert {one["Database"] for one in saved} == {stack.outputs["DatabaseName"]}
    assert settings["EnforceWorkGroupConfiguration"] is True
    cutoff = int(stack.template.parameters["AthenaBytesCutoff"])
    assert int(settings["BytesScannedCutoffPerQuery"]) == cutoff


def test_every_alarm_rings_at_the_topic(stack: Deployed) -> None:
    names = sorted(stack.physical("CloudWatch::Alarm").values())
    pages = stack.aws("cloudwatch").get_paginator("describe_alarms").paginate(AlarmNames=names)
    alarms = [alarm for page in pages for alarm in page["MetricAlarms"]]

    assert sorted(alarm["AlarmName"] for alarm in alarms) == names
    for alarm in alarms:
        assert alarm["AlarmActions"] == [stack.outputs["AlarmTopicArn"]], alarm["AlarmName"]
        assert alarm["ActionsEnabled"], alarm["AlarmName"]


def test_the_dashboard_names_what_is_deployed(stack: Deployed) -> None:
    body = stack.aws("cloudwatch").get_dashboard(DashboardName=stack.name)["DashboardBody"]

    assert "${" not in body
    assert json.loads(body)["widgets"]
    assert stack.outputs["ConsumerFunctionName"] in body


def test_every_log_group_forgets_in_time(stack: Deployed) -> None:
    logs, days = stack.aws("logs"), int(stack.template.parameters["LogRetentionDays"])
    groups = stack.physical("Logs::LogGroup")

    assert len(groups) == len(FUNCTIONS) + 1  # and the API's
    for name in groups.values():
        told = logs.describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        [group] = [one for one in told if one["logGroupName"] == name]
        assert group["retentionInDays"] == days, name


def test_the_mapping_gives_up_late_and_keeps_what_it_gave_up(stack: Deployed) -> None:
    mapping = stack.aws("lambda").get_event_source_mapping(
        UUID=stack.outputs["EventSourceMappingId"]
    )
    declared = stack.template.resources["ConsumerFunctionChanges"]["Properties"]

    for setting in (
        "BatchSize",
        "MaximumBatchingWindowInSeconds",
        "ParallelizationFactor",
        "BisectBatchOnFunctionError",
        "MaximumRecordAgeInSeconds",
        "MaximumRetryAttempts",
        "StartingPosition",
        "FunctionResponseTypes",
    ):
        assert mapping[setting] == declared[setting], setting
    lake = f"arn:aws:s3:::{stack.outputs['LakeBucketName']}"
    assert mapping["DestinationConfig"]["OnFailure"]["Destination"] == lake


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_holds_only_the_environment_that_the_template_sets(
    stack: Deployed, function: str
) -> None:
    declared = stack.template.properties(function)["Environment"]["Variables"].keys()

    told = configuration(stack, function)

    held: dict[str, str] = told["Environment"]["Variables"]
    assert held.keys() == declared
    assert all(held.values())
    assert not any("${" in value for value in held.values())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_only_what_writes_tables_or_reads_them_carries_the_layer(
    stack: Deployed, function: str
) -> None:
    layers = configuration(stack, function).get("Layers") or []

    assert len(layers) == (function in ("ConsumerFunction", "MaintenanceFunction"))


def configuration(stack: Deployed, function: str) -> dict[str, Any]:
    told: dict[str, Any] = stack.aws("lambda").get_function_configuration(
        FunctionName=stack.outputs[f"{function}Name"]
    )
    return told


# --- pipeline ------------------------------------------------------------------------------------


@pytest.fixture
def invoice() -> str:
    """A number that no other run has."""
    return uuid.uuid4().hex


def sales(invoice: str, count: int, first: int = 1) -> list[dict[str, Any]]:
    return [sale_row(f"{invoice}-{line}") for line in range(first, first + count)]


def posted(stack: Deployed, table: str, rows: list[dict[str, Any]]) -> None:
    body = "\n".join(json.dumps({"after": row}) for row in rows)
    kind = {"content-type": "application/x-ndjson"}
    status, answer = stack.request("POST", f"/v1/tables/{table}/changes", body, kind)
    assert status == 202, answer
    assert answer["accepted"] == len(rows), answer


@pytest.mark.parametrize(
    ("event", "expected", "sale_id"),
    [
        ("http_post_changes", 202, "536365-2"),
        ("http_post_changes_ndjson", 207, "536367-1"),  # two of its four lines are refused
    ],
)
def test_recorded_requests_become_rows(
    stack: Deployed, event: str, expected: int, sale_id: str
) -> None:
    status, answer = stack.replay(recorded(event))

    assert status == expected, answer
    row = until(lambda: stack.rows("sales").get(sale_id, {}))
    assert row["country"] == "United Kingdom"


def test_posted_sales_are_queryable_rows_with_their_history(stack: Deployed, invoice: str) -> None:
    posted(stack, "sales", sales(invoice, 40))

    landed = until(lambda: of_invoice(stack, invoice, count=40))

    assert {str(row["unit_price"]) for row in landed.values()} == {"2.5500"}
    logged = {line["key"] for line in stack.logged(CHANGE_LOG)}
    assert landed.keys() <= logged


def test_a_deleted_sale_vanishes_and_its_neighbour_stays(stack: Deployed, invoice: str) -> None:
    posted(stack, "sales", sales(invoice, 2))
    until(lambda: of_invoice(stack, invoice, count=2))

    status, answer = stack.request("DELETE", f"/v1/tables/sales/rows/{invoice}-1")

    assert status == 202, answer
    left = until(lambda: of_invoice(stack, invoice, count=1))
    assert list(left) == [f"{invoice}-2"]


def test_an_unsigned_request_is_refused(stack: Deployed) -> None:
    answer = urllib3.request("GET", f"{stack.outputs['ApiUrl']}/openapi.json")

    assert answer.status == 403


def test_a_poison_record_is_quarantined_with_its_bytes(stack: Deployed, invoice: str) -> None:
    """Law L4, deployed: its neighbour in the stream lands."""
    poison = f"<html>{invoice}</html>".encode()
    neighbour = encode_event(
        change(after=sale_row(f"{invoice}-1"), version=micros(utc_now()), accepted_at=utc_now())
    )

    stack.publish(poison, neighbour)

    def kept() -> list[dict[str, Any]]:
        return [line for line in stack.logged(QUARANTINE) if line["data"] == poison]

    [line] = until(kept)
    assert line["reason"] == "unknown_format"
    until(lambda: of_invoice(stack, invoice, count=1))


@pytest.fixture
def catalogue() -> Catalogue:
    data = Path(__file__).parents[2] / "src/local/sample/data"
    return Catalogue.from_file(data / "online_retail_2010_12.parquet")


@pytest.fixture
def shop(stack: Deployed, catalogue: Catalogue) -> Iterator[Shop]:
    """The sample shop, as the source of the deployed poller while the test lasts."""
    if not stack.is_here:
        pytest.skip("a poller in AWS cannot reach the sample shop on this machine")
    function = {"FunctionName": stack.outputs["ApiPollerFunctionName"]}
    functions = stack.aws("lambda")
    before = functions.get_function_configuration(**function)["Environment"]
    with Shop(catalogue) as shop:
        # The parameter PlatziUrl takes https only.
        here = {"PLATZI_URL": shop.url, "ALLOW_LOOPBACK": "true"}
        variables = {**before["Variables"], **here}
        functions.update_function_configuration(**function, Environment={"Variables": variables})
        yield shop
    functions.update_function_configuration(**function, Environment=before)


def test_a_poll_by_the_deployed_poller_ends_in_products(
    stack: Deployed, shop: Shop, catalogue: Catalogue
) -> None:
    listed = {str(product.id): product.price for product in catalogue.on(shop.day).values()}
    assert len(listed) > 100

    stack.account.poll({"source": "platzi"}, {}, lambda *_: None)

    def landed() -> bool:
        products = stack.rows("products")
        return {key: row["price"] for key, row in products.items() if key in listed} == listed

    until(landed)
    again = stack.account.poll({"source": "platzi"}, {}, lambda *_: None)
    assert again["published"] == 0  # nothing changed since


def test_a_source_that_is_asked_too_early_names_the_secret_to_fill(stack: Deployed) -> None:
    """The deployed poller reads the secret: what it misses is what the secret should hold."""
    if not stack.is_here:
        pytest.skip("whether somebody filled the secret is theirs to know")

    with pytest.raises(AssertionError, match="SPOTIFY_SECRET_ID"):
        stack.invoke("ApiPollerFunctionName", {"source": "spotify_albums"})


def of_invoice(stack: Deployed, invoice: str, *, count: int) -> dict[str, Any]:
    """The invoice's sales while there are exactly `count` of them."""
    rows = {key: row for key, row in stack.rows("sales").items() if key.startswith(f"{invoice}-")}
    return rows if len(rows) == count else {}


def kinesis_event(writer: int, invoice: str, rows: list[dict[str, Any]], version: int) -> Any:
    """A batch of one record for each row, of a shard of its own."""
    shard = f"shardId-{writer:012d}"
    accepted = utc_now()
    return {
        "Records": [
            {
                "eventID": f"{shard}:{place}",
                "eventSource": "aws:kinesis",
                "kinesis": {
                    "sequenceNumber": str(place),
                    "partitionKey": invoice,
                    "approximateArrivalTimestamp": accepted.timestamp(),
                    "data": base64.b64encode(
                        encode_event(
                            change(
                                after=row,
                                version=version,
                                event_id=f"{invoice}-{writer}-{place}",
                                accepted_at=accepted,
                            )
                        )
                    ).decode(),
                },
            }
            for place, row in enumerate(rows, version * 1000)
        ]
    }


def test_eight_consumers_at_once_lose_no_row(stack: Deployed, invoice: str) -> None:
    """They touch the same partition of the same table: each commit but one has to be made again.

    Each also updates a sale that all of them have: the greatest version wins.
    """
    version = micros(utc_now())
    batches = [
        kinesis_event(
            writer,
            invoice,
            [
                *sales(invoice, SALES_EACH, first=1 + writer * SALES_EACH),
                sale_row(f"{invoice}-9999", returned_quantity=writer),
            ],
            version + writer,
        )
        for writer in range(WRITERS)
    ]

    with ThreadPoolExecutor(WRITERS) as pool:
        answers = list(pool.map(lambda one: stack.invoke("ConsumerFunctionName", one), batches))

    assert answers == [{"batchItemFailures": []}] * WRITERS
    rows = of_invoice(stack, invoice, count=WRITERS * SALES_EACH + 1)
    assert rows, "rows are lost"
    assert rows[f"{invoice}-9999"]["returned_quantity"] == WRITERS - 1


def test_the_catalog_refuses_a_commit_on_a_version_that_is_no_longer_current(
    stack: Deployed, invoice: str
) -> None:
    """What those eight rely on: Glue compares `VersionId` before it swaps."""
    glue, database = stack.aws("glue"), stack.outputs["DatabaseName"]
    table = {"Name": f"e2e_{invoice}"}
    glue.create_table(DatabaseName=database, TableInput=table)
    try:
        version = stack.glue_version(table["Name"])
        update = {"DatabaseName": database, "TableInput": table, "VersionId": version}
        glue.update_table(**update)

        with pytest.raises(ClientError) as refused:
            glue.update_table(**update)

        assert refused.value.response["Error"]["Code"] == "ConcurrentModificationException"
    finally:
        glue.delete_table(DatabaseName=database, Name=table["Name"])


def test_the_same_batch_again_changes_nothing(stack: Deployed, invoice: str) -> None:
    """Law L3, deployed: no commit, and no file but the receipt of one more delivery."""
    batch = kinesis_event(0, invoice, sales(invoice, 5), micros(utc_now()))
    stack.invoke("ConsumerFunctionName", batch)
    assert of_invoice(stack, invoice, count=5)
    version, objects = stack.glue_version("sales"), stack.objects("lake/")

    assert stack.invoke("ConsumerFunctionName", batch) == {"batchItemFailures": []}

    assert stack.glue_version("sales") == version
    more = stack.objects("lake/") - objects
    assert len(more) == 1
    assert more.pop().startswith("lake/receipts/")


def test_maintenance_reports_on_every_table(stack: Deployed, invoice: str) -> None:
    posted(stack, "sales", sales(invoice, 1))
    until(lambda: of_invoice(stack, invoice, count=1))

    report = stack.invoke("MaintenanceFunctionName", {"dry_run": True})

    assert report["dry_run"] is True
    assert "sales" in {one["table"] for one in report["tables"]}
    assert of_invoice(stack, invoice, count=1)


def test_alarms_watch_metrics_that_the_functions_put_out(stack: Deployed, invoice: str) -> None:
    """CloudWatch knows a metric by its exact set of dimensions: one more, and it is another."""
    stack.publish(f"<html>{invoice}</html>".encode())
    watched = {
        (alarm["MetricName"], dimensions(alarm))
        for alarm in watched_metrics(stack)
        if alarm["MetricName"] in ("RecordsQuarantined", "IngestLagMilliseconds")
    }
    assert len(watched) == 2
    posted(stack, "sales", sales(invoice, 1))
    until(lambda: of_invoice(stack, invoice, count=1))

    put_out = until(lambda: emitted(stack, {name for name, _ in watched}))

    assert watched <= put_out


def watched_metrics(stack: Deployed) -> Iterator[dict[str, Any]]:
    """The metrics of our own that alarms of the template are about."""
    for alarm in stack.template.of_type("CloudWatch::Alarm").values():
        stats = [one["MetricStat"] for one in alarm.get("Metrics", ()) if "MetricStat" in one]
        for metric in [one["Metric"] for one in stats] or [alarm]:
            if metric["Namespace"].startswith("Freshet/"):
                yield metric


def dimensions(metric: dict[str, Any]) -> frozenset[tuple[str, str]]:
    return frozenset((one["Name"], one["Value"]) for one in metric["Dimensions"])


def emitted(stack: Deployed, wanted: set[str]) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Metrics in the consumer's log with their dimensions, once all that are wanted are there."""
    found: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    pages = (
        stack.aws("logs")
        .get_paginator("filter_log_events")
        .paginate(logGroupName=f"/freshet/{stack.name}/consumer")
    )
    for line in (event["message"] for page in pages for event in page["events"]):
        if not line.startswith('{"_aws"'):
            continue
        record = json.loads(line)
        for directive in record["_aws"]["CloudWatchMetrics"]:
            for names in directive["Dimensions"]:
                shown = frozenset((name, record[name]) for name in names)
                found |= {(metric["Name"], shown) for metric in directive["Metrics"]}
    return found if wanted <= {name for name, _ in found} else set()
