"""Plain pandas over a folder of partitions: read what is touched, merge, write it again.

awswrangler's documented pattern (read the partitions, concat, drop duplicates, overwrite the
partitions) without S3, so that no emulator's time is counted. Not atomic: a crash half-way leaves
some partitions new and some old.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.workload import KEY, PARTITION, ROWS, ZSTD_LEVEL

from freshet.arrow import DELETED, VERSION


class Contender:
    """One Parquet file per day."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def setup(self, rows: pa.Table) -> None:
        """Write every day."""
        self._write(rows.to_pandas())

    def prepare(self, changes: pa.Table) -> Any:
        """A frame, as its caller would have."""
        return changes.to_pandas()

    def apply(self, prepared: Any) -> None:
        """One frame of all touched days, as `wr.s3.read_parquet(dataset=True)` gives."""
        files = [self._file(day) for day in prepared[PARTITION].unique()]
        current = [pd.read_parquet(file, partitioning=None) for file in files if file.exists()]
        self._write(newest_rows(pd.concat([*current, prepared], ignore_index=True)))

    def rows(self) -> pa.Table:
        """All rows."""
        files = sorted(self._folder.glob("*/part.parquet"))
        return pa.concat_tables(pq.ParquetFile(file).read(use_threads=False) for file in files)

    def _file(self, day: date) -> Path:
        return self._folder / f"{PARTITION}={day}" / "part.parquet"

    def _write(self, frame: Any) -> None:
        for day, rows in frame.groupby(PARTITION):
            path = self._file(day)
            path.parent.mkdir(parents=True, exist_ok=True)
            table = pa.Table.from_pandas(rows, schema=ROWS, preserve_index=False)
            pq.write_table(table, path, compression="zstd", compression_level=ZSTD_LEVEL)


def newest_rows(frame: Any) -> Any:
    """The newest row of each key in pandas, deleted ones left out."""
    newest = frame.sort_values(VERSION, kind="stable").drop_duplicates(KEY, keep="last")
    deleted = newest[DELETED].notna() & newest[DELETED].ne(other=False)
    return newest[~deleted].drop(columns=DELETED)
