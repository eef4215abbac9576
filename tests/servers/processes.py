"""Servers as processes of ours: as a user who may run them, in a folder of their own, never outliving us. Linux only.

PostgreSQL and PgBouncer refuse to run as root, and root is what a container's tests often are: then it is `nobody`.
The kernel ends a server with the thread that started it, so start one in a thread that lives as long.
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
    """This machine has no such server; the message is one sentence that says how to get one."""


class Folder:
    """A folder for the server's user. What runs that were killed left behind goes when the next one is made."""

    def __init__(self, kind: str, *, in_memory: bool = False) -> None:
        """Make it where temporary files are; or in memory, where the machine has room for that."""
        parent = Path(tempfile.gettempdir())
        if in_memory and _has_room(_MEMORY):
            parent = _MEMORY
        elif os.getuid() == 0 and not open_to_all(parent):
            parent = Path("/tmp")
        _sweep(parent)
        # Locked before it has the name by which it is swept; the kernel unlocks it however this process ends.
        unnamed = Path(tempfile.mkdtemp(prefix=f"-{kind}-", dir=parent))
        self._lock = _lock(unnamed)
        self.path = unnamed.rename(parent / f"{_PREFIX}{unnamed.name}")
        if os.getuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.path, nobody.pw_uid, nobody.pw_gid)

    def write(self, name: str, text: str) -> Path:
        """A file for the server to read; nobody else can enter the folder."""
        path = self.path / name
        path.write_text(text)
        path.chmod(0o644)
        return path

    def remove(self) -> None:
        """Delete it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class Process:
    """One server process and its log."""

    def __init__(self, command: Sequence[str | Path], folder: Folder, *, log: str, death: signal.Signals) -> None:
        """Start it; `death` is the signal that it gets when we are gone."""
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
                # Ctrl-C is for us only; and a stopped server is woken by the kernel, to get its signal, when we are
                # gone: that needs a group of its own within our session.
                process_group=0,
                **_user(),
            )
        self.pid = self._popen.pid

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def wait_until(self, ready: Callable[[], bool]) -> bool:
        """Wait for it to be ready; false when it ended instead."""
        try:
            wait_until(lambda: ready() or not self.runs(), "a server that answers")
        except BaseException as error:
            error.add_note(self.log())
            self._popen.kill()
            self._popen.wait()
            raise
        return self.runs()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._popen.send_signal(number)

    def wait(self) -> None:
        """Wait for its end."""
        self._popen.wait(PATIENCE_SECONDS)


class Server(ABC):
    """A server of one process: it can be stopped, killed, paused, and started again on its port."""

    name: ClassVar[str]
    ready: ClassVar[str]  # what it writes as soon as it answers

    def __init__(self) -> None:
        """Start it."""
        self._folder = Folder(self.name.lower())
        self._process: Process | None = None
        try:
            self._process, self.port = on_free_port(self._launch, self._is_ready)
        except BaseException:
            self.close()
            raise

    def log(self) -> str:
        """What the server has written since it was last started."""
        return self._running.log()

    def start(self) -> None:
        """Start it again after `stop` or `kill`; return when it answers."""
        assert self._process is None, "it runs already"
        process = self._launch(self.port)
        if not process.wait_until(lambda: self._is_ready(process)):
            raise RuntimeError(f"{self.name} did not start again: {process.log()}")
        self._process = process

    def stop(self) -> None:
        """Shut it down in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9` in the midst of whatever it does."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it in its tracks: connections stay open and new ones open, but nothing answers."""
        self._running.signal(signal.SIGSTOP)
        wait_until(lambda: state(self._running.pid) == "T", "a stopped server")

    def resume(self) -> None:
        """Go on after `pause`."""
        self._running.signal(signal.SIGCONT)

    def close(self) -> None:
        """End it, with all that it keeps."""
        if self._process is not None and self._process.runs():
            self.kill()
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def _launch(self, port: int) -> Process:
        """Start the process on a port, which may be taken."""

    @property
    def _running(self) -> Process:
        assert self._process is not None, "it does not run"
        return self._process

    def _end(self, number: signal.Signals) -> None:
        self._running.signal(number)
        self.resume()
        self._running.wait()
        self._process = None

    def _is_ready(self, process: Process) -> bool:
        return self.ready in process.log()


def run(command: Sequence[str | Path], folder: Folder) -> None:
    """Run a command to its end as the server's user."""
    done = subprocess.run(command, cwd=folder.path, env=_ENVIRONMENT, capture_output=True, text=True, **_user())
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed with {done.returncode}: {done.stderr or done.stdout}")


def on_free_port(start: Callable[[int], Process], ready: Callable[[Process], bool]) -> tuple[Process, int]:
    """Start a server that cannot be given port 0.

    Its own attempt to listen is the only sure test of a port. Those below 32768 are not handed out to connections, so
    a server that is away for a while finds its port free when it comes back.
    """
    while True:
        port = random.randrange(10_000, 32_768)
        process = start(port)
        if process.wait_until(partial(ready, process)):
            return process, port
        if "could not bind" not in (said := process.log()) and "address already in use" not in said.lower():
            raise RuntimeError(f"The server did not start: {said or 'it said nothing'}")


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition that comes true elsewhere."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"Waited in vain for {what}")
        time.sleep(0.005)


def state(pid: int) -> str | None:
    """A process's state in one letter (T stopped); none when it has ended, whether or not it was waited for."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if letter in "ZX" else letter


def open_to_all(path: Path) -> bool:
    """Whether every user can read this file or folder."""
    return bool(path.stat().st_mode & 0o004) and all(parent.stat().st_mode & 0o001 for parent in path.parents)


def readable(binary: Path, cache: Path = Path("/var/cache/credit-service-tests")) -> Path:
    """A program where the server's user can read it: not below the home of root, so it may be copied."""
    if os.getuid() != 0 or open_to_all(binary):
        return binary
    seen = binary.stat()
    copy = cache / f"{binary.name}-{seen.st_size}-{int(seen.st_mtime)}"
    if not copy.exists():
        cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            part = Path(shutil.copy(binary, folder))
            part.chmod(0o755)
            part.rename(copy)  # whole, whoever else does the same
    return copy


# Nothing of ours reaches a server: PGPORT and its like would.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C"}


class _User(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


def _user() -> _User:
    """For subprocess: whose the process is to be."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _has_room(folder: Path) -> bool:
    """Whether some servers can keep there what tests write; in a container it may be but 64 MB."""
    return os.access(folder, os.W_OK) and open_to_all(folder) and shutil.disk_usage(folder).free >= 4 << 30


def _lock(folder: Path) -> int | None:
    """Lock a folder; none when another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _sweep(parent: Path) -> None:
    """Remove folders of processes that are gone."""
    for folder in parent.glob(f"{_PREFIX}-*-*"):
        try:
            descriptor = _lock(folder)
        except OSError:  # another user's, or just removed
            continue
        if descriptor is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)
