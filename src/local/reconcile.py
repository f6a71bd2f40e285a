"""`freshet reconcile`: a source listed afresh beside the lake's rows of it, and the way back.

Polls compare a source with what the stream was told; this compares it with what the lake really
holds, so it also finds what was lost on the way, what somebody else wrote, and rows that vanished
while nobody polled. Corrections take the one way in, as change events through the stream.
"""

# ruff: noqa: PLC0415 - a function's modules log as configured when they are imported

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.typedef import Record

from api_poller.changes import Change, Skipped, events_of, guarded
from api_poller.poll import PUBLISH_EVENTS_MAX, Source
from api_poller.state import StateStore
from freshet.arrow import PATCHES, POSITION, VERSION, contract_schema
from freshet.clock import Now, VersionClock, utc_now
from freshet.contract import Contract, Row
from freshet.errors import RejectedError, TerminalError, TransientError
from freshet.event import Op, check_future, json_value, key_text
from freshet.patch import patches_of
from freshet.stream import ChangeStream
from lake.lake import Lake
from lake.log import CHANGE_LOG
from lake.spec import partition_values
from lake.table import View
from lake.tombstones import floor_of
from local.differences import (
    Difference,
    Differences,
    Kind,
    Listed,
    StoredRow,
    Told,
    Unlisted,
    compare,
    corrections,
)
from local.output import say
from local.runtime import Home, Pipeline, open_lake

Progress = Callable[[str], None]


class ListingIncompleteError(TransientError):
    """The source did not show everything, so nothing can be said of what is missing."""

    def __init__(self, source: str, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(
            f"source {source!r}: the listing is not complete ({reason}); nothing was compared and "
            "nothing sent: try again, and if it lasts see `freshet source check`"
        )


class HealRefusedError(TerminalError):
    """The corrections would do more harm than good; none was sent."""

    def __init__(self, source: str, detail: str) -> None:
        self.source, self.detail = source, detail
        super().__init__(f"source {source!r}: nothing was healed: {detail}")


class HealIncompleteError(TransientError):
    """The stream did not accept every correction."""

    def __init__(self, source: str, accepted: int, events: int, detail: str) -> None:
        self.source, self.accepted, self.events, self.detail = source, accepted, events, detail
        super().__init__(
            f"source {source!r}: the stream accepted {accepted} of {events} corrections "
            f"({detail}); heal again, or poll: both send the rest"
        )


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What was compared and found. `listed` and `stored` count rows; `healed` corrections that are
    queryable now, `left` the rows that differ all the same.
    """

    source: str
    table: str
    listed: int
    stored: int
    unreadable: int
    absence_counts: bool
    rows: tuple[Difference, ...]
    healed: int = 0
    left: int = 0

    @property
    def differs(self) -> bool:
        """True when the lake is not as the source lists, after healing if that was asked for."""
        return bool(self.left)

    def partitions(self) -> list[tuple[str, int, int, int]]:
        """Partition, missing, extra and different rows; of those partitions that have any."""
        counts = Counter((row.partition, row.kind) for row in self.rows)
        names = sorted({partition for partition, _ in counts})
        return [(name, *(counts[name, kind] for kind in Kind)) for name in names]  # type: ignore[misc]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, every row included."""
        kinds = Counter(row.kind for row in self.rows)
        names = ("partition", *Kind)
        return {
            "source": self.source,
            "table": self.table,
            "listed": self.listed,
            "stored": self.stored,
            "unreadable": self.unreadable,
            "absence_counts": self.absence_counts,
            **{kind.value: kinds[kind] for kind in Kind},
            "healed": self.healed,
            "left": self.left,
            "partitions": [dict(zip(names, row, strict=True)) for row in self.partitions()],
            "rows": [_row_json(row) for row in self.rows],
        }


def reconcile(
    home: Home, name: str, places: Mapping[str, str], *, heal: bool = False
) -> Reconciliation:
    """Compare a source with a home's lake, and with `heal` make the lake as the source lists.

    Runs the pipeline itself, so that nothing else moves meanwhile; the source is found at `places`
    (settings of the poller). Raises `LocalRuntimeError` where another process runs the home, and
    the errors of `reconcile_in`.
    """
    home.require()
    with Pipeline(home, sources=places) as pipeline:
        from api_poller.app import open_source

        return reconcile_in(pipeline, open_source(name), heal=heal)


def reconcile_in(
    pipeline: Pipeline,
    source: Source,
    *,
    heal: bool = False,
    now: Now = utc_now,
    progress: Progress = say,
) -> Reconciliation:
    """As `reconcile`, in a pipeline that runs. What is in the stream is waited for first.

    Raises `ListingIncompleteError`, `HealRefusedError`, `HealIncompleteError`,
    `StateConflictError` and the source's own errors.
    """
    from api_poller.app import compose_here

    pipeline.drain()
    listed = listing(source, now(), progress)
    with open_lake(pipeline.home) as (lake, _):
        found = differences(lake, source, listed)
        report = _report(lake, source, listed, found)
        if not heal or not report.rows:
            return report
        _refuse_above_guard(source, found)
        progress(f"sending {len(report.rows):,} corrections through the stream")
        here = compose_here()
        Healer(here.stream, here.states, now).heal(source, lake, found)
        pipeline.drain()
        left = differences(lake, source, listed)
    remaining = len(left.missing) + len(left.different) + len(left.extra)
    return replace(report, healed=len(report.rows) - remaining, left=remaining)


def listing(source: Source, now: datetime, progress: Progress = lambda _: None) -> Listed:
    """Everything that a source shows. Raises `ListingIncompleteError` and the source's errors."""
    rows: dict[str, Row] = {}
    unreadable, deleted = set[str](), set[str]()
    with closing(source.pages(None, now, None)) as pages:
        while True:
            try:
                page = next(pages)
            except StopIteration as end:
                outcome = end.value
                break
            unreadable -= page.rows.keys()
            deleted -= page.rows.keys()
            rows.update(page.rows)
            deleted |= page.deleted
            unreadable |= _keys_of(source, page.skipped)
            for key in page.deleted | unreadable & rows.keys():
                rows.pop(key, None)
            if page.rows:
                progress(f"{source.name}: {len(rows):,} rows listed")
    if not outcome.complete:
        raise ListingIncompleteError(source.name, outcome.reason or "the source does not say why")
    whole = source.rule.cursor is None
    return Listed(rows, frozenset(unreadable), frozenset(deleted), absence_counts=whole)


def _keys_of(source: Source, skipped: Sequence[Skipped]) -> set[str]:
    """The keys of rows that do not fit the contract: they are there all the same."""
    for one in skipped:
        if one.key is None:
            raise ListingIncompleteError(source.name, f"a row has no usable key: {one.reason}")
    return {one.key for one in skipped if one.key is not None}


def differences(lake: Lake, source: Source, listed: Listed) -> Differences:
    """The listing beside the lake as it is now."""
    contract = source.contract
    rows = lake.current(contract.table).rows
    found = compare(listed, _stored(rows, rows.view(), contract))
    # Only where there is something to decide: the log is far larger than the table.
    told = _told(lake, source, found.unlisted) if found.unlisted else {}
    return found.settled(told)


def _stored(table: Any, view: View, contract: type[Contract]) -> Iterator[StoredRow]:
    for partition, part in table.read_files(view):
        name = _partition_name(view, partition)
        for row in part.to_pylist():
            position, version = row.pop(POSITION), _beaten_by(row.pop(VERSION), row.pop(PATCHES))
            yield StoredRow(key_text(contract, row), row, version, position, name)


def _beaten_by(version: int, patches: str | None) -> int:
    """The version that a change of the whole row must pass: the row's, or its newest column's."""
    return max([version, *(patch.version for patch in patches_of(patches).values())])


def _partition_name(view: View, partition: Sequence[Any]) -> str:
    """A partition as its folder is called; empty for a table that has none."""
    return view.table.spec().partition_to_path(Record(*partition), view.table.schema())


def _told(lake: Lake, source: Source, rows: Sequence[Unlisted]) -> dict[str, list[Told]]:
    """What the change log has of these keys from this source."""
    wanted = pa.array([row.key for row in rows], pa.string())
    told: dict[str, list[Told]] = {}
    for part in lake.log(CHANGE_LOG, source.contract.table):
        own = pc.equal(part["source"], source.name)
        mine = part.filter(pc.and_(own, pc.is_in(part["key"], value_set=wanted)))
        for event in mine.select(["key", "op", "version", "position"]).to_pylist():
            one = Told(Op(event["op"]), event["version"], event["position"])
            told.setdefault(event["key"], []).append(one)
    return told


def _report(lake: Lake, source: Source, listed: Listed, found: Differences) -> Reconciliation:
    missing = _missing(lake, source.contract, found.missing)
    rows = sorted((*missing, *found.extra, *found.different), key=lambda row: (row.kind, row.key))
    return Reconciliation(
        source.name,
        source.contract.table,
        listed=len(listed.rows),
        stored=found.stored,
        unreadable=len(listed.unreadable),
        absence_counts=listed.absence_counts,
        rows=tuple(rows),
        left=len(rows),
    )


def _missing(lake: Lake, contract: type[Contract], rows: Mapping[str, Row]) -> Iterator[Difference]:
    """Missing rows with the partition they belong in."""
    view = lake.current(contract.table).rows.view()
    schema = contract_schema(contract)
    columns = {
        field.column: pa.array(
            [row[field.column] for row in rows.values()], schema.field(field.column).type
        )
        for field in contract.partition
    }
    homes = partition_values(pa.table(columns), contract.partition) if columns else [()] * len(rows)
    for (key, row), home in zip(rows.items(), homes, strict=True):
        yield Difference(Kind.MISSING, key, _partition_name(view, home), listed=row)


def _refuse_above_guard(source: Source, found: Differences) -> None:
    share_max = source.rule.delete_share_max
    if guarded(len(found.extra), found.stored, share_max):
        raise HealRefusedError(
            source.name,
            f"{len(found.extra)} of {found.stored} rows would be deleted, and more than "
            f"{share_max:.0%} at once rather mean half a listing that looks whole; if that is "
            "right, heal once with DELETE_SHARE_MAX=1, or declare a higher sync.delete_share_max",
        )


@dataclass(frozen=True, slots=True)
class Healer:
    """Sends corrections as the poller sends changes: reserved in the state, then published."""

    stream: ChangeStream
    states: StateStore
    now: Now

    def heal(self, source: Source, lake: Lake, found: Differences) -> None:
        """Publish what makes the lake as the source lists.

        The keys stay pending in the poller's state: what the stream was told of them is no longer
        what the state remembers, so the next poll tells it anew (a change that changes nothing).
        Raises `HealRefusedError`, `HealIncompleteError`, `StateConflictError`.
        """
        changes = corrections(found)
        state, etag = self.states.load(source.name, cursor=source.rule.cursor)
        last = max(state.version, _greatest_version(lake, source.contract, found))
        first = VersionClock(self.now, last=last).take(len(changes))
        self._refuse_future(source, first + len(changes) - 1)
        begun = replace(
            state,
            version=first + len(changes) - 1,
            pending=state.pending | {change.key for change in changes},
        )
        self.states.save(source.name, begun, etag=etag)
        for start in range(0, len(changes), PUBLISH_EVENTS_MAX):
            chunk = changes[start : start + PUBLISH_EVENTS_MAX]
            self._publish(source, chunk, first, start, len(changes))

    def _publish(
        self, source: Source, chunk: Sequence[Change], first: int, start: int, total: int
    ) -> None:
        events = events_of(
            chunk,
            source.contract,
            source=source.name,
            first_version=first + start,
            accepted_at=self.now(),
            occurred_at=source.occurred_at,
        )
        published = self.stream.publish(events)
        if not published.complete:
            accepted = start + len(published.accepted)
            raise HealIncompleteError(source.name, accepted, total, published.detail)

    def _refuse_future(self, source: Source, version: int) -> None:
        """A correction must be newer than what it corrects, and the consumer takes no future."""
        try:
            check_future(version, self.now())
        except RejectedError as error:
            raise HealRefusedError(
                source.name,
                f"a row that differs has version {version - 1} or so, more than a day ahead of "
                "this clock, and nothing newer would be accepted before: `freshet why TABLE KEY` "
                "tells who sent it",
            ) from error


def _greatest_version(lake: Lake, contract: type[Contract], found: Differences) -> int:
    """The greatest version that a correction has to beat: of rows, and of missing rows' deletes."""
    versions = [row.version for row in (*found.different, *found.extra)]
    if found.missing:
        dead = lake.current(contract.table).tombstones
        view = dead.view()
        missing = [
            row
            for row in dead.read_all(view).to_pylist()
            if key_text(contract, row) in found.missing
        ]
        versions += [floor_of(view)[0]]
        versions += [_beaten_by(row[VERSION], row[PATCHES]) for row in missing]
    return max(versions, default=0)


def _row_json(row: Difference) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": row.kind.value, "key": row.key, "partition": row.partition}
    if row.kind is Kind.DIFFERENT:
        told["columns"] = {
            name: {"lake": json_value(lake), "source": json_value(source)}
            for name, lake, source in changed(row)
        }
    return told


def changed(row: Difference) -> Iterator[tuple[str, Any, Any]]:
    """The columns in which a row differs: name, the lake's value, the source's."""
    for name in row.columns:
        assert row.stored is not None
        assert row.listed is not None
        yield name, row.stored[name], row.listed[name]
