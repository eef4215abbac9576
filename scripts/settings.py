"""docs/settings.md: what each setting does. Written by scripts.pages."""

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from credit_service.settings import Settings

_HEAD = """# Settings

Each setting is an environment variable, a line in `.env`, or, in lower case, an entry in `credit-service.yaml`; the
environment wins over `.env`, and that over YAML. An impossible value stops the start with one line that names the
setting, and so does an unknown name in YAML. `credit-service config` shows what is in force.

This page is generated from `src/credit_service/settings.py`.

| setting | default | what it does |
| --- | --- | --- |
"""


def page() -> str:
    """The page."""
    return _HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    default: Any = field.default
    if hasattr(default, "get_secret_value"):
        default = default.get_secret_value()
    elif default is None:
        default = ""
    elif isinstance(default, bool):
        default = str(default).lower()
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    one_of = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return f"| `{name.upper()}` | `{default}` | {field.description}{one_of} |\n"
