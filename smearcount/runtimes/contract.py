"""What a network that is ready to run looks like to its callers, and what a user can ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray, Pixels
from smearcount.config import DeviceName, PrecisionName, RuntimeName

__all__ = ["AT_ONCE_CPU", "InferWindows", "Levels", "Runtime", "RuntimeChoice", "check_type"]

AT_ONCE_CPU = 10
"""Pictures a call, on the processor."""

Levels = Literal["", "planes", "views"]
"""Grey levels that a caller can hand over as `uint8`: none, `(B, 3, H, W)`, or pictures as they are, `(B, H, W, 3)`."""


class InferWindows(Protocol):
    """Square windows of one picture through the network, sampled where the network is."""

    def __call__(
        self, picture: Pixels, centres_xy: FloatArray, side_px: float, out_px: int, turns: Sequence[int] = (0,), /
    ) -> tuple[FloatArray, ...]:
        """The outputs for all windows at the first turn, then for all at the next.

        Args:
            picture: `(H, W, 3) uint8 RGB`.
            centres_xy: `(N, 2)`, of the windows in pixels of the picture.
            side_px: of the windows in pixels of the picture.
            out_px: side of what the network is given.
            turns: quarter turns of the windows, as `numpy.rot90` counts them.
        """


class Runtime(Protocol):
    """A network ready to run.

    Attributes:
        input_dtype: `float32` for normalised `(B, 3, H, W)`; `uint8` where it normalises the grey levels itself that
            were announced as `Levels`.
        at_once: pictures to give in one call; on a CPU more is no faster.
        infer_windows: None where windows are better sampled by the caller.
    """

    input_dtype: np.dtype[Any]
    at_once: int
    infer_windows: InferWindows | None

    @property
    def streams(self) -> tuple[Runtime, int]:
        """The same network for as many calls at a time as it is best at, and their number; the same bits."""

    def __call__(self, batch: npt.NDArray[Any], /) -> tuple[FloatArray, ...]:
        """The outputs for a batch of the type `input_dtype`."""


@dataclass(frozen=True)
class RuntimeChoice:
    """What the user asked for, and what the caller hands over.

    Attributes:
        runtime: `auto`, `openvino`, `onnx` or `torch`.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto` (the card's, see `model_for`; half precision on CUDA), `f32`, or `bf16` with OpenVINO.
        threads: CPU threads; 0 leaves the choice to the library.
        levels: the grey levels 0 to 255 that the caller can hand over instead of normalised numbers.
        batch_size: calls of several threads, each of one picture, that PyTorch answers together; 0 for 4 on CUDA and 1
            on the CPU.
    """

    runtime: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    levels: Levels = ""
    batch_size: int = 0

    def __post_init__(self) -> None:
        """Check each word."""
        for name, known in (("runtime", RuntimeName), ("device", DeviceName), ("precision", PrecisionName)):
            if getattr(self, name) not in (words := get_args(known)):
                raise ValueError(f"{name}: expected one of {', '.join(words)}, got {getattr(self, name)!r}")


def check_type(batch: npt.NDArray[Any], wanted: np.dtype[Any]) -> None:
    """Refuse a batch of another type, which a library might convert without a word."""
    if batch.dtype != wanted:
        raise ValueError(f"batch: expected {wanted}, got {batch.dtype}")
