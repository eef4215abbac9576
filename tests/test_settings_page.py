"""The page of settings tells what the settings are."""

import re
from pathlib import Path

from credit_service.settings import Settings
from scripts import settings as generator

ROOT = Path(__file__).parent.parent


def test_every_setting_says_what_it_does() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_example_file_names_settings_that_exist_with_their_defaults() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = dict(re.findall(r"^#([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    page = generator.page()
    assert named
    for name, value in named.items():
        assert f"| `{name}` | `{value}` |" in page
