"""An INT8 version of a model: convolutions with 8-bit weights and activations, made by NNCF for OpenVINO on CPUs.

The ranges of the activations are taken from pictures; on others, which were not used for that, the answers are compared
with those in float32. A version that differs by more than `MOST_APART`, or in one kind by more than
`MOST_APART_OF_KIND`, is not written.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import FloatArray, Pixels
from smearcount.cards import ClassifierCard, DetectorCard, Metric, Model
from smearcount.classifier import Classifier, fitted
from smearcount.detector import Detector
from smearcount.errors import ModelError, RuntimeMissingError, UsageError
from smearcount.geometry import resize_rgb
from smearcount.images import open_image
from smearcount.patches import to_batch
from smearcount.probe import ProbeError, probe_error
from smearcount.runtimes import RuntimeChoice, has_int8, make_runtime, openvino_core
from smearcount.scale import find_at_scale
from smearcount.training.packaging import check_replaceable, copy_companions, file_entries, staged, update_card
from smearcount.training.samples import LEAST_CELLS, SINGLE_CELLS, Sample, Samples, limits_of
from smearcount.windows import canonical_size, to_tensor

__all__ = ["MOST_APART", "Agreement", "compare", "quantise"]

MOST_APART = 0.005
"""Largest difference to float32: of the pooled counts of a detector, of the labels of a classifier, as a share."""

MOST_APART_OF_KIND = 0.03
"""The same for each kind that a detector finds `ENOUGH_TO_MATCH` times, since nearly all cells are red ones."""

LOWEST_SCORE = 0.1
"""Far below the thresholds of any kind."""

ENOUGH_TO_MATCH = 50
"""Cells of a kind from which on its threshold is matched to float32."""

_PROBE_SLACK = 1.5


@dataclass(frozen=True)
class Agreement:
    """How the answers of an INT8 version compare with those in float32.

    Attributes:
        rest: precision of the layers that were not quantised.
        pictures: that were compared.
        counts: by code, number in float32 and in INT8.
        same: share of the pictures with the same counts; of a classifier, with the same label.
        apart: difference of the pooled counts as a share; of a classifier, the share of other labels.
    """

    rest: str
    pictures: int
    counts: dict[str, tuple[int, int]]
    same: float
    apart: float

    @property
    def cells(self) -> int:
        """Cells in float32."""
        return sum(reference for reference, _ in self.counts.values())

    def kinds_apart(self) -> list[str]:
        """Codes whose counts differ by more than `MOST_APART_OF_KIND`, of those with cells enough to say so."""
        return [
            code
            for code, (reference, found) in self.counts.items()
            if reference >= ENOUGH_TO_MATCH and abs(found - reference) > MOST_APART_OF_KIND * reference
        ]


def quantise(model: Model, samples: Samples, out: Path) -> tuple[Path, list[Agreement]]:
    """Write the INT8 version of a model as the folder `out/<id>-int8`; an earlier one of it is replaced.

    Args:
        model: a model with OpenVINO files in float32.
        samples: fields of view for a detector, pictures of single cells for a classifier.
        out: where the new folder is made.

    Returns:
        The folder, and how its answers compare with float32: with the layers that stay in floating point in float32,
        and in bf16 where the machine has it.

    Raises:
        RuntimeMissingError: NNCF is not installed, or the machine lacks the instructions.
        ModelError: the model is damaged, or the INT8 version differs by more than `MOST_APART`.
    """
    if not has_int8():
        raise RuntimeMissingError("this processor has no instructions for INT8 (VNNI or AMX); use f32 or bf16")
    if model.card.precision == "int8":
        raise UsageError(f"{model.card.id}: is an INT8 version already; give the model that it was made of")
    if isinstance(model.card, ClassifierCard) and len(samples.check) < LEAST_CELLS:
        raise UsageError(
            f"{len(samples.check)} single cells are too few to compare, expected {LEAST_CELLS}: give "
            f"{SINGLE_CELLS:,} pictures or more"
        )
    target = out / f"{model.card.id}-int8"
    check_replaceable(target, model.card)
    out.mkdir(parents=True, exist_ok=True)
    with staged(target) as staging:
        _write_network(model, list(_inputs(model, samples.calibration)), staging)
        _write_card(model, staging)
        copy_companions(model.folder, staging)
        made = Model(staging)
        if not isinstance(model.card, ClassifierCard):
            update_card(staging, min_score=_matched_thresholds(model, made, samples.calibration))
            made = Model(staging)
        agreements = [compare(model, made, samples.check, rest) for rest in _rests()]
        _check(made, agreements)
        _record(made, agreements)
    return target, agreements


def _inputs(model: Model, pictures: Sequence[Sample]) -> Iterator[FloatArray]:
    """What the network sees of each picture: the middle of a field, or a single cell."""
    if isinstance(model.card, ClassifierCard):
        for view in _views(model, pictures):
            yield to_batch([view], model.card.mean, model.card.std)
        return
    card, detector = model.detector_card, Detector(model, RuntimeChoice("openvino", "cpu", "f32"))
    for path, known in pictures:
        source = open_image(path)
        um_per_px = known or find_at_scale(source, detector, None, source.um_per_px)[0].um_per_px
        side = round(card.window_px * card.um_per_px / um_per_px)
        width, height = (min(length, side) for length in source.size_wh)
        left, top = (source.size_wh[0] - width) // 2, (source.size_wh[1] - height) // 2
        wh = canonical_size((width, height), um_per_px, card)
        yield to_tensor(resize_rgb(source.read(left, top, width, height), *wh), card)


def _views(model: Model, pictures: Sequence[Sample]) -> Iterator[Pixels]:
    """What a classifier sees of pictures of single cells, `(side, side, 3) uint8 RGB` each."""
    for path, _ in pictures:
        source = open_image(path, limits_of(model))
        yield fitted(source.read(0, 0, *source.size_wh), model.classifier_card)


def _write_network(model: Model, inputs: list[FloatArray], folder: Path) -> None:
    """Quantise the OpenVINO network of a model; write it as `model.xml` and `model.bin`."""
    try:
        import nncf
    except ImportError as error:
        raise RuntimeMissingError("NNCF is not installed: pip install 'smearcount[int8]'") from error
    import openvino

    nncf.set_log_level(logging.ERROR)
    network = openvino_core().read_model(model.read("model.xml"), openvino.Tensor(_bytes(model.read("model.bin"))))
    names = [operation.get_friendly_name() for operation in network.get_ordered_ops()]
    # NNCF shows its progress on stdout, which belongs to what a command has to say.
    with contextlib.redirect_stdout(sys.stderr):
        quantised = nncf.quantize(
            network,
            nncf.Dataset(inputs),
            subset_size=len(inputs),
            preset=nncf.QuantizationPreset.MIXED,  # Swish gives negative values too: ranges are not symmetric
            fast_bias_correction=False,  # means of the layers as they come out, not estimated from their inputs
            ignored_scope=nncf.IgnoredScope(patterns=_kept_exact(names), validate=False),
        )
    openvino.save_model(quantised, folder / "model.xml", compress_to_fp16=False)


def _bytes(content: bytes) -> Any:
    return np.frombuffer(content, np.uint8).copy()


def _kept_exact(names: Sequence[str]) -> list[str]:
    """Patterns of the operations that stay in floating point.

    In a detector the first layer, whose few channels gain nothing; the branch that scores the kinds, since thresholds
    are set to a hundredth; and what turns the distances of the box branch into pixels. A classifier has none of these.
    """
    layers = [int(found[1]) for name in names if (found := re.match(r"/model\.(\d+)/", name))]
    if not layers:
        return []
    head = rf"/model\.{max(layers)}/"
    return [r"/model\.0/.*", rf"{head}(?!cv2\.).*", rf"{head}cv2\.\d/cv2\.\d\.2/.*"]


def _write_card(model: Model, folder: Path) -> None:
    """The card of the INT8 version, with the probe of the model: what float32 gives stays the measure."""
    (folder / "card.yaml").write_bytes((model.folder / "card.yaml").read_bytes())
    (folder / "probe.npz").write_bytes(model.read("probe.npz"))
    files = file_entries(folder, {"model.xml": "openvino", "model.bin": "openvino", "probe.npz": "probe"})
    update_card(
        folder,
        id=f"{model.card.id}-int8",
        description=f"{model.card.description} INT8 version of {model.card.id}, for OpenVINO.",
        precision="int8",
        files={name: entry.model_dump() for name, entry in files.items()},
        metrics=(),
        limits=(*model.card.limits, f"Figures against labels are those of {model.card.id}; INT8 was compared with it."),
    )


def _matched_thresholds(model: Model, made: Model, pictures: Sequence[Sample]) -> dict[str, float]:
    """Thresholds at which INT8 finds as many cells as float32 does at its own; those of rare kinds stay.

    Args:
        model: in float32.
        made: its INT8 version.
        pictures: that were used to calibrate, so that the comparison remains one.
    """
    exact = RuntimeChoice("openvino", "cpu", "f32")
    ours, theirs = Detector(model, exact), Detector(made, exact, LOWEST_SCORE)
    scores: dict[str, list[FloatArray]] = {kind: [] for kind in model.card.codes}
    wanted = dict.fromkeys(model.card.codes, 0)
    for path, known in pictures:
        source = open_image(path)
        um_per_px = known or find_at_scale(source, ours, None, source.um_per_px)[0].um_per_px
        kinds, found = ours.find(source, um_per_px).kinds, theirs.find(source, um_per_px)
        for kind in model.card.codes:
            wanted[kind] += int((kinds == kind).sum())
            scores[kind].append(found.scores[found.kinds == kind])
    thresholds = dict(model.detector_card.min_score)
    for kind, number in wanted.items():
        ranked = np.sort(np.concatenate(scores[kind]))[::-1]
        if ENOUGH_TO_MATCH <= number < len(ranked):
            # Of all that give this number, the one nearest to the threshold in float32.
            lowest, highest = float(ranked[number]) + 1e-4, float(ranked[number - 1])
            thresholds[kind] = round(min(max(thresholds[kind], lowest), highest), 4)
    return thresholds


def _rests() -> tuple[str, ...]:
    """Precisions in which the layers that are not quantised can run here."""
    able = openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ("f32", "bf16") if "BF16" in able else ("f32",)


def compare(reference: Model, quantised: Model, pictures: Sequence[Sample], rest: str = "f32") -> Agreement:
    """Answers of an INT8 version against those of its model in float32.

    Args:
        reference: the model.
        quantised: its INT8 version.
        pictures: none of which was used to calibrate, with their scales where known.
        rest: precision of the layers that are not quantised.
    """
    naming = isinstance(reference.card, ClassifierCard)
    runs = ((reference, RuntimeChoice("openvino", "cpu", "f32")), (quantised, RuntimeChoice("openvino", "cpu", rest)))
    rows = _labels(runs, pictures) if naming else _counts(runs, pictures)
    table = np.array(rows, np.int64).reshape(-1, 2, len(reference.card.codes))
    first, second = table.sum(axis=0)
    others = int((table[:, 0] != table[:, 1]).any(axis=1).sum())
    # A share of whole numbers, which at the allowed limit is that limit to the last bit.
    apart = others / len(table) if naming else abs(int(second.sum()) - int(first.sum())) / max(int(first.sum()), 1)
    counts = {code: (int(first[i]), int(second[i])) for i, code in enumerate(reference.card.codes)}
    return Agreement(rest, len(table), counts, 1 - others / len(table), apart)


_Runs = tuple[tuple[Model, RuntimeChoice], ...]
_Rows = list[list[list[int]]]


def _counts(runs: _Runs, pictures: Sequence[Sample]) -> _Rows:
    """Number of cells of each code in each picture, by each run."""
    detectors = [Detector(model, choice) for model, choice in runs]
    rows = []
    for path, known in pictures:
        source = open_image(path)
        um_per_px = known or find_at_scale(source, detectors[0], None, source.um_per_px)[0].um_per_px
        kinds = [each.find(source, um_per_px).kinds for each in detectors]
        rows.append([[int((found == code).sum()) for code in detectors[0].card.codes] for found in kinds])
    return rows


def _labels(runs: _Runs, pictures: Sequence[Sample]) -> _Rows:
    """A one at the label of each single cell, by each run."""
    classifiers = [Classifier(model, choice) for model, choice in runs]
    views = list(_views(runs[0][0], pictures))
    labels = np.stack([each.name_views(views).probs.argmax(axis=1) for each in classifiers], axis=1)
    rows: _Rows = np.eye(len(classifiers[0].card.codes), dtype=int)[labels].tolist()
    return rows


def _check(made: Model, agreements: Sequence[Agreement]) -> None:
    for each in agreements:
        if each.cells < LEAST_CELLS:
            raise UsageError(f"{each.cells} cells are too few to compare, expected {LEAST_CELLS}; give more pictures")
        if each.apart > MOST_APART:
            raise ModelError(
                f"{made.card.id}: not written, since its answers are {100 * each.apart:.2f} % from those in float32 "
                f"(allowed {100 * MOST_APART:g} %), other layers in {each.rest}: {each.counts}; give more or other "
                "pictures to calibrate with"
            )
        if isinstance(made.card, DetectorCard) and (kinds := each.kinds_apart()):
            raise ModelError(
                f"{made.card.id}: not written, since its counts of {', '.join(kinds)} are more than "
                f"{100 * MOST_APART_OF_KIND:g} % from those in float32, other layers in {each.rest}: {each.counts}; "
                "give more or other pictures to calibrate with"
            )


def _record(made: Model, agreements: Sequence[Agreement]) -> None:
    """Write the comparison on the card, and how far the probe is from float32."""
    probe = np.load(io.BytesIO(made.read("probe.npz")), allow_pickle=False)
    expected, pixels = probe["expected"], probe["pixels"].astype(np.float32)
    errors, metrics = list[ProbeError](), []
    for each in agreements:
        run, _ = make_runtime(made, RuntimeChoice("openvino", "cpu", each.rest))
        errors.append(probe_error(made.card, run(pixels)[0], expected))
        data = f"{each.pictures} pictures not used to calibrate, other layers in {each.rest}"
        metrics += [
            Metric(name=f"{code} over float32", data=data, n=first, value=round(second / first, 5))
            for code, (first, second) in each.counts.items()
            if first
        ]
    allowed = {"probe_tolerance": max(made.card.probe_tolerance, _PROBE_SLACK * max(each.value for each in errors))}
    if isinstance(made.card, DetectorCard):
        allowed["probe_score_tolerance"] = _PROBE_SLACK * max(each.score for each in errors)
    update_card(
        made.folder,
        **{name: round(value, 3) for name, value in allowed.items()},
        metrics=[metric.model_dump(exclude_none=True) for metric in metrics],
        limits=made.card.limits,  # figures over float32 are none against labels
    )
