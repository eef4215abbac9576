"""`make stack` starts everything without Docker, and leaves nothing behind."""

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
    """Run the command of `make stack`."""
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
def test_stack_runs_two_services_and_ctrl_c_removes_everything(unused_tcp_port: int) -> None:
    with stack(unused_tcp_port % 20_000 + 10_000) as process:
        output = _greeting(process)
        first, second = re.findall(r"http://127\.0\.0\.1:\d+(?= and|\. They use)", output)[:2]
        urls = dict(re.findall(r"^  ([A-Z]+_URL)=(\S+)$", output, flags=re.MULTILINE))

        key = subprocess.check_output(["bash", "-c", f"{_line(output, 'KEY=')} && echo $KEY"], text=True).strip()
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


def test_stack_reports_port_in_use_before_any_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, stack(port := other.getsockname()[1]) as process:
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (
        1,
        f"stack: 127.0.0.1:{port} cannot be listened on: Address already in use.\n",
    )


def _greeting(process: "subprocess.Popen[str]") -> str:
    """Return the output up to the end of the greeting. The stack itself limits the time of its start."""
    output = ""
    for line in process.stdout or ():
        output += line
        if "Ctrl-C stops everything" in line:
            return output
    raise AssertionError(output)


async def _first_published(url: str) -> str:
    """Return the type of the first published event."""
    async with connected(url) as nats:
        message = await (await nats.jetstream().subscribe("evt.credits.>", stream="CREDITS")).next_msg(timeout=30)
        return str(json.loads(message.data)["type"])


def _line(output: str, beginning: str) -> str:
    return next(line.strip() for line in output.splitlines() if line.strip().startswith(beginning))


def _below(pid: int) -> Iterator[tuple[str, int, Path]]:
    """Yield program, process id and folder of each descendant of a process."""
    for child in map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        yield Path(f"/proc/{child}/exe").readlink().name, child, Path(f"/proc/{child}/cwd").readlink()
        yield from _below(child)
