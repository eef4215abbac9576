"""Export the metrics to Prometheus."""

from collections.abc import AsyncIterator

from fastapi.responses import PlainTextResponse

from credit_service.doors.http import api
from credit_service.doors.http.health.alive import TAG
from credit_service.doors.http.single_flight import single_flight
from credit_service.gate.status import Gate
from credit_service.observability import Metrics
from credit_service.settings import Settings
from credit_service.storage.accounts import AccountQuery
from credit_service.storage.engine import StorageError
from credit_service.storage.shops import Shops

_AT_ONCE = 1000  # accounts in one question to the store
_EXAMPLE = "# TYPE credits_posting_queue_depth gauge\ncredits_posting_queue_depth 0.0\n"


@api.endpoint(
    "GET",
    "/metrics",
    scope=None,
    tag=TAG,
    responses={200: {"content": {"text/plain": {"example": _EXAMPLE}}}},
    problems=("not_found",),
    response_class=PlainTextResponse,
)
async def get_metrics(
    metrics: Metrics,
    gate: Gate,
    ledger: api.Ledger,
    shops: Shops,
    publishing: api.Publishing | None,
    check_storage: api.Check,
    settings: Settings,
) -> api.Answer:
    """The metrics, in the text format of Prometheus."""
    if not settings.metrics_enabled:
        raise api.Problem("not_found", "Metrics are turned off (METRICS_ENABLED).")
    body = await _scrape(metrics, gate, ledger, shops, publishing, check_storage, settings)
    return api.Answer(200, body, media_type=b"text/plain; version=0.0.4; charset=utf-8")


@single_flight
async def _scrape(
    metrics: Metrics,
    gate: Gate,
    ledger: api.Ledger,
    shops: Shops,
    publishing: api.Publishing | None,
    check_storage: api.Check,
    settings: Settings,
) -> bytes:
    """All metrics, read once for all callers that wait."""
    balances: list[tuple[str, int]] = []
    try:
        metrics.stored(await gate.totals(), await ledger.accounts.parked_count() + await shops.waiting())
        if publishing is not None:
            metrics.lagging(await publishing.lag_seconds())
        if settings.metrics_balance_per_merchant:
            balances = [balance async for balance in _balances(ledger)]
        await check_storage()
    except StorageError:
        metrics.storage_away()
    metrics.balances = balances
    return metrics.text()


async def _balances(ledger: api.Ledger) -> AsyncIterator[tuple[str, int]]:
    """The balance of every merchant."""
    now, after = await ledger.now(), None
    while page := await ledger.accounts.page(AccountQuery(now, ledger.policy.default_threshold), after, _AT_ONCE):
        for loaded in page:
            account = ledger.standing(loaded, now).account
            yield str(account.merchant_id), account.balance
        after = page[-1].account.merchant_id
