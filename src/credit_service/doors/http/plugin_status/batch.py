"""Tell the plugin status of many merchants."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.plugin_status.shared import STATUS, TAG
from credit_service.gate.answers import Reason, shape
from credit_service.gate.status import Gate
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, MerchantId, merchant_text
from credit_service.messages.shapes import encode
from credit_service.observability import Metrics


class StatusesBody(Body):
    """The merchants to ask for."""

    merchant_ids: Annotated[list[MerchantId], Field(min_length=1, max_length=1000)]


class ShortStatus(BaseModel):
    """A plugin status among many."""

    status: Literal["enabled", "disabled"]
    reason: Reason


class Statuses(BaseModel):
    """Plugin statuses by merchant_id."""

    statuses: Annotated[
        dict[str, ShortStatus], Field(examples=[{api.MERCHANT: {"status": "enabled", "reason": "available"}}])
    ]


class ManyStatuses(BaseModel):
    """Plugin statuses."""

    data: Statuses


@api.endpoint("POST", STATUS + "/batch", scope="read", tag=TAG, answers=ManyStatuses, is_large=True)
async def get_plugin_statuses(
    body: Annotated[StatusesBody, api.examples(one={"merchant_ids": [api.MERCHANT]})],
    call: api.Call,
    gate: Gate,
    metrics: Metrics,
) -> api.Answer:
    """Tell whether the plugins of up to 1,000 merchants may run."""
    most = call.limits.batch
    if len(body.merchant_ids) > most:
        raise api.of_faults([Fault("/merchant_ids", "too_long", f"Ask for {most} merchants at most.")])
    found = await gate.ask_many([merchant_text(merchant_id) for merchant_id in body.merchant_ids])
    metrics.status_checks.update([(status.status, status.source) for status in found])
    statuses = {merchant_id: shape(status) for merchant_id, status in zip(body.merchant_ids, found, strict=True)}
    return api.Answer(200, encode({"data": {"statuses": statuses}}))
