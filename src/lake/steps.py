"""The steps of a batch, enumerated: where a crash can fall between two of them (law L7)."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum


class Step(StrEnum):
    """A point reached. Tests kill the process at each; redelivery must complete what was begun."""

    QUARANTINED = "quarantined"
    LOGGED = "logged"
    VIEWED = "viewed"
    PLANNED = "planned"
    FILES_WRITTEN = "files_written"
    TOMBSTONES_WRITTEN = "tombstones_written"
    TOMBSTONES_COMMITTED = "tombstones_committed"
    ROWS_COMMITTED = "rows_committed"
    VALIDATED = "validated"
    RECORDED = "recorded"


OnStep = Callable[[Step], None]
OnConflict = Callable[[str], None]


def no_step(_step: Step) -> None:
    """What a deployment does at each step: nothing."""


def no_conflict(_table: str) -> None:
    """What a lake does of its own when a commit comes second: nothing but plan again."""
