"""The fast readers accept nothing that the slow ones refuse, and both read the same values."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from credit_service.doors.http.transactions.batch import BatchBody
from credit_service.doors.http.transactions.posting import PostingBody
from credit_service.messages import strict_json
from credit_service.messages.envelope import read, read_fast
from credit_service.messages.fast import decoder
from credit_service.messages.faults import Invalid
from credit_service.messages.inbound import CATALOGUE, EventContext, translate, translate_fast
from tests.messages import bodies
from tests.messages.bodies import MERCHANT

CONTEXT = EventContext("key:a", "c", 17)
Model = type[BaseModel]

fast_posting, fast_batch = decoder(PostingBody), decoder(BatchBody)


def fields(value: Any) -> Any:
    """The fields of a body, from either reader, without missing fields."""
    if isinstance(value, BaseModel):
        return {name: fields(getattr(value, name)) for name in value.model_fields_set}
    if isinstance(value, msgspec.Struct):
        found = {name: fields(getattr(value, name)) for name in value.__struct_fields__}
        return {name: entry for name, entry in found.items() if entry is not None}
    if isinstance(value, list):
        return [fields(entry) for entry in value]
    return value


def agree(fast: Callable[[bytes], Any], model: Model, body: bytes) -> bool:
    """Whether the fast reader accepts a body; if so, the slow one must read the same."""
    found = fast(body)
    if found is None:
        return False
    slow = model.model_validate(strict_json.parse(body, 32))
    assert fields(found) == fields(slow)
    return True


@given(bodies.as_bytes(bodies.postings()))
def test_both_readers_agree_on_postings(body: bytes) -> None:
    agree(fast_posting, PostingBody, body)


@given(bodies.as_bytes(bodies.batches()))
def test_both_readers_agree_on_batches(body: bytes) -> None:
    agree(fast_batch, BatchBody, body)


@given(st.sampled_from(sorted(CATALOGUE)).flatmap(lambda t: st.tuples(st.just(t), data_of(t))))
def test_both_readers_agree_on_event_data(typed: tuple[str, bytes]) -> None:
    type_, data = typed
    fast = translate_fast(type_, data, CONTEXT)
    if fast is not None:
        assert without_salt(fast) == without_salt(translate(type_, strict_json.parse(data, 32), CONTEXT))


def data_of(type_: str) -> st.SearchStrategy[bytes]:
    return bodies.as_bytes(bodies.event_data()[type_])


@given(bodies.as_bytes(bodies.events()))
def test_both_readers_agree_on_events(body: bytes) -> None:
    fast = read_fast(body, "key:a", "c")
    if fast is not None:
        slow = read(strict_json.parse(body, 32), "key:a", "c")
        assert (fast.id, fast.invalid) == (slow.id, None)
        assert slow.invalid is None
        assert without_salt(fast.commands) == without_salt(slow.commands)


def without_salt(commands: Any) -> Any:
    """Commands in a comparable form: without the random salt, and a refusal as its faults."""

    def plain(translated: Any) -> Any:
        command = translated.command
        if isinstance(command, Invalid):
            return (translated.order_id, list(command.faults))
        values = {name: getattr(command, name) for kind in type(command).__mro__ for name in slots(kind)}
        return (translated.order_id, type(command), {**values, "salt": values["salt"] is None})

    return [plain(translated) for translated in commands]


def slots(kind: type) -> tuple[str, ...]:
    return tuple(kind.__dict__.get("__slots__", ()))


POSTING = f'{{"merchant_id":"{MERCHANT}","operation_type":"DECREASE","transaction_type":"USAGE","amount":1}}'


@pytest.mark.parametrize(
    "body",
    [
        POSTING,
        POSTING.replace(":", " : ").replace(",", "\n,\t"),
        POSTING.replace("1}", '1,"metadata":{"a":[1,{"b":"c"}],"d":true},"reference":{"type":"a","id":"b"}}'),
        POSTING.replace("DECREASE", "INCREASE").replace("1}", '1,"grant":{"priority":5}}'),
        POSTING.replace("1}", '1,"metadata":{"é":"💳"}}'),
    ],
)
def test_plain_well_formed_bodies_are_read_fast(body: str) -> None:
    assert agree(fast_posting, PostingBody, body.encode())
    item = body.replace("{", '{"idempotency_key":"k",', 1)
    assert agree(fast_batch, BatchBody, f'{{"items":[{item},{item}]}}'.encode())
    assert agree(fast_batch, BatchBody, f'{{"atomic":true,"items":[{item}]}}'.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("1}", '1,"amount":1}'),
        ("1}", '1,"amount":2}'),
        ("1}", '1,"metadata":{"a":1,"a":1}}'),
        ("1}", '1,"metadata":{"a":{"b":"c"},"a":1}}'),
        ("1}", '1,"metadata":{},"metadata":{}}'),
        ("1}", "1.0}"),
        ("1}", "1e0}"),
        ("1}", "true}"),
        ("1}", '"1"}'),
        ("1}", f"{2**53}}}"),
        ("1}", f"{2**64}}}"),
        ("1}", "1}x"),
        ("1}", "1}{}"),
        ("1}", '1,"x":1}'),
        ("1}", '1,"metadata":' + '{"a":' * 40 + "1" + "}" * 40 + "}"),
        ("1}", '1,"metadata":{"a":"\0"}}'),
        ("1}", '1,"metadata":{"a":"\t"}}'),
        ("USAGE", "USAGE\n"),
        (MERCHANT, f"{MERCHANT}\n"),
        (MERCHANT, "-" + MERCHANT[1:]),
        ("{", "\ufeff{"),
    ],
)
def test_other_bodies_are_left_to_the_slow_reader(old: str, new: str) -> None:
    body = POSTING.replace(old, new, 1)
    assert fast_posting(body.encode()) is None
    item = body.replace("{", '{"idempotency_key":"k",', 1)
    for atomic in ("", '"atomic":false,', '"atomic":true,'):
        assert fast_batch(f'{{{atomic}"items":[{item}]}}'.encode()) is None


@pytest.mark.parametrize("encoded", [b"\xff", b"\xed\xa0\x80", b"\xc0\x80", b"\x80"])
def test_invalid_utf_8_is_left_to_the_slow_reader(encoded: bytes) -> None:
    body = POSTING.encode().replace(b"1}", b'1,"metadata":{"a":"%s"}}' % encoded)
    assert fast_posting(body) is None


def test_the_fast_reader_reads_most_valid_bodies() -> None:
    # A fast reader that accepts nothing would pass the tests above.
    taken = []

    @given(bodies.as_bytes(bodies.postings()), bodies.as_bytes(bodies.events()))
    def read_some(posting: bytes, event: bytes) -> None:
        taken.append(fast_posting(posting) is not None)
        taken.append(read_fast(event, "a", None) is not None)

    read_some()
    assert sum(taken) >= 10


@pytest.mark.parametrize("type_", sorted(CATALOGUE))
def test_every_event_type_is_read_fast(type_: str) -> None:
    data = {
        "evt.merchant.created": "",
        "evt.billing.trial_started": ',"trial_id":1,"credits":5',
        "evt.shopify.webhook.order_paid": ',"order_id":"1","total":"149.90","currency":"GBP"',
        "evt.shopify.webhook.order_refunded": ',"refund_id":2,"order_id":1,"refund_amount":5',
        "evt.billing.payment_succeeded": ',"payment_id":1,"credits":5,"expires_at":"2999-01-01T00:00:00Z"',
        "evt.billing.payment_refunded": ',"payment_id":1,"refund_id":2,"credits_used":5',
        "evt.billing.payment_disputed": ',"subscription_id":1,"period":"2026-01","dispute_id":2,"credits":5',
        "evt.billing.payment_dispute_closed": ',"payment_id":1,"dispute_id":2,"outcome":"lost"',
        "evt.billing.subscription_renewed": ',"subscription_id":1,"period":"2026-01","credits_to_use":5',
    }.get(type_, ',"adjustment_id":1,"operation_type":"INCREASE","credits":5,"reason":"é","admin_id":"bo"')
    body = (
        f'{{"specversion":"1.0","id":"1","source":"s","type":"{type_}","subject":"x","time":"2026-01-02T03:04:05Z",'
        f'"datacontenttype":"application/json","data":{{"merchant_id":"{MERCHANT}"{data}}}}}'
    ).encode()
    fast = read_fast(body, "key:a", "c")
    assert fast is not None
    assert without_salt(fast.commands) == without_salt(read(strict_json.parse(body, 32), "key:a", "c").commands)


def test_a_default_does_not_count_as_part_of_the_body() -> None:
    class Flagged(BaseModel):
        flag: bool = False
        number: int

    fast = decoder(Flagged)
    assert fast(b'{"number":1}').flag is None
    assert fast(b'{"number":1,"flag":false}').flag is False
    assert fast(b'{"number":1,"number":2}') is None


def test_the_slow_reader_refuses_what_the_models_refuse() -> None:
    with pytest.raises(ValidationError):
        PostingBody.model_validate({})
