"""Peak memory of a call, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeVar

from smearcount.errors import SmearcountError

__all__ = ["peak_bytes", "peak_of"]

T = TypeVar("T")

_STATUS = Path("/proc/self/status")


def peak_of(call: Callable[..., T], *arguments: Any) -> tuple[T, int]:
    """What a function of a module returns in a fresh process, and the most memory in bytes that it took there.

    Raises:
        SmearcountError: the process was killed, as one is that takes more memory than there is.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_watched, call, arguments).result()
        except BrokenProcessPool as error:
            raise SmearcountError("the process was killed, often for lack of memory; take a smaller slide") from error


def _watched(call: Callable[..., T], arguments: tuple[Any, ...]) -> tuple[T, int]:
    return call(*arguments), peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has taken so far.

    On Linux not by `getrusage`: a child starts there with the peak of its parent, which is the larger one here.
    """
    if _STATUS.is_file() and (found := re.search(r"VmHWM:\s*(\d+) kB", _STATUS.read_text())):
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
