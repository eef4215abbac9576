"""Several serving processes on one listening socket, and what watches over them.

Each worker is a whole service with its own connections; the database is all they share. A worker that ends by itself is
started again. A worker ends when its supervisor is gone, however that went.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Final

import structlog
import uvloop

from credit_service import service
from credit_service.doors.http.server import listen
from credit_service.observability import configure_logs
from credit_service.settings import Settings
from credit_service.storage.engine import StorageError

_PAUSE_SECONDS: Final = 1.0
"""Between two starts of a worker that ends again and again."""
_log = structlog.get_logger()


def serve(settings: Settings, count: int) -> None:
    """Serve with so many processes until told to stop. Raises StorageError where the start fails."""
    with contextlib.closing(listen(settings)) as listening:
        uvloop.run(service.prepare(settings, listening))
        _Supervisor(settings, listening, count).run()


class _Supervisor:
    """Starts the workers, starts again those that end, and ends them all when it is told to stop."""

    def __init__(self, settings: Settings, listening: socket.socket, count: int) -> None:
        self._settings = settings
        self._listening = listening
        self._spawn = multiprocessing.get_context("spawn")
        # Held open by this process alone: its end tells the workers of ours.
        self._life, self._lifeline = self._spawn.Pipe(duplex=False)
        self._told, self._tell = self._spawn.Pipe(duplex=False)
        self._count = count
        self._workers: list[BaseProcess] = [self._start(index) for index in range(count)]

    def run(self) -> None:
        """Watch until SIGTERM or SIGINT; then let the workers finish what is under way."""
        with self._signals():
            while True:
                ended = wait([self._told, *[worker.sentinel for worker in self._workers]])
                if self._told in ended:
                    break
                self._replace()
        for worker in self._workers:
            worker.terminate()
        until = time.monotonic() + service.longest_stop_seconds(self._settings)
        for worker in self._workers:
            worker.join(max(0.0, until - time.monotonic()))
            worker.kill()

    def _replace(self) -> None:
        for index, worker in enumerate(self._workers):
            if not worker.is_alive():
                _log.error("worker_ended", worker=index, pid=worker.pid, exit_code=worker.exitcode)
                if self._told.poll(_PAUSE_SECONDS):
                    return
                self._workers[index] = self._start(index)

    def _start(self, index: int) -> BaseProcess:
        arguments = (self._settings, self._listening, index, self._count, self._life)
        worker = self._spawn.Process(target=_work, args=arguments, name=f"worker {index}")
        worker.start()
        return worker

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._tell.send(number)

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _work(settings: Settings, listening: socket.socket, index: int, count: int, life: Connection) -> None:
    """A worker's whole life, in its own process."""
    # Ctrl-C reaches every process of a terminal; when to stop is for the supervisor to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with, args=(life,), daemon=True, name="supervisor's end").start()
    configure_logs(settings)
    structlog.contextvars.bind_contextvars(worker=index)
    try:
        uvloop.run(service.serve_on(settings, listening, worker=index, workers=count))
    except StorageError as error:
        _log.error("worker_cannot_start", reason=str(error))
        raise SystemExit(1) from None


def _end_with(life: Connection) -> None:
    """Stop this process when the pipe's other end is gone: nothing is ever sent through it."""
    with contextlib.suppress(EOFError, OSError):
        life.recv()
    os.kill(os.getpid(), signal.SIGTERM)
