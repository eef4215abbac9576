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


def transaction(value: Transaction) -> dict[str, Any]:
    """A transaction."""
    account = value.account
    ids = addresses.prefix(account, addresses.TRANSACTION)
    grants = addresses.prefix(account, addresses.GRANT)
    return {
        "id": f"{ids}{value.sequence:012x}",
        "merchant_id": addresses.merchant_text(value.merchant_id.int),
        "account_id": addresses.text(account, addresses.ACCOUNT, 0),
        "sequence": value.sequence,
        "operation_type": value.operation,
        "transaction_type": value.type,
        "amount": value.amount,
        "shortfall": value.shortfall,
        "balance_before": value.balance_before,
        "balance_after": value.balance_after,
        "debt_after": value.debt_after,
        "idempotency_key": value.key,
        "reference": None if value.reference is None else value.reference._asdict(),
        "metadata": None if value.metadata is None else msgspec.Raw(value.metadata.encode()),
        "draws": [{"grant_id": f"{grants}{number:012x}", "amount": change} for number, change in value.draws],
        "reverses": None if value.reverses is None else f"{ids}{value.reverses:012x}",
        "actor": value.actor,
        "correlation_id": value.correlation_id,
        "occurred_at": format_time(value.occurred_at),
        "created_at": format_time(value.created_at),
        "hash": value.hash.hex(),
    }


def account(standing: Standing, policy: Policy, updated_at: int) -> dict[str, Any]:
    """An account with the terms in force; `updated_at` is the time of its last posting."""
    value = standing.account
    last = value.sequence
    return {
        "id": addresses.text(value.number, addresses.ACCOUNT, 0),
        "merchant_id": str(value.merchant_id),
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
    """An open grant."""
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
    """A link from a shop to its merchant."""
    return {
        "shop_domain": value.domain,
        "merchant_id": str(value.merchant_id),
        "linked_at": format_time(value.linked_at),
        "uninstalled_at": optional_time(value.uninstalled_at),
    }


def data_request(request_id: str | None, orders: Sequence[str], received_at: int) -> dict[str, Any]:
    """A shop customer's request for personal data."""
    return {"id": request_id, "orders": orders, "received_at": format_time(received_at)}
