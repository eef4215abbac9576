"""The reference model: a second, naive ledger, written from the contract alone, that judges the real one.

It moves one credit at a time, keeps the paying grant of every credit of an order, sums its history for each balance,
visits every instant in order, and works on a copy of itself that it drops after a refusal. It shares only the commands,
the Policy and the names with the ledger.
"""

import pickle
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor, inf
from typing import Any

from credit_service.ledger.commands import (
    ChangeState,
    ChangeTerms,
    ClawBack,
    Command,
    DisputeClosed,
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
    Unchanged,
    VoidGrant,
)
from credit_service.ledger.policy import Policy

DAY = 86_400_000_000
LIMIT = 2**53 - 1
POSTED, REPLAYED, PARKED = "posted", "replayed", "parked"

OWN = {
    "TRIAL": "recharged",
    "SUBSCRIPTION": "recharged",
    "PAYMENT": "recharged",
    "ORDER_PAID": "consumed",
    "USAGE": "consumed",
    "ORDER_REFUNDED": "refunded",
    "MANUAL": "adjusted",
    "PAYMENT_REFUNDED": "payment_refunded",
    "PAYMENT_DISPUTED": "payment_disputed",
    "EXPIRY": "expired",
    "VOID": "grant.voided",
    "REVERSAL": "reversed",
}
TYPE_OF_FACT = {
    OpenAccount: "TRIAL",
    TrialStarted: "TRIAL",
    PaymentSucceeded: "PAYMENT",
    SubscriptionRenewed: "SUBSCRIPTION",
    OrderPaid: "ORDER_PAID",
    OrderRefunded: "ORDER_REFUNDED",
    PaymentRefunded: "PAYMENT_REFUNDED",
    PaymentDisputed: "PAYMENT_DISPUTED",
    DisputeClosed: "PAYMENT_DISPUTED",
}


@dataclass
class Pot:
    """A grant."""

    number: int
    made_by: int
    category: str
    priority: int
    effective_at: int
    expires_at: int | None
    begun: bool
    credits: int = 0
    gone: int = 0  # expired or voided


def content_of(command: Command) -> object:
    """The content of a command, which a repeat must have too (L3)."""
    return command.content, command.metadata


@dataclass
class Entry:
    """A transaction. `paid_by`: the pot that paid each credit, in order; None if no pot paid it."""

    number: int
    type: str
    signed: int
    shortfall: int
    debt_after: int
    key: str
    content: object
    paid_by: list[int | None] = field(default_factory=list)
    total: Fraction | None = None
    currency: str | None = None


@dataclass
class Claims:
    """What was told about one payment, and each credit that was taken back for it: the pot that lost it, or None."""

    facts: list[ClawBack | Reverse] = field(default_factory=list)
    taken: list[int | None] = field(default_factory=list)
    waived: int = 0


@dataclass
class GaveBack:
    """One refund of an order: its money (None if it states credits), and the credits it returned."""

    source: str
    money: Fraction | None
    credits: int


class No(Exception):
    """The model refuses, with this code."""


class Model:
    """See the module. `judge` returns "posted", "replayed", "parked" or the code of a refusal."""

    def __init__(self, settings: Policy) -> None:
        self.settings = settings
        self.open = False
        self.state = "open"  # or frozen, or closed
        self.clock = 0
        self.pots: list[Pot] = []
        self.entries: list[Entry] = []
        self.told: list[tuple[str, int | None, int]] = []  # announcement, causing entry, available credits
        self.refunds: list[GaveBack] = []
        self.claims: dict[str, Claims] = {}  # by the key of the payment
        self.parked: dict[str, tuple[str, int, Any]] = {}  # by key: the key it waits for, the end of the wait, the fact
        self.dead: list[tuple[str, str]] = []  # code, key of the fact
        self.debt = 0
        self.window: tuple[int, int] | None = None  # the last billing window, and the credits of its best plan
        self.best = 0
        self.own_terms: tuple[int | None, str | None, int | None] = (None, None, None)
        self.threshold_then = 0
        self.in_episode = False
        self.said: set[str] = set()
        self.runs = False  # whether the plugin runs, as told
        self.level = 0  # available credits when the model last checked the level

    # ---- the questions

    def judge(self, command: Command, now: int) -> str:
        """Do a command, entirely or not at all (L4)."""
        attempt: Model = pickle.loads(pickle.dumps(self))
        try:
            answer = attempt._judge(command, now)
        except No as refusal:
            return str(refusal)
        if answer != REPLAYED and (answer != PARKED or command.key not in self.parked):
            self.__dict__ = attempt.__dict__
        return answer

    def at(self, instant: int) -> "Model":
        """The model as a read at this instant should show it (L7)."""
        later: Model = pickle.loads(pickle.dumps(self))
        later._settle(max(instant, self.clock))
        return later

    @property
    def balance(self) -> int:
        """The sum of all entries (L1)."""
        return sum(entry.signed for entry in self.entries)

    @property
    def pending(self) -> int:
        """Credits in grants that have not begun."""
        return sum(pot.credits for pot in self.pots if not pot.begun)

    @property
    def available(self) -> int:
        """Credits that can be spent; a negative number is owed."""
        return self.balance - self.pending

    @property
    def threshold(self) -> int:
        """The low threshold in force."""
        if self.own_terms[0] is not None:
            return self.own_terms[0]
        return floor(Fraction(self.settings.trial_credits) * Fraction(self.settings.low_balance_percent) / 100)

    @property
    def status(self) -> str:
        """The account's status."""
        if self.available <= 0:
            return "EXHAUSTED"
        return "LOW" if self.available <= self.threshold else "ACTIVE"

    # ---- the decision, in the contract's order: account, key, then the rest

    def _judge(self, command: Command, now: int) -> str:
        if not self.open and not (isinstance(command, OpenAccount) or (command.opens and self.settings.auto_create)):
            raise No("account_not_found")
        known = self._known(command)
        if known is not None:
            return known
        before = self._traces()
        if self.open:
            self._settle(max(now, self.clock))
        else:
            self.open, self.clock, self.threshold_then = True, now, self.threshold
            self._tell("account.created", None)
        if self.state == "closed" and type(command) in TYPE_OF_FACT:
            self._change_state("frozen")
        answer = self._rule(command)
        return REPLAYED if answer == POSTED and before == self._traces() else answer

    def _known(self, command: Command) -> str | None:
        fact_type = TYPE_OF_FACT.get(type(command))
        first = next((entry for entry in self.entries if entry.key == command.key), None)
        if first is None and fact_type == "TRIAL":
            first = next((entry for entry in self.entries if entry.type == "TRIAL"), None)
        if first is not None:
            same = first.type == fact_type if fact_type else first.content == content_of(command)
            if not same:
                raise No("idempotency_key_reused")
            return REPLAYED
        if command.key in self.parked:
            if TYPE_OF_FACT[type(self.parked[command.key][2])] != fact_type:
                raise No("idempotency_key_reused")
            return PARKED
        return None

    def _traces(self) -> object:
        """Everything that a command may change besides the clock."""
        pots = [(pot.number, pot.credits, pot.begun) for pot in self.pots]
        return (
            self.open, len(self.entries), len(self.told), len(self.dead), pots, self.debt, self.own_terms,
            self.threshold_then, self.in_episode, sorted(self.parked), self.state,
        )  # fmt: skip

    def _rule(self, command: Command) -> str:
        match command:
            case Post() | ChangeTerms() if self.state == "closed":
                raise No("account_closed")
            case Post(operation="DECREASE") if self.state == "frozen" and command.type != "MANUAL":
                raise No("account_frozen")
            case Post(operation="INCREASE"):
                self._check_terms(command)
                given = command.terms
                category = given.category or ("promotional" if command.type in ("TRIAL", "MANUAL") else "paid")
                self._increase(
                    command.type, command.amount, command, category, given.priority,
                    given.effective_at, given.expires_at,
                )  # fmt: skip
            case Post():
                if self.available < command.amount:
                    raise No("insufficient_credits")
                self._decrease(command.type, command.amount, command)
            case OpenAccount():
                if self.settings.trial_credits:
                    self._increase("TRIAL", self.settings.trial_credits, command, "promotional")
            case TrialStarted():
                self._increase("TRIAL", command.credits, command, "promotional")
            case PaymentSucceeded():
                self._increase("PAYMENT", command.credits, command, "paid", expires_at=command.terms.expires_at)
                self._apply_parked(command.key)
            case SubscriptionRenewed():
                amount = command.credits - self._given_in_window(command)
                self._increase(
                    "SUBSCRIPTION", amount, command, "paid",
                    expires_at=command.expires_at, shortfall=command.credits - amount,
                )  # fmt: skip
                self._apply_parked(command.key)
            case OrderPaid():
                self._order(command)
                self._apply_parked(command.key)
            case OrderRefunded(order_id=None):
                self._increase("ORDER_REFUNDED", command.credits or 0, command, "paid")
            case OrderRefunded():
                return self._refund_or_park(f"shopify:order:{command.order_id}", command)
            case ClawBack(payment_id=None):
                return self._refund_or_park(f"billing:subscription:{command.subscription_id}:{command.period}", command)
            case ClawBack():
                return self._refund_or_park(f"billing:payment:{command.payment_id}", command)
            case ChangeTerms():
                threshold, policy, limit = self.own_terms
                if not isinstance(command.low_threshold, Unchanged):
                    threshold = command.low_threshold
                if not isinstance(command.when_insufficient, Unchanged):
                    policy = command.when_insufficient
                if not isinstance(command.overdraft_limit, Unchanged):
                    limit = command.overdraft_limit
                self.own_terms = (threshold, policy, limit)
                self._look_at_threshold()
            case VoidGrant():
                self._void(command)
            case ChangeState():
                self._close_or_freeze(command)
            case Reverse():
                self._reverse(command)
            case Settle():
                for key in [key for key, (_, until, _) in self.parked.items() if until <= self.clock]:
                    self._give_up(key)
        return POSTED

    # ---- the rules

    def _check_terms(self, command: Post) -> None:
        if command.type == "TRIAL" and any(entry.type == "TRIAL" for entry in self.entries):
            raise No("trial_already_granted")
        begins, ends = command.terms.effective_at, command.terms.expires_at
        if ends is not None and (ends <= self.clock or (begins is not None and ends <= begins)):
            raise No("validation_failed")

    def _increase(
        self,
        type_: str,
        amount: int,
        command: Command,
        category: str,
        priority: int = 100,
        effective_at: int | None = None,
        expires_at: int | None = None,
        shortfall: int = 0,
    ) -> None:
        if self.balance + amount > LIMIT:
            raise No("amount_out_of_range")
        over = False
        if amount:
            begins = self.clock if effective_at is None else effective_at
            self._pot(category, priority, begins, expires_at).credits = amount
            over = expires_at is not None and expires_at <= self.clock
        self._pay_debt()
        # Credits that expired before they arrived never change the level.
        self._enter(type_, amount, command.key, content_of(command), look=not over, shortfall=shortfall)
        if over:
            self._expire(self.pots[-1])

    def _given_in_window(self, fact: SubscriptionRenewed) -> int:
        """The credits of this renewal that another plan gave in the same billing window."""
        if fact.window is None:
            return 0
        if self.window is None or self.window[1] <= fact.window[0]:
            self.window, self.best = fact.window, 0
        elif fact.window[1] <= self.window[0]:
            return 0
        given = min(self.best, fact.credits)
        self.best = max(self.best, fact.credits)
        return given

    def _decrease(self, type_: str, amount: int, command: Command, **more: Any) -> None:
        """Take credits one by one; credits that no grant pays become debt."""
        if self.available - amount < -LIMIT:
            raise No("amount_out_of_range")
        paid_by: list[int | None] = []
        for _ in range(amount):
            paid_by.append(self._pay_one())
            if paid_by[-1] is None:
                self.debt += 1
        self._enter(type_, -amount, command.key, content_of(command), paid_by=paid_by, **more)

    def _order(self, fact: OrderPaid) -> None:
        total = None if fact.total_micros is None else Fraction(fact.total_micros, 1_000_000)
        price = self._price(total) if fact.credits is None else fact.credits
        amount, word = price, None
        if price > max(self.available, 0):
            _, own, limit = self.own_terms
            policy = own or self.settings.when_insufficient
            if policy == "partial":
                amount = max(self.available, 0)
            elif policy == "reject" or (limit is not None and price - self.available > limit):
                amount, word = 0, "order_rejected"
        if price > LIMIT:
            raise No("amount_out_of_range")
        self._decrease(
            "ORDER_PAID", amount, fact, shortfall=price - amount, word=word, total=total, currency=fact.currency
        )

    def _price(self, total: Fraction | None) -> int:
        share = Fraction(self.settings.order_percent) / 100 * (total or 0)
        exact = max(Fraction(self.settings.order_fixed), share, Fraction(self.settings.order_minimum))
        return floor(exact + Fraction(1, 2))

    def _refund_or_park(self, source_key: str, fact: OrderRefunded | ClawBack) -> str:
        types = self._refunded_by(fact)
        source = next((e for e in self.entries if e.key == source_key and e.type in types), None)
        if source is None:
            self.parked[fact.key] = (source_key, self.clock + self.settings.refund_wait_days * DAY, fact)
            return PARKED
        self._refund(source, fact)
        return POSTED

    def _apply_parked(self, key: str) -> None:
        source = next(entry for entry in self.entries if entry.key == key)
        for refund_key, (waits_for, until, fact) in list(self.parked.items()):
            if waits_for != key or source.type not in self._refunded_by(fact):
                continue
            if until <= self.clock:
                self._give_up(refund_key)
                continue
            del self.parked[refund_key]
            try:
                self._refund(source, fact)
            except No as refusal:
                self.dead.append((str(refusal), refund_key))

    @staticmethod
    def _refunded_by(fact: Command) -> tuple[str, ...]:
        return ("ORDER_PAID",) if isinstance(fact, OrderRefunded) else ("PAYMENT", "SUBSCRIPTION")

    def _give_up(self, key: str) -> None:
        _, _, fact = self.parked.pop(key)
        self.dead.append(("order_unknown" if isinstance(fact, OrderRefunded) else "payment_unknown", key))

    def _refund(self, source: Entry, fact: OrderRefunded | ClawBack) -> None:
        if isinstance(fact, ClawBack):
            self._claw_back(source, fact)
            return
        posted = abs(source.signed)
        earlier = [refund for refund in self.refunds if refund.source == source.key]
        left = posted - sum(refund.credits for refund in earlier)
        money = None
        if fact.credits is not None:
            worth = fact.credits
        else:
            if None not in (source.currency, fact.currency) and source.currency != fact.currency:
                raise No("currency_mismatch")
            total = source.total
            if total is None and fact.order_total_micros is not None:
                total = Fraction(fact.order_total_micros, 1_000_000)
            if total is None:
                raise No("validation_failed")
            money = Fraction(fact.refund_amount_micros or 0, 1_000_000)
            so_far = money + sum(refund.money for refund in earlier if refund.money is not None)
            due = posted if so_far >= total else floor(posted * min(so_far, total) / total)
            worth = max(0, due - sum(refund.credits for refund in earlier if refund.money is not None))
        amount = min(worth, left)
        if self.balance + amount > LIMIT:
            raise No("amount_out_of_range")
        covered = [payer for payer in source.paid_by if payer is not None]
        uncovered = len(source.paid_by) - len(covered)
        skip = posted - left
        self._return(([None] * uncovered + covered[::-1])[skip : skip + amount])
        self._enter("ORDER_REFUNDED", amount, fact.key, content_of(fact), shortfall=worth - amount)
        self.refunds.append(GaveBack(source.key, money, amount))

    def _return(self, payers: list[int | None], *, voided: bool = False) -> None:
        """Return a credit to each of these pots; None stands for debt."""
        fresh: dict[int | None, Pot] = {}
        for payer in payers:
            if payer is None:
                if self.debt:
                    self.debt -= 1
                    continue
                pot = fresh[None] if None in fresh else self._pot("paid", 100, self.clock, None)
                fresh[None] = pot
            else:
                pot = self.pots[payer - 1]
                if pot.expires_at is not None and pot.expires_at <= self.clock:
                    if payer not in fresh:
                        ends = self.clock + self.settings.refund_grace_days * DAY
                        fresh[payer] = self._pot(pot.category, pot.priority, self.clock, ends)
                    pot = fresh[payer]
                elif voided:
                    pot.gone -= 1
            pot.credits += 1
        self._pay_debt()

    # ---- payments that are refunded or disputed

    def _claw_back(self, source: Entry, fact: ClawBack | Reverse) -> None:
        """Take what is demanded and not taken yet, or return what is demanded no more (L19)."""
        claims = self.claims.setdefault(source.key, Claims())
        before = self._claimed(claims.facts, source)
        claims.facts.append(fact)
        after = self._claimed(claims.facts, source)
        demanded = min(after, source.signed)
        type_ = "REVERSAL" if isinstance(fact, Reverse) else TYPE_OF_FACT[type(fact)]
        surplus = len(claims.taken) - demanded
        if surplus > 0 or (isinstance(fact, DisputeClosed) and fact.outcome == "won"):
            surplus = max(surplus, 0)
            if self.balance + surplus > LIMIT:
                raise No("amount_out_of_range")
            back = [claims.taken.pop() for _ in range(surplus)]
            claims.waived = min(claims.waived, demanded - len(claims.taken))
            self._return(back)
            self._enter(type_, surplus, fact.key, content_of(fact))
            return
        own = next((pot for pot in self.pots if pot.made_by == source.number), None)
        claims.waived = min(claims.waived, demanded - len(claims.taken))
        taken: list[int | None] = []
        debt = 0
        if self.settings.clawback == "freeze" and self.state != "frozen" and self._beyond(source, own, demanded):
            self._change_state("frozen")
        for _ in range(demanded - len(claims.taken) - claims.waived):
            if own is None or own.gone + len(claims.taken) + len(taken) + debt >= source.signed:
                break
            if own.credits:
                own.credits -= 1
                taken.append(own.number)
            elif self.settings.clawback == "clamp":
                claims.waived += 1
            elif (payer := self._pay_one()) is None:
                self.debt += 1
                debt += 1
            else:
                taken.append(payer)
        taken += [None] * debt
        if self.available < -LIMIT:
            raise No("amount_out_of_range")
        claims.taken += taken
        self._enter(type_, -len(taken), fact.key, content_of(fact), shortfall=max(after - before - len(taken), 0))

    def _beyond(self, source: Entry, own: Pot | None, demanded: int) -> bool:
        """Whether more is taken now than the payment's own grant has."""
        claims = self.claims[source.key]
        if own is None:
            return False
        left = source.signed - own.gone - len(claims.taken)
        return min(demanded - len(claims.taken) - claims.waived, left) > own.credits

    @staticmethod
    def _claimed(facts: list[ClawBack | Reverse], source: Entry) -> int:
        """The credits that these facts demand, in whatever order they came."""
        claimed = sum(fact.credits for fact in facts if isinstance(fact, PaymentRefunded))
        claimed += sum(fact.amount or 0 for fact in facts if isinstance(fact, Reverse))
        opened = {fact.dispute_id: fact for fact in facts if isinstance(fact, PaymentDisputed)}
        closed = {fact.dispute_id: fact for fact in facts if isinstance(fact, DisputeClosed)}
        for dispute in {*opened, *closed}:
            end, begin = closed.get(dispute), opened.get(dispute)
            if end is not None and end.outcome == "won":
                continue
            said = [one.credits for one in (end, begin) if one is not None and one.credits is not None]
            claimed += said[0] if said else source.signed
        return claimed

    def _void(self, command: VoidGrant) -> None:
        # The last 48 bits of a grant's id are its number.
        pot = next((pot for pot in self.pots if pot.number == command.grant_id.int & 0xFFFF_FFFF_FFFF), None)
        if pot is None:
            raise No("grant_not_found")
        if self.state == "closed":
            raise No("account_closed")
        amount = pot.credits if command.amount is None else command.amount
        if not 0 < amount <= pot.credits:
            raise No("insufficient_credits")
        pot.credits -= amount
        pot.gone += amount
        lost: list[int | None] = [pot.number] * amount
        self._enter("VOID", -amount, command.key, content_of(command), paid_by=lost)

    def _reverse(self, command: Reverse) -> None:
        if not 1 <= command.sequence <= len(self.entries):
            raise No("transaction_not_found")
        target = self.entries[command.sequence - 1]
        if self.state == "closed":
            raise No("account_closed")
        if target.type not in ("TRIAL", "SUBSCRIPTION", "PAYMENT", "MANUAL", "USAGE", "ORDER_PAID", "VOID"):
            raise No("not_reversible")
        whole = abs(target.signed)
        if target.signed < 0 or target.paid_by:
            back = sum(refund.credits for refund in self.refunds if refund.source == target.key)
        else:
            claims = self.claims.get(target.key, Claims())
            back = min(self._claimed(claims.facts, target), whole)
        amount = whole - back if command.amount is None else command.amount
        if not 0 < amount <= whole - back:
            raise No("already_reversed")
        if not target.paid_by:
            self._claw_back(target, replace(command, amount=amount))
            return
        if self.balance + amount > LIMIT:
            raise No("amount_out_of_range")
        covered = [payer for payer in target.paid_by if payer is not None]
        payers = [None] * (whole - len(covered)) + covered[::-1]
        self._return(payers[back : back + amount], voided=target.type == "VOID")
        self._enter("REVERSAL", amount, command.key, content_of(command))
        self.refunds.append(GaveBack(target.key, None, amount))

    def _close_or_freeze(self, command: ChangeState) -> None:
        if command.state == self.state:
            return
        if self.state == "closed":
            raise No("account_closed")
        if command.state == "closed":
            left = sum(pot.credits for pot in self.pots)
            if self.debt or (left and not command.forfeit):
                raise No("account_not_empty")
            if left:
                lost: list[int | None] = []
                for pot in sorted(self.pots, key=self._place):
                    lost += [pot.number] * pot.credits
                    pot.gone += pot.credits
                    pot.credits = 0
                self._enter("VOID", -left, command.key, content_of(command), paid_by=lost)
        self._change_state(command.state)

    def _change_state(self, state: str) -> None:
        self.state = state
        self._tell({"frozen": "account.frozen", "open": "account.thawed", "closed": "account.closed"}[state], None)
        self._look_at_plugin(None)

    # ---- grants

    def _pot(self, category: str, priority: int, effective_at: int, expires_at: int | None) -> Pot:
        number, made_by = len(self.pots) + 1, len(self.entries) + 1
        pot = Pot(number, made_by, category, priority, effective_at, expires_at, effective_at <= self.clock)
        self.pots.append(pot)
        return pot

    def _pay_one(self) -> int | None:
        """Take one credit from the next grant in burn-down order (L6)."""
        able = [
            pot
            for pot in self.pots
            if pot.credits and pot.begun and (pot.expires_at is None or pot.expires_at > self.clock)
        ]
        if not able:
            return None
        first = min(able, key=self._place)
        first.credits -= 1
        return first.number

    @staticmethod
    def _place(pot: Pot) -> tuple[Any, ...]:
        """The place of a grant in burn-down order."""
        expires_at = inf if pot.expires_at is None else pot.expires_at
        is_paid = pot.category != "promotional"
        return (pot.priority, expires_at, is_paid, pot.effective_at, pot.made_by, pot.number)

    def _pay_debt(self) -> None:
        while self.debt and self._pay_one() is not None:
            self.debt -= 1

    # ---- time

    def _settle(self, now: int) -> None:
        def instants() -> list[int]:
            moments = [moment for pot in self.pots for moment in (pot.expires_at, pot.effective_at, self._warning(pot))]
            return sorted({moment for moment in moments if moment is not None and self.clock < moment <= now})

        self._look_at_threshold()
        while ahead := instants():
            self.clock = ahead[0]
            for pot in self.pots:
                if pot.expires_at == self.clock and pot.credits:
                    self._expire(pot)
            beginning = [pot for pot in self.pots if pot.effective_at == self.clock and pot.credits]
            for pot in beginning:
                pot.begun = True
            if beginning:
                self._pay_debt()
                self._look(None)
            for pot in self.pots:
                if self._warning(pot) == self.clock and pot.credits:
                    self._tell("expiring_soon", None)
        self.clock = now

    @staticmethod
    def _warning(pot: Pot) -> int | None:
        if pot.expires_at is None or pot.expires_at - pot.effective_at < 7 * DAY:
            return None
        return pot.expires_at - 7 * DAY

    def _expire(self, pot: Pot) -> None:
        left, pot.credits = pot.credits, 0
        pot.gone += left
        self._enter("EXPIRY", -left, f"expiry of {pot.number}")

    # ---- entries and announcements

    def _enter(
        self,
        type_: str,
        signed: int,
        key: str,
        content: object = (b"", None),
        *,
        shortfall: int = 0,
        word: str | None = None,
        look: bool = True,
        **more: Any,
    ) -> None:
        number = len(self.entries) + 1
        self.entries.append(Entry(number, type_, signed, shortfall, self.debt, key, content, **more))
        self._tell(word or OWN[type_], number)
        if look:
            self._look(number)

    def _tell(self, word: str, cause: int | None) -> None:
        self.told.append((word, cause, self.available))

    def _look_at_threshold(self) -> None:
        if self.threshold != self.threshold_then:
            self.threshold_then = self.threshold
            self._look(None, moved=True)

    def _look(self, cause: int | None, *, moved: bool = False) -> None:
        """Episodes and plugin status (L9)."""
        before, now = self.level, self.available
        self.level = now
        if now <= self.threshold and (now < before or moved) and not self.in_episode:
            self.in_episode, self.said = True, set()
        if self.in_episode:
            for word, due in (
                ("low_balance_reached", now <= self.threshold),
                ("balance_exhausted", now <= self.threshold and now <= 0),
            ):
                if due and word not in self.said:
                    self.said.add(word)
                    self._tell(word, cause)
            if now > self.threshold:
                self.in_episode = False
                self._tell("balance_restored", cause)
        self._look_at_plugin(cause)

    def _look_at_plugin(self, cause: int | None) -> None:
        runs = self.state == "open" and self.available > 0
        if runs != self.runs:
            self.runs = runs
            self._tell("plugin_status_changed", cause)
