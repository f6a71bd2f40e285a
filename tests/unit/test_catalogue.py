"""The data catalogue: its pages in both forms, the drawing, the statements, and that what is
committed of them is what the contracts say.
"""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import sqlglot
import yaml
from tests.evolving import ID, Declared, contract
from tests.template.stack import stack
from typer.testing import CliRunner

from freshet.contract import PartitionField, Real, Text, Timestamp
from freshet.tables import TABLES
from lake.log import LOGS
from local import docs_commands
from local.catalogue.content import Catalogue, Source, TableFacts, lineage, pages
from local.catalogue.ddl import log_words, sample_queries, statements, table_statement
from local.catalogue.lineage import BOX_W, Layer, drawing
from local.catalogue.pages import Page, Rows, Sql, Title, Words, html, markdown
from local.docs_commands import app, catalogue_files, write_files
from local.gold import View, load_views
from local.sql import ask, empty_lake

ROOT = Path(__file__).parents[2]
FILES = catalogue_files()
SVG = "{http://www.w3.org/2000/svg}"
VISITS = contract(
    {
        "id": ID,
        "remark": Declared(
            Text(50), optional=True, aliases=("note",), description="What | was <said>"
        ),
        "email": Declared(Text(99), optional=True, pii="hash", description="Who"),
        "weight": Declared(Real(32), optional=True, deprecated="it was never weighed"),
        "at": Declared(Timestamp(), description="When"),
    },
    table="visits",
    partition=(PartitionField("day", "at"), PartitionField("bucket", "id", 8)),
    words="Visits that were paid.\n\nA second paragraph.",
    trusts=("debezium/*",),
)
LATE = View("late_visits", "SELECT id FROM visits WHERE at IS NULL", "Late ones.", None, None)
OF_THEM = View(
    "worst", "SELECT id FROM late_visits", "The worst.", None, "no", frozenset({"late_visits"})
)
CATALOGUE = Catalogue(
    (VISITS,),
    (LATE, OF_THEM),
    {"late_visits": [("id", "VARCHAR")]},
    (Source("door", "visits", "The door"),),
    {"visits": TableFacts(1234, 5, 6_000_000, 7, "2026-11-21T08:30:00Z", {"event_p50_ms": 1500})},
)
PAGES = {page.name: page for page in pages(CATALOGUE)}


def test_the_committed_catalogue_is_what_the_contracts_say() -> None:
    folder = ROOT / "docs" / "catalogue"
    wanted = catalogue_files(with_html=False)

    held = {path.name: path.read_text() for path in folder.iterdir()}

    assert held == wanted, "run `freshet docs build --markdown --out docs/catalogue`"


def test_the_committed_statements_are_what_the_contracts_say() -> None:
    wanted = statements(TABLES)
    held = {
        str(path.relative_to(ROOT / "sql")): path.read_text()
        for folder in ("tables", "queries")
        for path in (ROOT / "sql" / "athena" / folder).iterdir()
    }

    assert held == wanted, "run `freshet docs build --sql sql`"


def test_the_same_contracts_give_the_same_files() -> None:
    assert catalogue_files() == FILES


def test_every_table_log_and_view_has_a_page_in_both_forms() -> None:
    names = {"index", *TABLES.names, *LOGS, *(view.name for view in load_views())}

    assert FILES.keys() == {f"{name}.{end}" for name in names for end in ("md", "html")} | {
        "lineage.svg"
    }


def test_a_tables_page_says_all_there_is_to_know() -> None:
    text = markdown(PAGES["visits"])

    assert "A second paragraph." in text
    assert "| Partitioned by | `day(at)`, `bucket[8](id)` |" in text
    assert "| Versions trusted | of `debezium/*` only |" in text
    assert "`door` (The door)" in text
    assert "[late_visits](late_visits.md)" in text
    assert (
        "| `remark` | `text(50)` | `string` | yes |  | What \\| was \\<said\\>. Formerly `note`"
        in text
    )
    assert "| `email` | `text(99)` | `string` | yes | hashed" in text
    assert "| `weight` | `real(32)` | `float` | yes |  | Deprecated: it was never weighed |" in text
    assert "| Rows | 1,234 |" in text
    assert "| Event to queryable, p50 | 1.5 s |" in text


def test_a_view_reads_what_it_names_in_from_and_not_what_it_calls_something() -> None:
    sql = (
        "WITH worst AS (FROM receipts) "
        "SELECT 'visits' AS quarantine FROM worst, change_log AS visits"
    )
    view = View("odd", sql, "Odd.", None, None)

    assert CATALOGUE.uses(view) == ("change_log", "receipts")


def test_the_shipped_views_read_what_they_say() -> None:
    text = FILES["sale_changes.md"]

    assert "| Reads | [change_log](change_log.md) |" in text
    assert "sale_changes.md" not in FILES["sales.md"]


@pytest.mark.parametrize("option", ["--out", "--sql"])
def test_a_file_where_a_folder_should_be_is_a_misuse(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("there already")

    done = CliRunner().invoke(app, ["build", option, str(tmp_path / "file")], obj=("embedded", ""))

    assert done.exit_code == 2
    assert "is a file" in done.output


def test_the_first_page_leads_everywhere_and_tells_freshness_only_where_it_is_known() -> None:
    text = markdown(PAGES["index"])
    bare = markdown(pages(replace(CATALOGUE, facts={}))[0])

    for name in ("visits", *LOGS, "late_visits", "worst"):
        assert f"[{name}]({name}.md)" in text
    assert "`email`" in text
    assert ("## Freshness" in text, "## Freshness" in bare) == (True, False)


class _Checked(HTMLParser):
    """What is open, what was linked to, and the text that is shown."""

    VOID = ("meta", "link", "br", "wbr", "path", "rect")

    def __init__(self) -> None:
        super().__init__()
        self.open, self.links, self.text = list[str](), set[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        told = dict(attrs)
        for name in ("href", "src"):
            if told.get(name):
                self.links.add(str(told[name]))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".html")))
def test_a_page_is_whole_needs_no_network_and_links_to_pages_that_are_there(name: str) -> None:
    checked = _Checked()
    checked.feed(FILES[name])
    checked.close()

    assert checked.open == []
    assert checked.links <= FILES.keys()
    assert "http" not in FILES[name].replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".md")))
def test_markdown_tables_have_equal_rows_and_links_lead_somewhere(name: str) -> None:
    text = FILES[name]
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table

    bare = re.sub(r"`[^`]*`", "", text)
    assert set(re.findall(r"\]\(([^)]+)\)", bare)) <= FILES.keys()


def test_what_looks_like_markup_is_shown_as_it_is() -> None:
    hostile = "<script>alert(1)</script> & *all* | [x](javascript:x) [up](../x) `a<b|c`"
    page = Page(
        "p",
        hostile,
        "g",
        (Title(hostile), Words(hostile), Rows((hostile,), ((hostile,),)), Sql("a < b")),
    )

    text = html(page, [page])
    checked = _Checked()
    checked.feed(text)

    assert "<script" not in text
    assert checked.links == {"p.html"}
    assert "alert(1)" in checked.text
    assert "a<b|c" in checked.text
    assert "\\<script\\>" in markdown(page)


def test_the_drawing_shows_every_box_once_and_the_way_between_them() -> None:
    root = ET.fromstring(FILES["lineage.svg"])
    names = [str(one.text) for one in root.iter(f"{SVG}text") if "class" not in one.attrib]

    assert len(names) == len(set(names))
    assert set(names) > {*TABLES.names, *LOGS, *(view.name for view in load_views())}
    # Letters of 12 pixels are 6.7 wide on average.
    assert max(map(len, names)) * 6.7 < BOX_W - 15
    width, height = (int(root.attrib[name]) for name in ("width", "height"))
    for box in root.iter(f"{SVG}rect"):
        assert int(box.attrib["x"]) + BOX_W <= width
        assert int(box.attrib["y"]) + int(box.attrib["height"]) <= height


def test_boxes_do_not_overlap_and_each_feed_is_a_curve() -> None:
    layers = (Layer("A", "source", ("a", "b & c")), Layer("B", "table", ("d",)))
    root = ET.fromstring(drawing(layers, {"d": ("a", "b & c")}))

    places = [(int(one.attrib["x"]), int(one.attrib["y"])) for one in root.iter(f"{SVG}rect")]
    assert len(set(places)) == 3
    assert len(list(root.iter(f"{SVG}path"))) == 2


def test_views_of_views_stand_right_of_those_they_are_made_of() -> None:
    root = ET.fromstring(lineage(CATALOGUE))
    left = {str(one.text): int(one.attrib["x"]) for one in root.iter(f"{SVG}text")}

    assert left["source door"] < left["change stream"] < left["visits"]
    assert left["visits"] < left["late_visits"] < left["worst"]


@pytest.mark.parametrize("table", [*TABLES.names, "visits"])
def test_sample_queries_say_the_same_to_athena_and_run_in_duckdb(table: str) -> None:
    declared = VISITS if table == "visits" else TABLES[table]
    connection = empty_lake(gold=False)
    if table == "visits":
        connection.execute(
            "CREATE TABLE visits AS SELECT '' AS id, '' AS remark, '' AS email, 0 AS weight, "
            "TIMESTAMPTZ '2026-11-21' AS at, 0 AS _version"
        )
    for query in sample_queries(declared):
        columns, _ = ask(connection, query.sql)
        assert len(columns) > 1
        [there] = sqlglot.transpile(query.sql, read="athena", write="duckdb")
        assert ask(connection, there)[0] == columns
    connection.close()


@pytest.mark.parametrize("name", sorted(statements(TABLES)))
def test_a_statement_parses_in_athenas_own_dialect(name: str) -> None:
    text = statements(TABLES)[name]

    for one in sqlglot.parse(text, dialect="athena"):
        assert one is not None
        assert "COMMAND" not in one.key.upper()


def test_a_statement_for_a_table_has_its_types_words_and_partitions() -> None:
    text = table_statement(VISITS)

    assert "`weight` float COMMENT 'Deprecated: it was never weighed'" in text
    assert "PARTITIONED BY (day(`at`), bucket(8, `id`))" in text
    assert "COMMENT 'Visits that were paid.'" in text


GLUE = ("ChangeLogTable", "QuarantineTable", "ReceiptsTable", "ResolutionsTable")


@pytest.mark.parametrize("name", GLUE)
def test_the_template_says_of_a_log_what_the_catalogue_and_the_statement_say(name: str) -> None:
    told: dict[str, Any] = stack().properties(name)["TableInput"]
    columns = [*told["StorageDescriptor"]["Columns"], *told["PartitionKeys"]]
    words = log_words()[told["Name"]]
    statement = statements(TABLES)[f"athena/tables/{told['Name']}.sql"]

    assert told["Description"] == words.description
    assert {one["Name"]: one["Comment"] for one in columns} == words.columns
    for one in columns:
        assert f"    `{one['Name']}` {one['Type']} COMMENT " in statement
    for key, value in told["Parameters"].items():
        if key.startswith("projection."):
            assert f"'{key}' = '{value}'" in statement


def test_words_of_logs_are_for_columns_that_they_have() -> None:
    for name, shape in LOGS.items():
        assert set(log_words()[name].columns) == {*shape.schema.names, *shape.folders}


def test_build_writes_what_differs_and_takes_away_pages_of_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docs_commands, "catalogue_files", lambda facts, with_html: FILES)
    site = tmp_path / "site"
    assert write_files(
        site, {**FILES, "gone.md": FILES["sales.md"], "gone.html": FILES["sales.html"]}
    )
    (site / "own.md").write_text("# Mine\n")
    (site / "sales.md").write_text("stale")

    done = CliRunner().invoke(app, ["build", "--out", str(site), "--sql", str(tmp_path / "sql")])

    assert done.exit_code == 0, done.output
    assert {path.name for path in site.iterdir()} == {*FILES, "own.md"}
    assert (site / "sales.md").read_text() == FILES["sales.md"]
    assert (tmp_path / "sql/athena/tables/sales.sql").exists()
    assert write_files(site, FILES) == 0


def test_the_words_file_is_yaml_of_texts() -> None:
    body = yaml.safe_load((ROOT / "src/local/catalogue/logs.yaml").read_text())

    assert all(isinstance(words, str) for one in body.values() for words in one["columns"].values())
