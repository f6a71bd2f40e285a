"""One atomic snapshot: swap data files with flat metadata, by compare-and-swap.

pyiceberg 0.12 keeps every manifest whose entries are all deleted, so commits slow down threefold in
a hundred. Here a commit rewrites only manifests that lose a file, drops those that hold nothing
live, folds the smallest together and expires old snapshots in the same swap: the hundredth commit
costs what the first did.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DataFile,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.table import Table
from pyiceberg.table.refs import MAIN_BRANCH, SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary, update_snapshot_summaries
from pyiceberg.table.update import (
    AddSnapshotUpdate,
    AssertRefSnapshotId,
    RemoveSnapshotsUpdate,
    SetPropertiesUpdate,
    SetSnapshotRefUpdate,
    TableUpdate,
)

from lake.retention import RETENTION, Stamp

# More manifests than this and the smallest are folded into the new one: planning reads each of
# them.
MANIFESTS_MAX = 8
# Iceberg's default for Avro: every reader has it.
_AVRO_CODEC: Literal["deflate"] = "deflate"


class CommitConflictError(Exception):
    """Another writer swapped the table's pointer first. Internal: the lake plans again."""


class ManifestReader:
    """Entries of manifests by path; manifests are immutable, so what was parsed once is kept."""

    def __init__(self, kept_max: int = 64) -> None:
        self._kept: dict[str, list[ManifestEntry]] = {}
        self._lock = threading.Lock()
        self._kept_max = kept_max

    def live_entries(self, manifest: ManifestFile, files: FileIO) -> list[ManifestEntry]:
        """The manifest's entries that are not deleted."""
        entries = self._kept.get(manifest.manifest_path)
        if entries is None:
            entries = manifest.fetch_manifest_entry(files, discard_deleted=True)
            self.keep(manifest.manifest_path, entries)
        return entries

    def keep(self, path: str, entries: list[ManifestEntry]) -> None:
        """Remember a manifest's live entries."""
        with self._lock:
            while len(self._kept) >= self._kept_max:
                self._kept.pop(next(iter(self._kept)))
            self._kept[path] = entries


def manifests_of(table: Table) -> list[ManifestFile]:
    """The manifests of the table's current snapshot."""
    snapshot = table.current_snapshot()
    return [] if snapshot is None else list(snapshot.manifests(table.io))


def live_files(table: Table, reader: ManifestReader) -> list[DataFile]:
    """Every data file of the current snapshot."""
    return [
        entry.data_file
        for manifest in manifests_of(table)
        for entry in reader.live_entries(manifest, table.io)
    ]


def stamps(table: Table) -> list[Stamp]:
    """A table's snapshots in order of commit."""
    ordered = sorted(table.metadata.snapshots, key=lambda s: s.sequence_number or 0)
    return [Stamp(s.timestamp_ms, s.snapshot_id) for s in ordered]


def commit_swap(
    catalog: Catalog,
    table: Table,
    reader: ManifestReader,
    *,
    added: Sequence[DataFile],
    removed: Collection[str],
    summary: Mapping[str, str],
    properties: Mapping[str, str] | None = None,
    operation: Operation = Operation.OVERWRITE,
) -> int:
    """Commit one snapshot that adds and removes data files, on exactly the snapshot `table` shows.

    `removed` holds file locations; `properties` are set on the table in the same swap; `operation`
    is REPLACE where no row changes. Returns the snapshot's id. Raises `CommitConflictError` if
    another commit came first.
    """
    snapshot_id = table.metadata.new_snapshot_id()
    commit = _Commit(table, reader, snapshot_id)
    manifests = commit.manifests(added, removed)
    told = _summary(table, added, commit.gone, summary)
    snapshot = commit.snapshot(manifests, as_operation(told, operation))
    swap(catalog, table, (*commit.updates(snapshot), *_set(properties)))
    for path, entries in commit.live.items():
        reader.keep(path, entries)
    return snapshot_id


def _set(properties: Mapping[str, str] | None) -> tuple[TableUpdate, ...]:
    return (SetPropertiesUpdate(updates=dict(properties)),) if properties else ()


def swap(catalog: Catalog, table: Table, updates: tuple[TableUpdate, ...]) -> None:
    """Commit updates on exactly the snapshot that `table` shows. Raises `CommitConflictError`."""
    parent = table.metadata.current_snapshot_id
    asserted = AssertRefSnapshotId(ref=MAIN_BRANCH, snapshot_id=parent)
    try:
        done = catalog.commit_table(table, (asserted,), updates)
    except CommitFailedException as error:
        raise CommitConflictError(str(error)) from error
    except ValueError as error:
        # Whoever expires snapshots only moves no snapshot, and then they are not there to expire.
        if catalog.load_table(table.name()).metadata_location == table.metadata_location:
            raise
        raise CommitConflictError(str(error)) from error
    # pyiceberg does this only for its own commits: metadata files beyond the cap are deleted.
    catalog._delete_old_metadata(table.io, table.metadata, done.metadata)  # noqa: SLF001


def as_operation(summary: Summary, operation: Operation) -> Summary:
    """The summary of another operation: pyiceberg's totals know no REPLACE."""
    return Summary(operation=operation, **summary.additional_properties)


class _Commit:
    """The files of one commit, written as they are made."""

    def __init__(self, table: Table, reader: ManifestReader, snapshot_id: int) -> None:
        self._table, self._reader, self._id = table, reader, snapshot_id
        self._uuid = uuid.uuid4()
        self._format = table.metadata.format_version
        self.gone: list[DataFile] = []
        # What a reader will find live in each new manifest: the next commit need not read it back.
        self.live: dict[str, list[ManifestEntry]] = {}

    def manifests(self, added: Sequence[DataFile], removed: Collection[str]) -> list[ManifestFile]:
        """The manifests of the new snapshot: untouched ones, and new ones with all that changed.

        Files that stay are parted from those that changed once they are the many: partitions that
        are written again and again then share a small manifest, and the quiet ones' is left alone.
        """
        untouched: list[tuple[ManifestFile, list[ManifestEntry]]] = []
        moved: list[ManifestEntry] = []
        for manifest in manifests_of(self._table):
            live = self._reader.live_entries(manifest, self._table.io)
            if any(entry.data_file.file_path in removed for entry in live):
                moved.extend(live)
            elif live:
                untouched.append((manifest, live))
        untouched.sort(key=lambda pair: len(pair[1]))
        while len(untouched) > MANIFESTS_MAX - 2:
            moved.extend(untouched.pop(0)[1])
        gone = [entry for entry in moved if entry.data_file.file_path in removed]
        stay = [entry for entry in moved if entry.data_file.file_path not in removed]
        self.gone = [entry.data_file for entry in gone]
        if not (added or moved):
            new = []  # a swap of properties only: pyiceberg refuses an empty manifest
        elif 0 < len(added) < len(stay):
            new = [self._write_manifest(added, gone, []), self._write_manifest([], [], stay)]
        else:
            new = [self._write_manifest(added, gone, stay)]
        return [*new, *(manifest for manifest, _ in untouched)]

    def _write_manifest(
        self,
        added: Sequence[DataFile],
        gone: Sequence[ManifestEntry],
        stay: Sequence[ManifestEntry],
    ) -> ManifestFile:
        path = f"{self._table.location()}/metadata/{self._uuid}-m{len(self.live)}.avro"
        number = self._table.metadata.next_sequence_number()
        self.live[path] = [*(_added(self._id, number, file) for file in added), *stay]
        with write_manifest(
            format_version=self._format,
            spec=self._table.spec(),
            schema=self._table.schema(),
            output_file=self._table.io.new_output(path),
            snapshot_id=self._id,
            avro_compression=_AVRO_CODEC,
        ) as writer:
            for file in added:  # without a number: a reader inherits the manifest's
                writer.add(_added(self._id, None, file))
            for entry in gone:
                writer.delete(_bare(entry))
            for entry in stay:
                writer.existing(entry)
        return writer.to_manifest_file()

    def snapshot(self, manifests: list[ManifestFile], summary: Summary) -> Snapshot:
        """Write the manifest list and describe the snapshot."""
        metadata = self._table.metadata
        path = f"{self._table.location()}/metadata/snap-{self._id}-0-{self._uuid}.avro"
        sequence_number = metadata.next_sequence_number()
        with write_manifest_list(
            format_version=self._format,
            output_file=self._table.io.new_output(path),
            snapshot_id=self._id,
            parent_snapshot_id=metadata.current_snapshot_id,
            sequence_number=sequence_number,
            avro_compression=_AVRO_CODEC,
        ) as writer:
            writer.add_manifests(manifests)
        return Snapshot(
            snapshot_id=self._id,
            parent_snapshot_id=metadata.current_snapshot_id,
            manifest_list=path,
            sequence_number=sequence_number,
            timestamp_ms=max(int(time.time() * 1000), metadata.last_updated_ms),
            summary=summary,
            schema_id=metadata.current_schema_id,
        )

    def updates(self, snapshot: Snapshot) -> tuple[TableUpdate, ...]:
        """Add the snapshot, make it current, expire those that are not retained."""
        added = Stamp(snapshot.timestamp_ms, snapshot.snapshot_id)
        expired = RETENTION.expired([*stamps(self._table), added], snapshot.timestamp_ms)
        swap = SetSnapshotRefUpdate(  # type: ignore[call-arg] # aliased fields hide their defaults
            ref_name=MAIN_BRANCH, type=SnapshotRefType.BRANCH, snapshot_id=snapshot.snapshot_id
        )
        expire = (RemoveSnapshotsUpdate(snapshot_ids=expired),) if expired else ()
        return (AddSnapshotUpdate(snapshot=snapshot), swap, *expire)


def _added(snapshot_id: int, sequence_number: int | None, file: DataFile) -> ManifestEntry:
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.ADDED,
        snapshot_id=snapshot_id,
        sequence_number=sequence_number,
        file_sequence_number=sequence_number,
        data_file=file,
    )


def _bare(entry: ManifestEntry) -> ManifestEntry:
    """A deleted file's entry without its statistics: nobody will plan with them again."""
    file = entry.data_file
    return ManifestEntry.from_args(
        status=entry.status,
        snapshot_id=entry.snapshot_id,
        sequence_number=entry.sequence_number,
        file_sequence_number=entry.file_sequence_number,
        data_file=DataFile.from_args(
            content=file.content,
            file_path=file.file_path,
            file_format=file.file_format,
            partition=file.partition,
            record_count=file.record_count,
            file_size_in_bytes=file.file_size_in_bytes,
        ),
    )


def _summary(
    table: Table, added: Sequence[DataFile], gone: Sequence[DataFile], own: Mapping[str, str]
) -> Summary:
    """Iceberg's counts and totals, and ours (the receipt) beside them."""
    counts = {
        "added-data-files": len(added),
        "added-records": sum(file.record_count for file in added),
        "added-files-size": sum(file.file_size_in_bytes for file in added),
        "deleted-data-files": len(gone),
        "deleted-records": sum(file.record_count for file in gone),
        "removed-files-size": sum(file.file_size_in_bytes for file in gone),
    }
    present = {name: str(count) for name, count in counts.items() if count}
    snapshot = table.current_snapshot()
    return update_snapshot_summaries(
        Summary(operation=Operation.OVERWRITE, **present, **own),
        previous_summary=None if snapshot is None else snapshot.summary,
    )
