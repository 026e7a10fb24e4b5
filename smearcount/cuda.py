"""Whether there is a graphics card, and which of several a process is to take."""

from __future__ import annotations

import ctypes
import os
from ctypes.util import find_library
from pathlib import Path

from smearcount.errors import RuntimeMissingError

__all__ = ["VISIBLE", "cards_in_turn", "has_cuda", "has_driver"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The variable by which CUDA is told, before it is first used, which cards a process may see."""

_CUDA_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/nvhost-ctrl")
"""What a driver of graphics cards leaves on Linux, on Linux within Windows, and on boards of NVIDIA."""


def has_driver() -> bool:
    """Whether there may be a graphics card, without loading PyTorch, which takes longer than a field."""
    return any(Path(place).exists() for place in _CUDA_DRIVERS) or find_library("nvcuda") is not None


def has_cuda() -> bool:
    """Whether PyTorch sees a CUDA device.

    Raises:
        RuntimeMissingError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise RuntimeMissingError("PyTorch is not installed: pip install torch torchvision ultralytics") from error
    return bool(torch.cuda.is_available())


def cards_in_turn() -> tuple[str, ...]:
    """What `VISIBLE` must be for a process to see one of the cards that this one sees, for each of two or more.

    CUDA itself counts them, which knows what the user, the container and the scheduler allow; PyTorch is not loaded.
    """
    count = _count()
    if count < 2:
        return ()
    told = os.environ.get(VISIBLE)
    names = [str(number) for number in range(count)] if told is None else told.split(",")
    return tuple(name.strip() for name in names[:count])


def _count() -> int:
    """Number of cards that CUDA sees here."""
    try:
        driver, count = _driver(), ctypes.c_int(0)
        failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    except (OSError, AttributeError):
        return 0
    return 0 if failed else count.value


def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(find_library("nvcuda") or "libcuda.so.1")
