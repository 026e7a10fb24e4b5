"""The leak check that runs before every training: no picture and no cell may stand on both sides of a split.

Whole pictures are compared by one `signature` each. Cut-out cells are harder: the same cell may have been found a
little beside its other copy, at another scale, in a window of another size. So each window is first centred on its own
dark body and scaled by it, then compared by signature, and what looks alike is laid upon each other and compared in
its fine detail, which two different cells of one shape do not share. Copies that somebody turned by quarters or
mirrored, to have more pictures, show the same square, which is compared as it is in all eight ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import cv2
import numpy as np

from smearcount.arrays import FloatArray, Indices, Pixels
from smearcount.cellsets import CellSet

__all__ = ["cross_split_leaks", "near_duplicates", "same_cells", "signature", "without_leaks"]


SIDE = 24
SAME = 0.985
"""Correlation of two signatures above which two pictures show the same field."""

ALIKE = 0.85
"""Correlation of the signatures of two centred cells above which their detail is compared."""

SAME_DETAIL = 0.75
"""Correlation of the aligned detail of two cells above which they are one cell.

Measured on cells cut out of PBC and Raabin pictures and of TXL-PBC fields made of the same originals: 150 of 151 known
pairs lie above, and no pair of different white cells does; of red cells, which have less detail, one in three thousand.
"""

SAME_SQUARE = 0.82
"""The same of two windows laid upon each other as wholes, in one of eight ways, whose signatures correlate by more than
`SAME`. Of two round cells all of the rim falls together there, so that more is asked for than of cells that are aligned
by their detail.

Measured on copies of 400 cells each of PBC, erythrocytesIDB and Chula, recompressed, shrunk or lit otherwise: 99.5 % or
more of each lie above. No pair of different cells of PBC (2,697) or erythrocytesIDB does, nor one of 2,000 with 8,000
red cells of Chula.
"""

_TURNS = tuple((quarters, mirrored) for mirrored in (False, True) for quarters in range(4))
_AT_ONCE = 5
_BLOCK = 512
_THUMB_PX, _VIEW_PX, _TEMPLATE = 96, 64, 0.65
_ZOOMS = (0.9, 0.95, 1.0, 1.05, 1.1)
_SURROUND = 6.0
"""Side of the square that is compared, in radii of the body: the cell, and little of what a window may not hold."""

_RADII = (0.04, 0.25)
"""Radius of a dark body, as a standard deviation in shares of the window's side."""


def signature(pixels: Pixels) -> FloatArray:
    """A picture `(H, W, 3) uint8 RGB` as a unit vector `(576,)`: green at 24 x 24, mean and contrast removed.

    Resampling, compression and a change of light leave it nearly as it is.
    """
    return _unit(pixels[..., 1])


def _unit(green: Pixels | FloatArray) -> FloatArray:
    small = cv2.resize(green, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    centred = small - small.mean()
    length = float(np.linalg.norm(centred))
    return np.asarray(centred / length if length > 0 else centred, np.float32)


def near_duplicates(
    first: Sequence[tuple[Path, FloatArray]], second: Sequence[tuple[Path, FloatArray]]
) -> list[tuple[Path, Path]]:
    """Pairs of pictures, one of each list, that show the same field: as it is, or shrunk, recompressed or restained."""
    if not first or not second:
        return []
    likeness = np.stack([vector for _, vector in first]) @ np.stack([vector for _, vector in second]).T
    return [(first[a][0], second[b][0]) for a, b in np.argwhere(likeness > SAME)]


def cross_split_leaks(cells: CellSet) -> list[tuple[int, int]]:
    """Rows of the training cells that share a group with a validation cell or show the same cell, each with that one.

    To be run before every training.
    """
    train, val = np.flatnonzero(cells.splits == "train"), np.flatnonzero(cells.splits == "val")
    of_group = {str(cells.groups[row]): int(row) for row in reversed(val)}
    partner = {row: of_group[group] for row in train.tolist() if (group := str(cells.groups[row])) in of_group}
    for a, b in same_cells(cells.take(train).pixels, cells.take(val).pixels).tolist():
        partner.setdefault(int(train[a]), int(val[b]))
    return sorted(partner.items())


def without_leaks(cells: CellSet) -> tuple[CellSet, list[tuple[str, str]]]:
    """The cells without the training cells of `cross_split_leaks`; and the origins of these pairs, to be listed."""
    pairs = cross_split_leaks(cells)
    kept = np.ones(len(cells), np.bool_)
    kept[[ours for ours, _ in pairs]] = False
    return cells.take(kept), [(str(cells.origins[ours]), str(cells.origins[theirs])) for ours, theirs in pairs]


def same_cells(first: Sequence[Pixels], second: Sequence[Pixels]) -> Indices:
    """Pairs `(P, 2)` of a row of `first` and a row of `second` that show one and the same cell.

    The cell may be shifted by a fifth of the window, larger or smaller, shrunk, recompressed or lit otherwise. A window
    that was turned by quarters or mirrored as a whole is found as well. Each cell of `second` is compared in detail
    with the few of `first` that look most like it, and with further ones as long as one of them is the same.

    Args:
        first: windows `(S, S, 3) uint8 RGB` around a cell, each of its own side S.
        second: likewise; may be the same list, whose rows are then not compared with themselves.
    """
    itself = second is first
    ours = _thumbs_of(first)
    theirs = ours if itself else _thumbs_of(second)
    pairs = set(_alike(_Bodies(ours), _Bodies(theirs), itself=itself))
    whole = _Bodies(ours, whole=True)
    for quarters, mirrored in _TURNS:
        pairs.update(_alike(whole, _Bodies(_turned(theirs, quarters, mirrored), whole=True), itself=itself))
    return np.array(sorted(pairs), np.intp).reshape(-1, 2)


def _thumbs_of(windows: Sequence[Pixels]) -> Pixels:
    """The green of windows as `(N, 96, 96) uint8`."""
    thumbs = np.zeros((len(windows), _THUMB_PX, _THUMB_PX), np.uint8)
    for thumb, window in zip(thumbs, windows, strict=True):
        thumb[:] = cv2.resize(window[..., 1], (_THUMB_PX, _THUMB_PX), interpolation=cv2.INTER_AREA)
    return thumbs


def _turned(thumbs: Pixels, quarters: int, mirrored: bool) -> Pixels:
    """Pictures `(N, S, S)`, turned counter-clockwise by quarters and then mirrored left to right."""
    turned = np.rot90(thumbs, quarters, (1, 2))
    return np.ascontiguousarray(turned[:, :, ::-1] if mirrored else turned)


def _alike(ours: _Bodies, theirs: _Bodies, *, itself: bool) -> Iterator[tuple[int, int]]:
    """Rows of `ours` and of `theirs` that are alike also in their detail.

    Rivals are compared a few at a time, the most alike first, for as long as there is the same cell among them.
    """
    alike, least = (SAME, SAME_SQUARE) if ours.whole else (ALIKE, SAME_DETAIL)
    for b, rivals in _rivals(ours.signatures, theirs.signatures, alike, itself=itself):
        for start in range(0, len(rivals), _AT_ONCE):
            some = rivals[start : start + _AT_ONCE]
            likeness = _detail_likeness(ours, theirs, b, some)
            same = [a for a, each in zip(some, likeness, strict=True) if each > least]
            yield from ((a, b) for a in same)
            if not same:
                break


def _rivals(ours: FloatArray, theirs: FloatArray, alike: float, *, itself: bool) -> Iterator[tuple[int, list[int]]]:
    """For each row of `theirs` the rows of `ours` that are alike by more than `alike`, the most alike first."""
    for start in range(0, len(theirs) if len(ours) else 0, _BLOCK):
        likeness = theirs[start : start + _BLOCK] @ ours.T
        if itself:
            likeness[np.arange(len(likeness)), start + np.arange(len(likeness))] = -1
        for row, each in enumerate(likeness):
            found = np.flatnonzero(each > alike)
            yield start + row, found[np.argsort(-each[found], kind="stable")].tolist()


class _Bodies:
    """The green thumbnails `(N, 96, 96) uint8` of windows, where their dark body lies, and signatures around it.

    Of `whole` windows the body is in the middle, and of a size that the signature shows all.
    """

    def __init__(self, thumbs: Pixels, *, whole: bool = False) -> None:
        self.thumbs, self.whole = thumbs, whole
        blocks = [] if whole else [_dark_body(thumbs[at : at + _BLOCK]) for at in range(0, len(thumbs), _BLOCK)]
        middle = np.tile(np.array([0, 0, 1 / _SURROUND], np.float32), (len(thumbs) if whole else 0, 1))
        self.bodies = np.concatenate([middle, *blocks])
        self.signatures = np.zeros((len(thumbs), SIDE * SIDE), np.float32)
        for row, radius in enumerate(self.bodies[:, 2]):
            self.signatures[row] = _unit(self.view(row, _SURROUND * float(radius), _THUMB_PX))

    def view(self, row: int, share: float, out_px: int) -> FloatArray:
        """A square of `share` of the window's side, centred on the dark body, as `(out_px, out_px) float32`."""
        step = _THUMB_PX * share / out_px
        # Pixel centres are at half-integers: output pixel i samples corner + (i + 0.5) * step.
        x, y = _THUMB_PX * (0.5 + self.bodies[row, :2] - share / 2) + step / 2 - 0.5
        move = np.array([[step, 0, x], [0, step, y]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        size, edge = (out_px, out_px), cv2.BORDER_REPLICATE
        thumb = self.thumbs[row].astype(np.float32)
        return cast(FloatArray, cv2.warpAffine(thumb, move, size, flags=flags, borderMode=edge))


def _dark_body(thumbs: Pixels) -> FloatArray:
    """Centre x, y from the middle and radius `(N, 3)` of the darkest body near the middle, in shares of the side.

    Mean shift with a Gaussian window that follows the spread of the body (Lindeberg and Garding, Image and Vision
    Computing 15, 1997: shape adaptation), so that a copy cut out beside it or at another scale ends on the same place.
    """
    small = thumbs[:, ::2, ::2].astype(np.float32)
    # The sixth power leaves the nucleus, or the whole of a red cell, to outweigh the neighbours.
    darkness = np.clip(np.percentile(small, 75, axis=(1, 2), keepdims=True) - small, 0, None).astype(np.float32) ** 6
    darkness /= darkness.max(axis=(1, 2), keepdims=True) + 1e-6
    axis = ((np.arange(small.shape[1]) + 0.5) / small.shape[1] - 0.5).astype(np.float32)
    x, y, radius = (np.full((len(thumbs), 1), start, np.float32) for start in (0.0, 0.0, 0.15))
    for _ in range(10):
        spread = 2 * (1.2 * radius) ** 2
        across, down = np.exp(-((axis - x) ** 2) / spread), np.exp(-((axis - y) ** 2) / spread)
        columns = across * np.einsum("nyx,ny->nx", darkness, down)
        rows = down * np.einsum("nyx,nx->ny", darkness, across)
        mass = columns.sum(1, keepdims=True) + 1e-6
        x, y = (columns @ axis)[:, None] / mass, (rows @ axis)[:, None] / mass
        seen = (columns * (axis - x) ** 2 + rows * (axis - y) ** 2).sum(1, keepdims=True) / mass / 2
        # What is seen through the window is the product of two Gaussians: their inverse variances add.
        inverse = 1 / np.maximum(seen, 1e-6) - 2 / spread
        radius = np.clip(np.sqrt(1 / np.maximum(inverse, 1e-3)), *_RADII)
    return np.concatenate([x, y, radius], axis=1)


def _detail_likeness(ours: _Bodies, theirs: _Bodies, row: int, rivals: list[int]) -> list[float]:
    """Best correlation of the detail of one of `theirs` laid upon each rival, over shifts and magnifications."""
    margin = round(_VIEW_PX * (1 - _TEMPLATE) / 2)
    inner = slice(margin, _VIEW_PX - margin)
    zooms, best = (1.0,) if ours.whole else _ZOOMS, []
    for rival in rivals:
        field = _detail(ours.view(rival, 1.0, _VIEW_PX))
        ratio = float(theirs.bodies[row, 2] / ours.bodies[rival, 2])
        templates = (_detail(theirs.view(row, zoom * ratio, _VIEW_PX))[inner, inner] for zoom in zooms)
        best.append(max(float(cv2.matchTemplate(field, each, cv2.TM_CCOEFF_NORMED).max()) for each in templates))
    return best


def _detail(view: FloatArray) -> FloatArray:
    """A view without its coarse structure and with even contrast, so that the rim of a cell is not all that counts."""
    rest = view - cv2.GaussianBlur(view, (0, 0), 1.5)
    return cast(FloatArray, rest / (np.sqrt(cv2.GaussianBlur(rest * rest, (0, 0), 3.0)) + 2.0))
