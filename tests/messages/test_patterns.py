"""Patterns that guard input match whole texts only."""

import ast
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from credit_service.doors.http import call, keys, pages
from credit_service.doors.http.api_keys import shared as api_keys
from credit_service.doors.http.webhook_endpoints import shared as webhook_endpoints
from credit_service.messages import envelope, patterns

ROOT = Path(__file__).parent.parent.parent / "src" / "credit_service"

BY_PYDANTIC = {
    patterns.UUID: "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11",
    patterns.MERCHANT: "cus_17:a",
    patterns.ID: " gid://shopify/Order/17",
    patterns.TIME: "2026-11-22T10:45:00Z",
    patterns.MONEY: "149.90",
    patterns.CURRENCY: "GBP",
    patterns.PRINTABLE: "key 1",
    patterns.SHOP: "example.myshopify.com",
    patterns.URL: "https://example.com/credits",
}
COMPILED: list[tuple[Any, Any]] = [
    (api_keys.ID, "abcdefghijkl"),
    (webhook_endpoints._ID, "abcdefghijkl"),
    (webhook_endpoints.DELIVERY_ID, "abcdefghijkl-17"),
    (call._ID, b"request-1"),
    (keys._KEY, b"Bearer cs_abcdefghijkl_" + b"a" * 43),
    (pages._WHOLE, "17"),
    (envelope._EXTENSION, "sequence"),
    (envelope._CORRELATION, "c-1"),
    (envelope._TIME, "2026-11-22T10:45:00Z"),
]


@pytest.mark.parametrize(("pattern", "text"), BY_PYDANTIC.items(), ids=BY_PYDANTIC.values())
def test_pydantic_patterns_refuse_a_line_break(pattern: str, text: str) -> None:
    guarded: TypeAdapter[str] = TypeAdapter(Annotated[str, Field(pattern=pattern)])
    assert guarded.validate_python(text) == text
    for other in (f"{text}\n", f"\n{text}", f"{text}\n{text}"):
        with pytest.raises(ValidationError):
            guarded.validate_python(other)


@pytest.mark.parametrize(("pattern", "text"), COMPILED, ids=lambda value: str(getattr(value, "pattern", "")))
def test_compiled_patterns_refuse_a_line_break(pattern: Any, text: Any) -> None:
    line_break = b"\n" if isinstance(text, bytes) else "\n"
    assert pattern.fullmatch(text)
    assert not pattern.fullmatch(text + line_break)
    assert not pattern.fullmatch(line_break + text)


def test_no_guard_matches_only_the_beginning_of_its_input() -> None:
    """`match` with `$` accepts a line break at the end. The one remaining call reads a prefix on purpose."""
    calls = {
        f"{path.relative_to(ROOT)}: {ast.unparse(node.func)}"
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "match"
    }
    assert calls == {"doors/shopify_bodies.py: _ORDER_PAGE.match"}
