"""The faults of a message: what is wrong, and where."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from credit_service.messages.patterns import SENTENCES


class Fault(NamedTuple):
    """One fault: its place (a JSON Pointer, RFC 6901), its code, and a sentence for a person."""

    pointer: str
    code: str
    message: str


class Invalid(Exception):
    """A message is invalid; the error has all of its faults."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: Sequence[Fault] = list(faults)
        super().__init__("; ".join(f"{fault.pointer or 'body'}: {fault.message}" for fault in self.faults))


def pointer(path: Iterable[str | int]) -> str:
    """A path into JSON as a JSON Pointer; a lone surrogate becomes an escape, because UTF-8 cannot encode it."""
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
    """The faults of pydantic's error. No message quotes the input: it may be secret, or impossible to encode."""
    return of_errors(error.errors(include_url=False, include_input=False), prefix)


def of_errors(errors: Iterable[Mapping[str, Any]], prefix: Sequence[str | int] = ()) -> list[Fault]:
    """The faults of pydantic's error entries, one for each place."""
    faults: dict[str, Fault] = {}
    for entry in errors:
        kind, path = entry["type"], entry["loc"]
        if kind == "string_unicode":  # a lone surrogate: the JSON reader has reported it
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


_BRANCHES = {"int", "str", "decimal", "constrained-str", "constrained-int"}
"""The names of a union's branches, which pydantic adds to a path; the message has no such places."""
