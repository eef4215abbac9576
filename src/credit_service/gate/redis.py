"""The level that processes share: Redis or Valkey, from version 6 on.

An answer is kept only if Redis has no later one, so a process that read the store late cannot undo a newer answer. A
value carries a checksum over itself and its key, so a foreign value counts as a miss. A question to Redis has a short
timeout, and after a failure Redis is not asked for a while.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha1
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from credit_service.breaker import ProbedBreaker
from credit_service.gate.answers import VERSION_LENGTH, StatusAnswer, answer_of, line_of, text_of

PATIENCE_SECONDS: Final = 0.05
"""How long a question may take; after that the store is asked."""
_TELLING_SECONDS: Final = 2.0
"""How long a message to other processes may take; no request waits for it."""
_SILENCE_SECONDS: Final = 5.0
"""How often a connection that only listens is checked."""
_LOST: Final[Any] = (RedisConnectionError, RedisTimeoutError, OSError, RuntimeError)
_AWAY: Final = (RedisError, OSError, RuntimeError)  # uvloop raises RuntimeError on a reset connection
_SEAL_LENGTH: Final = 8
_NEWEST: Final = f"""
local function sealed(key, text) return string.sub(redis.sha1hex(key .. text), 1, {_SEAL_LENGTH}) .. text end
for i, key in ipairs(KEYS) do
    local text = ARGV[i + 1]
    local version = string.sub(text, 1, {VERSION_LENGTH})
    local known, known_version = redis.pcall('GET', key), ''
    if type(known) == 'string' and sealed(key, string.sub(known, {_SEAL_LENGTH + 1})) == known then
        known_version = string.sub(known, {_SEAL_LENGTH + 1}, {_SEAL_LENGTH + VERSION_LENGTH})
    end
    if known_version <= version then redis.call('SET', key, sealed(key, text), 'PX', ARGV[1]) end
end
"""
"""Set KEYS to the texts from ARGV[2] on, for ARGV[1] milliseconds; a later version stays."""


OLDEST: Final = (6,)


class RedisLevel:
    """A level, and a channel by pub/sub.

    `name`: the prefix of its keys and its channel, the same for all processes of one ledger. `ttl` in microseconds.
    """

    def __init__(self, url: str, *, name: str, ttl: int) -> None:
        self._ttl = ttl
        self._prefix = f"{name}:status:"
        # One retry, because a lost connection shows only when it is used. The questions that the library asks by
        # itself on each new connection would cost more than the answer.
        options: Mapping[str, Any] = {
            "protocol": 2,
            "driver_info": None,
            "retry": Retry(NoBackoff(), 1, supported_errors=_LOST),
            "socket_connect_timeout": _TELLING_SECONDS,
            "socket_timeout": _TELLING_SECONDS,
        }
        self._pool = BlockingConnectionPool.from_url(url, max_connections=32, timeout=_TELLING_SECONDS, **options)
        self._redis: Any = Redis(connection_pool=self._pool)
        # Channels are the same in all databases of a server.
        self._channel = f"{self._prefix}{self._pool.connection_kwargs.get('db', 0)}"
        self.breaker = ProbedBreaker("redis", self.check)

    async def check(self) -> None:
        """Ping. Raises ConnectionError."""
        with _plainly():
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._redis.ping()

    async def server(self) -> tuple[str, tuple[int, ...]]:
        """The server's name, and the version of Redis it is compatible with. Raises ConnectionError."""
        with _plainly():
            async with asyncio.timeout(_TELLING_SECONDS):
                told = await self._redis.info("server")
        return told.get("server_name", "redis"), tuple(map(int, told["redis_version"].split(".")))

    async def get(self, merchant_ids: Collection[str], now: int) -> Mapping[str, StatusAnswer]:
        if self.breaker.is_open():
            return {}
        keys = [self._key(merchant_id) for merchant_id in merchant_ids]
        values: list[bytes | None] = []
        with self._watched():
            async with asyncio.timeout(PATIENCE_SECONDS):
                values = await self._redis.mget(keys)
        found: dict[str, StatusAnswer] = {}
        for merchant_id, key, value in zip(merchant_ids, keys, values, strict=False):
            answer = None if value is None else self._unsealed(merchant_id, key, value, now)
            if answer is not None and answer.until > now:
                found[merchant_id] = answer._replace(source="redis")
        return found

    async def put(self, answers: Collection[StatusAnswer]) -> None:
        if not self.breaker.is_open():
            with self._watched():
                async with asyncio.timeout(_TELLING_SECONDS):
                    await self._redis.eval(*self._newest(answers))

    async def tell(self, answers: Collection[StatusAnswer]) -> None:
        """See `Channel.tell`. Keeps the answers first, so that a process that hears of them finds them."""
        message = "\n".join(map(line_of, answers))
        async with asyncio.timeout(_TELLING_SECONDS), self._redis.pipeline(transaction=False) as pipeline:
            pipeline.eval(*self._newest(answers))
            pipeline.publish(self._channel, message)
            await pipeline.execute()

    async def listen(self, joined: Callable[[], None], heard: Callable[[str], None]) -> None:
        async with self._redis.pubsub() as connection:
            await connection.subscribe(self._channel)
            while True:
                message = await connection.get_message(timeout=_SILENCE_SECONDS)
                if message is None:
                    await connection.ping()
                    message = await connection.get_message(timeout=_TELLING_SECONDS)
                    if message is None:
                        raise TimeoutError("Redis was silent.")
                if message["type"] == "subscribe":
                    joined()
                elif message["type"] == "message":
                    for line in message["data"].decode("latin-1").split("\n"):
                        heard(line)

    async def close(self) -> None:
        await self.breaker.stop()
        await self._redis.aclose()
        await self._pool.disconnect()

    def _key(self, merchant_id: str) -> str:
        return f"{self._prefix}{merchant_id}"

    def _newest(self, answers: Collection[StatusAnswer]) -> list[Any]:
        # A full TTL, although the answer may be good for less: during it no earlier answer can replace this one.
        keys = [self._key(answer.merchant_id) for answer in answers]
        return [_NEWEST, len(keys), *keys, max(1, self._ttl // 1000), *map(text_of, answers)]

    def _unsealed(self, merchant_id: str, key: str, value: bytes, now: int) -> StatusAnswer | None:
        seal, text = value[:_SEAL_LENGTH], value[_SEAL_LENGTH:]
        if sha1(key.encode() + text, usedforsecurity=False).hexdigest()[:_SEAL_LENGTH].encode() != seal:
            return None
        return answer_of(merchant_id, text.decode("latin-1"), now, self._ttl)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Open the breaker on a failure inside, and do not raise it."""
        try:
            yield
        except _AWAY as error:
            self.breaker.open(type(error).__name__)  # the message may quote values


@contextmanager
def _plainly() -> Iterator[None]:
    """Replace a library's message, which may quote values, by our own."""
    try:
        yield
    except _AWAY as error:
        raise ConnectionError(f"Redis cannot be used: {type(error).__name__}.") from None


async def server_of(url: str) -> tuple[str, tuple[int, ...]]:
    """A server's name, and the version of Redis it is compatible with. Raises ConnectionError."""
    level = RedisLevel(url, name="doctor", ttl=0)
    try:
        return await level.server()
    finally:
        await level.close()
