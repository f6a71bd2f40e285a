"""From bodies to rows: what is decoded, which records there are, and what may become a column."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_poller.changes import Skipped
from api_poller.declaration import SourceDeclaration, parse_source
from api_poller.records import (
    MalformedError,
    Mapped,
    Mapper,
    Record,
    RecordsPath,
    decode,
    value_at,
)
from freshet.tables import TABLES


def declared(columns: str = "", more: str = "", table: str = "products") -> SourceDeclaration:
    needed = {
        "products": "product_id: id\n  title: name\n  price: price\n  currency: {constant: EUR}",
        "sales": (
            "sale_id: id\n  invoice_no: id\n  line: n\n  sku: id\n  quantity: n\n  unit_price: p\n"
            "  currency: {constant: EUR}\n  sold_at: at"
        ),
        "tracks": "track_id: id\n  title: name",
        "albums": "album_id: id\n  title: name",
    }[table]
    kept = [
        line
        for line in needed.split("\n  ")
        if f"\n  {line.split(':')[0]}:" not in f"\n  {columns}"
    ]
    body = "\n  ".join([*kept, *columns.strip().split("\n  ")])
    text = f"table: {table}\nurl: https://x.example\n{more}\ncolumns:\n  {body}\n"
    return parse_source(text, "sources/shop.yaml")


def mapped(record: Mapping[str, Any], columns: str = "", more: str = "", **options: Any) -> Mapped:
    table = options.pop("table", "products")
    declaration = declared(columns, more, table)
    return Mapper(declaration, TABLES[table]).map(Record(record, **options))


def product(**members: Any) -> dict[str, Any]:
    return {"id": "1", "name": "Mug", "price": "2.50", **members}


def column(name: str, mapping: str, /, **members: Any) -> Any:
    """The value that a mapping of one column makes of a record's members."""
    found = mapped(product(**members), f"{name}: {mapping}")
    assert found.row is not None, found.skipped
    return found.row[name]


def refusal(name: str, mapping: str, /, **members: Any) -> tuple[str, str | None]:
    found = mapped(product(**members), f"{name}: {mapping}")
    assert found.skipped is not None, found.row
    assert found.skipped.key == "1"
    return found.skipped.reason, found.skipped.field


# --- decoding -------------------------------------------------------------------------------------


def test_json_is_decoded_with_exact_decimals_and_without_its_mark_of_bytes() -> None:
    assert decode(b'\xef\xbb\xbf[{"price":0.1}]', declared()) == [{"price": Decimal("0.1")}]


def test_json_lines_are_a_list_of_their_lines() -> None:
    lines = declared(more="format: json_lines")

    assert decode(b'{"id":1}\n\n{"id":2}\r\n', lines) == [{"id": 1}, {"id": 2}]
    assert decode(b"", lines) == []
    with pytest.raises(MalformedError, match="not JSON lines"):
        decode(b'{"id":1}\n{"id":', lines)


def test_a_line_separator_within_a_text_is_no_end_of_a_json_line() -> None:
    lines = declared(more="format: json_lines")

    body = json.dumps({"id": "a\u2028b"}, ensure_ascii=False).encode()

    assert decode(body, lines) == [{"id": "a\u2028b"}]


CSV = "format: csv"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_is_read_by_column_name_with_either_line_end(end: str) -> None:
    text = end.join(["id,extra,name,price", '7,,"a, ""b""",1.5', "", "8,x,c,2", ""])

    assert decode(text.encode(), declared(more=CSV)) == [
        {"id": "7", "extra": "", "name": 'a, "b"', "price": "1.5"},
        {"id": "8", "extra": "x", "name": "c", "price": "2"},
    ]


def test_csv_has_the_delimiter_that_is_declared() -> None:
    rows = decode(b"id;name;price\n1;a,b;2\n", declared(more=f"{CSV}\ndelimiter: ;"))

    assert rows == [{"id": "1", "name": "a,b", "price": "2"}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"id,name\n1,a\n", "without column price"),
        (b"id,name,price\n1,a\n", "differ in length"),
        (b"id,name,price\n1,a,2,3\n", "differ in length"),
        (b"id,name,price\n1,a,2", "may be cut off"),
        (b"id,name,price,id\n1,a,2,1\n", "two columns of one name"),
        (b'id,name,price\n1,"a,2\n', "not CSV"),
        (b"\xff", "not CSV"),
        (b'{"message":"no"}', "without column id"),
    ],
)
def test_csv_that_could_be_wrong_or_cut_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        decode(body, declared(more=CSV))


def test_the_end_of_a_column_that_nobody_reads_may_be_the_end_of_the_file() -> None:
    assert len(decode(b"id,name,price,note\n1,a,2,x", declared(more=CSV))) == 1


# --- records --------------------------------------------------------------------------------------

CARTS = {
    "carts": [
        {"id": 1, "products": [{"id": "a"}, {"id": "b"}]},
        {"id": 2, "products": []},
        {"id": 3},
        {"id": 4, "products": None},
    ],
    "by_day": {"mon": {"n": 1}, "tue": {"n": 2}},
    "groups": [{"lists": [{"items": [{"id": "x"}]}, {"items": [{"id": "y"}, {"id": "z"}]}]}],
}


def records(path: str, document: Any) -> list[list[Record]]:
    found = RecordsPath(path)
    return [list(found.records(item, None)) for item in found.items(document)]


def test_records_lie_where_the_path_says() -> None:
    assert records("", [{"id": 1}]) == [[Record({"id": 1})]]
    assert records("a.b", {"a": {"b": [{"id": 1}]}}) == [[Record({"id": 1})]]
    assert records("a.0.b", {"a": [{"b": [{"id": 1}]}]}) == [[Record({"id": 1})]]
    assert records("d.results", {"d.results": [{"id": 1}]}) == [[Record({"id": 1})]]
    assert records(".", {"id": 1}) == [[Record({"id": 1})]]
    assert records("by_day.*", CARTS) == [[Record({"n": 1})], [Record({"n": 2})]]


def test_records_behind_a_star_know_the_record_around_them_and_their_place_in_it() -> None:
    (first, *others) = records("carts.*.products", CARTS)

    cart = CARTS["carts"][0]  # type: ignore[index]
    assert first == [Record({"id": "a"}, (cart,), 1), Record({"id": "b"}, (cart,), 2)]
    assert others == [[], [], []]


def test_stars_nest() -> None:
    (found,) = records("groups.*.lists.*.items", CARTS)

    assert [record.value["id"] for record in found] == ["x", "y", "z"]
    assert [record.position for record in found] == [1, 1, 2]
    assert found[0].around[1] == CARTS["groups"][0]  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("", {"items": []}),
        ("", [1]),
        ("", [[]]),
        ("", None),
        ("items", []),
        ("items", {}),
        ("items", {"items": None}),
        ("items", {"items": {"id": 1}}),
        (".", [{"id": 1}]),
        ("items.*.x", {"items": [1]}),
    ],
)
def test_a_document_without_its_records_is_refused(path: str, document: Any) -> None:
    with pytest.raises(MalformedError, match=r"something other than a JSON (array|object)"):
        records(path, document)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", {"b": [10, {"c": 0}]}),
        ("a.b.0", 10),
        ("a.b.1.c", 0),
        ("a.b.2", None),
        ("a.b.x", None),
        ("a.b.99999999999999999999", None),
        ("a.x.y", None),
        ("n.x", None),
        ("odata.next", "there"),
        ("f", False),
    ],
)
def test_a_path_leads_to_a_member_or_to_nothing(path: str, expected: Any) -> None:
    document = {"a": {"b": [10, {"c": 0}]}, "n": None, "odata.next": "there", "f": False}

    assert value_at(document, path) == expected


# --- columns --------------------------------------------------------------------------------------


def test_nothing_is_coerced_unless_its_column_says_so() -> None:
    assert refusal("title", "name", name=7) == ("wrong_type", "title")
    assert refusal("title", "name", name=None) == ("wrong_type", "title")
    assert refusal("title", "name", name=["x"]) == ("wrong_type", "title")
    assert refusal("price", "price", price="1,5") == ("wrong_type", "price")
    assert refusal("price", "price", price=True) == ("wrong_type", "price")
    assert refusal("price", "price", price=Decimal("0.00001")) == ("out_of_range", "price")
    assert refusal("updated_at", "at", at="2026-11-20") == ("invalid_value", "updated_at")
    assert refusal("updated_at", "at", at=1) == ("wrong_type", "updated_at")


def test_a_member_that_is_not_there_is_null() -> None:
    assert column("category", "category.name") is None
    assert column("category", "category.name", category="Shoes") is None


def test_constants_and_templates_are_texts_around_values() -> None:
    assert column("sku", "{ constant: X }") == "X"
    assert column("sku", '{ template: "s-{a.b}-{n}" }', a={"b": "x"}, n=7) == "s-x-7"
    assert column("sku", '{ template: "{a}{b}" }', a="{b}", b="\x00") == "{b}\x00"
    missing: Any
    for missing in (None, "", True, Decimal(1), [], {}):
        assert column("sku", '{ template: "s-{a}" }', a=missing) is None


@pytest.mark.parametrize(
    ("mapping", "value", "expected"),
    [
        ("{ path: v, as: text }", 7, "7"),
        ("{ path: v, as: text }", "7", "7"),
        ("{ path: v, as: text }", None, None),
        ('{ path: v, nulls: ["", "n/a"] }', "n/a", None),
        ('{ path: v, nulls: ["", "n/a"] }', "N/A", "N/A"),
        ('{ path: v, join: "+" }', ["a", "b"], "a+b"),
        ('{ path: v, join: "+" }', "a", "a"),
        ('{ path: v, join: "" }', ["a", "b"], "ab"),
        ('{ path: v, join: "+" }', [], None),
        ('{ path: v, each: n.x, join: "+" }', [{"n": {"x": "a"}}, {"n": {"x": "b"}}], "a+b"),
    ],
)
def test_texts_are_converted_as_declared(mapping: str, value: Any, expected: str | None) -> None:
    assert column("sku", mapping, v=value) == expected


@pytest.mark.parametrize(
    ("mapping", "value"),
    [
        ("{ path: v, as: text }", True),
        ("{ path: v, as: text }", Decimal("7.0")),
        ("{ path: v, as: text }", {"id": 7}),
        ('{ path: v, join: "+" }', ["a", 1]),
        ('{ path: v, join: "+" }', ["a", None]),
        ('{ path: v, each: n, join: "+" }', [{"n": "a"}, {}]),
    ],
)
def test_texts_that_cannot_be_converted_are_reported(mapping: str, value: Any) -> None:
    assert refusal("sku", mapping, v=value) == ("wrong_type", "sku")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1999, "19.9900"),
        ("1999", "19.9900"),
        ("-5", "-0.0500"),
        (Decimal(1999), "19.9900"),
        (Decimal("1999.5"), "19.9950"),
        (0, "0.0000"),
    ],
)
def test_cents_are_scaled_exactly(value: Any, expected: str) -> None:
    assert column("price", "{ path: price, scale: 2 }", price=value) == Decimal(expected)


@pytest.mark.parametrize(
    "value",
    [
        *("19,99", "x", True, None, [1999], Decimal("NaN"), Decimal("1E+999999999")),
        Decimal("1999.00000000000000000000000000000000001"),
    ],
)
def test_what_is_no_number_of_cents_is_neither_scaled_nor_rounded(value: Any) -> None:
    assert refusal("price", "{ path: price, scale: 2 }", price=value)[1] == "price"


AT = datetime(2026, 11, 20, 21, 41, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("mapping", "value", "expected"),
    [
        ("at", "2026-11-20T21:41:12Z", AT),
        ("at", "2026-11-20T22:41:12+01:00", AT),
        ("{ path: at, time_format: [unix] }", 1795210872, AT),
        ("{ path: at, time_format: [unix] }", "1795210872", AT),
        ("{ path: at, time_format: [unix] }", Decimal("1795210872.0"), AT),
        ("{ path: at, time_format: [unix_ms] }", 1795210872000, AT),
        ("{ path: at, time_format: [iso], zone: Europe/Berlin }", "2026-11-20T22:41:12", AT),
        ("{ path: at, time_format: [iso], zone: Europe/Berlin }", "2026-11-20T21:41:12Z", AT),
        ("{ path: at, time_format: ['%d.%m.%Y %H:%M:%S %z'] }", "20.11.2026 21:41:12 +0000", AT),
        ("{ path: at, time_format: [unix, iso] }", "2026-11-20T21:41:12Z", AT),
        ("{ path: at, time_format: [iso], nulls: [never] }", "never", None),
        ("{ path: at, time_format: [iso] }", None, None),
    ],
)
def test_times_are_read_in_the_formats_declared(
    mapping: str, value: Any, expected: datetime | None
) -> None:
    assert column("updated_at", mapping, at=value) == expected


@pytest.mark.parametrize(
    ("formats", "value"),
    [
        ("[iso]", "2026-11-20T21:41:12"),  # names no zone
        ("[iso]", "2026-11-20T21:41:12.1234567Z"),  # finer than microseconds
        ("[iso]", "soon"),
        ("[iso]", 7),
        ("[unix]", "2026-11-20"),
        ("[unix]", True),
        ("[unix]", Decimal("0.0000001")),
        ("[unix]", 10**15),
        ("[unix_ms]", Decimal("1E+40")),
        ("[unix]", Decimal("NaN")),
        ("[unix]", Decimal("1E+999999999")),
        ("[unix]", Decimal("1795210872.0000000000000000000000000000001")),
    ],
)
def test_times_that_fit_no_format_are_reported(formats: str, value: Any) -> None:
    mapping = f"{{ path: at, time_format: {formats} }}"

    assert refusal("updated_at", mapping, at=value) == ("invalid_value", "updated_at")


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2013-08-21", date(2013, 8, 21)), ("1981-12", date(1981, 12, 1)), ("1981", date(1981, 1, 1))],
)
def test_days_of_less_precision_are_the_first_of_their_month_or_year(
    value: str, expected: date
) -> None:
    mapping = "release_date: { path: d, time_format: ['%Y-%m-%d', '%Y-%m', '%Y'] }"

    found = mapped({"id": "1", "name": "x", "d": value}, mapping, table="albums")

    assert found.row is not None
    assert found.row["release_date"] == expected


def test_a_day_of_an_instant_is_that_of_the_zone_declared() -> None:
    here = "release_date: { path: d, time_format: [iso] }"
    there = "release_date: { path: d, time_format: [iso], zone: Asia/Tokyo }"
    record = {"id": "1", "name": "x", "d": "2026-11-20T21:41:12Z"}

    days = [mapped(record, columns, table="albums").row for columns in (here, there)]

    assert [row and row["release_date"] for row in days] == [date(2026, 11, 20), date(2026, 11, 21)]


def test_csv_columns_become_numbers_and_flags_where_declared() -> None:
    columns = "track_number: { path: n, as: integer }\n  explicit: { path: e, as: flag }"
    record = {"id": "1", "name": "x", "n": "3", "e": "true"}

    good = mapped(record, columns, table="tracks")
    bad = mapped(record | {"n": "3.0"}, columns, table="tracks")
    ugly = mapped(record | {"e": "yes"}, columns, table="tracks")

    assert good.row is not None
    assert (good.row["track_number"], good.row["explicit"]) == (3, True)
    assert bad.skipped == Skipped("1", "wrong_type", "track_number")
    assert ugly.skipped == Skipped("1", "wrong_type", "explicit")


def test_positions_parents_and_the_record_around_are_columns_too() -> None:
    columns = """sale_id: { template: "{@parent}-{^^shop}-{^id}-{#}" }
  invoice_no: { path: ^id, as: text }
  line: "#"
  country: "@parent" """
    record = {"id": "a", "n": 2, "p": 1, "at": "2026-11-20T21:41:12Z"}
    more = "records: a.*.b.*.c\npath: /{parent}\nparents: { values: [p] }"

    found = mapped(
        record,
        columns,
        more,
        table="sales",
        around=({"id": 7}, {"shop": "s"}),
        position=3,
        parent="p",
    )

    assert found.row is not None
    assert (found.key, found.row["invoice_no"], found.row["line"]) == ("p-s-7-3", "7", 3)
    assert found.row["country"] == "p"


# --- which records are rows -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "passes"),
    [("D", True), ("M", False), (None, True), (7, False), ("d", False)],
)
def test_where_keeps_what_equals_and_what_lacks_the_member(member: Any, passes: bool) -> None:
    record = product() if member is None else product(FREQ=member)

    assert (mapped(record, more="where: { FREQ: D }").row is not None) is passes


def test_where_does_not_take_true_for_one() -> None:
    assert mapped(product(on=1), more="where: { on: true }").row is None
    assert mapped(product(on=True), more="where: { on: 1 }").row is None
    assert mapped(product(on=True), more="where: { on: true }").row is not None
    assert mapped(product(on=Decimal("1.0")), more="where: { on: 1 }").row is not None


@pytest.mark.parametrize(("value", "passes"), [("NaN", False), (" n/a ", False), ("1", True)])
def test_unless_leaves_out_what_stands_for_nothing(value: str, passes: bool) -> None:
    found = mapped(product(price=value), more='unless: { price: ["nan", "N/A", ""] }')

    assert (found.row is not None) is passes
    assert found.skipped is None
    assert found.key == "1"


def test_a_record_that_fits_but_for_its_key_has_none() -> None:
    bad: Any
    for bad in (None, "", {}, 7, "x" * 65):
        found = mapped(product(id=bad))
        assert found.key is None
        assert found.skipped is not None
        assert (found.skipped.key, found.skipped.field) == (None, "key.product_id")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.decimals() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries(dict.fromkeys(("id", "name", "price", "at", "v"), json_values)))
def test_any_record_becomes_a_row_or_is_reported_and_never_an_error(record: dict[str, Any]) -> None:
    found = MAPPER.map(Record(record))

    assert (found.row is None) == (found.skipped is not None)
    if found.row is not None:
        assert found.row["title"] == record["name"]
        assert isinstance(found.row["price"], Decimal)


MAPPER = Mapper(
    declared(
        "product_id: { path: id, as: text }\n  price: { path: price, scale: 2 }\n"
        "  sku: { template: 'x-{v}' }\n  category: { path: v, each: a, join: ',' }\n"
        "  updated_at: { path: at, time_format: [unix, iso, '%Y'], zone: Europe/Berlin }"
    ),
    TABLES["products"],
)
