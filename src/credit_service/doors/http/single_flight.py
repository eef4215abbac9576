"""Asking an expensive question once for all callers that wait for its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")
S = TypeVar("S")
P = ParamSpec("P")


class _Flight(Generic[T]):
    """One question at a time. Callers that come while it is asked share the next one: no answer is older than its
    request."""

    def __init__(self) -> None:
        self._asking: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def join(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Wait for the answer to the next question."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._asking, ask))
        return await asyncio.shield(self._next)  # one caller that gives up does not end it for the others

    async def _after(self, before: asyncio.Task[T] | None, ask: Callable[[], Awaitable[T]]) -> T:
        if before is not None:
            await asyncio.wait([before])
        self._asking, self._next = self._next, None
        return await ask()


def single_flight(
    ask: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Awaitable[T]]:
    """A decorator: for each first argument at most one call runs at a time, for all callers that wait for one."""
    flights: WeakKeyDictionary[S, _Flight[T]] = WeakKeyDictionary()

    def joined(subject: S, /, *more: P.args, **named: P.kwargs) -> Awaitable[T]:
        return flights.setdefault(subject, _Flight()).join(partial(ask, subject, *more, **named))

    return joined
