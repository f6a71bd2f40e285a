"""What the stream was told of a source, by row: small enough to be read and written at every poll.

A listing of 100,000 rows must be compared without holding two copies of it. So a snapshot is
columns: keys, a 16-byte digest of each row's content and, for incremental sources, its cursor. The
rows themselves are optional; where they are kept (for the `before` of a change) they lie in zstd
blocks that stay packed, also in memory, until one of their rows is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import zstandard

from freshet.errors import TerminalError

DIGEST_BYTES = 16
# A block is unpacked whole to reach one of its rows: some 300 KB of products, a millisecond.
BLOCK_ROWS = 512
# Level 3 is zstd's own default; products shrink to about a tenth.
_LEVEL = 3
# 1,000,000 rows of 80 bytes of key: the most that one column or block may unpack to.
SECTION_BYTES_MAX = 256 * 1024 * 1024

JsonRow = Mapping[str, Any]
_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


class SnapshotCorruptError(TerminalError):
    """Bytes that no snapshot was written as; `StateStore` names their object."""

    def __init__(self, detail: str) -> None:
        self.detail = detail
        super().__init__(f"the snapshot {detail}")


class Entry(NamedTuple):
    """What is remembered of a row: digest, cursor (empty where there is none), content."""

    digest: bytes
    cursor: str = ""
    content: bytes = b""


def content_of(row: JsonRow) -> bytes:
    """A row's JSON values as canonical bytes, whatever the order of its columns.

    Columns without a value are left out, so that a contract may gain an optional column without
    every row being a change.
    """
    return _encode({name: value for name, value in row.items() if value is not None}).encode()


def digest_of(content: bytes) -> bytes:
    """The digest by which contents are compared: 128 bits, so no two will ever share one."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


class Snapshot:
    """Remembered rows by key text. Immutable: `replaced` gives a new one and shares what it can."""

    __slots__ = ("_cursors", "_digests", "_index", "_keys", "_rows")

    def __init__(
        self,
        index: dict[str, int],
        keys: list[str],
        digests: bytearray,
        cursors: list[str],
        rows: RowBlocks,
    ) -> None:
        self._index, self._keys, self._digests = index, keys, digests
        self._cursors, self._rows = cursors, rows

    @classmethod
    def of(cls, entries: Mapping[str, Entry], *, keep_rows: bool = True) -> Snapshot:
        """A snapshot of these entries."""
        return EMPTY.replaced(entries, keep_rows=keep_rows)

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot):
            return NotImplemented
        return self is other or all(
            getattr(self, name) == getattr(other, name) for name in self.__slots__
        )

    def __hash__(self) -> int:
        return hash(tuple(self._keys))

    @property
    def keeps_rows(self) -> bool:
        """True when it holds rows, at least of some keys."""
        return bool(self._rows.blocks)

    def own(self, key: str) -> str:
        """The snapshot's own copy of an equal key: many sets of keys, one text each."""
        at = self._index.get(key)
        return key if at is None else self._keys[at]

    def hash_of(self, key: str) -> bytes | None:
        """The digest of what the stream was told of `key`; None where it was told nothing."""
        at = self._index.get(key)
        if at is None:
            return None
        return bytes(self._digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES])

    def row_of(self, key: str) -> dict[str, Any] | None:
        """The row the stream was told, without its empty columns; None where it is not kept."""
        at = self._index.get(key)
        content = b"" if at is None else self._rows.content(at)
        return json.loads(content) if content else None

    def older_than(self, least: Any, order: Callable[[str], Any]) -> list[str]:
        """Keys whose cursor is less than `least`; `order` makes cursors comparable."""
        places = {text: order(text) < least for text in set(self._cursors) if text}
        return [
            key
            for key, text in zip(self._keys, self._cursors, strict=True)
            if places.get(text, False)
        ]

    def replaced(
        self,
        entries: Mapping[str, Entry] = {},
        removed: Collection[str] = (),
        *,
        keep_rows: bool,
    ) -> Snapshot:
        """This snapshot with these entries, without the keys `removed`."""
        keeping = keep_rows and (self.keeps_rows or bool(entries))
        if not entries and not removed and keeping == self.keeps_rows:
            return self
        edit = _Edit(self._index, self._keys, self._digests, self._cursors)
        contents = dict[int, bytes]()
        for key, entry in entries.items():
            contents[edit.put(key, entry)] = entry.content
        for key in removed:
            edit.remove(key, contents, self._rows)
        rows = self._rows.edited(contents, len(edit.keys)) if keeping else RowBlocks(())
        return Snapshot(edit.index, edit.keys, edit.digests, edit.cursors, rows)

    def sections(self) -> list[bytes]:
        """The columns as zstd frames, then the blocks of rows. Raises ValueError for a key that
        holds a line break, which no `key_text` does.
        """
        if any("\n" in key for key in self._keys):
            raise ValueError("a key must not hold a line break")
        columns = (
            "\n".join(self._keys).encode(),
            bytes(self._digests),
            "\n".join(self._cursors).encode(),
        )
        return [*map(packed, columns), *self._rows.blocks]

    @classmethod
    def from_sections(cls, count: int, sections: Sequence[bytes]) -> Snapshot:
        """The snapshot of `count` rows that `sections` wrote. Raises `SnapshotCorruptError`."""
        if len(sections) < 3:
            raise SnapshotCorruptError("lacks a column")
        keys, digests, cursors = map(unpacked, sections[:3])
        names, blocks = _lines(keys, count), tuple(sections[3:])
        index = dict(zip(names, range(count), strict=True))
        whole = len(index) == count and len(digests) == count * DIGEST_BYTES
        if not whole or len(blocks) not in (0, _blocks_of(count)):
            raise SnapshotCorruptError("has columns of different lengths")
        return cls(index, names, bytearray(digests), _lines(cursors, count), RowBlocks(blocks))

    def to_bytes(self) -> bytes:
        """Everything in one: a line of JSON with the lengths, then the sections."""
        sections = self.sections()
        head = json.dumps({"rows": len(self), "sections": [len(part) for part in sections]})
        return b"".join((head.encode(), b"\n", *sections))

    @classmethod
    def from_bytes(cls, data: bytes) -> Snapshot:
        """What `to_bytes` wrote. Raises `SnapshotCorruptError`."""
        head, _, body = data.partition(b"\n")
        try:
            lengths = json.loads(head)
            return cls.from_sections(lengths["rows"], cut(body, lengths["sections"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SnapshotCorruptError(f"cannot be read ({error})") from error


class _Edit:
    """Copies of a snapshot's columns while they are changed."""

    def __init__(
        self, index: dict[str, int], keys: list[str], digests: bytearray, cursors: list[str]
    ) -> None:
        self.index, self.keys = index.copy(), keys.copy()
        self.digests, self.cursors = digests.copy(), cursors.copy()

    def put(self, key: str, entry: Entry) -> int:
        """Write or append an entry; where it went."""
        at = self.index.setdefault(key, len(self.keys))
        if at == len(self.keys):
            self.keys.append(key)
            self.cursors.append(entry.cursor)
        self.cursors[at] = entry.cursor
        self.digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] = entry.digest
        return at

    def remove(self, key: str, contents: dict[int, bytes], rows: RowBlocks) -> None:
        """Let the last entry take the place of this one: no other moves, few blocks change."""
        at = self.index.pop(key, None)
        if at is None:
            return
        last = len(self.keys) - 1
        moved, cursor = self.keys.pop(), self.cursors.pop()
        digest = self.digests[last * DIGEST_BYTES :]
        del self.digests[last * DIGEST_BYTES :]
        content = contents.pop(last, None)
        if at != last:
            self.keys[at], self.cursors[at], self.index[moved] = moved, cursor, at
            self.digests[at * DIGEST_BYTES : (at + 1) * DIGEST_BYTES] = digest
            contents[at] = rows.content(last) if content is None else content


class RowBlocks:
    """Contents of rows by place, `BLOCK_ROWS` to a zstd frame; an empty one is not known."""

    __slots__ = ("_open", "blocks")

    def __init__(self, blocks: tuple[bytes, ...]) -> None:
        self.blocks = blocks
        self._open: tuple[int, list[bytes]] = (-1, [])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RowBlocks) and self.blocks == other.blocks

    def __hash__(self) -> int:
        return hash(self.blocks)

    def content(self, at: int) -> bytes:
        """The content at a place; empty where it is not known."""
        number, within = divmod(at, BLOCK_ROWS)
        if number >= len(self.blocks):
            return b""
        if self._open[0] != number:
            self._open = (number, self._lines(number))
        lines = self._open[1]
        return lines[within] if within < len(lines) else b""

    def edited(self, contents: Mapping[int, bytes], count: int) -> RowBlocks:
        """These blocks with other contents at some places, and room for `count`."""
        needed = _blocks_of(count)
        touched = dict[int, list[tuple[int, bytes]]]()
        for at, content in contents.items():
            touched.setdefault(at // BLOCK_ROWS, []).append((at % BLOCK_ROWS, content))
        ends = {needed - 1, *range(len(self.blocks), needed)} if needed else set()
        blocks = list(self.blocks[:needed]) + [b""] * (needed - len(self.blocks))
        for number in touched.keys() | ends:
            rows = min(BLOCK_ROWS, count - number * BLOCK_ROWS)
            lines = (self._lines(number) + [b""] * BLOCK_ROWS)[:rows]
            for within, content in touched.get(number, ()):
                lines[within] = content
            blocks[number] = packed(b"\n".join(lines))
        return RowBlocks(tuple(blocks))

    def _lines(self, number: int) -> list[bytes]:
        if number >= len(self.blocks):
            return []
        return unpacked(self.blocks[number]).split(b"\n")


def packed(data: bytes) -> bytes:
    """`data` as one zstd frame that says its size and notices damage."""
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def unpacked(frame: bytes) -> bytes:
    """The data of one frame, of at most `SECTION_BYTES_MAX`. Raises `SnapshotCorruptError`."""
    try:
        size = zstandard.frame_content_size(frame)
        if not 0 <= size <= SECTION_BYTES_MAX:
            raise SnapshotCorruptError(f"unpacks to more than {SECTION_BYTES_MAX} bytes")
        return zstandard.ZstdDecompressor().decompress(frame)
    except zstandard.ZstdError as error:
        raise SnapshotCorruptError(f"is damaged ({error})") from error


def cut(body: bytes, lengths: Sequence[int]) -> list[bytes]:
    """`body` in pieces of these lengths. Raises `SnapshotCorruptError` when they do not fit."""
    if not all(isinstance(length, int) and length >= 0 for length in lengths):
        raise SnapshotCorruptError("has no lengths")
    if sum(lengths) != len(body):
        raise SnapshotCorruptError("is not as long as it says")
    ends = accumulate(lengths)
    return [body[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _lines(data: bytes, count: int) -> list[str]:
    lines = data.decode().split("\n") if count else []
    if len(lines) != count or (not count and data):
        raise SnapshotCorruptError("has columns of different lengths")
    return lines


def _blocks_of(count: int) -> int:
    return -(-count // BLOCK_ROWS)


EMPTY = Snapshot({}, [], bytearray(), [], RowBlocks(()))
