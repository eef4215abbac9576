"""The one connection to NATS, shared by the consumer and the publishers.

A caller asks for the connection each time it begins (`jetstream`), and begins again after one of `FAILURES`. A lost
connection is replaced for ever: also if NATS is away at the start, restarts, or falls silent (pings notice that within
6 seconds). Each connection is a new client: its subscriptions end with it, and unsent messages are dropped. Bound each
use with `asyncio.timeout`, because nats-py's `publish` waits for ever while its buffer is full.

    broker = Broker("nats://user:password@host:4222", name="credit-service")
    broker.start()
    try:
        streams = await broker.jetstream()           # waits until there is a connection
        await broker.ensure_stream("CREDITS", [...]) # creates it only if no stream carries a subject
        await streams.publish(subject, body, headers={"Nats-Msg-Id": id_})
    except FAILURES: ...                             # pause, with jitter, and retry
    finally:
        await broker.close()
"""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from itertools import cycle
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import nats.errors
import structlog
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig, StreamSource
from nats.js.errors import APIError, Error, NotFoundError

from credit_service.backoff import jittered
from credit_service.supervision import Supervisor

FAILURES: Final = (nats.errors.Error, Error, OSError, TimeoutError)
"""The errors that a user of the connection must expect: it was lost, or NATS did not answer or refused."""

_CONNECT_SECONDS: Final = 2
_ANSWER_SECONDS: Final = 5.0
_PING_SECONDS: Final = 2
_PINGS_UNANSWERED: Final = 2
_PAUSE_SECONDS: Final = 0.5
_LOOK_SECONDS: Final = 0.1
_END_SECONDS: Final = 1.0
_MAX_AGE_SECONDS: Final = 30 * 86_400
_log = structlog.get_logger()


class StreamConflict(Exception):
    """A stream cannot be created or lacks what we need, and we may not alter it; one sentence for an operator."""


class BrokerUnavailable(OSError):
    """NATS does not answer; one sentence for an operator, without secrets."""


class _Server(NamedTuple):
    """The address and credentials of a server; its text shows only the address."""

    url: str
    user: str | None
    password: str | None

    def __repr__(self) -> str:
        return self.url


class Broker:
    """A connection to NATS that is replaced whenever it is lost.

    `urls`: one or more, separated by commas, each with user and password (special characters percent-encoded) or with a
    token in place of the user. `name`: our name in NATS' monitoring. `replicas`: of the streams that we create.
    """

    def __init__(self, urls: str, *, name: str, replicas: int = 1) -> None:
        self._servers = [_server(url.strip()) for url in urls.split(",")]
        self._name = name
        self._replicas = replicas
        self._client: Client | None = None
        self._connected = asyncio.Event()
        self._reason: str | None = "not connected yet"
        self._task: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}
        self.conflicts: dict[str, str] = {}  # by stream or consumer: what is wrong with it

    @property
    def name(self) -> str:
        """The name in messages: the addresses without user and password."""
        return f"NATS {', '.join([urlsplit(server.url).netloc for server in self._servers])}"

    def start(self, supervisor: Supervisor | None = None) -> None:
        """Begin to connect; returns at once, whether NATS is there or not."""
        self._task = (supervisor or Supervisor()).start("nats connection", self._keep_connected)

    async def close(self) -> None:
        if self._task is not None:
            while not self._task.done():  # while it connects, nats-py may swallow a cancellation
                self._task.cancel()
                await asyncio.wait([self._task], timeout=_END_SECONDS)
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as known."""
        return self._connected.is_set()

    async def client(self) -> Client:
        """The current connection; waits until there is one."""
        while True:
            await self._connected.wait()
            if (client := self._client) is not None and client.is_connected:
                return client
            await asyncio.sleep(_LOOK_SECONDS)

    async def jetstream(self) -> JetStreamContext:
        """JetStream on the current connection; waits until there is one."""
        return (await self.client()).jetstream(timeout=_ANSWER_SECONDS)

    async def send(self, client: Client, commands: bytes) -> None:
        """Send commands of NATS' protocol, many at once, on a connection. Raises FAILURES.

        nats-py's `publish` inspects each name and value of a header, which takes as long as all the rest of an event.
        """
        if not client.is_connected:
            raise nats.errors.ConnectionClosedError
        await client._send_command(commands)
        await client._flush_pending()

    async def check(self) -> None:
        """Raise BrokerUnavailable unless JetStream answers, and has our streams as they should be."""
        if not self.connected or self._client is None:
            raise BrokerUnavailable(f"{self.name} cannot be used: {self._reason}.")
        try:
            await self._client.jetstream(timeout=1).account_info()
        except FAILURES as error:
            raise BrokerUnavailable(f"{self.name} cannot be used: {reason(error)}.") from None
        if self.conflicts:
            raise BrokerUnavailable(" ".join(self.conflicts.values()))

    async def carriers(self, subjects: Sequence[str]) -> dict[str, list[str]]:
        """The streams that carry these subjects, each with the subjects it carries. Raises FAILURES."""
        client = await self.client()
        found: dict[str, list[str]] = {}
        for subject in subjects:
            question = json.dumps({"subject": subject}).encode()
            answer = await client.request("$JS.API.STREAM.NAMES", question, timeout=_ANSWER_SECONDS)
            told = json.loads(answer.data)
            if "error" in told:
                raise APIError.from_error(told["error"])
            for stream in told.get("streams") or ():
                found.setdefault(stream, []).append(subject)
        return found

    async def ensure_stream(self, name: str, subjects: Sequence[str]) -> dict[str, list[str]]:
        """Make sure that streams carry these subjects; returns which (as `carriers`).

        Creates a stream of this name for subjects without one, and never alters an existing stream. Raises
        StreamConflict if that is impossible, FAILURES if NATS does not answer.
        """
        carried = await self.carriers(subjects)
        missing = [subject for subject in subjects if not any(subject in some for some in carried.values())]
        if missing:
            await self.create_stream(StreamConfig(name=name, subjects=missing))
            carried[name] = missing
        self.agreed(name)
        return carried

    async def create_stream(self, config: StreamConfig) -> None:
        """Create a stream, unless a suitable one exists. Raises as `ensure_stream`."""
        name = str(config.name)
        streams = await self.jetstream()
        try:
            there = (await streams.stream_info(name)).config
        except NotFoundError:
            try:
                await streams.add_stream(_with_limits(config, self._replicas))
            except APIError as error:
                if error.code in (None, 503):  # no leader yet, or not enough of something just now
                    raise
                raise self.conflict(name, f"The stream {name} cannot be created: {error.description}.") from None
            _log.info("stream_created", stream=name, subjects=config.subjects)
            there = config
        wanted, has = _what_it_takes(config), _what_it_takes(there)
        if not wanted <= has:
            lacking = ", ".join(sorted(wanted - has))
            left = "it is left as it is: add that, or remove it."
            raise self.conflict(name, f"The stream {name} is there, without {lacking}; {left}")
        self.agreed(name)

    def conflict(self, name: str, sentence: str) -> StreamConflict:
        """Report a fault of a stream or consumer: in the log once, and by `check` until `agreed`."""
        if self.conflicts.get(name) != sentence:
            _log.error("nats_conflict", reason=sentence)
        self.conflicts[name] = sentence
        return StreamConflict(sentence)

    def agreed(self, name: str) -> None:
        """Clear the fault of a stream or consumer."""
        self.conflicts.pop(name, None)

    # ---- the connection

    async def _keep_connected(self) -> None:
        for server in cycle(self._servers):
            client = Client()
            try:
                async with asyncio.timeout(2 * _CONNECT_SECONDS):
                    await self._connect(client, server)
                self._client, self._reason = client, None
                self._connected.set()
                self._told.clear()
                _log.info("nats_connected", server=server.url)
                while client.is_connected:  # noqa: ASYNC110 - nats-py reports the end only after it sent everything, if ever
                    await asyncio.sleep(_LOOK_SECONDS)
                self._away("the connection was lost" if client.last_error is None else reason(client.last_error))
            except FAILURES as error:
                self._away(reason(client.last_error or error))
            finally:
                self._connected.clear()
                await _dropped(client)
            await asyncio.sleep(jittered(_PAUSE_SECONDS))

    async def _connect(self, client: Client, server: _Server) -> None:
        async def told(error: Exception) -> None:
            """Log the only error that does not end the connection, but leaves requests without an answer."""
            if "permissions violation" in str(error).lower():
                self._warn("nats_permission_missing", reason(error))

        await client.connect(
            server.url,
            user=server.user if server.password is not None else None,
            password=server.password,
            token=server.user if server.password is None else None,
            name=self._name,
            error_cb=told,
            connect_timeout=_CONNECT_SECONDS,
            ping_interval=_PING_SECONDS,
            max_outstanding_pings=_PINGS_UNANSWERED,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
        )

    def _away(self, why: str) -> None:
        self._reason = why
        self._warn("nats_unavailable", why)

    def _warn(self, what: str, why: str) -> None:
        """Log a warning, once while its reason stays the same."""
        if self._told.get(what) != why:
            _log.warning(what, server=self.name, reason=why)
        self._told[what] = why


async def _dropped(client: Client) -> None:
    """Close a connection in whatever state it is.

    An orderly close would first send the buffer, which never ends if the server no longer reads.
    """
    with contextlib.suppress(Exception):
        async with asyncio.timeout(0.5):
            await client.close()
    writer = getattr(client._transport, "_io_writer", None)
    if writer is not None:
        writer.transport.abort()


def reason(error: BaseException) -> str:
    """The reason of a failure, for a message. It contains no credentials: nats-py gets URLs without them."""
    if isinstance(error, APIError) and error.description:
        return error.description
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).removeprefix("nats: ").split()).strip("'")
    return text or type(error).__name__


def _server(url: str) -> _Server:
    parts = urlsplit(url)
    place = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    return _Server(place, user, password)


def _with_limits(config: StreamConfig, replicas: int) -> StreamConfig:
    return config.evolve(
        max_age=_MAX_AGE_SECONDS,
        num_replicas=replicas,
        discard=DiscardPolicy.OLD,
        retention=config.retention or RetentionPolicy.LIMITS,
    )


def _what_it_takes(config: StreamConfig) -> set[str]:
    """The inputs of a stream: subjects and sources."""
    taken = {f"the subject {subject}" for subject in config.subjects or ()}
    for source in config.sources or ():
        assert isinstance(source, StreamSource)
        transforms = source.subject_transforms or ()
        taken |= {f"{transform.src} of the stream {source.name} as {transform.dest}" for transform in transforms}
    return taken
