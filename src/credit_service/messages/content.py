"""The fingerprint of what was asked or told: the same key with another fingerprint is not the same request (L3)."""

import os
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from credit_service.messages.faults import Fault, Invalid
from credit_service.messages.fields import MAX_METADATA_BYTES
from credit_service.messages.strict_json import canonical


def fingerprint(*parts: str | int | None) -> bytes:
    """16 bytes that stand for these parts."""
    return sha256("\n".join(["" if part is None else str(part) for part in parts]).encode()).digest()[:16]


def metadata_text(metadata: Mapping[str, Any] | None, pointer: str = "/metadata") -> tuple[str | None, bytes | None]:
    """Metadata as canonical JSON, and a fresh salt for its hash. Raises Invalid when it is too large."""
    if metadata is None:
        return None, None
    text = canonical(metadata)
    if len(text.encode()) > MAX_METADATA_BYTES:
        raise Invalid([Fault(pointer, "too_long", f"Metadata may have {MAX_METADATA_BYTES} bytes as JSON at most.")])
    return text, os.urandom(16)
