"""Tell the state and latency of each component."""

import contextlib
import time
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.health.alive import HEALTH, TAG, named
from credit_service.posting import Posting
from credit_service.settings import Settings
from credit_service.storage.engine import StorageError
from credit_service.storage.shops import Shops
from credit_service.supervision import Supervisor

if TYPE_CHECKING:
    from credit_service.broker import Broker


class ComponentShape(BaseModel):
    """A component: how long it took to answer, or why it is away. Without Redis the service is only slower."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, api.Unset] = None
    latency_ms: Annotated[float, Field(ge=0, examples=[0.252])]


class QueueShape(BaseModel):
    """The queue of postings."""

    status: Literal["ok"]
    queued: Annotated[int, Field(ge=0)]


class PublishingShape(BaseModel):
    """The publisher of events to NATS: the age of the oldest event that waits, and why this process publishes none."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, api.Unset] = None
    lag_seconds: Annotated[float | None, api.Unset, Field(ge=0, examples=[0.021])] = None


class BackgroundShape(BaseModel):
    """The background tasks, and which of them died and are not healthy again."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, api.Unset] = None


class ShopifyShape(BaseModel):
    """Deliveries of Shopify that wait because their shop is not linked to a merchant, and ten of those shops."""

    status: Literal["ok"]
    waiting: Annotated[int, Field(ge=0)]
    unlinked_shops: Annotated[list[str], Field(examples=[["example.myshopify.com"]])]


class ComponentsShape(BaseModel):
    """Each component."""

    database: ComponentShape
    nats: Annotated[ComponentShape | None, api.Unset] = None
    publishing: Annotated[PublishingShape | None, api.Unset] = None
    posting: QueueShape
    background: BackgroundShape
    redis: Annotated[ComponentShape | None, api.Unset] = None
    shopify: Annotated[ShopifyShape | None, api.Unset] = None


class DetailedHealthShape(BaseModel):
    """The state of the service and of its components."""

    status: Literal["ok", "degraded"]
    components: ComponentsShape


@api.endpoint("GET", HEALTH + "/detailed", scope="read", tag=TAG, answers=api.one(DetailedHealthShape))
async def get_health_detailed(
    call: api.Call,
    posting: Posting,
    supervisor: Supervisor,
    check_storage: api.Check,
    check_redis: api.Check | None,
    broker: Optional["Broker"],
    shops: Shops,
    settings: Settings,
    publishing: api.Publishing | None,
) -> api.Answer:
    """Each component, with its latency and state."""
    components = {"database": await _looked_at(check_storage)}
    if check_redis is not None:
        components["redis"] = await _looked_at(check_redis)
    if broker is not None:
        components["nats"] = await _looked_at(broker.check)
    if publishing is not None:
        components["publishing"] = await _publishing(publishing)
    components["posting"] = {"status": "ok", "queued": posting.queued}
    dead = supervisor.faults
    components["background"] = {"status": "unavailable", "reason": f"{named(dead)} died."} if dead else {"status": "ok"}
    if settings.shopify_webhook_secret is not None:
        with contextlib.suppress(StorageError):  # the database has a line of its own
            unlinked = [one.domain for one in await shops.unlinked(10)]
            components["shopify"] = {
                "status": "ok",
                "waiting": await shops.waiting() if unlinked else 0,
                "unlinked_shops": unlinked,
            }
    status = "ok" if all(component["status"] == "ok" for component in components.values()) else "degraded"
    return api.answer(call, time.time_ns() // 1000, {"status": status, "components": components})


async def _looked_at(check: api.Check) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        await check()
        seen: dict[str, Any] = {"status": "ok"}
    except (StorageError, OSError) as error:
        seen = {"status": "unavailable", "reason": str(error)}
    return {**seen, "latency_ms": round((time.perf_counter() - started) * 1000, 3)}


async def _publishing(publishing: api.Publishing) -> dict[str, Any]:
    fault = publishing.fault
    seen: dict[str, Any] = {"status": "ok"} if fault is None else {"status": "unavailable", "reason": fault}
    with contextlib.suppress(StorageError):
        seen["lag_seconds"] = round(await publishing.lag_seconds(), 3)
    return seen
