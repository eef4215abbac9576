"""The main posting tests on a real PostgreSQL, with both ways to post."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import UUID

import asyncpg
import pytest

from credit_service.ledger.decide import Replayed
from credit_service.ledger.draft import Posted
from credit_service.ledger.policy import Policy
from credit_service.ledger.proof import verify
from credit_service.ledger.refusals import Refused
from credit_service.posting import Posting, RefusedAt
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import BadRow
from credit_service.storage.postgres.engine import PostgresEngine
from tests.ledger.telling import MERCHANT, payment, use
from tests.servers.postgres import Databases
from tests.storage.engines import template
from tests.storage.values import of

MERCHANTS = [str(UUID(int=number)) for number in range(1, 21)]


@pytest.fixture
def url(postgres: Databases) -> Iterator[str]:
    with postgres.database(template(postgres)) as url:
        yield url


@pytest.fixture(params=[True, False], ids=["optimistic", "locked"])
async def engine(request: pytest.FixtureRequest, url: str) -> AsyncIterator[PostgresEngine]:
    engine = PostgresEngine(url, optimistic=request.param, timeout_seconds=20)
    yield engine
    await engine.close()


@pytest.fixture
async def posting(engine: PostgresEngine) -> AsyncIterator[Posting]:
    posting = Posting(engine, Policy(trial_credits=0), deadline_seconds=60)
    posting.start()
    await posting.submit_many([of(merchant, payment("P", 1_000)) for merchant in (MERCHANT, *MERCHANTS)])
    yield posting
    await posting.drain()


async def balances(engine: PostgresEngine) -> dict[str, int]:
    """Verify the books of all accounts, and return their balances."""
    found = {}
    async for books in engine.books():
        assert [*books.faults, *verify(books.account, books.grants, list(books.transactions))] == []
        found[books.account.merchant_id] = books.account.balance
    return found


async def test_items_of_a_batch_see_those_before_them(posting: Posting):
    outcomes = await posting.submit_many([use(999, "a"), use(2, "b"), use(999, "a"), use(1, "c")])
    assert [type(outcome) for outcome in outcomes] == [Posted, Refused, Replayed, Posted]


async def test_refused_atomic_batch_posts_nothing(posting: Posting, engine: PostgresEngine):
    refused = await posting.submit_atomic([use(1, "a"), use(1_000, "b")])
    assert isinstance(refused, RefusedAt)
    assert refused.position == 1
    assert (await balances(engine))[MERCHANT] == 1_000
    posted = await posting.submit_atomic([use(1, "a"), use(999, "b")])
    assert not isinstance(posted, RefusedAt)
    assert (await balances(engine))[MERCHANT] == 0


async def test_rehearsal_posts_nothing(posting: Posting, engine: PostgresEngine):
    (outcome,) = await posting.rehearse([use(1, "a")])
    assert isinstance(outcome, Posted)
    assert (await balances(engine))[MERCHANT] == 1_000


async def test_simultaneous_callers_post_each_key_once(posting: Posting, engine: PostgresEngine):
    commands = [of(merchant, use(1, f"{number}")) for number in range(20) for merchant in MERCHANTS] * 2
    outcomes = await asyncio.gather(*map(posting.submit, commands))
    assert sum(isinstance(outcome, Posted) for outcome in outcomes) == 400
    assert sum(isinstance(outcome, Replayed) for outcome in outcomes) == 400
    found = await balances(engine)
    assert {found[merchant] for merchant in MERCHANTS} == {980}
    assert await Accounts(engine).drifting(None, 100) == ([], None)


async def test_command_that_breaks_a_constraint_fails_alone(posting: Posting, engine: PostgresEngine, url: str):
    connection = await asyncpg.connect(url)
    await connection.execute("ALTER TABLE transactions ADD CONSTRAINT lawful CHECK (key <> 'unlawful')")
    await connection.close()
    commands = [of(merchant, use(1, "unlawful" if merchant == MERCHANTS[7] else "lawful")) for merchant in MERCHANTS]
    outcomes = await asyncio.gather(*map(posting.submit, commands), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [*[Posted] * 7, BadRow, *[Posted] * 12]
    found = await balances(engine)
    assert [found[merchant] for merchant in MERCHANTS] == [*[999] * 7, 1_000, *[999] * 12]


async def test_drain_finishes_what_is_queued(engine: PostgresEngine):
    posting = Posting(engine, Policy())
    posting.start()
    waiting = [asyncio.create_task(posting.submit(of(merchant, payment("Q", 1)))) for merchant in MERCHANTS]
    await asyncio.sleep(0)
    await posting.drain()
    assert {type(outcome) for outcome in await asyncio.gather(*waiting)} == {Posted}
