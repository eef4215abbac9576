"""Count the plugins that may run."""

from typing import Annotated

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.plugin_status.shared import STATUS, TAG
from credit_service.gate.status import Gate
from credit_service.messages.shapes import encode


class TotalsShape(BaseModel):
    """All merchants in sum; zero_balance_count are those with nothing available."""

    total_merchants: Annotated[int, Field(examples=[8])]
    enabled_count: Annotated[int, Field(examples=[7])]
    disabled_count: Annotated[int, Field(examples=[1])]
    enabled_percentage: Annotated[float, Field(ge=0, le=100, examples=[87.5])]
    average_balance: Annotated[float, Field(examples=[341.25])]
    zero_balance_count: Annotated[int, Field(examples=[1])]


class OneTotals(BaseModel):
    """Totals of plugin status."""

    data: TotalsShape


@api.endpoint("GET", STATUS, scope="read", tag=TAG, answers=OneTotals)
async def get_plugin_status_totals(gate: Gate) -> api.Answer:
    """Count the plugins that may run, and average the balances."""
    totals = await gate.totals()
    share = 100 * totals.enabled / totals.merchants if totals.merchants else 0
    shape = {
        "total_merchants": totals.merchants,
        "enabled_count": totals.enabled,
        "disabled_count": totals.merchants - totals.enabled,
        "enabled_percentage": round(share, 2),
        "average_balance": round(totals.average_balance, 2),
        "zero_balance_count": totals.exhausted,
    }
    return api.Answer(200, encode({"data": shape}))
