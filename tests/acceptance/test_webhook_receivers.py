"""The sample receivers in docs/webhooks.md accept webhooks of the service and refuse all others."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.served import Served, die_with_parent, served

PAGE = (Path(__file__).parent.parent.parent / "docs" / "webhooks.md").read_text(encoding="utf-8")
SECRET = "whsec_" + "A" * 44
KINDS = {"python": [sys.executable, "-c"], "js": ["node", "-e"]}


@contextmanager
def receiver(kind: str, secret: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the receiver from the page, and yield its process and URL."""
    (shown,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    program, *more = KINDS[kind]
    if (found := shutil.which(program)) is None:
        pytest.skip(f"{program} is not installed")
    environment = {"SECRET": secret, "PORT": "0"}
    with subprocess.Popen(
        [found, *more, shown], env=environment, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
    ) as process:
        assert process.stdout is not None
        yield process, f"http://127.0.0.1:{process.stdout.readline().split()[-1]}/credits"
        process.kill()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    settings = {"WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8"}
    with served(tmp_path_factory.mktemp("receivers") / "ledger.db", settings=settings) as service:
        yield service


@pytest.mark.parametrize("kind", KINDS)
def test_receiver_accepts_webhooks_during_secret_rotation(kind: str, service: Served) -> None:
    with service.client() as client:
        made = client.post("/credits/webhook-endpoints", json={"url": "http://127.0.0.1:1/"}).json()["data"]
        with receiver(kind, made["secret"]) as (process, url):
            path = f"/credits/webhook-endpoints/{made['id']}"
            assert client.patch(path, json={"url": url}).status_code == 200
            assert client.post(f"{path}/test").status_code == 202
            assert process.stdout is not None
            received = [process.stdout.readline().split()]
            assert client.post(f"{path}/rotate").status_code == 200
            assert client.post(f"{path}/test").status_code == 202
            received.append(process.stdout.readline().split())
        names = [f"test-{made['id']}-{number}" for number in (1, 2)]
        assert received == [[name, "evt.credits.webhook_test"] for name in names]
        client.delete(path)


@pytest.mark.parametrize("kind", KINDS)
def test_receiver_refuses_missing_and_wrong_signatures(kind: str) -> None:
    with receiver(kind, SECRET) as (_, url):
        body = b'{"type": "evt.credits.recharged"}'
        now = "1800000000"
        for headers in (
            {},
            {"webhook-id": "1", "webhook-timestamp": now, "webhook-signature": "v1,AAAA"},
            {"webhook-id": "1", "webhook-timestamp": now, "webhook-signature": f"v1,{'A' * 43}= v1,{'B' * 43}="},
        ):
            assert httpx2.post(url, content=body, headers=headers).status_code == 401
