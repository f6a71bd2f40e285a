"""`freshet docs …`: the data catalogue as files."""

# ruff: noqa: PLC0415 - each command imports what it needs: `freshet --help` answers at once
# ruff: noqa: S608 - SQL is made of our own names

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from local.options import DEFAULT_HOME, HomeOption, cloud_of
from local.output import say

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make the data catalogue.",
    short_help="Make the data catalogue.",
    epilog="Example: freshet docs build --out site",
)
SOURCES = Path(__file__).parents[1] / "sources"
_LAGS = tuple(f"{of}_p{p}_ms" for of in ("event", "accept") for p in (50, 95, 99))
_LAST_DAY = f"""SELECT table_name, {", ".join(_LAGS)} FROM freshness
QUALIFY row_number() OVER (PARTITION BY table_name ORDER BY day DESC) = 1"""
_LAST_COMMIT = """SELECT table_name, max(committed_at) FROM receipts
WHERE table_name IS NOT NULL GROUP BY table_name"""


@app.callback()
def docs() -> None:
    """Make the data catalogue."""


@app.command(epilog="Example: freshet docs build --out site", short_help="Write the catalogue.")
def build(
    context: typer.Context,
    *,
    home: HomeOption = DEFAULT_HOME,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", file_okay=False, help="Folder to write to; made if missing."
        ),
    ] = Path("site"),
    lake: Annotated[
        bool, typer.Option("--lake", help="Tell rows and freshness of the lake too.")
    ] = False,
    markdown_only: Annotated[
        bool, typer.Option("--markdown", help="No HTML, as in docs/catalogue.")
    ] = False,
    sql: Annotated[
        Path | None,
        typer.Option(
            "--sql",
            metavar="DIR",
            file_okay=False,
            help="Write the statements for Athena below it (sql).",
        ),
    ] = None,
) -> None:
    """Write the catalogue of all tables, logs and gold views: a page each, as HTML and Markdown.

    It needs no pipeline and no network; with --lake it tells what the lake knows of itself. Pages
    of what is gone are deleted.
    """
    from freshet.tables import TABLES
    from local.catalogue.ddl import statements

    facts = _facts(context, home) if lake else {}
    files = catalogue_files(facts, with_html=not markdown_only)
    written = write_files(out, files)
    say(f"{out}: {len(files)} files, {written} of them new or changed")
    if sql is not None:
        made = statements(TABLES)
        written = write_files(sql, made, sweep=False)
        say(f"{sql}: {len(made)} files, {written} of them new or changed")


def catalogue_files(
    facts: Mapping[str, Any] | None = None, *, with_html: bool = True
) -> dict[str, str]:
    """The catalogue's files: name -> text. `facts` are a lake's, by table."""
    from freshet.tables import TABLES
    from local.catalogue.content import LINEAGE, Catalogue, lineage, pages
    from local.catalogue.pages import html, markdown
    from local.gold import load_views
    from local.gold_dialects import columns_of
    from local.sql import empty_lake

    views = load_views()
    connection = empty_lake()
    columns = {view.name: columns_of(connection, view) for view in views}
    connection.close()
    catalogue = Catalogue(tuple(TABLES), views, columns, declared_sources(), facts or {})
    made = pages(catalogue)
    files = {LINEAGE: lineage(catalogue)}
    files |= {f"{page.name}.md": markdown(page) for page in made}
    if with_html:
        files |= {f"{page.name}.html": html(page, made) for page in made}
    return files


def declared_sources(folder: Path = SOURCES) -> tuple[Any, ...]:
    """The REST sources that this checkout declares."""
    from api_poller.declaration import load_sources
    from local.catalogue.content import Source

    return tuple(
        Source(name, one.table, " ".join(one.description.split()))
        for name, one in sorted(load_sources(folder).items())
    )


def write_files(folder: Path, files: Mapping[str, str], *, sweep: bool = True) -> int:
    """Write what differs; how many that were. With `sweep`, pages that are not among them go."""
    written = 0
    for name, text in files.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written += 1
    if sweep:
        for path in (*folder.glob("*.md"), *folder.glob("*.html")):
            if path.name not in files and _is_page(path):
                path.unlink()
    return written


def _is_page(path: Path) -> bool:
    """Whether the catalogue wrote it: a folder may hold other files too."""
    text = path.read_text(encoding="utf-8", errors="replace")
    return "· Freshet</title>" in text or text.rstrip().endswith("[All tables](index.md)")


def _facts(context: typer.Context, home: Path) -> dict[str, Any]:
    from local.sql import connect

    with cloud_of(context, home).lake() as (lake, access):
        connection = connect(lake, access)
        try:
            return lake_facts(lake, connection)
        finally:
            connection.close()


def lake_facts(lake: Any, connection: Any) -> dict[str, Any]:
    """What the lake tells of each table: its files' own counts, and its receipts."""
    from freshet.event import json_value
    from freshet.tables import TABLES
    from local.catalogue.content import TableFacts
    from local.sql import ask

    _, last_day = ask(connection, _LAST_DAY)
    lags = {name: dict(zip(_LAGS, rest, strict=True)) for name, *rest in last_day}
    _, commits = ask(connection, _LAST_COMMIT)
    committed = {name: json_value(at) for name, at in commits}
    facts = {}
    for contract in TABLES:
        view = lake.current(contract.table).rows.view()
        facts[contract.table] = TableFacts(
            sum(file.record_count for file in view.files),
            len(view.files),
            sum(file.file_size_in_bytes for file in view.files),
            len(view.table.metadata.snapshots),
            committed.get(contract.table),
            lags.get(contract.table, {}),
        )
    return facts
