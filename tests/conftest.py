"""Shared truth for the tests: drawn smears whose discs are known, a network that finds them, results made by hand."""

from __future__ import annotations

import csv
import importlib.util
import json
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from smearcount import counting, detector
from smearcount.arrays import Bools, FloatArray, Pixels
from smearcount.cards import DetectorCard
from smearcount.detector import Detector
from smearcount.images import ImageSource
from smearcount.quality import overlapping_red
from smearcount.records import Detections, Labels, Provenance, Quality, Scale, SmearResult
from smearcount.runtimes import RuntimeChoice
from smearcount.taxonomy import Taxonomy, load_taxonomy

Draw = Callable[..., Any]
Cells = Callable[..., Detections]
"""The fixtures that draw a picture, and that make cells by hand."""

SAMPLES = Path(__file__).parents[1] / "sample_smears"
KINDS = ("rbc", "wbc", "platelet")
RED = ("normocyte", "spherocyte", "target_cell")
BACKGROUND = 214
# Green is the same for all kinds, so that one threshold finds them; red tells them apart.
COLOURS = {"rbc": (200, 100, 120), "wbc": (60, 100, 160), "platelet": (130, 100, 160)}
# What a classifier tells apart is the blue; for the disc network "spherocyte" is an "rbc", "erythroblast" a "wbc".
CODE_COLOURS = {
    **{"normocyte": (200, 100, 120), "spherocyte": (200, 100, 10), "target_cell": (200, 100, 230)},
    **{"neutrophil": (60, 100, 120), "erythroblast": (60, 100, 10), "white platelet": (60, 100, 230)},
}
UM_PER_PX = 0.16
RED_CELL_PX = 7.5 / UM_PER_PX


@pytest.fixture(autouse=True, scope="session")
def _one_core() -> Iterator[None]:
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    yield
    cv2.setNumThreads(before)


@dataclass(frozen=True)
class Drawing:
    """A drawn smear: `discs (N, 3)` are centre x, centre y, diameter in pixels; a picture to be read by regions."""

    pixels: Pixels
    discs: FloatArray
    kinds: tuple[str, ...]

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def boxes(self) -> FloatArray:
        """`(N, 4)` boxes of the discs."""
        centre, half = self.discs[:, :2], self.discs[:, 2:] / 2
        return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)

    def read(self, x: int, y: int, w: int, h: int) -> Pixels:
        """The rectangle, refused where it leaves the picture."""
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > self.size_wh[0] or y + h > self.size_wh[1]:
            raise ValueError(f"read beyond the picture: {(x, y, w, h)} of {self.size_wh}")
        return self.pixels[y : y + h, x : x + w].copy()


def draw(size_wh: tuple[int, int], discs: FloatArray, kinds: tuple[str, ...]) -> Drawing:
    """Discs on an empty background; a pixel at the rim has the colour that its distance from the rim says."""
    pixels = np.full((size_wh[1], size_wh[0], 3), BACKGROUND, np.uint8)
    for (x, y, diameter), kind in zip(discs.tolist(), kinds, strict=True):
        left, top = max(int(x - diameter / 2) - 2, 0), max(int(y - diameter / 2) - 2, 0)
        part = pixels[top : int(y + diameter / 2) + 3, left : int(x + diameter / 2) + 3]
        at_y, at_x = np.ogrid[: part.shape[0], : part.shape[1]]
        inside = diameter / 2 - np.hypot(at_x + left + 0.5 - x, at_y + top + 0.5 - y)
        share = np.clip(inside + 0.5, 0, 1)[..., None]
        part[:] = np.rint(part * (1 - share) + np.array((COLOURS | CODE_COLOURS)[kind]) * share)
    return Drawing(pixels, discs.astype(np.float32), kinds)


def scatter(size_wh: tuple[int, int], diameter: float, seed: int = 0, *, mixed: bool = False) -> Drawing:
    """Discs on a shaken grid: none touches another or the border, so that their number is certain."""
    rng = np.random.default_rng(seed)
    # A third of the diameter lies between two discs, but never less than four pixels and their shake.
    gap = max(diameter / 3, 8.0)
    pitch = diameter + gap
    columns, rows = int((size_wh[0] - gap) // pitch), int((size_wh[1] - gap) // pitch)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    centre = (grid + 0.5) * pitch + gap / 2 + rng.uniform(-gap / 4, gap / 4, grid.shape)
    kinds = tuple(rng.choice(KINDS, len(grid), p=(0.7, 0.2, 0.1)).tolist()) if mixed else ("rbc",) * len(grid)
    sizes = np.where(np.array(kinds) == "platelet", diameter / 2, diameter) if mixed else np.full(len(grid), diameter)
    return draw(size_wh, np.column_stack([centre, sizes]), kinds)


class DiscNetwork:
    """A network that finds discs by a threshold, and is less sure the further they are from its scale.

    Input `(1, 3, H, W)` RGB in [0, 1]; output `(1, 4 + 3, N)`, centre-size boxes and a score for each kind.
    """

    input_dtype, at_once = np.dtype(np.float32), 1

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.streams = self, 1

    def __call__(self, batch: FloatArray) -> tuple[FloatArray, ...]:
        """Find the discs."""
        self.shapes.append(batch.shape)
        red, green = batch[0, 0] * 255, batch[0, 1] * 255
        mask = (green < (BACKGROUND + 100) / 2).astype(np.uint8)
        n, marks, stats, middles = cv2.connectedComponentsWithStats(mask, connectivity=8)
        out = np.zeros((1, 7, n - 1), np.float32)
        for row in range(1, n):
            x, y, w, h, _ = stats[row]
            shade = np.median(red[y : y + h, x : x + w][marks[y : y + h, x : x + w] == row])
            kind = int(np.argmin([abs(float(shade) - COLOURS[name][0]) for name in KINDS]))
            octaves = np.log2((w + h) / 2 / RED_CELL_PX)
            out[0, :4, row - 1] = x + w / 2, y + h / 2, w, h
            out[0, 4 + kind, row - 1] = 0.9 * np.exp(-((octaves / 2) ** 2))
        return (out,)


def card(**changes: Any) -> DetectorCard:
    """The card of the disc network; 0.16 um a pixel, margin 63 px, windows of 256 px, cores of 130 px."""
    values: dict[str, Any] = {
        **{"id": "discs", "task": "detector", "description": "d", "codes": KINDS, "um_per_px": UM_PER_PX},
        **{"window_px": 256, "stride_px": 16, "largest_cell_um": 12.0, "mean": (0, 0, 0), "std": (1, 1, 1)},
        **{"min_score": dict.fromkeys(KINDS, 0.3), "nms_iou": 0.6, "cross_kind_iou": 0.8, "probe_tolerance": 0.1},
        **{"licence": "MIT", "intended_use": "tests", "limits": (), "training_data": (), "metrics": ()},
        **{"git_commit": "0", "files": {}},
    }
    return DetectorCard(**{**values, **changes})


@pytest.fixture
def scatter_discs() -> Callable[..., Drawing]:
    """Draw a smear of discs that do not touch."""
    return scatter


@pytest.fixture
def draw_discs() -> Callable[..., Drawing]:
    """Draw the discs given."""
    return draw


@pytest.fixture
def make_card() -> Callable[..., DetectorCard]:
    """A card of the disc network with some values changed."""
    return card


@pytest.fixture
def disc_detector(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Detector]:
    """A detector whose network finds drawn discs; keywords change its card. `detector._run` is the network."""

    def make(threshold: float | None = None, **changes: Any) -> Detector:
        monkeypatch.setattr(detector, "make_runtime", lambda model, choice: (DiscNetwork(), "discs"))
        model: Any = SimpleNamespace(card=card(**changes), detector_card=card(**changes))
        return Detector(model, RuntimeChoice(), threshold)

    return make


@pytest.fixture
def taxonomy() -> Taxonomy:
    """The shipped taxonomy."""
    return load_taxonomy()


def make_cells(boxes: npt.ArrayLike, kinds: list[str] | str = "rbc", scores: npt.ArrayLike = 0.9) -> Detections:
    """Detections from plain lists; one kind or score stands for all."""
    xyxy = np.asarray(boxes, np.float32).reshape(-1, 4)
    n = len(xyxy)
    words = np.array([kinds] * n if isinstance(kinds, str) else kinds, dtype="<U8")
    return Detections(xyxy, np.broadcast_to(np.asarray(scores, np.float32), (n,)).copy(), words, np.zeros(n, bool))


@pytest.fixture
def cells() -> Callable[..., Detections]:
    """Detections from plain lists."""
    return make_cells


def unasked(n: int) -> Labels:
    """Of cells that no classifier was asked about."""
    return Labels(np.zeros((n, 0), np.float32), ())


@pytest.fixture
def make_result(taxonomy: Taxonomy) -> Callable[..., SmearResult]:
    """A result as the pipeline makes it, from cells and labels; every cell counts unless told."""

    def make(found: Detections, labels: Labels | None = None, **changes: Any) -> SmearResult:
        labels = labels or unasked(len(found))
        names = counting.name_cells(found.kinds, labels, 0.5)
        kinds = counting.final_kinds(found.kinds, names, taxonomy)
        found = Detections(found.boxes, found.scores, kinds, found.at_edge)
        counted = changes.pop("counted", np.ones(len(found), np.bool_))
        values: dict[str, Any] = {
            **{"image_id": "a/b.jpg", "slide_id": "a", "size_wh": (640, 480), "image_sha256": "f" * 64},
            **{"scale": Scale(0.16, "estimated", 46.9), "detections": found, "labels": labels, "names": names},
            **{
                "counted": counted,
                "counts": counting.count_cells(found, names, counted, {"edge": int((~counted).sum())}, taxonomy),
            },
            **{"counted_area_um2": 1e4, "quality": Quality(0.9, 0.3, 0.1, ("too sparse",))},
            "provenance": Provenance(
                "1.2.3", ("discs",), {"discs/m": "0" * 64}, "discs cpu f32", {"edge_rule": "corner"}
            ),
        }
        return SmearResult(**{**values, **changes})

    return make


@pytest.fixture(autouse=True)
def _no_internet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test that made it."""
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a connection to {address} was tried")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


RED_CODES = ("normocyte", "spherocyte", "target_cell")
WHITE_CODES = ("neutrophil", "erythroblast", "platelet")
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.3, 0.35)


@pytest.fixture(scope="session")
def naming_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classifiers that name drawn discs by their blue, in windows of 12 um at 32 px.

    `red-discs` is asked about red cells, `white-discs` about white ones, of which it calls some a platelet.
    """
    from smearcount.training.packaging import package_classifier

    weights = tmp_path_factory.mktemp("naming")
    about = {
        **{"description": "d", "licence": "MIT", "intended_use": "tests", "limits": ["discs only"]},
        **{"training_data": (), "min_label_score": 0.5, "probe_tolerance": 0.05},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own future
        for name, kind, codes in (("red-discs", "rbc", RED_CODES), ("white-discs", "wbc", WHITE_CODES)):
            run = _trained_run(tmp_path_factory.mktemp("run"), codes, 0 if kind == "rbc" else 3)
            package_classifier(run, {**about, "id": name, "kinds": (kind,)}, weights / name)
    return weights


@pytest.fixture
def naming_pipeline(
    naming_models: Path, disc_detector: Callable[..., Detector], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Make a pipeline whose detector finds drawn discs, and which names them; keywords are its settings."""
    from smearcount.config import Settings, shipped
    from smearcount.pipeline import Pipeline

    found = disc_detector()
    monkeypatch.setattr("smearcount.pipeline.Detector", lambda *_: found)
    some = str(shipped("weights") / Settings().detector)

    def make(**changes: Any) -> Pipeline:
        values = {"detector": some, "classifiers": ("red-discs", "white-discs"), **changes}
        return Pipeline(Settings.model_validate(values), naming_models)

    return make


def _trained_run(run: Path, codes: tuple[str, ...], first: int) -> Path:
    """What a training of LeNet-5 leaves, after sixty steps on drawn discs of three colours of `CODE_COLOURS`."""
    import torch
    import yaml
    from safetensors.torch import save_file

    from smearcount.naming_heads import NetSpec
    from smearcount.naming_nets import build_net
    from smearcount.patches import sample_window, to_batch

    rng, names = np.random.default_rng(0), list(CODE_COLOURS)[first : first + 3]
    views = []
    for row in range(60):
        x, y, diameter = *rng.uniform(58, 62, 2), rng.uniform(36, 60)
        drawn = draw((120, 120), np.array([[x, y, diameter]]), (names[row % 3],))
        views.append(sample_window(drawn, (x, y), 12 / UM_PER_PX, 32)[0])
    batch, labels = torch.from_numpy(to_batch(views, MEAN, STD)), torch.arange(60) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_net(NetSpec(backbone="lenet5", codes=3, input_px=32))
        optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in range(60):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(batch)[0], labels).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    net.eval()
    save_file(net.state_dict(), str(run / "model.safetensors"))
    (run / "architecture.yaml").write_text(yaml.safe_dump(net.spec.model_dump()))
    values = {"codes": codes, "mean": MEAN, "std": STD, "input_px": 32, "temperature": 1.5, "embedding": net.embedding}
    (run / "summary.json").write_text(json.dumps({**values, "recipe": {"patch_um": 12.0}}))
    return run


@pytest.fixture(params=["shipped font", "built-in font"])
def font_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A font of panels, and that which is there without matplotlib."""
    from smearcount import panel

    if request.param == "built-in font":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    panel.face_for.cache_clear()
    yield request.param
    panel.face_for.cache_clear()


def lying_on(boxes: FloatArray) -> Bools:
    """Which of the red cells in some boxes lie on another one."""
    return overlapping_red(make_cells(boxes))


def slow_iou(a: FloatArray, b: FloatArray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


def tied_boxes(seed: int, n: int = 90) -> tuple[FloatArray, FloatArray, np.ndarray]:
    """Small integers, three scores, three kinds: ties, copies and empty boxes by the dozen."""
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, 6, (n, 2))
    boxes = np.concatenate([corner, corner + rng.integers(0, 7, (n, 2))], axis=1).astype(np.float32)
    return boxes, rng.choice([0.25, 0.5, 0.75], n).astype(np.float32), rng.integers(0, 3, n)


def rows_of(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    return list(csv.DictReader(path.read_text().splitlines()))


def whole(source: ImageSource) -> Pixels:
    """All pixels of a picture."""
    return source.read(0, 0, *source.size_wh)
