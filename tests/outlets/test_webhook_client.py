"""The HTTP client for webhooks, with real receivers on loopback, some of them hostile."""

import asyncio
import base64
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_network

import pytest
from aiohttp import web
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from credit_service.outlets.targets import Targets
from credit_service.outlets.webhook_client import MAX_ANSWER_BYTES, Answered, Client, headers
from tests.outlets.receiver import Receiver
from tests.outlets.test_targets import Names

LOOPBACK = [ip_network("127.0.0.0/8")]
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = '{"id": "1", "data": "ü"}'.encode()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.start()
    yield receiver
    await receiver.stop()


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    client = Client(Targets(LOOPBACK, public=True))
    yield client
    await client.close()


def now() -> int:
    return round(datetime.now(UTC).timestamp() * 1_000_000)


async def test_message_verifies_with_the_standardwebhooks_library(receiver: Receiver, client: Client) -> None:
    assert await client.send(f"{receiver.url}?a=b", BODY, headers("m-1", BODY, [SECRET], now())) == Answered(204)
    (sent,) = receiver.sent
    assert (sent.path, sent.body) == ("/credits?a=b", BODY)
    assert Webhook(SECRET).verify(sent.body, sent.headers) == {"id": "1", "data": "ü"}
    assert sent.headers["webhook-id"] == "m-1"
    assert sent.headers["content-type"] == "application/cloudevents+json"
    assert sent.headers["user-agent"].startswith("credit-service/")
    assert {name for name in sent.headers if name in ("cookie", "authorization", "referer")} == set()
    for changed in ({"webhook-id": "m-2"}, {"webhook-timestamp": str(now() // 1_000_000 - 60)}):
        with pytest.raises(WebhookVerificationError):
            Webhook(SECRET).verify(sent.body, sent.headers | changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(sent.body + b" ", sent.headers)


def test_each_secret_signs_the_message() -> None:
    secrets = [f"whsec_{base64.b64encode(bytes([number] * 32)).decode()}" for number in range(3)]
    signed = headers("m", BODY, secrets[:2], now())
    assert [part[:3] for part in signed["webhook-signature"].split(" ")] == ["v1,", "v1,"]
    for secret in secrets[:2]:
        Webhook(secret).verify(BODY, signed)
    with pytest.raises(WebhookVerificationError):
        Webhook(secrets[2]).verify(BODY, signed)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
async def test_any_2xx_is_a_success(receiver: Receiver, client: Client, status: int) -> None:
    receiver.otherwise = status
    assert await client.send(receiver.url, BODY, {}) == Answered(status)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(receiver: Receiver, client: Client, status: int) -> None:
    receiver.answers.append(web.Response(status=status, headers={"location": f"{receiver.url}/else"}))
    told = await client.send(receiver.url, BODY, {})
    assert told == Answered(status, f"It answered {status}, and redirects are not followed.")
    assert len(receiver.sent) == 1


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 0, 0),
        ("in an hour", 3000, 3600),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0, 0),
        ("9" * 400, 999_999_999, 999_999_999),
        ("-1", None, None),
        ("soon", None, None),
        ("", None, None),
    ],
)
async def test_failure_has_status_and_retry_after(
    receiver: Receiver, client: Client, text: str, least: float | None, most: float | None
) -> None:
    if text == "in an hour":
        text = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    receiver.otherwise = web.Response(status=503, headers={"retry-after": text})
    told = await client.send(receiver.url, BODY, {})
    assert (told.status, told.error) == (503, "It answered 503.")
    if least is None or most is None:
        assert told.retry_after_seconds is None
    else:
        assert told.retry_after_seconds is not None
        assert least <= told.retry_after_seconds <= most


async def test_answer_leaves_no_cookie(receiver: Receiver, client: Client) -> None:
    receiver.answers.append(web.Response(status=200, headers={"set-cookie": "a=b; Path=/"}))
    for _ in range(2):
        await client.send(receiver.url, BODY, {})
    assert "cookie" not in receiver.sent[1].headers
    assert receiver.sent[0].connection is receiver.sent[1].connection, "but the connection is used again"


async def test_long_answer_is_not_read_to_its_end(receiver: Receiver, client: Client) -> None:
    ended = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(bytes(MAX_ANSWER_BYTES))
        finally:
            ended.set()

    receiver.answers.append(endless)
    assert await client.send(receiver.url, BODY, {}) == Answered(200)
    await asyncio.wait_for(ended.wait(), 20)
    assert await client.send(receiver.url, BODY, {}) == Answered(204)
    assert receiver.sent[0].connection is not receiver.sent[1].connection


async def test_truncated_body_does_not_undo_a_success(receiver: Receiver) -> None:
    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b"x")
        await asyncio.Event().wait()
        return response

    receiver.answers.append(half)
    client = Client(Targets(LOOPBACK, public=False), timeout_seconds=0.2)
    assert await client.send(receiver.url, BODY, {}) == Answered(200)
    await client.close()


async def test_compressed_answer_is_not_unpacked(receiver: Receiver, client: Client) -> None:
    receiver.otherwise = web.Response(status=200, body=b"no gzip at all", headers={"content-encoding": "gzip"})
    assert await client.send(receiver.url, BODY, {}) == Answered(200)


async def test_silent_receiver_times_out(receiver: Receiver) -> None:
    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    receiver.otherwise = never
    client = Client(Targets(LOOPBACK, public=False), timeout_seconds=0.1)
    assert await client.send(receiver.url, BODY, {}) == Answered(None, "It did not answer within 0.1 seconds.")
    await client.close()


async def test_network_error_becomes_one_sentence(client: Client) -> None:
    async def said(*pieces: bytes) -> Answered:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.writelines(pieces)
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        told = await client.send(f"http://127.0.0.1:{port}/", BODY, {})
        server.close()
        return told

    assert await said() == Answered(None, "It closed the connection without an answer.")
    for answer in (b"HTTP/1.1 200 " + b"x" * 100_000, b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000, b"SSH-2.0-x\r\n\r\n"):
        assert await said(answer) == Answered(None, "Its answer is not valid HTTP.")
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))
        told = await client.send(f"http://127.0.0.1:{nobody.getsockname()[1]}/", BODY, {})
    assert told == Answered(None, "The connection failed: Connection refused.")


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's side with a certificate that nobody vouches for."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem", "-days", "2", "-subj", "/CN=localhost"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", *kind, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


async def test_untrusted_certificate_is_refused(client: Client, certificate: ssl.SSLContext) -> None:
    receiver = Receiver()
    await receiver.start(certificate)
    told = await client.send(receiver.url, BODY, {})
    assert told.status is None
    assert (told.error or "").startswith("Its TLS certificate was not accepted: self-signed certificate")
    assert receiver.sent == []
    await receiver.stop()


# ---- where it may go, asked again for each connection


async def test_forbidden_address_is_never_connected_to(receiver: Receiver) -> None:
    client = Client(Targets([], public=True))
    why = "Webhooks may not go to the address 127.0.0.1 (WEBHOOK_ALLOWED_NETWORKS)."
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
        for scheme in ("http", "https"):
            told = await client.send(f"{scheme}://{host}:{receiver.port}/", BODY, {})
            assert told.status is None
            assert told.error in (why, why.replace("127.0.0.1", "::1")), host
    for host in ("127.1", "2130706433", "0x7f.1"):
        assert (await client.send(f"http://{host}:{receiver.port}/", BODY, {})).error is not None
    assert receiver.sent == []
    await client.close()


async def test_name_that_changed_its_address_is_refused(receiver: Receiver) -> None:
    names = Names(fickle=("127.0.0.1",))
    client = Client(Targets(LOOPBACK, public=True, resolve=names))
    url = f"http://fickle.example:{receiver.port}/"
    receiver.answers.append(web.Response(status=204, headers={"connection": "close"}))
    assert await client.send(url, BODY, {}) == Answered(204)
    assert receiver.sent[0].headers["host"] == f"fickle.example:{receiver.port}"
    for address in ("169.254.169.254", "10.0.0.1"):
        names.known["fickle"] = (address,)
        told = await client.send(url, BODY, {})
        assert told.error == f"Webhooks may not go to the address {address} (WEBHOOK_ALLOWED_NETWORKS)."
    names.known["fickle"] = ("127.0.0.1", "10.0.0.1")
    assert (await client.send(url, BODY, {})).error is not None, "one of its addresses is not allowed"
    names.known["fickle"] = ("93.184.215.14",)
    assert (await client.send(url, BODY, {})).error == "A webhook to a public address needs https."
    names.known["fickle"] = ()
    assert (await client.send(url, BODY, {})).error == "Its name cannot be resolved."
    assert len(receiver.sent) == 1
    await client.close()


async def test_proxy_of_the_environment_is_ignored(
    receiver: Receiver, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert await client.send(receiver.url, BODY, {}) == Answered(204)
