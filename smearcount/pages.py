"""What the HTML reports share: a page that needs nothing else, and plots drawn without a screen or a global state."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smearcount.arrays import Pixels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BLUE", "FAINT", "INK", "ORANGE", "data_uri", "make_figure", "one_line", "page_of", "rendered", "tidy"]

INK, FAINT, BLUE, ORANGE = "#1c2733", "#6b7785", "#1f5fa8", "#c2571a"
_LONGEST = 26


def page_of(template: Path, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The HTML of a template; a value that is missing is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Escaping is on for everything: names of slides, codes and files come from outside.
    templates = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= filters
    return templates.get_template(template.name).render(values)


def data_uri(pixels: Pixels) -> str:
    """A picture `(H, W, 3) uint8 RGB` as text that stands for a file in HTML."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def make_figure(width: float, height: float, dpi: int) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=dpi, layout="constrained", facecolor="white")


def tidy(axes: Axes) -> None:
    """A faint grid behind the data, and no frame."""
    axes.grid(color="#dfe3e8", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def one_line(name: str, *, keep_end: bool = False) -> str:
    """A name, which may be anything, as one short line; of a long one the beginning or the end."""
    line = " ".join("".join(c if c.isprintable() else " " for c in name).split()) or "?"
    if len(line) <= _LONGEST:
        return line
    return "…" + line[1 - _LONGEST :] if keep_end else line[: _LONGEST - 1] + "…"


def rendered(figure: Figure) -> Pixels:
    """The figure as `(H, W, 3) uint8 RGB`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A name in letters that the font lacks is shown as boxes here; the tables of the page have it in full.
        warnings.filterwarnings("ignore", message="Glyph")
        canvas.draw()
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba(), np.uint8)[..., :3])
