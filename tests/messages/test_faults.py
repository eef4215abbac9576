"""How faults are told: where, what kind, and a sentence, without what was sent."""

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


def test_each_place_is_named_once_whatever_a_union_tries() -> None:
    assert told(id=True, name="a", money=[]) == [
        Fault("/id", "wrong_type", "Must be a string or a number."),
        Fault("/money", "wrong_type", "Must be a string or a number."),
    ]


def test_the_first_branch_of_a_union_says_what_is_wrong_with_text() -> None:
    assert told(id="", name="a", money="x") == [
        Fault("/id", "too_short", "String should have at least 1 character."),
        Fault("/money", "malformed", "Money is a decimal number of at most 6 decimals."),
    ]


def test_a_pattern_is_told_as_a_sentence() -> None:
    assert told(id=1, name="é") == [Fault("/name", "malformed", "Must be printable ASCII.")]


def test_fields_that_are_missing_or_unknown_are_told_by_their_name() -> None:
    assert told(id=1, str=1, decimal=2, **{"a/b": 3}) == [
        Fault("/name", "required", "This field is required."),
        Fault("/str", "unknown_field", "This field is not known."),
        Fault("/decimal", "unknown_field", "This field is not known."),
        Fault("/a~1b", "unknown_field", "This field is not known."),
    ]


def test_what_was_sent_is_not_repeated() -> None:
    assert all("secret" not in str(fault) for fault in told(id="secret\n", name="secret" * 50, money="secret"))


@pytest.mark.parametrize(
    ("path", "text"),
    [([], ""), (["a", 0, "b"], "/a/0/b"), (["a/b", "~"], "/a~1b/~0"), ([""], "/"), (["\ud800"], "/\\ud800")],
)
def test_a_pointer_can_be_sent_whatever_the_path(path: list[str | int], text: str) -> None:
    assert pointer(path) == text
    pointer(path).encode()


def test_a_prefix_says_where_the_message_stands() -> None:
    errors = [{"type": "missing", "loc": ("a",), "msg": "Field required"}]
    assert of_errors(errors, ["data", 3]) == [Fault("/data/3/a", "required", "This field is required.")]


def test_an_invalid_message_says_its_faults_in_a_line() -> None:
    assert str(Invalid([Fault("/a", "x", "A."), Fault("", "y", "B.")])) == "/a: A.; body: B."
