"""Writes a network in the formats of the runtimes, and the probe that each of them must reproduce."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from smearcount.cards import ClassifierCard, Model
from smearcount.offline import quiet_openvino
from smearcount.simulate import SmearRecipe, render
from smearcount.torch_nets import network_of

__all__ = ["export_onnx", "export_openvino", "make_probe"]

OPSET = 17
"""Version of the operators of ONNX."""


def export_onnx(model: Model) -> bytes:
    """The network as ONNX with free batch, and for a detector free picture size.

    Raises:
        ModelError: the weights are damaged or missing.
    """
    net = network_of(model)
    if isinstance(model.card, ClassifierCard):
        side = model.card.input_px
        outputs = {"logits": {0: "batch"}, "features": {0: "batch"}}
        return _onnx(net, (2, 3, side, side), {0: "batch"}, outputs)
    net.model[-1].export = True
    net.model[-1].format = "onnx"
    net.model[-1].dynamic = True
    stride = model.detector_card.stride_px
    free = {0: "batch", 2: "height", 3: "width"}
    return _onnx(net, (1, 3, 4 * stride, 5 * stride), free, {"cells": {0: "batch", 2: "anchors"}})


def _onnx(net: Any, shape: tuple[int, ...], free: dict[int, str], outputs: dict[str, dict[int, str]]) -> bytes:
    with tempfile.TemporaryDirectory() as scratch, torch.inference_mode():
        path = Path(scratch) / "model.onnx"
        torch.onnx.export(
            net,
            (torch.zeros(shape),),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=list(outputs),
            dynamic_axes={"pixels": free, **outputs},
        )
        return path.read_bytes()


def export_openvino(model: Model, *, half: bool = False) -> dict[str, bytes]:
    """The network as OpenVINO IR, `model.xml` and `model.bin`.

    Args:
        model: with its weights in safetensors.
        half: store weights in half precision; they are computed with in float32 all the same.

    Raises:
        ModelError: the weights are damaged or missing.
    """
    quiet_openvino()
    import openvino

    with tempfile.TemporaryDirectory() as scratch:
        onnx_path = Path(scratch) / "model.onnx"
        onnx_path.write_bytes(export_onnx(model))
        network = openvino.convert_model(onnx_path)
        openvino.save_model(network, Path(scratch) / "model.xml", compress_to_fp16=half)
        return {name: (Path(scratch) / name).read_bytes() for name in ("model.xml", "model.bin")}


def make_probe(model: Model) -> bytes:
    """An input and what the float32 network answers to it: coloured noise, and rendered cells for a detector."""
    pixels = (_noise if isinstance(model.card, ClassifierCard) else _rendered)(model).half().float()
    net = network_of(model)
    with torch.inference_mode():
        expected = net(pixels)[0]
    stream = io.BytesIO()
    np.savez_compressed(stream, pixels=pixels.numpy().astype(np.float16), expected=expected.numpy())
    return stream.getvalue()


def _noise(model: Model) -> torch.Tensor:
    side = model.classifier_card.input_px
    low = torch.from_numpy(np.random.default_rng(0).random((2, 3, side // 8, side // 8), np.float32))
    return torch.nn.functional.interpolate(low, (side, side), mode="bicubic").clamp(0, 1)


def _rendered(model: Model) -> torch.Tensor:
    card = model.detector_card
    side = 10 * card.stride_px
    recipe = SmearRecipe(
        width=side, height=side, um_per_px=card.um_per_px, red_cells=4, clumped=0, white_cells=1, platelets=2
    )
    smear = render(recipe)
    return torch.from_numpy(smear.pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
