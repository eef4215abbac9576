"""The one way in: every change of any account, from any door, is a command or fact handed to `Posting.submit`.

`queue.py` gathers commands into batches, `attempt.py` gets a batch into the database, `batch.py` decides it.
"""

from credit_service.posting.queue import DeadlineExceeded, Overloaded, Posting
from credit_service.posting.submission import RefusedAt

__all__ = ["DeadlineExceeded", "Overloaded", "Posting", "RefusedAt"]
