"""Write docs/openapi.json, the OpenAPI document that this release serves. Run this script to accept a change.

uv run python -m scripts.openapi
"""

import json
from pathlib import Path

from credit_service.doors.http.app import make_fastapi

COMMITTED = Path(__file__).parent.parent / "docs" / "openapi.json"


def text() -> str:
    """Return the text of docs/openapi.json."""
    return json.dumps(make_fastapi(None).openapi(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    COMMITTED.write_text(text(), encoding="utf-8")
