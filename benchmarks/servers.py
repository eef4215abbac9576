"""The HTTP servers of the benchmarks, each in its own process."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.baselines import plain_service
from benchmarks.ledger import POLICY

_GREETING = re.compile(r" on http://[^:]+:(\d+), ")


class Server(NamedTuple):
    """A server on the loopback: its port, its API key and its process id."""

    port: int
    key: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the processor time that the server has used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        """Return the resident memory of the server."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) / 1024


@contextmanager
def running(folder: Path, what: str, url: str | None = None, **settings: str) -> Iterator[Server]:
    """Run `benchmarks.serve` on a free port. The ledger is the PostgreSQL of `url`, or a file in the folder."""
    database = folder / f"{what}.db"
    environment = {
        "DATABASE_URL": url or f"sqlite:///{database}",
        "SERVICE_PORT": "0",
        "LOG_LEVEL": "warning",
        "TRIAL_CREDITS": str(POLICY.trial_credits),
        # The service counts calls as in production, but one machine cannot reach these limits.
        **{f"RATE_LIMIT_{caller}_PER_SECOND": "1000000" for caller in ("KEY", "ADDRESS")},
        **{f"RATE_LIMIT_{caller}_BURST": "1000000" for caller in ("KEY", "ADDRESS")},
        **settings,
    }
    with _process(folder, ["benchmarks.serve", what], environment) as (port, pid):
        file = folder / "credit-service.admin-key" if url else Path(f"{database}.admin-key")
        yield Server(port, file.read_text(encoding="ascii").strip(), pid)


@contextmanager
def running_plain(folder: Path, url: str, pool_size: int) -> Iterator[Server]:
    """Run the plain service on this database, for comparison."""
    environment = {"DATABASE_URL": url, "POOL_SIZE": str(pool_size)}
    with _process(folder, ["benchmarks.baselines.plain_service"], environment) as (port, pid):
        yield Server(port, plain_service.KEY, pid)


@contextmanager
def _process(folder: Path, module: list[str], environment: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """Run a module in a process, and wait until it prints its address. Yields the port and the process id."""
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
    """Pin this process and the servers to these cores, because their placement changes their waits."""
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
