"""Hypothesis profiles for the whole suite, chosen with HYPOTHESIS_PROFILE; and real servers, for who asks for one.

The suite is to take less than five minutes on two cores. What that needs: ledgers are copied and never migrated
(tests/storage/engines.py, tests/served.py), a service of its own process is shared where tests leave it as it was,
`plain_client` asks it, and what takes long is longer only when it is told so (HYPOTHESIS_PROFILE, tests/faults).
"""

import gc
import os
import sys

import pytest
from hypothesis import Phase, settings

# The suite starts some two hundred processes of Python, and each would compile again all that it imports: a second more
# for a service.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A failure prints the blob that reproduces it (@reproduce_failure); machines are shared, so no example has a deadline.
settings.register_profile("default", max_examples=150, deadline=None, print_blob=True)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
# Mutation tests run the suite thousands of times: the same few examples each time, nothing remembered, and a failure is
# enough, be it large.
settings.register_profile(
    "mutation",
    parent=settings.get_profile("default"),
    max_examples=15,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int | None:
    """How many workers `-n auto` means: one more than there are cores, since tests wait for a third of their time."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish() -> None:
    """What was collected stays, and need not be looked through for garbage again and again."""
    gc.freeze()


pytest_plugins = ["tests.servers.fixtures", "tests.storage.engines"]
