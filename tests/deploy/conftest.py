"""Programs of Prometheus, which come with the operating system."""

import os
import shutil
from collections.abc import Callable

import pytest


@pytest.fixture
def program() -> Callable[[str], str]:
    """Finds a program of Debian's package `prometheus`; without it a test is skipped, and fails in CI."""

    def find(name: str) -> str:
        if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/bin:/usr/local/bin"):
            return found
        missing = f"No {name} here: as root, run: apt-get install prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing)

    return find
