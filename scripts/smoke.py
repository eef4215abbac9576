"""Call the main routes of a running service as a client does, and print each fact that held.

    python scripts/smoke.py [--url http://127.0.0.1:8015] [--key cs_...] [--rounds 1]

The environment variable CREDIT_SERVICE_KEY can hold the key (scope admin). Each round opens a new merchant, so you can
run this against a service in use. The script stops with exit code 1 at the first unexpected answer.
"""

import argparse
import os
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2

CLOUDEVENT = "application/cloudevents+json"


class Unexpected(Exception):
    """The service gave an unexpected answer."""


class Walk:
    """One round of calls for one new merchant."""

    def __init__(self, client: httpx2.Client) -> None:
        self.client = client
        self.merchant = str(uuid.uuid4())
        self.calls = 0

    def call(self, method: str, path: str, expected: int, **sent: Any) -> Any:
        """Make a call, check its status code, and return the JSON body."""
        self.calls += 1
        answer = self.client.request(method, f"/api/v1{path}", **sent)
        if answer.status_code != expected:
            raise Unexpected(f"{method} {path} answered {answer.status_code}, not {expected}: {answer.text}")
        return answer.json()

    def post(self, amount: int, key: str, expected: int = 201, **more: Any) -> Any:
        """Post a USAGE of `amount` credits."""
        body = {
            "merchant_id": self.merchant,
            "operation_type": "DECREASE",
            "transaction_type": "USAGE",
            "amount": amount,
            **more,
        }
        return self.call("POST", "/credits/transactions", expected, json=body, headers={"Idempotency-Key": key})

    def event(self, type_: str, expected: int = 200, **data: Any) -> Any:
        """Post a CloudEvent, and return its result."""
        event = {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": "smoke",
            "type": type_,
            "data": {"merchant_id": self.merchant, **data},
        }
        answer = self.call(
            "POST", "/credits/events", expected, content=httpx2_json(event), headers={"Content-Type": CLOUDEVENT}
        )
        return answer["data"]["results"][0] if expected == 200 else answer

    def steps(self) -> Iterator[str]:
        """Run the round step by step. Yield one sentence for each step that passed."""
        account = self.call("POST", "/credits/accounts", 201, json={"merchant_id": self.merchant})["data"]
        trial = account["available"]
        yield f"opened an account with a trial of {trial}"
        insist(self.call("POST", "/credits/accounts", 200, json={"merchant_id": self.merchant})["data"] == account)
        yield "opened it again, and got the same account"

        spent = self.post(30, "spend")["data"]
        insist(spent["balance_after"] == trial - 30)
        insist(self.post(30, "spend", 200)["data"] == spent)
        yield "spent 30 twice with one key, and the service posted once"
        insist(self.post(31, "spend", 422)["code"] == "idempotency_key_reused")
        insist(self.post(10**9, "too much", 402)["code"] == "insufficient_credits")
        yield "got refusals for another amount under the same key, and for more credits than available"

        paid = self.event("evt.shopify.webhook.order_paid", order_id=1001, total="149.90", currency="GBP")
        insist(paid["outcome"] == "posted")
        early = self.event(
            "evt.shopify.webhook.order_refunded", refund_id=2, order_id=1002, refund_amount="5.00", currency="GBP"
        )
        insist(early["outcome"] == "parked")
        self.event("evt.shopify.webhook.order_paid", order_id=1002, total="10.00", currency="GBP")
        insist(self.event("evt.billing.payment_succeeded", payment_id="P-1", credits=500)["outcome"] == "posted")
        insist(self.event("evt.billing.payment_succeeded", payment_id="P-1", credits=500)["outcome"] == "replayed")
        yield "posted orders, a refund before its order, and one payment twice"

        status = self.call("GET", f"/credits/plugin-status/{self.merchant}", 200)["data"]
        insist(status["status"] == "enabled" and status["reason"] == "available")
        balance = self.call("GET", f"/credits/accounts/{self.merchant}/balance", 200)["data"]
        self.post(balance["available"], "the rest")
        status = self.call("GET", f"/credits/plugin-status/{self.merchant}", 200)["data"]
        insist(status["status"] == "disabled" and status["reason"] == "exhausted")
        yield "spent the rest, and the service disabled the plugin at once"

        history = self.call("GET", f"/credits/transactions?merchant_id={self.merchant}&limit=200", 200)["data"]
        sums = sum(t["amount"] if t["operation_type"] == "INCREASE" else -t["amount"] for t in history)
        insist(sums == history[0]["balance_after"])
        insist([t["sequence"] for t in history] == list(range(len(history), 0, -1)))
        yield f"read {len(history)} transactions without a gap, and their sum is the balance"


def httpx2_json(value: Any) -> bytes:
    """Return the value as a JSON body, for a request with another media type."""
    return httpx2.Request("POST", "http://x", json=value).read()


def insist(fact: bool) -> None:
    """Raise Unexpected if the fact is false."""
    if not fact:
        frame = sys._getframe(1)
        raise Unexpected(f"the check in line {frame.f_lineno} of {__file__} failed")


def main() -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8015")
    parser.add_argument("--key", default=os.environ.get("CREDIT_SERVICE_KEY"))
    parser.add_argument("--rounds", type=int, default=1)
    asked = parser.parse_args()
    if not asked.key:
        parser.error("give --key, or set CREDIT_SERVICE_KEY")
    calls, started = 0, time.perf_counter()
    with httpx2.Client(base_url=asked.url, headers={"Authorization": f"Bearer {asked.key}"}) as client:
        for number in range(asked.rounds):
            walk = Walk(client)
            try:
                for sentence in walk.steps():
                    if number == 0:
                        print(f"ok  {sentence}")
            except (Unexpected, httpx2.HTTPError) as error:
                print(f"NOT {error}", file=sys.stderr)
                return 1
            calls += walk.calls
    print(f"ok  {calls} calls in {time.perf_counter() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
