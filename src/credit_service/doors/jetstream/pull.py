"""Fetches messages of a durable consumer ahead: while a batch is posted, the next one arrives.

nats-py's own `fetch` creates two tasks for each message, and does not notice a dead server before its timeout.
"""

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import ConnectionClosedError, Error

EXPIRES_SECONDS: Final = 5.0
"""How long NATS keeps a request for more messages; then the request is repeated."""
_LOOK_SECONDS: Final = 0.25
_MOST_BYTES: Final = 8 * 1024 * 1024


class PullEnded(Error):
    """NATS has no such consumer any more, or will not serve it."""


class Pull:
    """The messages of one consumer on one connection. At most two batches are prefetched."""

    def __init__(self, client: Client, stream: str, consumer: str, batch: int) -> None:
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._batch = batch
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._waiting: list[Msg] = []
        self._asked = 0  # messages that NATS was asked for and has not sent
        self._heard_at = 0.0
        self._arrived = asyncio.Event()
        self._ended: str | None = None

    async def open(self) -> None:
        self._subscription = await self._client.subscribe(self._inbox, cb=self._took)

    async def close(self) -> list[Msg]:
        """Stop listening; returns the messages that arrived and were not taken. Raises nats-py's errors."""
        left, self._waiting = self._waiting, []
        if self._subscription is not None and not self._client.is_closed:
            await self._subscription.unsubscribe()
        return left

    async def hold(self, taken: Sequence[Msg] = ()) -> None:
        """Tell NATS that arrived and `taken` messages are in progress, so that it does not deliver them again."""
        async with asyncio.timeout(EXPIRES_SECONDS):
            for message in [*taken, *self._waiting]:
                await message.in_progress()

    async def messages(self) -> list[Msg]:
        """The next messages as soon as some arrive; an empty list after a while.

        Raises nats-py's errors if the connection is lost or the consumer is gone.
        """
        await self._ask()
        if not self._waiting:
            self._arrived.clear()
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._arrived.wait()
            except TimeoutError:
                if not self._client.is_connected:
                    raise ConnectionClosedError from None
        if self._ended is not None:
            raise PullEnded(self._ended)
        taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
        return taken

    async def _ask(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._asked and now - self._heard_at > 2 * EXPIRES_SECONDS:
            self._asked = 0  # the request or its answer was lost
        if self._asked + len(self._waiting) > self._batch:
            return
        more = 2 * self._batch - self._asked - len(self._waiting)
        most = max(_MOST_BYTES, 2 * self._client.max_payload)  # otherwise a larger message would never arrive
        request = {"batch": more, "expires": int(EXPIRES_SECONDS * 1e9), "max_bytes": most}
        if not self._asked:
            self._heard_at = now
        self._asked += more
        async with asyncio.timeout(EXPIRES_SECONDS):
            await self._client.publish(self._next, json.dumps(request).encode(), reply=self._inbox)

    async def _took(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        if message.reply:
            self._asked = max(0, self._asked - 1)
            self._waiting.append(message)
        else:
            self._told(message.headers or {})
        self._arrived.set()

    def _told(self, headers: Any) -> None:
        """Read how a request ended: expired (408), its bytes used up (409), or an error."""
        status, description = headers.get("Status", ""), headers.get("Description", "")
        if status == "408" or "Nats-Pending-Messages" in headers:
            self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", self._asked)))
        elif status != "100":
            self._ended = description or "NATS has no such consumer"
