"""API keys, of which only the SHA-256 of the secret is kept."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from sqlalchemy import func, insert, select, update

from credit_service.storage import tables
from credit_service.storage.engine import Engine
from credit_service.storage.questions import Ask, asking, value

_keys = tables.api_keys
INSERT_KEY: Final = insert(_keys)
KEY: Final = select(_keys).where(_keys.c.id == value("id"))
KEYS: Final = select(_keys).order_by(_keys.c.created_at.desc(), _keys.c.id)
REVOKE_KEY: Final = (
    update(_keys)
    .where(_keys.c.id == value("key"))
    .values(revoked_at=func.coalesce(_keys.c.revoked_at, value("revoked")))
)
USE_KEY: Final = update(_keys).where(_keys.c.id == value("key")).values(last_used_at=value("used"))


class ApiKey(NamedTuple):
    """A credential of a caller. Only the SHA-256 of its secret is kept."""

    id: str
    name: str
    scope: str
    secret_hash: bytes
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None
    last_used_at: int | None = None


class Keys:
    """The API keys of a ledger. `now` is the database's clock."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now = engine.now

    async def add(self, key: ApiKey) -> None:
        await self._engine.write([Ask(INSERT_KEY, key._asdict())])

    async def all(self) -> list[ApiKey]:
        """All API keys, newest first."""
        return [ApiKey(*row) for row in await self._engine.read(asking(Ask(KEYS)))]

    async def get(self, key_id: str) -> ApiKey | None:
        found = await self._engine.read(asking(Ask(KEY, {"id": key_id})))
        return ApiKey(*found[0]) if found else None

    async def revoke(self, key_id: str, at: int) -> bool:
        """Revoke a key. False if there is none with this id; a second time changes nothing."""
        return await self._engine.write([Ask(REVOKE_KEY, {"key": key_id, "revoked": at})]) == 1

    async def note_uses(self, used: Mapping[str, int]) -> None:
        """Note when keys were last used: instants by key id."""
        if used:
            await self._engine.write([Ask(USE_KEY, {"key": key_id, "used": at}) for key_id, at in used.items()])
