"""`credit-service parked`: what waits for what it refunds."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from credit_service.cli.common import DatabaseUrl, Json, opened, settings_of, show, show_json

if TYPE_CHECKING:
    from credit_service.settings import Settings

parked = typer.Typer(help="Refunds that wait for their order or payment.", rich_markup_mode=None)


@parked.command(name="list")
def list_(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 100,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List them, those first whose wait ends first; after it they are dead letters."""
    found = asyncio.run(_list(settings_of(database_url=database_url), limit))
    if json_:
        show_json(found)
        return
    for one in found:
        show(f"{one['until']}  {one['merchant_id']}  {one['idempotency_key']}  waits for {one['waits_for']}")


async def _list(settings: "Settings", limit: int) -> list[dict[str, Any]]:
    from credit_service.messages.fields import format_time
    from credit_service.storage.accounts import Accounts

    async with opened(settings) as engine:
        return [
            {
                "merchant_id": str(one.merchant_id),
                "idempotency_key": one.parked.key,
                "waits_for": one.parked.waits_for,
                "arrived_at": format_time(one.parked.arrived_at),
                "until": format_time(one.parked.until),
            }
            for one in await Accounts(engine).parked(None, limit)
        ]
