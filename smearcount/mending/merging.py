"""Are these the right classes? Clusters of the embeddings against the codes, and training targets of merged codes.

`features` is `(N, D) float32`, the second output of a classifier; `labels` is `(N,)`, the index of each cell's code.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import isnan, nan
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smearcount.arrays import Bools, Doubles, FloatArray, Indices, Pixels
from smearcount.config import yaml_line
from smearcount.errors import ConfigError, UsageError
from smearcount.mending.tiebreak import confusion_counts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CodePair", "MergeProposal", "merge_targets", "merged_codes", "plot_merges", "propose_merges", "unit_rows"]

MIN_OVERLAP = 0.5
"""Two codes with more of their cells in the same clusters than in different ones may be one."""

MIN_CONFUSION = 0.05
"""A classifier that confuses two codes less than this tells them apart, whatever the clusters say."""

MIN_CELLS = 5
"""Cells of either code that a merge is proposed on: overlap and confusion of fewer are chance."""

MIN_SILHOUETTE = 0.25
"""No substantial structure below (Kaufman and Rousseeuw 1990, Finding Groups in Data, table 2.4): nothing to go by."""

_MOST_CELLS = 4000
"""Cells looked at: the silhouette takes all their distances."""

_COMPONENTS = 50
"""Dimensions that the clusters are looked for in: distances lose their contrast in more."""

_PLOT_WH = (1300, 600)


@dataclass(frozen=True)
class CodePair:
    """How alike two codes are.

    Attributes:
        first: the code that comes first among the codes.
        second: the other one.
        cells: of either code.
        overlap: sum over the clusters of the smaller of the two shares of cells, from 0 to 1 (histogram intersection,
            Swain and Ballard 1991, 10.1007/BF00130487); the numbers of cells of the codes have no influence.
        confusion: mean of the shares of each code's cells that were given the other one; NaN without probabilities.
    """

    first: str
    second: str
    cells: tuple[int, int]
    overlap: float
    confusion: float

    @property
    def alike(self) -> bool:
        """Whether the codes share their clusters, are confused (where that is known), and have cells enough to say so.

        Two that are confused less are told apart, whatever the clusters say.
        """
        confused = not self.confusion < MIN_CONFUSION
        return self.overlap >= MIN_OVERLAP and confused and min(self.cells) >= MIN_CELLS

    @property
    def told(self) -> str:
        """The pair in one line, with the reason where it is not proposed."""
        line = f"{self.first} and {self.second}: {self.cells[0]} and {self.cells[1]} cells, overlap {self.overlap:.2f}"
        line += "" if isnan(self.confusion) else f", confusion {self.confusion:.2f}"
        if self.alike:
            return line
        if self.overlap < MIN_OVERLAP:
            return f"{line}; not proposed, as they lie in different clusters"
        if min(self.cells) < MIN_CELLS:
            return f"{line}; not proposed on fewer than {MIN_CELLS} cells of either"
        return f"{line}; not proposed, as the classifier tells them apart"


@dataclass(frozen=True, eq=False)
class MergeProposal:
    """What the clusters say of the codes.

    Attributes:
        codes: the K codes.
        silhouettes: of each number of clusters, the mean silhouette from -1 to 1 (Rousseeuw 1987,
            10.1016/0377-0427(87)90125-7).
        best_k: the number of clusters with the highest one; the lower of two.
        table: `(K, best_k) int64`, cells by code and cluster.
        pairs: every pair of codes that have cells, the most alike first.
        scatter: `(M, 2) float32`, first two principal components of the cells looked at.
        scatter_codes: `(M,)`, index of their code.
    """

    codes: tuple[str, ...]
    silhouettes: Mapping[int, float]
    best_k: int
    table: npt.NDArray[np.int64]
    pairs: tuple[CodePair, ...]
    scatter: FloatArray
    scatter_codes: Indices

    @property
    def clustered(self) -> bool:
        """Whether the embeddings form clusters at all; if not, no codes are proposed for merging."""
        return self.silhouettes[self.best_k] >= MIN_SILHOUETTE

    def within_kinds(self, kind_of: Mapping[str, str]) -> MergeProposal:
        """The same without the pairs of codes of two kinds, which can't be merged."""
        pairs = tuple(pair for pair in self.pairs if kind_of[pair.first] == kind_of[pair.second])
        return replace(self, pairs=pairs)

    def merges(self) -> dict[str, tuple[str, ...]]:
        """Codes to be made one, by the name of the new one: `{"ovalocyte_or_elliptocyte": ("ovalocyte", ...)}`.

        Each two codes of a group are `alike`; none unless `clustered`. A proposal for an expert, who alone knows which
        difference matters.
        """
        alike = [pair for pair in self.pairs if pair.alike] if self.clustered else []
        allowed = {frozenset((pair.first, pair.second)) for pair in alike}
        group_of: dict[str, tuple[str, ...]] = {code: (code,) for code in self.codes}
        for pair in alike:
            one, other = group_of[pair.first], group_of[pair.second]
            # Complete linkage: a chain of likenesses must not join codes that are not alike themselves.
            if one != other and all(frozenset((a, b)) in allowed for a in one for b in other):
                both = tuple(sorted(one + other, key=self.codes.index))
                group_of.update(dict.fromkeys(both, both))
        groups = dict.fromkeys(group for group in group_of.values() if len(group) > 1)
        return {"_or_".join(group): group for group in groups}

    def as_yaml(self, before: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
        """The line for a training recipe: `merge: {new_code: [old, old]}`.

        Args:
            before: what the recipe merges already; the line takes its place, in the codes of the cells themselves.
        """
        merges = self.merges()
        joined = {code for group in merges.values() for code in group}
        groups = {new: list(olds) for new, olds in before.items() if new not in joined}
        groups |= {new: [old for code in group for old in before.get(code, (code,))] for new, group in merges.items()}
        return yaml_line("merge", groups)

    def reasons(self) -> list[str]:
        """What the proposal rests on: a line for each pair of codes that share their clusters, one pair at least.

        Pairs of which each is alike may stay apart where a third code is like only one of them.
        """
        if not self.clustered:
            best = self.silhouettes[self.best_k]
            return [f"no clusters: the best mean silhouette is {best:.2f}, below {MIN_SILHOUETTE}"]
        sharing = [pair for pair in self.pairs if pair.overlap >= MIN_OVERLAP]
        return [pair.told for pair in sharing or self.pairs[:1]]


def propose_merges(
    features: FloatArray,
    labels: Indices,
    codes: tuple[str, ...],
    k_range: Sequence[int],
    seed: int,
    probs: FloatArray | None = None,
) -> MergeProposal:
    """k-means on the embeddings for every number of clusters in `k_range`, and how the codes lie in the best of them.

    Embeddings are scaled to length 1 and reduced to their main 50 components. At most 4,000 cells are looked at, the
    same number of each code as far as it has them, since k-means would spend its clusters on the common codes. The
    order of the cells has no influence. A silhouette that is best at few clusters puts many codes together: mind the
    whole curve, and give `probs (N, K)` of held-out cells, so that codes a classifier tells apart stay apart.

    Raises:
        UsageError: fewer than two codes have cells, or there are too few different cells for a number of clusters.
        ValueError: shapes do not fit, or a number is not finite.
    """
    if len(features) != len(labels) or (probs is not None and probs.shape != (len(labels), len(codes))):
        raise ValueError(f"expected features and probs of {len(labels)} cells and {len(codes)} codes")
    ks = sorted(set(k_range))
    units = unit_rows(features)
    present = np.unique(labels)
    if len(present) < 2 or not ks or ks[0] < 2:
        raise UsageError(f"merging needs cells of two codes and two clusters, got {len(present)} codes and k of {ks}")
    rows = _balanced_rows(units, labels, seed)
    n_different = len(np.unique(_as_bytes(units[rows])))
    if ks[-1] >= n_different:
        raise UsageError(f"{ks[-1]} clusters need more than {ks[-1]} different cells, got {n_different}")
    points, own = _components(units[rows]), labels[rows]
    clusters, silhouettes = _clusterings(points, ks, seed)
    best_k = max(ks, key=lambda k: (silhouettes[k], -k))
    table = np.zeros((len(codes), best_k), np.int64)
    np.add.at(table, (own, clusters[best_k]), 1)
    # Clusters come without an order: by the code that is most common in them the table can be read.
    table = table[:, np.lexsort((-table.max(axis=0), table.argmax(axis=0)))]
    scatter = np.pad(points, ((0, 0), (0, 2)))[:, :2].astype(np.float32)
    confusion = None if probs is None else confusion_counts(labels, probs.argmax(axis=1), len(codes))
    pairs = _pairs(codes, np.bincount(labels, minlength=len(codes)), table, confusion)
    return MergeProposal(codes, silhouettes, best_k, table, pairs, scatter, own)


def merged_codes(codes: tuple[str, ...], merge: Mapping[str, Sequence[str]]) -> tuple[tuple[str, ...], Indices]:
    """The codes after merging, each new one in the place of the first old one; and the new index of each old code.

    Raises:
        ConfigError: an old code is unknown or merged twice, or a new one is the name of another code that stays.
    """
    new_of: dict[str, str] = {}
    for new, olds in merge.items():
        unknown = [old for old in olds if old not in codes]
        if unknown or not olds:
            raise ConfigError(f"merge: {new}: expected some of {', '.join(codes)}, got {', '.join(unknown) or 'none'}")
        twice = [old for old in olds if old in new_of]
        if twice or len(set(olds)) != len(olds):
            raise ConfigError(f"merge: {new}: {', '.join(twice or olds)} can be merged only once")
        new_of |= dict.fromkeys(olds, new)
    taken = [new for new in merge if new in codes and new_of.get(new) != new]
    if taken:
        raise ConfigError(f"merge: {', '.join(taken)} is the name of another code; choose a new one")
    names = [new_of.get(code, code) for code in codes]
    after = tuple(dict.fromkeys(names))
    return after, np.array([after.index(name) for name in names], np.intp)


def merge_targets(
    targets: Bools, codes: tuple[str, ...], merge: Mapping[str, Sequence[str]]
) -> tuple[Bools, tuple[str, ...]]:
    """Targets `(N, K) bool` in merged codes `(N, K2) bool`: a cell may be a new code where it may be one of the old.

    Raises:
        ConfigError: `merge` does not fit the codes.
    """
    after, index = merged_codes(codes, merge)
    merged = np.zeros((len(targets), len(after)), np.bool_)
    for old, new in enumerate(index):
        merged[:, new] |= targets[:, old]
    return merged, after


def plot_merges(proposal: MergeProposal, colours: Mapping[str, str]) -> Pixels:
    """The cells in two principal components by code, and the silhouette of each number of clusters.

    Args:
        proposal: what is drawn.
        colours: `#rrggbb` of each code, from a taxonomy.

    Returns:
        `(600, 1300, 3) uint8 RGB`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_PLOT_WH[0] / 100, _PLOT_WH[1] / 100), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_cells(left, proposal, colours)
    right.plot(list(proposal.silhouettes), list(proposal.silhouettes.values()), "o-", color="#0066b3")
    right.axvline(proposal.best_k, linestyle=":", color="#333333")
    right.set(title=f"best: {proposal.best_k} clusters", xlabel="number of clusters", ylabel="mean silhouette")
    right.set_xticks(list(proposal.silhouettes))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="raw", dpi=100)
    return np.frombuffer(buffer.getvalue(), np.uint8).reshape(_PLOT_WH[1], _PLOT_WH[0], 4)[..., :3].copy()


def _draw_cells(axes: Axes, proposal: MergeProposal, colours: Mapping[str, str]) -> None:
    for index in np.unique(proposal.scatter_codes):
        code, points = proposal.codes[index], proposal.scatter[proposal.scatter_codes == index]
        # A leading underscore would hide the entry, and dollar signs would be read as a formula.
        name = code.lstrip("_").replace("$", r"\$")
        marks: dict[str, Any] = {"color": colours[code], "marker": "osD^v"[index % 5]}
        axes.scatter(points[:, 0], points[:, 1], s=9, linewidths=0, label=name, **marks)
    axes.set(title="cells by code", xlabel="first principal component", ylabel="second principal component")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, markerscale=1.8, frameon=False)


def unit_rows(features: npt.NDArray[np.floating[Any]]) -> Doubles:
    """Rows of length 1 `(N, D)`; a row of zeros stays one.

    Raises:
        ValueError: not a table of finite numbers.
    """
    if features.ndim != 2 or not features.shape[1] or not np.isfinite(features).all():
        raise ValueError(f"features: expected finite (N, D), got shape {features.shape} or a NaN in it")
    wide = features.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths > 0, lengths, 1))


def _as_bytes(table: Doubles) -> npt.NDArray[np.void]:
    """Each row as one value, which can be sorted and compared; `(N,)`."""
    return np.ascontiguousarray(table).view(np.dtype((np.void, table.itemsize * table.shape[1]))).ravel()


def _balanced_rows(units: Doubles, labels: Indices, seed: int) -> Indices:
    """The cells looked at, in an order that depends on what they are and not on how they were listed."""
    order = np.argsort(_as_bytes(units), kind="stable")
    present = np.unique(labels)
    kept = np.zeros(len(labels), np.bool_)
    for code in present:
        mine = order[labels[order] == code]
        kept[np.random.default_rng(seed).permutation(mine)[: _MOST_CELLS // len(present)]] = True
    return order[kept[order]]


def _components(units: Doubles) -> Doubles:
    from sklearn.decomposition import PCA

    reduced = PCA(min(_COMPONENTS, *units.shape), svd_solver="covariance_eigh").fit_transform(units)
    return np.asarray(reduced, np.float64)


def _clusterings(points: Doubles, ks: list[int], seed: int) -> tuple[dict[int, Indices], dict[int, float]]:
    """Cluster of each cell `(M,)`, and the mean silhouette, for each number of clusters."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    clusters = {k: KMeans(k, n_init=10, random_state=seed).fit_predict(points).astype(np.intp) for k in ks}
    return clusters, {k: float(silhouette_score(points, clusters[k])) for k in ks}


def _pairs(
    codes: tuple[str, ...], cells: Indices, table: npt.NDArray[np.int64], confusion: npt.NDArray[np.int64] | None
) -> tuple[CodePair, ...]:
    def confused(a: int, b: int) -> float:
        if confusion is None:
            return nan
        return float((confusion[a, b] / confusion[a].sum() + confusion[b, a] / confusion[b].sum()) / 2)

    present = np.flatnonzero(table.sum(axis=1))
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    pairs = [
        CodePair(
            *(codes[a], codes[b], (int(cells[a]), int(cells[b]))),
            *(float(np.minimum(shares[a], shares[b]).sum()), confused(a, b)),
        )
        for a, b in combinations(present.tolist(), 2)
    ]
    return tuple(sorted(pairs, key=lambda pair: -pair.overlap))
