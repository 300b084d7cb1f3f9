"""Accounting for a local SLURM: slurmdbd, on a MariaDB of its own that listens on a socket only.

Needs the Debian packages slurmdbd and mariadb-server.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cluster import local
from cluster.ray_node import free_port

_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")
_PATH = local.environment(Path())["PATH"]
_WAIT = 60.0
_SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
DbdHost=localhost
DbdPort={port}
SlurmUser={user}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=slurm
LogFile={dir}/slurmdbd.log
PidFile={dir}/slurmdbd.pid
"""
_SLURM = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={dir}/munge.socket
AccountingStorageEnforce=associations,limits,qos
"""


def missing() -> list[str]:
    """Programs that are missing on this machine."""
    return [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]


def _wait_for(ready: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + _WAIT
    while not ready():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} did not start within {_WAIT:.0f} s")
        time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def accounting() -> Iterator[Callable[[Path], None]]:
    """A database; gives what starts slurmdbd for a local SLURM, as ``prepare`` of ``local.up``."""
    with tempfile.TemporaryDirectory(prefix="accounting-") as place, contextlib.ExitStack() as stack:
        files, sock, env = f"--datadir={place}/db", f"{place}/socket", {**os.environ, "PATH": _PATH}
        common = ["--no-defaults", f"--user={os.environ.get('USER', 'root')}", files]
        with open(f"{place}/log", "w") as log:
            subprocess.run(["mariadb-install-db", *common, "--skip-test-db"], env=env, stdout=log, check=True)
            words = [*common, f"--socket={sock}", "--skip-networking", "--skip-grant-tables"]
            database = stack.enter_context(subprocess.Popen(["mariadbd", *words], env=env, stderr=log))
        stack.callback(database.terminate)
        _wait_for(Path(sock).exists, "MariaDB")

        def prepare(directory: Path) -> None:
            conf = directory / "slurm.conf"
            names = {"dir": directory, "port": free_port(""), "user": "root"}
            text = conf.read_text().replace("AccountingStorageType=accounting_storage/none\n", _SLURM.format(**names))
            conf.write_text(text)
            own = directory / "slurmdbd.conf"
            own.touch(mode=0o600)
            own.write_text(_SLURMDBD.format(**names))
            # It ends with the local SLURM, of which its environment makes it a part.
            variables = {**env, **local.environment(directory), "MYSQL_UNIX_PORT": sock}
            subprocess.run(["slurmdbd"], cwd=directory, env=variables, check=True, stderr=subprocess.DEVNULL)
            _wait_for(lambda: _listens(int(names["port"])), "slurmdbd")

        yield prepare


def allow(account: str, qos: str, **limits: int) -> None:
    """Let root submit under an account, with a QOS that has these limits."""
    of_qos = [f"{name}={value}" for name, value in limits.items()]
    for words in (
        ["modify", "qos", qos, "set", *of_qos],
        ["add", "account", account],
        ["add", "user", "root", f"account={account}", f"qos={qos}"],
    ):
        subprocess.run(["sacctmgr", "-i", *words], check=True, capture_output=True, text=True, timeout=60)
