"""Applies a fetched batch of events in one `submit_many`, and answers each message by its own outcome.

No event is lost, and none delays the others. While the database is away, the batch is retried in order, and later
returned to NATS. An event that can never be applied becomes a dead letter. An event that makes our code fail is retried
alone a few times, with growing pauses, and then becomes a dead letter as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

import structlog
from nats.aio.msg import Msg

from credit_service.backoff import jittered
from credit_service.doors.jetstream.reading import EventReader, code_of
from credit_service.doors.jetstream.subjects import Subjects, whole
from credit_service.ledger.commands import Command
from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.messages import dead_letters
from credit_service.messages.faults import Invalid
from credit_service.messages.inbound import Translated
from credit_service.observability import Metrics
from credit_service.posting import DeadlineExceeded, Overloaded, Posting
from credit_service.settings import Settings
from credit_service.storage.engine import Conflict, OutcomeUnknown, StorageUnavailable
from credit_service.storage.letters import Letters, Undeliverable

TRANSIENT: Final = (StorageUnavailable, OutcomeUnknown, Conflict, Overloaded, DeadlineExceeded)
"""Transient failures: a retry may work."""
_HOLD_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0, 5.0)
_AWAY_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 10.0
_LONGEST_PAUSE_SECONDS: Final = 300.0
_DELIVERIES: Final = 5
_COMMANDS_AT_ONCE: Final = 1_000
_READ_AT_ONCE: Final = 50
_log = structlog.get_logger()

_Fault = tuple[str, str]  # code and reason


class Event:
    """A message, its decoded commands, and its faults."""

    __slots__ = ("failure", "faults", "message", "outcomes", "subject", "translated", "type")

    def __init__(self, message: Msg, subject: str, type_: str) -> None:
        self.message = message
        self.subject = subject
        self.type = type_
        self.translated: Sequence[Translated] = ()
        self.faults: list[_Fault] = []
        self.outcomes: list[str] = []
        self.failure: Exception | None = None

    @property
    def commands(self) -> list[Command]:
        return [one.command for one in self.translated if not isinstance(one.command, Invalid)]


class Ways(NamedTuple):
    """Pauses in seconds: while the database is away, and after the first failure of our code."""

    hold: Sequence[float] = _HOLD_SECONDS
    first_pause: float = 2.0


PATIENT: Final = Ways()


class Taking:
    """Takes batches of messages. `on_put_aside` is called when there are new dead letters."""

    def __init__(
        self,
        letters: Letters,
        posting: Posting,
        metrics: Metrics,
        subjects: Subjects,
        settings: Settings,
        on_put_aside: Callable[[], None] = lambda: None,
        ways: Ways = PATIENT,
    ) -> None:
        self._letters = letters
        self._posting = posting
        self._metrics = metrics
        self._subjects = subjects
        self._on_put_aside = on_put_aside
        self._ways = ways
        self._reader = EventReader(subjects, settings)
        self._at_once = min(_COMMANDS_AT_ONCE, settings.posting_queue_size)

    async def read(self, messages: Sequence[Msg]) -> list[Event]:
        """Decode messages, and let other tasks run in between."""
        events: list[Event] = []
        for start in range(0, len(messages), _READ_AT_ONCE):
            read = map(self._read, messages[start : start + _READ_AT_ONCE])
            events += [event for event in read if event is not None]
            await asyncio.sleep(0)
        return events

    async def take(self, events: Sequence[Event], pause: Callable[[float], Awaitable[bool]]) -> None:
        """Apply events, and answer each message after its commit. Raises nats-py's errors.

        `pause` waits so many seconds and returns whether to go on; if not, the messages are returned to NATS.
        """
        for event in events:
            if _deliveries(event.message) > 1:
                self._metrics.redelivered(event.type)
        told = None
        for seconds in (*self._ways.hold, None):
            try:
                await self._apply(events)
                await self._put_aside(events)
                break
            except TRANSIENT as error:
                if told is None:
                    told = str(error) or type(error).__name__
                    _log.warning("events_wait", events=len(events), reason=told)
                if seconds is None or not await pause(jittered(seconds)):
                    # Another replica may reach the database.
                    later = None if seconds is not None else jittered(_AWAY_SECONDS)
                    await _each(event.message.nak(later) for event in events)
                    return
                await _each(event.message.in_progress() for event in events)
        await _each(self._answer(event) for event in events)

    def _read(self, message: Msg) -> Event | None:
        subject = whole(message.subject)
        named = self._subjects.named(subject)
        if named is None:  # an operator changed the consumer; the message is not for us
            return None
        event = Event(message, subject, named.type)
        try:
            read = self._reader.read(named, message.data)
            event.translated = read.commands
            if read.invalid is not None:
                event.faults = [(code_of(read.invalid), str(read.invalid))]
        except Exception as error:
            event.failure = error
        return event

    # ---- applying

    async def _apply(self, events: Sequence[Event]) -> None:
        """Post the commands of events. Raises transient failures; any other failure is stored in its event."""
        told = [event for event in events if event.failure is None]
        try:
            outcomes = iter(await self._submit([command for event in told for command in event.commands]))
            for event in told:
                _note(event, outcomes)
        except TRANSIENT:
            raise
        except Exception as error:
            # One event failed the whole batch: submit each one alone.
            _log.error("events_failed", events=len(told), exc_info=error)
            answers = await asyncio.gather(*[self._submit(event.commands) for event in told], return_exceptions=True)
            for event, answer in zip(told, answers, strict=True):
                if isinstance(answer, TRANSIENT):
                    raise answer from error
                if isinstance(answer, Exception):
                    event.failure = answer
                elif isinstance(answer, BaseException):
                    raise answer from error
                else:
                    _note(event, iter(answer))

    async def _submit(self, commands: Sequence[Command]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for start in range(0, len(commands), self._at_once):
            outcomes += await self._posting.submit_many(commands[start : start + self._at_once])
        return outcomes

    async def _put_aside(self, events: Sequence[Event]) -> None:
        """Store events that can never be applied as dead letters. Raises transient failures."""
        for event in events:
            if event.failure is not None and _deliveries(event.message) >= _DELIVERIES:
                event.faults = [("internal", f"The service failed: {type(event.failure).__name__}.")]
        lost = [event for event in events if event.faults]
        if not lost:
            return
        at = time.time_ns() // 1000
        letters = [dead_letters.undeliverable(one.subject, one.message.data, one.faults, at) for one in lost]
        try:
            new = await self._letters.put_aside(letters)
        except TRANSIENT:
            raise
        except Exception as error:  # one letter cannot be stored; store the others
            _log.error("dead_letters_failed", letters=len(letters), exc_info=error)
            new = sum([await self._put_one_aside(one, letter) for one, letter in zip(lost, letters, strict=True)])
        if new:
            self._metrics.put_aside(new)
            self._on_put_aside()

    async def _put_one_aside(self, event: Event, letter: Undeliverable) -> int:
        try:
            return await self._letters.put_aside([letter])
        except TRANSIENT:
            raise
        except Exception as error:
            event.failure, event.faults = error, []
            return 0

    async def _answer(self, event: Event) -> None:
        """Answer a message by the outcome of its event."""
        if event.failure is not None and not event.faults:
            delivered = _deliveries(event.message)
            _log.error("event_failed", subject=event.subject, delivered=delivered, exc_info=event.failure)
            seconds = min(self._ways.first_pause * 2 ** (delivered - 1), _LONGEST_PAUSE_SECONDS)
            await event.message.nak(jittered(seconds))
            return
        for outcome in event.outcomes or ["refused"]:
            self._metrics.consumed(event.type, outcome)
        if event.faults:
            _log.warning("event_put_aside", subject=event.subject, code=event.faults[0][0])
        if event.faults and set(event.outcomes) <= {"refused"}:
            await event.message.term()
        else:
            await event.message.ack()


def _note(event: Event, outcomes: Iterator[Outcome]) -> None:
    """Store the outcomes of an event's commands, which are the next ones, and the faults of its malformed parts."""
    if not event.translated:
        return  # malformed as a whole
    event.outcomes, event.faults = [], []  # from an earlier attempt
    for translated in event.translated:
        outcome = translated.command if isinstance(translated.command, Invalid) else next(outcomes)
        match outcome:
            case Posted():
                event.outcomes.append("posted")
            case Replayed():
                event.outcomes.append("replayed")
            case Waiting():
                event.outcomes.append("parked")
            case Refused(refusal=refusal):
                event.outcomes.append("refused")
                event.faults.append((refusal.code, f"{_which(translated)}{refusal.sentence}"))
            case Invalid():
                event.outcomes.append("refused")
                event.faults.append((code_of(outcome), f"{_which(translated)}{outcome}"))


def _which(translated: Translated) -> str:
    return "" if translated.order_id is None else f"order {translated.order_id}: "


def _deliveries(message: Msg) -> int:
    """How often a message was delivered, this time included, from its reply subject."""
    tokens = message.reply.split(".")
    return int(tokens[4 if len(tokens) == 9 else 6])


async def _each(answers: Iterable[Awaitable[None]]) -> None:
    async with asyncio.timeout(_ANSWER_SECONDS):  # on a connection that was lost nats-py may wait for ever
        for answer in answers:
            await answer
