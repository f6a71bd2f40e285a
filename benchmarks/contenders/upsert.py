"""pyiceberg's own way: `Table.upsert`, and `Table.delete` for the deletes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.workload import KEY, PARTITION, ROWS, ZSTD_LEVEL, BenchSale
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import In
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.transforms import IdentityTransform

from freshet.arrow import DELETED
from freshet.merge import collapse
from lake.spec import rows_spec

_FIRST_PARTITION_FIELD_ID = 1000


class Contender:
    """A stock table: SQLite catalog, pyiceberg's own files and writer."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        uri, warehouse = f"sqlite:///{folder}/catalog.db", f"file://{folder}/warehouse"
        self._catalog = SqlCatalog("bench", uri=uri, warehouse=warehouse)
        self._name = ("bench", BenchSale.table)

    def setup(self, rows: pa.Table) -> None:
        """Partitioned by the date itself: pyiceberg writes day transforms only with its core."""
        schema = rows_spec(BenchSale).iceberg_schema()
        source = schema.find_field(PARTITION).field_id
        by_date = PartitionField(source, _FIRST_PARTITION_FIELD_ID, IdentityTransform(), PARTITION)
        self._catalog.create_namespace("bench")
        table = self._catalog.create_table(
            self._name,
            schema,
            partition_spec=PartitionSpec(by_date),
            properties={"write.parquet.compression-level": str(ZSTD_LEVEL)},
        )
        table.append(rows)

    def prepare(self, changes: pa.Table) -> pa.Table:
        """The changes as they are."""
        return changes

    def apply(self, prepared: pa.Table) -> None:
        """Collapsed first: `upsert` refuses two rows of one key. Two commits, not one."""
        winners = collapse(prepared, (KEY,)).winners
        gone = winners.column(DELETED)
        table = self._catalog.load_table(self._name)
        table.upsert(winners.filter(pc.invert(gone)).select(ROWS.names), join_cols=[KEY])
        table.delete(In(term=KEY, literals=winners.filter(gone).column(KEY).to_pylist()))

    def rows(self) -> pa.Table:
        """All rows, by a scan."""
        return self._catalog.load_table(self._name).scan().to_arrow()
