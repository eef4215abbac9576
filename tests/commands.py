"""Run `credit-service` commands as a shell does, but inside the process of the test."""

import contextlib
import gc
import io
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import structlog

from credit_service.cli import main
from credit_service.settings import Settings


class Ran(NamedTuple):
    """The output of a command and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The standard output, decoded as JSON."""
        return json.loads(self.out)


def command(*arguments: str | Path, cwd: Path, **environment: str) -> Ran:
    """Run one command in `cwd`. The environment contains only these settings."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = "none"
    with (
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _logging_restored(),
        _garbage_collection_restored(),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Ran(code, out.getvalue(), err.getvalue())


def clean_environment(**environment: str) -> dict[str, str]:
    """Return the environment of this process without settings of the service, plus the given variables."""
    settings = {*Settings.model_fields, "credit_service_key"}
    return {name: value for name, value in os.environ.items() if name.lower() not in settings} | environment


@contextlib.contextmanager
def _logging_restored() -> Iterator[None]:
    """Restore the logging at the end, because the command logs to the replaced standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@contextlib.contextmanager
def _garbage_collection_restored() -> Iterator[None]:
    """Restore the garbage collector's thresholds at the end, because a command may change them for its process."""
    thresholds = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
