"""A strict reader and a canonical writer of JSON (RFC 8259).

The reader refuses everything that two readers could read differently. Duplicate keys, NaN, numbers beyond a double, NUL
and lone surrogates each get a fault that names the place.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

from credit_service.messages.faults import Fault, Invalid, pointer

# Everything except brackets outside of strings. The pattern never backtracks (possessive, and a string need not end),
# so any input takes one pass.
_NO_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.?)*+"?|[^"\[\]{}]++', re.DOTALL)
_LONGEST_INTEGER = 1_000
_TOO_LARGE = Decimal("Infinity")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Suspect(Invalid):
    """The JSON has faults but also a value; `value` lets the caller look for more faults."""

    def __init__(self, faults: Iterable[Fault], value: Any) -> None:
        super().__init__(faults)
        self.value = value


class _Duplicates(dict[str, Any]):
    """A JSON object in which some keys came twice."""

    twice: tuple[str, ...] = ()


def parse(body: bytes, max_depth: int) -> Any:
    """The JSON value in `body`. Numbers with a fraction or exponent become Decimal, so that they stay exact.

    Raises Invalid with every fault; Suspect if there is a value all the same.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Invalid([Fault("", "not_json", f"The body is not UTF-8: byte {error.start} is not valid.")]) from None
    if _depth(body) > max_depth:
        raise Invalid([Fault("", "too_deep", f"The body is nested deeper than {max_depth} levels.")])
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        message = f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise Invalid([Fault("", "not_json", message)]) from None
    faults: list[Fault] = []
    _inspect(value, (), faults)
    if faults:
        raise Suspect(faults, value)
    return value


def _depth(body: bytes) -> int:
    """The nesting depth of a body; counted before parsing, because the parser could exhaust its stack."""
    depth = deepest = 0
    if body.count(b"[") + body.count(b"{") < 2:
        return deepest
    for byte in _NO_BRACKETS.sub(b"", body):
        if byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    marked = _Duplicates(found)
    marked.twice = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return marked


def _constant(name: str) -> NoReturn:
    raise Invalid([Fault("", "not_json", f"{name} is not a JSON number.")])


def _integer(digits: str) -> int | Decimal:
    # A number of this length is always out of range, so the cost of converting it is saved.
    return int(digits) if len(digits) <= _LONGEST_INTEGER else _TOO_LARGE


def _number(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:  # its exponent has more than 18 digits
        return _TOO_LARGE


def _inspect(value: Any, path: tuple[str | int, ...], faults: list[Fault]) -> None:
    if isinstance(value, str):
        if "\0" in value:
            faults.append(Fault(pointer(path), "malformed", "Text must not contain NUL."))
        elif _LONE_SURROGATE.search(value):
            faults.append(Fault(pointer(path), "malformed", "Text must not contain a lone surrogate."))
    elif isinstance(value, Decimal):
        if not math.isfinite(float(value)):
            faults.append(Fault(pointer(path), "out_of_range", "The number is out of range."))
    elif isinstance(value, dict):
        if isinstance(value, _Duplicates):
            faults += [Fault(pointer((*path, name)), "duplicate_key", "This key came twice.") for name in value.twice]
        for name, entry in value.items():
            if "\0" in name or _LONE_SURROGATE.search(name):
                faults.append(Fault(pointer(path), "malformed", "A key must not contain NUL or a lone surrogate."))
            _inspect(entry, (*path, name), faults)
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            _inspect(entry, (*path, index), faults)


def canonical(value: Any) -> str:
    """A JSON value as canonical text (like RFC 8785): sorted keys, no white space, one form for equal numbers.

    So a fingerprint depends on the value, not on its spelling (L3).
    """
    return _encode(_plain(value))


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if isinstance(value, (Decimal, float)):
        number = float(value)
        return int(number) if number.is_integer() and abs(number) < 2**53 else number
    return value
