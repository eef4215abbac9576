"""A running service: uvicorn with our protocol and uvloop in its own thread, and a real database."""

import asyncio
import hmac
import json
import select
import socket
import threading
from base64 import b64encode
from collections.abc import Coroutine, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx2
import uvloop

from credit_service import service
from credit_service.doors.http.keys import new_key
from credit_service.doors.http.problems import CODES
from credit_service.doors.http.server import Server
from credit_service.settings import Settings, database_of
from credit_service.storage.keys import Keys
from tests.served import plain_client

T = TypeVar("T")
API = "/api/v1"
SCOPES = ("read", "write", "admin")


def new_merchant() -> str:
    """A new merchant id."""
    return str(uuid4())


class Running:
    """A running service. Talk to it by HTTP, over a raw socket, or call its parts."""

    def __init__(self, directory: Path | None = None, **given: Any) -> None:
        """With these settings. The ledger is a file in `directory`, or at `database_url`."""
        # The database server of the tests does not sync, and the machine may be busy.
        values = {
            "service_port": 0,
            "rate_limit_enabled": False,
            "database_allow_unsafe": True,
            "write_timeout_seconds": 300,
            **given,
        }
        if directory is not None:
            values["database_url"] = f"sqlite:///{directory / 'ledger.db'}"
        self.settings = Settings(_env_file=None, **values)  # type: ignore[call-arg]
        self.keys: dict[str, str] = {}
        self.port = 0
        self.service: service.Service
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="service")

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except BaseException as error:
            self._failed = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        store = await database_of(self.settings).opened()
        self.service = service.Service(store, self.settings)
        for scope in SCOPES:
            made = new_key(scope, scope, await store.now())
            await Keys(store).add(made.key)
            self.keys[scope] = made.whole
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.port = listening.getsockname()[1]
        self.server = Server(self.service, self.settings)
        self._started.set()
        await self.server.serve(sockets=[listening])

    def __enter__(self) -> "Running":
        self._thread.start()
        assert self._started.wait(30)
        if self._failed is not None:
            raise self._failed
        self.client = plain_client(self.url, timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self._failed is not None:
            raise self._failed

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the service."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def call(self, method: str, path: str, scope: str | None = "admin", **more: Any) -> httpx2.Response:
        """Call a route below the prefix, with the key of a scope; None sends no key."""
        headers = {} if scope is None else {"authorization": f"Bearer {self.keys[scope]}"}
        headers |= more.pop("headers", {})
        answer = self.client.request(method, API + path, headers=headers, **more)
        if answer.content:
            check_codes(answer.json())
        return answer

    def get(self, path: str, scope: str | None = "read", **more: Any) -> httpx2.Response:
        """GET a route below the prefix."""
        return self.call("GET", path, scope, **more)

    def post(self, path: str, body: Any, scope: str | None = "write", **more: Any) -> httpx2.Response:
        """POST JSON to a route below the prefix; bytes are sent unchanged."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **more.pop("headers", {})}
        return self.call("POST", path, scope, content=content, headers=headers, **more)

    def open(self, merchant_id: str | None = None) -> str:
        """Open an account with the trial, and return its merchant."""
        merchant_id = merchant_id or new_merchant()
        assert self.post("/credits/accounts", {"merchant_id": merchant_id}).status_code == 201
        return merchant_id

    def spend(self, merchant_id: str, amount: int = 1, key: str | None = None, **more: Any) -> httpx2.Response:
        """Post a USAGE."""
        return self.transact(posting(merchant_id, amount=amount, **more), key)

    def transact(self, body: Any, key: str | None = None, **more: Any) -> httpx2.Response:
        """POST one transaction, with a new idempotency key if none is given."""
        headers = {"idempotency-key": key or uuid4().hex, **more.pop("headers", {})}
        return self.post("/credits/transactions", body, headers=headers, **more)

    def tell(self, event: Any, **more: Any) -> httpx2.Response:
        """POST an event, or a list of events as a batch."""
        kind = "cloudevents-batch" if isinstance(event, list) else "cloudevents"
        return self.post("/credits/events", event, headers={"content-type": f"application/{kind}+json"}, **more)

    def balance(self, merchant_id: str) -> int:
        """The balance of a merchant."""
        return int(self.get(f"/credits/accounts/{merchant_id}/balance").json()["data"]["balance"])

    def sequence(self, merchant_id: str) -> int:
        """How many transactions a merchant's account has."""
        return int(self.get(f"/credits/accounts/{merchant_id}").json()["data"]["sequence"])

    @contextmanager
    def connection(self, buffer: int | None = None) -> "Iterator[Connection]":
        """A raw connection. `buffer`: bytes its kernel keeps each way; by default tens of megabytes."""
        with closing(socket.socket()) as connected:
            if buffer is not None:  # before it connects, or the server may send more than fits, and TCP stalls
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
            connected.settimeout(5)
            connected.connect(("127.0.0.1", self.port))
            yield Connection(connected)


class Connection:
    """A raw connection, for bytes that no HTTP client would send."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._received = b""

    def send(self, data: bytes) -> None:
        """Send bytes unchanged."""
        self.socket.sendall(data)

    def send_until_answered(self, pieces: Iterable[bytes], pause: float = 0) -> None:
        """Send piece after piece until an answer arrives."""
        for piece in pieces:
            if select.select([self.socket], [], [], pause)[0]:
                return
            self.socket.sendall(piece)
        raise AssertionError("nothing was answered")

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer: status, headers, body."""
        status, *lines = self.head().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._received) < length:
            self._read()
        body, self._received = self._received[:length], self._received[length:]
        return int(status.split()[1]), headers, body

    def head(self) -> str:
        """Read the head of one answer."""
        while b"\r\n\r\n" not in self._received:
            self._read()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        return head.decode("latin-1")

    def problem(self) -> str:
        """Read one answer, check that it is a problem that ends the connection, and return its code."""
        status, headers, body = self.answer()
        told = json.loads(body)
        check_codes(told)
        assert headers["content-type"] == "application/problem+json"
        assert told["status"] == status
        assert headers["connection"] == "close"
        return str(told["code"])

    def is_closed(self) -> bool:
        """Wait for the end of the connection. False if more arrives, or the connection stays open."""
        try:
            return self._received == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def _read(self) -> None:
        read = self.socket.recv(65536)
        if not read:
            raise EOFError(f"the connection ended after {self._received!r}")
        self._received += read


def check_codes(told: Any) -> None:
    """Check that every problem in an answer has a known code, with its status and title."""
    if isinstance(told, dict):
        if {"type", "title", "status", "code"} <= set(told):
            assert (told["status"], told["title"]) == CODES[told["code"]], told
            assert told["type"] == f"/docs/errors#{told['code']}"
        for entry in told.values():
            check_codes(entry)
    elif isinstance(told, list):
        for entry in told:
            check_codes(entry)


def posting(merchant_id: str, **more: Any) -> dict[str, Any]:
    """The body of a USAGE of 1 with changes; fields that are None are left out."""
    body = {
        "merchant_id": merchant_id,
        "operation_type": "DECREASE",
        "transaction_type": "USAGE",
        "amount": 1,
        **more,
    }
    return {name: value for name, value in body.items() if value is not None}


def head(running: Running, path: str = "/credits/transactions", **more: Any) -> bytes:
    """The head of a POST without its last empty line. Headers that are None are left out."""
    headers = {
        "host": "a",
        "authorization": f"Bearer {running.keys['write']}",
        "content-type": "application/json",
        "idempotency-key": "k",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value is not None)
    return f"POST /api/v1{path} HTTP/1.1\r\n{lines}".encode()


def request(running: Running, body: Any, **more: Any) -> bytes:
    """A complete POST of a transaction."""
    content = json.dumps(body).encode()
    return head(running, content_length=len(content), **more) + b"\r\n" + content


def cloud_event(type_: str, data: Any, **more: Any) -> dict[str, Any]:
    """A CloudEvent with changes; fields that are None are left out."""
    event = {"specversion": "1.0", "id": uuid4().hex, "source": "tests", "type": type_, "data": data, **more}
    return {name: value for name, value in event.items() if value is not None}


def delivery(topic: str | None, body: bytes, secret: str, shop: str | None = None) -> dict[str, str]:
    """The headers of a delivery that Shopify signed."""
    signature = b64encode(hmac.digest(secret.encode(), body, "sha256")).decode()
    headers = {"x-shopify-topic": topic, "x-shopify-hmac-sha256": signature, "x-shopify-shop-domain": shop}
    return {name: value for name, value in headers.items() if value is not None}
