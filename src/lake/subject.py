"""Whose data it is: recognises the rows, events and raw bytes that an erasure is about. Pure.

A person is named by keys, by values of columns, or by both. In the lake's own tables and logs a
value has its column's name beside it, and only there it counts: neighbours that hold the same text
elsewhere are not theirs. In bytes that nothing could decode there are no columns; there every text
that equals a wanted value counts, because what nobody can read nobody can tell apart either.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import zstandard

from freshet.contract import Contract, Flag, Row
from freshet.errors import RejectedError
from freshet.event import ChangeEvent, Op, json_row, json_value, key_text, parse_key_text
from freshet.wire import MAGIC, PART_STRIDE, UNPACKED_BYTES_MAX, encode_record

_ZSTD_MAGIC, _GZIP_MAGIC = bytes.fromhex("28b52ffd"), bytes.fromhex("1f8b")
_WORD = re.compile(r"\w+")
# Wire prefix, version and encoding (`freshet.wire`).
_PREFIX_BYTES = len(MAGIC) + 2
# As `freshet.wire`: what a bomb yields in one step, and the memory that a frame may ask for.
_STEP_BYTES = 256
_WINDOW_BYTES_MAX = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What to erase of one table.

    `keys` are key texts (`freshet.event.key_text`), `where` the wanted texts of columns; a row that
    any of them names is meant. Each is given in every form in which it may be met: as a person
    writes it and, where the column is personal, hashed.
    """

    contract: type[Contract]
    keys: frozenset[str]
    where: Mapping[str, frozenset[str]]

    @classmethod
    def of(
        cls,
        contract: type[Contract],
        keys: Iterable[str],
        where: Iterable[tuple[str, str]],
        protect: Callable[[ChangeEvent], ChangeEvent] = lambda event: event,
    ) -> Request:
        """The request that a person writes as key texts and (column, text) pairs.

        `protect` hides personal data as it does in events: what it hides is looked for in both
        forms. Raises `RejectedError` for a key, column or value that the contract does not have.
        """
        texts, wanted = set[str](), dict[str, frozenset[str]]()
        for text in keys:
            row = parse_key_text(contract, text)
            texts |= {key_text(contract, row), key_text(contract, _stored(contract, row, protect))}
        for column, text in where:
            raw = {column: value_of(contract, column, text)}
            values = (raw[column], _stored(contract, raw, protect)[column])
            told = {str(json_value(value)) for value in values if value is not None}
            wanted[column] = wanted.get(column, frozenset()) | told
        return cls(contract, frozenset(texts), wanted)

    def named(self) -> str:
        """The request as one text that is the same whenever the same is asked."""
        body = [
            self.contract.table,
            sorted(self.keys),
            sorted((column, sorted(texts)) for column, texts in self.where.items()),
        ]
        return json.dumps(body, ensure_ascii=False)


def _stored(
    contract: type[Contract], row: Row, protect: Callable[[ChangeEvent], ChangeEvent]
) -> Row:
    """Some columns of a row as the lake has them."""
    at = datetime.fromtimestamp(0, UTC)
    event = ChangeEvent(contract.table, Op.UPDATE, row, 1, None, None, "-", "-", None, at)
    return protect(event).key


def value_of(contract: type[Contract], column: str, text: str) -> Any:
    """The column's value that `text` writes. Raises `RejectedError`, also for an unknown column."""
    if column not in {one.name for one in contract.columns}:
        detail = f"columns of {contract.table}: {', '.join(one.name for one in contract.columns)}"
        raise RejectedError("unknown_column", detail, field=column)
    if isinstance(contract.column(column).type, Flag) and text in ("true", "false"):
        return text == "true"
    return contract.parse_value(column, contract.value_of_text(column, text))


def text_of(contract: type[Contract], column: str, value: Any) -> str:
    """A column's value as the one text that equal values share, however they were written."""
    try:
        parsed = value_of(contract, column, value if isinstance(value, str) else str(value))
    except RejectedError:
        return str(value).strip()
    return str(json_value(parsed))


class Subject:
    """Recognises one request's data; `keys` may be more than the request names, `others` are tables
    that are not meant.
    """

    def __init__(
        self,
        request: Request,
        keys: Iterable[str] = (),
        *,
        others: frozenset[str] = frozenset(),
    ) -> None:
        self.request, self.contract, self._others = request, request.contract, others
        self.keys = request.keys | frozenset(keys)
        parts = {key: self._parts(key) for key in self.keys}
        self._parts_of = list(parts.values())
        self._wanted = _Texts(
            {text for texts in request.where.values() for text in texts}
            | {part for parts_of_key in self._parts_of for part in parts_of_key}
        )

    def _parts(self, key: str) -> tuple[str, ...]:
        row = parse_key_text(self.contract, key)
        return tuple(str(json_value(row[column])) for column in self.contract.key)

    def columns_in(self, row: Mapping[str, Any] | None) -> list[str]:
        """The columns in which a row (any of its columns, as JSON or parsed values) holds a wanted
        value, by the names that the row has for them: an old one may have former names.
        """
        return [
            name
            for column, texts in self.request.where.items()
            for name in (column, *self.contract.column(column).aliases)
            if row is not None
            and row.get(name) is not None
            and text_of(self.contract, column, row[name]) in texts
        ]

    def is_in_event(self, event: ChangeEvent) -> bool:
        """Whether an event is of a wanted key, or holds a wanted value."""
        if event.table != self.contract.table:
            return False
        rows = (event.after, event.patch, event.before, event.key)
        return key_text(self.contract, event.key) in self.keys or any(map(self.columns_in, rows))

    def is_in_bytes(self, data: bytes) -> bool:
        """Whether bytes of unknown shape hold a wanted key or value: packed ones are unpacked."""
        return any(
            self._is_in_line(line)
            for form in forms(data)
            for line in form.decode("utf-8", "replace").split("\n")
        )

    def _is_in_line(self, line: str) -> bool:
        try:
            document = json.loads(line)
        except (ValueError, RecursionError):
            return self._is_in_texts(self._wanted.found_in(line))
        table = document.get("table") if isinstance(document, dict) else None
        is_other = isinstance(table, str) and table in self._others
        return not is_other and self._is_in_members(_members(document))

    def _is_in_members(self, members: Mapping[str, set[str]]) -> bool:
        everything = set().union(*members.values())

        def under(column: str) -> set[str]:
            # A source may call the column something else: then any member may be it.
            texts = members.get(column.lower(), everything)
            return {text_of(self.contract, column, text) for text in texts} | texts

        holds = any(texts & under(column) for column, texts in self.request.where.items())
        return holds or self._is_key_among([under(column) for column in self.contract.key])

    def _is_in_texts(self, found: set[str]) -> bool:
        holds = any(texts & found for texts in self.request.where.values())
        return holds or self._is_key_among([found] * len(self.contract.key))

    def _is_key_among(self, texts: Sequence[set[str]]) -> bool:
        return any(
            all(part in some for part, some in zip(parts, texts, strict=True))
            for parts in self._parts_of
        )

    @staticmethod
    def blanked(data: bytes, gone: AbstractSet[int], parts_of: Callable[[bytes], int]) -> bytes:
        """A stream record's data without the parts that go; `parts_of` counts those of a line.

        Parts keep their number: each that goes leaves an empty line. A record of which nothing else
        is left, or whose parts are not lines of their own, becomes empty.
        """
        lines = list(forms(data))[-1].split(b"\n")
        if not all(_is_object(line) for line in lines if line.strip()):
            return b""

        def goes(at: int, line: bytes) -> bool:
            count = max(1, parts_of(line))
            return any(at + part * PART_STRIDE in gone for part in range(count))

        kept = [b"" if line.strip() and goes(at, line) else line for at, line in enumerate(lines)]
        return encode_record(kept, compress=False) if any(map(bytes.strip, kept)) else b""


class _Texts:
    """Finds texts that stand by themselves in a line: not within a longer word or number."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self._by_word: dict[str, list[tuple[str, int, str]]] = defaultdict(list)
        self._wordless: list[str] = []
        for text in wanted:
            for form in {text, *(json.dumps(text, ensure_ascii=a)[1:-1] for a in (True, False))}:
                word = _WORD.search(form)
                if word is None:
                    self._wordless.append(text)
                else:
                    self._by_word[word.group()].append((form, word.start(), text))

    def found_in(self, line: str) -> set[str]:
        """Which of the wanted texts the line holds."""
        found = {text for text in self._wordless if text and text in line}
        for word in _WORD.finditer(line):
            for form, offset, text in self._by_word.get(word.group(), ()):
                start = word.start() - offset
                end = start + len(form)
                goes_on = form[-1:].isalnum() and line[end : end + 1].isalnum()
                if start >= 0 and not goes_on and line.startswith(form, start):
                    found.add(text)
        return found


def _members(document: Any) -> dict[str, set[str]]:
    """Every scalar of a JSON document as text, by the name (in small letters) of its member."""
    found: dict[str, set[str]] = defaultdict(set)
    todo: list[tuple[str, Any]] = [("", document)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, Mapping):
            todo.extend((str(member).lower(), inner) for member, inner in value.items())
        elif isinstance(value, list):
            todo.extend((name, inner) for inner in value)
        elif isinstance(value, str) and value[:1] in ("{", "["):
            todo.append((name, _embedded(value)))
            found[name].add(value)
        elif value is not None:
            found[name].add(str(json_value(value)).strip())
    return found


def _embedded(text: str) -> Any:
    """A JSON document that stands as text in another; None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode()), dict)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return False


def forms(data: bytes) -> Iterator[bytes]:
    """Bytes as they are, and as they read once prefix, base64 and compression are taken off; the
    plainest comes last.

    What is corrupt is read as far as it goes, and no further than a record may unpack to.
    """
    yield data
    if data.startswith(MAGIC):
        data = data[_PREFIX_BYTES:]
        yield data
    else:
        decoded = _of_base64(data)
        if decoded is not None:
            yield from forms(decoded)
    if data.startswith(_ZSTD_MAGIC):
        yield b"".join(_unpacked(data, _zstd()))
    elif data.startswith(_GZIP_MAGIC):
        yield b"".join(_unpacked(data, zlib.decompressobj(wbits=31)))


def _zstd() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX).decompressobj()


def _of_base64(data: bytes) -> bytes | None:
    try:
        return base64.b64decode(data, validate=True) or None
    except (binascii.Error, ValueError):
        return None


def _unpacked(data: bytes, unpacker: Any) -> Iterator[bytes]:
    room = UNPACKED_BYTES_MAX
    for at in range(0, len(data), _STEP_BYTES):
        try:
            part = unpacker.decompress(data[at : at + _STEP_BYTES])
        except (zstandard.ZstdError, zlib.error, EOFError):
            return
        yield part
        room -= len(part)
        if room < 0:
            return


def redacted(row: Mapping[str, Any], columns: Iterable[str], instead: Mapping[str, Any]) -> Row:
    """A JSON row with other values in these columns."""
    return {**row, **{column: json_row(instead).get(column) for column in columns}}
