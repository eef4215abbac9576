"""The envelope of an event: CloudEvents 1.0."""

from decimal import Decimal
from typing import Any

import pytest

from credit_service.messages.envelope import UnknownType, read, read_fast
from credit_service.messages.fields import parse_time
from tests.messages.bodies import MERCHANT

EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e1",
    "source": "shop",
    "type": "evt.merchant.created",
    "data": {"merchant_id": MERCHANT},
}


def refused(**changed: Any) -> list[tuple[str, str]]:
    event = {name: value for name, value in {**EVENT, **changed}.items() if value != "left out"}
    found = read(event, "key:a", None)
    assert found.commands == []
    assert found.invalid is not None
    return [(fault.pointer, fault.code) for fault in found.invalid.faults]


def test_an_event_becomes_the_command_of_its_data() -> None:
    found = read({**EVENT, "time": "2026-01-02T03:04:05Z"}, "key:a", "request")
    assert (found.id, found.invalid) == ("e1", None)
    (translated,) = found.commands
    assert translated.command.occurred_at == parse_time("2026-01-02T03:04:05Z")  # type: ignore[union-attr]
    assert translated.command.correlation_id == "request"  # type: ignore[union-attr]
    assert translated.command.actor == "key:a"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "extensions",
    [
        {"traceparent": "00-aa-bb-01"},
        {"sequence": "17", "number": 17, "flag": True, "nothing": None},
        {"dataschema": "https://example.com/schema"},
        {"datacontenttype": "application/json"},
        {"datacontenttype": "application/json; charset=utf-8"},
        {"datacontenttype": "application/vnd.shop+json"},
        {"subject": None, "time": None, "datacontenttype": None},
        {"partitionkey": "x" * 5000},
    ],
)
def test_every_valid_cloudevent_is_accepted(extensions: dict[str, Any]) -> None:
    assert read({**EVENT, **extensions}, "key:a", None).invalid is None


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"specversion": "0.3"}, ("/specversion", "not_allowed")),
        ({"specversion": 1}, ("/specversion", "not_allowed")),
        ({"specversion": "left out"}, ("/specversion", "required")),
        ({"id": ""}, ("/id", "too_short")),
        ({"id": 1}, ("/id", "wrong_type")),
        ({"id": "x" * 256}, ("/id", "too_long")),
        ({"source": ""}, ("/source", "too_short")),
        ({"type": ""}, ("/type", "too_short")),
        ({"type": 5}, ("/type", "wrong_type")),
        ({"subject": ""}, ("/subject", "too_short")),
        ({"time": "today"}, ("/time", "malformed")),
        ({"time": 17}, ("/time", "wrong_type")),
        ({"datacontenttype": "text/plain"}, ("/datacontenttype", "malformed")),
        ({"datacontenttype": "application/jsonp"}, ("/datacontenttype", "malformed")),
        ({"data": "left out"}, ("/data", "required")),
        ({"data": "text"}, ("/data", "wrong_type")),
        ({"data": []}, ("/data", "wrong_type")),
        ({"data": {}}, ("/data/merchant_id", "required")),
        ({"Upper": "x"}, ("", "malformed")),
        ({"under_score": "x"}, ("", "malformed")),
        ({"x\n": "x"}, ("", "malformed")),
        ({"x" * 65: "x"}, ("", "malformed")),
        ({"": "x"}, ("", "malformed")),
        ({"object": {}}, ("", "malformed")),
        ({"array": []}, ("", "malformed")),
        ({"fraction": Decimal("1.5")}, ("", "malformed")),
        ({"fraction": 1.5}, ("", "malformed")),
    ],
)
def test_an_invalid_cloudevent_is_refused(changed: dict[str, Any], fault: tuple[str, str]) -> None:
    assert refused(**changed) == [fault]


def test_an_unknown_type_raises_unknown_type() -> None:
    found = read({**EVENT, "type": "evt.other"}, "key:a", None)
    assert isinstance(found.invalid, UnknownType)
    assert (found.id, found.invalid.faults[0].pointer) == ("e1", "/type")


@pytest.mark.parametrize("value", [None, [], "text", 17, {}, {"id": 5}, {"id": None}])
def test_a_value_that_is_no_event_has_no_id(value: Any) -> None:
    found = read(value, "key:a", None)
    assert found.id is None
    assert found.invalid is not None


@pytest.mark.parametrize(
    ("own", "kept"),
    [
        ("walk-1", "walk-1"),
        ("x" * 128, "x" * 128),
        ("x" * 129, "request"),
        ("two words", "request"),
        ("line\n", "request"),
        ("é", "request"),
        ("", "request"),
        (17, "request"),
        (None, "request"),
    ],
)
def test_a_valid_correlation_id_of_the_event_takes_precedence(own: Any, kept: str) -> None:
    (translated,) = read({**EVENT, "correlationid": own}, "key:a", "request").commands
    assert translated.command.correlation_id == kept  # type: ignore[union-attr]


def test_the_older_envelope_gives_the_same_command() -> None:
    older = {
        "event_id": "e1",
        "event_type": "evt.merchant.created",
        "payload": {"merchant_id": MERCHANT},
        "correlation_id": "walk",
        "timestamp": "2026-01-02T03:04:05Z",
        "version": 3,
        "anything": {"else": []},
    }
    modern = {**EVENT, "correlationid": "walk", "time": "2026-01-02T03:04:05Z"}
    found, same = read(older, "key:a", None), read(modern, "key:a", None)
    assert (found.id, found.type, found.invalid) == (same.id, same.type, None)
    assert [translated.command for translated in found.commands] == [translated.command for translated in same.commands]


def test_the_older_envelope_is_validated_as_strictly() -> None:
    payloads: list[Any] = [None, [], {}, {"merchant_id": MERCHANT, "x": 1}]
    for payload in payloads:
        found = read({"event_type": "evt.merchant.created", "payload": payload}, "key:a", None)
        assert found.id is None
        assert found.invalid is not None
    unknown = read({"event_type": "evt.other", "payload": {}}, "key:a", None)
    assert isinstance(unknown.invalid, UnknownType)
    both = read({**EVENT, "event_type": "evt.merchant.created"}, "key:a", None)
    assert both.invalid is not None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"specversion":"1.0","id":"","source":"s","type":"evt.merchant.created","data":{}}',
        b'{"specversion":"1.0","id":"1","source":"s","type":"evt.other","data":{}}',
        b'{"specversion":"1.0","id":"1","source":"s","type":"evt.merchant.created","data":{"merchant_id":"-17"}}',
        b'{"specversion":"1.0","id":"1","source":"s","type":"evt.merchant.created","time":"now","data":{}}',
        b'{"specversion":"1.0","id":"1","source":"s","type":"evt.merchant.created","time":"2026-02-30T00:00:00Z"'
        b',"data":{"merchant_id":"6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"}}',
    ],
)
def test_the_fast_reader_leaves_invalid_events_to_the_slow_one(body: bytes) -> None:
    assert read_fast(body, "key:a", None) is None
