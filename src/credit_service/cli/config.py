"""`credit-service config`."""

import json
import re
from typing import TYPE_CHECKING, Any

from credit_service.cli.common import DatabaseUrl, Json, settings_of, show, show_json

if TYPE_CHECKING:
    from credit_service.settings import Settings


def config(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """Show the settings in force, from every source; passwords are masked."""
    values = shown(settings_of(database_url=database_url))
    if json_:
        show_json(values)
        return
    for name, value in values.items():
        show(f"{name.upper()}={_written(value)}")


def _written(value: Any) -> str:
    """A value as a line of `.env`."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def shown(settings: "Settings") -> dict[str, Any]:
    """The settings with their secrets masked."""
    from credit_service.storage.dsn import masked

    values = settings.model_dump(mode="json")
    for name in ("database_url", "redis_url"):
        values[name] = masked(getattr(settings, name).get_secret_value())
    values["nats_url"] = re.sub("//[^@,]*@", "//***@", settings.nats_url.get_secret_value())
    return values
