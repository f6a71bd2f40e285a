"""History, ended at once: one snapshot is left, and no file that only earlier ones needed.

Vacuum waits a day so that nobody's file goes away under them. Who must not be found any more cannot
wait: here every snapshot but a new one is expired, whose manifests name nothing but live files, and
what lies unreferenced below the table is deleted now. Why the table stays whole:

- What is deleted was listed before the new snapshot was committed, by compare-and-swap upon the one
  before it. A manifest, a manifest list or a metadata file of that time that the new snapshot does
  not need belongs to the past, or to a commit that can only come second and writes its own anew.
- A data file that an expired snapshot had and the new one has not was replaced, for ever.
- Any other data file may be reused by a commit under way when it plans again, unless it holds rows
  that this commit would not write any more. Only those that do are deleted; vacuum takes the rest.

A reader in the middle of an earlier snapshot fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH
from pyiceberg.table.snapshots import Operation, Snapshot, Summary, update_snapshot_summaries
from pyiceberg.table.update import AssertRefSnapshotId, RemoveSnapshotsUpdate, TableUpdate

from freshet.errors import ConflictError
from freshet.objects import ObjectMissingError, Objects
from lake.io import ObjectsFileIO
from lake.snapshot import CommitConflictError, ManifestReader, _Commit, manifests_of
from lake.table import KeyedTable

# As many as a batch makes (`lake.current`): the commit is short, and each round lists anew.
ROUNDS_MAX = 40


@dataclass(frozen=True, slots=True)
class Expired:
    """Snapshots that went, and files that were (or, asked only, would be) deleted."""

    snapshots: int = 0
    files: int = 0

    def __add__(self, other: Expired) -> Expired:
        """Both together."""
        return Expired(self.snapshots + other.snapshots, self.files + other.files)


class History:
    """Everything that lies below the location of one table."""

    def __init__(
        self,
        keyed: KeyedTable,
        catalog: Catalog,
        files: ObjectsFileIO,
        objects: Objects,
        *,
        pool: Executor,
    ) -> None:
        self._keyed, self._catalog, self._files = keyed, catalog, files
        self._objects, self._pool = objects, pool
        self._reader = ManifestReader()

    def past(self) -> Expired:
        """What `end` would take at least, as things are now. Changes nothing."""
        table = self._keyed.view().table
        live = self._live(table)
        files = self._past_files(table) - live
        return Expired(max(0, len(table.metadata.snapshots) - 1), len(files))

    def end(
        self,
        holds_personal: Callable[[pa.Table], bool],
        summary: Mapping[str, str],
        on_expired: Callable[[], None] = lambda: None,
    ) -> Expired:
        """Leave one snapshot; delete what only others needed, and files of none that hold what
        `holds_personal` recognises in their rows.

        Raises `ConflictError` (transient) when other writers won every round.
        """
        for _ in range(ROUNDS_MAX):
            table = self._keyed.view().table
            prefix = self._files.key(f"{table.location()}/")
            listed = [*self._objects.list(f"{prefix}metadata/"), *self._data(prefix)]
            live, past = self._live(table), self._past_files(table)
            try:
                committed = self._leave_one(table, summary)
            except CommitConflictError:
                continue
            on_expired()
            certain = self._certain(listed, live, past, prefix) if committed else []
            unsure = [key for key in listed if key not in live | past and _is_data(key)]
            personal = self._personal(unsure, holds_personal)
            gone = max(0, len(table.metadata.snapshots) - 1)
            return Expired(gone, self._delete([*certain, *personal]))
        raise ConflictError(self._keyed.spec.name, ROUNDS_MAX)

    def _data(self, prefix: str) -> Iterable[str]:
        return self._objects.list(f"{prefix}data/")

    def _live(self, table: Table) -> set[str]:
        """Keys of the data files of the current snapshot."""
        return self._keys_of(manifests_of(table), table)

    def _past_files(self, table: Table) -> set[str]:
        """Keys of the data files of every snapshot that is retained."""
        lists = self._pool.map(lambda s: s.manifests(table.io), table.metadata.snapshots)
        manifests = {one.manifest_path: one for some in lists for one in some}
        return self._keys_of(manifests.values(), table)

    def _keys_of(self, manifests: Iterable[ManifestFile], table: Table) -> set[str]:
        return {
            self._files.key(entry.data_file.file_path)
            for manifest in manifests
            for entry in self._reader.live_entries(manifest, table.io)
        }

    def _leave_one(self, table: Table, summary: Mapping[str, str]) -> bool:
        """Commit the one snapshot that stays; False for a table that never had any."""
        if table.metadata.current_snapshot_id is None:
            return False
        commit = _Alone(table, self._reader, table.metadata.new_snapshot_id())
        snapshot = commit.snapshot(commit.manifests((), ()), _totals(table, summary))
        try:
            self._catalog.commit_table(
                table,
                (AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=snapshot.parent_snapshot_id),),
                commit.updates(snapshot),
            )
        except CommitFailedException as error:
            raise CommitConflictError(str(error)) from error
        return True

    def _certain(
        self, listed: Iterable[str], live: set[str], past: set[str], prefix: str
    ) -> list[str]:
        """Of what was listed before the commit: all metadata, and data that only the past had."""
        replaced = past - live
        return [key for key in listed if key in replaced or key.startswith(f"{prefix}metadata/")]

    def _personal(self, keys: list[str], holds_personal: Callable[[pa.Table], bool]) -> list[str]:
        def is_personal(key: str) -> bool:
            try:
                data = self._objects.get(key).data
                rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
            except ObjectMissingError:  # vacuum was here meanwhile
                return False
            except pa.ArrowException:  # no commit will ever use it, and nobody knows what it says
                return True
            return holds_personal(rows)

        found = zip(keys, self._pool.map(is_personal, keys), strict=True)
        return [key for key, personal in found if personal]

    def _delete(self, keys: list[str]) -> int:
        return sum(1 for _ in self._pool.map(self._objects.delete, keys))


def _is_data(key: str) -> bool:
    return key.endswith(".parquet")


class _Alone(_Commit):
    """A commit that changes no file, and after which no snapshot but its own is there."""

    def manifests(self, added: object, removed: object) -> list[ManifestFile]:
        """One manifest of all live files: no entry of a deleted one stays."""
        del added, removed
        live = [
            entry
            for manifest in manifests_of(self._table)
            for entry in self._reader.live_entries(manifest, self._table.io)
        ]
        return [self._write_manifest([], [], live)] if live else []

    def updates(self, snapshot: Snapshot) -> tuple[TableUpdate, ...]:
        """Add the snapshot, make it current, expire all others."""
        others = [one.snapshot_id for one in self._table.metadata.snapshots]
        add, swap, *_ = super().updates(snapshot)
        return (add, swap, RemoveSnapshotsUpdate(snapshot_ids=others))


def _totals(table: Table, own: Mapping[str, str]) -> Summary:
    """A summary of a snapshot that adds and deletes nothing: the totals stay."""
    snapshot = table.current_snapshot()
    return update_snapshot_summaries(
        Summary(operation=Operation.OVERWRITE, **own),
        previous_summary=None if snapshot is None else snapshot.summary,
    )
