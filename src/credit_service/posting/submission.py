"""What the phases of a posting hand to each other: a caller's submission, and its units."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Needs, Outcome
from credit_service.ledger.refusals import Refused


class RefusedAt(NamedTuple):
    """The ledger refused an atomic batch whole, because of the item at `position`."""

    position: int
    refused: Refused


Decided = Sequence[Outcome] | RefusedAt
"""The outcomes of a unit, one for each command; or why the unit was refused whole."""


class Submission:
    """What one caller submitted, and the future that answers it when all of its units are decided."""

    __slots__ = ("answer", "deadline", "decided", "given_up", "left")

    def __init__(self, answer: asyncio.Future[None], deadline: float, units: int) -> None:
        self.answer = answer
        self.deadline = deadline  # by the loop's clock
        self.left = units
        self.given_up = False  # the database failed an item, so no later item may be posted without it
        self.decided: list[Decided | None] = [None] * units

    def decide(self, position: int, decided: Decided) -> None:
        """Note the outcomes of one unit; the last one answers the caller."""
        self.decided[position] = decided
        self.left -= 1
        if self.left == 0 and not self.answer.done():
            self.answer.set_result(None)

    def fail(self, error: Exception) -> None:
        """Answer the caller with an error, unless it has its answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Unit(NamedTuple):
    """Commands of one merchant that are decided all or nothing; nearly always a single command.

    `rehearsal`: decided like any other and then dropped (a dry run); it may hold commands of several merchants.
    """

    submission: Submission
    position: int
    commands: tuple[Command, ...]
    needs: tuple[Needs, ...]
    rehearsal: bool = False
