"""Ways to map one function over many tasks: in this process, on processes of this machine, on a Ray cluster.

An engine adds no logic and knows nothing of pictures: it gives tasks to workers, and hands back what they made of them.
"""

from smearcount.engines.contract import Engine, Lost, Results, Work
from smearcount.engines.here import run_here
from smearcount.engines.local import LocalPlan, run_local, usable_cores
from smearcount.engines.ray import RayPlan, run_ray

__all__ = [
    "Engine",
    "LocalPlan",
    "Lost",
    "RayPlan",
    "Results",
    "Work",
    "run_here",
    "run_local",
    "run_ray",
    "usable_cores",
]
