"""Plugin status from a near cache, with Redis behind it if there is one, and the store behind both.

A cached answer lives until its TTL or the account's next due instant, whichever is sooner. A posting replaces it at
once in this process, and by a message in the others; the TTL makes up for a lost message. Concurrent misses of one
merchant, or of many, ask the next level once. While the store is away, the last known answer counts for a while, then
the fail policy; `reason` says `unavailable`.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import structlog

from credit_service.gate.answers import NO_ACCOUNT, StatusAnswer, answer_in, of_account
from credit_service.gate.levels import PATIENCE_SECONDS, Channel, Level, Storage
from credit_service.gate.neighbours import Neighbours
from credit_service.gate.totals import Counting, Totals
from credit_service.ledger.account import MICROSECONDS, Account, Announcement
from credit_service.ledger.announcements import ACCOUNT_CREATED, PLUGIN_STATUS_CHANGED
from credit_service.ledger.policy import Policy
from credit_service.storage.accounts import Accounts
from credit_service.storage.engine import StorageError
from credit_service.storage.policies import FailPolicies
from credit_service.supervision import Supervisor

FailPolicy = Literal["closed", "open"]
"""The status when nothing is known: disabled or enabled."""

EXCEPTIONS_SECONDS: Final = 5.0
"""How often the gate reads the accounts' own fail policies again."""
UNKNOWN_SIZE: Final = 10_000
"""The most unknown merchants that the gate remembers. They have a cache of their own: anybody can invent ids, and a
flood of them must not evict the answers of real merchants, which the gate needs while the database is away."""
_CHANGES: Final = frozenset({PLUGIN_STATUS_CHANGED, ACCOUNT_CREATED})
_FAILED: Final[Mapping[FailPolicy, str]] = {"closed": "disabled", "open": "enabled"}
_log = structlog.get_logger()


class _Load:
    """Merchants that are loaded together, and those with a posting meanwhile."""

    def __init__(self, deadline: float) -> None:
        self.merchants: list[str] = []
        self.told: set[str] = set()
        self.deadline = deadline
        self.task: asyncio.Task[Mapping[str, StatusAnswer]]


class Gate:
    """Answers plugin status.

    `shared`: the level that processes share. `channel`: their messages about changes. `render` makes the body that a
    door sends, once for each answer and not for each question. `on_heard` is called for each change that
    another process reports. Spans in seconds; `clock` gives microseconds
    since 1970. Start it with `start` inside a running loop, stop it with `close`; without, it hears of no other process
    and no account has a fail policy of its own.
    """

    def __init__(
        self,
        accounts: Accounts,
        fail_policies: FailPolicies,
        policy: Policy,
        *,
        shared: Level | None = None,
        channel: Channel | None = None,
        clock: Callable[[], int] = lambda: time.time_ns() // 1000,
        ttl_seconds: float = 15,
        stale_seconds: float = 300,
        fail: FailPolicy = "closed",
        size: int = 100_000,
        render: Callable[[StatusAnswer], Any] = lambda answer: None,
        on_heard: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_heard = on_heard
        self._fail_policies = fail_policies
        self._clock = clock
        self._ttl = int(ttl_seconds * MICROSECONDS)
        self._stale = int(stale_seconds * MICROSECONDS)
        self._fail: FailPolicy = fail
        self._fails: Mapping[str, str] = {}  # accounts with a policy of their own
        self._size = size
        self._render = render
        self._shared = shared
        self._storage = Storage(accounts, policy, self._ttl)
        self._counting = Counting(accounts, policy, clock)
        self._known: OrderedDict[str, StatusAnswer] = OrderedDict()
        self._unknown: OrderedDict[str, StatusAnswer] = OrderedDict()  # merchants without an account
        self._trust = 0  # raised when messages may have been missed: earlier answers are asked for again
        self._asking: dict[str, _Load] = {}
        self._gathering: _Load | None = None
        self._neighbours = None if channel is None else Neighbours(channel, self.distrust, self.heard)
        self._beside: set[asyncio.Task[None]] = set()

    # ---- questions

    def cached(self, merchant_id: str) -> StatusAnswer | None:
        """The answer, if it is cached and still good."""
        known = self._known.get(merchant_id) or self._unknown.get(merchant_id)  # `_last`, without the cost of a call
        return known if known is not None and known.until > self._clock() and known.trust == self._trust else None

    async def ask(self, merchant_id: str) -> StatusAnswer:
        """The answer for one merchant, also while other levels are away."""
        (answer,) = await self.ask_many([merchant_id])
        return answer

    async def ask_many(self, merchant_ids: Sequence[str]) -> list[StatusAnswer]:
        """The answers for many merchants, in their order; each level is asked once for all missing answers."""
        found = {merchant_id: self.cached(merchant_id) for merchant_id in merchant_ids}
        loads = {merchant_id: self._load_of(merchant_id) for merchant_id, answer in found.items() if answer is None}
        if loads:
            # The load is a task, so that it goes on for the other callers when the first one gives up.
            tasks = {load.task for load in loads.values()}
            seconds = max(load.deadline for load in loads.values()) - asyncio.get_running_loop().time()
            done, _ = await asyncio.wait(tasks, timeout=max(seconds, 0))
            for merchant_id, load in loads.items():
                if load.task in done:
                    found[merchant_id] = load.task.result().get(merchant_id)
        return [found[merchant_id] or self._without_storage(merchant_id) for merchant_id in merchant_ids]

    async def totals(self) -> Totals:
        """How many plugins are enabled, and the average balance; with very many merchants from a while ago."""
        return await self._counting.totals()

    @property
    def is_storage_silent(self) -> bool:
        """Whether the store is not asked at the moment because it did not answer."""
        return self._storage.breaker.is_open()

    # ---- news

    def committed(self, accounts: Iterable[Account], announcements: Iterable[tuple[int, Announcement]] = ()) -> None:
        """Update the cached and loading answers of accounts after a commit.

        Other processes get a message only if the answer changed, or will change before their TTL ends; so a busy
        account causes no flood of messages.
        """
        now = self._clock()
        changed = {number for number, announcement in announcements if announcement.type in _CHANGES}
        for account in accounts:
            merchant_id = account.merchant_id
            is_due_soon = account.next_due_at is not None and now < account.next_due_at < now + self._ttl
            is_told = self._neighbours is not None and (account.number in changed or is_due_soon)
            if is_told or self._last(merchant_id) is not None or merchant_id in self._asking:
                answer = of_account(account, now, self._ttl)
                self._told(answer)
                if is_told and self._neighbours is not None:
                    self._neighbours.tell(answer)

    def heard(self, line: str) -> None:
        """Take the message of another process (`answers.line_of`); ignore it if it holds no answer."""
        answer = answer_in(line, self._clock(), self._ttl)
        if answer is not None:
            self._told(answer)
            self._on_heard()

    def distrust(self) -> None:
        """Ask again for all cached answers, since messages may have been missed; they stay the last known ones."""
        self._trust += 1

    def set_fail(self, merchant_id: str, fail: FailPolicy | None) -> None:
        """Set an account's own fail policy, or remove it (None)."""
        others = {merchant: policy for merchant, policy in self._fails.items() if merchant != merchant_id}
        self._fails = others if fail is None else {**others, merchant_id: fail}

    # ---- its life

    async def start(self, supervisor: Supervisor | None = None) -> None:
        """Begin to exchange messages with other processes."""
        supervisor = supervisor or Supervisor()
        await self._read_exceptions()
        self._beside.add(supervisor.start("gate fail policies", self._keep_reading_exceptions))
        if self._neighbours is not None:
            self._neighbours.start(supervisor)

    async def close(self) -> None:
        """Send the pending messages, and end."""
        if self._neighbours is not None:
            await self._neighbours.close()
        for task in self._beside:
            task.cancel()
        await asyncio.gather(*self._beside, return_exceptions=True)
        await self._storage.breaker.stop()
        await self._counting.stop()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="gate")
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def _keep_reading_exceptions(self) -> None:
        while True:
            await asyncio.sleep(EXCEPTIONS_SECONDS)
            await self._read_exceptions()

    async def _read_exceptions(self) -> None:
        try:
            self._fails = await self._fail_policies.all()
        except StorageError as error:
            _log.debug("gate_policies_not_read", reason=str(error))

    # ---- loading

    def _load_of(self, merchant_id: str) -> _Load:
        """The load that answers for a merchant: the one under way, or the next one."""
        load = self._asking.get(merchant_id)
        if load is None:
            load = self._gathering
            if load is None:
                loop = asyncio.get_running_loop()
                load = self._gathering = _Load(loop.time() + PATIENCE_SECONDS)
                load.task = loop.create_task(self._load(load))
            load.merchants.append(merchant_id)
            self._asking[merchant_id] = load
        return load

    async def _load(self, load: _Load) -> Mapping[str, StatusAnswer]:
        self._gathering = None  # it contains every merchant that was asked for before this task began
        now, trust = self._clock(), self._trust
        try:
            found = await self._from_shared(load.merchants, now)
            if missing := [merchant_id for merchant_id in load.merchants if merchant_id not in found]:
                stored = await self._from_storage(missing, now)
                if stored and self._shared is not None:
                    self._run(self._shared.put(list(stored.values())))
                found |= stored
            return {merchant_id: self._loaded(load, answer, trust) for merchant_id, answer in found.items()}
        finally:
            # Until here, a posting that commits meanwhile brings its own answer, which is the one to keep.
            for merchant_id in load.merchants:
                del self._asking[merchant_id]

    async def _from_shared(self, merchant_ids: Collection[str], now: int) -> dict[str, StatusAnswer]:
        if self._shared is None:
            return {}
        found = await self._shared.get(merchant_ids, now)
        # An answer older than the last known one is no answer.
        return {
            merchant_id: answer
            for merchant_id, answer in found.items()
            if (known := self._last(merchant_id)) is None or answer.version >= known.version
        }

    async def _from_storage(self, merchant_ids: Collection[str], now: int) -> Mapping[str, StatusAnswer]:
        try:
            return await self._storage.get(merchant_ids, now)
        except StorageError:
            return {}

    def _loaded(self, load: _Load, answer: StatusAnswer, trust: int) -> StatusAnswer:
        """Keep a loaded answer. The store's answer wins, unless a posting brought a later one meanwhile."""
        merchant_id, source = answer.merchant_id, answer.source
        if merchant_id in load.told and (known := self._last(merchant_id)) and known.version > answer.version:
            return known
        return self._remember(answer, trust)._replace(source=source)

    def _told(self, answer: StatusAnswer) -> None:
        """Take the answer of a posting, if the merchant is cached or loading and no later answer is known."""
        merchant_id = answer.merchant_id
        known = self._last(merchant_id)
        if (load := self._asking.get(merchant_id)) is not None:
            load.told.add(merchant_id)
        elif known is None:
            return
        if known is None or known.version <= answer.version:
            self._remember(answer, self._trust)

    def _remember(self, answer: StatusAnswer, trust: int) -> StatusAnswer:
        answer = self._rendered(answer._replace(source="near", trust=trust))
        merchant_id = answer.merchant_id
        kept, other, size = self._known, self._unknown, self._size
        if answer.reason == "unknown_merchant":
            kept, other, size = self._unknown, self._known, min(self._size, UNKNOWN_SIZE)
        other.pop(merchant_id, None)
        kept[merchant_id] = answer
        kept.move_to_end(merchant_id)
        if len(kept) > size:
            kept.popitem(last=False)
        return answer

    def _last(self, merchant_id: str) -> StatusAnswer | None:
        """The last known answer, good or not."""
        return self._known.get(merchant_id) or self._unknown.get(merchant_id)

    def _rendered(self, answer: StatusAnswer) -> StatusAnswer:
        return answer._replace(rendered=self._render(answer))

    def _without_storage(self, merchant_id: str) -> StatusAnswer:
        """The answer while the store is away: the last known one, or the fail policy's."""
        now = self._clock()
        known = self._last(merchant_id)
        if known is not None and now - known.as_of <= self._stale:
            return self._rendered(known._replace(reason="unavailable", source="stale"))
        fail: Any = self._fails.get(merchant_id, self._fail)
        answer = StatusAnswer(merchant_id, _FAILED[fail], "unavailable", now, now, NO_ACCOUNT, "fail")
        return self._rendered(answer)
