"""Messages that are refused although the parser accepts them, since two readers could understand them differently.

A proxy and the service must agree on where a request ends and for which host it is; else one caller can slip a request
into the connection of another (request smuggling).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

_HOST = re.compile(rb"(?:[A-Za-z0-9._~%-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_CODING = "The only transfer coding is chunked, once, in HTTP/1.1."


def framing_fault(version: str, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """One sentence about what is wrong with the frame of a request, None if nothing is.

    `version` is the version of HTTP in the request line; `headers` have lower-case names.
    """
    last = dict(headers)
    if len(last) < len(headers):
        names = [name for name, _ in headers]
        if names.count(b"host") > 1:
            return "A request has exactly one Host header."
        if names.count(b"transfer-encoding") > 1:
            return _CODING
    host, coding = last.get(b"host"), last.get(b"transfer-encoding")
    if version != "1.1" and version != "1.0":
        return "Only HTTP/1.1 and HTTP/1.0 are spoken here."
    if host is None and version == "1.1":
        return "A request has exactly one Host header."
    if host is not None and not _is_host(host):
        return "The Host header is not a host name, or an address, with an optional port."
    if coding is not None and (version == "1.0" or coding.strip().lower() != b"chunked"):
        return _CODING
    return None


@lru_cache(1024)
def _is_host(value: bytes) -> bool:
    return _HOST.fullmatch(value.strip()) is not None
