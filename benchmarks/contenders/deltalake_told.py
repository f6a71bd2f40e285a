"""delta-rs, told in advance which partitions to search: each delete must name its own, and a key
that moved would leave its old row behind."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from benchmarks.contenders import deltalake
from benchmarks.workload import PARTITION


class Contender(deltalake.Contender):
    """The same table, merged within the touched partitions only."""

    def predicate(self, winners: pa.Table) -> str:
        """The partition first, then the key in that partition."""
        days = ", ".join(f"'{day}'" for day in pc.unique(winners.column(PARTITION)).to_pylist())
        same_day = f"t.{PARTITION} IN ({days}) AND t.{PARTITION} = s.{PARTITION}"
        return f"{same_day} AND {super().predicate(winners)}"
