"""Publishes dead letters to NATS, under the subject `dlq.credits.{subject}`.

Storage is the truth. A letter whose publication was not acknowledged is published again, under the same id.
"""

import asyncio
from typing import Final, NoReturn

from nats.aio.client import Client

from credit_service.broker import FAILURES, Broker, StreamConflict, reason
from credit_service.messages import dead_letters
from credit_service.outlets.wake import Signal
from credit_service.rounds import NotNow, keep_doing
from credit_service.storage.letters import Letter, Letters

STREAM: Final = "CREDITS_DLQ"
_AT_ONCE: Final = 20
_POLL_SECONDS: Final = 2.0
_ANSWER_SECONDS: Final = 5.0
_ROOM: Final = 4096
"""Bytes that are reserved for a message's subject and headers."""


class DeadLetters:
    """Publishes dead letters as they come; `wake` reports new ones."""

    def __init__(self, letters: Letters, broker: Broker) -> None:
        self._letters = letters
        self._broker = broker
        self._wake = Signal()
        self._seen = 0

    def wake(self) -> None:
        """Report new dead letters, so that they are published at once."""
        self._wake.send()

    async def keep_publishing(self) -> NoReturn:
        """Publish for ever. Polls as well, for the letters of other processes."""
        await keep_doing(self._publish_some, "dead_letters_not_published", _POLL_SECONDS, rest=self._rest)

    async def _rest(self, seconds: float) -> None:
        await self._wake.wait(self._seen, seconds)

    async def _publish_some(self) -> bool:
        """Publish the oldest pending letters; returns whether there may be more. Raises NotNow and StorageError."""
        self._seen = self._wake.count
        letters = await self._letters.unpublished(_AT_ONCE)
        if not letters:
            return False
        try:
            await self._broker.ensure_stream(STREAM, [f"{dead_letters.SUBJECT}>"])
            client = await self._broker.client()
            for letter in letters:
                await self._publish(client, letter)
                await self._letters.mark_published([letter.id], await self._letters.now())
        except StreamConflict as error:
            raise NotNow(str(error)) from None
        except FAILURES as error:
            raise NotNow(reason(error)) from None
        return len(letters) == _AT_ONCE

    async def _publish(self, client: Client, letter: Letter) -> None:
        body = dead_letters.published(letter)
        if len(body) > client.max_payload - _ROOM:
            body = dead_letters.published(letter, with_original=False)
        async with asyncio.timeout(2 * _ANSWER_SECONDS):
            subject = f"{dead_letters.SUBJECT}{dead_letters.subject_of(letter)}"
            headers = {"Nats-Msg-Id": f"dlq-{letter.id}"}
            await client.jetstream().publish(subject, body, timeout=_ANSWER_SECONDS, headers=headers)
