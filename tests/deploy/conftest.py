"""The programs of Prometheus. A package of the operating system has them."""

import os
import shutil
from collections.abc import Callable

import pytest


@pytest.fixture
def program() -> Callable[[str], str]:
    """Return a function that finds a program of Debian's package `prometheus`.

    If the program is missing, the test is skipped, or fails in CI.
    """

    def find(name: str) -> str:
        if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/bin:/usr/local/bin"):
            return found
        missing = f"No {name} here: as root, run: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)

    return find
