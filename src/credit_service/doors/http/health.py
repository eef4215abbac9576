"""Health: for people, for load balancers, for orchestrators."""

import contextlib
import time
from typing import Any

from fastapi import APIRouter, Response

from credit_service.doors.http.problems import Problem
from credit_service.doors.http.routes import CallOf, PartsOf, ProblemShape, answer, respond, router
from credit_service.doors.http.shell import Answer
from credit_service.messages.shapes import encode
from credit_service.storage.base import StorageError

public, read, bare = router(None), router("read"), router(None)
_tags: list[Any] = ["health"]


@public.get("/health", operation_id="get_health", tags=_tags)
async def get_health() -> Response:
    """Whether the service is alive."""
    return respond(Answer(200, encode({"data": {"status": "ok"}})))


@read.get("/health/detailed", operation_id="get_health_detailed", tags=_tags)
async def get_health_detailed(call: CallOf, parts: PartsOf) -> Response:
    """Each component, with its latency and state."""
    started = time.perf_counter()
    try:
        await parts.store.check()
        database: dict[str, Any] = {"status": "ok"}
    except StorageError as error:
        database = {"status": "unavailable", "reason": str(error)}
    database["latency_ms"] = round((time.perf_counter() - started) * 1000, 3)
    components = {"database": database, "posting": {"status": "ok", "queued": parts.posting.queued}}
    status = "ok" if all(component["status"] == "ok" for component in components.values()) else "degraded"
    return respond(answer(call, time.time_ns() // 1000, {"status": status, "components": components}))


@bare.get("/livez", operation_id="livez", tags=_tags)
async def livez() -> Response:
    """The process answers."""
    return respond(Answer(200, encode({"status": "ok"})))


@bare.get("/readyz", operation_id="readyz", tags=_tags, responses={503: {"model": ProblemShape}})
async def readyz(parts: PartsOf) -> Response:
    """The process can take postings."""
    if parts.posting.draining:
        raise Problem("overloaded", "The service is stopping.")
    await parts.store.check()
    return respond(Answer(200, encode({"status": "ok"})))


@bare.get("/metrics", operation_id="metrics", tags=_tags, responses={404: {"model": ProblemShape}})
async def metrics(parts: PartsOf) -> Response:
    """What Prometheus may ask, in its text format."""
    if not parts.settings.metrics_enabled:
        raise Problem("not_found", "Metrics are turned off (METRICS_ENABLED).")
    with contextlib.suppress(StorageError):
        parts.metrics.merchants(await parts.gate.totals())
    return Response(parts.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTERS: tuple[APIRouter, ...] = (public, read)
BARE: tuple[APIRouter, ...] = (bare,)
