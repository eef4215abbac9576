"""Make docs/settings.md, which describes each setting. scripts.pages writes the file."""

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from credit_service.settings import Settings

_HEAD = """# Settings

You can give each setting as an environment variable, as a line in `.env`, or, in lower case, as an entry in
`credit-service.yaml`. The environment overrides `.env`, and `.env` overrides YAML. If a value is invalid or YAML has an
unknown name, the service prints one line that names the setting and does not start. `credit-service config` shows the
effective values.

This page is generated from `src/credit_service/settings.py`.

| setting | default | what it does |
| --- | --- | --- |
"""


def page() -> str:
    """Return the text of the page."""
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
