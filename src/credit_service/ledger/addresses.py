"""Ids that are addresses: a UUIDv8 (RFC 9562) names the place of its row, so ids need no index.

The 122 free bits hold: 62 bits of account number, 4 of kind, 8 of epoch (0 today; it can tell ids from before and after
a restore apart), 48 of number (of a transaction, grant or announcement in its account). So all ids of one kind in one
account share a prefix of text, and end with twelve hexadecimal digits.
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
    """The place of a row: number of its account, kind of row, number within the account."""

    account: int
    kind: int
    number: int


@lru_cache(maxsize=4096)
def prefix(account: int, kind: int) -> str:
    """The common prefix of all ids of one kind in one account; the number follows as twelve hex digits."""
    return (
        f"{account >> 30:08x}-{account >> 14 & 0xFFFF:04x}-8{account >> 2 & 0xFFF:03x}-{8 | account & 3:x}{kind:x}00-"
    )


def text(account: int, kind: int, number: int) -> str:
    return f"{prefix(account, kind)}{number:012x}"


@lru_cache(maxsize=4096)
def account_text(account: int) -> str:
    return text(account, ACCOUNT, 0)


def parse(identifier: UUID) -> Address | None:
    """The address in an id, or None if this service never creates such an id."""
    value = identifier.int
    if value >> 76 & 0xF != 8 or value >> 62 & 0b11 != 0b10 or value >> 48 & 0xFF:
        return None
    account = (value >> 80) << 14 | (value >> 64 & 0xFFF) << 2 | value >> 60 & 0b11
    return Address(account, value >> 56 & 0xF, value & _NUMBER_MASK)
