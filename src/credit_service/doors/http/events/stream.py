"""Stream announcements as server-sent events, for as long as the caller listens and its key is valid."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

from fastapi.responses import StreamingResponse
from starlette.types import Send

from credit_service.doors.http import api
from credit_service.doors.http.keys import Keyring, credential_of
from credit_service.storage.engine import StorageError
from credit_service.storage.outbox import Position

STREAM: Final = "text/event-stream"
HEARTBEAT_SECONDS = 15.0
"""The longest silence of a stream: proxies close a connection that is silent for a minute."""
CHECK_SECONDS = 0.25
"""How often the key of a stream is checked. With the keyring's cache a revocation is in force within 5 s."""
_RETRY_MILLISECONDS: Final = 2_000
_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # so that no proxy holds lines back


class Start(NamedTuple):
    """Where a stream begins: after a position, in one account or in all."""

    account: int | None
    position: Position


class _EventStream(StreamingResponse):
    """A stream that lets go of the outbox at once, however it ends."""

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self.body_iterator):  # type: ignore[type-var]
            await super().stream_response(send)


def event_stream(call: api.Call, keyring: Keyring, follow: api.Follow, start: Start) -> StreamingResponse:
    """The answer that streams the announcements after a position."""
    return _EventStream(_lines(call, keyring, follow, start), media_type=STREAM, headers=_HEADERS)


async def _lines(call: api.Call, keyring: Keyring, follow: api.Follow, start: Start) -> AsyncGenerator[bytes]:
    """Events as they come, and a comment after a silence."""
    clock = asyncio.get_running_loop().time
    yield b"retry: %d\n\n" % _RETRY_MILLISECONDS
    checked = spoken = clock()
    async with aclosing(follow(start.account, start.position)) as events:
        async for lines in events:
            now = clock()
            if now - checked >= CHECK_SECONDS:
                checked = now
                if not await _may_listen(call, keyring):
                    return
            if lines or now - spoken >= HEARTBEAT_SECONDS:
                spoken = now
                yield lines or b":\n\n"


async def _may_listen(call: api.Call, keyring: Keyring) -> bool:
    """Whether the key of a stream is still valid. While the store is away it has no news for the stream either."""
    given = credential_of(call.sent(b"authorization"))
    try:
        return given is not None and await keyring.valid(given) is not None
    except StorageError:
        return True
