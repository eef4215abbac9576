"""The merchants with a fail policy of their own: the plugin status to answer while the database is away."""

from typing import Final

from sqlalchemy import delete, insert, select

from credit_service.storage import tables
from credit_service.storage.engine import Engine
from credit_service.storage.questions import Ask, asking, value

_policies = tables.gate_policies
GATE_POLICIES: Final = select(_policies)
INSERT_GATE_POLICY: Final = insert(_policies)
DROP_GATE_POLICY: Final = delete(_policies).where(_policies.c.merchant_id == value("of"))


class FailPolicies:
    """The fail policies of merchants: `closed` or `open`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def all(self) -> dict[str, str]:
        """The merchants that have a fail policy of their own, and which."""
        found = await self._engine.read(asking(Ask(GATE_POLICIES)))
        return dict(map(tuple, found))

    async def set(self, merchant_id: str, fail: str | None) -> None:
        """Give a merchant a fail policy of its own, or remove it (None)."""
        asks = [Ask(DROP_GATE_POLICY, {"of": merchant_id})]
        if fail is not None:
            asks.append(Ask(INSERT_GATE_POLICY, {"merchant_id": merchant_id, "fail": fail}))
        await self._engine.write(asks)
