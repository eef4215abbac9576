"""Keys, as the keyring of a service sees them."""

from credit_service.doors.http.keys import Keyring, credential_of
from credit_service.storage.keys import ApiKey


async def key_of(keyring: Keyring, whole: str, stale_seconds: float = 0) -> ApiKey | None:
    """The key that a caller has who sends this whole key, None if it is not valid."""
    given = credential_of([f"Bearer {whole}".encode()])
    return None if given is None else await keyring.valid(given, stale_seconds)
