"""This lake: `Lake.apply` with a SQLite catalog and files in a folder."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.workload import BATCH, PARTITION, ROWS, TABLES, BenchSale

from freshet.arrow import DELETED, changes_schema
from freshet.objects import DirectoryObjects
from lake.lake import Lake
from lake.sqlite import sql_catalog


class Contender:
    """The lake's port, called as the consumer calls it."""

    def __init__(self, folder: Path) -> None:
        root = f"file://{folder}/objects"
        self._lake = Lake(
            DirectoryObjects(folder / "objects"),
            root,
            lambda files: sql_catalog(
                folder / "catalog.db", files, warehouse=root, database="freshet"
            ),
            tables=TABLES,
            io_threads=os.cpu_count() or 1,  # a folder has no latency that more would hide
        )

    def setup(self, rows: pa.Table) -> None:
        """One batch per thirty days: a year at once would not be a batch."""
        days = pc.unique(rows.column(PARTITION)).sort()
        for start in range(0, len(days), 30):
            part = rows.filter(pc.is_in(rows.column(PARTITION), value_set=days.slice(start, 30)))
            inserts = part.append_column(
                BATCH.field(DELETED), pa.repeat(pa.scalar(False), len(part))
            )
            self.apply(self.prepare(inserts))

    def prepare(self, changes: pa.Table) -> pa.Table:
        """Deletes as they come from a stream: the key and nothing else."""
        schema, gone = changes_schema(ROWS, BenchSale.key), changes.column(DELETED)
        for field in schema:
            if field.nullable:
                at = changes.schema.get_field_index(field.name)
                column = pc.if_else(gone, pa.scalar(None, field.type), changes.column(at))
                changes = changes.set_column(at, field, column)
        return changes.cast(schema)

    def apply(self, prepared: pa.Table) -> None:
        """One snapshot of rows and one of tombstones."""
        self._lake.apply(BenchSale.table, prepared, {"freshet.batch": str(uuid.uuid4())})

    def files(self) -> set[str]:
        """Paths of the data files of the current snapshot."""
        view = self._lake.current(BenchSale.table).rows.view()
        return {file.file_path.removeprefix("file://") for file in view.files}

    def snapshots(self) -> list[int | None]:
        """Current snapshots of both tables: a replay must leave them alone."""
        current = self._lake.current(BenchSale.table)
        return [table.view().snapshot_id for table in (current.rows, current.tombstones)]

    def rows(self) -> pa.Table:
        """See `Contender`."""
        return self._lake.rows(BenchSale.table)
