"""Getting one batch into the database: retries, bisection, and commits whose answer was lost.

- A conflict is retried with backoff, within the deadlines of the callers.
- When the answer of a commit is lost, the batch runs again; the keys show what the first attempt committed.
- A command that breaks its batch is found by bisection, and it alone fails.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from credit_service.backoff import pauses
from credit_service.ledger.decide import Outcome
from credit_service.ledger.policy import Policy
from credit_service.posting.batch import Lost, as_first_posted, decide_batch, lost_postings
from credit_service.posting.submission import Decided, RefusedAt, Unit
from credit_service.storage.engine import (
    Committed,
    Conflict,
    Engine,
    Loaded,
    OutcomeUnknown,
    StorageUnavailable,
    Writes,
)

FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.25


class Attempts:
    """Posts batches to an engine and answers their callers.

    `on_committed` receives each commit before the callers are answered; what it raises goes to the loop's exception
    handler, since nothing can undo the commit. `on_decided` then receives the outcomes and the deadlines of their
    callers. `on_failed` is called if the database cannot take a batch, `watch` with each deadline that must be
    observed while a batch is in the store.
    """

    def __init__(
        self,
        engine: Engine,
        policy: Policy,
        on_committed: Callable[[Committed], None],
        on_decided: Callable[[Sequence[Outcome], Sequence[float]], None],
        on_failed: Callable[[], None],
        watch: Callable[[float], None],
    ) -> None:
        self._engine = engine
        self._policy = policy
        self._on_committed = on_committed
        self._on_decided = on_decided
        self._on_failed = on_failed
        self._watch = watch
        self.in_store: list[list[Unit]] = []

    async def post(
        self,
        units: list[Unit],
        lost: Lost | None = None,
        *,
        after: asyncio.Future[bool] | None = None,
        over: asyncio.Future[bool] | None = None,
    ) -> None:
        """Post a batch and answer its callers, whatever goes wrong.

        `lost` holds the postings of earlier attempts whose answer was lost. `after` is done when the batch before this
        one is over, and says whether that was posted at the first attempt; `over` says the same of this one, before
        its callers are answered.
        """
        wait = pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
        at_once = True
        while units:
            decided: list[Decided] = []
            try:
                committed = await self._try(units, decided, after)
            except (Conflict, OutcomeUnknown) as error:
                after, at_once = None, False
                if isinstance(error, OutcomeUnknown):
                    lost = {**(lost or {}), **lost_postings(units, decided)}
                await asyncio.sleep(next(wait))
                failure = StorageUnavailable(str(error)) if lost is None else OutcomeUnknown(str(error))
                units = in_time(units, failure, for_good=True)
            except StorageUnavailable as error:
                self._notify(self._on_failed)
                for unit in units:
                    unit.submission.given_up = True
                    unit.submission.fail(error if lost is None else OutcomeUnknown(str(error)))
                return
            except Exception as error:  # a command breaks a law of the database, or the ledger's code
                if len(units) == 1:
                    units[0].submission.fail(error)
                    return
                half = len(units) // 2
                await self.post(units[:half], lost)
                await self.post(units[half:], lost)
                return
            else:
                if over is not None and not over.done():
                    over.set_result(at_once)
                self._answer(units, decided, committed, lost)
                return

    async def _try(self, units: list[Unit], decided: list[Decided], after: asyncio.Future[bool] | None) -> Committed:
        """One attempt. `decided` is filled with its outcomes as soon as it decides."""

        def work(loaded: Loaded) -> Writes:
            decided[:], writes = decide_batch(units, loaded, self._policy)
            return writes

        self.in_store.append(units)
        self._watch(min([unit.submission.deadline for unit in units]))
        try:
            return await self._engine.post([need for unit in units for need in unit.needs], work, after)
        finally:
            self.in_store.remove(units)

    def _answer(self, units: Sequence[Unit], decided: list[Decided], committed: Committed, lost: Lost | None) -> None:
        if lost:
            decided, recovered = as_first_posted(units, decided, lost)
            self._notify(self._on_committed, Committed(recovered))
        self._notify(self._on_committed, committed)
        for unit, outcomes in zip(units, decided, strict=True):
            unit.submission.decide(unit.position, outcomes)
        self._notify(self._measure, units, decided)

    def _measure(self, units: Sequence[Unit], decided: Sequence[Decided]) -> None:
        outcomes: list[Outcome] = []
        deadlines: list[float] = []
        for unit, came in zip(units, decided, strict=True):
            if came:  # it was not given up
                outcomes += [came.refused] if isinstance(came, RefusedAt) else came
                deadlines.append(unit.submission.deadline)
        self._on_decided(outcomes, deadlines)

    def _notify(self, listener: Callable[..., None], *what: Any) -> None:
        try:
            listener(*what)
        except Exception as error:
            context = {"message": "a listener failed after a commit", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)


def in_time(units: list[Unit], late: Exception, *, for_good: bool = False) -> list[Unit]:
    """Keep the units whose caller still waits; the others fail with `late`.

    `for_good`: the late ones are not tried again, so no later item of their submissions may be posted.
    """
    now = asyncio.get_running_loop().time()
    for unit in units:
        if unit.submission.deadline <= now:
            unit.submission.given_up |= for_good
            unit.submission.fail(late)
    return [unit for unit in units if unit.submission.deadline > now]
