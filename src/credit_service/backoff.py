"""Pauses between retries: they double up to a limit, with jitter, so that clients do not retry in step."""

import random
from collections.abc import Iterator


def jittered(seconds: float) -> float:
    """A random pause between half of `seconds` and all of it."""
    return random.uniform(seconds / 2, seconds)  # noqa: S311 - jitter, not a secret


def pauses(first_seconds: float, longest_seconds: float) -> Iterator[float]:
    """Pauses for one retry after another: each about twice as long as the one before, up to the longest."""
    seconds = first_seconds
    while True:
        yield jittered(seconds)
        seconds = min(seconds * 2, longest_seconds)
