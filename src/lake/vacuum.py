"""Vacuum: deletes what lies below a table's location and nothing retained needs any more.

A commit replaces data files and expires snapshots; a crash leaves files that were never committed.
All of them stay in the store until they are deleted here, and law L6 says when: readers never fail
because a file went away under them. A file's age says nothing of that, for an old file may have
been replaced a second ago. So each run takes one look at a table and remembers in an object of its
own (the marks) when it first saw each unreferenced file, and since when the file is settled: known
never to be referenced again. A grace after that it is deleted. Why that is safe:

- Referenced is what the metadata file that the catalog names needs: itself, its log of earlier
  metadata files, its statistics, and of every snapshot it retains the manifest list, the manifests
  and the live data files. A reader opens only what was referenced when it resolved the pointer.
- A look lists first and reads references after: a file committed in between is listed or not, but
  referenced. What is listed and unreferenced was replaced, belongs to a dead commit, or to one
  under way.
- A commit under way ends within `COMMIT_MAX`, or its files stay unreferenced for ever: their names
  hold a fresh UUID, and a writer that loses a race reuses finished files only within the same
  invocation. To have been unreferenced at one look is therefore not enough: such a file may have
  been committed, used for days and replaced just before the next look. A file is settled at the
  first look that finds it unreferenced and begins `COMMIT_MAX` after another had listed it: by then
  it was committed and replaced, or never will be. Whoever reads it began before that look ended.
- The grace runs from the end of the look that settled a file to the end of the one that finds it
  over. The logs, whose names can come again, are not below a table's location.
- Marks name the table's UUID and location. A table that was made anew begins with none.
- A table is refused, and keeps every file, where anything contradicts what is assumed here: its
  metadata cannot be read, a reference points out of its location, a file that a retained snapshot
  needs is not in the store, or the catalog has lost a table that was there. Such a table is not
  whole; whoever restores it finds all that is left.

Marks are written before anything is deleted, upon the marks that were read: of two runs at once,
one gives way. A run that is killed between any two calls has deleted nothing but what was due, and
the next one, which looks for itself, takes the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import chain
from typing import Any, NamedTuple

from pydantic import AwareDatetime, BaseModel, ValidationError
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from freshet.clock import Now
from freshet.contract import Contract
from freshet.errors import FreshetError, TerminalError
from freshet.objects import ObjectMissingError, Objects, PreconditionError
from lake.io import ObjectsFileIO
from lake.spec import rows_spec, tombstones_spec

# From a file's writing to its commit. Lambda ends a function after 15 minutes, Athena DML after 30:
# twice that.
COMMIT_MAX = timedelta(hours=1)
# Athena's queries end after 30 minutes; a day also covers a notebook that keeps a table open over
# a working day.
GRACE = timedelta(hours=24)
GRACE_MIN = timedelta(hours=1)
# Deleted between two looks at the clock: a second or two of eight threads on S3.
_DELETED_AT_ONCE = 256
# Listed between two looks at the clock: what S3 lists in one call.
_LISTED_AT_ONCE = 1000
# Everything of Iceberg's is in these two; whatever else a user keeps beside them is not touched.
_FOLDERS = ("data/", "metadata/")
_UNHURRIED_S = 86_400.0


class Outcome(StrEnum):
    """How a run over a table ended."""

    DONE = "done"
    ABSENT = "absent"  # nobody has written to it yet
    UNFINISHED = "unfinished"  # out of time; the next run goes on
    GAVE_WAY = "gave_way"  # to another run
    REFUSED = "refused"  # not known to be safe, or the store did not answer


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """What a run did to one Iceberg table, in files.

    `waiting` are unreferenced but not due, `marked` of them for the first time; `left` were
    due and are still there: for want of time, or because the run was dry.
    """

    table: str
    outcome: Outcome
    listed: int = 0
    referenced: int = 0
    waiting: int = 0
    marked: int = 0
    deleted: int = 0
    left: int = 0
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


class UnsafeTableError(TerminalError):
    """A table of which nothing may be deleted, because it is not what vacuum assumes."""

    def __init__(self, table: str, detail: str) -> None:
        self.table, self.detail = table, detail
        super().__init__(f"table {table!r}: {detail}")


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a table: what lies below its location and what its metadata needs.

    Names are relative to the location. `began` is before the listing, `ended` after the references
    were read.
    """

    listed: frozenset[str]
    referenced: frozenset[str]
    began: datetime
    ended: datetime


class Mark(NamedTuple):
    """When a file was first seen unreferenced, and since when it is settled (None: not yet)."""

    seen: AwareDatetime
    settled: AwareDatetime | None = None


class Plan(NamedTuple):
    """What to delete, in order, and the mark of every unreferenced file."""

    due: list[str]
    marks: dict[str, Mark]


def plan(look: Look, marks: Mapping[str, Mark], grace: timedelta) -> Plan:
    """Decide from a look and the marks of the look before. Pure.

    A look that finds a file referenced takes its mark away.
    """
    unreferenced = sorted(look.listed - look.referenced)
    new = {name: _marked(look, marks.get(name, Mark(look.ended))) for name in unreferenced}
    due = [
        name
        for name, mark in new.items()
        if mark.settled is not None and look.ended - mark.settled >= grace
    ]
    return Plan(due, new)


def _marked(look: Look, mark: Mark) -> Mark:
    """The mark of a file that this look found unreferenced."""
    # A mark of the future is from a clock since put right: the file was seen now at the latest.
    seen, settled = min(mark.seen, look.ended), mark.settled
    if settled is None and look.began - seen >= COMMIT_MAX:
        settled = look.ended
    return Mark(seen, settled and min(settled, look.ended))


class _Marks(BaseModel):
    """The marks of one table as they are stored: names of the same mark together."""

    table_uuid: str
    location: str
    unreferenced: list[tuple[Mark, list[str]]]

    @classmethod
    def of(cls, table: Table, by_name: Mapping[str, Mark]) -> _Marks:
        """Marks of this very table."""
        alike: dict[Mark, list[str]] = {}
        for name in sorted(by_name):
            alike.setdefault(by_name[name], []).append(name)
        table_uuid, location = _identity(table)
        return cls(table_uuid=table_uuid, location=location, unreferenced=list(alike.items()))

    def by_name(self, table: Table) -> dict[str, Mark]:
        """The mark of each file; none if another table is meant."""
        if (self.table_uuid, self.location) != _identity(table):
            return {}
        return {name: mark for mark, names in self.unreferenced for name in names}


def _identity(table: Table) -> tuple[str, str]:
    return str(table.metadata.table_uuid), table.location()


class _OutOfTime(Exception):  # noqa: N818 - a reason to stop, not an error
    """The time is over before the look is."""


class Vacuum:
    """Deletes unreferenced files of tables, one look each.

    `files` and `objects` are the same store; `pool` makes calls side by side. Raises `ValueError`
    for a `grace` below `GRACE_MIN`.
    """

    def __init__(
        self,
        objects: Objects,
        files: ObjectsFileIO,
        catalog: Catalog,
        database: str,
        *,
        pool: Executor,
        now: Now,
        grace: timedelta = GRACE,
    ) -> None:
        if grace < GRACE_MIN:
            raise ValueError(f"a grace of {grace} is shorter than commits may take ({GRACE_MIN})")
        self._objects, self._files, self._catalog = objects, files, catalog
        self._database, self._pool, self._now, self._grace = database, pool, now, grace

    def run(
        self,
        contracts: Sequence[type[Contract]],
        *,
        left_s: Callable[[], float] = lambda: _UNHURRIED_S,
        dry_run: bool = False,
        progress: Callable[[str], None] = lambda _: None,
    ) -> list[Vacuumed]:
        """Vacuum the rows and the tombstones of each contract; what became of each, in order.

        `left_s` gives the seconds left for all of them. Tables share what is left evenly, so that
        a large one does not starve those after it. One that must be refused, or whose store does
        not answer, does not keep the others from their turn. A dry run writes and deletes nothing.
        """
        names = [spec(c).name for c in contracts for spec in (rows_spec, tombstones_spec)]
        done = []
        for at, name in enumerate(names):
            progress(f"{name}: looking for files that nothing needs")
            done.append(self.turn(name, share(left_s, len(names) - at), dry_run=dry_run))
        return done

    def turn(self, name: str, left_s: Callable[[], float], *, dry_run: bool) -> Vacuumed:
        """Vacuum one Iceberg table; see `run`."""
        try:
            return self._clean(name, left_s, dry_run=dry_run)
        except _OutOfTime:
            return Vacuumed(name, Outcome.UNFINISHED, detail="the time was over before the look")
        except PreconditionError:
            return Vacuumed(name, Outcome.GAVE_WAY, detail="another run has marked meanwhile")
        except FreshetError as error:
            return Vacuumed(name, Outcome.REFUSED, detail=str(error))

    def _clean(self, name: str, left_s: Callable[[], float], *, dry_run: bool) -> Vacuumed:
        etag, stored = self._stored_marks(name)
        table = self._load(name)
        if table is None and stored is None:
            return Vacuumed(name, Outcome.ABSENT)
        if table is None:
            raise UnsafeTableError(
                name, "the catalog has lost it: restore its entry, or delete its files and marks"
            )
        look = self._look(name, table, left_s)
        marked = {} if stored is None else stored.by_name(table)
        due, marks = plan(look, marked, self._grace)
        deleted = 0
        if not dry_run:
            new = _Marks.of(table, marks)
            if new != stored:
                self._objects.put_if(self._key(name), new.model_dump_json().encode(), etag=etag)
            deleted = self._delete(self._prefix(name, table), due, left_s)
        return Vacuumed(
            name,
            Outcome.DONE if dry_run or deleted == len(due) else Outcome.UNFINISHED,
            listed=len(look.listed),
            referenced=len(look.referenced),
            waiting=len(marks) - len(due),
            marked=len(marks.keys() - marked.keys()),
            deleted=deleted,
            left=len(due) - deleted,
        )

    def _key(self, name: str) -> str:
        return f"maintenance/{self._database}/{name}.json"

    def _stored_marks(self, name: str) -> tuple[str | None, _Marks | None]:
        try:
            stored = self._objects.get(self._key(name))
        except ObjectMissingError:
            return None, None
        try:
            return stored.etag, _Marks.model_validate_json(stored.data)
        except ValidationError as error:
            raise UnsafeTableError(
                name,
                f"its marks {self._key(name)!r} cannot be read; delete that object and its grace "
                f"begins anew ({error.error_count()} errors)",
            ) from error

    def _load(self, name: str) -> Table | None:
        with readable(name):
            try:
                return self._catalog.load_table((self._database, name))
            except NoSuchTableError:
                return None

    def _prefix(self, name: str, table: Table) -> str:
        try:
            return self._files.key(f"{table.location()}/")
        except ValueError as error:
            raise UnsafeTableError(name, f"its location is not in this lake: {error}") from error

    def _look(self, name: str, table: Table, left_s: Callable[[], float]) -> Look:
        """List, then read references from what the catalog names after that."""
        began, prefix = self._now(), self._prefix(name, table)
        listed = frozenset(self._listed(prefix, left_s))
        now = self._load(name)
        if now is None or _identity(now) != _identity(table):
            raise UnsafeTableError(name, "it was dropped or moved just now; the next run looks")
        references = _References(now, self._pool, left_s)
        with readable(name):
            of_snapshots = references.of_snapshots()
        needed = self._relative(name, now, of_snapshots)
        kept = self._relative(name, now, references.of_metadata())
        self._require(name, prefix, needed - listed)
        return Look(listed, needed | kept, began, self._now())

    def _listed(self, prefix: str, left_s: Callable[[], float]) -> Iterator[str]:
        for folder in _FOLDERS:
            for at, key in enumerate(self._objects.list(prefix + folder)):
                if at % _LISTED_AT_ONCE == 0:
                    _require_time(left_s)
                yield key[len(prefix) :]

    def _relative(self, name: str, table: Table, paths: Collection[str]) -> frozenset[str]:
        place = f"{table.location()}/"
        for path in paths:
            if not path.startswith(place):
                raise UnsafeTableError(name, f"it needs {path!r}, which is not below {place!r}")
        return frozenset(path[len(place) :] for path in paths)

    def _require(self, name: str, prefix: str, unlisted: Iterable[str]) -> None:
        """Snapshots' files that were not listed are there: they were committed meanwhile."""
        for path in sorted(unlisted):
            if prefix + path not in self._objects.list(prefix + path):
                raise UnsafeTableError(
                    name,
                    f"a retained snapshot needs {path!r}, which is not in the store: restore it "
                    "(an earlier version of the object, a backup) or rebuild the table from the "
                    "change log",
                )

    def _delete(self, prefix: str, due: list[str], left_s: Callable[[], float]) -> int:
        """Delete in order while there is time; how many."""
        deleted = 0
        while deleted < len(due) and left_s() > 0:
            some = due[deleted : deleted + _DELETED_AT_ONCE]
            for _ in self._pool.map(self._objects.delete, [prefix + name for name in some]):
                deleted += 1
        return deleted


class _References:
    """Locations of every file that a table's current metadata needs."""

    def __init__(self, table: Table, pool: Executor, left_s: Callable[[], float]) -> None:
        self._table, self._pool, self._left_s = table, pool, left_s

    def of_metadata(self) -> set[str]:
        """The metadata file, those of its log, and statistics. A writer deletes the oldest of the
        log as it commits, so one may be gone.
        """
        metadata = self._table.metadata
        statistics = (*metadata.statistics, *metadata.partition_statistics)
        return {
            self._table.metadata_location,
            *(entry.metadata_file for entry in metadata.metadata_log),
            *(file.statistics_path for file in statistics),
        }

    def of_snapshots(self) -> set[str]:
        """Manifest lists, manifests and live files of every retained snapshot. Raises
        `UnsafeTableError` when one cannot be read.
        """
        snapshots = self._table.metadata.snapshots
        try:
            lists = list(self._pool.map(self._manifests, snapshots))
            manifests = {one.manifest_path: one for some in lists for one in some}
            files = list(self._pool.map(self._live, manifests.values()))
        except FileNotFoundError as error:
            name = self._table.name()[-1]
            raise UnsafeTableError(name, f"a retained snapshot cannot be read: {error}") from error
        return {*(s.manifest_list for s in snapshots), *manifests, *chain.from_iterable(files)}

    def _manifests(self, snapshot: Snapshot) -> list[ManifestFile]:
        _require_time(self._left_s)
        return snapshot.manifests(self._table.io)

    def _live(self, manifest: ManifestFile) -> list[str]:
        _require_time(self._left_s)
        entries = manifest.fetch_manifest_entry(self._table.io)
        return [entry.data_file.file_path for entry in entries]


@contextmanager
def readable(name: str) -> Iterator[None]:
    """`UnsafeTableError` for whatever the decoders of Iceberg's files raise of broken ones, and for
    one that is not there. What Freshet raises on purpose passes.
    """
    try:
        yield
    except (FreshetError, _OutOfTime):
        raise
    except Exception as error:
        told = " ".join(str(error).split())
        detail = f"its metadata cannot be read ({type(error).__name__}: {told})"
        raise UnsafeTableError(name, detail) from error


def share(left_s: Callable[[], float], parts: int) -> Callable[[], float]:
    """The time left to the first of `parts` that share what there is."""
    reserved = left_s() * (1 - 1 / parts)
    return lambda: left_s() - reserved


def _require_time(left_s: Callable[[], float]) -> None:
    if left_s() <= 0:
        raise _OutOfTime
