"""Faults: place, code and sentence, without the input."""

import pytest
from pydantic import ValidationError

from credit_service.messages.faults import Fault, Invalid, of_errors, of_validation, pointer
from credit_service.messages.fields import Body, Id, Key, Money


class Sent(Body):
    id: Id
    name: Key
    money: Money | None = None


def told(**values: object) -> list[Fault]:
    with pytest.raises(ValidationError) as refused:
        Sent.model_validate(values)
    return of_validation(refused.value)


def test_each_place_has_one_fault_despite_unions() -> None:
    assert told(id=True, name="a", money=[]) == [
        Fault("/id", "wrong_type", "Must be a string or a number."),
        Fault("/money", "wrong_type", "Must be a string or a number."),
    ]


def test_the_first_branch_of_a_union_gives_the_fault() -> None:
    assert told(id="", name="a", money="x") == [
        Fault("/id", "too_short", "String should have at least 1 character."),
        Fault("/money", "malformed", "Money is a decimal number of at most 6 decimals."),
    ]


def test_the_fault_of_a_pattern_is_a_sentence() -> None:
    assert told(id=1, name="é") == [Fault("/name", "malformed", "Must be printable ASCII.")]


def test_missing_and_unknown_fields_are_named() -> None:
    assert told(id=1, str=1, decimal=2, **{"a/b": 3}) == [
        Fault("/name", "required", "This field is required."),
        Fault("/str", "unknown_field", "This field is not known."),
        Fault("/decimal", "unknown_field", "This field is not known."),
        Fault("/a~1b", "unknown_field", "This field is not known."),
    ]


def test_a_fault_does_not_quote_the_input() -> None:
    assert all("secret" not in str(fault) for fault in told(id="secret\n", name="secret" * 50, money="secret"))


@pytest.mark.parametrize(
    ("path", "text"),
    [([], ""), (["a", 0, "b"], "/a/0/b"), (["a/b", "~"], "/a~1b/~0"), ([""], "/"), (["\ud800"], "/\\ud800")],
)
def test_every_pointer_can_be_encoded(path: list[str | int], text: str) -> None:
    assert pointer(path) == text
    pointer(path).encode()


def test_a_prefix_locates_the_message() -> None:
    errors = [{"type": "missing", "loc": ("a",), "msg": "Field required"}]
    assert of_errors(errors, ["data", 3]) == [Fault("/data/3/a", "required", "This field is required.")]


def test_an_invalid_message_lists_its_faults_in_one_line() -> None:
    assert str(Invalid([Fault("/a", "x", "A."), Fault("", "y", "B.")])) == "/a: A.; body: B."
