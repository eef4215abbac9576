"""Describe the machine of a measurement. A figure without its machine means nothing."""

import os
import platform
import sqlite3
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.servers.postgres import find_binaries
from tests.servers.processes import Missing

# The requirements hold for a disk. So the data is beside the code and not in the system's temporary folder, which is
# often in memory.
DATA = Path(__file__).parent / ".data"


def describe() -> dict[str, str]:
    """Return the properties of the machine, by name."""
    memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) / 1024**2
    return {
        "CPU": f"{_field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLite": f"{sqlite3.sqlite_version}, journal_mode WAL, synchronous FULL",
        "PostgreSQL": _postgres(),
        "HTTP": f"uvicorn {version('uvicorn')}, uvloop {version('uvloop')}, httptools {version('httptools')}",
        "filesystem": f"{_filesystem(DATA)}; a write of 4 KiB with fsync takes {_sync_micros():.0f} µs",
        "load before": " ".join([f"{load:.2f}" for load in os.getloadavg()]),
    }


class Neighbours:
    """Count the cores that other processes used during a measurement. A figure is more reliable if others used less."""

    def __init__(self) -> None:
        self._begun = self._now()

    def cores(self) -> float:
        """Return the cores used since the start by other processes. Children of this process must have ended."""
        elapsed, taken = (now - started for now, started in zip(self._now(), self._begun, strict=True))
        return max(taken / elapsed, 0)

    @staticmethod
    def _now() -> tuple[float, float]:
        user, nice, system, _idle, _waiting, *more = Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
        busy = sum(map(int, (user, nice, system, *more))) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy - sum(os.times()[:4])


def _postgres() -> str:
    """Describe the PostgreSQL server of the benchmarks. `benchmarks.postgres` has its settings."""
    if "TEST_POSTGRES_URL" in os.environ:
        return "the server of TEST_POSTGRES_URL"
    try:
        postgres = find_binaries() / "postgres"
    except Missing:
        return "none"
    ran = subprocess.run([postgres, "--version"], capture_output=True, text=True, check=True)
    place = Path(tempfile.gettempdir())
    return f"{ran.stdout.split()[-1]}, fsync on, synchronous_commit on, on {_filesystem(place)}"


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "0 (unknown)"


def _filesystem(path: Path) -> str:
    """Return the type of the filesystem that holds a path. The longest mount point above the path decides."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    above = [(len(point), kind) for _, point, kind, *_ in mounts if path.is_relative_to(point)]
    return max(above, default=(0, "unknown"))[1]


def _sync_micros(times: int = 100) -> float:
    DATA.mkdir(exist_ok=True)
    took = []
    with tempfile.TemporaryFile(dir=DATA) as file:
        for _ in range(times):
            started = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - started)
    return median(took) * 1e6
