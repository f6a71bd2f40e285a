"""Mutations that know what a change record is made of: members, numbers, times, base64, packing.

Most random bytes are no JSON and die at the first check; these get past it and break what lies
behind: a member gone or doubled, a number no machine word holds, a text where a struct belongs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import zstandard

# Beyond this an input only costs time; limits of records have tests of their own.
BYTES_MAX = 64 * 1024
# Numbers that JSON allows and `json.dumps` would not write: marked, put in as they are later.
_RAW = "\x7fraw:{}\x7f"
_RAW_NUMBERS = (
    "1e999999999",
    "-1E+400",
    "1e-999999999",
    "0.0000000000000000000000000001",
    "NaN",
    "Infinity",
    "-0",
    "9" * 4000,
    "1" * 5000,
    "1.7976931348623157e309",
    "01",
    "1.",
)
_TEXTS = (
    "",
    " ",
    "\x00",
    "\ud800",
    "\u2028",
    "__debezium_unavailable_value",
    "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==",
    "infinity",
    "NaN",
    "AA==",
    "AA",
    "A" * 4096,
    "////" * 300,
    "2024-07-29T00:57:35.691762Z",
    "2024-07-29T00:57:35.691762123Z",
    "2024-02-30T00:00:00Z",
    "0000-00-00",
    "+292278994-08-17T07:12:55.807Z",
    "2024-07-29",
    "10:15:30.123456Z",
    "P1Y2M3DT4H5M6.78S",
    "mysql-bin.000003",
    "mysql-bin.99999999999",
    "00000027:00000758:0003",
    "postgresql",
    "mysql",
    "sqlserver",
    "c",
    "u",
    "d",
    "r",
    "t",
    "m",
    "load",
    "insert",
    "update",
    "delete",
    "data",
    "control",
    "true",
    "BEGIN",
    "io.debezium.time.MicroTimestamp",
    "io.debezium.time.NanoTimestamp",
    "io.debezium.time.Date",
    "io.debezium.time.ZonedTimestamp",
    "io.debezium.data.VariableScaleDecimal",
    "org.apache.kafka.connect.data.Decimal",
    "everything",
    "customers",
    "foo",
)
_NUMBERS = (0, 1, -1, 3, 38, 2**31, 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**300)
_TIMES = (1529507596945104, 9223372036825200000, -9223372036832400000, 2932897, -719163, 10**17)
_FLOATS = (0.1, -0.0, 1e308, 5e-324, 12345.678)
_OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [None], {"scale": 2, "value": "MDk="})
_KEYS = (
    "op", "before", "after", "source", "schema", "payload", "data", "metadata", "control", "lsn",
    "table", "key", "version", "patch", "before-image", "__op", "__deleted", "__table", "__lsn",
    "fields", "field", "name", "parameters", "scale", "type", "id", "amount", "moment", "",
)  # fmt: skip

Place = tuple[Any, Any]


def mutate(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    """`data` with a few things wrong: never the same twice, always the same for the same
    `random`.
    """
    choice = random.random()
    if choice < 0.75:
        data = _structural(data, random, seeds)
    else:
        for _ in range(random.randint(1, 4)):
            data = random.choice(_BYTES_EDITS)(data, random, seeds)
    if random.random() < 0.12:
        data = random.choice(_PACKINGS)(data, random, seeds)
    return data[:BYTES_MAX]


def _structural(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    """Edits of the JSON tree; of the bytes where there is none."""
    try:
        root = [json.loads(data)]
    except (ValueError, RecursionError):
        return random.choice(_BYTES_EDITS)(data, random, seeds)
    places = _places(root)
    for _ in range(random.randint(1, 3)):
        random.choice(_TREE_EDITS)(*random.choice(places), random)
    tree = root[0] if root else None
    return _written(_nested(tree, random) if random.random() < 0.05 else tree)


def _places(root: Any) -> list[Place]:
    """Every container with every key of it, most of them not within the schema: it is long."""
    found: list[Place] = []
    waiting = [root]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        for key in keys:
            # A schema has a hundred places where a row has ten.
            found.extend([(node, key)] * (1 if "type" in keys else 4))
            if isinstance(node[key], dict | list):
                waiting.append(node[key])
    return found


def _written(tree: Any) -> bytes:
    try:
        text = json.dumps(tree, separators=(",", ":"))
    except (ValueError, RecursionError):
        return b"[" * 3000
    if "\\u007fraw:" in text or "\x7fraw:" in text:
        text = text.replace('"\\u007fraw:', "").replace('"\x7fraw:', "")
        text = text.replace('\\u007f"', "").replace('\x7f"', "")
    return text.encode()


def _nested(tree: Any, random: Random) -> Any:
    for _ in range(random.choice((1, 20, 500))):
        tree = [tree] if random.random() < 0.5 else {"payload": tree}
    return tree


def value(random: Random) -> Any:
    """A value that means something to somebody, or to nobody."""
    kind = random.random()
    if kind < 0.40:
        return random.choice(_TEXTS)
    if kind < 0.60:
        return random.choice(_NUMBERS)
    if kind < 0.70:
        return random.choice(_TIMES)
    if kind < 0.78:
        return _RAW.format(random.choice(_RAW_NUMBERS))
    return random.choice(_FLOATS) if kind < 0.84 else random.choice(_OTHERS)


def _set(node: Any, key: Any, random: Random) -> None:
    if _holds(node, key):
        node[key] = value(random)


def _drop(node: Any, key: Any, random: Random) -> None:
    if _holds(node, key):
        del node[key]


def _rename(node: Any, key: Any, random: Random) -> None:
    if isinstance(node, dict) and key in node:
        node[random.choice(_KEYS)] = node.pop(key)


def _add(node: Any, key: Any, random: Random) -> None:
    if isinstance(node, dict):
        node[random.choice(_KEYS)] = value(random)
    else:
        node.append(value(random))


def _swap(node: Any, key: Any, random: Random) -> None:
    if _holds(node, key):
        other = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node[key], node[other] = node[other], node[key]


def _alter(node: Any, key: Any, random: Random) -> None:
    """A small change that keeps the type."""
    held = node[key] if _holds(node, key) else None
    if isinstance(held, bool):
        node[key] = not held
    elif isinstance(held, int):
        node[key] = held + random.choice((-1, 1, 1000, -(10**6), 10**12)) * random.randint(1, 9)
    elif isinstance(held, str) and held:
        at = random.randrange(len(held))
        node[key] = held[:at] + random.choice(("", "0", "9", "-", "Z", "é", "=")) + held[at + 1 :]


def _wrap(node: Any, key: Any, random: Random) -> None:
    if _holds(node, key):
        node[key] = [node[key]] if random.random() < 0.5 else {"value": node[key]}


def _holds(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else key < len(node)


_TREE_EDITS: tuple[Callable[[Any, Any, Random], None], ...] = (
    _set,
    _set,
    _set,
    _drop,
    _rename,
    _add,
    _swap,
    _alter,
    _alter,
    _alter,
    _wrap,
)


def _flip(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    if not data:
        return bytes((random.randrange(256),))
    at = random.randrange(len(data))
    return data[:at] + bytes((random.randrange(256),)) + data[at + 1 :]


def _cut(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + data[at + random.randint(1, 40) :]


def _end(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    return data[: random.randint(0, len(data))]


def _insert(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + random.choice(_TOKENS) * random.choice((1, 1, 1, 2, 300)) + data[at:]


def _repeat(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + data[at : at + random.randint(1, 60)] * random.randint(2, 8) + data[at:]


def _splice(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    other = random.choice(seeds)
    return data[: random.randint(0, len(data))] + other[random.randint(0, len(other)) :]


_TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u", b"\n", b"null", b"1e9", b"-", b"0",
    b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x00", b"\xef\xbb\xbf", b"NaN", b'{"a":', b" ",
)  # fmt: skip
_BYTES_EDITS = (_flip, _flip, _cut, _end, _insert, _repeat, _splice)


def _plain(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    return b"FRSH\x01\x00" + data


def _zstd(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    packed = zstandard.compress(data, 1)
    if random.random() < 0.3:
        packed = random.choice(_BYTES_EDITS)(packed, random, seeds)
    return b"FRSH\x01\x01" + packed


def _header(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    return b"FRSH" + bytes(random.randrange(4) for _ in range(random.randint(0, 3))) + data


def _lines(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    others = [random.choice(seeds) for _ in range(random.randint(1, 3))]
    return random.choice((b"\n", b"\r\n", b"\n\n")).join([data, *others])


def _magic(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    return random.choice((b"\xf3\x89\x9a\xc2", b"\x1f\x8b\x08\x00", b"\xef\xbb\xbf", b" ")) + data


def _spread(data: bytes, random: Random, seeds: Sequence[bytes]) -> bytes:
    return data.replace(b",", b",\n\t").replace(b"{", b"{\r\n")


_PACKINGS = (_plain, _zstd, _header, _lines, _lines, _magic, _spread)
