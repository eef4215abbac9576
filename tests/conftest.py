"""Hypothesis profiles and the fixtures of real servers for the whole suite.

The environment variable HYPOTHESIS_PROFILE selects the profile. The suite must take less than five minutes on two
cores. To reach that:

- Tests copy a migrated ledger and do not migrate (tests/storage/engines.py, tests/served.py).
- Tests that leave a served process unchanged share it, and they call it with `plain_client`.
- Long tests run longer only on request (HYPOTHESIS_PROFILE, tests/faults).
"""

import gc
import os
import sys

import pytest
from hypothesis import Phase, settings

# The suite starts about two hundred Python processes. Without bytecode files each process would compile all its
# imports. That takes a service one second.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# A failure prints a blob that reproduces it (@reproduce_failure). Examples have no deadline, because other programs may
# slow the machine.
settings.register_profile("default", max_examples=150, deadline=None, print_blob=True)
settings.register_profile("thorough", parent=settings.get_profile("default"), max_examples=2_000)
# The mutation check runs the suite thousands of times. So this profile tries the same few examples each time, keeps no
# database of failures, and does not shrink a failure.
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
    """Return the number of workers for `-n auto`: one more than the cores, because tests wait a third of their time."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else len(os.sched_getaffinity(0)) + 1


def pytest_collection_finish() -> None:
    """Exclude the collected tests from garbage collection: they live until the end of the run."""
    gc.freeze()


pytest_plugins = ["tests.servers.fixtures", "tests.storage.engines"]
