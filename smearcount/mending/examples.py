"""New classes from a few examples: a prototype a class on the embedding, without training.

A prototype is the mean of the embeddings of its examples (Snell et al. 2017, arXiv 1703.05175), here of embeddings
scaled to length 1 and compared by the cosine. `features` is `(N, D) float32`, the second output of a classifier.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from smearcount.arrays import Doubles, FloatArray, Indices
from smearcount.counting import binomial_limits
from smearcount.errors import UsageError
from smearcount.images import list_folder
from smearcount.mending.merging import unit_rows
from smearcount.records import UNCLASSIFIED, Labels
from smearcount.taxonomy import Taxonomy

__all__ = ["ENOUGH", "FEWEST", "Extension", "LeaveOneOut", "Prototypes", "extend", "read_examples"]

FEWEST = 2
"""Examples a class needs: with one, leaving it out leaves nothing."""

ENOUGH = 5
"""With fewer examples a class, the prototypes come with a warning."""

_NO_NEW = "expected a new code, but the classifier knows them all"
_NO_RIVAL = "expected examples of the classifier's own codes too, of those that look most like the new ones"

_REACH_PERCENTILE = 5
_TEMPERATURES = np.geomspace(0.005, 2.0, 81)


@dataclass(frozen=True)
class LeaveOneOut:
    """How well the examples name one another: each by prototypes that it has no part in.

    On the low side: the true code is judged by one example fewer than the others.

    Attributes:
        right: examples named right, by code.
        n: examples, by code.
    """

    right: Mapping[str, int]
    n: Mapping[str, int]

    @property
    def accuracy(self) -> float:
        """Share of all examples that are named right."""
        return sum(self.right.values()) / sum(self.n.values())

    @property
    def limits(self) -> tuple[float, float]:
        """Exact 95 % limits of the accuracy."""
        return binomial_limits(sum(self.right.values()), sum(self.n.values()))


@dataclass(frozen=True, eq=False)
class Prototypes:
    """A class for each code that examples were given of.

    Attributes:
        codes: the K codes.
        vectors: `(K, D) float64`, rows of length 1.
        temperature: divides the cosines before the softmax.
        reach: `(K,) float64`, 5th percentile of the cosines of each code's examples to the prototype of the others.
        check: accuracy on the examples themselves.
        warnings: sentences for the reader, empty with five or more examples of each code.
    """

    codes: tuple[str, ...]
    vectors: Doubles
    temperature: float
    reach: Doubles
    check: LeaveOneOut
    warnings: tuple[str, ...]

    @staticmethod
    def from_examples(features: FloatArray, labels: Indices, codes: tuple[str, ...]) -> Prototypes:
        """Prototypes of examples whose codes have the indices `labels (N,)`.

        The temperature is the one that names the left-out examples with the lowest cross-entropy, against Platt's
        targets (1999, Advances in Large Margin Classifiers 61): (n + 1) / (n + 2) for the true code of n examples, so
        that a handful of well separated cells does not end in certainty.

        Raises:
            UsageError: a code has fewer than two examples.
            ValueError: shapes do not fit, or a number is not finite.
        """
        units = unit_rows(features)
        n = _checked_counts(units, labels, codes)
        vectors, cosines = _left_out(units, labels, len(codes))
        right = cosines.argmax(axis=1) == labels
        check = LeaveOneOut(
            {code: int(right[labels == index].sum()) for index, code in enumerate(codes)},
            dict(zip(codes, n.tolist(), strict=True)),
        )
        own = [cosines[labels == index, index] for index in range(len(codes))]
        reach = np.array([np.percentile(part, _REACH_PERCENTILE) for part in own])
        return Prototypes(codes, vectors, _temperature(cosines, labels, n), reach, check, _warnings(check))

    def cosines(self, features: FloatArray) -> Doubles:
        """Likeness of each cell to each prototype, `(N, K)`, from -1 to 1.

        Raises:
            ValueError: the features are of another length.
        """
        if features.ndim != 2 or features.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"features: expected (N, {self.vectors.shape[1]}), got {features.shape}")
        return np.asarray(unit_rows(features) @ self.vectors.T)

    def probs(self, features: FloatArray) -> FloatArray:
        """Probability of each code, `(N, K) float32`: softmax of the cosines divided by the temperature.

        Raises:
            ValueError: the features are of another length.
        """
        return np.exp(_log_softmax(self.cosines(features) / self.temperature)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Extension:
    """A classifier's labels with new codes.

    Attributes:
        labels: the classifier's codes, then the new ones.
        warnings: sentences for the reader.
    """

    labels: Labels
    warnings: tuple[str, ...]


def extend(labels: Labels, features: FloatArray, prototypes: Prototypes) -> Extension:
    """Add the codes that only the prototypes know to what a classifier says of the same cells, without training.

    The rule: P(new code) comes from the prototypes, and what is left is shared out as the classifier does, which was
    trained as if there were no other codes: P(old) = (1 - sum of P(new)) P_classifier(old). P(new) is zero unless
    - the code the classifier likes best has a prototype, which competes: without one nothing would speak against the
      new code, so a cell of a code that no examples were given of keeps what the classifier says;
    - the cell is at least as like the new prototype as 95 % of its own examples are to that of the others (`reach`).
    With n examples it is at most (n + 1) / (n + 2) (rule of succession). Rows of zeros, cells the classifier was not
    asked about, stay so.

    Raises:
        UsageError: every prototype is of a code that the classifier has already, or none is.
        ValueError: shapes do not fit.
    """
    new = [index for index, code in enumerate(prototypes.codes) if code not in labels.codes]
    if not new or len(new) == len(prototypes.codes):
        raise UsageError(f"examples: {_NO_NEW if not new else _NO_RIVAL}; got {', '.join(prototypes.codes)}")
    if len(features) != len(labels.probs):
        raise ValueError(f"features: expected {len(labels.probs)} rows, got {len(features)}")
    n = np.array([prototypes.check.n[prototypes.codes[index]] for index in new])
    gained = np.minimum(prototypes.probs(features)[:, new].astype(np.float64), (n + 1) / (n + 2))
    # The margin is for rounding: an example that sets the reach is within it.
    gained[prototypes.cosines(features)[:, new] < prototypes.reach[new] - 1e-6] = 0
    rivals = np.array([code in prototypes.codes for code in labels.codes])
    gained[~rivals[labels.probs.argmax(axis=1)] | (labels.probs.sum(axis=1) == 0)] = 0
    old = labels.probs * (1 - gained.sum(axis=1, keepdims=True))
    every = (*labels.codes, *(prototypes.codes[index] for index in new))
    probs = np.concatenate([old, gained], axis=1).astype(np.float32)
    missing = [code for code in labels.codes if code not in prototypes.codes]
    kept = f"no examples of {', '.join(missing)}: what the classifier takes for these keeps its name"
    return Extension(Labels(probs, every), (*prototypes.warnings, *([kept] if missing else [])))


def read_examples(folder: Path, taxonomy: Taxonomy, codes: Iterable[str] = ()) -> list[tuple[Path, str]]:
    """The pictures below the folders of a folder, sorted, each with the code its folder is named after.

    A folder's name is one of `codes`, or a code, a synonym or a display name of the taxonomy, however it is written,
    also in the plural; any other name becomes a new code. Deeper folders belong to the one at the top. A file of a type
    that is not read is listed too: opening it says so.

    Raises:
        UsageError: there is no example, a folder has none, a picture is in no class folder, or a name is no code.
        ImageError: the folder is missing or can't be listed.
    """
    pictures = list_folder(folder, recursive=True).pictures
    loose = [path.name for path in pictures if path.parent == folder]
    if loose or not pictures:
        what = f"{len(loose)} pictures such as {loose[0]} are in no class" if loose else "no pictures"
        raise UsageError(f"{folder}: {what}; expected one folder a class, named after its code")
    own = {f"{_word(code)}{plural}": code for plural in ("s", "") for code in codes}
    found = [(path, path.relative_to(folder).parts[0]) for path in pictures]
    visible = {entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
    empty = sorted(visible - {name for _, name in found})
    if empty:
        raise UsageError(f"{folder}: no pictures in {', '.join(empty)}; add examples or delete the folder")
    code_of = {name: own.get(_word(name)) or taxonomy.code_of(name) or _word(name) for _, name in found}
    wrong = [name for name, code in code_of.items() if code in ("", UNCLASSIFIED)]
    if wrong:
        raise UsageError(f"{folder}: {', '.join(wrong)} can't be a code; name the folder after a kind of cell")
    return [(path, code_of[name]) for path, name in found]


def _word(name: str) -> str:
    return re.sub(r"[\W_]+", "_", unicodedata.normalize("NFC", name.casefold())).strip("_")


def _checked_counts(units: Doubles, labels: Indices, codes: tuple[str, ...]) -> Indices:
    """Examples of each code, `(K,)`."""
    if len(units) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < len(codes)):
        raise ValueError(f"labels: expected {len(units)} indices from 0 to {len(codes) - 1}, got {labels}")
    n = np.bincount(labels, minlength=len(codes)).astype(np.intp)
    few = [f"{code} ({count})" for code, count in zip(codes, n, strict=True) if count < FEWEST]
    if few or not codes:
        raise UsageError(f"examples: expected {FEWEST} or more of each code, got {', '.join(few) or 'none'}")
    return n


def _left_out(units: Doubles, labels: Indices, n_codes: int) -> tuple[Doubles, Doubles]:
    """Prototypes `(K, D)`; and the cosines of the examples to them `(N, K)`, to their own code's without themselves."""
    sums = np.zeros((n_codes, units.shape[1]))
    np.add.at(sums, labels, units)
    vectors = unit_rows(sums)
    cosines = units @ vectors.T
    cosines[np.arange(len(units)), labels] = (units * unit_rows(sums[labels] - units)).sum(axis=1)
    return vectors, cosines


def _warnings(check: LeaveOneOut) -> tuple[str, ...]:
    few = [f"{code} ({n})" for code, n in check.n.items() if n < ENOUGH]
    return (f"fewer than {ENOUGH} examples of {', '.join(few)}: names and accuracy are unsure",) if few else ()


def _temperature(cosines: Doubles, labels: Indices, n: Indices) -> float:
    n_codes = cosines.shape[1]
    sure = (n[labels] + 1) / (n[labels] + 2)
    targets = np.repeat(((1 - sure) / max(n_codes - 1, 1))[:, None], n_codes, axis=1)
    targets[np.arange(len(labels)), labels] = sure
    losses = [-(targets * _log_softmax(cosines / t)).sum(axis=1).mean() for t in _TEMPERATURES]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _log_softmax(scores: Doubles) -> Doubles:
    shifted = scores - scores.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
