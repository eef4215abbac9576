"""How `replay` and `dead-letters replay` post events and count the outcomes. Imported when one of them runs."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import typer
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from credit_service.cli.common import opened, progress, say, wrong
from credit_service.cli.sources import ACTOR, Entry, Result, Source, Unreadable
from credit_service.cli.targets import Stopped, StoreTarget, Target, posting_into, service_at
from credit_service.doors.jetstream.reading import EventReader, code_of
from credit_service.doors.jetstream.subjects import Subjects
from credit_service.doors.shopify_inbox import SUBJECT, Inbox
from credit_service.erasure import Erasure
from credit_service.ledger.policy import Policy
from credit_service.messages.dead_letters import original_of, subject_of
from credit_service.messages.faults import Invalid
from credit_service.messages.strict_json import canonical
from credit_service.observability import Metrics
from credit_service.posting import DeadlineExceeded, Overloaded
from credit_service.settings import Settings
from credit_service.storage.engine import StorageError
from credit_service.storage.letters import Letter, LetterQuery, Letters
from credit_service.storage.shops import Shops

_BATCH = 1_000
_BATCH_BYTES = 900_000  # the service takes 1 MiB at once
_PAGE = 200
_PATIENCE_SECONDS = 60.0
_INSTEAD = "Replay into that one: --url http://… --key cs_…"


class Tally:
    """Counts the outcomes of lines, or of dead letters."""

    def __init__(self, noun: str = "line") -> None:
        self._noun = noun
        self.read = 0
        self.outcomes: Counter[str] = Counter()
        self.codes: Counter[str] = Counter()

    def count(self, entry: Entry, results: list[Result]) -> None:
        """Count a line. An event of several orders has a result for each."""
        self.read += 1
        for outcome, code, reason in results:
            self.outcomes[outcome] += 1
            if code is not None:
                self.codes[code] += 1
                say(f"{self._noun} {entry.number}: {code}: {reason}")

    def shape(self) -> dict[str, Any]:
        names = ("posted", "replayed", "parked", "refused", "skipped")
        return {"read": self.read} | {name: self.outcomes[name] for name in names} | {"by_code": dict(self.codes)}

    def sentence(self) -> str:
        """As a line for a person."""
        counts = {name: count for name, count in self.shape().items() if isinstance(count, int)}
        codes = "".join(f"; {code}: {count:,}" for code, count in sorted(self.codes.items()))
        return ", ".join(f"{count:,} {name}" for name, count in counts.items()) + codes

    def stopped(self, why: Exception) -> typer.Exit:
        """Say that the replay stops before its end; raise the result to end with exit code 1."""
        say(f"{why} Stopped ({self.sentence()}); the same command goes on from here.")
        return typer.Exit(1)


async def into_ledger(source: Source, tally: Tally, settings: Settings) -> None:
    """Post the events of a file straight into the database. Raises Unreadable and Stopped."""
    async with (
        opened(settings, "alone", _INSTEAD, create=True) as engine,
        posting_into(engine, settings) as posting,
    ):
        await _run(source, settings.policy, StoreTarget(posting), tally)


async def over_http(source: Source, tally: Tally, url: str, key: str, patience: float) -> None:
    """Send the events of a file to a running service. Raises Unreadable and Stopped."""
    async with service_at(url, key, patience) as target:
        prices = await target.prices() if source.is_order_stream else Policy()
        await _run(source, prices, target, tally)


async def _run(source: Source, prices: Policy, target: Target, tally: Tally) -> None:
    """Send all lines in batches; while one is posted, the next is read."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    loop = asyncio.get_running_loop()
    batches = _batches(source, prices)
    with progress(*columns) as bar:
        task = bar.add_task("replaying", total=source.size or None)
        batch = await loop.run_in_executor(None, next, batches, None)
        while batch is not None:
            upcoming = loop.run_in_executor(None, next, batches, None)
            unknown = [entry for entry in batch if entry.result is None]
            answers = iter(await target.send(unknown) if unknown else ())
            for entry in batch:
                tally.count(entry, next(answers) if entry.result is None else [entry.result])
            bar.update(task, completed=source.position, description=f"{tally.read:,} replayed")
            batch = await upcoming


def _batches(source: Source, prices: Policy) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    try:
        for entry in source.entries(prices):
            if len(batch) == _BATCH or (batch and size + len(entry.event) > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += len(entry.event) + 1
    except Unreadable:  # the lines before it count
        yield batch
        raise
    if batch:
        yield batch


async def apply_letters(
    settings: Settings, ids: list[int] | None, query: LetterQuery, url: str | None, key: str, tally: Tally
) -> None:
    """Apply these dead letters, or all that match, in the database or at the service of `url`. Raises Stopped."""
    subjects = Subjects(settings.remapped_subjects)
    reader = EventReader(subjects, settings, ACTOR)
    async with (
        opened(settings, "write") as engine,
        posting_into(engine, settings) as posting,
        nullcontext(StoreTarget(posting)) if url is None else service_at(url, key, _PATIENCE_SECONDS) as target,
    ):
        letters = Letters(engine)
        inbox = Inbox(Shops(engine), letters, Erasure(engine), posting, settings, Metrics())
        for id_ in ids or await _every(letters, query):
            letter = await letters.get(id_)
            if letter is None:
                raise wrong(f"{id_}: there is no dead letter of this number.")
            if (letter.subject or "").startswith(SUBJECT):
                entry, results = Entry(id_, b"", ()), [await _delivered(inbox, letter)]
            else:
                entry = _entry(letter, subjects, reader)
                results = (await target.send([entry]))[0] if entry.result is None else [entry.result]
            tally.count(entry, results)
            if all(result.outcome != "refused" for result in results):
                await letters.mark_replayed(id_, await letters.now())


async def _every(letters: Letters, query: LetterQuery) -> list[int]:
    """The numbers of all that match, oldest first; what is put aside from now on is not among them."""
    found: list[int] = []
    while page := await letters.page(query, found[-1] if found else None, _PAGE):
        found += [letter.id for letter in page]
    return found[::-1]


async def _delivered(inbox: Inbox, letter: Letter) -> Result:
    """What becomes of a delivery of Shopify's, which is no event and always applied straight."""
    try:
        taken = await inbox.replay(letter.original or b"{}")
    except Invalid as error:
        return Result("refused", "validation_failed", str(error))
    except (StorageError, DeadlineExceeded, Overloaded) as error:
        raise Stopped(str(error) or "The database is too slow.") from None
    # An erasure is done by the service, a moment later; what means nothing any more is done with.
    outcome = {"noted": "parked", "ignored": "skipped"}.get(taken.outcome, taken.outcome)
    return Result(outcome, taken.code, taken.reason or "")


def _entry(letter: Letter, subjects: Subjects, reader: EventReader) -> Entry:
    """The event of a dead letter, as it would be read today."""
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
