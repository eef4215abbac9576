"""Lanes: the shares of merchants whose events stand in one order, each locked by one posting at a time."""

from collections.abc import Iterable
from functools import lru_cache
from typing import Final
from zlib import crc32

LANES: Final = 16


@lru_cache(maxsize=20_000)  # each posting asks three times
def lane_of(merchant_id: str) -> int:
    """The lane of a merchant's postings and events. The database stores it, so it may never change."""
    return crc32(merchant_id.encode()) % LANES


def lanes_of(merchant_ids: Iterable[str]) -> list[int]:
    """The lanes of these merchants, ascending."""
    return sorted({lane_of(merchant_id) for merchant_id in merchant_ids})
