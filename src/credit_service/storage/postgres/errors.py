"""Turns the driver's errors into those of the port. Their text never holds what the server said of a connection."""

import asyncio
from typing import Final

import asyncpg

from credit_service.storage.engine import BadRow, Conflict, OutcomeUnknown, StorageUnavailable

TRANSIENT: Final = (
    asyncpg.TransactionRollbackError,  # serialization failures and deadlocks
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InvalidCachedStatementError,
)
AWAY: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidTransactionStateError,  # read-only, or rolled back by the server after a timeout
    asyncpg.PostgresSystemError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class translated:  # noqa: N801 - used like a context manager function, but cheaper for a lone caller
    """Turn the driver's errors into those of the port; an unknown error is raised as it is, never dropped.

    `name` is what a message calls the database. Of an error of the connection only its kind is passed on: its text may
    hold a password.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)):
            raise BadRow(str(error)) from error
        if isinstance(error, TRANSIENT):
            raise Conflict(f"{self._name} had a conflict: {kind_of(error)}.") from error
        if isinstance(error, AWAY):
            raise StorageUnavailable(f"{self._name} cannot be used: {kind_of(error)}.") from error


def kind_of(error: BaseException) -> str:
    """What went wrong with a connection, in a few words without secrets."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.args[0] if error.args else type(error).__name__)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, ConnectionError) and "SSL" in str(error):
        return "it does not offer TLS"
    late = isinstance(error, (TimeoutError, asyncio.CancelledError))
    return "it did not answer in time" if late else type(error).__name__


def outcome_unknown(name: str, error: Exception) -> OutcomeUnknown:
    """The error for a commit whose answer was lost."""
    return OutcomeUnknown(f"{name} did not say whether it committed: {kind_of(error)}.")
