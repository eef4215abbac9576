"""Read the prices of orders, for callers that must price one themselves."""

from typing import Annotated

from pydantic import BaseModel, Field

from credit_service.doors.http import api


class PricesShape(BaseModel):
    """An order costs the highest of `fixed_amount`, `percentage` of its total, and `minimum`, rounded half up."""

    fixed_amount: Annotated[str, Field(examples=["1"])]
    percentage: Annotated[str, Field(examples=["0"])]
    minimum: Annotated[str, Field(examples=["0"])]


@api.endpoint("GET", api.PREFIX + "/credits/prices", scope="read", tag="orders", answers=api.one(PricesShape))
async def get_prices(call: api.Call, ledger: api.Ledger) -> api.Answer:
    """Read what an order costs, by the settings of this service."""
    policy = ledger.policy
    named = {"fixed_amount": policy.order_fixed, "percentage": policy.order_percent, "minimum": policy.order_minimum}
    return api.answer(call, await ledger.now(), {name: f"{price:f}" for name, price in named.items()})
