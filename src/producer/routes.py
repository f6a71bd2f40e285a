"""The routes: each gathers what the request says, lets `accept` decide, publishes, and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.openapi.params import Header, Path

from freshet.clock import Now, VersionClock
from freshet.contract import Contract, Registry
from freshet.errors import RejectedError, UnknownTableError
from freshet.event import ChangeEvent, Op
from freshet.objects import Objects
from freshet.pii import Protector
from freshet.stream import RECORD_BYTES_MAX, ChangeStream, PublishReport
from freshet.telemetry import LogEvent, Metric, count, logger
from freshet.wire import encode_event
from producer import accept, answers, idempotency
from producer.problems import PROBLEM_JSON, ProblemError
from producer.requests import (
    JSON,
    MERGE_PATCH,
    NDJSON,
    Item,
    Request,
    read_document,
    read_events,
    read_request,
)

NewId = Callable[[], str]

# Headers that stamp the change of one row.
STAMP_HEADERS = ("freshet-version", "freshet-occurred-at")

Table = Annotated[str, Path(description="A declared table (`GET /v1/tables`)", examples=["sales"])]
Key = Annotated[
    str,
    Path(
        description="Key text of the row, as `key` in answers, percent-encoded for the URL; the "
        "columns of a composite key are joined by commas, in the order of the merge key",
        examples=["536365-1", "USD,2026-11-20"],
    ),
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="1-255 printable ASCII characters. The same key with the same body gives the "
        "same event ids and versions, so a resend is a duplicate, never a second change",
    ),
]
Version = Annotated[
    str | None,
    Header(
        alias=STAMP_HEADERS[0],
        pattern=r"^[0-9]{1,19}$",
        description="Version of the change, 1 to 2^63-1: greater is newer. Stamped when absent",
    ),
]
OccurredAt = Annotated[
    str | None,
    Header(alias=STAMP_HEADERS[1], description="When it happened, RFC 3339 with a zone"),
]


@dataclass(frozen=True, slots=True)
class Ports:
    """What the routes need from outside: where to publish and keep, the time, and fresh ids."""

    stream: ChangeStream
    objects: Objects
    tables: Registry
    protector: Protector
    now: Now
    new_id: NewId


class Routes:
    """The producer's operations; `app` gives them the current request."""

    def __init__(self, app: APIGatewayHttpResolver, ports: Ports) -> None:
        self._app, self._ports = app, ports
        self._versions = VersionClock(ports.now)

    def post_changes(self, table: Table, idempotency_key: IdempotencyKey = None) -> Response[Any]:
        """One event, an array of events, or NDJSON: an outcome for each, in order."""
        contract = self._contract(table)
        request = self._request((JSON, *NDJSON))
        items = read_events(request)
        stamp = self._stamp(contract.table, request, items, idempotency_key)
        decisions = self._decisions(items, contract, stamp)
        _check_answerable(accept.outcomes(decisions, contract))
        answer = answers.changes_answer(self._publish(contract, decisions))
        return _response(answer)

    def put_row(
        self,
        table: Table,
        key: Key,
        idempotency_key: IdempotencyKey = None,
        version: Version = None,
        occurred_at: OccurredAt = None,
    ) -> Response[Any]:
        """The body is the full row: it becomes the row's current state."""
        request = self._request((JSON,))
        after = read_document(request)
        event = {"op": Op.UPDATE.value, "after": after, **_members(version, occurred_at)}
        return self._change_row(table, key, event, request, idempotency_key)

    def patch_row(
        self,
        table: Table,
        key: Key,
        idempotency_key: IdempotencyKey = None,
        version: Version = None,
        occurred_at: OccurredAt = None,
    ) -> Response[Any]:
        """The body is some of the row's columns; the others stay as they are."""
        request = self._request((JSON, MERGE_PATCH))
        document = read_document(request)
        # An event without content in `patch` would be asked for its `after`.
        patch = {} if document is None else document
        event = {"op": Op.UPDATE.value, "patch": patch, **_members(version, occurred_at)}
        return self._change_row(table, key, event, request, idempotency_key)

    def delete_row(
        self,
        table: Table,
        key: Key,
        idempotency_key: IdempotencyKey = None,
        version: Version = None,
        occurred_at: OccurredAt = None,
    ) -> Response[Any]:
        """The row goes; a tombstone remembers the version."""
        event = {"op": Op.DELETE.value, **_members(version, occurred_at)}
        return self._change_row(table, key, event, Request(b"", JSON), idempotency_key)

    def get_tables(self) -> Response[Any]:
        """The declared tables with their keys, partitions and JSON Schemas."""
        body = answers.tables_answer(tuple(self._ports.tables))
        return _response(answers.Answer(HTTPStatus.OK, body, {}))

    def get_health(self) -> Response[Any]:
        """Says that the function runs."""
        return _response(answers.Answer(HTTPStatus.OK, {"status": "ok"}, {}))

    def _change_row(
        self,
        table: str,
        key: str,
        event: dict[str, Any],
        request: Request,
        idempotency_key: str | None,
    ) -> Response[Any]:
        """Publish the one event of a row's own URL; its rejection is the request's problem."""
        contract = self._contract(table)
        event["key"] = accept.row_key(contract, key)
        stamp = self._stamp(contract.table, request, [event], idempotency_key)
        decisions = self._decisions([event], contract, stamp)
        (outcome,) = self._publish(contract, decisions)
        if outcome["status"] == "rejected":
            # The body is the row itself, or some of it: its columns are named as they stand there.
            field = outcome.get("field", "").removeprefix("after.").removeprefix("patch.") or None
            raise RejectedError(outcome["reason"], outcome["detail"], field=field)
        if outcome["status"] == "throttled":
            return _response(answers.changes_answer([outcome]))
        body = {name: value for name, value in outcome.items() if name != "index"}
        return _response(answers.Answer(HTTPStatus.ACCEPTED, body, {}))

    def _contract(self, table: str) -> type[Contract]:
        try:
            return self._ports.tables[table]
        except UnknownTableError as error:
            raise ProblemError(
                HTTPStatus.NOT_FOUND,
                "unknown_table",
                f"no such table; declared tables: {', '.join(error.known)}",
                field="table",
            ) from None

    def _request(self, media_types: tuple[str, ...]) -> Request:
        event = self._app.current_event
        return read_request(
            event.body,
            {name.lower(): value for name, value in event.headers.items()},
            is_base64=bool(event.is_base64_encoded),
            media_types=media_types,
        )

    def _decisions(
        self, items: Sequence[Item], contract: type[Contract], stamp: accept.Stamp
    ) -> list[accept.Decision]:
        ports = self._ports
        return accept.accept(items, contract, ports.tables, stamp, ports.protector.event)

    def _stamp(
        self, table: str, request: Request, items: Sequence[Item], key: str | None
    ) -> accept.Stamp:
        """Fresh ids and versions, or those an idempotency key stands for."""
        now, count_ = self._ports.now(), len(items)
        if key is None:
            return accept.Stamp(self._ports.new_id(), self._versions.take(count_), now)
        scope = idempotency.scope_of(table, key)
        if not accept.lacks_stamp(items):
            return accept.Stamp(scope, self._versions.take(count_), now)
        http = self._app.current_event.request_context.http
        headers = {name.lower(): value for name, value in self._app.current_event.headers.items()}
        fingerprint = idempotency.fingerprint_of(
            http.method, http.path, [headers.get(name) for name in STAMP_HEADERS], request.body
        )
        fingerprint = self._ports.protector.blinded(table, fingerprint)
        version = idempotency.version_of(
            self._ports.objects, scope, fingerprint, lambda: self._versions.take(count_)
        )
        return accept.Stamp(scope, version, now)

    def _publish(
        self, contract: type[Contract], decisions: Sequence[accept.Decision]
    ) -> list[dict[str, Any]]:
        """Publish what was accepted; the outcome of each decision, counted and logged."""
        decisions, report = self._published(decisions)
        throttled = accept.throttled_indexes(decisions, report)
        rejected = len(decisions) - len(report.accepted) - len(throttled)
        accepted = len(report.accepted)
        count(
            {
                Metric.ACCEPTED: accepted,
                Metric.REJECTED: rejected,
                Metric.THROTTLED: len(throttled),
            },
            table=contract.table,
        )
        logger.info(
            LogEvent.CHANGES_ACCEPTED.value,
            table=contract.table,
            accepted=accepted,
            rejected=rejected,
            throttled=len(throttled),
            throttled_by=report.detail,
            request_id=self._app.current_event.request_context.request_id,
        )
        return accept.outcomes(decisions, contract, throttled)

    def _published(
        self, decisions: Sequence[accept.Decision]
    ) -> tuple[Sequence[accept.Decision], PublishReport]:
        """The stream's report, and the decisions with events too large for any record rejected.

        The stream refuses such a publish as a whole, before it sends anything; that is so rare
        that only then every event is measured.
        """
        try:
            return decisions, self._ports.stream.publish(_events(decisions))
        except RejectedError:
            decisions = [_measured(decision) for decision in decisions]
            return decisions, self._ports.stream.publish(_events(decisions))


def _events(decisions: Sequence[accept.Decision]) -> list[ChangeEvent]:
    return [decision for decision in decisions if isinstance(decision, ChangeEvent)]


def _measured(decision: accept.Decision) -> accept.Decision:
    if isinstance(decision, RejectedError) or len(encode_event(decision)) <= RECORD_BYTES_MAX:
        return decision
    return RejectedError("too_large", f"an event may have {RECORD_BYTES_MAX} bytes")


def _members(version: str | None, occurred_at: str | None) -> dict[str, Any]:
    """Event members from headers; absent ones left to the stamp."""
    return {
        "version": None if version is None else int(version),
        "occurred_at": occurred_at,
    }


def _check_answerable(outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a request whose answer could not be delivered, before anything is published."""
    if len(outcomes) <= answers.ANSWER_EVENTS_MIN:
        return
    if len(answers.changes_answer(outcomes).text()) > answers.ANSWER_BYTES_MAX:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too_many_events",
            f"the outcomes of {len(outcomes)} events do not fit one answer: send fewer at once",
        )


def _response(answer: answers.Answer) -> Response[Any]:
    is_problem = "type" in answer.body
    return Response(
        status_code=answer.status.value,
        content_type=PROBLEM_JSON if is_problem else JSON,
        body=answer.text(),
        headers=dict(answer.headers),
    )
