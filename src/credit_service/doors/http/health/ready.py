"""Tell whether the process can take postings."""

from collections.abc import Callable

from credit_service.doors.http import api
from credit_service.doors.http.health.alive import OK, TAG, named
from credit_service.messages.shapes import encode
from credit_service.posting import Posting
from credit_service.storage.clock import ClockMoved
from credit_service.storage.engine import StorageError
from credit_service.supervision import Supervisor


@api.endpoint("GET", "/readyz", scope=None, tag=TAG, responses=OK, problems=("overloaded", "storage_unavailable"))
async def readyz(
    posting: Posting, supervisor: Supervisor, is_stopping: Callable[[], bool], check_storage: api.Check
) -> api.Answer:
    """The process can take postings."""
    if is_stopping() or posting.draining:
        raise api.Problem("overloaded", "The service is stopping.")
    if dead := supervisor.critical_faults:
        raise api.Problem("overloaded", f"A background task died and is being restarted: {named(dead)}.")
    try:
        await check_storage()
    except ClockMoved:
        raise
    except StorageError as error:
        raise api.Problem("storage_unavailable", str(error)) from None
    return api.Answer(200, encode({"status": "ok"}))
