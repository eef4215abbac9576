"""Two services share one PostgreSQL. Each service sees the postings and revoked keys of the other one."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx2
import pytest

from tests.commands import command
from tests.faults.callers import OPENING_CREDITS, Spend, calling, check_books
from tests.served import Served, served
from tests.servers.postgres import Databases
from tests.storage.engines import template

SETTINGS = {
    "TRIAL_CREDITS": f"{OPENING_CREDITS}",
    "RATE_LIMIT_ENABLED": "false",
    "PLUGIN_STATUS_CACHE_TTL": "1",
    "DATABASE_ALLOW_UNSAFE": "true",  # the server of the test runs without fsync
    "LOG_FORMAT": "json",
}
RECOVERY_SECONDS = 5.0
REVOKED_SECONDS = 5.0
STATUS_SECONDS = 1.0
CALLERS = 50


class Pair(NamedTuple):
    """Two services and their shared database."""

    url: str
    folder: Path
    services: tuple[Served, Served]

    def clients(self) -> tuple[httpx2.Client, httpx2.Client]:
        """Return a client of each service."""
        one, other = self.services
        return one.client(), other.client()


@pytest.fixture(scope="module")
def pair(postgres: Databases, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("services")
    with (
        postgres.database(template(postgres)) as url,
        served(url, folder=folder, settings=SETTINGS) as one,
        served(url, folder=folder, settings=SETTINGS) as other,
    ):
        yield Pair(url, folder, (one, other))


def checked(pair: Pair, acknowledged: Sequence[Spend], merchants: Sequence[str]) -> None:
    """Check that the books are right and no service logged an error."""
    asyncio.run(check_books(pair.url, acknowledged, merchants))
    ran = command("verify", "--json", cwd=pair.folder, DATABASE_URL=pair.url, DATABASE_ALLOW_UNSAFE="true")
    assert ran.code == 0, ran.out + ran.err


def spend(client: httpx2.Client, merchant: str, key: str, amount: int = 1) -> httpx2.Response:
    """Post a spend."""
    body = {"merchant_id": merchant, "operation_type": "DECREASE", "transaction_type": "USAGE", "amount": amount}
    return client.post("/credits/transactions", json=body, headers={"idempotency-key": key})


def opened(client: httpx2.Client) -> str:
    """Open an account, and return its merchant."""
    merchant = str(uuid4())
    client.post("/credits/accounts", json={"merchant_id": merchant}).raise_for_status()
    return merchant


def soon(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until the condition is true. Returns the seconds that it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"timed out while waiting for {what}"
        time.sleep(0.01)
    return time.monotonic() - began


def test_two_services_post_to_same_accounts_without_lost_updates(pair: Pair) -> None:
    with calling(*pair.services, seed="both") as callers:
        callers.wait_for_more(400)
    assert not callers.refused
    checked(pair, callers.acknowledged, callers.merchants)
    assert [service.errors().count('"level": "error"') for service in pair.services] == [0, 0]


def test_batches_with_merchants_in_opposite_order_both_succeed(pair: Pair) -> None:
    clients = pair.clients()
    merchants = [opened(clients[0]) for _ in range(20)]

    def batches(number: int) -> list[Spend]:
        posted = []
        for batch in range(15):
            order = merchants if number == 0 else merchants[::-1]
            spends = [Spend(merchant, f"{number}-{batch}", 1 + number) for merchant in order]
            items = [
                {
                    "merchant_id": one.merchant_id,
                    "operation_type": "DECREASE",
                    "transaction_type": "USAGE",
                    "amount": one.amount,
                    "idempotency_key": one.key,
                }
                for one in spends
            ]
            answer = clients[number].post("/credits/transactions/batch", json={"atomic": False, "items": items})
            assert answer.status_code == 200, answer.text
            assert {result["outcome"] for result in answer.json()["data"]["results"]} == {"posted"}
            posted += spends
        return posted

    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(batches, range(2)))
    checked(pair, both[0] + both[1], merchants)
    for client in clients:
        client.close()


def test_one_key_from_fifty_callers_posts_once(pair: Pair) -> None:
    clients = pair.clients()
    merchant = opened(clients[0])
    together = threading.Barrier(CALLERS)

    def call(number: int) -> httpx2.Response:
        with pair.services[number % 2].client() as client:
            together.wait()
            return spend(client, merchant, "the-key", 7)

    with ThreadPoolExecutor(CALLERS) as threads:
        answers = list(threads.map(call, range(CALLERS)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: CALLERS - 1}
    assert len({answer.json()["data"]["id"] for answer in answers}) == 1
    checked(pair, [Spend(merchant, "the-key", 7)], [merchant])
    for client in clients:
        client.close()


def test_kill_of_one_service_loses_nothing_and_other_continues(pair: Pair) -> None:
    survivor = pair.services[0]
    with (
        served(pair.url, folder=pair.folder, settings=SETTINGS) as victim,
        calling(survivor, seed="survivor") as callers,
        victim.client() as client,
    ):
        hot = callers.merchants[0]
        answered: list[Spend] = []  # the postings that the victim answered
        asked: list[Spend] = []

        def post_until_it_is_killed(number: int) -> None:
            for turn in range(10**6):
                one = Spend(hot, f"victim-{number}-{turn}", 2)
                asked.append(one)
                try:
                    answer = spend(client, one.merchant_id, one.key, one.amount)
                except httpx2.HTTPError:
                    return
                assert answer.status_code == 201, answer.text
                answered.append(one)

        with ThreadPoolExecutor(4) as threads:
            posting = [threads.submit(post_until_it_is_killed, number) for number in range(4)]
            callers.wait_until(lambda: len(answered) >= 40, "postings of the victim")
            victim.kill()
            for one in posting:
                one.result()
        assert callers.wait_for_each(time.monotonic()) < RECOVERY_SECONDS
        with survivor.client() as other:
            # The callers repeat every key at the survivor. It already has the answered postings.
            answers = {one: spend(other, one.merchant_id, one.key, one.amount).status_code for one in asked}
        assert {answers[one] for one in answered} == {200}
        assert set(answers.values()) <= {200, 201}
    assert not callers.refused
    checked(pair, [*callers.acknowledged, *asked], callers.merchants)


def test_key_revoked_at_one_service_dies_at_the_other(pair: Pair) -> None:
    one, other = pair.clients()
    made = one.post("/api-keys", json={"name": "short-lived", "scope": "read"}).json()["data"]
    headers = {"authorization": f"Bearer {made['key']}"}

    def status() -> Any:
        return other.get("/credits/accounts", headers=headers).status_code

    assert status() == 200
    one.delete(f"/api-keys/{made['id']}").raise_for_status()
    assert soon(lambda: status() == 401, REVOKED_SECONDS, "the other service to refuse the key") <= REVOKED_SECONDS
    one.close()
    other.close()


def test_other_service_shows_new_plugin_status_within_its_ttl(pair: Pair) -> None:
    one, other = pair.clients()
    merchant = opened(one)

    def status() -> Any:
        return other.get(f"/credits/plugin-status/{merchant}").json()["data"]["status"]

    assert status() == "enabled"
    assert spend(one, merchant, "all of it", OPENING_CREDITS).status_code == 201
    soon(lambda: status() == "disabled", STATUS_SECONDS + 1, "the other service to show the change")
    one.close()
    other.close()
