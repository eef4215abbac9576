"""`credit-service dead-letters`: events that could not be applied, to look at and to try again."""

import asyncio
import json
from typing import Annotated

import typer

from credit_service.cli.common import (
    DatabaseUrl,
    Json,
    ReplayUrl,
    ServiceKey,
    checked_key,
    in_ledger,
    settings_of,
    show,
    show_json,
    wrong,
)

dead_letters = typer.Typer(
    name="dead-letters",
    help="Events that came in and could not be applied: look at them, and replay them.",
    rich_markup_mode=None,
)

Code = Annotated[str | None, typer.Option(help="Only those with this code, like validation_failed.")]
Subject = Annotated[str | None, typer.Option(help="Only those of events that were sent to this subject.")]
Id = Annotated[int, typer.Argument(metavar="ID", help="The number of the dead letter, as listed.", min=1)]


@dead_letters.command(name="list")
def list_(
    code: Code = None,
    subject: Subject = None,
    unreplayed: Annotated[bool, typer.Option("--unreplayed", help="Only those that were not replayed yet.")] = False,
    before: Annotated[int | None, typer.Option(help="Only those before this number: the next page.", min=1)] = None,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 100,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """List them, newest first."""
    from credit_service.messages.dead_letters import about, shape
    from credit_service.storage.letters import Letters

    query = about(code, subject, unreplayed=unreplayed)
    found = in_ledger(database_url, lambda engine: Letters(engine).page(query, before, limit))
    shapes = [shape(letter) for letter in found]
    if json_:
        show_json(shapes)
        return
    for one in shapes:
        done = "  (replayed)" if one["replayed_at"] else ""
        show(f"{one['id']}  {one['received_at']}  {one['code']}  {one['subject']}{done}  {one['reason']}")


@dead_letters.command(name="show")
def show_(id_: Id, json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """Show one, with the event as it came in."""
    from base64 import b64encode

    from credit_service.messages.dead_letters import original_of, readable, shape
    from credit_service.storage.letters import Letters

    letter = in_ledger(database_url, lambda engine: Letters(engine).get(id_))
    if letter is None:
        raise wrong(f"{id_}: there is no dead letter of this number.")
    original = original_of(letter)
    if json_:
        show_json({**shape(letter), "original": b64encode(original).decode()})
        return
    for name, value in shape(letter).items():
        show(f"{name}: {'-' if value is None else value}")
    event = readable(original)
    show("")
    for line in [event] if isinstance(event, str) else json.dumps(event, indent=2, ensure_ascii=False).split("\n"):
        show(line)


@dead_letters.command()
def replay(
    ids: Annotated[list[int] | None, typer.Argument(metavar="[ID]...", help="Which ones, as listed.", min=1)] = None,
    every: Annotated[bool, typer.Option("--all", help="All that were not replayed yet.")] = False,
    code: Code = None,
    subject: Subject = None,
    url: ReplayUrl = None,
    key: ServiceKey = None,
    json_: Json = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Apply dead letters, oldest first, once their cause is fixed. Exit code 1 if some are refused again.

    Nothing counts twice, however often it is replayed. This also works beside a running service.
    """
    from credit_service.cli.replaying import Tally, apply_letters
    from credit_service.cli.targets import Stopped
    from credit_service.messages.dead_letters import about

    if bool(ids) == every:
        raise wrong("Say which dead letters to replay: their numbers, or --all.")
    if ids and (code or subject):
        raise wrong("--code and --subject choose among all; say --all with them.")
    service_key = "" if url is None else checked_key(key)
    settings, wanted = settings_of(database_url=database_url), about(code, subject, unreplayed=True)
    tally = Tally("dead letter")
    try:
        asyncio.run(apply_letters(settings, ids, wanted, url, service_key, tally))
    except Stopped as error:
        raise tally.stopped(error) from None
    show_json(tally.shape()) if json_ else show(tally.sentence())
    if tally.outcomes["refused"]:
        raise typer.Exit(1)
