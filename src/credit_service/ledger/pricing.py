"""The price of an order: max(fixed, percent of its total, minimum), rounded half up once.

The calculation is exact: it uses Decimal and whole millionths, never a float (L13).
"""

from decimal import ROUND_HALF_UP, Context, Decimal

from credit_service.ledger.policy import Policy

_HUNDRED_IN_MICROS = Decimal(100_000_000)
# Enough digits for 10^12 with six decimals times a percentage with six, so that only the last step rounds.
_EXACT = Context(prec=60)
_WHOLE = Decimal(1)


def order_price(policy: Policy, total_micros: int | None) -> int:
    """The price of an order in credits.

    `total_micros`: the order's total in millionths of the unit that its sender used. None if the order has no total;
    then the percentage adds nothing.
    """
    price = max(policy.order_fixed, policy.order_minimum)
    if policy.order_percent:
        share = _EXACT.divide(_EXACT.multiply(policy.order_percent, Decimal(total_micros or 0)), _HUNDRED_IN_MICROS)
        price = max(price, share)
    return int(price.quantize(_WHOLE, rounding=ROUND_HALF_UP, context=_EXACT))
