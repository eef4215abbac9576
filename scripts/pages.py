"""Write every generated page of docs/; tests/test_pages.py holds each equal to what it is made from.

uv run python -m scripts.pages
"""

from collections.abc import Callable
from pathlib import Path

from scripts import errors, http_reference, openapi, settings

DOCS = Path(__file__).parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "openapi.json": openapi.text,
    "http.md": http_reference.page,  # of the document that was just written
    "errors.md": errors.page,
    "settings.md": settings.page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
