"""Running services for the tests of the jobs."""

from tests.doors.conftest import start

__all__ = ["start"]
