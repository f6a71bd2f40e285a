"""Accepting: which of a request's items are change events, and what each is stamped with. Pure.

An event needs little: `after`, or a `key` and `patch`, or a `key` and `op` "d". What its source
cannot know is stamped: `event_id`, `version`, `source`, `accepted_at`. The outcome of each event
goes back to the caller with the stamped values, so that what was not taken can be sent again as the
very same change. Values are checked as they came; no accepted event holds personal data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from freshet.contract import Contract, Registry, Row
from freshet.errors import RejectedError
from freshet.event import ChangeEvent, Op, check_future, key_text, parse_event, parse_key_text
from freshet.stream import PublishReport
from producer.requests import Item

SOURCE = "http"
Decision = ChangeEvent | RejectedError


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the events of one request get where they carry nothing: event n gets id `<id>-<n>` and
    version `version` + n."""

    id: str
    version: int
    accepted_at: datetime


def lacks_stamp(items: Iterable[Item]) -> bool:
    """True when some item needs a stamp to be the same change again when it is sent again."""
    return any(
        isinstance(item, Mapping) and (item.get("version") is None or item.get("event_id") is None)
        for item in items
    )


def accept(
    items: Sequence[Item],
    contract: type[Contract],
    tables: Registry,
    stamp: Stamp,
    protect: Callable[[ChangeEvent], ChangeEvent],
) -> list[Decision]:
    """The change event each item describes, without personal data, or why it describes none; one
    decision per item.
    """
    decisions = (
        _decide(item, index, contract.table, tables, stamp) for index, item in enumerate(items)
    )
    return [one if isinstance(one, RejectedError) else protect(one) for one in decisions]


def _decide(item: Item, index: int, table: str, tables: Registry, stamp: Stamp) -> Decision:
    if isinstance(item, RejectedError):
        return item
    if not isinstance(item, Mapping):
        return RejectedError("wrong_type", "an event must be a JSON object")
    if item.get("table") not in (None, table):
        return RejectedError("table_mismatch", f"the path says {table!r}", field="table")
    try:
        # Whatever the caller says of it, the time of acceptance is ours.
        body = {**item, "accepted_at": stamp.accepted_at}
        event = parse_event(body, tables, defaults=_defaults(item, index, table, stamp))
        check_future(event.version, stamp.accepted_at)
    except RejectedError as error:
        return error
    return event


def _defaults(item: Mapping[Any, Any], index: int, table: str, stamp: Stamp) -> dict[str, Any]:
    """What the event gets where it says nothing; a row without `op` is an upsert, and so some of
    its columns are an update.
    """
    defaults: dict[str, Any] = {
        "table": table,
        "event_id": f"{stamp.id}-{index}",
        "version": stamp.version + index,
        "source": SOURCE,
    }
    if item.get("after") is not None or item.get("patch") is not None:
        defaults["op"] = Op.UPDATE.value
    return defaults


def row_key(contract: type[Contract], text: str) -> Row:
    """The key that the last segment of a row's path names.

    API Gateway hands over the path decoded once, so `text` is the key text as answers give it. One
    that could be read as another row than it was written for is refused, not guessed. Raises
    `RejectedError`.
    """
    key = parse_key_text(contract, text)
    written = key_text(contract, key)
    if "%" in text and text not in (written, quote(written)):
        personal = any(contract.column(column).pii for column in contract.key)
        example = "" if personal else f": {quote(written, safe='')}"
        raise RejectedError(
            "ambiguous_key", f"percent-encode the key text for the URL{example}", field="key"
        )
    return key


def outcomes(
    decisions: Sequence[Decision], contract: type[Contract], throttled: Iterable[int] = ()
) -> list[dict[str, Any]]:
    """What became of each event, as the members of `answers.Outcome`; `throttled` are indexes."""
    refused = frozenset(throttled)
    return [
        _rejected(index, decision)
        if isinstance(decision, RejectedError)
        else {
            "index": index,
            "status": "throttled" if index in refused else "accepted",
            "event_id": decision.event_id,
            "version": decision.version,
            "key": key_text(contract, decision.key),
        }
        for index, decision in enumerate(decisions)
    ]


def _rejected(index: int, error: RejectedError) -> dict[str, Any]:
    outcome = {"index": index, "status": "rejected", "reason": error.reason, "detail": error.detail}
    return outcome if error.field is None else {**outcome, "field": error.field}


def throttled_indexes(decisions: Sequence[Decision], report: PublishReport) -> list[int]:
    """Which decisions the stream did not take: its report counts published events only."""
    published = [at for at, one in enumerate(decisions) if isinstance(one, ChangeEvent)]
    return [published[position] for position in report.throttled]
