"""What a read is: a generator of questions, which an engine answers. And how it is asked to write beside postings."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar
from uuid import UUID

from credit_service.storage.rows import Row
from credit_service.storage.statements import Ask, Find

T = TypeVar("T")
Question = Ask | Find
Read = Generator[Question, list[Row], T]
"""Yields questions, is sent their rows, returns the answer. It may be begun again from the start."""


class Asking(ABC):
    """An engine that can answer questions and carry out statements."""

    @abstractmethod
    async def _read(self, read: Callable[[], Read[T]], *, snapshot: bool = True) -> T:
        """Answer the questions of a read, from one snapshot unless what is asked for never changes."""

    async def _read_long(self, read: Callable[[], Read[T]]) -> T:
        """As `_read`, for what takes the longer the larger the ledger is."""
        return await self._read(read)

    @abstractmethod
    async def _write(self, asks: Sequence[Ask], merchant_id: UUID | None = None, *, guarded: bool = False) -> int:
        """Carry out statements in one transaction of their own; the rows they changed.

        With a `merchant_id`, while nothing is posted to that merchant. `guarded`: where the first changes none, nothing
        is done.
        """
