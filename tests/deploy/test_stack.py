"""`make stack`: everything on this machine without Docker, and nothing left of it."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest
import redis

from scripts.smoke import Walk
from tests.commands import clean_environment
from tests.deploy.dockerfile import ROOT
from tests.served import die_with_parent, reaped
from tests.servers.nats import connected
from tests.servers.processes import state, wait_until


@contextmanager
def stack(port: int, log: Path) -> Iterator["subprocess.Popen[str]"]:
    """What `make stack` runs."""
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.stack", "--port", f"{port}"],
            cwd=ROOT,
            env=clean_environment(TRIAL_CREDITS="1000"),
            text=True,
            stdout=output,
            stderr=output,
            preexec_fn=die_with_parent,
            process_group=0,
        )
    with reaped(process):
        yield process


@pytest.mark.slow
def test_two_services_work_on_one_of_each_server_and_ctrl_c_leaves_nothing_behind(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    port = unused_tcp_port % 20_000 + 10_000
    log = tmp_path / "log"
    with stack(port, log) as process:
        wait_until(lambda: "Ctrl-C ends everything" in log.read_text() or process.poll() is not None, "its greeting")
        assert process.poll() is None, log.read_text()
        said = log.read_text()
        first, second = re.findall(r"http://127\.0\.0\.1:\d+(?=,| and|, on)", said)[:2]
        urls = dict(re.findall(r"^  ([A-Z]+_URL)=(\S+)$", said, flags=re.MULTILINE))

        key = subprocess.check_output(["bash", "-c", f"{_line(said, 'KEY=')} && echo $KEY"], text=True).strip()
        headers = {"Authorization": f"Bearer {key}"}
        with (
            httpx2.Client(base_url=first, headers=headers, timeout=30) as one,
            httpx2.Client(base_url=second, headers=headers, timeout=30) as other,
        ):
            walk = Walk(one)
            assert "opened an account with a trial of 1000" in list(walk.steps())
            account = f"/api/v1/credits/accounts/{walk.merchant}"
            assert other.get(account).json()["data"] == one.get(account).json()["data"]
        assert asyncio.run(_first_published(urls["NATS_URL"])) == "evt.credits.account.created"
        with redis.Redis.from_url(urls["REDIS_URL"]) as cache:
            assert cache.ping()

        below = list(_below(process.pid))
        assert len({program for program, _, _ in below} & {"postgres", "nats-server", "valkey-server"}) == 3
        folders = {folder for _, _, folder in below}
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
        assert [program for program, pid, _ in below if state(pid) is not None] == []
        assert [folder for folder in folders if folder.exists()] == []
        assert "Traceback" not in log.read_text()


def test_a_port_that_is_taken_is_said_in_one_line_before_anything_is_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with socket.create_server(("127.0.0.1", 0)) as other, stack(port := other.getsockname()[1], log) as process:
        assert process.wait(60) == 1
    assert log.read_text() == f"stack: 127.0.0.1:{port} cannot be listened on: Address already in use.\n"


async def _first_published(url: str) -> str:
    """The type of the first event that the services have published."""
    async with connected(url) as nats:
        message = await (await nats.jetstream().subscribe("evt.credits.>", stream="CREDITS")).next_msg(timeout=30)
        return str(json.loads(message.data)["type"])


def _line(said: str, beginning: str) -> str:
    return next(line.strip() for line in said.splitlines() if line.strip().startswith(beginning))


def _below(pid: int) -> Iterator[tuple[str, int, Path]]:
    """The processes that a process started, and those that they did: program, pid and folder of each."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield Path(f"/proc/{child}/exe").readlink().name, child, Path(f"/proc/{child}/cwd").readlink()
        yield from _below(child)
