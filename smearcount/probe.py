"""Does every runtime give what the network gave when the model was made?"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np

from smearcount.arrays import FloatArray
from smearcount.cards import Card, DetectorCard, Model
from smearcount.cuda import has_cuda
from smearcount.errors import ModelError
from smearcount.runtimes import RuntimeChoice, make_runtime

__all__ = ["PROBE_SCORE", "ProbeError", "measure_probe", "probe_error", "probe_errors"]

PROBE_SCORE = 0.25
"""Boxes of a detector's probe are compared where they score as much; the others mean nothing."""


@dataclass(frozen=True)
class ProbeError:
    """Largest difference to the expected output of the probe.

    Attributes:
        value: of the logits of a classifier, or of the boxes of a detector in pixels.
        score: of the scores of a detector.
    """

    value: float
    score: float = 0.0

    def fits(self, card: Card) -> bool:
        """Whether it is within what the card allows."""
        score_fits = not isinstance(card, DetectorCard) or self.score <= card.probe_score_tolerance
        return self.value <= card.probe_tolerance and score_fits


def probe_error(card: Card, answer: FloatArray, expected: FloatArray) -> ProbeError:
    """The difference of two outputs of a network, `(N, K)` of a classifier or `(N, 4 + K, A)` of a detector."""
    if not isinstance(card, DetectorCard):
        return ProbeError(float(np.abs(answer - expected).max()))
    confident = (expected[:, 4:].max(axis=1) >= PROBE_SCORE)[:, None]
    apart = np.abs(answer - expected)
    return ProbeError(float((apart[:, :4] * confident).max()), float(apart[:, 4:].max()))


def measure_probe(model: Model, runtime: str, device: str = "cpu") -> tuple[str, ProbeError]:
    """The description of a runtime, and the largest difference of its answer to the probe of the model."""
    probe = np.load(io.BytesIO(model.read("probe.npz")), allow_pickle=False)
    choice = RuntimeChoice(runtime, device)
    run, description = make_runtime(model, choice)
    return description, probe_error(model.card, run(probe["pixels"].astype(np.float32))[0], probe["expected"])


def probe_errors(model: Model, runtimes: tuple[str, ...] | None = None) -> dict[str, ProbeError]:
    """Largest difference to the expected output of the probe for each runtime.

    Args:
        model: a model folder with `probe.npz`.
        runtimes: which to check; all that the model has files for by default, PyTorch on a graphics card too.

    Raises:
        ModelError: a difference exceeds the tolerance on the card.
    """
    errors = {}
    chosen = [(name, "cpu") for name in runtimes or ("openvino", "onnx", "torch") if runtimes or model.names(name)]
    if ("torch", "cpu") in chosen and has_cuda():
        chosen.append(("torch", "cuda"))
    for name, device in chosen:
        description, worst = measure_probe(model, name, device)
        if not worst.fits(model.card):
            own = not model.is_shipped and name != "torch"
            remedy = f"run `smearcount export {model.folder} --to {name}`" if own else model.remedy
            raise ModelError(
                f"{model.folder}: {description} differs from the probe by {worst.value:.3g}, scores {worst.score:.3g}: "
                f"more than the card allows; {remedy}, or try another version of {name}"
            )
        errors[description] = worst
    return errors
