"""The fingerprint of a request: the same key with another fingerprint is another request (L3).

A fingerprint covers no personal data: metadata has a salted hash of its own (`ledger/proof.py`, L15).
"""

import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from credit_service.ledger.account import Reference
from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import MAX_KEY, MAX_METADATA_BYTES
from credit_service.messages.strict_json import canonical


class Limits(NamedTuple):
    """How much a caller may send or ask for.

    Characters of a key or reference, bytes of metadata as JSON, levels of JSON, entries of a page, items of a batch.
    """

    key: int = MAX_KEY
    metadata: int = MAX_METADATA_BYTES
    depth: int = 32
    page: int = 200
    batch: int = 1_000


DEFAULT_LIMITS = Limits()


def fingerprint(*parts: str | int | None) -> bytes:
    """The fingerprint (16 bytes) of these parts."""
    return sha256("\n".join(["" if part is None else str(part) for part in parts]).encode()).digest()[:16]


def command_content(operation: str, type_: str, amount: int, reference: Reference | None, grant: str | None) -> bytes:
    """The fingerprint of a posting, the same through every door; `grant` is canonical JSON."""
    named = None if reference is None else _named(*reference)
    return fingerprint(operation, type_, amount, named, grant)


def _named(type_: str, id_: str) -> str:
    """A reference as canonical JSON; most texts need no escape, so the encoder is rarely called."""
    return canonical((type_, id_)) if '"' in (text := type_ + id_) or "\\" in text else f'["{type_}","{id_}"]'


def metadata_text(
    metadata: Mapping[str, Any] | None, limits: Limits, pointer: str = "/metadata"
) -> tuple[str | None, bytes | None]:
    """Metadata as canonical JSON, and a new salt for its hash. Raises Invalid if it is too large."""
    if metadata is None:
        return None, None
    text = canonical(metadata)
    if len(text.encode()) > limits.metadata:
        raise Invalid([Fault(pointer, "too_long", f"Metadata may have at most {limits.metadata} bytes as JSON.")])
    return text, os.urandom(16)
