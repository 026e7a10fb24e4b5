"""One seam to three inference libraries: a batch of pictures in, a tuple of float32 arrays out.

Each library is imported when its class is made. Files are checked against the card before use; no pickle is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from smearcount.cards import Card, Model, find_model
from smearcount.cuda import has_cuda, has_driver
from smearcount.errors import ModelError, RuntimeMissingError, UsageError
from smearcount.offline import quiet_openvino
from smearcount.torch_nets import network_of

__all__ = ["Floats", "Levels", "OnnxRuntime", "OpenVinoRuntime", "Runtime", "RuntimeChoice", "TorchRuntime"]
__all__ += ["has_int8", "in_streams", "make_runtime", "model_for", "openvino_core"]

Floats = npt.NDArray[np.float32]


class Runtime(Protocol):
    """A network ready to run.

    Attributes:
        input_dtype: `float32` for normalised `(B, 3, H, W)`; `uint8` where it normalises the grey levels itself that
            were announced as `Levels`.
        at_once: pictures to give in one call; on a CPU more is no faster.
    """

    input_dtype: np.dtype[Any]
    at_once: int

    def __call__(self, batch: npt.NDArray[Any], /) -> tuple[Floats, ...]:
        """The outputs for a batch of the type `input_dtype`."""


Levels = Literal["", "planes", "views"]
"""Grey levels that a caller can hand over as `uint8`: none, `(B, 3, H, W)`, or pictures as they are, `(B, H, W, 3)`."""


PRECISIONS = ("f32", "f16")
"""Single and half precision."""

AT_ONCE_CPU, AT_ONCE_CUDA = 10, 256
"""Pictures a call, on the processor and on a graphics card."""

MOST_STREAMS = 8
"""Calls of a network at a time: each takes some 90 MB."""

INT8_INSTRUCTIONS = frozenset(("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"))
"""Products of 8-bit numbers in one instruction, as Linux names them; without one INT8 is slower and saturates."""


@dataclass(frozen=True)
class RuntimeChoice:
    """What the user asked for, and what the caller hands over.

    Attributes:
        runtime: `auto`, `openvino`, `onnx` or `torch`.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto` (the card's, see `model_for`; half precision on CUDA), `f32`, or `bf16` with OpenVINO.
        threads: CPU threads; 0 leaves the choice to the library.
        levels: the grey levels 0 to 255 that the caller can hand over instead of normalised numbers.
    """

    runtime: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    levels: Levels = ""

    def __post_init__(self) -> None:
        """Check each word."""
        allowed = {
            "runtime": ("auto", "openvino", "onnx", "torch"),
            "device": ("auto", "cpu", "cuda"),
            "precision": ("auto", "f32", "bf16"),
        }
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name}: expected one of {', '.join(words)}, got {getattr(self, name)!r}")


def make_runtime(model: Model, choice: RuntimeChoice) -> tuple[Runtime, str]:
    """The runtime for a model, with its description for reports, such as `openvino cpu f32`.

    `auto` is OpenVINO on the CPU, and PyTorch where a CUDA device is asked for or the installed PyTorch sees one.

    Raises:
        RuntimeMissingError: the library asked for is not installed, or there is no CUDA device.
        ModelError: the model has no file for this runtime, or a file is damaged.
        UsageError: the runtime does not offer the precision.
    """
    device = _device(choice)
    name = choice.runtime if choice.runtime != "auto" else ("torch" if device == "cuda" else "openvino")
    if device == "cuda" and name != "torch":
        raise RuntimeMissingError(f"{name} runs on the CPU here; use --runtime torch with --device cuda")
    precision = model.card.precision if choice.precision == "auto" else choice.precision
    if name == "openvino":
        # What an INT8 model leaves in floating point stays exact.
        hint = "f32" if precision == "int8" else precision
        return OpenVinoRuntime(model, hint, choice.threads, choice.levels), f"openvino cpu {precision}"
    if choice.precision == "bf16":
        raise UsageError(f"precision bf16 is offered with OpenVINO only, not with {name}; leave --precision out")
    if name == "onnx":
        return OnnxRuntime(model, choice.threads), "onnx cpu f32"
    half = device == "cuda" and choice.precision == "auto"
    return TorchRuntime(model, device, choice.threads, choice.levels, half=half), f"torch {device} {PRECISIONS[half]}"


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


def _openvino() -> Any:
    quiet_openvino()
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissingError("OpenVINO is not installed: pip install openvino") from error
    return openvino


_CORE_ALONE = Lock()


def openvino_core() -> Any:
    """The one core of OpenVINO in this process.

    Where the processor has AMX, each gives its thread a stack for signals, and puts back the one before when it ends.
    Several that do not end in turn leave one that is gone, and Ctrl-C ends the process by a segmentation fault.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
    """
    with _CORE_ALONE:
        return _core()


@lru_cache(1)
def _core() -> Any:
    return _openvino().Core()


def has_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine has the instructions that make INT8 worth while.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
    """
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    if flags:
        return not INT8_INSTRUCTIONS.isdisjoint(flags[1].split())
    # It says yes for any x86 processor; where the flags can't be read, its word is all there is.
    return "INT8" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


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


class OpenVinoRuntime:
    """OpenVINO on the CPU; the precision is set explicitly, since it would pick bf16 by itself on some processors.

    Calls from several threads wait for each other: the network has all of its threads in one call.

    Grey levels are normalised while the input is arranged anyway, on all threads; without mean and spread the bits are
    those of `float32` multiplied by `1 / 255`.
    """

    at_once = AT_ONCE_CPU

    def __init__(self, model: Model, precision: str = "f32", threads: int = 0, levels: Levels = "") -> None:
        openvino = _openvino()
        xml = next((name for name in model.names("openvino") if name.endswith(".xml")), None)
        if xml is None:
            raise ModelError(
                f"{model.folder}: no OpenVINO files; run `smearcount export {model.card.id} --to openvino`"
            )
        core = openvino_core()
        weights = np.frombuffer(model.read(xml.removesuffix(".xml") + ".bin"), np.uint8)
        network = core.read_model(model.read(xml), openvino.Tensor(weights.reshape(-1).copy()))
        self.input_dtype = np.dtype(np.uint8 if levels else np.float32)
        if levels:
            network = _of_levels(network, levels, model.card)
        settings: dict[str, Any] = {
            **{"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"},
            # Pinned, the only thread of every process would sit on the same core.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled, self._settings = core.compile_model(network, "CPU", settings), settings
        self._request, self._alone = self._compiled.create_infer_request(), Lock()

    @cached_property
    def streams(self) -> tuple[Runtime, int]:
        """The same network for several calls at a time, each on few of its threads, and how many; the same bits."""
        threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        at_once = min(max(min(threads, 4), threads // 4), MOST_STREAMS)
        if at_once == 1:
            return self, 1
        settings = {name: value for name, value in self._settings.items() if name != "PERFORMANCE_HINT"}
        settings |= {"NUM_STREAMS": str(at_once), "INFERENCE_NUM_THREADS": threads}
        # What was compiled is a third of the way to the same in streams.
        compiled = openvino_core().import_model(self._compiled.export_model(), "CPU", settings)
        return _Streams([compiled.create_infer_request() for _ in range(at_once)], self.input_dtype), at_once

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[Floats, ...]:
        """Run `batch (B, 3, H, W)` of the type `input_dtype`; the outputs are copies.

        Raises:
            ValueError: the batch is of another type, which OpenVINO would convert without a word.
        """
        _check_type(batch, self.input_dtype)
        with self._alone:
            outputs = self._request.infer([batch], share_inputs=True, share_outputs=False)
            return tuple(outputs.to_tuple())


class _Streams:
    """Some requests of one network; a call takes one that is free, and waits where there is none."""

    at_once = AT_ONCE_CPU

    def __init__(self, requests: Iterable[Any], input_dtype: np.dtype[Any]) -> None:
        self.input_dtype = input_dtype
        self._free: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._free.put(request)

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[Floats, ...]:
        """Run `batch (B, 3, H, W)` of the type `input_dtype`; the outputs are copies."""
        _check_type(batch, self.input_dtype)
        request = self._free.get()
        try:
            outputs = request.infer([batch], share_inputs=True, share_outputs=False)
            return tuple(outputs.to_tuple())
        finally:
            self._free.put(request)


def in_streams(run: Runtime) -> tuple[Runtime, int]:
    """A runtime for as many calls at a time as it is best at, and their number: of a scan, where windows abound."""
    return run.streams if isinstance(run, OpenVinoRuntime) else (run, 1)


def _check_type(batch: npt.NDArray[Any], wanted: np.dtype[Any]) -> None:
    if batch.dtype != wanted:
        raise ValueError(f"batch: expected {wanted}, got {batch.dtype}")


def _of_levels(network: Any, levels: Levels, card: Card) -> Any:
    """An OpenVINO network that takes `uint8` and normalises it before anything else."""
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(network)
    given = steps.input()
    given.tensor().set_element_type(Type.u8).set_layout(Layout("NHWC" if levels == "views" else "NCHW"))
    given.model().set_layout(Layout("NCHW"))
    wanted = given.preprocess().convert_element_type(Type.f32)
    if any(card.mean):
        wanted = wanted.mean([255 * value for value in card.mean])
    wanted.scale([255 * value for value in card.std])
    return steps.build()


class OnnxRuntime:
    """ONNX Runtime on the CPU."""

    input_dtype, at_once = np.dtype(np.float32), AT_ONCE_CPU

    def __init__(self, model: Model, threads: int = 0) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeMissingError("ONNX Runtime is not installed: pip install onnxruntime") from error
        name = next(iter(model.names("onnx")), None)
        if name is None:
            raise ModelError(
                f"{model.folder}: no ONNX file; run `smearcount export {model.card.id} --to onnx --out DIR`"
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model.read(name), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[Floats, ...]:
        """Run `batch (B, 3, H, W) float32`.

        Raises:
            ValueError: the batch is of another type.
        """
        _check_type(batch, self.input_dtype)
        return tuple(self._session.run(None, {self._input: batch}))


class TorchRuntime:
    """PyTorch, channels-last; in half precision on CUDA, where the head of a detector stays in float32.

    Places beyond 512 px have steps of half a pixel in half precision. Calls from several threads wait for each other: a
    detector keeps the anchors of an input in itself while it decodes. To a graphics card go grey levels from pinned
    memory, a quarter of the bytes, and are normalised there.
    """

    def __init__(
        self, model: Model, device: str = "cpu", threads: int = 0, levels: Levels = "", *, half: bool = False
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise RuntimeMissingError("PyTorch is not installed: pip install torch torchvision ultralytics") from error
        if threads:
            torch.set_num_threads(threads)
        self._torch, self._levels = torch, levels
        self._device, self._on_card = torch.device(device), device == "cuda"
        self._dtype = torch.float16 if half else torch.float32
        self.input_dtype = np.dtype(np.uint8 if levels else np.float32)
        self.at_once = AT_ONCE_CUDA if self._on_card else AT_ONCE_CPU
        card = model.card
        self._mean, self._std = (torch.tensor(v, device=self._device).view(1, 3, 1, 1) for v in (card.mean, card.std))
        self._net = network_of(model).to(self._device, self._dtype, memory_format=torch.channels_last)
        if half and card.task == "detector":
            head = self._net.model[-1].float()
            head.register_forward_pre_hook(lambda _, given: ([each.float() for each in given[0]],))
        self._alone = Lock()

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[Floats, ...]:
        """Run `batch` of the type `input_dtype`; the outputs are copies.

        Raises:
            ValueError: the batch is of another type.
        """
        _check_type(batch, self.input_dtype)
        torch = self._torch
        host = torch.from_numpy(np.ascontiguousarray(batch))
        with self._alone, torch.inference_mode():
            given = (host.pin_memory() if self._on_card else host).to(self._device, non_blocking=True)
            if self._levels == "views":
                given = given.permute(0, 3, 1, 2)
            if self._levels:
                given = (given.float() * (1 / 255) - self._mean) / self._std
            result = self._net(given.to(self._dtype, memory_format=torch.channels_last))
        outputs = result if isinstance(result, tuple | list) else (result,)
        return tuple(o.float().cpu().numpy() for o in outputs if isinstance(o, torch.Tensor))
