"""The floor: what reading and writing the touched files costs, and nothing else.

pyarrow reads the files that the lake has just rewritten and writes them again, one after the other,
with the lake's own Parquet settings. No merge, no table, no commit.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from benchmarks.workload import ZSTD_LEVEL

# The columns `lake.parquet` writes with a dictionary; a test compares the two.
DICTIONARY_COLUMNS = [
    "product_id",
    "currency",
    "status",
    "source",
    "country",
    "sold_date",
]


class Contender:
    """Rewrites files as they are."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def apply(self, prepared: Sequence[str]) -> None:
        """Rewrite the named files."""
        for path in prepared:
            self.rewrite(path)

    def rewrite(self, path: str) -> None:
        """Read one file whole and write it under another name."""
        table = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False)
        pq.write_table(
            table,
            self._folder / f"{uuid.uuid4()}.parquet",
            compression="zstd",
            compression_level=ZSTD_LEVEL,
            data_page_version="1.0",
            use_dictionary=DICTIONARY_COLUMNS,
            store_decimal_as_integer=True,
        )
