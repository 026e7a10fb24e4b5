"""A module imports only from layers above its own: the way of the data can be read off the folder listing."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "smearcount"

LAYERS = (
    ("arrays", "errors", "pairs", "records"),
    ("geometry", "config", "offline", "lists", "output_names", "progress"),
    ("suppression", "cuda"),
    ("taxonomy",),
    ("images", "cards", "metrics", "calibration"),
    ("naming_nets", "naming_heads", "cellsets"),
    ("torch_nets",),
    ("runtimes", "counting", "datasets", "probe"),
    ("windows",),
    ("detector",),
    ("patches", "region"),
    ("geojson",),
    ("scale", "slide_scale"),
    ("light",),
    ("unscanned",),
    ("classifier", "mending"),
    ("quality", "report", "outlines", "squares", "naming"),
    ("countable", "report_json"),
    ("frame",),
    ("panel", "pages"),
    ("overlay",),
    ("pipeline",),
    ("judging",),
    ("manifests",),
    ("simulate", "training", "batch", "engines", "gallery"),
    ("evaluation", "crops", "bench", "classify"),
    ("cli",),
    ("__main__",),
)

LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("smearcount."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "smearcount":
            found |= {alias.name for alias in node.names if alias.name in LEVEL}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("smearcount.")}
    return found


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_upwards(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert own in LEVEL, f"{own} has no layer: add it where it belongs"
    lower = {name for name in imports_of(path) if name != own and LEVEL[name] > LEVEL[own]}
    assert not lower, f"{own} imports {sorted(lower)} from below its own layer"


def test_no_module_is_long() -> None:
    long = {str(p.relative_to(PACKAGE)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_files_of_results_are_opened_and_written_in_one_place() -> None:
    """What is made up for a benchmark is no result; the JPEG and PNG of pages are held in memory."""
    own = re.compile(r"\b(imwrite|TiffWriter|TiffFile|imread|Image\.open|OpenSlide)\(|savefig\((?!stream|buffer)")
    found = {str(path.relative_to(PACKAGE)) for path in modules() if own.search(path.read_text())}
    assert {name for name in found if not name.startswith("images/")} == {"bench/mosaics.py"}
