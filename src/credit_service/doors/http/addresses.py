"""The address of a client, also behind proxies that the settings trust (TRUSTED_PROXIES).

Anybody can send `Forwarded` or `X-Forwarded-For`. So both count only if the connection comes from a trusted proxy, and
only the hops that trusted proxies added: the client is the right-most address that is not a trusted proxy.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from credit_service.doors.http.call import Call
from credit_service.setting_types import Network

_FOR = re.compile(r'(?:^|;)\s*for=(?:"([^"]*)"|([^;\s"]*))', re.IGNORECASE)
_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d+)?|([^:]*):\d+")
_PREFIX = 64
"""Bits of an IPv6 address that name a customer of a provider; the customer chooses the other bits freely."""


class Addresses:
    """Finds the client of a request."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted
        self.is_trusted = lru_cache(4096)(self._is_trusted)
        self._behind_proxy = lru_cache(4096)(self._find_behind_proxy)

    def client(self, peer: str, call: Call) -> str:
        """The client's address, of an IPv6 client its network. `peer` is the address of the connection."""
        if not self._trusted or not self.is_trusted(peer):
            return bucket(peer)
        return self._behind_proxy(peer, *[b",".join(call.sent(name)) for name in (b"forwarded", b"x-forwarded-for")])

    def _find_behind_proxy(self, peer: str, forwarded: bytes, x_forwarded_for: bytes) -> str:
        found = {
            self._last_untrusted(peer, hops)
            for hops in (_hops(forwarded), x_forwarded_for.decode("latin-1").split(","))
            if hops and hops != [""]
        }
        # A proxy sets one of the two and may pass on the other as the client sent it. If they differ, neither counts.
        return bucket(found.pop() if len(found) == 1 else peer)

    def _last_untrusted(self, peer: str, hops: Sequence[str]) -> str:
        client = peer
        for hop in reversed(hops):
            if _parsed(hop) is None:
                break
            client = hop
            if not self.is_trusted(hop):
                break
        return client

    def _is_trusted(self, address: str) -> bool:
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self._trusted)


@lru_cache(100_000)
def bucket(address: str) -> str:
    """The name under which requests of an address are counted: the address, or the /64 network of an IPv6 address."""
    parsed = _parsed(address)
    if parsed is None:
        return address
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> (128 - _PREFIX) << (128 - _PREFIX))}/{_PREFIX}"
    return str(parsed)


def _hops(forwarded: bytes) -> list[str]:
    """The `for` parameters of a `Forwarded` header (RFC 7239), empty where an element has none."""
    if not forwarded:
        return []
    found = [_FOR.search(element) for element in forwarded.decode("latin-1").split(",")]
    return ["" if match is None else match[1] or match[2] or "" for match in found]


def _parsed(hop: str) -> IPv4Address | IPv6Address | None:
    """The address of a hop, without its port; None if it is no address."""
    hop = hop.strip()
    match = _WITH_PORT.fullmatch(hop)
    try:
        parsed = ip_address(hop if match is None else match[1] or match[2])
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return mapped or parsed
