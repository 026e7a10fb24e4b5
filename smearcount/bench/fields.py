"""Fields of view: the pipeline against the bare network and against ultralytics' own predict."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from smearcount.bench.rivals import Predictor, checkpoint, usual_threads
from smearcount.bench.timing import Contender, Laps, alternate, check_counts, tally
from smearcount.cards import find_model
from smearcount.config import Settings, shipped
from smearcount.errors import ImageError, SmearcountError
from smearcount.geometry import resize_rgb
from smearcount.images import open_image
from smearcount.pipeline import Pipeline
from smearcount.runtimes import RuntimeChoice, make_runtime, model_for
from smearcount.windows import canonical_size, to_tensor

__all__ = ["FieldsJob", "bench_fields", "sample_fields"]

EQUAL_WITHIN = 0.05
"""Share by which the pooled counts of ultralytics may differ: it knows no suppression between kinds of cells."""

_FINDING: dict[str, Any] = {"classifiers": (), "experts": {}}


@dataclass(frozen=True)
class FieldsJob:
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


def sample_fields() -> tuple[Path, ...]:
    """The sample smears of a checkout.

    Raises:
        ImageError: there are none.
    """
    images = tuple(sorted((shipped("configs").parent / "sample_smears").glob("*.jpg")))
    if not images:
        raise ImageError("no pictures to time; give some on the command line")
    return images


def bench_fields(job: FieldsJob) -> dict[str, Any]:
    """Times in milliseconds a field, and ratios, as medians over rounds and means over fields.

    Raises:
        ImageError: there is no picture to time.
        SmearcountError: ultralytics finds another number of cells, or a process fails.
    """
    images = tuple(path.absolute() for path in job.images) or sample_fields()
    scratch = Path(tempfile.mkdtemp(prefix="smearcount-bench-"))
    try:
        fields = _fields(job, images)
        figures: dict[str, Any] = {"fields": len(fields), "rounds": job.rounds, "threads": job.threads}
        figures |= _Fields(job, scratch).times(fields)
        return figures | (_start_up(fields[0], scratch) if job.processes else {})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fields(job: FieldsJob, images: tuple[Path, ...]) -> list[tuple[Path, float]]:
    """Each picture with its scale."""
    if job.um_per_px is not None:
        return [(path, job.um_per_px) for path in images]
    pipeline = Pipeline.load(Settings(threads=job.threads, **_FINDING))
    return [(path, pipeline.analyze(path).result.scale.um_per_px) for path in images]


class _Fields:
    """All contenders, loaded once."""

    def __init__(self, job: FieldsJob, scratch: Path) -> None:
        model = find_model(Settings().detector)
        common: dict[str, Any] = {"threads": job.threads, "runtime": "openvino", **_FINDING}
        self.job = job
        self.default_threads = usual_threads()
        self.exact = Pipeline.load(Settings(precision="f32", **common))
        self.usual = Pipeline.load(Settings(**common))
        self.bare, _ = make_runtime(model, RuntimeChoice("openvino", "cpu", "f32", job.threads))
        usual = RuntimeChoice("openvino", "cpu", "auto", job.threads)
        self.bare_usual, _ = make_runtime(model_for(model.card.id, usual), usual)
        self.predict = Predictor(model, scratch)

    def times(self, fields: list[tuple[Path, float]]) -> dict[str, Any]:
        """Counts, milliseconds and ratios."""
        counts = {"predict over field, number of cells": self._same_counts(fields)}
        samples: dict[str, list[Laps]] = {}
        pixels_ratio = []
        for path, scale in fields:
            source = open_image(path)
            wh = canonical_size(source.size_wh, scale, self.exact.detector.card)
            pixels = resize_rgb(source.read(0, 0, *source.size_wh), *wh)
            tensor = to_tensor(pixels, self.exact.detector.card)
            pixels_ratio.append(tensor.shape[2] * tensor.shape[3] / (wh[0] * wh[1]))
            for name, laps in alternate(self._contenders(path, scale, tensor), self.job.rounds).items():
                samples.setdefault(name, []).append(laps)
        ms = {name: round(1000 * fmean(each.wall for each in laps), 2) for name, laps in samples.items()}
        fastest = {name: fmean(each.fastest for each in laps) for name, laps in samples.items()}
        grown = {"network input over canonical field (pixels)": round(float(np.mean(pixels_ratio)), 3)}
        return counts | {f"{name} (ms)": value for name, value in ms.items()} | grown | _ratios(ms, fastest)

    def _contenders(self, path: Path, scale: float, tensor: Any) -> dict[str, Contender]:
        threads = self.job.threads
        return {
            "field f32": partial(self.exact.analyze, path, um_per_px=scale),
            "network f32": partial(self.bare, tensor),
            "field default": partial(self.usual.analyze, path, um_per_px=scale),
            "network default": partial(self.bare_usual, tensor),
            "predict, same pixels": partial(self.predict, path, self._side(path, scale), threads),
            "predict, equal threads": partial(self.predict, path, None, threads),
            "predict as it comes": partial(self.predict, path, None, self.default_threads),
        }

    def _side(self, path: Path, scale: float) -> int:
        """Size of the network input of predict at which it sees the field at the canonical scale."""
        return -(-max(canonical_size(open_image(path).size_wh, scale, self.exact.detector.card)) // 32) * 32

    def _same_counts(self, fields: list[tuple[Path, float]]) -> float:
        """Cells that predict finds at the canonical scale over ours, all fields together."""
        ours: Counter[str] = Counter({"all": 0})
        theirs: Counter[str] = Counter({"all": 0})
        for path, scale in fields:
            ours.update(tally(self.exact.analyze(path, um_per_px=scale).result.detections))
            theirs.update(self.predict(path, self._side(path, scale), self.job.threads))
        return check_counts(ours, theirs, "ultralytics", EQUAL_WITHIN)


def _ratios(ms: dict[str, float], fastest: dict[str, float]) -> dict[str, float]:
    return {
        "field over network, f32": round(ms["field f32"] / ms["network f32"], 3),
        "field over network, f32, fastest laps": round(fastest["field f32"] / fastest["network f32"], 3),
        "field over network, default precision": round(ms["field default"] / ms["network default"], 3),
        "predict over field, f32, equal threads": round(ms["predict, equal threads"] / ms["field f32"], 2),
        "predict over field, f32, equal threads and pixels": round(ms["predict, same pixels"] / ms["field f32"], 2),
        "predict as it comes over field default": round(ms["predict as it comes"] / ms["field default"], 2),
    }


def _start_up(field: tuple[Path, float], scratch: Path) -> dict[str, Any]:
    """Whole processes from the shell, `smearcount analyze` against `yolo predict`, three times each in turn."""
    path, scale = field
    bin_dir = Path(sys.executable).parent
    network = checkpoint(find_model(Settings().detector), scratch)
    ours = [str(bin_dir / "smearcount"), "analyze", str(path), "--quiet", "--out", str(scratch / "out")]
    theirs = [str(bin_dir / "yolo"), "predict", f"model={network}", f"source={path}", "device=cpu"]
    theirs += [f"project={scratch}", "verbose=False"]
    if not all(Path(command[0]).is_file() for command in (ours, theirs)):
        return {}
    contenders: dict[str, Contender] = {
        "process smearcount analyze": partial(_run_process, ours, scratch),
        "process smearcount analyze, scale given": partial(_run_process, [*ours, "--um-per-px", str(scale)], scratch),
        "process yolo predict": partial(_run_process, theirs, scratch),
    }
    seconds = {name: laps.wall for name, laps in alternate(contenders, 3).items()}
    ratio = seconds["process smearcount analyze"] / seconds["process yolo predict"]
    return {
        **{f"{name} (s)": round(value, 3) for name, value in seconds.items()},
        "process smearcount over yolo": round(ratio, 3),
    }


def _run_process(command: list[str], folder: Path) -> None:
    """Run a command in a folder, in silence.

    Raises:
        SmearcountError: it fails.
    """
    done = subprocess.run(command, check=False, capture_output=True, cwd=folder)
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().rpartition("\n")[2] or "no message"
        raise SmearcountError(
            f"{shlex.join(command)}: ended with code {done.returncode} ({said}); "
            "leave whole processes out with --no-processes"
        )
