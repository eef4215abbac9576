"""The path of API keys, and the shape of one."""

import re
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api

KEYS: Final = api.PREFIX + "/api-keys"
TAG: Final = "api keys"
KEY_ID: Final = "vzphnrglpgkp"
"""The id of the key of every example."""
ID: Final = re.compile("[a-z2-7]{12}")
Scope = Literal["status", "read", "write", "admin"]


class KeyShape(BaseModel):
    """An API key, without its secret."""

    id: Annotated[str, Field(pattern=f"^{ID.pattern}$", examples=[KEY_ID])]
    name: Annotated[str, Field(examples=["billing"])]
    scope: Annotated[Scope, Field(examples=["write"])]
    created_at: api.Instant
    expires_at: Annotated[api.Instant | None, api.Unset]
    revoked_at: Annotated[api.Instant | None, api.Unset]
    last_used_at: Annotated[api.Instant | None, api.Unset]
