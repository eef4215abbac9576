"""The allowed targets of webhooks: public addresses, and the networks that the operator allows.

Otherwise the author of a URL could make the service call its own machine, its neighbours or its cloud's metadata
service (SSRF). A URL is checked when it is saved, and each address again when it is connected to, because the address
of a name can change.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, Final

from yarl import URL

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Awaitable[Sequence[Any]]]
"""Resolves a host to addresses in the form of `getaddrinfo`. Raises OSError."""

SAVE_SECONDS: Final = 3.0
"""How long resolving a name may take when a URL is saved; it is checked again at each connection."""

# The registries of special addresses (RFC 6890 and later), written out, because `is_global` of Python's ipaddress
# differs by version and includes multicast, NAT64 and 6to4. 168.63.129.16 is the host of a machine on Azure.
_NOT_PUBLIC: Final = tuple(
    ip_network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32"),
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
)
_UNICAST: Final = ip_network("2000::/3")
"""The public unicast addresses of IPv6."""
_NAT64: Final = ip_network("64:ff9b::/96")
_NUMERIC: Final = re.compile(r"(?i)(.*\.)?(\d+|0x[0-9a-f]*)\.?")


class NotAllowed(OSError):
    """A target that webhooks may not use; the message is one sentence."""


class Targets:
    """The rules: the networks that the operator allows, and with `public` every public address as well."""

    def __init__(self, networks: Iterable[Network], *, public: bool, resolve: Resolve | None = None) -> None:
        self._networks = tuple(networks)
        self._public = public
        self._resolve = resolve or _resolve

    async def check(self, url: str) -> None:
        """Check a URL before it is saved. Raises NotAllowed.

        Accepts a name that cannot be resolved now, because it is checked again before each delivery.
        """
        parsed = parse(url)
        host, port = str(parsed.host), int(parsed.port or 0)
        try:
            async with asyncio.timeout(SAVE_SECONDS):
                await self.addresses(host, port, secure=parsed.scheme == "https")
        except NotAllowed:
            raise
        except (OSError, UnicodeError):
            return

    async def addresses(self, host: str, port: int, *, secure: bool) -> Sequence[Any]:
        """The addresses of a host. Raises NotAllowed if one of them is not allowed, OSError if there is none."""
        found = await self._resolve(host, port)
        for *_, address in found:
            self.judge(address[0], port, secure=secure)
        return found

    def judge(self, text: str, port: int, *, secure: bool) -> None:
        """Raise NotAllowed unless connections to this address and port are allowed, with TLS or without."""
        address = _meant(ip_address(text.partition("%")[0]))
        if any(address in network for network in self._networks):
            return
        if not (self._public and is_public(address)):
            raise NotAllowed(f"Webhooks may not go to the address {address} (WEBHOOK_ALLOWED_NETWORKS).")
        if not secure:
            raise NotAllowed("A webhook to a public address needs https.")
        if port != 443 and port < 1024:  # where other services listen that a request might affect
            raise NotAllowed("A webhook to a public address goes to port 443, or to one from 1024 on.")


def is_public(address: Address) -> bool:
    """Whether an address is public and unicast."""
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return not any(address in network for network in _NOT_PUBLIC)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address maps or translates to; otherwise the address itself."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def parse(url: str) -> URL:
    """A URL as the client will read it. Raises NotAllowed if no webhook can use it."""
    try:
        parsed = URL(url)
        host, port = parsed.host, parsed.port
    except (ValueError, UnicodeError):
        raise NotAllowed("This is not a URL.") from None
    if parsed.scheme not in ("http", "https") or not host or not port:
        raise NotAllowed("A webhook needs a URL like https://example.com/credits.")
    if parsed.user is not None or parsed.password is not None:
        raise NotAllowed("A URL must hold no user and no password: deliveries are signed instead.")
    if parsed.fragment or "#" in url:
        raise NotAllowed("A URL must have no fragment: it is never sent.")
    if _NUMERIC.fullmatch(host) and not _is_address(host):
        raise NotAllowed("An address is written as four numbers, like 127.0.0.1.")
    return parsed


def _is_address(host: str) -> bool:
    try:
        return str(ip_address(host)) == host
    except ValueError:
        return False


async def _resolve(host: str, port: int) -> Sequence[Any]:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
