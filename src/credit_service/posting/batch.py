"""Deciding a batch: units and what was loaded for them become outcomes and writes. Pure: nothing here waits.

The ledger's rules judge each command (`decide`); this module gives each command the state that the earlier ones left,
and collects what they post.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

from credit_service.ledger.account import Parked, Transaction
from credit_service.ledger.decide import Needs, Outcome, Replayed, State, Waiting, decide
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from credit_service.ledger.types import TRIAL
from credit_service.posting.submission import Decided, RefusedAt, Submission, Unit
from credit_service.storage.engine import Loaded, Record, Writes

Lost = Mapping[tuple[Submission, int, int, bytes | None], Posted]
"""Postings of attempts whose commit had no answer, by submission, position, index and the hash of the transaction."""


def decide_batch(units: Sequence[Unit], loaded: Loaded, policy: Policy) -> tuple[list[Decided], Writes]:
    """Decide units in their order; each sees what the earlier ones post. Returns also all that is to be written."""
    writes = Writes()
    return [() if unit.submission.given_up else _decide(unit, loaded, policy, writes) for unit in units], writes


def _decide(unit: Unit, loaded: Loaded, policy: Policy, writes: Writes) -> Decided:
    if unit.rehearsal:
        return _rehearse(unit, loaded, policy)
    record = loaded.records[unit.commands[0].merchant_id]
    if len(unit.commands) == 1:
        outcome = decide(_state(record, unit.needs[0], loaded.now), unit.commands[0], policy, loaded.now)
        if (posted := _posting(outcome)) is not None:
            _learn(record, posted)
            _note(writes, posted)
        return (outcome,)
    return _decide_atomic(unit, record, loaded, policy, writes)


def _rehearse(unit: Unit, loaded: Loaded, policy: Policy) -> Sequence[Outcome]:
    trials = {command.merchant_id: loaded.records[command.merchant_id].copy() for command in unit.commands}
    outcomes: list[Outcome] = []
    for command, need in zip(unit.commands, unit.needs, strict=True):
        trial = trials[command.merchant_id]
        outcome = decide(_state(trial, need, loaded.now), command, policy, loaded.now)
        if (posted := _posting(outcome)) is not None:
            _learn(trial, posted)
        outcomes.append(outcome)
    return outcomes


def _decide_atomic(unit: Unit, record: Record, loaded: Loaded, policy: Policy, writes: Writes) -> Decided:
    # To undo is to drop values: the unit learns on a copy, and only a unit that is posted whole is kept.
    trial = record.copy()
    outcomes: list[Outcome] = []
    whole: list[Posted] = []
    for index, (command, need) in enumerate(zip(unit.commands, unit.needs, strict=True)):
        outcome = decide(_state(trial, need, loaded.now), command, policy, loaded.now)
        if isinstance(outcome, Refused):
            return RefusedAt(index, outcome)
        outcomes.append(outcome)
        if (posted := _posting(outcome)) is not None:
            _learn(trial, posted)
            whole.append(posted)
    for posted in whole:
        _learn(record, posted)
        _note(writes, posted)
    return outcomes


def _state(record: Record, need: Needs, now: int) -> State:
    return State(
        record.account,
        record.grants,
        record.number,
        record.firsts.get(need.key),
        record.trial if need.trial else None,
        record.parked.get(need.key),
        None if need.source is None else record.firsts.get(need.source),
        None if need.source is None else record.given_back.get(need.source),
        record.known_grants,
        _by_arrival(parked for parked in record.parked.values() if parked.waits_for == need.key)
        if record.parked and need.awaited
        else (),
        _by_arrival(parked for parked in record.parked.values() if parked.until <= now)
        if record.parked and need.overdue
        else (),
    )


def _by_arrival(some: Iterable[Parked]) -> tuple[Parked, ...]:
    # Refunds that arrived at one instant come by key, so that the order is the same in one batch as after a restart.
    return tuple(sorted(some, key=attrgetter("arrived_at", "key")))


def _posting(outcome: Outcome) -> Posted | None:
    """What an outcome writes, if anything."""
    posted = outcome.posted if isinstance(outcome, Waiting) else outcome
    return posted if isinstance(posted, Posted) else None


def _learn(record: Record, posted: Posted) -> None:
    """Bring the record up to date for the next command."""
    record.account = posted.account
    record.grants = posted.grants
    record.known_grants.update(posted.changed_grants)
    for transaction in posted.transactions:
        record.firsts[transaction.key] = transaction
        if transaction.type == TRIAL:
            record.trial = transaction
    for given in posted.given_back:
        record.given_back[given.key] = given
    for key in posted.unparked:
        del record.parked[key]
    if posted.parked is not None:
        record.parked[posted.parked.key] = posted.parked


def _note(writes: Writes, posted: Posted) -> None:
    """Add a posting to the writes."""
    number = posted.account.number
    writes.accounts[number] = posted.account
    writes.transactions += posted.transactions
    writes.announcements += [(number, announcement) for announcement in posted.announcements]
    for grant in posted.changed_grants.values():
        writes.grants[number, grant.number] = grant
    for given in posted.given_back:
        writes.given_back[number, given.key] = given
    for key in posted.unparked:
        if writes.parked.pop((number, key), None) is None:  # else the database does not have it yet
            writes.unparked.append((number, key))
    if posted.parked is not None:
        writes.parked[number, posted.parked.key] = posted.parked
    writes.dead_letters += [(number, letter) for letter in posted.dead_letters]


def lost_postings(units: Sequence[Unit], decided: Sequence[Decided]) -> Lost:
    """What an attempt posted, if its commit reached the database although its answer was lost."""
    return {
        (unit.submission, unit.position, index, _hash(outcome.transaction)): outcome
        for unit, outcomes in zip(units, decided, strict=False)
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, Posted) and not unit.rehearsal
    }


def as_first_posted(units: Sequence[Unit], decided: Sequence[Decided], lost: Lost) -> tuple[list[Decided], Writes]:
    """Answer what a lost attempt had committed as posted, where its keys now replay.

    Returns also the writes of that attempt, which no listener has seen yet.
    """
    answers: list[Decided] = []
    recovered = Writes()
    for unit, outcomes in zip(units, decided, strict=True):
        first = [
            lost.get((unit.submission, unit.position, index, _hash(outcome.first)))
            if isinstance(outcome, Replayed)
            else None
            for index, outcome in enumerate(outcomes)
        ]
        for posted in first:
            if posted is not None:
                _note(recovered, posted)
        answers.append(
            outcomes
            if isinstance(outcomes, RefusedAt)
            else [posted or outcome for posted, outcome in zip(first, outcomes, strict=True)]
        )
    return answers, recovered


def _hash(transaction: Transaction | None) -> bytes | None:
    return None if transaction is None else transaction.hash
