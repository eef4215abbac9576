"""Problems: one shape, and a closed list of codes with an explanation of each."""

import ast
import re
from html import unescape
from pathlib import Path

import pytest

from credit_service import doors
from credit_service.doors.http.errors import ADVICE, EXAMPLES
from credit_service.doors.http.problems import CODES, Problem, of_faults, of_refusal
from credit_service.ledger.refusals import Refusal, Refused
from credit_service.messages.faults import Fault
from credit_service.settings import Settings
from tests.doors.running import Running, posting

# Every code and its status. A new code changes the contract of the service.
PROMISED = {
    "bad_request": 400,
    "idempotency_key_missing": 400,
    "idempotency_key_invalid": 400,
    "unauthenticated": 401,
    "insufficient_credits": 402,
    "scope_missing": 403,
    "account_frozen": 403,
    "account_closed": 403,
    "not_found": 404,
    "account_not_found": 404,
    "transaction_not_found": 404,
    "hold_not_found": 404,
    "grant_not_found": 404,
    "endpoint_not_found": 404,
    "key_not_found": 404,
    "shop_not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "trial_already_granted": 409,
    "account_not_empty": 409,
    "hold_captured": 409,
    "hold_released": 409,
    "hold_expired": 409,
    "already_reversed": 409,
    "not_reversible": 409,
    "body_too_large": 413,
    "unsupported_media_type": 415,
    "validation_failed": 422,
    "cursor_invalid": 422,
    "amount_out_of_range": 422,
    "event_type_unknown": 422,
    "idempotency_key_reused": 422,
    "capture_exceeds_hold": 422,
    "currency_mismatch": 422,
    "order_unknown": 422,
    "payment_unknown": 422,
    "rate_limited": 429,
    "headers_too_large": 431,
    "internal": 500,
    "overloaded": 503,
    "storage_unavailable": 503,
    "deadline_exceeded": 503,
    "outcome_unknown": 503,
}


def test_codes_and_statuses_are_the_promised_ones() -> None:
    assert {code: meaning.status for code, meaning in CODES.items()}.items() <= PROMISED.items()


@pytest.mark.parametrize("refusal", Refusal)
def test_every_refusal_of_the_ledger_has_a_code(refusal: Refusal) -> None:
    problem = of_refusal(Refused(refusal))
    assert problem.code in CODES
    assert problem.detail == refusal.sentence


def test_every_code_in_the_source_is_in_the_list() -> None:
    (package,) = doors.__path__
    named = set()
    for file in Path(package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                first = node.args[0]
                if node.func.id in ("Problem", "TooMuch") and isinstance(first, ast.Constant):
                    named.add(first.value)
    assert named
    assert named <= set(CODES)


def test_problem_with_an_unknown_code_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        Problem("something_else", "There is no such code.")


def test_every_code_has_advice_and_no_other_advice_exists() -> None:
    assert list(ADVICE) == list(CODES)
    for code, (happened, do) in ADVICE.items():
        assert len(happened) + len(do) > 90, code
        assert happened.endswith((".", ").")), code
        assert do.endswith((".", ").")), code
        assert ("`Retry-After`" in do) == (CODES[code].status in (429, 503)), code
    assert set(re.findall("`([A-Z]+_[A-Z_]+)`", str(ADVICE))) - {"ORDER_PAID"} <= {
        name.upper() for name in Settings.model_fields
    }


@pytest.mark.parametrize("code", CODES)
def test_type_of_a_problem_links_to_its_explanation(running: Running, code: str) -> None:
    page, _, anchor = Problem(code, "").shape(None)["type"].partition("#")
    answer = running.client.get(page)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    (section,) = re.findall(rf'<h2 id="{anchor}">{code}</h2>(.*?)(?=<h2|</html>)', answer.text, flags=re.DOTALL)
    told = unescape(re.sub("<[^>]+>", "", section))
    for text in (f"{CODES[code].status} · {CODES[code].title}.", *ADVICE[code]):
        assert text.replace("`", "") in told


def test_page_of_errors_needs_no_other_file(running: Running) -> None:
    page = running.client.get("/docs/errors").text
    assert re.findall(r'<h2 id="([a-z_]+)"', page) == list(CODES)
    assert re.findall(r"https?:|src=|href=|@import|url\(", page) == []


def test_examples_are_real_answers(running: Running) -> None:
    merchant = running.open()
    answers = {
        "validation_failed": running.transact(posting(merchant, amount="1", memo="x")),
        "insufficient_credits": [running.spend(merchant, 30), running.spend(merchant, 1000)][-1],
    }
    assert list(answers) == list(EXAMPLES)
    for code, answer in answers.items():
        assert answer.json() == EXAMPLES[code].shape(answer.headers["x-request-id"])


def test_problem_has_one_shape() -> None:
    problem = Problem("insufficient_credits", "No.", errors=[Fault("/a", "b", "c")], available=1, required=2)
    assert problem.shape("r") == {
        "type": "/docs/errors#insufficient_credits",
        "title": "Not enough credits",
        "status": 402,
        "detail": "No.",
        "code": "insufficient_credits",
        "request_id": "r",
        "available": 1,
        "required": 2,
        "errors": [{"pointer": "/a", "code": "b", "message": "c"}],
    }


@pytest.mark.parametrize("code", CODES)
def test_temporary_problems_carry_retry_after(code: str) -> None:
    # A rate limit computes its own Retry-After.
    assert ("Retry-After" in Problem(code, "").headers) == (CODES[code].status == 503)


def test_detail_is_the_one_fault_or_their_number() -> None:
    first, second = Fault("/a", "x", "A is wrong."), Fault("/b", "x", "B is wrong.")
    assert of_faults([first]).detail == "A is wrong."
    assert of_faults([first, second]).detail.startswith("The request has 2 faults")


def test_refusal_of_an_item_points_at_the_item() -> None:
    refused = Refused(Refusal.GRANT_ALREADY_EXPIRED, {"pointer": "/grant/expires_at"})
    told = of_refusal(refused, "/items/3").shape(None)
    assert told["pointer"] == "/items/3"
    assert told["errors"][0]["pointer"] == "/items/3/grant/expires_at"
    assert "pointer" not in of_refusal(refused).shape(None)
