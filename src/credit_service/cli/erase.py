"""`credit-service erase`: erase the personal data of a merchant."""

from typing import Annotated

import typer

from credit_service.cli.common import DatabaseUrl, Json, in_ledger, merchant_named, show, show_json


def erase(
    merchant_id: Annotated[str, typer.Argument(metavar="MERCHANT_ID", help="The merchant whose data is erased.")],
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Erase a merchant's personal data for good; balances, hashes and idempotency keys stay."""
    from credit_service.erasure import Erasure

    merchant = merchant_named(merchant_id)
    erased = in_ledger(database_url, lambda engine: Erasure(engine).erase(merchant), "write")._asdict()
    if json_:
        show_json({"merchant_id": merchant, **erased})
        return
    for name, count in erased.items():
        show(f"{count:6} {name.replace('_', ' ')}")
