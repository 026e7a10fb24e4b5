"""Training tiles at the canonical scale: fields are resampled, packed side by side, and made to look like other stains.

Small photographs share a tile, large ones are cropped, so that one network step sees cells of their true size and
little padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydantic import Field

from smearcount.arrays import FloatArray, Pixels
from smearcount.config import Strict
from smearcount.datasets import LabelledField
from smearcount.errors import DatasetError
from smearcount.geometry import clip_boxes, resize_rgb
from smearcount.images import through_jpeg
from smearcount.training.colours import HED_FROM_RGB, RGB_FROM_HED

__all__ = ["Augmentation", "Tile", "TileMaker"]


class Augmentation(Strict):
    """How strongly tiles are varied; every field is documented in `configs/train/detector.yaml`."""

    plain: float = Field(ge=0, le=1)
    scale_sigma: float = Field(ge=0, le=0.5)
    stain_sigma: float = Field(ge=0, le=1)
    hue_sigma: float = Field(ge=0, le=0.5)
    brightness: float = Field(ge=0, le=0.5)
    blur_px: float = Field(ge=0, le=5)
    shrink: float = Field(gt=0, le=1)
    noise: float = Field(ge=0, le=50)
    grey: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class Tile:
    """One training input: `pixels (S, S, 3) uint8 RGB`, boxes in its pixels, and the kinds that were labelled."""

    pixels: Pixels
    boxes: FloatArray
    kinds: npt.NDArray[np.int64]
    labelled: frozenset[str]


class TileMaker:
    """Makes the tile of any number, always the same for the same number.

    Args:
        fields: labelled fields with their pixels `(H, W, 3) uint8 RGB`.
        weights: share of the tiles for each collection, by the first part of the field's source.
        tile_px: side of a tile.
        um_per_px: canonical scale.
        augmentation: strength of the variations.
        seed: first seed; tile `n` draws from `(seed, n)`.

    Raises:
        DatasetError: a collection has no field.
    """

    def __init__(
        self,
        fields: list[tuple[LabelledField, Pixels]],
        weights: dict[str, float],
        tile_px: int,
        um_per_px: float,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self._groups = {name: [f for f in fields if f[0].source.split("/")[0] == name] for name in weights}
        empty = [name for name, members in self._groups.items() if not members]
        if empty:
            raise DatasetError(
                f"no field of {', '.join(empty)} to train on; add image stems to train.txt, or take it out of the "
                "`sources`; fields that show the same as a validation field are left out (leaks.txt)"
            )
        self._shares = np.array([weights[name] for name in self._groups]) / sum(weights.values())
        self._tile_px, self._um_per_px, self._augmentation, self._seed = (tile_px, um_per_px, augmentation, seed)

    def make(self, number: int) -> Tile:
        """Tile `number`: packed, flipped and turned, its stain and focus varied."""
        rng = np.random.default_rng((self._seed, number))
        group = self._groups[list(self._groups)[rng.choice(len(self._shares), p=self._shares)]]
        size = self._tile_px
        pixels = np.empty((size, size, 3), np.uint8)
        pixels[:] = rng.integers(90, 256, 3)
        boxes, kinds = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)]
        top = 0
        while top < size - 64:
            left, row_height = 0, 0
            while left < size - 64:
                field, source_pixels = group[rng.integers(len(group))]
                piece, piece_boxes, piece_kinds = self._piece(field, source_pixels, size - left, size - top, rng)
                height, width = piece.shape[:2]
                pixels[top : top + height, left : left + width] = piece
                boxes.append(piece_boxes + np.array([left, top, left, top], np.float32))
                kinds.append(piece_kinds)
                left, row_height = left + width, max(row_height, height)
            top += row_height
        tile = Tile(pixels, np.concatenate(boxes), np.concatenate(kinds), group[0][0].labelled)
        return _turned(tile, rng)

    def _piece(
        self, field: LabelledField, source: Pixels, room_x: int, room_y: int, rng: np.random.Generator
    ) -> tuple[Pixels, FloatArray, npt.NDArray[np.int64]]:
        """One field at a jittered canonical scale, cropped at random to the room left, with its boxes."""
        a, strip = self._augmentation, field.border_px
        source = source[strip : source.shape[0] - strip, strip : source.shape[1] - strip]
        jitter = float(np.exp(np.clip(rng.normal(0, a.scale_sigma), -2.3 * a.scale_sigma, 2.3 * a.scale_sigma)))
        factor = field.um_per_px / self._um_per_px * jitter
        width, height = (max(8, round(source.shape[1] * factor)), max(8, round(source.shape[0] * factor)))
        crop_w, crop_h = min(width, room_x), min(height, room_y)
        x, y = (int(rng.integers(width - crop_w + 1)), int(rng.integers(height - crop_h + 1)))
        # Whole pixels of the source, a little more than the crop; the boxes go by what was cut, not by what was meant.
        per_px = source.shape[1] / width, source.shape[0] / height
        x0, y0 = (math.floor(x * per_px[0]), math.floor(y * per_px[1]))
        x1 = min(math.ceil((x + crop_w) * per_px[0]), source.shape[1])
        y1 = min(math.ceil((y + crop_h) * per_px[1]), source.shape[0])
        piece = resize_rgb(np.ascontiguousarray(source[y0:y1, x0:x1]), crop_w, crop_h)
        gain = np.array([crop_w / (x1 - x0), crop_h / (y1 - y0)] * 2, np.float32)
        full = (field.boxes - strip - np.array([x0, y0, x0, y0], np.float32)) * gain
        boxes = clip_boxes(full, crop_w, crop_h)
        sides, sides_full = boxes[:, 2:] - boxes[:, :2], full[:, 2:] - full[:, :2]
        keep = (sides.min(axis=1, initial=np.inf) > 3) & (sides.prod(axis=1) > 0.08 * sides_full.prod(axis=1))
        if rng.random() >= a.plain:
            piece = _restained(piece, a, rng)
        return piece, boxes[keep], field.kinds[keep]


def _turned(tile: Tile, rng: np.random.Generator) -> Tile:
    """Flipped and turned by quarter turns at random."""
    pixels, boxes, size = tile.pixels, tile.boxes, tile.pixels.shape[0]
    if rng.random() < 0.5:
        pixels, boxes = (
            pixels[:, ::-1],
            np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], 1),
        )
    for _ in range(int(rng.integers(4))):
        pixels = np.rot90(pixels)
        boxes = np.stack([boxes[:, 1], size - boxes[:, 2], boxes[:, 3], size - boxes[:, 0]], 1)
    return Tile(np.ascontiguousarray(pixels), boxes, tile.kinds, tile.labelled)


def _restained(pixels: Pixels, a: Augmentation, rng: np.random.Generator) -> Pixels:
    """The same field with another stain, light, focus, camera and compression."""
    image: npt.NDArray[np.floating[Any]] = pixels.astype(np.float32)
    if rng.random() < 0.8:
        density = -np.log((image + 1) / 256)
        gains = np.exp(rng.normal(0, a.stain_sigma, 3))
        mix = (HED_FROM_RGB @ np.diag(gains) @ RGB_FROM_HED).astype(np.float32)
        image = 256 * np.exp(-(density @ mix)) - 1
        image = image * np.exp(rng.normal(0, a.brightness * 0.4, 3)).astype(np.float32)
    image = np.clip(image, 0, 255)
    if rng.random() < 0.6:
        hsv = cv2.cvtColor(image / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0] + 360 * rng.normal(0, a.hue_sigma)) % 360
        hsv[..., 1] = np.clip(hsv[..., 1] * np.exp(rng.normal(0, 0.3)), 0, 1)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32) * 255
    if rng.random() < 0.7:
        gamma = float(np.exp(rng.normal(0, a.brightness)))
        contrast = float(np.exp(rng.normal(0, a.brightness)))
        image = 255 * (np.clip(image, 0, 255) / 255) ** gamma
        image = (image - image.mean()) * contrast + image.mean() + 255 * rng.normal(0, a.brightness * 0.4)
    if rng.random() < a.grey:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    out = np.clip(image, 0, 255).astype(np.uint8)
    return _refocused(out, a, rng)


def _refocused(pixels: Pixels, a: Augmentation, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    if rng.random() < 0.3:
        pixels = cv2.GaussianBlur(pixels, (0, 0), float(rng.uniform(0.3, a.blur_px))).astype(np.uint8)
    elif rng.random() < 0.35:
        factor = float(rng.uniform(a.shrink, 1))
        small = resize_rgb(pixels, max(4, round(width * factor)), max(4, round(height * factor)))
        pixels = resize_rgb(small, width, height)
    elif rng.random() < 0.2:
        soft = cv2.GaussianBlur(pixels, (0, 0), 1.5).astype(np.float32)
        pixels = np.clip(pixels + rng.uniform(0.3, 1.2) * (pixels - soft), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        noise = rng.normal(0, rng.uniform(0, a.noise), pixels.shape).astype(np.float32)
        pixels = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        pixels = through_jpeg(pixels, int(rng.integers(35, 95)))
    return pixels
