"""Dead letters: events that can never be applied, kept for people to look at and to try again."""

import os
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from sqlalchemy import Select, func, or_, select, update
from sqlalchemy.dialects import postgresql

from credit_service.storage import rows, tables
from credit_service.storage.engine import Engine
from credit_service.storage.questions import Ask, Row, asked, asking, number, value

_letters = tables.dead_letters
# SQLite understands PostgreSQL's ON CONFLICT.
PUT_ASIDE: Final = (
    postgresql.insert(_letters)
    .values({name: value(name) for name in ("subject", "original", "message_hash", "code", "reason", "at")})
    .on_conflict_do_nothing(index_elements=["message_hash"])
)
LETTER: Final = select(_letters).where(_letters.c.id == value("id"))
UNPUBLISHED: Final = (
    select(_letters).where(_letters.c.published_at.is_(None)).order_by(_letters.c.id).limit(number("limit"))
)
PUBLISHED: Final = update(_letters).where(_letters.c.id == value("key")).values(published_at=value("published"))
REPLAYED: Final = update(_letters).where(_letters.c.id == value("key")).values(replayed_at=value("replayed"))


@lru_cache(maxsize=64)
def _listing(present: frozenset[str], *, counted: bool = False) -> Select[Any]:
    """The statement that lists (or counts) dead letters by these conditions, newest first."""
    c = _letters.c
    # Letters of parked refunds have no subject, but a kind.
    of_subject = c.subject == value("subject")
    conditions = {
        "code": c.code == value("code"),
        "subject": or_(of_subject, c.kind == value("kind")) if "kind" in present else of_subject,
        "unreplayed": c.replayed_at.is_(None),
        "before": c.id < value("before"),
    }
    wanted = [condition for name, condition in conditions.items() if name in present]
    if counted:
        return select(func.count()).select_from(_letters).where(*wanted)
    return select(_letters).where(*wanted).order_by(c.id.desc()).limit(number("limit"))


REWRITE: Final = (
    update(_letters)
    .where(_letters.c.id == value("key"))
    .values(fact=value("text"), original=value("content"), message_hash=value("hash"))
)


class Undeliverable(NamedTuple):
    """An event that can never be applied: what was sent to which subject, and why it cannot be applied.

    `at` is when it was received. The same bytes to the same subject are the same event, however often they come.
    """

    subject: str
    original: bytes
    code: str
    reason: str
    at: int


class Letter(NamedTuple):
    """A dead letter as it is kept: of an event its subject and original, of a parked refund its fact."""

    id: int
    code: str
    reason: str
    at: int
    fact: Any = None  # one of commands.REFUNDS
    subject: str | None = None
    original: bytes | None = None
    published_at: int | None = None
    replayed_at: int | None = None


class LetterQuery(NamedTuple):
    """Which dead letters to list. `kind`: parked refunds of the subject are found by it, since they have no subject."""

    code: str | None = None
    subject: str | None = None
    kind: str | None = None
    unreplayed: bool = False


class Letters:
    """The dead letters of a ledger. `now` is the database's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = engine.now

    async def put_aside(self, letters: Sequence[Undeliverable]) -> int:
        """Keep events that can never be applied; returns how many of them are new."""
        asks = [Ask(PUT_ASIDE, {**one._asdict(), "message_hash": message_hash(one)}) for one in letters]
        return await self._engine.write(asks) if asks else 0

    async def page(self, query: LetterQuery, before: int | None, limit: int) -> list[Letter]:
        """Dead letters that match, newest first, from the id before `before`."""
        values = asked(query) | ({} if before is None else {"before": before})
        question = Ask(_listing(frozenset(values)), values | {"limit": limit})
        return list(map(_letter, await self._engine.read(asking(question))))

    async def get(self, id_: int) -> Letter | None:
        return next(map(_letter, await self._engine.read(asking(Ask(LETTER, {"id": id_})))), None)

    async def count(self, query: LetterQuery) -> int:
        """How many dead letters match."""
        values = asked(query)
        ((count,),) = await self._engine.read(asking(Ask(_listing(frozenset(values), counted=True), values)))
        return int(count)

    async def unpublished(self, limit: int) -> list[Letter]:
        """Those that were not published yet, oldest first."""
        return list(map(_letter, await self._engine.read(asking(Ask(UNPUBLISHED, {"limit": limit})))))

    async def mark_published(self, ids: Sequence[int], at: int) -> None:
        if ids:
            await self._engine.write([Ask(PUBLISHED, {"key": id_, "published": at}) for id_ in ids])

    async def mark_replayed(self, id_: int, at: int) -> bool:
        """Note that the letter was applied after all. False if there is none with this id."""
        return await self._engine.write([Ask(REPLAYED, {"key": id_, "replayed": at})]) == 1

    async def rewrite(self, letter: Letter) -> None:
        """Keep a dead letter with another fact or original.

        A hash of the old original would let a reader check guesses at it, so a random one takes its place (L15).
        """
        text = None if letter.fact is None else rows.fact_text(letter.fact)
        random = None if letter.original is None else os.urandom(16)
        values = {"key": letter.id, "text": text, "content": letter.original, "hash": random}
        await self._engine.write([Ask(REWRITE, values)])


def _letter(row: Row) -> Letter:
    id_, _, code, reason, at, kind, text, subject, original, _, *noted = row
    return Letter(id_, code, reason, at, None if kind is None else rows.fact(kind, text), subject, original, *noted)


def message_hash(letter: Undeliverable) -> bytes:
    """16 bytes of subject and content that identify an event, so that a repeat is recognised."""
    return blake2b(letter.original, digest_size=16, key=blake2b(letter.subject.encode()).digest()).digest()
