"""The HTTP client for webhooks: it signs (Standard Webhooks), checks each target, and trusts no answer.

It follows no redirect, keeps no cookie, and bounds the time and size of an answer. Of an answer it keeps only the
status and Retry-After.
"""

import errno
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from standardwebhooks import Webhook
from yarl import URL

from credit_service import __version__
from credit_service.ledger.account import MICROSECONDS
from credit_service.outlets.targets import NotAllowed, Targets

TIMEOUT_SECONDS: Final = 15.0
MAX_ANSWER_BYTES: Final = 16 * 1024
"""A longer answer is not read to its end, and its connection is not used again."""
CONTENT_TYPE: Final = "application/cloudevents+json"
_CONNECTIONS: Final = 200
_IDLE_SECONDS: Final = 4.0  # many servers close a connection after 5 idle seconds, perhaps just when it is used again


class Answered(NamedTuple):
    """The result of sending: a status, if any; and the error in one sentence, if any."""

    status: int | None
    error: str | None = None
    retry_after_seconds: float | None = None


def headers(message_id: str, body: bytes, secrets: Sequence[str], now: int) -> dict[str, str]:
    """The headers that sign a message (Standard Webhooks), with each of the secrets.

    `now`: the time of sending, in microseconds since 1970; receivers refuse messages that are minutes old.
    """
    at = datetime.fromtimestamp(now // MICROSECONDS, UTC)
    text = body.decode()
    return {
        "content-type": CONTENT_TYPE,
        "webhook-id": message_id,
        "webhook-timestamp": str(now // MICROSECONDS),
        "webhook-signature": " ".join([Webhook(secret).sign(message_id, at, text) for secret in secrets]),
    }


class Client:
    """Sends webhooks, in one event loop. The caller must `close` it."""

    def __init__(self, targets: Targets, *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._timeout_seconds = timeout_seconds
        self._sessions = {scheme: self._session(_Guard(targets, scheme == "https")) for scheme in ("http", "https")}

    def _session(self, guard: "_Guard") -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            resolver=guard,
            socket_factory=guard.socket,
            use_dns_cache=False,
            limit=_CONNECTIONS,
            keepalive_timeout=_IDLE_SECONDS,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_seconds),
            headers={"user-agent": f"credit-service/{__version__}", "accept": "*/*", "accept-encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # a proxy would resolve the names itself
            read_bufsize=MAX_ANSWER_BYTES,
        )

    async def send(self, url: str, body: bytes, signed: dict[str, str]) -> Answered:
        """POST a body once. Raises nothing, whatever the target does."""
        try:
            session = self._sessions[URL(url).scheme]
            async with session.post(url, data=body, headers=signed, allow_redirects=False) as answer:
                await _pass_over(answer)
                return _answered(answer)
        except TimeoutError:
            return Answered(None, f"It did not answer within {self._timeout_seconds:g} seconds.")
        except (aiohttp.ClientError, OSError, ValueError, LookupError) as error:
            return Answered(None, _sentence(error))

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


class _Guard(AbstractResolver):
    """Resolves a target, checks every address, and checks the connected one again.

    So names and addresses in URLs are treated alike, and a name that changes its address gains nothing.
    """

    def __init__(self, targets: Targets, secure: bool) -> None:
        self._targets = targets
        self._secure = secure

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Every address of a host. Raises OSError, NotAllowed among them."""
        found = await self._targets.addresses(host, port, secure=self._secure)
        return [
            ResolveResult(hostname=host, host=address[0], port=port, family=kind, proto=proto, flags=0)
            for kind, _, proto, _, address in found
        ]

    def socket(self, info: Any) -> socket.socket:
        """A socket for this address alone. Raises NotAllowed."""
        kind, type_, proto, _, address = info
        self._targets.judge(address[0], address[1], secure=self._secure)
        return socket.socket(kind, type_, proto)

    async def close(self) -> None:
        """Do nothing: the guard holds no resources."""


async def _pass_over(answer: aiohttp.ClientResponse) -> None:
    """Read a short answer, so that the connection can be used again; close the connection of a long one."""
    left = MAX_ANSWER_BYTES
    with suppress(aiohttp.ClientError, TimeoutError, OSError):  # only the status counts
        while left > 0:
            chunk = await answer.content.read(left)
            if not chunk:
                return
            left -= len(chunk)
    answer.close()


def _answered(answer: aiohttp.ClientResponse) -> Answered:
    status = answer.status
    if 200 <= status < 300:
        return Answered(status)
    more = ", and redirects are not followed" if 300 <= status < 400 else ""
    return Answered(status, f"It answered {status}{more}.", _retry_after(answer.headers.get("retry-after", "")))


def _retry_after(text: str) -> float | None:
    """Seconds to wait (RFC 9110): a number of them, or a date."""
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    return None


def _sentence(error: BaseException) -> str:
    """The error in our own words, because a library's message may contain anything."""
    cause = getattr(error, "os_error", error)
    match cause if isinstance(cause, NotAllowed) else error:
        case NotAllowed() as refused:
            return str(refused)
        case aiohttp.ClientConnectorDNSError():
            return "Its name cannot be resolved."
        case aiohttp.ClientConnectorCertificateError(certificate_error=reason):
            told = getattr(reason, "verify_message", "") or "it is not valid"
            return f"Its TLS certificate was not accepted: {told}."
        case aiohttp.ClientSSLError():
            return "The TLS handshake failed."
        case aiohttp.ClientConnectorError(os_error=reason):
            return f"The connection failed: {os.strerror(reason.errno or errno.EIO)}."
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            return "It closed the connection without an answer."
        case aiohttp.ClientResponseError():
            return "Its answer is not valid HTTP."
    return f"It could not be sent: {type(error).__name__}."
