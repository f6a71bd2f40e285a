"""Composition root of the producer: the Lambda handler, its clients and its error answers.

Importing this module touches neither the environment nor AWS; the first request does. Tests and
the local runtime call `build` with their own stream, objects, clock and ids. An error that nobody
foresaw is not answered here: it fails the invocation, which is counted, and API Gateway says 500.
"""

from __future__ import annotations

import functools
import json
import threading
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import boto3
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.openapi.exceptions import RequestValidationError
from botocore.config import Config

from freshet.clock import Now, utc_now
from freshet.contract import Registry
from freshet.errors import RejectedError, SettingsError, TransientError
from freshet.kinesis import CLIENT_CONFIG, KinesisStream
from freshet.objects import Objects
from freshet.pii import Protector
from freshet.s3 import S3Objects
from freshet.secret import open_protector
from freshet.stream import ChangeStream
from freshet.tables import TABLES
from freshet.telemetry import LogEvent, logger, tracer
from producer import openapi
from producer.answers import RETRY_AFTER_S
from producer.problems import PROBLEM_JSON, ProblemError
from producer.requests import JSON
from producer.routes import NewId, Ports, Routes
from producer.settings import Settings

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]

# Three tries of 5 s end before API Gateway's 30 s do; botocore's own 60 s would not.
_S3_CONFIG = Config(
    connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 3, "mode": "standard"}
)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Lambda's entry: an HTTP API event (payload 2.0) in, an HTTP answer out."""
    return _composed()(event, context)


@functools.cache
def _composed() -> Handler:
    settings = Settings.from_env()
    stream = KinesisStream(
        boto3.client("kinesis", config=CLIENT_CONFIG),
        settings.stream_name,
        TABLES,
    )
    objects = S3Objects(boto3.client("s3", config=_S3_CONFIG), settings.state_bucket)
    protector = open_protector(settings.pii_secret_arn, TABLES)
    built = build(stream=stream, objects=objects, protector=protector)
    traced: Handler = tracer.capture_lambda_handler(built, capture_response=False)
    return traced


def build(
    *,
    stream: ChangeStream,
    objects: Objects,
    tables: Registry = TABLES,
    protector: Protector | None = None,
    now: Now = utc_now,
    new_id: NewId = lambda: uuid.uuid4().hex,
) -> Handler:
    """The handler over these ports; safe to call from several threads, one request at a time.

    Raises `SettingsError` where a table hashes and there is no `protector`.
    """
    app = APIGatewayHttpResolver(enable_validation=True)
    protector = protector or Protector.none(tables)
    routes = Routes(app, Ports(stream, objects, tables, protector, now, new_id))
    _add_routes(app, routes, tables)
    _add_error_answers(app)
    # Powertools keeps the current request on a class; Lambda has one at a time, a gateway may not.
    lock = threading.Lock()

    def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
        with lock:
            return app.resolve(event, context)

    return handle


def _add_routes(app: APIGatewayHttpResolver, routes: Routes, tables: Registry) -> None:
    changes, row = "/v1/tables/<table>/changes", "/v1/tables/<table>/rows/<key>"
    app.post(changes, **openapi.changes_docs(tables))(routes.post_changes)
    app.put(row, **openapi.put_docs(tables))(routes.put_row)
    app.patch(row, **openapi.patch_docs(tables))(routes.patch_row)
    app.delete(row, **openapi.delete_docs())(routes.delete_row)
    app.get("/v1/tables", **openapi.tables_docs())(routes.get_tables)
    app.get("/health", **openapi.health_docs())(routes.get_health)

    @functools.cache
    def document() -> str:
        generated = app.get_openapi_json_schema(
            title=openapi.TITLE, version=openapi.API_VERSION, description=openapi.DESCRIPTION
        )
        return json.dumps(openapi.finished(json.loads(generated)))

    @app.get("/openapi.json", include_in_schema=False)
    def get_openapi() -> Response[Any]:
        return Response(status_code=200, content_type=JSON, body=document())

    _refuse_other_methods(app, {changes: ("POST",), row: ("PUT", "PATCH", "DELETE")})
    _refuse_other_methods(app, dict.fromkeys(("/v1/tables", "/health", "/openapi.json"), ("GET",)))


def _refuse_other_methods(app: APIGatewayHttpResolver, offered: dict[str, tuple[str, ...]]) -> None:
    """Answer 405 where the path exists and the method does not; powertools alone says 404."""
    for rule, methods in offered.items():
        others = [method for method in _METHODS if method not in methods]
        app.route(rule, others, include_in_schema=False, enable_validation=False)(_refusal(methods))


def _refusal(methods: tuple[str, ...]) -> Callable[..., Response[Any]]:
    def refuse(**_path: str) -> Response[Any]:
        allowed = ", ".join(methods)
        raise ProblemError(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "method_not_allowed",
            f"this path takes {allowed}",
            headers={"Allow": allowed},
        )

    return refuse


def _add_error_answers(app: APIGatewayHttpResolver) -> None:
    """Errors become statuses here and nowhere else."""
    app.exception_handler(ProblemError)(_answer)
    app.exception_handler(RejectedError)(lambda error: _answer(ProblemError.of(error)))
    app.exception_handler(RequestValidationError)(_answer_header)
    app.exception_handler(TransientError)(_answer_transient)
    app.exception_handler(SettingsError)(_answer_misconfigured)
    app.not_found(_answer_not_found)


def _answer(problem: ProblemError) -> Response[Any]:
    logger.info(LogEvent.CHANGES_REFUSED.value, status=problem.status.value, reason=problem.reason)
    return Response(
        status_code=problem.status.value,
        content_type=PROBLEM_JSON,
        body=problem.text(),
        headers=dict(problem.headers),
    )


def _answer_header(error: RequestValidationError) -> Response[Any]:
    """Only path and header parameters are validated by powertools; a body has its own answers."""
    names = {str(part) for problem in error.errors() for part in problem["loc"][1:]}
    name = min(names, default="")
    detail = "does not have the form that /openapi.json describes"
    return _answer(ProblemError(HTTPStatus.BAD_REQUEST, "invalid_parameter", detail, field=name))


def _answer_transient(error: TransientError) -> Response[Any]:
    logger.error(LogEvent.REQUEST_FAILED.value, error=str(error))
    detail = (
        "a service behind this one did not answer in time; send it again with an Idempotency-Key"
    )
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return _answer(
        ProblemError(HTTPStatus.SERVICE_UNAVAILABLE, "unavailable", detail, headers=headers)
    )


def _answer_misconfigured(error: SettingsError) -> Response[Any]:
    logger.error(LogEvent.REQUEST_FAILED.value, error=str(error))
    detail = "the service is misconfigured; its operator finds the cause in the log"
    return _answer(ProblemError(HTTPStatus.INTERNAL_SERVER_ERROR, "misconfigured", detail))


def _answer_not_found(_error: Exception) -> Response[Any]:
    detail = "no such path; /openapi.json lists them"
    return _answer(ProblemError(HTTPStatus.NOT_FOUND, "unknown_path", detail))
