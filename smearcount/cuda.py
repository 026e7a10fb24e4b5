"""Whether there is a graphics card."""

from __future__ import annotations

from ctypes.util import find_library
from pathlib import Path

from smearcount.errors import RuntimeMissingError

__all__ = ["has_cuda", "has_driver"]

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
