"""`credit-service keys`: make, list and revoke API keys, also beside a running service."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from credit_service.cli.common import DatabaseUrl, Json, in_ledger, show, show_json, wrong

if TYPE_CHECKING:
    from credit_service.storage.engine import Engine

keys = typer.Typer(
    name="keys", help="Make, list and revoke API keys, also beside a running service.", rich_markup_mode=None
)
_LONGEST_NAME = 100


class Scope(StrEnum):
    """What a key allows; each includes those before it."""

    STATUS = "status"
    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@keys.command()
def create(
    name: Annotated[str, typer.Option(help="What the key is for, to recognise it by.")],
    scope: Annotated[Scope, typer.Option(help="What it allows; each includes those before it.")],
    expires_at: Annotated[
        str | None, typer.Option(help="From when it is no longer valid, like 2027-01-01T00:00:00Z.")
    ] = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Make an API key and print it, alone. It is shown this once: only its hash is kept."""
    from credit_service.doors.http.keys import new_key
    from credit_service.storage.keys import Keys

    async def add(engine: "Engine") -> str:
        now = await engine.now()
        if expiry is not None and expiry <= now:
            raise wrong("--expires-at lies in the past.")
        made = new_key(name, scope, now, expiry)
        await Keys(engine).add(made.key)
        return made.whole

    if not 1 <= len(name) <= _LONGEST_NAME:
        raise wrong(f"--name: a name has 1 to {_LONGEST_NAME} characters.")
    expiry = _instant(expires_at)
    show(in_ledger(database_url, add, "write", create=True))


@keys.command(name="list")
def list_(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """List the API keys, newest first. The keys themselves cannot be shown again."""
    from credit_service.messages.shapes import api_key
    from credit_service.storage.keys import Keys

    shapes = [api_key(key) for key in in_ledger(database_url, lambda engine: Keys(engine).all())]
    if json_:
        show_json(shapes)
        return
    for one in shapes:
        ends = "revoked" if one["revoked_at"] else f"expires {one['expires_at'] or 'never'}"
        show(f"{one['id']}  {one['scope']:5}  {one['created_at']}  {ends}  {one['name']}")


@keys.command()
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of the key, as listed: the part after cs_.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke an API key for good."""
    from credit_service.storage.keys import Keys

    async def revoked(engine: "Engine") -> bool:
        return await Keys(engine).revoke(id_, await engine.now())

    if not in_ledger(database_url, revoked, "write"):
        raise wrong(f"{id_}: there is no API key of this id.")
    show(f"{id_} is revoked.")


def _instant(text: str | None) -> int | None:
    import re

    from credit_service.messages.fields import parse_time
    from credit_service.messages.patterns import SENTENCES, TIME

    if text is None:
        return None
    if not re.fullmatch(TIME, text):
        raise wrong(f"--expires-at: {SENTENCES[TIME]}")
    try:
        return parse_time(text)
    except ValueError as error:
        raise wrong(f"--expires-at: {error}") from None
