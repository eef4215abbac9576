"""The gate's answers, and their text form for other processes.

An answer carries the version of its account, so that of two answers the later one is known.
"""

import re
from typing import Any, Final, Literal, NamedTuple

from credit_service.ledger.account import Account
from credit_service.ledger.announcements import plugin_reason

Reason = Literal["available", "exhausted", "frozen", "unknown_merchant", "unavailable"]
Source = Literal["near", "redis", "storage", "stale", "fail"]
"""The source of an answer: a level of the gate, the last known answer, or the fail policy."""

Version = tuple[int, int, int]
"""Of an account: the time it was settled, its sequence, its last announcement's number. Each posting raises it."""

NO_ACCOUNT: Final[Version] = (0, 0, 0)

_TEXT: Final = re.compile(r"(\d{16})(\d{16})(\d{16})(\d{16})(\d{16})(available|exhausted|frozen|unknown_merchant)")
VERSION_LENGTH: Final = 48
"""Characters at the start of a text that are its version; of two versions the greater one is later."""


class StatusAnswer(NamedTuple):
    """A merchant's plugin status, known at `as_of` and good until `until` (microseconds since 1970).

    `trust`: how often the caching process had lost contact with the other processes by then. `rendered`: the body that
    a door sends.
    """

    merchant_id: str
    status: str
    reason: Reason
    as_of: int
    until: int
    version: Version
    source: Source = "near"
    trust: int = 0
    rendered: Any = None


def of_account(account: Account, now: int, ttl: int, version: Version | None = None) -> StatusAnswer:
    """The answer for an account; good for a TTL in microseconds, or until time changes the account."""
    until = now + ttl if account.next_due_at is None else min(now + ttl, account.next_due_at)
    reason = plugin_reason(account.available, account.state)
    return StatusAnswer(account.merchant_id, _status(reason), reason, now, until, version or version_of(account))


def _status(reason: Reason) -> str:
    return "enabled" if reason == "available" else "disabled"


def of_unknown(merchant_id: str, now: int, ttl: int) -> StatusAnswer:
    """The answer for a merchant without an account; good for a TTL in microseconds."""
    return StatusAnswer(merchant_id, "disabled", "unknown_merchant", now, now + ttl, NO_ACCOUNT)


def version_of(account: Account) -> Version:
    """The version of an account as it was stored."""
    return (account.settled_at, account.sequence, account.announced)


def text_of(answer: StatusAnswer) -> str:
    """The text form of an answer; `answer_of` reads it."""
    return "".join([f"{number:016d}" for number in (*answer.version, answer.as_of, answer.until)]) + answer.reason


def answer_of(merchant_id: str, text: str, now: int, ttl: int) -> StatusAnswer | None:
    """Read the text form of an answer; None if it is not one.

    The answer is good for as long as for its writer, and never longer than a TTL from now, because the writer's clock
    may be ahead of ours.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    settled_at, sequence, announced, as_of, until = [int(number) for number in match.groups()[:5]]
    reason: Any = match[6]
    good_until = min(now, as_of) + min(until - as_of, ttl)
    version = (settled_at, sequence, announced)
    return StatusAnswer(merchant_id, _status(reason), reason, as_of, good_until, version)


def line_of(answer: StatusAnswer) -> str:
    """An answer as a message between processes; `answer_in` reads it."""
    return f"{answer.merchant_id} {text_of(answer)}"


def answer_in(line: str, now: int, ttl: int) -> StatusAnswer | None:
    """Read the message of another process; None if it holds no answer."""
    merchant_id, _, text = line.partition(" ")
    return answer_of(merchant_id, text, now, ttl)


def shape(answer: StatusAnswer) -> dict[str, Any]:
    """One merchant's entry in the answer to a batch."""
    return {"status": answer.status, "reason": answer.reason}
