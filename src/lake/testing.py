"""Builders for tests of the lake: a place that several writers open, and changes to apply."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from freshet.arrow import (
    PATCHES,
    POSITION,
    VERSION,
    PlacedEvent,
    changes_table,
    position_of,
)
from freshet.contract import Contract, Registry
from freshet.event import parse_event
from freshet.model import ModelChange
from freshet.objects import Objects
from freshet.patch import deleted, join, patches_of
from freshet.tables import TABLES
from lake.lake import Lake
from lake.sqlite import sql_catalog
from lake.steps import OnStep, no_step
from lake.table import FILE_ROWS_MAX
from lake.tombstones import floor_of


class LakeSite:
    """One object store and one SQLite catalog: every `Lake` it opens is another writer of the same
    tables.
    """

    def __init__(
        self,
        objects: Objects,
        catalog: Path,
        *,
        root: str = "file:///lake",
        tables: Registry = TABLES,
        database: str = "freshet",
    ) -> None:
        self.objects, self.root, self.tables, self.database = objects, root, tables, database
        self._catalog = catalog

    def open(
        self,
        *,
        objects: Objects | None = None,
        on_step: OnStep = no_step,
        file_rows_max: int = FILE_ROWS_MAX,
        io_threads: int = 2,
        wait: Callable[[float], object] = lambda _seconds: None,
    ) -> Lake:
        """Another writer. `objects` stands in for the site's own store (to make it fail)."""
        return Lake(
            objects or self.objects,
            self.root,
            lambda files: sql_catalog(
                self._catalog, files, warehouse=self.root, database=self.database
            ),
            tables=self.tables,
            database=self.database,
            wait=wait,
            on_step=on_step,
            io_threads=io_threads,
            file_rows_max=file_rows_max,
        )

    def pointer(self, lake: Lake, table: str) -> tuple[str, ...]:
        """What any commit or write changes: both metadata locations and every object's key."""
        current = lake.current(table)
        tables = (current.rows, current.tombstones)
        pointers = (keyed.view().table.metadata_location for keyed in tables)
        return (*pointers, *self.objects.list(""))


def placed(
    contract: type[Contract],
    at: int,
    *,
    version: int,
    key: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    before: Mapping[str, Any] | None = None,
    patch: Mapping[str, Any] | None = None,
) -> PlacedEvent:
    """A change at the `at`-th place of the stream: an update to `after`, a `patch` of `key`'s row,
    or its delete.
    """
    body = {
        "table": contract.table,
        "op": "d" if after is None and patch is None else "u",
        "key": key,
        "version": version,
        "after": after,
        "before": before,
        "patch": patch,
        "event_id": f"event-{at}",
        "source": "test",
        "accepted_at": "2026-11-21T08:30:00Z",
    }
    event = parse_event(body, Registry((contract,)))
    return PlacedEvent(event, position_of(str(at), 0))


def told(placed: PlacedEvent, contract: type[Contract]) -> ModelChange:
    """A placed event as the oracle sees it: keys as tuples."""
    event = placed.event
    key = tuple(event.key[name] for name in contract.key)
    return ModelChange(key, event.version, placed.position, event.after, event.patch)


def waiting(lake: Lake, contract: type[Contract]) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What waits for rows that are not there: by key, the JSON value of each column."""
    current = lake.current(contract.table)
    view, there = current.tombstones.view(), lake.rows(contract.table).to_pylist()
    floor, rows = floor_of(view), {tuple(row[name] for name in contract.key) for row in there}
    waits = {}
    for record in current.tombstones.read_all(view).to_pylist():
        key = tuple(record[name] for name in contract.key)
        state = deleted(record[VERSION], record[POSITION], patches_of(record[PATCHES]))
        left = join(state, deleted(*floor)).patches
        if left and key not in rows:
            waits[key] = {column: patch.value for column, patch in left.items()}
    return waits


def batch(contract: type[Contract], events: Iterable[PlacedEvent]) -> pa.Table:
    """Placed events as the table of changes that `Lake.apply` takes."""
    return changes_table(contract, list(events))
