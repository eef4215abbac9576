"""Run the whole stack on this machine without Docker. Ctrl-C stops it.

    make stack                       # two services, on the ports 8015 and 8016
    make stack ARGS="--port 9000"    # on 9000 and 9001

PostgreSQL, NATS and Valkey come from Python wheels and use free ports. Two services share them, as two hosts would.
Both services take their settings from the environment (TRIAL_CREDITS=5 make stack). The stack starts empty, and the
script deletes all its data at the end.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import httpx2

from credit_service.doors.http.server import listen
from credit_service.service import longest_stop_seconds
from credit_service.settings import Settings, SettingsError, load
from credit_service.storage.engine import StorageError
from tests.served import start
from tests.servers.nats import Nats
from tests.servers.postgres import Postgres
from tests.servers.processes import Folder, Missing
from tests.servers.valkey import Valkey

_SERVICES = 2
_HOST = "127.0.0.1"
_START_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(Exception):
    """A service ended by itself. The message is one sentence with the output of the service."""


class Service:
    """One service in its own process. Ctrl-C does not reach this process, so this script decides when it stops."""

    def __init__(self, port: int, folder: Path, settings: Mapping[str, str]) -> None:
        """Start the service."""
        self.url = f"http://{_HOST}:{port}"
        self.log = folder / f"service-{port}.log"
        self._longest = longest_stop_seconds(load())
        with self.log.open("w") as log:
            arguments = ("serve", "--host", _HOST, "--port", f"{port}")
            self._process = start(
                *arguments, cwd=folder, env=settings, stdout=subprocess.DEVNULL, stderr=log, process_group=0
            )

    def wait_until_ready(self) -> None:
        """Wait until the service is ready for postings. Raises Ended."""
        until = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            self.insist()
            if time.monotonic() > until:
                raise Ended(f"{self.url} does not answer: {self.log.read_text()}")
            time.sleep(_LOOK_SECONDS)

    def insist(self) -> None:
        """Raise Ended if the service does not run."""
        if self._process.poll() is not None:
            raise Ended(f"{self.url} ended with {self._process.returncode}: {self.log.read_text().strip()}")

    def stop(self) -> None:
        """Stop the service. It finishes its current requests first."""
        self._process.terminate()
        try:
            self._process.wait(self._longest)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False


def run(port: int) -> None:
    """Start everything, print how to call it, and wait for a signal. Raises Ended, Missing, StorageError."""
    for number in range(_SERVICES):  # a port in use is the most common fault, so check it before the slow start
        listen(load(service_host=_HOST), port + number).close()
    print("starting PostgreSQL, NATS, Valkey and two services …", flush=True)
    with ExitStack() as running:
        urls = {
            "DATABASE_URL": running.enter_context(Postgres(fsync=True)).url("postgres"),
            "NATS_URL": running.enter_context(Nats()).url,
            "REDIS_URL": running.enter_context(Valkey()).url,
        }
        (folder := Folder("stack")).path.chmod(0o700)  # the first service writes the admin key there
        running.callback(folder.remove)
        chosen = {name: value for name, value in os.environ.items() if name.lower() in Settings.model_fields}
        services = []
        for number in range(_SERVICES):  # one after the other: the first creates the schema and the first key
            # Two services cannot share one METRICS_PORT.
            service = Service(port + number, folder.path, chosen | urls | {"METRICS_PORT": "0"})
            services.append(service)
            running.callback(service.stop)
            service.wait_until_ready()
        print(_greeting(services, folder.path / "credit-service.admin-key", urls), flush=True)
        while True:
            time.sleep(_LOOK_SECONDS)
            for service in services:
                service.insist()


def _greeting(services: list[Service], key: Path, urls: Mapping[str, str]) -> str:
    first, second = (f"{service.url}/api/v1/credits" for service in services)
    merchant = "6f1c2a54-8d0e-4c0b-9c55-0c7a8c1f2b11"
    servers = "\n".join(f"  {name}={shlex.quote(url)}" for name, url in urls.items())
    return (
        f"Two services run at {' and '.join(service.url for service in services)}. They use\n\n{servers}\n\n"
        f"Open an account at the first, and read it at the second:\n\n"
        f"  KEY=$(cat {shlex.quote(str(key))})\n"
        f'  curl -X POST {first}/accounts -H "Authorization: Bearer $KEY" \\\n'
        f'    -H "Content-Type: application/json" -d \'{{"merchant_id": "{merchant}"}}\'\n'
        f'  curl {second}/accounts/{merchant} -H "Authorization: Bearer $KEY"\n\n'
        f"The logs are {', '.join(str(service.log) for service in services)}.\n"
        f"Ctrl-C stops everything and deletes all data."
    )


def _end(number: int, frame: object) -> NoReturn:
    for other in _ENDS:  # a second signal would interrupt the clean-up
        signal.signal(other, signal.SIG_IGN)
    print("stopping …", flush=True)
    raise KeyboardInterrupt


def main() -> int:
    """Run the command, and return its exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--port", type=int, default=8015, help="port of the first service; the second takes the next port"
    )
    asked = parser.parse_args()
    if not 0 < asked.port <= 65_535 - _SERVICES:
        parser.error(f"{asked.port}: this port or the port after it does not exist")
    for number in _ENDS:  # a shell that starts us in the background makes us ignore Ctrl-C; this undoes it
        signal.signal(number, _end)
    try:
        run(asked.port)
    except KeyboardInterrupt:
        return 0
    except (Ended, Missing, SettingsError, StorageError) as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
