"""Logs: one structured line for each thing worth knowing, for people (console) or machines (json)."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from credit_service.settings import Settings


def configure_logs(settings: Settings) -> None:
    """Send the service's logs, and those of the libraries under it, to standard error in the chosen format."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if settings.log_format == "json":
        last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[_plain, *last]))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)


def _plain(logger: Any, name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Without what the standard library's records bring along."""
    return {key: value for key, value in event.items() if not key.startswith("_")}
