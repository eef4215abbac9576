"""What is wrong with a message, fault by fault."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from credit_service.messages.patterns import SENTENCES


class Fault(NamedTuple):
    """One fault: where (a JSON Pointer, RFC 6901), what kind, and a sentence for a person."""

    pointer: str
    code: str
    message: str


class Invalid(Exception):
    """A message that cannot be understood, with all the faults that were found in it."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: Sequence[Fault] = list(faults)
        super().__init__("; ".join(f"{fault.pointer or 'body'}: {fault.message}" for fault in self.faults))


def pointer(path: Iterable[str | int]) -> str:
    """A path into JSON as a JSON Pointer; what cannot be sent (a lone surrogate) stands as its escape."""
    text = "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)
    return text.encode("utf-8", "backslashreplace").decode()


_CODES = {
    "missing": "required",
    "extra_forbidden": "unknown_field",
    "greater_than_equal": "out_of_range",
    "less_than_equal": "out_of_range",
    "string_too_long": "too_long",
    "string_too_short": "too_short",
    "too_long": "too_long",
    "too_short": "too_short",
    "literal_error": "not_allowed",
}


def of_validation(error: ValidationError, prefix: Sequence[str | int] = ()) -> list[Fault]:
    """The faults that pydantic found. What was sent is not repeated: it may be a secret, or not be sendable."""
    return of_errors(error.errors(include_url=False, include_input=False), prefix)


def of_errors(errors: Iterable[Mapping[str, Any]], prefix: Sequence[str | int] = ()) -> list[Fault]:
    """The faults behind pydantic's error entries, each place once."""
    faults: dict[str, Fault] = {}
    for entry in errors:
        kind, path = entry["type"], entry["loc"]
        if kind == "string_unicode":  # a lone surrogate: whoever read the JSON has named its place
            continue
        code = _CODES.get(kind, "wrong_type" if kind.endswith(("_type", "_parsing")) else "malformed")
        pattern = entry.get("ctx", {}).get("pattern", "")
        message = SENTENCES.get(pattern) or f"{entry['msg'].removeprefix('Value error, ').rstrip('.')}."
        if code == "unknown_field":
            message = "This field is not known."
        elif code == "required":
            message = "This field is required."
        elif path and path[-1] in _BRANCHES:
            path = path[:-1]
            if code == "wrong_type":
                message = "Must be a string or a number."
        place = pointer([*prefix, *path])
        faults.setdefault(place, Fault(place, code, message))
    return list(faults.values())


_BRANCHES = {"int", "str", "decimal", "constrained-str"}
"""How a union names its branches in a path, which are no places in the message."""
