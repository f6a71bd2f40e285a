"""Problems: answers to requests that cannot be served as they are (RFC 9457 problem details).

A problem says what is wrong and what to send instead. It quotes nothing but the caller's own input,
shortened, and never an internal message.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, Field

from freshet.errors import RejectedError, TerminalError

PROBLEM_JSON = "application/problem+json"


class Problem(BaseModel):
    """The body of every answer that is an error."""

    type: str = Field(
        description="`urn:freshet:problem:` and the reason: stable, for programs",
        examples=["urn:freshet:problem:malformed_json"],
    )
    title: str = Field(description="The status in words", examples=["Bad Request"])
    status: int = Field(description="The HTTP status", examples=[400])
    detail: str = Field(description="One sentence for a person: what is wrong, what to do")
    reason: str = Field(description="Stable code of the cause", examples=["malformed_json"])
    index: int | None = Field(None, description="Which event of the request, from 0")
    field: str | None = Field(None, description="Path of the culprit", examples=["after.quantity"])


class ProblemError(TerminalError):
    """A request that is answered with a problem."""

    def __init__(
        self,
        status: HTTPStatus,
        reason: str,
        detail: str,
        *,
        index: int | None = None,
        field: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status, self.reason, self.detail = status, reason, detail
        self.index, self.field, self.headers = index, field, headers or {}
        super().__init__(f"{status.value} {reason}: {detail}")

    @classmethod
    def of(cls, rejection: RejectedError) -> ProblemError:
        """The problem of a request whose one event was rejected."""
        return cls(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            rejection.reason,
            rejection.detail,
            field=rejection.field,
        )

    def text(self) -> str:
        """The body as JSON: the members of `Problem`, absent ones left out."""
        members: dict[str, Any] = {
            "type": f"urn:freshet:problem:{self.reason}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "reason": self.reason,
            "index": self.index,
            "field": self.field,
        }
        return json.dumps({name: value for name, value in members.items() if value is not None})
