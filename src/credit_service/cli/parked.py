"""`credit-service parked`: refunds that wait for what they refund, and shops whose deliveries wait for a link."""

from typing import TYPE_CHECKING, Annotated

import typer

from credit_service.cli.common import DatabaseUrl, Json, in_ledger, show, show_json

if TYPE_CHECKING:
    from credit_service.storage.accounts import PositionedParked
    from credit_service.storage.engine import Engine
    from credit_service.storage.shops import UnlinkedShop

parked = typer.Typer(
    name="parked",
    help="Refunds that wait for their order or payment, and Shopify shops that wait for a link.",
    rich_markup_mode=None,
)


@parked.command(name="list")
def list_(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 100,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List them, those first whose wait ends first; after it they are dead letters."""
    from credit_service.messages.fields import format_time
    from credit_service.storage.accounts import Accounts
    from credit_service.storage.shops import Shops

    async def found(engine: "Engine") -> "tuple[list[PositionedParked], list[UnlinkedShop]]":
        return await Accounts(engine).parked(None, limit), await Shops(engine).unlinked(limit)

    refunds, shops = in_ledger(database_url, found)
    shapes = [
        {
            "merchant_id": str(one.merchant_id),
            "idempotency_key": one.parked.key,
            "waits_for": one.parked.waits_for,
            "arrived_at": format_time(one.parked.arrived_at),
            "until": format_time(one.parked.until),
        }
        for one in refunds
    ]
    unlinked = [
        {"shop_domain": one.domain, "deliveries": one.deliveries, "since": format_time(one.since)} for one in shops
    ]
    if json_:
        show_json({"refunds": shapes, "unlinked_shops": unlinked})
        return
    for shape in shapes:
        show(f"{shape['until']}  {shape['merchant_id']}  {shape['idempotency_key']}  waits for {shape['waits_for']}")
    for shop in unlinked:
        show(f"{shop['since']}  {shop['shop_domain']}  deliveries that wait for a link: {shop['deliveries']:,}")
