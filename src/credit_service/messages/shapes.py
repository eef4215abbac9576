"""How things look as JSON: one shape of a transaction, an account, a grant, for every door and outlet."""

from collections.abc import Sequence
from typing import Any

import msgspec

from credit_service.ledger import addresses
from credit_service.ledger.account import Account, Announcement, Grant, Transaction
from credit_service.ledger.policy import Policy
from credit_service.ledger.settle import Standing
from credit_service.messages.fields import format_time
from credit_service.storage.keys import ApiKey
from credit_service.storage.shops import Shop

encode = msgspec.json.Encoder().encode


def _time(micros: int | None) -> str | None:
    return None if micros is None else format_time(micros)


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
    """An account as it stands, with the terms in force; `updated_at` is its last posting's time."""
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
        "last_transaction_at": _time(value.last_transaction_at),
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
        "expires_at": _time(value.expires_at),
    }


def announcement(value: Announcement) -> dict[str, Any]:
    """What a posting would tell the world, for those who only rehearse it."""
    return {"type": value.type, "transaction_sequence": value.sequence, "available": value.available}


def api_key(value: ApiKey) -> dict[str, Any]:
    """An API key, without its secret."""
    return {
        "id": value.id,
        "name": value.name,
        "scope": value.scope,
        "created_at": format_time(value.created_at),
        "expires_at": _time(value.expires_at),
        "revoked_at": _time(value.revoked_at),
        "last_used_at": _time(value.last_used_at),
    }


def shop(value: Shop) -> dict[str, Any]:
    """A shop that is linked to its merchant."""
    return {
        "shop_domain": value.domain,
        "merchant_id": str(value.merchant_id),
        "linked_at": format_time(value.linked_at),
        "uninstalled_at": _time(value.uninstalled_at),
    }


def data_request(request_id: str | None, orders: Sequence[str], received_at: int) -> dict[str, Any]:
    """What a customer of a shop asks to be told of."""
    return {"id": request_id, "orders": orders, "received_at": format_time(received_at)}
