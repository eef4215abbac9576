"""A receiver of webhooks: a real server on loopback that answers as it is told to, and remembers what it was sent."""

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from aiohttp import web

Answer = int | web.StreamResponse | Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sent(NamedTuple):
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes
    connection: Any  # what tells one connection from another

    @property
    def event(self) -> dict[str, Any]:
        """The event in it."""
        event: dict[str, Any] = json.loads(self.body)
        return event


class Receiver:
    """Answers the next requests with `answers`, a status or a function each, and all others with `otherwise`."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.answers: deque[Answer] = deque()
        self.otherwise: Answer = 204
        self.under_way = 0
        self.most_under_way = 0
        self._came = asyncio.Condition()

    async def start(self, context: ssl.SSLContext | None = None) -> None:
        """Listen on a free port."""
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}/credits"

    async def stop(self) -> None:
        """Close, also what is under way."""
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        sent = Sent(request.path_qs, headers, await request.read(), request.transport)
        answer = self.answers.popleft() if self.answers else self.otherwise
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        async with self._came:
            self.sent.append(sent)
            self._came.notify_all()
        try:
            if isinstance(answer, int):
                return web.Response(status=answer)
            return answer if isinstance(answer, web.StreamResponse) else await answer(request)
        finally:
            self.under_way -= 1

    async def wait_for(self, count: int) -> list[Sent]:
        """Wait until so many requests have come."""
        async with asyncio.timeout(20), self._came:
            await self._came.wait_for(lambda: len(self.sent) >= count)
        return self.sent

    @property
    def ids(self) -> list[str]:
        """The ids of the messages that came, in their order."""
        return [sent.headers["webhook-id"] for sent in self.sent]
