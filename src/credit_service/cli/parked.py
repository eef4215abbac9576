"""`credit-service parked`: refunds that wait for what they refund."""

from typing import Annotated

import typer

from credit_service.cli.common import DatabaseUrl, Json, in_ledger, show, show_json

parked = typer.Typer(name="parked", help="Refunds that wait for their order or payment.", rich_markup_mode=None)


@parked.command(name="list")
def list_(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 100,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List them, those first whose wait ends first; after it they are dead letters."""
    from credit_service.messages.fields import format_time
    from credit_service.storage.accounts import Accounts

    shapes = [
        {
            "merchant_id": str(one.merchant_id),
            "idempotency_key": one.parked.key,
            "waits_for": one.parked.waits_for,
            "arrived_at": format_time(one.parked.arrived_at),
            "until": format_time(one.parked.until),
        }
        for one in in_ledger(database_url, lambda engine: Accounts(engine).parked(None, limit))
    ]
    if json_:
        show_json(shapes)
        return
    for shape in shapes:
        show(f"{shape['until']}  {shape['merchant_id']}  {shape['idempotency_key']}  waits for {shape['waits_for']}")
