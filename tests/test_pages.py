"""Pages and plots of the HTML reports: nothing from outside becomes markup, and any name fits its place."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from smearcount.pages import data_uri, make_figure, one_line, page_of, rendered


def test_a_page_escapes_what_it_shows_and_misses_nothing(tmp_path: Path) -> None:
    template = tmp_path / "page.j2"
    template.write_text("<p>{{ name | loud }}{{ sign }}</p>\n")
    assert page_of(template, {"loud": str.upper}, name="<b>", sign="&") == "<p>&lt;B&gt;&amp;</p>\n"
    with pytest.raises(jinja2.UndefinedError):
        page_of(template, {"loud": str.upper}, name="")


def test_a_picture_as_text_is_that_picture() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    kind, _, text = data_uri(pixels).partition(",")
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), pixels)


def test_any_name_is_one_short_line() -> None:
    assert (one_line("a\n\tb"), one_line(" \x00 "), one_line("x" * 26)) == ("a b", "?", "x" * 26)
    assert one_line("a" * 30 + "z") == "a" * 25 + "…"
    assert one_line("a" * 30 + "z", keep_end=True) == "…" + "a" * 24 + "z"


def test_a_figure_has_its_size_and_colours() -> None:
    figure = make_figure(2, 1, 50)
    figure.set_facecolor("#ff8000")
    pixels = rendered(figure)
    assert (pixels.shape, pixels.dtype) == ((50, 100, 3), np.uint8)
    assert (pixels == (255, 128, 0)).all()
