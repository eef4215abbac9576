"""Runs `credit-service` commands within the test's own process, as a shell would."""

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
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed for a program."""
        return json.loads(self.out)


def command(*arguments: str | Path, cwd: Path, **environment: str) -> Ran:
    """Run one command in `cwd`, with these settings in the environment and no others."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = "none"
    with (
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        _logs_left_alone(),
        _garbage_left_alone(),
    ):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return Ran(code, out.getvalue(), err.getvalue())


def clean_environment(**environment: str) -> dict[str, str]:
    """The environment of this process without any setting of the service, but for those given."""
    ours = {*Settings.model_fields, "credit_service_key"}
    return {name: value for name, value in os.environ.items() if name.lower() not in ours} | environment


@contextlib.contextmanager
def _logs_left_alone() -> Iterator[None]:
    """Afterwards the logs do not go to what stood in for standard error."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        structlog.reset_defaults()


@contextlib.contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Afterwards it is collected as before: a command may think the process its own."""
    thresholds = gc.get_threshold()
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
