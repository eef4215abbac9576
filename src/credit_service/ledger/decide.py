"""Decides a command or fact: given an account, a policy and a time, what is the outcome?

`decide` judges in a fixed order (L3): account, key, then existence, state, time, balance, range. Each rule below
receives a draft of the account that is settled up to now (L7). It changes the draft, or returns a refusal.

This file is longer than 400 lines because the rule of every command and fact stands here, in one place to look.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from credit_service.ledger import addresses
from credit_service.ledger.account import (
    CLOSED,
    FROZEN,
    MAX_CREDITS,
    Account,
    DeadLetter,
    GivenBack,
    Grant,
    Parked,
    Plan,
    Reference,
    Transaction,
)
from credit_service.ledger.announcements import ACCOUNT_CREATED, announce_level
from credit_service.ledger.burn_down import pay_debt, spend
from credit_service.ledger.commands import (
    DEFAULT_TERMS,
    UNCHANGED,
    ChangeState,
    ChangeTerms,
    ClawBack,
    Command,
    DisputeClosed,
    Fact,
    GrantTerms,
    OpenAccount,
    OrderPaid,
    OrderRefunded,
    PaymentDisputed,
    PaymentRefunded,
    PaymentSucceeded,
    Post,
    Reverse,
    Settle,
    SubscriptionRenewed,
    TrialStarted,
    VoidGrant,
    source_key,
)
from credit_service.ledger.draft import Draft, Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.pricing import order_price
from credit_service.ledger.proof import is_repeat
from credit_service.ledger.refunds import claw_back, refund_order, reverse
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.ledger.settle import lapse, settle
from credit_service.ledger.types import (
    CONSUMED,
    DECREASE,
    INCREASE,
    MANUAL,
    ORDER_PAID,
    ORDER_REJECTED,
    REFUNDABLE,
    TRIAL,
    TYPES,
    VOID,
    TransactionType,
)


class Needs(NamedTuple):
    """What the storage must load for a command, besides the merchant's account and open grants."""

    merchant_id: Any
    key: str
    source: str | None  # key of the refunded order or payment; with its earlier refunds and the grants it drew on
    awaited: bool  # refunds may wait for this command's key
    trial: bool  # the TRIAL transaction, under any key
    overdue: bool  # the merchant's parked refunds whose wait is over


class State(NamedTuple):
    """Everything that `decide` may need about one merchant."""

    account: Account | None
    grants: tuple[Grant, ...]  # open ones, in burn-down order
    number: int  # of the account, if the command opens it
    first: Transaction | None = None  # the transaction with the command's key
    trial: Transaction | None = None
    parked: Parked | None = None  # the parked refund with the command's key
    source: Transaction | None = None
    given: GivenBack | None = None
    closed: Mapping[int, Grant] = {}  # spent grants of the source
    waiting: tuple[Parked, ...] = ()  # refunds that wait for this command's key, in order of arrival
    overdue: tuple[Parked, ...] = ()


class Replayed(NamedTuple):
    """An outcome: this was done before. `first` is its transaction, None if it needed none.

    `conflicting`: the fact came again with other content. Nothing changes; a metric counts it.
    """

    first: Transaction | None
    conflicting: bool = False


class Waiting(NamedTuple):
    """An outcome: the refund waits for its order or payment. `posted` is what the storage must write, if anything."""

    parked: Parked
    posted: Posted | None


Outcome = Posted | Replayed | Waiting | Refused


def needs(command: Command) -> Needs:
    """What the storage must load before `decide` can judge a command."""
    kind = type(command)
    if isinstance(command, Post):  # nearly every command, so it skips the other checks
        return Needs(command.merchant_id, command.key, None, command.type in REFUNDABLE, False, False)
    return Needs(
        command.merchant_id,
        command.key,
        source_key(command),
        isinstance(command, Fact) and command.type in REFUNDABLE,
        kind in (OpenAccount, TrialStarted),
        kind is Settle,
    )


def decide(state: State, command: Command, policy: Policy, now: int) -> Outcome:
    """Decide one command. Pure: the same arguments always give the same outcome.

    `now`: the database's clock, in microseconds since 1970. The posting is never earlier than the one before it (L2).
    """
    account = state.account
    if account is None and not (command.opens and policy.auto_create) and type(command) is not OpenAccount:
        return Refused(Refusal.ACCOUNT_NOT_FOUND)
    if (seen := _seen_before(state, command)) is not None:
        return seen
    draft = _open(state, command, policy, now) if account is None else _settled(state, account, policy, now)
    if draft.state == CLOSED and isinstance(command, Fact):  # it has happened, and somebody must look at it
        draft.change_state(FROZEN, "A fact came after the account was closed.", command.actor)
    refused = _RULES[type(command)](draft, state, command)
    if refused is not None:
        return refused
    if state.waiting:
        _apply_waiting(draft, state.waiting)
    posted = draft.finish()
    if posted.parked is not None:
        return Waiting(posted.parked, posted)
    if account is not None and _changed_nothing(posted, account):
        return Replayed(None)
    return posted


def _seen_before(state: State, command: Command) -> Replayed | Waiting | Refused | None:
    """The outcome if this key was used before, else None (L3). A parked refund has used its key."""
    first, parked = state.first or state.trial, state.parked
    if first is not None:
        repeated = is_repeat(first, command.content, command.metadata)
        if isinstance(command, Fact):
            repeats = first.type == command.type
            return Replayed(first, conflicting=not repeated) if repeats else Refused(Refusal.KEY_REUSED)
        return Replayed(first) if repeated else Refused(Refusal.KEY_REUSED)
    if parked is not None:
        repeats = isinstance(command, Fact) and command.type == parked.fact.type
        return Waiting(parked, None) if repeats else Refused(Refusal.KEY_REUSED)
    return None


def _open(state: State, command: Command, policy: Policy, now: int) -> Draft:
    account = Account(state.number, command.merchant_id, opened_at=now, settled_at=now)
    draft = Draft(account, (), {}, policy, now, opened=True)
    draft.announce(ACCOUNT_CREATED)
    return draft


def _settled(state: State, account: Account, policy: Policy, now: int) -> Draft:
    draft = Draft(account, state.grants, state.closed, policy, max(now, account.settled_at))
    settle(draft)
    return draft


def _changed_nothing(posted: Posted, account: Account) -> bool:
    return not (
        posted.transactions
        or posted.dead_letters
        or posted.account != account._replace(settled_at=posted.account.settled_at)
    )


# ---- the rules, one for each command and fact


def _post(draft: Draft, state: State, command: Post) -> Refused | None:
    if draft.state == CLOSED:
        return Refused(Refusal.ACCOUNT_CLOSED)
    if draft.state == FROZEN and command.operation == DECREASE and command.type != MANUAL:
        return Refused(Refusal.ACCOUNT_FROZEN)
    if command.operation == INCREASE:
        return _granted(draft, command)
    if draft.available < command.amount:
        detail = {"available": draft.available, "required": command.amount}
        return Refused(Refusal.INSUFFICIENT_CREDITS, detail)
    # Nothing can fail any more: available credits are always within range.
    spend(draft, command.amount)
    draft.own = draft.record(DECREASE, command.type, command.amount, command, reference=command.reference)
    return None


def _granted(draft: Draft, command: Post) -> Refused | None:
    terms = command.terms
    if command.type == TRIAL and draft.trial is not None:
        return Refused(Refusal.TRIAL_ALREADY_GRANTED)
    if terms.expires_at is not None:
        if terms.expires_at <= draft.now:
            return Refused(Refusal.GRANT_ALREADY_EXPIRED, {"pointer": "/grant/expires_at"})
        if terms.effective_at is not None and terms.expires_at <= terms.effective_at:
            return Refused(Refusal.GRANT_NEVER_EFFECTIVE, {"pointer": "/grant/expires_at"})
    return _increase(draft, command.type, command.amount, command, command.reference, terms)


def _increase(
    draft: Draft,
    type_: TransactionType,
    amount: int,
    command: Command,
    reference: Reference | None,
    terms: GrantTerms = DEFAULT_TERMS,
    *,
    shortfall: int = 0,
) -> Refused | None:
    """Post credits as one grant, and pay the debt from it."""
    if not draft.fits(INCREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    category = terms.category or TYPES[type_].category
    effective_at = draft.now if terms.effective_at is None else terms.effective_at
    grant = draft.new_grant(amount, category, terms.priority, effective_at, terms.expires_at) if amount else None
    expired = grant is not None and terms.expires_at is not None and terms.expires_at <= draft.now
    pay_debt(draft)
    draft.own = draft.record(
        INCREASE, type_, amount, command, shortfall=shortfall, reference=reference, level_settles=not expired
    )
    if type_ == TRIAL:
        draft.trial = draft.sequence
    if expired:
        # A fact whose credits have already expired posts them, and they lapse in the same commit.
        lapse(draft, draft.grant(draft.granted), draft.now)
    return None


def _open_account(draft: Draft, state: State, fact: OpenAccount) -> Refused | None:
    if draft.policy.trial_credits:
        return _increase(draft, TRIAL, draft.policy.trial_credits, fact, None)
    return None


def _trial_started(draft: Draft, state: State, fact: TrialStarted) -> Refused | None:
    return _increase(draft, TRIAL, fact.credits, fact, Reference("trial", fact.trial_id))


def _payment_succeeded(draft: Draft, state: State, fact: PaymentSucceeded) -> Refused | None:
    return _increase(draft, fact.type, fact.credits, fact, Reference("payment", fact.payment_id), fact.terms)


def _subscription_renewed(draft: Draft, state: State, fact: SubscriptionRenewed) -> Refused | None:
    amount, plan = fact.credits, draft.plan
    if fact.window is not None:
        amount, plan = _of_window(Plan(*fact.window, fact.credits), draft.plan)
    reference, terms = Reference("subscription", fact.subscription_id), GrantTerms(expires_at=fact.expires_at)
    refused = _increase(draft, fact.type, amount, fact, reference, terms, shortfall=fact.credits - amount)
    draft.plan = plan
    return refused


def _of_window(told: Plan, last: Plan | None) -> tuple[int, Plan]:
    """What a renewal gives whose billing window may overlap the last one, and the plan that is the last one then."""
    if last is None or told.begins >= last.ends:
        return told.credits, told
    if told.ends <= last.begins:  # it comes late
        return told.credits, last
    return max(told.credits - last.credits, 0), last._replace(credits=max(told.credits, last.credits))


def _order_paid(draft: Draft, state: State, fact: OrderPaid) -> Refused | None:
    price = order_price(draft.policy, fact.total_micros) if fact.credits is None else fact.credits
    amount, announcement = (price, CONSUMED) if price <= max(draft.available, 0) else _not_covered(draft, price)
    if price > MAX_CREDITS or not draft.fits(DECREASE, amount):
        return Refused(Refusal.OUT_OF_RANGE)
    # Nothing can fail any more.
    spend(draft, amount)
    draft.own = draft.record(
        DECREASE,
        ORDER_PAID,
        amount,
        fact,
        shortfall=price - amount,
        reference=Reference("order", fact.order_id),
        total_micros=fact.total_micros,
        currency=fact.currency,
        announcement=announcement,
    )
    return None


def _not_covered(draft: Draft, price: int) -> tuple[int, str]:
    """The amount and the announcement of an order that the available credits do not cover (L5)."""
    account, available = draft.account, draft.available
    match account.when_insufficient or draft.policy.when_insufficient:
        case "partial":
            return max(available, 0), CONSUMED
        case "reject":
            return 0, ORDER_REJECTED
        case _:
            limit = account.overdraft_limit
            return (price, CONSUMED) if limit is None or available - price >= -limit else (0, ORDER_REJECTED)


def _order_refunded(draft: Draft, state: State, fact: OrderRefunded) -> Refused | None:
    if fact.order_id is None:
        return _increase(draft, fact.type, fact.credits or 0, fact, Reference("refund", fact.refund_id))
    return _give_back(draft, state, fact)


def _give_back(draft: Draft, state: State, fact: OrderRefunded | ClawBack) -> Refused | None:
    source = state.source
    if source is None or source.type not in fact.source_types:
        waits_for = source_key(fact)
        assert waits_for is not None
        draft.parked = Parked(fact.key, waits_for, draft.now + draft.policy.refund_wait, draft.now, fact)
        return None
    result = _refund(draft, fact, source, state.given)
    if isinstance(result, Refused):
        return result
    draft.own = result
    return None


def _refund(
    draft: Draft, fact: OrderRefunded | ClawBack, source: Transaction, given: GivenBack | None
) -> Transaction | Refused:
    given = given or GivenBack(source.key)
    if isinstance(fact, OrderRefunded):
        return refund_order(draft, fact, source, given)
    return claw_back(draft, fact, source, given)


def _apply_waiting(draft: Draft, waiting: tuple[Parked, ...]) -> None:
    """Apply the refunds that waited for the order or payment just posted, in its own commit (L8)."""
    source = draft.own
    assert source is not None
    # A payment may have the natural key of an order.
    for parked in [one for one in waiting if source.type in one.fact.source_types]:
        if parked.until <= draft.now:
            _give_up(draft, parked)
            continue
        draft.unparked.append(parked.key)
        result = _refund(draft, parked.fact, source, draft.given_back.get(source.key))
        if isinstance(result, Refused):
            _dead_letter(draft, parked, result.refusal)


def _settle(draft: Draft, state: State, command: Settle) -> Refused | None:
    for parked in state.overdue:
        _give_up(draft, parked)
    return None


def _give_up(draft: Draft, parked: Parked) -> None:
    """Turn a refund whose wait is over into a dead letter."""
    draft.unparked.append(parked.key)
    of_payment = isinstance(parked.fact, ClawBack)
    _dead_letter(draft, parked, Refusal.PAYMENT_UNKNOWN if of_payment else Refusal.ORDER_UNKNOWN)


def _dead_letter(draft: Draft, parked: Parked, refusal: Refusal) -> None:
    draft.dead_letters.append(DeadLetter(refusal.code, refusal.sentence, draft.now, parked.fact))


def _change_terms(draft: Draft, state: State, command: ChangeTerms) -> Refused | None:
    if draft.state == CLOSED:
        return Refused(Refusal.ACCOUNT_CLOSED)
    low_threshold, when_insufficient, overdraft_limit = draft.terms
    if command.low_threshold is not UNCHANGED:
        low_threshold = command.low_threshold
    if command.when_insufficient is not UNCHANGED:
        when_insufficient = command.when_insufficient
    if command.overdraft_limit is not UNCHANGED:
        overdraft_limit = command.overdraft_limit
    draft.terms = (low_threshold, when_insufficient, overdraft_limit)
    threshold = draft.policy.default_threshold if low_threshold is None else low_threshold
    if threshold != draft.threshold:
        draft.threshold = threshold
        announce_level(draft, threshold_moved=True)
    return None


def _void_grant(draft: Draft, state: State, command: VoidGrant) -> Refused | None:
    address = addresses.parse(command.grant_id)
    if address is None or address[:2] != (draft.account.number, addresses.GRANT):
        return Refused(Refusal.GRANT_NOT_FOUND)
    if not 1 <= address.number <= draft.granted:
        return Refused(Refusal.GRANT_NOT_FOUND)
    if draft.state == CLOSED:
        return Refused(Refusal.ACCOUNT_CLOSED)
    grant = next((grant for grant in draft.grants if grant.number == address.number), None)
    remaining = 0 if grant is None else grant.remaining
    amount = max(remaining, 1) if command.amount is None else command.amount
    if grant is None or remaining < amount:
        return Refused(Refusal.INSUFFICIENT_CREDITS, {"available": remaining, "required": amount})
    # Nothing can fail any more.
    draft.remove(grant, amount)
    draft.own = draft.record(DECREASE, VOID, amount, command, reference=Reference("grant", addresses.text(*address)))
    return None


def _reverse(draft: Draft, state: State, command: Reverse) -> Refused | None:
    target = state.source
    if target is None or target.sequence != command.sequence:
        return Refused(Refusal.TRANSACTION_NOT_FOUND)
    if draft.state == CLOSED:
        return Refused(Refusal.ACCOUNT_CLOSED)
    if not TYPES[target.type].reversible:
        return Refused(Refusal.NOT_REVERSIBLE)
    result = reverse(draft, command, target, state.given or GivenBack(target.key))
    if isinstance(result, Refused):
        return result
    draft.own = result
    return None


def _change_state(draft: Draft, state: State, command: ChangeState) -> Refused | None:
    if command.state == draft.state:
        return None
    if draft.state == CLOSED:
        return Refused(Refusal.ACCOUNT_CLOSED)
    if command.state == CLOSED and (draft.debt or draft.account.held or (draft.grants and not command.forfeit)):
        return Refused(Refusal.ACCOUNT_NOT_EMPTY, {"balance": draft.balance, "held": draft.account.held})
    # Nothing can fail any more.
    if command.state == CLOSED and draft.grants:
        amount = draft.balance
        for grant in tuple(draft.grants):
            draft.remove(grant, grant.remaining)
        draft.own = draft.record(DECREASE, VOID, amount, command)
    draft.change_state(command.state, command.reason, command.actor)
    return None


_RULES: Mapping[type[Command], Callable[[Draft, State, Any], Refused | None]] = {
    Post: _post,
    OpenAccount: _open_account,
    ChangeTerms: _change_terms,
    ChangeState: _change_state,
    Reverse: _reverse,
    VoidGrant: _void_grant,
    Settle: _settle,
    TrialStarted: _trial_started,
    PaymentSucceeded: _payment_succeeded,
    SubscriptionRenewed: _subscription_renewed,
    OrderPaid: _order_paid,
    OrderRefunded: _order_refunded,
    PaymentRefunded: _give_back,
    PaymentDisputed: _give_back,
    DisputeClosed: _give_back,
}
