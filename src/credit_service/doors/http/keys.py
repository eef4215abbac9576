"""API keys: `cs_`, a public id, and a secret of 256 random bits. Only the SHA-256 of the secret is stored.

A plain hash is enough because the secret cannot be guessed. Slow hashes are for passwords.
"""

import base64
import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from credit_service.doors.http.problems import Problem
from credit_service.ledger.account import MICROSECONDS
from credit_service.storage.engine import StorageError
from credit_service.storage.keys import ApiKey, Keys

SCOPES = ("status", "read", "write", "admin")
"""Each scope includes those before it."""

_KEY = re.compile(rb"(?i:bearer) +cs_([a-z2-7]{12})_([A-Za-z0-9_-]{43})[ \t]*")
_FRESH_SECONDS = 4.0  # a revocation is in force everywhere within 5 s
_MAX_KNOWN = 10_000
_MAX_UNKNOWN = 10_000
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="credit-service"'}


class NewKey(NamedTuple):
    """A new key: what the store keeps, and the whole key, which is shown once."""

    key: ApiKey
    whole: str

    def __repr__(self) -> str:
        return f"NewKey(id={self.key.id!r})"


class Credential(NamedTuple):
    """What a well-formed Authorization header carries: the id of a key and the hash of the secret."""

    id: str
    secret_hash: bytes


class _Known(NamedTuple):
    """A key as the store had it at an instant of the keyring's clock."""

    key: ApiKey
    asked_at: float


def new_id() -> str:
    return base64.b32encode(secrets.token_bytes(8)).decode().lower()[:12]


def new_key(name: str, scope: str, created_at: int, expires_at: int | None = None) -> NewKey:
    """Make a key. Instants in microseconds since 1970."""
    id_ = new_id()
    secret = secrets.token_urlsafe(32)
    kept = ApiKey(id_, name, scope, sha256(secret.encode()).digest(), created_at, expires_at)
    return NewKey(kept, f"cs_{id_}_{secret}")


def credential_of(authorization: Sequence[bytes]) -> Credential | None:
    """The credential in the Authorization headers of a request, None unless there is exactly one well-formed header."""
    match = _KEY.fullmatch(authorization[0]) if len(authorization) == 1 else None
    return None if match is None else Credential(match[1].decode(), sha256(match[2]).digest())


def unauthenticated(detail: str) -> Problem:
    """The problem of a request without a valid key."""
    return Problem("unauthenticated", detail, headers=_CHALLENGE)


class Keyring:
    """Finds API keys, and caches them for a few seconds so that not every request asks the store.

    Unknown ids have a cache of their own, so that a flood of them evicts no valid key. `is_storage_silent` says whether
    the store has not answered lately; asking it then would only cost time.
    """

    def __init__(
        self,
        keys: Keys,
        clock: Callable[[], float] = time.monotonic,
        is_storage_silent: Callable[[], bool] = lambda: False,
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._is_storage_silent = is_storage_silent
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._unknown: OrderedDict[str, float] = OrderedDict()  # when the store was asked
        self._used: dict[str, int] = {}

    def remembered(self, given: Credential) -> ApiKey | None:
        """The cached key that a credential opens, whether it is still valid or not; None if there is none."""
        known = self._known.get(given.id)
        return known.key if known is not None and _opens(known.key, given) else None

    async def valid(self, given: Credential, stale_seconds: float = 0) -> ApiKey | None:
        """The key that a credential opens, None unless it is valid now. Notes its use.

        While the store is away, a key counts that was read within the last `stale_seconds`; else raises StorageError.
        """
        key = await self._key(given, stale_seconds)
        now = time.time_ns() // 1000
        if key is None or key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
            return None
        if key.last_used_at is None or now - key.last_used_at > 60 * MICROSECONDS:
            self._used[key.id] = now
        return key

    async def _key(self, given: Credential, stale_seconds: float) -> ApiKey | None:
        known = self._known.get(given.id)
        now = self._clock()
        if known is not None:
            if not _opens(known.key, given):  # the secret of a key never changes
                return None
            age = now - known.asked_at
            if age < _FRESH_SECONDS or (age < stale_seconds and self._is_storage_silent()):
                return known.key
        elif now - self._unknown.get(given.id, -_FRESH_SECONDS) < _FRESH_SECONDS:
            return None
        try:
            key = await self._keys.get(given.id)
        except StorageError:
            if known is not None and now - known.asked_at < stale_seconds:
                return known.key
            raise
        if key is None:
            self._known.pop(given.id, None)
            _put(self._unknown, given.id, now, _MAX_UNKNOWN)
            return None
        _put(self._known, key.id, _Known(key, now), _MAX_KNOWN)
        return key if _opens(key, given) else None

    def forget(self, id_: str) -> None:
        """Ask the store again about a key, since it was revoked."""
        self._known.pop(id_, None)

    async def flush(self) -> None:
        """Write down when keys were last used; at most once a minute for each."""
        used, self._used = self._used, {}
        if used:
            try:
                await self._keys.note_uses(used)
            except StorageError:
                self._used = used | self._used  # next time
                raise


def _opens(key: ApiKey, given: Credential) -> bool:
    return hmac.compare_digest(given.secret_hash, key.secret_hash)


def _put(cache: OrderedDict[str, Any], id_: str, value: Any, most: int) -> None:
    """Put an entry into a cache, and drop the oldest beyond its size."""
    cache[id_] = value
    cache.move_to_end(id_)
    if len(cache) > most:
        cache.popitem(last=False)


def require(key: ApiKey, scope: str) -> None:
    """Raise Problem unless a key's scope includes this one."""
    if SCOPES.index(key.scope) < SCOPES.index(scope):
        raise Problem("scope_missing", f"This needs an API key of scope {scope}; yours has {key.scope}.")
