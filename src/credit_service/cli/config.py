"""`credit-service config`."""

import json
import re
from typing import TYPE_CHECKING, Any

import typer

from credit_service.cli.common import DatabaseUrl, Json, settings_of

if TYPE_CHECKING:
    from credit_service.settings import Settings


def config(json_: Json = False, database_url: DatabaseUrl = None) -> None:
    """Show the settings in force, wherever each comes from; passwords are masked."""
    values = shown(settings_of(database_url=database_url))
    if json_:
        typer.echo(json.dumps(values))
        return
    for name, value in values.items():
        typer.echo(f"{name.upper()}={_written(value)}")


def _written(value: Any) -> str:
    """A value as a line of `.env` may say it."""
    if isinstance(value, dict):
        return json.dumps(value, ensure_ascii=False)
    return "" if value is None else str(value)


def shown(settings: "Settings") -> dict[str, Any]:
    """Settings as they may be shown to anybody."""
    values = settings.model_dump(mode="json")
    for name in ("database_url", "redis_url"):
        url = getattr(settings, name).get_secret_value()
        values[name] = _masked(url) if url else ""
    values["nats_url"] = re.sub("//[^@,]*@", "//***@", settings.nats_url.get_secret_value())
    return values


def _masked(url: str) -> str:
    """The URL of a database, or of Redis, without its passwords, of which some drivers take one as a parameter."""
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    query = {name: "masked" if "pass" in name.lower() else value for name, value in parsed.query.items()}
    return parsed.set(query=query).render_as_string(hide_password=True)
