"""The poller's settings and its handler, over a transport that answers from a script."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from api_poller import app
from api_poller.app import Handler, UnknownSourceError, build
from api_poller.http import SourceAnswerError
from api_poller.settings import SHIPPED_SOURCES, Settings
from api_poller.state import state_key
from api_poller.transport import Answer, Limits, Request
from freshet.errors import SettingsError
from freshet.objects import ObjectMissingError, Objects
from freshet.testing import MemoryObjects, MemoryStream, StoppedClock

EVENTS = Path(__file__).parents[2] / "events"
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
ENVIRONMENT = {"STREAM_NAME": "changes", "STATE_BUCKET": "state"}


class ScriptedTransport:
    """A transport that answers from a function of path and query; `urls` holds what was asked."""

    def __init__(self, answer: Callable[[str, Mapping[str, str]], bytes]) -> None:
        self._answer, self.urls = answer, list[str]()

    def send(
        self, request: Request, limits: Limits, *, seconds_max: float, allow_loopback: bool
    ) -> Answer:
        """See `api_poller.transport.Transport.send`."""
        self.urls.append(request.url)
        parts = urlsplit(request.url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return Answer(request.url, 200, {}, self._answer(parts.path, query), measured=True)


def item(product_id: Any, price: Any = 39, **members: Any) -> dict[str, Any]:
    """A product as the Platzi API lists it."""
    return {
        "id": product_id,
        "title": f"Product {product_id}",
        "slug": f"product-{product_id}",
        "price": price,
        "description": "Cleats.",
        "category": {"id": 1, "name": "Clothes", "slug": "clothes"},
        "images": ["https://i.imgur.com/one.jpeg", "https://i.imgur.com/two.jpeg"],
        "creationAt": "2026-11-20T21:41:12.000Z",
        "updatedAt": "2026-11-20T21:41:12.000Z",
        **members,
    }


# --- settings -------------------------------------------------------------------------------------


def test_settings_need_only_the_names_of_the_resources() -> None:
    settings = Settings.from_env(ENVIRONMENT)

    assert settings.sources_folder == SHIPPED_SOURCES
    assert settings.allow_loopback is False
    assert (settings.state_prefix, settings.of_sources) == ("", {})
    # What is not set leaves a source as it is declared.
    assert settings.url_of("platzi") is None
    assert settings.product_currency is None
    assert settings.delete_share_max is None
    assert settings.page_rows is None
    assert settings.ecb_start is None


def test_settings_read_what_is_set() -> None:
    environment = {"ECB_START": "1999-01-04", "DELETE_SHARE_MAX": "1", "ALLOW_LOOPBACK": "true"}

    settings = Settings.from_env(ENVIRONMENT | environment | {"PLATZI_URL": "http://shop/api/"})

    assert settings.ecb_start == date(1999, 1, 4)
    assert (settings.delete_share_max, settings.allow_loopback) == (1, True)
    assert settings.url_of("platzi") == "http://shop/api"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STREAM_NAME", ""),
        ("STATE_BUCKET", ""),
        ("ALLOW_LOOPBACK", "perhaps"),
        ("PRODUCT_CURRENCY", "dollars"),
        ("DELETE_SHARE_MAX", "20"),
        ("ECB_START", "long ago"),
        ("PAGE_ROWS", "1"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"setting {name}:"):
        Settings.from_env(ENVIRONMENT | {name: value})


# --- the handler ----------------------------------------------------------------------------------


def handler(
    objects: Objects | None = None,
    answer: Callable[[str, Mapping[str, str]], bytes] = lambda path, query: b"",
) -> Handler:
    return build(
        Settings.from_env(ENVIRONMENT),
        stream=MemoryStream(),
        objects=objects or MemoryObjects(),
        transport=ScriptedTransport(answer),
        now=StoppedClock(NOW),
        sleep=lambda seconds: None,
    )


def nothing(path: str, query: Mapping[str, str]) -> bytes:
    return b"[]" if "products" in path else b""


@pytest.mark.parametrize("name", ["platzi", "ecb"])
def test_the_handler_takes_what_the_scheduler_sends(name: str) -> None:
    event = json.loads((EVENTS / f"schedule_{name}.json").read_text())

    answer = handler(answer=nothing)(event, None)

    assert json.loads(json.dumps(answer)) == answer
    assert (answer["source"], answer["listed"], answer["complete"]) == (name, 0, True)


@pytest.mark.parametrize("event", [{}, {"source": "nobody"}, {"source": None}, {"source": ["a"]}])
def test_an_unknown_source_is_answered_with_the_known_ones(event: dict[str, Any]) -> None:
    objects = MemoryObjects()

    with pytest.raises(UnknownSourceError, match=r"ecb, .*platzi, ") as raised:
        handler(objects)(event, None)

    shipped = sorted(path.stem for path in SHIPPED_SOURCES.glob("*.yaml"))
    assert list(raised.value.known) == shipped
    with pytest.raises(ObjectMissingError):
        objects.get(state_key("platzi"))


def counted(lines: str) -> list[dict[str, Any]]:
    """The metrics of these lines, with the source that they are counted by."""
    return [
        {name: value for name, value in json.loads(line).items() if name != "_aws"}
        for line in lines.splitlines()
    ]


def test_a_poll_counts_rows_by_source_and_warns_of_those_it_skipped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)
    page = json.dumps([item(1), item(2), item(3, price="free")]).encode()

    handler(answer=lambda path, query: page)({"source": "platzi"}, None)

    captured = capsys.readouterr()
    assert counted(captured.out) == [
        {
            "source": "platzi",
            "SourceRowsRead": [3.0],
            "ChangesAccepted": [2.0],
            "ChangesRejected": [1.0],
        }
    ]
    (line,) = captured.err.splitlines()
    logged = json.loads(line)
    assert (logged["level"], logged["message"]) == ("WARNING", "poll_completed")
    assert logged["report"]["skipped"] == 1


def test_a_refused_poll_is_counted_by_its_source_and_an_unknown_source_by_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A metric for every name that anybody makes up would cost money."""
    monkeypatch.delenv("POWERTOOLS_METRICS_DISABLED", raising=False)
    handle = handler(answer=lambda path, query: b"<html>")

    with pytest.raises(SourceAnswerError):
        handle({"source": "platzi"}, None)
    with pytest.raises(UnknownSourceError):
        handle({"source": "nobody"}, None)

    assert counted(capsys.readouterr().out) == [{"source": "platzi", "PollsRefused": [1.0]}]


def test_the_deployed_handler_names_the_setting_it_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAM_NAME", raising=False)

    with pytest.raises(SettingsError, match="STREAM_NAME"):
        app.handler({"source": "platzi"}, None)


def test_the_poller_imports_neither_a_data_frame_nor_needs_aws() -> None:
    program = (
        "import sys, api_poller.app\n"
        "heavy = {'pyarrow', 'pandas', 'numpy', 'pyiceberg', 'duckdb'} & set(sys.modules)\n"
        "sys.exit(f'imports {heavy}' if heavy else 0)"
    )
    source = Path(__file__).parents[2] / "src"

    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
