"""`credit-service dead-letters` and `credit-service parked`: what could not be applied, and what waits."""

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from credit_service.storage.engine import Engine
from credit_service.storage.letters import LetterQuery, Letters, Undeliverable
from credit_service.storage.shops import KeptDelivery, Shops
from tests.cli import events
from tests.cli.ledgers import placed
from tests.commands import Ran, command
from tests.ledger.telling import T0, days, payment_refund, refund, sweep
from tests.ledger.telling import order as told_order
from tests.served import served
from tests.storage import engines
from tests.storage.contract import tell
from tests.storage.engines import only_on, opened

PAID = "evt.shopify.webhook.order_paid"
REFUNDED = "evt.shopify.webhook.order_refunded"
GOOD = events.paid(1).encode()
BAD = b'{"no": "event"}'
LETTERS = [
    Undeliverable(PAID, BAD, "validation_failed", "/type: This field is required.", T0),
    Undeliverable(f"{PAID}.{events.MERCHANT}", GOOD, "internal", "The service failed.", T0 + 1),
    Undeliverable("evt.merchant.created", b"\xff", "validation_failed", "It is not UTF-8.", T0 + 2),
]


class Ledger:
    """A ledger of a test's own, and the commands that look into it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        placed(folder, url)

    def do(self, what: Callable[[Engine], Any]) -> Any:
        """Do something with its store."""

        async def run() -> Any:
            store = opened(self.url, clock=lambda: T0)
            try:
                return await what(store)
            finally:
                await store.close()

        return asyncio.run(run())

    def keep(self, *letters: Undeliverable) -> None:
        """Keep these dead letters, numbered from 1."""
        assert self.do(lambda store: Letters(store).put_aside(letters)) == len(letters)

    def run(self, *arguments: str | Path, **settings: str) -> Ran:
        """Run a command."""
        return command(*arguments, cwd=self.folder, **settings)

    def balances(self) -> dict[str, int]:
        """Every merchant's balance."""
        return dict(engines.rows(self.url, "SELECT merchant_id, balance FROM accounts"))

    def replayed(self) -> list[int]:
        """The numbers of those that were replayed."""
        found = self.do(lambda store: Letters(store).page(LetterQuery(), None, 100))
        return sorted(letter.id for letter in found if letter.replayed_at is not None)


@pytest.fixture
def ledger(new_ledger: Callable[[], str], tmp_path: Path) -> Ledger:
    return Ledger(new_ledger(), tmp_path)


def tally(read: int, **outcomes: Any) -> dict[str, Any]:
    nothing = {"posted": 0, "replayed": 0, "parked": 0, "refused": 0, "skipped": 0, "by_code": {}}
    return {"read": read} | nothing | outcomes


def test_they_are_listed_newest_first_by_code_subject_and_page(ledger: Ledger) -> None:
    assert ledger.run("dead-letters", "list") == Ran(0, "", "")
    ledger.keep(*LETTERS)
    ran = ledger.run("dead-letters", "list")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == (
        f"1  2026-01-01T00:00:00.000000Z  validation_failed  {PAID}  /type: This field is required."
    )

    def ids(*arguments: str) -> list[int]:
        return [one["id"] for one in ledger.run("dead-letters", "list", "--json", *arguments).json]

    assert ids() == [3, 2, 1]
    assert ids("--limit", "2") == [3, 2]
    assert ids("--before", "2") == [1]
    assert ids("--code", "validation_failed") == [3, 1]
    assert ids("--subject", PAID) == [1]
    assert ids("--unreplayed", "--code", "internal") == [2]


def test_one_is_shown_with_the_event_as_it_came(ledger: Ledger) -> None:
    ledger.keep(*LETTERS)
    ran = ledger.run("dead-letters", "show", "1")
    assert (ran.code, ran.err) == (0, "")
    assert "code: validation_failed\n" in ran.out
    assert ran.out.endswith('\n\n{\n  "no": "event"\n}\n')
    assert ledger.run("dead-letters", "show", "3").out.endswith("\n\n\\xff\n")
    shown = ledger.run("dead-letters", "show", "2", "--json").json
    assert base64.b64decode(shown.pop("original")) == GOOD
    assert shown == {
        "id": 2,
        "code": "internal",
        "reason": "The service failed.",
        "subject": LETTERS[1].subject,
        "received_at": "2026-01-01T00:00:00.000001Z",
        "published_at": None,
        "replayed_at": None,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "9"), "9: there is no dead letter of this number."),
        (("replay", "9"), "9: there is no dead letter of this number."),
        (("replay",), "Say which dead letters to replay: their numbers, or --all."),
        (("replay", "1", "--all"), "Say which dead letters to replay: their numbers, or --all."),
        (("replay", "1", "--code", "internal"), "--code and --subject choose among all; say --all with them."),
        (("replay", "1", "--url", "u"), "An API key is needed: --key, or CREDIT_SERVICE_KEY in the environment."),
        (("replay", "1", "--url", "u", "--key", "ä"), "--key: this is no API key."),
    ],
)  # fmt: skip
@only_on("sqlite")
def test_what_is_asked_wrong_is_said_in_one_line(ledger: Ledger, arguments: tuple[str, ...], said: str) -> None:
    assert ledger.run("dead-letters", *arguments) == Ran(2, "", f"credit-service: {said}\n")


def test_they_are_replayed_once_and_those_that_are_refused_again_stay(ledger: Ledger) -> None:
    ledger.keep(*LETTERS)
    ran = ledger.run("dead-letters", "replay", "--all", "--json")
    assert (ran.code, ran.json) == (1, tally(3, posted=1, refused=2, by_code={"validation_failed": 2}))
    assert "dead letter 1: validation_failed: " in ran.err
    assert (ledger.balances(), ledger.replayed()) == ({events.MERCHANT: -1}, [2])
    again = ledger.run("dead-letters", "replay", "2")
    assert (again.code, again.out) == (0, "1 read, 0 posted, 1 replayed, 0 parked, 0 refused, 0 skipped\n")
    assert ledger.run("dead-letters", "replay", "--all", "--code", "internal", "--json").json == tally(0)
    assert "(replayed)" in ledger.run("dead-letters", "list").out


def test_shops_whose_deliveries_wait_for_a_link_are_listed(ledger: Ledger) -> None:
    async def deliver(store: Engine) -> None:
        for number, shop in enumerate(["b.myshopify.com", "a.myshopify.com", "b.myshopify.com"]):
            await Shops(store).keep(KeptDelivery(shop, "orders/paid", f"{{{number}}}", "link", days(number)))
        await Shops(store).keep(KeptDelivery("c.myshopify.com", "shop/redact", "{}", "merchant", days(0)))

    ledger.do(deliver)
    assert ledger.run("parked", "list", "--json").json["unlinked_shops"] == [
        {"shop_domain": "b.myshopify.com", "deliveries": 2, "since": "2026-01-01T00:00:00.000000Z"},
        {"shop_domain": "a.myshopify.com", "deliveries": 1, "since": "2026-01-02T00:00:00.000000Z"},
    ]
    assert "b.myshopify.com  deliveries that wait for a link: 2\n" in ledger.run("parked", "list").out


def test_a_refund_whose_order_came_too_late_is_replayed_as_its_event(ledger: Ledger) -> None:
    async def early(store: Engine) -> None:
        await tell(store, refund("R", "O", money="1.50", order_total="3"), payment_refund("r", "P", 1))

    ledger.do(early)
    ran = ledger.run("parked", "list", "--json")
    by_key = {one["idempotency_key"]: one for one in ran.json["refunds"]}
    assert by_key["shopify:refund:R"]["waits_for"] == "shopify:order:O"
    assert set(by_key) == {"shopify:refund:R", "billing:payment_refund:r"}
    assert {one["until"] for one in ran.json["refunds"]} == {"2026-01-08T00:00:00.000000Z"}
    assert "waits for shopify:order:O" in ledger.run("parked", "list").out

    async def too_late(store: Any) -> None:
        if hasattr(store, "clock"):  # PostgreSQL
            store.clock.fixed = lambda: days(8)
        else:
            store._clock = lambda: days(8)
        await tell(store, sweep(), told_order("O", 2))

    ledger.do(too_late)
    assert ledger.run("parked", "list") == Ran(0, "", "")
    listed = ledger.run("dead-letters", "list", "--json", "--subject", REFUNDED).json
    assert [one["code"] for one in listed] == ["order_unknown"]
    shown = ledger.run("dead-letters", "show", str(listed[0]["id"])).out
    assert '"refund_amount": "1.5"' in shown
    ran = ledger.run("dead-letters", "replay", "--all", "--json")
    assert ran.json == tally(2, posted=1, parked=1), ran.err  # the payment may still come


def test_an_event_of_a_remapped_subject_is_read_by_that_subject(ledger: Ledger) -> None:
    event = json.dumps(json.loads(GOOD) | {"type": "shop.paid"}).encode()
    ledger.keep(Undeliverable("shop.paid", event, "internal", "The service failed.", T0))
    ran = ledger.run("dead-letters", "replay", "1", "--json")
    assert ran.json == tally(1, refused=1, by_code={"event_type_unknown": 1})
    remapped = {"NATS_SUBJECTS": f"{PAID}=shop.paid"}
    assert ledger.run("dead-letters", "replay", "1", "--json", **remapped).json == tally(1, posted=1)


def test_deliveries_of_shopifys_are_replayed_once_their_shop_is_linked(ledger: Ledger) -> None:
    def letter(topic: str, **told: Any) -> Undeliverable:
        original = json.dumps({"shop": "a.myshopify.com", "topic": topic, **told}).encode()
        return Undeliverable(f"shopify.webhook.{topic.replace('/', '.')}", original, "shop_not_found", "No.", T0)

    order = {"id": 1, "total_price": "5", "currency": "GBP"}
    ledger.keep(
        letter("orders/paid", body=order),
        letter("orders/paid", raw=json.dumps(order | {"id": 2})),
        letter("orders/paid", raw="{"),
        letter("orders/paid"),  # erased
        letter("shop/redact", body={"shop_domain": "a.myshopify.com"}),
        letter("orders/paid", body=order | {"test": True}),
    )
    ledger.do(lambda store: Shops(store).link("a.myshopify.com", events.MERCHANT, T0))
    ran = ledger.run("dead-letters", "replay", "--all", "--json")
    codes = {"validation_failed": 2}
    assert ran.json == tally(6, posted=2, refused=2, parked=1, skipped=1, by_code=codes), ran.err
    assert (ledger.balances(), ledger.replayed()) == ({events.MERCHANT: -2}, [1, 2, 5, 6])
    ((waiting, _),) = ledger.do(lambda store: Shops(store).due(T0, 10))
    assert waiting.topic == "shop/redact"  # for the service to do
    assert ledger.run("dead-letters", "replay", "1", "--json").json == tally(1, replayed=1)


def test_beside_a_service_they_are_replayed_into_it_and_straight(ledger: Ledger, tmp_path: Path) -> None:
    ledger.keep(*LETTERS, Undeliverable("shop.paid", _called("shop.paid"), "internal", "No.", T0))
    settings = {"DATABASE_ALLOW_UNSAFE": "true"}
    with served(engines.place(ledger.url), folder=tmp_path, settings=settings) as service:
        where = ("--url", service.url, "--key", service.key)
        ran = ledger.run("dead-letters", "replay", "--all", "--json", *where, NATS_SUBJECTS=f"{PAID}=shop.paid")
        assert (ran.json["posted"], ran.json["refused"]) == (1, 3), ran.err  # those of subjects that are none now
        assert ledger.run("dead-letters", "replay", "2", "--json", *where).json == tally(1, posted=1)
        assert ledger.run("dead-letters", "replay", "2", "--json").json == tally(1, replayed=1)
    assert ledger.balances()[events.MERCHANT] == -2


def _called(type_: str) -> bytes:
    return json.dumps(json.loads(events.paid(2)) | {"type": type_}).encode()
