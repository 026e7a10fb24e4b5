"""smearcount: from a photograph of a stained blood smear to a count a laboratory can defend.

from smearcount import Pipeline
result = Pipeline.load().analyze("smear.jpg")
print(result.differential)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from smearcount.config import Settings
    from smearcount.pipeline import Analysis, Pipeline

__all__ = ["Analysis", "Pipeline", "Settings", "__version__"]
__version__ = "0.15.0"


def __getattr__(name: str) -> Any:
    """The public classes, imported when first asked for: `import smearcount` stays instant."""
    if name in ("Analysis", "Pipeline"):
        from smearcount import pipeline

        return getattr(pipeline, name)
    if name == "Settings":
        from smearcount.config import Settings

        return Settings
    raise AttributeError(f"module 'smearcount' has no attribute {name!r}")
