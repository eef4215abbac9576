"""The settings that the rules depend on, as one value, so that a decision depends on its arguments alone."""

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Literal

from credit_service.ledger.account import DAY, Account

WhenInsufficient = Literal["overdraft", "partial", "reject"]
ClawbackPolicy = Literal["debt", "clamp", "freeze"]


@dataclass(frozen=True)
class Policy:
    """The choices of an operator. Credits are whole numbers; prices and percentages are Decimal; periods are days."""

    trial_credits: int = 100
    order_fixed: Decimal = Decimal(1)
    order_percent: Decimal = Decimal(0)
    order_minimum: Decimal = Decimal(0)
    low_balance_percent: Decimal = Decimal(20)
    when_insufficient: WhenInsufficient = "overdraft"
    refund_grace_days: int = 30
    refund_wait_days: int = 7
    auto_create: bool = True
    clawback: ClawbackPolicy = "debt"

    @property
    def refund_grace(self) -> int:
        """The life of credits that a refund returns to an expired grant, in microseconds (L8)."""
        return self.refund_grace_days * DAY

    @property
    def refund_wait(self) -> int:
        """The time that a refund waits for its order or payment, in microseconds (L8)."""
        return self.refund_wait_days * DAY

    @cached_property
    def default_threshold(self) -> int:
        """The low threshold of an account without one of its own (L9)."""
        return int(self.trial_credits * self.low_balance_percent / 100)


def threshold_of(account: Account, policy: Policy) -> int:
    """The low threshold in force for an account (L9)."""
    return policy.default_threshold if account.low_threshold is None else account.low_threshold
