"""`smearcount bench`: this product against the bare networks, against other tools, and against itself, in one run.

Contenders alternate, so that a noisy machine is noisy to all; ratios of medians are what counts. What is compared must
give equal counts, which is seen to first.
"""

from smearcount.bench.directories import DirectoriesJob, bench_directories
from smearcount.bench.engines import EnginesJob, bench_engines
from smearcount.bench.fields import FieldsJob, bench_fields
from smearcount.bench.naming import NamingJob, bench_naming
from smearcount.bench.slides import SLIDE_PARTS, SlidesJob, bench_slides

__all__ = [
    "SLIDE_PARTS",
    "DirectoriesJob",
    "EnginesJob",
    "FieldsJob",
    "NamingJob",
    "SlidesJob",
    "bench_directories",
    "bench_engines",
    "bench_fields",
    "bench_naming",
    "bench_slides",
]
