"""The paths of plugin status, and how one is answered."""

from hashlib import blake2b
from typing import Final, NamedTuple

from credit_service.doors.http import api
from credit_service.gate.answers import StatusAnswer
from credit_service.messages.fields import format_time
from credit_service.messages.shapes import encode

STATUS: Final = api.PREFIX + "/credits/plugin-status"
TAG: Final = "plugin status"


class Rendered(NamedTuple):
    """The answers that carry a status: in full, and for callers that have it already."""

    tag: bytes
    whole: api.Answer
    unchanged: api.Answer


def render(status: StatusAnswer) -> Rendered:
    """The answers that carry a plugin status. A cache may keep one, but must ask again each time (ETag)."""
    shape = {
        "merchant_id": str(status.merchant_id),
        "status": status.status,
        "reason": status.reason,
        "as_of": format_time(status.as_of),
    }
    body = encode({"data": shape})
    tag = b'"%s"' % blake2b(body, digest_size=9).hexdigest().encode()
    headers = [(b"cache-control", b"no-cache"), (b"etag", tag)]
    return Rendered(tag, api.Answer(200, body, headers), api.Answer(304, b"", headers))
