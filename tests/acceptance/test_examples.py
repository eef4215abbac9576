"""The examples that read events over NATS run unchanged. They print all events and detect gaps."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from nats.js import JetStreamContext

from credit_service.outlets.jetstream import STREAM
from tests.ledger.telling import opening, use
from tests.outlets.publishing import Message, Publishing, connection, stream
from tests.served import die_with_parent
from tests.servers.nats import Nats, connected
from tests.storage.contract import merchant, tell
from tests.storage.engines import opened
from tests.storage.files import new_file
from tests.storage.values import of

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
NODE_PACKAGES = ("@nats-io/transport-node@3", "@nats-io/jetstream@3")
OPEN_TO_ALL = "authorization {}"


@pytest.fixture
def broker() -> Iterator[Nats]:
    """Run a NATS server without a password."""
    with Nats(settings=OPEN_TO_ALL) as server:
        yield server


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """Return a function that makes the command to run an example on Node, with its packages installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("Node is missing: as root, run: apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("node")
    quiet = ("--silent", "--no-audit", "--no-fund")
    subprocess.run(["npm", "install", *quiet, *NODE_PACKAGES], cwd=folder, check=True, timeout=120)

    def program(name: str) -> list[str]:
        shutil.copy(EXAMPLES / name, folder)  # into the folder with the packages
        return ["node", str(folder / name)]

    return program


@contextmanager
def reading(program: list[str], url: str) -> Iterator[Iterator[str]]:
    """Run a program, and yield the lines that it prints."""
    with subprocess.Popen(
        program, env={"NATS_URL": url}, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent
    ) as process:
        assert process.stdout is not None
        try:
            yield iter(process.stdout.readline, "")
        finally:
            process.kill()


def published(broker: Nats, folder: Path) -> list[Message]:
    """Publish four events of each of three accounts, and return them."""

    async def publish() -> list[Message]:
        store = opened(f"sqlite:///{new_file(folder / 'ledger.db')}")
        merchants = [merchant(index) for index in range(3)]
        await tell(store, *[of(one, opening()) for one in merchants])
        await tell(store, *[of(one, use(2)) for one in merchants])
        async with connection(f"nats://127.0.0.1:{broker.port}") as connected_broker:
            await Publishing(store, connected_broker).drain()
        await store.close()
        return await stream(f"nats://127.0.0.1:{broker.port}")

    return asyncio.run(publish())


def change(broker: Nats, messages: list[Message]) -> None:
    """Delete the second and third event of an account, repeat its first event, and add a fifth event."""

    async def do() -> None:
        async with connected(f"nats://127.0.0.1:{broker.port}") as nats:
            streams: JetStreamContext = nats.jetstream()
            own = [one for one in messages if one.event["subject"] == messages[0].event["subject"]]
            for lost in own[1:3]:
                await streams.delete_msg(STREAM, messages.index(lost) + 1)
            for event in (own[0].event, own[3].event | {"sequence": "5"}):
                await streams.publish(event["type"], json.dumps(event).encode())

    asyncio.run(do())


def check(program: list[str], broker: Nats, folder: Path) -> None:
    messages = published(broker, folder)
    change(broker, messages)
    account = messages[0].event["data"]["account_id"]
    of_it = [one for one in messages if one.event["data"]["account_id"] == account]
    expected = []
    for message in messages:
        if message in of_it[1:3]:
            continue
        event = message.event
        if message is of_it[3]:
            expected.append(f"{account}: events 2 to 3 are missing")
        expected.append(f"{event['sequence']} {event['type']} {event['data']['available']}")
    expected.append(f"5 {of_it[3].subject} {of_it[3].event['data']['available']}")
    with reading(program, f"nats://127.0.0.1:{broker.port}") as lines:
        assert [next(lines).rstrip() for _ in expected] == expected


def test_python_example_prints_events_and_gap_and_skips_repeats(broker: Nats, tmp_path: Path) -> None:
    check([sys.executable, str(EXAMPLES / "consume_nats.py")], broker, tmp_path)


def test_node_example_prints_events_and_gap_and_skips_repeats(
    node: Callable[[str], list[str]], broker: Nats, tmp_path: Path
) -> None:
    check(node("consume_nats.mjs"), broker, tmp_path)
