"""How a service on SQLite hears of commands that post beside it: by the number that each foreign commit changes."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Final, NoReturn

from credit_service.gate.answers import StatusAnswer

LOOK_SECONDS: Final = 1.0


class FileChannel:
    """A channel that only listens: no other process serves the file. `version` changes with each foreign commit."""

    def __init__(self, version: Callable[[], Awaitable[int]]) -> None:
        self._version = version

    async def tell(self, answers: Collection[StatusAnswer]) -> None:
        """See `Channel.tell`."""

    async def listen(self, joined: Callable[[], None], heard: Callable[[str], None]) -> NoReturn:
        """See `Channel.listen`. A foreign commit may have changed any answer, so it counts as joining anew."""
        last = None
        while True:
            if (version := await self._version()) != last:
                joined()
            last = version
            await asyncio.sleep(LOOK_SECONDS)
