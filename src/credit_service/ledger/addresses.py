"""Ids that are addresses: a UUIDv8 (RFC 9562) that says where its row is, so that no index on ids is needed.

Layout of the 122 free bits: 62 of account number, 4 of kind, 8 of epoch (0; room for telling ids apart that were given
out before and after a restore), 48 of number: a transaction's sequence, a grant's number, an announcement's. The text
of an id is thus a prefix that all of its account's ids of that kind share, and twelve hexadecimal digits.
"""

from functools import lru_cache
from typing import Final, NamedTuple
from uuid import UUID

ACCOUNT: Final = 0
TRANSACTION: Final = 1
GRANT: Final = 2
EVENT: Final = 3

_NUMBER_MASK: Final = (1 << 48) - 1


class Address(NamedTuple):
    """Where a row is: its account's number, what kind of row, and its number there."""

    account: int
    kind: int
    number: int


@lru_cache(maxsize=4096)
def prefix(account: int, kind: int) -> str:
    """The text that all ids of one kind in one account begin with; append the number as twelve hex digits."""
    return (
        f"{account >> 30:08x}-{account >> 14 & 0xFFFF:04x}-8{account >> 2 & 0xFFF:03x}-{8 | account & 3:x}{kind:x}00-"
    )


@lru_cache(maxsize=20_000)
def merchant_text(number: int) -> str:
    """A merchant's id, given as `UUID.int`, as text: it stands in each of his transactions, hashed and told."""
    return str(UUID(int=number))


def text(account: int, kind: int, number: int) -> str:
    """An id as text."""
    return f"{prefix(account, kind)}{number:012x}"


def parse(identifier: UUID) -> Address | None:
    """The address an id stands for, or None when this service never gave out such an id."""
    value = identifier.int
    if value >> 76 & 0xF != 8 or value >> 62 & 0b11 != 0b10 or value >> 48 & 0xFF:
        return None
    account = (value >> 80) << 14 | (value >> 64 & 0xFFF) << 2 | value >> 60 & 0b11
    return Address(account, value >> 56 & 0xF, value & _NUMBER_MASK)
