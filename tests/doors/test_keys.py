"""The keyring: who calls."""

import hmac
import time
from typing import Any

import pytest

from credit_service.doors.http import keys
from credit_service.doors.http.keys import Keyring, new_key, require
from credit_service.doors.http.problems import Problem
from credit_service.storage.engine import StorageUnavailable
from credit_service.storage.keys import ApiKey

SECOND = 1_000_000


class FakeStore:
    def __init__(self, *known: ApiKey) -> None:
        self.keys = {key.id: key for key in known}
        self.asked: list[str] = []
        self.used: list[dict[str, int]] = []
        self.away = False

    async def get(self, key_id: str) -> ApiKey | None:
        self.asked.append(key_id)
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


async def knows(keyring: Keyring, whole: str) -> bool:
    try:
        await keyring.authenticate([f"Bearer {whole}".encode()])
    except Problem as problem:
        refused = problem
    else:
        return True
    assert (refused.code, refused.status) == ("unauthenticated", 401)
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert len(whole) < 10 or whole not in refused.detail
    return False


def test_a_new_key_has_a_public_id_and_256_bits_of_which_only_the_hash_is_kept() -> None:
    made = new_key("till", "read", 5, 9)
    _, id_, secret = made.whole.split("_", 2)
    assert id_ == made.key.id
    assert len(secret) == 43
    assert (made.key.name, made.key.scope, made.key.created_at, made.key.expires_at) == ("till", "read", 5, 9)
    assert secret not in repr(made.key)
    assert len(made.key.secret_hash) == 32
    assert len({new_key("x", "read", 0).key.id for _ in range(100)}) == 100


async def test_only_the_whole_key_is_known() -> None:
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
async def test_a_scheme_has_no_case(scheme: str) -> None:
    made = new_key("a", "read", 0)
    _, _, keyring = ring(made.key)
    assert (await keyring.authenticate([f"{scheme} {made.whole}".encode()])).id == made.key.id
    assert (await keyring.authenticate([f"{scheme}  {made.whole} \t".encode()])).id == made.key.id


async def test_there_is_one_credential_or_none() -> None:
    made = new_key("a", "read", 0)
    _, _, keyring = ring(made.key)
    sent = f"Bearer {made.whole}".encode()
    for credentials in ([], [sent, sent]):
        with pytest.raises(Problem):
            await keyring.authenticate(credentials)


async def test_a_secret_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
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


async def test_a_key_expires_at_its_instant_though_it_is_remembered(wall: Clock) -> None:
    made = new_key("a", "read", 0, expires_at=200 * SECOND)
    _, _, keyring = ring(made.key)
    wall.now = 199.999999
    assert await knows(keyring, made.whole)
    wall.now = 200
    assert not await knows(keyring, made.whole)


async def test_a_revocation_elsewhere_is_in_force_within_5_seconds() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.keys[made.key.id] = made.key._replace(revoked_at=1)
    clock.now += 5
    assert not await knows(keyring, made.whole)


async def test_a_revocation_here_is_in_force_at_once() -> None:
    made = new_key("a", "read", 0)
    store, _, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.keys[made.key.id] = made.key._replace(revoked_at=1)
    keyring.forget(made.key.id)
    assert not await knows(keyring, made.whole)
    keyring.forget("unknown")


async def test_the_store_is_not_asked_for_every_request() -> None:
    made = new_key("a", "read", 0)
    store, clock, keyring = ring(made.key)
    for _ in range(10):
        assert await knows(keyring, made.whole)
        assert not await knows(keyring, f"cs_{'b' * 12}_{'b' * 43}")
    assert store.asked == [made.key.id, "b" * 12]
    clock.now += 5
    assert await knows(keyring, made.whole)
    assert len(store.asked) == 3


async def test_what_is_not_a_key_is_not_asked_for() -> None:
    store, _, keyring = ring()
    for wrong in ("", "x", "cs_a_b", f"cs_{'A' * 12}_{'a' * 43}", f"cs_{'a' * 12}_{'é' * 43}"):
        assert not await knows(keyring, wrong)
    assert store.asked == []


async def test_no_more_than_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_REMEMBERED_KEYS", 3)
    made = new_key("a", "read", 0)
    _, _, keyring = ring(made.key)
    for letter in "bcdefgh":
        assert not await knows(keyring, f"cs_{letter * 12}_{'a' * 43}")
        assert len(keyring._known) <= 3
    assert await knows(keyring, made.whole)


async def test_the_last_use_is_noted_once_a_minute(wall: Clock) -> None:
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


async def test_a_use_that_could_not_be_noted_is_noted_later(wall: Clock) -> None:
    made = new_key("a", "read", 0)
    store, _, keyring = ring(made.key)
    assert await knows(keyring, made.whole)
    store.away = True
    with pytest.raises(StorageUnavailable):
        await keyring.flush()
    store.away = False
    await keyring.flush()
    assert store.used == [{made.key.id: 100 * SECOND}]


async def test_a_refused_key_is_not_used() -> None:
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
