"""What the gate answers, and how an answer is written down for other processes to read.

An answer carries the version of its account, so that whoever holds two of them knows which one is later.
"""

import re
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from credit_service.ledger.account import Account
from credit_service.ledger.announcements import plugin_status

Reason = Literal["available", "exhausted", "unknown_merchant", "unavailable"]
Source = Literal["near", "redis", "storage", "stale", "fail"]
"""Where an answer comes from: a level of the gate; else the last one known, or the fail policy."""

Version = tuple[int, int, int]
"""Of an account: when it was settled, its sequence, the number of its last announcement; each posting has a higher."""

NO_ACCOUNT: Final[Version] = (0, 0, 0)

_TEXT: Final = re.compile(r"(\d{16})(\d{16})(\d{16})(\d{16})(\d{16})(available|exhausted|unknown_merchant)")
VERSION_LENGTH: Final = 48
"""With so many characters a text begins: its version, which is later where they are greater."""


class StatusAnswer(NamedTuple):
    """A merchant's plugin status. `as_of` is when it was known, `until` when it must be asked again (microseconds).

    `trust`: how often the process that keeps it had lost touch with the others by then. `rendered`: what a door sends.
    """

    merchant_id: UUID
    status: str
    reason: Reason
    as_of: int
    until: int
    version: Version
    source: Source = "near"
    trust: int = 0
    rendered: Any = None


def of_account(account: Account, now: int, ttl: int, version: Version | None = None) -> StatusAnswer:
    """The answer for an account as it stands; good for a TTL in microseconds, or until time changes the account."""
    until = now + ttl if account.next_due_at is None else min(now + ttl, account.next_due_at)
    available = account.available
    reason: Reason = "available" if available > 0 else "exhausted"
    status = plugin_status(available)
    return StatusAnswer(account.merchant_id, status, reason, now, until, version or version_of(account))


def of_nobody(merchant_id: UUID, now: int, ttl: int) -> StatusAnswer:
    """The answer for a merchant without an account; good for a TTL in microseconds."""
    return StatusAnswer(merchant_id, "disabled", "unknown_merchant", now, now + ttl, NO_ACCOUNT)


def version_of(account: Account) -> Version:
    """The version of an account as it was stored."""
    return (account.settled_at, account.sequence, account.announced)


def text_of(answer: StatusAnswer) -> str:
    """An answer that a level gave, for `answer_of` to read."""
    return "".join([f"{number:016d}" for number in (*answer.version, answer.as_of, answer.until)]) + answer.reason


def answer_of(merchant_id: UUID, text: str, now: int, ttl: int) -> StatusAnswer | None:
    """An answer that was written by `text_of`, None where this is none.

    It is good for as long as it was for its writer, counted from when it was known, and never longer than a TTL from
    now: a writer's clock may be ahead of ours.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    settled_at, sequence, announced, as_of, until = [int(number) for number in match.groups()[:5]]
    reason: Any = match[6]
    status = "enabled" if reason == "available" else "disabled"
    good_until = min(now, as_of) + min(until - as_of, ttl)
    return StatusAnswer(merchant_id, status, reason, as_of, good_until, (settled_at, sequence, announced))


def line_of(answer: StatusAnswer) -> str:
    """An answer as processes tell it to each other, for `answer_in` to read."""
    return f"{answer.merchant_id} {text_of(answer)}"


def answer_in(line: str, now: int, ttl: int) -> StatusAnswer | None:
    """An answer that another process told; None where this is none."""
    merchant_id, _, text = line.partition(" ")
    try:
        return answer_of(UUID(merchant_id), text, now, ttl)
    except ValueError:
        return None


def shape(answer: StatusAnswer) -> dict[str, Any]:
    """What a batch of questions is told of one merchant."""
    return {"status": answer.status, "reason": answer.reason}
