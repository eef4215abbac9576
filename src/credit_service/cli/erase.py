"""`credit-service erase`: erase the personal data of a merchant."""

import asyncio
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from credit_service.cli.common import DatabaseUrl, Json, opened, settings_of, show, show_json, wrong

if TYPE_CHECKING:
    from credit_service.erasure import Erased
    from credit_service.settings import Settings


def erase(
    merchant_id: Annotated[str, typer.Argument(metavar="MERCHANT_ID", help="The merchant whose data is erased.")],
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Erase a merchant's personal data for good; balances, hashes and idempotency keys stay."""
    try:
        merchant = UUID(merchant_id)
    except ValueError:
        raise wrong(f"{merchant_id} is not a UUID.") from None
    erased = asyncio.run(_erase(settings_of(database_url=database_url), merchant))
    if json_:
        show_json({"merchant_id": str(merchant), **erased._asdict()})
        return
    for name, count in erased._asdict().items():
        show(f"{count:6} {name.replace('_', ' ')}")


async def _erase(settings: "Settings", merchant_id: UUID) -> "Erased":
    from credit_service.erasure import Erasure
    from credit_service.storage.engine import StorageError

    async with opened(settings, "write") as engine:
        try:
            return await Erasure(engine).erase(merchant_id)
        except StorageError as error:
            raise wrong(str(error)) from None
