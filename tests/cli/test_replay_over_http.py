"""`credit-service replay --url`: the service answers, is away, or is no credit-service."""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
import typer

from credit_service.cli.sources import Entry, Reading, Result, Source
from credit_service.cli.targets import HttpTarget, Stopped
from credit_service.ledger.policy import Policy
from tests.cli.events import MERCHANT, event, lines, paid, stream
from tests.cli.events import order as order_row
from tests.cli.events import refund as refund_row
from tests.commands import command
from tests.served import Served, served

URL = "http://service:8015"
Answer = httpx2.Response | httpx2.TransportError


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    """Four events, as read from a file."""
    return _read(tmp_path, *map(paid, range(1, 5)))


def _read(folder: Path, *events: str) -> list[Entry]:
    file = folder / "facts.jsonl"
    file.write_bytes(lines(*events))
    source = Source(file, None, None, Reading())
    found = list(source.entries(Policy()))
    source.close()
    return found


class _Service:
    """Gives the answers of the test, then posts every event as the service does."""

    def __init__(self, *answers: Answer, most: int = 1_000, minds: Callable[[Any], bool] = lambda event: False) -> None:
        self._answers = list(answers)
        self._most = most
        self._minds = minds
        self.posted: list[str] = []
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if self._answers:
            answer = self._answers.pop(0)
            if isinstance(answer, httpx2.TransportError):
                raise answer
            return answer
        events = json.loads(request.content)
        if len(events) > self._most:
            return _problem(413, "body_too_large", "Too much.")
        if any(map(self._minds, events)):
            return _problem(422, "validation_failed", "One of them is wrong.")
        self.posted += [event["id"] for event in events]
        results = [{"event_id": event["id"], "outcome": "posted", "transactions": []} for event in events]
        return httpx2.Response(200, json={"data": {"results": results}, "meta": {}})

    def target(self, url: str = URL, patience: float = 60) -> HttpTarget:
        client = httpx2.AsyncClient(transport=httpx2.MockTransport(self))
        return HttpTarget(client, url, "cs_key", patience)


def _problem(status: int, code: str, detail: str, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "detail": detail, "errors": []}, headers=headers)


POSTED = [[Result("posted")]] * 4


@pytest.mark.parametrize("url", [URL, f"{URL}/", f"{URL}/api/v1", f"{URL}/api/v1/"])
async def test_events_are_sent_as_one_batch(url: str, entries: list[Entry]) -> None:
    service = _Service()
    assert await service.target(url).send(entries) == POSTED
    [request] = service.requests
    assert (request.method, str(request.url)) == ("POST", f"{URL}/api/v1/credits/events")
    assert request.headers["content-type"] == "application/cloudevents-batch+json"
    assert request.headers["authorization"] == "Bearer cs_key"
    assert json.loads(request.content) == [json.loads(paid(order)) for order in range(1, 5)]


@pytest.mark.parametrize(
    "answers",
    [
        [_problem(503, "overloaded", "Busy.", **{"Retry-After": "0"})],
        [_problem(503, "outcome_unknown", "Who knows."), httpx2.Response(502, text="<h1>Bad gateway</h1>")],
        [_problem(429, "rate_limited", "Slow down.", **{"Retry-After": "soon"})],
        [httpx2.ConnectError("refused"), httpx2.ReadTimeout("slow"), httpx2.RemoteProtocolError("cut off")],
    ],
    ids=["503", "503 and 502", "429", "no answer"],
)
async def test_batch_is_sent_again_while_the_service_is_away(
    answers: list[Answer], entries: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    service = _Service(*answers)
    assert await service.target().send(entries) == POSTED
    assert len(service.requests) == len(answers) + 1
    assert len({request.content for request in service.requests}) == 1
    assert capsys.readouterr().err.count("\n") == 1, "a person is told once"


async def test_replay_waits_as_long_as_the_service_says(entries: list[Entry]) -> None:
    service = _Service(_problem(503, "overloaded", "Busy.", **{"Retry-After": "3600"}))
    with pytest.raises(Stopped, match=r"answered 503 \(overloaded\)\.$"):
        await service.target().send(entries)


async def test_replay_stops_when_patience_ends(entries: list[Entry]) -> None:
    service = _Service(*[httpx2.ConnectError("refused")] * 100)
    with pytest.raises(Stopped, match=r"does not answer \(refused\)\.$"):
        await service.target(patience=0.5).send(entries)
    assert 2 < len(service.requests) < 10


async def test_batch_that_is_too_large_is_sent_in_parts(entries: list[Entry]) -> None:
    service = _Service(most=1)
    assert await service.target().send(entries) == POSTED
    assert service.posted == [f"paid {order}" for order in range(1, 5)]


async def test_refused_event_is_found_and_others_are_posted(
    entries: list[Entry],
) -> None:
    service = _Service(minds=lambda event: event["id"] == "paid 3")
    results = await service.target().send(entries)
    assert results == [*POSTED[:2], [Result("refused", "validation_failed", "One of them is wrong.")], POSTED[3]]
    assert service.posted == ["paid 1", "paid 2", "paid 4"]


async def test_every_order_of_an_event_has_a_result(tmp_path: Path) -> None:
    items = [{"order_id": 1, "total": 1}, {"order_id": 2, "total": 1}]
    several = event("evt.shopify.webhook.order_paid", {"merchant_id": str(MERCHANT), "order_items": items})
    error = {
        "code": "amount_out_of_range",
        "detail": "Too much.",
        "errors": [{"pointer": "/x", "message": "Too much."}],
    }
    results: Sequence[Any] = [{"outcome": "replayed"}, {"outcome": "refused", "error": error}, {"outcome": "parked"}]
    service = _Service(httpx2.Response(200, json={"data": {"results": results}}))
    assert await service.target().send(_read(tmp_path, several, paid(3))) == [
        [Result("replayed"), Result("refused", "amount_out_of_range", "/x: Too much.")],
        [Result("parked")],
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_problem(401, "unauthenticated", "No such key."), f"{URL} answered 401: No such key."),
        (_problem(403, "scope_missing", "Not with this key."), f"{URL} answered 403: Not with this key."),
        (_problem(404, "not_found", "Nothing here."), f"--url {URL} answered 404, and is no credit-service."),
        (httpx2.Response(301), f"--url {URL} answered 301, and is no credit-service."),
        (httpx2.Response(200, text="<h1>Hello</h1>"), f"--url {URL} answered 200, and is no credit-service."),
        (httpx2.Response(200, json={}), f"--url {URL} answered 200, and is no credit-service."),
        (httpx2.Response(401, text="Go away"), f"--url {URL} answered 401, and is no credit-service."),
        (httpx2.UnsupportedProtocol("no protocol"), f"--url {URL}: no protocol"),
    ],
)
async def test_wrong_url_or_key_ends_with_2(
    answer: Answer, said: str, entries: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end:
        await _Service(answer).target().send(entries)
    assert end.value.exit_code == 2
    assert capsys.readouterr().err == f"credit-service: {said}\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (_problem(500, "internal", "It broke.", **{"X-Request-ID": "r1"}), r"answered 500: It broke\. \(request r1\)"),
        (httpx2.Response(200, json={"data": {"results": []}}), "reads these events in another way"),
    ],
)
async def test_broken_service_stops_the_replay(answer: Answer, said: str, entries: list[Entry]) -> None:
    with pytest.raises(Stopped, match=said):
        await _Service(answer).target().send(entries)


async def test_prices_are_those_of_the_service() -> None:
    shown = {"fixed_amount": "0", "percentage": "2.50", "minimum": "3"}
    service = _Service(
        _problem(503, "overloaded", "Busy.", **{"Retry-After": "0"}), httpx2.Response(200, json={"data": shown})
    )
    assert await service.target().prices() == Policy(
        order_fixed=Decimal(0), order_percent=Decimal("2.5"), order_minimum=Decimal(3)
    )
    assert [(request.method, str(request.url)) for request in service.requests] == [
        ("GET", f"{URL}/api/v1/credits/prices")
    ] * 2


@pytest.mark.parametrize("answer", [_problem(404, "not_found", "No."), httpx2.Response(200, json={"data": {}})])
async def test_service_without_prices_is_refused(answer: httpx2.Response) -> None:
    with pytest.raises(typer.Exit):
        await _Service(answer).target().prices()


# ---- a real service


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service of its own."""
    with served(tmp_path_factory.mktemp("service") / "ledger.db") as service:
        yield service


def test_service_posts_events_and_names_refused_ones(service: Served, tmp_path: Path) -> None:
    spend = {"merchant_id": str(MERCHANT), "adjustment_id": 1, "credits": 5, "reason": "test", "admin_id": "ada"}
    adjustment = event("cmd.credits.manual_adjustment", spend | {"operation_type": "DECREASE"})
    items = [{"order_id": "i1", "total": "1"}, {"order_id": "i2"}]
    several = event("evt.shopify.webhook.order_paid", {"merchant_id": str(MERCHANT), "order_items": items})
    (tmp_path / "facts.gz").write_bytes(gzip.compress(lines(paid("a"), "{", adjustment, several, paid("b"))))
    ran = command("replay", "facts.gz", "--url", service.url, "--json", cwd=tmp_path, CREDIT_SERVICE_KEY=service.key)
    assert ran.code == 1
    assert ran.json == {
        "read": 5,
        "posted": 3,
        "replayed": 0,
        "parked": 0,
        "refused": 3,
        "skipped": 0,
        "by_code": {"validation_failed": 2, "insufficient_credits": 1},
    }
    said = ran.err.splitlines()
    assert [line.split(":")[1:3] for line in said] == [
        [" line 2", " validation_failed"],
        [" line 3", " insufficient_credits"],
        [" line 4", " validation_failed"],
    ]
    assert "/data/order_items/1/total: An order needs its total or its credits." in said[2]
    assert not (tmp_path / "credit-service.db").exists(), "nothing is kept here"


def test_order_stream_sent_twice_is_posted_once(service: Served, tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_bytes(stream(*[order_row(f"S{number}") for number in range(1_500)]))
    arguments = ("replay", "orders.csv", "--url", service.url, "--key", service.key, "--json")
    first, again = command(*arguments, cwd=tmp_path), command(*arguments, cwd=tmp_path)
    assert (first.code, first.json["posted"], first.json["replayed"]) == (0, 1_500, 0)
    assert (again.code, again.json["posted"], again.json["replayed"]) == (0, 0, 1_500)


def test_unlinked_refund_is_priced_by_the_settings_of_the_service(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_bytes(stream(order_row("P1", total="1000.00"), refund_row("C1", total="1000.00")))
    settings = {"ORDER_CREDIT_FIXED_AMOUNT": "0", "ORDER_CREDIT_PERCENTAGE": "5", "TRIAL_CREDITS": "0"}
    local = {"ORDER_CREDIT_FIXED_AMOUNT": "7", "TRIAL_CREDITS": "many", "JSON_MAX_DEPTH": "1"}
    with served(tmp_path / "ledger.db", settings=settings) as service:
        ran = command(
            *("replay", "orders.csv", "--url", service.url, "--key", service.key, "--json"), cwd=tmp_path, **local
        )
        assert (ran.code, ran.json["posted"]) == (0, 2)
        with service.client() as client:
            (account,) = client.get("/credits/accounts").json()["data"]
            assert account["balance"] == 0
            assert client.get("/credits/prices").json()["data"] == {
                "fixed_amount": "0",
                "percentage": "5",
                "minimum": "0",
            }


def test_events_larger_than_a_body_are_sent_in_several(service: Served, tmp_path: Path) -> None:
    large = {"note": "x" * 8_000}
    (tmp_path / "facts").write_bytes(lines(*[paid(f"L{number}", metadata=large) for number in range(300)]))
    ran = command("replay", "facts", "--url", service.url, "--key", service.key, "--json", cwd=tmp_path)
    assert (ran.code, ran.json["posted"]) == (0, 300)


def test_key_without_scope_write_ends_with_2(service: Served, tmp_path: Path) -> None:
    with service.client() as client:
        key = client.post("/api-keys", json={"name": "reader", "scope": "read"}).json()["data"]["key"]
    (tmp_path / "facts").write_bytes(lines(paid("z")))
    ran = command("replay", "facts", "--url", service.url, "--key", key, cwd=tmp_path)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"credit-service: {service.url} answered 403: ")


def test_replay_stops_if_no_service_answers(tmp_path: Path) -> None:
    (tmp_path / "facts").write_bytes(lines(paid("z")))
    arguments = ("replay", "facts", "--url", "http://127.0.0.1:9", "--key", "k", "--patience", "0")
    ran = command(*arguments, cwd=tmp_path)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("credit-service: http://127.0.0.1:9 does not answer (")
    assert ran.err.endswith("the same command goes on from here.\n")
