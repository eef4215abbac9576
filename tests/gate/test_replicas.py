"""Two replicas on one PostgreSQL: each sees the postings of the other, whatever fails between them."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from tests.doors.running import Running, new_merchant, posting
from tests.served import plain_client
from tests.servers.proxy import Proxy
from tests.servers.valkey import Valkey
from tests.storage.engines import only_on

TTL = 0.8
FLOWING_SECONDS = 0.25
"""With messages flowing no answer is older than a change by more."""
SLACK_SECONDS = 0.75
"""For a machine on which much else runs."""
pytestmark = only_on("postgres")


@pytest.fixture
def replicas(new_ledger: Callable[[], str]) -> Iterator[Callable[..., list[Running]]]:
    """Starts two services on one ledger."""
    with ExitStack() as stack:

        def started(**settings: Any) -> list[Running]:
            url = new_ledger()
            given = {"plugin_status_cache_ttl": TTL, "service_source": uuid4().hex, "trial_credits": 1, **settings}
            return [stack.enter_context(Running(database_url=url, **given)) for _ in range(2)]

        yield started


def told(running: Running, merchant: str) -> str:
    answer = running.get(f"/credits/plugin-status/{merchant}", None)
    assert answer.status_code == 200
    data = answer.json()["data"]
    assert data["reason"] != "unavailable"
    return str(data["status"])


def increase(running: Running, merchant: str) -> httpx2.Response:
    return running.transact(posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION"))


def flip(running: Running, merchant: str, status: str) -> str:
    """Change the plugin status by a posting; returns what it is then."""
    done = running.spend(merchant) if status == "enabled" else increase(running, merchant)
    assert done.status_code == 201, done.text
    return "disabled" if status == "enabled" else "enabled"


class Checker:
    """Asks both replicas all the time, and notes how much later than a change an answer was still the one before."""

    def __init__(self, replicas: list[Running], merchants: list[str]) -> None:
        self._merchants = merchants
        self._stop = threading.Event()
        # By merchant: since when (monotonic) which status holds. Noted after the change was answered.
        self.changed: dict[str, tuple[float, str]] = {}
        self.oldest = 0.0
        self.asked = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(one,)) for one in replicas]

    def __enter__(self) -> "Checker":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        assert self.failures == []
        assert self.asked > 20

    def _run(self, replica: Running) -> None:
        chance = random.Random(replica.port)
        with plain_client(f"{replica.url}/api/v1/credits/plugin-status/", timeout=10) as client:
            while not self._stop.is_set():
                merchant = chance.choice(self._merchants)
                asked_at = time.monotonic()
                before = self.changed.get(merchant)
                answer = client.get(merchant)
                after = self.changed.get(merchant)
                self.asked += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                elif before is not None and before == after and answer.json()["data"]["status"] != before[1]:
                    self.oldest = max(self.oldest, asked_at - before[0])
                time.sleep(0.002)


def post_at_random(replicas: list[Running], checker: Checker, merchants: list[str], number: int, pause: float) -> None:
    chance = random.Random(number)
    status = {merchant: checker.changed.get(merchant, (0, "enabled"))[1] for merchant in merchants}
    for _ in range(number):
        merchant = chance.choice(merchants)
        checker.changed.pop(merchant, None)  # while it is under way either answer is right
        status[merchant] = flip(chance.choice(replicas), merchant, status[merchant])
        checker.changed[merchant] = (time.monotonic(), status[merchant])
        time.sleep(pause)


@pytest.mark.parametrize("between", ["redis", "postgres"])
def test_replicas_see_a_change_within_a_moment(
    replicas: Callable[..., list[Running]], request: pytest.FixtureRequest, between: str
) -> None:
    url = request.getfixturevalue("redis_url") if between == "redis" else ""
    both = replicas(redis_url=url, plugin_status_cache_ttl=60)
    merchants = [both[0].open() for _ in range(3)]
    for replica in both:
        for merchant in merchants:
            wait_for(replica, merchant, "enabled")
    with Checker(both, merchants) as checker:
        post_at_random(both, checker, merchants, 15, 0.05)
    assert checker.oldest <= FLOWING_SECONDS + SLACK_SECONDS


def wait_for(replica: Running, merchant: str, status: str, seconds: float = 10) -> float:
    """Wait until it says so; returns how long that took."""
    begun = time.monotonic()
    while told(replica, merchant) != status:
        assert time.monotonic() - begun < seconds
        time.sleep(0.005)
    return time.monotonic() - begun


@contextmanager
def killed(valkey: Valkey, proxy: Proxy) -> Iterator[None]:
    valkey.kill()
    yield
    valkey.start()


@contextmanager
def slowed(valkey: Valkey, proxy: Proxy) -> Iterator[None]:
    proxy.delay(0.2)
    yield
    proxy.delay(0)


@contextmanager
def silent(valkey: Valkey, proxy: Proxy) -> Iterator[None]:
    proxy.hold()
    yield
    proxy.release()


@contextmanager
def restarted_flushed_and_cut(valkey: Valkey, proxy: Proxy) -> Iterator[None]:
    valkey.stop()
    valkey.start()
    yield
    valkey.flush()
    proxy.cut()


def test_redis_faults_never_leave_a_wrong_answer_beyond_the_ttl(
    replicas: Callable[..., list[Running]], new_valkey: Callable[[], Valkey], proxied: Callable[[str], Proxy]
) -> None:
    valkey = new_valkey()
    proxy = proxied(valkey.url)
    both = replicas(redis_url=proxy.url)
    merchants = [both[0].open() for _ in range(2)]
    with Checker(both, merchants) as checker:
        for happens in (killed, slowed, silent, restarted_flushed_and_cut):
            post_at_random(both, checker, merchants, 2, 0.02)
            with happens(valkey, proxy):
                post_at_random(both, checker, merchants, 4, 0.05)
                time.sleep(TTL + SLACK_SECONDS + 0.1)  # so long that an answer that is wrong then is seen
            assert checker.oldest <= TTL + SLACK_SECONDS, happens.__name__


def test_replica_that_missed_messages_asks_again_after_reconnecting(
    replicas: Callable[..., list[Running]], new_valkey: Callable[[], Valkey]
) -> None:
    valkey = new_valkey()
    here, there = replicas(redis_url=valkey.url, plugin_status_cache_ttl=3600)
    merchant = here.open()
    wait_for(there, merchant, "enabled")
    valkey.kill()
    assert here.spend(merchant).status_code == 201
    assert told(there, merchant) == "enabled"  # of which it cannot know
    valkey.start()
    wait_for(there, merchant, "disabled")


def test_grant_that_begins_soon_is_known_by_all_replicas(
    replicas: Callable[..., list[Running]],
) -> None:
    here, there = replicas(plugin_status_cache_ttl=3600, sweep_seconds=3600, trial_credits=0)
    merchant = here.open()
    wait_for(there, merchant, "disabled")
    begins = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    grant = {"effective_at": begins}
    body = posting(merchant, operation_type="INCREASE", transaction_type="SUBSCRIPTION", amount=5, grant=grant)
    assert here.transact(body).status_code == 201
    for replica in (here, there):
        wait_for(replica, merchant, "enabled")


# ---- the caches change what an answer costs, never the answer

CACHES = ("empty", "full", "stale", "away")


@pytest.mark.parametrize("caches", CACHES)
def test_answers_do_not_depend_on_the_state_of_caches(
    replicas: Callable[..., list[Running]], new_valkey: Callable[[], Valkey], caches: str
) -> None:
    valkey = new_valkey()
    here, there = replicas(redis_url=valkey.url, trial_credits=10, plugin_status_cache_ttl=0.3)
    enabled, disabled, unknown, soon = here.open(), here.open(), new_merchant(), here.open()
    asked = [enabled, disabled, unknown, soon]
    if caches in ("full", "stale"):
        for replica in (here, there):
            for merchant in asked:
                told(replica, merchant)
    here.spend(disabled, 10)
    here.spend(soon, 10)
    increase(here, soon)
    if caches == "stale":
        time.sleep(0.3)
    elif caches == "empty":
        valkey.flush()
    elif caches == "away":
        valkey.kill()
    expected = {
        enabled: {"status": "enabled", "reason": "available"},
        disabled: {"status": "disabled", "reason": "exhausted"},
        unknown: {"status": "disabled", "reason": "unknown_merchant"},
        soon: {"status": "enabled", "reason": "available"},
    }
    wait_for(there, disabled, "disabled")
    for replica in (here, there):
        batch = replica.post("/credits/plugin-status/batch", {"merchant_ids": asked}, "read")
        assert batch.json()["data"]["statuses"] == expected
        for merchant in asked:
            single = replica.get(f"/credits/plugin-status/{merchant}", None)
            assert single.status_code == 200
            data = single.json()["data"]
            assert {name: data[name] for name in ("status", "reason")} == expected[merchant]
    with suppress(AssertionError):
        valkey.start()
