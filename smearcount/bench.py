"""`smearcount bench`: the pipeline against the bare network and against ultralytics' own predict, in one run.

Contenders alternate, so that a noisy machine is noisy to all; ratios of medians are what counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from smearcount.cards import find_model
from smearcount.config import Settings, shipped
from smearcount.detector import canonical_size, to_tensor
from smearcount.errors import ImageError
from smearcount.geometry import resize_rgb
from smearcount.images import open_image
from smearcount.offline import quiet_ultralytics
from smearcount.pipeline import Pipeline
from smearcount.runtimes import RuntimeChoice, make_runtime, network_of

__all__ = ["BenchJob", "run_bench"]

Contender = Callable[[], object]


@dataclass(frozen=True)
class BenchJob:
    """What is timed.

    Attributes:
        images: fields; the sample smears where there are none.
        um_per_px: their scale; estimated once for each, outside the timing, where it is None.
        threads: CPU threads of every contender.
        rounds: repetitions.
        processes: time whole processes from the shell too.
    """

    images: tuple[Path, ...]
    um_per_px: float | None
    threads: int
    rounds: int
    processes: bool = True


def run_bench(job: BenchJob) -> dict[str, Any]:
    """Times in milliseconds a field, and ratios, as medians over rounds and fields.

    Raises:
        ImageError: there is no picture to time.
    """
    images = job.images or tuple(sorted((shipped("configs").parent / "sample_smears").glob("*.jpg")))
    if not images:
        raise ImageError("no pictures to time; give some on the command line")
    scratch = Path(tempfile.mkdtemp(prefix="smearcount-bench-"))
    try:
        fields = _fields(job, images)
        figures: dict[str, Any] = {"fields": len(fields), "rounds": job.rounds, "threads": job.threads}
        figures |= _times(job, fields, scratch)
        return figures | (_start_up(fields[0], scratch) if job.processes else {})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fields(job: BenchJob, images: tuple[Path, ...]) -> list[tuple[Path, float]]:
    """Each picture with its scale."""
    if job.um_per_px:
        return [(path, job.um_per_px) for path in images]
    pipeline = Pipeline.load(Settings(threads=job.threads))
    return [(path, pipeline.analyze(path).result.scale.um_per_px) for path in images]


def _times(job: BenchJob, fields: list[tuple[Path, float]], scratch: Path) -> dict[str, Any]:
    """Median milliseconds of every contender and the ratios between them."""
    default_threads = _ultralytics_threads()
    model = find_model(Settings().detector)
    exact = Pipeline.load(Settings(threads=job.threads, precision="f32", runtime="openvino"))
    usual = Pipeline.load(Settings(threads=job.threads, runtime="openvino"))
    bare, _ = make_runtime(model, RuntimeChoice("openvino", "cpu", "f32", job.threads))
    bare_usual, _ = make_runtime(model, RuntimeChoice("openvino", "cpu", "auto", job.threads))
    yolo = _yolo(scratch)
    samples: dict[str, list[float]] = {}
    pixels_ratio = []
    for path, scale in fields:
        source = open_image(path)
        wh = canonical_size(source.size_wh, scale, exact.detector.card)
        tensor = to_tensor(resize_rgb(source.read(0, 0, *source.size_wh), *wh), exact.detector.card)
        pixels_ratio.append(tensor.shape[2] * tensor.shape[3] / (wh[0] * wh[1]))
        canonical_side = -(-max(wh) // 32) * 32
        contenders: dict[str, Contender] = {
            "field f32": partial(exact.analyze, path, um_per_px=scale),
            "network f32": partial(bare, tensor),
            "field default": partial(usual.analyze, path, um_per_px=scale),
            "network default": partial(bare_usual, tensor),
            "predict, same pixels": partial(yolo, path, canonical_side, job.threads),
            "predict, equal threads": partial(yolo, path, None, job.threads),
            "predict as it comes": partial(yolo, path, None, default_threads),
        }
        for name, values in _alternate(contenders, job.rounds).items():
            samples.setdefault(name, []).append(median(values))
    ms = {name: round(1000 * float(np.mean(values)), 2) for name, values in samples.items()}
    return {
        **{f"{name} (ms)": value for name, value in ms.items()},
        "network input over canonical field (pixels)": round(float(np.mean(pixels_ratio)), 3),
        "field over network, f32": round(ms["field f32"] / ms["network f32"], 3),
        "field over network, default precision": round(ms["field default"] / ms["network default"], 3),
        "predict over field, f32, equal threads": round(ms["predict, equal threads"] / ms["field f32"], 2),
        "predict over field, f32, equal threads and pixels": round(ms["predict, same pixels"] / ms["field f32"], 2),
        "predict as it comes over field default": round(ms["predict as it comes"] / ms["field default"], 2),
    }


def _alternate(contenders: dict[str, Contender], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, round by round in turn; each timed call follows one of the same that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            call()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _ultralytics_threads() -> int:
    """The number of threads that ultralytics gives itself on the CPU: one fewer than there are cores."""
    return max(1, (os.cpu_count() or 2) - 1)


def _yolo(scratch: Path) -> Callable[[Path, int | None, int], object]:
    """Ultralytics' own predict with the shipped weights: `(picture, image size or its default, threads)`."""
    quiet_ultralytics(scratch)
    import torch
    from ultralytics import YOLO

    checkpoint = _checkpoint(scratch)
    yolo = YOLO(str(checkpoint))
    settings: dict[str, Any] = {"verbose": False, "device": "cpu", "conf": 0.35, "iou": 0.6, "max_det": 3000}

    def predict(path: Path, side: int | None, threads: int) -> object:
        torch.set_num_threads(threads)
        size = {} if side is None else {"imgsz": side}
        return yolo.predict(str(path), **settings, **size)

    return predict


def _checkpoint(scratch: Path) -> Path:
    """The shipped network as an ultralytics checkpoint that lives as long as the benchmark."""
    import torch

    target = scratch / "network.pt"
    if not target.exists():
        from ultralytics.cfg import get_cfg

        net = network_of(find_model(Settings().detector), fuse=False)
        net.args, net.task = vars(get_cfg()), "detect"
        net.names = dict(enumerate(find_model(Settings().detector).card.codes))
        torch.save({"model": net, "train_args": {"task": "detect", "imgsz": 640}, "epoch": -1}, target)
    return target


def _start_up(field: tuple[Path, float], scratch: Path) -> dict[str, Any]:
    """Whole processes from the shell, `smearcount analyze` against `yolo predict`, three times each in turn."""
    path, scale = field
    bin_dir = Path(sys.executable).parent
    ours = [str(bin_dir / "smearcount"), "analyze", str(path), "--quiet", "--out", str(scratch / "out")]
    theirs = [str(bin_dir / "yolo"), "predict", f"model={_checkpoint(scratch)}", f"source={path}", "device=cpu"]
    theirs += [f"project={scratch}", "verbose=False"]
    if not all(Path(command[0]).is_file() for command in (ours, theirs)):
        return {}
    contenders: dict[str, Contender] = {
        "process smearcount analyze": lambda: subprocess.run(ours, check=True, capture_output=True),
        "process smearcount analyze, scale given": lambda: subprocess.run(
            [*ours, "--um-per-px", str(scale)], check=True, capture_output=True
        ),
        "process yolo predict": lambda: subprocess.run(theirs, check=True, capture_output=True, cwd=scratch),
    }
    seconds = {name: median(values) for name, values in _alternate(contenders, 3).items()}
    ratio = seconds["process smearcount analyze"] / seconds["process yolo predict"]
    return {
        **{f"{name} (s)": round(value, 3) for name, value in seconds.items()},
        "process smearcount over yolo": round(ratio, 3),
    }
