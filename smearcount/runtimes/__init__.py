"""One seam to three inference libraries: a batch of pictures in, a tuple of float32 arrays out.

Each library is imported when its class is made. Files are checked against the card before use; no pickle is loaded.
"""

from __future__ import annotations

from pathlib import Path

from smearcount.cards import Model, find_model
from smearcount.cuda import has_cuda, has_driver
from smearcount.errors import RuntimeMissingError, UsageError
from smearcount.runtimes.contract import InferWindows, Levels, Runtime, RuntimeChoice
from smearcount.runtimes.gathering import calls_for
from smearcount.runtimes.onnx import OnnxRuntime
from smearcount.runtimes.openvino import OpenVinoRuntime, has_int8, openvino_core
from smearcount.runtimes.pytorch import TorchRuntime

__all__ = ["InferWindows", "Levels", "OnnxRuntime", "OpenVinoRuntime", "Runtime", "RuntimeChoice"]
__all__ += ["TorchRuntime", "calls_at_once", "has_int8", "make_runtime", "model_for", "openvino_core"]

PRECISIONS = ("f32", "f16")
"""Single and half precision."""

USUAL_BATCH = {"cpu": 1, "cuda": 4}
"""Calls of several threads, each of one picture, that PyTorch answers together."""


def make_runtime(model: Model, choice: RuntimeChoice) -> tuple[Runtime, str]:
    """The runtime for a model, with its description for reports, such as `openvino cpu f32`.

    `auto` is OpenVINO on the CPU, and PyTorch where a CUDA device is asked for or the installed PyTorch sees one.

    Raises:
        RuntimeMissingError: the library asked for is not installed, or there is no CUDA device.
        ModelError: the model has no file for this runtime, or a file is damaged.
        UsageError: the runtime does not offer the precision or the batch size.
    """
    device = _device(choice)
    name = choice.runtime if choice.runtime != "auto" else ("torch" if device == "cuda" else "openvino")
    if device == "cuda" and name != "torch":
        raise RuntimeMissingError(f"{name} runs on the CPU here; use --runtime torch with --device cuda")
    if choice.batch_size > 1 and name != "torch":
        raise UsageError(f"a batch size is offered with PyTorch only, not with {name}; leave --batch-size out")
    precision = model.card.precision if choice.precision == "auto" else choice.precision
    if name == "openvino":
        # What an INT8 model leaves in floating point stays exact.
        hint = "f32" if precision == "int8" else precision
        # By what was asked, not by a card: the order in which models are loaded has no influence.
        openvino_core(amx=choice.precision == "bf16")
        return OpenVinoRuntime(model, hint, choice.threads, choice.levels), f"openvino cpu {precision}"
    if choice.precision == "bf16":
        raise UsageError(f"precision bf16 is offered with OpenVINO only, not with {name}; leave --precision out")
    if name == "onnx":
        return OnnxRuntime(model, choice.threads), "onnx cpu f32"
    half = device == "cuda" and choice.precision == "auto"
    size = choice.batch_size or USUAL_BATCH[device]
    run = TorchRuntime(model, device, choice.threads, choice.levels, half=half, batch_size=size)
    return run, f"torch {device} {PRECISIONS[half]}"


def calls_at_once(batch_size: int, *, on_card: bool) -> int:
    """Threads that keep a device at work, each with a picture in hand; `batch_size` is that of `RuntimeChoice`."""
    return calls_for(batch_size or USUAL_BATCH["cuda" if on_card else "cpu"])


def _device(choice: RuntimeChoice) -> str:
    """CPU unless CUDA is asked for, or nothing is and an installed PyTorch with CUDA sees a card."""
    if choice.device == "cuda":
        if not has_cuda():
            raise RuntimeMissingError("no CUDA device is visible to PyTorch; use --device cpu or install a CUDA build")
        return "cuda"
    if choice.device == "cpu" or choice.runtime in ("openvino", "onnx") or not has_driver():
        return "cpu"
    try:
        return "cuda" if has_cuda() else "cpu"
    except RuntimeMissingError:
        return "cpu"


def model_for(name: str, choice: RuntimeChoice, weights: Path | None = None) -> Model:
    """The model that a choice means: its INT8 version where one lies beside it and this machine is made for it.

    An INT8 version, `<id>-int8`, agrees with its model in float32 within the tolerance of `export`, or it would not
    have been written. Precision `f32` always gives the model itself.

    Raises:
        ModelError: there is no such model.
        RuntimeMissingError: a library that was asked for is not installed.
    """
    model = find_model(name, weights)
    beside = model.folder.with_name(f"{model.folder.name}-int8")
    if choice.precision != "auto" or choice.runtime not in ("auto", "openvino") or not (beside / "card.yaml").is_file():
        return model
    return Model(beside) if _device(choice) == "cpu" and has_int8() else model
