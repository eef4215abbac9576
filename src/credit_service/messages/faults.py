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
    """A path into JSON as a JSON Pointer."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


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
    faults: list[Fault] = []
    for entry in errors:
        kind = entry["type"]
        code = _CODES.get(kind, "wrong_type" if kind.endswith(("_type", "_parsing")) else "malformed")
        if code == "unknown_field":
            message = "This field is not known."
        elif code == "required":
            message = "This field is required."
        else:
            pattern = entry.get("ctx", {}).get("pattern", "")
            message = SENTENCES.get(pattern) or f"{entry['msg'].removeprefix('Value error, ').rstrip('.')}."
        # A union names its branches in the path; where they are is not a place in the message.
        path = [part for part in entry["loc"] if not (isinstance(part, str) and part in _BRANCHES)]
        fault = Fault(pointer([*prefix, *path]), code, message)
        if fault.pointer not in {other.pointer for other in faults}:
            faults.append(fault)
    return faults


_BRANCHES = {"int", "str", "decimal", "constrained-str", "constrained-int", "function-after[_text(), str]"}
