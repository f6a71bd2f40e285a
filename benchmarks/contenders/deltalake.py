"""delta-rs: one `merge` on the key with a version guard: a key is found wherever it is, as in the
lake.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from benchmarks.workload import KEY, PARTITION, ZSTD_LEVEL
from deltalake import DeltaTable, WriterProperties, write_deltalake

from freshet.arrow import DELETED, VERSION
from freshet.merge import collapse


class Contender:
    """A Delta table in a folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "table"
        self._writer = WriterProperties(compression="ZSTD", compression_level=ZSTD_LEVEL)

    def setup(self, rows: pa.Table) -> None:
        """One file a day, as the others have."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_deltalake(self._path, rows, partition_by=[PARTITION], writer_properties=self._writer)

    def prepare(self, changes: pa.Table) -> pa.Table:
        """The changes as they are."""
        return changes

    def predicate(self, winners: pa.Table) -> str:  # noqa: ARG002 - `deltalake_told` looks at them
        """Which rows of the table `t` a change `s` meets."""
        return f"t.{KEY} = s.{KEY}"

    def apply(self, prepared: pa.Table) -> None:
        """Collapsed first: a merge would insert a new key that comes twice, twice."""
        winners = collapse(prepared, (KEY,)).winners
        newer = f"s.{VERSION} > t.{VERSION}"
        (
            DeltaTable(self._path)
            .merge(
                winners,
                predicate=self.predicate(winners),
                source_alias="s",
                target_alias="t",
                writer_properties=self._writer,
                streamed_exec=False,  # the faster of the two, measured
            )
            .when_matched_delete(predicate=f"s.{DELETED} AND {newer}")
            .when_matched_update_all(predicate=newer, except_cols=[DELETED])
            .when_not_matched_insert_all(predicate=f"NOT s.{DELETED}", except_cols=[DELETED])
            .execute()
        )

    def rows(self) -> pa.Table:
        """All rows."""
        return DeltaTable(self._path).to_pyarrow_table()
