"""Times, money and ids: their form in JSON and their value here."""

from decimal import Decimal
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from credit_service.messages import fields
from credit_service.messages.fields import format_time, money_micros, parse_time

SECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("1970-01-01t00:00:00.000001z", 1),
        ("1970-01-01T00:00:00.1234567Z", 123_456),
        ("1970-01-01T02:00:00+02:00", 0),
        ("1969-12-31T23:30:00-00:30", 0),
        ("1969-12-31T23:59:59.999999Z", -1),
        ("2026-11-22T10:45:00Z", 1_795_344_300 * SECOND),
        ("0001-01-01T00:00:00Z", -62_135_596_800 * SECOND),
        ("9999-12-31T23:59:59.999999Z", 253_402_300_800 * SECOND - 1),
        ("0001-01-01T01:00:00+01:00", -62_135_596_800 * SECOND),
        ("2024-02-29T00:00:00Z", 1_709_164_800 * SECOND),
    ],
)
def test_a_time_is_read_to_the_microsecond(text: str, micros: int) -> None:
    assert parse_time(text) == micros
    assert parse_time(format_time(micros)) == micros


@pytest.mark.parametrize(
    ("text", "same_as"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),
        ("2015-06-30t23:59:60z", "2015-07-01T00:00:00Z"),
        ("2024-02-29T23:59:60Z", "2024-03-01T00:00:00Z"),
        ("2016-12-31T23:59:60.999999Z", "2017-01-01T00:00:00Z"),
        ("1990-12-31T15:59:60-08:00", "1991-01-01T00:00:00Z"),
        ("2017-01-01T05:29:60+05:30", "2017-01-01T00:00:00Z"),
    ],
)
def test_a_leap_second_is_the_start_of_the_next_second(text: str, same_as: str) -> None:
    assert parse_time(text) == parse_time(same_as)
    assert TypeAdapter(fields.Time).validate_python(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-22",
        "2026-11-22T10:45Z",
        "2026-11-22T10:45:00",
        "2026-11-22 10:45:00Z",
        "2026-11-22T10:45:00+0100",
        "2026-11-22T10:45:00+24:00",
        "2026-11-22T24:00:00Z",
        "2026-11-22T10:60:00Z",
        "2026-11-22T10:45:60Z",
        "2026-11-22T23:59:60Z",
        "2026-11-30T23:58:60Z",
        "2026-11-30T23:59:61Z",
        "2026-11-30T23:59:60+01:00",
        "9999-12-31T23:59:60Z",
        "2026-11-30T23:59:60",
        "2026-11-31T10:45:00Z",
        "2025-02-29T10:45:00Z",
        "0000-01-01T00:00:00Z",
        "10000-01-01T00:00:00Z",
        "2026-11-22T10:45:00.1234567890Z",
        "2026-11-22T10:45:00.Z",
        "2026-11-22T10:45:00Z\n",
        " 2026-11-22T10:45:00Z",
        "٢٠٢٦-11-22T10:45:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        1_795_344_300,
        None,
    ],
)
def test_an_invalid_time_is_refused(text: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(fields.Time).validate_python(text)


@given(st.integers(parse_time("0001-01-01T00:00:00Z"), parse_time("9999-12-31T23:59:59.999999Z")))
def test_every_instant_survives_writing_and_reading(micros: int) -> None:
    assert parse_time(format_time(micros)) == micros


@given(st.datetimes(timezones=st.timezones()))
def test_every_accepted_time_can_be_written(moment: Any) -> None:
    try:
        micros = parse_time(moment.isoformat())
    except ValueError:
        return
    assert parse_time(format_time(micros)) == micros


@pytest.mark.parametrize(
    ("value", "micros"),
    [
        ("0", 0),
        ("149.90", 149_900_000),
        ("0.000001", 1),
        ("1000000000000", 10**18),
        ("0001", 1_000_000),
        (0, 0),
        (10**12, 10**18),
        (Decimal("149.90"), 149_900_000),
        (Decimal("1E+12"), 10**18),
        (Decimal("1.50000000"), 1_500_000),
        (Decimal("-0.0"), 0),
        (Decimal("0E+5"), 0),
        (Decimal("999999999999.999999"), 10**18 - 1),
    ],
)
def test_money_is_read_exactly(value: Any, micros: int) -> None:
    assert money_micros(value) == micros


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "+1",
        "1e2",
        "1.",
        ".5",
        "1,5",
        " 1",
        "1\n",
        "1_0",
        "0x1",
        "NaN",
        "Infinity",
        "٣",
        "1.0000001",
        "1000000000000.000001",
        "10000000000000",
        -1,
        10**12 + 1,
        10**400,
        True,
        False,
        Decimal("-0.000001"),
        Decimal("0.0000001"),
        Decimal("1.0000000000000000000000000000000001"),
        Decimal("1E-400"),
        Decimal("1E+400"),
        Decimal("Infinity"),
        Decimal("1000000000000.000001"),
    ],
)
def test_invalid_money_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Money"):
        money_micros(value)


@given(st.integers(0, 10**18))
def test_equal_money_has_one_value(micros: int) -> None:
    text = f"{micros // 10**6}.{micros % 10**6:06}"
    assert money_micros(text) == money_micros(Decimal(text)) == micros
    assert money_micros(Decimal(text).normalize()) == micros


@pytest.mark.parametrize("value", [1.5, None, [], {}])
def test_only_exact_numbers_are_money(value: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        money_micros(value)


@pytest.mark.parametrize(("value", "text"), [(17, "17"), ("17", "17"), (2**64, str(2**64)), ("gid://a/1", "gid://a/1")])
def test_an_id_is_the_same_as_a_number_and_as_text(value: Any, text: str) -> None:
    assert str(TypeAdapter(fields.Id).validate_python(value, strict=True)) == text


@pytest.mark.parametrize("value", [True, 1.0, Decimal(1), "", "x" * 201, "é", "a\n", "\0", None, []])
def test_an_invalid_id_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(fields.Id).validate_python(value, strict=True)


@pytest.mark.parametrize("kind", [fields.Credits, fields.PositiveCredits])
def test_credits_are_whole_numbers_up_to_2_53(kind: Annotated[Any, "a kind of credits"]) -> None:
    read = TypeAdapter(kind)
    assert read.validate_python(2**53 - 1, strict=True) == 2**53 - 1
    for value in (-1, 2**53, "1", 1.0, True, Decimal(1), None):
        with pytest.raises(ValidationError):
            read.validate_python(value, strict=True)


def test_a_posting_needs_one_credit_an_order_none() -> None:
    assert TypeAdapter(fields.Credits).validate_python(0) == 0
    with pytest.raises(ValidationError):
        TypeAdapter(fields.PositiveCredits).validate_python(0)
