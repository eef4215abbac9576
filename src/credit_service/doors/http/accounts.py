"""Accounts, their terms, balance, stats and grants."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from credit_service.doors.http.openapi import QUEUED, examples, problems
from credit_service.doors.http.problems import Problem, of_faults, of_refusal
from credit_service.doors.http.routes import (
    MERCHANT,
    WHOLE,
    AccountText,
    CallOf,
    Cursor,
    GrantText,
    Instant,
    Limit,
    Links,
    MerchantId,
    MerchantText,
    Meta,
    Pagination,
    Parts,
    PartsOf,
    Since,
    TransactionText,
    Unsaid,
    Until,
    answer,
    cursor_bytes,
    cursor_position,
    cursor_text,
    page,
    page_limit,
    respond,
    router,
)
from credit_service.ledger.account import MAX_CREDITS, Account, Status, TypeTotal
from credit_service.ledger.commands import ChangeTerms, OpenAccount, trial_key
from credit_service.ledger.draft import Posted
from credit_service.ledger.refusals import Refused
from credit_service.ledger.settle import standing_at
from credit_service.messages import shapes
from credit_service.messages.faults import Fault
from credit_service.messages.fields import Body, Credits, Time, Uuid, format_time, parse_time, uuid
from credit_service.storage.accounts import AccountQuery, LoadedAccount
from credit_service.storage.transactions import TransactionQuery

ACCOUNTS = "/credits/accounts"
ONE = ACCOUNTS + "/{merchant_id}"
Balance = Annotated[int, Field(ge=-MAX_CREDITS, le=MAX_CREDITS), WHOLE]
Left = Annotated[int, Field(examples=[75])]


class OpenBody(Body):
    """Whose account to open."""

    merchant_id: Uuid


class AccountShape(BaseModel):
    """One merchant's credits, with the terms in force."""

    id: AccountText
    merchant_id: MerchantText
    balance: Left
    held: int
    pending: int
    available: Left
    status: Annotated[Status, Field(examples=["ACTIVE"])]
    low_threshold: Annotated[int, Field(examples=[20])]
    when_insufficient: Literal["overdraft", "partial", "reject"]
    overdraft_limit: Annotated[int | None, Unsaid]
    sequence: Annotated[int, Field(examples=[2])]
    last_transaction_id: TransactionText | None
    last_transaction_at: Instant | None
    created_at: Instant
    updated_at: Instant


class OneAccount(BaseModel):
    """An account."""

    data: AccountShape
    meta: Meta


class AccountPage(BaseModel):
    """A page of accounts, by merchant_id."""

    data: list[AccountShape]
    pagination: Pagination
    links: Links
    meta: Meta


class TermsBody(Body):
    """What to change of an account's own terms; null goes back to the default, what is not said stays."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    low_threshold: Credits | None = None
    when_insufficient: Literal["overdraft", "partial", "reject"] | None = None
    overdraft_limit: Credits | None = None


class TypeTotalShape(BaseModel):
    """What was posted of one transaction type."""

    transaction_count: int
    total_increases: int
    total_decreases: int


class StatsShape(BaseModel):
    """What was posted: sums of credits, and how many transactions."""

    merchant_id: MerchantText
    total_increases: Annotated[int, Field(examples=[100])]
    total_decreases: Annotated[int, Field(examples=[25])]
    transaction_count: Annotated[int, Field(examples=[2])]
    last_transaction_at: Instant | None
    by_type: Annotated[
        dict[str, TypeTotalShape],
        Field(
            examples=[
                {
                    "TRIAL": {"transaction_count": 1, "total_increases": 100, "total_decreases": 0},
                    "USAGE": {"transaction_count": 1, "total_increases": 0, "total_decreases": 25},
                }
            ]
        ),
    ]


class OneStats(BaseModel):
    """Stats."""

    data: StatsShape
    meta: Meta


class BalanceShape(BaseModel):
    """How much there is: available = balance - held - pending."""

    merchant_id: MerchantText
    balance: Left
    held: int
    pending: int
    available: Left
    as_of: Instant


class OneBalance(BaseModel):
    """A balance."""

    data: BalanceShape
    meta: Meta


class GrantShape(BaseModel):
    """What an INCREASE left to be spent."""

    id: GrantText
    transaction_id: Annotated[TransactionText, Field(examples=["a7800de5-8bd6-8a69-9100-000000000001"])]
    category: Annotated[Literal["paid", "promotional"], Field(examples=["promotional"])]
    priority: Annotated[int, Field(examples=[100])]
    amount: Annotated[int, Field(examples=[100])]
    remaining: Left
    effective_at: Instant
    expires_at: Annotated[Instant | None, Unsaid]


class GrantPage(BaseModel):
    """A page of open grants, in burn-down order."""

    data: list[GrantShape]
    pagination: Pagination
    links: Links
    meta: Meta


read, write, admin = router("read"), router("write"), router("admin")
_tags: list[Any] = ["accounts"]
_missing = problems("account_not_found")


async def held_of(parts: Parts, merchant_id: str, now: int) -> LoadedAccount:
    """A merchant's account. Raises Problem where there is none."""
    held = (await parts.accounts.load([uuid(merchant_id)], now)).get(uuid(merchant_id))
    if held is None:
        raise Problem("account_not_found", "This merchant has no account.")
    return held


def _shape(parts: Parts, held: LoadedAccount, now: int) -> dict[str, Any]:
    standing = standing_at(held.account, held.grants, parts.policy, now)
    return shapes.account(standing, parts.policy, held.account.settled_at)


@write.post(
    ACCOUNTS,
    operation_id="open_account",
    status_code=201,
    response_model=OneAccount,
    tags=_tags,
    responses={
        200: {"model": OneAccount, "description": "It was open already"},
        **problems("idempotency_key_reused", "amount_out_of_range", *QUEUED),
    },
)
async def open_account(
    body: Annotated[OpenBody, examples(open={"merchant_id": MERCHANT})], call: CallOf, parts: PartsOf
) -> Response:
    """Open a merchant's account and grant the trial; again is the same account, with the trial if it had none."""
    merchant_id = uuid(body.merchant_id)
    command = OpenAccount(
        merchant_id=merchant_id,
        key=trial_key(merchant_id),
        actor=call.actor,
        correlation_id=call.correlation_id,
    )
    outcome = await parts.posting.submit(command)
    if isinstance(outcome, Refused):
        raise of_refusal(outcome)
    now = await parts.now()
    held = await held_of(parts, body.merchant_id, now)
    opened = isinstance(outcome, Posted) and outcome.opened
    return respond(answer(call, now, _shape(parts, held, now), 201 if opened else 200))


@read.get(
    ACCOUNTS,
    operation_id="list_accounts",
    response_model=AccountPage,
    tags=_tags,
    responses=problems("cursor_invalid"),
)
async def list_accounts(
    call: CallOf,
    parts: PartsOf,
    status: Status | None = None,
    min_balance: Balance | None = None,
    max_balance: Balance | None = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> Response:
    """List accounts by merchant_id."""
    limit = page_limit(limit, parts.settings)
    now = await parts.now()
    bound = {"list": "accounts", "status": status, "min": min_balance, "max": max_balance}
    after = None if cursor is None else UUID(bytes=cursor_bytes(cursor, 16, **bound))
    query = AccountQuery(now, parts.policy.default_threshold, status, min_balance, max_balance)
    found: list[dict[str, Any]] = []
    while len(found) <= limit:
        some = await parts.accounts.page(query, after, limit + 1)
        found += [shape for shape in (_shape(parts, held, now) for held in some) if _matches(shape, query)]
        if len(some) <= limit:
            break
        after = some[-1].account.merchant_id
    more = len(found) > limit
    return page(
        call,
        now,
        found[:limit],
        limit=limit,
        next_cursor=cursor_text(uuid(found[limit - 1]["merchant_id"]).bytes, **bound) if more else None,
        has_previous=cursor is not None,
    )


def _matches(shape: dict[str, Any], query: AccountQuery) -> bool:
    """The store also lists accounts whose time has come; what became of them is known only now."""
    return (
        query.status in (None, shape["status"])
        and (query.min_balance is None or shape["balance"] >= query.min_balance)
        and (query.max_balance is None or shape["balance"] <= query.max_balance)
    )


@read.get(ONE, operation_id="get_account", response_model=OneAccount, tags=_tags, responses=_missing)
async def get_account(merchant_id: MerchantId, call: CallOf, parts: PartsOf) -> Response:
    """Read an account."""
    now = await parts.now()
    held = await held_of(parts, merchant_id, now)
    return respond(answer(call, now, _shape(parts, held, now)))


_TERMS = examples(
    warn_sooner={"low_threshold": 50},
    no_debt={"when_insufficient": "reject"},
    some_debt={"when_insufficient": "overdraft", "overdraft_limit": 500},
)


@admin.patch(
    ONE,
    operation_id="change_terms",
    response_model=OneAccount,
    tags=_tags,
    responses=problems("account_not_found", *QUEUED),
)
async def change_terms(
    merchant_id: MerchantId, body: Annotated[TermsBody, _TERMS], call: CallOf, parts: PartsOf
) -> Response:
    """Change an account's own low threshold, policy for orders that cannot be covered, and overdraft limit."""
    said = body.model_dump(include=body.model_fields_set)
    if not said:
        raise of_faults([Fault("", "required", f"Say what to change: {', '.join(TermsBody.model_fields)}.")])
    command = ChangeTerms(
        merchant_id=uuid(merchant_id), key="", actor=call.actor, correlation_id=call.correlation_id, **said
    )
    outcome = await parts.posting.submit(command)
    if isinstance(outcome, Refused):
        raise of_refusal(outcome)
    now = await parts.now()
    return respond(answer(call, now, _shape(parts, await held_of(parts, merchant_id, now), now)))


@read.get(ONE + "/balance", operation_id="get_balance", response_model=OneBalance, tags=_tags, responses=_missing)
async def get_balance(
    merchant_id: MerchantId,
    call: CallOf,
    parts: PartsOf,
    at: Annotated[Time | None, Query(description="At this instant (RFC 3339), past or future.")] = None,
) -> Response:
    """Read how much there is; with `at`, how much there was at a past instant, or will be if nothing is posted."""
    now = await parts.now()
    instant = now if at is None else parse_time(at)
    held = await held_of(parts, merchant_id, instant)
    if at is None or instant >= held.account.settled_at:
        account = standing_at(held.account, held.grants, parts.policy, instant).account
        balance, holding, pending = account.balance, account.held, account.pending
    else:
        balance, pending = await parts.accounts.past(held.account.number, instant)
        holding = 0
    shape = {
        "merchant_id": str(held.account.merchant_id),
        "balance": balance,
        "held": holding,
        "pending": pending,
        "available": balance - holding - pending,
        "as_of": format_time(instant),
    }
    return respond(answer(call, now, shape))


@read.get(ONE + "/stats", operation_id="get_stats", response_model=OneStats, tags=_tags, responses=_missing)
async def get_stats(
    merchant_id: MerchantId, call: CallOf, parts: PartsOf, start_date: Since = None, end_date: Until = None
) -> Response:
    """Read what was posted, ever or in a period: sums of credits by direction and transaction type."""
    now = await parts.now()
    held = await held_of(parts, merchant_id, now)
    stands = standing_at(held.account, held.grants, parts.policy, now).account
    if start_date is None and end_date is None:
        by_type, last_at = stands.by_type, stands.last_transaction_at
    else:
        by_type, last_at = await _period(parts, held.account, stands, now, start_date, end_date)
    shape = {
        "merchant_id": str(held.account.merchant_id),
        "total_increases": sum(added for _, added, _ in by_type.values()),
        "total_decreases": sum(taken for _, _, taken in by_type.values()),
        "transaction_count": sum(count for count, _, _ in by_type.values()),
        "last_transaction_at": None if last_at is None else format_time(last_at),
        "by_type": {
            type_: {"transaction_count": count, "total_increases": added, "total_decreases": taken}
            for type_, (count, added, taken) in sorted(by_type.items())
        },
    }
    return respond(answer(call, now, shape))


async def _period(
    parts: Parts, stored: Account, stands: Account, now: int, start_date: str | None, end_date: str | None
) -> tuple[Mapping[str, TypeTotal], int | None]:
    """What was posted in a period, with the expiries that no posting has settled yet as if one did so now (L7)."""
    start_at = None if start_date is None else parse_time(start_date)
    end_at = None if end_date is None else parse_time(end_date)
    found = await parts.transactions.totals(TransactionQuery(account=stored.number, start_at=start_at, end_at=end_at))
    by_type = {type_: (total.transactions, total.added, total.taken) for type_, total in found.items()}
    last_at = max((total.last_at for total in found.values()), default=None)
    if stands.sequence > stored.sequence and (start_at is None or start_at <= now) and (end_at is None or now < end_at):
        for type_, total in stands.by_type.items():
            before = stored.by_type.get(type_, (0, 0, 0))
            inside = by_type.get(type_, (0, 0, 0))
            if total != before:
                by_type[type_] = _sum(inside, total, before)
        last_at = now
    return by_type, last_at


def _sum(inside: TypeTotal, total: TypeTotal, before: TypeTotal) -> TypeTotal:
    return (inside[0] + total[0] - before[0], inside[1] + total[1] - before[1], inside[2] + total[2] - before[2])


@read.get(
    ONE + "/grants",
    operation_id="list_grants",
    response_model=GrantPage,
    tags=_tags,
    responses=problems("account_not_found", "cursor_invalid"),
)
async def list_grants(
    merchant_id: MerchantId, call: CallOf, parts: PartsOf, limit: Limit = None, cursor: Cursor = None
) -> Response:
    """List the open grants, in the order in which they will be spent."""
    limit = page_limit(limit, parts.settings)
    now = await parts.now()
    held = await held_of(parts, merchant_id, now)
    bound = {"list": "grants", "merchant": merchant_id.lower()}
    start = 0 if cursor is None else cursor_position(cursor, **bound)
    stored = tuple(await parts.accounts.grants(held.account.number))
    grants = standing_at(held.account, stored, parts.policy, now).grants
    more = len(grants) > start + limit
    return page(
        call,
        now,
        [shapes.grant(held.account, grant) for grant in grants[start : start + limit]],
        limit=limit,
        next_cursor=cursor_text(start + limit, **bound) if more else None,
        has_previous=start > 0,
    )


ROUTERS: tuple[APIRouter, ...] = (read, write, admin)
