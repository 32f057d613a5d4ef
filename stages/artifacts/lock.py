"""One process at a time writes an output folder, on whatever machine that shares it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from stages.artifacts.writing import writing
from stages.errors import ArtifactError

LOCK = "writer.lock"
"""In the folder while it is being written, or after its writer was killed; it says who that is. Only `lock_output` may
open it: a process that closes a file gives up its locks on it."""
_HELD = {errno.EACCES, errno.EAGAIN}
_REFUSED = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextmanager
def lock_output(out: Path) -> Iterator[None]:
    """Make the folder, if it is not there, and keep every other process out of it.

    The lock is POSIX's, which file systems that machines share know too: it ends with this process, however that
    ends, and its children do not inherit it.

    Raises:
        ArtifactError: another process holds it, the file system has no locks or lets nothing be written, or a file
            stands in the folder's place.
    """
    if out.is_file():
        raise ArtifactError(f"{out}: a file, not a folder; name another with --out")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        locked = _locked_file(out)
    try:
        since = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        with writing(out):
            who = f"process {os.getpid()} on {socket.gethostname()}"
            os.write(locked, f"{who} has been writing here since {since}".encode())
        yield
    finally:
        with suppress(OSError):  # of a place that was made read-only meanwhile; without its owner it holds nobody up
            (out / LOCK).unlink(missing_ok=True)
        os.close(locked)


def _locked_file(out: Path) -> int:
    """The folder's lock file, locked and empty."""
    while True:
        file = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(file, 1000).decode()
            os.close(file)
            raise _refusal(error, out, holder) from error
        if _lies_at(file, out / LOCK):
            os.truncate(file, 0)
            return file
        os.close(file)  # its writer finished, and took it away, after it was opened here


def _lies_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _refusal(error: OSError, out: Path, holder: str) -> OSError | ArtifactError:
    """What a user is told of a lock that was not to be had; `holder` is what its file says."""
    if error.errno in _HELD:
        return ArtifactError(
            f"{out}: {holder or 'another process has just begun to write here'}; wait for it, stop it, or give "
            "another --out"
        )
    if error.errno in _REFUSED:
        return ArtifactError(
            f"{out}: its file system refuses locks ({error.strerror}); mount it with locks (Lustre: -o flock), or give "
            "an --out on another file system"
        )
    return error
