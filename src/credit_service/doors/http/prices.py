"""The prices of orders: what one costs by the settings of this service, for callers that must price one themselves."""

from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from credit_service.doors.http.routes import CallOf, Meta, PartsOf, answer, respond, router

PRICES = "/credits/prices"


class PricesShape(BaseModel):
    """An order costs the highest of `fixed_amount`, `percentage` of its total, and `minimum`, rounded half up."""

    fixed_amount: Annotated[str, Field(examples=["1"])]
    percentage: Annotated[str, Field(examples=["0"])]
    minimum: Annotated[str, Field(examples=["0"])]


class Prices(BaseModel):
    """The prices of orders."""

    data: PricesShape
    meta: Meta


read = router("read")


@read.get(PRICES, operation_id="get_prices", response_model=Prices, tags=["orders"])
async def get_prices(call: CallOf, parts: PartsOf) -> Response:
    """Read what an order costs, by the settings of this service."""
    policy = parts.policy
    named = {"fixed_amount": policy.order_fixed, "percentage": policy.order_percent, "minimum": policy.order_minimum}
    prices = {name: f"{price:f}" for name, price in named.items()}
    return respond(answer(call, await parts.now(), prices))


ROUTERS: tuple[APIRouter, ...] = (read,)
