"""The OpenAPI document: descriptions, examples and every status of each route.

Powertools generates the document from the routes; what only words and examples can say stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freshet.contract import Contract, Registry
from producer import answers
from producer.problems import PROBLEM_JSON, Problem
from producer.requests import BODY_BYTES_MAX, JSON, MERGE_PATCH, NDJSON, UNPACKED_BYTES_MAX

TITLE = "Freshet producer"
API_VERSION = "1"
DESCRIPTION = f"""\
Takes change events of declared tables, checks each against its table's contract and publishes it.
What was accepted is merged into the table's current state; the change with the greatest version of
a row wins, in whatever order changes arrive.

Columns that a contract declares personal are hashed with the deployment's key, or dropped, before
they reach the stream. An answer names a row by its hashed key; PATCH and DELETE take that as well.

Bodies are UTF-8, plain or `Content-Encoding: gzip` or `zstd`; at most {BODY_BYTES_MAX >> 20} MiB as
sent and {UNPACKED_BYTES_MAX >> 20} MiB unpacked. Errors are `{PROBLEM_JSON}` (RFC 9457).
"""

_SALE = {
    "sale_id": "536365-1",
    "invoice_no": "536365",
    "line": 1,
    "sku": "85123A",
    "description": "WHITE HANGING HEART T-LIGHT HOLDER",
    "quantity": 6,
    "returned_quantity": 0,
    "unit_price": "2.5500",
    "currency": "GBP",
    "customer_id": "17850",
    "country": "United Kingdom",
    "sold_at": "2010-12-01T08:26:00Z",
}
_RETURNED = {**_SALE, "returned_quantity": 2}

CHANGE_EXAMPLES: dict[str, Any] = {
    "sale": {"summary": "A sale: the full row is enough", "value": {"after": _SALE}},
    "return": {
        "summary": "A return is an update of the sale it belongs to",
        "value": {"op": "u", "after": _RETURNED, "occurred_at": "2010-12-03T10:14:00Z"},
    },
    "patch": {
        "summary": "Some columns only: the others of the row stay as they are",
        "value": {"key": {"sale_id": "536365-1"}, "patch": {"returned_quantity": 3}},
    },
    "delete": {
        "summary": "A delete needs the key only",
        "value": {"op": "d", "key": {"sale_id": "536365-1"}},
    },
    "batch": {
        "summary": "Several events, with the source's own versions and ids",
        "value": [
            {"after": _SALE, "version": 1291191960000000, "event_id": "till-7-000123"},
            {"after": _RETURNED, "version": 1291371240000000, "event_id": "till-2-000871"},
        ],
    },
}
NDJSON_EXAMPLE = (
    '{"op":"d","key":{"sale_id":"536365-1"}}\n{"op":"d","key":{"sale_id":"536365-2"}}\n'
)


def _responses(*described: tuple[int, type[Any], str]) -> dict[int, Any]:
    """Bodies and meanings by status; one status may have an answer and a problem as its body."""
    responses: dict[int, Any] = {}
    for status, model, text in described:
        response = responses.setdefault(status, {"description": text, "content": {}})
        media_type = PROBLEM_JSON if issubclass(model, Problem) else JSON
        response["content"][media_type] = {"model": model}
    return responses


def finished(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the validation errors that powertools announces and we never send."""
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError", "ResponseValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _changes_body(tables: Registry) -> dict[str, Any]:
    event = event_schema(tables)
    return {
        JSON: {
            "schema": {"anyOf": [event, {"type": "array", "items": event}]},
            "examples": CHANGE_EXAMPLES,
        },
        **{
            media_type: {"schema": {"type": "string"}, "example": NDJSON_EXAMPLE}
            for media_type in NDJSON
        },
    }


_SOME_THROTTLED = (
    "The stream did not take every event: after `Retry-After`, send those with status `throttled` "
    "again, with the `event_id` and `version` given here. A problem: it did not answer at all"
)


def changes_docs(tables: Registry) -> dict[str, Any]:
    """What `POST /v1/tables/{table}/changes` promises, as keywords of a powertools route."""
    return {
        "operation_id": "postChanges",
        "summary": "Change rows of a table",
        "description": "Takes one event, an array of events, or one event per line, and says what "
        "became of each. `after` is the full row; without `op` it is an upsert. `patch` with a "
        "`key` changes some columns of a row. A return of a sale goes in as an update of the sale.",
        "status_code": 202,
        "openapi_extensions": {"requestBody": {"required": True, "content": _changes_body(tables)}},
        "responses": _responses(
            (202, answers.ChangesAnswer, "All events accepted"),
            (207, answers.ChangesAnswer, "Some events rejected, the others accepted"),
            (400, Problem, "Not a JSON document, not UTF-8, or a header that cannot be read"),
            (404, Problem, "No such table"),
            (413, Problem, "Too large, packed or unpacked, or too many events for one answer"),
            (415, Problem, "Media type or content encoding not offered"),
            (422, answers.ChangesAnswer, "No event accepted; or the idempotency key was reused"),
            (422, Problem, ""),
            (
                429,
                answers.ThrottledProblem,
                "Over the stream's limit and nothing accepted: send it again after `Retry-After`",
            ),
            (
                503,
                answers.ChangesAnswer,
                _SOME_THROTTLED,
            ),
            (503, Problem, ""),
        ),
    }


def put_docs(tables: Registry) -> dict[str, Any]:
    """What `PUT /v1/tables/{table}/rows/{key}` promises."""
    rows = [contract.model_json_schema() for contract in tables]
    content = {JSON: {"schema": {"anyOf": rows}, "examples": {"sale": {"value": _SALE}}}}
    return {
        "operation_id": "putRow",
        "summary": "Set a row",
        "description": "The body is the full row; its key columns must be those of the path.",
        "status_code": 202,
        "openapi_extensions": {"requestBody": {"required": True, "content": content}},
        "responses": _responses(*_ROW_ANSWERS, *_ROW_BODY_ANSWERS),
    }


def patch_docs(tables: Registry) -> dict[str, Any]:
    """What `PATCH /v1/tables/{table}/rows/{key}` promises."""
    schema = {"anyOf": [_some_columns(contract) for contract in tables]}
    example = {"sale": {"value": {"returned_quantity": 3}}}
    content = {name: {"schema": schema, "examples": example} for name in (JSON, MERGE_PATCH)}
    return {
        "operation_id": "patchRow",
        "summary": "Change some columns of a row",
        "description": "The body holds columns and their new values; null empties a column that "
        "may be empty. Columns that are not there stay as they are, also those that a change with "
        "a greater version has set meanwhile. A row that is not there yet is changed when it "
        "arrives. The columns of the merge key cannot be changed.",
        "status_code": 202,
        "openapi_extensions": {"requestBody": {"required": True, "content": content}},
        "responses": _responses(*_ROW_ANSWERS, *_ROW_BODY_ANSWERS),
    }


def _some_columns(contract: type[Contract]) -> dict[str, Any]:
    """The JSON Schema of a part of a row: no column is required, and none has a default."""
    row = contract.model_json_schema()
    columns = {
        name: {member: value for member, value in schema.items() if member != "default"}
        for name, schema in row["properties"].items()
        if name not in contract.key
    }
    kept = {name: value for name, value in row.items() if name != "required"}
    return {**kept, "properties": columns, "minProperties": 1}


def delete_docs() -> dict[str, Any]:
    """What `DELETE /v1/tables/{table}/rows/{key}` promises."""
    return {
        "operation_id": "deleteRow",
        "summary": "Delete a row",
        "description": "Deleting a row that is not there is fine: its tombstone is kept all the "
        "same, so that a late older change cannot bring the row back.",
        "status_code": 202,
        "responses": _responses(*_ROW_ANSWERS),
    }


_ROW_ANSWERS: tuple[tuple[int, type[Any], str], ...] = (
    (202, answers.RowOutcome, "Accepted"),
    (400, Problem, "A header cannot be read"),
    (404, Problem, "No such table"),
    (422, Problem, "Rejected: reason and field say why; or the idempotency key was reused"),
    (429, answers.ThrottledProblem, "Over the stream's limit: send it again after `Retry-After`"),
    (503, Problem, "The stream or the object store did not answer: send it again"),
)
_ROW_BODY_ANSWERS: tuple[tuple[int, type[Any], str], ...] = (
    (400, Problem, "Not a JSON document, not UTF-8, or a header that cannot be read"),
    (413, Problem, "Too large, packed or unpacked"),
    (415, Problem, "Media type or content encoding not offered"),
)


def tables_docs() -> dict[str, Any]:
    """What `GET /v1/tables` promises."""
    return {
        "operation_id": "getTables",
        "summary": "List the tables",
        "description": "Every declared table with its merge key, partition spec and JSON Schema.",
        "responses": _responses((200, answers.TablesAnswer, "The declared tables")),
    }


def health_docs() -> dict[str, Any]:
    """What `GET /health` promises."""
    return {
        "operation_id": "getHealth",
        "summary": "Health",
        "description": "Answers while the function runs. Stream and store are not asked.",
        "responses": _responses((200, answers.HealthAnswer, "Running")),
    }


def event_schema(tables: Registry) -> dict[str, Any]:
    """The JSON Schema of a change event as a caller may write it."""
    text = {"type": "string", "minLength": 1, "maxLength": 256}
    instant = {"type": "string", "format": "date-time"}
    rows = [contract.model_json_schema() for contract in tables]
    described: Mapping[str, tuple[dict[str, Any], str]] = {
        "op": (
            {"enum": ["c", "u", "d", "r"]},
            "create, update, delete, read; default u with after or patch",
        ),
        "key": ({"type": "object"}, "The merge-key columns; may be left out where `after` is"),
        "version": (
            {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
            "Greater is newer: a log position, or microseconds since 1970. Stamped when absent",
        ),
        "after": ({"anyOf": rows}, "The full row; absent in a delete and beside patch"),
        "patch": (
            {"anyOf": [_some_columns(contract) for contract in tables]},
            "Some columns of an update; the others stay as they are. Needs the key",
        ),
        "before": ({"type": "object"}, "The previous row: a hint that saves looking it up"),
        "event_id": (text, "Identity of the event. Stamped when absent"),
        "source": (text, 'Where it comes from; default "http"'),
        "occurred_at": (instant, "When it happened, with a zone"),
        "table": (text, "May be given; must be the table of the path"),
        "accepted_at": (instant, "Ignored: the time of acceptance is the producer's"),
    }
    return {
        "type": "object",
        "title": "Change event",
        "additionalProperties": False,
        "properties": {
            name: {**schema, "description": text} for name, (schema, text) in described.items()
        },
    }
