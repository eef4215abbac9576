"""The page of settings matches the settings."""

import re
from pathlib import Path

from credit_service.settings import Settings
from scripts import settings as generator

ROOT = Path(__file__).parent.parent


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_example_env_file_names_real_settings_with_their_defaults() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = dict(re.findall(r"^#([A-Z_]+)=(.*)$", text, flags=re.MULTILINE))
    page = generator.page()
    assert named
    for name, value in named.items():
        assert f"| `{name}` | `{value}` |" in page
