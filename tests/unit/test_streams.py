"""Declarations of streams: what may stand in them, and that mistakes are told and not guessed."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from api_poller.declaration import load_sources
from freshet.errors import RejectedError
from freshet.mapping import (
    DebeziumStream,
    DmsStream,
    MappingError,
    Streams,
    TableMapping,
    columns_of,
    json_schema,
    load_streams,
    parse_stream,
)
from freshet.tables import TABLES

SOURCES = Path(__file__).parents[2] / "src" / "sources"
STREAMS = SOURCES / "streams"


def test_the_shipped_examples_are_right_and_switched_off() -> None:
    streams = load_streams(STREAMS, TABLES)

    assert {one.name for one in streams.declared} == {"debezium_example", "dms_example"}
    assert (streams.debezium, streams.dms) == ((), ())


def test_the_examples_hold_every_member_that_there_is() -> None:
    """They are where people look; `enabled` and the tables' own members included."""
    shown = set()
    for path in STREAMS.glob("*.yaml"):
        body = yaml.safe_load(path.read_text())
        shown |= body.keys()
        for table in body["tables"].values():
            shown |= table.keys()

    declared = {
        name
        for kind in (DebeziumStream, DmsStream, TableMapping)
        for name in kind.model_fields
        if name != "name"
    }
    assert shown == declared


def test_the_poller_takes_no_declaration_of_a_stream_for_one_of_its_own() -> None:
    names = load_sources(SOURCES).keys()

    assert names
    assert not names & {path.stem for path in STREAMS.glob("*.yaml")}


def test_the_shipped_schema_is_what_the_loader_takes() -> None:
    shipped = json.loads((STREAMS / "schema.json").read_text())

    assert shipped == json_schema()
    for path in STREAMS.glob("*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), shipped)


TABLE = "tables: {public.item: {table: products, "


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1", "must hold members"),
        ("format: [", "line 1"),
        ("format: oracle", "format"),
        ("name: x\nformat: dms", "name: is the name of the file"),
        ("format: dms\nformat: dms", "line 1: 'format' is there twice"),
        ("format: dms\nprefix: x", "prefix: is no member here"),
        ("format: dms\nbefore_image: data", "before_image cannot be 'data'"),
        ("format: debezium\ntables: {a: {table: items}}", "tables.a.table: 'items'"),
        (f"format: dms\n{TABLE}columns: {{a: nope}}}}}}", "columns.a: 'nope' is no column"),
        (f"format: dms\n{TABLE}columns: {{a: title, b: title}}}}}}", "'title' is filled twice"),
        (f"format: dms\n{TABLE}constants: {{nope: x}}}}}}", "constants.nope: is no column"),
        (f"format: dms\n{TABLE}constants: {{currency: pounds}}}}}}", "constants.currency:"),
        (f"format: dms\n{TABLE}columns: {{a: {{column: price, scale: -1}}}}}}}}", "a.scale:"),
        (f"format: dms\n{TABLE}columns: {{a: {{column: price, unit: weeks}}}}}}}}", "a.unit:"),
    ],
)
def test_a_wrong_declaration_says_what_is_wrong(text: str, problem: str) -> None:
    with pytest.raises(MappingError) as caught:
        parse_stream(text, "shop", TABLES)

    assert problem in str(caught.value)


def test_all_problems_of_a_folder_are_told_at_once_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("format: x")
    (tmp_path / "b.yaml").write_text("format: dms\nfoo: 1\nbar: 2")
    (tmp_path / "c.yaml").write_bytes(b"\xff")
    (tmp_path / "d.yaml").write_text("format: dms")

    with pytest.raises(MappingError) as caught:
        load_streams(tmp_path, TABLES)

    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"{tmp_path.name}/{name}.yaml" for name in ("a", "b", "b", "c")
    ]


def test_scalars_are_texts_so_norway_stays_norway() -> None:
    stream = parse_stream(
        "format: dms\ntables: {a: {table: sales, constants: {country: NO, line: 1}}}", "x", TABLES
    )

    assert dict(stream.tables["a"].constants) == {"country": "NO", "line": "1"}


def test_a_stream_is_found_by_its_match_or_else_its_name() -> None:
    by_name, by_match = DebeziumStream(name="shop"), DebeziumStream(name="x", match="erp-*")
    off = DebeziumStream(name="off", enabled=False, prefix="off_")
    task = DmsStream(name="crm", match="CRM")
    streams = Streams((by_name, by_match, off, task))

    assert streams.debezium_of("shop") is by_name
    assert streams.debezium_of("erp-1") is by_match
    assert streams.debezium_of("off") == DebeziumStream()
    assert streams.dms_of("CRM") is task
    assert streams.dms_of("public").name == "default"
    assert streams.prefixes == ("__",)


def test_a_column_goes_by_its_own_name_unless_that_is_taken_or_left_out() -> None:
    columns = columns_of(TABLES["products"])
    mapping = parse_stream(
        "format: dms\n"
        "tables: {t: {table: products, columns: {name: title}, constants: {currency: GBP},"
        " ignore: [sku, note]}}",
        "x",
        TABLES,
    ).tables["t"]

    named = {name: mapping.find(name, columns) for name in ("name", "price", "sku", "note")}
    assert {name: rule and rule.column for name, rule in named.items()} == {
        "name": "title",
        "price": "price",
        "sku": None,
        "note": None,
    }
    for taken in ("title", "currency", "colour"):
        with pytest.raises(RejectedError, match="unknown_column") as caught:
            mapping.rule(taken, columns)
        assert caught.value.field == f"after.{taken}"
    assert mapping.rule("note", columns) is None
