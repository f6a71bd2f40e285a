"""What the catalogue says: pages made from contracts, logs, gold views, declared sources and, where
a lake is at hand, what it tells of itself. The same declarations give the same pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlglot
from sqlglot import exp

from freshet.arrow import LAKE_COLUMNS
from freshet.contract import Column, Contract
from freshet.lock import type_text
from lake.log import LOGS
from lake.spec import rows_spec, table_words
from local.catalogue.ddl import athena_type, log_words, sample_queries, table_statement
from local.catalogue.lineage import Layer, drawing
from local.catalogue.pages import Block, Drawing, Page, Rows, Sql, Title, Words
from local.gold import View

LINEAGE = "lineage.svg"
_HANDLED = {
    "hash": "hashed (HMAC-SHA-256) before it reaches the stream",
    "drop": "dropped before it reaches the stream",
}
_STREAM = "change stream"
_NONE = ""


@dataclass(frozen=True, slots=True)
class Source:
    """A declared source: its name, the table it feeds and what it says of itself."""

    name: str
    table: str
    description: str


@dataclass(frozen=True, slots=True)
class TableFacts:
    """What a lake tells of one table. Lags in milliseconds, of the last day that had changes."""

    rows: int
    files: int
    size_bytes: int
    snapshots: int
    committed_at: str | None = None
    lags_ms: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All that the pages are made from; `facts` is empty where no lake is at hand.

    `view_columns` are the names and types of each gold view's columns.
    """

    contracts: Sequence[type[Contract]]
    views: Sequence[View]
    view_columns: Mapping[str, Sequence[tuple[str, str]]]
    sources: Sequence[Source] = ()
    facts: Mapping[str, TableFacts] = field(default_factory=dict)

    def uses(self, view: View) -> tuple[str, ...]:
        """The tables, logs and views that a view reads."""
        tree = sqlglot.parse_one(view.sql, dialect="duckdb")
        steps = {step.alias for step in tree.find_all(exp.CTE)}
        read = {table.name for table in tree.find_all(exp.Table)} - steps
        known = [*(one.table for one in self.contracts), *LOGS, *(one.name for one in self.views)]
        return tuple(name for name in known if name in read)

    def readers(self, name: str) -> tuple[str, ...]:
        """The gold views that read a table or log themselves."""
        return tuple(view.name for view in self.views if name in self.uses(view))


def pages(catalogue: Catalogue) -> tuple[Page, ...]:
    """Every page, in the order of the navigation."""
    return (
        _index(catalogue),
        *(_table_page(catalogue, one) for one in catalogue.contracts),
        *(_log_page(catalogue, name) for name in LOGS),
        *(_view_page(catalogue, one) for one in catalogue.views),
    )


# --- the first page -------------------------------------------------------------------------------


def _index(catalogue: Catalogue) -> Page:
    blocks: list[Block] = [
        Words(
            "Every table of the lake: what it holds, who feeds it and who reads it. Made from the "
            "contracts by `freshet docs build`; the words here are those in Glue."
        ),
        Drawing(
            LINEAGE,
            lineage(catalogue),
            "Sources feed the change stream, the stream tables and logs, and these the gold views",
        ),
        Title("Current state"),
        Words("One row a key, as the newest change left it. Iceberg, read by any engine."),
        Rows(
            ("Table", "What it holds", "Merge key", "Partitioned by", "Personal data"),
            tuple(_table_line(one) for one in catalogue.contracts),
        ),
    ]
    if catalogue.facts:
        blocks += [Title("Freshness"), _freshness_rows(catalogue)]
    blocks += [
        Title("Logs"),
        Words("Append-only, by table and day. They find their files by partition projection."),
        Rows(
            ("Log", "What it holds"),
            tuple((f"[{name}]({name})", one.description) for name, one in log_words().items()),
        ),
        Title("Gold views"),
        Rows(
            ("View", "What it answers", "Reads"),
            tuple(
                (f"[{one.name}]({one.name})", _first(one.description), _links(catalogue.uses(one)))
                for one in catalogue.views
            ),
        ),
    ]
    return Page("index", "Data catalogue", "Freshet", tuple(blocks))


def _table_line(contract: type[Contract]) -> tuple[str, ...]:
    personal = [f"`{column.name}`" for column in contract.columns if column.pii]
    return (
        f"[{contract.table}]({contract.table})",
        table_words(contract),
        _codes(contract.key),
        _codes(map(str, contract.partition)) or _NONE,
        ", ".join(personal) or _NONE,
    )


def _freshness_rows(catalogue: Catalogue) -> Rows:
    lags = ("event_p50_ms", "event_p95_ms", "event_p99_ms")
    return Rows(
        ("Table", "Rows", "Data files", "Last commit", "Event to queryable p50", "p95", "p99"),
        tuple(
            (
                f"[{name}]({name})",
                f"{one.rows:,}",
                f"{one.files:,}",
                one.committed_at or _NONE,
                *(_lag(one.lags_ms.get(lag)) for lag in lags),
            )
            for name, one in catalogue.facts.items()
        ),
    )


def lineage(catalogue: Catalogue) -> str:
    """The lineage drawing of the whole catalogue."""
    names = {view.name: catalogue.uses(view) for view in catalogue.views}
    depth = dict[str, int]()
    for view in catalogue.views:  # each comes after those that it uses
        depth[view.name] = 1 + max((depth.get(used, 0) for used in names[view.name]), default=0)
    tables = [one.table for one in catalogue.contracts]
    senders = [f"source {one.name}" for one in catalogue.sources]
    layers = [
        Layer("Sources", "source", (*senders, "HTTP producer", "Debezium, DMS")),
        Layer("Stream", "stream", (_STREAM,)),
        Layer("Current state and logs", "table", (*tables, *LOGS)),
    ]
    for level in sorted(set(depth.values())):
        heading = "Gold views" if level == 1 else "made of them"
        made = tuple(name for name, its in depth.items() if its == level)
        layers.append(Layer(heading, "gold", made))
    feeds: dict[str, Sequence[str]] = {_STREAM: layers[0].names}
    feeds |= dict.fromkeys((*tables, *LOGS), (_STREAM,))
    return drawing(layers, feeds | names)


# --- a table --------------------------------------------------------------------------------------


def _table_page(catalogue: Catalogue, contract: type[Contract]) -> Page:
    facts = catalogue.facts.get(contract.table)
    paragraphs = (contract.__doc__ or "").strip().split("\n\n")
    blocks: list[Block] = [Words(" ".join(one.split())) for one in paragraphs if one.strip()]
    blocks += [
        Rows(("", ""), tuple(_contract_facts(catalogue, contract))),
        Title("Columns"),
        Rows(
            ("Column", "Type", "In Athena", "Null", "Personal data", "Description"),
            tuple(_column_lines(contract)),
        ),
    ]
    if facts is not None:
        blocks += [Title("In the lake"), Rows(("", ""), tuple(_lake_facts(facts)))]
    blocks.append(Title("Queries to begin with"))
    blocks.append(Words("The same in Athena and on a laptop (`freshet query`)."))
    for query in sample_queries(contract):
        blocks += [Words(f"{query.asks}."), Sql(query.sql)]
    blocks += [Title("As Athena declares it"), Sql(table_statement(contract))]
    return Page(contract.table, contract.table, "Current state", tuple(blocks))


def _contract_facts(catalogue: Catalogue, contract: type[Contract]) -> list[tuple[str, str]]:
    sources = [one for one in catalogue.sources if one.table == contract.table]
    told = [
        f"`{one.name}`" + (f" ({one.description})" if one.description else "") for one in sources
    ]
    readers = catalogue.readers(contract.table)
    return [
        ("Merge key", _codes(contract.key)),
        ("Partitioned by", _codes(map(str, contract.partition)) or "nothing: one partition"),
        ("Contract version", str(contract.contract_version)),
        ("Versions trusted", _trusted(contract)),
        ("Polled from", "; ".join(told) or "no declared source"),
        ("Read by", _links(readers) or "no gold view"),
    ]


def _trusted(contract: type[Contract]) -> str:
    return "of every source" if contract.trusts == ("*",) else f"of {_codes(contract.trusts)} only"


def _column_lines(contract: type[Contract]) -> list[tuple[str, ...]]:
    spec = rows_spec(contract)
    lines = [
        (
            f"`{column.name}`",
            f"`{type_text(column.type)}`",
            f"`{athena_type(spec.schema.field(column.name).type)}`",
            "yes" if column.nullable else "no",
            _NONE if column.pii is None else _HANDLED[column.pii],
            _column_words(contract, column),
        )
        for column in contract.columns
    ]
    own = [
        (
            f"`{one.name}`",
            "Freshet's own",
            f"`{athena_type(one.type)}`",
            "yes" if one.nullable else "no",
            _NONE,
            spec.descriptions.get(one.name, ""),
        )
        for one in LAKE_COLUMNS
    ]
    return [*lines, *own]


def _column_words(contract: type[Contract], column: Column) -> str:
    parts = [column.words]
    if column.name in contract.key:
        parts.append("Part of the merge key")
    if column.aliases:
        parts.append(f"Formerly {_codes(column.aliases)}, which is still understood")
    return ". ".join(part for part in parts if part)


def _lake_facts(facts: TableFacts) -> list[tuple[str, str]]:
    lags = [(name, lag) for name, lag in facts.lags_ms.items() if lag is not None]
    return [
        ("Rows", f"{facts.rows:,}"),
        ("Data files", f"{facts.files:,} of {facts.size_bytes / 1e6:,.1f} MB together"),
        ("Snapshots", f"{facts.snapshots:,}"),
        ("Last commit", facts.committed_at or _NONE),
        *((_lag_words(name), _lag(lag)) for name, lag in lags),
    ]


def _lag_words(name: str) -> str:
    of, percentile, _ = name.split("_")
    begins = {"event": "Event", "accept": "Acceptance"}[of]
    return f"{begins} to queryable, {percentile}"


def _lag(milliseconds: int | None) -> str:
    return _NONE if milliseconds is None else f"{milliseconds / 1000:,.1f} s"


# --- logs and views -------------------------------------------------------------------------------


def _log_page(catalogue: Catalogue, name: str) -> Page:
    shape, words = LOGS[name], log_words()[name]
    kinds = {
        one.name: athena_type(one.type) for one in shape.schema if one.name not in shape.folders
    }
    rows = [
        (
            f"`{column}`",
            f"`{kinds.get(column, 'string')}`",
            "" if column in kinds else "folder",
            told,
        )
        for column, told in words.columns.items()
    ]
    by = Words(f"Lies by {_codes(shape.folders)}: name one and only its files are read.")
    readers = _links(catalogue.readers(name)) or "no gold view"
    blocks: tuple[Block, ...] = (
        Words(words.description + "."),
        by,
        Words(f"Read by {readers}."),
        Title("Columns"),
        Rows(("Column", "In Athena", "Where", "Description"), tuple(rows)),
    )
    return Page(name, name, "Logs", blocks)


def _view_page(catalogue: Catalogue, view: View) -> Page:
    kept = "asked anew each time" if view.heavy is None else f"materialised {view.heavy}"
    facts = [
        ("Kept", kept),
        ("Reads", _links(catalogue.uses(view))),
        ("Read by", _links(catalogue.readers(view.name)) or "no gold view"),
        ("In Redshift", f"no: {view.not_in_redshift}" if view.not_in_redshift else "yes"),
    ]
    columns = catalogue.view_columns.get(view.name, ())
    blocks: tuple[Block, ...] = (
        Words(view.description),
        Rows(("", ""), tuple(facts)),
        Title("Columns"),
        Rows(("Column", "Type"), tuple((f"`{one}`", f"`{kind.lower()}`") for one, kind in columns)),
        Title("Query"),
        Sql(view.sql),
    )
    return Page(view.name, view.name, "Gold views", blocks)


def _first(text: str) -> str:
    return text.partition(". ")[0].rstrip(".") + "."


def _codes(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _links(names: Sequence[str]) -> str:
    return ", ".join(f"[{name}]({name})" for name in names)
