"""JSON shapes: one of a transaction, an account, a grant and more, for all doors and outlets."""

from collections.abc import Sequence
from typing import Any

import msgspec

from credit_service.ledger import addresses
from credit_service.ledger.account import Account, Announcement, Grant, Transaction
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import Standing
from credit_service.messages.fields import format_time, optional_time
from credit_service.storage.keys import ApiKey
from credit_service.storage.shops import Shop

encode = msgspec.json.Encoder().encode


class ReferenceJson(msgspec.Struct, gc=False):
    """The subject of a transaction."""

    type: str
    id: str


class DrawJson(msgspec.Struct, gc=False):
    """A change of a grant."""

    grant_id: str
    amount: int


class TransactionJson(msgspec.Struct, gc=False):
    """A transaction. A struct is made and encoded in half the time of a dict, and pages have many of these."""

    id: str
    merchant_id: str
    account_id: str
    sequence: int
    operation_type: str
    transaction_type: str
    amount: int
    shortfall: int
    balance_before: int
    balance_after: int
    debt_after: int
    idempotency_key: str
    reference: ReferenceJson | None
    metadata: msgspec.Raw | None
    draws: list[DrawJson]
    reverses: str | None
    actor: str
    correlation_id: str | None
    occurred_at: str
    created_at: str
    hash: str


def transaction(value: Transaction) -> TransactionJson:
    account = value.account
    ids = addresses.prefix(account, addresses.TRANSACTION)
    grants = addresses.prefix(account, addresses.GRANT)
    created_at = format_time(value.created_at)
    return TransactionJson(
        f"{ids}{value.sequence:012x}",
        value.merchant_id,
        addresses.account_text(account),
        value.sequence,
        value.operation,
        value.type,
        value.amount,
        value.shortfall,
        value.balance_before,
        value.balance_after,
        value.debt_after,
        value.key,
        None if value.reference is None else ReferenceJson(*value.reference),
        None if value.metadata is None else msgspec.Raw(value.metadata.encode()),
        [DrawJson(f"{grants}{number:012x}", change) for number, change in value.draws],
        None if value.reverses is None else f"{ids}{value.reverses:012x}",
        value.actor,
        value.correlation_id,
        created_at if value.occurred_at == value.created_at else format_time(value.occurred_at),
        created_at,
        value.hash.hex(),
    )


def account(standing: Standing, policy: Policy, updated_at: int) -> dict[str, Any]:
    """An account with the terms in force; `updated_at` is the time of its last posting."""
    value = standing.account
    last = value.sequence
    return {
        "id": addresses.account_text(value.number),
        "merchant_id": value.merchant_id,
        "state": value.state,
        "balance": value.balance,
        "held": value.held,
        "pending": value.pending,
        "available": value.available,
        "status": standing.status,
        "low_threshold": standing.threshold,
        "when_insufficient": value.when_insufficient or policy.when_insufficient,
        "overdraft_limit": value.overdraft_limit,
        "sequence": value.sequence,
        "last_transaction_id": addresses.text(value.number, addresses.TRANSACTION, last) if last else None,
        "last_transaction_at": optional_time(value.last_transaction_at),
        "created_at": format_time(value.opened_at),
        "updated_at": format_time(updated_at),
    }


def grant(account: Account, value: Grant) -> dict[str, Any]:
    return {
        "id": addresses.text(account.number, addresses.GRANT, value.number),
        "transaction_id": addresses.text(account.number, addresses.TRANSACTION, value.sequence),
        "category": value.category,
        "priority": value.priority,
        "amount": value.amount,
        "remaining": value.remaining,
        "effective_at": format_time(value.effective_at),
        "expires_at": optional_time(value.expires_at),
    }


def announcement(value: Announcement) -> dict[str, Any]:
    """An announcement that a dry run would make."""
    return {"type": value.type, "transaction_sequence": value.sequence, "available": value.available}


def api_key(value: ApiKey) -> dict[str, Any]:
    """An API key, without its secret."""
    return {
        "id": value.id,
        "name": value.name,
        "scope": value.scope,
        "created_at": format_time(value.created_at),
        "expires_at": optional_time(value.expires_at),
        "revoked_at": optional_time(value.revoked_at),
        "last_used_at": optional_time(value.last_used_at),
    }


def shop(value: Shop) -> dict[str, Any]:
    return {
        "shop_domain": value.domain,
        "merchant_id": str(value.merchant_id),
        "linked_at": format_time(value.linked_at),
        "uninstalled_at": optional_time(value.uninstalled_at),
    }


def data_request(request_id: str | None, orders: Sequence[str], received_at: int) -> dict[str, Any]:
    """A shop customer's request for personal data."""
    return {"id": request_id, "orders": orders, "received_at": format_time(received_at)}
