"""OpenVINO, on the processor."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray
from smearcount.cards import Card, Model
from smearcount.errors import RuntimeMissingError
from smearcount.offline import quiet_openvino
from smearcount.runtimes.contract import AT_ONCE_CPU, InferWindows, Levels, Runtime, check_type

__all__ = ["OpenVinoRuntime", "has_int8", "openvino_core"]

MOST_STREAMS = 8
"""Calls of a network at a time: each takes some 90 MB."""

INT8_INSTRUCTIONS = frozenset(("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"))
"""Products of 8-bit numbers in one instruction, as Linux names them; without one INT8 is slower and saturates."""


def _openvino() -> Any:
    quiet_openvino()
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissingError("OpenVINO is not installed: pip install openvino") from error
    return openvino


_CORE_ALONE = Lock()

_MAX_INSTRUCTIONS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""What oneDNN asks the environment for, by its name of today and by the old one."""


def openvino_core(*, amx: bool = False) -> Any:
    """The one core of OpenVINO in this process; the first call decides whether its networks use AMX.

    Without it an INT8 network answers as fast and with the same bits, but is ready for a new shape of input in 0.06 s
    instead of 0.2 to 0.35: kernels for AMX are made for a long time, and have little to do with so few channels. In
    bf16 they are worth it.

    Of several cores, where the processor has AMX, each would give its thread a stack for signals, and put back the one
    before when it ends. Several that do not end in turn leave one that is gone, and Ctrl-C ends the process by a
    segmentation fault.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
    """
    with _CORE_ALONE:
        if amx or "amx_tile" not in _instructions():
            return _core()
        with _up_to("AVX512_CORE_BF16"):
            return _core()


@lru_cache(1)
def _core() -> Any:
    core = _openvino().Core()
    core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # oneDNN looks once which instructions it may use
    return core


@contextmanager
def _up_to(instructions: str) -> Iterator[None]:
    """Keep oneDNN from newer instructions, unless the user has named some; PyTorch has a oneDNN of its own."""
    if any(name in os.environ for name in _MAX_INSTRUCTIONS):
        yield
        return
    os.environ[_MAX_INSTRUCTIONS[0]] = instructions
    try:
        yield
    finally:
        del os.environ[_MAX_INSTRUCTIONS[0]]


@lru_cache(1)
def _instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """What the processor can do, as Linux names it; empty on other systems."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.is_file() else None
    return frozenset(flags[1].split()) if flags else frozenset()


def has_int8(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this machine has the instructions that make INT8 worth while.

    Raises:
        RuntimeMissingError: OpenVINO is not installed.
    """
    if known := _instructions(cpuinfo):
        return not INT8_INSTRUCTIONS.isdisjoint(known)
    # It says yes for any x86 processor; where the flags can't be read, its word is all there is.
    return "INT8" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVinoRuntime:
    """OpenVINO on the CPU; the precision is set explicitly, since it would pick bf16 by itself on some processors.

    Calls from several threads wait for each other: the network has all of its threads in one call.

    Grey levels are normalised while the input is arranged anyway, on all threads; without mean and spread the bits are
    those of `float32` multiplied by `1 / 255`.
    """

    at_once = AT_ONCE_CPU
    infer_windows: InferWindows | None = None

    def __init__(self, model: Model, precision: str = "f32", threads: int = 0, levels: Levels = "") -> None:
        openvino = _openvino()
        xml = next((name for name in model.names("openvino") if name.endswith(".xml")), None)
        if xml is None:
            raise RuntimeMissingError(
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
        self._streams: tuple[Runtime, int] | None = None

    @property
    def streams(self) -> tuple[Runtime, int]:
        """The same network for several calls at a time, each on few of its threads, and how many; the same bits."""
        with self._alone:
            self._streams = self._streams or self._in_streams()
            return self._streams

    def _in_streams(self) -> tuple[Runtime, int]:
        threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS"))
        at_once = min(max(min(threads, 4), threads // 4), MOST_STREAMS)
        if at_once == 1:
            return self, 1
        settings = {name: value for name, value in self._settings.items() if name != "PERFORMANCE_HINT"}
        settings |= {"NUM_STREAMS": str(at_once), "INFERENCE_NUM_THREADS": threads}
        # What was compiled is a third of the way to the same in streams.
        compiled = openvino_core().import_model(self._compiled.export_model(), "CPU", settings)
        return _Streams([compiled.create_infer_request() for _ in range(at_once)], self.input_dtype), at_once

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        """Run `batch (B, 3, H, W)` of the type `input_dtype`; the outputs are copies.

        Raises:
            ValueError: the batch is of another type, which OpenVINO would convert without a word.
        """
        check_type(batch, self.input_dtype)
        with self._alone:
            outputs = self._request.infer([batch], share_inputs=True, share_outputs=False)
            return tuple(outputs.to_tuple())


class _Streams:
    """Some requests of one network; a call takes one that is free, and waits where there is none."""

    at_once = AT_ONCE_CPU
    infer_windows: InferWindows | None = None

    def __init__(self, requests: Sequence[Any], input_dtype: np.dtype[Any]) -> None:
        self.input_dtype, self._number = input_dtype, len(requests)
        self._free: SimpleQueue[Any] = SimpleQueue()
        for request in requests:
            self._free.put(request)

    @property
    def streams(self) -> tuple[Runtime, int]:
        """These."""
        return self, self._number

    def __call__(self, batch: npt.NDArray[Any]) -> tuple[FloatArray, ...]:
        """Run `batch (B, 3, H, W)` of the type `input_dtype`; the outputs are copies."""
        check_type(batch, self.input_dtype)
        request = self._free.get()
        try:
            outputs = request.infer([batch], share_inputs=True, share_outputs=False)
            return tuple(outputs.to_tuple())
        finally:
            self._free.put(request)


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
