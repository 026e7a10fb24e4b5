"""ONNX Runtime, on the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray
from smearcount.cards import Model
from smearcount.errors import RuntimeMissingError
from smearcount.runtimes.contract import AT_ONCE_CPU, InferWindows, Runtime, check_type

__all__ = ["OnnxRuntime"]


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    input_dtype, at_once = np.dtype(np.float32), AT_ONCE_CPU
    infer_windows: InferWindows | None = None

    def __init__(self, model: Model, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeMissingError("ONNX Runtime is not installed: pip install onnxruntime") from error
        name = next(iter(model.names("onnx")), None)
        if name is None:
            raise RuntimeMissingError(
                f"{model.folder}: no ONNX file; run `smearcount export {model.card.id} --to onnx --out DIR`"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model.read(name), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    @property
    def streams(self) -> tuple[Runtime, int]:
        """This network: it takes one call at a time."""
        return self, 1

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        """Run `batch (B, 3, H, W) float32`.

        Raises:
            ValueError: the batch is of another type.
        """
        check_type(batch, self.input_dtype)
        return tuple(self._session.run(None, {self._input: batch}))
