"""A private temporary directory for Ray, short enough for its sockets, and removed at the end."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# A socket's path has at most 107 bytes. Below its temporary directory Ray needs
# /session_2026-01-31_12-00-00_123456_1234567/sockets/plasma_store, and ours is called /ima-12345678-abcdefgh/r.
SOCKET_PATH = 107
ROOM_FOR_RAY = 64
ROOM_FOR_OURS = 24
#: Where a short link to a long path is made.
SHORT = "/tmp"
_LOCK, _NEW = "lock", "lock.new"


def usual_base() -> str:
    """Where Ray would put its own: RAY_TMPDIR or TMPDIR, if it can be written, else /tmp."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        base = os.environ.get(name)
        if base and os.access(base, os.W_OK | os.X_OK):
            return os.path.abspath(base)
    return SHORT


def fits(base: str) -> bool:
    """Whether Ray's sockets, below a private directory in ``base``, have short enough paths."""
    return len(os.fsencode(base)) + ROOM_FOR_OURS + ROOM_FOR_RAY <= SOCKET_PATH


@contextlib.contextmanager
def private_directory(base: str, name: str) -> Iterator[Path]:
    """A new directory that only this user can enter, removed at the end; leftovers of killed processes go first.

    name: the last eight characters become part of its name.
    Where ``base`` is too long for Ray's sockets, the directory is reached by a link in a private directory of /tmp.
    """
    if not fits(base):
        with _private(base, name) as there, _private(SHORT, name) as link:
            link.rmdir()
            link.symlink_to(there)
            yield link
        return
    with _private(base, name) as inner:
        yield inner


@contextlib.contextmanager
def _private(base: str, name: str) -> Iterator[Path]:
    for old in Path(base).glob("ima-*"):
        with contextlib.suppress(OSError):
            if not old.is_symlink() and old.stat().st_uid == os.getuid():
                _remove_unused(old)
    path = Path(tempfile.mkdtemp(prefix=f"ima-{name[-8:]}-", dir=base))
    try:
        with (path / _NEW).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # A lock that is there but not yet taken would be taken for a leftover.
            (path / _NEW).rename(path / _LOCK)
            # Ray opens its temporary directory to everyone, so it gets one inside the private one.
            inner = path / "r"
            inner.mkdir()
            yield inner
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _remove_unused(path: Path) -> None:
    """Remove a private directory if its maker has ended: the lock is free. Raises OSError, also where it is not."""
    with (path / _LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path)
