"""Tells NATS of dead letters: what is kept in storage and not published yet goes to `dlq.credits.{subject}`.

Storage is the truth. A letter whose publication was not acknowledged is published again, under the same id.
"""

import asyncio
from typing import Final, NoReturn

import structlog
from nats.js import JetStreamContext

from credit_service.broker import FAILURES, Broker, StreamConflict, reason
from credit_service.messages import dead_letters
from credit_service.storage.engine import StorageError
from credit_service.storage.letters import Letter, Letters

STREAM: Final = "CREDITS_DLQ"
_AT_ONCE: Final = 20
_LOOK_SECONDS: Final = 2.0
_AGAIN_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 5.0
_ROOM: Final = 4096
"""Bytes of a message that are not its body: subject and headers."""
_log = structlog.get_logger()


class DeadLetters:
    """Publishes dead letters as they come; `wake` says that there are new ones."""

    def __init__(self, letters: Letters, broker: Broker) -> None:
        self._letters = letters
        self._broker = broker
        self._woken = asyncio.Event()
        self._told: str | None = None

    def wake(self) -> None:
        """There is something to publish."""
        self._woken.set()

    async def keep_publishing(self) -> NoReturn:
        """Publish for ever. Looks now and then by itself: others put letters aside, too."""
        while True:
            seconds = _LOOK_SECONDS
            try:
                while await self._publish_some():
                    pass
                self._told = None
            except (StreamConflict, StorageError, *FAILURES) as error:
                self._warn(str(error) if isinstance(error, StreamConflict | StorageError) else reason(error))
                seconds = _AGAIN_SECONDS
            except Exception as error:
                _log.error("dead_letters_not_published", exc_info=error)
                seconds = _AGAIN_SECONDS
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()

    async def _publish_some(self) -> bool:
        """Publish the oldest that are not published; returns whether there may be more."""
        letters = await self._letters.unpublished(_AT_ONCE)
        if not letters:
            return False
        await self._broker.ensure_stream(STREAM, [f"{dead_letters.SUBJECT}>"])
        streams = await self._broker.jetstream()
        for letter in letters:
            await self._publish(streams, letter)
            await self._letters.mark_published([letter.id], await self._letters.now())
        return len(letters) == _AT_ONCE

    async def _publish(self, streams: JetStreamContext, letter: Letter) -> None:
        body = dead_letters.published(letter)
        if len(body) > streams._nc.max_payload - _ROOM:
            body = dead_letters.published(letter, with_original=False)
        async with asyncio.timeout(2 * _ANSWER_SECONDS):
            subject = f"{dead_letters.SUBJECT}{dead_letters.subject_of(letter)}"
            headers = {"Nats-Msg-Id": f"dlq-{letter.id}"}
            await streams.publish(subject, body, timeout=_ANSWER_SECONDS, headers=headers)

    def _warn(self, why: str) -> None:
        if why != self._told:
            _log.warning("dead_letters_not_published", reason=why)
        self._told = why
