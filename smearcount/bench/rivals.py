"""Other tools with the shipped weights: ultralytics' own predict, and SAHI (github.com/obss/sahi) on top of it.

Both get the network itself, built from safetensors; no pickle is read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from smearcount.cards import DetectorCard, Model
from smearcount.errors import RuntimeMissingError
from smearcount.offline import quiet_ultralytics
from smearcount.torch_nets import network_of

__all__ = ["SAHI_OVERLAP", "SAHI_TILE_PX", "Predictor", "Slicer", "checkpoint", "usual_threads"]

SAHI_TILE_PX = 640
"""Side of the slices: what ultralytics' networks are run at unless told otherwise."""

SAHI_OVERLAP = 0.2
"""Of neighbouring slices; SAHI's own default, as are all settings that are not named here."""


def usual_threads() -> int:
    """The number of threads that ultralytics gives itself on the CPU: one fewer than there are cores."""
    return max(1, (os.cpu_count() or 2) - 1)


def _yolo(model: Model, scratch: Path) -> Any:
    """The network of a detector as ultralytics' own object, in float32 on the CPU."""
    quiet_ultralytics(scratch)
    from ultralytics import YOLO

    layout = scratch / "network.yaml"
    layout.write_bytes(model.read("architecture.yaml"))
    yolo = YOLO(str(layout), task="detect")
    net = network_of(model, fuse=False)
    net.names, net.args, net.task = dict(enumerate(model.card.codes)), yolo.model.args, "detect"
    yolo.model = net
    return yolo


class Predictor:
    """Ultralytics' own predict.

    Args:
        model: a detector.
        scratch: folder for the settings of ultralytics.
    """

    def __init__(self, model: Model, scratch: Path) -> None:
        self._card = model.detector_card
        self._yolo = _yolo(model, scratch)

    def __call__(self, path: Path, side: int | None, threads: int) -> dict[str, int]:
        """Count the cells of a picture.

        Args:
            path: the picture.
            side: size of the network input; ultralytics' default without one.
            threads: CPU threads.
        """
        import torch

        torch.set_num_threads(threads)
        card = self._card
        settings: dict[str, Any] = {"conf": min(card.min_score.values()), "iou": card.nms_iou, "max_det": 3000}
        size = {} if side is None else {"imgsz": side}
        boxes = self._yolo.predict(str(path), verbose=False, device="cpu", **settings, **size)[0].boxes
        kinds = [card.codes[int(kind)] for kind in boxes.cls.tolist()]
        return _tally(card, kinds, boxes.conf.tolist())


class Slicer:
    """SAHI's sliced prediction through its class for ultralytics.

    Args:
        model: a detector.
        scratch: folder for the settings of ultralytics.

    Raises:
        RuntimeMissingError: SAHI is not installed.
    """

    def __init__(self, model: Model, scratch: Path) -> None:
        quiet_ultralytics(scratch)
        try:
            from sahi import AutoDetectionModel
        except ImportError as error:
            raise RuntimeMissingError("SAHI is not installed: pip install 'smearcount[bench]'") from error
        self._card = model.detector_card
        lowest = min(self._card.min_score.values())
        self._model = AutoDetectionModel.from_pretrained(
            "ultralytics", model=_yolo(model, scratch), confidence_threshold=lowest, device="cpu"
        )

    def __call__(self, path: Path, threads: int) -> dict[str, int]:
        """Count the cells of a picture at the canonical scale with this many CPU threads."""
        import torch
        from sahi.predict import get_sliced_prediction

        torch.set_num_threads(threads)
        found = get_sliced_prediction(
            str(path),
            self._model,
            slice_height=SAHI_TILE_PX,
            slice_width=SAHI_TILE_PX,
            overlap_height_ratio=SAHI_OVERLAP,
            overlap_width_ratio=SAHI_OVERLAP,
            verbose=0,
        ).object_prediction_list
        return _tally(self._card, [each.category.name for each in found], [each.score.value for each in found])


def _tally(card: DetectorCard, kinds: list[str], scores: list[float]) -> dict[str, int]:
    """Cells of each kind at or above its own threshold: neither tool has more than one threshold for all kinds."""
    kept = [kind for kind, score in zip(kinds, scores, strict=True) if score >= card.min_score[kind]]
    return {kind: kept.count(kind) for kind in card.codes} | {"all": len(kept)}


def checkpoint(model: Model, scratch: Path) -> Path:
    """The network as a file for the command `yolo`, which takes nothing else; it lives as long as the benchmark."""
    import torch

    target = scratch / "network.pt"
    if not target.exists():
        from ultralytics.cfg import get_cfg

        net = network_of(model, fuse=False)
        net.args, net.task, net.names = vars(get_cfg()), "detect", dict(enumerate(model.card.codes))
        torch.save({"model": net, "train_args": {"task": "detect", "imgsz": 640}, "epoch": -1}, target)
    return target
