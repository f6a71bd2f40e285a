"""Receipts: what became of every change of a batch (law L5). The books must balance or the batch
fails.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Receipt:
    """Counts by outcome; `received` must equal their sum.

    `waiting` are partial updates of rows that are not there (yet), `ignored` records that are no
    change: tombstone records, heartbeats, transaction marks, control records.

    `retracted` stands outside the equation: rows removed because an earlier delete's tombstone was
    committed and its removal was not (a crash, or two writers in the same instant).
    """

    received: int = 0
    inserted: int = 0
    updated: int = 0
    deleted: int = 0
    unchanged: int = 0
    duplicate: int = 0
    stale: int = 0
    rejected: int = 0
    waiting: int = 0
    ignored: int = 0
    retracted: int = 0

    def __post_init__(self) -> None:
        """Law L5, in code: AssertionError when the books do not balance."""
        outcomes = self.inserted + self.updated + self.deleted + self.unchanged
        lost = self.duplicate + self.stale + self.rejected
        rest = self.waiting + self.ignored
        assert self.received == outcomes + lost + rest, f"receipt does not add up: {self}"

    def __add__(self, other: Receipt) -> Receipt:
        """Both receipts as one."""
        return Receipt(
            **{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        )

    def to_dict(self) -> dict[str, int]:
        """Counts by name, for logs and snapshot summaries."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
