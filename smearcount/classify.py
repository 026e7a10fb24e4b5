"""`smearcount classify`: names ready-made pictures of single cells, one row each; failures are rows too."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from smearcount.cards import find_model
from smearcount.classifier import Classifier, Named, fitted, without_giants
from smearcount.config import Settings
from smearcount.detector import Detector
from smearcount.errors import SmearcountError, UsageError
from smearcount.geometry import FloatArray, centres, diameters
from smearcount.images import ImageSource, check_target, find_images, grow_text, open_image
from smearcount.mending.examples import Extension, Prototypes, extend, read_examples
from smearcount.patches import PatchSizes, Pixels, sample_window, view_of_patch
from smearcount.records import UNCLASSIFIED, Labels
from smearcount.report import Row, to_csv
from smearcount.runtimes import RuntimeChoice, model_for
from smearcount.scale import find_at_scale
from smearcount.taxonomy import load_taxonomy

__all__ = [
    "ClassifyJob",
    "ClassifyOutcome",
    "ClassifyRun",
    "label_columns",
    "listed_patches",
    "listed_pictures",
    "name_files",
    "run_classify",
]

Progress = Callable[[Iterable[Path]], Iterable[Path]]

Probabilities = Callable[[Named], FloatArray]


@dataclass(frozen=True)
class ClassifyJob:
    """What is asked of single-cell pictures.

    Attributes:
        um_per_px: their scale; without it a picture is the window of the classifier, unless it is one of `patches`.
        find: a detector that finds the cell nearest to the middle first; without one the middle is the cell.
        patches: those pictures that are patches of `smearcount crop`.
        min_label_score: below it a cell is `unclassified`.
        codes: of the columns of probabilities.
        probabilities: of these codes, from what the network says; its own by default.
    """

    min_label_score: float
    codes: tuple[str, ...]
    um_per_px: float | None = None
    find: Detector | None = None
    patches: Mapping[Path, PatchSizes] = field(default_factory=dict)
    probabilities: Probabilities = lambda named: named.probs


def label_columns(codes: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of `labels.csv`."""
    head = ("image", "status", "error", "label", "score", "runner_up", "runner_up_score")
    return (*head, *(f"p_{code}" for code in codes))


def listed_pictures(paths: Iterable[Path]) -> list[Path]:
    """Pictures given one by one, in folders with their sub-folders, or as lines of a `.txt` file.

    Raises:
        UsageError: there is no picture, or a list can't be read.
        ImageError: a folder can't be listed.
    """
    listed: list[Path] = []
    for path in paths:
        if path.is_dir():
            listed += find_images(path, recursive=True)
        elif path.suffix.lower() == ".txt":
            listed += _listed_in(path)
        else:
            listed.append(path)
    if not listed:
        raise UsageError("no pictures found in what was given")
    return list(dict.fromkeys(listed))


def _listed_in(path: Path) -> list[Path]:
    """The pictures on the lines of a file, relative to its folder."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no list of pictures, one a line ({error})") from error
    return [path.parent / line.strip() for line in lines if line.strip()]


def listed_patches(paths: Iterable[Path]) -> dict[Path, PatchSizes]:
    """Those pictures that the manifest in their folder lists as patches of `smearcount crop`.

    Raises:
        UsageError: a manifest can't be read.
    """
    listed: dict[Path, PatchSizes] = {}
    for manifest in dict.fromkeys(path.parent / "manifest.csv" for path in paths):
        if manifest.is_file():
            listed |= _patches_in(manifest)
    return listed


def _patches_in(manifest: Path) -> dict[Path, PatchSizes]:
    columns = ("file", "side_um", "um_per_px")
    try:
        with manifest.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if all(row.get(column) for column in columns)]
        sizes = {
            manifest.parent / row["file"]: PatchSizes(float(row["side_um"]), float(row["um_per_px"])) for row in rows
        }
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(f"{manifest}: no manifest of `smearcount crop` ({error}); move it elsewhere") from error
    for path, size in sizes.items():
        if not (0 < size.side_um < 1000 and 0 < size.um_per_px < 1000):
            raise UsageError(
                f"{manifest}: the sizes of {path.name} are none in micrometres; move the manifest elsewhere"
            )
    return sizes


def name_files(classifier: Classifier, paths: Iterable[Path], job: ClassifyJob) -> Iterator[Row]:
    """The row of each picture of one cell, in the order given."""
    for path in paths:
        try:
            view, size_um = _view(open_image(path), classifier, job)
        except (SmearcountError, OSError) as error:
            yield {"image": str(path), "status": "failed", "error": str(error)}
            continue
        named = classifier.name_views([view])
        if size_um is not None:
            named = without_giants(named, np.array([size_um], np.float32), classifier.card)
        yield _row(path, job.probabilities(named)[0], job)


def _view(picture: ImageSource, classifier: Classifier, job: ClassifyJob) -> tuple[Pixels, float | None]:
    """What the network is shown of a picture, and the diameter of the cell in micrometres where it was found."""
    width, height = picture.size_wh
    card = classifier.card
    um_per_px, middle, size_um = job.um_per_px, (width / 2, height / 2), None
    if um_per_px is None and (sizes := job.patches.get(picture.path)):
        if not job.find:
            return view_of_patch(picture, sizes, card.patch_um, card.input_px), None
        um_per_px = sizes.side_um / width
    if job.find:
        scale, cells = find_at_scale(picture, job.find, um_per_px, picture.um_per_px)
        um_per_px = scale.um_per_px
        boxes = cells.boxes[np.isin(cells.kinds, card.kinds)]
        if len(boxes):
            points = centres(boxes)
            nearest = int(np.hypot(points[:, 0] - middle[0], points[:, 1] - middle[1]).argmin())
            middle = (float(points[nearest, 0]), float(points[nearest, 1]))
            size_um = float(diameters(boxes)[nearest]) * um_per_px
    if um_per_px is None:
        return fitted(picture.read(0, 0, width, height), card.input_px), None
    return sample_window(picture, middle, card.patch_um / um_per_px, card.input_px)[0], size_um


def _row(path: Path, probs: FloatArray, job: ClassifyJob) -> Row:
    first, second = np.argsort(-probs, kind="stable")[:2].tolist()
    sure = probs[first] >= job.min_label_score
    row: Row = {
        **{"image": str(path), "status": "ok", "error": "", "label": job.codes[first] if sure else UNCLASSIFIED},
        **{"score": f"{probs[first]:.4f}", "runner_up": job.codes[second], "runner_up_score": f"{probs[second]:.4f}"},
    }
    return row | {f"p_{code}": f"{p:.4f}" for code, p in zip(job.codes, probs.tolist(), strict=True)}


@dataclass(frozen=True)
class ClassifyRun:
    """What `smearcount classify` was asked for; the fields are its flags."""

    model: str
    um_per_px: float | None = None
    find: bool = False
    min_score: float | None = None
    examples: Path | None = None


@dataclass(frozen=True)
class ClassifyOutcome:
    """How it went: pictures named, the reasons of the others, and what the user should know."""

    named: int
    failed: tuple[str, ...]
    remarks: tuple[str, ...]


def run_classify(run: ClassifyRun, paths: Iterable[Path], out: Path, progress: Progress = iter) -> ClassifyOutcome:
    """Name pictures of single cells, and write a row for each.

    Raises:
        UsageError: there is no picture, or there are too few examples.
        ModelError: the model is no classifier.
        ImageError: the output can't be written, or an example can't be read.
    """
    classifier = Classifier(find_model(run.model), RuntimeChoice(), run.min_score)
    detector = Detector(model_for(Settings().detector, RuntimeChoice()), RuntimeChoice()) if run.find else None
    job = ClassifyJob(classifier.min_label_score, classifier.card.codes, run.um_per_px, detector)
    pictures, remarks = listed_pictures(paths), tuple[str, ...]()
    examples = read_examples(run.examples, load_taxonomy()) if run.examples else []
    if run.um_per_px is None:
        job = replace(job, patches=listed_patches([*pictures, *(path for path, _ in examples)]))
    if run.examples:
        job, remarks = _with_examples(classifier, job, run.examples, examples)
    failed, named = list[str](), 0
    columns = label_columns(job.codes)
    with grow_text(check_target(out)) as add:
        add(to_csv(columns, []))
        for row in name_files(classifier, progress(pictures), job):
            add(to_csv(columns, [row], header=False))
            if row["status"] == "ok":
                named += 1
            else:
                failed.append(str(row["error"]))
    return ClassifyOutcome(named, tuple(failed), remarks)


def _with_examples(
    classifier: Classifier, job: ClassifyJob, folder: Path, listed: Sequence[tuple[Path, str]]
) -> tuple[ClassifyJob, tuple[str, ...]]:
    """The job with the classes of some examples: added to the classifier's, or alone where none of them is its own."""
    codes = tuple(dict.fromkeys(code for _, code in listed))
    if len(codes) < 2:
        raise UsageError(f"{folder}: expected examples of two classes or more, got {', '.join(codes)} only")
    named = classifier.name_views(_view(open_image(path), classifier, job)[0] for path, _ in listed)
    labels = np.array([codes.index(code) for _, code in listed], np.intp)
    prototypes = Prototypes.from_examples(named.features, labels, codes)
    low, high = prototypes.check.limits
    told = f"the examples name one another right in {prototypes.check.accuracy:.0%} ({low:.0%} to {high:.0%})"
    own = [code for code in codes if code in job.codes]
    if not own or len(own) == len(codes):
        probabilities: Probabilities = lambda named: prototypes.probs(named.features)  # noqa: E731
        return replace(job, codes=codes, probabilities=probabilities), (*prototypes.warnings, told)

    def extended(named: Named) -> Extension:
        return extend(Labels(named.probs, classifier.card.codes), named.features, prototypes)

    with_new = extended(named)
    more = replace(job, codes=with_new.labels.codes, probabilities=lambda named: extended(named).labels.probs)
    return more, (*with_new.warnings, told)
