"""The hash chain of an account, and the verification of its books (L15).

With an account's transactions, anyone can recompute every balance, grant and hash. `docs/proof.md` has the canonical
form and test vectors. Personal data enters the chain only as one salted hash, so that the chain still verifies after an
erasure. Storage erases; this module only hashes and verifies.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

from credit_service.ledger import addresses
from credit_service.ledger.account import GENESIS, Account, Draw, Grant, Transaction, TypeTotal
from credit_service.ledger.types import EXPIRY, INCREASE, VOID


def personal_hash(metadata: str | None, salt: bytes | None) -> bytes | None:
    """SHA-256 of the salt and the personal part of a transaction; None if there is no personal part.

    This is the only hash over personal data: the chain uses it, and so does the comparison of repeats (L3). Erasure
    deletes the random salt; without it, guessing cannot find the data (L15). `metadata`: canonical JSON.
    """
    return None if metadata is None else sha256((salt or b"") + b'{"metadata":%b}' % metadata.encode()).digest()


def is_repeat(first: Transaction, content: bytes, metadata: str | None) -> bool:
    """Whether a request with this content and metadata repeats `first` (L3); an erased part is not compared."""
    if first.content != content:
        return False
    return is_erased(first) or first.personal_hash == personal_hash(metadata, first.salt)


def is_erased(transaction: Transaction) -> bool:
    """Whether the personal part of a transaction is erased."""
    return transaction.personal_hash is not None and transaction.metadata is None and transaction.salt is None


def canonical(fields: tuple[Any, ...]) -> bytes:
    """The bytes that a transaction's hash covers, in form 2: one line for each field, an empty line for an absent one.

    `fields`: the fields of `Transaction` in order, with or without its hash. No field contains a line break: the form
    of ids, numbers and names excludes it, and the doors accept only printable ASCII in the texts of callers.
    """
    (
        account, merchant_id, sequence, operation, type_, amount, shortfall, balance_before, balance_after, debt_after,
        key, content, reference, _metadata, _salt, personal, total_micros, currency, draws, reverses,
        actor, correlation_id, occurred_at, created_at, *_hash,
    ) = fields  # fmt: skip
    transaction_ids = addresses.prefix(account, addresses.TRANSACTION)
    grant_ids = addresses.prefix(account, addresses.GRANT)
    reference_type, reference_id = reference or ("", "")
    changes = ",".join([f"{grant_ids}{number:012x}:{change}" for number, change in draws])
    return (
        f"credit-service/2\n{transaction_ids}{sequence:012x}\n{merchant_id}\n{sequence}\n"
        f"{operation}\n{type_}\n{amount}\n{shortfall}\n{balance_before}\n{balance_after}\n{debt_after}\n"
        f"{key}\n{content.hex()}\n{reference_type}\n{reference_id}\n{personal.hex() if personal else ''}\n"
        f"{'' if total_micros is None else total_micros}\n{currency or ''}\n{changes}\n"
        f"{'' if reverses is None else reverses}\n{actor}\n{correlation_id or ''}\n{occurred_at}\n{created_at}\n"
    ).encode()


def chain(previous: bytes, fields: tuple[Any, ...]) -> bytes:
    """The hash of a transaction (32 bytes); `previous` is the hash of the transaction before it in its account."""
    return sha256(previous + canonical(fields)).digest()


def own_draws(decrease: Transaction) -> tuple[int, tuple[Draw, ...]]:
    """The uncovered credits of a spend, and its own draws.

    An account in debt has no credits to draw, so after a spend the debt equals the uncovered part, or it exceeds the
    amount.
    """
    uncovered = 0 if decrease.type == VOID else min(decrease.amount, decrease.debt_after)
    return uncovered, _last_draws(decrease, decrease.amount - uncovered)


def _last_draws(decrease: Transaction, covered: int) -> tuple[Draw, ...]:
    # The draws of a transaction begin with the changes since the transaction before it. Its own come last.
    first = len(decrease.draws)
    while covered > 0 and first:  # a forged transaction has any draws
        first -= 1
        _, change = decrease.draws[first]
        covered += change
    return decrease.draws[first:]


class Discrepancy(NamedTuple):
    """A contradiction in an account's books, and the sequence of the transaction that shows it, if one does."""

    sequence: int | None
    sentence: str


def verify(account: Account, grants: Iterable[Grant], transactions: Iterable[Transaction]) -> Iterator[Discrepancy]:
    """Recompute one account's chain, sums, grants and debt from its transactions, and return all contradictions.

    `grants`: all grants of the account, also the spent ones. `transactions`: all of them, by sequence.
    """
    remaining: dict[int, int] = {}
    gone: dict[int, int] = {}
    voided: dict[int | None, set[int]] = {}  # the grants of each VOID
    last: Transaction | None = None
    by_type: dict[str, TypeTotal] = {}
    previous_hash = GENESIS
    for transaction in transactions:
        yield from _check(transaction, last, previous_hash)
        count, added, taken = by_type.get(transaction.type, (0, 0, 0))
        if transaction.operation == INCREASE:
            added += transaction.amount
        else:
            taken += transaction.amount
        by_type[transaction.type] = (count + 1, added, taken)
        _draw(remaining, transaction.draws)
        if transaction.type in (EXPIRY, VOID):
            for number, change in _last_draws(transaction, transaction.amount):
                gone[number] = gone.get(number, 0) - change
                if transaction.type == VOID:
                    voided.setdefault(transaction.sequence, set()).add(number)
        for number, change in transaction.draws if transaction.reverses in voided else ():
            if change > 0 and number in voided[transaction.reverses]:
                gone[number] -= change
        if any(left < 0 for left in remaining.values()):
            yield Discrepancy(transaction.sequence, "a grant is drawn below zero")
        if sum(remaining.values()) - transaction.debt_after != transaction.balance_after:
            yield Discrepancy(transaction.sequence, "balance_after is not the open grants less the debt")
        # Spent grants are dropped until credits return to them, so that long histories stay cheap.
        for number, _ in transaction.draws:
            if remaining.get(number) == 0:
                del remaining[number]
        previous_hash = transaction.hash
        last = transaction
    yield from _check_account(account, grants, last, remaining, gone, by_type)


def _draw(remaining: dict[int, int], draws: Iterable[Draw]) -> None:
    for number, change in draws:
        remaining[number] = remaining.get(number, 0) + change


def _check(transaction: Transaction, last: Transaction | None, previous_hash: bytes) -> Iterator[Discrepancy]:
    sequence = transaction.sequence
    expected_sequence, balance, created_at = (
        (last.sequence + 1, last.balance_after, last.created_at) if last else (1, 0, transaction.created_at)
    )
    if sequence != expected_sequence:
        yield Discrepancy(sequence, f"sequence {expected_sequence} is missing")
    if transaction.hash != chain(previous_hash, transaction):
        yield Discrepancy(sequence, "the hash does not match the transaction and its predecessor")
    if transaction.balance_before != balance:
        yield Discrepancy(sequence, "balance_before is not the previous balance_after")
    signed = transaction.amount if transaction.operation == INCREASE else -transaction.amount
    if transaction.balance_after != transaction.balance_before + signed:
        yield Discrepancy(sequence, "balance_after is not balance_before and the amount")
    if transaction.created_at < created_at:
        yield Discrepancy(sequence, "created_at lies before the previous transaction")
    personal = personal_hash(transaction.metadata, transaction.salt)
    if not is_erased(transaction) and transaction.personal_hash != personal:
        yield Discrepancy(sequence, "the metadata does not match its hash")


def _check_account(
    account: Account,
    grants: Iterable[Grant],
    last: Transaction | None,
    remaining: dict[int, int],
    gone: Mapping[int, int],
    by_type: Mapping[str, TypeTotal],
) -> Iterator[Discrepancy]:
    # A grant that begins pays debt without a transaction. The account carries those draws until the next one.
    debt = (last.debt_after if last else 0) + sum(change for _, change in account.carried)
    _draw(remaining, account.carried)
    increases = sum(added for _, added, _ in by_type.values())
    decreases = sum(taken for _, _, taken in by_type.values())
    open_grants: list[Grant] = []
    lost: dict[int, int] = {}
    for grant in grants:
        if grant.remaining:
            open_grants.append(grant)
        if grant.gone:
            lost[grant.number] = grant.gone
    pending = sum(grant.remaining for grant in open_grants if grant.effective_at > account.settled_at)
    expected = {
        "sequence": (account.sequence, last.sequence if last else 0),
        "balance": (account.balance, increases - decreases),
        "pending": (account.pending, pending),
        "total_increases": (account.total_increases, increases),
        "total_decreases": (account.total_decreases, decreases),
        "by_type": (account.by_type, by_type),
        "debt": (account.debt, debt),
        "hash": (account.last_hash, last.hash if last else GENESIS),
    }
    for name, (stored, computed) in expected.items():
        if stored != computed:
            yield Discrepancy(None, f"the account's {name} is not what its transactions and grants say")
    stored_grants = {grant.number: grant.remaining for grant in open_grants}
    if stored_grants != {number: left for number, left in remaining.items() if left}:
        yield Discrepancy(None, "the grants are not what the transactions drew")
    if lost != {number: credits for number, credits in gone.items() if credits}:
        yield Discrepancy(None, "the grants did not lose what expired or was voided")
