"""Outputs kept from other runs while they are written, also from other threads of one."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from io import FileIO
from pathlib import Path

from smearcount.errors import ImageError, UsageError
from smearcount.images.writing import part_key, real_path
from smearcount.output_names import is_free, numbered
from smearcount.records import SmearResult

__all__ = ["in_turn", "locked", "own_stem"]

WAIT_S = 60.0
"""For another run that writes results of a picture of the same name."""

_AGAIN_S = 0.02
"""Between two looks at a lock that another run holds."""


@contextlib.contextmanager
def locked(paths: Iterable[Path]) -> Iterator[None]:
    """Keep other runs from these outputs. The system drops the lock of a process that died, however it died.

    Raises:
        UsageError: another run writes one of them; says which process on which machine.
        ImageError: a lock file can't be made.
    """
    with contextlib.ExitStack() as stack:
        for path in sorted({os.path.realpath(path) for path in paths}):
            stack.enter_context(_locked(Path(path)))
        yield


@contextlib.contextmanager
def in_turn(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other runs from an output, as `locked` does, on disks that have locks: a run that is alone needs none.

    Args:
        path: of the output.
        wait_s: how long another run is waited for, in seconds.

    Raises:
        UsageError: another run writes it.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImageError):
            stack.enter_context(_locked(real_path(path), wait_s))
        yield


@contextlib.contextmanager
def own_stem(folder: Path, wanted: str, result: SmearResult) -> Iterator[str]:
    """`wanted`, with a number behind it where the folder holds the report of another picture under that name.

    While results are written under it, whoever wants the same name waits: two that look at once both find it free.

    Raises:
        ImageError: what the folder holds under that name can't be looked at.
        UsageError: another run has been writing it for a minute.
    """
    for stem in numbered(wanted):
        report = folder / f"{stem}.json"
        with in_turn(report, WAIT_S):
            if is_free(report, result):
                yield stem
                return


@contextlib.contextmanager
def _locked(target: Path, wait_s: float = 0.0) -> Iterator[None]:
    name = f".{part_key(target)}.lock"
    lock = target / ".smearcount.lock" if target.is_dir() else target.with_name(name)
    file = _take(lock, target, time.monotonic() + wait_s)
    try:
        owner = {"process": os.getpid(), "machine": socket.gethostname()}
        with contextlib.suppress(OSError):  # a full disk: the lock is held without these words as well
            file.truncate(0)
            file.write(json.dumps(owner).encode())
        yield
    finally:
        # Removed while it is held, so that nobody waits for a file that has no name any more.
        with contextlib.suppress(OSError):
            lock.unlink()
        file.close()


def _take(lock: Path, target: Path, until_s: float) -> FileIO:
    while True:
        try:
            file = lock.open("a+b", buffering=0)
        except OSError as error:
            raise ImageError(f"{lock}: can't be made ({error.strerror}); check the permissions") from error
        try:
            is_ours = _hold(file, lock)
        except ImageError:
            file.close()
            with contextlib.suppress(OSError):
                lock.unlink()
            raise
        if not is_ours:
            owner = _owner(file)
            file.close()
            if time.monotonic() < until_s:
                time.sleep(_AGAIN_S)
                continue
            raise UsageError(f"{target}: another run{owner} is writing it; wait for its end, or give another name")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        file.close()  # its owner removed it between the two calls


def _hold(file: FileIO, lock: Path) -> bool:
    """Take the lock, or say that somebody has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0x7FFFFFFF)  # beyond the content, which others may then read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise ImageError(f"{lock}: can't be locked ({error.strerror}); put the outputs on another disk") from error
    return True


def _owner(file: FileIO) -> str:
    try:
        file.seek(0)
        owner = json.loads(file.read(1000))
        return f" (process {int(owner['process'])} on {str(owner['machine'])[:100]})"
    except (OSError, ValueError, TypeError, KeyError):
        return ""
