"""Declared sources put together for a poll, tried out, listed and saved, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from api_poller.app import build
from api_poller.composition import Composition, UnknownSourceError
from api_poller.declaration import DeclarationError, load_sources
from api_poller.http import SourceRefusedError
from api_poller.poll import STOP_MARGIN_S, Poller
from api_poller.settings import SHIPPED_SOURCES, Settings
from api_poller.state import StateStore, state_key
from freshet.errors import SettingsError, StreamUnavailableError
from freshet.pii import Protector
from freshet.tables import TABLES
from freshet.testing import MemoryObjects, MemoryStream
from local.sample.serving import Reply, Request, SampleServer
from local.sources import LISTED, Check, UnsavedError, check, listed, save

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
KEY = "key-of-the-shop-1815"
DECLARED = """
table: products
url: {url}
path: /products
auth: {auth}
credentials: SHOP
pagination: {{kind: offset, page_rows: 4}}
columns:
  product_id: {{path: id, as: text}}
  title: title
  description: owner.email
  price: price
  currency: {{constant: EUR}}
limits: {{requests_per_second: 1000, attempts_max: 1}}
schedule: rate(1 hour)
"""


def item(number: int, **members: Any) -> dict[str, Any]:
    owner = {"email": f"ada{number}@mail.com"}
    return {"id": number, "title": f"Mug {number}", "price": 2.5, "owner": owner} | members


@dataclass
class Shop:
    """A shop with a key, and what it was asked."""

    items: list[dict[str, Any]] = field(default_factory=lambda: [item(n) for n in range(10)])
    key: str | None = None
    reply: Reply | None = None
    asked: list[Request] = field(default_factory=list)

    def serve(self, request: Request) -> Reply:
        self.asked.append(request)
        if self.reply is not None:
            return self.reply
        if self.key is not None and request.headers.get("x-key") != self.key:
            return Reply(401, b'{"message":"who are you?"}')
        offset, limit = (int(request.query[name]) for name in ("offset", "limit"))
        return Reply(200, json.dumps(self.items[offset : offset + limit]).encode())


@dataclass
class Rig:
    """A folder with one source, `shop`, and everything in memory around it."""

    folder: Path
    url: str
    shop: Shop
    stream: MemoryStream = field(default_factory=MemoryStream)
    objects: MemoryObjects = field(default_factory=MemoryObjects)

    def declare(self, auth: str = "{kind: none}", name: str = "shop", more: str = "") -> None:
        text = DECLARED.format(url=self.url, auth=auth) + more
        (self.folder / f"{name}.yaml").write_text(text)

    def settings(self, **environment: str) -> Settings:
        names = {"STREAM_NAME": "changes", "STATE_BUCKET": "state", "ALLOW_LOOPBACK": "true"}
        return Settings.from_env({**names, "SOURCES_FOLDER": str(self.folder), **environment})

    def composition(self, **environment: str) -> Composition:
        return Composition(
            self.settings(**environment), self.stream, self.objects, lambda: NOW, _no_client
        )

    def check(
        self, reach: Callable[[], str] = lambda: "there", name: str = "shop", **environment: str
    ) -> Check:
        return check(self.composition(**environment), name, reach)

    def handler(self, **environment: str) -> Callable[..., dict[str, Any]]:
        return build(
            self.settings(**environment),
            stream=self.stream,
            objects=self.objects,
            now=lambda: NOW,
        )


def _no_client() -> Any:
    raise AssertionError("no secret is named")


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setenv("POWERTOOLS_METRICS_DISABLED", "true")
    shop = Shop()
    with SampleServer(shop.serve, base_path="") as server:
        made = Rig(tmp_path, server.url, shop)
        made.declare()
        yield made


def verdicts(found: Check) -> dict[str, str]:
    return {step.name: step.verdict.value for step in found.steps}


def detail(found: Check, name: str) -> str:
    return next(step.detail for step in found.steps if step.name == name)


ALL_OK = dict.fromkeys(("declaration", "auth", "page", "mapping", "state", "stream"), "ok")


# --- check ----------------------------------------------------------------------------------------


def test_a_source_that_works_is_told_step_by_step_and_nothing_is_done(rig: Rig) -> None:
    found = rig.check()

    assert verdicts(found) == ALL_OK
    assert found.holds
    assert detail(found, "page") == f"4 records from {rig.url}; more pages follow"
    assert [row[0] for row in found.rows] == ["0", "1", "2"]
    assert not rig.stream.events()
    assert not list(rig.objects.list(""))


def test_rows_are_shown_without_what_is_personal_by_name(rig: Rig) -> None:
    found = rig.check()

    assert found.hidden == ["description"]
    assert "description" not in found.columns
    assert "ada" not in json.dumps(found.to_json(), default=str)


def test_a_declaration_that_is_wrong_is_told_with_its_line(rig: Rig) -> None:
    rig.declare(more="pages: 4\n")

    found = rig.check()

    assert verdicts(found) == {"declaration": "WRONG"}
    assert "shop.yaml:16: pages: is no member here" in detail(found, "declaration")


def test_missing_credentials_are_named_and_nothing_is_asked(rig: Rig) -> None:
    rig.declare("{kind: api_key, name: X-Key}")

    found = rig.check()

    assert verdicts(found) == ALL_OK | {"auth": "WRONG", "page": "not tried"} | {
        "mapping": "not tried"
    }
    assert "needs api_key" in detail(found, "auth")
    assert "SHOP_" in detail(found, "auth")
    assert not rig.shop.asked


def test_credentials_that_are_refused_are_a_matter_of_the_log_in(rig: Rig) -> None:
    rig.declare("{kind: api_key, name: X-Key}")
    rig.shop.key = KEY

    wrong = rig.check(SHOP_API_KEY="another-key-1816")
    right = rig.check(SHOP_API_KEY=KEY)

    assert verdicts(wrong)["auth"] == "WRONG"
    assert "answers 401 (who are you?)" in detail(wrong, "auth")
    assert "another-key-1816" not in str(wrong)
    assert verdicts(right) == ALL_OK
    assert detail(right, "auth") == "api_key with the credentials SHOP"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply(404, b'{"message":"Cannot GET /products"}'), "answers 404 (Cannot GET /products)"),
        (Reply(503, b""), "answers 503"),
        (Reply(200, b"<!doctype html><h1>Login</h1>", "text/html"), "answers HTML"),
        (Reply(200, b'{"items":[]}'), "something other than a JSON array of objects"),
    ],
    ids=["404", "503", "html", "shape"],
)
def test_a_page_that_does_not_come_is_told_with_what_came(
    rig: Rig, reply: Reply, said: str
) -> None:
    rig.shop.reply = reply

    found = rig.check()

    assert verdicts(found) == ALL_OK | {"page": "WRONG", "mapping": "not tried"}
    assert said in detail(found, "page")


def test_records_that_do_not_fit_are_counted_with_column_and_reason(rig: Rig) -> None:
    rig.shop.items[1] = item(1, price="cheap")
    rig.shop.items[3] = item(3, price="dear")

    found = rig.check()

    assert verdicts(found) == ALL_OK | {"mapping": "WRONG"}
    assert "2 of 4 records do not fit (price: wrong_type)" in detail(found, "mapping")
    assert len(found.rows) == 2


def test_an_empty_source_works_and_says_so(rig: Rig) -> None:
    rig.shop.items.clear()

    found = rig.check()

    assert verdicts(found) == ALL_OK
    assert "nothing was there to map" in detail(found, "mapping")


class ClosedObjects(MemoryObjects):
    """A bucket that may not be written."""

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        raise SettingsError("STATE_BUCKET", "refuses this caller")


class CarelessObjects(MemoryObjects):
    """A bucket that takes no notice of conditions."""

    def put_if(self, key: str, data: bytes, *, etag: str | None) -> str:
        return self.put(key, data)


@pytest.mark.parametrize(
    ("objects", "said"),
    [(ClosedObjects, "refuses this caller"), (CarelessObjects, "ignores conditions")],
)
def test_a_bucket_that_will_not_do_is_told(
    rig: Rig, objects: type[MemoryObjects], said: str
) -> None:
    rig.objects = objects()

    found = rig.check()

    assert verdicts(found) == ALL_OK | {"state": "WRONG"}
    assert said in detail(found, "state")


def test_a_stream_out_of_reach_is_told(rig: Rig) -> None:
    def reach() -> str:
        raise StreamUnavailableError("changes", "no such stream")

    found = rig.check(reach)

    assert verdicts(found) == ALL_OK | {"stream": "WRONG"}
    assert not found.holds


# --- list and save --------------------------------------------------------------------------------


def test_a_list_tells_where_each_source_stands(rig: Rig) -> None:
    rig.declare(name="stall")
    rig.handler()({"source": "shop"}, None)

    rows = [
        dict(zip(LISTED, row, strict=True))
        for row in listed(load_sources(rig.folder), StateStore(rig.objects))
    ]

    told = {"table": "products", "mode": "full", "auth": "none", "schedule": "rate(1 hour)"}
    assert rows == [
        {"name": "shop", **told, "enabled": "yes", "rows": 10}
        | {"changed": "2026-11-21T08:30:00Z", "watermark": None},
        {"name": "stall", **told, "enabled": "yes", "rows": None}
        | {"changed": None, "watermark": None},
    ]


def test_a_state_that_cannot_be_read_is_told_beside_the_others(rig: Rig) -> None:
    rig.objects.put(state_key("shop"), b"not ours")

    [row] = listed(load_sources(rig.folder), StateStore(rig.objects))

    assert str(row[-1]).endswith("reset it")


def test_a_proposal_is_saved_once_and_a_draft_is_no_source(tmp_path: Path) -> None:
    path = save(tmp_path, "shop", "table: products\n", loads=True)
    draft = save(tmp_path, "stall", "table: stalls\n", loads=False)

    assert path == tmp_path / "shop.yaml"
    assert draft.name == "stall.yaml.draft"
    assert [one.name for one in tmp_path.glob("*.yaml")] == ["shop.yaml"]
    with pytest.raises(UnsavedError, match="is there already"):
        save(tmp_path, "shop", "", loads=True)
    assert path.read_text() == "table: products\n"
    with pytest.raises(UnsavedError, match="cannot be written"):
        save(tmp_path / "nowhere", "shop", "", loads=True)


# --- the composition ------------------------------------------------------------------------------


@dataclass
class Context:
    """Lambda's, as far as a poller asks it."""

    left_s: Callable[[], float]

    def get_remaining_time_in_millis(self) -> int:
        return int(self.left_s() * 1000)


def test_a_poll_near_its_time_limit_is_put_down_and_the_next_goes_on(rig: Rig) -> None:
    handle = rig.handler()

    def left_s() -> float:
        return 600 if len(rig.shop.asked) < 2 else STOP_MARGIN_S - 1

    first = handle({"source": "shop"}, Context(left_s))
    second = handle({"source": "shop"}, Context(lambda: 600))

    assert (first["unfinished"], first["pages"], first["published"]) == (True, 2, 7)
    assert (second["unfinished"], second["resumed_rows"], second["published"]) == (False, 7, 3)
    assert len({one.key["product_id"] for one in rig.stream.events()}) == 10


def test_a_dry_run_tells_and_does_nothing(rig: Rig) -> None:
    report = rig.handler()({"source": "shop", "dry_run": True}, None)

    assert (report["dry_run"], report["created"], report["published"]) == (True, 10, 0)
    assert not rig.stream.events()
    assert not list(rig.objects.list(""))


def test_one_broken_file_stops_no_other_source(rig: Rig) -> None:
    (rig.folder / "broken.yaml").write_text("table: nowhere\n")

    assert rig.handler()({"source": "shop"}, None)["published"] == 10
    with pytest.raises(DeclarationError, match=r"broken\.yaml"):
        rig.handler()({"source": "broken"}, None)


@pytest.mark.parametrize("name", ["nobody", None, ["shop"], "../shop", ""])
def test_an_unknown_source_is_answered_with_the_known_ones(rig: Rig, name: object) -> None:
    with pytest.raises(UnknownSourceError, match="with one of shop"):
        rig.handler()({"source": name}, None)


def test_headers_of_the_source_s_own_name_are_sent_along(rig: Rig) -> None:
    rig.shop.key = KEY
    headers = json.dumps({"headers": {"X-Key": KEY}})

    report = rig.handler(SHOP_CREDENTIALS=headers)({"source": "shop"}, None)

    assert report["published"] == 10
    assert {request.headers["x-key"] for request in rig.shop.asked} == {KEY}


def test_a_deployed_poller_speaks_to_no_loopback(rig: Rig) -> None:
    with pytest.raises(SourceRefusedError):
        rig.handler(ALLOW_LOOPBACK="false")({"source": "shop"}, None)

    assert not rig.shop.asked


def declared(**environment: str) -> Callable[[str], Any]:
    names = {"STREAM_NAME": "changes", "STATE_BUCKET": "state"}
    settings = Settings.from_env({**names, **environment})
    made = Composition(settings, MemoryStream(), MemoryObjects(), lambda: NOW, _no_client)
    return made.declaration


def test_a_url_of_a_source_is_that_of_its_family_too() -> None:
    at = declared(PLATZI_URL="https://shop.example/v1/", PLATZI_CATEGORIES_URL="https://b.example")

    assert at("platzi").url == "https://shop.example/v1"
    assert at("platzi_categories").url == "https://b.example"
    assert declared(SPOTIFY_URL="https://s.example")("spotify_albums").url == "https://s.example"
    assert at("ecb").url == "https://data-api.ecb.europa.eu/service"


def test_settings_take_the_place_of_what_is_declared() -> None:
    environment = {"PRODUCT_CURRENCY": "GBP", "DELETE_SHARE_MAX": "0.5", "PAGE_ROWS": "7"}
    at = declared(**environment, ECB_START="2010-12-01")

    platzi, ecb = at("platzi"), at("ecb")
    assert platzi.columns["currency"].constant == "GBP"
    assert platzi.sync.delete_share_max == 0.5
    assert platzi.pagination.page_rows == 7
    assert ecb.sync.start == "2010-12-01"
    assert declared()("platzi").columns["currency"].constant == "USD"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PLATZI_URL", "escuelajs.co"),
        ("PLATZI_URL", "file:///etc/passwd"),
        ("PLATZI_URL", "https://ada:secret@host/"),
        ("PLATZI_URL", "https://host/path?format=csv"),
    ],
)
def test_a_wrong_address_is_named_when_its_source_is_asked_for(name: str, value: str) -> None:
    at = declared(**{name: value})

    assert at("ecb").table == "exchange_rates"
    with pytest.raises(SettingsError, match=f"setting {name}: ") as raised:
        at("platzi")
    assert "secret" not in str(raised.value).replace("in the secret of the source", "")


def test_settings_keep_the_values_of_credentials_to_themselves() -> None:
    settings = Settings.from_env(
        {"STREAM_NAME": "s", "STATE_BUCKET": "b", "SHOP_TOKEN": KEY, "AWS_SESSION_TOKEN": "aws-1"}
    )

    assert settings.of_sources == {"SHOP_TOKEN": KEY}
    assert KEY not in repr(settings)


PARENTED = """
table: products
url: {url}
path: /shelves/{{parent}}
parents: {{source: {source}, column: product_id}}
columns:
  product_id: {{path: id, as: text}}
  title: title
  price: price
  currency: {{constant: EUR}}
limits: {{requests_per_second: 1000}}
"""


def test_a_source_is_listed_for_what_its_parent_lists(rig: Rig) -> None:
    def serve(request: Request) -> Reply:
        shelf = request.path.rpartition("/")[2]
        return Reply(200, json.dumps([item(int(shelf) + 100)]).encode())

    with SampleServer(serve, base_path="") as server:
        text = PARENTED.format(url=server.url, source="shop")
        (rig.folder / "shelves.yaml").write_text(text)
        report = rig.handler()({"source": "shelves"}, None)

    keys = {one.key["product_id"] for one in rig.stream.events()}
    assert (report["published"], report["complete"]) == (10, True)
    assert keys == {str(number) for number in range(100, 110)}


def test_parents_in_a_circle_are_refused(rig: Rig) -> None:
    for name, parent in (("one", "two"), ("two", "one")):
        text = PARENTED.format(url=rig.url, source=parent)
        (rig.folder / f"{name}.yaml").write_text(text)

    with pytest.raises(UnknownSourceError):
        rig.handler()({"source": "one"}, None)


def test_every_source_that_ships_is_put_together_without_asking_anybody() -> None:
    credentials = {"SPOTIFY_CREDENTIALS": '{"client_id":"a","client_secret":"b"}'}
    names = {"STREAM_NAME": "changes", "STATE_BUCKET": "state", "EXAMPLE_API_KEY": KEY}
    made = Composition(
        Settings.from_env({**names, **credentials}),
        MemoryStream(),
        MemoryObjects(),
        lambda: NOW,
        _no_client,
        protector=Protector(bytes(32), TABLES),
    )

    found = {name: made.source(name) for name in made.names}

    assert set(found) == {path.stem for path in SHIPPED_SOURCES.glob("*.yaml")}
    assert {"platzi", "ecb", "dummyjson_products", "spotify_albums"} <= set(found)
    assert all(source.contract.table for source in found.values())
    assert isinstance(made.poller(), Poller)
