"""Reading requests: from an HTTP body, however encoded, to the JSON value of each event in it.

Every step is bounded before it allocates. What is wrong with the request as a whole is a problem
(4xx); what is wrong with one event is that event's rejection and leaves its neighbours alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from http import HTTPStatus
from typing import Any

from freshet.errors import RejectedError
from freshet.wire import FRAMES_MAX, LINE_BYTES_MAX, unpack_zstd
from producer.problems import ProblemError

# Lambda's synchronous payload, base64 and envelope included: no larger body can arrive.
BODY_BYTES_MAX = 6 * 1024 * 1024
# Change events shrink 5 to 20 times; 16 MiB of them are read within API Gateway's 30 s.
UNPACKED_BYTES_MAX = 16 * 1024 * 1024

JSON = "application/json"
# RFC 7396. Rows are flat, so it says nothing that our partial update does not.
MERGE_PATCH = "application/merge-patch+json"
NDJSON = ("application/x-ndjson", "application/jsonl")

Item = object | RejectedError  # one event's decoded JSON, or why its text is none


@dataclass(frozen=True, slots=True)
class Request:
    """A request's body as it was meant: decoded, unpacked, with its media type."""

    body: bytes
    media_type: str


@dataclass(frozen=True, slots=True)
class _Unfit:
    """Stands for a number that JSON text can write and no row can hold (NaN, 5,000 digits)."""

    text: str


def read_request(
    body: str | None, headers: Mapping[str, str], *, is_base64: bool, media_types: tuple[str, ...]
) -> Request:
    """The body that API Gateway handed over, as bytes of a known media type.

    Raises `ProblemError`: 415 for a type or encoding not offered, 413 beyond the limits, 400 for
    bytes that are not what their encoding says.
    """
    media_type = _media_type(headers.get("content-type"), media_types)
    data = _received(body or "", is_base64=is_base64)
    return Request(_unpacked(headers.get("content-encoding", "").strip().lower(), data), media_type)


def _media_type(content_type: str | None, media_types: tuple[str, ...]) -> str:
    media_type, _, parameters = (content_type or JSON).partition(";")
    media_type, parameters = media_type.strip().lower(), parameters.replace(" ", "").lower()
    charset = parameters.partition("charset=")[2].strip('"')
    if media_type in media_types and charset in ("", "utf-8", "utf8"):
        return media_type
    offered = ", ".join(media_types)
    raise ProblemError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        f"send UTF-8 as one of: {offered}",
        headers={"Accept-Post": offered},
    )


def _received(body: str, *, is_base64: bool) -> bytes:
    if len(body) * (3 if is_base64 else 4) > BODY_BYTES_MAX * 4:
        raise _too_large(f"the body may have {BODY_BYTES_MAX} bytes; send smaller batches")
    if not is_base64:
        # A surrogate cannot be in well-formed UTF-8: passed through, it is found and named later.
        data = body.encode("utf-8", "surrogatepass")
    else:
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise _bad_request("malformed_base64", "the body is not valid base64") from None
    if len(data) > BODY_BYTES_MAX:
        raise _too_large(f"the body may have {BODY_BYTES_MAX} bytes; send smaller batches")
    return data


def _unpacked(encoding: str, data: bytes) -> bytes:
    if encoding in ("", "identity"):
        return data
    if encoding == "gzip":
        return _gunzip(data)
    if encoding == "zstd":
        try:
            return unpack_zstd(data, UNPACKED_BYTES_MAX)
        except RejectedError as error:
            if error.reason == "too_large":
                raise _unpacks_too_far() from None
            raise _bad_request(error.reason, "the body is not valid zstd") from None
    raise ProblemError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "unsupported_encoding",
        "send the body plain, gzip or zstd",
        headers={"Accept-Encoding": "gzip, zstd"},
    )


def _gunzip(data: bytes) -> bytes:
    """The content of one or more gzip members, never holding more than the limit."""
    unpacked = b""
    for _ in range(FRAMES_MAX):
        if not data:
            return unpacked
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: gzip header and checksum
        try:
            unpacked += member.decompress(data, UNPACKED_BYTES_MAX + 1 - len(unpacked))
        except zlib.error:
            raise _bad_request("corrupt_compression", "the body is not valid gzip") from None
        if len(unpacked) > UNPACKED_BYTES_MAX:
            raise _unpacks_too_far()
        if not member.eof:
            raise _bad_request("corrupt_compression", "the gzip body ends early")
        data = member.unused_data
    if data:
        raise _too_large(f"the gzip body has more than {FRAMES_MAX} members; send it as one")
    return unpacked


def read_events(request: Request) -> list[Item]:
    """Each event in the body, in order: one JSON object, an array of them, or one per line.

    Raises `ProblemError` (400) when the document is not JSON, or holds no event. A bad line of
    NDJSON is a `RejectedError` in its place instead. Blank lines are no events.
    """
    if request.media_type == JSON:
        document, exact = _document(request.body)
        items: list[Item] = document if isinstance(document, list) else [document]
        if not exact:
            items = [_unfit_of(item) or item for item in items]
    else:
        items = [_line(line) for line in request.body.splitlines() if line.strip()]
    if not items:
        raise _bad_request("empty_body", "the body holds no event")
    return items


def read_document(request: Request) -> Any:
    """The body as one JSON document.

    Raises `ProblemError` (400) with line and column where it is not JSON, `RejectedError` where it
    holds a number that no row can hold.
    """
    document, exact = _document(request.body)
    unfit = None if exact else _unfit_of(document)
    if unfit is not None:
        raise unfit
    return document


def _document(body: bytes) -> tuple[Any, bool]:
    """The decoded document, and whether all its numbers are exact (see `_decode`)."""
    text = _text(body)
    try:
        return _decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _bad_request(
            "malformed_json", f"{error.msg} at {where}", index=_broken_element(text)
        ) from None
    except RecursionError:
        raise _bad_request(
            "too_deep", "the document is nested too deeply", index=_broken_element(text)
        ) from None


def _unfit_of(item: object) -> RejectedError | None:
    """The rejection of an item that holds a number no row can hold, with the number's path."""
    waiting: list[tuple[str, object]] = [("", item)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Unfit):
            return RejectedError(
                "out_of_range", f"{value.text} is not a number a row can hold", field=path or None
            )
        if isinstance(value, dict):
            waiting += [(f"{path}.{name}" if path else name, part) for name, part in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{path}[{at}]", part) for at, part in enumerate(value)]
    return None


def _line(line: bytes) -> Item:
    if len(line) > LINE_BYTES_MAX:
        return RejectedError("too_large", f"an event may have {LINE_BYTES_MAX} bytes")
    try:
        item, exact = _decode(line.decode())
        return item if exact else _unfit_of(item) or item
    except UnicodeDecodeError as error:
        return RejectedError("not_utf8", f"byte {error.start} of the line is not UTF-8")
    except json.JSONDecodeError as error:
        return RejectedError("malformed_json", f"{error.msg} at column {error.colno}")
    except RecursionError:
        return RejectedError("too_deep", "is nested too deeply")


def _text(body: bytes) -> str:
    if not body.strip():
        raise _bad_request("empty_body", "the body holds no event")
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        detail = f"byte {error.start} (line {line}) is not UTF-8"
        raise _bad_request("not_utf8", detail) from None


def _decode(text: str) -> tuple[Any, bool]:
    """JSON with exact decimals and True; where a number has none, with `_Unfit` and False."""
    try:
        return _STRICT.decode(text), True
    except json.JSONDecodeError:
        raise
    except (ValueError, InvalidOperation):
        return _LENIENT.decode(text), False


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _number(text: str) -> Any:
    try:
        return int(text) if text.lstrip("-").isdecimal() else Decimal(text)
    except (ValueError, InvalidOperation):
        return _Unfit(text[:20])


_SPACE = re.compile(r"[ \t\r\n]*")
_STRICT = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_float=_number, parse_int=_number, parse_constant=_Unfit)


def _broken_element(text: str) -> int | None:
    """Which element of a broken array is the culprit; None when the text is no array."""
    at, index = _skip_space(text, 0), 0
    if text[at : at + 1] != "[":
        return None
    try:
        while text[at : at + 1] in ("[", ",") and at < len(text):
            _, at = _LENIENT.raw_decode(text, _skip_space(text, at + 1))
            at = _skip_space(text, at)
            index += 1
    except (ValueError, RecursionError):
        return index
    return None if text[at : at + 1] == "]" else index - 1


def _skip_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space else at


def _bad_request(reason: str, detail: str, *, index: int | None = None) -> ProblemError:
    return ProblemError(HTTPStatus.BAD_REQUEST, reason, detail, index=index)


def _too_large(detail: str) -> ProblemError:
    return ProblemError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)


def _unpacks_too_far() -> ProblemError:
    return _too_large(
        f"the body unpacks to more than {UNPACKED_BYTES_MAX} bytes; send less at once"
    )
