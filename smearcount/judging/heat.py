"""Heat maps: which part of a cell spoke for a code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import FloatArray, Pixels
from smearcount.geometry import resize_rgb

if TYPE_CHECKING:
    import torch

__all__ = ["heat_maps", "overlay_heat"]

_AT_ONCE = 8
"""The activations of a batch are kept for the gradients: this many cells fit any machine."""

_FEWEST_PLACES = 6
"""Places across a map below which it can't say where in a cell something lies."""

_OPACITY = 0.6


def heat_maps(net: torch.nn.Module, batch: FloatArray, targets: npt.NDArray[np.integer[Any]]) -> FloatArray:
    """Grad-CAM of each cell for one code (Selvaraju et al. 2017, arXiv 1610.02391), as captum computes it.

    Of the last layer that still tells enough places apart, and the mean over the eight turns and mirror images of the
    cell: what a layer answers near one border alone, for the zeros beyond it, would else outshine every cell. The
    network is left as it was: modes and gradients of its parameters are not touched.

    Args:
        net: gives logits `(N, K)` and features `(N, D)`; its `spatial_layers` are those with places, in order.
        batch: `(N, 3, H, W) float32`, normalised as the network expects.
        targets: `(N,)` index of the code that is asked about.

    Returns:
        `(N, H, W) float32` in [0, 1], the largest value of each map being 1; all zero where nothing spoke for the code.

    Raises:
        ValueError: the batch is of another shape, or there is not one target a cell.
    """
    import torch
    from captum.attr import LayerGradCam

    if batch.ndim != 4 or targets.shape != batch.shape[:1]:
        raise ValueError(f"expected a batch (N, 3, H, W) and targets (N,), got {batch.shape} and {targets.shape}")
    maps = np.zeros((len(batch), *batch.shape[2:]), np.float32)
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        if not len(batch):
            return maps
        layer = _layer_with_places(net, torch.from_numpy(batch[:1]).to(device))
        method = LayerGradCam(lambda pictures: net(pictures)[0], layer)
        for start in range(0, len(batch), _AT_ONCE):
            rows = slice(start, start + _AT_ONCE)
            pictures = torch.from_numpy(batch[rows]).to(device)
            codes = torch.from_numpy(np.asarray(targets[rows], np.int64)).to(device)
            turned = (_turned_back(method.attribute(_turned(pictures, way), codes).detach(), way) for way in range(8))
            maps[rows] = _enlarged(sum(turned, torch.zeros(())).clamp_min(0), batch.shape[2:])
    finally:
        for module, training in modes:
            module.training = training
    return maps


def _layer_with_places(net: Any, picture: torch.Tensor) -> torch.nn.Module:
    """The last layer whose map is not too coarse; the one with the finest map where all are."""
    import torch

    layers: list[torch.nn.Module] = list(net.spatial_layers)
    places: dict[int, int] = {}

    def note(layer: torch.nn.Module, _: Any, output: torch.Tensor) -> None:
        places[id(layer)] = min(output.shape[2:])

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.no_grad():
            net(picture)
    finally:
        for hook in hooks:
            hook.remove()
    enough = min(_FEWEST_PLACES, max(places.values()))
    return next(layer for layer in reversed(layers) if places[id(layer)] >= enough)


def _turned(maps: torch.Tensor, way: int) -> torch.Tensor:
    """Pictures or maps `(N, C, H, W)` in one of the eight ways, 0 to 7, to turn and mirror a square."""
    turned = maps.rot90(way % 4, (2, 3))
    return (turned.flip(3) if way >= 4 else turned).contiguous()


def _turned_back(maps: torch.Tensor, way: int) -> torch.Tensor:
    """The inverse of `_turned`."""
    return (maps.flip(3) if way >= 4 else maps).rot90(-(way % 4), (2, 3))


def _enlarged(coarse: torch.Tensor, size_hw: tuple[int, ...]) -> FloatArray:
    """Maps `(N, 1, h, w)` at the size of the pictures, `(N, H, W) float32`, scaled to a largest value of 1."""
    import torch

    fine = torch.nn.functional.interpolate(coarse.float(), size=size_hw, mode="bilinear", align_corners=False)
    values = fine[:, 0].cpu().numpy()
    top = values.max(axis=(1, 2), keepdims=True)
    return np.asarray(np.divide(values, top, out=np.zeros_like(values), where=top > 0), np.float32)


def overlay_heat(view: Pixels, heat: FloatArray) -> Pixels:
    """A picture with its heat map laid over it: green to yellow where it is hot, unchanged where it is cold.

    Args:
        view: `(H, W, 3) uint8 RGB`.
        heat: `(h, w) float32` in [0, 1], stretched to the picture.

    Returns:
        `(H, W, 3) uint8 RGB`.

    Raises:
        ValueError: the heat is of another shape or leaves [0, 1].
    """
    from matplotlib import colormaps

    # A NaN fails both comparisons.
    if heat.ndim != 2 or not ((heat >= 0).all() and (heat <= 1).all()):
        raise ValueError(f"heat: expected (h, w) in [0, 1], got {heat.shape} from {heat.min()} to {heat.max()}")
    tall = resize_rgb(np.repeat(np.rint(heat * 255).astype(np.uint8)[..., None], 3, axis=2), *view.shape[1::-1])
    share = tall[..., :1].astype(np.float32) / 255
    colours = 255 * np.asarray(colormaps["viridis"](tall[..., 0]))[..., :3]
    return np.asarray(np.rint(view * (1 - _OPACITY * share) + colours * _OPACITY * share), np.uint8)
