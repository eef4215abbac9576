"""Health: for people, for load balancers, for orchestrators."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from credit_service.doors.http.call import Answer
from credit_service.doors.http.openapi import problems
from credit_service.doors.http.problems import Problem
from credit_service.doors.http.routes import CallOf, Meta, Parts, PartsOf, Publishing, Unsaid, answer, respond, router
from credit_service.doors.http.single_flight import single_flight
from credit_service.ledger.settle import standing_at
from credit_service.messages.shapes import encode
from credit_service.storage.accounts import AccountQuery
from credit_service.storage.engine import StorageError


class StateShape(BaseModel):
    """That it is alive."""

    status: Literal["ok"]


class Health(BaseModel):
    """Whether the service is alive."""

    data: StateShape


class PartShape(BaseModel):
    """A part that the service needs: how long it took to answer, or why it is away."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, Unsaid] = None
    latency_ms: Annotated[float, Field(ge=0, examples=[0.252])]


class RedisShape(BaseModel):
    """Redis: how long it took to answer, or that it is away. Without it the service is slower, and as right."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, Unsaid] = None
    latency_ms: Annotated[float, Field(ge=0, examples=[0.119])]


class QueueShape(BaseModel):
    """The queue of postings."""

    status: Literal["ok"]
    queued: Annotated[int, Field(ge=0)]


class PublishingShape(BaseModel):
    """What publishes events to NATS: how long the oldest has waited, and why this process does not publish."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, Unsaid] = None
    lag_seconds: Annotated[float | None, Unsaid, Field(ge=0, examples=[0.021])] = None


class BackgroundShape(BaseModel):
    """The background tasks: which of them died and are not healthy again."""

    status: Literal["ok", "unavailable"]
    reason: Annotated[str | None, Unsaid] = None


class ComponentsShape(BaseModel):
    """Each component."""

    database: PartShape
    nats: Annotated[PartShape | None, Unsaid] = None
    publishing: Annotated[PublishingShape | None, Unsaid] = None
    posting: QueueShape
    background: BackgroundShape
    redis: Annotated[RedisShape | None, Unsaid] = None


class DetailedShape(BaseModel):
    """How the service is, and each of its components."""

    status: Literal["ok", "degraded"]
    components: ComponentsShape


class DetailedHealth(BaseModel):
    """How the service is."""

    data: DetailedShape
    meta: Meta


public, read, bare = router(None), router("read"), router(None)
_tags: list[Any] = ["health"]
_AT_ONCE = 1000  # accounts in one question to the store
_METRICS = "# TYPE credits_posting_queue_depth gauge\ncredits_posting_queue_depth 0.0\n"
_BARE = {"type": "object", "properties": {"status": {"const": "ok"}}, "required": ["status"]}
_ok: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"schema": _BARE}}}}


@public.get("/health", operation_id="get_health", response_model=Health, tags=_tags)
async def get_health() -> Response:
    """Whether the service is alive."""
    return respond(Answer(200, encode({"data": {"status": "ok"}})))


@read.get("/health/detailed", operation_id="get_health_detailed", response_model=DetailedHealth, tags=_tags)
async def get_health_detailed(call: CallOf, parts: PartsOf) -> Response:
    """Each component, with its latency and state."""
    components = {"database": await _looked_at(parts.check_storage())}
    if parts.check_redis is not None:
        components["redis"] = await _looked_at(parts.check_redis())
    if parts.broker is not None:
        components["nats"] = await _looked_at(parts.broker.check())
    if parts.publishing is not None:
        components["publishing"] = await _publishing(parts.publishing)
    components["posting"] = {"status": "ok", "queued": parts.posting.queued}
    dead = parts.supervisor.faults
    components["background"] = (
        {"status": "unavailable", "reason": f"{_named(dead)} died."} if dead else {"status": "ok"}
    )
    status = "ok" if all(component["status"] == "ok" for component in components.values()) else "degraded"
    return respond(answer(call, time.time_ns() // 1000, {"status": status, "components": components}))


def _named(faults: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({fault})" for name, fault in faults.items())


async def _looked_at(check: Awaitable[object]) -> dict[str, Any]:
    started = time.perf_counter()
    try:
        await check
        seen: dict[str, Any] = {"status": "ok"}
    except (StorageError, OSError) as error:
        seen = {"status": "unavailable", "reason": str(error)}
    return {**seen, "latency_ms": round((time.perf_counter() - started) * 1000, 3)}


async def _publishing(publishing: Publishing) -> dict[str, Any]:
    fault = publishing.fault
    seen: dict[str, Any] = {"status": "ok"} if fault is None else {"status": "unavailable", "reason": fault}
    with contextlib.suppress(StorageError):
        seen["lag_seconds"] = round(await publishing.lag_seconds(), 3)
    return seen


@bare.get("/livez", operation_id="livez", tags=_tags, responses=_ok)
async def livez() -> Response:
    """The process answers."""
    return respond(Answer(200, encode({"status": "ok"})))


@bare.get("/readyz", operation_id="readyz", tags=_tags, responses=_ok | problems("overloaded", "storage_unavailable"))
async def readyz(parts: PartsOf) -> Response:
    """The process can take postings."""
    if parts.is_stopping() or parts.posting.draining:
        raise Problem("overloaded", "The service is stopping.")
    if dead := parts.supervisor.critical_faults:
        raise Problem("overloaded", f"A background task died and is being restarted: {_named(dead)}.")
    await _check_storage(parts)
    return respond(Answer(200, encode({"status": "ok"})))


@single_flight
async def _check_storage(parts: Parts) -> None:
    await parts.check_storage()


@bare.get(
    "/metrics",
    operation_id="metrics",
    tags=_tags,
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"example": _METRICS}}}, **problems("not_found")},
)
async def metrics(parts: PartsOf) -> Response:
    """What Prometheus may ask, in its text format."""
    if not parts.settings.metrics_enabled:
        raise Problem("not_found", "Metrics are turned off (METRICS_ENABLED).")
    return Response(await _scraped(parts), media_type="text/plain; version=0.0.4; charset=utf-8")


@single_flight
async def _scraped(parts: Parts) -> bytes:
    """All metrics, in the text format of Prometheus."""
    balances: list[tuple[str, int]] = []
    try:
        parts.metrics.stored(await parts.gate.totals(), await parts.accounts.parked_count())
        if parts.publishing is not None:
            parts.metrics.lagging(await parts.publishing.lag_seconds())
        if parts.settings.metrics_balance_per_merchant:
            balances = [balance async for balance in _balances(parts)]
    except StorageError:
        parts.metrics.storage_away()
    parts.metrics.balances = balances
    return parts.metrics.text()


async def _balances(parts: Parts) -> AsyncIterator[tuple[str, int]]:
    """The balance of every merchant."""
    now, after = await parts.now(), None
    while page := await parts.accounts.page(AccountQuery(now, parts.policy.default_threshold), after, _AT_ONCE):
        for held in page:
            account = standing_at(held.account, held.grants, parts.policy, now).account
            yield str(account.merchant_id), account.balance
        after = page[-1].account.merchant_id


ROUTERS: tuple[APIRouter, ...] = (public, read)
BARE: tuple[APIRouter, ...] = (bare,)
