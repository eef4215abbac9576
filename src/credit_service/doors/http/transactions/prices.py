"""Read the prices of orders, for callers that must price one themselves."""

from typing import Annotated

from pydantic import BaseModel, Field

from credit_service.doors.http.answers import answer, one
from credit_service.doors.http.call import Answer, Call
from credit_service.doors.http.endpoints import PREFIX, endpoint
from credit_service.doors.http.ledger import Ledger


class PricesShape(BaseModel):
    """An order costs the highest of `fixed_amount`, `percentage` of its total, and `minimum`, rounded half up."""

    fixed_amount: Annotated[str, Field(examples=["1"])]
    percentage: Annotated[str, Field(examples=["0"])]
    minimum: Annotated[str, Field(examples=["0"])]


@endpoint("GET", PREFIX + "/credits/prices", scope="read", tag="orders", answers=one(PricesShape))
async def get_prices(call: Call, ledger: Ledger) -> Answer:
    """Read what an order costs, by the settings of this service."""
    policy = ledger.policy
    named = {"fixed_amount": policy.order_fixed, "percentage": policy.order_percent, "minimum": policy.order_minimum}
    return answer(call, await ledger.now(), {name: f"{price:f}" for name, price in named.items()})
