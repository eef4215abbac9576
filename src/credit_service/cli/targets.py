"""Where `replay` sends events: into the database, by the posting path, or to a running service over HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from decimal import Decimal
from typing import Any, Final, Generic, Literal, TypeVar

import httpx2
import msgspec

from credit_service.backoff import pauses
from credit_service.cli.common import say, wrong
from credit_service.cli.sources import Entry, Result, refused
from credit_service.gate.status import Gate
from credit_service.ledger.decide import Outcome, Replayed, Waiting
from credit_service.ledger.policy import Policy
from credit_service.ledger.refusals import Refused
from credit_service.messages.envelope import BATCH_MEDIA_TYPE
from credit_service.messages.faults import Invalid
from credit_service.posting import DeadlineExceeded, Overloaded, Posting
from credit_service.settings import Settings, channel_of, redis_of
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import Committed, Engine, StorageError
from credit_service.storage.policies import FailPolicies

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 60.0
_POSTING_SECONDS: Final = 60.0
TRANSIENT: Final = frozenset({408, 429, 502, 503, 504})
"""Status codes after which the same request may be sent again."""
_Kind = TypeVar("_Kind")


class Stopped(Exception):
    """The events could not be sent, and the rest would fail, too; the message is one sentence."""


@asynccontextmanager
async def posting_into(engine: Engine, settings: Settings) -> AsyncIterator[Posting]:
    """The posting path into an open ledger; services that run on it receive the changes of plugin status."""

    def committed(done: Committed) -> None:
        gate.committed(done.writes.accounts.values(), done.writes.announcements)

    redis = redis_of(settings)
    gate = Gate(
        Accounts(engine),
        FailPolicies(engine),
        settings.policy,
        channel=redis or channel_of(settings, engine),
        clock=lambda: engine.clock.estimate(),
        ttl_seconds=settings.plugin_status_cache_ttl,
    )
    posting = Posting(engine, settings.policy, on_committed=committed, deadline_seconds=_POSTING_SECONDS)
    await gate.start()
    posting.start()
    try:
        yield posting
    finally:
        await posting.drain()
        await gate.close()
        if redis is not None:
            await redis.close()


class StoreTarget:
    """The database itself, by the posting path."""

    def __init__(self, posting: Posting) -> None:
        self._posting = posting

    async def send(self, entries: Sequence[Entry]) -> list[list[Result]]:
        """Post these events in order. Returns the results of each: one, or one for each order. Raises Stopped."""
        commands = [
            translated.command
            for entry in entries
            for translated in entry.translated
            if not isinstance(translated.command, Invalid)
        ]
        try:
            outcomes = iter(await self._posting.submit_many(commands))
        except StorageError as error:
            raise Stopped(str(error)) from None
        except (DeadlineExceeded, Overloaded):
            raise Stopped("The database is too slow.") from None
        return [
            [
                refused(translated.command) if isinstance(translated.command, Invalid) else _result(next(outcomes))
                for translated in entry.translated
            ]
            for entry in entries
        ]


def _result(outcome: Outcome) -> Result:
    match outcome:
        case Replayed():
            return Result("replayed")
        case Waiting():
            return Result("parked")
        case Refused(refusal=refusal):
            return Result("refused", refusal.code, refusal.sentence)
        case _:
            return Result("posted")


class ServiceProblem(msgspec.Struct):
    """A problem in a service's answer."""

    code: str = "internal"
    detail: str = ""
    errors: list[dict[str, Any]] = []


class _Told(msgspec.Struct):
    outcome: Literal["posted", "replayed", "parked", "refused"]
    error: ServiceProblem | None = None


class _Results(msgspec.Struct):
    results: list[_Told]


class _Prices(msgspec.Struct):
    fixed_amount: Decimal
    percentage: Decimal
    minimum: Decimal


class _Answer(msgspec.Struct, Generic[_Kind]):
    data: _Kind


class HttpTarget:
    """A running service. While it is away, a request is repeated for up to `patience` seconds."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: str, patience: float) -> None:
        self._client = client
        self._url = url.rstrip("/").removesuffix("/api/v1")
        self._headers: Mapping[str, str] = {"Authorization": f"Bearer {key}", "Content-Type": BATCH_MEDIA_TYPE}
        self._patience = patience

    async def send(self, entries: Sequence[Entry]) -> list[list[Result]]:
        response = await self._ask("POST", "events", b"[" + b",".join([entry.event for entry in entries]) + b"]")
        if response.status_code in (413, 422):
            if len(entries) == 1:
                problem = problem_of(response)
                return [[Result("refused", problem.code, problem.detail)]]
            # The batch is larger than the service allows, or one event makes it refuse all: halve it to find out.
            half = len(entries) // 2
            return [*await self.send(entries[:half]), *await self.send(entries[half:])]
        told = self._data(response, _Answer[_Results]).results
        if len(told) != sum([len(entry.translated) for entry in entries]):
            raise Stopped(f"{self._url} reads these events in another way; use the command of its release.")
        results = map(_as_result, told)
        return [[next(results) for _ in entry.translated] for entry in entries]

    async def prices(self) -> Policy:
        """The prices of orders by the settings of the service. Raises Stopped."""
        found = self._data(await self._ask("GET", "prices"), _Answer[_Prices])
        return Policy(order_fixed=found.fixed_amount, order_percent=found.percentage, order_minimum=found.minimum)

    async def _ask(self, method: str, path: str, body: bytes | None = None) -> httpx2.Response:
        """Send a request, again while the service is away; because of its keys nothing counts twice."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        waiting, told = pauses(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS), False
        while True:
            wait = next(waiting)
            try:
                response = await self._client.request(
                    method, f"{self._url}/api/v1/credits/{path}", content=body, headers=self._headers
                )
                if response.status_code not in TRANSIENT:
                    return response
                why = f"{self._url} answered {response.status_code} ({problem_of(response).code})"
                retry_after = response.headers.get("retry-after", "")
                wait = max(wait, float(retry_after)) if retry_after.isdigit() else wait
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise wrong(f"--url {self._url}: {error}") from None
            except httpx2.TransportError as error:
                why = f"{self._url} does not answer ({str(error) or type(error).__name__})"
            if loop.time() + wait > until:
                raise Stopped(f"{why}.")
            if not told:
                say(f"{why}; trying again for {self._patience:g} seconds.")
                told = True
            await asyncio.sleep(wait)

    def _data(self, response: httpx2.Response, kind: type[_Answer[_Kind]]) -> _Kind:
        """The data of an answer. Ends the command if the service refused, or if it is no credit-service."""
        if response.status_code == 200:
            with suppress(msgspec.MsgspecError):
                return msgspec.json.decode(response.content, type=kind).data
        problem = problem_of(response)
        if response.status_code in (401, 403) and problem.detail:
            raise wrong(f"{self._url} answered {response.status_code}: {problem.detail}")
        if response.status_code == 500 and problem.detail:
            request_id = response.headers.get("x-request-id", "unknown")
            raise Stopped(f"{self._url} answered 500: {problem.detail} (request {request_id})")
        raise wrong(f"--url {self._url} answered {response.status_code}, and is no credit-service.")


def problem_of(response: httpx2.Response) -> ServiceProblem:
    """The problem in an answer; one of code `no problem+json` if there is none."""
    try:
        return msgspec.json.decode(response.content, type=ServiceProblem)
    except msgspec.MsgspecError:
        return ServiceProblem(code="no problem+json")


def _as_result(told: _Told) -> Result:
    if told.error is None:
        return Result(told.outcome)
    reasons = [f"{error.get('pointer') or 'body'}: {error.get('message')}" for error in told.error.errors]
    return Result(told.outcome, told.error.code, "; ".join(reasons) or told.error.detail)


@asynccontextmanager
async def service_at(url: str, key: str, patience: float) -> AsyncIterator[HttpTarget]:
    """A running service, for requests whose timeout allows for a whole batch."""
    async with httpx2.AsyncClient(timeout=_ANSWER_SECONDS, follow_redirects=False) as client:
        yield HttpTarget(client, url, key, patience)


Target = StoreTarget | HttpTarget
