"""Personal data leaves as a keyed hash or not at all: in rows, patches, hints and keys alike."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freshet.contract import Contract, PartitionField, Pii, Registry, Text, Timestamp
from freshet.errors import SettingsError, TransientError
from freshet.event import ChangeEvent, Op, parse_event
from freshet.pii import KEY_BYTES_MIN, ProtectedStream, Protector
from freshet.stream import PublishReport
from freshet.tables import ExchangeRate
from freshet.testing import EPOCH, MemoryStream, change, rate_row
from freshet.wire import encode_event

KEY = bytes(range(32))
RAW = "Ada Lovelace"


class Customer(
    Contract, table="customers", key=("email",), partition=(PartitionField("bucket", "email", 4),)
):
    """A person, known by an address."""

    email: Annotated[str, Text(200, 1), Pii("hash")]
    name: Annotated[Annotated[str, Text(200)] | None, Pii("hash")] = None
    born: Annotated[Annotated[datetime, Timestamp()] | None, Pii("drop")] = None
    city: Annotated[str, Text(40)] | None = None


class Order(
    Contract,
    table="orders",
    key=("order_id",),
    partition=(PartitionField("bucket", "order_id", 4),),
):
    """What a person ordered."""

    order_id: Annotated[str, Text(40, 1)]
    email: Annotated[Annotated[str, Text(200)] | None, Pii("hash")] = None


class Letter(
    Contract, table="letters", key=("number",), partition=(PartitionField("bucket", "number", 4),)
):
    """A letter without its text."""

    number: Annotated[str, Text(40, 1)]
    body: Annotated[Annotated[str, Text(4000)] | None, Pii("drop")] = None


TABLES = Registry((Customer, Order, Letter, ExchangeRate))
PROTECTOR = Protector(KEY, TABLES)


def event(table: str = "customers", **members: Any) -> ChangeEvent:
    stamped = {"version": 1, "event_id": "1", "source": "test", "accepted_at": EPOCH}
    return parse_event({"table": table, "op": "u", **stamped, **members}, TABLES)


def customer(**columns: Any) -> dict[str, Any]:
    return {"email": "ada@example.com", "name": RAW, "born": "1815-12-10T00:00:00Z", **columns}


# --- what a hash is -------------------------------------------------------------------------------


def test_a_hash_is_the_first_160_bits_of_an_hmac_with_sha_256() -> None:
    wanted = hmac.new(KEY, RAW.encode(), hashlib.sha256).hexdigest()[:40]

    assert PROTECTOR.hashed(RAW) == f"hmac:{wanted}"


@given(st.text())
def test_hashing_again_changes_nothing_and_the_same_value_has_the_same_hash(value: str) -> None:
    hashed = PROTECTOR.hashed(value)

    assert len(hashed) == 45
    assert PROTECTOR.hashed(hashed) == hashed
    assert Protector(KEY, TABLES).hashed(value) == hashed


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_values_have_two_hashes(one: str, other: str) -> None:
    assert (one == other) == (PROTECTOR.hashed(one) == PROTECTOR.hashed(other))


@pytest.mark.parametrize(
    "value",
    [
        "hmac:" + "0" * 39,
        "hmac:" + "0" * 41,
        "hmac:" + "A" * 40,
        "hmac:" + "0" * 40 + "\n",
        " hmac:" + "0" * 40,
        "sha1:" + "0" * 40,
    ],
)
def test_what_only_looks_like_a_hash_is_hashed(value: str) -> None:
    assert PROTECTOR.hashed(value) != value


def test_another_key_makes_another_hash() -> None:
    assert Protector(bytes(32), TABLES).hashed(RAW) != PROTECTOR.hashed(RAW)


# --- what is hashed -------------------------------------------------------------------------------


def test_rows_keys_and_hints_are_without_personal_data() -> None:
    before = {"email": "ada@example.com", "name": 5, "born": "1815", "city": "Paris", "Name": RAW}

    made = PROTECTOR.event(event(after=customer(city="London"), before=before))

    email = PROTECTOR.hashed("ada@example.com")
    assert made.key == {"email": email}
    assert made.after == {
        "email": email,
        "name": PROTECTOR.hashed(RAW),
        "born": None,
        "city": "London",
    }
    assert made.before == {"email": email, "name": None, "born": None, "city": "Paris"}


def test_a_patch_keeps_to_its_columns() -> None:
    patch = {"name": RAW, "born": "1815-12-10T00:00:00Z"}

    made = PROTECTOR.event(event(key={"email": "ada@example.com"}, patch=patch))

    assert made.patch == {"name": PROTECTOR.hashed(RAW), "born": None}
    assert (made.after, made.before) == (None, None)


def test_a_delete_names_its_row_by_the_hash() -> None:
    made = PROTECTOR.event(event(op="d", key={"email": "ada@example.com"}))

    assert (made.op, made.key) == (Op.DELETE, {"email": PROTECTOR.hashed("ada@example.com")})


def test_nobody_stays_nobody() -> None:
    made = PROTECTOR.event(event(after=customer(name=None)))

    assert made.after is not None
    assert made.after["name"] is None


def test_equal_values_join_across_tables() -> None:
    order = PROTECTOR.event(event("orders", after={"order_id": "1", "email": "ada@example.com"}))
    person = PROTECTOR.event(event(after=customer()))

    assert order.after is not None
    assert order.after["email"] == person.key["email"]


def test_a_protected_event_is_a_valid_event_and_stays_as_it_is() -> None:
    made = PROTECTOR.event(event(after=customer(), before=customer()))

    assert parse_event(made.to_json(), TABLES) == made
    assert PROTECTOR.event(made) == made


def test_an_event_of_a_table_without_personal_data_is_left_alone() -> None:
    plain = change("exchange_rates", rate_row())

    assert PROTECTOR.event(plain) is plain


def test_a_raw_key_finds_the_row_it_was_hashed_to() -> None:
    made = PROTECTOR.event(event(after=customer()))

    assert PROTECTOR.key_of(Customer, {"email": "ada@example.com"}) == made.key
    assert PROTECTOR.key_of(Customer, made.key) == made.key
    assert PROTECTOR.key_of(ExchangeRate, {"currency": "USD"}) == {"currency": "USD"}
    assert PROTECTOR.value(Order, "email", "ada@example.com") == made.key["email"]
    assert PROTECTOR.value(Customer, "born", EPOCH) is None


secrets = st.text(st.characters(codec="utf-8"), min_size=8, max_size=60).map("§secret§".__add__)
hints = st.recursive(
    secrets | st.integers(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(secrets, inner, max_size=2),
    max_leaves=4,
)
personal = st.sampled_from(["email", "name", "born", "EMAIL", "e-mail", "person"])


@given(secrets, secrets, st.dictionaries(personal, hints), st.booleans())
def test_no_personal_value_is_in_any_byte_that_goes_out(
    email: str, name: str, before: dict[str, Any], whole: bool
) -> None:
    columns = {"name": name, "born": "1815-12-10T00:00:00Z"}
    content: dict[str, Any] = {"patch": columns}
    if whole:
        content = {"after": {"email": email, **columns}}
    stream = MemoryStream(TABLES)

    raw = event(key={"email": email}, before=before, **content)
    ProtectedStream(stream, PROTECTOR).publish([raw])

    (sent,) = stream.events()
    line = encode_event(sent).decode()
    assert "§secret§" not in line
    assert "1815-12-10" not in line
    assert sent == PROTECTOR.event(raw)


def test_what_a_stream_did_not_take_is_told_by_place() -> None:
    stream = MemoryStream(TABLES)
    stream.throttle_next()

    report = ProtectedStream(stream, PROTECTOR).publish([event(after=customer())])

    assert report == PublishReport((), (0,), "throttled")


# --- the key --------------------------------------------------------------------------------------


def test_tables_that_hash_nothing_need_no_key() -> None:
    made = Protector.none([Letter, ExchangeRate])

    letter = made.event(event("letters", after={"number": "1", "body": RAW}))

    assert letter.after == {"number": "1", "body": None}


def test_a_table_that_hashes_needs_a_key_at_once() -> None:
    with pytest.raises(SettingsError, match="customers, orders") as raised:
        Protector.none(TABLES)

    assert raised.value.name == "PII_SECRET_ARN"


def test_nothing_is_ever_hashed_without_a_key() -> None:
    """Everybody could hash with an empty one."""
    with pytest.raises(SettingsError, match="PII_SECRET_ARN"):
        Protector.none([Letter]).hashed(RAW)


@pytest.mark.parametrize("key", [b"", b"k" * (KEY_BYTES_MIN - 1)])
def test_a_weak_key_is_refused_and_not_quoted(key: bytes) -> None:
    with pytest.raises(SettingsError, match="too weak") as raised:
        Protector(key, TABLES)
    with pytest.raises(SettingsError, match="too weak"):
        Protector(lambda: key, TABLES).hashed(RAW)

    assert "kkk" not in str(raised.value)


def test_a_key_is_asked_for_when_the_first_value_is_hashed_and_once() -> None:
    keys: Iterator[bytes] = iter([KEY])
    lazy = Protector(lambda: next(keys), TABLES)

    lazy.event(change("exchange_rates", rate_row()))
    hashes = {lazy.hashed(RAW), lazy.hashed(RAW), PROTECTOR.hashed(RAW)}

    assert len(hashes) == 1
    assert list(keys) == []


def test_a_key_that_could_not_be_read_is_asked_for_again() -> None:
    answers: list[Exception | bytes] = [TransientError("later"), KEY]

    def read() -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    lazy = Protector(read, TABLES)
    with pytest.raises(TransientError):
        lazy.hashed(RAW)

    assert lazy.hashed(RAW) == PROTECTOR.hashed(RAW)


def test_a_protector_shows_no_key() -> None:
    assert KEY.hex() not in repr(PROTECTOR)
    assert repr(KEY) not in repr(PROTECTOR)


def test_a_digest_is_keyed_only_where_rows_are_personal() -> None:
    digest = "0" * 32

    assert PROTECTOR.blinded("customers", digest) == PROTECTOR.hashed(digest)
    assert PROTECTOR.blinded("letters", digest) == digest
    assert PROTECTOR.blinded("exchange_rates", digest) == digest


def test_an_event_in_time_keeps_its_time() -> None:
    """Only personal columns change: nothing that decides who wins."""
    raw = event(after=customer(), occurred_at="2026-11-21T08:30:00Z")

    made = PROTECTOR.event(raw)

    kept = ("table", "op", "version", "event_id", "source", "occurred_at", "accepted_at")
    assert [getattr(made, name) for name in kept] == [getattr(raw, name) for name in kept]
    assert made.occurred_at == datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
