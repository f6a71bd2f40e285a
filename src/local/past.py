"""SQL over the lake as it was: `freshet query --as-of`.

Tables and tombstones show the files of the snapshot that was current then, in the columns that they
had then. Gold views are computed from these, never taken from what is materialised. Logs end at the
moment, by what they tell in their own columns of what came when.
"""

# ruff: noqa: S608 - SQL is made of our own names and quoted locations

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb
from pyiceberg.io.pyarrow import schema_to_pyarrow

from freshet.clock import utc_now
from freshet.tables import TABLES
from freshet.wire import MAGIC, PART_STRIDE
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE, RECEIPTS, RESOLUTIONS, Verdict
from lake.prune import NO_ROW
from lake.table import KeyedTable
from lake.travel import Moment, NoSuchMomentError, NoSuchSnapshotError, Past, past
from local.gold import load_views
from local.runtime import LakeAccess
from local.sql import (
    _SHAPES,
    _by_field_id,
    _extension,
    _quoted,
    _secret,
    _view,
    create_log_views,
)

# When a line of a log was known.
_TIMES = {
    CHANGE_LOG: "arrived_at",
    QUARANTINE: "arrived_at",
    RESOLUTIONS: "resolved_at",
    RECEIPTS: "committed_at",
}


@dataclass
class PastLake:
    """A connection in which the tables are as they were; `notes` say where that is not exact."""

    connection: duckdb.DuckDBPyConnection
    notes: list[str] = field(default_factory=list)


def connect_at(lake: Lake, access: LakeAccess, moment: Moment) -> PastLake:
    """As `local.sql.connect`, at a moment; a snapshot's id stands for the time of its commit.

    A table whose history does not reach it says so when it is asked, as do gold views that need it;
    those that need a column that there was not are left out. Raises `NoSuchMomentError` where no
    table has the moment.
    """
    connection = duckdb.connect(config={"autoinstall_known_extensions": "false"})
    connection.execute(f"LOAD '{_extension('httpfs')}'")
    connection.execute(_secret(access))
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute(f"CREATE SCHEMA {_SHAPES}")
    shown = PastLake(connection)
    show_tables(shown, lake, moment)
    create_log_views(connection, access.root)
    _cut_logs(connection, _committed(lake, moment) if isinstance(moment, int) else moment)
    for view in load_views():
        try:
            connection.execute(f'CREATE VIEW "{view.name}" AS {view.sql}')
        except duckdb.Error as error:
            if not isinstance(error, duckdb.CatalogException | duckdb.BinderException):
                raise
            shown.notes.append(f"{view.name}: needs what there was not then")
    return shown


def _cut_logs(connection: duckdb.DuckDBPyConnection, instant: datetime) -> None:
    """Let the logs end at an instant, and so the gold views that are made of them."""
    until = f"TIMESTAMPTZ '{instant.astimezone(UTC).isoformat()}'"
    for log in _TIMES:
        connection.execute(f'ALTER VIEW "{log}" RENAME TO "{log}_of_all_times"')
    for log, column in _TIMES.items():
        also = f"AND NOT EXISTS ({_landed_late(until)})" if log == CHANGE_LOG else ""
        all_times = f'FROM "{log}_of_all_times" AS line WHERE {column} <= {until} {also}'
        connection.execute(f'CREATE VIEW "{log}" AS {all_times}')


def _landed_late(until: str) -> str:
    """The replays after an instant that a `line` of the change log came from: it has the place, and
    the arrival, that the refused line had.

    A refused record is one line at its first place, and lands as all of its lines; the second part
    of a line is numbered past all lines. What was pruned had been in the log before.
    """
    magic = MAGIC.decode("ascii")
    beyond = magic[:-1] + chr(ord(magic[-1]) + 1)
    return f"""
        SELECT 1
        FROM (
            SELECT
                done.shard_id, done.sequence_number, done.record_index,
                bool_or(data >= '{magic}'::BLOB AND data < '{beyond}'::BLOB) AS is_record
            FROM "{RESOLUTIONS}_of_all_times" AS done
            LEFT JOIN "{QUARANTINE}_of_all_times" AS refused USING (shard_id, position)
            WHERE resolution = '{Verdict.REPLAYED}' AND refused.reason IS DISTINCT FROM '{NO_ROW}'
            GROUP BY ALL
            HAVING min(resolved_at) > {until}
        ) AS late
        WHERE late.shard_id = line.shard_id
            AND late.sequence_number = line.sequence_number
            AND (late.is_record OR late.record_index = line.record_index % {PART_STRIDE})
    """


def show_tables(shown: PastLake, lake: Lake, moment: Moment) -> None:
    """Make a view of every table and its tombstones at a moment. Raises `NoSuchMomentError`."""
    instant = _committed(lake, moment) if isinstance(moment, int) else moment
    missing: list[NoSuchMomentError] = []
    tables = list(_tables(lake))
    for keyed in tables:
        table = keyed.view().table
        own = isinstance(moment, int) and table.snapshot_by_id(moment) is not None
        try:
            then = past(table, moment if own else instant, now=utc_now())
        except NoSuchMomentError as error:
            missing.append(error)
            shown.notes.append(str(error))
            _refuse(shown.connection, keyed, error)
            continue
        _show(shown.connection, keyed, then)
        if not then.exact and then.committed_at is not None:
            at = then.committed_at.astimezone(UTC).isoformat(timespec="seconds")
            shown.notes.append(f"{keyed.spec.name}: shown as of {at}; later snapshots have expired")
    if len(missing) == len(tables):
        raise missing[0]


def _tables(lake: Lake) -> Iterator[KeyedTable]:
    for contract in TABLES:
        current = lake.current(contract.table)
        yield from (current.rows, current.tombstones)


def _committed(lake: Lake, snapshot_id: int) -> datetime:
    """When a snapshot was committed, whichever table it is of."""
    for keyed in _tables(lake):
        found = keyed.view().table.snapshot_by_id(snapshot_id)
        if found is not None:
            return datetime.fromtimestamp(found.timestamp_ms / 1000, UTC)
    raise NoSuchSnapshotError(snapshot_id)


def _refuse(
    connection: duckdb.DuckDBPyConnection, keyed: KeyedTable, error: NoSuchMomentError
) -> None:
    """Let a table that cannot be shown answer every question with the reason."""
    name, shape = keyed.spec.name, f'{_SHAPES}."{keyed.spec.name}"'
    _view(connection, name, keyed.spec.schema, None)
    # Joined, not filtered by: of no rows at all DuckDB would not work the condition out.
    reason = f"SELECT error({_quoted(str(error))}) AS reason"
    told = f"SELECT shape.* FROM {shape} AS shape RIGHT JOIN ({reason}) AS why ON true"
    connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {told} WHERE why.reason IS NULL')


def _show(connection: duckdb.DuckDBPyConnection, keyed: KeyedTable, then: Past) -> None:
    files = ", ".join(_quoted(file.file_path) for file in then.files)
    schema = schema_to_pyarrow(then.schema, include_field_ids=False)
    by = _by_field_id(connection, then.schema, schema)
    source = f"[{files}], {by}, hive_partitioning = false" if files else None
    _view(connection, keyed.spec.name, schema, source)
