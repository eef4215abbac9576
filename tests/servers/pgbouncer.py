"""PgBouncer in front of a PostgreSQL. As in large installations, it assigns a connection for one transaction only.

There is no wheel of PgBouncer. Install it with `apt-get install pgbouncer`; CI does so.
"""

import os
import shutil
import signal
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.servers.processes import Folder, Missing, Process, on_free_port


class PgBouncer:
    """A PgBouncer for one test. Its clients use the user and password of the server."""

    def __init__(self, url: str, *, pool_size: int = 5) -> None:
        """Start PgBouncer in front of the server of this URL. The attribute `url` is the same database through it."""
        found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        if found is None:
            raise Missing("No PgBouncer on this machine: as root, run: apt-get install pgbouncer")
        self._binary = found
        parts = urlsplit(url)
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self._folder = Folder("pgbouncer")
        users = self._folder.write("users", f"{_quoted(user)} {_quoted(password)}\n")
        self._settings = f"""\
[databases]
* = host={parts.hostname} port={parts.port}
[pgbouncer]
pool_mode = transaction
default_pool_size = {pool_size}
auth_type = scram-sha-256
auth_file = {users}
admin_users = {user}
listen_addr = 127.0.0.1
unix_socket_dir =
"""
        try:
            self._process, self.port = on_free_port(self._launch, lambda process: "process up" in process.log())
        except BaseException:
            self._folder.remove()
            raise
        self.url = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{self.port}").geturl()

    def log(self) -> str:
        """Return the log of PgBouncer."""
        return self._process.log()

    def close(self) -> None:
        """Stop PgBouncer. It stores nothing."""
        self._process.signal(signal.SIGKILL)
        self._process.wait()
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _launch(self, port: int) -> Process:
        settings = self._folder.write("settings.ini", f"{self._settings}listen_port = {port}\n")
        return Process([self._binary, settings], self._folder, log="log", death=signal.SIGKILL)


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
