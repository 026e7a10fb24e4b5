"""Judges a classifier by labelled cells: figures with intervals, heat maps, and one HTML report with its tables."""

from __future__ import annotations

from smearcount.judging.figures import figures
from smearcount.judging.heat import heat_maps, overlay_heat
from smearcount.judging.page import write_report
from smearcount.judging.record import Judged

__all__ = ["Judged", "figures", "heat_maps", "overlay_heat", "write_report"]
