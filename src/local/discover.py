"""Proposes a source's declaration from sample answers of an API nobody has described.

The proposal is a file to read and correct, so every line that rests on a guess says what it rests
on. What it says of the sample is checked before it is shown: the file loads, and each sampled
record becomes a row of its table. Values of the sample are never repeated in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from pydantic import SecretStr

from api_poller.auth import authenticator_for
from api_poller.auth_models import ApiKeyAuth, Auth, NoAuth
from api_poller.declaration import DeclarationError, SourceDeclaration, parse_source
from api_poller.http import (
    Limits,
    Request,
    Session,
    SourceError,
    SourceRefusedError,
    UrllibTransport,
    place_of,
)
from api_poller.records import MalformedError, Mapper, Record, RecordsPath
from api_poller.tokens import MemoryTokens
from freshet.clock import utc_now
from freshet.contract import Registry
from freshet.tables import TABLES
from local.observed import NothingToLearnError, Observed, observe, words
from local.paging import Paging, Sample, next_question, paging_of
from local.proposal import Columns, ProposedColumn, columns_of, contract_named, drafted, snake

# One server, a few questions, a person waiting.
LIMITS = Limits(requests_max=40, attempts_max=2, wait_s_max=15.0, answer_s_max=30.0)
_ACCEPT = "application/json, application/x-ndjson;q=0.9, text/csv;q=0.8, */*;q=0.1"
# Words around records that say nothing of what they are.
_GENERIC = frozenset(
    re.findall(
        r"\w+",
        "data items results records rows values list content entries response body hits objects "
        "elements result payload edges nodes api rest all search query json csv export",
    )
)
_SECRET_WORDS = frozenset(("key", "apikey", "token", "secret", "auth", "authorization"))
_RATE_HEADER = re.compile(r"(x-)?ratelimit|(x-)?rate-limit|retry-after|x-app-rate")
_RATE_POLICY = re.compile(r"(\d+)\s*;\s*(?:[a-z]+=[^;]*;\s*)*w=(\d+)")
_PLAIN = re.compile(r"[A-Za-z_$][A-Za-z0-9_.$-]*")
_ADDRESS = re.compile(r"(https?:/)?(/[A-Za-z0-9_.:-]+)+")
_WORDS_OF_YAML = frozenset(("true", "false", "null", "yes", "no", "on", "off"))


@dataclass(frozen=True, slots=True)
class Login:
    """How the samples were asked for: the declared kind of log-in, plain headers, the rest hidden.

    `auth` are the members of the declaration's `auth`, `needed` the fields that the credentials
    will need; `parameter` is the query parameter that is a key.
    """

    auth: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, SecretStr] = field(default_factory=dict)
    parameter: str | None = None
    needed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A declaration as the text of a file; `contract` is the class of a table to be added first.

    `name` is a name for the source, `doubts` what a person has to look at.
    """

    name: str
    table: str
    yaml: str
    contract: str | None
    doubts: tuple[str, ...]


def login_of(url: str, headers: Sequence[str]) -> tuple[str, Login]:
    """The log-in that headers (`Name=value`) and the address's own key make, and the address
    without it. Raises `ValueError` for a header that is not one.
    """
    plain: dict[str, str] = {}
    for text in headers:
        name, equals, value = text.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise ValueError(f"{name!r}: write a header as Name=value")
        plain[name.strip()] = value.strip()
    secret = {name: plain.pop(name) for name in list(plain) if _is_secret(name)}
    given = dict(parse_qsl(urlsplit(url).query))
    parameter = next((name for name in given if _is_secret(name)), None)
    if parameter is not None:
        url, value = _without(url, parameter), given[parameter]
        auth = {"kind": "api_key", "in": "query", "name": parameter}
        return url, Login(
            auth, plain, _hidden(secret, api_key=value), parameter, needed=("api_key",)
        )
    hidden = _hidden(secret)
    for name, value in secret.items():
        auth, needed = _auth_of(name, value)
        return url, Login(auth, plain, hidden, needed=needed)
    return url, Login(headers=plain)


def _hidden(secret: Mapping[str, str], **more: str) -> dict[str, SecretStr]:
    return {name: SecretStr(value) for name, value in {**secret, **more}.items()}


def _is_secret(name: str) -> bool:
    return bool(_SECRET_WORDS & set(words(name))) or name.lower() in ("cookie", "apikey", "appid")


def _auth_of(name: str, value: str) -> tuple[dict[str, str], tuple[str, ...]]:
    scheme = value.partition(" ")[0].lower()
    if name.lower() == "authorization" and scheme == "bearer":
        return {"kind": "bearer"}, ("token",)
    if name.lower() == "authorization" and scheme == "basic":
        return {"kind": "basic"}, ("username", "password")
    return {"kind": "api_key", "in": "header", "name": name}, ("api_key",)


def _without(url: str, parameter: str) -> str:
    parts = urlsplit(url)
    kept = [one for one in parts.query.split("&") if one.partition("=")[0] != parameter]
    return parts._replace(query="&".join(kept), fragment="").geturl()


# --- asking ---------------------------------------------------------------------------------------


def discover(
    url: str,
    login: Login,
    *,
    name: str | None = None,
    table: str | None = None,
    tables: Registry = TABLES,
    progress: Callable[[str], object] = lambda text: None,  # noqa: ARG005
) -> Proposal:
    """Ask the API for what it takes to propose a declaration, as few questions as that needs.

    Only the host of `url` is spoken to. Raises `SourceError`, `SourceRefusedError`,
    `NothingToLearnError`.
    """
    transport = UrllibTransport()
    try:
        session = _session(url, login, transport)
        progress(f"asking {url}")
        first = _asked(session, url, login)
        seen = observe(first.url, first.body, first.headers.get("content-type", ""))
        answers: dict[str, Sample | None] = {}
        while (question := next_question(first, seen, answers)) is not None:
            progress(f"asking {question}")
            try:
                answers[question] = _asked(session, question, login)
            except (SourceError, SourceRefusedError) as error:
                progress(f"no: {error.detail}")
                answers[question] = None
    finally:
        transport.close()
    return propose(
        [first, *filter(None, answers.values())],
        login,
        name=name,
        table=table,
        tables=tables,
        refused=[url for url, one in answers.items() if one is None],
    )


def _session(url: str, login: Login, transport: UrllibTransport) -> Session:
    try:
        place = place_of(url)
    except ValueError as error:
        raise NothingToLearnError(url, str(error), "correct it") from None
    auth: Auth = NoAuth()
    headers = {name: value for name, value in login.secret.items() if name != "api_key"}
    if login.parameter is not None:
        auth = ApiKeyAuth(kind="api_key", in_="query", name=login.parameter)
    signing = authenticator_for(
        auth, login.secret, MemoryTokens(), utc_now, setting="--header", headers=headers
    )
    return Session(
        "discover", LIMITS, frozenset((place,)), signing, transport=transport, allow_loopback=True
    )


def _asked(session: Session, url: str, login: Login) -> Sample:
    answer = session.fetch(Request("GET", url, headers=login.headers, accept=_ACCEPT))
    return Sample(url, answer.body, answer.headers)


# --- proposing ------------------------------------------------------------------------------------


def propose(
    samples: Sequence[Sample],
    login: Login | None = None,
    *,
    name: str | None = None,
    table: str | None = None,
    tables: Registry = TABLES,
    refused: Sequence[str] = (),
) -> Proposal:
    """The declaration that answers suggest: the first shows records, the others how it pages.

    `refused` are addresses for which nothing usable came. Raises `NothingToLearnError`.
    """
    login, first = login or Login(), samples[0]
    seen = observe(first.url, first.body, first.headers.get("content-type", ""))
    answers: dict[str, Sample | None] = {one.url: one for one in samples[1:]}
    paging = paging_of(first, seen, answers | dict.fromkeys(refused))
    table = snake(table or "") or _table(first.url, seen)
    name = name or _name(first.url, table)
    asked = _Asked(name, first, login, seen, paging)
    found, doubts = _columns(table, asked, tables)
    return Proposal(
        name,
        found.contract.table,
        _yaml(asked, found),
        found.text,
        (
            *doubts,
            *found.doubts,
            *paging.doubts,
            *_refused_doubts(paging, refused),
            *_key_doubts(seen),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a proposal is made of, but for the columns."""

    name: str
    first: Sample
    login: Login
    seen: Observed
    paging: Paging


def _columns(table: str, asked: _Asked, tables: Registry) -> tuple[Columns, list[str]]:
    """Columns of the declared table of that name where every record fits it, of a new one else."""
    doubts: list[str] = []
    contract = contract_named(table, tables)
    if contract is not None:
        found = columns_of(contract, asked.seen)
        problem = _misfit(found, asked)
        if problem is None:
            return found, doubts
        doubts.append(f"no rows of table {contract.table} ({problem}): a table of its own instead")
        table = asked.name if table in tables.names else table
    found = drafted(table, asked.seen)
    problem = _misfit(found, asked)
    if problem is not None:
        raise NothingToLearnError(asked.first.url, problem, "declare this source by hand")
    return found, doubts


def _misfit(found: Columns, asked: _Asked) -> str | None:
    """Why the file does not load, or a sampled record is no row; None where all is well."""
    if found.missing:
        return f"nothing found for {', '.join(found.missing)}"
    if not found.contract.key:
        return "no member identifies a record"
    try:
        declaration = parse_source(_yaml(asked, found), "proposal", Registry((found.contract,)))
        records = list(_records(declaration, asked.seen))
    except (DeclarationError, MalformedError) as error:
        return str(error)
    mapper = Mapper(declaration, found.contract)
    for record in records:
        mapped = mapper.map(record)
        if mapped.skipped is not None:
            return f"{mapped.skipped.field or 'a row'}: {mapped.skipped.reason}"
    return None


def _records(declaration: SourceDeclaration, seen: Observed) -> Iterator[Record]:
    path = RecordsPath(declaration.records)
    for item in path.items(seen.document):
        yield from path.records(item, None)


def _table(url: str, seen: Observed) -> str:
    """What the records are called: the last word that says something, in the answer or address."""
    steps = [step for step in seen.records_path.split(".") if step]
    steps = [*[s for s in urlsplit(url).path.split("/") if s], *steps]
    for step in reversed(steps):
        name = snake(re.sub(r"\.[a-z]{2,5}$", "", step))
        if re.fullmatch(r"[a-z][a-z_]{1,40}", name) and name not in _GENERIC:
            return name
    return "rows"


def _name(url: str, table: str) -> str:
    labels = [one for one in (urlsplit(url).hostname or "").split(".") if one not in ("www", "api")]
    word = snake(labels[-2] if len(labels) > 1 else "".join(labels[:1]))
    return f"{word}_{table}" if word[:1].isalpha() else f"local_{table}"


def _refused_doubts(paging: Paging, refused: Sequence[str]) -> Iterator[str]:
    if refused and paging.declared["kind"] == "none":
        yield f"{len(refused)} questions about pages got no answer, the first {refused[0]}"


def _key_doubts(seen: Observed) -> Iterator[str]:
    if len(seen.records) < 2 and seen.records_path != ".":
        yield "one record proves nothing: ask for more, to see what is unique and how it pages"
    elif len(seen.key) > 1:
        yield f"no single member is unique; {' and '.join(seen.key)} together are: check that"


# --- the file -------------------------------------------------------------------------------------


def _yaml(asked: _Asked, found: Columns) -> str:
    seen, paging, parts = asked.seen, asked.paging, urlsplit(asked.first.url)
    base, _, last = parts.path.rpartition("/")
    if not last:  # a path that ends with a slash keeps it: some servers redirect without it
        base, last = base.rpartition("/")[0], f"{base.rpartition('/')[2]}/"
    where = f"at {seen.records_path}" if seen.records_path else "at the top"
    lines = [
        "# Proposed by `freshet source discover`. Read every line before you use it.",
        f"# The sample: {len(seen.records)} records {where}, of {len(seen.members)} members.",
        f"table: {found.contract.table}",
        f"description: {_text(f'{found.contract.table} of {parts.netloc}')}",
        f"url: {_text(f'{parts.scheme}://{parts.netloc}{base}')}",
        f"path: {_text(f'/{last}')}" if last.strip("/") else 'path: ""',
        *_asked_with(asked),
        f"format: {seen.format}",
        *([f"delimiter: {_text(seen.delimiter)}"] if seen.delimiter != "," else []),
        *([f"records: {_text(seen.records_path)}"] if seen.format == "json" else []),
        *(f"# each record holds a list: `records: {_text(one)}` lists that" for one in seen.inner),
        *_auth_lines(asked),
        "pagination:",
        *(f"  {member}: {_text(value)}" for member, value in paging.declared.items()),
        f"  # {paging.why}",
        "columns:",
        *(f"  {_column_line(column)}" for column in found.columns),
        *_left_lines(found),
        *_sync_lines(seen, found),
        *_limit_lines(asked.first),
        "schedule: rate(1 hour)",
    ]
    return "\n".join(lines) + "\n"


def _asked_with(asked: _Asked) -> Iterator[str]:
    """Headers and query parameters of the sample, without what the pager sets itself."""
    login, paging = asked.login, asked.paging
    if login.headers:
        yield "headers:"
        yield from (f"  {_text(name)}: {_text(value)}" for name, value in login.headers.items())
    given = parse_qsl(urlsplit(asked.first.url).query, keep_blank_values=True)
    params = {name: value for name, value in given if name not in paging.owns}
    if params:
        yield "params:"
        yield from (f"  {_text(name)}: {_quoted(value)}" for name, value in params.items())


def _auth_lines(asked: _Asked) -> Iterator[str]:
    login = asked.login
    if not login.auth:
        return
    members = ", ".join(f"{member}: {_text(value)}" for member, value in login.auth.items())
    reference = snake(asked.name).upper()
    yield f"auth: {{{members}}}"
    yield f"credentials: {reference}  # {' and '.join(login.needed)}, in {reference}_CREDENTIALS"


def _column_line(column: ProposedColumn) -> str:
    mapping = dict(column.mapping)
    member = column.member
    note = column.note
    if member is not None and not member.always:
        note += ", not in every record"
    if set(mapping) == {"path"}:
        return f"{column.name}: {_text(mapping['path'])}  # {note}"
    members = ", ".join(f"{name}: {_text(value)}" for name, value in mapping.items())
    return f"{column.name}: {{{members}}}  # {note}"


def _left_lines(found: Columns) -> Iterator[str]:
    left = [f"{one.path} ({one.kind.value})" for one in found.left]
    if left:
        yield f"# not mapped: {', '.join(left)}"
    personal = [one.path for one in found.personal]
    if personal:
        yield f"# personal by name, so only map what you need: {', '.join(personal)}"


def _sync_lines(seen: Observed, found: Columns) -> Iterator[str]:
    for column in found.columns:
        if column.member and "updated" in column.name and column.member.kind.value.endswith("time"):
            yield f"occurred_at: {column.name}"
            break
    yield "sync: {mode: full}  # lists everything, so deletes are found"
    changed = [
        one.path
        for one in seen.members
        if {"updated", "modified", "changed"} & set(words(one.path)) and "time" in one.kind.value
    ]
    rising = [one.path for one in seen.members if one.rising and one.path in seen.key]
    if changed:
        yield f"# incremental needs a parameter that takes a time; the cursor could be {changed[0]}"
    elif rising and len(seen.records) > 2:
        yield f"# new records could be found by {rising[0]}, which only grows; changes could not"


def _limit_lines(first: Sample) -> Iterator[str]:
    shown = {name: one for name, one in first.headers.items() if _RATE_HEADER.match(name)}
    for name, value in shown.items():
        yield f"# it says {name}: {_quoted(value[:80])}"
    for value in shown.values():
        policy = _RATE_POLICY.search(value)
        if policy and int(policy[2]) and 0 < int(policy[1]) / int(policy[2]) < 10:
            rate = round(int(policy[1]) / int(policy[2]), 3)
            yield f"limits: {{requests_per_second: {max(rate, 0.001)}}}"
            return


def _text(value: object) -> str:
    """A value as YAML that is read as just that."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(_text(one) for one in value)}]"
    text = str(value)
    plain = _PLAIN.fullmatch(text) and text.lower() not in _WORDS_OF_YAML
    return text if plain or _ADDRESS.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def contract_module(text: str) -> str:
    """A new table's class with the imports it needs, as a module of its own would be written."""
    return (
        "from datetime import date, datetime\nfrom decimal import Decimal\n"
        "from typing import Annotated\n\nfrom pydantic import Field\n\n"
        "from freshet.contract import (\n    Contract, Day, Flag, Integer, Money, "
        f"PartitionField, Text, Timestamp,\n)\n\n\n{text}"
    )
