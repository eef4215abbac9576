"""Whether the ledger can be written, found out by writing to it: a full disk still answers every question."""

import asyncio
import time
from collections.abc import Callable
from secrets import token_hex
from typing import Final

import structlog
from sqlalchemy import delete, insert

from credit_service.storage.clock import ClockMoved
from credit_service.storage.engine import Engine, StorageError, StorageUnavailable
from credit_service.storage.questions import Ask, value
from credit_service.storage.tables import service_state

FRESH_SECONDS: Final = 1.0
"""How long a write that succeeded counts for later callers. After a failure the next caller tries again."""
PATIENCE_SECONDS: Final = 5.0
"""How long a caller waits for it: a disk that hangs does not take postings either."""
INSERT: Final = insert(service_state)
DELETE: Final = delete(service_state).where(service_state.c.name == value("key"))
_log = structlog.get_logger()


class WriteCheck:
    """Writes a row and removes it, in one transaction. `clock`: seconds that never go back."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._name = f"write check {token_hex(8)}"  # its own, so that processes do not wait for each other
        self._fault: StorageError | None = None
        self._writing: asyncio.Task[None] | None = None
        self._fresh_until = 0.0

    async def check(self) -> None:
        """Raise StorageError unless a row could be written within the last second. Its message names no host."""
        if self._writing is None or (self._writing.done() and self._clock() >= self._fresh_until):
            self._writing = asyncio.create_task(self._write(), name="write check")
        if (await asyncio.wait([self._writing], timeout=PATIENCE_SECONDS))[0]:
            self._writing.result()  # raises what was not expected
        else:
            self._found(StorageUnavailable(f"The database did not write a row within {PATIENCE_SECONDS:g} seconds."))
        if self._fault is not None:
            raise type(self._fault)(str(self._fault).replace(self._engine.name, "The database"))

    def doubt(self) -> None:
        """Write again for the next caller: a posting failed."""
        self._fresh_until = 0.0

    async def _write(self) -> None:
        row = {"name": self._name, "value": ""}
        try:
            await self._engine.check()
            await self._engine.write([Ask(INSERT, row), Ask(DELETE, {"key": self._name})])
            self._found(None)
            self._fresh_until = self._clock() + FRESH_SECONDS
        except StorageError as error:
            self.doubt()
            self._found(error)

    def _found(self, fault: StorageError | None) -> None:
        if isinstance(fault, ClockMoved):
            pass  # the clock has logged it
        elif fault is not None and self._fault is None:
            _log.warning("ledger_not_writable", reason=str(fault))
        elif fault is None and self._fault is not None and not isinstance(self._fault, ClockMoved):
            _log.warning("ledger_is_writable_again")
        self._fault = fault
