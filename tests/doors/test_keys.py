"""The keyring: which key a caller has, and how long the answer is cached."""

import hmac
import time
from typing import Any

import pytest

from credit_service.doors.http import keys
from credit_service.doors.http.keys import Keyring, credential_of, new_id, new_key, require
from credit_service.doors.http.problems import Problem
from credit_service.storage.engine import StorageUnavailable
from credit_service.storage.keys import ApiKey
from tests.doors.keys import key_of

SECOND = 1_000_000


class FakeStore:
    def __init__(self, *known: ApiKey) -> None:
        self.keys = {key.id: key for key in known}
        self.asked: list[str] = []
        self.used: list[dict[str, int]] = []
        self.away = False

    async def get(self, key_id: str) -> ApiKey | None:
        self.asked.append(key_id)
        if self.away:
            raise StorageUnavailable("gone")
        return self.keys.get(key_id)

    async def note_uses(self, used: dict[str, int]) -> None:
        if self.away:
            raise StorageUnavailable("gone")
        self.used.append(dict(used))


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time of day, in seconds since 1970."""
    clock = Clock()
    monkeypatch.setattr(time, "time_ns", lambda: int(clock.now * 1e9))
    return clock


def ring(*known: ApiKey) -> tuple[Any, Clock, Keyring]:
    store: Any = FakeStore(*known)
    clock = Clock()
    return store, clock, Keyring(store, clock)


async def knows(keyring: Keyring, whole: str, stale_seconds: float = 0) -> bool:
    return await key_of(keyring, whole, stale_seconds) is not None


def test_new_key_keeps_only_the_hash_of_its_secret() -> None:
    made = new_key("till", "read", 5, 9)
    _, id_, secret = made.whole.split("_", 2)
    assert id_ == made.key.id
    assert len(secret) == 43
    assert (made.key.name, made.key.scope, made.key.created_at, made.key.expires_at) == ("till", "read", 5, 9)
    assert secret not in repr(made.key)
    assert len(made.key.secret_hash) == 32
    assert len({new_key("x", "read", 0).key.id for _ in range(100)}) == 100


async def test_only_the_whole_key_is_valid() -> None:
    made, other = new_key("a", "read", 0), new_key("b", "read", 0)
    _, _, keyring = ring(made.key, other.key)
    assert await knows(keyring, made.whole)
    swapped = f"cs_{made.key.id}_{other.whole[-43:]}"
    for wrong in (
        swapped,
        made.whole[:-1],
        f"{made.whole}A",
        made.whole.upper(),
        "",
        "cs_",
        f"cs_{'a' * 12}_{'a' * 43}",
    ):
        assert not await knows(keyring, wrong)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_case_of_scheme_and_spaces_around_key_do_not_matter(scheme: str) -> None:
    made = new_key("a", "read", 0)
    for sent in (f"{scheme} {made.whole}", f"{scheme}  {made.whole} \t"):
        given = credential_of([sent.encode()])
        assert given == (made.key.id, made.key.secret_hash)


def test_credential_is_one_header_or_none() -> None:
    sent = f"Bearer {new_key('a', 'read', 0).whole}".encode()
    assert credential_of([]) is None
    assert credential_of([sent, sent]) is None


async def test_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made = new_key("a", "read", 0)
    _, _, keyring = ring(made.key)
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert await knows(keyring, made.whole)
    assert not await knows(keyring, f"cs_{made.key.id}_{'a' * 43}")
    assert compared == [(32, 32), (32, 32)]


async def test_cached_key_expires_at_its_instant(wall: Clock) -> None:
    made = new_key("a", "read", 0, expires_at=200 * SECOND)
    _, _, keyring = ring(made.key)
    wall.now = 199.999999
    assert await knows(keyring, made.whole)
    wall.now = 200
    assert not await knows(keyring, made.whole)


async def test_revocation_elsewhere_is_in_force_within_5_seconds() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.keys[made.key.id] = made.key._replace(revoked_at=1)
    clock.now += 5
    assert not await knows(keyring, made.whole)


async def test_revocation_here_is_in_force_at_once() -> None:
    made = new_key("a", "read", 0)
    store, _, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.keys[made.key.id] = made.key._replace(revoked_at=1)
    keyring.forget(made.key.id)
    assert not await knows(keyring, made.whole)
    keyring.forget("unknown")


async def test_store_is_not_asked_for_every_request() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    for _ in range(10):
        assert await knows(keyring, made.whole)
        assert not await knows(keyring, f"cs_{made.key.id}_{'b' * 43}")
        assert not await knows(keyring, f"cs_{'b' * 12}_{'b' * 43}")
    assert store.asked == [made.key.id, "b" * 12]
    clock.now += 5
    assert await knows(keyring, made.whole)
    assert len(store.asked) == 3


async def test_store_is_not_asked_about_malformed_keys() -> None:
    store, _, keyring = ring()
    for wrong in ("", "x", "cs_a_b", f"cs_{'A' * 12}_{'a' * 43}", f"cs_{'a' * 12}_{'é' * 43}"):
        assert not await knows(keyring, wrong)
    assert store.asked == []


async def test_ten_thousand_unknown_ids_evict_no_valid_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MAX_UNKNOWN", 3)
    made = new_key("a", "read", 0)
    store, _, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    for _ in range(10_000):
        assert not await knows(keyring, f"cs_{new_id()}_{'a' * 43}")
        assert len(keyring._unknown) <= 3
    assert await knows(keyring, made.whole)
    assert store.asked.count(made.key.id) == 1


async def test_cache_of_valid_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MAX_KNOWN", 3)
    made = [new_key("a", "read", 0) for _ in range(5)]
    _, _, keyring = ring(*[new.key for new in made])
    for new in made:
        assert await knows(keyring, new.whole)
        assert len(keyring._known) <= 3
    assert await knows(keyring, made[0].whole)


async def test_unknown_id_is_asked_for_again_after_some_seconds() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring()
    assert not await knows(keyring, made.whole)
    store.keys[made.key.id] = made.key
    clock.now += 3
    assert not await knows(keyring, made.whole)
    clock.now += 2
    assert await knows(keyring, made.whole)


# ---- while the store is away


async def test_cached_key_stays_valid_for_the_stale_seconds_of_the_route() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.away = True
    clock.now += 299
    assert await knows(keyring, made.whole, stale_seconds=300)
    with pytest.raises(StorageUnavailable):
        await knows(keyring, made.whole)
    clock.now += 1
    with pytest.raises(StorageUnavailable):
        await knows(keyring, made.whole, stale_seconds=300)


async def test_wrong_secret_is_refused_without_the_store() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.away = True
    clock.now += 100
    assert not await knows(keyring, f"cs_{made.key.id}_{'a' * 43}", stale_seconds=300)


async def test_silent_store_is_not_asked_about_a_stale_key() -> None:
    made = new_key("a", "read", 0)
    store: Any = FakeStore(made.key)
    clock, silent = Clock(), False
    keyring = Keyring(store, clock, lambda: silent)
    assert await knows(keyring, made.whole)
    silent = True
    clock.now += 10
    assert await knows(keyring, made.whole, stale_seconds=300)
    assert len(store.asked) == 1
    assert await knows(keyring, made.whole)  # other routes ask
    assert len(store.asked) == 2


# ---- uses


async def test_last_use_is_written_once_a_minute(wall: Clock) -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    wall.now = 1000
    for _ in range(3):
        assert await knows(keyring, made.whole)
    await keyring.flush()
    await keyring.flush()
    assert store.used == [{made.key.id: 1000 * SECOND}]
    store.keys[made.key.id] = made.key._replace(last_used_at=1000 * SECOND)
    clock.now += 5
    wall.now = 1060
    assert await knows(keyring, made.whole)
    await keyring.flush()
    assert len(store.used) == 1
    wall.now = 1061
    assert await knows(keyring, made.whole)
    await keyring.flush()
    assert store.used[1:] == [{made.key.id: 1061 * SECOND}]


async def test_use_is_written_later_if_the_store_is_away(wall: Clock) -> None:
    made = new_key("a", "read", 0)
    store, _, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.away = True
    with pytest.raises(StorageUnavailable):
        await keyring.flush()
    store.away = False
    await keyring.flush()
    assert store.used == [{made.key.id: 100 * SECOND}]


async def test_use_of_a_refused_key_is_not_written() -> None:
    made = new_key("a", "read", 0)
    store, _, keyring = ring(made.key._replace(revoked_at=1))
    assert not await knows(keyring, made.whole)
    await keyring.flush()
    assert store.used == []


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [("read", ["read"]), ("write", ["read", "write"]), ("admin", ["read", "write", "admin"])],
)
def test_scopes_include_each_other(scope: str, allowed: list[str]) -> None:
    key = new_key("a", scope, 0).key
    for needed in ("read", "write", "admin"):
        if needed in allowed:
            require(key, needed)
        else:
            with pytest.raises(Problem) as refused:
                require(key, needed)
            assert (refused.value.code, refused.value.status) == ("scope_missing", 403)
