"""Gold views in Athena: light ones as views, heavy ones as Iceberg tables that follow them.

awswrangler runs the statements; it is imported when the first one does, since it brings pandas.
"""

# ruff: noqa: S608 - SQL is made of our own names

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Protocol

from freshet.errors import TerminalError
from local.gold import View
from local.gold_dialects import (
    Column,
    athena_changed,
    athena_merge,
    athena_table,
    athena_type,
    athena_view,
)

# A merge names the days it looks at; a first one of years of them names months' worth at a time,
# and so keeps below Athena's 262,144 bytes of a statement and 100 partitions of a write.
DATES_MAX = 1_000


class AthenaError(TerminalError):
    """A statement that Athena refused or that failed there."""

    def __init__(self, what: str, detail: str) -> None:
        self.what = what
        super().__init__(f"Athena, {what}: {' '.join(detail.split())}")


class Athena(Protocol):
    """Runs one statement at a time in one database."""

    def run(self, statement: str, what: str) -> None:
        """Run it and wait. `what` names it in an error. Raises `AthenaError`."""

    def rows(self, query: str, what: str) -> list[tuple[Any, ...]]:
        """The rows of a query. Raises `AthenaError`."""


@dataclass(frozen=True)
class WranglerAthena:
    """Athena by way of awswrangler; the workgroup says where results go and how much is scanned."""

    session: Any
    database: str
    workgroup: str

    def run(self, statement: str, what: str) -> None:
        """See `Athena`."""
        import awswrangler as wr  # noqa: PLC0415 - see above

        self._asked(what, wr.athena.start_query_execution, statement, wait=True)

    def rows(self, query: str, what: str) -> list[tuple[Any, ...]]:
        """See `Athena`."""
        import awswrangler as wr  # noqa: PLC0415 - see above

        frame = self._asked(what, wr.athena.read_sql_query, query, ctas_approach=False)
        return list(frame.itertuples(index=False, name=None))

    def _asked(self, what: str, call: Any, sql: str, **options: Any) -> Any:
        from awswrangler.exceptions import (  # noqa: PLC0415 - see above
            QueryCancelled,
            QueryFailed,
        )
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415 - see above

        where = {"database": self.database, "workgroup": self.workgroup}
        try:
            return call(sql, **where, boto3_session=self.session, **options)
        except (QueryFailed, QueryCancelled, ClientError, BotoCoreError) as error:
            raise AthenaError(what, str(error)) from error


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of one view: `view`, `table` made, `renewed` or `unchanged`."""

    view: str
    did: str
    days: int | None = None


def apply(
    athena: Athena, views: Sequence[tuple[View, Sequence[Column]]], *, database: str, root: str
) -> Iterator[Applied]:
    """Create or replace every view, and bring the tables of the heavy ones up to date, in order.

    Each statement is atomic and safe to repeat; a run that was cut short is completed by the next.
    Tables lie below `root` (`s3://bucket/prefix`). Raises `AthenaError`.
    """
    for view, columns in views:
        if view.heavy is None:
            athena.run(athena_view(view), f"view {view.name}")
            yield Applied(view.name, "view")
        else:
            yield _materialised(athena, view, columns, database=database, root=root)


def _materialised(
    athena: Athena, view: View, columns: Sequence[Column], *, database: str, root: str
) -> Applied:
    what = f"table {view.name}"
    made = _table(athena, view, columns, database=database, root=root)
    if view.heavy is None or view.heavy.by is None:
        athena.run(athena_merge(view, columns), what)
        return Applied(view.name, "table" if made else "renewed")
    days: list[date] = [day for (day,) in athena.rows(athena_changed(view), what)]
    for start in range(0, len(days), DATES_MAX):
        athena.run(athena_merge(view, columns, days[start : start + DATES_MAX]), what)
    did = "table" if made else "renewed" if days else "unchanged"
    return Applied(view.name, did, len(days))


def _table(
    athena: Athena, view: View, columns: Sequence[Column], *, database: str, root: str
) -> bool:
    """Make the table where there is none, or one of other columns; whether it was made."""
    what = f"table {view.name}"
    held = athena.rows(
        "SELECT column_name, data_type FROM information_schema.columns "
        f"WHERE table_schema = '{database}' AND table_name = '{view.name}' "
        "ORDER BY ordinal_position",
        what,
    )
    if [(name, _plain(kind)) for name, kind in held] == [
        (name, _plain(athena_type(kind))) for name, kind in columns
    ]:
        return False
    if held:  # nothing is in it that the view cannot tell again
        athena.run(f"DROP TABLE {view.name}", what)
    athena.run(athena_table(view, columns, f"{root}/gold/{view.name}/"), what)
    return True


# What Athena calls the types of a table when it is asked, where a declaration calls them otherwise.
_ASKED = {"varchar": "string", "integer": "int", "timestamp(6)": "timestamp"}


def _plain(kind: str) -> str:
    return _ASKED.get(kind, kind.replace(" ", ""))
