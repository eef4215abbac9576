"""Tell that the process answers."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel

from credit_service.doors.http import api
from credit_service.messages.shapes import encode

HEALTH: Final = api.PREFIX + "/health"
TAG: Final = "health"
_BARE = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}
OK: Final[dict[int | str, Any]] = {200: {"content": {"application/json": {"schema": _BARE}}}}
"""The answer of the probes, for the OpenAPI document."""


def named(faults: Mapping[str, str]) -> str:
    """Background tasks that died, each with its fault."""
    return ", ".join(f"{name} ({fault})" for name, fault in faults.items())


class StateShape(BaseModel):
    """The service is alive."""

    status: Literal["ok"]


class Health(BaseModel):
    """Whether the service is alive."""

    data: StateShape


@api.endpoint("GET", HEALTH, scope=None, tag=TAG, answers=Health)
async def get_health() -> api.Answer:
    """Whether the service is alive."""
    return api.Answer(200, encode({"data": {"status": "ok"}}))


@api.endpoint("GET", "/livez", scope=None, tag=TAG, responses=OK)
async def livez() -> api.Answer:
    """The process answers."""
    return api.Answer(200, encode({"status": "ok"}))
