"""How AWS calls a function, in process: the context object, the JSON border and one sandbox per
concurrent call.

Lambda never runs two invocations in one Python process, and Powertools (its router, metrics and
logger keep state in module globals) relies on that. A `LocalFunction` therefore admits one call at
a time unless it is told otherwise.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from local.embedded import ACCOUNT_ID, REGION

# Synchronous invocation payload and response of Lambda: 6 MB.
PAYLOAD_BYTES_MAX = 6 * 1024 * 1024

Json = Any  # what json.loads returns; narrowed by whoever reads it
Handler = Callable[[dict[str, Any], Any], Any]


class PayloadTooLargeError(Exception):
    """The event or the response exceeds what Lambda carries (`RequestTooLargeException`)."""

    def __init__(self, what: str, size_bytes: int) -> None:
        self.what, self.size_bytes = what, size_bytes
        super().__init__(
            f"{what} of {size_bytes} bytes exceeds the {PAYLOAD_BYTES_MAX} bytes Lambda carries"
        )


@dataclass(frozen=True)
class LambdaContext:
    """Stand-in for Lambda's `context`, with what Powertools and handlers read from it."""

    function_name: str
    memory_limit_in_mb: int
    aws_request_id: str
    deadline_s: float  # on time.monotonic
    function_version: str = "$LATEST"
    log_stream_name: str = "local"
    client_context: None = None
    identity: None = None

    @property
    def invoked_function_arn(self) -> str:
        """ARN of the function in the embedded account."""
        return f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:{self.function_name}"

    @property
    def log_group_name(self) -> str:
        """Log group as Lambda names it."""
        return f"/aws/lambda/{self.function_name}"

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the function's time-out."""
        return max(0, int((self.deadline_s - time.monotonic()) * 1000))


@dataclass(frozen=True)
class LocalFunction:
    """A handler as Lambda runs it: named, with a time-out, `concurrency` calls at a time."""

    handler: Handler
    name: str = "function"
    timeout_s: float = 60.0
    memory_mb: int = 1024
    concurrency: int = 1
    _sandboxes: threading.Semaphore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_sandboxes", threading.Semaphore(self.concurrency))

    @property
    def arn(self) -> str:
        """ARN of the function in the embedded account."""
        return self.context("").invoked_function_arn

    def context(self, request_id: str) -> LambdaContext:
        """The context of an invocation that starts now."""
        return LambdaContext(
            self.name, self.memory_mb, request_id, time.monotonic() + self.timeout_s
        )

    def invoke(self, event: dict[str, Any], *, request_id: str | None = None) -> Json:
        """Call the handler and return its response as JSON would carry it.

        Raises whatever the handler raises, TypeError for a response that is not JSON, and
        PayloadTooLargeError. The handler owns `event`. Time-outs are readable in the context but
        not enforced: a thread cannot be killed.
        """
        with self._sandboxes:
            response = self.handler(event, self.context(request_id or str(uuid.uuid4())))
        text = json.dumps(response)
        if len(text) > PAYLOAD_BYTES_MAX:
            raise PayloadTooLargeError("response", len(text))
        return json.loads(text)


def local_function(function: Handler | LocalFunction, name: str) -> LocalFunction:
    """Give a bare handler its name and one sandbox; a LocalFunction is returned as it is."""
    return function if isinstance(function, LocalFunction) else LocalFunction(function, name)
