"""A POST that has arrived whole is answered without ASGI; what uvicorn promises of a connection holds all the same."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from credit_service.doors.http.protocol import MOST_AT_ONCE, LimitedProtocol
from credit_service.doors.http.shell import Answer
from tests.doors.piped import Pipe
from tests.doors.running import Running, posting, request

CORS = {
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-allow-credentials",
    "vary",
}
Start = Callable[..., Running]
POST = b"POST /here HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody"


class Shell:
    """Answers whatever is sent to /here with what it is told, when it is told."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.answers: list[asyncio.Future[Answer]] = []

    def may_be_at_once(self, method: bytes, url: bytes) -> bool:
        """See `Shell.may_be_at_once` of the service."""
        return url != b"/never"

    def at_once(
        self, method: bytes, url: bytes, sent: Any, address: str, body: bytes
    ) -> Answer | Awaitable[Answer] | None:
        """See `Shell.at_once` of the service."""
        if url not in (b"/here", b"/known"):
            return None
        self.asked.append(body)
        if url == b"/known":
            return Answer(304 if body == b"304" else 200, b"" if body == b"304" else b"known", [(b"etag", b"x")])
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def answer(self, body: bytes = b"{}") -> None:
        """Answer the first who waits."""
        self.answers.pop(0).set_result(Answer(201, body, [(b"x-request-id", b"r")]))


class Connected:
    """A connection to a server with such a shell, and an application that says what it was asked."""

    def __init__(self) -> None:
        self.shell = Shell()
        self.pipe = Pipe()
        config = Config(
            self._app,
            http=type("Protocol", (LimitedProtocol,), {"shell": self.shell}),
            lifespan="off",
            interface="asgi3",
        )
        config.load()
        self.state = ServerState()
        make: Any = config.http_protocol_class
        self.protocol = make(config=config, server_state=self.state, app_state={})
        self.protocol.connection_made(self.pipe)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        while len(body) < 4 and scope["method"] == "POST":
            body += (await receive())["body"]
        told = b"%b %b" % (scope["path"].encode(), body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
        await send({"type": "http.response.body", "body": told})


@pytest.fixture
async def connected() -> Connected:
    """A new connection."""
    return Connected()


async def test_the_answer_is_what_the_shell_said(connected: Connected) -> None:
    connected.state.default_headers = [(b"date", b"today")]
    connected.protocol.data_received(POST)
    connected.shell.answer(b'{"a":1}')
    assert await connected.pipe.answer() == (
        b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 7\r\n"
        b'x-request-id: r\r\ndate: today\r\n\r\n{"a":1}'
    )
    assert (connected.shell.asked, connected.state.total_requests) == ([b"body"], 1)


@pytest.mark.parametrize(
    "sent",
    [
        [POST[:-1], POST[-1:]],
        [POST[:30], POST[30:-2], POST[-2:]],
        [POST.replace(b"/here", b"/there")],
        [POST.replace(b"host", b"connection: close\r\nhost")],
        [POST.replace(b"/here", b"/never")],
        [POST.replace(b"1.1", b"1.0", 1)],
    ],
    ids=["body later", "in pieces", "another path", "a path never asked about", "the last of a connection", "old"],
)
async def test_all_else_goes_to_the_application(connected: Connected, sent: list[bytes]) -> None:
    for piece in sent:
        connected.protocol.data_received(piece)
        await asyncio.sleep(0)
    assert (await connected.pipe.answer()).endswith(b" body")
    assert connected.shell.asked == []


async def test_what_is_known_is_answered_before_anything_else_happens(connected: Connected) -> None:
    known = b"GET /known HTTP/1.1\r\nhost: a\r\n\r\n"
    connected.protocol.data_received(known + known)
    whole = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 5\r\netag: x\r\n\r\nknown"
    assert connected.pipe.written == whole + whole
    assert (connected.protocol.cycle, connected.state.total_requests, connected.state.tasks) == (None, 2, set())


async def test_who_sends_many_at_once_lets_others_have_their_turn(connected: Connected) -> None:
    connected.protocol.data_received(b"GET /known HTTP/1.1\r\nhost: a\r\n\r\n" * (MOST_AT_ONCE + 2))
    assert connected.pipe.written.count(b"known") == MOST_AT_ONCE
    await asyncio.sleep(0.01)
    assert connected.pipe.written.count(b"/known") == 2  # by the application


async def test_a_shell_that_breaks_leaves_it_to_the_application(
    connected: Connected, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*asked: Any) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(connected.shell, "at_once", breaks)
    connected.protocol.data_received(POST)
    assert (await connected.pipe.answer()).endswith(b"/here body")


@pytest.mark.parametrize("url", [b"http://example.com", b"/\xff"], ids=["of a proxy", "not ASCII"])
async def test_an_address_that_cannot_be_is_told_so_also_before_its_body_has_come(
    connected: Connected, url: bytes
) -> None:
    connected.protocol.data_received(POST.replace(b"/here", url)[:-1])
    connected.protocol.data_received(POST[-1:])
    assert (await connected.pipe.answer()).startswith(b"HTTP/1.1 400 ")


async def test_what_is_unchanged_has_no_body(connected: Connected) -> None:
    connected.protocol.data_received(b"GET /known HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n304")
    assert connected.pipe.written == b"HTTP/1.1 304 Not Modified\r\netag: x\r\n\r\n"


async def test_nothing_is_answered_at_once_to_a_client_that_does_not_read(connected: Connected) -> None:
    connected.protocol.pause_writing()
    connected.protocol.data_received(POST)
    assert connected.shell.asked == []
    connected.protocol.resume_writing()
    assert (await connected.pipe.answer()).endswith(b"/here body")


async def test_what_is_sent_behind_it_waits_for_its_answer(connected: Connected) -> None:
    connected.protocol.data_received(POST + POST.replace(b"/here", b"/there") + POST)
    await asyncio.sleep(0.01)
    assert connected.pipe.written == b""
    connected.shell.answer(b"[1]")
    await asyncio.sleep(0.01)
    told = await connected.pipe.answer()
    assert [told.count(one) for one in (b"HTTP/1.1", b"[1]", b"/there body", b"/here body")] == [3, 1, 1, 1]
    assert told.index(b"[1]") < told.index(b"/there body") < told.index(b"/here body")


async def test_a_client_that_went_away_is_told_nothing(connected: Connected) -> None:
    connected.protocol.data_received(POST)
    connected.protocol.connection_lost(None)
    connected.shell.answer()
    await asyncio.gather(*connected.state.tasks)
    assert connected.pipe.written == b""


async def test_a_client_that_went_away_with_more_behind_it_is_told_nothing(connected: Connected) -> None:
    connected.protocol.data_received(POST + POST)
    connected.pipe.close()
    connected.shell.answer()
    await asyncio.sleep(0.01)
    assert connected.pipe.written == b""


async def test_a_client_that_reads_slowly_is_waited_for(connected: Connected) -> None:
    connected.protocol.data_received(POST)
    connected.protocol.pause_writing()
    connected.shell.answer()
    await asyncio.sleep(0.01)
    assert connected.pipe.written == b""
    connected.protocol.resume_writing()
    assert await connected.pipe.answer()


async def test_the_last_answer_before_a_stop_says_so(connected: Connected) -> None:
    connected.protocol.data_received(POST)
    connected.protocol.shutdown()
    assert not connected.pipe.closed
    connected.shell.answer()
    assert b"\r\nconnection: close\r\n" in await connected.pipe.answer()
    assert connected.pipe.closed


async def test_a_stop_that_does_not_wait_for_it_is_told_as_an_outcome_that_is_not_known(running: Running) -> None:
    merchant = running.open()
    assert running.spend(merchant).status_code == 201  # so that its key is known
    shell = running.service.shell
    lines, _, body = request(running, posting(merchant), idempotency_key="stop").partition(b"\r\n\r\n")
    sent = [(name, value) for name, _, value in (line.partition(b": ") for line in lines.split(b"\r\n")[1:])]

    async def stopped() -> Answer:
        answering = shell.at_once(b"POST", b"/api/v1/credits/transactions", sent, "", body)
        assert answering is not None
        assert not isinstance(answering, Answer)
        task = asyncio.ensure_future(answering)
        await asyncio.sleep(0)
        task.cancel()
        return await task

    answer = running.run(stopped())
    assert (answer.status, b"outcome_unknown" in answer.body) == (503, True)


def test_callers_are_counted_where_they_are_answered_at_once(start: Start) -> None:
    running = start(rate_limit_enabled=True, rate_limit_key_per_second=0.001, rate_limit_key_burst=4)
    merchant = running.open()
    answers = [running.spend(merchant) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert [answer.headers["ratelimit"].partition(";t")[0] for answer in answers] == [
        f'"key";r={left}' for left in (2, 1, 0, 0)
    ]
    assert {answer.headers["ratelimit-policy"] for answer in answers} == {'"key";q=4;w=4000'}
    assert int(answers[-1].headers["retry-after"]) > 900
    assert running.sequence(merchant) == 4


@pytest.mark.parametrize("origins", ["*", "https://shop.example", "https://another.example"])
def test_pages_of_other_origins_are_answered_at_once_as_they_are_otherwise(
    start: Start, monkeypatch: pytest.MonkeyPatch, origins: str
) -> None:
    running = start(cors_origins=origins)
    merchant = running.open()
    running.spend(merchant)
    running.get(f"/credits/plugin-status/{merchant}", None)  # known from now on
    shell = running.service.shell
    at_once, taken = shell.at_once, []

    def noted(*asked: Any) -> Any:
        taken.append(at_once(*asked))
        return taken[-1]

    monkeypatch.setattr(shell, "at_once", noted)
    asked = f"GET /api/v1/credits/plugin-status/{merchant} HTTP/1.1\r\norigin: https://shop.example\r\n\r\n".encode()
    posted = request(running, posting(merchant), origin="https://shop.example")
    for cookie in (b"", b"cookie: a=b\r\n"):
        told: list[dict[str, str]] = []
        for whole in (asked, posted):
            for last in (b"", b"connection: close\r\n"):  # the last request of a connection goes to the application
                with running.connection() as connection:
                    connection.send(whole.replace(b"\r\n", b"\r\n" + cookie + last, 1))
                    status, headers, _ = connection.answer()
                assert status in (200, 201)
                told.append({name: value for name, value in headers.items() if name in CORS})
        assert told == [told[0]] * 4
        assert told[0]
    assert [answer is not None for answer in taken] == [True] * 4


def test_a_body_that_comes_in_pieces_is_posted_once(running: Running) -> None:
    merchant = running.open()
    whole = request(running, posting(merchant), idempotency_key="pieces")
    with running.connection() as connection:
        connection.send(whole[:-5])
        connection.send(whole[-5:])
        first = connection.answer()
        connection.send(whole)
        again = connection.answer()
    assert [first[0], again[0]] == [201, 200]
    assert (again[1]["idempotency-replayed"], running.sequence(merchant)) == ("true", 2)


def test_who_asks_whether_to_send_the_body_is_told_to_go_on(running: Running) -> None:
    merchant = running.open()
    running.spend(merchant)
    with running.connection() as connection:
        connection.send(request(running, posting(merchant), expect="100-continue"))  # and does not wait to be told
        assert connection.head() == "HTTP/1.1 100 Continue"
        assert connection.answer()[0] == 201
