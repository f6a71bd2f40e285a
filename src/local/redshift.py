"""`freshet redshift apply`: the lake in Redshift, statement by statement through its Data API.

The statements are the files of `sql/redshift`: external schema, late-binding views, materialised
views. Each may be run again, so a run that was cut short is completed by the next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from freshet.errors import TerminalError

# `sql/redshift` of a checkout, `redshift_sql` in the wheel.
_CHECKOUT, _PACKAGED = (
    Path(__file__).parents[2] / "sql/redshift",
    Path(__file__).parent / "redshift_sql",
)
SQL = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGED
FIRST = "external_schema"
_READERS = 'GRANT SELECT ON ALL TABLES IN SCHEMA gold TO ROLE :"readers"'
_EXTERNAL = re.compile(
    r"DATABASE '(?P<database>[^']+)' REGION '(?P<region>[^']+)' IAM_ROLE '(?P<role_arn>[^']+)'"
)
# psql's variables: :'name' is a literal, :"name" an identifier.
_VARIABLE = re.compile(r""":(?P<quote>['"])(?P<name>\w+)(?P=quote)""")
_TOKEN = re.compile(r"--[^\n]*|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|;|[^-'\";]+|-", re.DOTALL)
_SHOWN = re.compile(r"(?:IF (?:NOT )?EXISTS )?(?P<name>[\w.]+)")
# Between two looks at a statement; a workgroup that rests takes a minute to answer its first.
_PAUSE_S, _PAUSE_S_MAX = 0.25, 3.0
LOOKS_MAX = 1200
_ENDED = ("FINISHED", "FAILED", "ABORTED")


class RedshiftError(TerminalError):
    """A statement that Redshift refused or that failed there."""

    def __init__(self, what: str, detail: str) -> None:
        self.what = what
        super().__init__(f"Redshift, {what}: {' '.join(detail.split())}")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement and the file that it is of."""

    file: str
    sql: str

    @property
    def what(self) -> str:
        """Its first words and what it is about: `CREATE OR REPLACE VIEW gold.sales_by_day`."""
        text = " ".join(self.sql.split())
        verb = re.match(r"[A-Z]+(?: (?!IF\b)[A-Z]+)*", text)
        rest = text[verb.end() :].strip() if verb else text
        named = _SHOWN.match(rest)
        return f"{verb[0] if verb else ''} {named['name'] if named else ''}".strip()


@dataclass(frozen=True, slots=True)
class Target:
    """Where statements run: a serverless workgroup, or a cluster as a database user."""

    database: str
    workgroup: str | None = None
    cluster: str | None = None
    user: str | None = None
    secret_arn: str | None = None

    def options(self) -> dict[str, str]:
        """What the Data API is told of it."""
        named = {
            "Database": self.database,
            "WorkgroupName": self.workgroup,
            "ClusterIdentifier": self.cluster,
            "DbUser": self.user,
            "SecretArn": self.secret_arn,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Step:
    """How far an apply is: of `total` statements the `number`-th, its state and seconds so far."""

    number: int
    total: int
    statement: Statement
    state: str
    elapsed_s: float


def load_statements(
    variables: Mapping[str, str], views: Iterable[str], folder: Path = SQL
) -> tuple[Statement, ...]:
    """All statements in order: external schema, `views` (each after those it uses), materialised.

    Queries in the files, which are for people to try, are left out; so are grants where `variables`
    name no `readers`. Raises `RedshiftError` for a variable that is missing.
    """
    paths = [folder / f"{FIRST}.sql"]
    paths += [folder / f"{view}.sql" for view in views]
    paths += sorted((folder / "materialised").glob("*.sql"))
    found = [
        Statement(path.stem, sql)
        for path in paths
        if path.exists()
        for sql in split(path.read_text(encoding="utf-8"))
        if not _is_query(sql) and ("readers" in variables or not sql.startswith("GRANT "))
    ]
    if "readers" in variables:
        found.append(Statement("readers", _READERS))
    return tuple(Statement(one.file, filled(one, variables)) for one in found)


def variables_of(external_schema: str) -> dict[str, str]:
    """Database, region and role as a stack's output `RedshiftExternalSchema` names them.

    Raises `RedshiftError`.
    """
    found = _EXTERNAL.search(" ".join(external_schema.split()))
    if found is None:
        raise RedshiftError("the stack's output RedshiftExternalSchema", "is not as it was written")
    return found.groupdict()


def split(text: str) -> Iterator[str]:
    """The statements of a file, without comments."""
    parts = list[str]()
    for token in _TOKEN.findall(text + ";"):
        if token == ";":  # noqa: S105 - of a statement, not of a secret
            sql = "".join(parts).strip()
            parts.clear()
            if sql:
                yield sql
        elif not token.startswith("--"):
            parts.append(token)


def filled(statement: Statement, variables: Mapping[str, str]) -> str:
    """A statement's SQL with psql's variables replaced, quoted as psql does."""

    def value(found: re.Match[str]) -> str:
        name, quote = found["name"], found["quote"]
        if name not in variables:
            raise RedshiftError(statement.what, f"needs a value for {name!r}")
        return quote + variables[name].replace(quote, 2 * quote) + quote

    return _VARIABLE.sub(value, statement.sql)


def _is_query(sql: str) -> bool:
    return re.match(r"(SELECT|WITH)\b", sql, re.IGNORECASE) is not None


def apply(
    client: Any,
    statements: Iterable[Statement],
    target: Target,
    *,
    wait: Callable[[float], object],
    clock: Callable[[], float],
    progress: Callable[[Step], object] = lambda _step: None,
) -> tuple[Step, ...]:
    """Run the statements one after the other; `progress` is told at every look at each.

    `client` is boto3's `redshift-data`. One that fails ends it: those before it are done. Raises
    `RedshiftError`, naming file and statement.
    """
    todo, done = tuple(statements), list[Step]()
    for number, statement in enumerate(todo, start=1):
        began = clock()
        statement_id = _sent(client, statement, target)
        for state, detail in _states(client, statement, statement_id, wait):
            step = Step(number, len(todo), statement, state, clock() - began)
            progress(step)
            if state in _ENDED and state != "FINISHED":
                raise RedshiftError(f"{statement.file}.sql, {statement.what}", detail)
        done.append(step)
    return tuple(done)


def _sent(client: Any, statement: Statement, target: Target) -> str:
    try:
        answer = client.execute_statement(
            Sql=statement.sql, StatementName=f"freshet {statement.file}", **target.options()
        )
    except (ClientError, BotoCoreError) as error:
        raise RedshiftError(f"{statement.file}.sql, {statement.what}", str(error)) from error
    return str(answer["Id"])


def _states(
    client: Any, statement: Statement, statement_id: str, wait: Callable[[float], object]
) -> Iterator[tuple[str, str]]:
    """A statement's states as they are seen, and what is said of each; the last one has ended."""
    pause = _PAUSE_S
    for _ in range(LOOKS_MAX):
        try:
            told = client.describe_statement(Id=statement_id)
        except (ClientError, BotoCoreError) as error:
            raise RedshiftError(f"{statement.file}.sql, {statement.what}", str(error)) from error
        yield told["Status"], told.get("Error", f"is {told['Status'].lower()}")
        if told["Status"] in _ENDED:
            return
        wait(pause)
        pause = min(2 * pause, _PAUSE_S_MAX)
    detail = f"was not done in time; ask the console for statement {statement_id}"
    raise RedshiftError(f"{statement.file}.sql, {statement.what}", detail)
