"""The gold views: what their files say of themselves, and in which order they can be made.

One file is one view in the SQL that DuckDB, Athena and Redshift share. Its first comment tells a
person what it is; lines in that comment may declare it heavy, so that it is materialised, or name
an engine that cannot have it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from pathlib import Path

from freshet.errors import TerminalError

# Portable SQL, one view a file, named as its file: `sql/gold` of a checkout, `gold` in the wheel.
_CHECKOUT, _PACKAGED = Path(__file__).parents[2] / "sql" / "gold", Path(__file__).parent / "gold"
GOLD = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGED

_HEAVY = re.compile(
    r"^materialise: (?P<every>[a-z]+), key: (?P<key>\w+(?:, \w+)*?)"
    r"(?:, incremental by: (?P<by>\w+))?$"
)
_NOT_IN_REDSHIFT = re.compile(r"^not in redshift: (?P<why>.+)$")


class GoldError(TerminalError):
    """A gold view that cannot be used as it is; carries the view's name."""

    def __init__(self, view: str, detail: str) -> None:
        self.view, self.detail = view, detail
        super().__init__(f"gold view {view}: {detail}")


@dataclass(frozen=True, slots=True)
class Heavy:
    """How a view is materialised: how often, the columns that identify a row, and the date column
    by whose months it is renewed (None: as a whole).
    """

    every: str
    key: tuple[str, ...]
    by: str | None

    def __str__(self) -> str:
        return self.every if self.by is None else f"{self.every}, by month of {self.by}"


@dataclass(frozen=True, slots=True)
class View:
    """One gold view. `sql` is its query without comments; `uses` are the gold views in it.

    `digest` changes when the query or one that it uses does: what was materialised from another
    one is no answer.
    """

    name: str
    sql: str
    description: str
    heavy: Heavy | None
    not_in_redshift: str | None
    uses: frozenset[str] = frozenset()
    digest: str = ""


def load_views(folder: Path = GOLD) -> tuple[View, ...]:
    """Every view of the folder, each after those that it uses.

    Raises `GoldError` for a header that cannot be read and for views that use one another.
    """
    texts = {path.stem: path.read_text() for path in sorted(folder.glob("*.sql"))}
    views = {name: _view(name, text, texts.keys()) for name, text in texts.items()}
    order = TopologicalSorter({name: sorted(view.uses) for name, view in views.items()})
    made = dict[str, View]()
    try:
        for name in order.static_order():
            made[name] = _digested(views[name], made)
    except CycleError as error:
        raise GoldError(str(error.args[1][0]), "uses views that use it again") from error
    return tuple(made.values())


def _digested(view: View, made: Mapping[str, View]) -> View:
    texts = [view.sql, *(made[name].digest for name in sorted(view.uses))]
    return replace(view, digest=sha256("\n".join(texts).encode()).hexdigest()[:16])


def _view(name: str, text: str, names: Iterable[str]) -> View:
    head, body = _parted(text)
    heavy = why = None
    for line in head:
        if line.startswith("materialise"):
            heavy = _heavy(name, line)
        elif found := _NOT_IN_REDSHIFT.match(line):
            why = found["why"]
    described = " ".join(head[: head.index("")] if "" in head else head)
    words = set(re.findall(r"\w+", body))
    return View(name, body, described, heavy, why, frozenset(words & set(names) - {name}))


def _heavy(name: str, line: str) -> Heavy:
    found = _HEAVY.match(line)
    if found is None:
        form = "materialise: daily, key: COLUMN, …[, incremental by: DATE COLUMN]"
        raise GoldError(name, f"its header must say `{form}`, not `{line}`")
    return Heavy(found["every"], tuple(found["key"].split(", ")), found["by"])


def _parted(text: str) -> tuple[list[str], str]:
    """The lines of the first comment, bare, and the query without any comment."""
    lines = text.splitlines()
    end = next((at for at, line in enumerate(lines) if not line.startswith("--")), len(lines))
    head = [line.removeprefix("--").strip() for line in lines[:end]]
    body = [re.sub(r"\s*--.*$", "", line) for line in lines[end:]]
    return head, "\n".join(line for line in body if line.strip())
