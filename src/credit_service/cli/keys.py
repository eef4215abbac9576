"""`credit-service keys`: make, list and revoke API keys while no service runs."""

import asyncio
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from credit_service.cli.common import DatabaseUrl, Json, opened, settings_of, show, show_json, wrong

if TYPE_CHECKING:
    from credit_service.settings import Settings
    from credit_service.storage.keys import ApiKey

keys = typer.Typer(
    help="Make, list and revoke API keys, also beside a running service.",
    rich_markup_mode=None,
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
    settings = settings_of(database_url=database_url)
    if not 1 <= len(name) <= _LONGEST_NAME:
        raise wrong(f"--name: a name has 1 to {_LONGEST_NAME} characters.")
    show(asyncio.run(_create(settings, name, scope, _instant(expires_at))))


@keys.command(name="list")
def list_(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """List the API keys, newest first. The keys themselves cannot be shown again."""
    from credit_service.messages import shapes

    found = asyncio.run(_list(settings_of(database_url=database_url)))
    if json_:
        show_json([shapes.api_key(key) for key in found])
        return
    for key in found:
        shape = shapes.api_key(key)
        ends = "revoked" if key.revoked_at is not None else f"expires {shape['expires_at'] or 'never'}"
        show(f"{key.id}  {key.scope:5}  {shape['created_at']}  {ends}  {key.name}")


@keys.command()
def revoke(
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of the key, as listed: the part after cs_.")],
    database_url: DatabaseUrl = None,
) -> None:
    """Revoke an API key for good."""
    if not asyncio.run(_revoke(settings_of(database_url=database_url), id_)):
        raise wrong(f"{id_}: there is no API key of this id.")
    show(f"{id_} is revoked.")


async def _create(settings: "Settings", name: str, scope: str, expires_at: int | None) -> str:
    from credit_service.doors.http.keys import new_key
    from credit_service.storage.keys import Keys

    async with opened(settings, "write", create=True) as engine:
        kept = Keys(engine)
        now = await kept.now()
        if expires_at is not None and expires_at <= now:
            raise wrong("--expires-at lies in the past.")
        made = new_key(name, scope, now, expires_at)
        await kept.add(made.key)
        return made.whole


async def _list(settings: "Settings") -> "list[ApiKey]":
    from credit_service.storage.keys import Keys

    async with opened(settings) as engine:
        return await Keys(engine).all()


async def _revoke(settings: "Settings", id_: str) -> bool:
    from credit_service.storage.keys import Keys

    async with opened(settings, "write") as engine:
        return await Keys(engine).revoke(id_, await engine.now())


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
