"""Answers: the bodies of what the producer says back, as pydantic models and as JSON text.

The models are the documentation (OpenAPI) and a test holds every real answer to them. The text is
made from plain members, because a request may hold thousands of events.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

from pydantic import BaseModel, Field

from freshet.contract import Contract
from producer.problems import Problem

# Lambda's answer may have 6 MB with its body escaped inside: there each quote takes two bytes.
ANSWER_BYTES_MAX = 4 * 1024 * 1024
# Outcomes of so few events always fit: ids, keys and details are bounded to some 6 kB each.
ANSWER_EVENTS_MIN = 500
# A throttled shard has a fresh budget every second; the producer has tried for several already.
RETRY_AFTER_S = 2

Status = Literal["accepted", "rejected", "throttled"]


class RowOutcome(BaseModel):
    """What became of the change of one row."""

    status: Status = Field(description="`accepted`: in the stream, it will be merged")
    event_id: str = Field(description="The event's id; send it again with a retry")
    version: int = Field(description="The event's version; send it again with a retry")
    key: str = Field(description="Key text of the row; percent-encoded, the path of the row's URL")


class Outcome(BaseModel):
    """What became of one event: `accepted`, `rejected` (never retry) or `throttled` (retry)."""

    index: int = Field(description="Place of the event in the request, from 0")
    status: Status = Field(description="Only `throttled` events are worth sending again")
    event_id: str | None = Field(None, description="Send it again with a retry")
    version: int | None = Field(None, description="Send it again with a retry")
    key: str | None = Field(None, description="Key text of the row")
    reason: str | None = Field(None, description="Why it was rejected: stable code")
    field: str | None = Field(None, description="Path of the culprit", examples=["after.quantity"])
    detail: str | None = Field(None, description="Why it was rejected, in one sentence")


class ChangesAnswer(BaseModel):
    """What became of every event of a request, in order."""

    accepted: int
    rejected: int
    throttled: int
    outcomes: list[Outcome]


class ThrottledProblem(Problem, ChangesAnswer):
    """A problem that also says what became of every event."""


class TableAnswer(BaseModel):
    """One declared table."""

    table: str
    description: str
    contract_version: int
    key: list[str] = Field(description="The merge key: columns that identify a row")
    partition: list[str] = Field(description="The partition spec", examples=[["day(sold_at)"]])
    json_schema: dict[str, Any] = Field(alias="schema", description="JSON Schema of a row")


class TablesAnswer(BaseModel):
    """The declared tables."""

    tables: list[TableAnswer]


class HealthAnswer(BaseModel):
    """The function runs and its settings are complete; nothing else is called to say so."""

    status: Literal["ok"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, a body and headers, ready for the HTTP edge."""

    status: HTTPStatus
    body: Mapping[str, Any]
    headers: Mapping[str, str]

    def text(self) -> str:
        """The body as JSON; ASCII, so that text from outside cannot break the answer."""
        return json.dumps(self.body, separators=(",", ":"))


def changes_answer(outcomes: Sequence[Mapping[str, Any]]) -> Answer:
    """The answer for the outcomes of a request.

    202 all accepted; 207 some rejected, the rest accepted; 422 all rejected; 503 some throttled;
    429 some throttled and none accepted: the caller alone is over the stream's limit.
    """
    counts = Counter(outcome["status"] for outcome in outcomes)
    body = {
        "accepted": counts["accepted"],
        "rejected": counts["rejected"],
        "throttled": counts["throttled"],
        "outcomes": outcomes,
    }
    if counts["throttled"]:
        return _throttled(body)
    if not counts["rejected"]:
        return Answer(HTTPStatus.ACCEPTED, body, {})
    partly = HTTPStatus.MULTI_STATUS if counts["accepted"] else HTTPStatus.UNPROCESSABLE_ENTITY
    return Answer(partly, body, {})


def _throttled(body: dict[str, Any]) -> Answer:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    if body["accepted"]:
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, body, headers)
    status = HTTPStatus.TOO_MANY_REQUESTS
    problem = {
        "type": "urn:freshet:problem:throttled",
        "title": status.phrase,
        "status": status.value,
        "detail": "the stream took none of the events: slow down and send them again",
        "reason": "throttled",
    }
    return Answer(status, {**problem, **body}, headers)


def tables_answer(contracts: Sequence[type[Contract]]) -> dict[str, Any]:
    """The members of `TablesAnswer`."""
    return {"tables": [_table(contract) for contract in contracts]}


def _table(contract: type[Contract]) -> dict[str, Any]:
    return {
        "table": contract.table,
        "description": " ".join((contract.__doc__ or "").split()),
        "contract_version": contract.contract_version,
        "key": list(contract.key),
        "partition": [
            f"{field.transform}{f'[{field.buckets}]' if field.buckets else ''}({field.column})"
            for field in contract.partition
        ],
        "schema": contract.model_json_schema(),
    }
