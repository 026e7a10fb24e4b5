"""`smearcount classify`: names ready-made pictures of single cells, one row each; failures are rows too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from smearcount.arrays import FloatArray, Indices, Pixels
from smearcount.cards import ClassifierCard, find_model
from smearcount.classifier import Classifier, Named, fitted, name_thresholds, without_giants
from smearcount.config import Settings
from smearcount.detector import Detector
from smearcount.errors import SmearcountError, UsageError
from smearcount.geometry import centres, diameters
from smearcount.images import ImageSource, ReadLimits, check_target, grow_text, list_folder, open_image
from smearcount.lists import read_lines
from smearcount.manifests import ListedPatch, listed_patches, manifests_beside
from smearcount.mending.examples import Extension, Prototypes, extend, read_examples
from smearcount.naming import hear_experts, load_experts
from smearcount.patches import SMALLEST_CELL_PX, sample_window, view_of_patch
from smearcount.progress import Progress
from smearcount.records import UNCLASSIFIED, Labels
from smearcount.report import Row, to_csv
from smearcount.runtimes import RuntimeChoice, model_for
from smearcount.scale import find_at_scale
from smearcount.taxonomy import Taxonomy, load_taxonomy

__all__ = [
    "ClassifyJob",
    "ClassifyOutcome",
    "ClassifyRun",
    "label_columns",
    "listed_pictures",
    "name_files",
    "run_classify",
]

PICTURES_AT_ONCE = 64

Probabilities = Callable[[Named], FloatArray]


@dataclass(frozen=True)
class ClassifyJob:
    """What is asked of single-cell pictures.

    Attributes:
        um_per_px: their scale; without it a picture is the window of the classifier, unless it is one of `patches`.
        find: a detector that finds the cell nearest to the middle first; without one the middle is the cell.
        patches: those pictures that are patches of `smearcount crop`: of another kind they are left out.
        min_label_score: below it a cell is `unclassified`.
        min_move_score: the same for a name of another kind than that as which the manifest says the cell was found.
        kind_of: kind of each code.
        codes: of the columns of probabilities.
        probabilities: of these codes, from what the network says; its own by default.
        experts: asked where the two best codes of the network are close, and the gap below which they are.
    """

    min_label_score: float
    codes: tuple[str, ...]
    um_per_px: float | None = None
    min_move_score: float = 0.0
    kind_of: Mapping[str, str] = field(default_factory=dict)
    find: Detector | None = None
    patches: Mapping[Path, ListedPatch] = field(default_factory=dict)
    probabilities: Probabilities = lambda named: named.probs
    experts: tuple[tuple[Classifier, float], ...] = ()


_HEAD = (
    *("image", "status", "error", "label", "score", "runner_up", "runner_up_score", "um_per_px", "um_per_px_source"),
    "reading",
)


def label_columns(codes: tuple[str, ...]) -> tuple[str, ...]:
    """Columns of `labels.csv`."""
    return (*_HEAD, *(f"p_{code}" for code in codes))


def listed_pictures(paths: Iterable[Path]) -> list[Path]:
    """Pictures given one by one, in folders with their sub-folders, or as lines of a `.txt` file.

    Files of a type that is not read are among them: opening them says so.

    Raises:
        UsageError: there is no picture, or a list can't be read.
        ImageError: a folder can't be listed.
    """
    listed: list[Path] = []
    for path in paths:
        if path.is_dir():
            listed += list_folder(path, recursive=True).pictures
        elif path.suffix.lower() == ".txt":
            listed += _listed_in(path)
        else:
            listed.append(path)
    if not listed:
        raise UsageError("no pictures found in what was given")
    return list(dict.fromkeys(listed))


def _listed_in(path: Path) -> list[Path]:
    """The pictures on the lines of a file, relative to its folder; a line may be a folder, too."""
    listed: list[Path] = []
    for line in read_lines(path, path.parent):
        entry = path.parent / line
        listed += list_folder(entry, recursive=True).pictures if entry.is_dir() else [entry]
    return listed


@dataclass(frozen=True, eq=False)
class _Shown:
    """What the network is shown of a picture.

    Attributes:
        view: `(S, S, 3) uint8 RGB` of its input size.
        um_per_px: scale of the picture; None where the picture is taken as the window.
        origin: of the scale: `flag`, `manifest`, `window`, or what the pipeline says of one that it settles.
        size_um: diameter of the cell where it is known.
        found_as: kind of the cell where the manifest says it.
        lost: no cell was found where one was looked for.
        expert_views: of the same window, what each expert is shown.
        reading: what was done to the stored pixels.
    """

    view: Pixels
    um_per_px: float | None
    origin: str
    size_um: float | None = None
    found_as: str | None = None
    lost: bool = False
    expert_views: tuple[Pixels, ...] = ()
    reading: tuple[str, ...] = ()


def name_files(classifier: Classifier, paths: Iterable[Path], job: ClassifyJob) -> Iterator[Row]:
    """The row of each picture of one cell, in the order given."""
    left = iter(paths)
    for some in iter(lambda: list(islice(left, PICTURES_AT_ONCE)), []):
        shown = [_tried(path, classifier, job) for path in some]
        views = [each for each in shown if isinstance(each, _Shown)]
        probs = iter(job.probabilities(_heard(classifier, views, job)))
        for path, each in zip(some, shown, strict=True):
            yield _row(path, each, next(probs), job) if isinstance(each, _Shown) else each


def _heard(classifier: Classifier, shown: Sequence[_Shown], job: ClassifyJob) -> Named:
    """What the network says of some cells, after the experts were heard."""
    sizes = np.array([each.size_um or 0.0 for each in shown], np.float32)
    named = without_giants(classifier.name_views(each.view for each in shown), sizes, classifier.card)

    def ask(expert: Classifier, rows: Indices) -> FloatArray:
        at = [each for each, _ in job.experts].index(expert)
        answers = expert.name_views(shown[row].expert_views[at] for row in rows.tolist())
        return without_giants(answers, sizes[rows], expert.card).probs

    return replace(named, probs=hear_experts(named.probs, classifier.card.codes, job.experts, ask))


def _tried(path: Path, classifier: Classifier, job: ClassifyJob) -> _Shown | Row:
    """What is shown of a picture, or its row where nothing is."""
    listed = job.patches.get(path)
    if listed and listed.found_as not in classifier.card.kinds:
        why = f"the manifest says {listed.found_as}, {classifier.card.id} names {', '.join(classifier.card.kinds)}"
        return {"image": str(path), "status": "skipped", "error": why}
    try:
        return _show(_opened(path), classifier, job)
    except (SmearcountError, OSError) as error:
        return {"image": str(path), "status": "failed", "error": str(error)}


def _opened(path: Path) -> ImageSource:
    return open_image(path, ReadLimits(min_side_px=SMALLEST_CELL_PX))


@dataclass(frozen=True)
class _Place:
    """Where the cell of a picture is: `middle_xy` in pixels; the rest as in `_Shown`."""

    um_per_px: float | None
    origin: str
    middle_xy: tuple[float, float]
    size_um: float | None = None
    lost: bool = False


def _show(picture: ImageSource, classifier: Classifier, job: ClassifyJob) -> _Shown:
    place, listed = _told(picture, job), job.patches.get(picture.path)
    if job.find:
        place = _found(picture, place, job.find, classifier.card.kinds)
    view, *others = _views(picture, place, job, [classifier.card, *(expert.card for expert, _ in job.experts)])
    found_as = listed.found_as if listed else None
    return _Shown(
        view, place.um_per_px, place.origin, place.size_um, found_as, place.lost, tuple(others), picture.notes
    )


def _told(picture: ImageSource, job: ClassifyJob) -> _Place:
    """The middle, at the scale of the flag, else of the manifest; without both the picture is the window."""
    width, height = picture.size_wh
    middle, listed = (width / 2, height / 2), job.patches.get(picture.path)
    if listed is None:
        return _Place(job.um_per_px, "flag" if job.um_per_px else "window", middle)
    own_um_per_px = listed.sizes.side_um / width
    um_per_px = job.um_per_px or own_um_per_px
    origin = "flag" if job.um_per_px else "manifest"
    return _Place(um_per_px, origin, middle, listed.diameter_um * um_per_px / own_um_per_px)


def _found(picture: ImageSource, told: _Place, detector: Detector, kinds: Sequence[str]) -> _Place:
    """The found cell of some kinds that is nearest to the middle; without one the middle."""
    scale, cells = find_at_scale(picture, detector, told.um_per_px, picture.um_per_px)
    place = replace(told, um_per_px=scale.um_per_px, origin=told.origin if told.um_per_px else scale.source)
    boxes = cells.boxes[np.isin(cells.kinds, kinds)]
    if not len(boxes):
        return replace(place, lost=True)
    points = centres(boxes)
    nearest = int(np.hypot(*(points - place.middle_xy).T).argmin())
    middle = (float(points[nearest, 0]), float(points[nearest, 1]))
    return replace(place, middle_xy=middle, size_um=float(diameters(boxes)[nearest]) * scale.um_per_px)


def _views(picture: ImageSource, place: _Place, job: ClassifyJob, cards: Sequence[ClassifierCard]) -> list[Pixels]:
    """What each classifier is shown of a picture, `(S, S, 3) uint8 RGB` of its input size."""
    if place.origin == "manifest" and not job.find:
        sizes = job.patches[picture.path].sizes
        return [view_of_patch(picture, sizes, each.patch_um, each.input_px) for each in cards]
    if place.um_per_px is None:
        pixels = picture.read(0, 0, *picture.size_wh)
        return [fitted(pixels, each) for each in cards]
    um_per_px, middle = place.um_per_px, place.middle_xy
    return [sample_window(picture, middle, each.patch_um / um_per_px, each.input_px)[0] for each in cards]


def _row(path: Path, shown: _Shown, probs: FloatArray, job: ClassifyJob) -> Row:
    first, second = np.argsort(-probs, kind="stable")[:2].tolist()
    moved = shown.found_as is not None and job.kind_of.get(job.codes[first]) not in (None, shown.found_as)
    sure = probs[first] >= name_thresholds(job.min_label_score, job.min_move_score, np.array(moved))
    row: Row = {
        **{"image": str(path), "status": "ok", "error": "no cell found; the middle was taken" if shown.lost else ""},
        **{"label": job.codes[first] if sure else UNCLASSIFIED, "score": f"{probs[first]:.4f}"},
        **{"runner_up": job.codes[second], "runner_up_score": f"{probs[second]:.4f}"},
        **{"um_per_px": f"{shown.um_per_px:.6g}" if shown.um_per_px else "", "um_per_px_source": shown.origin},
        "reading": "; ".join(shown.reading),
    }
    return row | {f"p_{code}": f"{p:.4f}" for code, p in zip(job.codes, probs.tolist(), strict=True)}


@dataclass(frozen=True)
class ClassifyRun:
    """What `smearcount classify` was asked for.

    Attributes:
        model: id or folder of the classifier.
        settings: runtime and thresholds, the detector for `find`, the taxonomy of the examples.
        find: look for the cell instead of taking the middle.
        examples: folder of examples, a folder a class.
        inputs: the settings file and those that the settings name, which the output may not replace.
    """

    model: str
    settings: Settings = Settings()
    find: bool = False
    examples: Path | None = None
    inputs: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ClassifyOutcome:
    """How it went: pictures named, left out, those that failed and why, and what the user should know."""

    named: int
    skipped: int
    failed: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]


def run_classify(run: ClassifyRun, paths: Iterable[Path], out: Path, progress: Progress = iter) -> ClassifyOutcome:
    """Name pictures of single cells, and write a row for each.

    Raises:
        UsageError: there is no picture, there are too few examples, or the output is no CSV file or one that is read.
        ModelError: the model, or an expert, is no classifier.
        ConfigError: two experts know the same two codes.
        ImageError: the output can't be written, or an example can't be read.
    """
    if out.suffix.lower() != ".csv":
        raise UsageError(f"{out}: the labels are a CSV file; give --out a name that ends in .csv")
    taxonomy = load_taxonomy(run.settings.taxonomy)
    classifier, job, unasked = _prepared(run, taxonomy)
    given = list(paths)
    pictures, remarks = listed_pictures(given), tuple[str, ...]()
    check_target(out, [*run.inputs, *given, *pictures, *manifests_beside(pictures)])
    examples = read_examples(run.examples, taxonomy, classifier.card.codes) if run.examples else []
    job = replace(job, patches=listed_patches([*pictures, *(path for path, _ in examples)]))
    if run.examples:
        job, remarks = _with_examples(classifier, job, run.examples, examples)
    seen, failed, shown = Counter[str](), list[tuple[str, str]](), list[Path]()
    columns = label_columns(job.codes)
    with grow_text(out) as add:
        add(to_csv(columns, []))
        for path, row in zip(pictures, name_files(classifier, progress(pictures), job), strict=True):
            add(to_csv(columns, [row], header=False))
            seen.update((str(row["status"]), str(row.get("um_per_px_source", ""))))
            seen["not found"] += row["status"] == "ok" and row["error"] != ""
            if row["status"] == "failed":
                failed.append((str(path), str(row["error"])))
            else:
                shown.append(path)
    missing = sum(not path.is_file() for path in job.patches)
    remarks = (*unasked, *remarks, *_remarks(seen, _unlisted(shown, job), missing))
    return ClassifyOutcome(seen["ok"], seen["skipped"], tuple(failed), remarks)


def _prepared(run: ClassifyRun, taxonomy: Taxonomy) -> tuple[Classifier, ClassifyJob, tuple[str, ...]]:
    """The classifier, what it is asked, and which experts of the settings are of no use to it."""
    settings = run.settings
    choice = RuntimeChoice(settings.runtime, settings.device, settings.precision, settings.threads)
    classifier = Classifier(find_model(run.model), choice, settings.min_label_score)
    detector = Detector(model_for(settings.detector, choice), choice, settings.min_score) if run.find else None
    card, known = classifier.card, {name: find_model(name).classifier_card.codes for name in settings.experts}
    fitting = {name: settings.experts[name] for name, codes in known.items() if set(codes) <= set(card.codes)}
    job = ClassifyJob(classifier.min_label_score, card.codes, settings.um_per_px, card.min_move_score)
    job = replace(job, kind_of=taxonomy.kind_of, find=detector)
    job = replace(job, experts=load_experts(settings.model_copy(update={"experts": fitting}), [card.codes], choice))
    unasked = (f"{name} is not asked: {card.id} lacks some of its codes" for name in known if name not in fitting)
    return classifier, job, tuple(unasked)


def _unlisted(pictures: Iterable[Path], job: ClassifyJob) -> int:
    """Pictures without a scale that lie beside a manifest of `smearcount crop` which does not list them."""
    if job.um_per_px is not None:
        return 0
    folders = {path.parent for path in job.patches}
    return sum(path.parent in folders and path not in job.patches for path in pictures)


def _remarks(seen: Mapping[str, int], unlisted: int, missing: int) -> Iterator[str]:
    """What a reader should know of how the pictures were seen."""
    if missing:
        yield f"{missing} patches that a manifest beside the pictures lists are missing"
    if unlisted:
        yield f"{unlisted} pictures are not in the manifest beside them: each was taken as the whole window"
    for origin in ("estimated", "assumed"):
        if n := seen[origin]:
            yield f"{n} pictures: the scale was {origin}, which a picture of one cell hardly allows; give --um-per-px"
    if n := seen["not found"]:
        yield f"{n} pictures: no cell found; the middle was taken"


def _with_examples(
    classifier: Classifier, job: ClassifyJob, folder: Path, listed: Sequence[tuple[Path, str]]
) -> tuple[ClassifyJob, tuple[str, ...]]:
    """The job with the classes of some examples: added to the classifier's, or alone where none of them is its own."""
    codes = tuple(dict.fromkeys(code for _, code in listed))
    if len(codes) < 2:
        raise UsageError(f"{folder}: expected examples of two classes or more, got {', '.join(codes)} only")
    named = classifier.name_views(_show(_opened(path), classifier, job).view for path, _ in listed)
    labels = np.array([codes.index(code) for _, code in listed], np.intp)
    prototypes = Prototypes.from_examples(named.features, labels, codes)
    low, high = prototypes.check.limits
    told = f"the examples name one another right in {prototypes.check.accuracy:.0%} ({low:.0%} to {high:.0%})"
    own = [code for code in codes if code in job.codes]
    if not own or len(own) == len(codes):
        probabilities: Probabilities = lambda named: prototypes.probs(named.features)  # noqa: E731
        unasked = ("no expert is asked: the examples alone name the cells",) * bool(job.experts)
        job = replace(job, codes=codes, probabilities=probabilities, experts=())
        return job, (*unasked, *prototypes.warnings, told)

    def extended(named: Named) -> Extension:
        return extend(Labels(named.probs, classifier.card.codes), named.features, prototypes)

    with_new = extended(named)
    more = replace(job, codes=with_new.labels.codes, probabilities=lambda named: extended(named).labels.probs)
    return more, (*with_new.warnings, told)
