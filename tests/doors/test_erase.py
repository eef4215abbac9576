"""L15: erasing personal data over HTTP."""

from tests.doors.running import Running, new_merchant, posting

EMAIL = "ada@example.com"


def _erase(running: Running, merchant: str, scope: str = "admin") -> tuple[int, dict[str, object]]:
    answer = running.call("POST", f"/credits/accounts/{merchant}/erase", scope)
    return answer.status_code, answer.json()


def test_erasing_says_what_it_found_and_finds_nothing_twice(running: Running) -> None:
    merchant = running.open()
    body = posting(merchant, metadata={"email": EMAIL})
    posted = running.transact(body, "k").json()["data"]
    assert posted["metadata"] == {"email": EMAIL}
    nothing = {
        "merchant_id": merchant,
        "transactions": 0,
        "parked": 0,
        "dead_letters": 0,
        "deliveries": 0,
        "reasons": 0,
    }
    status, told = _erase(running, merchant)
    assert (status, told["data"]) == (200, nothing | {"transactions": 1})
    assert _erase(running, merchant)[1]["data"] == nothing
    kept = running.get(f"/credits/transactions/{posted['id']}").json()["data"]
    assert kept == posted | {"metadata": None}
    assert running.balance(merchant) == posted["balance_after"]


def test_a_request_repeated_after_erasure_replays(running: Running) -> None:
    merchant = running.open()
    body = posting(merchant, metadata={"email": EMAIL})
    running.transact(body, "k")
    _erase(running, merchant)
    repeated = running.transact(body, "k")
    assert (repeated.status_code, repeated.headers["idempotency-replayed"]) == (200, "true")


def test_only_an_admin_erases(running: Running) -> None:
    status, told = _erase(running, running.open(), "write")
    assert (status, told["code"]) == (403, "scope_missing")


def test_a_merchant_without_an_account_is_not_found(running: Running) -> None:
    status, told = _erase(running, new_merchant())
    assert (status, told["code"]) == (404, "account_not_found")
