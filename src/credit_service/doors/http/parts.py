"""The parts of the running service that endpoints use. An endpoint receives those that its parameters name."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from credit_service.doors.http.keys import Keyring
from credit_service.doors.http.ledger import Ledger
from credit_service.doors.shopify_inbox import Inbox
from credit_service.erasure import Erasure
from credit_service.gate.status import Gate
from credit_service.observability import Metrics
from credit_service.posting import Posting
from credit_service.settings import Settings
from credit_service.storage.keys import Keys
from credit_service.storage.outbox import Outbox, Position
from credit_service.storage.policies import FailPolicies
from credit_service.storage.shops import Shops
from credit_service.storage.webhooks import WebhookEndpoints
from credit_service.supervision import Supervisor

if TYPE_CHECKING:
    from credit_service.broker import Broker

Follow = Callable[[int | None, Position], AsyncGenerator[bytes]]
"""Lines of events after a position, of one account or of all, as they come; empty if there were none for a while."""
Check = Callable[[], Awaitable[object]]
"""Raises StorageError or OSError while a part is away, or cannot do its work."""


class Publishing(Protocol):
    """The publisher of events. `fault` says why it does not publish, if so."""

    fault: str | None

    async def lag_seconds(self) -> float:
        """The age of the oldest event that is not published yet, in seconds. Raises StorageError."""
        ...


class WebhookSender(Protocol):
    """The sender of webhooks."""

    async def check_target(self, url: str) -> None:
        """Raise OSError, with a sentence, if no webhook may go to this URL."""
        ...

    def changed(self) -> None:
        """An endpoint was registered or changed, or has a new delivery."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """See the module. `broker`, `publishing` and `check_redis` are None in a service without them."""

    ledger: Ledger
    settings: Settings
    metrics: Metrics
    keyring: Keyring
    posting: Posting
    gate: Gate
    outbox: Outbox
    keys: Keys
    endpoints: WebhookEndpoints
    shops: Shops
    fail_policies: FailPolicies
    erasure: Erasure
    inbox: Inbox
    supervisor: Supervisor
    sender: WebhookSender
    follow: Follow
    is_stopping: Callable[[], bool]
    check_storage: Check
    check_redis: Check | None = None
    broker: "Broker | None" = None
    publishing: Publishing | None = None
