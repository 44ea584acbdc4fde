"""A private MariaDB for the development server and tests: own directory, own socket, no TCP port, no root account used.

SQLite will not do: Neutron with a second writing thread answers 500, "database is locked".
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import pymysql

from headrace.errors import NotSupported, Unavailable

START = 30.0
"""Seconds to wait for a server that starts; it needs one, but a busy machine is slow."""

LONGEST_SOCKET = 107
"""Octets of a socket's path (unix(7))."""

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def die_with_parent() -> None:
    """In a child before exec: end when the parent ends, however it ends (prctl(2))."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class MariaDB:
    """One server in a directory, which outlives it: a second start finds its databases again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "my.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        program = shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        install = shutil.which("mariadb-install-db")
        if program is None or install is None:
            raise NotSupported("mariadbd is not installed; apt-get install mariadb-server")
        if len(os.fsencode(self.socket)) > LONGEST_SOCKET:
            raise NotSupported(f"{self.socket}: too long for a socket's path; choose a shorter directory")
        self.directory.mkdir(parents=True, exist_ok=True)
        data = self.directory / "data"
        account = ["--user=root"] if os.geteuid() == 0 else []
        with (self.directory / "mariadb.log").open("ab") as log:
            if not data.exists():
                fresh = self.directory / "data.new"
                shutil.rmtree(fresh, ignore_errors=True)
                options = [f"--datadir={fresh}", "--auth-root-authentication-method=normal", "--skip-test-db"]
                subprocess.run([install, "--no-defaults", *account, *options], check=True, stdout=log, stderr=log)
                fresh.rename(data)
            options = [
                f"--datadir={data}",
                f"--socket={self.socket}",
                f"--pid-file={self.directory / 'my.pid'}",
                "--skip-networking",
                "--innodb-flush-log-at-trx-commit=2",
                "--max-connections=500",
            ]
            self._process = subprocess.Popen(
                [program, "--no-defaults", *account, *options],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=die_with_parent,  # noqa: PLW1509 - no thread is started by whoever uses this
            )
        deadline = time.monotonic() + START
        while True:
            try:
                self._connect().close()
            except pymysql.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise Unavailable(f"mariadbd did not start; see {self.directory / 'mariadb.log'}") from error
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """Shut the server down."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(START)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def create(self, database: str) -> bool:
        """Make a database unless it is there; returns whether it was made."""
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SHOW DATABASES LIKE %s", (database,))
            if cursor.fetchone():
                return False
            cursor.execute(f"CREATE DATABASE `{database}` CHARACTER SET utf8mb3")
        return True

    def url(self, database: str) -> str:
        """For SQLAlchemy."""
        return f"mysql+pymysql://root@localhost/{database}?unix_socket={self.socket}&charset=utf8"

    def _connect(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        return pymysql.connect(unix_socket=str(self.socket), user="root", autocommit=True)
