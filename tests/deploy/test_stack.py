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
from tests.servers.processes import state


@contextmanager
def stack(port: int) -> Iterator["subprocess.Popen[str]"]:
    """What `make stack` runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.stack", "--port", f"{port}"],
        cwd=ROOT,
        env=clean_environment(TRIAL_CREDITS="1000"),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=die_with_parent,
        process_group=0,
    )
    with reaped(process):
        yield process


@pytest.mark.slow
def test_two_services_work_on_one_of_each_server_and_ctrl_c_leaves_nothing_behind(unused_tcp_port: int) -> None:
    with stack(unused_tcp_port % 20_000 + 10_000) as process:
        said = _greeting(process)
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
        for server in ("postgres", "nats-server", "valkey-server"):
            assert any(program.startswith(server) for program, _, _ in below), below
        folders = {folder for _, _, folder in below}
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, "stopping …\n")
        assert [program for program, pid, _ in below if state(pid) is not None] == []
        assert [folder for folder in folders if folder.exists()] == []


def test_a_port_that_is_taken_is_said_in_one_line_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, stack(port := other.getsockname()[1]) as process:
        said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        1,
        f"stack: 127.0.0.1:{port} cannot be listened on: Address already in use.\n",
    )


def _greeting(process: "subprocess.Popen[str]") -> str:
    """What it says until everything runs; how long that may take is its own concern."""
    said = ""
    for line in process.stdout or ():
        said += line
        if "Ctrl-C ends everything" in line:
            return said
    raise AssertionError(said)


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
