"""Tell whether the process can take postings."""

from collections.abc import Callable

from credit_service.doors.http.call import Answer
from credit_service.doors.http.endpoints import endpoint
from credit_service.doors.http.health.alive import OK, TAG, named
from credit_service.doors.http.parts import Check
from credit_service.doors.http.problems import Problem
from credit_service.doors.http.single_flight import single_flight
from credit_service.messages.shapes import encode
from credit_service.posting import Posting
from credit_service.supervision import Supervisor


@endpoint("GET", "/readyz", scope=None, tag=TAG, responses=OK, problems=("overloaded", "storage_unavailable"))
async def readyz(
    posting: Posting, supervisor: Supervisor, is_stopping: Callable[[], bool], check_storage: Check
) -> Answer:
    """The process can take postings."""
    if is_stopping() or posting.draining:
        raise Problem("overloaded", "The service is stopping.")
    if dead := supervisor.critical_faults:
        raise Problem("overloaded", f"A background task died and is being restarted: {named(dead)}.")
    await _check(supervisor, check_storage)
    return Answer(200, encode({"status": "ok"}))


@single_flight
async def _check(supervisor: Supervisor, check_storage: Check) -> None:
    """Check the storage, once for all probes of a service that wait."""
    await check_storage()
