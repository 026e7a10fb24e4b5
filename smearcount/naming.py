"""Names the cells of a picture: each classifier is asked about its kinds, and experts where two codes are close."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from smearcount.arrays import FloatArray, Indices
from smearcount.cards import Card, find_model
from smearcount.classifier import Classifier, name_thresholds
from smearcount.config import Settings
from smearcount.errors import ConfigError
from smearcount.images import PixelSource
from smearcount.mending.tiebreak import Expert, TieBreaker, break_ties, first_shared_pair
from smearcount.records import Detections, Labels
from smearcount.runtimes import RuntimeChoice
from smearcount.taxonomy import Taxonomy

__all__ = ["Namer", "hear_experts", "load_experts"]


class Namer:
    """All models that name cells.

    Args:
        settings: which ones, and their thresholds.
        taxonomy: has a kind and a name for every code.
        choice: runtime, device and precision.
        weights: folder of the models instead of the shipped one.

    Raises:
        ModelError: a model is no classifier, or a file is missing or damaged.
        ConfigError: a code is not in the taxonomy, a kind is asked about twice, or an expert has no generalist.
    """

    def __init__(self, settings: Settings, taxonomy: Taxonomy, choice: RuntimeChoice, weights: Path | None) -> None:
        self.classifiers = tuple(
            Classifier(find_model(name, weights), choice, settings.min_label_score) for name in settings.classifiers
        )
        self.codes = tuple(dict.fromkeys(code for each in self.classifiers for code in each.card.codes))
        self._check(taxonomy)
        self.experts = load_experts(settings, [each.card.codes for each in self.classifiers], choice, weights)
        self._kinds = np.array([taxonomy.kind_of[code] for code in self.codes])

    def _check(self, taxonomy: Taxonomy) -> None:
        """Every code has a name and a kind, and no kind is asked about twice."""
        asked: set[str] = set()
        for card in (each.card for each in self.classifiers):
            unknown = [code for code in card.codes if code not in taxonomy.codes]
            if unknown:
                remedy = "name a file that has them with --taxonomy"
                raise ConfigError(f"{card.id}: gives {', '.join(unknown)}, which the taxonomy lacks; {remedy}")
            if twice := asked & set(card.kinds):
                raise ConfigError(f"{card.id}: another classifier names {', '.join(sorted(twice))} already")
            asked |= set(card.kinds)

    @property
    def cards(self) -> tuple[Card, ...]:
        """Of the classifiers, then of the experts."""
        return tuple(each.card for each in (*self.classifiers, *(expert for expert, _ in self.experts)))

    @property
    def patch_um(self) -> dict[str, float]:
        """Physical side of the windows around cells of each kind that is asked about."""
        return {kind: each.card.patch_um for each in self.classifiers for kind in each.card.kinds}

    def name(self, source: PixelSource, found: Detections, um_per_px: float) -> tuple[Labels, FloatArray]:
        """The labels of the cells of a picture, and the probability `(N,)` that the name of each must reach."""
        probs = np.zeros((len(found), len(self.codes)), np.float32)
        thresholds = np.ones(len(found), np.float32)
        for each in self.classifiers:
            rows = np.flatnonzero(np.isin(found.kinds, each.card.kinds))
            columns = np.array([self.codes.index(code) for code in each.card.codes], np.intp)
            probs[np.ix_(rows, columns)] = self._heard(each, source, found.boxes[rows], um_per_px)
            moved = self._kinds[probs[rows].argmax(axis=1)] != found.kinds[rows]
            thresholds[rows] = name_thresholds(each.min_label_score, each.card.min_move_score, moved)
        return Labels(probs, self.codes), thresholds

    def _heard(self, classifier: Classifier, source: PixelSource, boxes: FloatArray, um_per_px: float) -> FloatArray:
        """Probabilities of the cells in some boxes, after the experts for codes of the classifier were heard."""
        codes = classifier.card.codes
        experts = [(each, margin) for each, margin in self.experts if set(each.card.codes) <= set(codes)]

        def ask(expert: Classifier, rows: Indices) -> FloatArray:
            return expert.name(source, boxes[rows], um_per_px).probs

        return hear_experts(classifier.name(source, boxes, um_per_px).probs, codes, experts, ask)


def load_experts(
    settings: Settings, generalists: Sequence[tuple[str, ...]], choice: RuntimeChoice, weights: Path | None = None
) -> tuple[tuple[Classifier, float], ...]:
    """The experts of the settings, and the gap below which each is asked.

    Args:
        settings: which ones.
        generalists: the codes of each classifier that may ask them.
        choice: runtime, device and precision.
        weights: folder of the models instead of the shipped one.

    Raises:
        ModelError: a model is no classifier, or a file is missing or damaged.
        ConfigError: an expert has no generalist, or knows the same two codes as another one.
    """
    experts = tuple(
        (Classifier(find_model(name, weights), choice), margin) for name, margin in settings.experts.items()
    )
    for card in (expert.card for expert, _ in experts):
        if not any(set(card.codes) <= set(codes) for codes in generalists):
            raise ConfigError(f"{card.id}: no classifier gives all of its codes, {', '.join(card.codes)}")
    if shared := first_shared_pair(expert.card.codes for expert, _ in experts):
        card, both = experts[shared[0]][0].card, " and ".join(shared[1])
        raise ConfigError(f"{card.id}: another expert knows {both} already; leave one of them out")
    return experts


def hear_experts(
    probs: FloatArray,
    codes: tuple[str, ...],
    experts: Sequence[tuple[Classifier, float]],
    ask: Callable[[Classifier, Indices], FloatArray],
) -> FloatArray:
    """Probabilities `(N, K)` of the codes after the experts were heard where the two best ones are close.

    Args:
        probs: `(N, K)`, of a classifier.
        codes: of the classifier.
        experts: those for some of its codes, and the gap below which each is asked.
        ask: what an expert says of some of the N cells.
    """
    if not experts:
        return probs

    def expert_of(asked: Classifier) -> Expert:
        return Expert(asked.card.codes, lambda rows: ask(asked, rows))

    asked, margins = zip(*experts, strict=True)
    return break_ties(probs, TieBreaker(codes, tuple(map(expert_of, asked)), margins))[0]
