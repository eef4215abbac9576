"""API keys: `cs_`, a public id, and a secret of 256 bits of which only the SHA-256 is kept.

A plain hash is right for a secret that nobody can guess; slow hashes are for passwords.
"""

import base64
import hmac
import re
import secrets
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

from credit_service.doors.http.problems import Problem
from credit_service.ledger.account import MICROSECONDS
from credit_service.storage.engine import StorageError
from credit_service.storage.keys import ApiKey, Keys

SCOPES = ("status", "read", "write", "admin")
"""Each includes those before it."""

_KEY = re.compile(rb"(?i:bearer) +cs_([a-z2-7]{12})_([A-Za-z0-9_-]{43})[ \t]*")
_REMEMBERED_SECONDS = 4.0  # a revocation is in force everywhere within 5 s
_REMEMBERED_KEYS = 10_000
_UNKNOWN: tuple[float, None] = (0.0, None)
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="credit-service"'}


class NewKey(NamedTuple):
    """A key just made: what is kept of it, and the whole, which is shown once."""

    key: ApiKey
    whole: str

    def __repr__(self) -> str:
        return f"NewKey(id={self.key.id!r})"


def new_id() -> str:
    """A short id that nobody has had."""
    return base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]


def new_key(name: str, scope: str, created_at: int, expires_at: int | None = None) -> NewKey:
    """Make a key. Instants in microseconds since 1970."""
    id_ = new_id()
    secret = secrets.token_urlsafe(32)
    kept = ApiKey(id_, name, scope, sha256(secret.encode()).digest(), created_at, expires_at)
    return NewKey(kept, f"cs_{id_}_{secret}")


class Keyring:
    """Knows who calls. Remembers keys for a few seconds, so that not every request asks the store."""

    def __init__(self, keys: Keys, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._known: dict[str, tuple[float, ApiKey | None]] = {}
        self._used: dict[str, int] = {}

    async def authenticate(self, authorization: Sequence[bytes], *, leniently: bool = False) -> ApiKey:
        """The key that a request carries in its Authorization header. Raises Problem without just one valid key.

        `leniently`: a key that was known lately is still as it was then, while the store cannot be asked.
        """
        if len(authorization) != 1:
            detail = "Send one API key: Authorization: Bearer cs_…"
            raise Problem("unauthenticated", detail, headers=_CHALLENGE)
        match = _KEY.fullmatch(authorization[0])
        key = None if match is None else await self._key(match[1].decode(), leniently=leniently)
        if match is None or key is None or not self._opens(key, match[2]):
            detail = "This API key is not valid: unknown, expired or revoked."
            raise Problem("unauthenticated", detail, headers=_CHALLENGE)
        return key

    def known(self, authorization: Sequence[bytes]) -> ApiKey | None:
        """As `authenticate`, without asking the store; None where it would be asked, or the request be refused."""
        match = _KEY.fullmatch(authorization[0]) if len(authorization) == 1 else None
        if match is None:
            return None
        until, key = self._known.get(match[1].decode(), _UNKNOWN)
        return key if key is not None and until > self._clock() and self._opens(key, match[2]) else None

    def _opens(self, key: ApiKey, secret: bytes) -> bool:
        """Whether this is the secret of a key that is valid now, whose use is noted then."""
        if not hmac.compare_digest(sha256(secret).digest(), key.secret_hash):
            return False
        now = time.time_ns() // 1000
        valid = key.revoked_at is None and (key.expires_at is None or key.expires_at > now)
        if valid:
            self._note_use(key, now)
        return valid

    async def _key(self, id_: str, *, leniently: bool) -> ApiKey | None:
        now = self._clock()
        known = self._known.get(id_)
        if known is not None and (known[0] > now or leniently):
            return known[1]
        key = await self._keys.get(id_)
        if len(self._known) >= _REMEMBERED_KEYS:
            self._known.clear()
        self._known[id_] = (now + _REMEMBERED_SECONDS, key)
        return key

    def forget(self, id_: str) -> None:
        """Ask the store again about a key, since it was revoked."""
        self._known.pop(id_, None)

    def _note_use(self, key: ApiKey, now: int) -> None:
        if key.last_used_at is None or now - key.last_used_at > 60 * MICROSECONDS:
            self._used[key.id] = now

    async def flush(self) -> None:
        """Write down when keys were last used; at most once a minute for each."""
        used, self._used = self._used, {}
        if used:
            try:
                await self._keys.note_uses(used)
            except StorageError:
                self._used = used | self._used  # next time
                raise


def includes(key: ApiKey, scope: str) -> bool:
    """Whether a key's scope includes this one."""
    return SCOPES.index(key.scope) >= SCOPES.index(scope)


def require(key: ApiKey, scope: str) -> None:
    """Raise Problem unless a key's scope includes this one."""
    if not includes(key, scope):
        raise Problem("scope_missing", f"This needs an API key of scope {scope}; yours has {key.scope}.")
