"""Run servers as child processes, each in its own folder. Linux only.

PostgreSQL and PgBouncer refuse to run as root, and tests in a container often run as root. Then the servers run as the
user `nobody`. The kernel ends a server when the thread that started it ends, so start a server in a long-lived thread.
"""

import ctypes
import fcntl
import os
import pwd
import random
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Self, TypedDict

PATIENCE_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_PREFIX = "credit-service"
_MEMORY = Path("/dev/shm")


class Missing(Exception):
    """This machine does not have the server. The message is one sentence that says how to install it."""


class Folder:
    """A folder for the server's user. Each new folder first deletes the folders of killed runs."""

    def __init__(self, kind: str, *, in_memory: bool = False) -> None:
        """Make a temporary folder. With `in_memory` it is in memory, if the machine has enough."""
        parent = Path(tempfile.gettempdir())
        if in_memory and _has_room(_MEMORY):
            parent = _MEMORY
        elif os.getuid() == 0 and not open_to_all(parent):
            parent = Path("/tmp")
        _sweep(parent)
        # Lock the folder before it gets the name that `_sweep` looks for. The kernel unlocks it when this process ends.
        unnamed = Path(tempfile.mkdtemp(prefix=f"-{kind}-", dir=parent))
        self._lock = _lock(unnamed)
        self.path = unnamed.rename(parent / f"{_PREFIX}{unnamed.name}")
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.path, nobody.pw_uid, nobody.pw_gid)

    def write(self, name: str, text: str) -> Path:
        """Write a file that the server can read. Other users cannot enter the folder."""
        path = self.path / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def remove(self) -> None:
        """Delete the folder and its files."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Process:
    """One server process and its log."""

    def __init__(self, command: Sequence[str | Path], folder: Folder, *, log: str, death: signal.Signals) -> None:
        """Start the process. The kernel sends it the signal `death` when our thread ends."""
        self._log = folder.path / log
        with self._log.open("ab") as output:
            self._log_start = output.tell()
            self._popen = subprocess.Popen(
                command,
                cwd=folder.path,
                env=_ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=partial(_libc.prctl, _PR_SET_PDEATHSIG, death),
                # The server needs its own process group within our session. So Ctrl-C does not reach it, and the kernel
                # resumes a paused server when we end, so that the server receives its signal.
                process_group=0,
                **_user(),
            )
        self.pid = self._popen.pid

    def log(self) -> str:
        """Return the output of the process so far."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def runs(self) -> bool:
        """Return whether the process still runs."""
        return self._popen.poll() is None

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Wait until the process is ready. Returns False if it ended."""
        try:
            wait_until(lambda: ready() or not self.runs(), "the server to answer")
        except BaseException as error:
            error.add_note(self.log())
            self._popen.kill()
            self._popen.wait()
            raise
        return self.runs()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self._popen.send_signal(number)

    def wait(self) -> None:
        """Wait until the process ends."""
        self._popen.wait(PATIENCE_SECONDS)


class Server(ABC):
    """A server with one process. A test can stop, kill, pause and restart it on the same port."""

    name: ClassVar[str]
    ready: ClassVar[str]  # the server logs this text as soon as it answers

    def __init__(self) -> None:
        """Start the server."""
        self._folder = Folder(self.name.lower())
        self._process: Process | None = None
        try:
            self._process, self.port = on_free_port(self._launch, self._is_ready)
        except BaseException:
            self.close()
            raise

    def log(self) -> str:
        """Return the server's output since its last start."""
        return self._running.log()

    def start(self) -> None:
        """Start the server again after `stop` or `kill`, and wait until it answers."""
        assert self._process is None, "the server runs already"
        process = self._launch(self.port)
        if not process.wait_until(lambda: self._is_ready(process)):
            raise RuntimeError(f"{self.name} did not start again: {process.log()}")
        self._process = process

    def stop(self) -> None:
        """Shut the server down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Pause the server: connections stay open and new ones open, but the server does not answer."""
        self._running.signal(signal.SIGSTOP)
        wait_until(lambda: state(self._running.pid) == "T", "the server to stop")

    def resume(self) -> None:
        """Resume the server after `pause`."""
        self._running.signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the server and delete its data."""
        if self._process is not None and self._process.runs():
            self.kill()
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _launch(self, port: int) -> Process:
        """Start the process on a port. The port may be in use."""

    @property
    def _running(self) -> Process:
        assert self._process is not None, "the server does not run"
        return self._process

    def _end(self, number: signal.Signals) -> None:
        self._running.signal(number)
        self.resume()
        self._running.wait()
        self._process = None

    def _is_ready(self, process: Process) -> bool:
        return self.ready in process.log()


def run(command: Sequence[str | Path], folder: Folder) -> None:
    """Run a command as the server's user, and wait for its end."""
    done = subprocess.run(command, cwd=folder.path, env=_ENVIRONMENT, capture_output=True, text=True, **_user())
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed with {done.returncode}: {done.stderr or done.stdout}")


def on_free_port(start: Callable[[int], Process], ready: Callable[[Process], bool]) -> tuple[Process, int]:
    """Start a server that does not support port 0 on a free port.

    Only the server's own attempt to listen shows that a port is free. The kernel does not give ports below 32768 to
    outgoing connections, so a restarted server finds its port still free.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        process = start(port)
        if process.wait_until(partial(ready, process)):
            return process, port
        if "could not bind" not in (log := process.log()) and "address already in use" not in log.lower():
            raise RuntimeError(f"The server did not start: {log or 'its log is empty'}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until the condition is true. Raises TimeoutError after PATIENCE_SECONDS."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"Timed out while waiting for {what}")
        time.sleep(0.005)


def state(pid: int) -> str | None:
    """Return the state of a process as one letter (T is stopped), or None if the process has ended."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if letter in "ZX" else letter


def open_to_all(path: Path) -> bool:
    """Return whether every user can read this file or folder."""
    return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def readable(binary: Path, cache: Path = Path("/var/cache/credit-service-tests")) -> Path:
    """Return a path of the program that the server's user can read. This may copy it out of the home of root."""
    if os.getuid() != 0 or open_to_all(binary):
        return binary
    seen = binary.stat()
    copy = cache / f"{binary.name}-{seen.st_size}-{int(seen.st_mtime)}"
    if not copy.exists():
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(shutil.copy(binary, folder))
            part.chmod(0o755)
            part.rename(copy)  # atomic, because another process may do the same
    return copy


# A server gets no other variables of our environment, because PGPORT and others would change its behaviour.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


class _User(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _user() -> _User:
    """Return the arguments of subprocess that select the server's user."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _has_room(folder: Path) -> bool:
    """Return whether the folder has room for the data of several servers. In a container it may have only 64 MB."""
    return os.access(folder, os.W_OK) and open_to_all(folder) and shutil.disk_usage(folder).free >= 4 << 30


def _lock(folder: Path) -> int | None:
    """Lock a folder. Returns None if another process has locked it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Delete folders of ended processes."""
    for folder in parent.glob(f"{_PREFIX}-*-*"):
        try:
            descriptor = _lock(folder)
        except OSError:  # the folder belongs to another user, or another process just deleted it
            continue
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
