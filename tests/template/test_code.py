"""The template and the code agree: variables, handlers, sources, metrics, log tables, payloads."""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tests.template.stack import STACK_NAME, VARIANTS, Stack, source, stack
from tests.unit.test_poller import ScriptedTransport, item

import consumer.app
import maintenance.app
from api_poller.app import Handler, build, compose
from api_poller.composition import Composition
from api_poller.declaration import load_sources
from api_poller.settings import SHIPPED_SOURCES
from api_poller.settings import Settings as PollerSettings
from consumer.decode import decode_batch
from consumer.landing import Landed
from consumer.settings import Settings as ConsumerSettings
from freshet.errors import FreshetError, StorageError
from freshet.objects import Objects
from freshet.receipt import Receipt
from freshet.settings import metrics_namespace
from freshet.tables import TABLES
from freshet.testing import MemoryObjects, MemoryStream, StoppedClock
from lake.log import (
    CHANGE_LOG,
    CHANGE_LOG_SCHEMA,
    QUARANTINE,
    QUARANTINE_SCHEMA,
    UNKNOWN_TABLE,
    StreamLogs,
)
from lake.maintain import Maintained, Tidied
from lake.settings import LakeSettings
from lake.vacuum import Outcome, Vacuumed
from local.sql import LOG_FOLDERS
from maintenance.settings import Settings as MaintenanceSettings
from producer.settings import Settings as ProducerSettings

EVENTS = Path(__file__).parents[2] / "events"
SETTINGS: dict[str, Any] = {
    "ProducerFunction": ProducerSettings,
    "ApiPollerFunction": PollerSettings,
    "ConsumerFunction": ConsumerSettings,
    "MaintenanceFunction": MaintenanceSettings,
}
# A file to copy, of a shop that does not exist.
EXAMPLE = "example"
POWERTOOLS = {"POWERTOOLS_LOG_LEVEL", "POWERTOOLS_METRICS_NAMESPACE", "POWERTOOLS_SERVICE_NAME"}
every_function = pytest.mark.parametrize("name", SETTINGS)


class Watched(dict[str, str]):
    """An environment that remembers which of its variables were asked for."""

    def __init__(self, *variables: Any) -> None:
        super().__init__(*variables)
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __getitem__(self, name: str) -> str:
        self.asked.add(name)
        return super().__getitem__(name)


def variables(found: Stack, name: str) -> dict[str, str]:
    given = found.properties(name)["Environment"]["Variables"]
    return {key: str(value) for key, value in given.items()}


def poller(objects: Objects) -> Handler:
    """The poller over these objects and a shop of one product."""
    page = json.dumps([item(1)]).encode()
    return build(
        PollerSettings(stream_name="s", state_bucket="b"),
        stream=MemoryStream(),
        objects=objects,
        transport=ScriptedTransport(lambda path, query: page),
        now=StoppedClock(),
    )


def composed(environment: dict[str, str]) -> Composition:
    """The sources as the poller declares them in an environment."""
    settings = PollerSettings.from_env(environment)
    return compose(settings, stream=MemoryStream(), objects=MemoryObjects(), now=StoppedClock())


def scheduled(found: Stack) -> dict[str, dict[str, Any]]:
    """The schedules of the poller by their source; each source once."""
    inputs = [
        (json.loads(one["Target"]["Input"])["source"], one)
        for one in found.of_type("Scheduler::Schedule").values()
        if one["Target"]["Arn"] == "<ApiPollerFunction.Arn>"
    ]
    assert len(inputs) == len(dict(inputs))
    return dict(inputs)


def payload(name: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return event


# --------------------------------------------------------------------------------------- settings
@every_function
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_function_gets_the_variables_it_reads_and_no_other(variant: str, name: str) -> None:
    environment = Watched(variables(stack(variant), name))

    settings = SETTINGS[name].from_env(environment)
    of_sources = getattr(settings, "of_sources", {}).keys()
    assert metrics_namespace(environment) == f"Freshet/{STACK_NAME}"
    assert environment.keys() <= environment.asked | POWERTOOLS | of_sources


@every_function
def test_a_handler_is_where_the_template_says_and_logs_under_its_name(name: str) -> None:
    properties = stack().properties(name)
    module, _, function = properties["Handler"].rpartition(".")
    given = variables(stack(), name)

    assert callable(getattr(importlib.import_module(module), function))
    assert given["POWERTOOLS_SERVICE_NAME"] == module.partition(".")[0]
    assert given["POWERTOOLS_LOG_LEVEL"] in logging.getLevelNamesMapping()
    assert given.keys() >= POWERTOOLS


def test_what_the_template_leaves_alone_is_what_the_code_takes_anyway() -> None:
    given = composed(variables(stack(), "ApiPollerFunction"))
    bare = composed({"STREAM_NAME": "s", "STATE_BUCKET": "b"})

    assert {name: given.declaration(name) for name in given.names} == {
        name: bare.declaration(name) for name in bare.names
    }


def test_tables_lie_where_maintenance_may_delete() -> None:
    settings = LakeSettings.from_env(variables(stack(), "ConsumerFunction"))
    location = stack().properties("Database")["DatabaseInput"]["LocationUri"]

    assert location == f"{settings.root}/{settings.database}"


# -------------------------------------------------------------------------------------- schedules
def test_every_enabled_source_has_one_schedule_as_it_declares() -> None:
    declared = load_sources(SHIPPED_SOURCES)
    enabled = {name: one for name, one in declared.items() if one.enabled}

    schedules = scheduled(stack())

    assert {
        name: (one["ScheduleExpression"], one.get("ScheduleExpressionTimezone", "UTC"))
        for name, one in schedules.items()
    } == {name: (one.schedule, one.timezone) for name, one in enabled.items()}


def test_every_other_source_has_a_schedule_that_a_parameter_switches_on() -> None:
    assert scheduled(stack("sources")).keys() == load_sources(SHIPPED_SOURCES).keys() - {EXAMPLE}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_schedule_names_a_source_that_deploys(variant: str) -> None:
    found = stack(variant)
    others = [
        one["Target"]["Arn"]
        for one in found.of_type("Scheduler::Schedule").values()
        if not {"source", "QueryString"} & json.loads(one["Target"]["Input"]).keys()
    ]

    assert scheduled(found).keys() <= set(composed(variables(found, "ApiPollerFunction")).names)
    assert others == ["<MaintenanceFunction.Arn>"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_secret_is_that_of_a_scheduled_source_and_the_poller_gets_it(variant: str) -> None:
    found = stack(variant)
    given = variables(found, "ApiPollerFunction")
    sources = composed(given)
    references = {
        one.credentials or name.upper(): one.auth.kind
        for name in scheduled(found)
        for one in [sources.declaration(name)]
    }
    secrets = {
        name.removesuffix("_SECRET_ID"): value
        for name, value in given.items()
        if name.endswith("_SECRET_ID")
    }

    assert sorted([*secrets.values(), given["PII_SECRET_ARN"]]) == sorted(
        f"<{name}>" for name in found.of_type("SecretsManager::Secret")
    )
    assert {name for name, kind in references.items() if kind != "none"} <= secrets.keys()
    assert secrets.keys() <= references.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_alarm_listens_for_every_scheduled_source(variant: str) -> None:
    found = stack(variant)
    heard = [
        one["Value"]
        for alarm in found.of_type("CloudWatch::Alarm").values()
        if alarm.get("MetricName") == "PollsRefused"
        for one in alarm["Dimensions"]
    ]

    assert sorted(heard) == sorted(scheduled(found))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_alarm_rings_for_a_source_that_is_asked_once_a_day(variant: str) -> None:
    """An hour without a poll is an hour without data: two bad hours in a row never come."""
    found = stack(variant)
    schedules = scheduled(found)
    for name, alarm in found.of_type("CloudWatch::Alarm").items():
        if alarm.get("MetricName") != "PollsRefused":
            continue
        [source_name] = [one["Value"] for one in alarm["Dimensions"]]
        hourly = schedules[source_name]["ScheduleExpression"] == "rate(1 hour)"
        assert hourly or alarm["EvaluationPeriods"] == 1, name


@pytest.mark.parametrize("name", ["platzi", "platzi_categories", "ecb", "maintenance"])
def test_the_schedules_say_what_the_recorded_payloads_say(name: str) -> None:
    given = [
        json.loads(one["Target"]["Input"])
        for one in stack().of_type("Scheduler::Schedule").values()
    ]
    source_name = None if name == "maintenance" else name
    [mine] = [one for one in given if one.get("source") == source_name]

    assert mine.keys() == payload(f"schedule_{name}").keys()


@pytest.mark.parametrize("path", sorted(EVENTS.glob("http_*.json")), ids=lambda path: path.stem)
def test_recorded_requests_come_by_the_api_s_own_route(path: Path) -> None:
    event = json.loads(path.read_text())
    key = stack().properties("HttpApiRoute")["RouteKey"]
    integration = stack().properties("HttpApiIntegration")

    assert (event["routeKey"], event["requestContext"]["routeKey"]) == (key, key)
    assert event["version"] == integration["PayloadFormatVersion"]
    assert event["requestContext"]["stage"] == stack().properties("HttpApiStage")["StageName"]


# ---------------------------------------------------------------------------------------- metrics
Series = tuple[str, str, frozenset[tuple[str, str]]]


@pytest.fixture
def emitted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> set[Series]:
    """Every series that the functions put out, each in the environment the template gives it."""
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)
    for name, emit in EMITTERS.items():
        for key, value in variables(stack("sources"), name).items():
            monkeypatch.setenv(key, value)
        emit()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {series for line in lines for series in _series(line)}


def _series(line: dict[str, Any]) -> Iterator[Series]:
    for directive in line["_aws"]["CloudWatchMetrics"]:
        for names in directive["Dimensions"]:
            dimensions = frozenset((name, line[name]) for name in names)
            for metric in directive["Metrics"]:
                yield directive["Namespace"], metric["Name"], dimensions


def _consume() -> None:
    batch = decode_batch(payload("kinesis_poison"), TABLES)
    landed = Landed(Receipt(received=2, rejected=1, ignored=1), [])
    consumer.app.report(batch, landed, datetime.now(UTC))
    for table in TABLES.names:
        consumer.app._count(
            table,
            Receipt(
                **dict.fromkeys(
                    ("inserted", "updated", "deleted", "unchanged", "duplicate", "stale"), 1
                ),
                received=6,
                rejected=0,
            ),
        )
        consumer.app._count_conflict(table)

    failing = consumer.app.build(_Down(), tables=TABLES, now=lambda: datetime.now(UTC))  # type: ignore[arg-type]
    failing(payload("kinesis_packed"), None)


class _Down:
    """A lake whose store does not answer."""

    def keep(self, *_: object) -> None:
        raise StorageError("s3://lake", "does not answer")


def _poll() -> None:
    class Down(MemoryObjects):
        def get(self, key: str) -> Any:
            raise StorageError(key, "does not answer")

    for name in scheduled(stack("sources")):
        with pytest.raises(FreshetError):
            poller(Down())({"source": name}, None)
    poller(MemoryObjects())({"source": "platzi"}, None)


def _maintain() -> None:
    vacuumed = Vacuumed("sales", Outcome.DONE, deleted=1, waiting=1)
    maintenance.app._report([Maintained(Tidied(Outcome.DONE, quarantined=1), vacuumed)], {})


EMITTERS = {
    "ConsumerFunction": _consume,
    "ApiPollerFunction": _poll,
    "MaintenanceFunction": _maintain,
}


def _watched(alarm: dict[str, Any]) -> Iterator[Series]:
    metrics = [
        one["MetricStat"]["Metric"] for one in alarm.get("Metrics", []) if "MetricStat" in one
    ]
    for metric in metrics or [alarm]:
        dimensions = frozenset((one["Name"], one["Value"]) for one in metric["Dimensions"])
        yield metric["Namespace"], metric["MetricName"], dimensions


def test_alarms_watch_what_the_functions_really_put_out(emitted: set[Series]) -> None:
    """A dimension too many is another metric, and an alarm over a metric without data is silent."""
    alarms = stack("sources").of_type("CloudWatch::Alarm")
    watched = {
        (name, series)
        for name, alarm in alarms.items()
        for series in _watched(alarm)
        if series[0].startswith("Freshet")
    }

    assert len(watched) >= 5
    assert {name for name, series in watched if series not in emitted} == set()


def test_alarms_watch_metrics_that_aws_puts_out() -> None:
    known = {
        "AWS/Lambda": {
            *("Duration", "Errors", "IteratorAge", "Throttles"),
            *("OnFailureDestinationDeliveredEventCount", "DroppedEventCount"),
        },
        "AWS/Kinesis": {"IncomingBytes", "IncomingRecords", "WriteProvisionedThroughputExceeded"},
        "AWS/ApiGateway": {"5xx", "4xx", "Count", "Latency"},
        "AWS/Athena": {"ProcessedBytes"},
    }
    keys = {"AWS/Lambda": {"FunctionName", "EventSourceMappingUUID"}, "AWS/Kinesis": {"StreamName"}}
    for name, alarm in stack().of_type("CloudWatch::Alarm").items():
        for namespace, metric, dimensions in _watched(alarm):
            if namespace in known:
                assert metric in known[namespace], name
                names = {key for key, _ in dimensions}
                assert names <= keys.get(namespace, names), name


# -------------------------------------------------------------------------------------- dashboard
def _widgets() -> list[dict[str, Any]]:
    body = json.loads(stack().properties("Dashboard")["DashboardBody"])
    return [widget["properties"] for widget in body["widgets"]]


def _rows(properties: dict[str, Any]) -> Iterator[list[str]]:
    """Rows of a widget with CloudWatch's abbreviations written out, without options."""
    before: list[str] = []
    for row in properties["metrics"]:
        words = [word for word in row if isinstance(word, str)]
        if not words:
            continue
        if words[0] == "...":
            words = before[: len(before) - len(words) + 1] + words[1:]
        before = [before[at] if word == "." else word for at, word in enumerate(words)]
        yield before


def test_the_dashboard_shows_what_the_issue_asks_for() -> None:
    titles = " ".join(properties["title"] for properties in _widgets()).lower()

    for word in ("freshness", "throughput", "iterator age", "quarantine", "conflicts", "cost"):
        assert word in titles


def test_the_dashboard_draws_series_that_exist(emitted: set[Series]) -> None:
    own = f"Freshet/{STACK_NAME}"
    rows = [row for properties in _widgets() for row in _rows(properties)]
    drawn = {
        (row[0], row[1], frozenset(zip(row[2::2], row[3::2], strict=True)))
        for row in rows
        if row[0] == own
    }

    assert len(rows) > 15
    assert drawn
    assert drawn - emitted == set()
    for row in rows:
        assert row[0] in (own, "AWS/Lambda", "AWS/Kinesis", "AWS/ApiGateway", "AWS/Athena")


def test_the_dashboard_searches_for_series_that_exist(emitted: set[Series]) -> None:
    """Quotes, because a namespace with a stroke or a hyphen is no name to SEARCH without them."""
    texts = [
        option["expression"]
        for properties in _widgets()
        for row in properties["metrics"]
        for option in row
        if isinstance(option, dict) and "SEARCH" in option.get("expression", "")
    ]
    schemas = {(space, name, frozenset(key for key, _ in keys)) for space, name, keys in emitted}

    assert len(texts) >= 10
    for text in texts:
        found = re.search(r"SEARCH\('\{\"([^\"]+)\",(\w+)\} MetricName=\"(\w+)\"'", text)
        assert found, text
        assert (found[1], found[3], frozenset({found[2]})) in schemas


def test_every_widget_is_in_the_stack_s_region_and_says_its_period() -> None:
    for properties in _widgets():
        assert properties["region"] == "eu-west-1"
        assert properties["period"] % 60 == 0


# -------------------------------------------------------------------------------------- log tables
GLUE_TYPES = {
    pa.string(): "string",
    pa.int32(): "int",
    pa.int64(): "bigint",
    pa.binary(): "binary",
    pa.timestamp("us", tz="UTC"): "timestamp",
}
LOGS = {
    "ChangeLogTable": (CHANGE_LOG, CHANGE_LOG_SCHEMA, list(TABLES.names)),
    "QuarantineTable": (QUARANTINE, QUARANTINE_SCHEMA, [*TABLES.names, UNKNOWN_TABLE]),
}
every_log = pytest.mark.parametrize("name", LOGS)


def _table(name: str) -> dict[str, Any]:
    table: dict[str, Any] = stack().properties(name)["TableInput"]
    return table


@every_log
def test_a_log_table_has_the_columns_of_its_files(name: str) -> None:
    _, schema, _ = LOGS[name]
    columns = _table(name)["StorageDescriptor"]["Columns"]

    assert [(column["Name"], column["Type"]) for column in columns] == [
        (field.name, GLUE_TYPES[field.type]) for field in schema
    ]
    assert all(column["Comment"] for column in columns)


@every_log
def test_a_log_table_projects_every_table_and_day(name: str) -> None:
    _, _, tables = LOGS[name]
    table = _table(name)
    parameters = table["Parameters"]

    assert [key["Name"] for key in table["PartitionKeys"]] == list(LOG_FOLDERS)
    assert parameters["projection.enabled"] == "true"
    assert sorted(parameters["projection.table_name.values"].split(",")) == sorted(tables)
    assert parameters["projection.ingest_date.format"] == "yyyy-MM-dd"
    first, last = parameters["projection.ingest_date.range"].split(",")
    assert datetime.fromisoformat(first).date() <= datetime(2026, 11, 1, tzinfo=UTC).date()
    assert last == "NOW+1DAY"


@every_log
def test_projection_finds_the_files_where_the_consumer_puts_them(name: str) -> None:
    log, _, _ = LOGS[name]
    objects = MemoryObjects()
    batch = decode_batch(payload("kinesis_poison"), TABLES)
    logs = StreamLogs(objects, TABLES)
    logs.append_events(batch.name, batch.events)
    logs.quarantine(batch.name, batch.rejected)
    pattern = _table(name)["Parameters"]["storage.location.template"]
    keys = list(objects.list(f"{log}/"))

    assert keys
    for key in keys:
        folders = dict(part.split("=") for part in key.split("/")[1:-1])
        place = pattern
        for folder, value in folders.items():
            place = place.replace(f"${{{folder}}}", value)
        assert f"s3://<LakeBucket>/lake/{key}".startswith(place)
        assert "/" not in f"s3://<LakeBucket>/lake/{key}".removeprefix(place)


def _fields(struct: str) -> list[str]:
    return re.findall(r"(\w+):", struct)


def test_the_failures_table_has_the_members_of_what_lambda_puts_aside() -> None:
    """Athena's JSON reader compares names in lower case."""
    columns = {
        one["Name"]: one["Type"] for one in _table("FailuresTable")["StorageDescriptor"]["Columns"]
    }
    failure = payload("kinesis_failure")

    # Lambda leaves out the answer of a function that was not asked again.
    assert columns.keys() - {"responsecontext"} == {name.lower() for name in failure}
    for name, value in failure.items():
        if isinstance(value, dict):
            assert set(_fields(columns[name.lower()])) >= {member.lower() for member in value}


def test_the_mapping_puts_failures_where_the_table_looks() -> None:
    location = _table("FailuresTable")["StorageDescriptor"]["Location"]
    rules = stack().properties("LakeBucket")["LifecycleConfiguration"]["Rules"]

    assert location == "s3://<LakeBucket>/aws/lambda/"
    assert [rule["ExpirationInDays"] for rule in rules if rule.get("Prefix") == "aws/lambda/"] == [
        "90"
    ]


def test_nothing_expires_that_is_the_lake_s_only_copy() -> None:
    """Rows, tombstones and the change log stay; what expires is a copy or was told of before."""
    for bucket, expiring in (
        ("LakeBucket", {"athena-results/", "aws/lambda/", "replayed/", "discarded/"}),
        ("StateBucket", {"idempotency/"}),
    ):
        rules = stack().properties(bucket)["LifecycleConfiguration"]["Rules"]
        assert {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule} == expiring


# ----------------------------------------------------------------------------------------- outputs
def test_outputs_are_what_the_command_line_and_a_user_need() -> None:
    needed = {
        *("ApiUrl", "StreamName", "LakeBucketName", "StateBucketName", "DatabaseName"),
        *("ConsumerFunctionName", "ApiPollerFunctionName", "MaintenanceFunctionName"),
        *("ProducerFunctionName", "WorkGroupName", "EventSourceMappingId", "AlarmTopicArn"),
        *("PlatziCredentialsArn", "DashboardUrl", "SendChangesPolicyArn", "QueryLakePolicyArn"),
    }
    outputs = stack().outputs

    assert needed <= outputs.keys()
    assert not [name for name, value in outputs.items() if "${" in str(value)]
    assert all(body["Description"] for body in source()["Outputs"].values())
    assert stack("redshift").outputs.keys() - outputs.keys() == {"RedshiftExternalSchema"}
    assert stack("sources").outputs.keys() - outputs.keys() == {"SpotifyCredentialsArn"}


def test_the_external_schema_is_made_as_the_stack_s_output_says() -> None:
    """sql/redshift/external_schema.sql and the output are one statement."""
    sql = (Path(__file__).parents[2] / "sql" / "redshift" / "external_schema.sql").read_text()
    bare = re.sub(r"--[^\n]*", "", sql)
    for name, value in (
        ("database", "freshet"),
        ("region", "eu-west-1"),
        ("role_arn", "<RedshiftRole.Arn>"),
    ):
        bare = bare.replace(f":'{name}'", f"'{value}'")
    [made] = [" ".join(one.split()) for one in bare.split(";") if "CREATE EXTERNAL SCHEMA" in one]

    assert made == stack("redshift").outputs["RedshiftExternalSchema"]
