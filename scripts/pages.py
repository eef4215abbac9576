"""Write every generated page of docs/. tests/test_pages.py compares each page with its source.

uv run python -m scripts.pages
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts import architecture, asyncapi, errors, events_reference, http_reference, openapi, settings

DOCS = Path(__file__).parent.parent / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "architecture.md": architecture.page,
    "architecture.svg": architecture.picture,
    "openapi.json": openapi.text,
    "http.md": http_reference.page,  # it reads the openapi.json that the line above wrote
    "errors.md": errors.page,
    "settings.md": settings.page,
    "asyncapi.json": asyncapi.text,
    "events.md": events_reference.page,
    **{name: partial(events_reference.schema, kind) for name, kind in events_reference.SCHEMAS.items()},
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (DOCS / name).parent.mkdir(exist_ok=True)
        (DOCS / name).write_text(page(), encoding="utf-8")
