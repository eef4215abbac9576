"""`python -m benchmarks.serve service`: run the service as `credit-service serve` does.

With `hello`, run a bare ASGI application by the same function with the same configuration, for comparison.
"""

import sys
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import uvloop

from credit_service import service
from credit_service.doors.http.app import Lifespan
from credit_service.doors.http.call import Application, Receive, Scope, Send
from credit_service.doors.http.parts import Parts
from credit_service.observability import configure_logs
from credit_service.settings import load

_BODY = b"Hello, world!"
_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", str(len(_BODY)).encode())]


def make_hello(parts: Parts, running: Lifespan | None = None) -> Application:
    """Return an application that answers every request with hello."""

    async def hello(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": _BODY})

    return hello


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message: Any = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def main(what: str) -> None:
    """Serve the application, with the settings of the environment."""
    settings = load()
    configure_logs(settings)
    with patch("credit_service.service.make_app", make_hello) if what == "hello" else nullcontext():
        uvloop.run(service.serve(settings))


if __name__ == "__main__":
    main(sys.argv[1])
