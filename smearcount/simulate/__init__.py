"""Photographs of stained blood smears that never existed, with exact truth: for tests, samples and demonstrations.

SmearRecipe -> scene of cells in micrometres -> optical densities -> light, lens, sensor -> SimulatedSmear
"""

from smearcount.simulate.output import read_truth, write, write_set
from smearcount.simulate.picture import SimulatedSmear, render, truth
from smearcount.simulate.recipe import RED_CODES, WHITE_CODES, SmearRecipe, random_set, sample_set

__all__ = [
    "RED_CODES",
    "WHITE_CODES",
    "SimulatedSmear",
    "SmearRecipe",
    "random_set",
    "read_truth",
    "render",
    "sample_set",
    "truth",
    "write",
    "write_set",
]
