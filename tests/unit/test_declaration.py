"""What may stand in a source file, and what is said of one that cannot be used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from api_poller.declaration import (
    ColumnMapping,
    DeclarationError,
    FullSync,
    IncrementalSync,
    OffsetPagination,
    SourceDeclaration,
    json_schema,
    load_source,
    load_sources,
    parse_source,
)
from freshet.tables import TABLES

SOURCES = Path(__file__).parents[2] / "src" / "sources"
SHOP = """\
table: products
url: https://shop.example/api
path: /items
auth: { kind: api_key, in: header, name: X-Key }
credentials: SHOP
pagination:
  kind: offset
  page_rows: 50
columns:
  product_id: { path: id, as: text }
  title: name
  price:
    path: price_cents
    scale: 2
  currency: { constant: EUR }
  updated_at: changed
sync:
  mode: full
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(DeclarationError) as raised:
        parse_source(text, "sources/shop.yaml")
    return [str(problem) for problem in raised.value.problems]


def with_line(old: str, new: str) -> str:
    assert old in SHOP
    return SHOP.replace(old, new)


def test_a_declaration_is_read_with_its_defaults() -> None:
    made = parse_source(SHOP, "sources/shop.yaml")

    assert (made.table, made.url, made.path) == ("products", "https://shop.example/api", "/items")
    assert made.columns["title"] == ColumnMapping(path="name")
    assert made.columns["price"] == ColumnMapping(path="price_cents", scale=2)
    assert isinstance(made.pagination, OffsetPagination)
    assert (made.pagination.offset, made.pagination.page_rows) == ("offset", 50)
    assert made.pagination.overlap
    assert made.sync == FullSync()
    assert made.places == {"shop.example"}
    assert made.limits.requests_per_second == 10
    assert made.enabled


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("table: products", "table: product", ":1: table: unknown table 'product'; declared"),
        ("table: products\n", "", ":1: table: is required"),
        ("https://shop", "shop", ":2: url: must be a URL as https://host/path"),
        ("https://shop", "ftp://shop", ":2: url: must be a URL"),
        ("https://shop", "http://shop", ":2: url: must be https, unless the host is this machine"),
        ("https://shop", "https://me:pw@shop", ":2: url: must not hold credentials"),
        ("/api\n", "/api?key=1\n", ":2: url: must be a base URL"),
        ("path: /items", "path: items", ":3: path: must begin with /"),
        ("path: /items", "path: /items?x=1", ":3: path: must not hold a query"),
        ("path: /items", "paths: /items", ":3: paths: is no member here"),
        ("path: /items", "headers: { Cookie: a }", ":3: headers: Cookie is a credential"),
        ("path: /items", "params: { api_key: a }", ":3: params: api_key is a credential"),
        ("path: /items", "hosts: ['https://x']", ":3: hosts.0: must be a host name"),
        ("kind: api_key", "kind: magic", ":4: auth: needs a 'kind' of its own: 'none', 'basic'"),
        ("name: X-Key", "name: X-Key, at: 1", ":4: auth.at: is no member here"),
        (
            "{ kind: api_key, in: header, name: X-Key }",
            "{ kind: oauth2_client_credentials, token_url: 'https://login.example/token' }",
            ":4: auth.token_url: add login.example to `hosts`",
        ),
        ("credentials: SHOP", "credentials: my shop", ":5: credentials: "),
        ("credentials: SHOP\n", "", ":1: file: auth api_key needs `credentials`"),
        ("kind: offset", "kind: pages", ":6: pagination: "),
        ("page_rows: 50", "page_rows: many", ":8: pagination.page_rows: "),
        ("page_rows: 50", "page_rows: 1", ":6: pagination: pages of one row cannot overlap"),
        ("page_rows: 50", "size: 50", ":8: pagination.size: is no member here"),
        (
            "title: name",
            "titel: name",
            ":11: columns.titel: table products has no such column; did",
        ),
        ("  title: name\n", "", ":9: columns: column title is required in table products"),
        (
            "  product_id: { path: id, as: text }\n",
            "",
            ":9: columns: column product_id is part of the merge key in table products",
        ),
        ("title: name", "title: a..b", ":11: columns.title.path: must be names joined by dots"),
        ("title: name", "title: ^name", ":11: columns.title: ^name: there is no record around it"),
        ("title: name", "title: '@parent'", ":11: columns.title: @parent needs `parents`"),
        ("title: name", "title: []", ":11: columns.title: "),
        ("path: price_cents", "path: price..cents", ":13: columns.price.path: must be names"),
        ("scale: 2", "scale: two", ":14: columns.price.scale: "),
        ("scale: 2", "constant: 3", ":12: columns.price: needs exactly one of path"),
        ("constant: EUR", "constant: Euro", ":15: columns.currency.constant: too_long: "),
        ("constant: EUR", "constant: 7", ":15: columns.currency.constant: wrong_type: "),
        ("{ path: id, as: text }", "{ path: id, as: words }", ":10: columns.product_id.as: "),
        (
            "changed",
            "{ path: c, time_format: ['%Q'] }",
            ":16: columns.updated_at: '%Q' is no time format",
        ),
        (
            "changed",
            "{ path: c, time_format: ['%d.%m.%Y'] }",
            ":16: columns.updated_at.time_format: '%d.%m.%Y' names no zone: add `zone`",
        ),
        (
            "changed",
            "{ path: c, time_format: ['%d'], zone: Mars }",
            ":16: columns.updated_at: 'Mars' is no time zone",
        ),
        (
            "title: name",
            "title: { path: name, time_format: [iso] }",
            ":11: columns.title.time_format: is for columns that hold a time",
        ),
        ("mode: full", "mode: some", ":17: sync: needs a 'mode' of its own: 'full', 'incremental'"),
        (
            "mode: full",
            "mode: incremental\n  cursor: updated_at",
            ":1: file: an incremental source needs `sync.from` or keyset pagination",
        ),
        (
            "mode: full",
            "mode: incremental\n  cursor: changed\n  from: { param: since }",
            ":19: sync.cursor: table products has no column changed",
        ),
        (
            "mode: full",
            "mode: incremental\n  cursor: category\n  from: { param: since }",
            ":19: sync.cursor: column category is not mapped",
        ),
        (
            "mode: full",
            "mode: incremental\n  cursor: updated_at\n  start: 2024\n  from: { param: since }",
            ":20: sync.start: ",
        ),
        (
            "mode: full",
            "mode: incremental\n  cursor: updated_at\n  to: { param: until }",
            ":17: sync: `to` needs `from`",
        ),
        (
            "mode: full",
            "mode: incremental\n  cursor: updated_at\n  from: { param: a }\n  window_days: 7",
            ":17: sync: `window_days` needs `from`, `to` and `start`",
        ),
        (
            "mode: full",
            "mode: incremental\n  cursor: title\n  from: { param: a }\n  lookback_days: 7",
            ":17: sync: `window_days` and `lookback_days` need a cursor that is a time",
        ),
        ("mode: full", "mode: full\n  delete_share_max: 2", ":19: sync.delete_share_max: "),
        ("path: /items", "occurred_at: title", ":3: occurred_at: column title is of the wrong"),
        ("path: /items", "path: /shops/{parent}", ":1: file: {parent} needs `parents`"),
        ("path: /items", "parents: { values: [a] }", ":1: file: `parents` needs {parent}"),
        ("path: /items", "schedule: daily", ":3: schedule: "),
        ("path: /items", "timezone: Mars", ":1: file: 'Mars' is no time zone"),
        ("path: /items", "format: csv\nrecords: items", ":1: file: csv has no members around its"),
        ("path: /items", "limits: { rows_max: 0 }", ":3: limits.rows_max: "),
        ("path: /items", "path: [", ":5: YAML: expected"),
        ("path: /items", "table: sales", ":3: YAML: 'table' is there twice"),
        ("path: /items", "path: !!python/name:os.system x", ":3: YAML: has the tag"),
        ("path: /items", "? [a]\n: b", ":3: YAML: must be a name"),
    ],
)
def test_a_mistake_is_told_with_file_line_and_field(old: str, new: str, expected: str) -> None:
    (problem, *_) = problems_of(with_line(old, new))

    assert problem.startswith(f"sources/shop.yaml{expected}")


def test_all_mistakes_are_told_at_once() -> None:
    text = with_line("scale: 2", "scale: two").replace("path: /items", "pfad: /items")

    assert [problem.split(": ")[0] for problem in problems_of(text)] == [
        "sources/shop.yaml:14",
        "sources/shop.yaml:3",
    ]


@pytest.mark.parametrize("text", ["", "- a", "a", "a: &x [*x]", "\x00"])
def test_what_is_no_declaration_at_all_is_told_so(text: str) -> None:
    assert all(re.match(r"sources/shop\.yaml:1: ", problem) for problem in problems_of(text))


def test_words_and_dates_of_yaml_are_texts() -> None:
    """YAML 1.1 would take `no` for false and the day for a date."""
    text = with_line("constant: EUR", "constant: nok").replace("nok", "NOK")
    made = parse_source(
        f"{text}where: {{ on: no, day: 2026-11-21, n: 007 }}\n", "sources/shop.yaml"
    )

    assert dict(made.where) == {"on": "no", "day": "2026-11-21", "n": 7}


def test_query_parameters_may_be_written_as_numbers() -> None:
    made = parse_source(f"{SHOP}params: {{ v: 2, q: 1.50 }}\n", "sources/shop.yaml")

    assert dict(made.params) == {"v": "2", "q": "1.50"}


def test_a_start_day_of_a_time_is_its_midnight() -> None:
    text = with_line(
        "mode: full",
        "mode: incremental\n  cursor: updated_at\n  start: 2024-01-01\n  from: { param: since }",
    )

    made = parse_source(text, "sources/shop.yaml")

    assert isinstance(made.sync, IncrementalSync)
    assert made.sync.start == "2024-01-01"


# --- folders --------------------------------------------------------------------------------------


def written(folder: Path, **files: str) -> Path:
    sources = folder / "sources"
    sources.mkdir()
    for name, text in files.items():
        (sources / f"{name}.yaml").write_text(text, encoding="utf-8")
    return sources


CHILD = with_line("path: /items", "path: /shops/{parent}")


def test_the_name_of_a_source_is_that_of_its_file(tmp_path: Path) -> None:
    assert list(load_sources(written(tmp_path, shop=SHOP, bakery=SHOP))) == ["bakery", "shop"]


def test_mistakes_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    sources = written(tmp_path, a=SHOP.replace("name", "x..y"), b="table: [", c=SHOP)

    with pytest.raises(DeclarationError, match=r"sources/a\.yaml:11: .*\n.*sources/b\.yaml:"):
        load_sources(sources)


@pytest.mark.parametrize("name", ["Shop", "1shop", "my-shop", "s" * 64])
def test_a_file_whose_name_is_no_name_of_a_source_is_refused(name: str, tmp_path: Path) -> None:
    sources = written(tmp_path, **{name: SHOP})

    with pytest.raises(DeclarationError, match="the name of a source"):
        load_source(sources / f"{name}.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    sources = written(tmp_path)
    (sources / "shop.yaml").write_bytes(b"\xff\xfe")

    with pytest.raises(DeclarationError, match=r"sources/shop\.yaml:1: file: is not UTF-8"):
        load_sources(sources)


@pytest.mark.parametrize(
    ("parents", "expected"),
    [
        ("{ source: nobody, column: product_id }", "there is no source 'nobody'; sources: child"),
        ("{ source: shop, column: colour }", "table products has no column colour"),
        ("{ source: child, column: product_id }", "its parents come from itself"),
        ("{ source: shop, column: product_id }", None),
    ],
)
def test_parents_are_a_column_of_another_source(
    parents: str, expected: str | None, tmp_path: Path
) -> None:
    sources = written(tmp_path, shop=SHOP, child=f"{CHILD}parents: {parents}\n")

    if expected is None:
        assert load_sources(sources).keys() == {"shop", "child"}
    else:
        with pytest.raises(DeclarationError, match=f"child.yaml:19: parents: {expected}"):
            load_sources(sources)


# --- what ships -----------------------------------------------------------------------------------


def test_the_published_schema_is_that_of_the_models() -> None:
    expected = json.dumps(json_schema(), indent=2) + "\n"

    assert (SOURCES / "schema.json").read_text(encoding="utf-8") == expected, (
        "write json.dumps(json_schema(), indent=2) to src/sources/schema.json"
    )


@pytest.mark.parametrize("path", sorted(SOURCES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_source_that_ships_is_valid_and_names_the_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert text.startswith("# yaml-language-server: $schema=schema.json\n")
    jsonschema.validate(yaml.safe_load(text.replace("1999-01-04", '"1999-01-04"')), json_schema())
    assert load_source(path).table in TABLES.names


def test_these_sources_ship_and_those_that_need_nothing_are_enabled() -> None:
    shipped = load_sources(SOURCES)

    assert list(shipped) == [
        "dummyjson_carts",
        "dummyjson_products",
        "ecb",
        "example",
        "platzi",
        "platzi_categories",
        "spotify_albums",
        "spotify_artists",
        "spotify_new_releases",
        "spotify_tracks",
    ]
    assert [name for name, declared in shipped.items() if declared.enabled] == [
        "ecb",
        "platzi",
        "platzi_categories",
    ]


@pytest.mark.parametrize(
    "broken",
    [
        {"table": "nobody"},
        {"pagination": {"kind": "offset", "size": 3}},
        {"columns": {"title": {"paths": "x"}}},
        {"surprise": 1},
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(broken: dict[str, Any]) -> None:
    good = yaml.safe_load(SHOP)
    jsonschema.validate(good, json_schema())

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good | broken, json_schema())


def test_a_declaration_is_never_changed() -> None:
    made = parse_source(SHOP, "sources/shop.yaml")

    with pytest.raises(ValueError, match="frozen"):
        made.url = "https://other.example"  # type: ignore[misc]
    assert isinstance(made, SourceDeclaration)
