"""Cuts cells out: square windows of a fixed physical side, centred on the box, sampled to a fixed number of pixels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from smearcount.arrays import FloatArray, Pixels
from smearcount.geometry import FILL, centres, samples_across
from smearcount.images import PixelSource

__all__ = [
    "PATCH_PX",
    "PATCH_SIDE_UM",
    "SMALLEST_CELL_PX",
    "Patch",
    "PatchSizes",
    "cut_patches",
    "sample_window",
    "to_batch",
    "view_of_patch",
]

PATCH_PX = 452
"""Side of a patch in pixels, the format of the single-cell collections of Hospital Clinic, Barcelona."""

SMALLEST_CELL_PX = 8
"""Shortest side of a picture of one cell: a platelet at a low magnification."""

PATCH_SIDE_UM = {"rbc": 12.0, "wbc": 24.0, "nrbc": 24.0, "platelet": 12.0}
"""Physical side of a patch where no classifier's card says otherwise."""


@dataclass(frozen=True, eq=False)
class Patch:
    """One cut-out cell.

    Attributes:
        cell_id: row of the cell in the detections.
        pixels: `(S, S, 3) uint8 RGB`.
        side_um: physical side.
        filled: share of the patch that lies outside the picture.
        um_per_px: scale of the picture, not of the patch.
    """

    cell_id: int
    pixels: Pixels
    side_um: float
    filled: float
    um_per_px: float


@dataclass(frozen=True)
class PatchSizes:
    """What a manifest says of a patch.

    Attributes:
        side_um: its physical side.
        um_per_px: scale of the picture that it was cut from, not of the patch.
    """

    side_um: float
    um_per_px: float


def cut_patches(
    source: PixelSource, boxes: FloatArray, sides_um: FloatArray, um_per_px: float, patch_px: int = PATCH_PX
) -> Iterator[Patch]:
    """The patch of each box `(N, 4)`, whose physical side is `sides_um (N,)`, one after the other."""
    for cell_id, (centre, side_um) in enumerate(zip(centres(boxes), sides_um, strict=True)):
        pixels, filled = sample_window(
            source, (float(centre[0]), float(centre[1])), float(side_um) / um_per_px, patch_px
        )
        yield Patch(cell_id, pixels, float(side_um), filled, um_per_px)


def view_of_patch(patch: PixelSource, sizes: PatchSizes, wanted_um: float, out_px: int) -> Pixels:
    """The middle `wanted_um` of a patch as `(out_px, out_px, 3) uint8 RGB`, as its picture would be sampled for it.

    A patch is mostly an enlargement, between whose pixels there is nothing new: each pixel of the result is made of as
    many samples as straight from the picture, at the same places.
    """
    width, height = patch.size_wh
    side_px, samples = width * wanted_um / sizes.side_um, samples_across(wanted_um / sizes.um_per_px / out_px)
    return sample_window(patch, (width / 2, height / 2), side_px, out_px, samples)[0]


def sample_window(
    source: PixelSource, centre_xy: tuple[float, float], side_px: float, out_px: int, samples: int | None = None
) -> tuple[Pixels, float]:
    """A square window as `(out_px, out_px, 3) uint8 RGB`, and the share of it beyond the picture, which is filled.

    Args:
        source: the picture.
        centre_xy: centre of the window in pixels of the picture; may have a fraction.
        side_px: side of the window in pixels of the picture.
        out_px: side of the result.
        samples: how many each way make a pixel, see `samples_across`, which says so without it.
    """
    width, height = source.size_wh
    x0, y0 = centre_xy[0] - side_px / 2, centre_xy[1] - side_px / 2
    left, top = max(math.floor(x0) - 2, 0), max(math.floor(y0) - 2, 0)
    right, bottom = (min(math.ceil(x0 + side_px) + 2, width), min(math.ceil(y0 + side_px) + 2, height))
    inside_x = max(min(x0 + side_px, width) - max(x0, 0), 0)
    inside_y = max(min(y0 + side_px, height) - max(y0, 0), 0)
    filled = 1 - inside_x * inside_y / side_px**2
    if right <= left or bottom <= top:
        return np.full((out_px, out_px, 3), FILL, np.uint8), 1.0
    region = source.read(left, top, right - left, bottom - top)
    finer = samples or samples_across(side_px / out_px)
    step = side_px / (out_px * finer)
    # Pixel centres are at half-integers: output pixel i samples x0 + (i + 0.5) * step of the picture.
    move = np.array([[step, 0, x0 - left + step / 2 - 0.5], [0, step, y0 - top + step / 2 - 0.5]])
    sampled = cv2.warpAffine(
        region,
        move,
        (out_px * finer, out_px * finer),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(FILL, FILL, FILL),
    )
    if finer > 1:
        sampled = cv2.resize(sampled, (out_px, out_px), interpolation=cv2.INTER_AREA)
    return cast(Pixels, sampled), round(filled, 4)


def to_batch(views: Sequence[Pixels], mean: tuple[float, float, float], std: tuple[float, float, float]) -> FloatArray:
    """Views of equal size, each `(S, S, 3) uint8 RGB`, as the network input `(N, 3, S, S) float32`.

    The one preprocessing of a classifier, in training as in inference: scaled to [0, 1], then normalised.
    """
    shift, gain = np.array(mean, np.float32), 1 / np.array(std, np.float32)
    batch = np.empty((len(views), 3, *views[0].shape[:2]), np.float32)
    for planes, view in zip(batch, views, strict=True):
        for channel in range(3):
            np.multiply(view[..., channel], gain[channel] / np.float32(255), out=planes[channel])
    batch -= (shift * gain).reshape(1, 3, 1, 1)
    return batch
