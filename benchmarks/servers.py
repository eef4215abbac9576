"""The servers that are asked over HTTP, each a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.ledger import POLICY
from benchmarks.opponents import plain_service

_GREETING = re.compile(r" on http://[^:]+:(\d+), ")


class Server(NamedTuple):
    """A server that listens on this port of the loopback, the key that it takes, and its process."""

    port: int
    key: str
    pid: int

    def cpu_seconds(self) -> float:
        """The processor time it has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """The memory it has at the moment."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


@contextmanager
def running(folder: Path, what: str, url: str | None = None, **settings: str) -> Iterator[Server]:
    """`benchmarks.serve` of this on a free port, on the PostgreSQL of the URL, else on a file in the folder."""
    database = folder / f"{what}.db"
    environment = {
        "DATABASE_URL": url or f"sqlite:///{database}",
        "SERVICE_PORT": "0",
        "LOG_LEVEL": "warning",
        "TRIAL_CREDITS": str(POLICY.trial_credits),
        # Calls are counted as they are in service, against limits that one machine does not reach.
        **{f"RATE_LIMIT_{caller}_PER_SECOND": "1000000" for caller in ("KEY", "ADDRESS")},
        **{f"RATE_LIMIT_{caller}_BURST": "1000000" for caller in ("KEY", "ADDRESS")},
        **settings,
    }
    with _process(folder, ["benchmarks.serve", what], environment) as (port, pid):
        file = folder / "credit-service.admin-key" if url else Path(f"{database}.admin-key")
        yield Server(port, file.read_text(encoding="ascii").strip(), pid)


@contextmanager
def running_plain(folder: Path, url: str, pool_size: int) -> Iterator[Server]:
    """The plain service that ours is held against, on this database."""
    environment = {"DATABASE_URL": url, "POOL_SIZE": str(pool_size)}
    with _process(folder, ["benchmarks.opponents.plain_service"], environment) as (port, pid):
        yield Server(port, plain_service.KEY, pid)


@contextmanager
def _process(folder: Path, module: list[str], environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """A module as a process, once it has said where it listens: the port and the process."""
    everything = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", *module]
    with subprocess.Popen(command, cwd=folder, env=everything, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            greeting = _GREETING.search(process.stdout.readline())
            if greeting is None:
                raise RuntimeError(f"{' '.join(module)} did not start")
            yield int(greeting[1]), process.pid
        finally:
            process.terminate()


@contextmanager
def placed(client: set[int], servers: set[int], *running: Server) -> Iterator[None]:
    """Keep this process and the event loops of servers to these cores: where they run decides what they wait for."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, client)
    for server in running:
        os.sched_setaffinity(server.pid, servers)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        for server in running:
            os.sched_setaffinity(server.pid, before)
