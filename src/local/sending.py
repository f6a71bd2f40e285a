"""A client of the producer's HTTP API, as an application would write one.

Events go in batches and are answered one by one; whatever the stream did not take is sent again
with the ids it was given.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import urllib3

from freshet.errors import RejectedError, TerminalError, TransientError

BATCH_EVENTS_MAX = 500
# Half of Lambda's 6 MB payload: room for the envelope and for escapes.
BATCH_BYTES_MAX = 3 * 1024 * 1024
# With pauses that double from 0.2 s: a minute in all, far beyond a throttled shard's second.
ROUNDS_MAX = 8
PAUSE_S_FIRST = 0.2
_NDJSON = {"content-type": "application/x-ndjson"}
_THROTTLED = (429, 503)
_UNAUTHORISED = (401, 403)
_JSON = json.JSONDecoder()


# Adds to a request (method, URL, body, headers) what says who sends it; the headers to send.
Authorise = Callable[[str, str, bytes, Mapping[str, str]], Mapping[str, str]]


def _anonymous(
    _method: str, _url: str, _body: bytes, headers: Mapping[str, str]
) -> Mapping[str, str]:
    return headers


class GatewayUnreachableError(TransientError):
    """The gateway did not answer."""

    def __init__(self, url: str, detail: str) -> None:
        self.url = url
        super().__init__(f"{url} did not answer ({detail}); is it running?")


class UnauthorisedError(TerminalError):
    """The API does not let this caller in; nothing of the batch was taken."""

    def __init__(self, url: str, status: int) -> None:
        self.url, self.status = url, status
        super().__init__(
            f"{url} answers {status}: attach the stack's SendChangesPolicy (output "
            "SendChangesPolicyArn) to your AWS identity, or, where the API takes tokens, "
            "set FRESHET_TOKEN to a valid one"
        )


class StillThrottledError(TransientError):
    """The stream refused events in every round; `left` of the batch were not accepted."""

    def __init__(self, url: str, left: int) -> None:
        self.url, self.left = url, left
        super().__init__(f"the stream still throttles {left} events; send them again later")


@dataclass
class Sent:
    """What became of what was sent. `refused` has one outcome or problem for each such event."""

    accepted: int = 0
    refused: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """How many events were refused."""
        return len(self.refused)

    def add(self, other: Sent) -> None:
        """Count another batch's outcome in."""
        self.accepted += other.accepted
        self.refused.extend(other.refused)


@dataclass(frozen=True, slots=True)
class _Event:
    """A line and its place among all that is sent."""

    index: int
    line: bytes

    def stamped(self, outcome: dict[str, Any]) -> _Event:
        """With the id and version it was given: sent again it is the same change."""
        given = json.dumps({name: outcome[name] for name in ("event_id", "version")}).encode()
        # Added to the text, where the last member of a name counts: no number is read and rounded.
        return _Event(self.index, self.line.rstrip()[:-1] + b"," + given[1:])


class Sender:
    """Posts events to one gateway. Safe for threads."""

    def __init__(
        self,
        url: str,
        *,
        authorise: Authorise = _anonymous,
        wait: Callable[[float], object] = time.sleep,
        new_key: Callable[[], str] = lambda: uuid.uuid4().hex,
    ) -> None:
        self._url, self._wait, self._new_key = url, wait, new_key
        self._authorise = authorise
        self._http = urllib3.PoolManager(
            maxsize=8, retries=False, timeout=urllib3.Timeout(connect=5, read=60)
        )

    def send(self, table: str, lines: Sequence[bytes], *, first_index: int = 0) -> Sent:
        """Post one batch of JSON lines; resend what the stream throttled, within bounds.

        Raises `GatewayUnreachableError`, `StillThrottledError` and `UnauthorisedError`.
        """
        sent = Sent()
        left = first = [_Event(index, line) for index, line in enumerate(lines, first_index)]
        # A request answered without outcomes goes out again as it was: the key makes it the same.
        key = self._new_key()
        for round_number in range(ROUNDS_MAX):
            left = self._round(sent, table, left, key if left is first else None)
            if not left:
                return sent
            self._wait(PAUSE_S_FIRST * 2**round_number)
        raise StillThrottledError(self._url, len(left))

    def _round(self, sent: Sent, table: str, events: list[_Event], key: str | None) -> list[_Event]:
        """Post once, count the outcomes, and return the events to send again."""
        status, body = self._post(table, events, key)
        if "outcomes" in body:
            return _settle(sent, events, body["outcomes"])
        if status in _THROTTLED:
            return events
        # The request as a whole was refused: so was each event in it.
        sent.refused.extend({**body, "index": event.index} for event in events)
        return []

    def _post(
        self, table: str, events: Sequence[_Event], key: str | None
    ) -> tuple[int, dict[str, Any]]:
        url = f"{self._url}/v1/tables/{table}/changes"
        lines = b"\n".join(event.line for event in events)
        headers = _NDJSON if key is None else {**_NDJSON, "idempotency-key": key}
        headers = dict(self._authorise("POST", url, lines, headers))
        try:
            answer = self._http.request("POST", url, body=lines, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise GatewayUnreachableError(self._url, type(error).__name__) from error
        if answer.status in _UNAUTHORISED:
            raise UnauthorisedError(self._url, answer.status)
        return answer.status, _body(answer.status, answer.data)


def _settle(
    sent: Sent, events: Sequence[_Event], outcomes: Sequence[dict[str, Any]]
) -> list[_Event]:
    """Count accepted and rejected events; return the throttled ones with their ids."""
    throttled = []
    for event, outcome in zip(events, outcomes, strict=True):
        if outcome["status"] == "accepted":
            sent.accepted += 1
        elif outcome["status"] == "rejected":
            sent.refused.append({**outcome, "index": event.index})
        else:
            throttled.append(event.stamped(outcome))
    return throttled


def _body(status: int, data: bytes) -> dict[str, Any]:
    """The answer's JSON object; of anything else, a problem made of its first characters."""
    try:
        body = json.loads(data)
    except ValueError:
        body = None
    if isinstance(body, dict) and ("outcomes" in body or "reason" in body or status in _THROTTLED):
        return body
    text = data[:200].decode("utf-8", "backslashreplace")
    return {"status": status, "reason": f"http_{status}", "detail": text}


def event_lines(content: Iterable[bytes]) -> Iterator[bytes]:
    """Events as JSON lines, from lines with their ends or from the lines of one JSON array.

    An array's elements pass as they are written: no number is rounded on the way. Raises
    `RejectedError` (malformed_json) for an array that is none, before anything is yielded.
    """
    lines = (line for line in content if line.strip())
    first = next(lines, b"")
    if first.lstrip().startswith(b"["):
        yield from _elements(b"".join((first, *lines)))
    elif first:
        yield first.rstrip(b"\r\n")
        yield from (line.rstrip(b"\r\n") for line in lines)


def _elements(data: bytes) -> list[bytes]:
    try:
        return list(_array(data.decode("utf-8")))
    except IndexError:
        raise RejectedError("malformed_json", "the JSON array does not end") from None
    except (ValueError, RecursionError) as error:
        raise RejectedError("malformed_json", f"not a JSON array: {error}") from None


def _array(text: str) -> Iterator[bytes]:
    at = _skip(text, text.index("[") + 1)
    while text[at] != "]":
        _, end = _JSON.raw_decode(text, at)
        # A line break between tokens is white space; within a text it is always escaped.
        yield text[at:end].replace("\r", " ").replace("\n", " ").encode()
        at = _skip(text, end)
        if text[at] not in ",]":
            raise ValueError(f"expected , or ] at character {at}")
        if text[at] == ",":
            at = _skip(text, at + 1)
    if text[at + 1 :].strip():
        raise ValueError(f"more text after the array, at character {at + 1}")


def _skip(text: str, at: int) -> int:
    """The next character that is no white space."""
    while text[at] in " \t\r\n":
        at += 1
    return at


def batches(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Lines in batches the producer takes at once."""
    batch: list[bytes] = []
    size = 0
    for line in lines:
        if batch and (len(batch) >= BATCH_EVENTS_MAX or size + len(line) > BATCH_BYTES_MAX):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
    if batch:
        yield batch
