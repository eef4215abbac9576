"""The servers that are asked over HTTP, each a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.ledger import POLICY

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


@contextmanager
def running(folder: Path, what: str) -> Iterator[Server]:
    """`benchmarks.serve` of this on a free port, with its database in the folder."""
    database = folder / f"{what}.db"
    environment = {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{database}",
        "SERVICE_PORT": "0",
        "LOG_LEVEL": "warning",
        "TRIAL_CREDITS": str(POLICY.trial_credits),
        # Calls are counted as they are in service, against limits that one machine does not reach.
        **{f"RATE_LIMIT_{caller}_PER_SECOND": "1000000" for caller in ("KEY", "ADDRESS")},
        **{f"RATE_LIMIT_{caller}_BURST": "1000000" for caller in ("KEY", "ADDRESS")},
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    command = [sys.executable, "-m", "benchmarks.serve", what]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            greeting = _GREETING.search(process.stdout.readline())
            if greeting is None:
                raise RuntimeError(f"The {what} server did not start")
            key = Path(f"{database}.admin-key").read_text(encoding="ascii").strip()
            yield Server(int(greeting[1]), key, process.pid)
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
