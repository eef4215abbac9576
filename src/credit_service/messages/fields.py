"""The kinds of fields in messages: their form in JSON, and their value here."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, Inexact
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from credit_service.ledger.account import MAX_CREDITS, MICROSECONDS
from credit_service.messages import patterns

MAX_KEY = 255
MAX_METADATA_BYTES = 8 * 1024
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MONEY = re.compile(patterns.MONEY)
_MAX_MONEY = 10**12
_MICRO = Decimal("0.000001")
_UUID = re.compile(patterns.UUID)
_SHOPIFY_ID = re.compile(r"gid://shopify/[A-Za-z]+/([0-9]+)")
_EXACT = Context(prec=20, traps=[Inexact])


class Body(BaseModel):
    """A JSON object with known fields only, each of exactly its type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


def _time(text: str) -> str:
    parse_time(text)
    return text


def _money(value: Any) -> Any:
    money_micros(value)
    return value


Uuid = Annotated[
    str, Field(pattern=patterns.UUID, description="A UUID.", examples=["6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"])
]
MerchantId = Annotated[
    str,
    Field(
        pattern=patterns.MERCHANT,
        description="The merchant, by the platform's own id.",
        examples=["6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"],
    ),
]
Time = Annotated[
    str,
    Field(pattern=patterns.TIME, description="An instant (RFC 3339).", examples=["2026-11-22T10:45:00Z"]),
    AfterValidator(_time),
]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY, pattern=patterns.PRINTABLE)]
Id = Annotated[str, Field(min_length=1, max_length=200, pattern=patterns.ID)] | int
"""An id as its sender writes it; `id_text` tells which ids are the same."""
Reason = Annotated[
    str, Field(min_length=1, max_length=1000, pattern=patterns.VISIBLE, description="Reason, with a visible character.")
]
Credits = Annotated[int, Field(ge=0, le=MAX_CREDITS, description="Whole credits.")]
PositiveCredits = Annotated[int, Field(ge=1, le=MAX_CREDITS, description="Whole credits, at least 1.", examples=[25])]
Money = Annotated[
    str | int | Decimal,
    Field(description="An amount of money, 0 to 10^12 with at most 6 decimals.", examples=["149.90"]),
    AfterValidator(_money),
]
Currency = Annotated[str, Field(pattern=patterns.CURRENCY, description="ISO 4217 code.", examples=["GBP"])]
Metadata = Annotated[dict[str, Any], Field(description="Any JSON object of the caller, at most 8 KiB.")]


def parse_time(text: str) -> int:
    """An RFC 3339 text as microseconds since 1970. Raises ValueError if there is no such time.

    A leap second (23:59:60 UTC at the end of a month) becomes the start of the next second, because every day here has
    86,400 seconds.
    """
    leap = text[17:19] == "60"
    try:
        if leap:
            text = f"{text[:17]}59{text[19:].lstrip('.0123456789')}"
        # In UTC, because an offset may lead out of the supported years.
        instant = datetime.fromisoformat(text.upper()).astimezone(UTC)
        if leap:
            instant += timedelta(seconds=1)
            if (instant.day, instant.hour, instant.minute) != (1, 0, 0):
                raise ValueError
        return (instant - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise ValueError("There is no such time.") from None


def format_time(micros: int) -> str:
    """Microseconds since 1970 as RFC 3339 text in UTC."""
    seconds, rest = divmod(micros, MICROSECONDS)
    return f"{_second(seconds)}.{rest:06d}Z"


def id_text(value: str | int) -> str:
    """An id as the ledger keeps it: 17, "17", " 17" and gid://shopify/Order/17 are all "17"."""
    text = str(value).strip()
    found = _SHOPIFY_ID.fullmatch(text)
    return found[1] if found else text


def optional_time(micros: int | None) -> str | None:
    return None if micros is None else format_time(micros)


@lru_cache(maxsize=1024)  # most times are of the last seconds
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()


def money_micros(value: str | int | Decimal) -> int:
    """Money in millionths. Raises ValueError for numbers outside 0 to 10^12, more than 6 decimals, and other text."""
    if isinstance(value, bool) or (isinstance(value, str) and not _MONEY.fullmatch(value)):
        raise ValueError("Money is a decimal number of at most 6 decimals.")
    if not isinstance(value, str | int | Decimal):
        raise TypeError("only exact numbers are money")
    money = Decimal(value)
    if not 0 <= money <= _MAX_MONEY:
        raise ValueError("Money must lie between 0 and 10^12.")
    try:
        return int(money.quantize(_MICRO, context=_EXACT).scaleb(6))
    except Inexact:
        raise ValueError("Money is a decimal number of at most 6 decimals.") from None


def merchant_text(value: str | int) -> str:
    """A merchant's id as the ledger keeps it: a UUID in lower case, any other id exactly, a number as its digits."""
    text = str(value)
    return text.lower() if len(text) == 36 and _UUID.fullmatch(text) else text


def uuid(text: str) -> UUID:
    """A UUID from its validated text."""
    return UUID(hex=text)
