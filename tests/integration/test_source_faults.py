"""Polls of the sources that ship, from a server that misbehaves over real sockets.

Each fault ends in an error that names the source and says what to do, with no event published and
the state untouched; what passes within the repeats goes unnoticed.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.misbehaving import (
    HTML,
    Misbehaving,
    Reply,
    Visit,
    body,
    dripping,
    gzip_bomb,
    misbehaving,
    raw,
    reset_in_body,
    silent,
    status,
    truncated_gzip,
)

from api_poller.auth import authenticator_for
from api_poller.declaration import SourceDeclaration, load_sources
from api_poller.http import (
    BudgetSpentError,
    Limits,
    Session,
    SourceAnswerError,
    SourceError,
    SourceRefusedError,
    SourceUnavailableError,
)
from api_poller.listing import DeclaredSource
from api_poller.poll import Poller, PollReport
from api_poller.state import StateConflictError, StateStore
from api_poller.tokens import MemoryTokens
from api_poller.transport import UrllibTransport
from freshet.event import Op
from freshet.objects import DirectoryObjects, StoredObject
from freshet.tables import TABLES
from freshet.testing import MemoryStream, StoppedClock

SHIPPED = load_sources(Path(__file__).parents[2] / "src" / "sources")
NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
LIMITS = Limits(
    requests_per_second=None,
    connect_timeout_s=1.0,
    read_timeout_s=0.3,
    answer_s_max=0.6,
    attempts_max=3,
    wait_s_first=0.01,
    wait_s_max=30.0,
    body_bytes_max=100_000,
    unpacked_bytes_max=200_000,
)


def item(number: int, price: int = 10) -> dict[str, Any]:
    return {
        "id": number,
        "title": f"Product {number}",
        "slug": f"product-{number}",
        "price": price,
        "description": "",
        "category": {"id": 1, "name": "Clothes"},
        "images": [],
        "creationAt": "2026-11-20T21:41:12.000Z",
        "updatedAt": "2026-11-20T21:41:12.000Z",
    }


class Upstreams:
    """A shop and a bank on one server; their answers follow `items` and `rates`."""

    def __init__(self, server: Misbehaving) -> None:
        self.items = [item(number) for number in range(7)]
        self.rates = [("USD", "2026-11-19", "1.11"), ("USD", "2026-11-20", "1.12")]
        server.on("/api/v1/products", self.shop)
        server.on("/service/data/EXR/D..EUR.SP00.A", self.bank)

    def shop(self, visit: Visit) -> None:
        offset, limit = (int(visit.seen.query[name]) for name in ("offset", "limit"))
        visit.json(self.items[offset : offset + limit])

    def bank(self, visit: Visit) -> None:
        first, last = (visit.seen.query[name] for name in ("startPeriod", "endPeriod"))
        lines = [
            f"EXR.D.{currency}.EUR.SP00.A,{currency},{day},{value}"
            for currency, day, value in self.rates
            if first <= day <= last
        ]
        head = "KEY,CURRENCY,TIME_PERIOD,OBS_VALUE"
        text = "\r\n".join([head, *lines, ""]) if lines else ""
        visit.answer(200, text.encode(), Content_Type="text/csv")


class Rig:
    """Declared sources over real sessions, a folder and a memory stream."""

    def __init__(self, server: Misbehaving, folder: Path) -> None:
        self.server, self.upstreams = server, Upstreams(server)
        self.waits, self.stream, self.clock = list[float](), MemoryStream(), StoppedClock(NOW)
        self.objects, self.transport = DirectoryObjects(folder), UrllibTransport()
        self.poller = Poller(self.stream, StateStore(self.objects), self.clock)

    def declaration(self, name: str) -> SourceDeclaration:
        made = SHIPPED[name]
        where = {"platzi": "/api/v1", "ecb": "/service"}[name]
        changes: dict[str, Any] = {"url": f"{self.server.url}{where}", "limits": LIMITS}
        if name == "platzi":
            changes["pagination"] = made.pagination.model_copy(update={"page_rows": 3})
        else:
            changes["sync"] = made.sync.model_copy(update={"start": "2026-11-01"})
        return made.model_copy(update=changes)

    def source(self, name: str, limits: Limits = LIMITS) -> DeclaredSource:
        declaration = self.declaration(name)
        session = Session(
            name,
            limits,
            declaration.places,
            authenticator_for(declaration.auth, {}, MemoryTokens(), self.clock),
            transport=self.transport,
            now=self.clock,
            sleep=self.waits.append,
            jitter=lambda: 0.5,
            allow_loopback=True,
        )
        return DeclaredSource(name, declaration, TABLES[declaration.table], session)

    def poll(self, name: str = "platzi", limits: Limits = LIMITS) -> PollReport:
        self.clock.advance(60)
        return self.poller.poll(self.source(name, limits))

    def remembered(self) -> dict[str, StoredObject]:
        return {key: self.objects.get(key) for key in self.objects.list("")}


@pytest.fixture
def server() -> Iterator[Misbehaving]:
    with misbehaving() as made:
        yield made


@pytest.fixture
def rig(server: Misbehaving, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(server, tmp_path)
    yield made
    made.transport.close()


ARRAY = json.dumps([item(0), item(1), item(2)]).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

FAULTS: dict[str, tuple[Reply, type[Exception], str]] = {
    "500": (status(500), SourceUnavailableError, "answers 500"),
    "502": (status(502), SourceUnavailableError, "answers 502"),
    "503": (status(503), SourceUnavailableError, "answers 503"),
    "408": (status(408), SourceUnavailableError, "answers 408"),
    "429": (status(429), SourceUnavailableError, "answers 429"),
    "429, come back soon": (status(429, Retry_After="7"), SourceUnavailableError, "answers 429"),
    "silence": (silent, SourceUnavailableError, "too slow"),
    "drip": (dripping, SourceUnavailableError, r"took over 0\.6 s"),
    "hang-up": (raw(b""), SourceUnavailableError, "broke off"),
    "reset": (reset_in_body, SourceUnavailableError, "broke off"),
    "no HTTP": (raw(b"\x00\x01\x02\r\n\r\n"), SourceUnavailableError, "broke off"),
    "truncated": (
        raw(HEAD + b"Content-Length: 5000\r\n\r\n" + ARRAY),
        SourceUnavailableError,
        "broke off",
    ),
    "truncated chunk": (
        raw(CHUNKED + b"fff\r\n" + ARRAY[:20]),
        SourceUnavailableError,
        "broke off",
    ),
    "truncated between chunks": (
        raw(CHUNKED + b"2\r\n[]\r\n"),
        SourceUnavailableError,
        "broke off",
    ),
    "truncated, length unknown": (
        raw(HEAD + b"\r\n" + ARRAY[:-20]),
        SourceAnswerError,
        "not JSON",
    ),
    "truncated gzip": (truncated_gzip(ARRAY), SourceUnavailableError, "gzip"),
    "no gzip": (body(ARRAY, Content_Encoding="gzip"), SourceUnavailableError, "broken gzip"),
    "zip bomb": (gzip_bomb(10_000_000), SourceAnswerError, "more than 200000"),
    "other encoding": (body(ARRAY, Content_Encoding="br"), SourceAnswerError, "'br'"),
    "flood": (body(b" " * 300_000), SourceAnswerError, "more than 100000"),
    "HTML": (body(HTML, Content_Type="text/html"), SourceAnswerError, "HTML"),
    "HTML called JSON": (body(b"\n " + HTML), SourceAnswerError, "HTML"),
    "object": (body(b'{"items":[]}'), SourceAnswerError, "something other than a JSON array"),
    "empty body": (body(b""), SourceAnswerError, "not JSON"),
    "204": (lambda visit: visit.answer(204, b""), SourceAnswerError, "not JSON"),
    "401": (status(401), SourceRefusedError, "credentials"),
    "403": (status(403), SourceRefusedError, "credentials"),
    "404": (status(404), SourceRefusedError, "correct the source's URL"),
    "400": (status(400), SourceRefusedError, "answers 400"),
    "304": (status(304), SourceRefusedError, "answers 304"),
    "another host": (
        status(302, Location="http://localhost:1/api/v1/products"),
        SourceRefusedError,
        "redirects to http://localhost:1/",
    ),
    "another scheme": (status(302, Location="file:///etc/passwd"), SourceRefusedError, "redirects"),
    "half": (body(ARRAY[: len(ARRAY) // 2]), SourceAnswerError, "not JSON"),
    "nowhere": (status(301), SourceRefusedError, "redirects"),
}


@pytest.mark.parametrize("page", [0, 3], ids=["first page", "last page"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_any_page_publishes_nothing_and_says_what_to_do(
    fault: str, page: int, rig: Rig
) -> None:
    rig.poll()
    told, remembered = len(rig.stream.records), rig.remembered()
    reply, expected, message = FAULTS[fault]
    rig.upstreams.items = [item(number, price=99) for number in range(1, 7)]
    rig.server.faults.extend([rig.upstreams.shop] * page + [reply] * LIMITS.attempts_max)

    with pytest.raises(expected, match=message) as raised:
        rig.poll()

    error: Any = raised.value
    assert error.source == "platzi"
    assert f"source 'platzi' at {rig.server.url}/api/v1/products" in str(error)
    assert error.advice in str(error)
    assert len(rig.stream.records) == told
    assert rig.remembered() == remembered
    rig.server.faults.clear()
    report = rig.poll()
    assert (report.updated, report.deleted) == (6, 1)


@pytest.mark.parametrize(
    "fault", [name for name, (_, error, _) in FAULTS.items() if error is SourceUnavailableError]
)
def test_what_passes_within_the_retries_goes_unnoticed(fault: str, rig: Rig) -> None:
    rig.server.faults.append(FAULTS[fault][0])

    report = rig.poll()

    assert (report.created, report.complete) == (7, True)
    assert len(rig.waits) == 1


def test_a_source_that_wants_a_long_pause_is_left_at_once_and_taken_up_again(rig: Rig) -> None:
    tomorrow = status(429, Retry_After="86400")
    rig.server.faults.append(tomorrow)
    with pytest.raises(BudgetSpentError, match="86400 s: poll less often"):
        rig.poll()
    rig.server.faults.extend([rig.upstreams.shop, tomorrow])

    half = rig.poll()
    rest = rig.poll()

    assert (half.created, half.unfinished, rest.created, rest.complete) == (3, True, 4, True)
    assert "86400 s" in half.problems[0]
    assert rig.waits == []


@pytest.mark.parametrize(
    "fault", ["500", "silence", "truncated", "half", "HTML", "404", "drip", "403"]
)
def test_a_fault_of_the_bank_leaves_its_watermark(fault: str, rig: Rig) -> None:
    first = rig.poll("ecb")
    remembered = rig.remembered()
    rig.upstreams.rates.append(("USD", "2026-11-21", "1.13"))
    half = body(b"KEY,CURRENCY,TIME_PERIOD,OBS_VALUE\r\nEXR,USD,2026-11-21,1.")
    reply = half if fault == "half" else FAULTS[fault][0]
    rig.server.faults.extend([reply] * LIMITS.attempts_max)

    with pytest.raises((SourceError, SourceRefusedError), match="source 'ecb' at http://127"):
        rig.poll("ecb")

    assert rig.remembered() == remembered
    rig.server.faults.clear()
    assert (first.watermark, rig.poll("ecb").watermark) == ("2026-11-20", "2026-11-21")


def test_an_empty_answer_of_the_bank_changes_nothing(rig: Rig) -> None:
    rig.poll("ecb")
    remembered = rig.remembered()
    rig.server.faults.append(body(b"", Content_Type="text/csv"))

    report = rig.poll("ecb")

    assert (report.listed, report.published) == (0, 0)
    assert report.watermark == "2026-11-20"
    assert rig.remembered() == remembered


def test_a_server_that_is_down_is_named(rig: Rig) -> None:
    rig.transport.close()
    rig.server.server_close()

    with pytest.raises(SourceUnavailableError, match=r"'platzi'.*cannot be reached.*3 attempt"):
        rig.poll()

    assert rig.remembered() == {}


def test_one_connection_serves_all_pages(rig: Rig) -> None:
    rig.poll()

    assert len(rig.server.seen) > 2
    assert rig.server.connections == 1


def test_a_packed_listing_is_a_listing(rig: Rig) -> None:
    replies = [ARRAY, json.dumps([item(2)]).encode()]
    rig.server.faults.extend(
        body(gzip.compress(reply), Content_Encoding="gzip") for reply in replies
    )

    assert rig.poll().created == 3


def test_of_two_polls_at_once_one_publishes_and_the_other_gives_way(rig: Rig) -> None:
    """Scheduler may fire twice: the second poll runs whole while the first waits for a page."""
    reports: list[PollReport] = []

    def meanwhile(visit: Visit) -> None:
        reports.append(rig.poller.poll(second))
        rig.upstreams.shop(visit)

    first, second = rig.source("platzi"), rig.source("platzi")
    patient = LIMITS.model_copy(update={"read_timeout_s": 10.0, "answer_s_max": 10.0})
    first = rig.source("platzi", patient)
    rig.server.faults.extend([rig.upstreams.shop, meanwhile])

    with pytest.raises(StateConflictError, match="another poll"):
        rig.poller.poll(first)

    assert [report.created for report in reports] == [7]
    events = rig.stream.events()
    assert len(events) == 7
    assert {event.op for event in events} == {Op.READ}
    state, _ = rig.poller.states.load("platzi")
    assert len(state.snapshot) == 7


# --- polls of declared sources --------------------------------------------------------------------


def test_first_poll_reads_later_polls_tell_differences(rig: Rig) -> None:
    first = rig.poll()
    rig.upstreams.items[0] = item(0, price=40)
    del rig.upstreams.items[1]
    rig.upstreams.items.append(item(9))

    second, third = rig.poll(), rig.poll()

    assert (first.created, first.published, first.complete) == (7, 7, True)
    assert (second.created, second.updated, second.deleted, second.unchanged) == (1, 1, 1, 5)
    assert (third.published, third.unchanged) == (0, 7)
    assert {(event.op, event.key["product_id"]) for event in rig.stream.events()[7:]} == {
        (Op.UPDATE, "0"),
        (Op.DELETE, "1"),
        (Op.CREATE, "9"),
    }


def test_a_renamed_category_is_a_change_although_updated_at_stands_still(rig: Rig) -> None:
    rig.poll()
    rig.upstreams.items[0]["category"] = {"id": 1, "name": "Garments"}

    report = rig.poll()

    assert report.updated == 1
    last = rig.stream.events()[-1]
    assert last.before is not None
    assert last.after is not None
    assert (last.before["category"], last.after["category"]) == ("Clothes", "Garments")


@pytest.mark.parametrize("when", range(1, 5))
def test_a_delete_between_two_pages_is_no_delete_of_another_row(when: int, rig: Rig) -> None:
    rig.poll()
    told = len(rig.stream.events())

    def after(pages: int) -> Callable[[Visit], None]:
        def reply(visit: Visit) -> None:
            if pages == when:
                rig.upstreams.items.pop(0)
            rig.upstreams.shop(visit)

        return reply

    rig.server.faults.extend(after(page) for page in range(1, 5))
    rig.poll()
    rig.server.faults.clear()
    rig.poll()

    assert [(event.op, event.key["product_id"]) for event in rig.stream.events()[told:]] == [
        (Op.DELETE, "0")
    ]


def test_revisions_new_and_ended_currencies_are_told_and_never_as_deletes(rig: Rig) -> None:
    rig.upstreams.rates = [
        ("USD", "2026-11-18", "1.10"),
        ("USD", "2026-11-19", "1.11"),
        ("BGN", "2026-11-18", "1.9558"),
    ]
    rig.poll("ecb")
    rig.upstreams.rates = [
        ("USD", "2026-11-18", "1.10"),
        ("USD", "2026-11-19", "1.12"),
        ("USD", "2026-11-20", "1.13"),
        ("XYZ", "2026-11-20", "5"),
    ]

    report = rig.poll("ecb")

    assert (report.created, report.updated, report.deleted, report.unchanged) == (2, 1, 0, 1)
    assert report.watermark == "2026-11-20"
    assert rig.stream.events()[0].occurred_at == datetime(2026, 11, 18, tzinfo=UTC)


def test_a_poll_without_time_goes_on_page_by_page_and_ends_as_one_with_time(rig: Rig) -> None:
    reports: list[PollReport] = []
    while not reports or reports[-1].unfinished:
        rig.clock.advance(60)
        seconds = iter((100.0,))
        reports.append(
            rig.poller.poll(rig.source("platzi"), remaining_s=partial(next, seconds, -math.inf))
        )
        assert len(reports) < 20

    assert len(reports) == 4  # pages of three that overlap by one, and the last one alone
    assert sum(report.published for report in reports) == 7
    assert reports[-1].complete
    rig.upstreams.items.pop()
    assert rig.poll().deleted == 1
