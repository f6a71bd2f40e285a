"""Heavy gold views as Parquet beside the lake, renewed month by month and swapped in one write.

`gold/VIEW.json` names the files that are the view now: replacing it under its ETag is the commit.
Files are named by what is in them and never rewritten, so a reader keeps what it began with; the
ones that were replaced go after a grace period.
"""

# ruff: noqa: S608 - SQL is made of our own names and quoted locations

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from freshet.errors import ConflictError
from freshet.objects import ObjectMissingError, Objects, PreconditionError
from local.gold import Heavy, View

FOLDER = "gold"
WHOLE = "all"
# Longer than any query that began with the files of before.
GRACE = timedelta(hours=1)
_STAGE = "freshet_stage"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a view: a month, or all of it, and the fingerprint of what it was made from."""

    file: str
    fingerprint: str
    rows: int


@dataclass(frozen=True, slots=True)
class Materialised:
    """What a view's pointer says. `retired` are files that were replaced, and when."""

    root: str
    digest: str
    at: datetime
    parts: Mapping[str, Part] = field(default_factory=dict)
    retired: Mapping[str, datetime] = field(default_factory=dict)

    def answers(self, view: View) -> bool:
        """Whether it was made from the view's query as it is now, and holds anything."""
        return view.heavy is not None and self.digest == view.digest and bool(self.parts)

    def show(self, connection: duckdb.DuckDBPyConnection, view: View) -> None:
        """Make the view over its files."""
        files = ", ".join(_quoted(f"{self.root}/{part.file}") for part in self.parts.values())
        connection.execute(
            f'CREATE OR REPLACE VIEW "{view.name}" AS SELECT * FROM read_parquet([{files}])'
        )

    def to_json(self) -> bytes:
        """The pointer's bytes."""
        parts = {name: [one.file, one.fingerprint, one.rows] for name, one in self.parts.items()}
        retired = {name: at.isoformat() for name, at in self.retired.items()}
        body = {"digest": self.digest, "at": self.at.isoformat(), "parts": parts}
        return json.dumps(body | {"retired": retired}).encode()

    @classmethod
    def of_json(cls, root: str, data: bytes | str) -> Materialised:
        """What `to_json` wrote."""
        body = json.loads(data)
        return cls(
            root,
            body["digest"],
            datetime.fromisoformat(body["at"]),
            {name: Part(*one) for name, one in body["parts"].items()},
            {name: datetime.fromisoformat(at) for name, at in body["retired"].items()},
        )


@dataclass(frozen=True, slots=True)
class Renewal:
    """What materialising a view did: parts written and left as they were, rows in all."""

    view: str
    written: int
    kept: int
    rows: int


def materialised(connection: duckdb.DuckDBPyConnection, root: str) -> dict[str, Materialised]:
    """The pointers below `root`, by view, read through the connection."""
    pattern = _quoted(f"{root}/{FOLDER}/*.json")
    found = connection.execute(f"SELECT count(*) FROM glob({pattern})").fetchone()
    if not found or not found[0]:
        return {}
    rows = connection.execute(f"SELECT filename, content FROM read_text({pattern})").fetchall()
    return {
        name.rpartition("/")[2].removesuffix(".json"): Materialised.of_json(root, content)
        for name, content in rows
    }


def materialise(
    connection: duckdb.DuckDBPyConnection,
    objects: Objects,
    view: View,
    *,
    root: str,
    now: datetime,
    grace: timedelta = GRACE,
) -> Renewal:
    """Bring a heavy view's files up to date and make the connection's view over them.

    Only months whose lines have changed are written; nothing at all when none has. `objects` are
    those below `root`. Raises `ConflictError` when another process renewed it meanwhile,
    `StorageError` (both transient).
    """
    assert view.heavy is not None, "only a heavy view is materialised"
    before, etag = _pointer(objects, root, view.name)
    held = before.parts if before is not None and before.digest == view.digest else {}
    wanted = _fingerprints(connection, view, view.heavy)
    kept = {name: held[name] for name, told in wanted.items() if _is_held(held.get(name), told)}
    fresh = dict(_written(connection, objects, view, wanted, frozenset(kept)))
    parts = dict(sorted((kept | fresh).items()))
    live = {part.file for part in parts.values()}
    # Whatever else lies there was replaced just now, or left by a renewal that was cut short.
    others = {name: now for name in objects.list(f"{FOLDER}/{view.name}/") if name not in live}
    retired = others | (dict(before.retired) if before else {})
    due = [name for name, at in retired.items() if name not in live and at <= now - grace]
    left = {name: at for name, at in retired.items() if name not in {*live, *due}}
    after = Materialised(root, view.digest, now.astimezone(UTC), parts, left)
    _swap(objects, view.name, after, etag)
    for name in due:
        objects.delete(name)
    if after.answers(view):
        after.show(connection, view)
    return Renewal(view.name, len(fresh), len(kept), sum(part.rows for part in parts.values()))


def forget(objects: Objects) -> int:
    """Delete every pointer and file: the views answer from the log again. For what must vanish at
    once; a reader in the middle of a query may fail. Returns how many objects there were.
    """
    # Pointers first: nothing may point to a file that is gone.
    keys = sorted(objects.list(f"{FOLDER}/"), key=lambda key: (not key.endswith(".json"), key))
    for key in keys:
        objects.delete(key)
    return len(keys)


def _is_held(part: Part | None, told: tuple[str, int]) -> bool:
    return part is not None and (part.fingerprint, part.rows) == told


def _pointer(objects: Objects, root: str, name: str) -> tuple[Materialised | None, str | None]:
    try:
        stored = objects.get(f"{FOLDER}/{name}.json")
    except ObjectMissingError:
        return None, None
    return Materialised.of_json(root, stored.data), stored.etag


def _swap(objects: Objects, name: str, after: Materialised, etag: str | None) -> None:
    try:
        objects.put_if(f"{FOLDER}/{name}.json", after.to_json(), etag=etag)
    except PreconditionError as error:
        raise ConflictError(f"{FOLDER}/{name}", 1) from error


def _fingerprints(
    connection: duckdb.DuckDBPyConnection, view: View, heavy: Heavy
) -> dict[str, tuple[str, int]]:
    """Of every part what it would hold: a line never changes, so its key says enough of a month; a
    view without months is computed, and all of it counts.
    """
    if heavy.by is None:
        connection.execute(f"CREATE OR REPLACE TEMP TABLE {_STAGE} AS {view.sql}")
        source, part, of = _STAGE, f"'{WHOLE}'", f"{_STAGE}"
    else:
        source, part, of = f"({view.sql})", _month(heavy.by), ", ".join(heavy.key)
    rows = connection.execute(
        f"SELECT {part} AS part, bit_xor(hash({of})), count(*) FROM {source} GROUP BY part"
    ).fetchall()
    return {name: (f"{told:016x}", count) for name, told, count in rows}


def _written(
    connection: duckdb.DuckDBPyConnection,
    objects: Objects,
    view: View,
    wanted: Mapping[str, tuple[str, int]],
    kept: frozenset[str],
) -> Iterator[tuple[str, Part]]:
    assert view.heavy is not None
    names = sorted(wanted.keys() - kept)
    if names and view.heavy.by is not None:
        months = ", ".join(map(_quoted, names))
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {_STAGE} AS SELECT * FROM ({view.sql}) "
            f"WHERE {_month(view.heavy.by)} IN ({months})"
        )
    for name in names:
        where = f"WHERE {_month(view.heavy.by)} = {_quoted(name)}" if view.heavy.by else ""
        rows = connection.execute(f"SELECT * FROM {_STAGE} {where}").to_arrow_table()
        data = _parquet(rows)
        file = f"{FOLDER}/{view.name}/{name}-{sha256(data).hexdigest()[:16]}.parquet"
        objects.put(file, data)
        yield name, Part(file, wanted[name][0], rows.num_rows)
    connection.execute(f"DROP TABLE IF EXISTS {_STAGE}")


def _month(column: str) -> str:
    return f"strftime({column}, '%Y-%m')"


def _parquet(rows: pa.Table) -> bytes:
    sink: Any = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd")
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
