"""A connection in this process: a transport for the protocol, and what is written to it."""

import asyncio
import re
from typing import Any


class Pipe(asyncio.Transport):
    """The server's end of a connection; keeps what is written until an answer is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.written = b""
        self._whole = asyncio.Event()

    def write(self, data: Any) -> None:
        """Take what the server writes."""
        self.written += data
        head, end, body = self.written.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: ([0-9]+)", head)
        if end and length and len(body) >= int(length[1]):
            self._whole.set()

    async def answer(self) -> bytes:
        """What was written, once there is a whole answer."""
        async with asyncio.timeout(10):
            await self._whole.wait()
        self._whole.clear()
        written, self.written = self.written, b""
        return written

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known of where it leads."""
        return default

    def is_closing(self) -> bool:
        """Whether the server has closed it."""
        return self.closed

    def write_eof(self) -> None:
        """Say that nothing more will be written."""

    def close(self) -> None:
        """End it."""
        self.closed = True

    def pause_reading(self) -> None:
        """Whoever sends is in this process, and knows what he does."""

    def resume_reading(self) -> None:
        """See `pause_reading`."""
