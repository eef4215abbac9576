"""An account's fail policy: its plugin status while the database and the caches cannot tell it."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from credit_service.doors.http import api
from credit_service.doors.http.accounts.shared import ACCOUNT, MISSING, MerchantId
from credit_service.gate.status import FailPolicy, Gate
from credit_service.messages.fields import Body, merchant_text
from credit_service.settings import Settings
from credit_service.storage.policies import FailPolicies

PATH = ACCOUNT + "/fail-policy"
TAG = "plugin status"
Fail = Annotated[Literal["closed", "open"], Field(examples=["open"])]


class FailBody(Body):
    """The plugin status while it is unknown: disabled (closed), or enabled (open)."""

    fail: Literal["closed", "open"]


class FailShape(BaseModel):
    """The fail policy of an account. `own`: it is the account's own, not the default."""

    merchant_id: api.MerchantText
    fail: Fail
    own: bool


_answers = api.one(FailShape, "FailPolicy")
_POLICY = api.examples(keep_running={"fail": "open"}, stop={"fail": "closed"})


@api.endpoint("GET", PATH, scope="admin", tag=TAG, answers=_answers, problems=MISSING)
async def get_fail_policy(
    merchant_id: MerchantId, call: api.Call, ledger: api.Ledger, fail_policies: FailPolicies, settings: Settings
) -> api.Answer:
    """Read an account's fail policy: its plugin status while it is unknown."""
    now = await ledger.now()
    await ledger.load(merchant_id, now)
    own = (await fail_policies.all()).get(merchant_text(merchant_id))
    shape = {"merchant_id": merchant_text(merchant_id), "fail": own or settings.gate_fail, "own": own is not None}
    return api.answer(call, now, shape)


@api.endpoint("PUT", PATH, scope="admin", tag=TAG, answers=_answers, problems=MISSING)
async def set_fail_policy(
    merchant_id: MerchantId,
    body: Annotated[FailBody, _POLICY],
    call: api.Call,
    ledger: api.Ledger,
    fail_policies: FailPolicies,
    gate: Gate,
) -> api.Answer:
    """Give an account a fail policy of its own. It is in force everywhere within 10 seconds."""
    now = await _set(merchant_id, body.fail, ledger, fail_policies, gate)
    return api.answer(call, now, {"merchant_id": merchant_text(merchant_id), "fail": body.fail, "own": True})


@api.endpoint("DELETE", PATH, scope="admin", tag=TAG, answers=_answers, problems=MISSING)
async def drop_fail_policy(
    merchant_id: MerchantId,
    call: api.Call,
    ledger: api.Ledger,
    fail_policies: FailPolicies,
    gate: Gate,
    settings: Settings,
) -> api.Answer:
    """Put an account back to the default fail policy."""
    now = await _set(merchant_id, None, ledger, fail_policies, gate)
    return api.answer(call, now, {"merchant_id": merchant_text(merchant_id), "fail": settings.gate_fail, "own": False})


async def _set(
    merchant_id: str, fail: FailPolicy | None, ledger: api.Ledger, fail_policies: FailPolicies, gate: Gate
) -> int:
    """Set the fail policy of an account; returns the time."""
    now = await ledger.now()
    await ledger.load(merchant_id, now)
    await fail_policies.set(merchant_text(merchant_id), fail)
    gate.set_fail(merchant_text(merchant_id), fail)
    return now
