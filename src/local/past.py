"""SQL over the lake as it was: `freshet query --as-of`.

Tables and tombstones show the files of the snapshot that was current then, in the columns that they
had then. Gold views are computed from these, never taken from what is materialised. Logs are whole:
they only grow, and tell in their own columns what came when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

import duckdb
from pyiceberg.io.pyarrow import schema_to_pyarrow

from freshet.clock import utc_now
from freshet.tables import TABLES
from lake.lake import Lake
from lake.log import CHANGE_LOG, QUARANTINE, RECEIPTS, RESOLUTIONS
from lake.table import KeyedTable
from lake.travel import Moment, NoSuchMomentError, Past, past
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

    A table whose history does not reach it is left out, and so are gold views that need one or a
    column that there was not. Raises `NoSuchMomentError` where no table has the moment.
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
    for log, column in _TIMES.items():
        connection.execute(f'ALTER VIEW "{log}" RENAME TO "{log}_of_all_times"')
        until = f"TIMESTAMPTZ '{instant.astimezone(UTC).isoformat()}'"
        all_times = f'FROM "{log}_of_all_times" WHERE {column} <= {until}'
        connection.execute(f'CREATE VIEW "{log}" AS {all_times}')


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
    raise NoSuchMomentError(TABLES.names[0], snapshot_id, None)


def _show(connection: duckdb.DuckDBPyConnection, keyed: KeyedTable, then: Past) -> None:
    files = ", ".join(_quoted(file.file_path) for file in then.files)
    schema = schema_to_pyarrow(then.schema, include_field_ids=False)
    by = _by_field_id(connection, then.schema, schema)
    source = f"[{files}], {by}, hive_partitioning = false" if files else None
    _view(connection, keyed.spec.name, schema, source)
