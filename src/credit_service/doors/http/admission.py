"""Admission: who calls, how often, and with which scope. It is decided once, before the body is read.

The client's address comes first. Then the API key, or else the address, pays for the request. Then the key's scope is
compared with the route's. Looking up a key that this process has not seen costs a query, so the address pays for it
before it is made.
"""

from credit_service.doors.http.addresses import Addresses
from credit_service.doors.http.call import Call
from credit_service.doors.http.keys import Keyring, credential_of, require, unauthenticated
from credit_service.doors.http.rate_limits import RateLimit
from credit_service.doors.http.route_table import Route
from credit_service.settings import Settings
from credit_service.storage.keys import ApiKey


class Admission:
    """Admits requests, before their bodies are read."""

    def __init__(self, settings: Settings, keyring: Keyring) -> None:
        self._keyring = keyring
        self._addresses = Addresses(settings.trusted_proxy_networks)
        self._limits: tuple[RateLimit, RateLimit] | None = None  # of keys, and of addresses
        if settings.rate_limit_enabled:
            self._limits = (
                RateLimit("key", settings.rate_limit_key_per_second, settings.rate_limit_key_burst),
                RateLimit("address", settings.rate_limit_address_per_second, settings.rate_limit_address_burst),
            )

    def admit_anybody(self, call: Call, peer: str, *, is_counted: bool = True) -> None:
        """Admit a request to a public route, or to none. `peer` is the address of the connection.

        Raises Problem if the address has called too often.
        """
        call.address = self._addresses.client(peer, call)
        if is_counted:
            self._count(call, None)

    async def admit_key(self, call: Call, peer: str, route: Route) -> None:
        """Admit a request with an API key to a route that needs a scope.

        Raises Problem if the request is not admitted, and StorageError while a key must be looked up and cannot be.
        """
        call.address = self._addresses.client(peer, call)
        given = credential_of(call.sent(b"authorization"))
        if given is None:
            self._count(call, None)
            raise unauthenticated("Send one API key: Authorization: Bearer cs_…")
        remembered = self._keyring.remembered(given)
        self._count(call, remembered)
        key = await self._keyring.valid(given, route.stale_seconds)
        if key is None:
            raise unauthenticated("This API key is not valid: unknown, expired or revoked.")
        if remembered is None:
            self._pay_instead_of_address(call, key)
        require(key, str(route.scope))
        call.key = key

    def _count(self, call: Call, key: ApiKey | None) -> None:
        """Count a request once. Raises Problem if its caller has called too often."""
        if self._limits is None:
            return
        keys, addresses = self._limits
        # All visitors of a page share its key of scope status, so each visitor's address pays.
        limit, caller = (addresses, call.address) if key is None or key.scope == "status" else (keys, key.id)
        call.rate_limit = limit, limit.count(caller)

    def _pay_instead_of_address(self, call: Call, key: ApiKey) -> None:
        if self._limits is not None and key.scope != "status":
            self._limits[1].give_back(call.address)
            self._count(call, key)
