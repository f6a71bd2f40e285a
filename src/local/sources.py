"""What the `freshet source` commands do: list, try out, save and forget declared sources.

Trying a source out walks the way of a poll up to where it would have an effect, and says of each
step whether it holds, or what is wrong and how to mend it. It publishes nothing and writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from api_poller.auth import TokensBusyError
from api_poller.composition import Composition
from api_poller.credentials import CredentialsUnavailableError
from api_poller.declaration import DeclarationError, SourceDeclaration
from api_poller.http import SourceError, SourceRefusedError
from api_poller.listing import DeclaredSource, Page
from api_poller.state import PollState, StateCorruptError, StateStore
from freshet.errors import FreshetError, SettingsError, TerminalError
from freshet.objects import Objects, PreconditionError
from local.observed import is_personal

ROWS_SHOWN = 3
SKIPPED_SHOWN = 5
# No object has it, so that a conditional write under it is allowed or refused, and never done.
_NO_ETAG = '"00000000000000000000000000000000"'


class Verdict(StrEnum):
    """Of one step."""

    OK = "ok"
    WRONG = "WRONG"
    UNKNOWN = "not tried"


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a check, and what came of it."""

    name: str
    verdict: Verdict
    detail: str


@dataclass(frozen=True, slots=True)
class Check:
    """All steps, and a few rows with the columns that may be shown; `hidden` may not."""

    steps: Sequence[Step]
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    hidden: Sequence[str] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing is wrong."""
        return all(step.verdict is Verdict.OK for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        steps = [
            {"step": one.name, "verdict": one.verdict.value, "detail": one.detail}
            for one in self.steps
        ]
        rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
        return {"steps": steps, "rows": rows, "hidden": list(self.hidden)}


class UnsavedError(TerminalError):
    """A proposal that is not written to a file."""

    def __init__(self, path: Path, detail: str) -> None:
        self.path = path
        super().__init__(f"{path} {detail}")


# --- listing --------------------------------------------------------------------------------------

LISTED = ("name", "table", "mode", "auth", "schedule", "enabled", "rows", "changed", "watermark")


def listed(
    declared: Mapping[str, SourceDeclaration], states: StateStore | None
) -> Iterator[tuple[Any, ...]]:
    """A row of `LISTED` for every source; `states` is None where nothing was ever polled.

    `rows` counts what is remembered, `changed` is when the last change was published. Raises
    `StorageError`.
    """
    for name, one in declared.items():
        state = _state(states, name)
        watermark = state.watermark if state else None
        if state and state.progress is not None:
            watermark = f"unfinished listing of {state.progress.started:%Y-%m-%dT%H:%M:%SZ}"
        yield (
            name,
            one.table,
            one.sync.mode,
            one.auth.kind,
            one.schedule,
            "yes" if one.enabled else "no",
            len(state.snapshot) if state else None,
            _moment(state.version) if state and state.version else None,
            watermark,
        )


def _state(states: StateStore | None, name: str) -> PollState | None:
    if states is None:
        return None
    try:
        state, etag = states.load(name)
    except StateCorruptError as error:
        return PollState(watermark=f"{error.detail}: reset it")
    return state if etag is not None else None


def _moment(version: int) -> str:
    """The time that a version is: microseconds since 1970."""
    return datetime.fromtimestamp(version // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- checking -------------------------------------------------------------------------------------


def check(composition: Composition, name: str, reach_stream: Callable[[], str]) -> Check:
    """Try a source out. `reach_stream` says in a word that the stream is there, or raises."""
    try:
        declaration = composition.declaration(name)
    except (DeclarationError, SettingsError) as error:
        return Check([Step("declaration", Verdict.WRONG, str(error))])
    steps = [Step("declaration", Verdict.OK, _described(declaration))]
    tried, page = _tried(composition, name, declaration)
    steps += tried
    steps.append(_mapping_step(name, page))
    steps.append(_step("state", lambda: _writable(composition.objects, name)))
    steps.append(_step("stream", reach_stream))
    if page is None:
        return Check(steps)
    contract = composition.tables[declaration.table]
    hidden = [one for one in contract.model_fields if _is_hidden(one, declaration)]
    shown = [one for one in contract.model_fields if one not in hidden]
    rows = [[row[one] for one in shown] for row in list(page.rows.values())[:ROWS_SHOWN]]
    return Check(steps, shown, rows, hidden)


def _described(declaration: SourceDeclaration) -> str:
    return (
        f"table {declaration.table}, sync {declaration.sync.mode}, "
        f"pagination {declaration.pagination.kind}"
    )


def _tried(
    composition: Composition, name: str, declaration: SourceDeclaration
) -> tuple[list[Step], Page | None]:
    """The steps `auth` and `page`, and the page."""
    try:
        source = composition.source(name)
        page = _first_page(source, composition.now())
    except (SettingsError, CredentialsUnavailableError, TokensBusyError) as error:
        return _refused_auth(error), None
    except SourceRefusedError as error:
        if error.status in (401, 403):
            return _refused_auth(error), None
        return [_auth_step(declaration), Step("page", Verdict.WRONG, str(error))], None
    except SourceError as error:
        detail = str(error)
        return [_auth_step(declaration), Step("page", Verdict.WRONG, detail)], None
    records = len(page.rows) + len(page.deleted) + len(page.skipped)
    more = "more pages follow" if page.resume is not None else "no page follows"
    return [
        _auth_step(declaration, known=True),
        Step("page", Verdict.OK, f"{records} records from {declaration.url}; {more}"),
    ], page


def _first_page(source: DeclaredSource, now: datetime) -> Page:
    with closing(source.pages(None, now, None)) as pages:
        return next(pages, Page({}))


def _refused_auth(error: FreshetError) -> list[Step]:
    return [
        Step("auth", Verdict.WRONG, str(error)),
        Step("page", Verdict.UNKNOWN, "the log-in has to work first"),
    ]


def _auth_step(declaration: SourceDeclaration, *, known: bool = False) -> Step:
    """The log-in of a source whose page came, or failed for another reason."""
    if declaration.auth.kind == "none":
        return Step("auth", Verdict.OK, "none needed")
    if not known:
        return Step("auth", Verdict.UNKNOWN, "the page has to come first")
    reference = declaration.credentials
    return Step("auth", Verdict.OK, f"{declaration.auth.kind} with the credentials {reference}")


def _mapping_step(name: str, page: Page | None) -> Step:
    if page is None:
        return Step("mapping", Verdict.UNKNOWN, "there is no page to map")
    if not page.skipped:
        empty = "" if page.rows or page.deleted else ": nothing was there to map"
        return Step("mapping", Verdict.OK, f"{len(page.rows)} rows{empty}")
    problems = dict.fromkeys(f"{one.field or 'row'}: {one.reason}" for one in page.skipped)
    told = "; ".join(list(problems)[:SKIPPED_SHOWN])
    records = len(page.rows) + len(page.deleted) + len(page.skipped)
    return Step(
        "mapping",
        Verdict.WRONG,
        f"{len(page.skipped)} of {records} records do not fit ({told}): correct these columns in "
        f"{name}.yaml (`as`, `scale`, `time_format` and `nulls` convert), or the contract",
    )


def _writable(objects: Objects, name: str) -> str:
    """Ask for a conditional write whose condition never holds: refused for that reason alone."""
    try:
        objects.put_if(f"pollers/{name}/check", b"", etag=_NO_ETAG)
    except PreconditionError:
        return "may be written"
    raise SettingsError("STATE_BUCKET", "ignores conditions of writes: polls could overlap")


def _step(name: str, walk: Callable[[], str]) -> Step:
    try:
        return Step(name, Verdict.OK, walk())
    except FreshetError as error:
        return Step(name, Verdict.WRONG, str(error))


def _is_hidden(column: str, declaration: SourceDeclaration) -> bool:
    """Whether a column is personal by its own name or by that of what it is mapped from."""
    mapping = declaration.columns.get(column)
    paths = [mapping.path, mapping.template, mapping.each] if mapping else []
    return is_personal(column) or any(path and is_personal(path) for path in paths)


# --- saving ---------------------------------------------------------------------------------------


def save(folder: Path, name: str, text: str, *, loads: bool) -> Path:
    """Write a new source file; one that does not load yet is a draft, which no poller reads.

    Raises `UnsavedError`, and writes over nothing.
    """
    path = folder / (f"{name}.yaml" if loads else f"{name}.yaml.draft")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UnsavedError(path, "is there already: choose another name") from None
    except OSError as error:
        raise UnsavedError(path, f"cannot be written ({error.strerror})") from None
    return path
