"""Results made by hand, whose cells are outlined on a grey picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from conftest import unasked

from smearcount import outlines
from smearcount.records import Counts, Detections, Provenance, Quality, Scale, SmearResult
from smearcount.taxonomy import load_taxonomy

TAXONOMY = load_taxonomy()
GREY = 190


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def make(size_wh, cells=(), um_per_px=0.1, warnings=(), image_id="field.png", **changes):
    """A result of `cells`: (box, kind, name, counted)."""
    n = len(cells)
    detections = Detections(
        np.array([cell[0] for cell in cells], np.float32).reshape(-1, 4),
        np.ones(n, np.float32),
        np.array([cell[1] for cell in cells], "<U8"),
        np.zeros(n, np.bool_),
    )
    result = SmearResult(
        image_id=image_id,
        slide_id="",
        size_wh=size_wh,
        image_sha256="",
        scale=Scale(um_per_px, "flag"),
        detections=detections,
        labels=unasked(n),
        names=np.array([cell[2] for cell in cells], "<U24"),
        counted=np.array([cell[3] for cell in cells], np.bool_),
        counts=Counts(),
        counted_area_um2=1.0,
        quality=Quality(1.0, 0.5, 0.1, tuple(warnings)),
        provenance=Provenance("1.2.3", ("detector", "classifier"), {}, "cpu", {}),
    )
    return replace(result, **changes)


def one(kind, name="unclassified", counted=True, box=(250, 200, 310, 280)):
    return make((640, 480), [(box, kind, name, counted)])


def scattered(size_wh=(400, 300), n=60):
    rng = np.random.default_rng(7)
    centres, halves = rng.random((n, 2)) * size_wh, 4 + 30 * rng.random((n, 2))
    boxes = np.clip(np.concatenate([centres - halves, centres + halves], axis=1), 0, [*size_wh, *size_wh])
    kinds = rng.choice(["rbc", "rbc", "wbc", "nrbc", "platelet"], n).tolist()
    return make(
        size_wh, [(box, kind, "unclassified", rng.random() < 0.7) for box, kind in zip(boxes, kinds, strict=True)]
    )


def blank(size_wh):
    return np.full((size_wh[1], size_wh[0], 3), GREY, np.uint8)


def outlined(result, zoom=1):
    photo = blank([side * zoom for side in result.size_wh])
    outlines.draw_outlines(photo, (0, 0), result, outlines.outline_style(result, TAXONOMY, zoom))
    return photo
