"""Outputs of a batch on the disk: one run at a time, whole or absent, also when the power goes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from itertools import chain
from pathlib import Path

from smearcount.errors import ImageError, UsageError
from smearcount.images import part_key
from smearcount.output_names import shortened

__all__ = ["locked", "replacing", "sweep"]

_PART = re.compile(r"\.(.+)\.[0-9a-f]{16}\.part", re.DOTALL)


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
def _locked(target: Path) -> Iterator[None]:
    name = f".{_key(target)}.lock"
    lock = target / ".smearcount.lock" if target.is_dir() else target.with_name(name)
    file = _take(lock, target)
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


def _take(lock: Path, target: Path) -> FileIO:
    while True:
        try:
            file = lock.open("a+b", buffering=0)
        except OSError as error:
            raise ImageError(f"{lock}: can't be made ({error.strerror}); check the permissions") from error
        if not _hold(file, lock):
            owner = _owner(file)
            file.close()
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write to; the file takes its place under `path` when the block has ended well, and is on the disk.

    Raises:
        ImageError: it can't be written; what was under `path` before is still there.
    """
    temporary = path.with_name(f".{_key(path)}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
        _to_disk(temporary)
        os.replace(temporary, path)
        with contextlib.suppress(OSError):  # some file systems can't do this with folders; the file is in its place
            _to_disk(path.parent)
    except OSError as error:
        raise ImageError(
            f"{path}: can't be written ({error.strerror or error}); free some space or check the permissions, and run "
            "it again: what is finished is kept"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _key(path: Path) -> str:
    """What the lock and the half-written files of an output, and of no other, begin with."""
    return shortened(path.name)


def _to_disk(path: Path) -> None:
    if sys.platform == "win32" and path.is_dir():
        return  # folders can't be opened there
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sweep(tables: Iterable[Path], overlays: Iterable[Path], galleries: Iterable[Path]) -> None:
    """Remove what a run that was killed left half-written of these outputs; only while their locks are held.

    What other runs are writing in the same folders stays.

    Args:
        tables: files that `replacing` writes.
        overlays: pictures that `write_picture` writes.
        galleries: folders of the sheets of one picture each.
    """
    keys: dict[Path, set[str]] = {}
    for path, key in chain(((path, _key(path)) for path in tables), ((path, part_key(path)) for path in overlays)):
        keys.setdefault(path.parent, set()).add(key)
    for folder, own in keys.items():
        _sweep(folder, own.__contains__)
    for folder in galleries:
        _sweep(folder, bool)


def _sweep(folder: Path, own: Callable[[str], bool]) -> None:
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            found = _PART.fullmatch(path.name)
            if found and own(found[1]):
                with contextlib.suppress(OSError):
                    path.unlink()
