"""Whose data it is: recognised in rows, in events and in bytes of every shape, and in no others."""

from __future__ import annotations

import base64
import gzip
import json
from dataclasses import replace
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from freshet.errors import RejectedError
from freshet.event import ChangeEvent, json_row, parse_event
from freshet.tables import TABLES, ExchangeRate, Product, Sale
from freshet.testing import change, product_row, sale_row
from freshet.wire import PART_STRIDE, Decoded, decode_record, encode_event, encode_record
from lake.subject import Request, Subject, forms

OTHERS = frozenset(TABLES.names) - {"sales"}


def subject(*keys: str, **where: str) -> Subject:
    request = Request.of(Sale, keys, where.items())
    return Subject(request, others=OTHERS)


def sale_event(key: str = "536365-1", **columns: Any) -> ChangeEvent:
    return parse_event(
        {
            "table": "sales",
            "op": "u",
            "version": 1,
            "after": sale_row(key, **columns),
            "event_id": "e",
            "source": "test",
            "accepted_at": "2026-11-21T08:30:00Z",
        },
        TABLES,
    )


@pytest.mark.parametrize(
    "line",
    [
        '{"table": "sales", "key": {"sale_id": "536365-1"}, "quantity": "many"}',
        '{"payload": {"before": null, "after": {"SALE_ID": "536365-1"}}}',
        '{"payload": "{\\"sale_id\\": \\"536365-1\\"}"}',
        '{"data": {"orderkey": "536365-1"}, "metadata": {}}',
        '{"sale_id": "536365-1", "truncated',
        "536365-1;85123A;6",
        "sale=536365-1",
    ],
)
def test_a_key_is_recognised_in_lines_of_any_shape(line: str) -> None:
    assert subject("536365-1").is_in_bytes(line.encode())


@pytest.mark.parametrize(
    "line",
    [
        '{"table": "sales", "key": {"sale_id": "536365-10"}}',
        '{"table": "products", "key": {"product_id": "536365-1"}}',
        '{"sale_id": "536365-2", "note": "536365-1"}',
        "1536365-1;536365-1a;536365-12",
        "",
        "{}",
    ],
)
def test_a_line_of_another_row_is_not_taken_for_it(line: str) -> None:
    assert not subject("536365-1").is_in_bytes(line.encode())


def test_a_value_counts_in_its_own_column_only() -> None:
    wanted = subject(customer_id="6")

    assert wanted.columns_in({"customer_id": "6", "quantity": 1}) == ["customer_id"]
    assert wanted.columns_in({"customer_id": "7", "quantity": 6}) == []
    assert wanted.columns_in({"customer_id": 6}) == ["customer_id"]  # as a source wrote a hint
    assert wanted.columns_in({"customer_id": None}) == []
    assert wanted.columns_in(None) == []


def test_equal_values_are_equal_however_they_are_written() -> None:
    assert subject(unit_price="2.55").columns_in({"unit_price": "2.5500"})
    assert subject(sold_at="2010-12-01T08:26:00Z").columns_in(
        {"sold_at": "2010-12-01T09:26:00+01:00"}
    )


def test_all_parts_of_a_composite_key_must_be_there() -> None:
    request = Request.of(ExchangeRate, ["USD,2010-12-01"], ())
    rate = Subject(request)

    assert rate.is_in_bytes(b'{"currency": "USD", "rate_date": "2010-12-01", "day": "2010-12-01"}')
    assert rate.is_in_bytes(b"USD 2010-12-01 1.3")
    assert not rate.is_in_bytes(b"USD 2010-12-02 1.3")


PACKERS = [
    lambda data: data,
    lambda data: encode_record([data], compress=False),
    lambda data: b"FRSH\x01\x01" + zstandard.compress(data),
    zstandard.compress,
    gzip.compress,
    base64.b64encode,
    lambda data: base64.b64encode(gzip.compress(data)),
    lambda data: b"FRSH\x01\x01" + zstandard.compress(data + bytes(range(256)) * 2000)[:-9],
]


@pytest.mark.parametrize("pack", PACKERS)
def test_what_is_packed_is_unpacked_as_far_as_it_goes(pack: Any) -> None:
    packed = pack(b'{"customer_id": "customer-4711", "broken')

    assert subject(customer_id="customer-4711").is_in_bytes(packed)
    assert not subject(customer_id="customer-0815").is_in_bytes(packed)


@given(st.binary(max_size=200), st.sampled_from(PACKERS[1:6]))
def test_no_bytes_make_it_fail(data: bytes, pack: Any) -> None:
    wanted = subject("536365-1", customer_id="17850")

    assert wanted.is_in_bytes(data) in (True, False)
    wanted.is_in_bytes(pack(data))
    wanted.is_in_bytes(pack(data)[:-1])


@given(st.text(min_size=1, max_size=20).filter(lambda text: text.strip() == text))
def test_a_value_is_found_in_json_whatever_its_characters(text: str) -> None:
    try:
        wanted = subject(customer_id=text)
    except RejectedError:
        return
    whole = json.dumps({"customer_id": text})

    assert wanted.is_in_bytes(whole.encode())
    assert wanted.is_in_bytes(whole[:-1].encode())  # no JSON any more: found as text
    assert wanted.is_in_bytes(json.dumps({"customer_id": text}, ensure_ascii=False).encode()[:-1])


def test_events_of_other_tables_are_nobodys() -> None:
    product = parse_event(
        {
            "table": "products",
            "op": "u",
            "version": 1,
            "after": product_row("536365-1"),
            "event_id": "e",
            "source": "test",
            "accepted_at": "2026-11-21T08:30:00Z",
        },
        TABLES,
    )

    assert not subject("536365-1").is_in_event(product)
    assert subject("536365-1").is_in_event(sale_event())
    assert subject(customer_id="17850").is_in_event(sale_event())
    assert not subject(customer_id="17851").is_in_event(sale_event())


def test_blanked_parts_leave_the_others_at_their_number() -> None:
    events = [sale_event(f"k-{at}") for at in range(4)]
    data = encode_record([encode_event(event) for event in events])

    left = Subject.blanked(data, {0, 2}, lambda line: len(list(decode_record(line, TABLES))))

    parts = [part for part in decode_record(left, TABLES) if isinstance(part, Decoded)]
    assert [(part.index, part.event) for part in parts] == [(1, events[1]), (3, events[3])]
    assert Subject.blanked(data, {0, 1, 2, 3}, lambda _: 1) == b""
    assert Subject.blanked(b"no lines of JSON", {0}, lambda _: 1) == b""


def test_what_is_hidden_in_the_lake_is_looked_for_in_both_forms() -> None:
    def protect(event: ChangeEvent) -> ChangeEvent:
        return replace(event, key={name: f"hmac:{value}" for name, value in event.key.items()})

    request = Request.of(Product, ["7"], [("sku", "secret"), ("sku", "more")], protect)

    assert request.keys == {"7", "hmac:7"}
    assert request.where == {"sku": {"secret", "hmac:secret", "more", "hmac:more"}}


@pytest.mark.parametrize(
    ("keys", "where", "told"),
    [
        ([], [("colour", "red")], "colour"),
        ([], [("quantity", "many")], "quantity"),
        (["a,b"], [], "key"),
    ],
)
def test_a_request_that_the_contract_does_not_know_is_refused_by_name(
    keys: list[str], where: list[tuple[str, str]], told: str
) -> None:
    with pytest.raises(RejectedError, match=told):
        Request.of(Sale, keys, where)


def test_the_same_request_has_the_same_name() -> None:
    one = Request.of(Sale, ["b", "a"], [("sku", "x"), ("customer_id", "y")])
    other = Request.of(Sale, ["a", "b"], [("customer_id", "y"), ("sku", "x")])

    assert one.named() == other.named() != Request.of(Sale, ["a"], ()).named()


def test_a_bomb_is_unpacked_to_a_limit() -> None:
    bomb = zstandard.compress(bytes(200_000_000))

    assert max(map(len, forms(bomb))) < 40_000_000


def changed_key(old: str, new: str) -> bytes:
    """One line that is two parts: the end of a row, and the row under its new key."""
    at = "2026-11-20T10:00:00.000001Z"
    metadata = {
        "timestamp": at,
        "commit-timestamp": at,
        "record-type": "data",
        "operation": "update",
        "schema-name": "public",
        "table-name": "sales",
        "transaction-id": 1,
        "transaction-record-id": 1,
    }
    row = json_row(sale_row(new))
    return json.dumps(
        {"data": row, "metadata": metadata, "before-image": {"sale_id": old}}
    ).encode()


def keys_of(data: bytes) -> dict[int, str]:
    """The keys of a record's events, by the number of their part."""
    return {
        part.index: part.event.key["sale_id"]
        for part in decode_record(data, TABLES)
        if isinstance(part, Decoded)
    }


def test_a_line_of_two_parts_takes_no_neighbour_with_it_and_goes_with_either_part() -> None:
    lines = b"\n".join([changed_key("a", "b"), native("person"), native("n")])

    def parts_of(line: bytes) -> int:
        return len(list(decode_record(line, TABLES)))

    assert keys_of(lines) == {0: "a", PART_STRIDE: "b", 1: "person", 2: "n"}
    assert keys_of(Subject.blanked(lines, {1}, parts_of)) == {0: "a", PART_STRIDE: "b", 2: "n"}
    assert keys_of(Subject.blanked(lines, {PART_STRIDE}, parts_of)) == {1: "person", 2: "n"}


def native(key: str) -> bytes:
    return encode_event(change("sales", sale_row(key), version=1))
