"""`credit-service dead-letters`: events that could not be applied, to look at and to try again."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from credit_service.cli.common import (
    DatabaseUrl,
    Json,
    ReplayUrl,
    ServiceKey,
    checked_key,
    opened,
    say,
    settings_of,
    show,
    show_json,
    wrong,
)
from credit_service.cli.replay import Tally

if TYPE_CHECKING:
    from credit_service.cli.sources import Entry, Result
    from credit_service.cli.targets import Target
    from credit_service.doors.jetstream.reading import EventReader
    from credit_service.doors.jetstream.subjects import Subjects
    from credit_service.doors.shopify_inbox import Inbox
    from credit_service.posting import Posting
    from credit_service.settings import Settings
    from credit_service.storage.letters import Letter, LetterQuery, Letters

dead_letters = typer.Typer(
    help="Events that came in and could not be applied: look at them, and replay them.", rich_markup_mode=None
)
_PATIENCE_SECONDS = 60.0
_PAGE = 200

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

    async def found() -> "list[Letter]":
        async with opened(settings) as engine:
            return await Letters(engine).page(about(code, subject, unreplayed=unreplayed), before, limit)

    settings = settings_of(database_url=database_url)
    shapes = [shape(letter) for letter in asyncio.run(found())]
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

    async def found() -> "Letter | None":
        async with opened(settings) as engine:
            return await Letters(engine).get(id_)

    settings = settings_of(database_url=database_url)
    letter = asyncio.run(found())
    if letter is None:
        raise _unknown(id_)
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
    from credit_service.messages.dead_letters import about

    if bool(ids) == every:
        raise wrong("Say which dead letters to replay: their numbers, or --all.")
    if ids and (code or subject):
        raise wrong("--code and --subject choose among all; say --all with them.")
    service_key = "" if url is None else checked_key(key)
    tally = Tally("dead letter")
    wanted = about(code, subject, unreplayed=True)
    asyncio.run(_replay(settings_of(database_url=database_url), ids or [], wanted, url, service_key, tally))
    show_json(tally.shape()) if json_ else show(tally.sentence())
    if tally.outcomes["refused"]:
        raise typer.Exit(1)


def _unknown(id_: int) -> typer.Exit:
    return wrong(f"{id_}: there is no dead letter of this number.")


async def _replay(
    settings: "Settings", ids: list[int], query: "LetterQuery", url: str | None, key: str, tally: Tally
) -> None:
    from credit_service.cli.sources import ACTOR, Entry
    from credit_service.cli.targets import Stopped, posting_into
    from credit_service.doors.jetstream.reading import EventReader
    from credit_service.doors.jetstream.subjects import Subjects
    from credit_service.doors.shopify_inbox import SUBJECT, Inbox
    from credit_service.erasure import Erasure
    from credit_service.observability import Metrics
    from credit_service.storage.letters import Letters
    from credit_service.storage.shops import Shops

    subjects = Subjects(settings.remapped_subjects)
    reader = EventReader(subjects, settings, ACTOR)
    async with (
        opened(settings, "write") as engine,
        posting_into(engine, settings) as posting,
        _target(posting, url, key) as target,
    ):
        letters = Letters(engine)
        inbox = Inbox(Shops(engine), letters, Erasure(engine), posting, settings, Metrics())
        try:
            for id_ in ids or await _every(letters, query):
                letter = await letters.get(id_)
                if letter is None:
                    raise _unknown(id_)
                if (letter.subject or "").startswith(SUBJECT):
                    entry, results = Entry(id_, b"", ()), [await _delivered(inbox, letter)]
                else:
                    entry = _entry(letter, subjects, reader)
                    results = (await target.send([entry]))[0] if entry.result is None else [entry.result]
                tally.count(entry, results)
                if all(result.outcome != "refused" for result in results):
                    await letters.mark_replayed(id_, await letters.now())
        except Stopped as error:
            say(f"{error} Stopped ({tally.sentence()}); the same command goes on from here.")
            raise typer.Exit(1) from None


async def _every(letters: "Letters", query: "LetterQuery") -> list[int]:
    """The numbers of all that match, oldest first; what is put aside from now on is not among them."""
    found: list[int] = []
    while page := await letters.page(query, found[-1] if found else None, _PAGE):
        found += [letter.id for letter in page]
    return found[::-1]


@asynccontextmanager
async def _target(posting: "Posting", url: str | None, key: str) -> AsyncIterator["Target"]:
    """Where to apply events: to a service by HTTP, else straight into the database."""
    from credit_service.cli.targets import HttpTarget, StoreTarget, client

    if url is None:
        yield StoreTarget(posting)
        return
    async with client() as connection:
        yield HttpTarget(connection, url, key, _PATIENCE_SECONDS)


async def _delivered(inbox: "Inbox", letter: "Letter") -> "Result":
    """What becomes of a delivery of Shopify's, which is no event and always applied straight."""
    from credit_service.cli.sources import Result
    from credit_service.cli.targets import Stopped
    from credit_service.messages.faults import Invalid
    from credit_service.posting import DeadlineExceeded, Overloaded
    from credit_service.storage.engine import StorageError

    try:
        taken = await inbox.replay(letter.original or b"{}")
    except Invalid as error:
        return Result("refused", "validation_failed", str(error))
    except (StorageError, DeadlineExceeded, Overloaded) as error:
        raise Stopped(str(error) or "The database is too slow.") from None
    # An erasure is done by the service, a moment later; what means nothing any more is done with.
    outcome = {"noted": "parked", "ignored": "skipped"}.get(taken.outcome, taken.outcome)
    return Result(outcome, taken.code, taken.reason or "")


def _entry(letter: "Letter", subjects: "Subjects", reader: "EventReader") -> "Entry":
    """The event of a dead letter, as it would be read today."""
    from credit_service.cli.sources import Entry, Result
    from credit_service.doors.jetstream.reading import code_of
    from credit_service.messages.dead_letters import original_of, subject_of
    from credit_service.messages.strict_json import canonical

    original: Any = original_of(letter)
    named = subjects.named(subject_of(letter))
    if named is None:
        sentence = f"{subject_of(letter)} is no subject of events that come in (NATS_SUBJECTS)."
        return Entry(letter.id, original, (), Result("refused", "event_type_unknown", sentence))
    read = reader.read(named, original)
    if read.invalid is not None:
        return Entry(letter.id, original, (), Result("refused", code_of(read.invalid), str(read.invalid)))
    if named.base != named.type:  # which only the door that it came by knows
        original = canonical(reader.value(named, original)).encode()
    return Entry(letter.id, original, read.commands)
