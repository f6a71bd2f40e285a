"""How a decoded batch lands: quarantine, log, tables, receipt, in that order.

The order is the promise. What is in a table is in the log as well; what has a receipt is in the
tables; and a batch that fails anywhere is delivered again whole, and finds done what was done. The
same function lands what the stream delivers and what is brought back from a failure destination.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from consumer.decode import DecodedBatch
from freshet.arrow import PlacedEvent, changes_table
from freshet.clock import Now
from freshet.contract import Registry
from freshet.receipt import Receipt
from lake.lake import Lake
from lake.ledger import Meter, lags, metered
from lake.log import Kind, ReceiptRow


class Landed(NamedTuple):
    """What became of a batch: the whole of it, and the ledger's lines, the logs' own first."""

    receipt: Receipt
    rows: list[ReceiptRow]


def land(
    batch: DecodedBatch,
    lake: Lake,
    tables: Registry,
    *,
    now: Now,
    kind: Kind = Kind.STREAM,
    note: str | None = None,
) -> Landed:
    """Land a batch and write its receipt.

    Raises `ConflictError`, `StorageError` (transient: land it again), `SchemaChangeError`.
    """
    landing = _Landing(batch, lake, tables, now, kind, note)
    rows = [landing.logs(), *(landing.table(*part) for part in batch.by_table().items())]
    lake.record(rows)
    return Landed(sum((row.receipt for row in rows), Receipt()), rows)


@dataclass(frozen=True, slots=True)
class _Landing:
    batch: DecodedBatch
    lake: Lake
    tables: Registry
    now: Now
    kind: Kind
    note: str | None

    def logs(self) -> ReceiptRow:
        """Quarantine and change log written: the line of what is in no table, and never will be."""
        batch, begun = self.batch, self.now()
        with metered() as cost:
            self.lake.keep(batch.name, batch.events, batch.rejected, batch.truncations)
        rejected, ignored = len(batch.rejected), batch.ignored.total()
        kept = Receipt(received=rejected + ignored, rejected=rejected, ignored=ignored)
        row = self._row(kept, cost, begun)
        return replace(row, records=batch.records, note=self._logs_note())

    def table(self, name: str, placed: list[PlacedEvent]) -> ReceiptRow:
        """One table's part landed: truncations first, in which order the source had it, too."""
        contract, begun = self.tables[name], self.now()
        summary = {
            "freshet.batch": self.batch.name,
            "freshet.contract-version": str(contract.contract_version),
        }
        with metered() as cost:
            done = [
                self.lake.truncate(name, end.version, end.place.position, summary)
                for end in self.batch.truncations_of(name)
            ]
            if placed:
                done.append(self.lake.apply(name, changes_table(contract, placed), summary))
        row = self._row(sum((one.receipt for one in done), Receipt()), cost, begun)
        events = [item.event for item in placed]
        return replace(
            row,
            table_name=name,
            contract_version=contract.contract_version,
            snapshot_id=next((one.snapshot_id for one in reversed(done) if one.snapshot_id), None),
            event_lag=lags((event.occurred_at for event in events), row.committed_at),
            accept_lag=lags((event.accepted_at for event in events), row.committed_at),
        )

    def _row(self, receipt: Receipt, cost: Meter, begun: datetime) -> ReceiptRow:
        """A line with what all lines of a batch say."""
        return ReceiptRow(
            batch=self.batch.name,
            kind=self.kind,
            receipt=receipt,
            started_at=begun,
            committed_at=self.now(),
            shard_id=self.batch.span.shard_id,
            first_sequence_number=self.batch.span.first_sequence_number,
            last_sequence_number=self.batch.span.last_sequence_number,
            bytes_read=cost.bytes_read,
            bytes_written=cost.bytes_written,
            requests=cost.requests,
            note=self.note,
        )

    def _logs_note(self) -> str | None:
        """The caller's note, or the kinds of what was ignored: the counts say only how many."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.batch.ignored.items()))
        return "; ".join(text for text in (self.note, kinds and f"ignored {kinds}") if text) or None
