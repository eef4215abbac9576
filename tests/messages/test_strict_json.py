"""The strict reader and the canonical writer of JSON."""

import contextlib
import json
import time
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from credit_service.messages.faults import Invalid
from credit_service.messages.strict_json import Suspect, canonical, parse


def faults(body: bytes, max_depth: int = 32) -> list[tuple[str, str]]:
    with pytest.raises(Invalid) as refused:
        parse(body, max_depth)
    return [(fault.pointer, fault.code) for fault in refused.value.faults]


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b"null", None),
        (b" [1, -2, true, false]\r\n\t", [1, -2, True, False]),
        (b'{"a": {"b": []}}', {"a": {"b": []}}),
        (b'"\\u00e9\\ud83d\\udcb3"', "é💳"),
        ('"é💳"'.encode(), "é💳"),
        (b"12345678901234567890", 12345678901234567890),
        (b"1.10", Decimal("1.10")),
        (b"1e2", Decimal("1E+2")),
        (b"0.1234567890123456789", Decimal("0.1234567890123456789")),
        (b"-0", 0),
        (b'"{[\\"{["', '{["{['),
        (b'"\\\\"', "\\"),
    ],
)
def test_plain_json_is_read_exactly(body: bytes, value: Any) -> None:
    found = parse(body, 32)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{a:1}",
        b"'a'",
        b"01",
        b"1.",
        b".1",
        b"+1",
        b"0x1",
        b"NaN",
        b"-Infinity",
        b"nul",
        b"1 2",
        b'"\n"',
        b'"\0"',
        b'"\\x"',
        b'"\\u12"',
        b"\xef\xbb\xbf1",
        b"\x0c1",
        b"// 1\n1",
        b'"open',
        b'"open\\',
        b"]",
        b"}{",
        b'{"a" 1}',
    ],
)
def test_invalid_json_is_refused(body: bytes) -> None:
    assert faults(body) == [("", "not_json")]


@pytest.mark.parametrize("body", [b"\xff", b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf5\x80\x80\x80"', b'"\xe2\x82"'])
def test_invalid_utf_8_is_refused(body: bytes) -> None:
    assert faults(body) == [("", "not_json")]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"a":1,"a":1}', [("/a", "duplicate_key")]),
        (b'{"a":1,"\\u0061":2,"a":3}', [("/a", "duplicate_key")]),
        (b'[{"b":{"a/~":1,"a/~":2}}]', [("/0/b/a~1~0", "duplicate_key")]),
        (b'{"":1,"":2}', [("/", "duplicate_key")]),
        (b'["\\u0000"]', [("/0", "malformed")]),
        (b'{"a\\u0000":1}', [("", "malformed")]),
        (b'["\\ud800","\\udc00","\\udc00\\ud800"]', [("/0", "malformed"), ("/1", "malformed"), ("/2", "malformed")]),
        (b'{"\\ud800":1}', [("", "malformed")]),
        (b'{"x\\ud800":"\\u0000"}', [("", "malformed"), ("/x\\ud800", "malformed")]),
        (b"[1e999,-1e999,1e-999]", [("/0", "out_of_range"), ("/1", "out_of_range")]),
        (b"[1e1000000000000000000000]", [("/0", "out_of_range")]),
        (b"[1e-1000000000000000000000]", [("/0", "out_of_range")]),
        (b"[" + b"9" * 5000 + b"]", [("/0", "out_of_range")]),
        (
            b'{"a":[1e999],"b":{"c":1,"c":"\\u0000"}}',
            [
                ("/a/0", "out_of_range"),
                ("/b/c", "duplicate_key"),
                ("/b/c", "malformed"),
            ],
        ),
    ],
)
def test_ambiguous_json_is_refused_with_its_place(body: bytes, found: list[tuple[str, str]]) -> None:
    assert faults(body) == found


def test_suspect_json_keeps_its_value() -> None:
    with pytest.raises(Suspect) as refused:
        parse(b'{"a":1,"a":2,"b":"\\u0000"}', 32)
    assert refused.value.value == {"a": 2, "b": "\0"}


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_nesting_is_limited_for_arrays_and_objects(opening: bytes, closing: bytes, *, closed: bool) -> None:
    levels = 2 if len(opening) > 5 else 1
    for depth in (33, 1_000, 100_000):
        times = -(-depth // levels)
        body = opening * times + b"1" + closing * (times if closed else 0)
        assert faults(body) == [("", "too_deep")]


def test_nesting_up_to_the_limit_is_read() -> None:
    value: Any = 1
    for _ in range(32):
        value = [value]
    assert parse(json.dumps(value).encode(), 32) == value
    assert faults(json.dumps([value]).encode()) == [("", "too_deep")]


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    body = json.dumps(["[" * 100, '"' + "{" * 100, "\\", '\\"' + "[" * 100]).encode()
    assert len(parse(body, 2)) == 4


@pytest.mark.parametrize(
    "body",
    [
        b'[["' + b'\\"' * 500_000,
        b'[["' + b'\\"' * 500_000 + b"\\",
        b"[[" + b'"\\' * 500_000,
        b'[["' + b"\\" * 999_999,
        b"[[" + b'""' * 500_000,
        b"[[" * 500_000,
        b"[[" + b"9" * 1_000_000,
        b"[[0." + b"9" * 1_000_000 + b"]]",
        b"{" + b",".join(b'"%d":0' % (number % 60_000) for number in range(120_000)) + b"}",
        b'{"a":{"b":' + b"[" * 20 + b",".join([b'{"c":1}'] * 100_000) + b"]" * 20 + b"}}",
    ],
    ids=["quotes", "quotes, open", "pairs", "backslashes", "strings", "depth", "digits", "fraction", "keys", "wide"],
)
def test_reading_takes_time_linear_in_the_size(body: bytes) -> None:
    started = time.process_time()
    with contextlib.suppress(Invalid):
        parse(body, 32)
    assert time.process_time() - started < 5  # a backtracking pattern takes minutes


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('abé/~"\\')), inner),
)


@given(json_values)
def test_every_json_value_survives_writing_and_reading(value: Any) -> None:
    assert same(parse(json.dumps(value).encode(), 200), value)
    assert same(parse(json.dumps(value, ensure_ascii=False, indent=2).encode(), 200), value)


@given(json_values)
def test_canonical_text_does_not_depend_on_the_spelling(value: Any) -> None:
    text = canonical(parse(json.dumps(value).encode(), 200))
    assert text == canonical(parse(json.dumps(value, sort_keys=True, indent=1).encode(), 200))
    assert text == canonical(json.loads(text))
    assert same(json.loads(text), value)


def same(found: Any, value: Any) -> bool:
    """Whether two values are equal, with a Decimal equal to its nearest float."""
    if isinstance(found, Decimal | float):
        return float(found) == float(value)
    if isinstance(found, dict):
        return found.keys() == value.keys() and all(same(found[name], value[name]) for name in found)
    if isinstance(found, list):
        return len(found) == len(value) and all(map(same, found, value))
    return bool(found == value)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"b": 1, "a": [ ]}', '{"a":[],"b":1}'),
        (b"[1.0, 1e2, 1E+2, 100, 10.50, -0.0, 0.1]", "[1,100,100,100,10.5,0,0.1]"),
        (b'"\\u00e9\\/"', '"é/"'),
        (b"9007199254740993", "9007199254740993"),
        (b"1e300", "1e+300"),
    ],
)
def test_canonical_text_is_sorted_and_compact(body: bytes, text: str) -> None:
    assert canonical(parse(body, 32)) == text
