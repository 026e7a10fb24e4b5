"""Outlines of cells on a photograph: just outside the box, so that the inside of a cell stays as photographed.

The line has a white or black casing, whichever contrasts with its colour, and is thicker for nucleated cells: on any
stain and with any colour vision there is more than hue to tell the kinds apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from smearcount.arrays import Doubles, Pixels
from smearcount.geometry import diameters
from smearcount.records import UNCLASSIFIED, SmearResult
from smearcount.taxonomy import Taxonomy

__all__ = [
    "WEIGHTS",
    "OutlineStyle",
    "Pen",
    "colour_of",
    "draw_outlines",
    "label_keys",
    "outline_style",
    "rings",
    "stroke",
]

WEIGHTS = {"rbc": 1.0, "platelet": 1.0, "wbc": 1.5, "nrbc": 1.5}
_LAYERS = {"rbc": 0, "platelet": 1, "wbc": 2, "nrbc": 3}
_SHIFT = 4
_POINTS = 120
_LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue: ITU-R BT.709
_LIGHT = 150


@dataclass(frozen=True, eq=False)
class OutlineStyle:
    """How the cells of one result are outlined.

    Attributes:
        colours: `(N, 3) uint8 RGB`, one a cell.
        line_px: width of the coloured line around a red cell.
        casing_px: width of the casing on either side of it.
        zoom: by how much the picture is shown magnified; below 1 it is reduced.
    """

    colours: Pixels
    line_px: float
    casing_px: float
    zoom: float = 1


@dataclass(frozen=True)
class Pen:
    """One line: colour, width, width of the casing on either side, dashed or not."""

    colour: tuple[int, ...]
    line_px: float
    casing_px: float
    dashed: bool


def label_keys(result: SmearResult) -> list[tuple[str, str]]:
    """Kind and name of each cell: what its colour stands for."""
    return list(zip(result.detections.kinds.tolist(), result.names.tolist(), strict=True))


def colour_of(key: tuple[str, str], taxonomy: Taxonomy) -> tuple[int, ...]:
    """RGB of a cell by its kind and name: of the code, or of the kind where it is not named."""
    kind, name = key
    if name != UNCLASSIFIED and name not in taxonomy.codes:
        raise ValueError(f"names: expected {UNCLASSIFIED} or codes of the taxonomy, got {name!r}")
    known = {str(k): entry.colour for k, entry in taxonomy.kinds.items()}
    return tuple(bytes.fromhex((known[kind] if name == UNCLASSIFIED else taxonomy.codes[name].colour)[1:]))


def outline_style(result: SmearResult, taxonomy: Taxonomy, zoom: float = 1) -> OutlineStyle:
    """Colours by code for named cells and by kind for the others; widths by the size of the cells and the picture.

    Raises:
        ValueError: a name is no code of the taxonomy.
    """
    keys = label_keys(result)
    palette = {key: colour_of(key, taxonomy) for key in sorted(set(keys))}
    colours = np.array([palette[key] for key in keys], np.uint8).reshape(-1, 3)
    longest = max(result.size_wh) * zoom
    cell = float(np.median(diameters(result.detections.boxes))) * zoom if keys else longest / 10
    # More colours than the kinds have can be told apart on a wider line only.
    share = 0.03 if len(palette) <= len(taxonomy.kinds) else 0.05
    line = max(1.6, min(max(share * cell, longest / 2500), 0.08 * cell))
    return OutlineStyle(colours, line, max(1.0, 0.4 * line), zoom)


@lru_cache(maxsize=1)
def _unit_outline() -> Doubles:
    """`(120, 2)` points x, y of a rounded square in [-1, 1], evenly spaced: |x|^2.5 + |y|^2.5 = 1 (Lamé's curve).

    It hugs a round cell and still holds the tips of a sickle that lies across its box, which an ellipse would cut.
    """
    angle = np.linspace(0, 2 * np.pi, 16 * _POINTS + 1)
    wave = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    curve = np.sign(wave) * np.abs(wave) ** (2 / 2.5)
    walked = np.concatenate([[0], np.hypot(*np.diff(curve, axis=0).T).cumsum()])
    wanted = np.linspace(0, walked[-1], _POINTS, endpoint=False)
    return np.stack([np.interp(wanted, walked, curve[:, axis]) for axis in (0, 1)], axis=1)


def rings(box_xyxy: Doubles, limit_wh: Doubles, pen: Pen) -> npt.NDArray[np.int64]:
    """Where casing, line and casing again begin and end around a box: `(4, 120, 2)` points x, y, innermost first.

    In 16ths of a pixel from the centre of the first one. A cell cut by the border of the picture keeps a closed
    outline inside the picture.
    """
    # The smoothing of edges spreads by about a pixel: it must not reach the cell.
    out = np.cumsum([1, pen.casing_px, pen.line_px, pen.casing_px])[:, None, None]
    half = (box_xyxy[2:] - box_xyxy[:2]) / 2 + out
    inset = out[-1] - out
    points = np.clip((box_xyxy[:2] + box_xyxy[2:]) / 2 + half * _unit_outline(), inset, limit_wh - inset)
    fixed: npt.NDArray[np.int64] = np.rint((points - 0.5) * (1 << _SHIFT)).astype(np.int64)
    return fixed


def _blend(region: Pixels, mask: Pixels, colour: tuple[int, ...]) -> None:
    rows, columns = np.nonzero(mask)
    share = mask[rows, columns, None].astype(np.uint16)
    mixed = region[rows, columns] * (255 - share) + np.array(colour, np.uint16) * share
    region[rows, columns] = (mixed + 127) // 255


def stroke(tile: Pixels, origin_xy: tuple[int, int], rings: npt.NDArray[np.int64], pen: Pen) -> None:
    """Draw one outline, given in 16ths of a pixel of the whole picture, into a tile of it.

    It is rasterised whole and from its own corner, so that every tile gets the same pixels of it.
    """
    low = (rings.min(axis=(0, 1)) >> _SHIFT) - 2
    width, height = ((rings.max(axis=(0, 1)) >> _SHIFT) + 4 - low).tolist()
    x, y = (low - origin_xy).tolist()
    left, top = max(0, -x), max(0, -y)
    right, bottom = min(width, tile.shape[1] - x), min(height, tile.shape[0] - y)
    if left >= right or top >= bottom:
        return
    local = (rings - (low << _SHIFT)).astype(np.int32)
    region = tile[y + top : y + bottom, x + left : x + right]
    casing = (0, 0, 0) if np.dot(pen.colour, _LUMINANCE) > _LIGHT else (255, 255, 255)
    line = _dashes(local[1], local[2], pen) if pen.dashed else [local[1], local[2]]
    for colour, parts in ((casing, [local[0], local[3]]), (pen.colour, line)):
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, parts, 255, cv2.LINE_AA, _SHIFT)
        _blend(region, mask[top:bottom, left:right], colour)


def _dashes(inner: npt.NDArray[np.int32], outer: npt.NDArray[np.int32], pen: Pen) -> list[npt.NDArray[np.int32]]:
    around = float(np.hypot(*np.diff(outer, axis=0).T).sum()) / (1 << _SHIFT)
    n = min(24, max(6, int(around / (8 * pen.line_px))))
    spans = [slice(start, start + 1 + round(0.55 * _POINTS / n)) for start in (np.arange(n) * _POINTS // n).tolist()]
    return [np.concatenate([outer[span], inner[span][::-1]]) for span in spans]


def draw_outlines(pixels_tile: Pixels, origin_xy: tuple[int, int], result: SmearResult, style: OutlineStyle) -> None:
    """Outline the cells of a result on one tile of its picture, in place.

    Tiles drawn one by one give the same bytes as the whole picture at once. Counted cells have a solid line, the
    others a dashed one; nucleated cells and platelets lie above red cells.

    Args:
        pixels_tile: `(h, w, 3) uint8 RGB`, written to.
        origin_xy: its top-left corner in pixels of the picture as shown.
        result: the cells.
        style: of `outline_style` for this result.
    """
    boxes = result.detections.boxes.astype(np.float64) * style.zoom
    limit = np.array(result.size_wh) * style.zoom
    reach = 2 * (style.line_px + style.casing_px) + 4
    start, size = np.array(origin_xy), np.array(pixels_tile.shape[1::-1])
    rows = np.flatnonzero(np.all((boxes[:, 2:] > start - reach) & (boxes[:, :2] < start + size + reach), axis=1))
    kinds = result.detections.kinds[rows].tolist()
    for _, row, kind in sorted(zip((_LAYERS[k] for k in kinds), rows.tolist(), kinds, strict=True)):
        line = style.line_px * WEIGHTS[kind]
        pen = Pen(tuple(style.colours[row].tolist()), line, style.casing_px, not result.counted[row])
        stroke(pixels_tile, origin_xy, rings(boxes[row], limit, pen), pen)
