"""The records that flow through smearcount: frozen, arrays in parallel, checked on construction.

    pixels -> Detections -> Labels -> Counts -> SmearResult

Boxes are `(N, 4) float32` x_min, y_min, x_max, y_max in image pixels, half-open. Pixels are `(H, W, 3) uint8 RGB`.
Kinds are `rbc`, `wbc`, `nrbc`, `platelet`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, FloatArray, Indices, Strings
from smearcount.pairs import ClosePairs, close_pairs

__all__ = [
    "KINDS",
    "RED_CELL_UM",
    "UNCLASSIFIED",
    "Counts",
    "Detections",
    "KindName",
    "Labels",
    "Provenance",
    "Quality",
    "Scale",
    "SmearResult",
]

KindName = Literal["rbc", "wbc", "nrbc", "platelet"]
KINDS: tuple[str, ...] = get_args(KindName)
"""Every kind of cell, in the order of the reports."""

RED_CELL_UM = 7.5
"""Diameter of a normal red cell on a dry smear in micrometres (Bain, Blood Cells, 5th ed.: 6.7 to 7.7)."""

UNCLASSIFIED = "unclassified"
"""The label of a cell that no classifier named with enough certainty."""


def _check(name: str, array: npt.NDArray[Any], shape: tuple[int | None, ...], dtype: type | None) -> None:
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape, strict=True))
    if not fits or (dtype is not None and array.dtype != dtype):
        kind = dtype.__name__ if dtype else "any"
        raise ValueError(f"{name}: expected shape {shape} and {kind}, got {array.shape} and {array.dtype}")


@dataclass(frozen=True, eq=False)
class Detections:
    """Cells found in one picture, in parallel arrays.

    Attributes:
        boxes: `(N, 4) float32`, pixels of the picture.
        scores: `(N,) float32` in [0, 1].
        kinds: `(N,)` strings out of `KINDS`.
        at_edge: `(N,) bool`, the box reaches the border of the picture or the edge of the field of view.
    """

    boxes: FloatArray
    scores: FloatArray
    kinds: Strings
    at_edge: Bools

    def __post_init__(self) -> None:
        """Check shapes, dtypes and kinds."""
        n = len(self.boxes)
        _check("boxes", self.boxes, (None, 4), np.float32)
        _check("scores", self.scores, (n,), np.float32)
        _check("kinds", self.kinds, (n,), None)
        _check("at_edge", self.at_edge, (n,), np.bool_)
        known = np.logical_or.reduce([self.kinds == kind for kind in KINDS])
        if not known.all():
            raise ValueError(f"kinds: expected some of {KINDS}, got {np.unique(self.kinds[~known]).tolist()}")

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.boxes)

    @cached_property
    def touching(self) -> ClosePairs:
        """The pairs of cells whose boxes overlap at all."""
        return close_pairs(self.boxes, 0)

    def take(self, rows: Indices | Bools) -> Detections:
        """The cells of the given indices or mask, all fields alike."""
        return Detections(self.boxes[rows], self.scores[rows], self.kinds[rows], self.at_edge[rows])

    @staticmethod
    def empty() -> Detections:
        """No cells at all."""
        none = np.zeros(0, np.float32)
        return Detections(np.zeros((0, 4), np.float32), none, np.zeros(0, "<U8"), np.zeros(0, np.bool_))


@dataclass(frozen=True, eq=False)
class Labels:
    """What the classifiers say of each cell, before abstention.

    Attributes:
        probs: `(N, K) float32`; a row sums to 1, or is all zero where no classifier was asked.
        codes: the K codes of the columns.
    """

    probs: FloatArray
    codes: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check the shape and that each row is a distribution or empty."""
        _check("probs", self.probs, (None, len(self.codes)), np.float32)
        sums = self.probs.sum(axis=1)
        if not np.all((np.abs(sums - 1) < 1e-3) | (sums == 0)):
            raise ValueError(f"probs: expected rows that sum to 1 or 0, got sums from {sums.min()} to {sums.max()}")

    def take(self, rows: Indices | Bools) -> Labels:
        """The rows of the given indices or mask."""
        return Labels(self.probs[rows], self.codes)


@dataclass(frozen=True)
class Counts:
    """Integers only; fractions, rates and limits are derived from them.

    Attributes:
        named: counted cells by code.
        unclassified: counted cells without a name, by kind.
        excluded: cells found but not counted, by reason.
    """

    named: Mapping[str, int] = field(default_factory=dict)
    unclassified: Mapping[str, int] = field(default_factory=dict)
    excluded: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that nothing is negative."""
        for name, part in (("named", self.named), ("unclassified", self.unclassified), ("excluded", self.excluded)):
            negative = {key: n for key, n in part.items() if n < 0}
            if negative:
                raise ValueError(f"{name}: expected counts of zero or more, got {negative}")

    def __add__(self, other: Counts) -> Counts:
        """The counts of two pictures together."""
        return Counts(
            _sum(self.named, other.named),
            _sum(self.unclassified, other.unclassified),
            _sum(self.excluded, other.excluded),
        )


def _sum(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    keys = [*first, *(key for key in second if key not in first)]
    return {key: first.get(key, 0) + second.get(key, 0) for key in keys}


@dataclass(frozen=True)
class Scale:
    """How large a pixel is, and how that is known.

    Attributes:
        um_per_px: micrometres a pixel.
        source: `flag`, `metadata`, `estimated` or `assumed`.
        red_cell_px: median diameter of the isolated red cells it was checked against, in pixels; NaN without any.
        note: what a reader must know of it; empty where there is nothing to say.
        in_doubt: the metadata or the slide say another one, with which the red cells do not agree.
    """

    um_per_px: float
    source: str
    red_cell_px: float = float("nan")
    note: str = ""
    in_doubt: bool = False

    def __post_init__(self) -> None:
        """Check the source and the number."""
        if self.source not in ("flag", "metadata", "estimated", "assumed"):
            raise ValueError(f"source: expected flag, metadata, estimated or assumed, got {self.source!r}")
        if not self.um_per_px > 0:
            raise ValueError(f"um_per_px: expected a positive number, got {self.um_per_px}")


@dataclass(frozen=True)
class Quality:
    """First advice on whether a field can be counted.

    Attributes:
        sharpness: relative strength of the finest detail; 1 is a well focused field.
        red_cell_cover: area of the red cells, as discs in their boxes, over that of the view; what overlaps is double.
        overlapping: share of the red cells whose disc has more than a tenth in common with another one's.
        warnings: sentences for the reader, empty for a good field.
        shares: of a large picture, or of its region, the share that can be counted, and of the rest by reason.
        judged_um2: area that the shares refer to, square micrometres; 0 without any.
    """

    sharpness: float
    red_cell_cover: float
    overlapping: float
    warnings: tuple[str, ...] = ()
    shares: Mapping[str, float] = field(default_factory=dict)
    judged_um2: float = 0.0


@dataclass(frozen=True)
class Provenance:
    """What produced a result, so that it can be produced again.

    Attributes:
        version: of smearcount.
        model_ids: of the detector, then the classifiers.
        sha256: of each model file by `model-id/file`.
        runtime: name, device and precision.
        settings: every setting that has an effect on the counts.
    """

    version: str
    model_ids: tuple[str, ...]
    sha256: Mapping[str, str]
    runtime: str
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class SmearResult:
    """Everything known of one picture.

    Attributes:
        image_id: name in reports; for a batch, the path relative to its folder.
        slide_id: the slide it is pooled into.
        size_wh: width and height in pixels.
        image_sha256: of the file; of pixels given by a script, of their shape and values.
        scale: how large a pixel is.
        detections: every cell above the threshold.
        labels: what the classifiers say of each.
        names: `(N,)` final code of each cell or `unclassified`.
        counted: `(N,) bool`, the cell enters the counts.
        counts: the sums.
        counted_area_um2: area that the counts refer to.
        quality: advice on countability.
        provenance: versions, models, settings.
        found_as: `(N,)` kind of each cell before it had a name; None where no name changed a kind.
        reading: what was done to the stored pixels, and what of the file was not read.
    """

    image_id: str
    slide_id: str
    size_wh: tuple[int, int]
    image_sha256: str
    scale: Scale
    detections: Detections
    labels: Labels
    names: Strings
    counted: Bools
    counts: Counts
    counted_area_um2: float
    quality: Quality
    provenance: Provenance
    found_as: Strings | None = None
    reading: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that all arrays are parallel."""
        n = len(self.detections)
        _check("labels", self.labels.probs, (n, None), np.float32)
        _check("names", self.names, (n,), None)
        _check("counted", self.counted, (n,), np.bool_)
