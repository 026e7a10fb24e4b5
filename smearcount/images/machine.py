"""Faults of the machine, not of a picture: full memory, a disk or file server that fails, a library that is missing.

The same picture may be read the next time, as may one that changed meanwhile, so that such a fault is never told, nor
kept, as damage.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

from smearcount.errors import ChangedError, ImageError, SmearcountError

__all__ = ["check_memory", "faults_named", "is_of_machine", "lack_of_memory"]

_NO_MEMORY = "not enough memory for this picture; analyse it on a larger machine or lower its size"
_NO_CARD_MEMORY = "out of memory on the graphics card; give fewer --workers, --batch-size 1, or --device cpu"

_OF_CONTENT = frozenset((errno.EINVAL, errno.EOVERFLOW))
"""What the system says of a place that no file can have: a damaged header was believed."""

_LIBRARIES = frozenset(("imagecodecs", "openslide"))
"""They hand on the words of the C library, and no number."""

_MEMORY = re.compile(r"(insufficient|out of|not enough) memory|MEM_ERROR", re.IGNORECASE)
_CARD_MEMORY = re.compile(r"CUDA error: out of memory|CU(DNN|BLAS)_STATUS_ALLOC_FAILED")
"""What PyTorch says besides its `OutOfMemoryError`, where the driver or a library of the card finds none."""

_DECODER_BYTES = 16
"""A pixel, more than any decoder needs: JPEG 2000 holds three samples of four bytes, beside the picture."""

_SYSTEM = tuple(os.strerror(number) for number in (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE))


def is_of_machine(error: BaseException | None) -> bool:
    """Whether an error, or one that caused it, is the machine's, so that the same picture may be read the next time."""
    while error is not None:
        if isinstance(error, OSError) and error.errno not in _OF_CONTENT:
            return True
        if isinstance(error, ImportError | ChangedError) or lack_of_memory(error) or _said(error).endswith(_SYSTEM):
            return True
        error = error.__cause__
    return False


def lack_of_memory(error: BaseException) -> str:
    """What is wrong, and what to do, where an error says that there is no more memory; empty for other errors."""
    # Known by its name, since PyTorch need not be installed.
    of_card = type(error).__name__ == "OutOfMemoryError" or _CARD_MEMORY.search(str(error))
    if isinstance(error, RuntimeError) and of_card:
        return _NO_CARD_MEMORY
    no_memory = isinstance(error, MemoryError) or getattr(error, "code", None) == cv2.Error.StsNoMem
    return _NO_MEMORY if no_memory or _MEMORY.search(_said(error)) else ""


def _said(error: BaseException) -> str:
    """What a C library says; empty for errors of other origin, which may quote a file name."""
    return str(error) if type(error).__module__.partition(".")[0] in _LIBRARIES else ""


def check_memory(pixels: int) -> None:
    """Ask for the memory of a decoder that failed without a word: those of WebP, JPEG and JPEG 2000 may have lacked it.

    Raises:
        MemoryError: it is not there.
    """
    np.empty(_DECODER_BYTES * pixels, np.uint8)


@contextmanager
def faults_named(path: Path) -> Iterator[None]:
    """Faults of the machine inside become an `ImageError` that names the file and the remedy; others pass."""
    try:
        yield
    except SmearcountError:
        raise
    except Exception as error:
        if not is_of_machine(error):
            raise
        if told := lack_of_memory(error):
            raise ImageError(f"{path}: {told}") from error
        remedy = "install what is missing" if isinstance(error, ImportError) else "check the disk"
        raise ImageError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error}); {remedy}") from error
