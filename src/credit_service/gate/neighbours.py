"""Messages to and from the other processes that serve the same ledger."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from credit_service.gate.answers import StatusAnswer
from credit_service.gate.levels import Channel
from credit_service.supervision import Supervisor

_RECONNECT_SECONDS: Final = 0.5
_LAST_WORDS_SECONDS: Final = 1.0
"""How long a process that stops tries to send its last changes."""
_log = structlog.get_logger()


class Neighbours:
    """Sends and receives over a channel, which may be lost at any time.

    `lost_touch` is called when messages may have been missed, `heard` with each received line. Of several pending
    answers of one merchant only the last is sent. Answers that cannot be sent are dropped: the TTL ends the old ones.
    """

    def __init__(self, channel: Channel, lost_touch: Callable[[], None], heard: Callable[[str], None]) -> None:
        self._channel = channel
        self._lost_touch = lost_touch
        self._heard = heard
        self._to_tell: dict[str, StatusAnswer] = {}
        self._something_to_tell = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    def tell(self, answer: StatusAnswer) -> None:
        """Send an answer to the others soon."""
        self._to_tell[answer.merchant_id] = answer
        self._something_to_tell.set()

    def start(self, supervisor: Supervisor) -> None:
        self._tasks = [
            supervisor.start("gate sender", self._keep_telling),
            supervisor.start("gate listener", self._keep_listening),
        ]

    async def close(self) -> None:
        """Send the pending answers, and end."""
        self._closing = True
        self._something_to_tell.set()
        if self._tasks:
            await asyncio.wait(self._tasks[:1], timeout=_LAST_WORDS_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _keep_telling(self) -> None:
        while self._to_tell or not self._closing:
            if not self._to_tell:
                self._something_to_tell.clear()
                await self._something_to_tell.wait()
                continue
            answers, self._to_tell = list(self._to_tell.values()), {}
            try:
                await self._channel.tell(answers)
            except Exception as error:
                _log.debug("gate_messages_lost", reason=type(error).__name__)
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def _keep_listening(self) -> None:
        has_joined = False

        def joined() -> None:
            nonlocal has_joined
            has_joined = True
            self._lost_touch()

        while True:
            try:
                await self._channel.listen(joined, self._heard)
            except Exception as error:
                tell = _log.warning if has_joined else _log.debug  # once for each loss
                tell("gate_channel_lost", reason=type(error).__name__)
                has_joined = False
            await asyncio.sleep(_RECONNECT_SECONDS)
