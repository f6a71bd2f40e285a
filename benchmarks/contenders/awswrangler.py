"""awswrangler: the pandas pattern by its own functions, against an S3 emulator on the loopback.

The emulator's work happens on the same cores and is part of the time. Not atomic:
`overwrite_partitions` removes a partition's objects before it writes the new ones.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import awswrangler as wr
import boto3
import pandas as pd
import pyarrow as pa
from benchmarks.contenders.pandas import newest_rows
from benchmarks.workload import PARTITION, ROWS

from local.embedded import EmbeddedAws

_BUCKET = "bench"
_PATH = f"s3://{_BUCKET}/sales/"


class Contender:
    """A Hive-style dataset in a bucket."""

    def __init__(self, folder: Path) -> None:
        self._aws = EmbeddedAws(folder)
        self._aws.start()
        atexit.register(self._aws.stop)
        self._session = boto3.Session("test", "test", region_name="us-east-1")
        wr.config.s3_endpoint_url = self._aws.endpoint_url

    def setup(self, rows: pa.Table) -> None:
        """The bucket, and one file a day."""
        s3 = self._session.client("s3", endpoint_url=self._aws.endpoint_url)
        s3.create_bucket(Bucket=_BUCKET)
        self._write(rows.to_pandas())

    def prepare(self, changes: pa.Table) -> Any:
        """A frame, as its caller would have, with the partition as awswrangler reads it: text."""
        frame = changes.to_pandas()
        return frame.assign(**{PARTITION: frame[PARTITION].astype(str)})

    def apply(self, prepared: Any) -> None:
        """Read the touched partitions, merge in pandas, overwrite them."""
        touched = set(prepared[PARTITION])
        current = self._read(lambda values: values[PARTITION] in touched)
        self._write(newest_rows(pd.concat([current, prepared], ignore_index=True)))

    def rows(self) -> pa.Table:
        """All rows."""
        frame = self._read(None)
        frame[PARTITION] = [date.fromisoformat(day) for day in frame[PARTITION]]
        return pa.Table.from_pandas(frame, schema=ROWS, preserve_index=False)

    def _read(self, wanted: Callable[[dict[str, str]], bool] | None) -> Any:
        frame = wr.s3.read_parquet(
            _PATH, dataset=True, partition_filter=wanted, boto3_session=self._session
        )
        return frame.assign(**{PARTITION: frame[PARTITION].astype(str)})

    def _write(self, frame: Any) -> None:
        wr.s3.to_parquet(
            frame,
            path=_PATH,
            dataset=True,
            mode="overwrite_partitions",
            partition_cols=[PARTITION],
            compression="zstd",
            dtype={"unit_price": "decimal(18,2)", "quantity": "int"},
            boto3_session=self._session,
        )
